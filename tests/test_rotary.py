"""Rotations against complex multiplication, in place and out of it."""

import pytest
import torch

from mmbert_hf import rotary
from mmbert_hf.rotary import apply_rotary, rotate, rotate_into

HEADS, HEAD_SIZE = 2, 8
PIECE = rotary.PIECE_TOKENS
LENGTHS = [0, 1, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE + 3]


def make_inputs(tokens, dtype=torch.float64, angle_dtype=None):
    """Queries, keys and values [T, 3, H, D], cosine and sine [T, D / 2]."""
    generator = torch.Generator().manual_seed(tokens)
    qkv = torch.randn(tokens, 3, HEADS, HEAD_SIZE, generator=generator, dtype=torch.float64)
    angles = torch.rand(tokens, HEAD_SIZE // 2, generator=generator, dtype=torch.float64) * 100
    angle_dtype = angle_dtype or torch.promote_types(dtype, torch.float32)
    return qkv.to(dtype), angles.cos().to(angle_dtype), angles.sin().to(angle_dtype)


def turned(qkv, cos, sin):
    """Pairs (i, i + D / 2) as complex numbers, times e^(i angle), in float64; values as they are."""
    first, second = qkv[:, :2].double().chunk(2, dim=-1)
    product = torch.complex(first, second) * torch.complex(cos.double(), sin.double())[:, None, None]
    return torch.cat((torch.cat((product.real, product.imag), dim=-1), qkv[:, 2:].double()), dim=1)


@pytest.mark.parametrize("tokens", LENGTHS)
def test_a_rotation_is_a_complex_product(tokens):
    qkv, cos, sin = make_inputs(tokens)
    torch.testing.assert_close(rotate(qkv, cos, sin), turned(qkv, cos, sin), rtol=0, atol=1e-13)


@pytest.mark.parametrize("tokens", LENGTHS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 2**-7)])
def test_lower_precisions_round_once(tokens, dtype, tolerance):
    """In bfloat16 the product is taken in float32: the result is off by one rounding, relative to the pair's length."""
    qkv, cos, sin = make_inputs(tokens, dtype)
    rotated, exact = rotate(qkv, cos, sin), turned(qkv, cos, sin)
    assert rotated.dtype == dtype
    length = exact.unflatten(-1, (2, -1)).square().sum(-2, keepdim=True).sqrt().expand(-1, -1, -1, 2, -1).flatten(-2)
    assert ((rotated.double() - exact).abs() <= tolerance / 2 * length).all()
    assert torch.equal(rotated[:, 2], qkv[:, 2])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("tokens", LENGTHS)
def test_equals_the_rotation_of_padded_rows(tokens, dtype):
    qkv, cos, sin = make_inputs(tokens, dtype)
    expected = apply_rotary(qkv[None, :, :2], cos[None], sin[None])[0]
    got = rotate(qkv, cos, sin)[:, :2]
    spacing = torch.finfo(dtype).eps
    torch.testing.assert_close(got, expected, rtol=spacing, atol=4 * torch.finfo(cos.dtype).eps)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("tokens", LENGTHS)
def test_in_place_is_bit_for_bit_out_of_place(tokens, dtype):
    qkv, cos, sin = make_inputs(tokens, dtype)
    before, expected = qkv.clone(), rotate(qkv, cos, sin)
    assert torch.equal(qkv, before)
    rotate_into(qkv, qkv, cos, sin)
    assert torch.equal(qkv, expected)


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_rows_in_a_larger_buffer(dtype, in_place):
    """Only the given rows are written, and rows may lie apart from each other."""
    qkv, cos, sin = make_inputs(PIECE + 9, dtype)
    buffer = torch.full((PIECE + 20, 6, HEADS, HEAD_SIZE), 7.0, dtype=dtype)
    out = buffer[5 : 5 + len(qkv), 1:4]
    if in_place:
        out.copy_(qkv)
    rotate_into(out, out if in_place else qkv, cos, sin)
    assert torch.equal(out, rotate(qkv, cos, sin))
    out.fill_(7.0)
    assert (buffer == 7).all()


def test_pieces_do_not_change_a_bit(monkeypatch):
    qkv, cos, sin = make_inputs(40, torch.float32)
    expected = rotate(qkv, cos, sin)
    for piece in (1, 7, 8, 39, 40):
        monkeypatch.setattr(rotary, "PIECE_TOKENS", piece)
        assert torch.equal(rotate(qkv, cos, sin), expected)


def test_gradients_are_those_of_finite_differences():
    qkv, cos, sin = make_inputs(3)
    assert torch.autograd.gradcheck(lambda x: rotate(x, cos, sin), qkv.requires_grad_())


@pytest.mark.parametrize("factor", [1.0, 1.3])
def test_the_gradient_is_the_rotation_back(factor):
    """With scaled RoPE, cosine and sine carry a factor, which the gradient has as well."""
    qkv, cos, sin = make_inputs(PIECE + 3)
    cos, sin = cos * factor, sin * factor
    weights = torch.randn(qkv.shape, generator=torch.Generator().manual_seed(1), dtype=qkv.dtype)
    (rotate(qkv.requires_grad_(), cos, sin) * weights).sum().backward()
    torch.testing.assert_close(qkv.grad, turned(weights, cos, -sin), rtol=0, atol=1e-12)


def test_expanded_gradients():
    """A sum hands back one number for all places."""
    qkv, cos, sin = make_inputs(5)
    rotate(qkv.requires_grad_(), cos, sin).sum().backward()
    torch.testing.assert_close(qkv.grad, turned(torch.ones_like(qkv), cos, -sin), rtol=0, atol=1e-12)


def test_there_and_back_is_nothing():
    qkv, cos, sin = make_inputs(50)
    torch.testing.assert_close(rotate(rotate(qkv, cos, sin), cos, -sin), qkv, rtol=0, atol=1e-13)


def test_the_angles_alone_are_kept_for_the_gradient():
    qkv, cos, sin = make_inputs(5)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda packed: packed):
        rotate(qkv.requires_grad_(), cos, sin)
    assert [tensor.data_ptr() for tensor in kept] == [cos.data_ptr(), sin.data_ptr()]


def test_second_derivatives_are_refused():
    qkv, cos, sin = make_inputs(5)
    rotated = rotate(qkv.requires_grad_(), cos, sin)
    (gradient,) = torch.autograd.grad((rotated**3).sum(), qkv, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
