"""The annealed recipe as a value: phases in order, each with its languages, mask ratio, lengths and learning rate.

Design decisions:

- Inside a phase everything but the learning rate and the batch size is constant (mmBERT, arXiv 2509.06888, section 3),
  so the schedules over a whole run are step functions (`Piecewise`) read off the list of phases.
- A phase has a *share* of the run. What the run counts is the caller's choice: `AnnealingCallback` counts optimizer
  steps unless told otherwise, `StepPlan` counts tokens. So one recipe serves a run of any length: `scaled_to` changes
  one number, and warm-ups, which are shares of their phase, follow.
- The published recipes are in `mmbert_hf.presets`.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

from mmbert_hf.schedules import Constant, Piecewise, Schedule, Trapezoid, check_fraction
from mmbert_hf.special_tokens import NUM_SPECIAL_TOKENS

UNCHANGED = Constant(1.0)
MIN_ROW_TOKENS = NUM_SPECIAL_TOKENS + 1


@dataclass(frozen=True)
class Phase:
    """One phase of the annealed recipe (mmBERT, section 3).

    Attributes:
        name: For logs and plots.
        share: Fraction of the run spent here, in (0, 1]: of its steps or its tokens, whichever the run counts.
        languages: The languages sampled from; a later phase keeps all earlier ones. None: all that the data has.
        language_temperature: Exponent tau of the sampling probabilities, in [0, 1].
        mask_ratio: Fraction of tokens to predict, in [0, 1].
        max_length: Longest row, in tokens, special tokens included.
        rope_theta: RoPE base of global and local layers; the recipe raises both when the context grows.
        learning_rate: Peak of the phase; None leaves it to the trainer.
        learning_rate_schedule: Factor on the peak over the progress of the *phase*.
        weight_decay: Fully decoupled: the fraction that a weight loses in a step at the peak learning rate.
        batch_rows: Packed rows that one optimizer step reads; None leaves it to the trainer.
        min_batch_rows: Rows of the first step, where the batch size warms up.
        batch_warmup: Fraction of the phase's tokens over which the batch grows from `min_batch_rows` to `batch_rows`.

    Raises:
        ValueError: For a value out of range; the message names the phase.
    """

    name: str
    share: float
    languages: Sequence[str] | None
    language_temperature: float
    mask_ratio: float
    max_length: int = 1024
    rope_theta: float = 10_000.0
    learning_rate: float | None = None
    learning_rate_schedule: Schedule = UNCHANGED
    weight_decay: float = 8e-5
    batch_rows: int | None = None
    min_batch_rows: int | None = None
    batch_warmup: float = 0.0

    def __post_init__(self) -> None:
        where = f"phase {self.name!r}"
        if not 0.0 < self.share <= 1.0:
            raise ValueError(f"{where}: share must be in (0, 1], got {self.share}")
        for name in ("language_temperature", "mask_ratio", "batch_warmup", "weight_decay"):
            check_fraction(f"{where}: {name}", getattr(self, name))
        if self.languages is not None and not self.languages:
            raise ValueError(f"{where} has no languages; name at least one")
        if self.max_length < MIN_ROW_TOKENS:
            raise ValueError(f"{where}: max_length must be at least {MIN_ROW_TOKENS}, got {self.max_length}")
        if self.learning_rate is not None and not 0.0 < self.learning_rate < math.inf:
            raise ValueError(f"{where}: learning_rate must be positive, got {self.learning_rate}")
        for name in ("batch_rows", "min_batch_rows"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{where}: {name} must be at least 1, got {getattr(self, name)}")
        if (self.min_batch_rows or 1) > (self.batch_rows or math.inf):
            raise ValueError(f"{where}: min_batch_rows {self.min_batch_rows} is more than batch_rows {self.batch_rows}")


@dataclass(frozen=True)
class Recipe:
    """Phases in order, with the schedules that follow from them.

    Args:
        phases: At least one. Shares sum to 1; languages and max_length never shrink, temperature and mask ratio never
            rise from one phase to the next.
        total_tokens: Tokens in the run, if it counts tokens.

    Raises:
        ValueError: When the phases do not grow; the message names the phase, the value and the fix.

    Example:
        >>> recipe = Recipe([
        ...     Phase("pretrain", 0.6, ["eng", "deu"], language_temperature=0.7, mask_ratio=0.30, max_length=1024),
        ...     Phase("extend", 0.25, ["eng", "deu", "dan"], 0.5, 0.15, max_length=8192, rope_theta=160_000.0),
        ...     Phase("decay", 0.15, ["eng", "deu", "dan", "fao"], 0.3, 0.05, max_length=8192, rope_theta=160_000.0),
        ... ])
        >>> recipe.at(0.9).name, recipe.mask_ratio.at(0.7), recipe.languages.at(0.0)
        ('decay', 0.15, ['eng', 'deu'])
    """

    phases: Sequence[Phase]
    total_tokens: int | None = None
    boundaries: tuple[float, ...] = field(init=False)

    def __post_init__(self) -> None:
        if not self.phases:
            raise ValueError("a recipe needs at least one phase, got none")
        total = math.fsum(phase.share for phase in self.phases)
        if abs(total - 1.0) > 1e-9:
            raise ValueError(f"the shares of the phases must sum to 1, got {total:.6g}")
        if self.total_tokens is not None and self.total_tokens < 1:
            raise ValueError(f"total_tokens must be at least 1, got {self.total_tokens}")
        for before, after in pairwise(self.phases):
            _check_growth(before, after)
        cumulative = [math.fsum(phase.share for phase in self.phases[:i]) for i in range(1, len(self.phases))]
        object.__setattr__(self, "boundaries", tuple(cumulative))

    def at(self, progress: float) -> Phase:
        """Return the phase that `progress` lies in."""
        return Piecewise(list(self.phases), self.boundaries).at(progress)

    def first_steps(self, total_steps: int) -> list[int]:
        """Return the first optimizer step of each phase in a run of `total_steps`: where `at` changes its answer.

        >>> Recipe([Phase("a", 0.9, ["eng"], 0.7, 0.3), Phase("b", 0.1, ["eng"], 0.3, 0.05)]).first_steps(50)
        [0, 45]
        """
        return [0, *(_first_step_at(boundary, total_steps) for boundary in self.boundaries)]

    def scaled_to(self, total_tokens: int) -> "Recipe":
        """Return the same recipe over another number of tokens: phases and warm-ups keep their proportions."""
        return replace(self, total_tokens=total_tokens)

    def only(self, *names: str) -> "Recipe":
        """Return the recipe of some phases alone, with the tokens that they have here.

        >>> from mmbert_hf.presets import get_preset
        >>> decay = get_preset("mmbert-base-paper").recipe.only("decay")
        >>> decay.phases[0].share, decay.total_tokens
        (1.0, 100000000000)
        """
        known = [phase.name for phase in self.phases]
        unknown = [name for name in names if name not in known]
        if unknown or not names:
            raise ValueError(f"the recipe has the phases {', '.join(known)}; got {', '.join(unknown) or 'none'}")
        chosen = [phase for phase in self.phases if phase.name in names]
        share = math.fsum(phase.share for phase in chosen)
        phases = [replace(phase, share=phase.share / share) for phase in chosen]
        total = None if self.total_tokens is None else round(self.total_tokens * share)
        return Recipe(phases, total)

    def with_languages(self, languages: Sequence[Sequence[str] | None]) -> "Recipe":
        """Return the recipe with the languages of each phase set, in order."""
        phases = [
            replace(phase, languages=None if active is None else list(active))
            for phase, active in zip(self.phases, languages, strict=True)
        ]
        return replace(self, phases=phases)

    def _piecewise(self, name: str) -> Piecewise:
        return Piecewise([getattr(phase, name) for phase in self.phases], self.boundaries)

    @property
    def languages(self) -> Piecewise:
        """The active languages over progress."""
        return self._piecewise("languages")

    @property
    def language_temperature(self) -> Piecewise:
        """The sampling temperature over progress."""
        return self._piecewise("language_temperature")

    @property
    def mask_ratio(self) -> Piecewise:
        """The mask ratio over progress."""
        return self._piecewise("mask_ratio")

    @property
    def max_length(self) -> Piecewise:
        """The longest row over progress, in tokens."""
        return self._piecewise("max_length")

    @property
    def rope_theta(self) -> Piecewise:
        """The RoPE base over progress."""
        return self._piecewise("rope_theta")

    def as_dict(self) -> dict[str, Any]:
        """Return the recipe as JSON types; schedules as their printed form."""
        phases = [
            {
                name: repr(value)
                if isinstance(value, Schedule)
                else list(value)
                if name == "languages" and value
                else value
                for name, value in vars(phase).items()
            }
            for phase in self.phases
        ]
        return {"total_tokens": self.total_tokens, "phases": phases}


def describe(recipe: Recipe) -> str:
    """Return a recipe as a table for a terminal, one column per phase.

    >>> from mmbert_hf.presets import get_preset
    >>> print(describe(get_preset("tiny").recipe).splitlines()[1].split())
    ['tokens', '12,000,000', '4,000,000', '4,000,000']
    """
    total = recipe.total_tokens
    rows: list[tuple[str, list[str]]] = [
        ("phase", [phase.name for phase in recipe.phases]),
        (
            "tokens",
            [f"{phase.share:.1%}" if total is None else f"{round(total * phase.share):,}" for phase in recipe.phases],
        ),
    ]
    for label, name in (
        ("language temperature", "language_temperature"),
        ("mask ratio", "mask_ratio"),
        ("tokens per row", "max_length"),
        ("RoPE base", "rope_theta"),
        ("learning rate", "learning_rate"),
        ("weight decay", "weight_decay"),
        ("rows per step", "batch_rows"),
    ):
        values = [getattr(phase, name) for phase in recipe.phases]
        rows.append((label, ["-" if value is None else f"{value:,g}" for value in values]))
    rows.append(("learning-rate shape", [_shape(phase.learning_rate_schedule) for phase in recipe.phases]))
    rows.append(("batch warm-up", [_batch_warmup(phase, total) for phase in recipe.phases]))
    languages = ["all" if phase.languages is None else str(len(phase.languages)) for phase in recipe.phases]
    rows.append(("languages", languages))
    widths = [max(len(cells[column]) for _, cells in rows) for column in range(len(recipe.phases))]
    lines = [
        f"{label:22} " + "  ".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
        for label, cells in rows
    ]
    return "\n".join(lines)


def _shape(schedule: Schedule) -> str:
    if isinstance(schedule, Trapezoid):
        parts = [f"{schedule.warmup:.2%} warm-up"] if schedule.warmup else []
        parts += [f"{schedule.shape} to {schedule.final:.0%}"] if schedule.decay else []
        return ", ".join(parts) or "constant"
    return "constant" if isinstance(schedule, Constant) else type(schedule).__name__


def _batch_warmup(phase: Phase, total_tokens: int | None) -> str:
    if not phase.batch_warmup or phase.min_batch_rows is None:
        return "none"
    share = f"{phase.batch_warmup:.2%}"
    tokens = share if total_tokens is None else f"{round(total_tokens * phase.share * phase.batch_warmup):,} tokens"
    return f"from {phase.min_batch_rows} in {tokens}"


def _first_step_at(boundary: float, total_steps: int) -> int:
    """Return the smallest step with ``step / total_steps >= boundary``, as floating point sees it."""
    step = math.ceil(boundary * total_steps)
    while (step - 1) / total_steps >= boundary:
        step -= 1
    while step / total_steps < boundary:
        step += 1
    return step


def _check_growth(before: Phase, after: Phase) -> None:
    where = f"phase {after.name!r} after {before.name!r}"
    if before.languages is None and after.languages is not None:
        raise ValueError(f"{where} names languages while {before.name!r} has all; languages only grow")
    lost: Iterable[str] = sorted(set(before.languages or ()) - set(after.languages or before.languages or ()))
    if lost:
        raise ValueError(f"{where} drops {', '.join(lost)}; languages only grow: add them to {after.name!r} as well")
    if after.max_length < before.max_length:
        raise ValueError(f"{where}: max_length falls from {before.max_length} to {after.max_length}; it may only grow")
    for name in ("language_temperature", "mask_ratio"):
        old, new = getattr(before, name), getattr(after, name)
        if new > old:
            raise ValueError(f"{where}: {name} rises from {old} to {new}; in an annealed recipe it may only fall")
