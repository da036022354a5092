import doctest

import numpy as np
import pytest

from mmbert_hf.evaluation import retrieval
from mmbert_hf.evaluation.retrieval import RetrievalSet, evaluate_retrieval, ndcg_at_k, paired_bootstrap


@pytest.fixture
def static_embedder(tokenizer):
    """A vector for every token: as quick as an embedder can be, with a prompt for queries."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    weights = np.random.default_rng(0).normal(size=(len(tokenizer), 16)).astype(np.float32)
    module = StaticEmbedding(tokenizer.backend_tokenizer, embedding_weights=weights)
    return SentenceTransformer(modules=[module], device="cpu", prompts={"query": "find: ", "document": ""})


def test_docstring_examples():
    result = doctest.testmod(retrieval)
    assert result.attempted >= len(retrieval.__all__)
    assert result.failed == 0


def test_ndcg_by_hand():
    documents = np.eye(4)
    queries = np.array([[4.0, 3.0, 2.0, 1.0]])  # ranks the documents 0, 1, 2, 3
    discount = 1 / np.log2([2, 3, 4, 5])
    for relevant, expected in [
        ([2], discount[2]),
        ([{0, 1}], 1.0),
        ([{1, 3}], (discount[1] + discount[3]) / (discount[0] + discount[1])),
    ]:
        assert ndcg_at_k(queries, documents, relevant) == pytest.approx([expected], abs=1e-15)
    assert ndcg_at_k(queries, documents, [2], k=2) == [0.0]
    assert ndcg_at_k(queries, documents, [{0, 2, 3}], k=2) == pytest.approx([discount[0] / (discount[0] + discount[1])])


def test_ties_rank_before_the_relevant_document():
    documents = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    assert ndcg_at_k(np.array([[1.0, 0.1]]), documents, [0]) == pytest.approx([1 / np.log2(3)])
    # relevant documents that tie with each other do not hinder each other
    assert ndcg_at_k(np.array([[1.0, 0.1]]), documents, [{0, 1}]) == pytest.approx([1.0])
    assert ndcg_at_k(np.array([[1.0, 0.1]]), documents, [{0, 2}]) == pytest.approx(
        [(1 / np.log2(3) + 1 / np.log2(4)) / (1 + 1 / np.log2(3))]
    )


def test_a_collapsed_embedder_scores_nothing():
    # the same direction up to rounding: products and lengths differ in the last bits
    rng = np.random.default_rng(0)
    direction = rng.normal(size=37)
    documents = direction * rng.uniform(0.1, 9.0, size=(101, 1))
    assert (ndcg_at_k(documents[:50], documents, range(50)) == 0).all()
    assert (ndcg_at_k(documents[:50], documents, range(50), k=101) == 1 / np.log2(102)).all()


def test_blocks_change_nothing(monkeypatch):
    rng = np.random.default_rng(1)
    queries, documents = rng.normal(size=(29, 6)), rng.normal(size=(40, 6))
    whole = ndcg_at_k(queries, documents, range(29))
    monkeypatch.setattr(retrieval, "BLOCK_VALUES", 40 * 4)
    assert ndcg_at_k(queries, documents, range(29)) == pytest.approx(whole, abs=0)
    assert len(np.unique(whole)) > 5


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_equal_to_sentence_transformers(static_embedder, similarity):
    from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator

    static_embedder.similarity_fn_name = similarity
    rng = np.random.default_rng(2)
    letters = list("abcdefghijklmnop")

    def text():
        return " ".join("".join(rng.choice(letters, size=3)) for _ in range(5))

    queries, documents = [text() for _ in range(30)], [text() for _ in range(80)]
    relevant = [set(rng.choice(80, size=rng.integers(1, 4), replace=False).tolist()) for _ in queries]
    ours = evaluate_retrieval(static_embedder, RetrievalSet(queries, documents, relevant), k=10)
    evaluator = InformationRetrievalEvaluator(
        queries={f"q{i}": query for i, query in enumerate(queries)},
        corpus={f"d{i}": document for i, document in enumerate(documents)},
        relevant_docs={f"q{i}": {f"d{j}" for j in documents} for i, documents in enumerate(relevant)},
        write_csv=False,
    )
    assert ours.dtype == np.float64
    assert ours.shape == (30,)
    assert len(np.unique(ours)) > 5
    assert ours.mean() == pytest.approx(evaluator(static_embedder)[f"{similarity}_ndcg@10"], abs=1e-9)


def test_queries_take_their_prompt(static_embedder):
    pairs = RetrievalSet.from_pairs(["ant", "oak", "bee"], ["insect of a kind", "tree of a kind", "worker of a kind"])
    queries = static_embedder.encode([f"find: {query}" for query in pairs.queries])
    expected = ndcg_at_k(queries, static_embedder.encode(pairs.documents), pairs.relevant)
    assert evaluate_retrieval(static_embedder, pairs) == pytest.approx(expected, abs=1e-12)
    static_embedder.similarity_fn_name = "euclidean"
    with pytest.raises(ValueError, match=r"similarity is 'euclidean'; set model.similarity_fn_name"):
        evaluate_retrieval(static_embedder, pairs)


def test_same_document_text_is_one_document():
    pairs = RetrievalSet.from_pairs(["a", "b", "a", "c"], ["x", "x", "y", "z"])
    assert pairs == RetrievalSet(["a", "b", "c"], ["x", "y", "z"], [{0, 1}, {0}, {2}])


def test_bootstrap_of_known_spread():
    rng = np.random.default_rng(3)
    difference = rng.normal(0.02, 0.1, size=400)
    base = rng.uniform(size=400)
    mean, low, high = paired_bootstrap(base + difference, base)
    error = difference.std() / np.sqrt(400)
    assert mean == pytest.approx(difference.mean(), abs=1e-12)
    # the ends of a normal interval, whose Monte Carlo error at 10,000 resamples is about 0.03 standard errors
    assert low == pytest.approx(mean - 1.96 * error, abs=0.15 * error)
    assert high == pytest.approx(mean + 1.96 * error, abs=0.15 * error)
    _, narrow_low, narrow_high = paired_bootstrap(base + difference, base, confidence=0.5)
    assert narrow_high - narrow_low == pytest.approx(2 * 0.6745 * error, abs=0.1 * error)


def test_bootstrap_is_paired_and_repeatable(monkeypatch):
    rng = np.random.default_rng(4)
    base = rng.normal(size=50) * 100
    assert paired_bootstrap(base + 1, base) == pytest.approx((1, 1, 1))  # the spread of the queries drops out
    noisy = base + rng.normal(size=50)
    first = paired_bootstrap(noisy, base, seed=5)
    assert paired_bootstrap(noisy, base, seed=5) == first
    assert paired_bootstrap(noisy, base, seed=6) != first
    assert paired_bootstrap(base, noisy, seed=5)[0] == -first[0]
    monkeypatch.setattr(retrieval, "BOOTSTRAP_VALUES", 50 * 7)
    assert paired_bootstrap(noisy, base, seed=5) == first


def test_bad_input_is_told():
    matrix = np.eye(3)
    with pytest.raises(ValueError, match="queries have 3 dimensions and documents 2"):
        ndcg_at_k(matrix, matrix[:, :2], [0, 1, 2])
    with pytest.raises(ValueError, match=r"must be a matrix .* got the shape \(3,\)"):
        ndcg_at_k(matrix[0], matrix, [0])
    with pytest.raises(ValueError, match=r"1 document embeddings are not finite \(rows \[2\]\)"):
        ndcg_at_k(matrix, matrix * [[1], [1], [np.nan]], [0, 1, 2])
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        ndcg_at_k(matrix, matrix, [0, 1, 2], k=0)
    with pytest.raises(ValueError, match="'cosine' or 'dot', got 'l2'"):
        ndcg_at_k(matrix, matrix, [0, 1, 2], similarity="l2")
    with pytest.raises(ValueError, match="3 queries and relevant documents for 2"):
        ndcg_at_k(matrix, matrix, [0, 1])
    with pytest.raises(ValueError, match=r"query 1: \[3\]; expected at least one index from 0 to 2"):
        ndcg_at_k(matrix, matrix, [0, 3, 1])
    with pytest.raises(ValueError, match=r"query 0: \[\]"):
        RetrievalSet(["a"], ["x"], [set()])
    with pytest.raises(ValueError, match="2 queries and 1 documents"):
        RetrievalSet.from_pairs(["a", "b"], ["x"])
    with pytest.raises(ValueError, match="no query"):
        RetrievalSet.from_pairs([], [])
    with pytest.raises(ValueError, match=r"shapes \(2,\) and \(3,\)"):
        paired_bootstrap(np.ones(2), np.ones(3))
    with pytest.raises(ValueError, match="not finite"):
        paired_bootstrap(np.array([np.nan]), np.ones(1))
    with pytest.raises(ValueError, match="got 10000 and 95"):
        paired_bootstrap(np.ones(3), np.ones(3), confidence=95)
