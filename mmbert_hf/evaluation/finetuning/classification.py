"""Texts, or pairs of texts, to classes or to values: the tasks of GLUE, XNLI, PAWS-X and the like.

Design decisions:

- Columns are found by the names that GLUE and XTREME use, and can be named otherwise. Nothing is guessed from content.
- Labels are texts, integers, or the names behind the integers of a `ClassLabel`. Fractions are values, and the model then
  learns them by least squares, as for STS-B.
- A hidden label (-1, as in the test splits of GLUE) is refused: there is nothing to measure on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from mmbert_hf.evaluation.finetuning.metrics import classification_scores, regression_scores
from mmbert_hf.evaluation.finetuning.training import (
    FinetuningSettings,
    fine_tune,
    load_tokenizer,
    scores_of_seeds,
)
from mmbert_hf.evaluation.results import Score, SetName

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["LabelledTexts", "TextColumns", "evaluate_classification", "find_text_columns", "read_labelled_texts"]

# Names of a text and of what it is paired with, in the order in which they are looked for.
KNOWN_COLUMNS = (
    ("sentence1", "sentence2"),  # MRPC, RTE, STS-B, WNLI, PAWS-X
    ("premise", "hypothesis"),  # MNLI, XNLI
    ("question1", "question2"),  # QQP
    ("question", "sentence"),  # QNLI
    ("text", "text_pair"),
    ("sentence", None),  # CoLA, SST-2
    ("text", None),
)
MAIN = ("accuracy", "macro_f1", "pearson", "spearman")


class TextColumns(NamedTuple):
    """Which column is what.

    Attributes:
        text: The text.
        pair: What it is paired with, if anything.
        label: The label.
    """

    text: str
    pair: str | None
    label: str


@dataclass(frozen=True)
class LabelledTexts:
    """Texts with their labels.

    Attributes:
        texts: The texts.
        pairs: What each is paired with; None if they are alone.
        labels: Names of classes, or numbers.
        names: All classes, in their order; None for numbers.
    """

    texts: list[str]
    pairs: list[str] | None
    labels: list[Any]
    names: tuple[str, ...] | None

    def __len__(self) -> int:
        return len(self.texts)


def find_text_columns(
    names: Sequence[str], *, text: str | None = None, pair: str | None = None, label: str = "label"
) -> TextColumns:
    """Find the columns of a classification task.

    Args:
        names: Columns that there are.
        text: Column of the text; None to look for the names that GLUE uses.
        pair: Column of what it is paired with, if `text` is given.
        label: Column of the label.

    Raises:
        ValueError: A column is not there.

    Example:
        >>> find_text_columns(["idx", "premise", "hypothesis", "label"])
        TextColumns(text='premise', pair='hypothesis', label='label')
    """
    if pair is not None and text is None:
        raise ValueError(f"the column {pair!r} is paired with another: name that one, too (--text-column)")
    columns = TextColumns(text, pair, label) if text is not None else None
    for first, second in KNOWN_COLUMNS:
        if columns is None and first in names and (second is None or second in names):
            columns = TextColumns(first, second, label)
    if columns is None:
        known = "; ".join(" and ".join(filter(None, pair)) for pair in KNOWN_COLUMNS)
        raise ValueError(f"no column of texts among {list(names)}: expected {known}, or name it (--text-column)")
    missing = [name for name in columns if name is not None and name not in names]
    if missing:
        raise ValueError(f"no column {', '.join(missing)} among {list(names)}: name it (--label-column, --text-column)")
    return columns


def read_labelled_texts(
    rows: Dataset,
    *,
    text: str | None = None,
    pair: str | None = None,
    label: str = "label",
    regression: bool = False,
) -> LabelledTexts:
    """Take texts and labels out of a data set, and check them.

    Args:
        rows: The data set.
        text: As for `find_text_columns`, like the next two.
        pair: Column of what it is paired with.
        label: Column of the label.
        regression: Read integers as values, not as classes; fractions are values anyway.

    Raises:
        ValueError: A column is missing, a text is none, a label is missing, hidden (-1), or of another kind.

    Example:
        >>> from datasets import Dataset
        >>> read_labelled_texts(Dataset.from_dict({"text": ["ja", "nei"], "label": ["yes", "no"]})).names
        ('no', 'yes')
    """
    from datasets import ClassLabel

    columns = find_text_columns(rows.column_names, text=text, pair=pair, label=label)
    if len(rows) == 0:
        raise ValueError("it has no rows")
    texts = [_check_texts(rows[name][:], name) for name in columns[:2] if name is not None]
    labels, feature = rows[columns.label][:], rows.features[columns.label]
    wrong = [row for row, value in enumerate(labels) if value is None or isinstance(value, list | dict)]
    if wrong:
        raise ValueError(f"{len(wrong)} values of {columns.label!r} are no label, the first in row {wrong[0]}")
    pairs = texts[1] if columns.pair else None
    if regression or any(isinstance(value, float) for value in labels):
        if not all(isinstance(value, int | float) for value in labels):
            raise ValueError(
                f"{columns.label!r} has texts among numbers: classes are texts or integers, values numbers"
            )
        return LabelledTexts(texts[0], pairs, [float(value) for value in labels], None)
    if -1 in labels:
        raise ValueError(
            f"{labels.count(-1)} values of {columns.label!r} are -1, which is a hidden label: take a split that has labels"
        )
    if isinstance(feature, ClassLabel):
        return LabelledTexts(texts[0], pairs, [feature.names[value] for value in labels], tuple(feature.names))
    names = tuple(map(str, sorted(set(labels))))
    return LabelledTexts(texts[0], pairs, [str(value) for value in labels], names)


def check_labels(train: LabelledTexts, test: LabelledTexts, name: str = "the test set") -> None:
    """Refuse a test set whose labels cannot have been learnt.

    Raises:
        ValueError: It has other classes than the training set, values where that has classes, or pairs where that has none.
    """
    if (train.names is None) != (test.names is None):
        kinds = ["values" if texts.names is None else "classes" for texts in (train, test)]
        raise ValueError(
            f"the training set has {kinds[0]} as labels and {name} has {kinds[1]}: give both the same kind"
        )
    if (train.pairs is None) != (test.pairs is None):
        raise ValueError(f"of the training set and {name}, one has pairs of texts: name the columns (--text-column)")
    unknown = sorted(set(test.labels) - set(train.names)) if train.names is not None else []
    if unknown:
        raise ValueError(f"{name} has labels that the training set does not have: {', '.join(unknown[:5])}")
    if train.names is not None and len(train.names) < 2:
        raise ValueError(f"the training set has one class, {train.names[0]!r}: there is nothing to tell apart")


def evaluate_classification(
    model: str,
    train: LabelledTexts,
    tests: Mapping[SetName, LabelledTexts],
    settings: FinetuningSettings | None = None,
    seeds: Sequence[int] = (1,),
) -> list[Score]:
    """Fine-tune a model on labelled texts and measure it on others.

    Args:
        model: Folder or Hub name of an encoder.
        train: What it learns.
        tests: What it is measured on, by name; several, to see how it carries over to other languages.
        settings: How it is trained.
        seeds: It is trained once for each.

    Returns:
        For classes accuracy, macro_f1 and matthews_correlation, for values pearson and spearman: for each seed and set.

    Raises:
        ValueError: The labels do not fit together, or a setting is out of its range.
    """
    from datasets import Dataset
    from transformers import AutoModelForSequenceClassification, DataCollatorWithPadding

    settings = settings or FinetuningSettings()
    for name, test in tests.items():
        check_labels(train, test, name.dataset)
    tokenizer = load_tokenizer(model, settings.max_length)
    places = {label: place for place, label in enumerate(train.names or ())}

    def encode(texts: LabelledTexts) -> Dataset:
        encoded = tokenizer(texts.texts, texts.pairs, truncation=True, max_length=settings.max_length)
        labels = [places[label] for label in texts.labels] if train.names else texts.labels
        return Dataset.from_dict({**encoded, "labels": labels})

    def load() -> Any:
        if train.names is None:
            return AutoModelForSequenceClassification.from_pretrained(model, num_labels=1, problem_type="regression")
        return AutoModelForSequenceClassification.from_pretrained(
            model, num_labels=len(places), id2label=dict(enumerate(train.names)), label2id=places
        )

    encoded_train, encoded_tests = encode(train), {name: encode(test) for name, test in tests.items()}
    collator = DataCollatorWithPadding(tokenizer)

    def run(seed: int) -> dict[SetName, dict[str, float]]:
        logits = fine_tune(load, encoded_train, encoded_tests, collator, tokenizer, settings, seed)
        found = {}
        for name, test in encoded_tests.items():
            values = logits[name][0] if isinstance(logits[name], tuple) else logits[name]
            if train.names is None:
                found[name] = regression_scores(values[:, 0].tolist(), test["labels"][:])
            else:
                found[name] = classification_scores(values.argmax(-1).tolist(), test["labels"][:])
        return found

    task = "text-classification"
    return scores_of_seeds(task, seeds, {name: len(test) for name, test in tests.items()}, run, MAIN)


def _check_texts(values: list[Any], column: str) -> list[str]:
    wrong = [row for row, text in enumerate(values) if not isinstance(text, str) or not text.strip()]
    if wrong:
        raise ValueError(f"{len(wrong)} values of {column!r} are no text, the first in row {wrong[0]}")
    return values
