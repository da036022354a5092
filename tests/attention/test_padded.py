"""Dense attention: the definition that everything else is held against, and the names that fall back to it."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mmbert_hf.attention import eager_attention
from mmbert_hf.configuration import MMBertConfig
from mmbert_hf.modeling import MMBertModel

SIZES = {
    "vocab_size": 120,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "local_attention": 16,
    "initializer_range": 0.2,
}


def make_inputs(dtype=torch.float64):
    """Queries, keys and values [2, 3, 5, 4], and what may be seen [2, 1, 5, 5]: everything has something to see."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = torch.randn(3, 2, 3, 5, 4, generator=generator, dtype=dtype)
    seen = (torch.rand(2, 1, 5, 5, generator=generator) < 0.5) | torch.eye(5, dtype=torch.bool)
    return query, key, value, seen


def as_floats(seen, dtype, lowest=-torch.inf):
    return torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, lowest)


def plain(query, key, value, seen, scaling):
    """By loops over places."""
    mixed = torch.zeros_like(query)
    for row, head, i in torch.cartesian_prod(*(torch.arange(size) for size in query.shape[:3])).tolist():
        places = [j for j in range(query.shape[2]) if seen[row, 0, i, j]]
        weights = (key[row, head, places] @ query[row, head, i] * scaling).softmax(dim=0)
        mixed[row, head, i] = weights @ value[row, head, places]
    return mixed.transpose(1, 2)


@pytest.mark.parametrize("form", ["bool", "infinite", "lowest"])
def test_eager_attention_equals_loops(form):
    query, key, value, seen = make_inputs()
    lowest = {"infinite": -torch.inf, "lowest": torch.finfo(torch.float64).min}
    mask = seen if form == "bool" else as_floats(seen, query.dtype, lowest[form])
    mixed, weights = eager_attention(torch.nn.Identity().eval(), query, key, value, mask, scaling=0.6)
    torch.testing.assert_close(mixed, plain(query, key, value, seen, 0.6), rtol=0, atol=1e-12)
    assert weights.shape == (2, 3, 5, 5)
    assert (weights[~seen.expand_as(weights)] == 0).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3, 5, dtype=torch.float64))


@pytest.mark.parametrize("training", [True, False])
def test_eager_attention_drops_weights_in_training_alone(training):
    query, key, value, _ = make_inputs()
    module = torch.nn.Identity().train(training)
    torch.manual_seed(0)
    _, weights = eager_attention(module, query, key, value, None, scaling=0.6, dropout=0.5)
    _, kept = eager_attention(module, query, key, value, None, scaling=0.6)
    assert (weights == 0).any() == training
    torch.testing.assert_close(weights[weights != 0], kept[weights != 0] * (2 if training else 1))


class Softmaxes(TorchDispatchMode):
    """Notes the dtypes in which softmax is taken."""

    def __init__(self):
        super().__init__()
        self.dtypes = []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        returned = operator(*args, **(kwargs or {}))
        if operator.name() == "aten::_softmax":
            self.dtypes.append((args[0].dtype, returned.dtype))
        return returned


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_softmax_is_taken_in_float32_or_better(dtype):
    query, key, value, _ = make_inputs(dtype)
    with Softmaxes() as softmaxes:
        mixed, weights = eager_attention(torch.nn.Identity(), query, key, value, None, scaling=0.6)
    precision = torch.promote_types(dtype, torch.float32)
    assert softmaxes.dtypes == [(precision, precision)]
    assert mixed.dtype == weights.dtype == dtype
    scores = query @ key.transpose(-2, -1) * 0.6
    assert torch.equal(weights, scores.softmax(dim=-1, dtype=precision).to(dtype))


@pytest.mark.parametrize("implementation", ["block_local", "torch_varlen"])
def test_masks_of_token_pairs_run_as_sdpa_under_every_name_of_torch(implementation):
    """Also a name that cannot run packed on this machine: a mask of token pairs does not ask it to."""
    torch.manual_seed(0)
    model = MMBertModel(MMBertConfig(**SIZES, attn_implementation="sdpa")).eval()
    ids = torch.randint(5, 120, (2, 40))
    mask = torch.rand(2, 1, 40, 40) < 0.5
    mask |= torch.eye(40, dtype=torch.bool)
    expected = model(ids, attention_mask=mask).last_hidden_state
    everything = model(ids, attention_mask=torch.ones_like(mask)).last_hidden_state
    model.config._attn_implementation = implementation
    assert torch.equal(model(ids, attention_mask=mask).last_hidden_state, expected)
    assert not torch.allclose(expected, everything, atol=1e-2)
