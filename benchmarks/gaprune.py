"""GAPrune measured: what scoring costs, what scores are worth, and how small a MiniLM gets for a domain.

    apt-get download dict-foldoc wordnet-base
    for f in *.deb; do dpkg-deb -x "$f" dictionaries; done
    python benchmarks/gaprune.py scoring --data dictionaries --output runs
    python benchmarks/gaprune.py quality --data dictionaries --output runs
    python benchmarks/gaprune.py smaller --data dictionaries --output runs
    python benchmarks/gaprune.py latency --data dictionaries --output runs   # of the same shape, on a quiet machine
    python benchmarks/gaprune.py report --output runs

Design decisions:

- Each part is configured in a file of its own (gaprune_scoring.py, gaprune_quality.py, gaprune_smaller.py), fixed before
  the final run. What was measured is kept in ``--output``; a part that was stopped goes on.
- `report` writes tables from that and measures nothing.
- Intervals are of paired differences per query (bootstrap, 95 %), with the mean over the seeds taken within a query.

Shape legend: Q queries.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gaprune_quality import DOMAIN_OF, METHODS, SEEDS, SPARSITIES, Cell, run_missing
from gaprune_scoring import measure_all, table
from gaprune_smaller import latencies, run_all, spread
from machine import describe
from report import say

DEFAULT = "dai-normalized"  # of GAPruneConfig
STAGES = {"one_shot": "one shot", "retrained": "after 100 steps"}
SMALLER = {"dense": "dense", "control": "dense, the same 100 steps", "pruned": "pruned, 100 steps"}


def quality_tables(cells: dict[str, dict[str, Any]]) -> str:
    """A table per embedder and sparsity: nDCG@10 on the test split, and the difference to magnitude.

    Args:
        cells: Records by file name, from gaprune_quality.py; those that are missing leave their row out.
    """
    parts = []
    for embedder, domain in DOMAIN_OF.items():
        for sparsity in SPARSITIES:
            lines = [
                f"### {embedder}, domain {domain}, {sparsity:.0%} of the feed-forward weights",
                "",
                "| method | "
                + " | ".join(f"{stage}: domain / general" for stage in STAGES.values())
                + " | after 100 steps, domain: minus magnitude (95 %) |",
                "|---|---|---|---|",
            ]
            for method in ("dense", *METHODS):
                own = _seeds(cells, embedder, method, 0.0 if method == "dense" else sparsity)
                if own is None:
                    continue
                values = [
                    " / ".join(_mean(own, stage, f"test/{name}") for name in ("domain", "general")) for stage in STAGES
                ]
                lines.append(
                    f"| {method} | {' | '.join(values)} | {_against(cells, own, embedder, method, sparsity)} |"
                )
            parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _seeds(
    cells: dict[str, dict[str, Any]], embedder: str, method: str, sparsity: float
) -> list[dict[str, Any]] | None:
    """The records of all seeds, or None if one is missing."""
    found = [cells.get(Cell(embedder, seed, method, sparsity).file) for seed in SEEDS]
    return [record for record in found if record is not None] if all(found) else None


def _mean(records: Sequence[dict[str, Any]], stage: str, name: str) -> str:
    return spread([float(np.mean(record[stage][name])) for record in records])


def _against(
    cells: dict[str, dict[str, Any]], own: list[dict[str, Any]], embedder: str, method: str, sparsity: float
) -> str:
    from mmbert_hf.evaluation import paired_bootstrap

    other = _seeds(cells, embedder, "magnitude", sparsity)
    if other is None or method in ("dense", "magnitude"):
        return ""
    mine, theirs = (
        np.mean([record["retrained"]["test/domain"] for record in records], axis=0) for records in (own, other)
    )
    difference, low, high = paired_bootstrap(mine, theirs)
    return f"{difference:+.4f} ({low:+.4f} to {high:+.4f})"


def quality_summary(cells: dict[str, dict[str, Any]], default: str = DEFAULT) -> str:
    """A row per method over all embedders and sparsities: domain nDCG@10, and the paired difference to the default's.

    Values of a query are means over seeds and sparsities first, so that each query counts once.

    Args:
        cells: As for `quality_tables`; a method of which a record is missing has no row.
        default: What the others are compared with.
    """
    from mmbert_hf.evaluation import paired_bootstrap

    values = {(method, stage): _per_query(cells, method, stage) for method in METHODS for stage in STAGES}
    lines = [
        "| method | " + " | ".join(f"{name}: domain | minus {default} (95 %)" for name in STAGES.values()) + " |",
        "|---|---|---|---|---|",
    ]
    for method in METHODS:
        columns = []
        for stage in STAGES:
            mine, theirs = values[method, stage], values[default, stage]
            if mine is None or theirs is None:
                break
            difference, low, high = paired_bootstrap(mine, theirs)
            versus = "" if method == default else f"{difference:+.4f} ({low:+.4f} to {high:+.4f})"
            columns += [f"{mine.mean():.4f}", versus]
        else:
            lines.append(f"| {method} | {' | '.join(columns)} |")
    return "\n".join(lines) if len(lines) > 2 else ""


def _per_query(cells: dict[str, dict[str, Any]], method: str, stage: str) -> np.ndarray | None:
    """Domain nDCG@10 of every query of every embedder, mean over seeds and sparsities; None if a record is missing."""
    parts = []
    for embedder in DOMAIN_OF:
        records = [_seeds(cells, embedder, method, sparsity) for sparsity in SPARSITIES]
        found = [record for own in records if own is not None for record in own]
        if len(found) < len(SPARSITIES) * len(SEEDS):
            return None
        parts.append(np.mean([record[stage]["test/domain"] for record in found], axis=0))
    return np.concatenate(parts)


def smaller_table(runs: Sequence[dict[str, Any]]) -> str:
    """The rows dense, control and pruned: quality, bytes, latency, mean and spread over the seeds."""
    lines = [
        "| model | nDCG@10 domain | general | bytes on disk, of dense | latency, of dense |",
        "|---|---|---|---|---|",
    ]
    quality = [run["retrained"]["quality"] for run in runs]
    for key, name in SMALLER.items():
        scores = [spread([each[part]["ndcg_at_10"][key] for each in quality]) for part in ("domain", "general")]
        costs = [run["retrained"] for run in runs]
        size = spread([c["footprint"][key]["bytes_on_disk"] / c["footprint"]["dense"]["bytes_on_disk"] for c in costs])
        speed = spread([c["latency"]["seconds"][key]["ratio"] for c in costs])
        lines.append(f"| {name} | {' | '.join(scores)} | {size} | {speed} |")
    one_shot = [
        spread([run["one_shot"][part]["ndcg_at_10"]["pruned"] for run in runs]) for part in ("domain", "general")
    ]
    lines.append(f"| pruned, one shot | {' | '.join(one_shot)} | the same | the same |")
    return "\n".join(lines)


def report(output: Path) -> str:
    """All tables for which there are measurements in the folder."""
    parts = []
    scoring = output / "scoring.json"
    if scoring.is_file():
        parts += ["## Scoring", table(json.loads(scoring.read_text(encoding="utf-8")))]
    cells = {path.name: json.loads(path.read_text(encoding="utf-8")) for path in (output / "cells").glob("*.json")}
    if cells:
        parts += ["## Scores", quality_tables(cells), quality_summary(cells)]
    smaller = output / "smaller.json"
    if smaller.is_file():
        parts += ["## Smaller", smaller_table(json.loads(smaller.read_text(encoding="utf-8"))["runs"])]
    return "\n\n".join(parts)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure one part, or write the tables."""
    parser = argparse.ArgumentParser(description="GAPrune: cost of scoring, worth of scores, smaller embedders.")
    parser.add_argument("part", choices=("scoring", "quality", "smaller", "latency", "report"))
    parser.add_argument("--data", type=Path, help="where dict-foldoc and wordnet-base were unpacked")
    parser.add_argument("--output", type=Path, required=True, help="folder for what is measured")
    parser.add_argument("--embedder", choices=tuple(DOMAIN_OF), help="quality: of this one alone")
    parser.add_argument("--seeds", type=int, nargs="+", choices=SEEDS, default=SEEDS, help="quality: of these alone")
    args = parser.parse_args(argv)
    if args.part == "report":
        say(report(args.output))
        return 0
    if args.data is None:
        parser.error("--data is needed to measure; see the top of this file")
    args.output.mkdir(parents=True, exist_ok=True)
    if args.part == "quality":
        embedders = [args.embedder] if args.embedder else tuple(DOMAIN_OF)
        run_missing(args.data, args.output, embedders, args.seeds)
        return 0
    parts = {"scoring": measure_all, "smaller": run_all, "latency": latencies}
    result = parts[args.part](args.data, args.output)
    result["machine"] = describe(str(torch.device("cpu")))
    (args.output / f"{args.part}.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
