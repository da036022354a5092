"""The files of a folder as they are published: which ones, how large, and the hashes by which a Hub knows them.

Design decisions:

- What is published is named by `PUBLISHED`; all else stays at home and is listed. So a folder that a training run wrote
  into (checkpoints, optimizer states, logs) is published as the model that it holds.
- No pickle is published: a folder whose weights are pickles alone is refused.
- A Hub knows a small file by the git hash of its content and a large one by its SHA-256. Both are computed here, so what
  has not changed is not sent again, and what was sent is compared afterwards.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

__all__ = ["LocalFile", "collect", "is_published", "published_names"]

PUBLISHED = ("*.safetensors", "*.json", "*.jsonl", "*.txt", "*.md", "*.model", "*.jinja", "*.onnx", "*.parquet", "*.png",
             "*.svg", "LICENSE*", "NOTICE*")  # fmt: skip
KEPT_BACK = ("checkpoint-*", "runs", "logs", ".*", "trainer_state.json", "spo_*.safetensors", "run.json", "merge.json")
BUFFER_BYTES = 1 << 20


@dataclass(frozen=True)
class LocalFile:
    """One file.

    Attributes:
        path: Where it is.
        size: Bytes.
        sha256: Of the content, hexadecimal.
        git_sha1: Of the content as a git blob, hexadecimal.
    """

    path: Path
    size: int
    sha256: str
    git_sha1: str

    @classmethod
    def read(cls, path: Path) -> "LocalFile":
        """Read and hash a file."""
        size = path.stat().st_size
        sha256, sha1 = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
        with path.open("rb") as file:
            while block := file.read(BUFFER_BYTES):
                sha256.update(block)
                sha1.update(block)
        return cls(path, size, sha256.hexdigest(), sha1.hexdigest())


def collect(folder: Path) -> tuple[dict[str, LocalFile], list[str]]:
    """The files of a folder to be published, by their path in it; and what stays at home.

    Args:
        folder: Is read, not changed.

    Raises:
        ValueError: The folder has nothing to publish, or has weights as pickles alone.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("config.json", "optimizer.pt"):
        ...         _ = Path(folder, name).write_text("{}")
        ...     files, left_out = collect(Path(folder))
        >>> list(files), left_out
        (['config.json'], ['optimizer.pt'])
    """
    names, left_out = published_names(folder)
    found = {name: LocalFile.read(folder / name) for name in names}
    weights = [
        name for name in left_out if any(fnmatch(name, pattern) for pattern in ("pytorch_model*", "adapter_model*"))
    ]
    if weights and not any(name.endswith(".safetensors") for name in found):
        raise ValueError(
            f"{folder} has its weights as pickles ({', '.join(weights)}), which are not published: load the model and call "
            "save_pretrained, which writes safetensors"
        )
    if not found:
        raise ValueError(f"{folder} has nothing that could be published: no configuration, no weights, no table")
    return found, left_out


def published_names(folder: Path) -> tuple[list[str], list[str]]:
    """Paths of the files of a folder that are published, and of the files and folders that are not."""
    names: list[str] = []
    left_out: list[str] = []
    for path in _walk(folder):
        name = path.relative_to(folder).as_posix()
        if path.is_dir():
            left_out.append(f"{name}/")
        else:
            (names if is_published(path) else left_out).append(name)
    return names, left_out


def is_published(path: Path) -> bool:
    """Return whether a file of this name is published.

    Example:
        >>> is_published(Path("model.safetensors")), is_published(Path("training_args.bin"))
        (True, False)
    """
    return any(fnmatch(path.name, pattern) for pattern in PUBLISHED) and not _is_kept_back(path)


def _is_kept_back(path: Path) -> bool:
    return any(fnmatch(path.name, pattern) for pattern in KEPT_BACK)


def _walk(folder: Path) -> Iterator[Path]:
    """Files in order, and folders that are kept back as one."""
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not _is_kept_back(path):
            yield from _walk(path)
        elif path.name != ".gitattributes":
            yield path
