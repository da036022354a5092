"""Rewards on their way to the tracker: checked where they are made, summed by weight.

TRL turns None into NaN, so behind it a reward function that computed NaN looks like one that does not apply. Therefore the
functions themselves are wrapped.

Shape legend: B responses, F reward functions.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

__all__ = ["checked", "combine"]


def checked(reward_function: Any, name: str) -> Any:
    """Wrap a reward function so that what it returns is looked at. Reward models are returned as they are.

    Args:
        reward_function: A callable as GRPOTrainer takes it, sync or async, or a module.
        name: As it is called in messages.

    Returns:
        A callable of the same kind. It raises ValueError if a reward is NaN, infinite or no number, or if the number of
        rewards is wrong; None passes.

    Example:
        >>> checked(lambda completions: [None, 0.5], "half")(completions=["a", "b"])
        [None, 0.5]
    """
    if isinstance(reward_function, torch.nn.Module):
        return reward_function
    if inspect.iscoroutinefunction(reward_function) or inspect.iscoroutinefunction(
        getattr(reward_function, "__call__", None)  # noqa: B004 - the method itself is looked at, not callability
    ):
        return _checked_async(reward_function, name)
    return _checked_sync(reward_function, name)


def _checked_sync(reward_function: Callable[..., Any], name: str) -> Callable[..., list[float | None]]:
    @functools.wraps(reward_function, updated=())
    def call(**arguments: Any) -> list[float | None]:
        return check_output(reward_function(**arguments), name, len(arguments["completions"]))

    return call


def _checked_async(reward_function: Callable[..., Any], name: str) -> Callable[..., Any]:
    @functools.wraps(reward_function, updated=())
    async def call(**arguments: Any) -> list[float | None]:
        return check_output(await reward_function(**arguments), name, len(arguments["completions"]))

    return call


def check_output(rewards: Any, name: str, expected: int) -> list[float | None]:
    """Return what a reward function gave as a list of floats and None.

    Raises:
        ValueError: There are not as many rewards as responses, or one is NaN, infinite or no number.
    """
    if isinstance(rewards, str | bytes) or not isinstance(rewards, Sequence | np.ndarray | torch.Tensor):
        raise ValueError(f"reward function {name} must return a list of rewards, got {type(rewards).__name__}")
    if getattr(rewards, "ndim", 1) == 0:
        raise ValueError(f"reward function {name} must return a list of rewards, got a single {type(rewards).__name__}")
    if len(rewards) != expected:
        raise ValueError(f"reward function {name} returned {len(rewards)} rewards for {expected} responses")
    return [None if reward is None else _number(reward, name, place) for place, reward in enumerate(rewards)]


def _number(reward: Any, name: str, place: int) -> float:
    try:
        value = float("nan") if isinstance(reward, str) else float(reward)
    except (TypeError, ValueError):
        value = float("nan")
    if not math.isfinite(value):
        raise ValueError(
            f"reward function {name} returned {reward!r} for response {place}: rewards must be finite numbers, or None "
            "where the function does not apply"
        )
    return value


def combine(rewards_BF: Any, weights_F: Any) -> np.ndarray:
    """Sum the rewards of all functions by weight, leaving out those that do not apply.

    Args:
        rewards_BF: float [B, F], NaN where a function does not apply.
        weights_F: float [F].

    Returns:
        float64 [B], NaN where none applies.

    Example:
        >>> combine([[1.0, float("nan")], [1.0, 1.0]], [0.5, 0.25]).tolist()
        [0.5, 0.75]
    """
    rewards_BF, weights_F = np.asarray(rewards_BF, dtype=np.float64), np.asarray(weights_F, dtype=np.float64)
    total_B = np.nansum(rewards_BF * weights_F, axis=1)
    total_B[np.isnan(rewards_BF).all(axis=1)] = np.nan
    return total_B
