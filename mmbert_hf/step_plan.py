"""A run as a list of optimizer steps, known before it begins: phase, rows, learning rate and tokens of every step.

Design decisions:

- Tokens are counted by capacity: a step of 32 rows of 1024 tokens counts 32,768, whatever the packing left empty (under
  1 %). So every schedule is a function of the step number alone: nothing to count, nothing to communicate between
  ranks, nothing to restore on a resume.
- A value belongs to a step and is read off at the step's start.
- The rows of a step are divided evenly among its micro-batches (ranks x accumulated batches). So one process that
  accumulates two micro-batches and two processes do the same work on the same rows.
- Batch-size warm-up: sizes from the least to the full batch, and the tokens spent at size b are proportional to b, so
  that all sizes get about equally many steps (ModernBERT training code).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmbert_hf.recipes import Phase, Recipe


@dataclass(frozen=True)
class RowSpan:
    """The packed rows of one phase.

    Attributes:
        phase: Says how long rows are and how languages are drawn.
        first_row: Number of its first row in the run.
        num_rows: How many rows it has.
    """

    phase: Phase
    first_row: int
    num_rows: int


@dataclass(frozen=True)
class StepPlan:
    """Every optimizer step of a run. Made by `plan_steps`.

    Attributes:
        recipe: The phases, with ``total_tokens``.
        num_micro_batches: Parts that the rows of a step are divided into: ranks x accumulated batches.
        phase: Index into ``recipe.phases``; int32 [steps].
        rows: Packed rows of the step; int64 [steps].
        learning_rate: float64 [steps].
        first_row: Rows of all steps before; int64 [steps].
        tokens_before: Capacity of all steps before, in tokens; int64 [steps].
    """

    recipe: Recipe
    num_micro_batches: int
    phase: np.ndarray
    rows: np.ndarray
    learning_rate: np.ndarray
    first_row: np.ndarray
    tokens_before: np.ndarray

    @property
    def num_steps(self) -> int:
        """Optimizer steps in the run."""
        return len(self.rows)

    @property
    def num_rows(self) -> int:
        """Packed rows in the run."""
        return int(self.rows.sum())

    @property
    def num_tokens(self) -> int:
        """Capacity of all rows, in tokens."""
        return self.tokens_after(self.num_steps - 1)

    @property
    def spans(self) -> list[RowSpan]:
        """The rows of each phase, in order."""
        spans = []
        for index, phase in enumerate(self.recipe.phases):
            steps = np.flatnonzero(self.phase == index)
            spans.append(RowSpan(phase, int(self.first_row[steps[0]]), int(self.rows[steps].sum())))
        return spans

    @property
    def first_steps(self) -> list[int]:
        """The first step of each phase."""
        return [int(np.searchsorted(self.phase, index)) for index in range(len(self.recipe.phases))]

    def phase_at(self, step: int) -> Phase:
        """Return the phase of a step; behind the last step, the last phase."""
        return self.recipe.phases[int(self.phase[min(step, self.num_steps - 1)])]

    def tokens_after(self, step: int) -> int:
        """Return the capacity of all steps up to and with `step`, in tokens."""
        return int(self.tokens_before[step]) + int(self.rows[step]) * self.phase_at(step).max_length

    def values_at(self, step: int) -> dict[str, Any]:
        """Return what a step is made with, for logs: phase, rates, lengths and batch."""
        step = min(step, self.num_steps - 1)
        phase = self.phase_at(step)
        return {
            "phase": phase.name,
            "mask_ratio": phase.mask_ratio,
            "language_temperature": phase.language_temperature,
            "max_length": phase.max_length,
            "rope_theta": phase.rope_theta,
            "weight_decay": phase.weight_decay,
            "batch_rows": int(self.rows[step]),
        }

    def micro_batches(self) -> Iterator[list[int]]:
        """Yield the row numbers of every micro-batch of the run, in order."""
        for first, rows in zip(self.first_row.tolist(), self.rows.tolist(), strict=True):
            size = rows // self.num_micro_batches
            for start in range(first, first + rows, size):
                yield list(range(start, start + size))

    def as_dict(self) -> dict[str, Any]:
        """Return what the plan is made of, as JSON types: two runs with equal ones have equal steps."""
        return {
            **self.recipe.as_dict(),
            "num_steps": self.num_steps,
            "num_rows": self.num_rows,
            "num_micro_batches": self.num_micro_batches,
            "rows_per_step": [int(self.rows[self.phase == index].max()) for index in range(len(self.recipe.phases))],
        }


def plan_steps(
    recipe: Recipe,
    *,
    rows_per_step: int | Sequence[int] | None = None,
    num_micro_batches: int = 1,
    learning_rate: float | None = None,
) -> StepPlan:
    """Plan a run of ``recipe.total_tokens`` tokens.

    Args:
        recipe: The phases.
        rows_per_step: Rows in a full batch, one number or one per phase; the recipe's `batch_rows` if None. The least
            batch of a warm-up is scaled with it.
        num_micro_batches: Parts that a step's rows are divided into: ranks x accumulated batches.
        learning_rate: Peak in phases that name none.

    Returns:
        The plan. A phase's last step may pass its budget by up to half a step, or fall short of it by as much.

    Raises:
        ValueError: No number of tokens or rows, a phase that is shorter than one step, or a batch that does not divide
            into micro-batches.

    Example:
        >>> recipe = Recipe([Phase("only", 1.0, ["eng"], 0.7, 0.3, max_length=100, learning_rate=1e-3)], 10_000)
        >>> plan = plan_steps(recipe, rows_per_step=4, num_micro_batches=2)
        >>> plan.num_steps, plan.num_tokens, list(plan.micro_batches())[:3]
        (25, 10000, [[0, 1], [2, 3], [4, 5]])
    """
    if recipe.total_tokens is None:
        raise ValueError("the recipe has no number of tokens; give it one with recipe.scaled_to(200_000_000)")
    if num_micro_batches < 1:
        raise ValueError(f"num_micro_batches must be at least 1, got {num_micro_batches}")
    if rows_per_step is None or isinstance(rows_per_step, int):
        rows_per_step = [rows_per_step or phase.batch_rows or 0 for phase in recipe.phases]
    columns: list[tuple[np.ndarray, ...]] = []
    for index, (phase, full) in enumerate(zip(recipe.phases, rows_per_step, strict=True)):
        budget = round(recipe.total_tokens * phase.share)
        rows = _rows_of_phase(phase, budget, full, num_micro_batches)
        tokens = _before(rows * phase.max_length)
        peak = phase.learning_rate if phase.learning_rate is not None else learning_rate
        if peak is None:
            raise ValueError(f"phase {phase.name!r} names no learning rate; give plan_steps a learning_rate")
        factors = [phase.learning_rate_schedule.at(min(1.0, float(t) / budget)) for t in tokens]
        columns.append((np.full(len(rows), index, np.int32), rows, peak * np.array(factors), rows * phase.max_length))
    phases, rows, rates, capacity = (np.concatenate(parts) for parts in zip(*columns, strict=True))
    return StepPlan(recipe, num_micro_batches, phases, rows, rates, _before(rows), _before(capacity))


def warmup_sizes(least: int, full: int, multiple: int, warmup_tokens: int, max_length: int) -> np.ndarray:
    """Return the rows of every step of a batch-size warm-up (ModernBERT training code).

    Args:
        least: Rows of the first step.
        full: Rows behind the warm-up.
        multiple: Sizes are multiples of this; so are `least` and `full`.
        warmup_tokens: Tokens that the warm-up takes; size b gets the share ``b / sum of all sizes`` of them.
        max_length: Tokens in a row.

    Returns:
        int64 [steps of the warm-up]; empty for a warm-up of no tokens.

    Example:
        >>> warmup_sizes(2, 4, 1, warmup_tokens=180, max_length=10).tolist()
        [2, 2, 3, 3, 4, 4]
    """
    sizes = np.arange(least, full + 1, multiple)
    ends = warmup_tokens * np.cumsum(sizes) / sizes.sum()
    rows: list[int] = []
    done = 0
    while done < warmup_tokens:
        size = int(sizes[min(np.searchsorted(ends, done, side="right"), len(sizes) - 1)])
        rows.append(size)
        done += size * max_length
    return np.array(rows, dtype=np.int64)


def _rows_of_phase(phase: Phase, budget: int, full: int, multiple: int) -> np.ndarray:
    """Return the rows of every step of a phase: int64 [steps]."""
    where = f"phase {phase.name!r}"
    if full < 1:
        raise ValueError(f"{where} names no batch_rows; give plan_steps rows_per_step")
    if full % multiple:
        raise ValueError(
            f"{where}: {full} rows a step do not divide into {multiple} micro-batches (ranks x accumulated batches); "
            f"take {-(-full // multiple) * multiple} rows"
        )
    step_tokens = full * phase.max_length
    if budget < step_tokens / 2:
        raise ValueError(
            f"{where} does not fit: its budget of {budget:,} tokens is less than half a step of {full} rows x "
            f"{phase.max_length:,} tokens = {step_tokens:,}; raise the total tokens or take fewer rows a step"
        )
    rows: np.ndarray = np.empty(0, dtype=np.int64)
    if phase.batch_warmup and phase.min_batch_rows:
        least = full * phase.min_batch_rows / (phase.batch_rows or full)
        least = max(multiple, round(least / multiple) * multiple)
        rows = warmup_sizes(least, full, multiple, round(budget * phase.batch_warmup), phase.max_length)
    rest = budget - int(rows.sum()) * phase.max_length
    return np.concatenate([rows, np.full(max(0 if len(rows) else 1, round(rest / step_tokens)), full, np.int64)])


def _before(values: np.ndarray) -> np.ndarray:
    """Return the sum of all values before each: int64, the first is 0."""
    return np.concatenate([[0], np.cumsum(values)[:-1]]).astype(np.int64)
