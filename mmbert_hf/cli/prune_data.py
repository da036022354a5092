"""What ``mmbert prune`` reads: triplets to score and train on, and queries to measure on that nothing has seen before.

Queries are held out by a hash of their text before scoring, the same in every run, and rows of every set whose anchor is
among them are left out.
"""

import argparse
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datasets import Dataset

    from mmbert_hf.evaluation.retrieval import RetrievalSet

MOST_HELD_OUT = 1000
HELD_OUT_PART = 10  # one in so many


def check_sources(args: argparse.Namespace) -> None:
    """No file serves two purposes."""
    purposes = ("domain", "general", "test_domain", "test_general")
    seen: dict[str, str] = {}
    for purpose in purposes:
        source = getattr(args, purpose)
        if source is None:
            continue
        key = str(Path(source).resolve()) if Path(source).exists() else source
        option = f"--{purpose.replace('_', '-')}"
        if key in seen:
            raise ValueError(f"{seen[key]} and {option} are the same, {source!r}: name two different sets")
        seen[key] = option


def read_data(args: argparse.Namespace) -> tuple[dict[str, "Dataset"], dict[str, "RetrievalSet"]]:
    """The sets to score and train on, and those to measure on, which share no anchor with them."""
    from mmbert_hf.evaluation.retrieval import RetrievalSet
    from mmbert_hf.pruning import load_triplets
    from mmbert_hf.pruning.measuring import check_retrieval_set

    sources = {"domain": args.domain, "general": args.general}
    if args.retrain_data and args.retrain_steps:
        sources["retrain"] = args.retrain_data
    sets, tests, held_out = {name: load_triplets(source) for name, source in sources.items()}, {}, set()
    for name, dataset in sets.items():
        _check_columns(dataset, sources[name], needs_negative=name != "retrain" and not args.mine_negatives)
    for name in ("domain", "general"):
        given = getattr(args, f"test_{name}")
        if given:
            pairs = load_triplets(given)
            _check_columns(pairs, given, texts=("anchor", "positive"))
        else:
            anchors = held_out_anchors(sets[name]["anchor"], f"--{name}")
            pairs = sets[name].filter(lambda row, chosen=anchors: row["anchor"] in chosen)
        tests[name] = RetrievalSet.from_pairs(pairs["anchor"], pairs["positive"])
        check_retrieval_set(tests[name], name)
        held_out |= set(tests[name].queries)
    for name, dataset in sets.items():
        left = dataset.filter(lambda row: row["anchor"] not in held_out)
        if len(left) == 0:
            raise ValueError(f"every row of {sources[name]!r} is needed to measure: give more rows, or other test sets")
        if not args.quiet:
            print(f"{name}: {len(left):,} rows, {len(dataset) - len(left):,} held out for measuring")
        sets[name] = left
    return sets, tests


def _check_columns(
    dataset: "Dataset",
    source: str,
    *,
    needs_negative: bool = False,
    texts: Sequence[str] = ("anchor", "positive", "negative"),
) -> None:
    missing = [name for name in ("anchor", "positive") if name not in dataset.column_names]
    if missing:
        raise ValueError(
            f"{source!r} has the columns {', '.join(dataset.column_names)}; {', '.join(missing)} is missing. Rename them"
        )
    if needs_negative and "negative" not in dataset.column_names:
        raise ValueError(f"{source!r} has no column negative; give --mine-negatives to find some with the model")
    for name in [name for name in texts if name in dataset.column_names]:
        wrong = [row for row, text in enumerate(dataset[name]) if not isinstance(text, str) or not text.strip()]
        if wrong:
            raise ValueError(f"{source!r}: {len(wrong)} values of {name!r} are no text, the first in row {wrong[0]}")


def held_out_anchors(anchors: Iterable[str], option: str) -> set[str]:
    """A tenth of the different anchors, at most 1000: those whose SHA-256 is lowest.

    Args:
        anchors: All of a set.
        option: What the message calls the set.

    Raises:
        ValueError: There are fewer than 20 of them.

    Example:
        >>> len(held_out_anchors(map(str, range(50)), "--domain"))
        5
    """
    different = set(anchors)
    count = min(MOST_HELD_OUT, len(different) // HELD_OUT_PART)
    if count < 2:
        raise ValueError(
            f"{option} has {len(different)} different anchors, too few to hold out a tenth for measuring: give "
            f"{option.replace('--', '--test-')}, or at least {2 * HELD_OUT_PART} anchors"
        )
    return set(
        sorted(different, key=lambda text: hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest())[:count]
    )
