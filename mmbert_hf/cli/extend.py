"""``mmbert extend``: the second phase, with rows of 8,192 tokens and a RoPE base of 160,000."""

import argparse
from typing import Any

from mmbert_hf.cli.training import EPILOG, add_options, run_verb


def add_parser(verbs: Any) -> None:
    """Add the verb to ``mmbert``."""
    parser = verbs.add_parser(
        "extend",
        help="extend the context of a pre-trained encoder",
        description=(
            "The second phase of the recipe: more languages, rows of 8,192 tokens, RoPE base 160,000, mask ratio 15 %."
        ),
        epilog=EPILOG,
        allow_abbrev=False,
    )
    parser.add_argument("model", help="folder or Hub name of the pre-trained model")
    add_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Train with the parsed arguments."""
    return run_verb(args, "extend", model=args.model)
