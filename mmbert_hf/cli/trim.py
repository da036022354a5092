"""``mmbert trim``: the part of a vocabulary that some texts, or some languages, use."""

import argparse
from pathlib import Path
from typing import Any

from mmbert_hf.cli.grammar import add_common_options, begin, tell
from mmbert_hf.cli.model_names import check_model_name

AUTO_CLASSES = (
    "ForMaskedLM",
    "ForCausalLM",
    "ForSequenceClassification",
    "ForTokenClassification",
    "ForQuestionAnswering",
)


def add_parser(verbs: Any) -> None:
    """Add the verb to ``mmbert``."""
    parser = verbs.add_parser(
        "trim",
        help="make vocabulary and embedding smaller: the tokens of your texts or languages",
        description=(
            "Write a model with the part of its vocabulary that some texts use. Text whose tokens all stay has the same "
            "tokens and the same embeddings; other text is spelled with what is left."
        ),
    )
    parser.add_argument("model", metavar="MODEL", help="embedder, model or tokenizer: folder or Hub name")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--texts", metavar="FILE", help="texts like those to come: one a line, or JSONL with a text field"
    )
    source.add_argument(
        "--languages", nargs="+", metavar="CODE", help="their Universal Declaration of Human Rights: common words"
    )
    parser.add_argument("--min-count", type=int, default=1, help="how often a token must come to stay (default: 1)")
    parser.add_argument("--max-vocabulary", type=int, default=None, help="size not to exceed: rarer tokens go")
    parser.add_argument("--keep-tokens", nargs="+", default=(), metavar="TOKEN", help="these stay in any case")
    parser.add_argument("--output-dir", required=True, help="where the result is written")
    parser.add_argument("--overwrite", action="store_true", help="replace the model in a folder that is not empty")
    add_common_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Trim with the parsed arguments and print what was done."""
    begin(args)

    from mmbert_hf.data.udhr import read_corpus
    from mmbert_hf.output_folders import checked_destination
    from mmbert_hf.vocabulary import trim

    check_model_name(args.model)
    checked_destination(args.output_dir, args.overwrite)
    progress = not (args.quiet or args.json)
    texts = None if args.texts is None else list(read_corpus(args.texts))
    model, tokenizer = _load(args.model)
    options = {"min_count": args.min_count, "keep_tokens": args.keep_tokens, "max_vocabulary": args.max_vocabulary}
    if hasattr(model, "encode") and tokenizer is None:
        before = len(model.tokenizer)
        small = trim(model, texts=texts, languages=args.languages, progress=progress, **options)
        after = len(small.tokenizer)
    else:
        before = len(tokenizer)
        given = tokenizer if model is None else model
        small = trim(given, texts=texts, languages=args.languages, tokenizer=None if model is None else tokenizer,
                     progress=progress, **options)  # fmt: skip
        after = len(small if model is None else small[1])
    if not args.dry_run:
        _save(small, args.output_dir, args.overwrite)
    lines = [f"{before:,} tokens -> {after:,}; {'would be ' if args.dry_run else ''}written to {args.output_dir}"]
    if after == before:
        lines.append(
            "nothing was removed: the texts use every token. --max-vocabulary and --min-count remove rare ones"
        )
    if getattr(getattr(model, "config", None), "model_type", None) == "mmbert":
        lines.append(
            f"to load it without this package: mmbert convert {args.output_dir} --output-dir FOLDER, or mmbert publish"
        )
    tell(args, {"folder": args.output_dir, "tokens_before": before, "tokens": after}, lines)
    return 0


def _load(name: str) -> tuple[Any, Any]:
    """An embedder and None; a model and its tokenizer; or None and a tokenizer."""
    import transformers

    from mmbert_hf.hub.fetching import fetch_file, load_tokenizer

    if fetch_file(name, "modules.json") is not None:
        from sentence_transformers import SentenceTransformer

        return SentenceTransformer(name, device="cpu"), None
    tokenizer = load_tokenizer(name)
    if fetch_file(name, "config.json") is None:
        return None, tokenizer
    architectures = transformers.AutoConfig.from_pretrained(name).architectures or [""]
    head = next((suffix for suffix in AUTO_CLASSES if architectures[0].endswith(suffix)), "")
    return getattr(transformers, f"AutoModel{head}").from_pretrained(name), tokenizer


def _save(result: Any, folder: str, overwrite: bool) -> None:
    from mmbert_hf.output_folders import output_folder

    if hasattr(result, "encode") and hasattr(result, "named_children"):
        from mmbert_hf.pruning.saving import save_embedder

        save_embedder(result, Path(folder), overwrite=overwrite)
        return
    with output_folder(folder, overwrite=overwrite, replaces_tokenizer=True) as staging:
        for part in result if isinstance(result, tuple) else (result,):
            part.save_pretrained(staging)
