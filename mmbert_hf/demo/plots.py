"""The figures of the demo's report as files: PNG for slides, inline SVG for the page.

Design decisions:

- Every figure is drawn once and written twice. The PNG is light; in the SVG each colour of `PALETTE` becomes a CSS
  variable of the same name and text stays text, so the page follows the reader's light or dark scheme and font.
- Figures are small (460 CSS pixels wide): one fills a phone, two stand side by side on a desktop.
- matplotlib is imported inside the functions (extra ``[demo]``), and neither its global state nor the user's
  ``matplotlibrc`` is changed or followed.
"""

import importlib.util
import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmbert_hf.demo.figures import FIGURES, PALETTE, SMALL_FONT, PlotData
from mmbert_hf.recipes import Recipe
from mmbert_hf.trainers.spo.plots import PANELS, draw_panel

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Name -> panel of a run of SPO.
SPO_FIGURES = {f"spo_{name}": name for name in PANELS}
SPO_HEIGHT_INCHES = 3.1
WIDTH_INCHES = 4.8
PNG_DPI = 150


def can_plot() -> bool:
    """Tell whether matplotlib can be imported. Where it cannot, the demo runs all the same and draws nothing."""
    return importlib.util.find_spec("matplotlib") is not None


def draw_plots(
    folder: Path,
    metrics: Mapping[str, Any],
    histories: Mapping[str, Sequence[Mapping[str, Any]]],
    recipe: Recipe | None,
) -> dict[str, str]:
    """Draw the figures of the report.

    Args:
        folder: Gets one PNG per figure; created if missing.
        metrics: Settings and measurements.
        histories: Log records per training.
        recipe: The phases of the encoder's run; None if there was none.

    Returns:
        Name of the figure (the PNG's without its ending) -> ``<svg>`` element for a page that defines `PALETTE`.
        Figures whose numbers are missing are left out.

    Raises:
        ImportError: matplotlib is missing.
    """
    import matplotlib.style
    from matplotlib.figure import Figure

    folder.mkdir(parents=True, exist_ok=True)
    drawings = {}
    for name, draw, height in _figures(metrics, histories, recipe):
        with matplotlib.style.context(["default", _style(name)]):
            figure = Figure(figsize=(WIDTH_INCHES, height), layout="constrained")
            if draw(figure.subplots()):
                figure.savefig(folder / f"{name}.png", dpi=PNG_DPI, metadata={"Software": None})
                drawings[name] = _inline_svg(figure, name)
    return drawings


def _figures(
    metrics: Mapping[str, Any], histories: Mapping[str, Sequence[Mapping[str, Any]]], recipe: Recipe | None
) -> "Iterator[tuple[str, Callable[[Axes], bool], float]]":
    """Yield name, what draws it and tells whether there was anything to draw, and height in inches."""
    if recipe is not None:
        data = PlotData(metrics, histories, recipe)
        draw: Any
        for name, (draw, height) in FIGURES.items():
            yield name, partial(draw, data=data), height
    spo = metrics.get("spo", {})
    tables = {**spo.get("values", {}), "log": spo.get("training", {}).get("log", {})}
    for name, panel in SPO_FIGURES.items():
        yield name, partial(_draw_spo, panel=panel, tables=tables), SPO_HEIGHT_INCHES


def _draw_spo(axis: "Axes", panel: str, tables: Mapping[str, Any]) -> bool:
    """Draw a panel of the run of SPO, its title above the legend."""
    if not draw_panel(axis, panel, tables):
        return False
    axis.set_title(PANELS[panel], pad=8 if axis.get_legend() is None else 25)
    return True


def _style(name: str) -> dict[str, Any]:
    ink, muted, grid = (PALETTE[color][0] for color in ("ink", "muted", "grid"))
    return {
        "font.size": 10.5,
        "axes.titlesize": 11.5,
        "legend.fontsize": SMALL_FONT,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.titlecolor": ink,
        "axes.edgecolor": muted,
        "axes.labelcolor": muted,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": grid,
        "grid.linewidth": 0.6,
        "legend.frameon": False,
        "lines.linewidth": 1.6,
        "text.color": ink,
        "xtick.color": muted,
        "ytick.color": muted,
        "svg.fonttype": "none",  # text, not outlines
        "svg.hashsalt": name,  # the same figure gives the same file
    }


def _inline_svg(figure: Any, name: str) -> str:
    """Return the figure as an SVG element for an HTML page: no metadata, no namespaces, ids of its own, CSS colours."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg).replace("xlink:href=", "href=")
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r'(<svg\b[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg\b[^>]*?) height="[^"]*"', rf'\1 role="img" aria-labelledby="{name}-caption"', svg, count=1)
    for color, (light, _) in PALETTE.items():
        svg = svg.replace(light, f"var(--{color})")
    return svg
