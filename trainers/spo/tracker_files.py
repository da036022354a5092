"""Trackers on disk and on the Hub.

Design decisions:

- In a checkpoint a tracker is one safetensors file, bit for bit, with what is not an array as JSON in its header.
- On the Hub it is a data set that the viewer shows and `load_dataset` reads: a table with a row for each prompt, and
  ``tracker.json`` with the rest. Doubles survive parquet, so it is the same tracker when it is loaded again.
- Whatever is read is checked: a file that was cut off, or is something else, is refused by name.
"""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from mmbert_hf.trainers.spo.tracker import ROW_ARRAYS, ValueTracker

__all__ = ["TRACKER_FILE", "load_tracker", "push_tracker", "read_tracker", "save_tracker_dataset", "write_tracker"]

TRACKER_FILE = "spo_tracker.safetensors"
TABLE_FILE, REST_FILE = "data/train-00000-of-00001.parquet", "tracker.json"
ARRAYS = (*ROW_ARRAYS, "calibration")


def write_tracker(path: str | Path, tracker: ValueTracker, **metadata: Any) -> None:
    """Write a tracker to one file, whole or not at all.

    Args:
        path: Ends with .safetensors.
        tracker: What to write.
        metadata: Plain values to keep with it, such as the fingerprint of the prompts.
    """
    from safetensors.numpy import save_file

    state = tracker.state_dict()
    arrays = {name: np.ascontiguousarray(state.pop(name)) for name in ARRAYS}
    keys = state.pop("keys")
    if keys is not None:
        arrays["keys"] = np.frombuffer(json.dumps(keys).encode(), dtype=np.uint8)
    path = Path(path)
    temporary = path.with_name(path.name + ".partial")
    save_file(arrays, temporary, metadata={"tracker": json.dumps(state), "metadata": json.dumps(metadata)})
    temporary.replace(path)


def read_tracker(path: str | Path) -> tuple[ValueTracker, dict[str, Any]]:
    """Read what `write_tracker` wrote.

    Returns:
        The tracker, and the metadata.

    Raises:
        ValueError: The file is not a tracker, or was cut off.
        FileNotFoundError: It is not there.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there: no tracker was saved")
    try:
        with safe_open(path, "np") as file:
            header = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        keys = arrays.pop("keys", None)
        state = {**arrays, **json.loads(header["tracker"])}
        state["keys"] = None if keys is None else json.loads(keys.tobytes())
        return ValueTracker.from_state_dict(state), json.loads(header["metadata"])
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a tracker, or was cut off: {error}") from error


def save_tracker_dataset(folder: str | Path, tracker: ValueTracker, card: str | None = None, **metadata: Any) -> Path:
    """Write a tracker as a data set: a table with a row for each prompt, and the rest as JSON.

    Args:
        folder: Made if it is not there.
        tracker: What to write.
        card: Text of README.md.
        metadata: As in `write_tracker`.

    Returns:
        The folder.
    """
    import pyarrow as pa
    from pyarrow import parquet

    folder = Path(folder)
    state = tracker.state_dict()
    keys = state.pop("keys")
    columns = {"id": [str(row) for row in range(len(tracker))] if keys is None else keys}
    columns |= {name: state.pop(name) for name in ROW_ARRAYS}
    state["calibration"] = state["calibration"].tolist()
    rest = {"tracker": state, "has_ids": keys is not None, "metadata": metadata}
    (folder / TABLE_FILE).parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.table(columns), folder / TABLE_FILE)
    (folder / REST_FILE).write_text(json.dumps(rest, indent=1), encoding="utf-8")
    if card is not None:
        (folder / "README.md").write_text(card, encoding="utf-8")
    return folder


def load_tracker(
    source: str | Path, *, revision: str | None = None, token: str | None = None
) -> tuple[ValueTracker, dict[str, Any]]:
    """Load a tracker from a file, a checkpoint, a folder of `save_tracker_dataset`, or a data set on the Hub.

    Args:
        source: A path, or ``owner/name``.
        revision: Branch, tag or commit on the Hub.
        token: Of the Hub.

    Returns:
        The tracker, and its metadata.

    Raises:
        ValueError: There is something else.
        OSError: The Hub has no such data set, or cannot be reached.
    """
    path = Path(source)
    if path.is_file():
        return read_tracker(path)
    if path.is_dir():
        if (path / TRACKER_FILE).is_file():
            return read_tracker(path / TRACKER_FILE)
        return _read_dataset(path / TABLE_FILE, path / REST_FILE)
    from huggingface_hub import hf_hub_download

    from mmbert_hf.hub import check_folder_or_hub_name

    check_folder_or_hub_name(str(source))
    files = [
        Path(hf_hub_download(str(source), name, repo_type="dataset", revision=revision, token=token))
        for name in (TABLE_FILE, REST_FILE)
    ]
    return _read_dataset(*files)


def _read_dataset(table_file: Path, rest_file: Path) -> tuple[ValueTracker, dict[str, Any]]:
    from pyarrow import ArrowException, parquet

    for file in (table_file, rest_file):
        if not file.is_file():
            raise ValueError(
                f"{file} is missing: the folder holds neither {TRACKER_FILE} nor the data set of a tracker"
            )
    try:
        table, rest = parquet.read_table(table_file), json.loads(rest_file.read_text(encoding="utf-8"))
        state = {**rest["tracker"], **{name: table[name].to_numpy() for name in ROW_ARRAYS}}
        state["keys"] = table["id"].to_pylist() if rest["has_ids"] else None
        return ValueTracker.from_state_dict(state), rest["metadata"]
    except (ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{table_file.parent.parent} is not the data set of a tracker: {error}") from error


def push_tracker(
    tracker: ValueTracker,
    repo_id: str,
    *,
    card: str | None = None,
    base_model: str | None = None,
    license: str | None = None,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    token: str | None = None,
    commit_message: str = "Upload SPO value tracker",
    **metadata: Any,
) -> str:
    """Publish a tracker as a data set, in one commit.

    Args:
        tracker: What to publish.
        repo_id: ``owner/name``.
        card: Text of the card; one is rendered if None.
        base_model: The policy of the run, on the Hub, for that card.
        license: An identifier of the Hub.
        private: Of a new repository.
        revision: Branch; made if it is not there.
        create_pr: Open a pull request.
        token: Of the Hub; that of the login if None.
        commit_message: First line of the commit.
        metadata: As in `write_tracker`.

    Returns:
        The address of the pull request, else of the commit: the last one if nothing has changed.

    Raises:
        Exception: As `mmbert_hf.hub.publish` says.
    """
    from mmbert_hf.hub import publish

    with TemporaryDirectory() as scratch:
        folder = save_tracker_dataset(scratch, tracker, card, **metadata)
        publication = publish(
            folder,
            repo_id,
            base_model=base_model,
            license=license,
            private=private,
            revision=revision,
            create_pr=create_pr,
            token=token,
            commit_message=commit_message,
        )
    return str(publication.url)
