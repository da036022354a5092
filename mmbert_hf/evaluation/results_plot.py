"""A picture of the scores: bars by data set and language, one panel for each metric."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mmbert_hf.demo.figures import PALETTE, SMALL_FONT
from mmbert_hf.evaluation.results import EvaluationResults, Summary
from mmbert_hf.plotting import Panel, draw_panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_results"]

MOST_PANELS = 6
MOST_BARS = 30  # that a panel can name
FEW_BARS = 4  # room for so many at least: a lone bar should not fill a panel


def plot_results(results: EvaluationResults, path: str | Path) -> Path:
    """Draw the main scores, with their standard deviation over the seeds.

    Args:
        results: What was measured.
        path: Picture to write; its ending says which kind (.png, .svg, .pdf).

    Returns:
        The path.

    Raises:
        ValueError: matplotlib is missing, there are no scores, or the kind is unknown.
    """
    groups: dict[str, list[Summary]] = {}
    for each in results.summaries():
        groups.setdefault(each.score.metric, []).append(each)
    if not groups:
        raise ValueError("there are no scores to draw")
    panels: list[Panel] = []
    for metric, summaries in list(groups.items())[:MOST_PANELS]:
        title = metric.replace("_", " ") + ("" if summaries[0].score.higher_is_better else " (less is better)")
        panels.append((title, _Bars(summaries)))
    path = Path(path)
    unfinished = path.with_name(f".{path.stem}.{os.getpid()}.incomplete{path.suffix}")
    try:
        draw_panels(panels, unfinished, "").replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


class _Bars:
    """Draws one bar for each data set and language, the best first."""

    def __init__(self, summaries: Sequence[Summary]) -> None:
        self.is_cut = len(summaries) > MOST_BARS
        better = summaries[0].score.higher_is_better
        ordered = sorted(summaries, key=lambda each: each.score.value, reverse=better)
        self.summaries = ordered[:MOST_BARS]
        self.total = len(summaries)

    def __call__(self, axis: Axes) -> None:
        places = range(len(self.summaries))
        values = [each.score.value for each in self.summaries]
        axis.barh(places, values, color=PALETTE["run"][0], height=0.7)
        for place, each in zip(places, self.summaries, strict=True):
            if len(values) < 14:
                axis.text(each.score.value, place, f" {each.score.value:.3f}", va="center", fontsize=SMALL_FONT)
            if each.deviation:
                axis.errorbar(each.score.value, place, xerr=each.deviation, color=PALETTE["ink"][0], capsize=2)
        names = [each.score.where for each in self.summaries]
        axis.set_yticks(places, names, fontsize=SMALL_FONT if len(names) < 14 else 5.5)
        axis.set_ylim(max(len(names), FEW_BARS) - 0.5, -0.5)
        axis.grid(axis="y", visible=False)
        axis.grid(axis="x", visible=True)
        if self.is_cut:
            axis.set_xlabel(f"the best {len(self.summaries)} of {self.total}")
