"""Pictures of a run and of a recipe: what was logged, and what is planned, over tokens.

Design decisions:

- One picture with a panel for each subject. A panel whose numbers are missing is left out; nothing is made up, and a
  moving mean never crosses the boundary of a phase, because the loss jumps where the mask ratio falls.
- matplotlib is imported inside the functions (extra ``[plots]``), without pyplot: no window, no state of the process
  changed, and the user's ``matplotlibrc`` is not followed.
"""

import importlib.util
import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from mmbert_hf.demo.figures import PALETTE, SMALL_FONT, SMOOTHING, smooth
from mmbert_hf.recipes import Phase, Recipe
from mmbert_hf.run_log import RunLog

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["check_can_plot", "draw_panels", "plot_recipe", "plot_run"]

PANEL_INCHES = (5.6, 3.1)
DPI = 150
POINTS_PER_PHASE = 200
MOST_LANGUAGES = 24  # that a panel can name; of more, the ones that changed most are shown

Panel = tuple[str, Callable[["Axes"], None]]
Kind = Literal["line", "steps", "noisy"]
Spans = Sequence[tuple[str, float, float]]  # name, first and last value of the x axis of each phase


def check_can_plot() -> None:
    """Raise a ValueError that says what to install, unless matplotlib is there."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError("pictures need matplotlib, which is not installed: pip install mmbert-hf[plots]")


def plot_run(run: RunLog, path: str | Path) -> Path:
    """Draw what a run logged.

    Args:
        run: From `mmbert_hf.run_log.read_run`.
        path: Picture to write; its ending says which kind (.png, .svg, .pdf).

    Returns:
        The path.

    Raises:
        ValueError: matplotlib is missing, the run has no training record, or the kind is unknown.

    Example:
        >>> import tempfile
        >>> run = RunLog("", 2, 2, {"step": [1, 2], "loss": [5.0, 4.0], "learning_rate": [0.1, 0.2]}, {"step": []})
        >>> plot_run(run, tempfile.mkdtemp() + "/run.png").stat().st_size > 1000
        True
    """
    if not run.training["step"]:
        raise ValueError(f"{run.source} has no record of a training loss yet: nothing to draw")
    unit, places = run.progress
    spans = _phases_of(run, places)
    subjects: list[tuple[str, str, Kind, list[str]]] = [
        ("Training loss", "nats per masked token", "noisy", ["loss"]),
        ("Learning rate", "", "line", ["learning_rate"]),
        ("Mask ratio and language temperature", "", "steps", ["mask_ratio", "language_temperature"]),
        ("Throughput", "tokens per second", "noisy", ["tokens_per_second"]),
        ("Packing and share of the peak", "", "line", ["packing_fill", "flops_utilization"]),
        ("Languages", "active languages", "steps", ["languages_active"]),
    ]
    panels: list[Panel] = []
    for title, label, kind, names in subjects:
        curves = {name: _curve(places, run.training[name]) for name in names if name in run.training}
        curves = {name: curve for name, curve in curves.items() if len(curve[0])}
        if curves:
            panels.append((title, _Curves(curves, label, unit, spans, kind)))
    ends = run.language_ends
    if ends:
        panels.append(("Held-out loss, first and last evaluation", lambda axis: _draw_languages(axis, ends)))
    return draw_panels(panels, Path(path), f"step {run.step:,} of {run.total_steps:,}")


def plot_recipe(recipe: Recipe, path: str | Path) -> Path:
    """Draw what a recipe plans: learning rate, mask ratio, temperature, row length and batch size over tokens.

    Args:
        recipe: The phases. Without ``total_tokens`` the axis is the share of the run.
        path: Picture to write; its ending says which kind (.png, .svg, .pdf).

    Returns:
        The path.

    Raises:
        ValueError: matplotlib is missing, or the kind is unknown.

    Example:
        >>> import tempfile
        >>> from mmbert_hf.presets import get_preset
        >>> plot_recipe(get_preset("tiny").recipe, tempfile.mkdtemp() + "/tiny.png").stat().st_size > 1000
        True
    """
    total, unit = recipe.total_tokens or 1.0, "tokens" if recipe.total_tokens else "share of the run"
    edges = [0.0, *recipe.boundaries, 1.0]
    spans = [(p.name, a * total, b * total) for p, (a, b) in zip(recipe.phases, pairwise(edges), strict=True)]
    progress = np.linspace(0.0, 1.0, POINTS_PER_PHASE)
    places = np.concatenate([first + progress * (last - first) for _, first, last in spans])
    subjects: list[tuple[str, str, dict[str, Callable[[Phase, float], float | None]]]] = [
        (
            "Learning rate",
            "" if all(phase.learning_rate for phase in recipe.phases) else "share of the peak, where none is named",
            {"learning_rate": lambda phase, at: (phase.learning_rate or 1.0) * phase.learning_rate_schedule.at(at)},
        ),
        (
            "Mask ratio and language temperature",
            "",
            {
                "mask_ratio": lambda phase, at: phase.mask_ratio,
                "language_temperature": lambda phase, at: phase.language_temperature,
            },
        ),
        ("Row length", "tokens", {"max_length": lambda phase, at: phase.max_length}),
        ("Batch size", "rows per step", {"batch_rows": batch_rows_at}),
    ]
    panels: list[Panel] = []
    for title, label, functions in subjects:
        curves = {}
        for name, value in functions.items():
            drawn = [value(phase, at) for phase in recipe.phases for at in progress]
            if None not in drawn:
                curves[name] = (places, np.array(drawn, dtype=float))
        if curves:
            panels.append((title, _Curves(curves, label, unit, spans)))
    return draw_panels(panels, Path(path), "")


def batch_rows_at(phase: Phase, progress: float) -> float | None:
    """Return the rows of a step at a fraction of a phase's tokens; None if the phase leaves them open.

    In the warm-up the tokens spent at size b are proportional to b, so ``b ** 2`` rises in a straight line.

    Example:
        >>> phase = Phase("a", 1.0, None, 0.7, 0.3, batch_rows=100, min_batch_rows=20, batch_warmup=0.5)
        >>> batch_rows_at(phase, 0.0), batch_rows_at(phase, 0.9)
        (20.0, 100.0)
    """
    full, least = phase.batch_rows, phase.min_batch_rows
    if full is None or least is None or progress >= phase.batch_warmup:
        return None if full is None else float(full)
    return math.sqrt(least**2 + progress / phase.batch_warmup * (full**2 - least**2))


class _Curves:
    """Draws curves over the run, with its phases behind them."""

    def __init__(
        self,
        curves: dict[str, tuple[np.ndarray, np.ndarray]],
        label: str,
        unit: str,
        spans: Spans,
        kind: Kind = "line",
    ) -> None:
        self.curves, self.label, self.unit, self.spans, self.kind = curves, label, unit, spans, kind

    def __call__(self, axis: "Axes") -> None:
        for (name, (places, values)), color in zip(self.curves.items(), ("run", "control"), strict=False):
            color = PALETTE[color][0]
            if self.kind == "noisy":
                axis.plot(places, values, color=color, alpha=0.25, linewidth=0.8)
                window = max(1, round(len(values) * SMOOTHING))
                for _, first, last in self.spans:
                    inside = (places > first) & (places <= last) if first else places <= last
                    axis.plot(places[inside], smooth(values[inside], window), color=color)
            else:  # a record tells of what led up to it
                style = "steps-pre" if self.kind == "steps" else "default"
                axis.plot(places, values, color=color, drawstyle=style, label=name.replace("_", " "))
        if len(self.curves) > 1:  # between title and plot, where it covers nothing
            axis.legend(loc="lower left", bbox_to_anchor=(-0.02, 0.98), ncols=2, handletextpad=0.4)
        low, high = axis.get_ylim()
        axis.set_ylim(low if self.kind == "noisy" else 0.0, high + 0.16 * (high - low or 1.0))  # room for the names
        end = self.spans[-1][2]
        for number, (name, first, last) in enumerate(self.spans):
            if number % 2:
                axis.axvspan(first, last, color=PALETTE["shade"][0], zorder=0, linewidth=0)
            is_narrow_end = last == end and last - first < 0.1 * end
            place, side = (last, "right") if is_narrow_end else ((first + last) / 2, "center")
            axis.text(place, 0.97, name, transform=axis.get_xaxis_transform(), ha=side, va="top", fontsize=SMALL_FONT)
        axis.set_xlim(0, max(end, 1e-9))
        axis.xaxis.set_major_formatter(lambda value, _: short_number(value))
        if high >= 1000:
            axis.yaxis.set_major_formatter(lambda value, _: short_number(value))
        axis.set(xlabel=self.unit.replace("_", " "), ylabel=self.label)


def short_number(value: float) -> str:
    """Return a number in few characters, as text on an axis.

    >>> short_number(2.3e12), short_number(600e9), short_number(0.5), short_number(0)
    ('2.3T', '600B', '0.5', '0')
    """
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


def _phases_of(run: RunLog, places: Sequence[float]) -> Spans:
    """Return name, first and last place of each phase that was logged, one for the whole run if none was."""
    phases = run.training.get("phase", [None] * len(places))
    starts = [0, *(place for place in range(1, len(places)) if phases[place] != phases[place - 1])]
    names = run.phase_names
    edges = [0.0, *(float(places[start - 1]) for start in starts[1:]), float(places[-1])]
    spans = []
    for start, (first, last) in zip(starts, pairwise(edges), strict=True):
        phase = phases[start]
        is_number = isinstance(phase, int) and 0 <= phase < len(names)
        spans.append((names[phase] if is_number else "" if phase is None else str(phase), first, last))
    return spans


def _curve(places: Sequence[float], values: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Return places and values of the records that have a number."""
    pairs = [(x, y) for x, y in zip(places, values, strict=True) if isinstance(y, (int, float)) and math.isfinite(y)]
    return np.array([x for x, _ in pairs], dtype=float), np.array([y for _, y in pairs], dtype=float)


def _draw_languages(axis: "Axes", ends: dict[str, tuple[float, float]]) -> None:
    chosen = sorted(ends, key=lambda code: abs(ends[code][1] - ends[code][0]), reverse=True)[:MOST_LANGUAGES]
    chosen.sort(key=lambda code: ends[code][1] - ends[code][0])
    for place, code in enumerate(chosen):
        axis.plot(ends[code], (place, place), color=PALETTE["run"][0], linewidth=1.2, alpha=0.5)
    for index, (label, color) in enumerate((("first", "before"), ("last", "run"))):
        values = [ends[code][index] for code in chosen]
        axis.plot(values, range(len(chosen)), "o", color=PALETTE[color][0], label=label, markersize=4.5)
    axis.set_yticks(range(len(chosen)), chosen, fontsize=SMALL_FONT if len(chosen) < 14 else 6.5)
    axis.set_ylim(len(chosen) - 0.5, -0.5)
    axis.set_xlabel("nats per masked token")
    axis.legend(loc="lower left", bbox_to_anchor=(-0.02, 0.98), ncols=2, handletextpad=0.4)
    if len(chosen) < len(ends):
        axis.set_ylabel(f"{len(chosen)} of {len(ends)} languages: most changed")


def draw_panels(panels: Sequence[Panel], path: Path, title: str) -> Path:
    """Draw panels in two columns and write the picture.

    Args:
        panels: Title, and the function that draws on the axes.
        path: The picture; its ending is the format.
        title: Of the whole, may be empty.

    Returns:
        `path`.

    Raises:
        ValueError: matplotlib is missing, or it cannot write that format.
    """
    check_can_plot()
    import matplotlib.style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    with matplotlib.style.context(["default", _STYLE]):
        figure = Figure(figsize=(columns * PANEL_INCHES[0], rows * PANEL_INCHES[1]), layout="constrained")
        canvas = FigureCanvasAgg(figure)
        kinds = canvas.get_supported_filetypes()
        if path.suffix.lstrip(".").lower() not in kinds:
            raise ValueError(
                f"{path} has no ending of a picture; take one of {', '.join(f'.{kind}' for kind in kinds)}"
            )
        axes = figure.subplots(rows, columns, squeeze=False).flatten()
        for axis, (name, draw) in zip(axes, panels, strict=False):
            draw(axis)
            axis.set_title(name, pad=6 if axis.get_legend() is None else 25)
        for axis in axes[len(panels) :]:
            axis.remove()
        figure.suptitle(title, x=0.99, ha="right", fontsize=SMALL_FONT)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=DPI)
    return path


_STYLE: dict[str, Any] = {
    "font.size": 10.0,
    "axes.titlesize": 11.0,
    "legend.fontsize": SMALL_FONT,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlecolor": PALETTE["ink"][0],
    "axes.edgecolor": PALETTE["muted"][0],
    "axes.labelcolor": PALETTE["muted"][0],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": PALETTE["grid"][0],
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "text.color": PALETTE["muted"][0],
    "xtick.color": PALETTE["muted"][0],
    "ytick.color": PALETTE["muted"][0],
}
