"""``mmbert evaluate KIND MODEL``: measure an encoder or an embedder; scores as a table, a file, a picture, a model-index.

Design decisions:

- One verb, and a kind for each way to measure, with the options of that kind only.
- A kind is a function from the arguments to a `Plan`: what would be done, in words, and a function that does it. The plan is
  made from checked data and names, before weights are loaded; --dry-run ends there.
- Nothing but argparse is imported before a kind runs.
"""

import argparse
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmbert_hf.cli.grammar import add_common_options, begin, show, tell
from mmbert_hf.cli.model_names import check_model_name

if TYPE_CHECKING:
    from mmbert_hf.evaluation.results import EvaluationResults, Score

PICTURE = "results.png"
SOURCES = (
    ".jsonl, .json (also in SQuAD's nested format), .csv, .parquet, a folder of save_to_disk, or owner/name[/config][:split] "
    "on the Hub"
)
EPILOG = "mmbert evaluate KIND --help has the options of a kind. Policies: mmbert evaluate-policy."


@dataclass(frozen=True)
class Plan:
    """What a kind is about to do.

    Attributes:
        lines: In words.
        measure: Does it.
        settings: What results.json says of it.
    """

    lines: Sequence[str]
    measure: Callable[[], "list[Score]"]
    settings: dict[str, Any] = field(default_factory=dict)


def add_parser(verbs: Any) -> None:
    """Add the verb to ``mmbert``."""
    parser = verbs.add_parser(
        "evaluate",
        help="measure an encoder or an embedder: masked loss, retrieval, mteb, fine-tuning",
        description=(
            "Measure an encoder or an embedder. Writes OUTPUT_DIR/results.json, and a picture where matplotlib is installed; "
            "--add-to-card puts the scores into the model's card."
        ),
        epilog=EPILOG,
    )
    kinds = parser.add_subparsers(dest="kind", metavar="KIND", required=True)
    for add in (_add_masked_loss, _add_bitext, _add_retrieval, _add_mteb, _add_classification, _add_tagging,
                _add_question_answering):  # fmt: skip
        add(kinds)


def _add_kind(kinds: Any, name: str, text: str, example: str, description: str = "") -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = kinds.add_parser(
        name,
        help=text,
        usage=f"mmbert evaluate {name} MODEL --output-dir FOLDER [options]",  # behind options with several values it is one more
        description=f"{text[0].upper()}{text[1:]}. {description}".strip(),
        epilog=f"Example: mmbert evaluate {name} {example}",
    )
    parser.add_argument("model", metavar="MODEL", help="folder or Hub name")
    parser.set_defaults(run=run)
    return parser


def _add_output(parser: argparse.ArgumentParser) -> None:
    """Add what every kind has."""
    group = parser.add_argument_group("output")
    group.add_argument(
        "--output-dir", metavar="FOLDER", required=True, help="where results.json and results.png are written"
    )
    group.add_argument(
        "--plot", action="store_true", help=f"{PICTURE} has to be drawn; else it is if matplotlib is installed"
    )
    group.add_argument(
        "--add-to-card", action="store_true", help="write the scores into the model-index of MODEL/README.md"
    )
    add_common_options(parser, dry_run="check model, data and names, and say what would be done; compute nothing")


def _add_masked_loss(kinds: Any) -> None:
    parser = _add_kind(
        kinds,
        "masked-loss",
        "loss of a masked language model on text of each language",
        "jhu-clsp/mmBERT-base --texts fao=fao.txt dan=dan.jsonl --output-dir losses",
        "The masks are drawn once, from --seed: two models with one tokenizer are measured on the same. The text should be "
        "none that the model was trained on.",
    )
    data = parser.add_argument_group("data, one of")
    data.add_argument("--texts", nargs="+", metavar="CODE=PATH", help="text of each language: .txt, .jsonl, .parquet")
    data.add_argument("--data", metavar="TABLE.yaml", help="a table of languages, as for mmbert pretrain")
    parser.add_argument("--max-documents", type=int, default=256, help="of a language, the first ones (default: 256)")
    parser.add_argument("--mask-ratio", type=float, default=0.15, help="share that is predicted (default: 0.15)")
    parser.add_argument("--max-length", type=int, default=512, help="tokens of a row (default: 512)")
    parser.add_argument("--tokens-per-batch", type=int, default=8192, help="in a forward pass (default: 8192)")
    parser.add_argument("--seed", type=int, default=0, help="of the masks (default: 0)")
    _add_output(parser)


def _add_bitext(kinds: Any) -> None:
    parser = _add_kind(
        kinds,
        "bitext",
        "do sentences find their translations: retrieval between two languages",
        "jhu-clsp/mmBERT-base --pairs dan-fao=pairs.csv --output-dir bitext",
        "Of an encoder the mean of the last hidden states is compared, of an embedder its vectors.",
    )
    parser.add_argument(
        "--pairs",
        nargs="+",
        required=True,
        metavar="CODE-CODE=SOURCE",
        help=f"sentences in columns named by the two codes, or sentence1 and sentence2: {SOURCES}",
    )
    _add_embedding_options(parser)
    _add_output(parser)


def _add_retrieval(kinds: Any) -> None:
    parser = _add_kind(
        kinds,
        "retrieval",
        "retrieval of documents, by sentence-transformers' InformationRetrievalEvaluator",
        "sentence-transformers/all-MiniLM-L6-v2 --data nfcorpus --output-dir retrieval",
        "The model's own prompts and similarity are used.",
    )
    parser.add_argument(
        "--data",
        nargs="+",
        required=True,
        metavar="[CODE=]SOURCE",
        help=f"folders of BEIR's format (queries.jsonl, corpus.jsonl, qrels/SPLIT.tsv), or pairs: {SOURCES}",
    )
    parser.add_argument(
        "--split", default="test", help="of the judgements, and of data sets on the Hub (default: test)"
    )
    parser.add_argument("--query-column", default="anchor", help="of pairs (default: anchor)")
    parser.add_argument("--document-column", default="positive", help="of pairs (default: positive)")
    _add_pooling(parser)
    _add_embedding_options(parser)
    _add_output(parser)


def _add_mteb(kinds: Any) -> None:
    parser = _add_kind(
        kinds,
        "mteb",
        "tasks and benchmarks of mteb, by the names that mteb has for them",
        "sentence-transformers/all-MiniLM-L6-v2 --benchmarks ChemTEB --output-dir chemteb",
        "Needs mteb: pip install 'mmbert-hf[evaluate]'. Its own files are kept in OUTPUT/mteb; stopped, the same command "
        "continues.",
    )
    parser.add_argument("--tasks", nargs="+", default=[], metavar="NAME", help="such as STS17 or FinParaSTS")
    parser.add_argument(
        "--benchmarks", nargs="+", default=[], metavar="NAME", help='such as ChemTEB or "MTEB(Europe, v1)"'
    )
    parser.add_argument("--languages", nargs="+", metavar="CODE", help="only these parts, such as fao or fao-Latn")
    _add_pooling(parser)
    _add_embedding_options(parser)
    _add_output(parser)


def _add_classification(kinds: Any) -> None:
    parser = _add_kind(
        kinds,
        "classification",
        "fine-tune on texts, or pairs of texts, with labels (GLUE, XNLI): classes, or values where labels are fractions",
        "jhu-clsp/mmBERT-base --train nyu-mll/glue/rte --test nyu-mll/glue/rte:validation --seeds 1 2 3 --output-dir rte",
    )
    _add_finetuning_data(parser, "columns text or GLUE's (sentence1, premise, question1, ...), and label")
    parser.add_argument("--text-column", help="(default: GLUE's names, or text)")
    parser.add_argument("--pair-column", help="what the text is paired with, with --text-column")
    parser.add_argument("--label-column", default="label", help="texts, integers or fractions (default: label)")
    parser.add_argument("--regression", action="store_true", help="integers among the labels are values, not classes")
    _add_finetuning_options(parser, max_length=256)
    _add_output(parser)


def _add_tagging(kinds: Any) -> None:
    parser = _add_kind(
        kinds,
        "tagging",
        "fine-tune on tags of words (NER, POS), or on entities given as characters",
        "jhu-clsp/mmBERT-base --train unimelb-nlp/wikiann/en --test fao=unimelb-nlp/wikiann/fo:test --output-dir ner",
    )
    _add_finetuning_data(parser, "columns tokens and ner_tags (or tags, pos_tags), or text and entities")
    parser.add_argument("--tokens-column", default="tokens", help="words (default: tokens)")
    parser.add_argument("--tags-column", help="one tag a word (default: ner_tags, tags or pos_tags)")
    parser.add_argument("--text-column", default="text", help="texts, with entities (default: text)")
    parser.add_argument(
        "--entities-column", default="entities", help="lists of start, end (characters) and label (default: entities)"
    )
    parser.add_argument("--tag-names", nargs="+", metavar="TAG", help="what integers among the tags mean, from 0 on")
    _add_finetuning_options(parser, max_length=256)
    _add_output(parser)


def _add_question_answering(kinds: Any) -> None:
    parser = _add_kind(
        kinds,
        "question-answering",
        "fine-tune on answers that are spans of a context (SQuAD's formats, as TiQuAD and FoQA have them)",
        "jhu-clsp/mmBERT-base --train tiquad/train.json --test tir=tiquad/dev.json --output-dir tiquad",
    )
    _add_finetuning_data(parser, "columns question, context, answers (and id), or SQuAD's nested files")
    parser.add_argument("--question-column", default="question", help="(default: question)")
    parser.add_argument("--context-column", default="context", help="(default: context)")
    parser.add_argument("--answers-column", default="answers", help="lists of text and answer_start (default: answers)")
    parser.add_argument("--stride", type=int, help="tokens that two windows share (default: a fourth of --max-length)")
    parser.add_argument(
        "--none-threshold",
        type=float,
        help="how much more than the best answer 'no answer' has to score (default: 0 if --train has questions without "
        "answers; else every question gets one)",
    )
    parser.add_argument(
        "--strip-articles", action="store_true", help="leave a, an and the out of comparisons, as for English SQuAD"
    )
    _add_finetuning_options(parser, max_length=384)
    _add_output(parser)


def _add_embedding_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--batch-size", type=int, default=32, help="texts per forward pass (default: 32)")
    parser.add_argument("--max-length", type=int, help="tokens of a text, the rest is cut off (default: the model's)")


def _add_pooling(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--pooling", choices=("mean", "cls"), help="measure an encoder that is no embedder, with this pooling"
    )


def _add_finetuning_data(parser: argparse.ArgumentParser, columns: str) -> None:
    data = parser.add_argument_group("data", f"{SOURCES}; {columns}")
    data.add_argument(
        "--train", metavar="SOURCE", required=True, help="what is learnt; of the Hub split train by default"
    )
    data.add_argument(
        "--test",
        metavar="[CODE=]SOURCE",
        required=True,
        nargs="+",
        help="what is measured, with the code of its language; of the Hub split test by default",
    )


def _add_finetuning_options(parser: argparse.ArgumentParser, max_length: int) -> None:
    group = parser.add_argument_group("training")
    group.add_argument("--seeds", type=int, nargs="+", default=[1], help="one run for each (default: 1)")
    group.add_argument("--learning-rate", type=float, default=3e-5, help="its peak (default: 3e-5)")
    group.add_argument("--epochs", type=float, default=3.0, help="passes over --train (default: 3)")
    group.add_argument("--max-steps", type=int, help="steps in place of epochs")
    group.add_argument("--batch-size", type=int, default=32, help="rows of a step (default: 32)")
    group.add_argument("--max-length", type=int, default=max_length, help=f"tokens of a row (default: {max_length})")
    group.add_argument("--warmup-ratio", type=float, default=0.06, help="part of the steps (default: 0.06)")
    group.add_argument("--weight-decay", type=float, default=0.01, help="of AdamW (default: 0.01)")
    group.add_argument("--bf16", action="store_true", help="train in bfloat16")


# Kind -> module and function that makes its plan.
PLANS = {
    "masked-loss": ("evaluate_texts", "plan_masked_loss"),
    "bitext": ("evaluate_texts", "plan_bitext"),
    "retrieval": ("evaluate_texts", "plan_retrieval"),
    "mteb": ("evaluate_texts", "plan_mteb"),
    "classification": ("evaluate_finetuning", "plan_classification"),
    "tagging": ("evaluate_finetuning", "plan_tagging"),
    "question-answering": ("evaluate_finetuning", "plan_question_answering"),
}


def run(args: argparse.Namespace) -> int:
    """Measure with the parsed arguments, write and print what came out."""
    _check(args)
    begin(args)
    if args.dry_run:
        from mmbert_hf.cli.quiet import quiet_libraries

        quiet_libraries()
    check_model_name(args.model)
    module, function = PLANS[args.kind]
    plan: Plan = getattr(import_module(f"mmbert_hf.cli.{module}"), function)(args)
    if args.dry_run:
        facts = {"kind": args.kind, "model": args.model, "plan": [*plan.lines], "folder": args.output_dir}
        tell(args, facts, (*plan.lines, f"nothing was computed; without --dry-run, {args.output_dir} gets the results"))
        return 0

    from mmbert_hf.evaluation.results import EvaluationResults
    from mmbert_hf.hub.names import public_name

    name = public_name(args.model) or Path(args.model).resolve().name
    results = EvaluationResults(args.kind, name, plan.measure(), plan.settings)
    written = _write(args, results)
    lines = (results.table(), f"written: {', '.join(map(str, written))}")
    show(args, results.to_json().rstrip("\n") if args.json else "\n".join(lines))
    return 0


def _check(args: argparse.Namespace) -> None:
    """Everything that can be said before data are read."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("mmbert evaluate runs in one process; start it without accelerate launch or torchrun")
    if Path(args.output_dir).exists() and not Path(args.output_dir).is_dir():
        raise NotADirectoryError(f"{args.output_dir} is a file; give a folder as --output-dir")
    if args.plot:
        from mmbert_hf.plotting import check_can_plot

        check_can_plot()
    if args.add_to_card:
        if not Path(args.model).is_dir():
            raise ValueError(
                f"--add-to-card writes into the folder of a model, and {args.model!r} is none on this disk"
            )
        from mmbert_hf.evaluation.results import check_card

        check_card(args.model)


def _write(args: argparse.Namespace, results: "EvaluationResults") -> list[Path]:
    """Write the file, the picture and the card; return what was written."""
    import importlib.util

    from mmbert_hf.evaluation.results import add_to_card

    written = [results.save(args.output_dir)]
    if args.plot or importlib.util.find_spec("matplotlib") is not None:
        from mmbert_hf.evaluation.results_plot import plot_results

        written.append(plot_results(results, Path(args.output_dir, PICTURE)))
    if args.add_to_card:
        written.append(add_to_card(args.model, results))
    return written
