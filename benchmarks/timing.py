"""Time of steps that alternate, and the interval of the median of their ratios.

Design decisions:

- Implementations take turns (A B A B ...), so that a machine that slows down slows both. Each turn gives one ratio,
  time of the baseline / our time: above 1 we are faster. Reported is the median of the ratios.
- The interval needs no distribution. Of n independent ratios sorted upwards, r(1) <= ... <= r(n), the number below the
  true median is binomial (n, 1/2), so [r(k), r(n+1-k)] covers it with probability 1 - 2 P(Binomial(n, 1/2) <= k-1).
  The largest k with at least 95 % is taken, and the exact probability is reported. n < 6 has no such k: even
  [r(1), r(5)] covers only 93.75 %.
- The garbage collector is off while timing and runs before: a collection would hit one implementation by chance, and
  what a step leaves behind is freed by reference counts.
"""

import gc
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch

__all__ = ["CONFIDENCE", "Interval", "alternate", "compare", "median_interval", "pairs_for", "seconds_of"]

CONFIDENCE = 0.95
FEWEST_PAIRS, MOST_PAIRS, TARGET_SECONDS = 15, 101, 15.0


class Interval(NamedTuple):
    """An interval of a median, and the probability that it covers it."""

    low: float
    high: float
    coverage: float


def median_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> Interval | None:
    """Distribution-free interval of the median (module docstring).

    Args:
        values: Independent observations, in any order.
        confidence: Smallest probability of covering the median.

    Returns:
        The shortest symmetric pair of order statistics that covers it, or None if there are too few values (fewer
        than 6 for 95 %).

    Raises:
        ValueError: If `confidence` is not between 0 and 1.

    Example:
        >>> median_interval([1.1, 1.2, 1.3, 1.4, 1.5, 1.6])
        Interval(low=1.1, high=1.6, coverage=0.96875)
        >>> median_interval([1.1, 1.2, 1.3, 1.4, 1.5]) is None
        True
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; it must be between 0 and 1, such as 0.95")
    ordered, count = sorted(values), len(values)
    best, outside = None, 0  # outside / 2^n: probability that the median lies below r(k), likewise above r(n+1-k)
    for k in range(1, count // 2 + 1):
        outside += math.comb(count, k - 1)
        coverage = 1 - 2 * outside / 2**count
        if coverage < confidence:
            break
        best = Interval(ordered[k - 1], ordered[count - k], coverage)
    return best


def pairs_for(round_seconds: float) -> int:
    """How many rounds to time if the user does not say: about fifteen seconds of them, from 15 to 101.

    Args:
        round_seconds: Time of one round, in which each implementation runs once.

    Returns:
        The number of rounds.

    Example:
        >>> pairs_for(20.0), pairs_for(0.3), pairs_for(0.001)
        (15, 50, 101)
    """
    return min(MOST_PAIRS, max(FEWEST_PAIRS, math.ceil(TARGET_SECONDS / max(round_seconds, 1e-9))))


def seconds_of(step: Callable[[], None], device: str = "cpu") -> float:
    """Time one step.

    Args:
        step: What to run.
        device: ``"cpu"``, or ``"cuda"`` to time with events on the stream and wait for the work to end.

    Returns:
        Seconds.

    Example:
        >>> seconds_of(lambda: time.sleep(0.01)) >= 0.01
        True
    """
    if device == "cpu":
        start = time.perf_counter()
        step()
        return time.perf_counter() - start
    torch.cuda.synchronize()
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    step()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1000


def alternate(steps: Mapping[str, Callable[[], None]], rounds: int, device: str = "cpu") -> dict[str, list[float]]:
    """Time steps in turns.

    Args:
        steps: What to run, by name; run in this order in each round.
        rounds: How often each runs.
        device: As for `seconds_of`.

    Returns:
        The seconds of every run, by name.

    Example:
        >>> order = []
        >>> seconds = alternate({name: lambda name=name: order.append(name) for name in "AB"}, rounds=2)
        >>> "".join(order), [len(times) for times in seconds.values()]
        ('ABAB', [2, 2])
    """
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    gc.collect()
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        for _ in range(rounds):
            for name, step in steps.items():
                seconds[name].append(seconds_of(step, device))
    finally:
        if was_enabled:
            gc.enable()
    return seconds


def compare(ours: Sequence[float], baseline: Sequence[float]) -> dict[str, Any]:
    """How many times faster we are, from paired times.

    Args:
        ours: Our seconds, one per round.
        baseline: The baseline's seconds in the same rounds.

    Returns:
        ``ratios`` (baseline / ours), ``median``, ``interval`` ([low, high] or None), ``coverage`` and ``note``, which
        says why there is no interval.

    Raises:
        ValueError: If there is not the same number of both, or none.

    Example:
        >>> result = compare([1.0, 1.0], [2.0, 3.0])
        >>> result["median"], result["interval"], result["note"]
        (2.5, None, '2 pairs: no 95 % interval of the median with fewer than 6')
    """
    if not ours or len(ours) != len(baseline):
        raise ValueError(f"got {len(ours)} and {len(baseline)} times; they must be pairs, at least one")
    ratios = [theirs / own for own, theirs in zip(ours, baseline, strict=True)]
    interval = median_interval(ratios)
    note = None if interval else f"{len(ratios)} pairs: no {CONFIDENCE:.0%} interval of the median with fewer than 6"
    return {
        "ratios": ratios,
        "median": statistics.median(ratios),
        "interval": [interval.low, interval.high] if interval else None,
        "coverage": interval.coverage if interval else None,
        "note": note.replace("%", " %") if note else None,
    }
