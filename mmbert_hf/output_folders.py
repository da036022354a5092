"""Folders that a model is written to, and files: all of it appears at once, or nothing does."""

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path

from safetensors import SafetensorError

__all__ = ["TOKENIZER_FILES", "WEIGHT_FILES", "checked_destination", "output_folder", "write_whole"]

WEIGHT_FILES = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*")
TOKENIZER_FILES = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "chat_template*")


def checked_destination(folder: str | Path, overwrite: bool) -> Path:
    """Return the folder that a model is to be written to, with links followed.

    Raises:
        FileExistsError: If it is not empty and `overwrite` is false.
        NotADirectoryError: If it is a file.
    """
    folder = Path(folder).expanduser().resolve()  # a link keeps pointing here: what it points to is replaced
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file; give a folder to write to")
    if folder.exists() and any(folder.iterdir()) and not overwrite:
        raise FileExistsError(
            f"{folder} is not empty; give another folder, or pass overwrite=True (--overwrite) to replace the model"
        )
    return folder


@contextmanager
def output_folder(destination: str | Path, *, overwrite: bool, replaces_tokenizer: bool) -> Iterator[Path]:
    """A folder to write a model into that appears at its destination when all is written, or not at all.

    Args:
        destination: Where it is to be.
        overwrite: Replace the model in a folder that is not empty; other files, such as a model card, stay.
        replaces_tokenizer: Whether a tokenizer is written too, so that the old one goes.

    Yields:
        The folder to write to, beside `destination`.

    Raises:
        FileExistsError: If `destination` is not empty and `overwrite` is false.
        NotADirectoryError: If it is a file.
        OSError: If writing fails; `destination` is as it was then.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as parent:
        ...     with output_folder(f"{parent}/model", overwrite=False, replaces_tokenizer=False) as folder:
        ...         _ = (folder / "config.json").write_text("{}")
        ...     [path.name for path in Path(parent, "model").iterdir()]
        ['config.json']
    """
    target = checked_destination(destination, overwrite)
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = _sibling(target, "incomplete")
    staging.mkdir()
    try:
        yield staging
        _share(staging)
        _move_into_place(staging, target, replaces_tokenizer=replaces_tokenizer)
    except SafetensorError as error:
        raise OSError(f"could not write beside {target}, which was not touched: {error}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _sibling(folder: Path, purpose: str) -> Path:
    return folder.with_name(f".{folder.name}.{purpose}-{uuid.uuid4().hex[:8]}")


def _share(folder: Path) -> None:
    """Give every file and folder the mode of a new one: safetensors writes for its owner alone."""
    umask = os.umask(0)
    os.umask(umask)
    for path in folder.rglob("*"):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~umask)


def _move_into_place(staging: Path, destination: Path, *, replaces_tokenizer: bool) -> None:
    """Rename `staging` to `destination`, and carry over the files that the export does not replace."""
    if not destination.exists():
        staging.rename(destination)
        return
    previous = _sibling(destination, "previous")
    destination.rename(previous)
    try:
        staging.rename(destination)
    except OSError:
        previous.rename(destination)
        raise
    replaced = WEIGHT_FILES + (TOKENIZER_FILES if replaces_tokenizer else ())
    for entry in previous.iterdir():
        is_replaced = (destination / entry.name).exists() or any(fnmatch(entry.name, name) for name in replaced)
        if not is_replaced:
            entry.rename(destination / entry.name)
    shutil.rmtree(previous)


def write_whole(path: Path, content: str | bytes) -> Path:
    """Write a file beside its place and move it there: it is whole, or as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.incomplete")
    try:
        unfinished.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path
