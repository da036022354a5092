"""`ValueTracker`: what reward to expect of every prompt, remembered over the whole run. NumPy alone, no framework.

SPO (arXiv 2509.13232) asks for one response per prompt, so the baseline cannot come from a group: it comes from what the
same prompt earned before. For a binary reward r the paper keeps Beta counts,

    alpha <- rho alpha + r,    beta <- rho beta + (1 - r),    v = alpha / (alpha + beta),    N_eff = alpha + beta,

and for any other reward a moving average, v <- v + eta (r - v) with eta = 1 / (rho N_eff + 1), N_eff <- rho N_eff + 1.

Design decisions:

- Both are one recursion: with v = alpha / N_eff the first *is* the second. So the state is value and weight (N_eff), plus
  a weighted sum of squared deviations, which gives the running variance of rewards that are not binary. ``kind`` decides
  only what is read from it: "beta" has the standard deviation of a success, sqrt(v (1 - v)), "average" the running one.
- A prompt that occurs several times in a batch is forgotten once and gets all its rewards, in any order the same.
- A reward that is NaN (no reward function applied) changes nothing.
- Prompts are rows. Streams, whose prompts nobody knows in advance, get rows by key as they come (`rows_of`).
- Everything that a run needs to go on is in `state_dict`: forgetting, sampling and starvation all read from here.

Shape legend: P prompts, B rewards of a batch, U different prompts of a batch, K calibration bins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

__all__ = ["NUM_BINS", "ValueTracker", "check_rewards", "number_rows"]

Kind = Literal["beta", "average"]
KINDS = ("beta", "average")
NUM_BINS = 10  # of the calibration: values in [0, 0.1), [0.1, 0.2), ...
ROW_ARRAYS = ("values", "weights", "squares", "visits", "last_round", "last_drift")
NEVER = -1
VARIANCE_FLOOR_SHARE = 0.08
ROUNDING = 1e-6  # rewards, and their weights, come as float32


class ValueTracker:
    """Values of prompts, updated by single rewards, with forgetting.

    Args:
        num_prompts: How many rows there are at the start.
        kind: "beta" for rewards in [0, 1], "average" for any finite reward.
        prior_value: Value of a prompt that was never seen. None: 0.5 for "beta"; for "average" the mean of all rewards so
            far, and in the first batch the mean of that batch.
        prior_weight: How many observations the prior counts as.

    Attributes:
        values: float64 [P], expected reward; NaN where nothing is known and the prior is the mean of all rewards.
        weights: float64 [P], effective number of observations N_eff, the prior's included.
        squares: float64 [P], weighted sum of squared deviations from the value; NaN where nothing is known and the variance
            of all rewards stands in (kind "average").
        visits: int64 [P], rewards seen.
        last_round: int64 [P], round of the last visit, -1 for never.
        last_drift: float64 [P], `drift` when the value was last set or updated, NaN for never.
        round: Rounds of generation so far.
        drift: Sum of all divergences between the policies of consecutive rounds, in nats per token.
        calibration: float64 [K, 3]: number, sum of values and sum of rewards of the observations whose value was in a bin.

    Raises:
        ValueError: An argument is outside its range.

    Example:
        >>> tracker = ValueTracker(2, prior_weight=8)
        >>> tracker.update([0, 0, 1], [1.0, 1.0, 0.0], rho=0.5)
        >>> tracker.values.round(3), tracker.weights
        (array([0.667, 0.4  ]), array([6., 5.]))
    """

    def __init__(
        self,
        num_prompts: int = 0,
        *,
        kind: Kind = "beta",
        prior_value: float | None = None,
        prior_weight: float = 2.0,
    ) -> None:
        if kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
        if num_prompts < 0:
            raise ValueError(f"num_prompts must be at least 0, got {num_prompts}")
        if not (np.isfinite(prior_weight) and prior_weight > 0):
            raise ValueError(f"prior_weight must be above 0, got {prior_weight}")
        if prior_value is not None and not np.isfinite(prior_value):
            raise ValueError(f"prior_value must be finite, got {prior_value}")
        if kind == "beta" and prior_value is not None and not 0 <= prior_value <= 1:
            raise ValueError(f"prior_value must be in [0, 1] with kind='beta', got {prior_value}")
        self.kind: Kind = kind
        self.prior_value = 0.5 if kind == "beta" and prior_value is None else prior_value
        self.prior_weight = float(prior_weight)
        self.round = 0
        self.drift = 0.0
        self.reward_range = (0.0, 1.0) if kind == "beta" else (np.inf, -np.inf)
        self.reward_count, self.reward_mean, self.reward_square = 0, 0.0, 0.0
        self.calibration = np.zeros((NUM_BINS, 3))
        self.keys: list[str] | None = None
        self._row_of: dict[str, int] = {}
        self._allocate(0)
        self._append(num_prompts)

    def _allocate(self, number: int) -> None:
        self.values, self.weights, self.squares = np.empty(number), np.empty(number), np.empty(number)
        self.visits: np.ndarray = np.empty(number, np.int64)
        self.last_round: np.ndarray = np.empty(number, np.int64)
        self.last_drift = np.empty(number)

    def __len__(self) -> int:
        return len(self.values)

    def __repr__(self) -> str:
        seen = int(np.count_nonzero(self.visits))
        return f"{type(self).__name__}({len(self)} prompts, {seen} seen, kind={self.kind!r}, round {self.round})"

    def grow(self, number: int) -> None:
        """Add prompts that were never seen.

        Raises:
            ValueError: `number` is below 0, or the prompts of this tracker have keys, so that new ones need some too.
        """
        if number < 0:
            raise ValueError(f"a tracker grows by at least 0 prompts, got {number}")
        if self.keys is not None:
            raise ValueError("the prompts of this tracker have keys: rows_of gives new keys their rows")
        self._append(number)

    def _append(self, number: int) -> None:
        value = np.nan if self.prior_value is None else self.prior_value
        square = value * (1 - value) * self.prior_weight if self.kind == "beta" else np.nan
        fresh = (value, self.prior_weight, square, 0, NEVER, np.nan)
        for name, start in zip(ROW_ARRAYS, fresh, strict=True):
            array = getattr(self, name)
            setattr(self, name, np.concatenate([array, np.full(number, start, dtype=array.dtype)]))

    def rows_of(self, keys: Sequence[str]) -> np.ndarray:
        """Rows of prompts by key; keys that are new get new rows, in the order of their first occurrence.

        Args:
            keys: B keys.

        Returns:
            int64 [B].

        Raises:
            ValueError: The tracker has rows without keys.
        """
        if self.keys is None:
            if len(self):
                raise ValueError(f"this tracker has {len(self)} prompts without keys: they are known by number")
            self.keys = []
        new = [key for key in dict.fromkeys(keys) if key not in self._row_of]
        for key in new:
            self._row_of[key] = len(self.keys)
            self.keys.append(key)
        self._append(len(new))
        return np.array([self._row_of[key] for key in keys], dtype=np.int64)

    def set_keys(self, keys: Sequence[str]) -> None:
        """Name the rows.

        Raises:
            ValueError: There are not as many keys as rows, or a key occurs twice.
        """
        if len(keys) != len(self):
            raise ValueError(f"got {len(keys)} keys for {len(self)} prompts")
        self.keys, self._row_of = list(keys), number_rows(keys)

    def values_at(self, rows: Any, rewards: Any = None) -> np.ndarray:
        """Values of prompts before they are updated, the baseline of the advantage.

        Args:
            rows: int [B].
            rewards: float [B], of the same batch. Where nothing at all is known yet (first batch, kind "average") their
                mean stands in.

        Returns:
            float64 [B]; NaN where nothing is known and no rewards are given.
        """
        values = self.values[np.asarray(rows, dtype=np.int64)]
        unknown = np.isnan(values)
        if unknown.any():
            values[unknown] = self._prior(rewards)
        return values

    def _prior(self, rewards: Any) -> float:
        if self.reward_count:
            return self.reward_mean
        known = np.asarray([] if rewards is None else rewards, dtype=np.float64)
        known = known[~np.isnan(known)]
        return float(known.mean()) if known.size else np.nan

    def deviations_at(self, rows: Any) -> np.ndarray:
        """Standard deviation of a single reward of each prompt: sqrt(v (1 - v)), or the running one.

        Args:
            rows: int [B].

        Returns:
            float64 [B]. Of prompts of which nothing is known, kind "average": that of all rewards so far.
        """
        rows = np.asarray(rows, dtype=np.int64)
        if self.kind == "beta":
            values = self.values[rows]
            return np.sqrt(np.clip(values * (1 - values), 0.0, None))
        variance = self.squares[rows] / self.weights[rows]
        return np.sqrt(np.where(np.isnan(variance), self.reward_variance, variance))

    @property
    def variance_floor(self) -> float:
        """What is added to a prompt's variance before it is divided by: 8 % of the largest variance that can be expected.

        That is 0.02 for kind "beta", whose variance is 0.25 at most, and else a part of the variance of all rewards.
        """
        return VARIANCE_FLOOR_SHARE * (0.25 if self.kind == "beta" else self.reward_variance)

    @property
    def reward_variance(self) -> float:
        """Variance of all rewards so far, 0 before the second."""
        return self.reward_square / self.reward_count if self.reward_count > 1 else 0.0

    def drift_since_visit(self, rows: Any) -> np.ndarray:
        """How far the policy has moved since each prompt was last answered, in nats per token, float64 [B].

        Values that were set (`start_from`, `adopt`) count as answers of that moment. 0 for prompts of which nothing but the
        prior is known: there is nothing of an older policy to forget.
        """
        moved = self.drift - self.last_drift[np.asarray(rows, dtype=np.int64)]
        return np.where(np.isnan(moved), 0.0, moved)

    def update(self, rows: Any, rewards: Any, rho: Any = 1.0) -> None:
        """Forget and learn: N <- rho N + 1, v <- v + (r - v) / N, and the squares likewise.

        Args:
            rows: int [B].
            rewards: float [B]; NaN for "no reward", which changes nothing.
            rho: What is kept of the old weight, in [0, 1]: one number, or [B]. If a prompt occurs several times, that of
                its first occurrence.

        Raises:
            ValueError: Shapes differ, a row does not exist, `rho` is outside [0, 1], or a reward is infinite or, with kind
                "beta", outside [0, 1].
        """
        rows, rewards, rho = self._checked(rows, rewards, rho)
        known = ~np.isnan(rewards)
        rows, rewards, rho = rows[known], rewards[known], rho[known]
        if not rows.size:
            return
        before = self.values_at(rows, rewards)
        self._record(before, rewards)
        unique_U, first_U, place_B, count_U = np.unique(
            rows, return_index=True, return_inverse=True, return_counts=True
        )
        value_U = before[first_U]
        square_U, weight_U = self.squares[unique_U], self.weights[unique_U]
        square_U = np.where(np.isnan(square_U), weight_U * self.reward_variance, square_U)
        kept_U = rho[first_U] * weight_U
        mean_U = np.bincount(place_B, rewards) / count_U
        spread_U = np.bincount(place_B, (rewards - mean_U[place_B]) ** 2)
        total_U = kept_U + count_U
        self.values[unique_U] = value_U + (mean_U - value_U) * (count_U / total_U)
        between_U = (kept_U * count_U / total_U) * (mean_U - value_U) ** 2
        self.squares[unique_U] = rho[first_U] * square_U + spread_U + between_U
        self.weights[unique_U] = total_U
        self.visits[unique_U] += count_U
        self.last_round[unique_U] = self.round
        self.last_drift[unique_U] = self.drift

    def _checked(self, rows: Any, rewards: Any, rho: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        rows, rewards = np.asarray(rows, dtype=np.int64), np.asarray(rewards, dtype=np.float64)
        if rows.shape != rewards.shape or rows.ndim != 1:
            raise ValueError(
                f"rows and rewards must be two lists of the same length, got {rows.shape}, {rewards.shape}"
            )
        if rows.size and not (rows.min() >= 0 and rows.max() < len(self)):
            raise ValueError(f"rows must be in [0, {len(self)}), got {rows.min()} to {rows.max()}")
        rho = np.broadcast_to(np.asarray(rho, dtype=np.float64), rows.shape)
        if not ((rho >= 0) & (rho <= 1)).all():
            raise ValueError(f"rho must be in [0, 1], got {rho.min()} to {rho.max()}")
        check_rewards(rewards, self.kind)
        return rows, np.clip(rewards, 0.0, 1.0) if self.kind == "beta" else rewards, rho

    def _record(self, values: np.ndarray, rewards: np.ndarray) -> None:
        """Statistics of all rewards, and the calibration of the values."""
        mean = float(rewards.mean())
        square = float(((rewards - mean) ** 2).sum())
        self._join(len(rewards), mean, square, (float(rewards.min()), float(rewards.max())))
        if self.kind == "beta":
            bins = np.minimum((values * NUM_BINS).astype(np.int64), NUM_BINS - 1)
            for column, weights in enumerate((None, values, rewards)):
                self.calibration[:, column] += np.bincount(bins, weights, minlength=NUM_BINS)

    def _join(self, count: int, mean: float, square: float, extremes: tuple[float, float]) -> None:
        """Add to the statistics of all rewards those of some more: number, mean, squared deviations (Chan), range."""
        if not count:
            return
        total, apart = self.reward_count + count, mean - self.reward_mean
        self.reward_square += square + apart**2 * self.reward_count * count / total
        self.reward_mean += apart * count / total
        self.reward_count = total
        self.reward_range = (min(self.reward_range[0], extremes[0]), max(self.reward_range[1], extremes[1]))

    def start_from(self, rows: Any, sums: Any, numbers: Any, squares: Any = None, *, weight: float = 8.0) -> None:
        """Set values from samples that were drawn before training, as the paper does (section 3.1 and its recipe).

        "beta": v = (sum + 0.5) / (n + 1), "average": v = sum / n with the samples' variance; N_eff is `weight`. With kind
        "average" the samples also count among all rewards so far.

        Args:
            rows: int [U], each prompt once.
            sums: float [U], sums of rewards.
            numbers: int [U], how many rewards; a prompt with 0 keeps its prior.
            squares: float [U], sums of squared rewards; kind "average" needs them.
            weight: N_eff afterwards; the paper's is 1 / (1 - rho_min).

        Raises:
            ValueError: A prompt occurs twice or does not exist, `squares` is missing, or with kind "beta" the mean of some
                rewards is outside [0, 1].
        """
        rows, sums, numbers = np.asarray(rows, np.int64), np.asarray(sums, np.float64), np.asarray(numbers, np.float64)
        if self.kind == "average" and squares is None:
            raise ValueError("kind 'average' starts from squares as well: give the sums of squared rewards")
        some = numbers > 0
        rows, sums, numbers = rows[some], sums[some], numbers[some]
        if not rows.size:
            return
        if len(np.unique(rows)) != len(rows) or rows.min() < 0 or rows.max() >= len(self):
            raise ValueError(f"rows must be different and in [0, {len(self)}), got {rows.min()} to {rows.max()}")
        means = sums / numbers
        check_rewards(means, self.kind)
        if self.kind == "beta":
            values = np.clip((sums + 0.5) / (numbers + 1), 0.0, 1.0)
            variances = values * (1 - values)
        else:
            values, variances = means, np.clip(np.asarray(squares, np.float64)[some] / numbers - means**2, 0.0, None)
            mean = float(sums.sum() / numbers.sum())
            square = float((numbers * (variances + (means - mean) ** 2)).sum())
            self._join(int(numbers.sum()), mean, square, (float(means.min()), float(means.max())))
        self.values[rows], self.squares[rows], self.weights[rows] = values, weight * variances, weight
        self.last_drift[rows] = self.drift

    def adopt(self, other: ValueTracker, rows: Any, other_rows: Any) -> None:
        """Take values, weights, squares and the statistics of all rewards of another tracker; visits and rounds start anew.

        Args:
            other: Of the same kind.
            rows: Of this tracker, int [U] or a slice.
            other_rows: Of the other one, as many.

        Raises:
            ValueError: The other tracker is of another kind.
        """
        if other.kind != self.kind:
            raise ValueError(
                f"the other tracker has kind {other.kind!r}, this one {self.kind!r}: they cannot be joined"
            )
        for name in ("values", "weights", "squares"):
            getattr(self, name)[rows] = getattr(other, name)[other_rows]
        self.last_drift[rows] = np.where(np.isnan(other.last_drift[other_rows]), np.nan, self.drift)
        self._join(other.reward_count, other.reward_mean, other.reward_square, other.reward_range)

    def state_dict(self) -> dict[str, Any]:
        """Everything, as arrays and plain values."""
        state: dict[str, Any] = {name: getattr(self, name).copy() for name in ROW_ARRAYS}
        state |= {name: getattr(self, name) for name in _SCALARS}
        return state | {"calibration": self.calibration.copy(), "keys": None if self.keys is None else list(self.keys)}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> ValueTracker:
        """A tracker that goes on where `state_dict` was taken.

        Raises:
            ValueError: Something is missing, or arrays have different lengths.
        """
        missing = sorted({*ROW_ARRAYS, *_SCALARS, "calibration", "keys"} - set(state))
        if missing:
            raise ValueError(f"the state of a tracker has no {', '.join(missing)}: it is not one, or it was cut off")
        lengths = {name: len(state[name]) for name in ROW_ARRAYS}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"the arrays of a tracker's state must have one length, got {lengths}")
        tracker = cls(0, kind=state["kind"], prior_value=state["prior_value"], prior_weight=state["prior_weight"])
        for name in ROW_ARRAYS:
            setattr(tracker, name, np.array(state[name], dtype=getattr(tracker, name).dtype))
        for name in _SCALARS:
            setattr(tracker, name, state[name])
        tracker.reward_range = (float(state["reward_range"][0]), float(state["reward_range"][1]))
        tracker.calibration = np.array(state["calibration"], dtype=np.float64)
        if state["keys"] is not None:
            tracker.set_keys(state["keys"])
        return tracker


_SCALARS = ("kind", "prior_value", "prior_weight", "round", "drift", "reward_range", "reward_count", "reward_mean",
            "reward_square")  # fmt: skip


def number_rows(keys: Sequence[str]) -> dict[str, int]:
    """Row of each key.

    Raises:
        ValueError: A key occurs twice.

    Example:
        >>> number_rows(["a", "b"])
        {'a': 0, 'b': 1}
    """
    row_of = {key: row for row, key in enumerate(keys)}
    if len(row_of) != len(keys):
        double = next(key for row, key in enumerate(keys) if row_of[key] != row)
        raise ValueError(f"ids of prompts must differ, got {double!r} more than once")
    return row_of


def check_rewards(rewards: np.ndarray, kind: Kind) -> None:
    """Refuse rewards that a tracker of this kind cannot learn from; NaN is "no reward" and passes.

    Raises:
        ValueError: A reward is infinite, or with kind "beta" outside [0, 1] by more than float32 rounds.
    """
    known = rewards[~np.isnan(rewards)]
    if np.isinf(known).any():
        raise ValueError(f"rewards must be finite, got {known[np.isinf(known)][0]}")
    if kind == "beta" and known.size and not (known.min() >= -ROUNDING and known.max() <= 1 + ROUNDING):
        raise ValueError(
            f"rewards must be in [0, 1] for Beta values, got {known.min():.7g} to {known.max():.7g}: scale them "
            "(reward_weights), or set value_model='average', which takes any reward"
        )
