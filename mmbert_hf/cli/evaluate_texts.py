"""Plans of ``mmbert evaluate`` that train nothing: masked loss, bitext, retrieval, mteb."""

import argparse
import re
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmbert_hf.cli.evaluate import Plan
from mmbert_hf.data.rows import RowSource, load_rows
from mmbert_hf.evaluation.model_kinds import (
    ModelKind,
    load_embedder,
    read_model_kind,
    require_embedder,
    require_encoder,
    require_masked_lm,
    without_load_report,
)
from mmbert_hf.evaluation.results import Score, SetName
from mmbert_hf.languages import get_language

if TYPE_CHECKING:
    from mmbert_hf.data.sources import Source

CODE = r"[a-z]{2,3}(?:_[A-Z][a-z]{3})?"


def plan_masked_loss(args: argparse.Namespace) -> Plan:
    """Plan the masked loss of each language."""
    from mmbert_hf.evaluation.finetuning.training import load_tokenizer

    kind = read_model_kind(args.model)
    require_masked_lm(kind)
    if (args.texts is None) == (args.data is None):
        raise ValueError(
            "give the text of each language either by --texts CODE=PATH ... or by a table, --data TABLE.yaml"
        )
    _check_positive(args, "max_documents", "tokens_per_batch")
    if not 0 < args.mask_ratio < 1:
        raise ValueError(f"--mask-ratio must be between 0 and 1, got {args.mask_ratio}")
    sources = _text_sources(args)
    for source in sources.values():
        source.files()  # one that is missing is told now
    tokenizer = load_tokenizer(args.model, args.max_length)

    def measure() -> list[Score]:
        import torch

        from mmbert_hf.data.sources import iter_documents
        from mmbert_hf.evaluation.languages import evaluate_masked_loss

        texts = {
            _name_of(source, code): list(islice(iter_documents(source), args.max_documents))
            for code, source in sources.items()
        }
        model = _load_masked_lm(kind).to("cuda" if torch.cuda.is_available() else "cpu")
        options = {name: getattr(args, name) for name in ("mask_ratio", "max_length", "seed", "tokens_per_batch")}
        return evaluate_masked_loss(model, tokenizer, texts, **options)

    names = ("max_documents", "mask_ratio", "max_length", "seed")
    lines = [f"masked loss of {kind.name} ({kind.architecture}) in {len(sources)} languages:"]
    return Plan([*lines, *(f"  {source}" for source in sources.values())], measure, _settings(args, *names))


def plan_bitext(args: argparse.Namespace) -> Plan:
    """Plan translation retrieval of each pair of languages."""
    from mmbert_hf.evaluation.languages import read_parallel_texts

    kind = read_model_kind(args.model)
    if not kind.is_embedder:
        require_encoder(kind)
    _check_positive(args, "batch_size", "max_length")
    pairs: dict[SetName, tuple[list[str], list[str]]] = {}
    for given in args.pairs:
        found = re.fullmatch(rf"({CODE})-({CODE})=(.+)", given)
        if not found:
            raise ValueError(f"{given!r} is not CODE-CODE=SOURCE, such as dan-fao=pairs.csv")
        first, second, source = found.groups()
        for code in (first, second):
            get_language(code)
        try:
            texts = read_parallel_texts(load_rows(source, "pairs", split="test"), first, second)
        except ValueError as error:
            raise ValueError(f"{source!r}: {error}") from error
        _add(pairs, _set_name(source, f"{first}-{second}", "test"), texts)

    def measure() -> list[Score]:
        from mmbert_hf.evaluation.languages import evaluate_bitext

        return evaluate_bitext(_embedding_function(kind, args), pairs)

    lines = [f"{name.language}: {len(texts[0]):,} pairs of {name.dataset}" for name, texts in pairs.items()]
    pooling = "its own vectors" if kind.is_embedder else "the mean of the last hidden states"
    return Plan([f"translation retrieval by {kind.name}, {pooling}:", *lines], measure, _settings(args, "max_length"))


def plan_retrieval(args: argparse.Namespace) -> Plan:
    """Plan document retrieval on each data set."""
    from mmbert_hf.evaluation.information_retrieval import RetrievalData, read_beir, read_pairs

    kind = read_model_kind(args.model)
    require_embedder(kind, args.pooling)
    _check_positive(args, "batch_size", "max_length")
    sets: dict[SetName, RetrievalData] = {}
    for given in args.data:
        code, source = coded_source(given)
        is_beir = Path(source).is_dir() and not Path(source, "state.json").is_file()
        if is_beir:
            data = read_beir(source, args.split)
        else:
            rows = load_rows(source, "pairs", split=args.split)
            try:
                data = read_pairs(rows, query=args.query_column, document=args.document_column)
            except ValueError as error:
                raise ValueError(f"{source!r}: {error}") from error
        name = SetName(Path(source).resolve().name, code) if is_beir else _set_name(source, code, args.split)
        _add(sets, name, data)

    def measure() -> list[Score]:
        from mmbert_hf.evaluation.information_retrieval import evaluate_information_retrieval

        model = load_embedder(kind, pooling=args.pooling, max_length=args.max_length)
        options: dict[str, Any] = {"batch_size": args.batch_size, "progress": not (args.quiet or args.json)}
        return [
            score
            for name, data in sets.items()
            for score in evaluate_information_retrieval(model, data, name, **options)
        ]

    lines = [
        f"  {name.dataset}: {len(data.queries):,} queries, {len(data.documents):,} documents"
        for name, data in sets.items()
    ]
    return Plan([f"retrieval by {kind.name}:", *lines], measure, _settings(args, "pooling", "max_length", "split"))


def plan_mteb(args: argparse.Namespace) -> Plan:
    """Plan tasks of mteb."""
    from mmbert_hf.evaluation.mteb_tasks import check_mteb

    check_mteb()
    kind = read_model_kind(args.model)
    require_embedder(kind, args.pooling)
    _check_positive(args, "batch_size", "max_length")
    from mmbert_hf.evaluation.mteb_tasks import evaluate_mteb, select_mteb_tasks

    selection = select_mteb_tasks(args.tasks, args.benchmarks, args.languages)

    def measure() -> list[Score]:
        model = load_embedder(kind, pooling=args.pooling, max_length=args.max_length)
        return evaluate_mteb(
            model,
            selection,
            Path(args.output_dir, "mteb"),
            name=args.model,
            batch_size=args.batch_size,
            progress=not (args.quiet or args.json),
        )

    lines = [f"{len(selection.tasks)} tasks of mteb by {kind.name}:"]
    for task in selection.tasks:
        parts = len(task.hf_subsets or ())
        lines.append(f"  {task.metadata.name} ({task.metadata.type}{f', {parts} parts' if parts > 1 else ''})")
    lines += [f"left out, in other languages: {', '.join(selection.left_out)}"] if selection.left_out else []
    names = ("tasks", "benchmarks", "languages", "pooling", "max_length")
    return Plan(lines, measure, _settings(args, *names))


def coded_source(text: str) -> tuple[str | None, str]:
    """Take ``CODE=SOURCE`` apart; what has no code in front is a source.

    Example:
        >>> coded_source("fao=data/test.jsonl"), coded_source("data/test.jsonl")
        (('fao', 'data/test.jsonl'), (None, 'data/test.jsonl'))
    """
    found = re.fullmatch(rf"({CODE})=(.+)", text)
    if not found or Path(text).exists():
        return None, text
    get_language(found[1])
    return found[1], found[2]


def _text_sources(args: argparse.Namespace) -> "dict[str, Source]":
    """Code -> where its documents are."""
    from mmbert_hf.data.sources import Source
    from mmbert_hf.data.table import load_table

    if args.data is not None:
        return {code: entry.source for code, entry in load_table(args.data).entries.items()}
    sources: dict[str, Source] = {}
    for given in args.texts:
        code, path = coded_source(given)
        if code is None:
            raise ValueError(f"{given!r} is not CODE=PATH, such as fao=fao.txt")
        if code in sources:
            raise ValueError(f"{code!r} comes twice: give one file, folder or pattern for each language")
        sources[code] = Source(code, path)
    return sources


def _name_of(source: "Source", code: str) -> SetName:
    places = [place if source.is_hub(place) else Path(place).name for place in source.locations]
    return SetName("+".join(places), code, source.config, source.split if source.is_hub(source.locations[0]) else None)


def _set_name(source: str, code: str | None, split: str) -> SetName:
    found = RowSource.read(source, split)
    return SetName(found.name, code, found.config, found.split)


def _add(sets: dict[SetName, Any], name: SetName, value: Any) -> None:
    """Add a set, unless one of its name is there, whose scores could not be told from its own."""
    if name in sets:
        raise ValueError(
            f"two sets are called {name.dataset!r}: rename one, or put the code of its language in front (CODE=...)"
        )
    sets[name] = value


def _load_masked_lm(kind: ModelKind) -> Any:
    if kind.model_type in ("mmbert", "modernbert"):
        from mmbert_hf.trainers.mlm import load_model

        return load_model(kind.name)
    from transformers import AutoModelForMaskedLM

    return AutoModelForMaskedLM.from_pretrained(kind.name)


def _embedding_function(kind: ModelKind, args: argparse.Namespace) -> Any:
    """From texts to vectors, for an embedder or an encoder."""
    if kind.is_embedder:
        model = load_embedder(kind, max_length=args.max_length)
        return lambda texts: model.encode(list(texts), batch_size=args.batch_size, show_progress_bar=False)
    import torch
    from transformers import AutoModel

    from mmbert_hf.evaluation.bitext import embed_texts
    from mmbert_hf.evaluation.finetuning.training import longest_input
    from mmbert_hf.hub.fetching import load_tokenizer

    tokenizer = load_tokenizer(kind.name)
    longest = min(args.max_length or 512, longest_input(kind.name, tokenizer))
    with without_load_report():
        encoder = AutoModel.from_pretrained(kind.name).to("cuda" if torch.cuda.is_available() else "cpu")
    return lambda texts: embed_texts(encoder, tokenizer, texts, max_length=longest, batch_size=args.batch_size)


def _check_positive(args: argparse.Namespace, *names: str) -> None:
    for name in names:
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {value}")


def _settings(args: argparse.Namespace, *names: str) -> dict[str, Any]:
    return {name: getattr(args, name) for name in names}
