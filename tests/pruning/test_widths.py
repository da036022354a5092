"""Narrower feed-forwards: which neurons, the same function where nothing is lost, and the same after reloading."""

import doctest

import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import BertConfig, BertModel

from mmbert_hf.pruning import skeleton, widths
from mmbert_hf.pruning.saving import save_embedder
from mmbert_hf.pruning.skeleton import plain_settings
from mmbert_hf.pruning.skeleton import skeleton as build_skeleton
from mmbert_hf.pruning.targets import FeedForward, encoder_of, find_feed_forwards
from mmbert_hf.pruning.widths import activation_moments, choose_neurons, neuron_scores, shrink_feed_forwards

TEXTS = ["free equal dignity", "the law of a country and its people", "music", "school work " * 12]


def embeddings(model):
    return model.encode(TEXTS, convert_to_tensor=True)


def magnitudes(model, feed_forwards):
    encoder = encoder_of(model)
    return {n: encoder.get_submodule(n).weight.detach().square() for ff in feed_forwards for n in (*ff.up, ff.down)}


def prune(model, width):
    feed_forwards = find_feed_forwards(model)
    kept = choose_neurons(neuron_scores(feed_forwards, magnitudes(model, feed_forwards)), width)
    shrink_feed_forwards(model, feed_forwards, kept)
    return kept


def test_a_neuron_counts_all_its_weights():
    torch.manual_seed(0)
    fused = FeedForward(0, ("Wi",), "Wo", 3, True)
    gated = FeedForward(0, ("up", "gate"), "down", 3, False)
    values, gate, down = torch.rand(3, 5), torch.rand(3, 5), torch.rand(4, 3)
    expected = values.sum(1) + gate.sum(1) + down.sum(0)
    (one,) = neuron_scores([fused], {"Wi": torch.cat([values, gate]), "Wo": down})
    (two,) = neuron_scores([gated], {"up": values, "gate": gate, "down": down})
    for scores in (one, two):
        assert scores.dtype == torch.float64
        torch.testing.assert_close(scores.float(), expected)


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ({"up": torch.zeros(3, 2)}, r"no scores for \['down'\]"),
        ({"up": torch.zeros(4, 2), "down": torch.zeros(2, 3)}, r"scores of up are \[4, 2\]; dimension 0 must be 3"),
    ],
)
def test_scores_of_other_layers_are_refused(scores, message):
    with pytest.raises(ValueError, match=message):
        neuron_scores([FeedForward(0, ("up",), "down", 3, False)], scores)


def test_the_best_neurons_stay_and_ties_go_to_the_earlier():
    (kept,) = choose_neurons([torch.tensor([1.0, 5.0, 1.0, 1.0, 7.0])], 3)
    assert kept.tolist() == [0, 1, 4]
    with pytest.raises(ValueError, match=r"width is 6; it must be in 1\.\.5"):
        choose_neurons([torch.zeros(5)], 6)
    with pytest.raises(ValueError, match="1 of the 2 scores of feed-forward 0 are NaN"):
        choose_neurons([torch.tensor([0.0, float("nan")])], 1)


def test_neurons_that_nobody_reads_leave_without_a_trace(embedder):
    feed_forwards, encoder = find_feed_forwards(embedder), encoder_of(embedder)
    kept = []
    for index, ff in enumerate(feed_forwards):
        order = torch.randperm(ff.width, generator=torch.Generator().manual_seed(index))
        with torch.no_grad():
            encoder.get_submodule(ff.down).weight[:, order[24:]] = 0
        kept.append(order[:24].sort().values)
    expected = embeddings(embedder)
    shrink_feed_forwards(embedder, feed_forwards, kept)
    torch.testing.assert_close(embeddings(embedder), expected, rtol=0, atol=1e-6)
    assert {ff.width for ff in find_feed_forwards(embedder)} == {24}


def test_pruned_and_saved_models_load_as_stock_ones(embedder, tmp_path):
    dense = embeddings(embedder)
    prune(embedder, 16)
    expected = embeddings(embedder)
    assert (expected - dense).abs().max() > 0.01
    assert encoder_of(embedder).config.intermediate_size == 16
    loaded = SentenceTransformer(str(save_embedder(embedder, tmp_path / "out")), device="cpu")
    is_ours = type(encoder_of(embedder)).__name__ == "MMBertModel"
    torch.testing.assert_close(embeddings(loaded), expected, rtol=0, atol=1e-5 if is_ours else 0.0)
    shapes = {name: value.shape for name, value in encoder_of(loaded).state_dict().items()}
    assert shapes == {name: value.shape for name, value in encoder_of(embedder).state_dict().items()}


def test_biases_and_copies_of_the_width_go_along(bert_embedder, qwen3_embedder):
    kept = prune(bert_embedder, 8)
    up = encoder_of(bert_embedder).encoder.layer[0].intermediate.dense
    assert (up.bias.shape, up.out_features, len(kept[0])) == ((8,), 8, 8)
    prune(qwen3_embedder, 8)
    mlp = encoder_of(qwen3_embedder).layers[1].mlp
    assert (mlp.intermediate_size, mlp.hidden_size, mlp.down_proj.in_features) == (8, 32, 8)


def test_a_pruned_model_trains(modernbert_embedder):
    prune(modernbert_embedder, 8)
    features = modernbert_embedder.preprocess(TEXTS)
    modernbert_embedder(features)["sentence_embedding"][:, 0].sum().backward()
    for ff in find_feed_forwards(modernbert_embedder):
        assert encoder_of(modernbert_embedder).get_submodule(ff.up[0]).weight.grad.shape == (16, 32)


def test_refitting_is_done_in_every_block(bert_embedder):
    """With moments, what a block gives for the calibration texts is closer to what it gave."""
    feed_forwards, encoder = find_feed_forwards(bert_embedder), encoder_of(bert_embedder)
    kept = choose_neurons(neuron_scores(feed_forwards, magnitudes(bert_embedder, feed_forwards)), 24)
    moments = activation_moments(bert_embedder, {"document": TEXTS}, feed_forwards)
    olds = [encoder.get_submodule(ff.down).weight.detach().double() for ff in feed_forwards]
    shrink_feed_forwards(bert_embedder, feed_forwards, kept, moments, ridge=1e-6)
    for ff, kept_K, old, square in zip(feed_forwards, kept, olds, moments, strict=True):
        new, sliced = torch.zeros_like(old), torch.zeros_like(old)
        new[:, kept_K] = encoder.get_submodule(ff.down).weight.detach().double()
        sliced[:, kept_K] = old[:, kept_K]
        errors = [((old - each) @ square @ (old - each).T).trace() for each in (new, sliced)]
        assert errors[0] < 0.5 * errors[1]


# Bad input


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda ffs, kept: (ffs[:2], kept[:2]), "got 2 feed-forwards that are not those of the model"),
        (lambda ffs, kept: (ffs, kept[:2]), "got 2 sets of kept neurons for 3 feed-forwards"),
        (lambda ffs, kept: (ffs, [*kept[:2], kept[2][1:]]), r"would get the widths \[7, 8\]"),
        (lambda ffs, kept: (ffs, [*kept[:2], kept[2].flip(0)]), "must be ascending indices in 0..47"),
        (lambda ffs, kept: (ffs, [*kept[:2], kept[2] + 41]), "must be ascending indices in 0..47"),
    ],
)
def test_what_does_not_fit_is_refused_and_changes_nothing(bert_embedder, change, message):
    expected = embeddings(bert_embedder)
    feed_forwards = find_feed_forwards(bert_embedder)
    with pytest.raises(ValueError, match=message):
        shrink_feed_forwards(bert_embedder, *change(feed_forwards, [torch.arange(8)] * 3))
    assert torch.equal(embeddings(bert_embedder), expected)


def test_a_configuration_that_cannot_express_the_width_is_refused(bert_embedder):
    encoder_of(bert_embedder).config.intermediate_size = 47  # as if the family computed the width from something else
    expected = embeddings(bert_embedder)
    with pytest.raises(ValueError, match=r"48 neurons and BertConfig holds \{'intermediate_size': 47\}"):
        prune(bert_embedder, 8)
    assert torch.equal(embeddings(bert_embedder), expected)


def test_a_class_that_rounds_the_width_is_refused(bert_embedder):
    encoder = encoder_of(bert_embedder)

    class Rounding(BertModel):
        def __init__(self, config):
            config.intermediate_size += -config.intermediate_size % 16
            super().__init__(config)

    encoder.__class__ = Rounding
    with pytest.raises(ValueError, match=r"makes .*intermediate.dense \[16, 32\] for intermediate_size=8"):
        prune(bert_embedder, 8)
    prune(bert_embedder, 16)


# Skeletons


def test_a_skeleton_costs_no_memory_and_draws_no_numbers():
    config = BertConfig(hidden_size=8, num_attention_heads=2, intermediate_size=16, num_hidden_layers=2, vocab_size=9)
    encoder = BertModel(config)
    state = torch.random.get_rng_state()
    fresh = build_skeleton(encoder, config)
    assert {parameter.device.type for parameter in fresh.parameters()} == {"meta"}
    assert torch.equal(torch.random.get_rng_state(), state)
    assert fresh.config is not config
    config.num_attention_heads = 3
    with pytest.raises(ValueError, match="BertModel cannot be built after this change: The hidden size"):
        build_skeleton(encoder, config)


def test_settings_are_plain_values_without_places():
    config = BertConfig(hidden_size=8, num_attention_heads=2, intermediate_size=16, num_hidden_layers=2, vocab_size=9)
    settings = plain_settings(BertModel(config).encoder.layer[1].attention.self)
    assert settings["num_attention_heads"] == 2
    assert "layer_idx" not in settings
    assert "training" not in settings


@pytest.mark.parametrize("module", [widths, skeleton])
def test_docstring_examples(module):
    results = doctest.testmod(module)
    assert results.failed == 0
    assert results.attempted > 0
