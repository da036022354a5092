"""Tokenised documents of one language: in memory, or memory-mapped from a folder on disk.

Design decisions:

- Documents are token ids without special tokens, one after the other in long int32 arrays. A document is a view of
  one, so reading it costs nothing but the pages that it lies on.
- A folder is a store: Arrow IPC files with one column `input_ids` (lists of int32), and `meta.json`, which is written
  last. A folder without `meta.json` is an interrupted write; a file of another size than it says is damage. Both are
  refused by name. Arrow closes its files once they are mapped, so thousands of stores fit under the usual limit of
  open files.
- The fingerprint is the hash of all lengths and all tokens, wherever they are kept and however they are cut into
  files. A store has it in its metadata; `verify` reads everything and compares.
- An opened store is pickled as the name of its folder: worker processes that are spawned map the same files.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

META_FILE = "meta.json"
COLUMN = "input_ids"
STORE_VERSION = 1
MAX_TOKEN = np.iinfo(np.int32).max


class TokenDocuments:
    """Documents of one language as token ids without special tokens.

    Made by `from_arrays`, or by `open` from what `tokenize_source` wrote.

    Attributes:
        lengths: Tokens per document, int32 [documents]; every one is at least 1.
        num_tokens: Sum of the lengths.
        fingerprint: Hex digest of what is inside: equal for equal documents in equal order.
        folder: Where a store is; None for documents in memory.

    Example:
        >>> documents = TokenDocuments.from_arrays([[5, 6, 7], [8]])
        >>> len(documents), documents.num_tokens, documents.tokens(0).tolist()
        (2, 4, [5, 6, 7])
    """

    lengths: np.ndarray
    num_tokens: int
    fingerprint: str
    folder: Path | None

    def __init__(
        self, chunks: Sequence[tuple[np.ndarray, np.ndarray]], *, fingerprint: str | None, folder: Path | None = None
    ) -> None:
        # A chunk is (offsets [documents + 1], values): document i of it is values[offsets[i] : offsets[i + 1]].
        self._chunks = list(chunks)
        self._first_documents = np.cumsum([0, *(len(offsets) - 1 for offsets, _ in self._chunks)])
        self.lengths = np.concatenate([np.diff(offsets) for offsets, _ in self._chunks]).astype(np.int32, copy=False)
        self.num_tokens = int(self.lengths.sum(dtype=np.int64))
        self.folder = folder
        self.fingerprint = self._content_fingerprint() if fingerprint is None else fingerprint

    @classmethod
    def from_arrays(cls, arrays: Iterable[np.ndarray | Sequence[int]]) -> TokenDocuments:
        """Keeps documents in memory; they are copied into one array.

        Args:
            arrays: Per document its token ids without special tokens: one-dimensional, whole numbers, not empty.

        Returns:
            The documents.

        Raises:
            TypeError: `arrays` is a text or no iterable, or ids are no whole numbers.
            ValueError: There are no documents, or one is empty, has another shape, or an id that int32 cannot hold.

        Example:
            >>> TokenDocuments.from_arrays([[5, 6], [7]]).lengths.tolist()
            [2, 1]
        """
        if isinstance(arrays, (str, bytes)) or not isinstance(arrays, Iterable):
            raise TypeError(f"arrays must be a sequence of token id sequences, got {type(arrays).__name__}")
        checked = [check_token_ids(array, f"document {number}") for number, array in enumerate(arrays)]
        if not checked:
            raise ValueError("there are no documents: leave the language out, or give it at least one")
        offsets = np.cumsum([0, *map(len, checked)], dtype=np.int64)
        values = np.concatenate(checked)
        values.flags.writeable = False  # views are handed out
        return cls([(offsets, values)], fingerprint=None)

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> TokenDocuments:
        """Maps a store into memory. Only the lengths are read.

        Args:
            folder: What `tokenize_source` wrote.

        Returns:
            The documents.

        Raises:
            FileNotFoundError: There is no such folder, it has no `meta.json`, or one of its files is missing.
            ValueError: A file is truncated or damaged, or the store is of another version.

        Example:
            >>> import tempfile
            >>> TokenDocuments.open(tempfile.mkdtemp())  # doctest: +ELLIPSIS
            Traceback (most recent call last):
                ...
            FileNotFoundError: ... has no meta.json: ...
        """
        folder = Path(folder)
        meta = read_meta(folder)
        chunks = [chunk for shard in meta["shards"] for chunk in _map_shard(folder, shard)]
        documents = cls(chunks, fingerprint=meta["fingerprint"], folder=folder)
        found = len(documents), documents.num_tokens
        if found != (meta["num_documents"], meta["num_tokens"]):
            raise _damaged(folder, folder, f"{found[0]} documents of {found[1]} tokens do not fit {META_FILE}")
        return documents

    def __len__(self) -> int:
        return len(self.lengths)

    def __repr__(self) -> str:
        where = "in memory" if self.folder is None else f"in {str(self.folder)!r}"
        return f"TokenDocuments({len(self)} documents, {self.num_tokens} tokens, {where})"

    def tokens(self, index: int) -> np.ndarray:
        """Token ids of one document.

        Args:
            index: Number of the document, from 0.

        Returns:
            int32 [lengths[index]], a read-only view.

        Raises:
            IndexError: There is no such document.

        Example:
            >>> TokenDocuments.from_arrays([[5, 6], [7]]).tokens(1)
            array([7], dtype=int32)
        """
        if not 0 <= index < len(self.lengths):
            raise IndexError(f"document {index} is outside these {len(self)} documents")
        number = 0 if len(self._chunks) == 1 else int(self._first_documents.searchsorted(index, side="right")) - 1
        offsets, values = self._chunks[number]
        place = index - int(self._first_documents[number])
        return values[offsets[place] : offsets[place + 1]]

    def head(self, num_documents: int) -> TokenDocuments:
        """The first documents, without a copy.

        Args:
            num_documents: How many, at least 1.

        Returns:
            They, with a fingerprint that says what they are the head of.

        Raises:
            ValueError: There are not so many.

        Example:
            >>> TokenDocuments.from_arrays([[5, 6], [7]]).head(1).lengths.tolist()
            [2]
        """
        if not 1 <= num_documents <= len(self):
            raise ValueError(f"num_documents must be in 1..{len(self)}, got {num_documents}")
        return _Head(self, num_documents)

    def verify(self) -> None:
        """Reads everything and compares it with the fingerprint: finds damage that left the sizes as they were.

        Raises:
            ValueError: The tokens or lengths are not those that were written.

        Example:
            >>> TokenDocuments.from_arrays([[5, 6], [7]]).verify()
        """
        if self._content_fingerprint() != self.fingerprint:
            raise _damaged(self.folder, self.folder or "this object", "the tokens are not those that were written")

    def _content_fingerprint(self) -> str:
        hasher = FingerprintHasher()
        for offsets, values in self._chunks:
            hasher.update(np.diff(offsets), values[offsets[0] : offsets[-1]])
        return hasher.hexdigest()

    def __reduce__(self) -> Any:
        if self.folder is not None:
            return TokenDocuments.open, (self.folder,)
        return _from_chunks, (self._chunks, self.fingerprint)


class _Head(TokenDocuments):
    """The first documents of others; pickled as these and a number, so that a store stays on disk."""

    def __init__(self, whole: TokenDocuments, num_documents: int) -> None:
        chunks, left = [], num_documents
        for offsets, values in whole._chunks:
            if left > 0:
                chunks.append((offsets[: left + 1], values))
                left -= len(offsets) - 1
        super().__init__(chunks, fingerprint=f"{whole.fingerprint}[:{num_documents}]")
        self._whole = whole

    def verify(self) -> None:
        self._whole.verify()

    def __reduce__(self) -> Any:
        return _Head, (self._whole, len(self))


class FingerprintHasher:
    """Hash of documents that come in pieces; how they are cut does not matter.

    Example:
        >>> hasher = FingerprintHasher()
        >>> hasher.update(np.array([2]), np.array([5, 6]))
        >>> hasher.update(np.array([1]), np.array([7]))
        >>> hasher.hexdigest() == TokenDocuments.from_arrays([[5, 6], [7]]).fingerprint
        True
    """

    def __init__(self) -> None:
        self._lengths, self._tokens = hashlib.sha256(), hashlib.sha256()

    def update(self, lengths: np.ndarray, values: np.ndarray) -> None:
        """Adds documents.

        Args:
            lengths: Tokens per document, integers [documents].
            values: Their tokens one after the other, integers [sum of lengths].
        """
        self._lengths.update(np.ascontiguousarray(lengths, dtype="<i4"))
        self._tokens.update(np.ascontiguousarray(values, dtype="<i4"))

    def hexdigest(self) -> str:
        """The fingerprint of all documents so far."""
        return hashlib.sha256(self._lengths.digest() + self._tokens.digest()).hexdigest()[:32]


def read_meta(folder: Path) -> dict[str, Any]:
    """Reads and checks `meta.json` of a store, and the sizes of the files that it names.

    Args:
        folder: The store.

    Returns:
        Its metadata: `num_documents`, `num_tokens`, `fingerprint`, `shards` (`name`, `num_bytes` each) and what made it.

    Raises:
        FileNotFoundError: The folder, `meta.json` or a shard is missing.
        ValueError: `meta.json` cannot be read, is of another version, or a shard has another size.
    """
    path = folder / META_FILE
    if not path.is_file():
        state = f"has no {META_FILE}: its writing was interrupted, or it is no token store" if folder.is_dir() else ""
        raise FileNotFoundError(f"{folder} {state or 'does not exist'}; tokenise the source again (tokenize_source)")
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
        version, shards = meta["version"], [(shard["name"], shard["num_bytes"]) for shard in meta["shards"]]
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(folder, path, f"not what was written ({error!r})") from error
    if version != STORE_VERSION:
        raise ValueError(
            f"{path} is of version {version}, expected {STORE_VERSION}: delete {folder} and tokenise again"
        )
    for name, num_bytes in shards:
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name} is missing: {_advice(folder)}")
        if (size := (folder / name).stat().st_size) != num_bytes:
            raise _damaged(folder, folder / name, f"it has {size} bytes, {META_FILE} says {num_bytes}")
    return meta


def _map_shard(folder: Path, shard: dict[str, Any]) -> list[tuple[np.ndarray, np.ndarray]]:
    """The record batches of one file as (offsets, values), without a copy."""
    import pyarrow as pa

    path = folder / shard["name"]
    try:
        with pa.memory_map(str(path)) as source:
            column = pa.ipc.open_file(source).read_all().column(COLUMN)
        if column.type != pa.list_(pa.int32()):
            raise pa.ArrowInvalid(f"column {COLUMN} is {column.type}, expected list<int32>")
        # .values and .offsets see the whole buffers; a record batch from a file starts at its first document.
        return [
            (chunk.offsets.to_numpy(zero_copy_only=True), chunk.values.to_numpy(zero_copy_only=True))
            for chunk in column.chunks
            if len(chunk)
        ]
    except (pa.ArrowException, KeyError, OSError) as error:
        raise _damaged(folder, path, str(error)) from error


def check_token_ids(array: Any, where: str) -> np.ndarray:
    """Checks the token ids of one document.

    Args:
        array: Token ids.
        where: Which document it is, for messages.

    Returns:
        int32 [tokens], a copy.

    Raises:
        TypeError: The ids are no whole numbers.
        ValueError: There are none, the shape is another, or int32 cannot hold one.

    Example:
        >>> check_token_ids([5, 6], "document 0")
        array([5, 6], dtype=int32)
    """
    try:
        ids = np.asarray(array)
    except ValueError as error:
        raise ValueError(f"{where} is no flat sequence of token ids ({error})") from error
    if ids.ndim != 1 or ids.size == 0:
        raise ValueError(
            f"{where} is empty or not one-dimensional (shape {ids.shape}): drop empty documents, and give "
            "each document a flat sequence of token ids"
        )
    if not np.issubdtype(ids.dtype, np.integer):
        raise TypeError(f"{where} has {ids.dtype} ids, expected whole numbers (token ids)")
    if int(ids.min()) < 0 or int(ids.max()) > MAX_TOKEN:
        raise ValueError(f"{where} has ids from {ids.min()} to {ids.max()}, expected 0 to {MAX_TOKEN}")
    return ids.astype(np.int32)


def _from_chunks(chunks: list[tuple[np.ndarray, np.ndarray]], fingerprint: str) -> TokenDocuments:
    """Documents in memory, from a pickle."""
    return TokenDocuments(chunks, fingerprint=fingerprint)


def _damaged(folder: Path | None, path: Path | str, what: str) -> ValueError:
    """The error for damage at `path`, with the way to get rid of it."""
    return ValueError(f"{path} is damaged: {what}" + (f"; {_advice(folder)}" if folder else ""))


def _advice(folder: Path) -> str:
    return f"delete {folder} and tokenise again, or call tokenize_source with overwrite=True"
