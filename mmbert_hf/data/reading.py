"""Rows of files and of data sets on the Hub, and how a stream that breaks is read on.

Design decisions:

- A reader is a function of how many rows to leave out, which makes it easy to open again. Files are read anew and rows
  left out, which is cheap beside tokenising them; a stream of the Hub is put back to its last remembered state.
- What breaks and what is wrong are told apart here. From a local file, an error of Arrow, gzip or json is damage; an
  error of the operating system is a disk or network file system that may answer again. From the Hub, whatever httpx,
  aiohttp or the file system raise may pass, but "no such data set" and "no access" do not.
"""

from __future__ import annotations

import gzip
import json
import logging
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar, cast

from mmbert_hf.data.token_documents import COLUMN

logger = logging.getLogger(__name__)

T = TypeVar("T")
SUFFIXES = (".txt", ".jsonl", ".jsonl.gz", ".parquet")
ROWS_PER_BATCH = 1024
ROWS_PER_STATE = 1000  # a broken stream of the Hub reads at most so many rows twice
RETRIED_STATUS = (408, 425, 429)


class SourceError(OSError):
    """A source could not be read to its end, after all attempts."""


class Row(NamedTuple):
    """What a source has at one place: a text or token ids, if it is in order.

    Attributes:
        value: Whatever is in the column of the text, or of the token ids; None where it is missing.
        place: File or data set.
        number: Line or row, from 1.
    """

    value: Any
    place: str
    number: int


def file_rows(paths: Sequence[Path], text_column: str, skip: int = 0) -> Iterator[Row]:
    """Rows of local files, one file after the other.

    Args:
        paths: `.txt`, `.jsonl`, `.jsonl.gz` and `.parquet` files.
        text_column: Column or field of the text.
        skip: How many rows to leave out.

    Yields:
        Rows; blank lines are none.

    Raises:
        ValueError: A file is damaged, not UTF-8, or has neither the column of the text nor `input_ids`.
    """

    def rows() -> Iterator[Row]:
        for path in paths:
            yield from _parquet_rows(path, text_column) if path.suffix == ".parquet" else _line_rows(path, text_column)

    return islice(rows(), skip, None)


def _line_rows(path: Path, text_column: str) -> Iterator[Row]:
    is_json = ".jsonl" in path.suffixes
    number = 0
    with cast(BinaryIO, gzip.open(path) if path.suffix == ".gz" else path.open("rb")) as lines:
        try:
            for number, line in enumerate(lines, start=1):
                if text := _decode(line, path, number):
                    yield Row(_json_value(text, path, number, text_column) if is_json else text, str(path), number)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(f"{path} is truncated or damaged after line {number} ({error}): fetch it again") from error


def _decode(line: bytes, path: Path, number: int) -> str:
    """The text of a line without its end; empty for a blank line."""
    try:
        text = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}, line {number} is not UTF-8: byte {line[error.start]:#04x} at offset {error.start} of the line; "
            "convert it with iconv"
        ) from error
    return "" if text.isspace() else text


def _json_value(text: str, path: Path, number: int, text_column: str) -> Any:
    """The document of one JSON line."""
    try:
        record = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path}, line {number}: not JSON ({error}); expected one object a line") from error
    if not isinstance(record, dict):
        raise ValueError(f"{path}, line {number}: expected an object, got {type(record).__name__}")
    return record[_column(record, text_column, f"{path}, line {number}")]


def _column(names: Any, text_column: str, where: str) -> str:
    """The column to read: the text, or else the token ids."""
    for name in (text_column, COLUMN):
        if name in names:
            return name
    raise ValueError(
        f"{where}: expected {text_column!r} (or {COLUMN!r}), got {sorted(names)}; set text_column to one of these"
    )


def _parquet_rows(path: Path, text_column: str) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path, memory_map=True) as file:
            column = _column(file.schema_arrow.names, text_column, str(path))
            for batch in file.iter_batches(batch_size=ROWS_PER_BATCH, columns=[column]):
                for value in _values(batch.column(0)):
                    number += 1
                    yield Row(value, str(path), number)
    except (pa.ArrowException, OSError) as error:
        # Arrow's own complaints about a damaged page are an OSError, too, but one without a number.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise ValueError(f"{path} is truncated or damaged after row {number} ({error}): fetch it again") from error


def _values(column: Any) -> Iterator[Any]:
    """Python values of a column; lists of numbers as arrays."""
    import pyarrow as pa

    if not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)):
        yield from column.to_pylist()
        return
    for scalar in column:
        yield None if not scalar.is_valid else scalar.values.to_numpy(zero_copy_only=False)


class HubRows:
    """Rows of a data set on the Hub; called with how many to leave out.

    Args:
        repository: owner/name.
        config: Configuration, or None.
        split: Split.
        commit: Commit to read at.
        text_column: Column of the text.
    """

    def __init__(self, repository: str, config: str | None, split: str, commit: str, text_column: str) -> None:
        self.repository, self.config, self.split = repository, config, split
        self.commit, self.text_column = commit, text_column
        self._state: dict[str, Any] | None = None
        self._position = 0

    def __call__(self, skip: int) -> Iterator[Row]:
        """The rows behind the first `skip`."""
        from datasets import load_dataset
        from datasets.exceptions import DatasetGenerationError

        where = f"hf://{self.repository}" + (f" ({self.config})" if self.config else "")
        position = self._position
        try:
            dataset: Any = load_dataset(
                self.repository, self.config, split=self.split, revision=self.commit, streaming=True
            )
            if self._state is not None:
                dataset.load_state_dict(self._state)
            for record in dataset:
                position += 1
                if position > skip:
                    column = _column(record, self.text_column, where)
                    yield Row(record[column], where, position)
                if position % ROWS_PER_STATE == 0:
                    self._state, self._position = dataset.state_dict(), position
        except (ValueError, DatasetGenerationError) as error:
            if is_transient(error) or str(error).startswith(where):
                raise
            raise ValueError(f"{where}: cannot be read after row {position}: {error}") from error


def resume_on_failure(
    open_rows: Callable[[int], Iterator[T]],
    name: str,
    *,
    max_attempts: int = 5,
    first_wait_seconds: float = 1.0,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[T]:
    """Reads a stream to its end though it breaks: opens it again behind the last row delivered.

    Args:
        open_rows: Number of rows to leave out -> the rows behind them.
        name: What is read, for messages.
        max_attempts: How often it may fail without a new row in between.
        first_wait_seconds: Wait before the second attempt; it doubles with every further one.
        sleep: How to wait.

    Yields:
        Every row once, in order.

    Raises:
        SourceError: It failed too often, or for good (no such data set, no access).

    Example:
        >>> list(resume_on_failure(lambda skip: iter(range(skip, 3)), "three numbers"))
        [0, 1, 2]
    """
    delivered, failures = 0, 0
    while True:
        try:
            for row in open_rows(delivered):
                delivered, failures = delivered + 1, 0
                yield row
            return
        except Exception as error:
            if not (lasting := _is_lasting(error)) and not is_transient(error):
                raise
            failures += 1
            if lasting or failures >= max_attempts:
                why = "cannot be read" if lasting else f"broke {failures} times in a row"
                raise SourceError(
                    f"{name} {why}, with {delivered} documents read ({type(error).__name__}: {error}). "
                    + ("Check its name, revision and your access to it" if lasting else "Check the connection or disk")
                    + ", and start again"
                ) from error
            wait = first_wait_seconds * 2 ** (failures - 1)
            logger.warning("%s broke after %d documents (%r); again in %g s", name, delivered, error, wait)
            sleep(wait)


def is_transient(error: BaseException) -> bool:
    """Whether a failed read may work when it is tried again.

    Args:
        error: What was raised.

    Returns:
        True for broken connections, time-outs, busy servers and disks that fail; False for whatever stays so.

    Example:
        >>> is_transient(ConnectionResetError()), is_transient(FileNotFoundError()), is_transient(ValueError())
        (True, False, False)
    """
    from huggingface_hub.errors import HTTPError

    kinds: list[type[BaseException]] = [OSError, HTTPError]
    if "aiohttp" in sys.modules:  # slow to import, and not raised from where it was not
        kinds.append(sys.modules["aiohttp"].ClientError)
    return isinstance(error, tuple(kinds)) and not _is_lasting(error)


def _is_lasting(error: BaseException) -> bool:
    """Whether a read failed for want of the thing or of the right to it."""
    from huggingface_hub.errors import EntryNotFoundError, OfflineModeIsEnabled

    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is not None:
        return 400 <= status < 500 and status not in RETRIED_STATUS
    gone = (FileNotFoundError, PermissionError, IsADirectoryError, EntryNotFoundError, OfflineModeIsEnabled)
    return isinstance(error, gone)
