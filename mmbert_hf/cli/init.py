"""``mmbert init``: a fresh model, or a wide one from a narrow one."""

import argparse
from typing import Any

from mmbert_hf.cli.grammar import add_common_options, begin, tell

SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers")


def add_parser(verbs: Any) -> None:
    """Add the verb to ``mmbert``."""
    parser = verbs.add_parser(
        "init",
        help="make a model to train: fresh, or tiled from a narrow one",
        description=(
            "Write a masked language model and its tokenizer into a folder. With --tile-from it starts from the weights "
            "of a narrower or shallower model; without, they are drawn fresh. Sizes that are not given are those of "
            "--size, or else those of the narrow model; heads keep their size."
        ),
    )
    parser.add_argument("--output-dir", required=True, help="where the model is written")
    parser.add_argument("--tile-from", default=None, metavar="FOLDER_OR_NAME", help="the narrow model")
    parser.add_argument("--size", choices=("small", "base"), default=None, help="released sizes to start from")
    parser.add_argument("--hidden-size", type=int, default=None, help="width; a multiple of the head size (64)")
    parser.add_argument("--intermediate-size", type=int, default=None, help="width of the feed-forward blocks")
    parser.add_argument("--num-hidden-layers", type=int, default=None, help="depth")
    parser.add_argument(
        "--method",
        choices=("center", "tile", "duplicate"),
        default=None,
        help="with --tile-from: duplicate preserves the function and needs multiples (default: center)",
    )
    parser.add_argument("--noise", type=float, default=None, help="with --tile-from: sets copies apart (default: 0)")
    parser.add_argument("--seed", type=int, default=0, help="of fresh weights and of the noise (default: %(default)s)")
    parser.add_argument("--tokenizer", default=None, help="folder or Hub name; the narrow model's if left out")
    parser.add_argument("--overwrite", action="store_true", help="replace the model in a folder that is not empty")
    add_common_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Make the model with the parsed arguments and print what was done."""
    _check(args)
    begin(args)

    from mmbert_hf.configuration import check_vocabulary
    from mmbert_hf.output_folders import checked_destination, output_folder
    from mmbert_hf.tokenization import MMBertTokenizer

    # Read first: a wrong name costs no work then.
    tokenizer = MMBertTokenizer.from_pretrained(args.tokenizer or args.tile_from)
    checked_destination(args.output_dir, args.overwrite)
    model, lines = _fresh(args, len(tokenizer)) if args.tile_from is None else _tiled(args)
    check_vocabulary(model, tokenizer)
    if not args.dry_run:
        with output_folder(args.output_dir, overwrite=args.overwrite, replaces_tokenizer=True) as folder:
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
    config = model.config
    sizes = f"{config.num_hidden_layers} layers of {config.hidden_size} ({config.num_attention_heads} heads)"
    lines += [
        f"{model.num_parameters():,} parameters: {sizes}, intermediate {config.intermediate_size}",
        f"{'would be ' if args.dry_run else ''}written to {args.output_dir}",
    ]
    names = (*SIZES, "num_attention_heads", "vocab_size")
    facts = {"folder": args.output_dir, "parameters": model.num_parameters()}
    tell(args, facts | {name: getattr(config, name) for name in names}, lines)
    return 0


def _check(args: argparse.Namespace) -> None:
    if args.tile_from is None:
        for name in ("method", "noise"):
            if getattr(args, name) is not None:
                raise ValueError(f"--{name} belongs to --tile-from; name the narrow model, or leave it out")
        if args.size is None or args.tokenizer is None:
            raise ValueError("a fresh model needs --size and --tokenizer; or name a narrow model with --tile-from")
    elif args.size is None and all(getattr(args, name) is None for name in SIZES):
        raise ValueError("say what to make of the narrow model: --size, --hidden-size or --num-hidden-layers")


def _fresh(args: argparse.Namespace, vocab_size: int) -> tuple[Any, list[str]]:
    import torch

    from mmbert_hf.configuration import PRESETS, MMBertConfig
    from mmbert_hf.heads import MMBertForMaskedLM
    from mmbert_hf.tiling import widened_config

    released = MMBertConfig(**PRESETS[args.size], vocab_size=vocab_size)
    config = widened_config(released, **{name: getattr(args, name) for name in SIZES})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(args.seed)
        model = MMBertForMaskedLM(config)
    return model, [f"fresh weights, seed {args.seed}"]


def _tiled(args: argparse.Namespace) -> tuple[Any, list[str]]:
    from safetensors import SafetensorError

    from mmbert_hf.configuration import PRESETS
    from mmbert_hf.conversion import from_modernbert
    from mmbert_hf.heads import MMBertForMaskedLM
    from mmbert_hf.tiling import tile_model, widened_config

    try:
        narrow = from_modernbert(args.tile_from)
    except SafetensorError as error:
        raise OSError(f"the weights of {args.tile_from} are damaged ({error}); copy the folder anew") from error
    if not isinstance(narrow, MMBertForMaskedLM):
        raise ValueError(f"{args.tile_from} holds a {type(narrow).__name__}; it must be a masked language model")
    method, noise = args.method or "center", args.noise or 0.0
    preset = PRESETS[args.size] if args.size else {}
    given = {name: getattr(args, name) for name in SIZES}
    sizes = {name: preset.get(name) if size is None else size for name, size in given.items()}
    model = tile_model(narrow, widened_config(narrow.config, **sizes), method=method, noise=noise, seed=args.seed)
    added = model.config.num_hidden_layers - narrow.config.num_hidden_layers
    promise = "the function is that of the narrow model" if method == "duplicate" else "the function is not preserved"
    lines = [
        f"from {args.tile_from}: {narrow.num_parameters():,} parameters, {narrow.config.num_hidden_layers} layers of "
        f"{narrow.config.hidden_size}",
        f"method {method}, noise {noise:g} (seed {args.seed}), {added} layers added: {promise}",
    ]
    return model, lines
