"""What single streams gain over groups when a few trajectories take very long: engines simulated, no model.

    OMP_NUM_THREADS=1 nice python benchmarks/spo_long_tails.py --output docs/results/spo-long-tails.json

SPO (arXiv 2509.13232) reports 4.35 times the throughput of GRPO on agentic trajectories, from a simulation. Here: which
lengths give that number and against what, what the same lengths do against engines that people run, and what it costs.

Design decisions:

- Everything is fixed here: batch, groups, slots, seeds, number of batches. The policies are those of `spo_engines.py`.
- The comparison behind 4.35 is taken to be: 256 slots; GRPO launches 32 groups of 8 and trains on the first 16 that are
  complete, a single stream launches 256 and trains on the first 128; both throw the rest away. The law of the lengths is
  open, so several are tried, and the parameter of each is solved for on the expected order statistics, which are exact;
  simulation then checks it. `SETTINGS` are these parameters, rounded, and serve all other tables.
- Slots are what an engine costs, so next to throughput stands the share of slot time that was spent on what is trained on.
- A number is the mean over the seeds with the half-width of its 95 % interval (Student's t over the seeds). Policies of one
  seed that need equally many lengths see the same ones; ratios are taken within a seed.
"""

import argparse
import dataclasses
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from report import say, write_json
from spo_engines import LATE, Timeline, carry_over, first_complete, measure, slot_refill
from spo_lengths import LONGEST, Law, draw, expected_batch_time

BATCH, GROUP, LAUNCHED, SLOTS = 128, 8, 256, 128
SEEDS, NUM_WARMUP, NUM_BATCHES = tuple(range(32)), 50, 250
PAPER_SPEEDUP = 4.35
# A law, the parameter that was tried first, and where to look for the one that gives 4.35.
SEARCHES: dict[str, tuple[Law, tuple[float, float]]] = {
    "lognormal, sigma": (Law("lognormal", 1.08), (0.5, 2.0)),
    "Pareto, tail index": (Law("pareto", 1.22), (0.7, 3.0)),
    "10 % stragglers, factor; others spread 0.2": (Law("stragglers", 6.5), (2.0, 15.0)),
    "10 % stragglers, factor; others equal": (Law("stragglers", 6.5, body_spread=0.0), (2.0, 15.0)),
    "10 % stragglers, factor; others spread 0.5": (Law("stragglers", 6.5, body_spread=0.5), (2.0, 15.0)),
}
SETTINGS: dict[str, Law] = {
    "lognormal 1.07": Law("lognormal", 1.07),
    "Pareto 1.22": Law("pareto", 1.22),
    "10 % stragglers at 6.6": Law("stragglers", 6.6),
    "lognormal 1.07, half of the variance the prompt's": Law("lognormal", 1.07, prompt_share=0.5),
}
PROMPT_SHARES, SLOT_COUNTS = (0.0, 0.25, 0.5, 0.75), (64, 128, 256, 512)
SLOW_POOL, SLOW_UPDATE = 512, 2.0  # trajectories; medians: an update outlasts most trajectories


@dataclasses.dataclass(frozen=True)
class Policy:
    """An engine with its settings: its slots, the size of its groups, how many lengths it takes."""

    slots: int
    group_size: int
    num_trajectories: int
    run: Callable[[np.ndarray], Timeline]


def _first(group_size: int, launched: int) -> Policy:
    needed = NUM_BATCHES * launched
    return Policy(launched, group_size, needed, lambda lengths: first_complete(lengths, BATCH, launched))


def _refill(group_size: int, slots: int) -> Policy:
    needed = NUM_BATCHES * BATCH + slots * group_size
    return Policy(slots, group_size, needed, lambda lengths: slot_refill(lengths, BATCH, slots, NUM_BATCHES))


def _carry(group_size: int, pool: int, update_time: float = 0.0, oldest_first: bool = True) -> Policy:
    needed = pool + (NUM_BATCHES - 1) * BATCH
    return Policy(pool, group_size, needed, lambda lengths: carry_over(lengths, BATCH, pool, update_time, oldest_first))


BARRIER = "barrier: launch 128, wait for all"
FIRST_GROUPS = "first 16 complete groups of 32, rest dropped"
FIRST_SINGLES = "first 128 of 256 single, rest dropped"
REFILL_GROUPS, REFILL_SINGLES = "groups, slots refilled at once", "single, slots refilled at once"
CARRY_GROUPS, CARRY_SINGLES = "groups, stragglers carried over", "single, stragglers carried over"
POLICIES: dict[str, Policy] = {
    BARRIER: _first(GROUP, BATCH),
    FIRST_GROUPS: _first(GROUP, LAUNCHED),
    FIRST_SINGLES: _first(1, LAUNCHED),
    REFILL_GROUPS: _refill(GROUP, SLOTS),
    REFILL_SINGLES: _refill(1, SLOTS),
    CARRY_GROUPS: _carry(GROUP, LAUNCHED),
    CARRY_SINGLES: _carry(1, LAUNCHED),
}
GROUP_SIZES = {"groups": GROUP, "single": 1}


def simulate(policy: Policy, law: Law, seed: int) -> dict[str, float]:
    """Run a policy once; see `spo_engines.measure` for what comes back."""
    rng = np.random.default_rng(seed)
    lengths, difficulties = draw(law, rng, policy.num_trajectories // policy.group_size, policy.group_size)
    return measure(policy.run(lengths), difficulties, NUM_WARMUP)


def repeat(policy: Policy, law: Law, seeds: Iterable[int]) -> dict[str, list[float]]:
    """Run a policy with every seed; one list per measure, in the order of the seeds, in six digits."""
    runs = [simulate(policy, law, seed) for seed in seeds]
    return {name: [float(f"{run[name]:.6g}") for run in runs] for name in runs[0]}


def speedup(law: Law, seed: int) -> float:
    """Simulate how many times faster the first single trajectories are there than the first complete groups."""
    groups, singles = (simulate(POLICIES[name], law, seed) for name in (FIRST_GROUPS, FIRST_SINGLES))
    return singles["throughput"] / groups["throughput"]


def expected_speedup(law: Law) -> float:
    """Return the same from order statistics: the expected time of a batch of groups / of a batch of single trajectories.

    Example:
        >>> round(expected_speedup(Law("lognormal", 1.08)), 2)
        4.41
    """
    groups, singles = (expected_batch_time(law, BATCH, LAUNCHED, size) for size in (GROUP, 1))
    return groups / singles


def solve(law: Law, bounds: tuple[float, float], target: float = PAPER_SPEEDUP) -> float:
    """Find the parameter at which `expected_speedup` is the target.

    Args:
        law: Its kind; its own parameter is not used.
        bounds: Two parameters between which to look.
        target: The speed-up.

    Returns:
        The parameter.

    Raises:
        ValueError: If the target does not lie between the speed-ups at the bounds.
    """
    from scipy.optimize import brentq

    ends = [expected_speedup(dataclasses.replace(law, parameter=bound)) for bound in bounds]
    if not min(ends) < target < max(ends):
        raise ValueError(f"the speed-up goes from {ends[0]:.3f} to {ends[1]:.3f} over {bounds}; {target} is outside")
    return float(brentq(lambda at: expected_speedup(dataclasses.replace(law, parameter=at)) - target, *bounds))


def check(law: Law, seeds: Iterable[int]) -> dict[str, Any]:
    """Return the speed-up of a law, expected and simulated."""
    simulated = [float(f"{speedup(law, seed):.6g}") for seed in seeds]
    return {"parameter": law.parameter, "expected": expected_speedup(law), "simulated": simulated}


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return mean and half-width of the 95 % interval of the mean (Student's t).

    Example:
        >>> mean, half_width = interval([1.0, 2.0, 3.0])
        >>> round(mean, 3), round(half_width, 3)
        (2.0, 2.484)
    """
    from scipy.special import stdtrit

    spread = np.std(values, ddof=1) / np.sqrt(len(values))
    return float(np.mean(values)), float(stdtrit(len(values) - 1, 0.975) * spread)


Runs = dict[str, list[float]]


def run_all(seeds: Sequence[int] = SEEDS) -> dict[str, Any]:
    """Run everything; plain values, one list over the seeds per number."""
    first_law = next(iter(SETTINGS.values()))
    solved = {}
    for name, (law, bounds) in SEARCHES.items():
        laws = {"tried": law, "solved": dataclasses.replace(law, parameter=solve(law, bounds))}
        solved[name] = {which: check(at, seeds) for which, at in laws.items()}
    engines = {
        setting: {name: repeat(policy, law, seeds) for name, policy in POLICIES.items()}
        for setting, law in SETTINGS.items()
    }
    prompts = {
        str(share): {
            name: repeat(POLICIES[name], dataclasses.replace(first_law, prompt_share=share), seeds)
            for name in (FIRST_GROUPS, FIRST_SINGLES, CARRY_GROUPS, CARRY_SINGLES)
        }
        for share in PROMPT_SHARES
    }
    slots = {
        str(count): {name: repeat(_refill(size, count), first_law, seeds) for name, size in GROUP_SIZES.items()}
        for count in SLOT_COUNTS
    }
    order = {
        name: repeat(_carry(1, SLOW_POOL, SLOW_UPDATE, oldest_first), first_law, seeds)
        for name, oldest_first in (("oldest first", True), ("newest first", False))
    }
    return {"solved": solved, "engines": engines, "prompts": prompts, "slots": slots, "order": order}


def _cell(values: Iterable[float], decimals: int = 2, percent: bool = False) -> str:
    mean, half_width = interval([100 * value if percent else value for value in values])
    return f"{mean:.{decimals}f} +- {half_width:.{decimals}f}" + (" %" if percent else "")


def _ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    return [one / other for one, other in zip(above, below, strict=True)]


def _rows(header: str, rows: Iterable[Sequence[str]]) -> str:
    rule = "|" + "---|" * (header.count("|") + 1)
    return "\n".join([f"| {header} |", rule, *("| " + " | ".join(row) + " |" for row in rows)])


def solved_table(solved: Mapping[str, Mapping[str, Any]]) -> str:
    """The parameters that give the paper's number."""
    rows = []
    for name, found in solved.items():
        tried, solution = found["tried"], found["solved"]
        row = [name, str(tried["parameter"]), f"{tried['expected']:.3f}", _cell(tried["simulated"])]
        rows.append([*row, f"{solution['parameter']:.3f}", _cell(solution["simulated"])])
    header = "law, parameter | tried | speed-up there, exact | simulated | gives 4.35, exact | simulated there"
    return _rows(header, rows)


def engine_table(runs: Mapping[str, Runs], hardest: bool) -> str:
    """One row per policy, for one setting; `hardest` adds the share of the hardest quarter of prompts."""
    rows = []
    for name, run in runs.items():
        ratio = "1" if name == BARRIER else _cell(_ratios(run["throughput"], runs[BARRIER]["throughput"]))
        row = [name, str(POLICIES[name].slots), _cell(run["time_per_batch"]), ratio]
        row += [_cell(run["slot_share"], 1, percent=True), _cell(run["mean_lag"]), _cell(run["late"], 1, percent=True)]
        row += [_cell(run["length_bias"], 3), f"{100 * np.mean(run['dropped']):.0f} %"]
        rows.append([*row, _cell(run["hard"], 1, percent=True)] if hardest else row)
    header = "policy | slots | time per batch | throughput, barrier = 1 | slot time trained on | mean lag |"
    return _rows(f"{header} lag > {LATE} | length bias | thrown away" + " | hardest quarter" * hardest, rows)


def prompt_table(prompts: Mapping[str, Mapping[str, Runs]]) -> str:
    """What lengths that belong to the prompt do to the speed-up and to what is trained on."""
    rows = []
    for share, runs in prompts.items():
        groups, singles = runs[FIRST_GROUPS], runs[FIRST_SINGLES]
        row = [f"{100 * float(share):.0f} %", _cell(_ratios(singles["throughput"], groups["throughput"]))]
        row.append(_cell(_ratios(runs[CARRY_SINGLES]["throughput"], runs[CARRY_GROUPS]["throughput"])))
        row += [_cell(run["length_bias"]) for run in (groups, singles)]
        row += [_cell(run["hard"], 1, percent=True) for run in (groups, singles)]
        rows.append(row)
    header = "variance that is the prompt's | speed-up, rest dropped | speed-up, carried over |"
    return _rows(header + " length bias of dropping: groups | single | hardest quarter: groups | single", rows)


def slot_table(slots: Mapping[str, Mapping[str, Runs]]) -> str:
    """Freshness of the engine that refills, by its number of slots."""
    rows = []
    for count, runs in slots.items():
        groups, singles = runs["groups"], runs["single"]
        row = [count, _cell(singles["time_per_batch"])]
        row.append(_cell(_ratios(singles["throughput"], groups["throughput"]), 3))
        row += [_cell(run["mean_lag"]) for run in (groups, singles)]
        row += [_cell(run["late"], 1, percent=True) for run in (groups, singles)]
        rows.append(row)
    header = "slots | time per batch, single | throughput, single / groups | mean lag: groups | single |"
    return _rows(f"{header} lag > {LATE}: groups | single", rows)


def order_table(order: Mapping[str, Runs]) -> str:
    """What the order does where the trainer is the slower one."""
    rows = []
    for name, run in order.items():
        row = [name, _cell(run["time_per_batch"]), _cell(run["mean_lag"]), _cell(run["late"], 1, percent=True)]
        rows.append([*row, _cell(run["longest_lag"], 0), _cell(run["length_bias"])])
    return _rows(f"taken first | time per batch | mean lag | lag > {LATE} | longest lag | length bias", rows)


def tables(result: Mapping[str, Any]) -> str:
    """Every table, each under its heading, as the page shows them."""
    parts = [("The lengths behind 4.35", solved_table(result["solved"]))]
    parts += [
        (setting, engine_table(runs, hardest=SETTINGS[setting].prompt_share > 0))
        for setting, runs in result["engines"].items()
    ]
    parts.append(("Lengths that belong to the prompt", prompt_table(result["prompts"])))
    parts.append(("Freshness by slots", slot_table(result["slots"])))
    parts.append(("Oldest first", order_table(result["order"])))
    return "\n\n".join(f"## {heading}\n\n{table}" for heading, table in parts)


def main(argv: Sequence[str] | None = None) -> int:
    """Run everything, write the JSON file, show the tables."""
    parser = argparse.ArgumentParser(description="Groups against single streams on engines with long tails, simulated.")
    parser.add_argument("--output", type=Path, required=True, help="JSON file for every number of every seed")
    args = parser.parse_args(argv)
    if not args.output.parent.is_dir():
        parser.error(f"{args.output.parent} is not a folder; make it first")
    from machine import describe

    constants = {"batch": BATCH, "group": GROUP, "seeds": list(SEEDS), "warmup": NUM_WARMUP, "batches": NUM_BATCHES}
    about = {"date": date.today().isoformat(), "machine": describe("cpu"), "numpy": np.__version__}
    result = run_all()
    write_json({**about, "constants": {**constants, "longest": LONGEST}, **result}, args.output)
    say(tables(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
