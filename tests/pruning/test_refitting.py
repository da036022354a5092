"""Second moments of neurons, and the regression on them, against brute force."""

import doctest

import pytest
import torch

from mmbert_hf.pruning import refitting
from mmbert_hf.pruning.refitting import activation_moments, refit_columns
from mmbert_hf.pruning.targets import encoder_of, find_feed_forwards

TEXTS = ["free equal dignity", "the law of a country and its people", "music", "school work " * 12]


def neurons_and_weight(num_tokens=200, width=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    h_TF = torch.randn(num_tokens, width, generator=generator, dtype=torch.float64)
    h_TF = h_TF @ torch.randn(width, width, generator=generator, dtype=torch.float64) + 0.3
    return h_TF, torch.randn(5, width, generator=generator, dtype=torch.float64)


def test_without_ridge_it_is_least_squares():
    h_TF, weight = neurons_and_weight()
    kept = torch.tensor([0, 3, 4, 7, 9])
    expected = torch.linalg.lstsq(h_TF[:, kept], h_TF @ weight.T).solution.T
    torch.testing.assert_close(refit_columns(weight, kept, h_TF.T @ h_TF, ridge=0.0), expected, rtol=1e-8, atol=1e-8)


def test_the_ridge_holds_the_weights_where_they_are():
    """Against the gradient of the objective, which is zero at the minimum and nowhere else."""
    h_TF, weight = neurons_and_weight()
    kept, ridge = torch.tensor([1, 2, 8]), 0.05
    moments = h_TF.T @ h_TF
    fitted = refit_columns(weight, kept, moments, ridge).requires_grad_()
    strength = ridge * moments.diagonal().mean()
    error = (h_TF @ weight.T - h_TF[:, kept] @ fitted.T).square().sum()
    (gradient,) = torch.autograd.grad(error + strength * (fitted - weight[:, kept]).square().sum(), fitted)
    assert gradient.abs().max() < 1e-8 * error.detach()
    held = refit_columns(weight, kept, moments, ridge=1e9)
    torch.testing.assert_close(held, weight[:, kept], rtol=0, atol=1e-5)


def test_it_beats_slicing():
    h_TF, weight = neurons_and_weight()
    kept = torch.arange(8)
    fitted = refit_columns(weight, kept, h_TF.T @ h_TF)
    errors = [(h_TF @ weight.T - h_TF[:, kept] @ each.T).square().sum() for each in (fitted, weight[:, kept])]
    assert errors[0] < 0.5 * errors[1]


def test_duplicates_and_combinations_of_kept_neurons_are_recovered():
    h_TF, weight = neurons_and_weight()
    h_TF[:, 10] = h_TF[:, 2]
    h_TF[:, 11] = 0.5 * h_TF[:, 0] - 2 * h_TF[:, 5]
    kept = torch.arange(10)
    fitted = refit_columns(weight, kept, h_TF.T @ h_TF, ridge=1e-12)
    torch.testing.assert_close(h_TF[:, kept] @ fitted.T, h_TF @ weight.T, rtol=0, atol=1e-7)


def test_where_nothing_is_lost_nothing_changes():
    h_TF, weight = neurons_and_weight()
    weight[:, 8:] = 0
    assert torch.equal(refit_columns(weight, torch.arange(8), h_TF.T @ h_TF), weight[:, :8])
    assert torch.equal(refit_columns(weight, torch.arange(12), h_TF.T @ h_TF), weight)


def test_the_dtype_of_the_weight_stays():
    h_TF, weight = neurons_and_weight()
    assert refit_columns(weight.bfloat16(), torch.arange(8), h_TF.T @ h_TF).dtype == torch.bfloat16


def test_moments_that_determine_nothing_are_refused():
    weight, moments = torch.ones(1, 3), torch.ones(3, 3)
    with pytest.raises(ValueError, match="2 kept neurons are linearly dependent"):
        refit_columns(weight, torch.tensor([0, 1]), moments, ridge=0.0)
    with pytest.raises(ValueError, match="NaN or infinite"):
        refit_columns(weight, torch.tensor([0, 1]), moments * float("nan"))
    with pytest.raises(ValueError, match="ridge is -1"):
        refit_columns(weight, torch.tensor([0]), moments, ridge=-1)


def moments_by_hand(model, texts, prompt):
    """Every text alone, without padding."""
    encoder, feed_forwards = encoder_of(model), find_feed_forwards(model)
    seen = [[] for _ in feed_forwards]
    handles = [
        encoder.get_submodule(ff.down).register_forward_pre_hook(
            lambda _, inputs, rows=rows: rows.append(inputs[0].flatten(0, -2).detach().double())
        )
        for ff, rows in zip(feed_forwards, seen, strict=True)
    ]
    for text in texts:
        model.encode(prompt + text)
    for handle in handles:
        handle.remove()
    return [torch.cat(rows).T @ torch.cat(rows) for rows in seen]


def test_moments_are_sums_over_real_tokens(embedder):
    """Padding on either side, and encoders that leave it out."""
    feed_forwards = find_feed_forwards(embedder)
    moments = activation_moments(embedder, {"document": TEXTS}, feed_forwards, batch_size=3)
    for got, expected in zip(moments, moments_by_hand(embedder, TEXTS, ""), strict=True):
        assert got.dtype == torch.float64
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5 * float(expected.diagonal().mean()))


def test_queries_get_their_prompt(qwen3_embedder):
    feed_forwards = find_feed_forwards(qwen3_embedder)
    (got, *_) = activation_moments(qwen3_embedder, {"query": TEXTS[:2], "document": TEXTS[2:]}, feed_forwards[:1])
    queries = moments_by_hand(qwen3_embedder, TEXTS[:2], "find the law: ")[0]
    documents = moments_by_hand(qwen3_embedder, TEXTS[2:], "")[0]
    torch.testing.assert_close(got, queries + documents, rtol=1e-4, atol=1e-4 * float(documents.diagonal().mean()))


def test_looking_leaves_no_trace(bert_embedder):
    bert_embedder.train()
    expected = {name: value.clone() for name, value in bert_embedder.state_dict().items()}
    feed_forwards = find_feed_forwards(bert_embedder)
    activation_moments(bert_embedder, {"query": TEXTS}, feed_forwards)
    assert bert_embedder.training
    assert not any(module._forward_pre_hooks for module in bert_embedder.modules())
    assert all(torch.equal(value, expected[name]) for name, value in bert_embedder.state_dict().items())
    with pytest.raises(ValueError, match=r"got no texts under \['query'\]"):
        activation_moments(bert_embedder, {"query": []}, feed_forwards)


def test_neurons_that_are_silent_keep_their_weights():
    weight_EF, kept_K = torch.randn(3, 4), torch.tensor([1, 3])
    assert torch.equal(refit_columns(weight_EF, kept_K, torch.zeros(4, 4)), weight_EF[:, kept_K])


def test_docstring_examples():
    results = doctest.testmod(refitting)
    assert results.failed == 0
    assert results.attempted > 0
