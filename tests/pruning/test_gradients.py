"""Per-triplet gradients, against one backward pass per triplet in float64."""

import copy
import doctest

import pytest
import torch

from mmbert_hf.pruning import gradients
from mmbert_hf.pruning.gradients import LayerSums, add_batch, check_rows, triplet_losses
from mmbert_hf.pruning.targets import encoder_of, find_targets
from mmbert_hf.pruning.texts import embed


def brute_force(model, triplets):
    """Sum of gradients and of their squares: every triplet alone through a float64 model, plain autograd."""
    model = copy.deepcopy(model).double()
    encoder = encoder_of(model)
    weights = {target.name: encoder.get_submodule(target.name).weight for target in find_targets(model)}
    sums = {name: (torch.zeros_like(weight), torch.zeros_like(weight)) for name, weight in weights.items()}
    for row in triplets:
        anchor, positive, negative = (
            embed(model, [row["anchor"]], "query"),
            embed(model, [row["positive"]], "document"),
            embed(model, [row["negative"]], "document"),
        )
        similarity = torch.nn.functional.cosine_similarity
        both = torch.stack([similarity(anchor, positive), similarity(anchor, negative)], dim=1) * 20
        loss = torch.nn.functional.cross_entropy(both, torch.zeros(1, dtype=torch.long))
        for (total, squares), gradient in zip(
            sums.values(), torch.autograd.grad(loss, list(weights.values())), strict=True
        ):
            total += gradient
            squares += gradient.square()
    return sums


def score(model, triplets, batch_size, layers=None):
    encoder = encoder_of(model)
    names = layers or [target.name for target in find_targets(model)]
    sums = {name: LayerSums.zeros(encoder.get_submodule(name)) for name in names}
    for start in range(0, len(triplets), batch_size):
        batch = triplets[start : start + batch_size]
        add_batch(model, sums, batch["anchor"], batch["positive"], batch["negative"])
    return sums


def assert_equal(sums, expected):
    for name, layer_sums in sums.items():
        for got, want in zip((layer_sums.gradient, layer_sums.squares), expected[name], strict=True):
            error = (got.double() - want).norm() / want.norm()
            assert error < 1e-5, (name, float(error))


def test_equals_one_backward_per_triplet(embedder, make_triplets):
    triplets = make_triplets(5)
    expected = brute_force(embedder, triplets)
    assert_equal(score(embedder, triplets, batch_size=5), expected)
    assert_equal(score(embedder, triplets, batch_size=2), expected)


def test_squares_are_of_triplets_not_of_batches(bert_embedder, make_triplets):
    triplets = make_triplets(6)
    together = score(bert_embedder, triplets, batch_size=6)
    name = next(iter(together))
    squared_mean = together[name].gradient.square() / 6
    assert not torch.allclose(squared_mean, together[name].squares, rtol=0.1)


def test_a_part_of_the_layers_gives_the_same(qwen3_embedder, make_triplets):
    triplets = make_triplets(4)
    everything = score(qwen3_embedder, triplets, 4)
    last = [name for name in everything if ".2." in name]
    for name, sums in score(qwen3_embedder, triplets, 4, last).items():
        torch.testing.assert_close(sums.squares, everything[name].squares, rtol=1e-5, atol=0)
        torch.testing.assert_close(sums.input_squares, everything[name].input_squares, rtol=1e-6, atol=0)


def test_input_squares_are_over_real_tokens(embedder, make_triplets):
    triplets = make_triplets(3)
    padded, alone = score(embedder, triplets, 3), score(embedder, triplets, 1)
    for name, sums in padded.items():
        torch.testing.assert_close(sums.input_squares, alone[name].input_squares, rtol=1e-4, atol=1e-6)


def test_a_layer_that_is_called_twice_counts_twice(build_embedder, word_piece, make_triplets):
    from transformers import AlbertConfig, AlbertModel

    torch.manual_seed(0)
    config = AlbertConfig(
        vocab_size=len(word_piece),
        embedding_size=16,
        hidden_size=32,
        num_attention_heads=4,
        intermediate_size=48,
        num_hidden_layers=3,  # one set of weights, three times
        max_position_embeddings=64,
        initializer_range=0.2,
    )
    model = build_embedder(AlbertModel(config), word_piece)
    triplets = make_triplets(4)
    assert_equal(score(model, triplets, 4), brute_force(model, triplets))


def test_the_model_is_left_as_it_was(bert_embedder, make_triplets):
    bert_embedder.train()
    frozen = next(bert_embedder.parameters())
    frozen.requires_grad_(False)
    score(bert_embedder, make_triplets(2), 2)
    assert bert_embedder.training
    assert [parameter.requires_grad for parameter in bert_embedder.parameters()].count(False) == 1
    assert all(parameter.grad is None for parameter in bert_embedder.parameters())
    assert not any(part._forward_hooks for part in encoder_of(bert_embedder).modules())


def test_a_model_that_gives_nan_is_told_and_left_as_it_was(bert_embedder, make_triplets):
    with torch.no_grad():
        encoder_of(bert_embedder).encoder.layer[1].output.dense.weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match="loss of 2 of 2 triplets is not finite"):
        score(bert_embedder, make_triplets(2), 2)
    assert all(parameter.requires_grad for parameter in bert_embedder.parameters())
    assert not any(part._forward_hooks for part in encoder_of(bert_embedder).modules())


def test_bfloat16_models_are_summed_in_float32(bert_embedder, make_triplets):
    sums = score(bert_embedder.to(torch.bfloat16), make_triplets(3), 3)
    assert {tensor.dtype for layer in sums.values() for tensor in (layer.gradient, layer.squares)} == {torch.float32}


def test_losses_are_those_of_cross_entropy():
    torch.manual_seed(0)
    anchors, positives, negatives = torch.randn(3, 5, 8).unbind()
    cosine = torch.nn.functional.cosine_similarity
    logits = torch.stack([cosine(anchors, positives), cosine(anchors, negatives)], dim=1) * 20
    expected = torch.nn.functional.cross_entropy(logits, torch.zeros(5, dtype=torch.long), reduction="none")
    torch.testing.assert_close(triplet_losses(anchors, positives, negatives), expected)


def test_docstring_examples():
    assert doctest.testmod(gradients).failed == 0


def test_encoders_that_mix_up_rows_are_refused(bert_embedder):
    """An encoder that packs its rows in an order of its own, without saying so."""
    encoder = encoder_of(bert_embedder)
    names = [target.name for target in find_targets(bert_embedder)]
    check_rows(bert_embedder, names)
    inner = encoder.encoder.layer[1].intermediate
    plain = inner.forward

    def reversed_rows(hidden_states):
        return plain(hidden_states.flip(0)).flip(0)

    inner.forward = reversed_rows
    with pytest.raises(ValueError, match=r"layer 'encoder.layer.1.intermediate.dense'"):
        check_rows(bert_embedder, names)


def test_rows_of_every_family_are_told_apart(embedder):
    check_rows(embedder, [target.name for target in find_targets(embedder)])
