"""``mmbert merge``: several checkpoints into one."""

import argparse
import json
from typing import Any

from mmbert_hf.cli.grammar import add_common_options, begin, tell


def add_parser(verbs: Any) -> None:
    """Add the verb to ``mmbert``."""
    parser = verbs.add_parser(
        "merge",
        help="merge checkpoints: TIES around a base, weighted or exponentially weighted average",
        description=(
            "Merge checkpoints of one network, folders or Hub names (name@revision for a branch), into a new folder. "
            "mmBERT's base model is the TIES merge of its decay checkpoints around the last mid-training checkpoint; "
            "the density is not published. Tensors are read and written in pieces: memory is one output shard."
        ),
    )
    parser.add_argument("checkpoints", nargs="+", metavar="CHECKPOINT", help="folder or Hub name; for ema oldest first")
    parser.add_argument("--output-dir", required=True, help="where the merged model is written")
    parser.add_argument("--method", choices=("ties", "linear", "ema"), default="ties", help="default: %(default)s")
    parser.add_argument("--base", default=None, help="ties: what the checkpoints were trained from")
    parser.add_argument(
        "--density", type=float, default=None, help="ties: share of each task vector that stays, (0, 1]"
    )
    parser.add_argument(
        "--majority-sign",
        choices=("total", "frequency"),
        default="total",
        help="ties: elect signs by sum of values or by number of checkpoints (default: %(default)s)",
    )
    parser.add_argument(
        "--weights", type=float, nargs="+", default=None, help="ties, linear: one number per checkpoint"
    )
    parser.add_argument(
        "--ema-decay", type=float, default=None, help="ema: weights are DECAY ** age, divided by their sum"
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default=None, help="of the result")
    parser.add_argument("--max-shard-size", default="5GB", help="largest file (default: %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace the model in a folder that is not empty")
    add_common_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Merge with the parsed arguments and print what was done."""
    begin(args)

    from mmbert_hf.merging import MERGE_FILE, merge_checkpoints

    names = ("method", "base", "weights", "density", "majority_sign", "ema_decay", "dtype", "max_shard_size")
    options = {name: getattr(args, name) for name in (*names, "overwrite", "dry_run")}
    folder = merge_checkpoints(args.checkpoints, args.output_dir, **options)
    if args.dry_run:
        facts = {"checkpoints": args.checkpoints, "folder": str(folder), "method": args.method}
        tell(args, facts, [f"{len(args.checkpoints)} checkpoints fit together; {folder} can be written"])
        return 0
    report = json.loads((folder / MERGE_FILE).read_text(encoding="utf-8"))
    around = f" around {report['base']}, density {report['density']:g}" if "base" in report else ""
    lines = [
        f"{len(args.checkpoints)} checkpoints, {report['num_parameters']:,} parameters, {report['method']}{around}"
    ]
    for one in report["checkpoints"]:
        parts = [f"distance from the result {one['norm']:.4g}"]
        if "kept" in one:
            parts = [
                f"task vector norm {one['norm']:.4g}",
                f"{one['kept']:.1%} of it (squared) kept by the trim",
                f"{one['agreed']:.1%} of the kept values have the elected sign",
            ]
        lines.append(f"  {one['checkpoint']}: weight {one['weight']:.4g}, {', '.join(parts)}")
    tell(args, {"folder": str(folder), **report}, [*lines, f"written to {folder}"])
    return 0
