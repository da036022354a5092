"""Writes a store of tokenised documents; `token_documents` describes the format and reads it.

Design decisions:

- Documents are gathered into record batches of about a million tokens and files of about 64 million: few enough pieces
  that finding a document is quick, small enough that memory stays flat.
- `meta.json` comes last, under another name first. Before it is there the folder is no store.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from mmbert_hf.data.token_documents import COLUMN, META_FILE, STORE_VERSION, FingerprintHasher
from mmbert_hf.output_folders import write_whole

TOKENS_PER_RECORD_BATCH = 2**20
TOKENS_PER_FILE = 2**26


class TokenStoreWriter:
    """Writes documents into a new folder that `TokenDocuments.open` maps.

    Args:
        folder: Folder to make. It must not hold a store.
        tokens_per_file: A new file is begun after so many tokens.

    Raises:
        FileExistsError: The folder has a `meta.json` already.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> from mmbert_hf.data.token_documents import TokenDocuments
        >>> folder = tempfile.mkdtemp()
        >>> with TokenStoreWriter(folder) as writer:
        ...     writer.add([np.array([5, 6], dtype=np.int32), np.array([7], dtype=np.int32)])
        ...     writer.finish(source="by hand")
        >>> TokenDocuments.open(folder).tokens(1)
        array([7], dtype=int32)
    """

    def __init__(self, folder: str | os.PathLike[str], *, tokens_per_file: int = TOKENS_PER_FILE) -> None:
        self.folder = Path(folder)
        if (self.folder / META_FILE).exists():
            raise FileExistsError(f"{self.folder} holds a store already: delete it, or write to another folder")
        self.folder.mkdir(parents=True, exist_ok=True)
        self.num_documents = self.num_tokens = 0
        self._tokens_per_file = tokens_per_file
        self._hasher = FingerprintHasher()
        self._waiting: list[np.ndarray] = []
        self._num_waiting = self._num_in_file = 0
        self._names: list[str] = []
        self._file: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close_file()

    def add(self, documents: Sequence[np.ndarray]) -> None:
        """Adds documents.

        Args:
            documents: Token ids without special tokens, int32 [tokens] each, none of them empty.
        """
        assert all(document.dtype == np.int32 and document.size for document in documents), "int32 and not empty"
        self._waiting += documents
        num_tokens = sum(map(len, documents))
        self._num_waiting += num_tokens
        self.num_documents += len(documents)
        self.num_tokens += num_tokens
        if self._num_waiting >= TOKENS_PER_RECORD_BATCH:
            self._write_batch()

    def finish(self, **made_by: Any) -> None:
        """Writes what is left, and the metadata.

        Args:
            **made_by: What to keep beside them, as JSON.
        """
        self._write_batch()
        self._close_file()
        meta = {
            "version": STORE_VERSION,
            "num_documents": self.num_documents,
            "num_tokens": self.num_tokens,
            "fingerprint": self._hasher.hexdigest(),
            **made_by,
            "shards": [{"name": name, "num_bytes": (self.folder / name).stat().st_size} for name in self._names],
        }
        write_whole(self.folder / META_FILE, json.dumps(meta, indent=1, ensure_ascii=False) + "\n")

    def _write_batch(self) -> None:
        """Writes the documents gathered so far as one record batch."""
        import pyarrow as pa

        if not self._waiting:
            return
        values = np.concatenate(self._waiting)
        lengths = np.fromiter(map(len, self._waiting), dtype=np.int64, count=len(self._waiting))
        if values.size > np.iinfo(np.int32).max:
            raise ValueError(f"{values.size} tokens came at once, more than a list of int32 holds: add fewer documents")
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        column = pa.ListArray.from_arrays(pa.array(offsets), pa.array(values))
        if self._file is None:
            name = f"tokens-{len(self._names):05d}.arrow"
            self._file = pa.ipc.new_file(str(self.folder / name), pa.schema([(COLUMN, column.type)]))
            self._names.append(name)
        self._file.write_batch(pa.record_batch([column], names=[COLUMN]))
        self._hasher.update(lengths, values)
        self._num_in_file += values.size
        self._waiting, self._num_waiting = [], 0
        if self._num_in_file >= self._tokens_per_file:
            self._close_file()

    def _close_file(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file, self._num_in_file = None, 0
