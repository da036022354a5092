import doctest

import pytest
import torch

from mmbert_hf import MMBertConfig, MMBertForMaskedLM
from mmbert_hf.configuration import GLOBAL, LOCAL
from mmbert_hf.tiling import tile as tiling
from mmbert_hf.tiling import tile_model, widened_config

NARROW = MMBertConfig(
    vocab_size=70,
    hidden_size=32,
    intermediate_size=24,
    num_hidden_layers=4,
    num_attention_heads=2,
    local_attention=8,
    initializer_range=0.08,
)


def test_docstring_examples():
    result = doctest.testmod(tiling)
    assert result.attempted >= 3
    assert result.failed == 0


def make_narrow(config=NARROW, dtype=torch.float64):
    """A model whose every weight matters: norms and biases are not what they are initialised to."""
    torch.manual_seed(0)
    model = MMBertForMaskedLM(config).to(dtype).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 1:
                weight.add_(torch.randn_like(weight) * (0.5 if "bias" in name else 0.2))
    return model


@pytest.fixture(scope="module")
def narrow():
    return make_narrow()


@pytest.fixture(scope="module")
def batch():
    generator = torch.Generator().manual_seed(1)
    input_ids = torch.randint(5, 70, (3, 40), generator=generator)
    input_ids[1, 25:] = 0
    return {"input_ids": input_ids, "attention_mask": input_ids.ne(0).long()}


def logits(model, batch):
    with torch.no_grad():
        return model(**batch).logits[batch["attention_mask"].bool()]


# --- what is promised ---


@pytest.mark.parametrize("noise", [0.0, 0.5])
@pytest.mark.parametrize(
    "sizes",
    [
        {"hidden_size": 64},
        {"hidden_size": 96, "intermediate_size": 48},
        {"intermediate_size": 72},
        {"num_hidden_layers": 7},
        {"hidden_size": 64, "intermediate_size": 48, "num_hidden_layers": 10},
    ],
)
def test_duplicate_preserves_the_function(narrow, batch, sizes, noise):
    wide = tile_model(narrow, widened_config(NARROW, **sizes), method="duplicate", noise=noise)
    assert wide.num_parameters() > narrow.num_parameters()
    expected = logits(narrow, batch)
    assert expected.std() > 0.1
    torch.testing.assert_close(logits(wide, batch), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    "options",
    [
        {"tie_word_embeddings": False},
        {"norm_bias": True, "attention_bias": True, "mlp_bias": True, "classifier_bias": True},
        {"norm_bias": True, "tie_word_embeddings": False, "decoder_bias": False},
    ],
)
def test_duplicate_preserves_models_of_other_kinds(batch, options):
    config = MMBertConfig.from_dict({**NARROW.to_dict(), **options})
    narrow = make_narrow(config)
    wide = tile_model(narrow, widened_config(config, hidden_size=64, num_hidden_layers=7), method="duplicate")
    torch.testing.assert_close(logits(wide, batch), logits(narrow, batch), rtol=0, atol=1e-10)


@pytest.mark.parametrize("method", ["center", "tile"])
def test_the_other_methods_do_not(narrow, batch, method):
    wide = tile_model(narrow, widened_config(NARROW, hidden_size=64), method=method)
    assert (logits(wide, batch) - logits(narrow, batch)).abs().max() > 0.1


@pytest.mark.parametrize("method", ["center", "tile", "duplicate"])
def test_the_same_sizes_are_the_same_model(narrow, method):
    same = tile_model(narrow, widened_config(NARROW), method=method, noise=0.3)  # nothing is copied: no noise
    for name, weight in narrow.state_dict().items():
        assert torch.equal(same.state_dict()[name], weight), name


def test_duplicates_get_equal_gradients_and_noise_parts_them(narrow, batch):
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    gaps = []
    for noise in (0.0, 0.3):
        wide = tile_model(narrow, widened_config(NARROW, hidden_size=64), method="duplicate", noise=noise)
        wide(**batch, labels=labels).loss.backward()
        first, second = wide.model.embeddings.tok_embeddings.weight.grad.chunk(2, dim=1)
        gaps.append(((first - second).norm() / first.norm()).item())
    assert gaps[0] < 1e-10
    assert gaps[1] > 0.05


# --- what goes where ---


@pytest.mark.parametrize("method", ["center", "tile"])
def test_weights_are_those_of_the_units_they_copy(narrow, method):
    wide = tile_model(narrow, widened_config(NARROW, hidden_size=80, intermediate_size=40), method=method)
    old, new = narrow.state_dict(), wide.state_dict()
    # Written out: 32 -> 80 hidden units, 2 -> 5 heads of 16, 24 -> 40 intermediate units
    hidden, heads, between = {
        "tile": ([*range(32)] * 2 + [*range(16)], [0, 1, 0, 1, 0], [*range(24), *range(16)]),
        "center": ([*range(8, 32), *range(32), *range(24)], [1, 0, 1, 0, 1], [*range(16, 24), *range(24), *range(8)]),
    }[method]
    layer = "model.layers.2."
    queries, keys, values = (part.unflatten(0, (2, 16)) for part in old[layer + "attn.Wqkv.weight"].chunk(3))
    for part, expected in zip(new[layer + "attn.Wqkv.weight"].chunk(3), (queries, keys, values), strict=True):
        assert torch.equal(part.unflatten(0, (5, 16)), expected[heads][..., hidden])
    out = old[layer + "attn.Wo.weight"].unflatten(1, (2, 16))
    assert torch.equal(new[layer + "attn.Wo.weight"].unflatten(1, (5, 16)), out[hidden][:, heads])
    for part, expected in zip(
        new[layer + "mlp.Wi.weight"].chunk(2), old[layer + "mlp.Wi.weight"].chunk(2), strict=True
    ):
        assert torch.equal(part, expected[between][:, hidden])
    assert torch.equal(new[layer + "mlp.Wo.weight"], old[layer + "mlp.Wo.weight"][hidden][:, between])
    embeddings = "model.embeddings.tok_embeddings.weight"
    assert torch.equal(new[embeddings], old[embeddings][:, hidden])
    assert torch.equal(new["model.final_norm.weight"], old["model.final_norm.weight"][hidden])
    assert torch.equal(new["decoder.bias"], old["decoder.bias"])


def test_added_layers_copy_the_last_of_their_kind(narrow):
    # Kinds g l l g; deeper g l l g l l g l. An even spread is 0, 2.3, 4.7, 7: they go to 0, 2, 5, 6.
    wide = tile_model(narrow, widened_config(NARROW, num_hidden_layers=8))
    assert wide.config.layer_types == [GLOBAL, LOCAL, LOCAL, GLOBAL, LOCAL, LOCAL, GLOBAL, LOCAL]
    name = "mlp.Wi.weight"
    sources = [
        next(
            source
            for source in range(4)
            if torch.equal(
                wide.get_parameter(f"model.layers.{index}.{name}"),
                narrow.get_parameter(f"model.layers.{source}.{name}"),
            )
        )
        for index in range(8)
    ]
    kinds = NARROW.layer_types
    assert [kinds[source] for source in sources] == wide.config.layer_types
    assert sources == [0, 1, 1, 0, 1, 2, 3, 2]
    # A copy of the first layer, which has no norm, reads through the norm of the embeddings.
    assert torch.equal(wide.model.layers[3].attn_norm.weight, narrow.model.embeddings.norm.weight)


def test_added_layers_of_duplicate_can_learn(narrow, batch):
    wide = tile_model(narrow, widened_config(NARROW, num_hidden_layers=5), method="duplicate")
    silent = [layer for layer in wide.model.layers if not layer.mlp.Wo.weight.any()]
    assert len(silent) == 1
    assert not silent[0].attn.Wo.weight.any()
    wide(**batch, labels=batch["input_ids"]).loss.backward()
    assert silent[0].attn.Wo.weight.grad.abs().max() > 0
    assert silent[0].mlp.Wo.weight.grad.abs().max() > 0


def test_noise_is_seeded_and_draws_nothing_from_the_global_generator(narrow):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    config = widened_config(NARROW, hidden_size=64)
    one, again, other, none = (
        tile_model(narrow, config, noise=noise, seed=seed).head.dense.weight
        for noise, seed in ((0.1, 1), (0.1, 1), (0.1, 2), (0.0, 1))
    )
    assert torch.rand(1) == expected
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    perturbation = one - none
    # Two copies of each input: what one gains the other loses. That halves the variance.
    assert perturbation.unflatten(1, (2, 32)).sum(1).abs().max() < 1e-12
    assert perturbation.std().item() == pytest.approx(0.1 * none.std().item() * 0.5**0.5, rel=0.1)


def test_type_tie_and_mode(narrow):
    wide = tile_model(make_narrow(dtype=torch.bfloat16), widened_config(NARROW, hidden_size=64), noise=0.1)
    assert {weight.dtype for weight in wide.parameters()} == {torch.bfloat16}
    assert wide.decoder.weight is wide.model.embeddings.tok_embeddings.weight
    assert not wide.training


def test_the_narrow_model_is_not_changed():
    narrow = make_narrow()
    before = {name: weight.clone() for name, weight in narrow.state_dict().items()}
    wide = tile_model(narrow, widened_config(NARROW, num_hidden_layers=7))
    with torch.no_grad():
        for weight in wide.parameters():
            weight.fill_(9.0)
    assert all(torch.equal(weight, before[name]) for name, weight in narrow.state_dict().items())


# --- what is refused ---


@pytest.mark.parametrize("noise", [-0.1, float("nan")])
def test_noise_is_a_positive_number(narrow, noise):
    with pytest.raises(ValueError, match="noise must be a number from 0 up"):
        tile_model(narrow, NARROW, noise=noise)
