"""The command line: ``mmbert VERB``. Nothing heavy is imported before a verb runs, so help answers at once."""

import os
import sys
from collections.abc import Sequence

from mmbert_hf._version import __version__
from mmbert_hf.cli import (
    convert,
    decay,
    demo,
    env,
    evaluate,
    evaluate_policy,
    extend,
    init,
    merge,
    plot,
    pretrain,
    prune,
    publish,
    recipe,
    spo,
    trim,
)
from mmbert_hf.cli.completion import PrintCompletion
from mmbert_hf.cli.grammar import VerbParser, result_alone, with_places

VERBS = (
    demo,
    recipe,
    init,
    pretrain,
    extend,
    decay,
    merge,
    prune,
    trim,
    spo,
    evaluate,
    evaluate_policy,
    publish,
    convert,
    plot,
    env,
)


def build_parser() -> VerbParser:
    """Return the parser of ``mmbert``; every verb's module adds its own sub-parser."""
    parser = VerbParser(
        prog="mmbert",
        description="mmBERT encoders for the Hugging Face ecosystem. `mmbert VERB --help` explains a verb.",
    )
    parser.add_argument("--version", action="version", version=f"mmbert-hf {__version__}")
    parser.add_argument(
        "--print-completion",
        action=PrintCompletion,
        help='print a script for completion, such as: eval "$(mmbert --print-completion bash)"',
    )
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for module in VERBS:
        module.add_parser(verbs)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``mmbert`` and return its exit status: 0 done, 2 a mistake in the input, 130 stopped by Ctrl-C.

    Args:
        argv: Arguments without the program's name; those of the process if None.
    """
    parser = build_parser()
    args, rest = parser.parse_known_args(argv)
    if rest and not hasattr(args, "training_arguments"):
        parser.error(f"there is no option {' '.join(rest)!r} in front of the verb")
    args.training_arguments = rest
    try:
        with result_alone(args):
            return args.run(args)
    except BrokenPipeError:  # whoever read the output has seen enough; nothing is left to be flushed into it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError) as error:
        if args.debug:
            raise
        print(f"mmbert {args.verb}: {with_places(str(error), getattr(args, 'places', {}))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        print(f"\nmmbert {args.verb}: {str(error) or 'stopped'}", file=sys.stderr)
        return 130
