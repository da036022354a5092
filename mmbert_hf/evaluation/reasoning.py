"""Scores of a policy that answers each problem several times: pass@k, maj@k, avg@k, with intervals over problems.

Design decisions:

- pass@k is the unbiased estimate from all n samples of a problem, ``1 - C(n - c, k) / C(n, k)`` with c right ones (Chen
  et al. 2021, arXiv 2107.03374, eq. 1), as a product of k factors: no binomial coefficient overflows.
- avg@k and maj@k look at the first k samples. Where answers tie for the majority, maj@k is the expected accuracy under
  a uniformly random choice among them, computed and not drawn.
- A vote is the number of a group of equal answers, or -1. `vote_groups` makes the groups without the reference answer,
  which a majority vote must not see. Equality of answers need not be transitive (50 % equals 0.5 and 50): an answer
  joins the first group whose first member it equals. A group of right and wrong samples scores its share of right ones.
- Intervals come from drawing problems with replacement, which covers the spread of the problems and of the samples.

Shape legend: P problems, n samples of a problem (it may differ between problems).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from mmbert_hf.evaluation.retrieval import bootstrap_interval

__all__ = [
    "NO_ANSWER",
    "ReasoningScores",
    "avg_at_k",
    "bootstrap_interval",
    "maj_at_k",
    "pass_at_k",
    "reasoning_scores",
    "vote_groups",
]

NO_ANSWER = -1
METRICS = ("pass", "maj", "avg")

T = TypeVar("T")


def pass_at_k(num_samples: int | np.ndarray, num_correct: int | np.ndarray, k: int) -> np.ndarray:
    """Probability that one of k samples is right, estimated without bias for each problem.

    With n samples of which c are right it is ``1 - C(n - c, k) / C(n, k)``, the share of the subsets of k samples that
    hold a right one (Chen et al. 2021, arXiv 2107.03374, eq. 1), computed as ``1 - prod_j (n - c - j) / (n - j)`` over
    j = 0 ... k - 1.

    Args:
        num_samples: n, an integer or integers [P].
        num_correct: c, an integer or integers [P].
        k: How many samples count.

    Returns:
        float64 of the broadcast shape, from 0 to 1.

    Raises:
        ValueError: Not ``0 <= c <= n``, not ``1 <= k <= n``, or no integers.

    Example:
        >>> pass_at_k(4, np.array([0, 1, 2, 4]), k=2).round(4)
        array([0.    , 0.5   , 0.8333, 1.    ])
    """
    samples_P, correct_P = np.broadcast_arrays(
        _integers(num_samples, "num_samples"), _integers(num_correct, "num_correct")
    )
    wrong = (correct_P < 0) | (correct_P > samples_P)
    if wrong.any():
        raise ValueError(
            f"{int(wrong.sum())} problems have fewer than 0 or more right samples than samples, the first "
            f"{correct_P[wrong][0]} of {samples_P[wrong][0]}"
        )
    _check_k(k, samples_P)
    draws = np.arange(k)
    left = samples_P[..., None] - correct_P[..., None] - draws  # of fewer than k wrong ones, one factor is zero
    return 1.0 - np.prod(left / (samples_P[..., None] - draws), axis=-1)


def avg_at_k(correct: Sequence[Sequence[bool]] | np.ndarray, k: int) -> np.ndarray:
    """Share of right ones among the first k samples of each problem.

    Args:
        correct: For each problem whether each sample is right: P sequences, or [P, n].
        k: How many samples count.

    Returns:
        float64 [P].

    Raises:
        ValueError: `k` is below 1, or a problem has fewer samples.

    Example:
        >>> avg_at_k([[True, False, True], [False, False, True]], k=2)
        array([0.5, 0. ])
    """
    _check_k(k, np.array([len(row) for row in correct]))
    return np.array([np.mean(np.asarray(row[:k], dtype=bool)) for row in correct], dtype=np.float64)


def maj_at_k(
    votes: Sequence[Sequence[int]] | np.ndarray, correct: Sequence[Sequence[bool]] | np.ndarray, k: int
) -> np.ndarray:
    """Accuracy of the most frequent answer among the first k samples of each problem.

    Samples without an answer do not vote; where none of the k has an answer, the problem scores 0. Of answers that tie,
    each is chosen with the same probability, and the score is the expected one.

    Args:
        votes: For each problem the group of each sample's answer, from `vote_groups`: P sequences, or [P, n].
        correct: For each problem whether each sample is right, of the same shape.
        k: How many samples vote.

    Returns:
        float64 [P], from 0 to 1.

    Raises:
        ValueError: `k` is below 1 or above the samples of a problem, the shapes differ, or a sample without an answer
            is said to be right.

    Example:
        >>> votes = [[0, 1, 1, 2], [0, 1, 0, 1], [-1, -1, -1, 0]]
        >>> correct = [[False, True, True, False], [True, False, True, False], [False, False, False, True]]
        >>> maj_at_k(votes, correct, k=4), maj_at_k(votes, correct, k=3)
        (array([1. , 0.5, 1. ]), array([1., 1., 0.]))
    """
    _check_votes(votes, correct)
    _check_k(k, np.array([len(row) for row in votes]))
    return np.array([_majority(row[:k], right[:k]) for row, right in zip(votes, correct, strict=True)])


def vote_groups(answers: Sequence[T | None], is_same: Callable[[T, T], bool]) -> list[int]:
    """Number the answers to one problem, so that equal ones have one number.

    Args:
        answers: Answers in the order of the samples; None where a sample has none.
        is_same: Whether two answers are equal; asked about the first of a group and a new one.

    Returns:
        For each answer the number of its group, from 0 in order of appearance; -1 for None.

    Example:
        >>> vote_groups(["1", None, "2", "1.0"], lambda a, b: float(a) == float(b))
        [0, -1, 1, 0]
    """
    first: list[T] = []
    groups = []
    for answer in answers:
        if answer is None:
            groups.append(NO_ANSWER)
            continue
        number = next((number for number, other in enumerate(first) if is_same(other, answer)), len(first))
        if number == len(first):
            first.append(answer)
        groups.append(number)
    return groups


@dataclass(frozen=True, eq=False)
class ReasoningScores:
    """Scores of one policy on P problems.

    Attributes:
        problem_ids: Names of the problems.
        num_samples: int64 [P].
        num_correct: Right samples, int64 [P].
        num_answered: Samples with an answer, int64 [P].
        per_problem: "pass@k", "maj@k" and "avg@k" for each k -> float64 [P].
        intervals: The same names -> mean over problems, lower and upper end of its interval.
        confidence: Of the intervals.

    Example:
        >>> scores = reasoning_scores([[True, False], [False, False]], [[0, 1], [0, 0]], ks=[1, 2], resamples=100)
        >>> scores.mean("pass@1"), scores.mean("pass@2"), scores.per_problem["maj@2"]
        (0.25, 0.5, array([0.5, 0. ]))
    """

    problem_ids: tuple[str, ...]
    num_samples: np.ndarray
    num_correct: np.ndarray
    num_answered: np.ndarray
    per_problem: dict[str, np.ndarray]
    intervals: dict[str, tuple[float, float, float]]
    confidence: float

    def mean(self, metric: str) -> float:
        """Mean over problems of a metric, such as "pass@8".

        Args:
            metric: One of the names in `intervals`.

        Raises:
            ValueError: It was not computed.
        """
        if metric not in self.intervals:
            raise ValueError(f"there is no {metric!r}; computed were {', '.join(self.intervals)}")
        return self.intervals[metric][0]

    @property
    def ks(self) -> list[int]:
        """The k that were asked for, in their order."""
        return [int(name.partition("@")[2]) for name in self.per_problem if name.startswith("pass@")]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain numbers and texts: means with intervals, and a record for each problem."""
        counts = {name: getattr(self, name) for name in ("num_samples", "num_correct", "num_answered")}
        columns = {name: column.tolist() for name, column in {**counts, **self.per_problem}.items()}
        return {
            "num_problems": len(self.problem_ids),
            "confidence": self.confidence,
            "metrics": {
                name: dict(zip(("mean", "low", "high"), ends, strict=True)) for name, ends in self.intervals.items()
            },
            "problems": [
                {"id": problem, **{name: column[row] for name, column in columns.items()}}
                for row, problem in enumerate(self.problem_ids)
            ],
        }


def reasoning_scores(
    correct: Sequence[Sequence[bool]] | np.ndarray,
    votes: Sequence[Sequence[int]] | np.ndarray,
    ks: Sequence[int],
    problem_ids: Sequence[str] | None = None,
    *,
    resamples: int = 10_000,
    seed: int = 0,
    confidence: float = 0.95,
) -> ReasoningScores:
    """pass@k, maj@k and avg@k of every problem, their means, and bootstrap intervals over the problems.

    Args:
        correct: For each problem whether each sample is right: P sequences, or [P, n].
        votes: For each problem the group of each sample's answer, from `vote_groups`, of the same shape.
        ks: Each at least 1 and at most the samples of the problem that has fewest.
        problem_ids: Names of the problems; their numbers from 0 if None.
        resamples: How often the problems are drawn.
        seed: Of the draws.
        confidence: Share of the resampled means that lie inside an interval.

    Returns:
        The scores.

    Raises:
        ValueError: There is no problem or no k, a k is out of range, or the arguments do not fit together.

    Example:
        >>> scores = reasoning_scores([[True, True], [True, True]], [[0, 0], [0, 0]], ks=[2])
        >>> scores.intervals["maj@2"]
        (1.0, 1.0, 1.0)
    """
    if len(correct) == 0 or len(ks) == 0:
        raise ValueError(f"got {len(correct)} problems and {len(ks)} values of k: give at least one of each")
    _check_votes(votes, correct)
    names = [str(number) for number in range(len(correct))] if problem_ids is None else list(problem_ids)
    if len(names) != len(correct):
        raise ValueError(f"got {len(names)} names of {len(correct)} problems: give one a problem")
    num_samples = np.array([len(row) for row in correct], dtype=np.int64)
    num_correct = np.array([np.count_nonzero(row) for row in correct], dtype=np.int64)
    per_problem: dict[str, np.ndarray] = {}
    for k in dict.fromkeys(ks):
        values = (pass_at_k(num_samples, num_correct, k), maj_at_k(votes, correct, k), avg_at_k(correct, k))
        per_problem |= {f"{metric}@{k}": column for metric, column in zip(METRICS, values, strict=True)}
    return ReasoningScores(
        problem_ids=tuple(names),
        num_samples=num_samples,
        num_correct=num_correct,
        num_answered=np.array([np.count_nonzero(np.asarray(row) != NO_ANSWER) for row in votes], dtype=np.int64),
        per_problem=per_problem,
        intervals={
            name: bootstrap_interval(column, resamples, seed, confidence) for name, column in per_problem.items()
        },
        confidence=confidence,
    )


def _majority(votes: Sequence[int], correct: Sequence[bool]) -> float:
    """Expected accuracy of a random one of the most frequent answers."""
    counts = Counter(int(vote) for vote in votes if vote != NO_ANSWER)
    if not counts:
        return 0.0
    most = max(counts.values())
    right: Counter[int] = Counter(int(vote) for vote, is_right in zip(votes, correct, strict=True) if is_right)
    shares = [right[vote] / count for vote, count in counts.items() if count == most]
    return sum(shares) / len(shares)


def _integers(values: Any, name: str) -> np.ndarray:
    array = np.asarray(values)
    if array.dtype.kind not in "iu":
        raise ValueError(f"{name} must be integers, got {array.dtype}")
    return array.astype(np.int64)


def _check_k(k: int, num_samples: np.ndarray) -> None:
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    if num_samples.size and num_samples.min() < k:
        raise ValueError(
            f"k is {k}, but a problem has only {num_samples.min()} samples: draw more samples, or give a smaller k"
        )


def _check_votes(votes: Sequence[Any] | np.ndarray, correct: Sequence[Any] | np.ndarray) -> None:
    """As many votes as samples in every problem, and none right without an answer."""
    if [len(row) for row in votes] != [len(row) for row in correct]:
        raise ValueError("votes and correct have different numbers of problems or samples: give one vote a sample")
    for problem, (row, right) in enumerate(zip(votes, correct, strict=True)):
        if any(is_right and vote == NO_ANSWER for vote, is_right in zip(row, right, strict=True)):
            raise ValueError(f"problem {problem} has a sample without an answer (-1) that is said to be right")
