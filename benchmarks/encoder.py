"""Compare mmBERT of this package with transformers' ModernBERT, and with the shape of XLM-RoBERTa base.

    python benchmarks/encoder.py --model small --dtype float32

Needs no network: weights are random (speed does not depend on them). It prints a table as it goes and writes every
single timing to a JSON file. How times, intervals, agreement, memory and operations are found stands at the top of
timing.py, steps.py, peak_memory.py and flops.py.
"""

import argparse
import gc
import shlex
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from cases import CASES, Case, Kind, Mode
from comparison import DisagreementError, build_models, measure_case
from implementations import BASELINES, MODELS, OURS, Settings, build, names_for, vocabulary_of
from machine import available_memory, busy_warning, describe, load_average
from peak_memory import measure_in_child
from report import HEADER, format_bytes, markdown, rows_of, say, table, write_json
from steps import LIMITS
from timing import median_interval

__all__ = ["main", "plan"]

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results"
FORMAT = 1  # of the JSON file

Plan = list[tuple[Case, Mode]]


class UsageError(ValueError):
    """The options cannot be followed."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", choices=MODELS, default="small", help="size; tiny is for trying the script (default small)")
    add("--dtype", choices=tuple(LIMITS), default="float32", help="of weights and activations (default float32)")
    add("--mode", choices=("inference", "training", "both"), default="both")
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--cases", default=",".join(CASES), help="some of %(default)s, with commas between")
    add("--pairs", type=int, help="rounds to time (default: about 15 seconds of them, from 15 to 101)")
    add("--threads", type=int, help="threads of torch on the CPU (default: torch's choice)")
    add("--seed", type=int, default=0, help="of weights, token ids and labels (default 0)")
    add("--attn-implementation", help="of our models (default: theirs)")
    add("--without", default="", metavar="NAMES", help=f"baselines to leave out, some of {','.join(BASELINES)}")
    add("--skip-memory", action="store_true", help="do not measure peak memory")
    add("--output", type=Path, help="JSON file (default docs/results/<date>-encoder-<device>-<model>-<dtype>.json)")
    add("--markdown", type=Path, help="also write the results as a Markdown page")
    return parser


def plan(names: str, mode: str) -> tuple[Plan, list[str]]:
    """Which cases to measure in which modes; the encoder first, so that only one kind of model is in memory.

    Args:
        names: Names of cases with commas between.
        mode: ``"inference"``, ``"training"`` or ``"both"``.

    Returns:
        Pairs of case and mode, and a note for what is left out.

    Raises:
        UsageError: For an unknown case or one named twice, or if nothing is left to measure.

    Example:
        >>> pairs, notes = plan("mlm,4x512", "inference")
        >>> [(case.name, mode) for case, mode in pairs], notes
        ([('4x512', 'inference')], ['mlm: not measured, it is a training step and the mode is inference'])
    """
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    if unknown := [name for name in wanted if name not in CASES]:
        raise UsageError(f"unknown case {', '.join(unknown)}; --cases takes some of {','.join(CASES)}")
    if repeated := sorted({name for name in wanted if wanted.count(name) > 1}):
        raise UsageError(f"case {', '.join(repeated)} is given more than once; name each once")
    pairs: Plan = []
    notes = []
    for case in sorted((CASES[name] for name in wanted), key=lambda case: case.kind != "encoder"):
        modes = [one for one in case.modes if mode in (one, "both")]
        pairs += [(case, one) for one in modes]
        if not modes:
            notes.append(f"{case.name}: not measured, it is a {case.modes[0]} step and the mode is {mode}")
    if not pairs:
        raise UsageError(f"nothing to measure with --cases {names} --mode {mode}; choose other cases, or --mode both")
    return pairs, notes


def _check(options: argparse.Namespace, settings: Settings) -> None:
    """Refuse before work starts what cannot work."""
    for name in ("pairs", "threads"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UsageError(f"--{name} is {value}; it must be at least 1")
    if unknown := sorted(set(settings.without) - set(BASELINES)):
        raise UsageError(f"unknown baseline {', '.join(unknown)}; --without takes some of {','.join(BASELINES)}")
    for path in (options.output, options.markdown):
        if path is not None and not path.resolve().parent.is_dir():
            raise UsageError(f"there is no folder {path.parent} to write {path.name} to; create it first")
        if path is not None and path.exists():
            raise UsageError(f"{path} exists, and results are not written over; give another name or move it away")
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise UsageError(
            f"torch {torch.__version__} finds no CUDA device; use --device cpu, or install a CUDA build of torch and "
            "check that nvidia-smi shows the card"
        )
    if settings.attention is None:
        return
    try:
        tiny = build(OURS, "encoder", Settings("tiny", settings.dtype, settings.device, 0, settings.attention))
        with torch.inference_mode():
            tiny(torch.tensor([[2, 7, 1]], device=settings.device))
    except (ValueError, ImportError, RuntimeError) as error:
        raise UsageError(
            f"--attn-implementation {settings.attention} does not run here ({settings.device}, {settings.dtype}): {error}"
        ) from error


def _matrix_rate(document: dict[str, Any], dtype: str) -> float | None:
    """Peak rate of the card for this dtype; a note says why there is none."""
    card = document["card"]
    if card is None:
        return None
    if dtype != "bfloat16":
        document["notes"].append("no share of the matrix rate: the table of rates is for bfloat16")
    elif card["bf16_peak_flops"] is None:
        document["notes"].append(
            f"no share of the matrix rate: {card['name']!r} is not in the table of machine.py; add its bfloat16 rate"
        )
    return card["bf16_peak_flops"] if dtype == "bfloat16" else None


def _measure_memory(pairs: Plan, settings: Settings, threads: int) -> dict[tuple[str, Mode], dict[str, Any]]:
    """Peak memory on the CPU, before any model is in this process."""
    say("peak memory of one step, each in its own process:")
    measured: dict[tuple[str, Mode], dict[str, Any]] = {}
    for case, mode in pairs:
        measured[case.name, mode] = {}
        for name in names_for(case, settings)[0]:
            peak = measure_in_child(name, case, mode, settings, threads)
            measured[case.name, mode][name] = peak
            note = f" ({peak['note']})" if peak["note"] else ""
            say(f"  {case.name:<6}  {mode:<9}  {name:<22}  {format_bytes(peak['bytes']):>7} MB{note}")
    return measured


def _cannot_run(peaks: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Implementations that would exhaust the memory of this process, and why."""
    available = available_memory()
    reasons = {}
    for name, peak in peaks.items():
        if peak["bytes"] is None and (peak["note"] or "").startswith("ended by signal"):
            reasons[name] = f"its memory process {peak['note']}"
        elif peak["bytes"] is not None and available is not None and peak["bytes"] > available:
            reasons[name] = f"it takes {format_bytes(peak['bytes'])} MB and {format_bytes(available)} MB are free"
    return reasons


def _measure(document: dict[str, Any], pairs: Plan, settings: Settings, options: argparse.Namespace) -> None:
    """Fill ``results`` and ``notes`` of the document, and write it after each case."""
    rate = _matrix_rate(document, settings.dtype)
    memory: dict[tuple[str, Mode], dict[str, Any]] = {}
    if settings.device == "cpu" and not options.skip_memory:
        memory = _measure_memory(pairs, settings, torch.get_num_threads())
    say(table([HEADER]))
    models: dict[str, Any] = {}
    kind: Kind | None = None
    for case, mode in pairs:
        names = names_for(case, settings)[0]
        if case.kind != kind:
            models, kind = {}, case.kind
            gc.collect()
            every = [name for other, _ in pairs if other.kind == kind for name in names_for(other, settings)[0]]
            models = build_models(list(dict.fromkeys(every)), kind, settings)
        peaks = memory.get((case.name, mode), {} if settings.device == "cpu" or options.skip_memory else None)
        cannot = _cannot_run(peaks or {})
        document["notes"] += [f"{case.name} {mode}: {name} not timed: {why}" for name, why in cannot.items()]
        result = measure_case(
            {name: models[name] for name in names},  # no name: it would keep old models alive
            case,
            mode,
            settings,
            pairs=options.pairs,
            peak_rate=rate,
            peak_memory=peaks,
            cannot_run=cannot,
        )
        document["results"].append(result)
        document["load_average_end"] = load_average()
        write_json(document, options.output)
        say(table(rows_of(result)))


def _notes(pairs: Plan, settings: Settings, wanted_pairs: int | None, load: list[float] | None) -> list[str]:
    notes = [note for case in dict.fromkeys(case for case, _ in pairs) for note in names_for(case, settings)[1]]
    vocabulary = vocabulary_of("encoder", settings)
    notes.append(
        f"the encoder cases use a small vocabulary ({vocabulary}) to save memory; mlm has {vocabulary_of('masked_lm', settings)}"
    )
    if wanted_pairs is not None and median_interval(range(wanted_pairs)) is None:
        notes.append(f"--pairs {wanted_pairs}: no 95 % interval of the median with so few; 6 are the fewest")
    if settings.model == "tiny":
        notes.append("model tiny is for trying the script: these times say nothing about mmBERT")
    warning = busy_warning(load, describe("cpu")["processor"]["usable_cpus"])
    return notes + ([f"WARNING: {warning}"] if warning else [])


def _document(options: argparse.Namespace, arguments: Sequence[str], settings: Settings) -> dict[str, Any]:
    load = load_average()
    return {
        "format": FORMAT,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", "benchmarks/encoder.py", *arguments]),
        "options": {name: value for name, value in vars(options).items() if not isinstance(value, Path)},
        **describe(settings.device),
        "load_average_start": load,
        "load_average_end": None,
        "notes": [],
        "results": [],
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark.

    Args:
        arguments: Of the command line; those of this process if None.

    Returns:
        0 if everything was measured, 1 if two implementations disagree, 2 if the options cannot be followed.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_args(arguments)
    without = tuple(name.strip() for name in options.without.split(",") if name.strip())
    settings = Settings(
        options.model, options.dtype, options.device, options.seed, options.attn_implementation, without
    )
    if options.output is None:
        day = datetime.now(UTC).date().isoformat()
        options.output = RESULTS / f"{day}-encoder-{options.device}-{options.model}-{options.dtype}.json"
    try:
        pairs, left_out = plan(options.cases, options.mode)
        _check(options, settings)
    except UsageError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    document = _document(options, arguments, settings)
    document["notes"] += left_out + _notes(pairs, settings, options.pairs, document["load_average_start"])
    for note in document["notes"]:
        say(note)
    for case in dict.fromkeys(case for case, _ in pairs):
        say(f"{case.name}: {len(case.lengths)} x {case.length} tokens, {case.real_share:.1%} real")
    try:
        _measure(document, pairs, settings, options)
    except DisagreementError as error:
        document["notes"].append(f"stopped: {error}")
        write_json(document, options.output)
        sys.stderr.write(f"error: {error}\n")
        return 1
    if options.markdown is not None:
        options.markdown.write_text(markdown(document), encoding="utf-8")
    say(f"wrote {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
