import doctest

import numpy as np
import pytest
import torch

from mmbert_hf.evaluation import bitext, bitext_retrieval, embed_texts


def test_examples_in_the_docstrings():
    result = doctest.testmod(bitext)
    assert result.attempted >= 3
    assert result.failed == 0


def test_retrieval_against_brute_force():
    rng = np.random.default_rng(0)
    items = {code: {i: rng.normal(size=5) for i in range(7)} for code in "abc"}
    centres = {code: rng.normal(size=5) for code in "abc"}
    expected = {}
    for source in "abc":
        values = []
        for target in "abc":
            if source == target:
                continue
            right = 0
            for i in range(7):
                query = items[source][i] - centres[source]
                cosines = []
                for j in range(7):
                    candidate = items[target][j] - centres[target]
                    cosines.append(query @ candidate / np.sqrt((query @ query) * (candidate @ candidate)))
                right += int(np.argmax(cosines)) == i
            values.append(right / 7)
        expected[source] = np.mean(values)
    score = bitext_retrieval(items, centres)
    assert score.per_language == pytest.approx(expected)
    assert score.accuracy == pytest.approx(np.mean(list(expected.values())))
    assert score.chance == pytest.approx(1 / 7)
    assert score.num_pairs == 6


def test_random_vectors_score_chance():
    rng = np.random.default_rng(1)
    items = {code: {i: rng.normal(size=16) for i in range(10)} for code in range(40)}
    # 1560 pairs of 10 queries: the standard deviation of the mean is below 0.01 even if pairs share queries
    assert bitext_retrieval(items).accuracy == pytest.approx(0.1, abs=0.03)


def test_only_common_items_count():
    axis = np.eye(4)
    items = {"a": dict(enumerate(axis)), "b": {1: axis[1], 3: axis[3]}}
    score = bitext_retrieval(items)
    assert (score.accuracy, score.chance) == (1.0, 0.5)


def test_too_little_is_an_error():
    with pytest.raises(ValueError, match=r"at least two languages, got \['a'\]"):
        bitext_retrieval({"a": {0: np.ones(2)}})
    with pytest.raises(ValueError, match="a and b have 1 items in common"):
        bitext_retrieval({"a": {0: np.ones(2), 1: np.ones(2)}, "b": {0: np.ones(2)}})


def test_embeddings_are_means_over_real_tokens_in_the_order_given(tiny_model, tokenizer, sentences):
    texts = [text for language in sentences.values() for text in language]
    embedded = embed_texts(tiny_model, tokenizer, texts, batch_size=4)
    for text, vector in zip(texts, embedded, strict=True):
        batch = tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            expected = tiny_model.eval().model(**batch).last_hidden_state[0].mean(0)
        assert np.allclose(vector, expected.numpy(), atol=1e-5)
