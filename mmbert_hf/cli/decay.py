"""``mmbert decay``: the last phase, in which languages are added to a finished or a published checkpoint."""

import argparse
from typing import Any

from mmbert_hf.cli.training import EPILOG, add_options, run_verb


def add_parser(verbs: Any) -> None:
    """Add the verb to ``mmbert``."""
    parser = verbs.add_parser(
        "decay",
        help="add languages to an encoder in a short decay phase",
        description=(
            "The last phase of the recipe: the learning rate falls, one token in twenty is masked, and languages are "
            "added. What the model knows is kept by training on the old languages as well: --data names them. Prints the "
            "held-out loss of every language before and after, the old ones included."
        ),
        epilog=EPILOG,
        allow_abbrev=False,
    )
    parser.add_argument("model", help="folder or Hub name of the model: your own, or such as jhu-clsp/mmBERT-base")
    parser.add_argument(
        "--add-language",
        metavar="CODE=PATH",
        action="append",
        default=[],
        help="a language to add: its ISO 639-3 code and a .jsonl, .txt or .parquet file or a Hub data set; repeatable",
    )
    parser.add_argument(
        "--no-replay", action="store_true", help="train on the added languages alone; the model forgets others"
    )
    parser.add_argument(
        "--rewarm",
        type=float,
        default=0.05,
        help="share of the phase in which the learning rate rises again: a finished checkpoint has none left "
        "(default: %(default)s; 0 for a checkpoint from before its decay)",
    )
    add_options(parser, needs_data=False)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Train with the parsed arguments."""
    from mmbert_hf.data.sources import parse_source
    from mmbert_hf.data.table import LanguageEntry, LanguageTable, load_table

    if args.data is None and not args.no_replay:
        raise ValueError(
            "no data of the old languages: name them with --data TABLE.yaml, so that the model keeps them, or say "
            "--no-replay"
        )
    entries = {} if args.data is None else dict(load_table(args.data).entries)
    for text in args.add_language:
        source = parse_source(text)
        if source.language in entries:
            raise ValueError(f"--add-language {text}: {args.data} has {source.language!r} already; take it out of one")
        entries[source.language] = LanguageEntry(source, enters="decay")
    return run_verb(args, "decay", model=args.model, table=LanguageTable(entries))
