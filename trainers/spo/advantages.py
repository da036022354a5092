"""Advantages of single responses: reward minus expected reward, normalised over the whole batch.

SPO (arXiv 2509.13232, equations 6 and 7): A = r - v with v from before the observation, then (A - mean) / std over the
batch of all processes; the same number on every token. SPO++ (arXiv 2608.24870) takes mean and std over tokens.

Design decisions:

- A response without a reward (NaN) has advantage 0 and no part in mean and std.
- As values get better, raw advantages get small, and dividing by their std makes noise as loud as signal was. `min_std` is
  the least it is divided by.
- Of a prompt that is hardly ever solved, a success is worth more than its raw advantage says: GRPO divides by the std of
  the group, plain SPO by that of the batch, which is about others. Dividing by the prompt's own std (from the tracker)
  gives that back (`advantage_scale="prompt"`).

Shape legend: B responses of a batch, all processes together.
"""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["normalise", "raw_advantages"]


def raw_advantages(rewards: Any, values: Any, deviations: Any = None, *, variance_floor: float = 0.0) -> np.ndarray:
    """Reward minus value; divided by the prompt's own standard deviation if it is given.

    Args:
        rewards: float [B], NaN for none.
        values: float [B], from before these rewards.
        deviations: float [B], standard deviation of a single reward of each prompt. What is divided by is
            sqrt(deviation^2 + variance_floor), or 1 where that is 0.
        variance_floor: So that no prompt is thought of as certain.

    Returns:
        float64 [B], NaN where there is no reward.

    Example:
        >>> raw_advantages([1.0, 0.0], [0.5, 0.5]).tolist()
        [0.5, -0.5]
    """
    raw = np.asarray(rewards, dtype=np.float64) - np.asarray(values, dtype=np.float64)
    if deviations is None:
        return raw
    divisor = np.sqrt(np.asarray(deviations, dtype=np.float64) ** 2 + variance_floor)
    return raw / np.where(divisor > 0, divisor, 1.0)


def normalise(raw: Any, num_tokens: Any = None, *, min_std: float = 0.0) -> tuple[np.ndarray, float]:
    """Subtract the mean of a batch and divide by its standard deviation.

    Args:
        raw: float [B], NaN for responses without a reward.
        num_tokens: int [B]; if given, mean and std are over the tokens of the responses, not over the responses.
        min_std: The least that is divided by.

    Returns:
        float64 [B], 0 where there was NaN and if all are equal; and the standard deviation that was found (unbiased; 0 for
        a single one).

    Example:
        >>> normalise([1.0, -1.0, float("nan")])[0].round(3).tolist()
        [0.707, -0.707, 0.0]
    """
    raw = np.asarray(raw, dtype=np.float64)
    known = ~np.isnan(raw)
    weights = np.where(known, 1.0 if num_tokens is None else np.asarray(num_tokens, dtype=np.float64), 0.0)
    total = weights.sum()
    if total <= 1:
        return np.zeros(len(raw)), 0.0
    filled = np.where(known, raw, 0.0)
    mean = (weights * filled).sum() / total
    if np.ptp(raw[weights > 0]) == 0:  # differences and std would be rounding, and their ratio as large as any other
        return np.zeros(len(raw)), 0.0
    std = float(np.sqrt((weights * (filled - mean) ** 2).sum() / (total - 1)))
    divisor = max(std, min_std)
    if divisor == 0:
        return np.zeros(len(raw)), std
    return np.where(known, (filled - mean) / divisor, 0.0), std
