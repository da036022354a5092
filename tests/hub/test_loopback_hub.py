"""The hub against raw requests and against the real clients. In this process the clients are `HfApi` objects with an
endpoint; whatever reads `HF_ENDPOINT` runs in a process of its own, several actions in each since imports take seconds.
"""

import base64
import hashlib
import http.client
import inspect
import json
import logging
import os
import shlex
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

import huggingface_hub
import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from packaging.version import Version

from mmbert_hf.testing import LoopbackHub
from mmbert_hf.testing.hub_cards import parse_card
from mmbert_hf.testing.hub_objects import StoredFile, folder_oids, lfs_pointer

REPO = "loopback/model"
# huggingface_hub 1 validates cards at the real Hub, whatever HF_ENDPOINT says, and does not retry a 429 on a listing.
needs_client_2 = pytest.mark.skipif(
    Version(huggingface_hub.__version__) < Version("2"), reason="huggingface_hub 1 does not do this"
)


@pytest.fixture
def repo(api):
    """A model repository with nothing but its first commit."""
    api.create_repo(REPO)
    return REPO


def send(hub, method, path, body=None, token=None, **headers):
    """Send one request as it is, and return status, headers and body."""
    connection = http.client.HTTPConnection(hub.endpoint.removeprefix("http://"), timeout=30)
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
    response = connection.getresponse()
    content = response.read()
    connection.close()
    return response.status, response.headers, content


def commit_body(*operations):
    lines = [{"key": "header", "value": {"summary": "by hand"}}, *operations]
    return "\n".join(json.dumps(line) for line in lines)


def file_operation(path, content):
    value = {"path": path, "content": base64.b64encode(content).decode(), "encoding": "base64"}
    return {"key": "file", "value": value}


def commit_count(api, repo_id=REPO, **arguments):
    return len(api.list_repo_commits(repo_id, **arguments))


def other_user(hub, token):
    return HfApi(endpoint=hub.endpoint, token=token)


# Files and commits


def test_uploaded_files_are_listed_and_downloaded_as_they_were(api, repo, tmp_path):
    names = {"config.json": b"{}", "1_Pooling/config.json": b'{"a": 1}', "with space/100%25 ünï.txt": "ü\n".encode()}
    for name, content in names.items():
        path = tmp_path / "source" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    api.upload_folder(repo_id=repo, folder_path=tmp_path / "source")
    assert set(api.list_repo_files(repo)) == {*names, ".gitattributes"}
    assert api.file_exists(repo, "config.json")
    assert not api.file_exists(repo, "missing.json")
    snapshot = Path(api.snapshot_download(repo, cache_dir=tmp_path / "cache"))
    for name, content in names.items():
        assert (snapshot / name).read_bytes() == content
        assert Path(api.hf_hub_download(repo, name, cache_dir=tmp_path / "other")).read_bytes() == content


def test_tree_lists_one_level_or_all_with_the_commits_that_made_them(api, repo):
    api.upload_file(repo_id=repo, path_in_repo="a/b/c.txt", path_or_fileobj=b"1", commit_message="first")
    for content, title in ((b"2", "second"), (b"3", "changed"), (b"2", "and back")):
        api.upload_file(repo_id=repo, path_in_repo="a/d.txt", path_or_fileobj=content, commit_message=title)
    assert {entry.path for entry in api.list_repo_tree(repo, "a")} == {"a/b", "a/d.txt"}
    entries = {entry.path: entry for entry in api.list_repo_tree(repo, recursive=True, expand=True)}
    assert set(entries) == {".gitattributes", "a", "a/b", "a/b/c.txt", "a/d.txt"}
    titles = {path: entry.last_commit.title for path, entry in entries.items()}
    assert titles["a/b/c.txt"] == titles["a/b"] == "first"
    assert titles["a/d.txt"] == titles["a"] == "and back"
    assert titles[".gitattributes"] == "initial commit"
    assert [entry.path for entry in api.get_paths_info(repo, ["a/b", "a/d.txt", "nowhere"])] == ["a/b", "a/d.txt"]
    with pytest.raises(EntryNotFoundError):
        list(api.list_repo_tree(repo, "nowhere"))


def test_large_file_travels_by_lfs_and_comes_back_identical(hub, api, repo, tmp_path):
    content = os.urandom(3_000_001)
    api.upload_file(repo_id=repo, path_in_repo="model.safetensors", path_or_fileobj=content)
    assert [record.status for record in hub.requests if record.method == "PUT"] == [200]
    downloaded = api.hf_hub_download(repo, "model.safetensors", cache_dir=tmp_path)
    assert Path(downloaded).read_bytes() == content
    sha256 = hashlib.sha256(content).hexdigest()
    (info,) = api.get_paths_info(repo, "model.safetensors")
    assert (info.size, info.lfs.sha256, info.lfs.size) == (len(content), sha256, len(content))
    _, headers, body = send(hub, "HEAD", f"/{repo}/resolve/main/model.safetensors")
    assert body == b""
    assert headers["ETag"] == headers["X-Linked-Etag"] == f'"{sha256}"'
    assert headers["Content-Length"] == headers["X-Linked-Size"] == str(len(content))
    assert headers["X-Repo-Commit"] == api.model_info(repo).sha
    # The same content under another name is known already.
    api.upload_file(repo_id=repo, path_in_repo="copy.safetensors", path_or_fileobj=content)
    assert sum(record.method == "PUT" for record in hub.requests) == 1
    assert len(api.list_repo_files(repo)) == 3


def test_publishing_the_same_again_makes_no_commit(hub, api, repo, tmp_path):
    (tmp_path / "empty.bin").write_bytes(b"")
    (tmp_path / "weights.bin").write_bytes(b"\0" * 1000)
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    first = api.upload_folder(repo_id=repo, folder_path=tmp_path)
    hub.requests.clear()
    again = api.upload_folder(repo_id=repo, folder_path=tmp_path)
    assert not any("/commit/" in record.path for record in hub.requests)  # the client itself saw nothing to do
    assert (again.oid, commit_count(api)) == (first.oid, 2)
    # The server's own check, for a commit sent twice because its response was lost.
    body = commit_body(file_operation("README.md", b"---\nlicense: mit\n---\n"))
    status, _, content = send(hub, "POST", f"/api/models/{repo}/commit/main", body, hub.token)
    assert (status, json.loads(content)["commitOid"], commit_count(api)) == (200, first.oid, 2)


def test_deleting_keeps_history(hub, api, repo):
    added = api.create_commit(
        repo,
        [CommitOperationAdd(f"logs/{i}.txt", b"x") for i in range(3)],
        commit_message="add",
        commit_description="d",
    )
    api.create_commit(repo, [CommitOperationDelete("logs/0.txt")], commit_message="delete file")
    assert sorted(api.list_repo_files(repo)) == [".gitattributes", "logs/1.txt", "logs/2.txt"]
    api.delete_folder("logs", repo)
    assert api.list_repo_files(repo) == [".gitattributes"]
    assert "logs/0.txt" in api.list_repo_files(repo, revision=added.oid[:7])
    commits = api.list_repo_commits(repo)
    assert [commit.title for commit in commits][-2:] == ["add", "initial commit"]
    assert (commits[2].message, commits[2].authors, commits[2].commit_id) == ("d", ["loopback"], added.oid)
    with pytest.raises(EntryNotFoundError, match="doesn't exist"):
        api.delete_file("logs/0.txt", repo)
    body = commit_body(file_operation("a", b""), file_operation("a/b", b""))
    assert send(hub, "POST", f"/api/models/{repo}/commit/main", body, hub.token)[0] == 400


def test_object_ids_are_those_of_git():
    # From `git write-tree` and `git ls-tree` on the same four files.
    contents = {"a.txt": b"hello\n", "dir.txt": b"x", "dir/b.txt": b"world\n", "dir/deep/empty": b""}
    files = {path: StoredFile.regular(content) for path, content in contents.items()}
    assert files["a.txt"].oid == "ce013625030ba8dba906f756967f9e9ca394464a"
    assert folder_oids(files) == {
        "": "90b1833e5e8f595a077614eac6c9b686354bd52b",
        "dir": "c0435f30c48c3eba7d7114540fc09e134fddac38",
        "dir/deep": "417c01c8795a35b8e835113a85a5c0c1c77f67fb",
    }
    large = StoredFile.large("0" * 64, 5)
    assert large.oid == StoredFile.regular(lfs_pointer("0" * 64, 5)).oid


def test_parts_of_a_file_are_served(hub, api, repo):
    api.upload_file(repo_id=repo, path_in_repo="digits.txt", path_or_fileobj=b"0123456789")
    path = f"/{repo}/resolve/main/digits.txt"
    for header, part, content_range in (
        ("bytes=2-4", b"234", "bytes 2-4/10"),
        ("bytes=7-", b"789", "bytes 7-9/10"),
        ("bytes=8-99", b"89", "bytes 8-9/10"),
        ("bytes=-3", b"789", "bytes 7-9/10"),
    ):
        status, headers, body = send(hub, "GET", path, Range=header)
        assert (status, body, headers["Content-Range"]) == (206, part, content_range)
    assert send(hub, "GET", path)[::2] == (200, b"0123456789")
    status, headers, _ = send(hub, "GET", path, Range="bytes=10-")
    assert (status, headers["Content-Range"]) == (416, "bytes */10")


def test_an_upload_must_be_what_was_announced(hub, api, repo):
    content = b"announced"
    oid = hashlib.sha256(content).hexdigest()
    batch_path = f"/{repo}.git/info/lfs/objects/batch"
    batch = json.dumps({"objects": [{"oid": oid, "size": len(content)}]})
    _, _, answer = send(hub, "POST", batch_path, batch, hub.token)
    url = json.loads(answer)["objects"][0]["actions"]["upload"]["href"].removeprefix(hub.endpoint)
    assert send(hub, "PUT", url, b"different")[0] == 400
    assert send(hub, "PUT", url.replace("size=9", "size=10"), content)[0] == 403
    pointer = {"key": "lfsFile", "value": {"path": "a.bin", "algo": "sha256", "oid": oid, "size": len(content)}}
    assert send(hub, "POST", f"/api/models/{repo}/commit/main", commit_body(pointer), hub.token)[0] == 400
    assert send(hub, "PUT", url, iter([b"ann", b"ounced"]))[0] == 200  # an iterator is sent in chunks
    assert send(hub, "POST", f"/api/models/{repo}/commit/main", commit_body(pointer), hub.token)[0] == 200
    assert send(hub, "GET", f"/{repo}/resolve/main/a.bin")[2] == content


@pytest.mark.parametrize(
    "path", ["../outside", "a/../../outside", "/etc/passwd", "a//b", ".git/config", "a\\b", "", "."]
)
def test_paths_that_leave_the_repository_are_refused(hub, api, repo, path):
    body = commit_body(file_operation(path, b"x"))
    assert send(hub, "POST", f"/api/models/{repo}/commit/main", body, hub.token)[0] == 400
    files = json.dumps({"files": [{"path": path, "size": 1}]})
    assert send(hub, "POST", f"/api/models/{repo}/preupload/main", files, hub.token)[0] == 400
    if path:
        assert send(hub, "GET", f"/{repo}/resolve/main/{quote(path, safe='')}")[0] == 400
    assert api.list_repo_files(repo) == [".gitattributes"]


@pytest.mark.parametrize("name", ["..", "a..b", "a/b", "-a", "a.git", "a--b", "", "a" * 97, "a b", None, 7])
def test_names_that_are_no_names_are_refused(hub, name):
    body = json.dumps({"name": name, "type": "model"})
    assert send(hub, "POST", "/api/repos/create", body, hub.token)[0] == 400


def test_commits_to_one_and_to_many_repositories_at_once_all_arrive(api):
    repos = [f"loopback/r{i}" for i in range(4)]
    for name in repos:
        api.create_repo(name, repo_type="dataset")

    def upload(index):
        content = bytes([index]) * 100_000
        path = f"{index}.bin"
        api.upload_file(repo_id=repos[index % 4], repo_type="dataset", path_in_repo=path, path_or_fileobj=content)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(upload, range(24)))
    for offset, name in enumerate(repos):
        expected = {".gitattributes", *(f"{index}.bin" for index in range(offset, 24, 4))}
        assert set(api.list_repo_files(name, repo_type="dataset")) == expected
        assert commit_count(api, name, repo_type="dataset") == 7


# Refs


def test_pull_request_leaves_the_branch_alone_and_can_be_continued(hub, api, repo, tmp_path):
    before = api.model_info(repo).sha
    opened = api.upload_file(repo_id=repo, path_in_repo="a.txt", path_or_fileobj=b"1", create_pr=True)
    assert (opened.pr_num, opened.pr_revision) == (1, "refs/pr/1")
    api.upload_file(repo_id=repo, path_in_repo="b.bin", path_or_fileobj=b"2", revision="refs/pr/1")
    assert api.model_info(repo).sha == before
    assert set(api.list_repo_files(repo, revision="refs/pr/1")) == {".gitattributes", "a.txt", "b.bin"}
    downloaded = api.hf_hub_download(repo, "b.bin", revision="refs/pr/1", cache_dir=tmp_path)
    assert Path(downloaded).read_bytes() == b"2"
    refs = api.list_repo_refs(repo, include_pull_requests=True)
    assert [ref.ref for ref in refs.pull_requests] == ["refs/pr/1"]
    second = api.upload_file(repo_id=repo, path_in_repo="a.txt", path_or_fileobj=b"3", create_pr=True)
    assert second.pr_num == 2


def test_stale_parent_commit_is_refused(api, repo):
    stale = api.model_info(repo).sha
    current = api.upload_file(repo_id=repo, path_in_repo="a.txt", path_or_fileobj=b"1", parent_commit=stale).oid
    with pytest.raises(HfHubHTTPError) as caught:
        api.upload_file(repo_id=repo, path_in_repo="a.txt", path_or_fileobj=b"2", parent_commit=stale)
    assert caught.value.response.status_code == 412
    assert api.model_info(repo).sha == current
    api.upload_file(repo_id=repo, path_in_repo="a.txt", path_or_fileobj=b"2", parent_commit=current[:7])
    opened = api.upload_file(
        repo_id=repo, path_in_repo="b.txt", path_or_fileobj=b"3", parent_commit=stale, create_pr=True
    )
    assert "a.txt" not in api.list_repo_files(repo, revision=opened.pr_revision)


def test_branches_and_tags(api, repo):
    start = api.model_info(repo).sha
    api.create_tag(repo, tag="v1.0", tag_message="first")
    api.upload_file(repo_id=repo, path_in_repo="a.txt", path_or_fileobj=b"1")
    api.create_branch(repo, branch="feature/x", revision=start)
    api.create_branch(repo, branch="feature/x", exist_ok=True)
    api.upload_file(repo_id=repo, path_in_repo="b.txt", path_or_fileobj=b"1", revision="feature/x")
    refs = api.list_repo_refs(repo)
    assert {ref.name for ref in refs.branches} == {"main", "feature/x"}
    assert [(ref.ref, ref.target_commit) for ref in refs.tags] == [("refs/tags/v1.0", start)]
    assert api.list_repo_files(repo, revision="v1.0") == [".gitattributes"]
    assert api.list_repo_files(repo, revision="feature/x") == [".gitattributes", "b.txt"]
    for create in (lambda: api.create_tag(repo, tag="v1.0"), lambda: api.create_branch(repo, branch="main")):
        with pytest.raises(HfHubHTTPError) as caught:
            create()
        assert caught.value.response.status_code == 409
    with pytest.raises(HfHubHTTPError, match="Invalid reference"):
        api.create_branch(repo, branch="refs/pr/1")
    with pytest.raises(RevisionNotFoundError):
        api.upload_file(repo_id=repo, path_in_repo="c.txt", path_or_fileobj=b"1", revision="v1.0")
    with pytest.raises(RevisionNotFoundError):
        api.model_info(repo, revision="nowhere")
    with pytest.raises(HfHubHTTPError, match="cannot be deleted"):
        api.delete_branch(repo, branch="main")
    api.delete_branch(repo, branch="feature/x")
    api.delete_tag(repo, tag="v1.0")
    refs = api.list_repo_refs(repo)
    assert ([ref.name for ref in refs.branches], refs.tags) == (["main"], [])


# Repositories and who may do what


def test_repositories_are_created_once_and_deleted_for_good(api):
    url = api.create_repo("model")  # in the user's own namespace
    assert (url.repo_id, url.repo_type) == (REPO, "model")
    assert api.create_repo(REPO, repo_type="dataset").repo_type == "dataset"
    with pytest.raises(HfHubHTTPError) as caught:
        api.create_repo(REPO)
    assert caught.value.response.status_code == 409
    assert api.create_repo("model", exist_ok=True).repo_id == REPO
    api.delete_repo(REPO)
    assert not api.repo_exists(REPO)
    assert api.repo_exists(REPO, repo_type="dataset")
    with pytest.raises(RepositoryNotFoundError):
        api.delete_repo(REPO)
    api.create_repo(REPO)
    assert commit_count(api) == 1


def test_writing_needs_a_token_of_the_owner():
    with LoopbackHub(tokens={"guest-token": "guest"}) as hub:
        owner, guest = other_user(hub, hub.token), other_user(hub, "guest-token")
        owner.create_repo(REPO)
        assert (owner.whoami()["name"], guest.whoami()["name"]) == ("loopback", "guest")
        arguments = {"repo_id": REPO, "path_in_repo": "a.txt", "path_or_fileobj": b"1"}
        for token, expected in (("wrong", 401), (False, 401), ("guest-token", 403)):
            with pytest.raises(HfHubHTTPError) as caught:
                other_user(hub, token).upload_file(**arguments)
            assert caught.value.response.status_code == expected
            with pytest.raises(HfHubHTTPError) as caught:
                other_user(hub, token).create_repo("loopback/another")
            assert caught.value.response.status_code == expected
        with pytest.raises(HfHubHTTPError, match="Invalid credentials"):
            other_user(hub, "wrong").model_info(REPO)  # though anybody may read it
        assert other_user(hub, False).model_info(REPO).id == REPO
        opened = guest.upload_file(**arguments, create_pr=True)  # a guest may propose, and go on proposing
        guest.upload_file(**{**arguments, "path_or_fileobj": b"2"}, revision=opened.pr_revision)
        owner.upload_file(**arguments, create_pr=True)
        with pytest.raises(HfHubHTTPError) as caught:
            guest.upload_file(**{**arguments, "path_or_fileobj": b"3"}, revision="refs/pr/2")
        assert caught.value.response.status_code == 403
        assert commit_count(owner) == 1


def test_private_repositories_do_not_exist_for_others():
    with LoopbackHub(tokens={"guest-token": "guest"}) as hub:
        owner, guest = other_user(hub, hub.token), other_user(hub, "guest-token")
        owner.create_repo(REPO, private=True)
        owner.upload_file(repo_id=REPO, path_in_repo="a.txt", path_or_fileobj=b"1")
        assert owner.model_info(REPO).private is True
        for reader, expected in ((guest, 404), (other_user(hub, False), 401)):
            with pytest.raises(RepositoryNotFoundError) as caught:
                reader.model_info(REPO)
            assert caught.value.response.status_code == expected
            assert caught.value.response.headers["X-Error-Code"] == "RepoNotFound"
        assert send(hub, "GET", f"/{REPO}/resolve/main/a.txt", token="guest-token")[0] == 404
        assert send(hub, "GET", f"/{REPO}/resolve/main/a.txt")[0] == 401
        owner.update_repo_settings(REPO, private=False)
        assert guest.model_info(REPO).private is False


def test_files_of_gated_repositories_are_for_their_owner(tmp_path):
    with LoopbackHub(tokens={"guest-token": "guest"}) as hub:
        owner, guest = other_user(hub, hub.token), other_user(hub, "guest-token")
        owner.create_repo(REPO)
        owner.upload_file(repo_id=REPO, path_in_repo="a.txt", path_or_fileobj=b"1")
        owner.update_repo_settings(REPO, gated="auto")
        assert guest.model_info(REPO).gated == "auto"
        with pytest.raises(GatedRepoError):
            guest.hf_hub_download(REPO, "a.txt", cache_dir=tmp_path / "guest")
        assert Path(owner.hf_hub_download(REPO, "a.txt", cache_dir=tmp_path / "owner")).read_bytes() == b"1"


def test_info_carries_what_the_card_says(api, repo):
    card = """---
language: [en, no]
license: mit
library_name: sentence-transformers
pipeline_tag: sentence-similarity
tags: [mmbert]
datasets: [loopback/data]
base_model: jhu-clsp/mmBERT-base
base_model_relation: finetune
model-index:
- name: m
  results: []
---
# A model
"""
    api.upload_file(repo_id=repo, path_in_repo="README.md", path_or_fileobj=card.encode())
    info = api.model_info(repo, files_metadata=True)
    assert (info.id, info.author, info.gated, info.private) == (repo, "loopback", False, False)
    assert (info.library_name, info.pipeline_tag) == ("sentence-transformers", "sentence-similarity")
    assert info.card_data.language == ["en", "no"]  # Norwegian, and not False
    assert {"mmbert", "en", "no", "license:mit", "dataset:loopback/data", "sentence-similarity"} <= set(info.tags)
    assert {"base_model:jhu-clsp/mmBERT-base", "base_model:finetune:jhu-clsp/mmBERT-base"} <= set(info.tags)
    (readme,) = [sibling for sibling in info.siblings if sibling.rfilename == "README.md"]
    assert readme.size == len(card)
    assert info.sha == api.list_repo_commits(repo)[0].commit_id
    assert info.last_modified == api.list_repo_commits(repo)[0].created_at > info.created_at
    with pytest.raises(RepositoryNotFoundError):
        api.model_info("gpt2")


def test_cards_with_unreadable_metadata_are_refused(hub, api, repo):
    broken = b"---\nlicense: [mit\n---\n"
    with pytest.raises(ValueError, match="YAML header"):
        api.upload_file(repo_id=repo, path_in_repo="README.md", path_or_fileobj=broken)
    body = commit_body(file_operation("README.md", broken))
    assert send(hub, "POST", f"/api/models/{repo}/commit/main", body, hub.token)[0] == 400
    assert parse_card("# no header") == {}
    with pytest.raises(ValueError, match="mapping, got list"):
        parse_card("---\n- a\n---\n")


def test_a_hub_on_the_same_folder_has_everything(tmp_path):
    content = os.urandom(100_000)
    with LoopbackHub(tmp_path) as hub:
        api = HfApi(endpoint=hub.endpoint, token=hub.token)
        api.create_repo(REPO, private=True)
        api.create_repo("loopback/deleted")
        api.delete_repo("loopback/deleted")
        opened = api.upload_file(repo_id=REPO, path_in_repo="a.txt", path_or_fileobj=b"1", create_pr=True)
        api.upload_file(repo_id=REPO, path_in_repo="w.bin", path_or_fileobj=content)
        api.create_tag(REPO, tag="v1")
        commits, old_token = api.list_repo_commits(REPO), hub.token
    with LoopbackHub(tmp_path) as hub:
        assert hub.token != old_token
        api = HfApi(endpoint=hub.endpoint, token=hub.token)
        assert api.list_repo_commits(REPO) == commits
        assert api.model_info(REPO).private is True
        assert [tag.target_commit for tag in api.list_repo_refs(REPO).tags] == [commits[0].commit_id]
        assert "a.txt" in api.list_repo_files(REPO, revision=opened.pr_revision)
        assert send(hub, "GET", f"/{REPO}/resolve/v1/w.bin", token=hub.token)[2] == content
        assert not api.repo_exists("loopback/deleted")
        api.upload_file(repo_id=REPO, path_in_repo="b.txt", path_or_fileobj=b"2")
        assert commit_count(api) == len(commits) + 1


# The server


def test_failures_can_be_asked_for(hub, api, repo):
    hub.fail_next(503, method="post", path_contains="/commit/", times=2, retry_after=7)
    for _ in range(2):
        with pytest.raises(HfHubHTTPError) as caught:
            api.upload_file(repo_id=repo, path_in_repo="a.txt", path_or_fileobj=b"1")
        assert caught.value.response.status_code == 503
        assert caught.value.response.headers["Retry-After"] == "7"
    assert commit_count(api) == 1
    hub.fail_next(500, method="delete")
    assert api.model_info(repo).id == repo  # another method
    with pytest.raises(HfHubHTTPError, match="asked for by fail_next"):
        api.delete_repo(repo)
    hub.fail_next("cut", path_contains="/commit/")
    # by name: huggingface_hub 2 has httpx2 and huggingface_hub 1 has httpx, with the same classes
    with pytest.raises(Exception, match="Server disconnected without sending a response") as caught:
        api.upload_file(repo_id=repo, path_in_repo="a.txt", path_or_fileobj=b"1")
    assert type(caught.value).__name__ == "RemoteProtocolError"
    assert hub.requests[-1] == ("POST", f"/api/models/{repo}/commit/main", "cut")
    assert commit_count(api) == 1
    api.upload_file(repo_id=repo, path_in_repo="a.txt", path_or_fileobj=b"1")
    assert commit_count(api) == 2


@needs_client_2
def test_clients_retry_what_they_should(hub, api, repo):
    hub.fail_next(429, path_contains="/tree/", retry_after=0)
    hub.requests.clear()
    assert api.list_repo_files(repo) == [".gitattributes"]
    assert [record.status for record in hub.requests] == [429, 200]


@pytest.mark.parametrize(
    "arguments", [{"status": 200}, {"status": "slow"}, {"status": 500, "times": 0}, {"status": "cut", "retry_after": 1}]
)
def test_failures_that_are_none_are_refused(hub, arguments):
    with pytest.raises(ValueError, match="got"):
        hub.fail_next(**arguments)


def test_what_is_not_served_says_so(hub, api, repo):
    status, headers, _ = send(hub, "GET", "/api/spaces/a/b%0d%0aSet-Cookie")
    assert status == 501
    assert headers["X-Error-Message"] == "LoopbackHub does not serve GET /api/spaces/a/b\\r\\nSet-Cookie"
    status, headers, _ = send(hub, "GET", f"/api/models/{repo}/xet-write-token/main", token=hub.token)
    assert (status, "HF_HUB_DISABLE_XET=1" in headers["X-Error-Message"]) == (501, True)
    assert send(hub, "POST", "/api/repos/create", json.dumps({"name": "s", "type": "space"}), hub.token)[0] == 400
    assert send(hub, "POST", "/api/repos/create", "no json", hub.token)[0] == 400


def test_tokens_and_signatures_are_not_logged(hub, api, repo, caplog):
    caplog.set_level(logging.DEBUG, logger="mmbert_hf")
    api.upload_file(repo_id=repo, path_in_repo="w.bin", path_or_fileobj=b"1")
    logged = "\n".join(record.getMessage() for record in caplog.records if record.name.startswith("mmbert_hf"))
    assert "PUT /loopback/model.git/info/lfs/objects/" in logged
    for text in (logged, repr(hub.requests), repr(hub)):
        assert hub.token not in text
        assert "signature=" not in text


def test_only_this_address_is_served(hub):
    assert hub.endpoint.startswith("http://127.0.0.1:")
    assert set(inspect.signature(LoopbackHub).parameters) == {"folder", "port", "tokens"}
    elsewhere = http.client.HTTPConnection("127.0.0.2", int(hub.endpoint.rpartition(":")[2]), timeout=5)
    with pytest.raises(OSError, match=r"refused|timed out|assign"):
        elsewhere.connect()


def test_a_hub_serves_within_its_block_only(tmp_path):
    hub = LoopbackHub(tmp_path / "hub")
    for use in (lambda: hub.endpoint, lambda: hub.requests, hub.environment, lambda: hub.fail_next(500)):
        with pytest.raises(RuntimeError, match="with LoopbackHub"):
            use()
    xet_before = constants.HF_HUB_DISABLE_XET
    with hub:
        assert constants.HF_HUB_DISABLE_XET is True
        endpoint = hub.endpoint
        first, second = hub.environment(), hub.environment()
        assert first["HF_HOME"] != second["HF_HOME"]
        assert Path(first["HF_HOME"]).is_dir()
        assert (first["HF_ENDPOINT"], first["HF_TOKEN"], first["HF_HUB_DISABLE_XET"]) == (endpoint, hub.token, "1")
        assert "127.0.0.1" in first["NO_PROXY"]
        assert "HF_HUB_DISABLE_IMPLICIT_TOKEN" not in first
        with pytest.raises(RuntimeError, match="serving already"), hub:
            pass
        with pytest.raises(OSError, match="take another port"), LoopbackHub(port=int(endpoint.rpartition(":")[2])):
            pass
    assert constants.HF_HUB_DISABLE_XET is xet_before
    assert not Path(first["HF_HOME"]).exists()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", int(endpoint.rpartition(":")[2])))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"port": 70000}, "port must be"),
        ({"tokens": {"": "guest"}}, "the token of 'guest'"),
        ({"tokens": {"a b": "guest"}}, "the token of 'guest'"),
        ({"tokens": {"token": "a/b"}}, "a user name must be"),
    ],
)
def test_settings_that_cannot_be_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        LoopbackHub(**arguments)


def test_module_serves_from_the_command_line(tmp_path):
    command = [sys.executable, "-m", "mmbert_hf.testing.loopback_hub", "--dir", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            endpoint = process.stdout.readline().removeprefix("endpoint: ").strip()
            token = process.stdout.readline().removeprefix("token: ").strip()
            assert process.stdout.readline() == "user: loopback, so a model is loopback/NAME\n"
            exported = {}
            while "no_proxy" not in exported:
                name, _, value = process.stdout.readline().removeprefix("export ").partition("=")
                exported[name] = shlex.split(value)[0]
            assert (exported["HF_ENDPOINT"], exported["HF_TOKEN"]) == (endpoint, token)
            HfApi(endpoint=endpoint, token=token).create_repo("from-outside")
        finally:
            process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
    assert (process.returncode, errors) == (0, "")
    assert not Path(exported["HF_HOME"]).exists()
    with LoopbackHub(tmp_path) as hub:
        assert HfApi(endpoint=hub.endpoint, token=hub.token).repo_exists("loopback/from-outside")


# Real clients in their own processes

TINY_BERT = """
import json, sys, tempfile
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

vocabulary = {word: index for index, word in enumerate("[PAD] [UNK] [CLS] [SEP] [MASK] a b c".split())}
words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
words.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
    mask_token="[MASK]",
)
sizes = dict(vocab_size=8, hidden_size=16, num_attention_heads=2, intermediate_size=16, max_position_embeddings=16)
bert = BertModel(BertConfig(**sizes, num_hidden_layers=1))

def same(first, second):
    first, second = first.state_dict(), second.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
"""


def test_transformers_models_are_pushed_and_reloaded(hub, run_client):
    result = run_client(
        hub,
        TINY_BERT
        + """
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer, ModernBertConfig, ModernBertForMaskedLM

bert.push_to_hub("bert", tags=["tiny"])
tokenizer.push_to_hub("bert")
modern = ModernBertForMaskedLM(ModernBertConfig(**sizes, num_hidden_layers=2, pad_token_id=0, bos_token_id=2,
    eos_token_id=3, cls_token_id=2, sep_token_id=3))
with tempfile.TemporaryDirectory() as folder:
    modern.save_pretrained(folder, push_to_hub=True, repo_id="loopback/modern", private=True)
modern.model.embeddings.tok_embeddings.weight.data += 1
modern.push_to_hub("loopback/modern", create_pr=True)
modern.push_to_hub("loopback/modern", revision="dev")
main = AutoModelForMaskedLM.from_pretrained("loopback/modern")
print(json.dumps({
    "bert": same(bert, AutoModel.from_pretrained("loopback/bert")),
    "tokens": AutoTokenizer.from_pretrained("loopback/bert")("a c").input_ids,
    "main": same(modern, main),
    "pull request": same(modern, AutoModelForMaskedLM.from_pretrained("loopback/modern", revision="refs/pr/1")),
    "branch": same(modern, AutoModelForMaskedLM.from_pretrained("loopback/modern", revision="dev")),
}))
""",
    )
    assert result == {"bert": True, "tokens": [5, 7], "main": False, "pull request": True, "branch": True}
    api = HfApi(endpoint=hub.endpoint, token=hub.token)
    assert api.model_info("loopback/modern").private is True
    assert {"tiny", "transformers"} <= set(api.model_info("loopback/bert").tags)


def test_sentence_transformers_models_are_pushed_and_loaded(hub, run_client):
    result = run_client(
        hub,
        TINY_BERT
        + """
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

with tempfile.TemporaryDirectory() as folder:
    bert.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    model = SentenceTransformer(modules=[Transformer(folder, max_seq_length=8), Pooling(16)])
expected = model.encode(["a b", "c"])  # before the first push: using a tokenizer changes what it saves
model.push_to_hub("embedder")
model.push_to_hub("embedder", exist_ok=True)
loaded = SentenceTransformer("loopback/embedder")
print(json.dumps({"same": bool((loaded.encode(["a b", "c"]) == expected).all())}))
""",
    )
    assert result == {"same": True}
    api = HfApi(endpoint=hub.endpoint, token=hub.token)
    assert commit_count(api, "loopback/embedder") == 2  # the second push changed nothing
    info = api.model_info("loopback/embedder")
    assert (info.library_name, info.pipeline_tag) == ("sentence-transformers", "sentence-similarity")
    assert "1_Pooling/config.json" in [sibling.rfilename for sibling in info.siblings]


def test_datasets_are_pushed_and_loaded(hub, run_client):
    result = run_client(
        hub,
        """
        import json
        from datasets import Dataset, load_dataset
        from huggingface_hub import HfApi

        rows = [{"text": f"row {index}", "label": index} for index in range(10)]
        dataset = Dataset.from_list(rows)
        dataset.push_to_hub("loopback/parquet", split="train", num_shards=2)
        dataset.select(range(3)).push_to_hub("loopback/parquet", split="test")
        api = HfApi()
        api.create_repo("loopback/lines", repo_type="dataset", private=True)
        for split, part in (("train", rows[:7]), ("test", rows[7:])):
            lines = "\\n".join(json.dumps(row) for row in part)
            api.upload_file(repo_id="loopback/lines", repo_type="dataset", path_in_repo=f"data/{split}.jsonl",
                path_or_fileobj=lines.encode())
        parquet, lines = load_dataset("loopback/parquet"), load_dataset("loopback/lines")
        streamed = load_dataset("loopback/lines", split="test", streaming=True)
        by_url = load_dataset("json", data_files="hf://datasets/loopback/lines/data/*.jsonl", split="train")
        print(json.dumps({
            "parquet": parquet["train"].to_list() == rows,
            "parquet splits": parquet.num_rows,
            "lines": lines["train"].to_list() == rows[:7],
            "streamed": list(streamed) == rows[7:],
            "by url": len(by_url),
        }))
        """,
    )
    expected_splits = {"train": 10, "test": 3}
    assert result == {
        "parquet": True,
        "parquet splits": expected_splits,
        "lines": True,
        "streamed": True,
        "by url": 10,
    }
    info = HfApi(endpoint=hub.endpoint, token=hub.token).dataset_info("loopback/parquet")
    assert info.card_data["configs"][0]["config_name"] == "default"
    assert any(record.status == 206 for record in hub.requests)  # streaming reads parts


@needs_client_2
def test_clients_that_read_the_environment_alone(hub, run_client):
    result = run_client(
        hub,
        """
        import json, os
        from pathlib import Path
        from huggingface_hub import HfFileSystem, ModelCard, create_repo, hf_hub_download, upload_file, whoami

        card = ModelCard("---\\nlicense: mit\\nlibrary_name: transformers\\n---\\n# Card\\n")
        card.validate()
        create_repo("carded")
        card.push_to_hub("loopback/carded")
        upload_file(repo_id="loopback/carded", path_in_repo="w.bin", path_or_fileobj=os.urandom(11_000_000))
        loaded = ModelCard.load("loopback/carded")
        files = HfFileSystem()
        with files.open("loopback/carded/w.bin", "rb") as file:
            file.seek(10_999_990)
            tail = file.read()
        path = Path(hf_hub_download("loopback/carded", "w.bin"))
        print(json.dumps({
            "user": whoami()["name"], "license": loaded.data.license,
            "listed": sorted(files.ls("loopback/carded", detail=False)),
            "tail": tail == path.read_bytes()[-10:], "in its own home": path.is_relative_to(os.environ["HF_HOME"]),
        }))
        """,
    )
    assert result == {
        "user": "loopback",
        "license": "mit",
        "listed": [f"loopback/carded/{name}" for name in (".gitattributes", "README.md", "w.bin")],
        "tail": True,
        "in its own home": True,
    }
