"""Pictures of a run of SPO: its rewards, what the tracker expected, where it looked, and how much it forgot.

Design decisions:

- What is drawn are tables of plain numbers (`mmbert_hf.trainers.spo.summaries`), so a run can be drawn while it runs, from
  its checkpoint, or from what was stored of it.
- One panel for each subject. A panel whose numbers are missing is left out; nothing is made up.
- The reward is that of the prompts that were drawn. Where unsolved prompts are drawn more often, it is lower than the
  accuracy over all prompts, and it may stand still while that rises; the panel says whose mean it is.
- matplotlib is imported inside the functions (extra ``[plots]``), without pyplot, as in `mmbert_hf.plotting`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from mmbert_hf.trainers.spo.summaries import calibration_table, run_columns, visits_by_value

from mmbert_hf.demo.figures import PALETTE, SMALL_FONT, smooth

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from mmbert_hf.trainers.spo.tracker import ValueTracker

    from mmbert_hf.plotting import Panel

__all__ = ["PANELS", "draw_panel", "plot_run", "run_tables"]

SMOOTHED_SHARE = 1 / 12  # of the run, that the moving mean of the reward spans

Tables = Mapping[str, Any]


def plot_run(run: Sequence[Mapping[str, Any]] | str | Path, tracker: ValueTracker | None, path: str | Path) -> Path:
    """Draw a run: reward, values, calibration, visits by value, what was kept, and the divergence.

    Args:
        run: ``trainer.state.log_history``; or the output folder of a training, or one of its checkpoints.
        tracker: ``trainer.tracker``. None: that of the checkpoint; without one, the run's log alone is drawn.
        path: Picture to write; its ending says which kind (.png, .svg, .pdf).

    Returns:
        The path.

    Raises:
        ValueError: matplotlib is missing, there is nothing to draw, or the kind is unknown.
        FileNotFoundError: The folder is not there, or nothing in it was written by a trainer.

    Example:
        >>> import tempfile
        >>> log = [{"step": step, "loss": 0.0, "reward": step / 10, "spo/rho": 0.9} for step in range(1, 6)]
        >>> plot_run(log, None, tempfile.mkdtemp() + "/run.svg").stat().st_size > 1000
        True
    """
    from mmbert_hf.plotting import check_can_plot, draw_panels

    check_can_plot()
    if isinstance(run, str | Path):
        log_history, tracker = _read(Path(run), tracker)
    else:
        log_history = [dict(entry) for entry in run]
    tables = run_tables(log_history, tracker)
    draw: Any = partial(draw_panel, tables=tables)
    panels: list[Panel] = [(PANELS[name], partial(draw, name=name)) for name in PANELS if _has(name, tables)]
    if not panels:
        raise ValueError(
            "there is nothing to draw: no record of a training step with a reward, and no tracker that saw one"
        )
    steps = tables["log"]["step"]
    return draw_panels(panels, Path(path), f"{len(steps)} records, the last at step {steps[-1]:,}" if steps else "")


def run_tables(log_history: Sequence[Mapping[str, Any]], tracker: ValueTracker | None = None) -> dict[str, Any]:
    """Collect what the panels are drawn from, as plain numbers.

    Args:
        log_history: ``trainer.state.log_history``.
        tracker: After the run, or where it is.

    Returns:
        ``log`` (`run_columns`), and with a tracker ``calibration`` and ``visits`` (`calibration_table`, `visits_by_value`).
    """
    tables: dict[str, Any] = {"log": run_columns(log_history)}
    if tracker is not None:
        shares = [share for share in tables["log"].get("spo/floor_share", ()) if not math.isnan(share)]
        tables["calibration"] = calibration_table(tracker)
        tables["visits"] = visits_by_value(tracker, float(np.mean(shares)) if shares else None)
    return tables


def draw_panel(axis: Axes, name: str, tables: Tables) -> bool:
    """Draw one panel.

    Args:
        axis: Where.
        name: One of `PANELS`.
        tables: From `run_tables`.

    Returns:
        False, with nothing drawn, where its numbers are missing.
    """
    if not _has(name, tables):
        return False
    _DRAW[name](axis, tables)
    return True


def _read(folder: Path, tracker: ValueTracker | None) -> tuple[list[dict[str, Any]], ValueTracker | None]:
    """The log of a run or checkpoint, and the tracker beside it unless one is given."""
    from mmbert_hf.trainers.spo.tracker_files import TRACKER_FILE, read_tracker

    from mmbert_hf.run_log import read_run

    state_file = Path(read_run(folder).source)
    log_history = json.loads(state_file.read_text(encoding="utf-8"))["log_history"]
    if tracker is None and (state_file.parent / TRACKER_FILE).is_file():
        tracker, _ = read_tracker(state_file.parent / TRACKER_FILE)
    return log_history, tracker


def _has(name: str, tables: Tables) -> bool:
    if name == "calibration":
        return bool(tables.get("calibration", {}).get("count"))
    if name == "visits":
        return sum(tables.get("visits", {}).get("mean", ())) > 0
    return any(len(_curve(tables, column)[0]) for column in _COLUMNS[name])


def _curve(tables: Tables, column: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of the records that have a number."""
    log = tables.get("log", {})
    steps, values = (np.asarray(log.get(key, ()), dtype=np.float64) for key in ("step", column))
    known = np.isfinite(values)
    return steps[: len(values)][known], values[known]


def _light(color: str) -> str:
    return PALETTE[color][0]


def _along_steps(axis: Axes, label: str, lowest: float = 0.0, highest: float | None = None) -> None:
    axis.set(xlabel="optimizer step", ylabel=label)
    axis.set_xlim(left=0)
    if lowest >= 0:
        axis.set_ylim(0, highest)
    axis.grid(axis="x", visible=False)


def _draw_reward(axis: Axes, tables: Tables) -> None:
    steps, rewards = _curve(tables, "reward")
    axis.plot(steps, rewards, color=_light("run"), alpha=0.3, linewidth=0.8)
    axis.plot(steps, smooth(rewards, max(1, round(len(steps) * SMOOTHED_SHARE))), color=_light("run"))
    _along_steps(axis, "mean over the prompts drawn", rewards.min())


def _draw_values(axis: Axes, tables: Tables) -> None:
    curves = {column: _curve(tables, column) for column in _COLUMNS["values"]}
    (steps, low), (steps_high, high) = curves["spo/value_p10"], curves["spo/value_p90"]
    if len(low) and len(low) == len(high) and (steps == steps_high).all():
        axis.fill_between(steps, low, high, color=_light("run"), alpha=0.18, linewidth=0, label="10 % to 90 %")
    if len(curves["spo/value_mean"][0]):
        axis.plot(*curves["spo/value_mean"], color=_light("run"), label="mean")
    lowest = min(values.min() for _, values in curves.values() if len(values))
    _along_steps(axis, "expected reward, all prompts", lowest)
    _legend(axis)


def _draw_calibration(axis: Axes, tables: Tables) -> None:
    table = tables["calibration"]
    axis.plot((0, 1), (0, 1), color=_light("muted"), linewidth=0.9, linestyle="--", label="as expected")
    most = max(table["count"])
    areas = [12 + 140 * count / most for count in table["count"]]
    axis.plot(table["value"], table["reward"], color=_light("run"), linewidth=1.0, alpha=0.5)
    axis.scatter(table["value"], table["reward"], areas, color=_light("run"), label="rewards in a bin of values")
    for value, reward, count in zip(table["value"], table["reward"], table["count"], strict=True):
        below = reward > 0.5  # away from the corner that the curve runs to
        axis.annotate(
            f"{count:,.0f}",
            (value, reward),
            (0, -7 if below else 7),
            textcoords="offset points",
            ha="center",
            va="top" if below else "bottom",
            fontsize=0.75 * SMALL_FONT,
        )
    axis.set(xlabel="value before the reward", ylabel="mean reward", xlim=(-0.03, 1.03), ylim=(-0.05, 1.12))
    _legend(axis)


def _draw_visits(axis: Axes, tables: Tables) -> None:
    table = tables["visits"]
    low, high = np.asarray(table["low"]), np.asarray(table["high"])
    axis.bar(low, table["mean"], 0.92 * (high - low), align="edge", color=_light("run"), label="mean, least to most")
    centres = low + 0.46 * (high - low)
    axis.vlines(centres, table["least"], table["most"], color=_light("ink"), linewidth=1.0)
    for centre, most, prompts in zip(centres, table["most"], table["prompts"], strict=True):
        axis.annotate(
            f"{prompts:,}",
            (centre, most),
            (0, 2),
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontsize=0.75 * SMALL_FONT,
        )
    if "floor" in table:
        axis.axhline(table["floor"], color=_light("control"), linewidth=1.2, label=f"floor alone: {table['floor']:.1f}")
    axis.set(xlabel="value at the end; above: prompts in the bin", ylabel="visits of a prompt")
    axis.set_ylim(0, 1.1 * max(table["most"]))
    axis.grid(axis="x", visible=False)
    _legend(axis)


def _draw_kept(axis: Axes, tables: Tables) -> None:
    axis.plot(*_curve(tables, "spo/rho"), color=_light("run"))
    _along_steps(axis, "share of the old weight (rho)", highest=1.0)


def _draw_divergence(axis: Axes, tables: Tables) -> None:
    axis.plot(*_curve(tables, "spo/divergence"), color=_light("run"))
    _along_steps(axis, "nats per token")


def _legend(axis: Axes) -> None:
    """Between title and plot, where it covers nothing."""
    axis.legend(loc="lower left", bbox_to_anchor=(-0.02, 0.98), ncols=2, handletextpad=0.4, columnspacing=1.2)


# Name -> title, in the order of the picture.
PANELS = {
    "reward": "Reward",
    "values": "Values",
    "calibration": "Calibration",
    "visits": "Visits by difficulty",
    "kept": "Kept at a visit",
    "divergence": "Divergence since the last visit",
}
_COLUMNS = {
    "reward": ("reward",),
    "values": ("spo/value_p10", "spo/value_mean", "spo/value_p90"),
    "kept": ("spo/rho",),
    "divergence": ("spo/divergence",),
}
_DRAW: dict[str, Callable[[Axes, Tables], None]] = {
    "reward": _draw_reward,
    "values": _draw_values,
    "calibration": _draw_calibration,
    "visits": _draw_visits,
    "kept": _draw_kept,
    "divergence": _draw_divergence,
}
