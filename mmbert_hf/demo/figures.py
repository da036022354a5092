"""What each figure of the demo's report shows: one function per figure, which draws on a matplotlib axis.

Design decisions:

- A function returns False, and its figure is left out, when the numbers that it needs are missing.
- Nothing is interpolated. The smoothed loss is a moving mean that never crosses a phase boundary, because the loss
  jumps where the mask ratio falls.
- Legends stand above the plot and short labels on the lines, so that neither covers data at any size.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from mmbert_hf.demo.verdicts import loss_change
from mmbert_hf.recipes import Recipe

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Name -> (light, dark). The page defines them as CSS variables; matplotlib draws with the light ones.
PALETTE: dict[str, tuple[str, str]] = {
    "ink": ("#1b1f24", "#e8eaed"),
    "muted": ("#626c7a", "#9aa4b2"),
    "grid": ("#d8dee6", "#363d47"),
    "shade": ("#eef2f6", "#1f252c"),
    "run": ("#1766ad", "#6cb0f5"),
    "control": ("#c2560c", "#f0985a"),
    "before": ("#7c8693", "#a3abb7"),
    "pretrain": ("#3c5a92", "#8aa9e0"),
    "extend": ("#2a8c82", "#5cc9bd"),
    "decay": ("#b08a14", "#e0bd4f"),
    "added": ("#b0306b", "#f07fb0"),
}
TIERS = ("pretrain", "extend", "decay", "added")
# Share of the run that the moving mean of the loss spans.
SMOOTHING = 1 / 40
SMALL_FONT = 9.5
# Key of the loss, label, colour and marker.
HELDOUT_MARKS = (
    ("before_decay", "before", "before", "o"),
    ("after_decay", "after", "run", "o"),
    ("after_control", "control", "control", "D"),
)
# Key of the accuracy, label and colour.
RETRIEVAL_BARS = (
    ("accuracy", "trained", "run"),
    ("accuracy_before_decay", "before the decay", "extend"),
    ("accuracy_untrained", "untrained", "before"),
    ("chance", "chance", "muted"),
)


@dataclass(frozen=True)
class PlotData:
    """What the figures are drawn from; see `mmbert_hf.demo.report.write_report` for the layout.

    Attributes:
        metrics: Settings and measurements.
        histories: Log records per training, ``run`` and ``control``.
        recipe: The phases of the run.
    """

    metrics: Mapping[str, Any]
    histories: Mapping[str, Sequence[Mapping[str, Any]]]
    recipe: Recipe

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the run: from the settings, else the last one logged; 0 if neither is known."""
        logged = max((record["step"] for record in self.histories.get("run", ()) if "step" in record), default=0)
        return int(self.metrics.get("settings", {}).get("steps") or logged)

    @property
    def edges(self) -> list[int]:
        """The first step of every phase, and the end of the run."""
        return [*self.recipe.first_steps(self.total_steps), self.total_steps]

    def series(self, training: str, key: str, *, after: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Return steps [records] and the values of `key` [records] from the training records after a step."""
        records = [record for record in self.histories.get(training, ()) if "loss" in record and key in record]
        records = [record for record in records if record["step"] > after]
        return np.array([r["step"] for r in records], dtype=int), np.array([r[key] for r in records], dtype=float)


def smooth(values: np.ndarray, window: int) -> np.ndarray:
    """Return the centred moving mean; at both ends it spans what is there.

    Args:
        values: float [points].
        window: Points in the mean, at least 1; an even number counts as the next odd one.

    Returns:
        float [points].
    """
    half = min(window, 2 * len(values)) // 2
    sums = np.concatenate([[0.0], np.cumsum(values)])
    positions = np.arange(len(values))
    first, last = np.maximum(positions - half, 0), np.minimum(positions + half + 1, len(values))
    return (sums[last] - sums[first]) / (last - first)


def _light(color: str) -> str:
    return PALETTE[color][0]


def _shade_phases(axis: "Axes", data: PlotData) -> None:
    """Shade every other phase, name all of them along the top, and span the x axis over the run."""
    for number, (phase, (first, last)) in enumerate(zip(data.recipe.phases, pairwise(data.edges), strict=True)):
        if number % 2:
            axis.axvspan(first, last, color=_light("shade"), zorder=0, linewidth=0)
        axis.text(
            (first + last) / 2,
            0.985,
            phase.name,
            transform=axis.get_xaxis_transform(),
            ha="center",
            va="top",
            fontsize=SMALL_FONT,
            color=_light("muted"),
        )
    axis.set_xlim(0, data.total_steps)
    axis.set_xlabel("optimizer step")
    axis.grid(axis="x", visible=False)


def _leave_room_for_names(axis: "Axes") -> None:
    low, high = axis.get_ylim()
    axis.set_ylim(low, high + 0.12 * (high - low))


def _start_at_zero(axis: "Axes", top: float, headroom: float) -> None:
    axis.set_ylim(0, headroom * (top or 1.0))  # an axis of no height is an error


def _title_and_legend(axis: "Axes", title: str, columns: int = 2) -> None:
    """Put the legend between title and plot, where it covers nothing."""
    _, labels = axis.get_legend_handles_labels()
    axis.set_title(title, pad=8 + 17 * -(-len(labels) // columns))
    axis.legend(loc="lower left", bbox_to_anchor=(-0.02, 0.98), ncols=columns, handletextpad=0.4, columnspacing=1.2)


def _plot_smoothed(axis: "Axes", data: PlotData, training: str, label: str, after: int = 0) -> bool:
    """Draw every logged loss faintly and its moving mean over it; return whether there was any."""
    steps, losses = data.series(training, "loss", after=after)
    if not len(steps):
        return False
    window = max(1, round(data.total_steps * SMOOTHING))
    axis.plot(steps, losses, color=_light(training), alpha=0.22, linewidth=0.8)
    for first, last in pairwise(data.edges):
        inside = (steps > first) & (steps <= last)
        axis.plot(steps[inside], smooth(losses[inside], window), color=_light(training), label=label)
        label = "_"  # one entry in the legend
    return True


def _draw_loss(axis: "Axes", data: PlotData) -> bool:
    if not _plot_smoothed(axis, data, "run", "run"):
        return False
    _plot_smoothed(axis, data, "control", "control decay", after=data.edges[-2])
    _leave_room_for_names(axis)
    _shade_phases(axis, data)
    axis.set_ylabel("nats per masked token")
    _title_and_legend(axis, "Training loss by phase")
    return True


def _draw_decay_loss(axis: "Axes", data: PlotData) -> bool:
    start = data.edges[-2] if data.total_steps else 0
    if not _plot_smoothed(axis, data, "run", "run", after=start):
        return False
    _plot_smoothed(axis, data, "control", "control decay", after=start)
    axis.set(ylabel="nats per masked token", xlabel="optimizer step")
    axis.set_xlim(start, data.total_steps)
    axis.grid(axis="x", visible=False)
    _title_and_legend(axis, "Training loss in the decay")
    return True


def _draw_annealing(axis: "Axes", data: PlotData) -> bool:
    names = {"language_temperature": ("language temperature", "run"), "mask_ratio": ("mask ratio", "control")}
    series = {key: data.series("run", key) for key in names}
    if not all(len(steps) for steps, _ in series.values()):
        return False
    for key, (label, color) in names.items():
        steps, values = series[key]
        axis.plot(steps, values, color=_light(color), drawstyle="steps-post")
        axis.annotate(label, (steps[0], values[0]), (6, 4), textcoords="offset points", color=_light(color))
    _start_at_zero(axis, max(values.max() for _, values in series.values()), 1.3)
    _shade_phases(axis, data)
    axis.set(title="Mask ratio and language temperature", ylabel="value")
    return True


def _draw_languages(axis: "Axes", data: PlotData) -> bool:
    if not data.total_steps:
        return False
    counts = [len(data.recipe.languages.at(first / data.total_steps)) for first in data.edges[:-1]]
    axis.stairs(counts, data.edges, color=_light("run"), baseline=None, linewidth=1.6)
    for count, (first, last) in zip(counts, pairwise(data.edges), strict=True):
        axis.annotate(
            str(count), ((first + last) / 2, count), (0, 3), textcoords="offset points", ha="center", va="bottom"
        )
    _start_at_zero(axis, max(counts), 1.25)
    _shade_phases(axis, data)
    axis.set(title="Active languages", ylabel="languages")
    return True


def _draw_learning_rate(axis: "Axes", data: PlotData) -> bool:
    steps, rates = data.series("run", "learning_rate")
    if not len(steps):
        return False
    axis.plot(steps, rates, color=_light("run"))
    _start_at_zero(axis, rates.max(), 1.18)
    _shade_phases(axis, data)
    # By itself matplotlib puts the exponent where the title stands; it goes into the label instead.
    exponent = int(np.floor(np.log10(rates.max()))) if rates.max() > 0 else 0
    axis.yaxis.set_major_formatter(lambda value, _: f"{value / 10**exponent:g}")
    axis.set(title="Learning rate", ylabel=f"learning rate (1e{exponent})")
    return True


def _heldout_rows(data: PlotData) -> list[tuple[str, Mapping[str, float]]]:
    """Return label and losses of each added language, then of the mean of every other tier."""
    names, heldout = data.metrics.get("names", {}), data.metrics.get("heldout", {})
    added = [code for code in data.metrics.get("added_languages", ()) if code in heldout]
    rows = [(f"{names.get(code, code)}\n(added)", heldout[code]) for code in added]
    means = data.metrics.get("heldout_mean", {})
    sizes = {tier: sum(row.get("tier") == tier for row in heldout.values()) for tier in TIERS}
    rows += [(f"{tier}\nmean of {sizes[tier]}", means[tier]) for tier in TIERS[:-1] if tier in means]
    return [(label, row) for label, row in rows if "loss_before_decay" in row and "loss_after_decay" in row]


def _draw_heldout(axis: "Axes", data: PlotData) -> bool:
    rows = _heldout_rows(data)
    if not rows:
        return False
    for place, (_, row) in enumerate(rows):
        ends = row["loss_before_decay"], row["loss_after_decay"]
        axis.plot(ends, (place, place), color=_light("run"), linewidth=1.2, alpha=0.5, zorder=2)
    for key, label, color, marker in HELDOUT_MARKS:
        points = [(row[f"loss_{key}"], place) for place, (_, row) in enumerate(rows) if f"loss_{key}" in row]
        face = "none" if marker == "D" else _light(color)  # hollow, so that what it covers shows
        axis.plot(
            [loss for loss, _ in points],
            [place for _, place in points],
            marker,
            label=label,
            markersize=6.5,
            markeredgecolor=_light(color),
            markeredgewidth=1.4,
            markerfacecolor=face,
        )
    axis.set_yticks(range(len(rows)), [label for label, _ in rows])
    axis.set_ylim(len(rows) - 0.5, -0.6)
    axis.margins(x=0.08)
    axis.grid(axis="y", visible=False)
    axis.set_xlabel("held-out loss, nats per masked token")
    _title_and_legend(axis, "Held-out loss around the decay", columns=3)
    return True


def _draw_changes(axis: "Axes", data: PlotData) -> bool:
    heldout = data.metrics.get("heldout", {})
    changes = {code: change for code, row in heldout.items() if (change := loss_change(row)) is not None}
    if not changes:
        return False
    added = [code for code in data.metrics.get("added_languages", ()) if code in changes]
    by_tier = {
        tier: [changes[code] for code in changes if code not in added and heldout[code].get("tier") == tier]
        for tier in TIERS
    }
    edges = np.histogram_bin_edges(list(changes.values()), bins=30)
    bottom = np.zeros(len(edges) - 1)
    for tier, values in by_tier.items():
        if values:
            counts = np.histogram(values, edges)[0]
            axis.bar(edges[:-1], counts, np.diff(edges), bottom, align="edge", color=_light(tier), label=tier)
            bottom += counts
    for code, dashes in zip(added, cycle(("--", ":", "-.")), strict=False):
        name = data.metrics.get("names", {}).get(code, code)
        axis.axvline(changes[code], color=_light("added"), linestyle=dashes, label=name)
    axis.axvline(0, color=_light("muted"), linewidth=0.9)
    axis.set(ylabel="languages", xlabel="nats per masked token (below 0: better)")
    axis.grid(axis="x", visible=False)
    _title_and_legend(axis, "Change of the held-out loss in the decay", columns=3)
    return True


def _draw_retrieval(axis: "Axes", data: PlotData) -> bool:
    bitext = data.metrics.get("bitext", {})
    if not {"accuracy", "chance"} <= set(bitext):
        return False
    bars = [(label, color, 100 * bitext[key]) for key, label, color in RETRIEVAL_BARS if key in bitext]
    labels, colors, values = zip(*bars, strict=True)
    drawn = axis.barh(labels, values, color=[_light(color) for color in colors], height=0.62)
    axis.bar_label(drawn, [f"{value:.1f} %" for value in values], padding=4)
    axis.invert_yaxis()
    axis.set_xlim(0, 1.2 * max(values))
    axis.grid(axis="y", visible=False)
    axis.set(title="Translation retrieval", xlabel="accuracy, %")
    return True


# Name -> (what draws it and tells whether there was anything to draw, height in inches), in the order of the report.
FIGURES: dict[str, tuple[Callable[["Axes", PlotData], bool], float]] = {
    "loss_by_phase": (_draw_loss, 3.2),
    "loss_in_decay": (_draw_decay_loss, 3.2),
    "annealing": (_draw_annealing, 3.0),
    "learning_rate": (_draw_learning_rate, 3.0),
    "languages": (_draw_languages, 3.0),
    "heldout": (_draw_heldout, 3.2),
    "change": (_draw_changes, 3.2),
    "retrieval": (_draw_retrieval, 2.6),
}
