"""What ``mmbert pretrain``, ``extend`` and ``decay`` share: their options, and how one of them runs."""

import argparse
import os
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, NoReturn

from mmbert_hf.cli.config_files import nearest
from mmbert_hf.cli.full_help import full_help
from mmbert_hf.cli.grammar import add_common_options, begin, tell
from mmbert_hf.cli.model_names import check_model_name

EPILOG = (
    "Every argument of transformers' TrainingArguments and of MLMConfig may follow as well, behind the model, such as "
    "--bf16 true --save_steps 500 --report_to tensorboard --dataloader_num_workers 2. Stopped in any way, the same command "
    "continues. On several GPUs: accelerate launch -m mmbert_hf.cli VERB ..."
)


class _HelpAll(argparse.Action):
    """Prints the arguments of the trainer, too, and leaves."""

    def __init__(self, option_strings: Sequence[str], dest: str, **kwargs: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, **kwargs)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        print(parser.format_help())
        print("arguments of TrainingArguments and MLMConfig, which may follow:\n")
        print(full_help("training", lambda: trainer_parser(parser.prog)))
        parser.exit()


def trainer_parser(verb: str) -> Any:
    """The parser of everything that a verb passes on, all of TrainingArguments and MLMConfig."""
    from transformers import HfArgumentParser

    from mmbert_hf.trainers.mlm_config import MLMConfig

    # An option that the verb does not know can not keep what follows it from being read as the model: so it comes last.
    model = "" if verb.endswith("pretrain") else "MODEL "
    usage = f"{verb} {model}[options] [arguments of TrainingArguments and MLMConfig]"
    return HfArgumentParser(MLMConfig, prog=verb, usage=usage, add_help=False)


def add_options(parser: argparse.ArgumentParser, *, needs_data: bool = True) -> None:
    """Add the options that the three verbs share."""
    parser.add_argument("--data", metavar="TABLE.yaml", required=needs_data, help="the table of languages")
    parser.add_argument("--output-dir", required=True, help="where checkpoints, the model and run.json are written")
    parser.add_argument("--preset", help="recipe (default: the one made for the model's size)")
    parser.add_argument("--total-tokens", help="tokens in this run, such as 200M (default: the recipe's)")
    parser.add_argument("--max-length", type=int, help="shorter rows than the recipe's")
    parser.add_argument("--rows", type=int, help="packed rows per device and forward pass (default: 8)")
    parser.add_argument(
        "--max-repeats",
        "--max_repeats",
        type=float,
        help="how often the text of a language is read at most (default: 4)",
    )
    parser.add_argument(
        "--learning-rate", "--learning_rate", type=float, help="peak of the phase (default: the recipe's)"
    )
    parser.add_argument("--tokenizer", help="folder or Hub name (default: the model's)")
    parser.add_argument(
        "--held-out", type=int, default=32, help="documents per language to measure on, at most (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=42, help="of sampling, masks and dropout (default: %(default)s)")
    parser.add_argument("--allow-change", action="store_true", help="continue a checkpoint of another run all the same")
    parser.add_argument("--help-all", "--help_all", action=_HelpAll, help="print all arguments")
    add_common_options(
        parser, passes_on=True, dry_run="check the input and print the plan; read no text, train nothing"
    )
    parser.set_defaults(training_arguments=[])


def run_verb(args: argparse.Namespace, phase: str, *, model: str | None, table: Any = None) -> int:
    """Run one phase with the parsed arguments.

    Args:
        args: Of `add_options`, with what argparse did not know in ``args.training_arguments``.
        phase: Name of the phase.
        model: Folder or Hub name to start from; None for a fresh model of the preset's size.
        table: The languages; read from ``args.data`` if None.
    """
    begin(args, is_main=int(os.environ.get("RANK", 0)) == 0)

    from mmbert_hf.data.table import load_table
    from mmbert_hf.presets import get_preset
    from mmbert_hf.tokenization import MMBertTokenizer
    from mmbert_hf.trainers.mlm import load_model
    from mmbert_hf.trainers.runs import (
        Interrupted,
        build_model,
        decay_from_anywhere,
        plan_run,
        preset_for,
        run_recipe,
        summarise,
    )

    table = load_table(args.data) if table is None else table
    name = args.tokenizer or model
    if name is None:
        raise ValueError("a fresh model needs a tokenizer: --tokenizer FOLDER_OR_NAME, such as jhu-clsp/mmBERT-base")
    config = parse_training_arguments(args, phase)  # before anything is loaded: mistakes are told at once
    for given in filter(None, (model, args.tokenizer)):
        check_model_name(given)
    tokenizer = MMBertTokenizer.from_pretrained(name)
    if model is None:
        preset = args.preset or "mmbert-small-paper"
        network = build_model(preset, tokenizer, seed=args.seed)
    else:
        network = load_model(model)
        preset = args.preset or preset_for(network)
    recipe = get_preset(preset).recipe
    if phase == "decay":
        recipe = decay_from_anywhere(recipe, args.rewarm)
    if phase == "extend":
        longest = min(args.max_length or 10**9, recipe.only(phase).phases[0].max_length)
        network.config.max_position_embeddings = max(network.config.max_position_embeddings, longest)
    config.recipe = preset
    if args.dry_run:
        plan, languages = plan_run(table, config, recipe)
        lines = [
            *summarise(plan),
            f"languages: {', '.join(languages.entries)}",
            f"would be written to {args.output_dir}",
        ]
        tell(args, {**plan.as_dict(), "languages": [*languages.entries], "folder": args.output_dir}, lines)
        return 0
    try:
        report = run_recipe(network, tokenizer, table, config, recipe=recipe, held_out_documents=args.held_out)
    except Interrupted as stopped:
        raise KeyboardInterrupt(str(stopped)) from stopped
    if config.process_index == 0:
        saved = f"saved in {args.output_dir}: the model, its tokenizer, checkpoints, and run.json with all of this"
        tell(args, {"folder": args.output_dir, **asdict(report)}, [report.table(), saved])
    if config.world_size > 1:
        import torch.distributed

        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
    return 0


def parse_training_arguments(args: argparse.Namespace, phase: str) -> Any:
    """Return the `MLMConfig` of a verb: its own options, then what else was given."""
    from mmbert_hf.data.token_counts import parse_tokens

    chosen: dict[str, Any] = {
        "output_dir": args.output_dir,
        "phases": phase,
        "seed": args.seed,
        "total_tokens": None if args.total_tokens is None else parse_tokens(args.total_tokens),
        "max_length": args.max_length,
        "max_repeats": args.max_repeats,
        "learning_rate": args.learning_rate,
        "per_device_train_batch_size": args.rows,
        "allow_change": args.allow_change or None,
        "disable_tqdm": args.quiet or args.json or None,
    }
    words = [word for name, value in chosen.items() if value is not None for word in (f"--{name}", str(value))]
    parser = trainer_parser(f"mmbert {args.verb}")

    def fail(message: str) -> NoReturn:
        raise ValueError(f"{message} ({parser.usage})")

    parser.error = fail
    config, unknown = parser.parse_args_into_dataclasses(
        [*words, *args.training_arguments], return_remaining_strings=True
    )
    if unknown:
        name = unknown[0].split("=")[0]
        near = nearest(name, [*args.own_options, *parser._option_string_actions])
        where = f"{args.places[name]}: " if name in args.places else ""
        raise ValueError(f"{where}there is no option {name!r}{near or f'; mmbert {args.verb} --help-all names all'}")
    return config
