"""``mmbert evaluate-policy``: sample answers to problems, check them, and print pass@k, maj@k and avg@k.

Design decisions:

- Mistakes are told before the model is loaded, a missing package among them.
- Samples are kept in OUTPUT_DIR/samples.jsonl: stopped in any way, the same command continues. With --from-samples such a
  file is scored again, without a model.
"""

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmbert_hf.cli.grammar import add_common_options, begin, show, tell
from mmbert_hf.cli.model_names import check_model_name
from mmbert_hf.cli.tables import format_table

if TYPE_CHECKING:
    from mmbert_hf.evaluation.reasoning import ReasoningScores
    from mmbert_hf.evaluation.samples import Problem, Samples
    from mmbert_hf.evaluation.sampling import SamplingSettings

SAMPLES_FILE = "samples.jsonl"
RESULTS_FILE = "results.json"
# Of what generates: not for --from-samples, and refused there. Option -> kind, default, help.
SAMPLING: dict[str, tuple[type, int | float, str]] = {
    "num_samples": (int, 32, "completions of each problem"),
    "max_new_tokens": (int, 2048, "a completion is cut off behind so many"),
    "temperature": (float, 1.0, "0 takes the most probable token"),
    "top_p": (float, 1.0, "draw from the smallest set of tokens of this probability"),
    "top_k": (int, 0, "draw from so many most probable tokens, 0 for all"),
    "seed": (int, 0, "of all random numbers"),
}
OTHERS = {
    "batch_size": 32,
    "backend": "transformers",
    "dtype": "auto",
    "prompt_column": "prompt",
    "answer_column": "answer",
    "id_column": None,
    "chat": False,
}


def add_parser(verbs: Any) -> None:
    """Add the verb to ``mmbert``."""
    parser = verbs.add_parser(
        "evaluate-policy",
        help="sample answers to problems and score them: pass@k, maj@k, avg@k",
        description=(
            "Sample several completions to every problem from a causal language model, check their answers, and print "
            "pass@k, maj@k and avg@k with intervals over the problems. An answer has to be marked: \\boxed{...}, "
            "#### ..., or a line 'Answer: ...'. Stopped in any way, the same command continues."
        ),
        epilog=(
            "Example: mmbert evaluate-policy Qwen/Qwen3-0.6B --data aime.jsonl --prompt-column problem --chat "
            "--num-samples 32 --k 1 8 32 --max-new-tokens 8192 --output-dir aime"
        ),
    )
    parser.add_argument("model", metavar="MODEL", nargs="?", help="policy: folder or Hub name")
    data = parser.add_argument_group("data")
    data.add_argument(
        "--data",
        metavar="PROBLEMS",
        help=".jsonl, .json, .csv, .parquet, or a data set on the Hub as owner/name:split",
    )
    data.add_argument("--prompt-column", help="texts or lists of messages (default: prompt)")
    data.add_argument("--answer-column", help="the right answers (default: answer)")
    data.add_argument("--id-column", help="names of the problems (default: made from the prompts)")
    data.add_argument(
        "--chat", action="store_true", default=None, help="make a prompt that is a text the user's message of a chat"
    )
    data.add_argument("--from-samples", metavar="FILE", help="score the samples of a file, and generate nothing")
    _add_sampling_options(parser)
    scoring = parser.add_argument_group("scoring")
    scoring.add_argument("--k", type=int, nargs="+", help="how many samples count (default: 1 and --num-samples)")
    scoring.add_argument(
        "--checker",
        choices=("math", "exact"),
        default="math",
        help="compare answers as mathematics, which needs math-verify, or as texts (default: %(default)s)",
    )
    scoring.add_argument(
        "--answer-anywhere",
        action="store_true",
        help="checker math: where no answer is marked, take the last formula or number",
    )
    output = parser.add_argument_group("output")
    output.add_argument(
        "--output-dir",
        metavar="FOLDER",
        help=f"where {SAMPLES_FILE} and {RESULTS_FILE} are written; may be left out with --from-samples",
    )
    add_common_options(parser)
    parser.set_defaults(run=run)


def _add_sampling_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("sampling")
    for name, (kind, default, text) in SAMPLING.items():
        group.add_argument(f"--{name.replace('_', '-')}", type=kind, help=f"{text} (default: {default})")
    group.add_argument("--batch-size", type=int, help="completions at a time; for vLLM, problems (default: 32)")
    group.add_argument(
        "--backend",
        choices=("transformers", "vllm"),
        help="what generates; vllm has to be installed (default: transformers)",
    )
    group.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16", "float16"),
        help="backend transformers: of the weights (default: auto, as they were saved)",
    )


def run(args: argparse.Namespace) -> int:
    """Sample and score with the parsed arguments, and print what came out."""
    _check(args)
    begin(args)

    from mmbert_hf.evaluation.answers import get_checker
    from mmbert_hf.evaluation.samples import read_samples, sampling_summary, score_samples
    from mmbert_hf.evaluation.sampling import SamplingSettings
    from mmbert_hf.output_folders import write_whole

    checker = get_checker(args.checker, anywhere=args.answer_anywhere)
    if args.from_samples:
        settings, samples = read_samples(args.from_samples)
    elif args.dry_run:
        number = len(read_problems(args))
        facts = {
            "model": args.model,
            "problems": number,
            "samples": number * args.num_samples,
            "folder": args.output_dir,
        }
        tell(
            args,
            facts,
            [f"{number:,} problems, {args.num_samples} samples each, would be written to {args.output_dir}"],
        )
        return 0
    else:
        samples = _sample(args, SamplingSettings(**{name: getattr(args, name) for name in SAMPLING}), checker)
        settings, _ = read_samples(Path(args.output_dir, SAMPLES_FILE))
    ks = args.k or sorted({1, min((len(each.completions) for each in samples), default=1)})
    scores = score_samples(samples, ks, checker)
    summary = sampling_summary(samples)
    check = {"checker": args.checker, "answer_anywhere": args.answer_anywhere}
    results = {"settings": settings, **check, "sampling": summary, **scores.to_dict()}
    text = json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False)
    lines = [*format_scores(scores, summary)]
    if args.output_dir and not args.dry_run:
        write_whole(Path(args.output_dir, RESULTS_FILE), text + "\n")
        lines.append(f"written to {args.output_dir}: {'' if args.from_samples else f'{SAMPLES_FILE}, '}{RESULTS_FILE}")
    show(args, text if args.json else "\n".join(lines))
    return 0


def _check(args: argparse.Namespace) -> None:
    """Everything that can be said without reading data or a model; fills in what was not given."""
    defaults = {**{name: default for name, (_, default, _) in SAMPLING.items()}, **OTHERS}
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("mmbert evaluate-policy runs in one process; start it without accelerate launch or torchrun")
    if args.from_samples:
        given = ["MODEL"] if args.model else []
        given += [f"--{name.replace('_', '-')}" for name in ("data", *defaults) if getattr(args, name) is not None]
        if given:
            raise ValueError(f"--from-samples scores what is in its file: leave out {', '.join(given)}")
        return
    for name, default in defaults.items():
        if getattr(args, name) is None:
            setattr(args, name, default)
    options = {"MODEL": args.model, "--data": args.data, "--output-dir": args.output_dir}
    missing = [name for name, value in options.items() if not value]
    if missing:
        raise ValueError(f"{', '.join(missing)} is missing; or score samples that there are with --from-samples FILE")
    wrong = [k for k in args.k or () if not 1 <= k <= args.num_samples]
    if wrong:
        raise ValueError(f"--k must be from 1 to --num-samples, which is {args.num_samples}; got {wrong}")
    if Path(args.output_dir).exists() and not Path(args.output_dir).is_dir():
        raise NotADirectoryError(f"{args.output_dir} is a file; give a folder as --output-dir")


def _sample(args: argparse.Namespace, settings: "SamplingSettings", checker: Any) -> list["Samples"]:
    """Read the problems, load the policy, and let it answer."""
    from mmbert_hf.evaluation.policies import check_backend, load_policy, sample_policy

    check_backend(args.backend)
    check_model_name(args.model)
    problems = read_problems(args)
    for problem in problems:
        checker.reference(problem.answer)
    if args.backend == "vllm":
        from mmbert_hf.hub.fetching import load_tokenizer

        model, tokenizer = args.model, load_tokenizer(args.model)
    else:
        model, tokenizer = load_policy(args.model, args.dtype)
    return sample_policy(
        model,
        tokenizer,
        problems,
        settings,
        batch_size=args.batch_size,
        samples_file=Path(args.output_dir, SAMPLES_FILE),
        backend=args.backend,
        progress=not (args.quiet or args.json),
    )


def read_problems(args: argparse.Namespace) -> list["Problem"]:
    """Read the problems of ``--data``.

    Args:
        args: Of `add_parser`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file, or a row of it, is not as it should be.
    """
    from mmbert_hf.data.rows import FORMATS, load_rows
    from mmbert_hf.evaluation.samples import problems_from_rows

    path = Path(args.data)
    if path.is_file() and (not path.name.lower().endswith(tuple(FORMATS)) or path.stat().st_size == 0):
        raise ValueError(f"{args.data!r} is no file of problems: it is empty, or no {', '.join(FORMATS)}")
    rows = load_rows(args.data)
    try:
        problems = problems_from_rows(rows, args.prompt_column, args.answer_column, args.id_column)
    except ValueError as error:
        raise ValueError(
            f"{args.data!r}: {error} (--prompt-column {args.prompt_column}, --answer-column {args.answer_column})"
        ) from error
    if not args.chat:
        return problems
    from dataclasses import replace

    return [
        replace(problem, prompt=[{"role": "user", "content": problem.prompt}])
        if isinstance(problem.prompt, str)
        else problem
        for problem in problems
    ]


def format_scores(scores: "ReasoningScores", summary: dict[str, float]) -> Sequence[str]:
    """Return the table of the scores, and lines about the samples.

    Args:
        scores: Of the policy.
        summary: From `mmbert_hf.evaluation.samples.sampling_summary`.

    Example:
        >>> from mmbert_hf.evaluation.reasoning import reasoning_scores
        >>> scores = reasoning_scores([[True, True], [True, False]], [[0, 0], [0, -1]], ks=[2])
        >>> print("\\n".join(format_scores(scores, {"mean_tokens": 7.25, "truncated": 0.25})))
                             pass@k                   maj@k                   avg@k
        k=2  1.000 [1.000 to 1.000]  1.000 [1.000 to 1.000]  0.750 [0.500 to 1.000]
        2 problems, 2 samples each; in brackets 95 % intervals over the problems
        1 of 4 samples without an answer; 7.2 tokens on average, 25.0 % cut off
    """
    rows = [["", "pass@k", "maj@k", "avg@k"]]
    for k in scores.ks:
        ends = [scores.intervals[f"{name}@{k}"] for name in ("pass", "maj", "avg")]
        rows.append([f"k={k}", *(f"{mean:.3f} [{low:.3f} to {high:.3f}]" for mean, low, high in ends)])
    least, most, total = (int(value) for value in (f(scores.num_samples) for f in (min, max, sum)))
    each = f"{least} samples each" if least == most else f"{least} to {most} samples each"
    about = f"{total - int(scores.num_answered.sum()):,} of {total:,} samples without an answer"
    if summary:
        about += f"; {summary['mean_tokens']:,.1f} tokens on average" if "mean_tokens" in summary else ""
        about += f", {summary['truncated']:.1%} cut off".replace("%", " %") if "truncated" in summary else ""
    return [
        format_table(rows),
        f"{len(scores.problem_ids):,} problems, {each}; in brackets {scores.confidence:.0%} intervals over the problems".replace(
            "%", " %"
        ),
        about,
    ]
