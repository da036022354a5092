"""Rows with columns: from a file, from a folder that `datasets` saved, or from a data set on the Hub.

Design decisions:

- One function reads what every verb is given: triplets, problems, labelled texts, questions. What the columns have to be is
  the business of whoever asked.
- The nested file format of SQuAD (articles, paragraphs, questions), which TiQuAD and FoQA are given in, becomes the columns
  id, context, question and answers of the data sets on the Hub, so that nobody else has to know of it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["FORMATS", "RowSource", "flatten_squad", "load_rows"]

# Suffix of a local file -> builder of `datasets` and its options. Without `keep_default_na` the words "NA", "null" and
# "None" in a CSV file would be read as missing.
FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    ".jsonl": ("json", {}),
    ".jsonl.gz": ("json", {}),
    ".jsonl.xz": ("json", {}),
    ".json": ("json", {}),
    ".csv": ("csv", {"keep_default_na": False}),
    ".parquet": ("parquet", {}),
}
HUB_NAME = re.compile(r"(\w[\w.-]*/\w[\w.-]*?)(?:/(\w[\w.-]*?))?(?::([\w.-]+))?", re.ASCII)


class RowSource(NamedTuple):
    """What a source is called, without where it lies on this machine.

    Attributes:
        name: ``owner/name`` on the Hub, or the name of a file or folder.
        config: Of a data set on the Hub.
        split: Of a data set on the Hub.
    """

    name: str
    config: str | None = None
    split: str | None = None

    @classmethod
    def read(cls, source: str | Path, split: str = "train") -> RowSource:
        """Take a source apart, as `load_rows` does.

        Example:
            >>> RowSource.read("unimelb-nlp/wikiann/fo:test"), RowSource.read("data/test.jsonl").name
            (RowSource(name='unimelb-nlp/wikiann', config='fo', split='test'), 'test.jsonl')
        """
        found = _hub_name(source)
        return cls(found[1], found[2], found[3] or split) if found else cls(Path(source).name)


def load_rows(source: str | Path, kind: str = "rows", *, split: str = "train") -> Dataset:
    """Load a data set from a file, a folder or the Hub, with all its columns.

    Args:
        source: A local file, .jsonl (also .jsonl.gz and .jsonl.xz), .json, .csv or .parquet; a folder that
            `Dataset.save_to_disk` wrote; or the name of a data set on the Hub: ``owner/name``, ``owner/name:split``,
            ``owner/name/config`` or ``owner/name/config:split``. A .json file may be in the nested format of SQuAD.
        kind: What the messages say the rows are.
        split: Of a data set on the Hub, where the name has none.

    Returns:
        The data set.

    Raises:
        FileNotFoundError: There is no such file, and it cannot be a name on the Hub.
        ValueError: It is another folder, a file of another kind, or a file that cannot be read.

    Example:
        >>> load_rows("no-such-file.jsonl")
        Traceback (most recent call last):
            ...
        FileNotFoundError: there is no file 'no-such-file.jsonl'; a data set on the Hub is owner/name or owner/name:split
    """
    path, text = Path(source), str(source)
    suffix = _suffix(path)
    if path.is_dir():
        return _load_folder(path)
    if hub_name := _hub_name(source):
        from datasets import load_dataset

        return load_dataset(hub_name[1], hub_name[2], split=hub_name[3] or split)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {text!r}; a data set on the Hub is owner/name or owner/name:split")
    if suffix is None:
        raise ValueError(f"{text!r} is no file of {kind}: its name must end in {', '.join(FORMATS)}")
    if path.stat().st_size == 0:
        raise ValueError(f"{text!r} is empty: expected one {kind.removesuffix('s')} a row")
    if suffix == ".json" and (articles := _squad_articles(path)) is not None:
        from datasets import Dataset

        try:
            return Dataset.from_list(flatten_squad(articles))
        except ValueError as error:
            raise ValueError(f"{text!r}: {error}") from error
    return _load_file(path, *FORMATS[suffix])


def flatten_squad(articles: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Turn the articles of a SQuAD file into rows, one for each question.

    Args:
        articles: What is below "data" in the file: each with "paragraphs", which have "context" and "qas".

    Returns:
        Rows with id, context, question and answers, the last as {"text": [...], "answer_start": [...]}. Both lists are
        empty for a question that has no answer, be it marked ``is_impossible`` (SQuAD 2) or without answers.

    Raises:
        ValueError: A key is missing, or there is no question.

    Example:
        >>> question = {"id": "1", "question": "Where?", "answers": [{"text": "here", "answer_start": 3}]}
        >>> flatten_squad([{"paragraphs": [{"context": "It here.", "qas": [question]}]}])[0]["answers"]
        {'text': ['here'], 'answer_start': [3]}
    """
    rows: list[dict[str, Any]] = []
    try:
        for article in articles:
            for paragraph in article["paragraphs"]:
                for question in paragraph["qas"]:
                    answers = [] if question.get("is_impossible") else question.get("answers") or []
                    rows.append(
                        {
                            "id": str(question.get("id", len(rows))),
                            "context": paragraph["context"],
                            "question": question["question"],
                            "answers": {
                                "text": [answer["text"] for answer in answers],
                                "answer_start": [answer["answer_start"] for answer in answers],
                            },
                        }
                    )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not the format of SQuAD, at question {len(rows)}: {type(error).__name__} {error}") from error
    if not rows:
        raise ValueError("the file has the format of SQuAD and no question in it")
    return rows


def _suffix(path: Path) -> str | None:
    return next((suffix for suffix in FORMATS if path.name.lower().endswith(suffix)), None)


def _hub_name(source: str | Path) -> re.Match[str] | None:
    """Parts of a name on the Hub; None for what is, or looks like, a file."""
    if isinstance(source, Path) or _suffix(Path(source)) or Path(source).exists():
        return None
    return HUB_NAME.fullmatch(source)


def _squad_articles(path: Path) -> list[Any] | None:
    """The articles of a nested SQuAD file; None if the file is another kind of JSON."""
    data = path.read_bytes()
    if b'"paragraphs"' not in data:
        return None
    try:
        found = json.loads(data)
    except ValueError as error:
        raise ValueError(f"{str(path)!r} cannot be read as json: {error}") from error
    articles = found.get("data") if isinstance(found, dict) else None
    return articles if isinstance(articles, list) else None


def _load_folder(path: Path) -> Dataset:
    from datasets import load_from_disk

    if (path / "state.json").is_file():
        return load_from_disk(str(path))
    if (path / "dataset_dict.json").is_file():
        splits = json.loads((path / "dataset_dict.json").read_text(encoding="utf-8"))["splits"]
        raise ValueError(
            f"{str(path)!r} has several splits: name one of {', '.join(str(path / name) for name in splits)}"
        )
    raise ValueError(f"{str(path)!r} is a folder: name a file in it ({', '.join(FORMATS)})")


def _load_file(path: Path, builder: str, options: Mapping[str, Any]) -> Dataset:
    """One local file as a data set."""
    from datasets import load_dataset
    from datasets.exceptions import DatasetGenerationError

    try:
        return load_dataset(builder, data_files=str(path), split="train", **options)
    except (DatasetGenerationError, ValueError) as error:
        cause = error.__cause__ or error
        raise ValueError(f"{str(path)!r} cannot be read as {builder}: {cause}") from error
