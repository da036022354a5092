"""Routes that read: repository info, file lists, history, and the files."""

from collections.abc import Mapping
from typing import Any

from mmbert_hf.testing.hub_access import HubAccess
from mmbert_hf.testing.hub_cards import card_tags, parse_card
from mmbert_hf.testing.hub_errors import entry_not_found
from mmbert_hf.testing.hub_http import Request, Response
from mmbert_hf.testing.hub_objects import Commit, StoredFile, check_file_path, folder_oids, lfs_pointer
from mmbert_hf.testing.hub_storage import DEFAULT_BRANCH, Repository


def whoami(hub: HubAccess, request: Request) -> Response:
    """Answer `HfApi.whoami`."""
    user = hub.signed_in_user(request)
    token = {"displayName": "loopback", "role": "write"}
    auth = {"type": "access_token", "accessToken": token}
    return Response(values={"type": "user", "id": user, "name": user, "fullname": user, "orgs": [], "auth": auth})


def repository_info(
    hub: HubAccess, request: Request, kind: str, repo_id: str, revision: str = DEFAULT_BRANCH
) -> Response:
    """Answer `model_info` and `dataset_info`, whole whatever `expand` asks for."""
    repository = hub.readable(request, kind, repo_id)
    commit = repository.find_commit(revision)
    state = repository.state()
    card = _read_card(repository, commit)
    values = {
        "_id": repository.repo_id,
        "id": repository.repo_id,
        "author": repository.owner,
        "sha": commit.oid,
        "lastModified": commit.date,
        "createdAt": state["created_at"],
        "private": state["private"],
        "gated": state["gated"],
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": card_tags(card),
        "cardData": card,
        "siblings": [_sibling(path, file, request.has_flag("blobs")) for path, file in commit.files.items()],
    }
    if kind == "models":
        values |= {"modelId": repository.repo_id, "spaces": []}
        values |= {key: card[key] for key in ("pipeline_tag", "library_name", "model-index") if key in card}
    return Response(values=values)


def tree(hub: HubAccess, request: Request, kind: str, repo_id: str, revision: str, path: str = "") -> Response:
    """Answer `list_repo_tree` (and with it `list_repo_files`): a folder, or with `recursive` all below it, as one page."""
    repository = hub.readable(request, kind, repo_id)
    commit = repository.find_commit(revision)
    entries = _entries(commit)
    if path and not isinstance(entries.get(path), str):  # a folder has its tree id
        raise entry_not_found(path, commit.oid)
    prefix = f"{path}/" if path else ""
    below = [name for name in entries if name.startswith(prefix)]
    if not request.has_flag("recursive"):
        below = [name for name in below if "/" not in name[len(prefix) :]]
    return Response(values=_describe(repository, commit, below, expand=request.has_flag("expand")))


def paths_info(hub: HubAccess, request: Request, kind: str, repo_id: str, revision: str) -> Response:
    """Answer `get_paths_info`; paths that do not exist are left out."""
    repository = hub.readable(request, kind, repo_id)
    commit = repository.find_commit(revision)
    form = request.form()
    entries = _entries(commit)
    found = [path for path in (path.rstrip("/") for path in form.get("paths", [])) if path in entries]
    expand = form.get("expand", [""])[-1].lower() == "true"
    return Response(values=_describe(repository, commit, found, expand=expand))


def refs(hub: HubAccess, request: Request, kind: str, repo_id: str) -> Response:
    """Answer `list_repo_refs`."""
    groups: dict[str, list[dict[str, str]]] = {"heads": [], "tags": [], "pr": []}
    for ref, oid in hub.readable(request, kind, repo_id).state()["refs"].items():
        group, _, name = ref.removeprefix("refs/").partition("/")
        groups[group].append({"name": name, "ref": ref, "targetCommit": oid})
    values = {"branches": groups["heads"], "converts": [], "tags": groups["tags"]}
    if request.has_flag("include_prs"):
        values["pullRequests"] = groups["pr"]
    return Response(values=values)


def commits(hub: HubAccess, request: Request, kind: str, repo_id: str, revision: str) -> Response:
    """Answer `list_repo_commits`: newest first, as one page."""
    repository = hub.readable(request, kind, repo_id)
    history = repository.history(repository.find_commit(revision))
    return Response(
        values=[
            {
                "id": commit.oid,
                "title": commit.title,
                "message": commit.message,
                "authors": [{"user": commit.author}],
                "date": commit.date,
                "formatted": {"title": commit.title, "message": commit.message},
            }
            for commit in history
        ]
    )


def resolve(hub: HubAccess, request: Request, kind: str, repo_id: str, revision: str, path: str) -> Response:
    """Serve a file's content, or with HEAD what a client caches it under."""
    repository = hub.downloadable(request, kind, repo_id)
    commit = repository.find_commit(revision)
    file = commit.files.get(check_file_path(path))
    if file is None:
        raise entry_not_found(path, commit.oid)
    headers = {"X-Repo-Commit": commit.oid, "ETag": f'"{file.etag}"'}
    if file.is_lfs:
        headers |= {"X-Linked-Size": str(file.size), "X-Linked-Etag": f'"{file.etag}"'}
    return Response(headers=headers, file=repository.blob_path(file.sha256))


def _read_card(repository: Repository, commit: Commit) -> dict[str, Any]:
    readme = commit.files.get("README.md")
    if readme is None:
        return {}
    # Always readable: a commit with a broken header is refused.
    return parse_card(repository.blob_path(readme.sha256).read_text(encoding="utf-8"))


def _sibling(path: str, file: StoredFile, with_blob: bool) -> dict[str, Any]:
    values: dict[str, Any] = {"rfilename": path}
    if with_blob:
        values |= {"size": file.size, "blobId": file.oid}
        if file.is_lfs:
            pointer_size = len(lfs_pointer(file.sha256, file.size))
            values["lfs"] = {"sha256": file.sha256, "size": file.size, "pointerSize": pointer_size}
    return values


def _entries(commit: Commit) -> dict[str, StoredFile | str]:
    """Return a commit's files and folders by path, sorted: for a folder its tree id."""
    entries: dict[str, StoredFile | str] = {**commit.files, **folder_oids(commit.files)}
    del entries[""]  # the root is no entry
    return dict(sorted(entries.items()))


def _describe(repository: Repository, commit: Commit, paths: list[str], *, expand: bool) -> list[dict[str, Any]]:
    entries = _entries(commit)
    described = [_describe_entry(path, entries[path]) for path in paths]
    if expand:
        last_commits = _last_commits(repository, commit, paths)
        for values in described:
            last = last_commits[values["path"]]
            values["lastCommit"] = {"id": last.oid, "title": last.title, "date": last.date}
    return described


def _describe_entry(path: str, entry: StoredFile | str) -> dict[str, Any]:
    if isinstance(entry, str):
        return {"type": "directory", "oid": entry, "size": 0, "path": path}
    values: dict[str, Any] = {"type": "file", "oid": entry.oid, "size": entry.size, "path": path}
    if entry.is_lfs:
        pointer_size = len(lfs_pointer(entry.sha256, entry.size))
        values["lfs"] = {"oid": entry.sha256, "size": entry.size, "pointerSize": pointer_size}
    return values


def _last_commits(repository: Repository, commit: Commit, paths: list[str]) -> Mapping[str, Commit]:
    """Return by path the last commit that changed it."""
    entries = _entries(commit)
    last_commits: dict[str, Commit] = {}
    for candidate in repository.history(commit):
        older = _entries(candidate)
        # As long as a path is the same in an older commit, that commit or one before it made it so.
        unchanged = [path for path in paths if older.get(path) == entries[path]]
        last_commits |= dict.fromkeys(unchanged, candidate)
        paths = unchanged
    return last_commits
