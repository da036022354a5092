"""``mmbert pretrain``: the first phase, from a fresh model or one that `mmbert init` made."""

import argparse
from typing import Any

from mmbert_hf.cli.training import EPILOG, add_options, run_verb


def add_parser(verbs: Any) -> None:
    """Add the verb to ``mmbert``."""
    parser = verbs.add_parser(
        "pretrain",
        help="train an encoder from a table of languages",
        description="The first phase of the recipe: many languages, rows of 1,024 tokens, a high mask ratio.",
        epilog=EPILOG,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--model", help="folder or Hub name to start from (default: a fresh model of the preset's size)"
    )
    add_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Train with the parsed arguments."""
    return run_verb(args, "pretrain", model=args.model)
