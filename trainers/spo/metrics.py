"""What a round of SPO reports: of the values, of forgetting, of sampling, and of what GRPO would have wasted.

What is said of all prompts is said of every n-th one where there are more than `MAX_PROMPTS`: quantiles of a million
values at every round would cost more than everything else that is done with them.

Shape legend: P prompts, B responses of a round.
"""

from __future__ import annotations

import numpy as np
from mmbert_hf.trainers.spo.tracker import ValueTracker

__all__ = ["brier_score", "degenerate_group_share", "round_metrics"]

GROUP_SIZE = 8
MAX_PROMPTS = 100_000


def degenerate_group_share(values: np.ndarray, group_size: int = GROUP_SIZE) -> np.ndarray:
    """Probability that all responses of a group get the same reward, so that GRPO learns nothing: v^G + (1 - v)^G.

    Args:
        values: float [P], success rates.
        group_size: G.

    Returns:
        float64 [P].

    Example:
        >>> degenerate_group_share(np.array([0.0, 0.5, 1.0])).round(3).tolist()
        [1.0, 0.008, 1.0]
    """
    values = np.asarray(values, dtype=np.float64)
    return values**group_size + (1 - values) ** group_size


def brier_score(values: np.ndarray, rewards: np.ndarray) -> float:
    """Mean squared difference of values and the rewards that came next; NaN rewards are left out.

    Args:
        values: float [B], from before the rewards.
        rewards: float [B].

    Returns:
        NaN if there is no reward.
    """
    known = ~np.isnan(rewards)
    return float(((values - rewards)[known] ** 2).mean()) if known.any() else float("nan")


def round_metrics(
    tracker: ValueTracker,
    values: np.ndarray,
    rewards: np.ndarray,
    advantage_std: float,
    divergence: np.ndarray,
    rho: np.ndarray,
    from_floor: int,
    *,
    starvation_rounds: int,
) -> dict[str, float]:
    """Figures of one round, after the tracker has learnt it.

    Args:
        tracker: P prompts.
        values: float [B], from before the round.
        rewards: float [B].
        advantage_std: Standard deviation of the advantages before they were normalised.
        divergence: float [B], nats per token since the last visit.
        rho: float [B], what was kept.
        from_floor: How many of the prompts came from the floor.
        starvation_rounds: From how many rounds without a visit on a prompt counts as starved.

    Returns:
        By name: value_mean, value_p10, value_p90, advantage_std, divergence, rho, n_eff, visits, unseen
        (share), floor_share, starved (share), brier, and with kind "beta" grpo_wasted (share of groups of 8).
    """
    some = np.arange(0, len(tracker), -(-len(tracker) // MAX_PROMPTS))
    known = tracker.values_at(some)
    low, high = np.nanquantile(known, (0.1, 0.9)) if not np.isnan(known).all() else (np.nan, np.nan)
    metrics = {
        "value_mean": float(np.nanmean(known)) if not np.isnan(known).all() else np.nan,
        "value_p10": float(low),
        "value_p90": float(high),
        "advantage_std": advantage_std,
        "divergence": float(divergence.mean()),
        "rho": float(rho.mean()),
        "n_eff": float(tracker.weights[some].mean()),
        "visits": float(tracker.visits[some].mean()),
        "unseen": float((tracker.visits[some] == 0).mean()),
        "floor_share": from_floor / len(values),
        "starved": float((tracker.round - tracker.last_round[some] >= starvation_rounds).mean()),
        "brier": brier_score(values, rewards),
    }
    if tracker.kind == "beta":
        metrics["grpo_wasted"] = float(degenerate_group_share(known).mean())
    return metrics
