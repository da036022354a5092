"""Which prompts are answered next: weights from the tracker, draws from the weights, and a floor that nobody falls under.

Design decisions:

- A weight says how much a prompt is worth a visit. The paper's, sqrt(v (1 - v)), is largest in the middle and spends as
  much on solved prompts as on those that are not solved; "unsolved", 1 - v, does not.
- The paper adds 0.05 to every weight, which guarantees nothing: among many prompts of weight 0.5 it is little. Here a
  *share of the draws* is set apart and walks through all prompts, in a random order that is the same in every pass. With a
  share f, B draws a round and P prompts, everybody is visited at least once in any ceil(P / (f B)) rounds, whatever the
  weights say. (With a new order in every pass it would be twice as many: first in one pass, last in the next.)
- Draws are with replacement and stratified: one number from each of B equal slices of the cumulated weights. Each prompt
  is expected as often as with independent draws, and its number of draws varies less.
- Of more than `MOST_WEIGHED` prompts a round weighs only so many, one from each of as many equal slices of all: each is
  among them as often as every other, so its expected number of draws is what it was, and a round costs what it costs with
  `MOST_WEIGHED` prompts.
- Nothing is stored: draws are a function of (weights, seed, round), and the walk is a seeded permutation that can be
  entered anywhere. So all processes draw alike, and a resumed run goes on exactly.

Shape legend: P prompts, B draws of a round.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from mmbert_hf.trainers.spo.tracker import ValueTracker

from mmbert_hf.data.permutation import IndexPermutation

__all__ = ["SAMPLING", "draw_prompts", "floor_draws", "prompt_weights", "stratified_draws"]

Sampling = Literal["unsolved", "bernoulli", "thompson", "uniform"]
SAMPLING = ("unsolved", "bernoulli", "thompson", "uniform")
MOST_WEIGHED = 65_536


def prompt_weights(
    tracker: ValueTracker,
    sampling: Sampling,
    *,
    rows: np.ndarray | None = None,
    weight_offset: float = 0.05,
    n_eff_power: float = 0.0,
    rng: np.random.Generator | None = None,
) -> np.ndarray:
    """How much each prompt is worth a visit.

    With v scaled to [0, 1] by the range of the rewards:

    - "unsolved": 1 - v
    - "bernoulli": sqrt(v (1 - v)), the paper's; for other rewards the running standard deviation, in the same scale
    - "thompson": 1 - u, with u drawn from what is known of v: Beta(v N, (1 - v) N), or a normal distribution
    - "uniform": 1

    divided by N_eff to the power of `n_eff_power`, plus `weight_offset` (arXiv 2509.13232, section 3.3, has "bernoulli",
    0.05).

    Args:
        tracker: P prompts.
        sampling: One of these.
        rows: int [P'], the prompts to weigh; all if None.
        weight_offset: Added to every weight.
        n_eff_power: The paper's gamma.
        rng: For "thompson".

    Returns:
        float64 [P'], at least 0.

    Raises:
        ValueError: `sampling` is unknown, or "thompson" comes without `rng`.

    Example:
        >>> tracker = ValueTracker(2)
        >>> tracker.update([0], [1.0])
        >>> prompt_weights(tracker, "unsolved", weight_offset=0.0).round(3)
        array([0.333, 0.5  ])
    """
    rows = np.arange(len(tracker)) if rows is None else rows
    if sampling == "uniform":
        return np.ones(len(rows))
    if sampling == "bernoulli":
        low, high = tracker.reward_range
        weights = tracker.deviations_at(rows) / (high - low if high > low else 1.0)
    elif sampling == "unsolved":
        weights = 1 - _scaled(tracker.values_at(rows), tracker)
    elif sampling == "thompson":
        if rng is None:
            raise ValueError("sampling='thompson' draws values: give rng")
        weights = 1 - _scaled(_plausible_values(tracker, rows, rng), tracker)
    else:
        raise ValueError(f"sampling must be one of {', '.join(SAMPLING)}, got {sampling!r}")
    if n_eff_power:
        weights = weights / tracker.weights[rows] ** n_eff_power
    return weights + weight_offset


def _scaled(values: np.ndarray, tracker: ValueTracker) -> np.ndarray:
    low, high = tracker.reward_range
    if not high > low:  # nothing seen yet, or one reward only
        return np.full(len(values), 0.5)
    return np.clip((values - low) / (high - low), 0.0, 1.0)


def _plausible_values(tracker: ValueTracker, rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    values, known = tracker.values_at(rows), tracker.weights[rows]
    if tracker.kind == "average":
        return np.asarray(rng.normal(values, tracker.deviations_at(rows) / np.sqrt(known)))
    tiny = 1e-6  # both parameters of a Beta distribution must be above 0
    return np.asarray(rng.beta(values * known + tiny, (1 - values) * known + tiny))


def _weighed(num_prompts: int, rng: np.random.Generator) -> np.ndarray:
    """The prompts that a round looks at."""
    if num_prompts <= MOST_WEIGHED:
        return np.arange(num_prompts)
    places = (np.arange(MOST_WEIGHED) + rng.random(MOST_WEIGHED)) * (num_prompts / MOST_WEIGHED)
    return np.minimum(places.astype(np.int64), num_prompts - 1)


def stratified_draws(weights: np.ndarray, num_draws: int, rng: np.random.Generator) -> np.ndarray:
    """Draw indices with probability proportional to their weight, one from each of `num_draws` equal slices.

    Args:
        weights: float [P], at least 0; if all are 0, they count as equal.
        num_draws: B.
        rng: Where the numbers come from.

    Returns:
        int64 [B] in random order. Index i is expected B w_i / sum(w) times, and comes less than 2 times off.
    """
    cumulated = np.cumsum(weights)
    if cumulated[-1] == 0:
        cumulated = np.arange(1, len(weights) + 1, dtype=np.float64)
    places = (np.arange(num_draws) + rng.random(num_draws)) * (cumulated[-1] / num_draws)
    drawn = np.searchsorted(cumulated, places, side="right")
    return rng.permutation(np.minimum(drawn, len(weights) - 1)).astype(np.int64)


def floor_draws(num_prompts: int, start: int, number: int, seed: int, *, reshuffled: bool = False) -> np.ndarray:
    """Take the next steps of an endless walk through all prompts in random order, pass by pass.

    Args:
        num_prompts: P.
        start: How many steps were taken before.
        number: How many are taken now.
        seed: Of the orders.
        reshuffled: Whether each pass has an order of its own.

    Returns:
        int64 [number]. Any P steps (if reshuffled, those of one pass) contain every prompt once.

    Example:
        >>> sorted(floor_draws(4, 0, 4, seed=1).tolist()), len(floor_draws(4, 3, 2, seed=1))
        ([0, 1, 2, 3], 2)
    """
    steps = np.arange(start, start + number)
    if not reshuffled:
        return IndexPermutation(num_prompts, (seed, 0))(steps % num_prompts)
    drawn: np.ndarray = np.empty(number, dtype=np.int64)
    for turn in np.unique(steps // num_prompts):
        those = steps // num_prompts == turn
        drawn[those] = IndexPermutation(num_prompts, (seed, int(turn)))(steps[those] % num_prompts)
    return drawn


def floor_steps(round_number: int, num_draws: int, floor: float) -> tuple[int, int]:
    """Where the walk of the floor stands at a round, and how many of the round's draws are its own.

    The shares of single draws are carried over, so a floor of 0.3 draws a round is 3 draws in 10 rounds.

    Example:
        >>> [floor_steps(t, num_draws=5, floor=0.1)[1] for t in range(4)]
        [0, 1, 0, 1]
    """
    start, end = (int(np.floor(floor * num_draws * number + 1e-9)) for number in (round_number, round_number + 1))
    return start, end - start


def draw_prompts(
    tracker: ValueTracker,
    num_draws: int,
    *,
    sampling: Sampling = "thompson",
    exploration_floor: float = 0.05,
    weight_offset: float = 0.05,
    n_eff_power: float = 0.0,
    seed: int = 0,
) -> tuple[np.ndarray, int]:
    """Draw the prompts of the tracker's present round. The same on every process: a function of its arguments alone.

    Args:
        tracker: P prompts; its `round` is the number of the round.
        num_draws: B.
        sampling: As in `prompt_weights`. "uniform" is a walk through all prompts, reshuffled in each pass, and nothing else.
        exploration_floor: Share of the draws that walks through all prompts, in [0, 1].
        weight_offset: As in `prompt_weights`.
        n_eff_power: As in `prompt_weights`.
        seed: Of all draws.

    Returns:
        int64 [B], rows of the tracker; and how many of them are the floor's.

    Raises:
        ValueError: The tracker has no prompts.
    """
    if not len(tracker):
        raise ValueError("there are no prompts to draw from")
    is_uniform = sampling == "uniform"
    floor = 1.0 if is_uniform else exploration_floor
    start, number = floor_steps(tracker.round, num_draws, floor)
    rng = np.random.default_rng((seed, tracker.round))
    drawn = floor_draws(len(tracker), start, number, seed, reshuffled=is_uniform)
    if number < num_draws:
        rows = _weighed(len(tracker), rng)
        weights = prompt_weights(
            tracker, sampling, rows=rows, weight_offset=weight_offset, n_eff_power=n_eff_power, rng=rng
        )
        drawn = np.concatenate([drawn, rows[stratified_draws(weights, num_draws - number, rng)]])
    return rng.permutation(drawn), number
