"""``mmbert convert``: between mmBERT and ModernBERT folders."""

import argparse
from typing import Any

from mmbert_hf.cli.grammar import add_common_options, begin, tell
from mmbert_hf.cli.model_names import check_model_name


def add_parser(verbs: Any) -> None:
    """Add the verb to ``mmbert``."""
    parser = verbs.add_parser(
        "convert",
        help="write an mmBERT model as ModernBERT, or the other way round",
        description=(
            "Write the same weights with another model_type. ModernBERT folders load in plain transformers 4 and 5; mmbert "
            "folders load where this package is installed, with its faster classes."
        ),
    )
    parser.add_argument("model", metavar="MODEL", help="folder or Hub name")
    parser.add_argument("--to", choices=("modernbert", "mmbert"), default="modernbert", help="default: %(default)s")
    parser.add_argument("--output-dir", required=True, help="where the model is written")
    parser.add_argument("--overwrite", action="store_true", help="replace the model in a folder that is not empty")
    add_common_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Convert with the parsed arguments and print what was done."""
    begin(args)

    from transformers import AutoConfig, AutoTokenizer

    from mmbert_hf.conversion import export_modernbert, from_modernbert
    from mmbert_hf.output_folders import checked_destination, output_folder

    check_model_name(args.model)
    checked_destination(args.output_dir, args.overwrite)
    if args.dry_run:
        found = AutoConfig.from_pretrained(args.model).model_type
        if found not in ("mmbert", "modernbert"):
            raise ValueError(f"{args.model} is a {found}; it must be mmbert or modernbert")
        facts = {"model": args.model, "is": found, "to": args.to, "folder": args.output_dir}
        tell(args, facts, [f"{args.model} is {found}; would be written to {args.output_dir} as {args.to}"])
        return 0
    try:
        tokenizer = AutoTokenizer.from_pretrained(args.model)
    except (OSError, ValueError):
        tokenizer = None  # a model without one is a model all the same
    try:
        if args.to == "modernbert":
            export_modernbert(args.model, args.output_dir, tokenizer=tokenizer, overwrite=args.overwrite)
        else:
            model = from_modernbert(args.model)
            replaces = tokenizer is not None
            with output_folder(args.output_dir, overwrite=args.overwrite, replaces_tokenizer=replaces) as folder:
                model.save_pretrained(folder)
                if tokenizer is not None:
                    tokenizer.save_pretrained(folder)
    except TypeError as error:  # a model of another kind is a mistake of the input here
        raise ValueError(str(error)) from error
    has_tokenizer = tokenizer is not None
    tell(
        args,
        {"folder": args.output_dir, "model_type": args.to, "tokenizer": has_tokenizer},
        [f"written to {args.output_dir} as {args.to}{'' if has_tokenizer else ', without a tokenizer'}"],
    )
    return 0
