"""The demo's last stage: ``metrics.json``, PNG plots and a self-contained ``report.html``.

Design decisions:

- The page is one file: style, script and drawings (inline SVG) are inside, nothing is fetched, and a content security
  policy in the page forbids it. It can be mailed, archived and opened offline.
- It reads without JavaScript; the script only sorts and filters the table of languages.
- Sentences come from `mmbert_hf.demo.verdicts`, figures from `mmbert_hf.demo.plots`, layout from
  ``report_template.html``. A number that is missing in the metrics reads "not measured", a number that is not finite is
  refused: there is no third way to show something that was not measured.
"""

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from mmbert_hf.demo.figures import PALETTE, TIERS
from mmbert_hf.demo.plots import SPO_FIGURES, can_plot, draw_plots
from mmbert_hf.demo.verdicts import loss_change, summary, verdicts
from mmbert_hf.demo.wording import NOT_MEASURED, RELOAD_THRESHOLD, scientific, signed
from mmbert_hf.recipes import Recipe

METRICS_FILE = "metrics.json"
REPORT_FILE = "report.html"
PLOTS_FOLDER = "plots"
CHECKPOINTS = ("before_decay", "after_decay", "after_control")
# Of the pruned embedder -> what the table calls it.
MODELS = {
    "dense": "dense, as it came",
    "control": "dense, same training",
    "one-shot": "pruned, one-shot",
    "pruned": "pruned, retrained",
}
# Top-level order of metrics.json: how it was made, then what came out. Other keys follow alphabetically.
KEY_ORDER = (
    "checks",
    *("seed", "seconds", "stages", "settings", "versions", "machine", "corpus", "parameters", "added_languages"),
    *("prune", "spo", "phases", "control_phases", "hub", "bitext", "heldout_mean", "heldout", "names"),
)
NOT_DRAWN = "not drawn: matplotlib is missing (pip install 'mmbert-hf[demo]')"
# Group of prompts -> what the table calls it.
GROUPS = {
    "all": "all",
    "fitted": "fitted: the answers were shown",
    "rewarded": "rewarded: asked by SPO alone",
    "unseen": "unseen: never asked",
}
# What the plots read from a log record.
PLOTTED = ("step", "loss", "learning_rate", "mask_ratio", "language_temperature")


def write_report(
    folder: Path,
    metrics: dict[str, Any],
    histories: dict[str, list[dict[str, Any]]],
    recipe: Recipe | None,
) -> dict[str, Any]:
    """Write ``metrics.json``, ``plots/*.png`` and ``report.html``. Without matplotlib there are no plots.

    Args:
        folder: Of the demo; created if missing.
        metrics: What `mmbert_hf.demo.pipeline.run_demo` collected. Any part may be missing: its section then says "not
            measured". Losses are in nats per masked token, accuracies in [0, 1].
        histories: The trainer's log records of ``run`` and ``control``.
        recipe: The phases of the encoder's run; None if there was none.

    Returns:
        ``report`` (file name) and ``plots`` (paths of the PNG files), relative to `folder`, as JSON types.

    Raises:
        ValueError: A number is NaN or infinite; the message says which.
        TypeError: A value is no JSON type; the message says which.
    """
    check_json(metrics, "metrics")
    check_json(_plotted(histories), "histories")
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(sort_metrics(metrics), indent=2, ensure_ascii=False, allow_nan=False)
    (folder / METRICS_FILE).write_text(f"{text}\n", encoding="utf-8")
    # In the settings None is a choice ("all languages"), elsewhere it is a gap.
    known = {**without_nulls(metrics), "settings": metrics.get("settings") or {}}
    for part in ("prune", "spo"):
        if known.get(part):
            known[part] = {**known[part], "settings": (metrics.get(part) or {}).get("settings") or {}}
    drawings = {}
    if can_plot():
        drawings = draw_plots(folder / PLOTS_FOLDER, known, histories, recipe)
    page = render_page(known, drawings, folder.resolve().name)
    (folder / REPORT_FILE).write_text(page, encoding="utf-8")
    return {"report": REPORT_FILE, "plots": [f"{PLOTS_FOLDER}/{name}.png" for name in drawings]}


def check_json(value: Any, where: str) -> None:
    """Check that a value is made of JSON types and finite numbers.

    Args:
        value: Anything.
        where: Its name, for the message.

    Raises:
        ValueError: A number in it is NaN or infinite.
        TypeError: Something in it is no JSON type.
    """
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise TypeError(f"{where} has the key {key!r} ({type(key).__name__}); JSON keys are strings")
            check_json(item, f"{where}.{key}")
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            check_json(item, f"{where}[{number}]")
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where} is {value}; a report shows finite numbers only: measure it again or leave it out")
    elif value is not None and not isinstance(value, bool | int | float | str):
        raise TypeError(f"{where} is a {type(value).__name__}; convert it to a Python number, string, list or dict")


def without_nulls(value: Any) -> Any:
    """Return the value without the entries of its dicts that are None, at any depth: null is "not measured"."""
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list | tuple) else value


def sort_metrics(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metrics in the order of `KEY_ORDER`, what is kept per language sorted by its code."""
    ordered = {key: metrics[key] for key in (*KEY_ORDER, *sorted(set(metrics) - set(KEY_ORDER))) if key in metrics}
    for key in ("heldout", "names"):
        if ordered.get(key):
            ordered[key] = dict(sorted(ordered[key].items()))
    bitext = ordered.get("bitext")
    if bitext and bitext.get("per_language"):
        ordered["bitext"] = {**bitext, "per_language": dict(sorted(bitext["per_language"].items()))}
    return ordered


def render_page(metrics: Mapping[str, Any], drawings: Mapping[str, str], folder_name: str) -> str:
    """Return the page as HTML.

    Args:
        metrics: See `write_report`.
        drawings: From `draw_plots`; a figure that is not there reads "not measured".
        folder_name: Of the demo, for the command that repeats it.
    """
    from jinja2 import ChainableUndefined, Environment

    environment = Environment(autoescape=True, undefined=ChainableUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(
        number=format_number, percent=format_percent, signed=_format_signed, scientific=_format_scientific
    )
    template = files("mmbert_hf.demo").joinpath("report_template.html").read_text(encoding="utf-8")
    return environment.from_string(template).render(
        metrics=metrics,
        drawings=drawings,
        summary=summary(metrics),
        verdicts=verdicts(metrics),
        rows=heldout_rows(metrics),
        tier_rows=_tier_rows(metrics),
        fallen=_count_fallen(metrics),
        command=repeat_command(metrics, folder_name),
        prune_rows=prune_rows(metrics.get("prune", {})),
        spo_rows=spo_rows(metrics.get("spo", {})),
        spo_figures=SPO_FIGURES,
        checkpoints=CHECKPOINTS,
        palette=PALETTE,
        tiers=TIERS,
        threshold=RELOAD_THRESHOLD,
        not_measured=NOT_MEASURED,
        not_drawn=NOT_MEASURED if can_plot() else NOT_DRAWN,
    )


def heldout_rows(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of the table of languages: the added ones first, then tier by tier, by code."""
    names, added = metrics.get("names", {}), metrics.get("added_languages", ())
    rows = [
        {**row, "code": code, "name": names.get(code), "change": loss_change(row), "added": code in added}
        for code, row in metrics.get("heldout", {}).items()
    ]
    order = {tier: number for number, tier in enumerate(TIERS)}
    return sorted(rows, key=lambda row: (not row["added"], order.get(row.get("tier", ""), len(order)), row["code"]))


def prune_rows(prune: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of the table of the pruned embedder: a model each, with what was measured of it.

    Args:
        prune: The ``prune`` record of the metrics.

    Returns:
        ``name``, ``footprint``, ``seconds``, and per set ``ndcg`` and ``difference`` (that of the retrained model to this
        one); empty where nothing was measured.
    """
    quality, seconds = prune.get("quality", {}), prune.get("latency", {}).get("seconds", {})
    return [
        {
            "name": MODELS.get(model, model),
            "footprint": prune.get("footprint", {}).get(model, {}),
            "seconds": seconds.get(model, {}),
            "ndcg": {name: each.get("ndcg_at_10", {}).get(model) for name, each in quality.items()},
            "difference": {name: each.get("difference", {}).get(model, {}) for name, each in quality.items()},
        }
        for model in prune.get("models", ())
    ]


def spo_rows(spo: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of the table of the policy: a group of prompts each, with its accuracy before and after.

    Args:
        spo: The ``spo`` record of the metrics.

    Returns:
        ``name``, and what was measured of the group; empty where nothing was measured.
    """
    quality = spo.get("quality", {})
    return [{**quality[group], "name": name} for group, name in GROUPS.items() if group in quality]


def repeat_command(metrics: Mapping[str, Any], folder_name: str) -> str | None:
    """Return the command that repeats the run, a line for each part unless one does all; None if settings are missing."""
    command = f"mmbert demo --output-dir {shlex.quote(folder_name)}"
    settings = {part: metrics.get(part, {}).get("settings", {}) for part in ("prune", "spo")}
    encoder = metrics.get("settings", {})
    parts = [part for part in settings if settings[part].get("seed") is not None]
    lines = [f"{command} --only {part} --seed {settings[part]['seed']}" for part in parts]
    if not encoder and not metrics.get("phases"):
        return "\n".join(lines) or None
    options = {
        "seed": encoder.get("seed"),
        "steps": encoder.get("steps"),
        "max-languages": encoder.get("max_languages"),
    }
    if options["seed"] is None or options["steps"] is None:
        return None
    given = " ".join(f"--{name} {value}" for name, value in options.items() if value is not None)
    if len(parts) == len(settings) and all(each["seed"] == options["seed"] for each in settings.values()):
        return f"{command} {given}"
    return "\n".join([f"{command} --only encoder {given}", *lines])


def format_number(value: Any, digits: int | None = None) -> str:
    """Return a number for a table cell: thousands grouped, `digits` decimals (all of them if None), a dash if missing.

    >>> format_number(1234567), format_number(2.5, 3), format_number(None)
    ('1,234,567', '2.500', '–')
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "–"
    return f"{value:,}" if digits is None else f"{value:,.{digits}f}"


def format_percent(value: Any, digits: int = 1) -> str:
    """Return a fraction as a percentage, a dash if missing."""
    return f"{100 * value:.{digits}f}\u00a0%" if isinstance(value, int | float) else "–"


def _format_signed(value: Any) -> str:
    return signed(value) if isinstance(value, int | float) else "–"


def _format_scientific(value: Any) -> str:
    return scientific(value) if isinstance(value, int | float) else NOT_MEASURED


def _plotted(histories: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Return the part of the histories that the plots read."""
    return {
        name: {
            f"step {record.get('step')}": {key: record[key] for key in PLOTTED if key in record}
            for record in records
            if "loss" in record
        }
        for name, records in histories.items()
    }


def _tier_rows(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the means over the languages of each tier, with the number of languages."""
    means, heldout = metrics.get("heldout_mean", {}), metrics.get("heldout", {})
    sizes = {tier: sum(row.get("tier") == tier for row in heldout.values()) for tier in means}
    return [
        {**means[tier], "tier": tier, "size": sizes[tier], "change": loss_change(means[tier])}
        for tier in TIERS
        if tier in means
    ]


def _count_fallen(metrics: Mapping[str, Any]) -> tuple[int, int]:
    """Return in how many languages the held-out loss fell in the decay, and of how many."""
    changes = [loss_change(row) for row in metrics.get("heldout", {}).values()]
    measured = [change for change in changes if change is not None]
    return sum(change < 0 for change in measured), len(measured)
