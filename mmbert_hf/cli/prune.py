"""``mmbert prune``: make an embedder smaller for a domain, retrain it, measure it, and publish it.

Design decisions:

- The options of `GAPruneConfig` are options here, with its help texts.
- What is read, and what is held out of it, is in `mmbert_hf.cli.prune_data`.
- Mistakes are told before the model is loaded, and statistics are kept, so that an interrupted run goes on.
"""

import argparse
import logging
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmbert_hf.cli.grammar import add_common_options, begin, tell
from mmbert_hf.cli.model_names import check_model_name
from mmbert_hf.cli.prune_data import check_sources, read_data
from mmbert_hf.cli.tables import format_table

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    from mmbert_hf.pruning.config import GAPruneConfig
    from mmbert_hf.pruning.result import PrunedEmbedder


def add_parser(verbs: Any) -> None:
    """Add the verb to ``mmbert``."""
    parser = verbs.add_parser(
        "prune",
        help="make an embedder smaller for a domain (GAPrune), retrain, measure and publish it",
        description=(
            "Prune a SentenceTransformer for a domain (GAPrune, arXiv 2509.10844). Needs triplets of the domain and of "
            "everything else, columns anchor, positive, negative. Stopped in any way, the same command continues the "
            "scoring. Only the granularities ffn, layer and vocabulary make a model smaller and faster."
        ),
        epilog=(
            "Example: mmbert prune sentence-transformers/all-MiniLM-L6-v2 --domain law.jsonl --general all.jsonl "
            "--granularity ffn,vocabulary --target-size 0.5 --retrain-steps 100 --output-dir small"
        ),
    )
    parser.add_argument("model", metavar="MODEL", help="embedder: folder or Hub name")
    data = parser.add_argument_group(
        "data: .jsonl, .json, .csv, .parquet, or a data set on the Hub as owner/name:split"
    )
    data.add_argument("--domain", required=True, metavar="TRIPLETS", help="triplets of the domain")
    data.add_argument(
        "--general",
        required=True,
        metavar="TRIPLETS",
        help="triplets of everything else: to measure on, and for methods that score with them",
    )
    data.add_argument("--mine-negatives", action="store_true", help="find a hard negative for sets that have none")
    data.add_argument(
        "--vocabulary-texts",
        metavar="TEXTS",
        help="granularity vocabulary: a .txt file, one document a line, or .jsonl with a field text, whose tokens stay; "
        "best all documents that the model is to embed (default: the triplets)",
    )
    held_out = "anchors and positives to measure on (default: a tenth of the set, at most 1000, held out)"
    data.add_argument("--test-domain", metavar="PAIRS", help=f"domain: {held_out}")
    data.add_argument("--test-general", metavar="PAIRS", help=f"general: {held_out}")
    training = parser.add_argument_group("retraining")
    training.add_argument("--retrain-steps", type=int, default=0, help="after pruning (default: %(default)s, none)")
    training.add_argument("--retrain-data", metavar="TRIPLETS", help="to retrain on (default: the domain triplets)")
    training.add_argument("--retrain-batch-size", type=int, default=32, help="default: %(default)s")
    training.add_argument("--retrain-learning-rate", type=float, default=1e-4, help="default: %(default)s")
    training.add_argument(
        "--teacher",
        choices=("trained", "dense", "none"),
        default="trained",
        help="to distil from: the dense model after the same steps, which is measured too as the control; the dense "
        "model; or none (default: %(default)s)",
    )
    training.add_argument(
        "--distillation-weight", type=float, default=4.0, help="of the teacher (default: %(default)s)"
    )
    _add_config_options(parser)
    _add_output_options(parser)
    add_common_options(parser)
    parser.set_defaults(run=run)


def _add_output_options(parser: argparse.ArgumentParser) -> None:
    output = parser.add_argument_group("output")
    output.add_argument("--output-dir", help="where the model is written; needed unless --push-to-hub is given")
    output.add_argument("--overwrite", action="store_true", help="replace the model in a folder that is not empty")
    output.add_argument(
        "--int8", action="store_true", help="add an int8 ONNX file (needs onnx, onnxscript, onnxruntime)"
    )
    output.add_argument("--plots", action="store_true", help="draw pictures into OUTPUT_DIR/plots (needs matplotlib)")
    output.add_argument("--push-to-hub", metavar="NAME", help="publish as owner/name, or as a name of your own")
    output.add_argument("--private", action="store_true", help="make the repository on the Hub private")
    output.add_argument("--license", help="for the card (default: that of MODEL's card, else left open)")
    output.add_argument(
        "--base-model",
        metavar="NAME",
        help="for the card: the parent on the Hub, where MODEL is a copy of it in a folder (default: MODEL, if it is on the Hub)",
    )


def _add_config_options(parser: argparse.ArgumentParser) -> None:
    """An option for each field of `GAPruneConfig`."""
    from dataclasses import fields

    from mmbert_hf.pruning.config import GAPruneConfig
    from mmbert_hf.pruning.options import CHOICES

    group = parser.add_argument_group("pruning")
    kinds: dict[Any, Any] = {int: int, float: float, int | None: _or_none(int), float | None: _or_none(float)}
    for field in fields(GAPruneConfig):
        text = field.metadata["help"].replace("%", "%%")
        if field.name == "statistics_dir":
            text += " (default: OUTPUT_DIR.statistics)"
        elif field.default is not None:
            text += f" (default: {field.default})"
        option = f"--{field.name.replace('_', '-')}"
        if field.type is bool:
            group.add_argument(option, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=text)
            continue
        kind: Any = kinds.get(field.type, str)
        choices = CHOICES.get(field.name)
        shown = _metavar(field.name, choices)
        group.add_argument(option, type=kind, choices=choices, default=argparse.SUPPRESS, help=text, metavar=shown)


def _metavar(name: str, choices: tuple[str, ...] | None) -> str | None:
    """What stands for the value of an option in the help; None is its choices."""
    if name == "method":  # its help has them all
        return "METHOD"
    if choices:
        return None
    if name == "granularity":
        return "NAMES"
    return "FOLDER" if name.endswith("_dir") else "NUMBER"


def _or_none(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        return None if text.lower() == "none" else kind(text)

    read.__name__ = kind.__name__  # for argparse's message
    return read


def run(args: argparse.Namespace) -> int:
    """Prune with the parsed arguments and print what came out."""
    config = _check(args)
    begin(args)
    progress = not (args.quiet or args.json)

    from mmbert_hf.data import read_corpus

    check_model_name(args.model)
    sets, tests = read_data(args)
    texts = read_corpus(args.vocabulary_texts) if args.vocabulary_texts else None

    from sentence_transformers import SentenceTransformer

    from mmbert_hf.pruning import GAPruner, add_hard_negatives
    from mmbert_hf.pruning.saving import check_saveable

    model = SentenceTransformer(args.model)
    check_saveable(model)
    for name in ("domain", "general"):
        if "negative" not in sets[name].column_names:
            sets[name] = add_hard_negatives(sets[name], model)
    pruner = GAPruner(model, sets["domain"], sets["general"], config)
    if not {"ffn", "layer", "vocabulary"} & {*config.granularities}:
        logger.info(
            "granularity %s makes zeros: the model gets neither smaller nor faster; ffn, layer and vocabulary do",
            config.granularity,
        )
    if args.dry_run:
        _tell_plan(args, config, sets, tests)
        return 0
    pruned = pruner.prune(vocabulary_texts=texts, progress=progress)
    if args.retrain_steps:
        pruned.retrain(
            sets.get("retrain", sets["domain"]),
            args.retrain_steps,
            teacher=None if args.teacher == "none" else args.teacher,
            batch_size=args.retrain_batch_size,
            learning_rate=args.retrain_learning_rate,
            distillation_weight=args.distillation_weight,
            seed=config.seed,
            progress=progress,
        )
    pruned.measure(tests["domain"], tests["general"])
    _write(args, pruned, pruner.statistics)
    return 0


def _tell_plan(args: argparse.Namespace, config: "GAPruneConfig", sets: dict[str, Any], tests: dict[str, Any]) -> None:
    """What would be done."""
    facts = {
        "model": args.model,
        "granularity": list(config.granularities),
        "method": config.method,
        "rows": {name: len(rows) for name, rows in sets.items()},
        "queries held out": {name: len(test.queries) for name, test in tests.items()},
        "retrain_steps": args.retrain_steps,
        "folder": args.output_dir,
        "published as": args.push_to_hub,
    }
    tell(args, facts, (f"{name}: {value}" for name, value in facts.items() if value is not None))


def _check(args: argparse.Namespace) -> "GAPruneConfig":
    """Everything that can be said without reading data or a model; returns the options of the pruning."""
    from dataclasses import fields

    from mmbert_hf.pruning.config import GAPruneConfig

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(
            "mmbert prune runs in one process; score under accelerate launch with GAPruner(...).score() and "
            "statistics_dir, then give that folder as --statistics-dir"
        )
    if not args.output_dir and not args.push_to_hub:
        raise ValueError("nowhere to write to: give --output-dir FOLDER, --push-to-hub NAME, or both")
    if args.plots and not args.output_dir:
        raise ValueError("--plots draws into the folder of the model: give --output-dir")
    if args.private and not args.push_to_hub:
        raise ValueError("--private is for --push-to-hub NAME")
    if args.retrain_steps < 0 or args.retrain_batch_size < 2 or not args.retrain_learning_rate > 0:
        raise ValueError(
            "--retrain-steps must be at least 0, --retrain-batch-size at least 2 and --retrain-learning-rate above 0; "
            f"got {args.retrain_steps}, {args.retrain_batch_size} and {args.retrain_learning_rate}"
        )
    chosen = {field.name: getattr(args, field.name) for field in fields(GAPruneConfig) if hasattr(args, field.name)}
    if args.output_dir:
        chosen.setdefault("statistics_dir", f"{os.path.normpath(args.output_dir)}.statistics")
    config = GAPruneConfig(**chosen)
    if args.vocabulary_texts and "vocabulary" not in config.granularities:
        raise ValueError(f"--vocabulary-texts are for granularity vocabulary, which is not in {config.granularity!r}")
    check_sources(args)
    _check_destinations(args)
    return config


def _check_destinations(args: argparse.Namespace) -> None:
    from mmbert_hf.output_folders import checked_destination

    if args.output_dir:
        checked_destination(args.output_dir, args.overwrite)
    if args.plots:
        from mmbert_hf.plotting import check_can_plot

        check_can_plot()
    if args.int8:
        from mmbert_hf.pruning.int8 import check_packages

        check_packages()
    if args.push_to_hub:
        from huggingface_hub import HfApi

        from mmbert_hf.hub import check_repo_id, require_token

        check_repo_id(args.push_to_hub)
        require_token(HfApi())


def _write(args: argparse.Namespace, pruned: "PrunedEmbedder", statistics: Any) -> None:
    """Save, publish and draw; print the table, and how the model is loaded."""
    from mmbert_hf.model_cards.pruned import comparison_rows

    card = {"license": args.license, "base_model": args.base_model}
    lines, name = [], ""
    if args.output_dir:
        name = str(pruned.save_pretrained(args.output_dir, overwrite=args.overwrite, int8=args.int8, **card))
        lines.append(f"written to {name}")
    if args.plots:
        from mmbert_hf.pruning.plots import plot_pruning

        pictures = plot_pruning(pruned, Path(args.output_dir, "plots"), statistics)
        lines.append(f"pictures: {', '.join(str(path) for path in pictures)}")
    if args.push_to_hub:
        url = _push(args, pruned, card)
        lines.append(f"published: {url}")
        name = url.partition("/commit/")[0].split("/", 3)[3]
    if statistics is not None and statistics.folder is not None:
        lines.append(f"statistics, for other methods and sizes on the same triplets: {statistics.folder}")
    if pruned.control is not None:
        lines.insert(0, "control: the dense model after the same training")
    lines.append(f'load it with: SentenceTransformer("{name}")')
    facts = {"folder": args.output_dir, "published": name if args.push_to_hub else None, "report": pruned.report}
    tell(args, facts, [format_table(comparison_rows(pruned.report)), *lines])


def _push(args: argparse.Namespace, pruned: "PrunedEmbedder", card: dict[str, Any]) -> str:
    """Publish; where that fails, what was made is not lost."""
    try:
        return pruned.push_to_hub(args.push_to_hub, private=args.private or None, int8=args.int8, **card)
    except Exception as error:  # a lost connection is an error of whatever HTTP client huggingface_hub has
        folder = args.output_dir
        if not folder:
            folder = pruned.save_pretrained(
                Path(tempfile.mkdtemp(prefix="mmbert-prune-"), "model"), int8=args.int8, **card
            )
        options = "".join(f", {name}=True" for name in ("private", "int8") if getattr(args, name))
        raise OSError(
            f"{error}\nThe model is in {folder}. To publish it: "
            f"PrunedEmbedder.from_pretrained({str(folder)!r}).push_to_hub({args.push_to_hub!r}{options})"
        ) from error
