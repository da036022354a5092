"""``mmbert convert``: between mmBERT and ModernBERT folders."""

import argparse
from typing import Any


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
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Convert with the parsed arguments and print what was done."""
    from transformers import AutoTokenizer

    from mmbert_hf.conversion import export_modernbert, from_modernbert
    from mmbert_hf.hub import check_folder_or_hub_name
    from mmbert_hf.output_folders import checked_destination, output_folder

    check_folder_or_hub_name(args.model)
    checked_destination(args.output_dir, args.overwrite)
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
    print(f"written to {args.output_dir} as {args.to}{'' if tokenizer is not None else ', without a tokenizer'}")
    return 0
