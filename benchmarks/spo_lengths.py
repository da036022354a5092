"""How long trajectories take: laws with a long tail, with lengths that belong to the prompt or to chance.

Design decisions:

- A length is the time that a trajectory keeps a slot of an engine. The unit is the median length (stragglers: the median
  length of the others).
- Engines stop at a number of tokens, so lengths are cut at `LONGEST`. That also gives every mean a finite variance.

Shapes: P prompts, G trajectories of each.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np

__all__ = ["LONGEST", "Law", "draw", "expected_batch_time", "quantile"]

LONGEST = 64.0  # medians
STRAGGLER_SHARE = 0.1
KINDS = ("lognormal", "pareto", "stragglers")


@dataclass(frozen=True)
class Law:
    """How long trajectories are.

    Attributes:
        kind: ``"lognormal"``; ``"pareto"``; ``"stragglers"``: one in ten, at random, takes a multiple of its time.
        parameter: Standard deviation of the logarithm; tail index; that multiple.
        body_spread: Of stragglers and others: standard deviation of the logarithm before the multiple.
        prompt_share: Share of the logarithm's variance that belongs to the prompt, so that some prompts are long for
            every trajectory. Lognormal lengths only.

    Raises:
        ValueError: If a value is out of its range.

    Example:
        >>> Law("lognormal", 1.08).prompt_share
        0.0
    """

    kind: str
    parameter: float
    body_spread: float = 0.2
    prompt_share: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind is {self.kind!r}; choose one of {', '.join(KINDS)}")
        if not self.parameter > 0 or self.body_spread < 0:
            raise ValueError(
                f"parameter is {self.parameter} and body_spread {self.body_spread}; give a positive and a non-negative"
            )
        if self.kind == "stragglers" and self.parameter < 1:
            raise ValueError(f"parameter is {self.parameter}; a straggler takes a multiple of 1 or more of its time")
        if not 0 <= self.prompt_share <= 1 or (self.prompt_share and self.kind != "lognormal"):
            raise ValueError(
                f"prompt_share is {self.prompt_share} for {self.kind} lengths; it is a share from 0 to 1, and other"
                " than 0 for lognormal lengths only"
            )


def draw(law: Law, rng: np.random.Generator, num_prompts: int, group_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw lengths, and how hard each prompt is.

    Args:
        law: The distribution.
        rng: Source of randomness.
        num_prompts: P.
        group_size: G.

    Returns:
        Lengths in medians, float64 (P, G), at most `LONGEST`; difficulties, standard normal, float64 (P,). Difficulties
        move lengths as far as ``prompt_share`` says.

    Example:
        >>> lengths, difficulties = draw(Law("pareto", 1.2), np.random.default_rng(0), 3, 8)
        >>> lengths.shape, difficulties.shape, bool(lengths.min() > 0.5)
        ((3, 8), (3,), True)
    """
    difficulty = rng.standard_normal(num_prompts)
    shape = (num_prompts, group_size)
    if law.kind == "pareto":
        lengths = (2 * (1 - rng.random(shape))) ** (-1 / law.parameter)
    elif law.kind == "stragglers":
        multiple = np.where(rng.random(shape) < STRAGGLER_SHARE, law.parameter, 1.0)
        lengths = multiple * np.exp(law.body_spread * rng.standard_normal(shape))
    else:
        own = np.sqrt(1 - law.prompt_share) * rng.standard_normal(shape)
        lengths = np.exp(law.parameter * (np.sqrt(law.prompt_share) * difficulty[:, None] + own))
    return np.minimum(lengths, LONGEST), difficulty


def quantile(law: Law, shares: np.ndarray) -> np.ndarray:
    """Return the lengths below which given shares of trajectories lie, without the cut at `LONGEST`.

    Args:
        law: The distribution, without a part of the prompt.
        shares: Strictly between 0 and 1, float64, any shape.

    Returns:
        Lengths in medians, float64, of that shape. Of stragglers with a spread: from the distribution function on a grid
        of 100,001 points, good to about six digits.

    Raises:
        ValueError: If lengths of a prompt are not independent.

    Example:
        >>> quantile(Law("pareto", 1.0), np.array([0.5, 0.75]))
        array([1., 2.])
    """
    from scipy.special import ndtr, ndtri

    if law.prompt_share:
        raise ValueError(f"prompt_share is {law.prompt_share}; lengths have this quantile function only if it is 0")
    if law.kind == "lognormal":
        return np.exp(law.parameter * ndtri(shares))
    if law.kind == "pareto":
        return (2 * (1 - shares)) ** (-1 / law.parameter)
    if not law.body_spread:
        return np.where(shares <= 1 - STRAGGLER_SHARE, 1.0, law.parameter)
    multiple, reach = np.log(law.parameter), 9 * law.body_spread
    logs = np.linspace(-reach, multiple + reach, 100_001)
    below = (1 - STRAGGLER_SHARE) * ndtr(logs / law.body_spread)
    below += STRAGGLER_SHARE * ndtr((logs - multiple) / law.body_spread)
    return np.exp(np.interp(shares, below, logs))


def expected_batch_time(law: Law, batch_size: int, num_launched: int, group_size: int) -> float:
    """Return the expected time until the first complete groups of a launch make a batch, from order statistics.

    The k-th smallest of n uniform numbers follows Beta(k, n + 1 - k), and the longest of G trajectories is the quantile at
    the G-th root of a uniform number.

    Args:
        law: The distribution, without a part of the prompt.
        batch_size: Trajectories in a batch, a multiple of the group size.
        num_launched: Trajectories launched together, a multiple of the group size.
        group_size: G.

    Returns:
        The time in medians, from 20,000 points of the Beta distribution.

    Raises:
        ValueError: If lengths of a prompt are not independent.

    Example:
        >>> round(expected_batch_time(Law("stragglers", 6.5, body_spread=0.0), 128, 256, 1), 3)
        1.0
    """
    needed, launched = batch_size // group_size, num_launched // group_size
    return float(quantile(law, _smallest_of_uniform(needed, launched) ** (1 / group_size)).mean())


@cache
def _smallest_of_uniform(rank: int, count: int) -> np.ndarray:
    from scipy.special import betaincinv

    return betaincinv(rank, count + 1 - rank, (np.arange(20_000) + 0.5) / 20_000)
