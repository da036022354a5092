"""What a repository holds, as immutable values: stored files, commits, and what a commit does to the files.

File and folder ids are those that git and git-lfs would give, so that the ids clients compute for themselves agree: a
regular file is a blob (sha1), a large one is a pointer blob that names its sha256, folders are trees. Commit ids are
made alike, from a date in ISO 8601. Paths never reach the file system, since contents are kept under their hash; they
are checked all the same.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import PurePosixPath
from typing import Any

from mmbert_hf.testing.hub_errors import HubError, bad_request

# What goes to large-file storage: these extensions, and any file above the threshold.
# fmt: off
LFS_EXTENSIONS = (
    "7z", "arrow", "bin", "bz2", "ckpt", "gguf", "gz", "h5", "jpeg", "jpg", "joblib", "model", "mp3", "mp4", "msgpack",
    "npy", "npz", "onnx", "parquet", "pdf", "pickle", "pkl", "png", "pt", "pth", "safetensors", "spm", "tar", "tflite",
    "tgz", "wav", "xz", "zip", "zst",
)
# fmt: on
LFS_THRESHOLD_BYTES = 10_000_000
INITIAL_GITATTRIBUTES = "".join(f"*.{extension} filter=lfs diff=lfs merge=lfs -text\n" for extension in LFS_EXTENSIONS)

_NAME_PATTERN = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?")
_REF_PATTERN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._/+-]{0,254}")
_SHA256_PATTERN = re.compile(r"[0-9a-f]{64}")


def git_oid(kind: str, content: bytes) -> str:
    """Return the sha1 that git gives an object.

    Args:
        kind: `blob`, `tree` or `commit`.
        content: The object without its header.

    Returns:
        40 hexadecimal digits.
    """
    return hashlib.sha1(f"{kind} {len(content)}\0".encode() + content, usedforsecurity=False).hexdigest()


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One version of one file.

    Attributes:
        sha256: Hash of the content, and its name in the blob folder.
        size: Bytes of the content.
        oid: Git id of the blob; for a large file, of its pointer.
        is_lfs: Whether it is kept as a large file.
    """

    sha256: str
    size: int
    oid: str
    is_lfs: bool

    @classmethod
    def regular(cls, content: bytes) -> "StoredFile":
        """Describe content that git keeps itself."""
        return cls(hashlib.sha256(content).hexdigest(), len(content), git_oid("blob", content), is_lfs=False)

    @classmethod
    def large(cls, sha256: str, size: int) -> "StoredFile":
        """Describe content that git keeps only a pointer to."""
        return cls(sha256, size, git_oid("blob", lfs_pointer(sha256, size)), is_lfs=True)

    @property
    def etag(self) -> str:
        """The identity that clients cache the file under: sha256 for a large file, git id otherwise."""
        return self.sha256 if self.is_lfs else self.oid


@dataclass(frozen=True, slots=True)
class Commit:
    """One state of a repository.

    Attributes:
        oid: Hash of the fields below, 40 hexadecimal digits.
        parent: Id of the commit before it; None for the first.
        author: User name.
        date: UTC time in ISO 8601 with milliseconds and `Z`.
        title: First line of the message.
        message: The rest of it.
        files: Every file by its path.
    """

    oid: str
    parent: str | None
    author: str
    date: str
    title: str
    message: str
    files: Mapping[str, StoredFile]

    @classmethod
    def create(
        cls, *, parent: str | None, author: str, date: str, title: str, message: str, files: Mapping[str, StoredFile]
    ) -> "Commit":
        """Return a commit under the id that its content gives it (see the class for the fields)."""
        signature = f"{author} <{author}@loopback> {date}"
        headers = [f"tree {folder_oids(files)['']}", f"author {signature}", f"committer {signature}"]
        if parent is not None:
            headers.insert(1, f"parent {parent}")
        oid = git_oid("commit", "\n".join([*headers, "", title, message]).encode())
        return cls(oid, parent, author, date, title, message, dict(sorted(files.items())))

    def to_json(self) -> dict[str, Any]:
        """Return the commit as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Commit":
        """Return the commit that `to_json` described."""
        files = {path: StoredFile(**file) for path, file in values["files"].items()}
        return cls(**{**values, "files": files})


@dataclass(frozen=True, slots=True)
class PutFile:
    """Write a file, new or not."""

    path: str
    file: StoredFile


@dataclass(frozen=True, slots=True)
class DeleteFile:
    """Remove one file."""

    path: str


@dataclass(frozen=True, slots=True)
class DeleteFolder:
    """Remove every file below a folder."""

    path: str


Operation = PutFile | DeleteFile | DeleteFolder


def lfs_pointer(sha256: str, size: int) -> bytes:
    """Return the pointer file that git keeps in place of a large file."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


def should_be_large(path: str, size: int) -> bool:
    """Return whether a file of this name and size in bytes goes to large-file storage."""
    return size > LFS_THRESHOLD_BYTES or path.rpartition(".")[2].lower() in LFS_EXTENSIONS


def folder_oids(files: Mapping[str, StoredFile]) -> dict[str, str]:
    """Return the git tree id of every folder.

    Args:
        files: Files by path.

    Returns:
        Tree id by folder path; the root is `""`.
    """
    children: dict[str, dict[str, tuple[str, str]]] = {"": {}}
    for path, file in files.items():
        folder, _, name = path.rpartition("/")
        children.setdefault(folder, {})[name] = ("100644", file.oid)
        while folder:
            folder = folder.rpartition("/")[0]
            children.setdefault(folder, {})
    oids = {}
    for folder in sorted(children, key=lambda path: path.count("/") + bool(path), reverse=True):
        # Git sorts a folder among its siblings as though its name ended in a slash.
        entries = sorted(children[folder].items(), key=lambda item: (item[0] + "/" * (item[1][0] == "40000")).encode())
        content = b"".join(f"{mode} {name}\0".encode() + bytes.fromhex(oid) for name, (mode, oid) in entries)
        oids[folder] = git_oid("tree", content)
        if folder:
            parent, _, name = folder.rpartition("/")
            children[parent][name] = ("40000", oids[folder])
    return oids


def apply_operations(files: Mapping[str, StoredFile], operations: Iterable[Operation]) -> dict[str, StoredFile]:
    """Return the files after a commit's operations, applied in order.

    Args:
        files: Files by path before the commit; left as they are.
        operations: What the commit does.

    Returns:
        Files by path after the commit.

    Raises:
        HubError: If something to delete does not exist (404), or if a path would be a file and a folder (400).
    """
    result = dict(files)
    for operation in operations:
        match operation:
            case PutFile(path, file):
                result[path] = file
            case DeleteFile(path):
                if result.pop(path, None) is None:
                    # The client recognizes this sentence, and then explains how folders are deleted.
                    raise HubError(404, f"A file with this name doesn't exist: {path}", code="EntryNotFound")
            case DeleteFolder(path):
                below = [name for name in result if name.startswith(path.rstrip("/") + "/")]
                if not below:
                    raise HubError(404, f"A folder with this name doesn't exist: {path}", code="EntryNotFound")
                for name in below:
                    del result[name]
    for path in result:
        for folder in PurePosixPath(path).parents:
            if str(folder) in result:
                raise bad_request(f"{folder} cannot be a file and the folder of {path} at once")
    return result


def check_file_path(path: object) -> str:
    """Return a path inside a repository as it came, if it is one.

    Raises:
        HubError: With status 400, if it is empty, absolute, contains `.`, `..`, `.git` or empty parts, backslashes or
            control characters, or is no string.
    """
    if not isinstance(path, str) or not path:
        raise bad_request(f"a path in a repository must be a string that is not empty, got {path!r}")
    forbidden = {"", ".", "..", ".git"}
    if any(part in forbidden for part in path.split("/")) or "\\" in path or not path.isprintable():
        raise bad_request(f"{path!r} is no path in a repository: use relative paths without '.', '..' or '.git' parts")
    return path


def check_name(name: object, what: str) -> str:
    """Return the name of a repository or of its namespace as it came, if it is one.

    Args:
        name: The name.
        what: What it names, for the error.

    Raises:
        HubError: With status 400, if it is not 1 to 96 letters, digits, `-`, `_` and `.`, or ends in `.git`, or
            contains `--` or `..`, or begins or ends with punctuation.
    """
    if not isinstance(name, str) or not _NAME_PATTERN.fullmatch(name):
        raise bad_request(f"{what} must be 1 to 96 letters, digits, '-', '_' or '.', got {name!r}")
    if "--" in name or ".." in name or name.endswith(".git"):
        raise bad_request(f"{what} cannot contain '--' or '..', nor end in '.git', got {name!r}")
    return name


def check_ref_name(name: object) -> str:
    """Return the name of a branch or tag as it came, if it is one.

    Raises:
        HubError: With status 400, if git or the Hub would not have it.
    """
    if not isinstance(name, str) or not _REF_PATTERN.fullmatch(name):
        raise bad_request(f"Invalid reference name: {name!r}")
    if name.startswith("refs/") or ".." in name or "//" in name or name.endswith(("/", ".", ".lock")):
        raise bad_request(f"Invalid reference for a branch or tag: {name!r}")
    return name


def check_sha256(oid: object) -> str:
    """Return a sha256 as it came, if it is one.

    Raises:
        HubError: With status 400, if it is not 64 lower-case hexadecimal digits.
    """
    if not isinstance(oid, str) or not _SHA256_PATTERN.fullmatch(oid):
        raise bad_request(f"an object id must be a sha256 in 64 hexadecimal digits, got {oid!r}")
    return oid
