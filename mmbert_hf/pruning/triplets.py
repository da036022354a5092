"""Triplets (anchor, positive, negative): read and checked, loaded, chosen by k-means, completed with hard negatives.

Design decisions:

- Everything that would spoil the statistics silently is told before a model runs: a column that is not there, a text
  that is empty or none at all, and two sets that are the same, whose difference says nothing.
- The fingerprint is a SHA-256 over the texts in their order: the statistics of a set are recognised by it.
- `select_triplets` follows GAPrune (arXiv 2509.10844): k-means over the anchors' embeddings with as many clusters as
  triplets are wanted, and of each cluster the real row nearest its centroid. Taking the nearest *member of the cluster*
  makes the rows distinct; a cluster that ends empty is made up for by the row that is farthest from its own centroid.
- It is Lloyd's algorithm from random rows, in float64. Full k-means is feasible: 100,000 anchors of 384 dimensions and
  5000 clusters take about three minutes on one core, less than embedding them; k-means++ would cost as much again,
  and mini-batches compare every row with every centroid just the same. In float64 the order in which threads add up
  does not move a choice.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import sys
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmbert_hf.data.rows import load_rows

if TYPE_CHECKING:
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer

__all__ = ["Triplets", "add_hard_negatives", "check_different", "load_triplets", "read_triplets", "select_triplets"]

logger = logging.getLogger(__name__)

COLUMNS = ("anchor", "positive", "negative")
# What `add_hard_negatives` promises of its result rests on these.
FIXED_OPTIONS = {"num_negatives": 1, "output_format": "triplet", "include_positives": False, "output_scores": False}


@dataclass(frozen=True)
class Triplets:
    """Triplets that were checked: three lists of texts of one length.

    Attributes:
        anchors: Queries.
        positives: For each anchor a document that answers it.
        negatives: For each anchor a document that does not.
        fingerprint: SHA-256 over the texts in their order, as hexadecimal digits.

    Example:
        >>> triplets = read_triplets([{"anchor": "ant", "positive": "an insect", "negative": "a bird"}])
        >>> len(triplets), triplets.negatives
        (1, ['a bird'])
    """

    anchors: list[str]
    positives: list[str]
    negatives: list[str]
    fingerprint: str

    def __len__(self) -> int:
        return len(self.anchors)


def read_triplets(dataset: Dataset | Sequence[Mapping[str, Any]], name: str = "domain") -> Triplets:
    """Check a set of triplets and take its texts out of it.

    Args:
        dataset: With the columns anchor, positive and negative; other columns are ignored. A list of dictionaries
            will do.
        name: What the messages call the set.

    Returns:
        The triplets, in the order of the set.

    Raises:
        TypeError: It is neither a `datasets.Dataset` nor a list of dictionaries.
        ValueError: The set is empty, a column is missing, or a text is missing, empty or not a string.

    Example:
        >>> read_triplets([{"anchor": "ant", "positive": " ", "negative": "a bird"}], name="general")
        Traceback (most recent call last):
            ...
        ValueError: general set: 1 of 1 values of 'positive' are no text (row 0: ' '); drop or mend these rows
    """
    anchors, positives, negatives = (texts for texts in _read_columns(dataset, COLUMNS, name).values())
    digest = hashlib.sha256()
    for row in zip(anchors, positives, negatives, strict=True):
        for text in row:
            data = text.encode("utf-8", "surrogatepass")
            digest.update(len(data).to_bytes(8, "little") + data)  # the length, so that a text ends where it ends
    return Triplets(anchors, positives, negatives, digest.hexdigest())


def check_different(domain: Triplets, general: Triplets) -> None:
    """Refuse two sets that are the same, and warn of two that overlap.

    Args:
        domain: Triplets of the domain.
        general: Triplets of no domain.

    Raises:
        ValueError: They hold the same triplets, in whatever order.

    Example:
        >>> rows = [{"anchor": "ant", "positive": "an insect", "negative": "a bird"}]
        >>> check_different(read_triplets(rows), read_triplets(rows))
        Traceback (most recent call last):
            ...
        ValueError: the domain and the general set hold the same 1 triplets: name two different sets
    """
    domain_rows, general_rows = (
        set(zip(triplets.anchors, triplets.positives, triplets.negatives, strict=True))
        for triplets in (domain, general)
    )
    if domain_rows == general_rows:
        raise ValueError(
            f"the domain and the general set hold the same {len(domain_rows)} triplets: name two different sets"
        )
    common = len(domain_rows & general_rows)
    if common:
        logger.warning(
            "%d triplets are in both sets: %.1f %% of the domain set and %.1f %% of the general set",
            common,
            100 * common / len(domain_rows),
            100 * common / len(general_rows),
        )


def load_triplets(source: str | Path) -> Dataset:
    """Load a data set from a file or from the Hub; `read_triplets` checks what is in it.

    Args:
        source: A local file or the name of a data set on the Hub, as `mmbert_hf.data.rows.load_rows` takes them; the
            split is "train" if none is named.

    Returns:
        The data set, with all its columns.

    Raises:
        FileNotFoundError: There is no such file, and it cannot be a name on the Hub.
        ValueError: It is a folder, a file of another kind, or a file that cannot be read.

    Example:
        >>> load_triplets("no-such-file.jsonl")
        Traceback (most recent call last):
            ...
        FileNotFoundError: there is no file 'no-such-file.jsonl'; a data set on the Hub is owner/name or owner/name:split
    """
    return load_rows(source, "triplets")


def select_triplets(
    dataset: Dataset,
    model: SentenceTransformer,
    num_triplets: int = 5000,
    *,
    iterations: int = 20,
    seed: int = 0,
    batch_size: int = 64,
) -> Dataset:
    """Choose triplets that stand for a larger set: k-means over the anchors (arXiv 2509.10844; module docstring).

    Args:
        dataset: With the column anchor.
        model: Embeds the anchors as queries; they are compared by direction, not by length.
        num_triplets: How many to choose, which is the number of clusters.
        iterations: At most so many rounds of k-means.
        seed: Of the rows at which the centroids start.
        batch_size: Anchors per forward pass.

    Returns:
        `num_triplets` different rows in their order, or the whole set where it has no more than that.

    Raises:
        ValueError: `num_triplets` is below 1, an anchor is no text, or the model gives embeddings that are not finite.

    Example:
        >>> from datasets import Dataset
        >>> from sentence_transformers import SentenceTransformer
        >>> from sentence_transformers.sentence_transformer.modules import BoW
        >>> model = SentenceTransformer(modules=[BoW(vocab=["ant", "oak"])], device="cpu")
        >>> dataset = Dataset.from_list([{"anchor": text} for text in ("an oak", "the ant", "an ant", "the oak")])
        >>> select_triplets(dataset, model, num_triplets=2)["anchor"][:]
        ['an oak', 'the ant']
    """
    if num_triplets < 1:
        raise ValueError(f"num_triplets must be at least 1, got {num_triplets}")
    anchors = _read_columns(dataset, ("anchor",), "triplet")["anchor"]
    if len(dataset) <= num_triplets:
        if len(dataset) < num_triplets:
            logger.warning("%d triplets asked for, the set has %d: all are taken", num_triplets, len(dataset))
        return dataset
    embeddings = model.encode_query(
        anchors, batch_size=batch_size, normalize_embeddings=True, convert_to_numpy=True, show_progress_bar=False
    )
    embeddings_ND = np.asarray(embeddings, dtype=np.float64)
    broken = np.flatnonzero(~np.isfinite(embeddings_ND).all(axis=1))
    if len(broken):
        raise ValueError(
            f"the model's embeddings of {len(broken)} anchors are not finite (rows {broken[:5].tolist()}): "
            "check its weights and dtype"
        )
    return dataset.select(_nearest_to_centroids(embeddings_ND, num_triplets, iterations, seed))


def add_hard_negatives(dataset: Dataset, model: SentenceTransformer, **options: Any) -> Dataset:
    """Give each pair of anchor and positive a negative: `sentence_transformers.util.mine_hard_negatives`, one each.

    Args:
        dataset: With the columns anchor and positive; other columns are dropped.
        model: By its similarity the negatives are the nearest among the set's other positives.
        **options: Of `mine_hard_negatives`, such as `relative_margin`, `range_min` or `batch_size`.

    Returns:
        Columns anchor, positive and negative. Rows of one anchor come together and pairs that repeat come once;
        anchors without negative are dropped.

    Raises:
        ValueError: The set has negatives already, a text is missing, an option would change the form of the result, or
            no negative was found at all.

    Example:
        >>> from datasets import Dataset
        >>> from sentence_transformers import SentenceTransformer
        >>> from sentence_transformers.sentence_transformer.modules import BoW
        >>> model = SentenceTransformer(modules=[BoW(vocab=["ant", "oak"])], device="cpu")
        >>> dataset = Dataset.from_dict({"anchor": ["ant", "oak"], "positive": ["not an oak", "not an ant"]})
        >>> add_hard_negatives(dataset, model)["negative"][:]
        ['not an ant', 'not an oak']
    """
    from datasets import Dataset
    from sentence_transformers.util import mine_hard_negatives

    refused = sorted(FIXED_OPTIONS.keys() & options.keys())
    if refused:
        raise ValueError(f"{', '.join(refused)} cannot be set: the result has one negative for each pair, as triplets")
    texts = _read_columns(dataset, COLUMNS[:2], "pair")
    if "negative" in dataset.column_names:
        raise ValueError("the set has a column 'negative' already; remove_columns('negative') if it is to be replaced")
    anchors, positives = zip(*dict.fromkeys(zip(*texts.values(), strict=True)), strict=True)
    num_others = len({*positives, *(options.get("corpus") or ())}) - max(Counter(anchors).values())
    if num_others <= options.get("range_min", 0):
        raise ValueError(
            f"there are {num_others} texts beside an anchor's own positives, of which range_min leaves none: give more pairs"
        )
    # sentence-transformers below 6 asks for more candidates than a small set has.
    if num_others < (options.get("range_max") or options.get("range_min", 0) + 10 + max(Counter(anchors).values())):
        options["range_max"] = num_others
    pairs = Dataset.from_dict({"anchor": anchors, "positive": positives})
    with contextlib.redirect_stderr(_WithoutProgressBars(sys.stderr)):
        mined = mine_hard_negatives(pairs, model, **{"verbose": False, **FIXED_OPTIONS, **options})
    found = set(mined["anchor"])
    if not found:
        raise ValueError(
            f"no negative was found for any of {len(set(anchors))} anchors: give more pairs, or looser limits than "
            f"{options or 'another positive than their own'}"
        )
    dropped = len(set(anchors)) - len(found)
    if dropped:
        logger.warning("%d of %d anchors are dropped: no negative was found", dropped, len(set(anchors)))
    return mined


class _WithoutProgressBars(io.TextIOBase):
    """Passes on what is written, but for progress bars, which `mine_hard_negatives` has no option to turn off."""

    def __init__(self, stream: Any):
        self.stream = stream

    def write(self, text: str) -> int:
        """Write, unless it redraws a line or ends a redrawn one."""
        if not text.startswith("\r") and text != "\n":
            self.stream.write(text)
        return len(text)


def _read_columns(dataset: Any, columns: Sequence[str], name: str) -> dict[str, list[str]]:
    """Some columns, checked to be there and to hold nothing but text."""
    if isinstance(dataset, Mapping):
        raise TypeError(
            f"{name} set: got {type(dataset).__name__} with the keys {sorted(dataset)}; pass one split of it"
        )
    is_list = isinstance(dataset, Sequence) and all(isinstance(row, Mapping) for row in dataset)
    if not is_list and not (hasattr(dataset, "column_names") and hasattr(dataset, "__len__")):
        raise TypeError(
            f"{name} set: expected a datasets.Dataset or a list of dictionaries, got {type(dataset).__name__}; "
            "load_triplets reads files and data sets of the Hub"
        )
    if len(dataset) == 0:
        raise ValueError(f"{name} set: it is empty; give at least one row with the columns {', '.join(columns)}")
    present = list(dict.fromkeys(key for row in dataset for key in row)) if is_list else list(dataset.column_names)
    missing = [column for column in columns if column not in present]
    if missing:
        fix = "add_hard_negatives finds some" if missing == ["negative"] else f"rename or add {', '.join(missing)}"
        raise ValueError(f"{name} set: no column {', '.join(missing)} among {present}; {fix}")
    values = {column: [row.get(column) for row in dataset] if is_list else list(dataset[column]) for column in columns}
    for column, texts in values.items():
        wrong = [row for row, text in enumerate(texts) if not isinstance(text, str) or not text.strip()]
        if wrong:
            listing = ", ".join(f"row {row}: {texts[row]!r:.40}" for row in wrong[:3]) + (", ..." if wrong[3:] else "")
            raise ValueError(
                f"{name} set: {len(wrong)} of {len(texts)} values of {column!r} are no text ({listing}); "
                "drop or mend these rows"
            )
    return values


def _nearest_to_centroids(embeddings_ND: np.ndarray, num_clusters: int, iterations: int, seed: int) -> list[int]:
    """Rows, in order: of each cluster the member nearest its centroid, for each empty cluster the farthest row left."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    clusters = KMeans(num_clusters, init="random", n_init=1, max_iter=iterations, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # equal anchors leave clusters empty: filled below
        labels_N = clusters.fit_predict(embeddings_ND)
    distances_N = np.square(embeddings_ND - clusters.cluster_centers_[labels_N]).sum(axis=1)
    by_cluster = np.lexsort((np.arange(len(labels_N)), distances_N, labels_N))
    _, first = np.unique(labels_N[by_cluster], return_index=True)
    chosen = by_cluster[first]
    others = np.setdiff1d(np.arange(len(labels_N)), chosen)
    farthest = others[np.argsort(-distances_N[others], kind="stable")][: num_clusters - len(chosen)]
    return sorted(np.concatenate([chosen, farthest]).tolist())
