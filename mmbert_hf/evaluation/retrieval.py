"""Retrieval quality of an embedder: nDCG for every query, and the difference of two embedders with its interval.

Design decisions:

- nDCG comes per query, not as a mean: two embedders are compared query by query, which takes the queries' own
  difficulty out of the difference (`paired_bootstrap`).
- Ties are counted against the model: a document that is as similar to the query as a relevant one ranks before it, so
  that an embedder that maps everything to one point scores what it deserves.
- Similarities are computed in float64 and for a block of queries at a time.
- Documents are compared by cosine, or by the dot product where that is the model's own similarity.

Shape legend: Q queries, N documents, D embedding dimensions, B queries of a block, R resamples.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = ["RetrievalSet", "bootstrap_interval", "evaluate_retrieval", "ndcg_at_k", "paired_bootstrap"]

BLOCK_VALUES = 2**23  # similarities of one block: 64 MiB
TIE = 1e-12  # as a share of the largest similarity: what the order of additions may differ by in float64
BOOTSTRAP_VALUES = 2**22  # indices drawn at a time: 32 MiB


@dataclass(frozen=True)
class RetrievalSet:
    """Queries, documents, and which documents answer which query.

    Attributes:
        queries: Texts.
        documents: Texts.
        relevant: For each query the indices of its relevant documents.

    Raises:
        ValueError: There is no query, or `relevant` has not one non-empty set of document indices for each query.

    Example:
        >>> animals = RetrievalSet(["ant"], ["a bird", "an insect"], [{1}])
        >>> len(animals.documents)
        2
    """

    queries: list[str]
    documents: list[str]
    relevant: list[set[int]]

    def __post_init__(self) -> None:
        _check_relevant(self.relevant, len(self.queries), len(self.documents))

    @classmethod
    def from_pairs(cls, queries: Iterable[str], documents: Iterable[str]) -> RetrievalSet:
        """Make a set in which the i-th document answers the i-th query.

        Documents of the same text are one document, and so are queries: a query that occurs several times has several
        relevant documents.

        Args:
            queries: Texts.
            documents: As many texts.

        Returns:
            The set, in the order of first occurrence.

        Raises:
            ValueError: There are not as many documents as queries, or none.

        Example:
            >>> RetrievalSet.from_pairs(["ant", "bee", "ant"], ["an insect", "an insect", "a worker"])
            RetrievalSet(queries=['ant', 'bee'], documents=['an insect', 'a worker'], relevant=[{0, 1}, {0}])
        """
        queries, documents = list(queries), list(documents)
        if len(queries) != len(documents):
            raise ValueError(f"got {len(queries)} queries and {len(documents)} documents: give one document a query")
        numbers = {text: number for number, text in enumerate(dict.fromkeys(documents))}
        relevant: dict[str, set[int]] = {}
        for query, document in zip(queries, documents, strict=True):
            relevant.setdefault(query, set()).add(numbers[document])
        return cls(list(relevant), list(numbers), list(relevant.values()))


def ndcg_at_k(
    query_embeddings: np.ndarray,
    document_embeddings: np.ndarray,
    relevant: Sequence[int] | Sequence[set[int]],
    k: int = 10,
    similarity: Literal["cosine", "dot"] = "cosine",
) -> np.ndarray:
    """Normalised discounted cumulative gain of the first k documents, for each query.

    A relevant document at rank r gains ``1 / log2(1 + r)``; the sum is divided by the largest possible one. A document
    that ties with a relevant one ranks before it; relevant documents that tie take consecutive ranks.

    Args:
        query_embeddings: [Q, D].
        document_embeddings: [N, D].
        relevant: For each query the index of its relevant document, or the set of their indices.
        k: Ranks below it gain nothing.
        similarity: "cosine" or "dot".

    Returns:
        float64 [Q], from 0 to 1.

    Raises:
        ValueError: Shapes do not fit, values are not finite, `k` is below 1, or a query has no relevant document.

    Example:
        >>> documents = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
        >>> ndcg_at_k(np.array([[1.0, 0.1], [0.1, 1.0]]), documents, relevant=[0, 2]).round(3)
        array([1.   , 0.631])
    """
    queries_QD, documents_ND = _as_matrix(query_embeddings, "query"), _as_matrix(document_embeddings, "document")
    if queries_QD.shape[1] != documents_ND.shape[1]:
        raise ValueError(f"queries have {queries_QD.shape[1]} dimensions and documents {documents_ND.shape[1]}")
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    sets = [set(item) if isinstance(item, set | frozenset) else {int(item)} for item in relevant]
    _check_relevant(sets, len(queries_QD), len(documents_ND))
    if similarity == "cosine":
        queries_QD, documents_ND = _unit(queries_QD), _unit(documents_ND)
    elif similarity != "dot":
        raise ValueError(f"similarity must be 'cosine' or 'dot', got {similarity!r}")
    gains = 1.0 / np.log2(np.arange(2, k + 2))
    scores = np.empty(len(queries_QD))
    rows_per_block = max(1, BLOCK_VALUES // len(documents_ND))
    for start in range(0, len(queries_QD), rows_per_block):
        similarity_BN = queries_QD[start : start + rows_per_block] @ documents_ND.T
        for row, similarity_N in enumerate(similarity_BN, start=start):
            ranks = _pessimistic_ranks(similarity_N, np.fromiter(sets[row], dtype=np.int64))
            scores[row] = gains[ranks[ranks < k]].sum() / gains[: len(ranks)].sum()
    return scores


def evaluate_retrieval(
    model: SentenceTransformer, retrieval_set: RetrievalSet, k: int = 10, batch_size: int = 64
) -> np.ndarray:
    """nDCG of a model for each query of a set, with the model's own prompts and similarity.

    Args:
        model: Embeds by `encode_query` and `encode_document`.
        retrieval_set: What to search for, and where.
        k: Ranks below it gain nothing.
        batch_size: Texts per forward pass.

    Returns:
        float64 [Q].

    Raises:
        ValueError: The model's similarity is neither cosine nor dot product, or its embeddings are not finite.

    Example:
        >>> from sentence_transformers import SentenceTransformer
        >>> from sentence_transformers.sentence_transformer.modules import BoW
        >>> model = SentenceTransformer(modules=[BoW(vocab=["ant", "oak", "tree"])], device="cpu")
        >>> evaluate_retrieval(model, RetrievalSet.from_pairs(["ant", "oak"], ["an ant", "a tree"]))
        array([1.        , 0.63092975])
    """
    similarity: Any = str(model.similarity_fn_name)
    if similarity not in ("cosine", "dot"):
        raise ValueError(f"the model's similarity is {similarity!r}; set model.similarity_fn_name to 'cosine' or 'dot'")
    options: dict[str, Any] = {"batch_size": batch_size, "convert_to_numpy": True, "show_progress_bar": False}
    queries_QD = model.encode_query(retrieval_set.queries, **options)
    documents_ND = model.encode_document(retrieval_set.documents, **options)
    return ndcg_at_k(queries_QD, documents_ND, retrieval_set.relevant, k, similarity)


def bootstrap_interval(
    values: np.ndarray, resamples: int = 10_000, seed: int = 0, confidence: float = 0.95
) -> tuple[float, float, float]:
    """Mean of scores and its percentile interval, by drawing the scored items with replacement.

    Args:
        values: One score an item (a query, a problem), [Q].
        resamples: How often to draw Q items.
        seed: Of the draws.
        confidence: Share of the resampled means that lie inside the interval.

    Returns:
        Mean, lower end, upper end.

    Raises:
        ValueError: The scores are not a list of finite numbers, or an argument is out of its range.

    Example:
        >>> bootstrap_interval(np.array([0.25, 0.25, 0.25]))
        (0.25, 0.25, 0.25)
    """
    values_Q = np.asarray(values, dtype=np.float64)
    if values_Q.ndim != 1 or len(values_Q) == 0:
        raise ValueError(f"expected one score an item, at least one, got the shape {values_Q.shape}")
    if not np.isfinite(values_Q).all():
        raise ValueError("a score is not finite: leave out what has no score")
    if resamples < 1 or not 0 < confidence < 1:
        raise ValueError(f"resamples must be at least 1 and confidence in (0, 1), got {resamples} and {confidence}")
    rng = np.random.default_rng(seed)
    means_R = np.empty(resamples)
    rows_per_block = max(1, BOOTSTRAP_VALUES // len(values_Q))
    for start in range(0, resamples, rows_per_block):
        rows = min(rows_per_block, resamples - start)
        means_R[start : start + rows] = values_Q[rng.integers(len(values_Q), size=(rows, len(values_Q)))].mean(axis=1)
    ends: np.ndarray = np.quantile(means_R, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(values_Q.mean()), float(ends[0]), float(ends[1])


def paired_bootstrap(
    a: np.ndarray, b: np.ndarray, resamples: int = 10_000, seed: int = 0, confidence: float = 0.95
) -> tuple[float, float, float]:
    """Mean of ``a - b`` and its percentile interval, by drawing queries with replacement.

    Args:
        a: Scores of one model, [Q].
        b: Scores of another on the same queries in the same order, [Q].
        resamples: How often to draw Q queries.
        seed: Of the draws.
        confidence: Share of the resampled means that lie inside the interval.

    Returns:
        Mean difference, lower end, upper end.

    Raises:
        ValueError: The scores are not two equally long lists of finite numbers, or an argument is out of its range.

    Example:
        >>> paired_bootstrap(np.array([0.5, 0.75, 1.0]), np.array([0.25, 0.5, 0.75]))
        (0.25, 0.25, 0.25)
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.ndim != 1 or a.shape != b.shape or len(a) == 0:
        raise ValueError(f"expected the scores of the same queries twice, got the shapes {a.shape} and {b.shape}")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("a score is not finite: leave out queries without a score, in both lists")
    return bootstrap_interval(a - b, resamples, seed, confidence)


def _pessimistic_ranks(similarity_N: np.ndarray, relevant: np.ndarray) -> np.ndarray:
    """Ranks of the relevant documents, from 0: behind every other document that is at least as similar."""
    own = -np.sort(-similarity_N[relevant])
    least = own[:, None] - TIE * np.abs(similarity_N).max()
    others_before = (similarity_N >= least).sum(axis=1) - (own >= least).sum(axis=1)
    return others_before + np.arange(len(own))


def _as_matrix(embeddings: Any, name: str) -> np.ndarray:
    """float64 [rows, D], checked."""
    matrix = np.asarray(embeddings, dtype=np.float64)
    if matrix.ndim != 2 or matrix.size == 0:
        raise ValueError(f"{name} embeddings must be a matrix [rows, dimensions], got the shape {matrix.shape}")
    broken = np.flatnonzero(~np.isfinite(matrix).all(axis=1))
    if len(broken):
        raise ValueError(f"{len(broken)} {name} embeddings are not finite (rows {broken[:5].tolist()})")
    return matrix


def _unit(matrix: np.ndarray) -> np.ndarray:
    """Rows of length 1; a row of zeros stays, and is similar to nothing."""
    return matrix / np.maximum(np.linalg.norm(matrix, axis=1, keepdims=True), 1e-12)


def _check_relevant(relevant: Sequence[set[int]], num_queries: int, num_documents: int) -> None:
    """One non-empty set of document indices for each query."""
    if num_queries == 0:
        raise ValueError("there is no query: give at least one")
    if len(relevant) != num_queries:
        raise ValueError(f"got {num_queries} queries and relevant documents for {len(relevant)}: give one item a query")
    for query, documents in enumerate(relevant):
        if not documents or not all(0 <= document < num_documents for document in documents):
            raise ValueError(
                f"relevant documents of query {query}: {sorted(documents)}; expected at least one index from 0 to "
                f"{num_documents - 1}"
            )
