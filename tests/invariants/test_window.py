"""A local layer against the definition of its window, place by place, in float64.

Place i of a row attends to place j if |i - j| <= local_attention // 2, both hold tokens, and both are of one document.
"""

import pytest
import torch
from torch.nn import functional as F

REACH = 64
NEAR_BLOCKS = [1, 2, 63, 64, 65, 66, 127, 128, 129, 130, 191, 192, 193, 257]


def local_model(parity, implementation, local_attention=2 * REACH):
    """One local layer, in float64."""
    options = {"num_hidden_layers": 1, "layer_types": ["sliding_attention"], "local_attention": local_attention}
    return parity.model("Model", implementation, **options).double()


def make_embeddings(batch, length):
    generator = torch.Generator().manual_seed(5)
    return torch.randn(batch, length, 64, generator=generator, dtype=torch.float64)


def rotate(states, theta=500.0):
    """Turn pairs of a head, as complex numbers, by position times frequency, in float32 as the model does."""
    first, second = states.chunk(2, dim=-1)
    exponents = torch.arange(0, states.shape[-1], 2).float() / states.shape[-1]
    angles = torch.arange(len(states)).float()[:, None] * (1.0 / theta**exponents)
    turned = torch.complex(first, second) * torch.complex(angles.cos().double(), angles.sin().double())[:, None]
    return torch.cat((turned.real, turned.imag), dim=-1)


def oracle(model, embeddings, real, reach):
    """The model's output for one row of embeddings [L, E], with plain loops over the places."""
    layer = model.layers[0]
    heads = model.config.num_attention_heads
    hidden = model.embeddings.norm(embeddings)
    query, key, value = layer.attn.Wqkv(hidden).unflatten(-1, (3, heads, -1)).unbind(1)
    query, key = rotate(query), rotate(key)
    mixed = torch.zeros_like(hidden)
    for i in range(len(hidden)):
        seen = [j for j in range(len(hidden)) if abs(i - j) <= reach and real[j]]
        if real[i]:
            weights = (torch.einsum("hd,jhd->hj", query[i], key[seen]) * query.shape[-1] ** -0.5).softmax(dim=-1)
            mixed[i] = torch.einsum("hj,jhd->hd", weights, value[seen]).flatten()
    hidden = hidden + layer.attn.Wo(mixed)
    values, gate = layer.mlp.Wi(layer.mlp_norm(hidden)).chunk(2, dim=-1)
    return model.final_norm(hidden + layer.mlp.Wo(F.gelu(values) * gate))


def assert_equals_oracle(parity, model, real, reach):
    embeddings = make_embeddings(*real.shape)
    with torch.no_grad():
        output = model(inputs_embeds=embeddings, attention_mask=real.long()).last_hidden_state
        for row, (given, places) in enumerate(zip(embeddings, real.tolist(), strict=True)):
            expected = oracle(model, given, places, reach)
            parity.assert_same(output[row][real[row]], expected[real[row]], f"row {row}", tolerance=1e-6)


@pytest.mark.parametrize("length", NEAR_BLOCKS)
def test_full_rows(parity, implementation, length):
    model = local_model(parity, implementation)
    assert_equals_oracle(parity, model, torch.ones(2, length, dtype=torch.bool), REACH)


@pytest.mark.parametrize("local_attention", [1, 2, 9, 16, 33, 100])
def test_other_windows(parity, implementation, local_attention):
    model = local_model(parity, implementation, local_attention)
    for length in (7, 33, 101):
        assert_equals_oracle(parity, model, torch.ones(1, length, dtype=torch.bool), local_attention // 2)


def test_padding_counts_as_places(parity, implementation):
    """A window is 64 places wide to either side, whatever they hold, so holes do not draw tokens together."""
    rows = [
        [(0, 200)],
        [(40, 200)],
        [(0, 70), (75, 200)],
        [(0, 30), (93, 94), (157, 158), (160, 190)],  # pairs 64 and 65 places apart
        [(3, 4), (67, 68), (132, 133)],
        [],
    ]
    assert_equals_oracle(parity, local_model(parity, implementation), parity.mask(rows, 200).bool(), REACH)


@pytest.mark.parametrize("reach", [4, REACH])
def test_padding_counts_as_places_in_short_documents(parity, implementation, reach):
    """Documents with fewer tokens than a window, but wider than it by the padding inside."""
    model = local_model(parity, implementation, 2 * reach)
    rows = [[(0, 2), (reach + 1, reach + 3)], [(0, 1)], [(reach - 1, reach + 2), (2 * reach, 2 * reach + 2)]]
    real = parity.mask(rows, 2 * reach + 2).bool()
    assert real.sum(dim=1).max() <= reach + 1
    assert_equals_oracle(parity, model, real, reach)
    together = model(inputs_embeds=make_embeddings(*real.shape), attention_mask=real.long()).last_hidden_state
    everywhere = model(inputs_embeds=make_embeddings(*real.shape)[:1, real[0]]).last_hidden_state
    assert (together[0, real[0]] - everywhere[0]).abs().max() > 0.01  # the window does hide something here


def single_row(lengths):
    document = torch.zeros(1, lengths[-1], dtype=torch.int64)
    return document, {}


def padded_batch(lengths):
    document = torch.full((len(lengths), max(lengths)), -1)
    for row, length in enumerate(lengths):
        document[row, :length] = row
    return document, {"attention_mask": (document >= 0).long()}


def row_with_holes(lengths):
    document = torch.zeros(1, lengths[-1], dtype=torch.int64)
    document[0, 50:59] = -1
    document[0, 130] = -1
    return document, {"attention_mask": (document >= 0).long()}


def packed_by_positions(lengths):
    document = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))[None]
    return document, {"position_ids": torch.cat([torch.arange(length) for length in lengths])[None]}


def packed_by_bounds(lengths):
    document, _ = packed_by_positions(lengths)
    bounds = torch.tensor([0, *lengths]).cumsum(0).int()
    arguments = {f"cu_seq_lens_{side}": bounds for side in "qk"} | {f"max_length_{side}": max(lengths) for side in "qk"}
    return document, arguments


LAYOUTS = [single_row, padded_batch, row_with_holes, packed_by_positions, packed_by_bounds]


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_gradients_reach_exactly_the_window(parity, implementation, layout):
    """d out_i / d in_j is not zero at the window's ends, and zero, to the bit, one place further."""
    model = local_model(parity, implementation)
    document, arguments = layout([37, 130, 3, 258])
    length = document.shape[1]
    embeddings = make_embeddings(*document.shape).requires_grad_()
    output = model(inputs_embeds=embeddings, **arguments).last_hidden_state
    weights = make_embeddings(1, length)[0]  # the plain sum of a normalised vector has no gradient
    ends_of_window = 0
    for row, i in (document >= 0).nonzero().tolist()[::7]:
        chosen = (output[row, i] * weights[i]).sum()
        (gradient,) = torch.autograd.grad(chosen, embeddings, retain_graph=True)
        distance = (torch.arange(length) - i).abs()
        expected = torch.zeros(document.shape, dtype=torch.bool)
        expected[row] = (distance <= REACH) & (document[row] == document[row, i])
        assert torch.equal((gradient != 0).any(dim=-1), expected), f"row {row}, place {i}"
        ends_of_window += (expected[row] & (distance == REACH)).sum().item()
    assert ends_of_window > 20
