"""Problems, what a policy answered to them, the file that keeps it, and its scores.

Design decisions:

- One line of JSON a problem, with all of its samples: a line is written when its problem is done, and a run that was
  stopped goes on behind the last whole line. The first line holds the settings; a file of other settings is refused.
- A last line without a line break was cut off while it was written. Before a run goes on it is removed; where a file is
  only read and the line is not whole, it is left out, with a warning.
- Scoring takes the file alone, so that it can be repeated with another checker. Other programs' files need ``id``,
  ``answer`` and ``completions`` in each line, and no settings.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmbert_hf.evaluation.answers import Answer, AnswerChecker, get_checker
from mmbert_hf.evaluation.reasoning import ReasoningScores, reasoning_scores, vote_groups

__all__ = [
    "Problem",
    "Samples",
    "append_samples",
    "problems_from_rows",
    "read_samples",
    "resume_samples",
    "sampling_summary",
    "score_samples",
]

logger = logging.getLogger(__name__)

Prompt = str | list[dict[str, Any]]


@dataclass(frozen=True)
class Problem:
    """What to ask, and the right answer.

    Attributes:
        id: Name of the problem; the random numbers of its samples depend on it.
        prompt: A text to continue, or messages for the chat template, each with ``role`` and ``content``.
        answer: The right answer, or a solution that marks it.
    """

    id: str
    prompt: Prompt
    answer: str


@dataclass(frozen=True)
class Samples:
    """What a policy answered to one problem.

    Attributes:
        problem: The problem.
        completions: n texts.
        num_tokens: Of each completion; empty if it is not known.
        finished: Whether each completion ended by itself, and not at the limit of tokens; empty if it is not known.
    """

    problem: Problem
    completions: tuple[str, ...]
    num_tokens: tuple[int, ...] = ()
    finished: tuple[bool, ...] = ()


def problems_from_rows(
    rows: Iterable[Mapping[str, Any]],
    prompt_column: str = "prompt",
    answer_column: str = "answer",
    id_column: str | None = None,
) -> list[Problem]:
    """Make problems from the rows of a data set.

    Args:
        rows: Mappings, such as those of a `datasets.Dataset`.
        prompt_column: Texts, or lists of messages.
        answer_column: Texts or numbers.
        id_column: Names of the problems; where None, a name is made from the prompt, and does not depend on the order.

    Returns:
        The problems, in order.

    Raises:
        ValueError: There is no row, a column is missing, a value is of another kind or empty, or two problems have one
            name.

    Example:
        >>> problems_from_rows([{"q": "1 + 1 =", "a": 2, "nr": 7}], "q", "a", id_column="nr")
        [Problem(id='7', prompt='1 + 1 =', answer='2')]
    """
    problems: list[Problem] = []
    for number, row in enumerate(rows):
        columns = [prompt_column, answer_column, *([] if id_column is None else [id_column])]
        missing = [name for name in columns if row.get(name) is None]
        if missing:
            raise ValueError(
                f"row {number} has no {' and no '.join(map(repr, missing))}; its columns are {sorted(row)}"
            )
        prompt, answer = _checked_prompt(row[prompt_column], number), row[answer_column]
        if isinstance(answer, bool) or not isinstance(answer, str | int | float) or not str(answer).strip():
            raise ValueError(f"row {number}: {answer_column!r} must be a text or a number, got {answer!r}")
        name = _hash(prompt) if id_column is None else str(row[id_column])
        problems.append(Problem(name, prompt, str(answer)))
    check_problems(problems)
    return problems


def check_problems(problems: Sequence[Problem]) -> None:
    """Raise a ValueError if there is no problem, or if two have one name."""
    if not problems:
        raise ValueError("there is no problem: give at least one")
    _check_names(problems)


def resume_samples(path: str | Path, settings: Mapping[str, Any], problems: Sequence[Problem]) -> dict[str, Samples]:
    """Open a file of samples to go on: make it, or repair it, and return what of the problems it has already.

    Args:
        path: Made if it is not there. A last line that was cut off is removed.
        settings: Of the sampling; they have to be those of the file.
        problems: What is asked. Answers come from here, so that a mended one counts.

    Returns:
        Name of a problem -> its samples, for those of the problems that are done.

    Raises:
        ValueError: The file is of other settings, has another prompt under a name, or is damaged before its last line.

    Example:
        >>> import tempfile
        >>> path, problem = tempfile.mkdtemp() + "/samples.jsonl", Problem("a", "1 + 1 =", "2")
        >>> resume_samples(path, {"seed": 0}, [problem])
        {}
        >>> append_samples(path, Samples(problem, ("2", "3")))
        >>> resume_samples(path, {"seed": 0}, [problem])["a"].completions
        ('2', '3')
    """
    path = Path(path)
    settings = json.loads(json.dumps(settings))  # as it comes back: tuples are lists
    if path.exists():
        _remove_cut_off_line(path)
    if not path.exists() or path.stat().st_size == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        _append(path, {"settings": settings})
        return {}
    found, written = read_samples(path)
    _check_settings(path, found, settings)
    by_id = {samples.problem.id: samples for samples in written}
    done = {}
    for problem in problems:
        samples = by_id.get(problem.id)
        if samples is None:
            continue
        if samples.problem.prompt != json.loads(json.dumps(problem.prompt)):
            raise ValueError(f"{path} has another prompt under the name {problem.id!r}: give another file")
        done[problem.id] = Samples(problem, samples.completions, samples.num_tokens, samples.finished)
    return done


def append_samples(path: str | Path, samples: Samples) -> None:
    """Write the samples of one problem behind the others.

    Args:
        path: From `resume_samples`.
        samples: What to write.
    """
    problem = samples.problem
    row = {"id": problem.id, "prompt": problem.prompt, "answer": problem.answer, "completions": samples.completions}
    _append(Path(path), {**row, "num_tokens": samples.num_tokens, "finished": samples.finished})


def read_samples(path: str | Path) -> tuple[dict[str, Any], list[Samples]]:
    """Read a file of samples.

    Args:
        path: Lines of JSON. A last line that was cut off is left out, with a warning.

    Returns:
        The settings, empty if the file has none, and the samples of each problem in the order of the file.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A line is damaged or lacks a field, or a problem comes twice.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file of samples {str(path)!r}")
    settings: dict[str, Any] = {}
    found: list[Samples] = []
    for number, row in _rows(path):
        if number == 1 and isinstance(row.get("settings"), dict):
            settings = row["settings"]
            continue
        found.append(_samples_of(row, f"{path}, line {number}"))
    _check_names([samples.problem for samples in found])
    return settings, found


def score_samples(
    samples: Sequence[Samples], ks: Sequence[int], checker: str | AnswerChecker = "math", **bootstrap: Any
) -> ReasoningScores:
    """Check every completion, let equal answers vote together, and score.

    Args:
        samples: Of each problem.
        ks: Each at most the samples of the problem that has fewest.
        checker: "math" (needs math-verify), "exact", or an object with the methods of `AnswerChecker`.
        **bootstrap: ``resamples``, ``seed`` and ``confidence`` of `reasoning_scores`.

    Returns:
        The scores, in the order of the samples.

    Raises:
        ValueError: There are no samples, a k is out of range, a right answer is empty, or math-verify is missing.

    Example:
        >>> samples = Samples(Problem("a", "1 + 1 =", "2"), ("2", "3", "Answer: 2", ""))
        >>> scores = score_samples([samples], ks=[1, 2, 4], checker="exact")
        >>> scores.mean("avg@4"), scores.mean("pass@2").__round__(3), scores.mean("maj@4")
        (0.5, 0.833, 1.0)
    """
    checker = get_checker(checker) if isinstance(checker, str) else checker  # type: ignore[arg-type]
    fewest = min((len(each.completions) for each in samples), default=0)
    if not samples or not ks or not all(1 <= k <= fewest for k in ks):
        raise ValueError(
            f"got the k {list(ks)} for {len(samples)} problems with {fewest} samples or more: give at least one problem, "
            f"and each k from 1 to {fewest}"
        )
    correct, votes = zip(*(_checked(each, checker) for each in samples), strict=True)
    return reasoning_scores(correct, votes, ks, [each.problem.id for each in samples], **bootstrap)


def sampling_summary(samples: Sequence[Samples]) -> dict[str, float]:
    """How long the completions are, and how many were cut off.

    Args:
        samples: Of each problem.

    Returns:
        ``mean_tokens`` and ``truncated`` (a share), of the completions of which they are known; without any, left out.

    Example:
        >>> sampling_summary([Samples(Problem("a", "", "2"), ("2", "3 or"), (1, 2), (True, False))])
        {'mean_tokens': 1.5, 'truncated': 0.5}
    """
    tokens = [number for each in samples for number in each.num_tokens]
    finished = [flag for each in samples for flag in each.finished]
    summary = {"mean_tokens": sum(tokens) / len(tokens)} if tokens else {}
    return summary | ({"truncated": 1 - sum(finished) / len(finished)} if finished else {})


def _checked(samples: Samples, checker: AnswerChecker) -> tuple[list[bool], list[int]]:
    """Whether each completion is right, and the group of its answer; each text is looked at once."""
    reference = checker.reference(samples.problem.answer)
    texts = {text: checker.extract(text) for text in dict.fromkeys(samples.completions)}
    distinct: list[Answer] = list(dict.fromkeys(answer for answer in texts.values() if answer is not None))
    groups = dict(zip(distinct, vote_groups(distinct, checker.is_same), strict=True))
    right = {answer: checker.is_correct(answer, reference) for answer in distinct}
    answers = [texts[text] for text in samples.completions]
    correct = [answer is not None and right[answer] for answer in answers]
    return correct, [-1 if answer is None else groups[answer] for answer in answers]


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line numbers, from 1, and what is in the lines."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                if not line.endswith(b"\n"):
                    logger.warning("%s: line %d is cut off, and left out", path, number)
                    return
                raise ValueError(f"{path}, line {number}: damaged ({error}); restore it, or remove the line") from error
            if not isinstance(row, dict):
                raise ValueError(f"{path}, line {number}: expected an object, got {type(row).__name__}")
            yield number, row


def _samples_of(row: Mapping[str, Any], place: str) -> Samples:
    """One line as samples, checked."""
    missing = [name for name in ("id", "answer", "completions") if row.get(name) is None]
    if missing:
        raise ValueError(f"{place}: {', '.join(missing)} is missing; expected id, answer and completions")
    completions = row["completions"]
    if not isinstance(completions, list) or not completions or not all(isinstance(text, str) for text in completions):
        raise ValueError(f"{place}: completions must be a list of texts, with at least one")
    counts: dict[str, tuple[Any, ...]] = {name: tuple(row.get(name) or ()) for name in ("num_tokens", "finished")}
    for name, values in counts.items():
        if len(values) not in (0, len(completions)):
            raise ValueError(f"{place}: got {len(completions)} completions and {len(values)} values of {name}")
    problem = Problem(str(row["id"]), row.get("prompt", ""), str(row["answer"]))
    return Samples(problem, tuple(completions), counts["num_tokens"], counts["finished"])


def _check_settings(path: Path, found: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    different = [
        f"{name} {found.get(name)!r} and not {settings.get(name)!r}"
        for name in dict.fromkeys([*found, *settings])
        if found.get(name) != settings.get(name)
    ]
    if different:
        raise ValueError(
            f"{path} was sampled with {', '.join(different)}: give the same settings to go on, or another folder"
        )


def _remove_cut_off_line(path: Path) -> None:
    """Cut the file behind its last line break."""
    end = 0
    with path.open("rb+") as file:
        for line in file:
            if line.endswith(b"\n"):
                end += len(line)
        file.truncate(end)


def _append(path: Path, row: Mapping[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row, ensure_ascii=True) + "\n")


def _checked_prompt(prompt: Any, number: int) -> Prompt:
    if isinstance(prompt, str) and prompt.strip():
        return prompt
    is_chat = isinstance(prompt, Sequence) and not isinstance(prompt, str) and len(prompt) > 0
    if is_chat and all(isinstance(message, Mapping) and {"role", "content"} <= set(message) for message in prompt):
        return [dict(message) for message in prompt]
    raise ValueError(
        f"row {number}: a prompt must be a text, or a list of messages with role and content, got {str(prompt)[:80]!r}"
    )


def _check_names(problems: Sequence[Problem]) -> None:
    places: dict[str, int] = {}
    for number, problem in enumerate(problems):
        if problem.id in places:
            raise ValueError(
                f"the problems {places[problem.id]} and {number} have the name {problem.id!r}: name a column with "
                "different names, or leave out the problem that comes twice"
            )
        places[problem.id] = number


def _hash(prompt: Prompt) -> str:
    """A name that depends on the prompt alone."""
    return hashlib.sha256(json.dumps(prompt, sort_keys=True).encode()).hexdigest()[:16]
