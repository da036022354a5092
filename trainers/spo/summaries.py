"""What a tracker and a log say, as tables of plain numbers: they can be stored as JSON and drawn without the run.

Design decisions:

- Calibration is counted by the tracker itself over the whole run: values from *before* each reward, in ten bins. A policy
  that gets better leaves its values behind, so they are expected to be a little low; that is part of what is counted.
- How often a prompt was visited is shown by its value now, in bins: few of low value are the hard ones. The floor is how
  many visits the exploration floor alone gave to each, as a mean over prompts.
- An empty bin is left out; what cannot be known is left out as well.

Shape legend: P prompts, K bins that are not empty.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from mmbert_hf.trainers.spo.tracker import NUM_BINS, ValueTracker

__all__ = ["LOGGED", "calibration_error", "calibration_table", "run_columns", "visits_by_value", "worst_bin"]

# What the pictures read of a run's log.
LOGGED = ("reward", "spo/value_p10", "spo/value_mean", "spo/value_p90", "spo/rho", "spo/divergence", "spo/floor_share",
          "spo/brier", "spo/grpo_wasted")  # fmt: skip

Table = dict[str, list[float]]


def calibration_table(tracker: ValueTracker) -> Table:
    """Mean value and mean reward of the observations whose value was in each bin.

    Args:
        tracker: After a run.

    Returns:
        ``value``, ``reward`` and ``count``, each [K]. Empty where rewards are not in [0, 1] (kind "average").

    Example:
        >>> tracker = ValueTracker(2)
        >>> tracker.update([0, 1], [1.0, 0.0])
        >>> calibration_table(tracker)
        {'value': [0.5], 'reward': [0.5], 'count': [2.0]}
    """
    counts, values, rewards = tracker.calibration.T
    some = counts > 0
    means = (values[some] / counts[some], rewards[some] / counts[some], counts[some])
    return {name: column.tolist() for name, column in zip(("value", "reward", "count"), means, strict=True)}


def calibration_error(table: Mapping[str, Sequence[float]]) -> float:
    """Expected calibration error: |mean value - mean reward|, averaged over the bins by their counts.

    Args:
        table: From `calibration_table`.

    Returns:
        From 0 (what was expected is what came) to 1; NaN without an observation.

    Example:
        >>> calibration_error({"value": [0.25, 0.75], "reward": [0.25, 0.5], "count": [3.0, 1.0]})
        0.0625
    """
    counts = np.asarray(table["count"], dtype=np.float64)
    if not counts.sum():
        return math.nan
    apart = np.abs(np.asarray(table["value"]) - np.asarray(table["reward"]))
    return float((apart * counts).sum() / counts.sum())


def worst_bin(table: Mapping[str, Sequence[float]], min_share: float = 0.01) -> dict[str, float] | None:
    """Find the bin in which value and reward are farthest apart: a mean over bins hides it where most rewards are elsewhere.

    Args:
        table: From `calibration_table`.
        min_share: Bins with a smaller share of the observations are passed over, since there it is noise.

    Returns:
        ``value``, ``reward`` and ``count`` of the bin; None if there is none.

    Example:
        >>> worst_bin({"value": [0.1, 0.5, 0.9], "reward": [0.1, 0.7, 0.0], "count": [900.0, 99.0, 1.0]})
        {'value': 0.5, 'reward': 0.7, 'count': 99.0}
    """
    total = sum(table["count"])
    bins = [dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)]
    large = [each for each in bins if each["count"] >= min_share * total]
    return max(large, key=lambda each: abs(each["value"] - each["reward"]), default=None)


def visits_by_value(tracker: ValueTracker, floor_share: float | None = None) -> dict[str, Any]:
    """How often the prompts of each bin of values were visited.

    Args:
        tracker: After a run.
        floor_share: Share of the draws that came from the exploration floor, the mean of what the run logged; None if
            that is not known.

    Returns:
        ``low``, ``high`` (the value's bounds), ``prompts``, ``mean``, ``least`` and ``most`` (visits of a prompt), each
        [K]; and ``floor``, the visits that the floor gave to a prompt on average, if its share is known. The bins divide
        [0, 1] for kind "beta", else the range of the values. Prompts of which nothing is known are left out.

    Example:
        >>> tracker = ValueTracker(3)
        >>> tracker.update([0, 0, 1], [1.0, 1.0, 0.0])
        >>> table = visits_by_value(tracker, floor_share=0.5)
        >>> table["prompts"], table["mean"], table["floor"]
        ([1, 1, 1], [1.0, 0.0, 2.0], 0.5)
    """
    known = ~np.isnan(tracker.values)
    values, visits = tracker.values[known], tracker.visits[known]
    columns: dict[str, Any] = {name: [] for name in ("low", "high", "prompts", "mean", "least", "most")}
    if values.size:
        bounds = (0.0, 1.0) if tracker.kind == "beta" else (float(values.min()), float(values.max()))
        edges = np.histogram_bin_edges(values, bins=NUM_BINS, range=bounds)
        places = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, NUM_BINS - 1)
        for place in np.unique(places):
            inside = visits[places == place]
            row = (edges[place], edges[place + 1], len(inside), inside.mean(), inside.min(), inside.max())
            for name, value in zip(columns, row, strict=True):
                columns[name].append(int(value) if name in ("prompts", "least", "most") else float(value))
    if floor_share is not None and len(tracker):
        columns["floor"] = floor_share * int(tracker.visits.sum()) / len(tracker)
    return columns


def run_columns(log_history: Sequence[Mapping[str, Any]]) -> Table:
    """Take from a trainer's log what the pictures show, column by column.

    Args:
        log_history: ``trainer.state.log_history``.

    Returns:
        ``step``, and of `LOGGED` what the run has; one number for each record of training, NaN where a record lacks it.

    Example:
        >>> run_columns([{"step": 5, "loss": 0.0, "reward": 0.25}, {"step": 5, "eval_loss": 1.0}])
        {'step': [5], 'reward': [0.25]}
    """
    records = [record for record in log_history if "loss" in record]
    names = [name for name in LOGGED if any(name in record for record in records)]
    columns = {name: [float(record.get(name, math.nan)) for record in records] for name in names}
    return {"step": [record["step"] for record in records], **columns}
