"""What pruning cost and what it saved, measured: quality with intervals, bytes, latency, and how the embeddings look.

Design decisions:

- Models come by name, the dense one first: ``dense``, perhaps ``control`` (dense with the same training), ``pruned``.
  Everything is measured of all of them, on the same texts.
- Each text is embedded once per model; quality and diagnostics read the same embeddings.
- Differences come with paired bootstrap intervals over the queries. Without an evaluation set there is no number.
- Results are JSON types, since they end in the report and on the card.

Shape legend: Q queries, N documents, P pairs of a query and a document that answers it, D embedding dimensions.
"""

import logging
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mmbert_hf.evaluation.embeddings import (
    alignment_loss,
    cosine_to,
    effective_dimensionality,
    mean_dimension_correlation,
    uniformity_loss,
)
from mmbert_hf.evaluation.retrieval import RetrievalSet, ndcg_at_k, paired_bootstrap
from mmbert_hf.pruning.footprint import measure_footprint, measure_latency

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = ["check_retrieval_set", "embed_set", "measure_models", "measure_quality", "measure_shape"]

CUTOFF = 10  # of nDCG
logger = logging.getLogger(__name__)

LATENCY_TEXTS = 200
LONGER = 1.1
REPEATS = 5

Models = Mapping[str, "SentenceTransformer"]
Embeddings = tuple[np.ndarray, np.ndarray]  # queries [Q, D], documents [N, D]


def measure_models(
    models: Models,
    domain: RetrievalSet | None = None,
    general: RetrievalSet | None = None,
    *,
    latency_texts: Sequence[str] | None = None,
    batch_size: int = 32,
) -> dict[str, Any]:
    """Measure a dense model and what was made of it.

    Args:
        models: Name -> model: ``dense`` first, then perhaps ``control``, and ``pruned``.
        domain: Queries and documents of the domain; not measured if None.
        general: The same of everything else.
        latency_texts: What is encoded for the clock; the first documents of `domain`, else of `general`, if None.
        batch_size: Texts per forward pass, for the clock too.

    Returns:
        JSON types: ``models`` (names), ``footprint`` by model, and where there are texts for it ``latency`` (by model,
        and how it was taken), ``quality``, ``embeddings`` and ``tokens_per_text`` by set; see `measure_quality` and
        `measure_shape`.

    Raises:
        ValueError: A set with fewer than two documents, or a model whose embeddings are not finite.

    Example:
        >>> measure_models({"dense": dense, "pruned": pruned}, domain)["latency"]["pruned"]["ratio"]  # doctest: +SKIP
        0.62
    """
    sets = {name: each for name, each in (("domain", domain), ("general", general)) if each is not None}
    for name, retrieval_set in sets.items():
        check_retrieval_set(retrieval_set, name)
    texts = list(latency_texts or ())
    if not texts and sets:
        texts = next(iter(sets.values())).documents[:LATENCY_TEXTS]
    measured: dict[str, Any] = {"models": list(models)}
    for set_name, retrieval_set in sets.items():
        embeddings = {name: embed_set(model, retrieval_set, batch_size) for name, model in models.items()}
        similarities = {name: str(model.similarity_fn_name) for name, model in models.items()}
        measured.setdefault("quality", {})[set_name] = measure_quality(embeddings, retrieval_set, similarities)
        measured.setdefault("embeddings", {})[set_name] = measure_shape(embeddings, retrieval_set)
        measured.setdefault("tokens_per_text", {})[set_name] = _tokens_per_text(models, retrieval_set, set_name)
    measured["footprint"] = {name: asdict(measure_footprint(model)) for name, model in models.items()}
    if texts:
        measured["latency"] = _latency(models, texts, batch_size)
    return measured


def _tokens_per_text(models: Models, retrieval_set: RetrievalSet, set_name: str) -> dict[str, float]:
    """Mean number of tokens of a set's texts by model; says so where a trimmed vocabulary makes it much larger."""
    texts = [*retrieval_set.queries, *retrieval_set.documents]
    means = {}
    for name, model in models.items():
        ids = model.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        means[name] = sum(map(len, ids)) / len(texts)
    dense, pruned = (means[name] for name in (next(iter(means)), list(means)[-1]))
    if pruned > LONGER * dense:
        logger.warning(
            "texts of the %s set take %.0f %% more tokens than before: the vocabulary was trimmed to texts that are too few "
            "or too different, which costs quality and time. Trim it to more texts (vocabulary_texts, --vocabulary-texts)",
            set_name,
            100 * (pruned / dense - 1),
        )
    return means


def check_retrieval_set(retrieval_set: RetrievalSet, name: str) -> None:
    """Refuse a set on which every model is perfect.

    Args:
        retrieval_set: What to search for, and where.
        name: What the message calls the set.

    Raises:
        ValueError: It has fewer than two documents.

    Example:
        >>> check_retrieval_set(RetrievalSet.from_pairs(["ant"], ["an insect"]), "domain")
        Traceback (most recent call last):
            ...
        ValueError: the domain set has 1 document to find: give at least two, so that one can be the wrong one
    """
    count = len(retrieval_set.documents)
    if count < 2:
        raise ValueError(
            f"the {name} set has {count} document to find: give at least two, so that one can be the wrong one"
        )


def embed_set(model: "SentenceTransformer", retrieval_set: RetrievalSet, batch_size: int = 32) -> Embeddings:
    """Embed queries and documents with the model's own prompts.

    Args:
        model: Embeds by `encode_query` and `encode_document`.
        retrieval_set: The texts.
        batch_size: Texts per forward pass.

    Returns:
        Queries float32 [Q, D], documents float32 [N, D].

    Raises:
        ValueError: An embedding is not finite.

    Example:
        >>> from sentence_transformers import SentenceTransformer
        >>> from sentence_transformers.sentence_transformer.modules import BoW
        >>> model = SentenceTransformer(modules=[BoW(vocab=["ant", "oak"])], device="cpu")
        >>> embed_set(model, RetrievalSet.from_pairs(["ant"], ["an oak"]))[1]
        array([[0., 1.]], dtype=float32)
    """
    encoded = []
    for encode, texts in (
        (model.encode_query, retrieval_set.queries),
        (model.encode_document, retrieval_set.documents),
    ):
        given: Any = encode(texts, batch_size=batch_size, convert_to_tensor=True, show_progress_bar=False)
        embeddings = given.float().cpu().numpy()
        broken = np.flatnonzero(~np.isfinite(embeddings).all(axis=1))
        if len(broken):
            raise ValueError(
                f"{len(broken)} of {len(texts)} embeddings are not finite, the first of {texts[broken[0]]!r:.60}: "
                "check the model's weights and dtype"
            )
        encoded.append(embeddings)
    return encoded[0], encoded[1]


def measure_quality(
    embeddings: Mapping[str, Embeddings], retrieval_set: RetrievalSet, similarities: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """nDCG@10 of each model, and how much the last one differs from the others.

    Args:
        embeddings: By model, from `embed_set`.
        retrieval_set: What they are of.
        similarities: "cosine" or "dot" by model; cosine where not named.

    Returns:
        ``num_queries``, ``num_documents``, ``ndcg_at_10`` by model, and ``difference``: for each model but the last its
        name -> ``mean``, ``low``, ``high`` of the last model's nDCG less its own (95 % paired bootstrap).

    Raises:
        ValueError: A similarity that is neither.

    Example:
        >>> documents = np.array([[1.0, 0.0], [0.0, 1.0]])
        >>> found = {"dense": (documents, documents), "pruned": (documents[::-1], documents)}
        >>> quality = measure_quality(found, RetrievalSet.from_pairs(["ant", "oak"], ["an insect", "a tree"]))
        >>> round(quality["ndcg_at_10"]["pruned"], 3), round(quality["difference"]["dense"]["high"], 3)
        (0.631, -0.369)
    """
    similarities = similarities or {}
    scores = {
        name: ndcg_at_k(queries, documents, retrieval_set.relevant, CUTOFF, similarities.get(name, "cosine"))  # type: ignore[arg-type]
        for name, (queries, documents) in embeddings.items()
    }
    *others, last = scores
    differences = {}
    for name in others:
        mean, low, high = paired_bootstrap(scores[last], scores[name])
        differences[name] = {"mean": mean, "low": low, "high": high}
    return {
        "num_queries": len(retrieval_set.queries),
        "num_documents": len(retrieval_set.documents),
        "ndcg_at_10": {name: float(each.mean()) for name, each in scores.items()},
        "difference": differences,
    }


def measure_shape(embeddings: Mapping[str, Embeddings], retrieval_set: RetrievalSet) -> dict[str, dict[str, float]]:
    """Describe the embeddings of each model.

    Args:
        embeddings: By model, from `embed_set`; the first one is the reference.
        retrieval_set: What they are of.

    Returns:
        Model -> ``alignment`` of the P pairs, ``uniformity``, ``effective_dimensionality`` and
        ``mean_dimension_correlation`` of the documents (see `mmbert_hf.evaluation.embeddings`), and for all but the
        first ``cosine_to_dense``, the mean over all texts of the cosine to the first model's embedding.

    Raises:
        ValueError: All documents have one embedding, or one is zero.

    Example:
        >>> corners = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
        >>> texts = list("abcd")
        >>> shape = measure_shape({"dense": (corners, corners)}, RetrievalSet.from_pairs(texts, texts))
        >>> shape["dense"]["alignment"], round(shape["dense"]["effective_dimensionality"], 6)
        (0.0, 2.0)
    """
    pairs = [(query, number) for query, numbers in enumerate(retrieval_set.relevant) for number in sorted(numbers)]
    queries_P, documents_P = (list(each) for each in zip(*pairs, strict=True))
    reference = next(iter(embeddings.values()))
    found: dict[str, dict[str, float]] = {}
    for name, (queries, documents) in embeddings.items():
        found[name] = {
            "alignment": alignment_loss(queries[queries_P], documents[documents_P]),
            "uniformity": uniformity_loss(documents),
            "effective_dimensionality": effective_dimensionality(documents),
            "mean_dimension_correlation": mean_dimension_correlation(documents),
        }
        if len(found) > 1:
            cosines = cosine_to(np.concatenate([queries, documents]), np.concatenate(reference))
            found[name]["cosine_to_dense"] = float(cosines.mean())
    return found


def _latency(models: Models, texts: Sequence[str], batch_size: int) -> dict[str, Any]:
    """Times by model, and how and where they were taken."""
    taken = measure_latency(models, texts, batch_size=batch_size, repeats=REPEATS)
    return {
        "num_texts": len(texts),
        "batch_size": batch_size,
        "repeats": REPEATS,
        "machine": _machine(next(iter(models.values()))),
        "seconds": {name: asdict(each) for name, each in taken.items()},
    }


def _machine(model: "SentenceTransformer") -> str:
    """What the model runs on, in words."""
    device = torch.device(model.device)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return f"{device.type} of {platform.processor() or platform.machine()}"
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text(encoding="utf-8", errors="replace") if listing.is_file() else ""
    named = re.search(r"^model name\s*:\s*(.+)$", lines, re.MULTILINE)
    processor = named[1] if named else platform.processor() or platform.machine()
    threads = torch.get_num_threads()
    return f"{processor}, {threads} thread{'s' if threads > 1 else ''}"
