"""Where documents come from: files of one's own, and data sets on the Hub, read as streams.

Design decisions:

- A `Source` is a value: what to read, not an open file. It can be printed, compared, sent to another process, and its
  `fingerprint` says whether the data behind it have changed (sizes and times of files, the commit of a data set).
- Files are read here, line by line or row group by row group, so that every complaint names file and line. Data sets
  on the Hub are read by `datasets.load_dataset(..., streaming=True)`, at the commit that the fingerprint names.
- Two kinds of failure are kept apart. A stream that breaks (a connection, a network file system) is opened again, with
  waits that double, and goes on behind the last document delivered; only when it breaks several times without a new
  document in between is it given up, with a `SourceError`. Data that are wrong stay wrong: they are a `ValueError` at once.
- Documents of white space only are skipped, and one warning says how many there were. Texts are not changed otherwise.
"""

from __future__ import annotations

import glob
import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mmbert_hf.data.reading import SUFFIXES, HubRows, Row, SourceError, file_rows, resume_on_failure
from mmbert_hf.data.token_documents import COLUMN, check_token_ids
from mmbert_hf.languages import get_language

__all__ = ["Source", "SourceError", "find_files", "iter_documents", "parse_source"]

logger = logging.getLogger(__name__)

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Source:
    """Documents of one language, somewhere.

    Attributes:
        language: ISO 639-3 code, with the script where it matters; `code` for source code.
        location: One or several of: a `.txt` (one document a line), `.jsonl`, `.jsonl.gz` or `.parquet` file, a pattern
            such as `data/*.parquet`, a folder of such files, or the name of a data set on the Hub
            (`HuggingFaceFW/fineweb-2`, or `hf://` in front to be clear).
        config: Configuration of a data set on the Hub.
        split: Split of a data set on the Hub.
        revision: Branch, tag or commit of a data set on the Hub. With a full commit, what was tokenised before is found
            again without asking the Hub.
        text_column: Column or field of the text. Where it is missing but `input_ids` is there, these are taken as
            they are.
        max_tokens: Read no more than so many tokens; None for all.

    Raises:
        ValueError: The language code is unknown, the location is empty, `max_tokens` is below 1, or `config` or
            `revision` is given for files.

    Example:
        >>> source = Source("fao", "HuggingFaceFW/fineweb-2", config="fao_Latn", max_tokens=1_000_000)
        >>> source.is_hub("HuggingFaceFW/fineweb-2"), str(source)
        (True, "'fao' from HuggingFaceFW/fineweb-2 (fao_Latn)")
    """

    language: str
    location: str | tuple[str, ...]
    config: str | None = None
    split: str = "train"
    revision: str | None = None
    text_column: str = "text"
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        get_language(self.language)
        if not self.locations or not all(isinstance(place, str) and place for place in self.locations):
            raise ValueError(
                f"the source of {self.language!r} must be a path or the name of a data set, got {self.location!r}"
            )
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ValueError(f"max_tokens of {self} must be at least 1, got {self.max_tokens}")
        given = [name for name in ("config", "revision") if getattr(self, name) is not None]
        if given and not any(map(self.is_hub, self.locations)):
            raise ValueError(f"{given[0]} of {self} is for data sets on the Hub, but this is read from files: drop it")

    @property
    def locations(self) -> tuple[str, ...]:
        """The location as a tuple."""
        return (self.location,) if isinstance(self.location, str) else tuple(self.location)

    def __str__(self) -> str:
        config = f" ({self.config})" if self.config else ""
        return f"{self.language!r} from {', '.join(map(str, self.locations))}{config}"

    @staticmethod
    def is_hub(location: str) -> bool:
        """Whether a location names a data set on the Hub: nothing on this disk has that name, and it looks like one."""
        return location.startswith("hf://") or (looks_like_hub(location) and not os.path.exists(location))

    def files(self) -> list[Path]:
        """The local files, sorted within each location.

        Returns:
            Paths; empty for a source on the Hub.

        Raises:
            FileNotFoundError: A location has no files.
            ValueError: A file is of a kind that is not read.

        Example:
            >>> Source("fao", "hf://owner/name").files()
            []
        """
        return [path for location in self.locations if not self.is_hub(location) for path in find_files(location)]

    def pinned(self) -> Source:
        """This source with the commit as its revision, if it is one data set on the Hub; else itself.

        Returns:
            A source whose data do not change between two looks at it.

        Raises:
            SourceError: The Hub does not answer, or does not have the data set.

        Example:
            >>> Source("fao", "own.jsonl").pinned().revision is None
            True
        """
        if len(self.locations) == 1 and self.is_hub(self.locations[0]):
            return replace(self, revision=_commit(self, self.locations[0]))
        return self

    def fingerprint(self) -> str:
        """Hex digest of what will be read: the settings, sizes and times of the files, commits on the Hub.

        Returns:
            The digest. The language is not part of it.

        Raises:
            FileNotFoundError: A location has no files.
            SourceError: The Hub does not answer, or does not have the data set.
        """
        seen: list[Any] = [self.text_column, self.max_tokens]
        for location in self.locations:
            if self.is_hub(location):
                seen.append([_repository(location), self.config, self.split, _commit(self, location)])
            else:
                stats = [(path.resolve(), path.stat()) for path in find_files(location)]
                seen.append([[str(path), stat.st_size, stat.st_mtime_ns] for path, stat in stats])
        return hashlib.sha256(json.dumps(seen).encode()).hexdigest()[:32]


def looks_like_hub(location: str) -> bool:
    """Whether a location has the form of a data set's name, owner/name.

    Example:
        >>> looks_like_hub("HuggingFaceFW/fineweb-2"), looks_like_hub("data/fao.txt"), looks_like_hub("data/*")
        (True, False, False)
    """
    return bool(HUB_NAME.fullmatch(location)) and not location.endswith((*SUFFIXES, ".json"))


def parse_source(text: str) -> Source:
    """Reads a source as it is given on a command line.

    Args:
        text: `LANGUAGE=LOCATION`, for a data set on the Hub with its configuration behind a colon.

    Returns:
        The source.

    Raises:
        ValueError: The text has another form, or the language is unknown.

    Example:
        >>> parse_source("fao=path.jsonl")  # doctest: +ELLIPSIS
        Source(language='fao', location='path.jsonl', config=None, ...)
        >>> parse_source("fao=HuggingFaceFW/fineweb-2:fao_Latn").config
        'fao_Latn'
    """
    language, separator, location = text.partition("=")
    if not separator or not language.strip() or not location.strip():
        raise ValueError(f"expected LANGUAGE=LOCATION such as fao=path.jsonl, got {text!r}")
    name, _, config = location.strip().removeprefix("hf://").partition(":")
    if config and Source.is_hub(f"hf://{name}" if location.strip().startswith("hf://") else name):
        return Source(language.strip(), f"hf://{name}", config=config)
    return Source(language.strip(), location.strip())


def find_files(location: str) -> list[Path]:
    """The files that a path, pattern or folder stands for, sorted.

    Args:
        location: Path of a file or folder (read with its sub-folders), or a pattern.

    Returns:
        At least one path.

    Raises:
        FileNotFoundError: There are none.
        ValueError: A file is of a kind that is not read.

    Example:
        >>> find_files("data/no-such-*.txt")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        FileNotFoundError: no file matches 'data/no-such-*.txt': ...
    """
    path = Path(location).expanduser()
    if path.is_dir():
        paths = sorted(child for child in path.rglob("*") if child.is_file() and child.name.endswith(SUFFIXES))
    elif path.exists():
        paths = [path]
    else:
        paths = sorted(Path(match) for match in glob.glob(str(path), recursive=True) if not os.path.isdir(match))
    kinds = ", ".join(SUFFIXES)
    if not paths:
        raise FileNotFoundError(f"no file matches {location!r}: expected {kinds}, or a data set owner/name on the Hub")
    for found in paths:
        if not found.name.endswith(SUFFIXES):
            hint = ": write one JSON object a line and name it .jsonl" if found.suffix == ".json" else ""
            raise ValueError(f"{found} cannot be read, expected one of {kinds}{hint}")
    return paths


def iter_documents(
    source: Source,
    *,
    max_attempts: int = 5,
    first_wait_seconds: float = 1.0,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[str | np.ndarray]:
    """Streams the documents of a source, in order, through broken connections.

    Args:
        source: What to read.
        max_attempts: How often reading may fail without a new document in between.
        first_wait_seconds: Wait before the second attempt; it doubles with every further one.
        sleep: How to wait.

    Yields:
        Texts, or token ids as int32 [tokens]. `max_tokens` is left to `tokenize_source`.

    Raises:
        FileNotFoundError: A location has no files.
        SourceError: The source broke too often, or the Hub does not have it.
        ValueError: The data are corrupt (with file and line or row), or there is no document with text.

    Example:
        >>> import pathlib, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp(), "own.txt")
        >>> _ = path.write_text("Góðan dag\\n\\nGott kvøld\\n", encoding="utf-8")
        >>> list(iter_documents(Source("fao", str(path))))
        ['Góðan dag', 'Gott kvøld']
    """
    source.files()  # before anything is read
    patience: Any = {"max_attempts": max_attempts, "first_wait_seconds": first_wait_seconds, "sleep": sleep}
    num_documents = num_blank = 0
    try:
        for location in source.locations:
            rows = _open_rows(source, location)
            for row in resume_on_failure(rows, str(source), **patience):
                document = _check_document(row, source)
                if len(document) and (not isinstance(document, str) or not document.isspace()):
                    num_documents += 1
                    yield document
                else:
                    num_blank += 1
    finally:
        if num_blank:
            logger.warning("%s: skipped %d documents without text", source, num_blank)
    if not num_documents:
        raise ValueError(f"{source} has no document with text ({num_blank} are blank): leave the language out")


def _open_rows(source: Source, location: str) -> Callable[[int], Iterator[Row]]:
    """Rows of one location, from any row on."""
    if not source.is_hub(location):
        return partial(file_rows, find_files(location), source.text_column)
    commit = _commit(source, location)
    return HubRows(_repository(location), source.config, source.split, commit, source.text_column)


def _check_document(row: Row, source: Source) -> str | np.ndarray:
    """The document of a row: a text, or int32 token ids (which may be empty)."""
    value, place, number = row
    where = f"{place}, row {number}"
    if isinstance(value, str):
        if not value.isascii():
            _check_unicode(value, where)
        return value
    if isinstance(value, (np.ndarray, list)) and len(value) == 0:
        return np.empty(0, dtype=np.int32)
    if isinstance(value, (np.ndarray, list)):
        return check_token_ids(value, where)
    raise ValueError(
        f"{where}: expected a text in {source.text_column!r} (or token ids in {COLUMN!r}), got "
        f"{'nothing' if value is None else f'{type(value).__name__} {value!r:.40}'}; mend it, or name another text_column"
    )


def _check_unicode(text: str, where: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"{where}: half of a surrogate pair at character {error.start}, which is no text") from error


def _repository(location: str) -> str:
    """owner/name of a data set on the Hub."""
    name = location.removeprefix("hf://").removeprefix("datasets/")
    if not HUB_NAME.fullmatch(name):
        raise ValueError(f"{location!r} is no data set on the Hub: expected hf://owner/name")
    return name


def _commit(source: Source, location: str) -> str:
    """The commit of a data set on the Hub. A full commit is taken as it is."""
    if source.revision is not None and COMMIT.fullmatch(source.revision):
        return source.revision

    def ask(skip: int) -> Iterator[str]:
        from huggingface_hub import HfApi

        yield HfApi().dataset_info(_repository(location), revision=source.revision).sha

    return next(resume_on_failure(ask, str(source)))
