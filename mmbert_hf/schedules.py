"""What changes during training, as values: ``schedule.at(progress)``.

Design decisions:

- A schedule is an immutable value with one method, `at`. `progress` is the fraction of the run that is done, 0 at the
  start and 1 at the end, in whatever the caller counts (steps or tokens). So a schedule can be printed, plotted and
  tested without training, scales to any budget and needs no state to resume.
- The annealed recipe (`mmbert_hf.recipes`) is a list of phases, whose schedules are step functions (`Piecewise`).
- The learning rate is a trapezoid: linear warm-up, stable, decay (ModernBERT training code). Its decay is
  ``1 - sqrt``: steep first, then flat, which is not the "inverse square root" of other schedulers.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal, Protocol, runtime_checkable


@runtime_checkable
class Schedule(Protocol):
    """Anything with ``at(progress)``, progress in [0, 1]."""

    def at(self, progress: float) -> Any:
        """Return the value when the fraction `progress` of the run is done."""
        ...


def one_minus_sqrt(fraction: float, final: float = 0.0) -> float:
    """The 1-sqrt decay: ``final + (1 - final) * (1 - sqrt(fraction))``.

    Args:
        fraction: How much of the decay is done, in [0, 1].
        final: Value at the end, relative to the value at the start.

    Returns:
        1 at the start of the decay, `final` at its end.
    """
    return final + (1.0 - final) * (1.0 - math.sqrt(fraction))


def linear_decay(fraction: float, final: float = 0.0) -> float:
    """The linear decay: ``1 - fraction * (1 - final)``; arguments and result as in `one_minus_sqrt`."""
    return 1.0 - fraction * (1.0 - final)


DECAYS: dict[str, Callable[[float, float], float]] = {"1-sqrt": one_minus_sqrt, "linear": linear_decay}


@dataclass(frozen=True)
class Constant:
    """The same value throughout.

    >>> Constant(0.3).at(0.9)
    0.3
    """

    value: Any

    def at(self, progress: float) -> Any:
        """Return the value; `progress` is checked to lie in [0, 1]."""
        check_fraction("progress", progress)
        return self.value


@dataclass(frozen=True)
class Linear:
    """From `start` at progress 0 to `end` at progress 1 in a straight line.

    A step has the value at its start, so the last of n steps has the one at ``(n - 1) / n``.

    >>> Linear(0.30, 0.05).at(0.5)
    0.175
    """

    start: float
    end: float

    def at(self, progress: float) -> float:
        """Return ``start + progress * (end - start)``."""
        return self.start + check_fraction("progress", progress) * (self.end - self.start)


@dataclass(frozen=True)
class Piecewise:
    """A step function: ``values[i]`` from ``boundaries[i - 1]`` (included) up to ``boundaries[i]`` (excluded).

    >>> mask_ratio = Piecewise([0.30, 0.15, 0.05], boundaries=[0.6, 0.8])
    >>> mask_ratio.at(0.0), mask_ratio.at(0.6), mask_ratio.at(1.0)
    (0.3, 0.15, 0.05)
    """

    values: Sequence[Any]
    boundaries: Sequence[float]

    def __post_init__(self) -> None:
        if len(self.boundaries) != len(self.values) - 1:
            raise ValueError(
                f"{len(self.values)} values need {len(self.values) - 1} boundaries between them, got {self.boundaries}"
            )
        if list(self.boundaries) != sorted(set(self.boundaries)) or not all(0.0 < b < 1.0 for b in self.boundaries):
            raise ValueError(f"boundaries must rise strictly inside (0, 1), got {list(self.boundaries)}")

    def at(self, progress: float) -> Any:
        """Return the value of the piece that `progress` lies in."""
        return self.values[bisect_right(self.boundaries, check_fraction("progress", progress))]


@dataclass(frozen=True)
class Trapezoid:
    """The learning-rate factor of the recipe: linear warm-up from 0, stable at 1, decay to `final`.

    With ``t`` the progress: ``t / warmup`` up to `warmup`; 1 up to ``1 - decay``; then the decay at
    ``f = (t - (1 - decay)) / decay`` (ModernBERT training code).

    Args:
        warmup: Fraction of the run spent warming up.
        decay: Fraction of the run spent decaying.
        final: Factor at the very end (the paper: 0.02 for base with 1-sqrt, 0.04 for small with linear).
        shape: ``"1-sqrt"`` or ``"linear"``.

    Raises:
        ValueError: For fractions outside [0, 1], warm-up and decay that overlap, or an unknown shape.

    Example:
        >>> rate = Trapezoid(warmup=0.1, decay=0.25, final=0.02)
        >>> rate.at(0.05), rate.at(0.5), round(rate.at(0.8125), 3), rate.at(1.0)
        (0.5, 1.0, 0.51, 0.02)
    """

    warmup: float = 0.0
    decay: float = 0.0
    final: float = 0.0
    shape: Literal["1-sqrt", "linear"] = "1-sqrt"

    def __post_init__(self) -> None:
        for name in ("warmup", "decay", "final"):
            check_fraction(name, getattr(self, name))
        if self.warmup + self.decay > 1.0:
            raise ValueError(
                f"warm-up and decay overlap: warmup {self.warmup} + decay {self.decay} > 1; shorten one of them"
            )
        if self.shape not in DECAYS:
            raise ValueError(f"unknown decay shape {self.shape!r}; expected one of {', '.join(map(repr, DECAYS))}")

    def at(self, progress: float) -> float:
        """Return the factor on the peak learning rate."""
        progress = check_fraction("progress", progress)
        if progress < self.warmup:
            return progress / self.warmup
        if progress <= 1.0 - self.decay:
            return 1.0
        return DECAYS[self.shape](min(1.0, (progress - (1.0 - self.decay)) / self.decay), self.final)


def learning_rate_lambda(schedule: Schedule, total_steps: int) -> Callable[[int], float]:
    """Turn a schedule into the function that `torch.optim.lr_scheduler.LambdaLR` wants.

    Args:
        schedule: Gives the factor on the peak learning rate.
        total_steps: Optimizer steps of the whole run; later steps keep the final value.

    Returns:
        A function from the step number to the factor.

    Example:
        >>> factor = learning_rate_lambda(Trapezoid(warmup=0.5), total_steps=100)
        >>> factor(0), factor(25), factor(400)
        (0.0, 0.5, 1.0)
    """
    if total_steps < 1:
        raise ValueError(f"total_steps must be at least 1, got {total_steps}")
    return lambda step: float(schedule.at(min(1.0, step / total_steps)))


def as_schedule(value: Any) -> Schedule:
    """Return `value` itself if it has ``at``, else a `Constant` of it."""
    return value if isinstance(value, Schedule) else Constant(value)


def check_fraction_schedule(name: str, schedule: Schedule) -> Schedule:
    """Return `schedule` if it stays in [0, 1] at the start, in the middle and at the end, or raise a ValueError."""
    if isinstance(schedule, Constant):
        check_fraction(name, schedule.value)
        return schedule
    for progress in (0.0, 0.5, 1.0):
        check_fraction(f"{name} at progress {progress}", schedule.at(progress))
    return schedule


def check_fraction(name: str, value: Any) -> float:
    """Return `value` as a float in [0, 1], or raise a ValueError that names it. NaN is refused."""
    if isinstance(value, bool) or not isinstance(value, Real) or not 0.0 <= float(value) <= 1.0:
        raise ValueError(f"{name} must be a number in [0, 1], got {value!r}")
    return float(value)
