"""Local attention in blocks, against dense attention and plain autograd.

Memory that nobody wrote holds NaN here, so that a row which should not count shows wherever it does.
"""

import pytest
import torch
from torch.nn import functional as F

from mmbert_hf.attention.block_local import (
    _RotatedBlocks,
    block_local_attention,
    block_mask,
    block_size,
    blocks_of,
    empty_buffer,
    mix_blocks,
)
from mmbert_hf.rotary import apply_rotary

# (reach, size, tokens)
GEOMETRY = [
    (3, 2, 11),  # reach not a multiple of size, and larger
    (5, 4, 23),
    (7, 3, 20),
    (6, 2, 13),  # reach three blocks
    (4, 4, 16),
    (2, 5, 12),  # reach smaller than a block
    (2, 16, 5),  # a block larger than the row
    (9, 2, 4),  # reach larger than the row
    (9, 16, 3),
    (0, 3, 8),  # a token sees itself alone
    (1, 1, 6),
    (4, 3, 1),
]
HEADS, HEAD_SIZE = 2, 4


@pytest.fixture(autouse=True)
def unwritten_memory_is_nan():
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    assert torch.zeros(1).new_empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


def make_keys(tokens):
    """Documents of 1, 4, 7, ... tokens; a place is left out behind every fifth token."""
    keys, start, length = [], 0, 1
    while len(keys) < tokens:
        keys += [start + place + place // 5 for place in range(length)]
        start, length = start + 2**21, length + 3
    return torch.tensor(keys[:tokens])


def make_inputs(tokens, dtype=torch.float64, seed=0):
    """Queries, keys and values [T, 3, H, D], cosine and sine [T, D / 2]."""
    generator = torch.Generator().manual_seed(seed)
    qkv = torch.randn(tokens, 3, HEADS, HEAD_SIZE, generator=generator, dtype=torch.float64).to(dtype)
    angles = torch.rand(tokens, HEAD_SIZE // 2, generator=generator, dtype=torch.float64) * 7
    return qkv.requires_grad_(), angles.cos(), angles.sin()


def plain_rotated(qkv, cos, sin):
    return torch.cat([apply_rotary(qkv[None, :, :2], cos[None], sin[None])[0], qkv[:, 2:]], dim=1)


def plain_blocks(qkv, cos, sin, size, reach):
    """The blocks, cut out of padded rows with a copy, by operations that autograd knows."""
    num_blocks = -(-len(qkv) // size)
    behind = num_blocks * size - len(qkv) + reach
    rows = F.pad(plain_rotated(qkv, cos, sin), (0, 0, 0, 0, 0, 0, reach, behind))
    queries = rows[reach : reach + num_blocks * size, 0].unflatten(0, (num_blocks, size)).transpose(1, 2)
    keys, values = (rows[:, index].unfold(0, size + 2 * reach, size).transpose(-1, -2) for index in (1, 2))
    return queries, keys, values


def plain_attention(qkv, cos, sin, keys, reach, scaling):
    """Attention over all pairs under a dense mask."""
    seen = (keys[:, None] - keys).abs() <= reach
    query, key, value = plain_rotated(qkv, cos, sin).permute(1, 2, 0, 3)
    return F.scaled_dot_product_attention(query, key, value, seen, scale=scaling).transpose(0, 1)


# Masks and buffers


@pytest.mark.parametrize(("reach", "size", "tokens"), GEOMETRY)
def test_the_mask_place_by_place(reach, size, tokens):
    keys = make_keys(tokens)
    mask = block_mask(keys, reach, size, torch.float32)
    num_blocks = -(-tokens // size)
    assert mask.shape == (num_blocks, 1, size, size + 2 * reach)
    for block, query, key in torch.cartesian_prod(*(torch.arange(n) for n in (num_blocks, size, mask.shape[-1]))):
        i, j = int(block) * size + int(query), int(block) * size + int(key) - reach
        sees = i == j or (max(i, j) < tokens and j >= 0 and abs(int(keys[i] - keys[j])) <= reach)
        assert mask[block, 0, query, key].item() == (0.0 if sees else -torch.inf), (i, j)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_mask_has_the_dtype_of_the_scores(dtype):
    assert block_mask(make_keys(7), 2, 4, dtype).dtype == dtype


def test_blocks_are_multiples_of_sixteen():
    for reach in range(300):
        sizes = [block_size(reach, training=training) for training in (False, True)]
        assert all(size >= 16 and size % 16 == 0 for size in sizes)
        assert sizes[0] <= sizes[1]


@pytest.mark.parametrize(("reach", "size", "tokens"), GEOMETRY)
def test_a_buffer_is_zero_around_the_tokens(reach, size, tokens):
    buffer = empty_buffer(tokens, torch.zeros(1, 3, HEADS, HEAD_SIZE), reach, size)
    assert buffer.shape == (-(-tokens // size) * size + 2 * reach, 3, HEADS, HEAD_SIZE)
    assert buffer[reach : reach + tokens].isnan().all()
    assert (buffer[:reach] == 0).all()
    assert (buffer[reach + tokens :] == 0).all()


@pytest.mark.parametrize("offset", [0, 5])
@pytest.mark.parametrize(("reach", "size", "tokens"), GEOMETRY)
def test_blocks_are_views_of_the_buffer(reach, size, tokens, offset):
    rows = -(-tokens // size) * size + 2 * reach
    whole = torch.arange((offset + rows) * 3 * HEADS * HEAD_SIZE).view(-1, 3, HEADS, HEAD_SIZE)
    buffer = whole[offset:]
    queries, keys, values = blocks_of(buffer, reach, size)
    assert {part.untyped_storage().data_ptr() for part in (queries, keys, values)} == {whole.data_ptr()}
    assert queries.data_ptr() == buffer[reach].data_ptr()
    assert keys.data_ptr() == buffer[0, 1].data_ptr()
    assert values.data_ptr() == buffer[0, 2].data_ptr()
    for block in range(len(queries)):
        own = slice(block * size + reach, (block + 1) * size + reach)
        around = slice(block * size, (block + 1) * size + 2 * reach)
        assert torch.equal(queries[block], buffer[own, 0].transpose(0, 1))
        assert torch.equal(keys[block], buffer[around, 1].transpose(0, 1))
        assert torch.equal(values[block], buffer[around, 2].transpose(0, 1))


def test_rotated_blocks_share_one_buffer_and_keep_the_angles_alone():
    qkv, cos, sin = make_inputs(50)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda packed: packed):
        blocks = _RotatedBlocks.apply(qkv, cos, sin, 4, 6)
    assert len({block.untyped_storage().data_ptr() for block in blocks}) == 1
    assert blocks[0].untyped_storage().nbytes() == (52 + 2 * 6) * 3 * HEADS * HEAD_SIZE * 8
    assert [tensor.data_ptr() for tensor in kept] == [cos.data_ptr(), sin.data_ptr()]


# Values and gradients


@pytest.mark.parametrize(("reach", "size", "tokens"), GEOMETRY)
def test_blocks_and_their_gradients_equal_plain_ones(reach, size, tokens):
    qkv, cos, sin = make_inputs(tokens)
    got, expected = (cut(qkv, cos, sin, size, reach) for cut in (_RotatedBlocks.apply, plain_blocks))
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(part.shape, generator=generator, dtype=part.dtype) for part in expected]
    gradients = []
    for parts in (got, expected):
        for part, weight in zip(parts, weights, strict=True):  # each alone, then all together
            gradients.append(torch.autograd.grad((part * weight).sum(), qkv, retain_graph=True)[0])
        total = sum((part * weight).sum() for part, weight in zip(parts, weights, strict=True))
        gradients.append(torch.autograd.grad(total, qkv)[0])
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-13)
    for one, other in zip(gradients[:4], gradients[4:], strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-13)


@pytest.mark.parametrize(("reach", "size", "tokens"), [(3, 2, 5), (2, 3, 4), (5, 2, 3), (0, 2, 3)])
def test_gradients_are_those_of_finite_differences(reach, size, tokens):
    qkv, cos, sin = make_inputs(tokens)
    assert torch.autograd.gradcheck(lambda x: _RotatedBlocks.apply(x, cos, sin, size, reach), qkv)
    mask = block_mask(make_keys(tokens), reach, size, qkv.dtype)
    assert torch.autograd.gradcheck(lambda x: block_local_attention(x, cos, sin, mask, scaling=0.6), qkv)


@pytest.mark.parametrize(("reach", "size", "tokens"), [*GEOMETRY, (16, 16, 70), (64, 32, 300), (64, 64, 300)])
def test_equals_dense_attention(reach, size, tokens):
    qkv, cos, sin = make_inputs(tokens)
    keys = make_keys(tokens)
    got = block_local_attention(qkv, cos, sin, block_mask(keys, reach, size, qkv.dtype), scaling=0.6)
    expected = plain_attention(qkv, cos, sin, keys, reach, 0.6)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    weight = torch.randn(got.shape, generator=torch.Generator().manual_seed(1), dtype=got.dtype)
    gradients = [torch.autograd.grad((values * weight).sum(), qkv)[0] for values in (got, expected)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-12)


def test_blocks_without_gradients_equal_those_with():
    """A buffer that is filled from outside gives the same as the function that fills its own."""
    qkv, cos, sin = make_inputs(23)
    mask = block_mask(make_keys(23), 5, 4, qkv.dtype)
    buffer = empty_buffer(23, qkv, 5, 4)
    with torch.no_grad():
        buffer[5:28] = plain_rotated(qkv, cos, sin)
        got = mix_blocks(blocks_of(buffer, 5, 4), mask, 23, scaling=0.6)
    expected = block_local_attention(qkv, cos, sin, mask, scaling=0.6)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-13)


def test_second_derivatives_are_refused():
    qkv, cos, sin = make_inputs(9)
    queries, *_ = _RotatedBlocks.apply(qkv, cos, sin, 4, 2)
    (gradient,) = torch.autograd.grad((queries**3).sum(), qkv, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_bfloat16_gradients_have_its_precision():
    """Sums of overlapping blocks stay within a few roundings of the exact ones."""
    reach, size, tokens = 6, 2, 40
    exact, cos, sin = make_inputs(tokens)
    rounded = exact.detach().bfloat16().requires_grad_()
    exact = rounded.detach().double().requires_grad_()
    keys = make_keys(tokens)
    got = block_local_attention(
        rounded, cos.float(), sin.float(), block_mask(keys, reach, size, rounded.dtype), scaling=0.6
    )
    expected = plain_attention(exact, cos, sin, keys, reach, 0.6)
    assert got.dtype == torch.bfloat16
    weight = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).bfloat16()
    (got_gradient,) = torch.autograd.grad((got * weight).sum(), rounded)
    (expected_gradient,) = torch.autograd.grad((expected * weight).sum(), exact)
    for one, other in ((got, expected), (got_gradient, expected_gradient)):
        error = (one.double() - other).square().mean() / other.square().mean()
        assert error.sqrt().item() < 2 * 2**-8


# Dropout


def test_dropout_drops_anew_each_time_and_keeps_the_mean():
    qkv, cos, sin = make_inputs(2000, torch.float32)
    with torch.no_grad():
        qkv[:, 2] = 1.0
    mask = block_mask(torch.arange(2000), 16, 16, torch.float32)
    arguments = (qkv, cos.float(), sin.float(), mask)
    torch.manual_seed(0)
    plain, first, second = (block_local_attention(*arguments, scaling=0.5, dropout=p) for p in (0.0, 0.5, 0.5))
    torch.testing.assert_close(plain, torch.ones_like(plain))
    assert not torch.equal(first, second)
    assert first.std().item() > 0.1
    assert first.mean().item() == pytest.approx(1.0, abs=0.05)


def test_gradients_under_dropout_are_those_of_finite_differences():
    qkv, cos, sin = make_inputs(5)
    mask = block_mask(make_keys(5), 3, 2, qkv.dtype)

    def dropped(x):
        torch.manual_seed(0)  # the same weights are dropped in every call
        return block_local_attention(x, cos, sin, mask, scaling=0.6, dropout=0.4)

    assert not torch.allclose(dropped(qkv), block_local_attention(qkv, cos, sin, mask, scaling=0.6))
    assert torch.autograd.gradcheck(dropped, qkv)
