"""Every request of a publication is failed once, in every way: it completes, or says what to do; nothing is half done or lost."""

import json
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from mmbert_hf import ValueTracker
from mmbert_hf import hub as package
from mmbert_hf.hub import retries
from mmbert_hf.testing import LoopbackHub

FAULTS = (401, 403, 404, 409, 412, 413, 429, 500, "cut", "lost")
COMPLETES = (429, 500, "cut", "lost")  # of one failure
MODES = {"commit": {}, "branch": {"revision": "next"}, "pull request": {"create_pr": True}, "data set": {}}
EXPLAINED = (PermissionError, FileNotFoundError, ConnectionError, ValueError)


@pytest.fixture
def source(tmp_path):
    """A folder as a training run leaves it: what is published, and what is not."""
    folder = tmp_path / "model"
    (folder / "checkpoint-3").mkdir(parents=True)
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 64)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n\n# Mine\n")
    for name in ("optimizer.pt", "training_args.bin", "checkpoint-3/model.safetensors"):
        (folder / name).write_bytes(b"not for others")
    return folder


@pytest.fixture(autouse=True)
def waits(monkeypatch):
    """Nobody waits here; what was waited for is kept."""
    waited = []
    monkeypatch.setattr("time.sleep", waited.append)
    return waited


def contents(folder):
    return {path: path.read_bytes() for path in sorted(Path(folder).rglob("*")) if path.is_file()}


def snapshot(api, revision=None, kind="model"):
    """What others see: bytes by path, or None if there is no repository or revision."""
    from huggingface_hub.errors import HfHubHTTPError

    where = {"repo_id": "loopback/mine", "revision": revision, "repo_type": kind}
    try:
        files = api.list_repo_files(**where)
    except HfHubHTTPError:
        return None
    return {
        name: Path(api.hf_hub_download(filename=name, **where)).read_bytes()
        for name in files
        if name != ".gitattributes"
    }


def publish(hub, source, mode, **options):
    if mode == "data set":
        source = ValueTracker(3)
    return package.publish(source, "mine", endpoint=hub.endpoint, token=hub.token, **MODES[mode], **options)


def attempt(hub, source, mode):
    """What `publish` returns, and what it raises."""
    try:
        return publish(hub, source, mode), None
    except EXPLAINED as error:
        return None, error


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("fault", FAULTS)
def test_every_request_fails_once(tmp_path, monkeypatch, caplog, source, mode, fault):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    kind = "dataset" if mode == "data set" else "model"
    revision = {"branch": "next", "pull request": "refs/pr/1"}.get(mode)
    with LoopbackHub() as hub:
        whole = publish(hub, source, mode)
        total = len(hub.requests)
        wanted = snapshot(HfApi(endpoint=hub.endpoint, token=hub.token), revision, kind)
    assert set(wanted) == set(whole.files)
    assert total > 8
    mine = contents(source)
    for place in range(total):
        with LoopbackHub() as hub:
            api = HfApi(endpoint=hub.endpoint, token=hub.token)
            hub.fail_next(fault, skip=place, retry_after=3 if fault == 429 else None)
            done, error = attempt(hub, source, mode)
            assert done is not None or fault not in COMPLETES, f"{hub.requests[-3:]}: {error}"
            assert done is not None or "mine" in str(error) or "Hub" in str(error)
            assert hub.token not in f"{error}{caplog.text}"
            if done is None:
                assert not snapshot(api, revision, kind) or snapshot(api, revision, kind) == wanted, (
                    "nothing, or all of it"
                )
            again = publish(hub, source, mode)
            assert again.url
            assert snapshot(api, revision, kind) == wanted, (place, hub.requests)
            assert not publish(hub, source, mode).changed or mode == "pull request"
            requests = api.list_repo_refs("loopback/mine", repo_type=kind, include_pull_requests=True).pull_requests
            assert len(requests) == (1 if mode == "pull request" else 0)
            commits = api.list_repo_commits("loopback/mine", revision=revision, repo_type=kind)
            assert [commit.title.startswith("Publish") for commit in commits].count(True) == 1
    assert contents(source) == mine


def test_a_hub_that_stays_away_is_given_up_on(hub, source, waits):
    hub.fail_next(500, times=10_000)
    with pytest.raises(ConnectionError, match=r"did not do what was asked \(500\).*the same call goes on"):
        publish(hub, source, "commit", max_wait_seconds=60)
    assert sum(waits) <= 60 + 5 * 30  # and what huggingface_hub waits by itself
    assert sum(waits) > 20


def test_what_the_hub_asks_to_wait_is_waited(hub, source, waits):
    hub.fail_next(429, method="POST", path_contains="/commit/", retry_after=17)
    publish(hub, source, "commit")
    assert max(waits) >= 17


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/commit/"), ("POST", "/preupload/"), ("GET", "/tree/"), ("GET", "whoami"), ("POST", "/batch")],
)
def test_nobody_waits_for_a_day(hub, source, waits, method, path):
    """Neither do we, nor huggingface_hub, which repeats some of these requests by itself."""
    hub.fail_next(429, method=method, path_contains=path, retry_after=86_400)
    with pytest.raises(ConnectionError, match=r"\(429\)"):
        publish(hub, source, "commit")
    assert not waits
    publish(hub, source, "commit")


def test_what_huggingface_hub_sleeps_is_counted(hub, source, waits):
    hub.fail_next(429, method="POST", path_contains="/preupload/", times=3, retry_after=40)
    with pytest.raises(ConnectionError, match=r"\(429\)"):
        publish(hub, source, "commit", max_wait_seconds=100)
    assert sum(waits) <= 2 * (40 + 1)
    assert max(waits) <= 41  # an older huggingface_hub sleeps for less than it is asked to


def test_what_fails_for_ever_is_asked_less_and_less(hub, source, waits):
    """Other requests succeed between the failures; that must not start the waiting anew."""
    hub.fail_next("cut", method="POST", path_contains="/commit/", times=10_000)
    with pytest.raises(ConnectionError, match="cannot be reached, or gave no answer"):
        publish(hub, source, "commit", max_wait_seconds=120)
    assert waits[:5] == sorted(waits[:5])
    assert len(waits) < 10
    assert sum(waits) <= 120


def test_somebody_else_is_faster(hub, api, source, monkeypatch):
    publish(hub, source, "commit")
    (source / "config.json").write_text('{"model_type": "llama", "architectures": ["LlamaForCausalLM"], "changed": 1}')
    create_commit, times = api.__class__.create_commit, []

    def slower(self, *arguments, **options):
        times.append(1)
        if len(times) == 1:  # and those inside come here too
            for name in ("theirs.txt", "tokenizer.model"):
                api.upload_file(path_or_fileobj=b"theirs", path_in_repo=name, repo_id="loopback/mine")
        return create_commit(self, *arguments, **options)

    monkeypatch.setattr(api.__class__, "create_commit", slower)
    assert publish(hub, source, "commit").changed
    files = snapshot(api)
    assert files["theirs.txt"] == b"theirs"
    assert "tokenizer.model" not in files, "the second look saw what would be loaded in place of ours"
    assert b"changed" in files["config.json"]


def test_a_listing_that_is_not_what_was_sent(hub, source, monkeypatch):
    from mmbert_hf.hub import upload

    is_same = upload._is_same
    monkeypatch.setattr(
        upload, "_is_same", lambda remote, local: is_same(remote, local) and local.path.name != "model.safetensors"
    )
    with pytest.raises(OSError, match=r"is not what was sent \(model.safetensors\)"):
        publish(hub, source, "commit")


def test_a_full_disk(hub, api, source, monkeypatch):
    import errno

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    before = contents(source)
    monkeypatch.setattr("mmbert_hf.hub.publication.LocalFile.read", full)
    with pytest.raises(OSError, match="No space left"):
        publish(hub, source, "commit")
    assert contents(source) == before
    assert snapshot(api) is None


def test_only_what_may_pass_is_waited_for():
    assert retries.is_passing(ConnectionResetError())
    assert not retries.is_passing(ValueError())
    with pytest.raises(ValueError, match="no"):
        retries.Retries().wait(ValueError("no"), 0)
