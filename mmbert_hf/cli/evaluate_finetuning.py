"""Plans of ``mmbert evaluate`` that fine-tune: classification, tagging, question answering."""

import argparse
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from mmbert_hf.cli.evaluate import Plan
from mmbert_hf.cli.evaluate_texts import coded_source
from mmbert_hf.data.rows import RowSource, load_rows
from mmbert_hf.evaluation.model_kinds import read_model_kind, require_encoder
from mmbert_hf.evaluation.results import SetName

if TYPE_CHECKING:
    from mmbert_hf.evaluation.finetuning.training import FinetuningSettings


def plan_classification(args: argparse.Namespace) -> Plan:
    """Plan the fine-tuning of a classifier, or of a regression."""
    from mmbert_hf.evaluation.finetuning.classification import (
        check_labels,
        evaluate_classification,
        read_labelled_texts,
    )

    read = partial(
        read_labelled_texts,
        text=args.text_column,
        pair=args.pair_column,
        label=args.label_column,
        regression=args.regression,
    )

    def describe(train: Any) -> str:
        return "values" if train.names is None else f"{len(train.names)} classes: {', '.join(train.names[:8])}"

    return _plan(args, read, check_labels, describe, evaluate_classification)


def plan_tagging(args: argparse.Namespace) -> Plan:
    """Plan the fine-tuning of a tagger."""
    from mmbert_hf.evaluation.finetuning.tagging import check_tags, evaluate_tagging, read_tagged_texts

    read = partial(
        read_tagged_texts,
        tokens=args.tokens_column,
        tags=args.tags_column,
        text=args.text_column,
        entities=args.entities_column,
        names=args.tag_names,
    )
    return _plan(
        args,
        read,
        check_tags,
        lambda train: f"{len(train.names)} tags: {', '.join(train.names[:12])}",
        evaluate_tagging,
    )


def plan_question_answering(args: argparse.Namespace) -> Plan:
    """Plan the fine-tuning of a reader."""
    from mmbert_hf.evaluation.finetuning.question_answering import evaluate_question_answering, read_questions

    read = partial(
        read_questions, question=args.question_column, context=args.context_column, answers=args.answers_column
    )
    if args.stride is not None and not 0 <= args.stride < args.max_length:
        raise ValueError(f"--stride must be at least 0 and below --max-length, got {args.stride}")
    names = ("stride", "none_threshold", "strip_articles")
    options = {name: getattr(args, name) for name in names}

    def describe(train: Any) -> str:
        return f"{train.num_unanswerable:,} questions without an answer"

    evaluate = partial(evaluate_question_answering, **options)
    return _plan(args, read, lambda *_: None, describe, evaluate, options)


def _plan(
    args: argparse.Namespace,
    read: Callable[[Any], Any],
    check: Callable[[Any, Any, str], None],
    describe: Callable[[Any], str],
    evaluate: Callable[..., Any],
    more: dict[str, Any] | None = None,
) -> Plan:
    """Read and check all data, and plan to fine-tune once for each seed."""
    from mmbert_hf.evaluation.finetuning.training import load_tokenizer

    kind = read_model_kind(args.model)
    require_encoder(kind)
    settings = _settings(args)
    load_tokenizer(args.model, args.max_length)  # refuses rows that are longer than what the model reads
    if len(set(args.seeds)) < len(args.seeds):
        raise ValueError(f"--seeds must be different, got {args.seeds}")
    train = _read(args.train, read, "train")
    tests: dict[SetName, Any] = {}
    for given in args.test:
        code, source = coded_source(given)
        found = RowSource.read(source, "test")
        name = SetName(found.name, code, found.config, found.split)
        if name in tests:
            raise ValueError(
                f"two test sets are called {found.name!r}: rename one, or put the code of its language in front (CODE=...)"
            )
        tests[name] = _read(source, read, "test")
        check(train, tests[name], source)
    lines = [
        f"fine-tune {kind.name} ({kind.architecture or kind.model_type}) with {len(args.seeds)} seeds, for "
        + (f"{args.max_steps} steps" if args.max_steps else f"{args.epochs:g} epochs")
        + f" of {args.batch_size} rows:",
        f"  train: {len(train):,} rows of {args.train}, {describe(train)}",
        *(
            f"  test: {len(test):,} rows of {name.dataset}{f' ({name.language})' if name.language else ''}"
            for name, test in tests.items()
        ),
    ]
    recorded = {name: value for name, value in vars(settings).items() if name != "progress"}
    recorded |= {
        "train": RowSource.read(args.train)._asdict(),
        "num_train": len(train),
        "seeds": args.seeds,
        **(more or {}),
    }
    return Plan(lines, lambda: evaluate(args.model, train, tests, settings, args.seeds), recorded)


def _read(source: str, read: Callable[[Any], Any], split: str) -> Any:
    """Read a source; messages name it."""
    rows = load_rows(source, "rows", split=split)
    try:
        return read(rows)
    except ValueError as error:
        raise ValueError(f"{source!r}: {error}") from error


def _settings(args: argparse.Namespace) -> "FinetuningSettings":
    from mmbert_hf.evaluation.finetuning.training import FinetuningSettings

    return FinetuningSettings(
        learning_rate=args.learning_rate,
        num_epochs=args.epochs,
        max_steps=args.max_steps,
        batch_size=args.batch_size,
        max_length=args.max_length,
        warmup_ratio=args.warmup_ratio,
        weight_decay=args.weight_decay,
        bf16=args.bf16,
        progress=not (args.quiet or args.json),
    )
