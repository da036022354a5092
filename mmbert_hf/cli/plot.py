"""``mmbert plot``: what a run logged, as a picture and as JSON."""

import argparse
from typing import Any

from mmbert_hf.cli.grammar import add_common_options, show


def add_parser(verbs: Any) -> None:
    """Add the verb to ``mmbert``."""
    parser = verbs.add_parser(
        "plot",
        help="draw what a training logged, or write it as JSON",
        description=(
            "Draw what a training logged: the loss over tokens with the phases of its recipe, learning rate, mask "
            "ratio, throughput, and the loss of each language at its first and last evaluation. Works while the "
            "training runs, from its newest checkpoint."
        ),
    )
    parser.add_argument(
        "run_folder", metavar="RUN_FOLDER", help="output folder of a training, or one of its checkpoints"
    )
    parser.add_argument(
        "--output",
        metavar="FILE",
        help="picture to write: .png, .svg or .pdf (default: plot.png); or .json: everything that was logged, as columns, "
        "which --json prints",
    )
    add_common_options(parser, dry_run=None)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Read the run, and write what was asked for."""
    from mmbert_hf.plotting import check_can_plot, plot_run
    from mmbert_hf.run_log import read_run

    output = args.output or ("" if args.json else "plot.png")
    as_columns = output.lower().endswith(".json")
    if output and not as_columns:
        check_can_plot()
    log = read_run(args.run_folder)
    if as_columns:
        log.to_json(output)
    elif output:
        plot_run(log, output)
    show(args, log.to_json() if args.json else f"wrote {output}")
    return 0
