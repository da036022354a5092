"""Trackers in files, in folders and on a Hub: the same bits come back, and what is no tracker is refused by name."""

import json
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from huggingface_hub import HfApi
from mmbert_hf.trainers.spo.tracker import ROW_ARRAYS, ValueTracker
from mmbert_hf.trainers.spo.tracker_files import (
    TRACKER_FILE,
    load_tracker,
    push_tracker,
    read_tracker,
    save_tracker_dataset,
    write_tracker,
)
from safetensors.numpy import save_file

from mmbert_hf.testing import LoopbackHub

REPO = "loopback/values"
METADATA = {"fingerprint": "f00", "processes": 2, "is_estimated": True}


def make(name: str) -> ValueTracker:
    """Trackers with odd bits everywhere: thirds, rows never seen, no rows, no rewards."""
    if name == "empty":
        return ValueTracker(0)
    tracker = ValueTracker(7, kind="average" if "average" in name else "beta", prior_weight=1 / 3)
    if "keyed" in name:
        tracker.set_keys(['a "b"', "ä", "日本", "", "x\ny", "0", "00"])
    if "unseen" not in name:
        tracker.round, tracker.drift = 41, 0.1 + 0.2
        tracker.update([0, 4, 4, 6], [1 / 3, 1.0, 1 / 7, 0.0], [0.9, 0.8, 0.8, 1 / 3])
    return tracker


NAMES = ["empty", "unseen", "unseen average", "beta", "beta keyed", "average", "average keyed"]


def assert_same(one: ValueTracker, other: ValueTracker) -> None:
    states = one.state_dict(), other.state_dict()
    assert list(states[0]) == list(states[1])
    for name, expected in states[0].items():
        if isinstance(expected, np.ndarray):
            assert states[1][name].dtype == expected.dtype
            assert states[1][name].tobytes() == expected.tobytes(), name
        else:
            assert states[1][name] == expected, name


def assert_works(tracker: ValueTracker) -> None:
    """What was read can be written to, and goes on."""
    if len(tracker):
        tracker.update([0], [1.0])
    tracker.rows_of(["new"]) if tracker.keys is not None else tracker.grow(1)


@pytest.mark.parametrize("name", NAMES)
def test_by_file(tmp_path, name):
    write_tracker(tmp_path / TRACKER_FILE, make(name), **METADATA)
    for source in (tmp_path / TRACKER_FILE, str(tmp_path)):
        tracker, metadata = load_tracker(source)
        assert_same(tracker, make(name))
        assert metadata == METADATA
    assert_works(tracker)
    assert os.listdir(tmp_path) == [TRACKER_FILE], "nothing else is left"


@pytest.mark.parametrize("name", NAMES)
def test_by_folder(tmp_path, name):
    folder = save_tracker_dataset(tmp_path / "new" / "folder", make(name), "# Values", **METADATA)
    tracker, metadata = load_tracker(folder)
    assert_same(tracker, make(name))
    assert metadata == METADATA
    assert_works(tracker)
    assert (folder / "README.md").read_text() == "# Values"


def test_a_tracker_of_nobody_can_go_on_with_keys(tmp_path):
    stream = ValueTracker(0)
    stream.rows_of([])
    write_tracker(tmp_path / TRACKER_FILE, stream)
    tracker, _ = read_tracker(tmp_path / TRACKER_FILE)
    assert tracker.rows_of(["a", "b", "a"]).tolist() == [0, 1, 0]


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / TRACKER_FILE
    write_tracker(path, make("beta"))

    def cut_off(arrays, file, metadata):
        file.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("safetensors.numpy.save_file", cut_off)
    with pytest.raises(OSError, match="disk full"):
        write_tracker(path, make("average"))
    assert_same(read_tracker(path)[0], make("beta"))


# What is not a tracker


@pytest.mark.parametrize("name", ["beta keyed", "unseen average"])
def test_a_file_that_was_cut_off_is_refused_wherever_that_was(tmp_path, name):
    path = tmp_path / "cut.safetensors"
    write_tracker(path, make(name), **METADATA)
    whole = path.read_bytes()
    for length in {*range(0, len(whole), 29), 1, 7, 8, 9, len(whole) - 1}:
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"cut.safetensors is not a tracker, or was cut off: \S"):
            load_tracker(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(ValueError, match=r"cut.safetensors is not a tracker"):
        load_tracker(path)


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "other.safetensors"
    arrays = {"weights": np.ones(3)}
    state = make("beta").state_dict()
    plain = {key: value for key, value in state.items() if not isinstance(value, np.ndarray)}
    rows = {name: state[name] for name in (*ROW_ARRAYS, "calibration")}
    for tensors, header in [
        (arrays, None),
        (arrays, {"tracker": "{}", "metadata": "{}"}),
        (arrays, {"tracker": "[]", "metadata": "{}"}),
        (rows, {"tracker": json.dumps(plain)}),
        ({**rows, "weights": np.ones(3)}, {"tracker": json.dumps(plain), "metadata": "{}"}),
        (rows, {"tracker": json.dumps({**plain, "kind": "gamma"}), "metadata": "{}"}),
        (rows, {"tracker": json.dumps({**plain, "reward_range": None}), "metadata": "{}"}),
        ({**rows, "keys": np.frombuffer(b'["a"]', np.uint8)}, {"tracker": json.dumps(plain), "metadata": "{}"}),
    ]:
        save_file(tensors, path, metadata=header)
        with pytest.raises(ValueError, match=r"other.safetensors is not a tracker, or was cut off: \S"):
            read_tracker(path)


def test_missing_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none.safetensors is not there: no tracker was saved"):
        read_tracker(tmp_path / "none.safetensors")
    with pytest.raises(
        ValueError, match=f"parquet is missing: the folder holds neither {TRACKER_FILE} nor the data set"
    ):
        load_tracker(tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no folder 'mistyped'"):
        load_tracker("mistyped")
    save_tracker_dataset(tmp_path, make("beta"))
    (tmp_path / "tracker.json").unlink()
    with pytest.raises(ValueError, match=r"tracker.json is missing"):
        load_tracker(tmp_path)


@pytest.mark.parametrize("file", ["tracker.json", "data/train-00000-of-00001.parquet"])
def test_a_data_set_that_was_cut_off_is_refused_wherever_that_was(tmp_path, file):
    save_tracker_dataset(tmp_path / "set", make("beta keyed"))
    path = tmp_path / "set" / file
    whole = path.read_bytes()
    for length in {*range(0, len(whole) - 1, 101), 1, 4, len(whole) - 5, len(whole) - 1}:
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"set is not the data set of a tracker: \S"):
            load_tracker(tmp_path / "set")


@pytest.mark.parametrize(
    "rest",
    [
        "[]",
        '{"tracker": 3}',
        '{"tracker": {}, "has_ids": true, "metadata": {}}',
        '{"tracker": null, "has_ids": true, "metadata": {}}',
        "\xff",
    ],
)
def test_other_data_sets_are_refused(tmp_path, rest):
    save_tracker_dataset(tmp_path / "set", make("beta"))
    (tmp_path / "set" / "tracker.json").write_text(rest, encoding="latin-1")
    with pytest.raises(ValueError, match="set is not the data set of a tracker"):
        load_tracker(tmp_path / "set")


def test_a_table_of_something_else_is_refused(tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    folder = save_tracker_dataset(tmp_path / "set", make("beta"))
    parquet.write_table(pa.table({"text": ["a"]}), folder / "data" / "train-00000-of-00001.parquet")
    with pytest.raises(ValueError, match=r"set is not the data set of a tracker: .*values"):
        load_tracker(folder)


# The Hub


@pytest.fixture
def hub(monkeypatch):
    """A hub that `HfApi` in this process talks to: it reads the endpoint when it is made."""
    with LoopbackHub() as hub:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.endpoint)
        monkeypatch.setattr("transformers.utils.hub._hf_api", None)  # a client that another test may have made
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        yield hub


def test_by_hub(hub, tmp_path):
    """Pushed here; loaded, and read as a plain data set, by another computer."""
    api = HfApi(endpoint=hub.endpoint, token=hub.token)
    one, other = make("average keyed"), make("beta")
    url = push_tracker(one, REPO, card="# Values\n", token=hub.token, commit_message="Values of a run", **METADATA)
    assert url.startswith(f"{hub.endpoint}/datasets/{REPO}/commit/")
    commits = api.list_repo_commits(REPO, repo_type="dataset")
    assert [commit.title for commit in commits] == ["Values of a run", commits[-1].title], "one, and the first of all"
    files = {".gitattributes", "README.md", "tracker.json", "data/train-00000-of-00001.parquet"}
    assert set(api.list_repo_files(REPO, repo_type="dataset")) == files

    again = push_tracker(one, REPO, card="# Values\n", token=hub.token, **METADATA)
    assert again == url, "nothing has changed"
    assert len(api.list_repo_commits(REPO, repo_type="dataset")) == 2
    push_tracker(other, REPO, token=hub.token, revision="second", **METADATA)
    assert len(api.list_repo_commits(REPO, repo_type="dataset")) == 2, "main stays"

    script = f"""
        import sys
        from datasets import load_dataset
        from mmbert_hf import ValueTracker
        from mmbert_hf.trainers.spo.tracker_files import load_tracker, write_tracker
        for name, revision in (("one", None), ("other", "second")):
            tracker, metadata = load_tracker({REPO!r}, revision=revision)
            write_tracker(f"{tmp_path}/{{name}}.safetensors", tracker, **metadata)
        try:
            load_tracker("loopback/nothing")
        except OSError as error:
            print(type(error).__name__)
        table = load_dataset({REPO!r}, split="train")
        print(table.column_names, table["id"][:], table["values"][:3], table["visits"][:])
    """
    environment = {**os.environ, **hub.environment(), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    for name, expected in (("one", one), ("other", other)):
        tracker, metadata = read_tracker(tmp_path / f"{name}.safetensors")
        assert_same(tracker, expected)
        assert metadata == METADATA
    missing, table = done.stdout.splitlines()[-2:]
    assert missing == "RepositoryNotFoundError"
    assert table == f"{['id', *ROW_ARRAYS]} {one.keys} {one.values[:3].tolist()} {one.visits.tolist()}"


def test_flags_of_a_push(hub):
    api = HfApi(endpoint=hub.endpoint, token=hub.token)
    push_tracker(make("beta"), REPO, token=hub.token, private=True)
    assert api.dataset_info(REPO).private
    url = push_tracker(make("average"), REPO, token=hub.token, create_pr=True)
    assert "/discussions/" in url
    assert len(api.list_repo_commits(REPO, repo_type="dataset")) == 2, "main stays"


def test_private_is_not_pushed_into_the_open(hub):
    api = HfApi(endpoint=hub.endpoint, token=hub.token)
    api.create_repo(REPO, repo_type="dataset")
    with pytest.raises(ValueError, match="loopback/values exists and is public, and you asked for private"):
        push_tracker(make("beta"), REPO, token=hub.token, private=True)
    assert set(api.list_repo_files(REPO, repo_type="dataset")) <= {".gitattributes"}
