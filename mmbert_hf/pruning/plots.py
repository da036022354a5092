"""Pictures of a pruning: where the zeros are, which scores agree, and what changed between before and after.

Design decisions:

- A picture for each subject. One whose numbers are missing is left out; nothing is made up.
- Scores are compared by rank, on a sample of weights that depends on a seed alone, so that a picture of a large model
  costs no more than that of a small one.
- matplotlib is needed for pictures alone (extra ``[plots]``); rank correlations are computed without it.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmbert_hf.pruning.report import PruningReport
from mmbert_hf.pruning.result import PrunedEmbedder
from mmbert_hf.pruning.scores import METHODS, Scorer, StatisticsLike
from mmbert_hf.pruning.targets import Target, encoder_of, find_targets

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from sentence_transformers import SentenceTransformer

    from mmbert_hf.plotting import Panel

__all__ = ["plot_pruning", "score_rank_correlations"]

MAX_WEIGHTS = 200_000
COLOURS = {"dense": "before", "control": "control", "one-shot": "extend", "pruned": "run"}
OTHER_MODEL = "muted"
SMALLEST_ROOM = 16  # layers that a picture can name


def plot_pruning(
    pruned_or_report: PrunedEmbedder | PruningReport,
    folder: str | Path,
    statistics: StatisticsLike | None = None,
) -> list[Path]:
    """Draw what is known of a pruning.

    Args:
        pruned_or_report: What `GAPruner.prune` gave, or its report. The correlation of scores needs the dense model, so
            the first.
        folder: Where the pictures go: ``sparsity_per_layer.png`` (for models with zeros), ``score_correlation.png`` (with
            statistics), ``before_and_after.png`` (after `PrunedEmbedder.measure`).
        statistics: From `GAPruner.score`.

    Returns:
        The pictures that were written.

    Raises:
        ValueError: matplotlib is missing, there is nothing to draw, or statistics come without the dense model.

    Example:
        >>> import tempfile
        >>> report = PruningReport({}, sparsity_per_layer={"layers.0.mlp.Wi": 0.4, "layers.0.mlp.Wo": 0.6})
        >>> [path.name for path in plot_pruning(report, tempfile.mkdtemp())]
        ['sparsity_per_layer.png']
    """
    from mmbert_hf.plotting import check_can_plot, draw_panels

    check_can_plot()
    if isinstance(pruned_or_report, PruningReport):
        report, dense = pruned_or_report, None
    else:
        report, dense = pruned_or_report.report, pruned_or_report.dense
    pictures: dict[str, list[Panel]] = {}
    if report.sparsity_per_layer:
        pictures["sparsity_per_layer"] = [
            ("Share of zeros", partial(_draw_sparsity, sparsity=report.sparsity_per_layer))
        ]
    if statistics is not None:
        if dense is None:
            raise ValueError(
                "scores are those of the dense model, which is not there; give the PrunedEmbedder with its dense model, "
                "or leave the statistics out"
            )
        found = score_rank_correlations(dense, statistics)
        pictures["score_correlation"] = [("Rank correlation of scores", partial(_draw_matrix, matrix=found))]
    if panels := _comparison_panels(report.measured):
        pictures["before_and_after"] = panels
    if not pictures:
        raise ValueError(
            "there is nothing to draw: no zeros, no statistics given, and nothing was measured (measure())"
        )
    return [draw_panels(panels, Path(folder, f"{name}.png"), "") for name, panels in pictures.items()]


def score_rank_correlations(
    model: "SentenceTransformer",
    statistics: StatisticsLike,
    methods: Sequence[str] = METHODS,
    targets: Sequence[Target] | None = None,
    *,
    max_weights: int = MAX_WEIGHTS,
    seed: int = 0,
) -> dict[str, dict[str, float | None]]:
    """Spearman's rank correlation of every pair of scores, over the weights of all targets together.

    Args:
        model: The dense model.
        statistics: What its scores are made of.
        methods: Names of scores.
        targets: Linear layers; those of the feed-forwards if None.
        max_weights: Of more, so many are drawn at random, the same for every score.
        seed: Of the draw.

    Returns:
        Method -> method -> correlation, from -1 to 1; None where a score is the same for all weights.

    Raises:
        ValueError: An unknown method, fewer than two weights asked for, or scores that are not finite.

    Example:
        >>> score_rank_correlations(model, statistics, ["dai", "magnitude"])["dai"]["magnitude"]  # doctest: +SKIP
        0.9998
    """
    from scipy.stats import rankdata

    if max_weights < 2:
        raise ValueError(f"max_weights must be at least 2, got {max_weights}")
    encoder = encoder_of(model)
    names = [target.name for target in (find_targets(model, "mlp") if targets is None else targets)]
    weights = {name: encoder.get_submodule(name).weight.detach() for name in names}
    chosen = _sample([weight.numel() for weight in weights.values()], max_weights, seed)
    ranks = {}
    for method in methods:
        scorer = Scorer(method, weights, statistics)
        scores = [
            scorer.score(name).flatten().cpu().numpy()[places] for name, places in zip(names, chosen, strict=True)
        ]
        centred = rankdata(np.concatenate(scores))
        centred -= centred.mean()
        length = np.linalg.norm(centred)
        ranks[method] = centred / length if length else None
    return {a: {b: _product(ranks[a], ranks[b]) for b in methods} for a in methods}


def _sample(sizes: Sequence[int], most: int, seed: int) -> list[np.ndarray]:
    """For each layer the places that are looked at, in order."""
    edges = [0, *np.cumsum(sizes).tolist()]
    total = edges[-1]
    if total <= most:
        return [np.arange(size) for size in sizes]
    places = np.sort(np.random.default_rng(seed).choice(total, size=most, replace=False, shuffle=False))
    cuts: list[int] = np.searchsorted(places, edges).tolist()  # type: ignore[assignment]
    return [places[start:end] - first for start, end, first in zip(cuts[:-1], cuts[1:], edges[:-1], strict=True)]


def _product(a: np.ndarray | None, b: np.ndarray | None) -> float | None:
    return None if a is None or b is None else float(np.clip(a @ b, -1, 1))


def _comparison_panels(measured: Mapping[str, Any]) -> "list[Panel]":
    """Bars of what was measured, the models side by side."""
    models = measured.get("models", [])
    panels: list[Panel] = []
    for name, quality in measured.get("quality", {}).items():
        bars = {model: quality["ndcg_at_10"][model] for model in models}
        panels.append((f"nDCG@10, {name}", partial(_draw_bars, bars=bars, label="", form="{:.3f}")))
    if footprint := measured.get("footprint"):
        bars = {model: footprint[model]["bytes_on_disk"] / 1e6 for model in models}
        panels.append(("Size", partial(_draw_bars, bars=bars, label="MB on disk", form="{:.3g}")))
    if latency := measured.get("latency"):
        taken = {model: latency["seconds"][model] for model in models}
        bars = {model: each["median_seconds"] for model, each in taken.items()}
        spread = {model: (each["low_seconds"], each["high_seconds"]) for model, each in taken.items()}
        label = f"seconds for {latency['num_texts']} texts"
        panels.append(("Latency", partial(_draw_bars, bars=bars, label=label, form="{:.3g}", spread=spread)))
    return panels


def _draw_bars(
    axis: "Axes",
    bars: Mapping[str, float],
    label: str,
    form: str,
    spread: Mapping[str, tuple[float, float]] | None = None,
) -> None:
    from mmbert_hf.demo.figures import PALETTE

    highest = max(bars.values())
    for place, (name, value) in enumerate(bars.items()):
        axis.bar(place, value, color=PALETTE[COLOURS.get(name, OTHER_MODEL)][0], width=0.62)
        top = value
        if spread is not None:  # from the fastest to the slowest repeat
            low, top = spread[name]
            highest = max(highest, top)
            axis.plot((place, place), (low, top), color=PALETTE["ink"][0], linewidth=1.2)
        axis.text(place, top, form.format(value), ha="center", va="bottom")
    axis.set_xticks(range(len(bars)), list(bars))
    axis.set(ylabel=label, ylim=(0, 1.15 * highest or 1.0))


def _draw_sparsity(axis: "Axes", sparsity: Mapping[str, float]) -> None:
    from mmbert_hf.demo.figures import PALETTE, SMALL_FONT

    names, values = list(sparsity), list(sparsity.values())
    axis.barh(range(len(names)), values, color=PALETTE["run"][0], height=0.7)
    step = -(-len(names) // SMALLEST_ROOM)  # of more layers, every second or third is named
    shown = range(0, len(names), step)
    axis.set_yticks(shown, [names[place] for place in shown], fontsize=SMALL_FONT if len(shown) < 10 else 6.5)
    axis.set(xlim=(0, 1), ylim=(len(names) - 0.4, -0.6))
    axis.grid(axis="x")
    axis.grid(visible=False, axis="y")


def _draw_matrix(axis: "Axes", matrix: Mapping[str, Mapping[str, float | None]]) -> None:
    from mmbert_hf.demo.figures import SMALL_FONT

    names = list(matrix)
    values = np.array([[matrix[a][b] for b in names] for a in names], dtype=float)  # None becomes NaN: an empty field
    axis.imshow(values, cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto")
    for row, column in zip(*np.nonzero(np.isfinite(values)), strict=True):
        value = values[row, column]
        colour = "white" if abs(value) > 0.6 else "black"
        axis.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=6.5, color=colour)
    axis.set_xticks(range(len(names)), names, rotation=40, ha="right", fontsize=SMALL_FONT)
    axis.set_yticks(range(len(names)), names, fontsize=SMALL_FONT)
    axis.grid(visible=False)
