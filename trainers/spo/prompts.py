"""Where prompts come from, and which row of the tracker each one is.

Design decisions:

- A map-style data set is drawn from inside the trainer, at the moment of generation, when the tracker is up to date. (A
  sampler would be stale: the loader has fetched the next batch already, and Trainer pulls a whole accumulation window.)
  The loader's own batch is a placeholder.
- A prompt is known by its row, or by the id in a column, which survives changes of the data set. Not by its text: many
  prompts begin with the same system message.
- A stream cannot be drawn from. Its prompts are taken as they come and known by their id, or by a hash of their content.
- An environment that makes its own prompts gives every response the same key: one value for all.
- A fingerprint of the prompts tells a checkpoint's tracker from that of another data set.
"""

from __future__ import annotations

import hashlib
import json
import logging
from typing import Any

import numpy as np
from mmbert_hf.trainers.spo.tracker import number_rows

__all__ = ["DatasetPrompts", "EnvironmentPrompts", "StreamPrompts", "content_key", "open_prompts"]

logger = logging.getLogger(__name__)


def content_key(prompt: Any) -> str:
    """A hash of a prompt: text, or a list of messages with all their parts.

    Example:
        >>> content_key("2 + 2 =") == content_key("2 + 2 = ")
        False
    """
    text = json.dumps(prompt, sort_keys=True, ensure_ascii=False, default=repr)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class DatasetPrompts:
    """A map-style data set.

    Args:
        dataset: With a column ``prompt``.
        id_column: Column with ids, or None.

    Attributes:
        keys: Ids of the rows as text; None if rows are known by number.
        fingerprint: Of all prompts in their order, or of all ids.

    Raises:
        ValueError: The data set is empty or has no such column, or an id is missing or not unique.
    """

    def __init__(self, dataset: Any, id_column: str | None = None, *, needs_prompt: bool = True) -> None:
        if len(dataset) == 0:
            raise ValueError("the training data set is empty")
        if needs_prompt and "prompt" not in dataset.column_names:
            raise ValueError(f"the training data set needs a column 'prompt', it has {', '.join(dataset.column_names)}")
        self.dataset, self.keys = dataset, None
        if id_column is None:
            columns = ["prompt"] if "prompt" in dataset.column_names else dataset.column_names
            self.fingerprint = _fingerprint(dataset, columns)
            return
        if id_column not in dataset.column_names:
            raise ValueError(
                f"prompt_id_column {id_column!r} is not in the data set, which has {', '.join(dataset.column_names)}"
            )
        ids = dataset[id_column][:]
        if any(value is None for value in ids):
            raise ValueError(f"column {id_column!r} has no id in row {ids.index(None)}")
        self.keys = [str(value) for value in ids]
        number_rows(self.keys)
        self.fingerprint = hashlib.sha256("\n".join(self.keys).encode()).hexdigest()[:32]

    def __len__(self) -> int:
        return len(self.dataset)

    def take(self, rows: np.ndarray) -> list[dict[str, Any]]:
        """The examples of some rows, read in one go."""
        columns = self.dataset[rows.tolist()]
        return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


class StreamPrompts:
    """An iterable data set: prompts as they come, known by their content.

    Args:
        id_column: Column with ids, by which they are known instead.
    """

    keys, fingerprint = None, "stream"

    def __init__(self, id_column: str | None = None) -> None:
        self.id_column = id_column

    def keys_of(self, examples: list[dict[str, Any]]) -> list[str]:
        """Keys of the examples of a batch.

        Raises:
            ValueError: An example has no prompt, or no id although there is a column for it.
        """
        for example in examples:
            if "prompt" not in example:
                raise ValueError(f"the training data set needs a column 'prompt', it has {', '.join(example)}")
            if self.id_column is not None and example.get(self.id_column) is None:
                raise ValueError(
                    f"an example of the stream has no id in {self.id_column!r} (prompt_id_column); it has "
                    f"{', '.join(example)}"
                )
        if self.id_column is not None:
            return [str(example[self.id_column]) for example in examples]
        return [content_key(example["prompt"]) for example in examples]


class EnvironmentPrompts:
    """No data set: an environment makes the prompts, and all of them have one value."""

    keys, fingerprint = None, "environment"

    def keys_of(self, examples: list[dict[str, Any]]) -> list[str]:
        """The same key for every example."""
        return ["environment"] * len(examples)


def open_prompts(
    dataset: Any, id_column: str | None, sampling: str, *, needs_prompt: bool = True
) -> DatasetPrompts | StreamPrompts | EnvironmentPrompts:
    """Choose by what the trainer was given.

    Args:
        dataset: `datasets.Dataset`, `datasets.IterableDataset`, or None.
        id_column: Column with ids.
        sampling: Named in the notice that a stream cannot be drawn from.
        needs_prompt: False if environments make prompts and the data set only says which environment.

    Raises:
        ValueError: As `DatasetPrompts`.
        TypeError: The data set is something else.
    """
    from datasets import Dataset, IterableDataset

    if dataset is None:
        return EnvironmentPrompts()
    if isinstance(dataset, IterableDataset):
        logger.warning("a streamed data set cannot be drawn from: prompts are taken as they come, not by %r", sampling)
        return StreamPrompts(id_column)
    if not isinstance(dataset, Dataset):
        raise TypeError(f"train_dataset must be a Dataset or an IterableDataset, got {type(dataset).__name__}")
    return DatasetPrompts(dataset, id_column, needs_prompt=needs_prompt)


def _fingerprint(dataset: Any, columns: list[str]) -> str:
    """A hash of some columns, row by row, of what is stored: the bytes of an image, and not the image."""
    digest = hashlib.sha256()
    for batch in dataset.select_columns(columns).with_format("arrow").iter(10_000):
        for row in batch.to_pylist():
            digest.update(json.dumps(row, sort_keys=True, ensure_ascii=False, default=repr).encode())
            digest.update(b"\n")
    return digest.hexdigest()[:32]
