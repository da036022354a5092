"""``mmbert demo``: all parts of the package on embedded data, offline, in minutes."""

import argparse
import json
import os
from typing import Any

from mmbert_hf.cli.grammar import add_common_options, begin, show


def add_parser(verbs: Any) -> None:
    """Add the verb to ``mmbert``."""
    parser = verbs.add_parser(
        "demo",
        help="train a small multilingual encoder, prune an embedder, improve a policy, publish and reload all, offline",
        description=(
            "encoder: train a small MMBERT on the Universal Declaration of Human Rights in 430 languages through the "
            "three phases of the paper, measure it on held-out articles, publish it to a Hub on this machine, and load "
            "it back with and without this package. prune: make all-MiniLM-L6-v2 smaller for the animals and plants of "
            "WordNet, retrain it, measure size, latency and retrieval before and after, publish it, and load it back "
            "without this package. spo: fit a tiny causal language model to a part of modular arithmetic, improve it by "
            "single-stream policy optimization, measure it before and after, publish it with its value tracker, and load "
            "both back. All goes into report.html. Needs no network and no account. Stopped with Ctrl-C, the same command "
            "continues."
        ),
    )
    parser.add_argument("--output-dir", default="demo", help="where everything is written (default: %(default)s)")
    parser.add_argument("--only", choices=("encoder", "prune", "spo"), help="run one part alone (default: all)")
    parser.add_argument("--seed", type=int, default=None, help="of initialisation, sampling and masks (default: 1)")
    parser.add_argument(
        "--steps", type=int, default=None, help="optimizer steps of the encoder's run (default: about 4 minutes)"
    )
    parser.add_argument("--max-languages", type=int, default=None, help="cut the encoder's corpus, for a quick look")
    parser.add_argument("--overwrite", action="store_true", help="write into a folder that holds something else")
    add_common_options(parser, dry_run=None)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the demo with the parsed arguments."""
    # Read when huggingface_hub is imported. The demo talks to this machine alone.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    begin(args)

    from mmbert_hf.demo.pipeline import run_demo
    from mmbert_hf.demo.settings import DemoSettings, PruneSettings, SPOSettings

    chosen = {name: getattr(args, name) for name in ("seed", "steps", "max_languages")}
    settings = DemoSettings(**{name: value for name, value in chosen.items() if value is not None})
    seeded = {} if args.seed is None else {"seed": args.seed}
    metrics = run_demo(
        args.output_dir,
        settings,
        PruneSettings(**seeded),
        SPOSettings(**seeded),
        only=args.only,
        overwrite=args.overwrite,
        progress=not (args.quiet or args.json),
    )
    if args.json:
        show(args, json.dumps(metrics))
    return 0
