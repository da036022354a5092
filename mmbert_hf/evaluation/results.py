"""What an evaluation found: scores as values, in a file, in a table, and as the ``model-index`` of a card.

Design decisions:

- A `Score` is one number with all that says what it is a number of. Nothing is averaged when it is stored: every seed has
  a score of its own, and means with their deviation are made for the table, the picture and the card.
- The file is written beside its place and moved there, so that it is whole or not there.
- In the card, a result is told from others by task, data set, split and metric. Written again it replaces what it was;
  what others wrote stays, and so does all else in the card.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mmbert_hf.output_folders import write_whole

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

__all__ = [
    "RESULTS_FILE",
    "EvaluationResults",
    "Score",
    "SetName",
    "add_to_card",
    "package_versions",
]

RESULTS_FILE = "results.json"
PACKAGES = ("torch", "transformers", "sentence-transformers", "datasets", "mteb", "mmbert-hf")
DECIMALS_IN_CARD = 4


class SetName(NamedTuple):
    """What a set that is measured on is called.

    Attributes:
        dataset: As `Score` has it, like the rest.
        language: Of its text.
        config: Part of the data set.
        split: Split of the data set.
    """

    dataset: str
    language: str | None = None
    config: str | None = None
    split: str | None = None


@dataclass(frozen=True)
class Score:
    """One number of one model.

    Attributes:
        task: Kind of task, by the name that the Hub or mteb has for it: "fill-mask", "token-classification", "STS".
        dataset: What it was measured on: owner/name on the Hub, the name of a file without its folder, a task of mteb.
        metric: Short name of the metric: "accuracy", "ndcg_at_10".
        value: The number.
        higher_is_better: Whether more is better.
        language: Code of the language, or of several with + between; None if it is not known.
        num_examples: Rows, queries or tokens that the number is over; None if it is not known.
        seed: Of the training behind it; None where nothing was trained.
        config: Part of the data set, such as a subset of a task of mteb.
        split: Split of the data set.
        is_main: Whether tables, pictures and cards show it; the others stand in the file alone.

    Raises:
        ValueError: The value is no finite number.

    Example:
        >>> Score("question-answering", "foqa", "exact_match", 0.5, language="fao").value
        0.5
    """

    task: str
    dataset: str
    metric: str
    value: float
    higher_is_better: bool = True
    language: str | None = None
    num_examples: int | None = None
    seed: int | None = None
    config: str | None = None
    split: str | None = None
    is_main: bool = True

    def __post_init__(self) -> None:
        if not float("-inf") < self.value < float("inf"):
            raise ValueError(f"{self.metric} of {self.dataset} is {self.value}, which is no finite number")

    @property
    def where(self) -> str:
        """Data set, its part, and the language, as rows of a table are named."""
        parts = [self.dataset, self.config if self.config not in (None, "default") else None, self.language]
        return " ".join(dict.fromkeys(part for part in parts if part))


@dataclass(frozen=True)
class Summary:
    """A score over its seeds.

    Attributes:
        score: With the mean as its value, and without seed.
        deviation: Standard deviation over the seeds, with n - 1 below; None for one seed.
        num_seeds: How many.
    """

    score: Score
    deviation: float | None
    num_seeds: int

    @property
    def text(self) -> str:
        """Mean and deviation, as in a table.

        >>> Summary(Score("a", "b", "c", 0.5), 0.01, 3).text
        '0.5000 +- 0.0100'
        """
        mean = f"{self.score.value:.4f}"
        return mean if self.deviation is None else f"{mean} +- {self.deviation:.4f}"


@dataclass(frozen=True)
class EvaluationResults:
    """The scores of one model, and how they were made.

    Attributes:
        kind: What was evaluated, as `mmbert evaluate` calls it: "masked-loss", "mteb".
        model: Folder or Hub name.
        scores: All of them.
        settings: What could have been chosen otherwise; values that JSON can write.
        versions: Package -> version.

    Example:
        >>> scores = [Score("text-classification", "own.jsonl", "accuracy", v, seed=s) for s, v in enumerate((0.5, 0.7))]
        >>> results = EvaluationResults("classification", "tiny", scores)
        >>> print(results.table())
                           accuracy
        own.jsonl  0.6000 +- 0.1414
        >>> EvaluationResults.from_json(results.to_json()) == results
        True
    """

    kind: str
    model: str
    scores: Sequence[Score]
    settings: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=lambda: package_versions())

    def __post_init__(self) -> None:
        object.__setattr__(self, "scores", tuple(self.scores))

    def summaries(self, *, main: bool = True) -> list[Summary]:
        """The scores over their seeds, in the order of first occurrence.

        Args:
            main: Only those that tables show.
        """
        groups: dict[Score, list[float]] = {}
        for score in self.scores:
            if score.is_main or not main:
                groups.setdefault(replace(score, value=0.0, seed=None), []).append(score.value)
        return [
            Summary(
                replace(score, value=statistics.fmean(values)),
                statistics.stdev(values) if len(values) > 1 else None,
                len(values),
            )
            for score, values in groups.items()
        ]

    def table(self) -> str:
        """The main scores as text: a row for each data set and language, a column for each metric."""
        summaries = self.summaries()
        metrics = list(dict.fromkeys(each.score.metric for each in summaries))
        rows: dict[str, dict[str, str]] = {}
        for each in summaries:
            rows.setdefault(each.score.where, {})[each.score.metric] = each.text
        header = ["", *(metric.replace("_", " ") for metric in metrics)]
        body = [[name, *(cells.get(metric, "") for metric in metrics)] for name, cells in rows.items()]
        widths = [max(map(len, column)) for column in zip(header, *body, strict=True)]
        return "\n".join(
            "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
            for row in (header, *body)
        )

    def to_json(self) -> str:
        """All of it as JSON text; fields of a score that have no value are left out."""
        scores = [{name: value for name, value in asdict(score).items() if value is not None} for score in self.scores]
        content = {"kind": self.kind, "model": self.model, "settings": dict(self.settings),
                   "versions": dict(self.versions), "scores": scores}  # fmt: skip
        return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> EvaluationResults:
        """Read what `to_json` wrote.

        Raises:
            ValueError: It is something else.
        """
        try:
            content = json.loads(text)
            names = {each.name for each in fields(cls)}
            scores = [Score(**score) for score in content["scores"]]
            return cls(**{**{name: content[name] for name in names}, "scores": scores})
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"these are no results of mmbert evaluate: {error}") from error

    def save(self, folder: str | Path) -> Path:
        """Write ``results.json`` into a folder, which is made if it is not there. Returns the file."""
        return write_whole(Path(folder, RESULTS_FILE), self.to_json())

    @classmethod
    def load(cls, folder: str | Path) -> EvaluationResults:
        """Read ``results.json`` of a folder."""
        return cls.from_json(Path(folder, RESULTS_FILE).read_text(encoding="utf-8"))

    def to_eval_results(self) -> list[EvalResult]:
        """The main scores as they stand in ``model-index``: means over the seeds, rounded to four decimals."""
        from huggingface_hub import EvalResult

        results = []
        for each in self.summaries():
            score = each.score
            # the card is that of the encoder, the number that of its fine-tuned copies
            seeds = ", fine-tuned" if any(own.seed is not None for own in self.scores) else ""
            seeds += f", mean of {each.num_seeds} seeds" if each.num_seeds > 1 else ""
            config = "-".join(part for part in (score.config, score.language) if part)
            is_public = "/" in score.dataset or self.kind == "mteb"
            results.append(
                EvalResult(
                    task_type=score.task,
                    dataset_type=score.dataset if is_public else "custom",
                    dataset_name=score.where,
                    # results whose type, configuration and split agree become one, whatever their names
                    dataset_config=(config or "default")
                    if is_public
                    else "-".join(filter(None, (score.dataset, config))),
                    dataset_split=score.split,
                    metric_type=score.metric.replace("@", "_at_"),
                    metric_name=f"{score.metric.replace('_', ' ')}{seeds}",
                    metric_value=round(score.value, DECIMALS_IN_CARD),
                )
            )
        return results


def add_to_card(folder: str | Path, results: EvaluationResults) -> Path:
    """Write the main scores into the ``model-index`` of a model's README.md.

    Results of the same task, data set, split and metric are replaced. All other metadata, other results among them, and
    the text stay as they are. Without a README.md one is made that has metadata alone; `mmbert_hf.hub.publish` gives it
    a text.

    Args:
        folder: Of the model.
        results: Its scores.

    Returns:
        The README.md.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: The card's metadata cannot be read.
    """
    from huggingface_hub import ModelCardData
    from huggingface_hub.repocard import REGEX_YAML_BLOCK
    from huggingface_hub.utils import yaml_dump

    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}: results are added to the card of a model on this disk")
    card = folder / "README.md"
    text = card.read_bytes().decode("utf-8-sig") if card.is_file() else ""
    metadata = read_metadata(card)
    name, old = _read_model_index(metadata, card)
    merged = {_identity(each): each for each in (*old, *results.to_eval_results())}
    data = ModelCardData(model_name=name or folder.resolve().name, eval_results=list(merged.values()))
    metadata["model-index"] = data.to_dict()["model-index"]
    line_break = "\r\n" if "\r\n" in text else "\n"
    block = f"---{line_break}{yaml_dump(metadata, sort_keys=False, line_break=line_break)}---{line_break}"
    match = REGEX_YAML_BLOCK.search(text)
    text = text[: match.start()] + block + text[match.end() :] if match else block + text
    return write_whole(card, text)


def check_card(folder: str | Path) -> None:
    """Refuse a card that `add_to_card` could not add to.

    Raises:
        ValueError: Its metadata, or its model-index, cannot be read.
    """
    card = Path(folder, "README.md")
    _read_model_index(read_metadata(card), card)


def read_metadata(card: str | Path) -> dict[str, Any]:
    """The metadata of a README.md; none if it is not there.

    Raises:
        ValueError: They are no YAML mapping.
    """
    import yaml
    from huggingface_hub.repocard import metadata_load

    try:
        return dict((metadata_load(card) if Path(card).is_file() else None) or {})
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"the metadata of {card} cannot be read, mend them first: {error}") from error


def package_versions(names: Iterable[str] = PACKAGES) -> dict[str, str]:
    """Versions of the installed ones of some packages, without importing them."""
    from importlib.metadata import PackageNotFoundError, version

    versions = {}
    for name in names:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def _read_model_index(metadata: Mapping[str, Any], card: Path) -> tuple[str | None, list[EvalResult]]:
    from huggingface_hub.repocard_data import model_index_to_eval_results

    index = metadata.get("model-index")
    if not index:
        return None, []
    try:
        if len(index) > 1:
            raise ValueError("it has several models")
        return model_index_to_eval_results(index)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"the model-index of {card} cannot be read, mend it first: {error}") from error


def _identity(result: EvalResult) -> tuple[Any, ...]:
    """What makes two results one."""
    return (*result.unique_identifier, result.dataset_name, result.metric_type)
