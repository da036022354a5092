"""Tokenises a source once, into a store on disk that the next run opens at once.

Design decisions:

- The name of a store says what is in it: a hash of the source (its settings, sizes and times of its files, its commit
  on the Hub) and of the tokenizer. Another file or another vocabulary is another store; nothing is ever out of date.
- A store is written in a folder beside its place and moved there when it is complete, so an interrupted run leaves
  nothing that could be taken for one. A lock lets one process write while the others of a machine wait and then open it.
- Texts go to the backend in batches, without special tokens; the ids are those of
  `tokenizer(text, add_special_tokens=False)`. The backend uses all cores unless `TOKENIZERS_PARALLELISM=false` or
  `RAYON_NUM_THREADS` says otherwise; `num_proc` adds processes, for machines with so many cores that the rest
  of the work would hold them up.
"""

from __future__ import annotations

import hashlib
import json
import logging
import multiprocessing
import os
import shutil
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from mmbert_hf.data.sources import Source, iter_documents
from mmbert_hf.data.token_documents import TokenDocuments
from mmbert_hf.data.token_store import TokenStoreWriter

logger = logging.getLogger(__name__)

CHARACTERS_PER_BATCH = 2**18
DOCUMENTS_PER_BATCH = 1024

Document = str | np.ndarray


class TextEncoder:
    """The part of a tokenizer that turns texts into ids, ready for many texts. Making one takes a second or two.

    Args:
        tokenizer: A tokenizer of transformers with a `tokenizers` backend. It is copied: later changes to it, and the
            padding or truncation of its last call, have no effect.

    Attributes:
        fingerprint: Hex digest of all that the ids depend on.
        vocab_size: Ids are below it.

    Raises:
        TypeError: The tokenizer has no backend.

    Example:
        >>> from mmbert_hf import MMBertTokenizer
        >>> tokenizer = MMBertTokenizer.train(["en to tre"] * 4, vocab_size=300)
        >>> ids = TextEncoder(tokenizer).encode(["en to"])[0].tolist()
        >>> ids == tokenizer("en to", add_special_tokens=False)["input_ids"]
        True
    """

    def __init__(self, tokenizer: Any) -> None:
        from tokenizers import Tokenizer

        if not hasattr(tokenizer, "backend_tokenizer"):
            raise TypeError(
                f"expected a tokenizer of transformers with a `tokenizers` backend, got {type(tokenizer).__name__}"
            )
        backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        backend.no_padding()
        backend.no_truncation()
        self._set(backend.to_str())

    def _set(self, description: str) -> None:
        from tokenizers import Tokenizer

        self._description = description
        self._backend = Tokenizer.from_str(description)
        self.vocab_size = self._backend.get_vocab_size(with_added_tokens=True)
        self.fingerprint = hashlib.sha256(description.encode()).hexdigest()[:32]

    def __getstate__(self) -> str:
        return self._description

    def __setstate__(self, description: str) -> None:
        self._set(description)

    def encode(self, documents: Sequence[Document]) -> list[np.ndarray]:
        """Tokenises texts; documents that are token ids already pass through.

        Args:
            documents: Texts, or int32 [tokens].

        Returns:
            Per document its ids without special tokens, int32 [tokens].

        Raises:
            ValueError: A ready-made id is not in the vocabulary.
        """
        texts = [document for document in documents if isinstance(document, str)]
        encodings = iter(self._backend.encode_batch_fast(texts, add_special_tokens=False) if texts else ())
        arrays = [
            np.array(next(encodings).ids, dtype=np.int32) if isinstance(document, str) else document
            for document in documents
        ]
        for document in documents if len(texts) < len(documents) else ():
            if not isinstance(document, str) and int(document.max()) >= self.vocab_size:
                raise ValueError(
                    f"a document has the token id {document.max()}, but the vocabulary ends at {self.vocab_size - 1}: it was "
                    "tokenised with another tokenizer; read its text instead"
                )
        return arrays


def default_cache_dir() -> Path:
    """Where stores are kept: `mmbert-hf/tokens` in the cache of Hugging Face (`HF_HOME`).

    Example:
        >>> default_cache_dir().name
        'tokens'
    """
    from huggingface_hub.constants import HF_HOME

    return Path(HF_HOME) / "mmbert-hf" / "tokens"


def tokenize_source(
    source: Source,
    tokenizer: Any,
    cache_dir: str | os.PathLike[str] | None = None,
    *,
    num_proc: int = 1,
    overwrite: bool = False,
) -> TokenDocuments:
    """Tokenises a source into a store, or opens the store if that was done before.

    Args:
        source: What to read. With `max_tokens`, the document that reaches it is cut there.
        tokenizer: Tokenizer of transformers, or a `TextEncoder` of it where many sources are tokenised.
        cache_dir: Folder of the stores; `default_cache_dir()` if None.
        num_proc: Processes that tokenise; 1 for this one alone.
        overwrite: Write the store anew.

    Returns:
        The documents, memory-mapped.

    Raises:
        FileNotFoundError: The source has no files, or a store lacks some.
        SourceError: The source broke too often.
        ValueError: The data of the source, or the store, are damaged.

    Example:
        >>> import pathlib, tempfile
        >>> from mmbert_hf import MMBertTokenizer
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> _ = (folder / "own.txt").write_text("en to tre\\nto tre\\n")
        >>> tokenizer = MMBertTokenizer.train(["en to tre"] * 4, vocab_size=300)
        >>> len(tokenize_source(Source("dan", str(folder / "own.txt")), tokenizer, folder))
        2
    """
    from filelock import FileLock

    if num_proc < 1:
        raise ValueError(f"num_proc must be at least 1, got {num_proc}")
    encoder = tokenizer if isinstance(tokenizer, TextEncoder) else TextEncoder(tokenizer)
    source = source.pinned()
    made_by = {"source": str(source), "source_fingerprint": source.fingerprint(), "tokenizer": encoder.fingerprint}
    folder = Path(cache_dir if cache_dir is not None else default_cache_dir()) / f"{source.language}-{_key(made_by)}"
    if folder.exists() and not overwrite:
        return TokenDocuments.open(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if overwrite or not folder.exists():
            _write(folder, source, encoder, num_proc, made_by)
    return TokenDocuments.open(folder)


def _key(made_by: dict[str, str]) -> str:
    seen = [made_by["source_fingerprint"], made_by["tokenizer"]]
    return hashlib.sha256(json.dumps(seen).encode()).hexdigest()[:16]


def _write(folder: Path, source: Source, encoder: TextEncoder, num_proc: int, made_by: dict[str, str]) -> None:
    """Writes a store beside its place, then moves it there."""
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a run that was interrupted; we hold the lock
    left = source.max_tokens
    num_empty = 0
    with TokenStoreWriter(partial) as writer:
        for arrays in _encoded(iter_documents(source), encoder, num_proc):
            full = [array for array in arrays if array.size]
            num_empty += len(arrays) - len(full)
            if left is not None:
                full = _first_tokens(full, left)
                left -= sum(map(len, full))
            writer.add(full)
            if left == 0:
                break
        if not writer.num_documents:
            raise ValueError(f"{source} has no document with tokens ({num_empty} have none): leave the language out")
        writer.finish(**made_by)
    if num_empty:
        logger.warning("%s: dropped %d documents without tokens", source, num_empty)
    if folder.exists():
        shutil.rmtree(folder)
    partial.rename(folder)


def _first_tokens(arrays: list[np.ndarray], limit: int) -> list[np.ndarray]:
    """The documents up to a number of tokens, the last one cut."""
    kept = []
    for array in arrays:
        if limit <= 0:
            break
        kept.append(array[:limit])
        limit -= len(array)
    return kept


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Documents in batches of bounded size; a long document is a batch of its own."""
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document)
        if size >= CHARACTERS_PER_BATCH or len(batch) >= DOCUMENTS_PER_BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _encoded(documents: Iterable[Document], encoder: TextEncoder, num_proc: int) -> Iterator[list[np.ndarray]]:
    """Tokenised batches, in order; with processes, a few batches ahead of the reader and no more."""
    if num_proc == 1:
        yield from map(encoder.encode, _batches(documents))
        return
    context = multiprocessing.get_context("spawn")  # a fork would copy the locks of the backend's threads
    with ProcessPoolExecutor(num_proc, context, initializer=_start_worker, initargs=(encoder,)) as pool:
        waiting: deque[Future[list[np.ndarray]]] = deque()
        try:
            for batch in _batches(documents):
                waiting.append(pool.submit(_encode_in_worker, batch))
                if len(waiting) > 2 * num_proc:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


_worker_encoder: TextEncoder | None = None


def _start_worker(encoder: TextEncoder) -> None:
    global _worker_encoder
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    _worker_encoder = encoder


def _encode_in_worker(batch: list[Document]) -> list[np.ndarray]:
    assert _worker_encoder is not None, "the worker was not started by _start_worker"
    return _worker_encoder.encode(batch)
