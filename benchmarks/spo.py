"""SPO measured: learning against GRPO at the same number of tokens, what the tracker costs, and long tails of generation.

    python benchmarks/spo.py select --output runs      # learning rates, on seeds 101 and 102
    python benchmarks/spo.py defaults --output runs    # SPOConfig's defaults, on seeds 101 to 103
    python benchmarks/spo.py learning --output runs    # seeds 1 to 10; --share 0 2 and --share 1 2 for two processes
    python benchmarks/spo.py overhead --output runs
    python benchmarks/spo.py report --output runs      # --json FILE for every number in one file
    python benchmarks/spo_long_tails.py                # has a page of its own

Design decisions:

- Each part is configured in a file of its own (spo_learning.py, spo_overhead.py), fixed before the final run. What was
  measured is kept in ``--output``; a part that was stopped goes on.
- `report` writes tables from that and measures nothing.
- "Share of GRPO's tokens" is where the mean curve first reaches GRPO's final mean; its interval resamples seeds, for both
  sides together, since a seed is the same policy and task on both.

Shape legend: S seeds, E evaluations.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import spo_learning
import spo_overhead
import spo_tasks
import torch
from machine import describe
from report import say
from spo_learning import CANDIDATES, METHODS, TASKS

RESAMPLES = 2000
POINTS = 61


def read_curves(
    output: Path, task: str, method: str, rate: float, name: str = "success"
) -> tuple[np.ndarray, np.ndarray] | None:
    """Tokens [E] and success rates [S, E] of a method on all seeds, or other shares; None if a seed is missing.

    Responses differ in length and starting samples are charged, so runs are measured at different numbers of tokens: their
    curves are read, by straight lines, at `POINTS` equal steps to the budget. Before starting samples are paid for, the
    policy is as it came.
    """
    grid = np.linspace(0, spo_learning.budget(spo_tasks.make(task)), POINTS)
    curves = []
    for seed in spo_learning.seeds_of(method):
        path = output / spo_learning.Cell(task, method, seed, rate).file
        if not path.is_file():
            return None
        points = json.loads(path.read_text(encoding="utf-8"))["curve"]
        curves.append(np.interp(grid, *([point[column] for point in points] for column in ("tokens", name))))
    return grid, np.array(curves)


def tokens_to_reach(tokens: np.ndarray, mean: np.ndarray, level: float) -> float:
    """Where a curve first reaches a level, by straight lines between its points; infinite if it never does.

    Example:
        >>> tokens_to_reach(np.array([0.0, 10.0]), np.array([0.0, 1.0]), 0.5)
        5.0
    """
    above = np.flatnonzero(mean >= level)
    if not above.size:
        return float("inf")
    last = int(above[0])
    if last == 0:
        return float(tokens[0])
    rise = (level - mean[last - 1]) / (mean[last] - mean[last - 1])
    return float(tokens[last - 1] + rise * (tokens[last] - tokens[last - 1]))


def compare(
    tokens: np.ndarray, values: np.ndarray, grpo_tokens: np.ndarray, grpo: np.ndarray, seed: int = 0
) -> dict[str, Any]:
    """Final success against GRPO, and the share of its tokens that reach its final success, with 95 % intervals.

    Args:
        tokens: [E].
        values: [S, E].
        grpo_tokens: [E'].
        grpo: [S, E'], the same seeds.
        seed: Of the resampling of seeds.
    """
    rng = np.random.default_rng(seed)
    picks = rng.integers(0, len(values), (RESAMPLES, len(values)))
    differences = [float((values[pick, -1] - grpo[pick, -1]).mean()) for pick in picks]
    shares = [tokens_to_reach(tokens, values[pick].mean(0), grpo[pick, -1].mean()) / grpo_tokens[-1] for pick in picks]
    return {
        "difference": float((values[:, -1] - grpo[:, -1]).mean()),
        "difference_interval": np.quantile(differences, (0.025, 0.975)).tolist(),
        "share": tokens_to_reach(tokens, values.mean(0), grpo[:, -1].mean()) / grpo_tokens[-1],
        "share_interval": np.quantile(shares, (0.025, 0.975), method="nearest").tolist(),
    }


def learning_table(output: Path, task: str) -> str | None:
    """A row for each method that all seeds have been run with."""
    rates = spo_learning.chosen_rates(output, task)
    base = read_curves(output, task, "grpo", rates["grpo"])
    if base is None:
        return None
    lines = [
        f"### {task}",
        "",
        "| method | learning rate | final success | half of the tokens | still hard | minus GRPO (95 %) "
        "| share of GRPO's tokens (95 %) |",
        "|---|---|---|---|---|---|---|",
    ]
    for method in METHODS:
        found = read_curves(output, task, method, rates[method])
        hard = read_curves(output, task, method, rates[method], "hard")
        if found is None or hard is None:
            continue
        tokens, values = found
        half = values[:, np.searchsorted(tokens, base[0][-1] / 2)]
        figures = compare(*found, base[0], base[1][: len(values)])  # the same seeds
        low, high = figures["difference_interval"]
        is_base = method == "grpo"
        versus = "" if is_base else f"{figures['difference']:+.3f} ({low:+.3f} to {high:+.3f})"
        lines.append(
            f"| {method} | {rates[method]:g} | {_spread(values[:, -1])} | {_spread(half)} | {_spread(hard[1][:, -1])} "
            f"| {versus} | {'1.00' if is_base else _share(figures)} |"
        )
    return "\n".join(lines)


def _spread(values: np.ndarray) -> str:
    return f"{values.mean():.3f} +- {values.std(ddof=1):.3f}"


def _share(figures: dict[str, Any]) -> str:
    def text(value: float) -> str:
        return "-" if np.isinf(value) else f"{value:.2f}"

    ends = [text(value) for value in figures["share_interval"]]
    return "-" if ends == ["-", "-"] else f"{text(figures['share'])} ({ends[0]} to {ends[1]})"


def candidates_table(output: Path) -> str:
    """Final success of each candidate for the defaults, seed by seed."""
    cells = list(spo_learning.candidate_cells())
    columns = list(dict.fromkeys((cell.task, cell.seed) for cell in cells))
    found = {(cell.method, cell.task, cell.seed): output / cell.file for cell in cells}
    lines = [
        f"| candidate | {' | '.join(f'{task}, {seed}' for task, seed in columns)} |",
        f"|---|{'---|' * len(columns)}",
    ]
    for name in CANDIDATES:
        paths = [found.get((f"candidate {name}", *column)) for column in columns]
        lines.append(f"| {name} | {' | '.join(map(_final, paths))} |")
    return "\n".join(lines)


def _final(path: Path | None) -> str:
    if path is None or not path.is_file():
        return ""
    return f"{json.loads(path.read_text(encoding='utf-8'))['curve'][-1]['success']:.3f}"


def overhead_table(result: dict[str, Any]) -> str:
    """Milliseconds a round, and the share of each step."""
    steps = result["steps"]
    heads = [f"share of a step: {name}, {1e3 * step['seconds']:,.0f} ms" for name, step in steps.items()]
    lines = [f"| prompts | ms a round (min - max) | {' | '.join(heads)} |", f"|---|---|{'---|' * len(steps)}"]
    for number, seconds in result["rounds"].items():
        low, high = 1e3 * seconds["min"], 1e3 * seconds["max"]
        shares = [f"{seconds['median'] / step['seconds']:.2%}" for step in steps.values()]
        lines.append(
            f"| {int(number):,} | {1e3 * seconds['median']:.2f} ({low:.2f} - {high:.2f}) | {' | '.join(shares)} |"
        )
    return "\n".join(lines)


def report(output: Path) -> str:
    """All tables for which there are measurements in the folder."""
    parts = []
    for task in TASKS:
        if any(output.glob(f"{task}-grpo-1-*.json")):
            table = learning_table(output, task)
            parts += [table] if table else []
    if any(output.glob("addition-candidate *.json")):
        parts.append(candidates_table(output))
    overhead = output / "overhead.json"
    if overhead.is_file():
        parts.append(overhead_table(json.loads(overhead.read_text(encoding="utf-8"))))
    return "\n\n".join(parts)


def collected(output: Path) -> dict[str, Any]:
    """Every run of the folder with its curve, and what the tracker costs, as one record; shares rounded to four digits."""
    runs = []
    for path in sorted(output.glob("*-*-*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        points = record.pop("curve")
        columns = {name: [round(point[name], 4) for point in points] for name in points[0]}
        runs.append({**record["cell"], **{name: record[name] for name in record if name != "cell"}, **columns})
    overhead = output / "overhead.json"
    costs = {"overhead": json.loads(overhead.read_text(encoding="utf-8"))} if overhead.is_file() else {}
    return {"runs": runs, **costs}


def write_collected(record: dict[str, Any], path: Path) -> None:
    """Write a record with one line for each run."""
    lines = ",\n".join(json.dumps(run) for run in record["runs"])
    rest = "".join(f',\n"{name}": {json.dumps(value)}' for name, value in record.items() if name != "runs")
    path.write_text(f'{{"runs": [\n{lines}\n]{rest}}}\n', encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure one part, or write the tables."""
    parser = argparse.ArgumentParser(description="SPO: learning against GRPO, cost of the tracker.")
    parser.add_argument("part", choices=("defaults", "select", "learning", "overhead", "report"))
    parser.add_argument("--output", type=Path, required=True, help="folder for what is measured")
    parser.add_argument("--json", type=Path, help="of report: a file for every number")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS)
    parser.add_argument("--share", type=int, nargs=2, default=(0, 1), metavar=("PART", "PARTS"), help="of the cells")
    args = parser.parse_args(argv)
    tasks = tuple(args.tasks)
    args.output.mkdir(parents=True, exist_ok=True)
    if args.part == "report":
        say(report(args.output))
        if args.json:
            write_collected(collected(args.output), args.json)
    elif args.part == "overhead":
        result = spo_overhead.measure_all() | {"machine": describe(str(torch.device("cpu")))}
        (args.output / "overhead.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
        say(overhead_table(result))
    else:
        cells = {
            "defaults": spo_learning.candidate_cells,
            "select": lambda: spo_learning.selection_cells(tasks),
            "learning": lambda: spo_learning.final_cells(args.output, tasks),
        }[args.part]()
        spo_learning.run_missing(cells, args.output, *args.share)
    return 0


if __name__ == "__main__":
    sys.exit(main())
