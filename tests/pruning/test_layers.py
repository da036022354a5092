"""Shallower models: what is left computes the same, is written and read the same, and what cannot be is refused."""

import doctest

import pytest
import torch
from sentence_transformers import SentenceTransformer

from mmbert_hf.pruning import layers
from mmbert_hf.pruning.layers import choose_layers, drop_layers, droppable_layers, last_layers, without_layers
from mmbert_hf.pruning.saving import save_embedder
from mmbert_hf.pruning.targets import encoder_of, find_blocks

TEXTS = ["free equal dignity", "the law of a country and its people", "music", "school work " * 12]


def embeddings(model):
    return model.encode(TEXTS, convert_to_tensor=True)


def with_blocks_skipped(model, skipped):
    """Embeddings of the whole model with some blocks handing on what they are given."""
    handles = [
        find_blocks(encoder_of(model))[1][layer].register_forward_hook(
            lambda _, inputs, output: (inputs[0], *output[1:]) if isinstance(output, tuple) else inputs[0]
        )
        for layer in skipped
    ]
    try:
        return embeddings(model)
    finally:
        for handle in handles:
            handle.remove()


def names_of(model):
    return {name: value.data_ptr() for name, value in encoder_of(model).state_dict().items()}


@pytest.mark.parametrize(
    ("family", "dropped"),
    [("bert", [0]), ("mpnet", [1]), ("qwen3", [2, 0]), ("modernbert", [3, 1]), ("mmbert", [1])],
)
def test_what_is_left_is_the_model_with_blocks_skipped_and_reloads(family, dropped, request, tmp_path):
    model = request.getfixturevalue(f"{family}_embedder")
    num_layers, dense = len(find_blocks(encoder_of(model))[1]), embeddings(model)
    expected = with_blocks_skipped(model, dropped)
    assert (expected - dense).abs().max() > 1e-3
    drop_layers(model, dropped)
    assert torch.equal(embeddings(model), expected)
    assert encoder_of(model).config.num_hidden_layers == num_layers - len(dropped)

    loaded = SentenceTransformer(str(save_embedder(model, tmp_path / "out")), device="cpu")
    atol = 1e-5 if family == "mmbert" else 0.0
    torch.testing.assert_close(embeddings(loaded), expected, rtol=0, atol=atol)
    assert len(find_blocks(encoder_of(loaded))[1]) == num_layers - len(dropped)


def test_each_block_keeps_its_window(modernbert_embedder, tmp_path):
    """Global, local, local, global: without block 1 the pattern is one that no step of n layers gives."""
    drop_layers(modernbert_embedder, [1])
    path = save_embedder(modernbert_embedder, tmp_path / "out")
    for model in (modernbert_embedder, SentenceTransformer(str(path), device="cpu")):
        encoder = encoder_of(model)
        assert encoder.config.layer_types == ["full_attention", "sliding_attention", "full_attention"]
        assert [block.attention_type for block in encoder.layers] == encoder.config.layer_types
        assert [block.attn.sliding_window for block in encoder.layers] == [None, 5, None]


def test_blocks_are_numbered_anew(qwen3_embedder):
    drop_layers(qwen3_embedder, [1])
    encoder = encoder_of(qwen3_embedder)
    assert [block.self_attn.layer_idx for block in encoder.layers] == [0, 1]
    assert encoder.config.layer_types == ["full_attention"] * 2
    cached = encoder(torch.tensor([[5, 6, 7]]), use_cache=True)  # places in the cache are layer numbers
    assert len(cached.past_key_values.layers) == 2


@pytest.mark.parametrize("family", ["modernbert", "mmbert"])
def test_the_first_block_of_modernbert_stays(family, request):
    model = request.getfixturevalue(f"{family}_embedder")
    expected, names = embeddings(model), names_of(model)
    assert droppable_layers(model) == [1, 2, 3]
    with pytest.raises(ValueError, match=r"layer 1 would become layer 0 .* has no attn_norm.weight.*\[1, 2, 3\]"):
        drop_layers(model, [0])
    assert torch.equal(embeddings(model), expected)
    assert names_of(model) == names


def test_a_pattern_that_is_a_rule_of_the_class_binds(qwen3_embedder):
    """A class whose blocks differ by their number in a setting alone."""
    encoder = encoder_of(qwen3_embedder)
    stock = type(encoder)

    class Alternating(stock):
        def __init__(self, config):
            super().__init__(config)
            for index, block in enumerate(self.layers):
                block.self_attn.uses_rope = index % 2 == 0

    encoder.__class__ = Alternating
    for index, block in enumerate(encoder.layers):
        block.self_attn.uses_rope = index % 2 == 0
    assert droppable_layers(qwen3_embedder) == [2]
    with pytest.raises(ValueError, match=r"has self_attn\.uses_rope True instead of False"):
        drop_layers(qwen3_embedder, [0])
    drop_layers(qwen3_embedder, [0, 1])


def test_every_block_of_bert_can_go(bert_embedder):
    assert droppable_layers(bert_embedder) == [0, 1, 2]


@pytest.mark.parametrize(
    ("dropped", "message"),
    [
        ([3], r"got the layers \[3\]; give different numbers in 0..2"),
        ([1, 1], "give different"),
        ([0, 1, 2], "got all 3"),
    ],
)
def test_layers_that_are_not_there_are_refused(bert_embedder, dropped, message):
    with pytest.raises(ValueError, match=message):
        drop_layers(bert_embedder, dropped)


def test_without_layers_puts_everything_back(qwen3_embedder):
    expected, names = embeddings(qwen3_embedder), names_of(qwen3_embedder)
    values = encoder_of(qwen3_embedder).config.to_dict()
    seen = []

    def look_and_fail():
        with without_layers(qwen3_embedder, [0, 2]):
            seen.append((len(encoder_of(qwen3_embedder).layers), embeddings(qwen3_embedder)))
            raise KeyError

    with pytest.raises(KeyError):
        look_and_fail()
    assert seen[0][0] == 1
    assert not torch.equal(seen[0][1], expected)
    assert names_of(qwen3_embedder) == names  # the same tensors, not copies
    assert encoder_of(qwen3_embedder).config.to_dict() == values
    assert [block.self_attn.layer_idx for block in encoder_of(qwen3_embedder).layers] == [0, 1, 2]
    assert torch.equal(embeddings(qwen3_embedder), expected)


def test_the_choice_is_greedy_and_leaves_the_model_alone(modernbert_embedder):
    """Blocks 1 and 3 are made to matter little, block 3 least; block 0, which matters not at all, cannot go."""
    encoder, names = encoder_of(modernbert_embedder), names_of(modernbert_embedder)
    with torch.no_grad():
        for layer, factor in ((0, 0.0), (1, 0.05), (3, 0.001)):
            encoder.layers[layer].attn.Wo.weight *= factor
            encoder.layers[layer].mlp.Wo.weight *= factor
    dense, calls = embeddings(modernbert_embedder), []

    def loss(model):
        calls.append(len(encoder_of(model).layers))
        return float((embeddings(model) - dense).square().sum())

    assert choose_layers(modernbert_embedder, 2, loss) == [3, 1]
    assert calls == [3, 3, 3, 2, 2]
    assert names_of(modernbert_embedder) == names
    assert torch.equal(embeddings(modernbert_embedder), dense)


def test_impossible_choices_are_refused(modernbert_embedder):
    with pytest.raises(ValueError, match="num_dropped=4; the model has 4 blocks"):
        choose_layers(modernbert_embedder, 4, lambda _: 0.0)
    with pytest.raises(ValueError, match=r"loss without the layers \[1\] is NaN"):
        choose_layers(modernbert_embedder, 1, lambda _: float("nan"))
    assert last_layers(modernbert_embedder, 2) == [2, 3]
    assert last_layers(modernbert_embedder, 0) == []
    with pytest.raises(ValueError, match="num_dropped=-1"):
        last_layers(modernbert_embedder, -1)


def test_docstring_examples():
    assert doctest.testmod(layers).failed == 0
