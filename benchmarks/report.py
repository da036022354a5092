"""How results are shown: lines on the terminal, a Markdown table, a JSON file."""

import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["HEADER", "format_bytes", "markdown", "rows_of", "say", "table", "write_json"]

HEADER = (
    "case",
    "mode",
    "implementation",
    "seconds",
    "x ours",
    "95 % interval",
    "pairs",
    "tokens/s",
    "peak MB",
    "rate",
)
NOTHING = "-"
NUMBERS_IN_A_COLUMN = re.compile(r"\[[\s\d.,eE+-]+\]")  # lists of timings are read more easily in one line


def say(line: str = "") -> None:
    """Write a line to the terminal, now."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def format_bytes(count: int | None) -> str:
    """Bytes as megabytes (10^6).

    Example:
        >>> format_bytes(228_000_000), format_bytes(1_234_567), format_bytes(None)
        ('228', '1.2', '-')
    """
    if count is None:
        return NOTHING
    return f"{count / 1e6:.0f}" if abs(count) >= 1e7 else f"{count / 1e6:.1f}"


def rows_of(result: dict[str, Any]) -> list[list[str]]:
    """The rows of a case in one mode, one per implementation.

    Args:
        result: One of the ``results`` of the JSON file.

    Returns:
        Cells in the order of `HEADER`. ``x ours`` is the median ratio of the implementation's time to ours: above 1 we
        are faster.

    Example:
        >>> measured = {"median_seconds": 0.5, "tokens_per_second": 40.0, "matrix_rate_share": None}
        >>> memory = {"bytes": 3_000_000, "note": None}
        >>> result = {"case": "4x512", "mode": "inference", "pairs": 3, "ratios": {}}
        >>> rows_of(result | {"implementations": {"mmbert": {"time": measured, "peak_memory": memory}}})
        [['4x512', 'inference', 'mmbert', '0.5', '1', '-', '3', '40', '3.0', '-']]
    """
    rows: list[list[str]] = []
    for name, measured in result["implementations"].items():
        timed, ratio = measured["time"], result["ratios"].get(name)
        factor, interval = ("1" if timed and not rows else NOTHING), NOTHING
        if ratio is not None:
            factor = f"{ratio['median']:.3f}"
            interval = "none" if ratio["interval"] is None else "{:.3f}..{:.3f}".format(*ratio["interval"])
        share = timed["matrix_rate_share"] if timed else None
        rows.append(
            [
                result["case"],
                result["mode"],
                name,
                f"{timed['median_seconds']:.4g}" if timed else NOTHING,
                factor,
                interval,
                str(result["pairs"]) if timed else NOTHING,
                f"{timed['tokens_per_second']:.0f}" if timed else NOTHING,
                format_bytes(measured["peak_memory"]["bytes"]),
                NOTHING if share is None else f"{share:.1%}".replace("%", " %"),
            ]
        )
    return rows


WIDTHS = (6, 9, 22, 9, 7, 14, 5, 9, 7, 6)


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows in columns of fixed width, so that later rows line up with earlier ones.

    Example:
        >>> print(table([HEADER]))
        case    mode       implementation            seconds   x ours   95 % interval  pairs   tokens/s  peak MB    rate
    """
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if at < 3 else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, WIDTHS, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _load(load: list[float] | None) -> str:
    return "unknown" if load is None else f"{load[0]:.2f}"


def markdown(document: dict[str, Any]) -> str:
    """The results as a Markdown page.

    Args:
        document: What the JSON file holds.

    Returns:
        Command, machine, table and notes.
    """
    versions, processor, card = document["versions"], document["processor"], document["card"]
    where = (
        f"{processor['cpu']}, threads: {processor['threads']}"
        if card is None
        else f"{card['name']}, driver {card['driver']}"
    )
    commit = document["repository"]
    lines = [
        f"# Encoder benchmark ({document['date'][:10]})",
        "",
        f"    {document['command']}",
        "",
        f"{where}; torch {versions['torch']}, transformers {versions['transformers']}, mmbert-hf {versions['mmbert_hf']}"
        + (f", commit {commit['commit'][:12]}" + (" with changes" if commit["changed"] else "") if commit else "")
        + f". Load average at the start {_load(document['load_average_start'])}, at the end {_load(document['load_average_end'])}.",
        "",
        "Seconds: median. x ours: median of the paired ratios, time of the implementation / our time; above 1 we are",
        "faster. Interval: order statistics, at least 95 %. Tokens per second count real tokens. Peak: memory that one",
        "step adds, in 10^6 bytes. Rate: share of the card's peak bfloat16 matrix rate.",
        "",
        "| " + " | ".join(HEADER) + " |",
        "|" + "---|" * len(HEADER),
    ]
    lines += ["| " + " | ".join(row) + " |" for result in document["results"] for row in rows_of(result)]
    shares = {result["case"]: result["real_share"] for result in document["results"]}
    lines += [
        "",
        "Real tokens: " + ", ".join(f"{case} {share:.1%}".replace("%", " %") for case, share in shares.items()) + ".",
    ]
    lines += [""] + [f"- {note}" for note in document["notes"]] if document["notes"] else []
    return "\n".join(lines) + "\n"


def _in_a_row(numbers: re.Match[str]) -> str:
    return " ".join(numbers.group().split()).replace("[ ", "[").replace(" ]", "]")


def write_json(document: dict[str, Any], path: Path) -> None:
    """Write the results; a run that is stopped leaves the last whole file.

    Args:
        document: Plain values.
        path: Where to; its folder must be there.

    Raises:
        ValueError: If a value is NaN or infinite, which JSON does not have.
    """
    unfinished = path.with_name(f".{path.name}.incomplete")
    text = json.dumps(document, indent=1, allow_nan=False)
    unfinished.write_text(NUMBERS_IN_A_COLUMN.sub(_in_a_row, text) + "\n", encoding="utf-8")
    os.replace(unfinished, path)
