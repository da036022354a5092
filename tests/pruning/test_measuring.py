"""Models are measured on the same texts, side by side, and what was not measured is not there."""

import copy
import doctest
import json

import numpy as np
import pytest
import torch

from mmbert_hf.evaluation.retrieval import RetrievalSet, evaluate_retrieval
from mmbert_hf.pruning import measuring
from mmbert_hf.pruning.measuring import embed_set, measure_models, measure_quality, measure_shape


def test_docstring_examples():
    result = doctest.testmod(measuring)
    assert result.attempted >= 8
    assert result.failed == 0


@pytest.fixture
def retrieval_set(make_triplets):
    rows = make_triplets(12, seed=3)
    return RetrievalSet.from_pairs(rows["anchor"], rows["positive"])


@pytest.fixture
def models(bert_embedder):
    """The dense model, a copy of it, and one that was changed."""
    changed = copy.deepcopy(bert_embedder)
    with torch.no_grad():
        for parameter in changed[0].auto_model.encoder.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return {"dense": bert_embedder, "control": copy.deepcopy(bert_embedder), "pruned": changed}


def test_everything_at_once(models, retrieval_set, make_triplets):
    rows = make_triplets(5, seed=9)
    general = RetrievalSet.from_pairs(rows["anchor"], rows["positive"])
    measured = measure_models(models, retrieval_set, general, batch_size=4)
    assert json.loads(json.dumps(measured, allow_nan=False)) == measured
    assert measured["models"] == ["dense", "control", "pruned"]
    for name, each in (("domain", retrieval_set), ("general", general)):
        quality = measured["quality"][name]
        for model in models:
            assert quality["ndcg_at_10"][model] == pytest.approx(evaluate_retrieval(models[model], each).mean())
        assert quality["num_queries"] == len(each.queries)
    domain = measured["quality"]["domain"]
    assert domain["ndcg_at_10"]["control"] == domain["ndcg_at_10"]["dense"] != domain["ndcg_at_10"]["pruned"]
    assert domain["difference"]["dense"] == domain["difference"]["control"]
    assert domain["difference"]["dense"]["low"] <= domain["difference"]["dense"]["mean"]
    shape = measured["embeddings"]["domain"]
    assert "cosine_to_dense" not in shape["dense"]
    assert shape["control"]["cosine_to_dense"] == pytest.approx(1.0)
    assert shape["pruned"]["cosine_to_dense"] < 0.99
    assert shape["control"]["uniformity"] == shape["dense"]["uniformity"]
    assert set(measured["footprint"]) == set(measured["latency"]["seconds"]) == set(models)
    assert measured["latency"]["seconds"]["dense"]["ratio"] == 1.0
    assert measured["latency"]["num_texts"] == len(retrieval_set.documents)
    assert measured["latency"]["machine"]


def test_without_texts_only_the_bytes(models):
    measured = measure_models({"dense": models["dense"], "pruned": models["pruned"]})
    assert set(measured) == {"models", "footprint"}
    given = measure_models({"dense": models["dense"]}, latency_texts=["law", "free"])
    assert given["latency"]["num_texts"] == 2
    assert "quality" not in given


def test_the_interval_is_of_the_last_less_the_others():
    rng = np.random.default_rng(0)
    documents = rng.normal(size=(40, 8))
    noisy = documents + 2.0 * rng.normal(size=documents.shape)
    texts = [str(number) for number in range(40)]
    pairs = RetrievalSet.from_pairs(texts, [f"document {text}" for text in texts])
    worse = measure_quality({"dense": (documents, documents), "pruned": (noisy, documents)}, pairs)
    difference = worse["difference"]["dense"]
    assert difference["low"] < difference["mean"] < difference["high"] < 0
    mean = worse["ndcg_at_10"]["pruned"] - worse["ndcg_at_10"]["dense"]
    assert difference["mean"] == pytest.approx(mean)


def test_the_similarity_is_the_models_own():
    queries, documents = np.array([[1.0, 0.0]]), np.array([[1.0, 0.0], [3.0, 1.0]])
    pairs = RetrievalSet(["a"], ["b", "c"], [{0}])
    found = {"cosine": (queries, documents), "dot": (queries, documents)}
    quality = measure_quality(found, pairs, {"dot": "dot"})["ndcg_at_10"]
    assert quality["cosine"] == 1.0 > quality["dot"]


def test_pairs_of_a_query_with_several_documents():
    queries = np.array([[1.0, 0.0], [0.0, 1.0]])
    documents = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    pairs = RetrievalSet(["a", "b"], ["x", "y", "z"], [{0, 2}, {1}])
    assert measure_shape({"dense": (queries, documents)}, pairs)["dense"]["alignment"] == pytest.approx(4 / 3)


def test_prompts_are_used(qwen3_embedder):
    pairs = RetrievalSet.from_pairs(["free law"], ["free law"])
    queries, documents = embed_set(qwen3_embedder, pairs)
    assert np.abs(queries - documents).max() > 1e-3


def test_embeddings_that_are_not_finite(bert_embedder, retrieval_set):
    with torch.no_grad():
        bert_embedder[0].auto_model.embeddings.LayerNorm.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="12 of 12 embeddings are not finite"):
        embed_set(bert_embedder, retrieval_set)


def test_a_set_without_a_choice(bert_embedder):
    with pytest.raises(ValueError, match="general set has 1 document"):
        measure_models({"dense": bert_embedder}, general=RetrievalSet.from_pairs(["a", "b"], ["c", "c"]))
