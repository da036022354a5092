"""Linear layers by oneDNN against torch's own, and when they stand aside."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torch.utils._python_dispatch import TorchDispatchMode

from mmbert_hf.onednn import _is_built_in, can_fuse, fast_linear, fused_linear, linear, takes_bfloat16

needs_onednn = pytest.mark.skipif(
    not _is_built_in(), reason="oneDNN's linear layers are part of PyTorch for x86 processors alone"
)
needs_bfloat16 = pytest.mark.skipif(not takes_bfloat16(), reason="this processor has no arithmetic in bfloat16")
INPUTS, OUTPUTS = 24, 17


class Products(TorchDispatchMode):
    """Notes the names of the matrix products that run."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        name = operator.name()
        if name in ("aten::mm", "aten::addmm") or name.startswith("mkldnn::_linear"):
            self.names.append(name.split("::")[1])
        return operator(*args, **(kwargs or {}))


FUSED, PRODUCT = "_linear_pointwise", "mm"


def make(tokens=9, dtype=torch.float32, bias=True, requires_grad=True):
    generator = torch.Generator().manual_seed(tokens)
    shapes = [(tokens, INPUTS), (OUTPUTS, INPUTS), (OUTPUTS,)]
    made = [torch.randn(shape, generator=generator).to(dtype).requires_grad_(requires_grad) for shape in shapes]
    return made if bias else [*made[:2], None]


def exact(tensors):
    """The same numbers in float64, as leaves of their own."""
    return [None if t is None else t.detach().double().requires_grad_(t.requires_grad) for t in tensors]


def relative_error(got, expected):
    return ((got.double() - expected).square().mean() / expected.square().mean().clamp(min=1e-30)).sqrt().item()


def gradients(output, weights, leaves):
    return torch.autograd.grad((output * weights.to(output.dtype)).sum(), [leaf for leaf in leaves if leaf is not None])


# Values and gradients


@needs_onednn
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("tokens", [1, 9, 1500])
def test_values_and_gradients(tokens, bias):
    inputs = make(tokens, bias=bias)
    doubled = exact(inputs)
    output, expected = linear(*inputs), F.linear(*doubled)
    assert relative_error(output, expected) < 1e-6
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(0))
    got = gradients(output, weights, inputs)
    assert len(got) == 2 + bias
    for one, other in zip(got, gradients(expected, weights, doubled), strict=True):
        assert one.dtype == torch.float32
        assert relative_error(one, other) < 1e-6


@needs_onednn
def test_no_tokens():
    inputs = make(0)
    output = linear(*inputs)
    assert output.shape == (0, OUTPUTS)
    assert all((gradient == 0).all() for gradient in torch.autograd.grad(output.sum(), inputs))


@needs_onednn
@pytest.mark.parametrize("frozen", [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2)])
def test_frozen_inputs_cost_no_product(frozen):
    inputs = make()
    for index in frozen:
        inputs[index].requires_grad_(False)
    output = linear(*inputs)
    with Products() as products:
        output.square().sum().backward()
    assert products.names == [FUSED] * (0 not in frozen) + [PRODUCT] * (1 not in frozen)
    assert [one.grad is None for one in inputs] == [index in frozen for index in range(3)]


@needs_onednn
def test_a_sum_hands_back_an_expanded_gradient():
    inputs = make()
    doubled = exact(inputs)
    for got, expected in zip(
        torch.autograd.grad(linear(*inputs).sum(), inputs),
        torch.autograd.grad(F.linear(*doubled).sum(), doubled),
        strict=True,
    ):
        assert relative_error(got, expected) < 1e-6


def transposed_copy(tensor):
    return tensor.t().contiguous().t()


def squares(output):
    return output.square()


# What the layer is given, made from inputs, weight and bias, and what is done with its result.
LAYOUTS = {
    "transposed gradient": (lambda x, w, b: (x, w, b), lambda out: out.t() @ torch.arange(len(out)).to(out.dtype)),
    "part of a gradient": (lambda x, w, b: (x, w, b), lambda out: out[::2, 1::2].square()),
    "transposed inputs": (lambda x, w, b: (transposed_copy(x), w, b), squares),
    "transposed weight": (lambda x, w, b: (x, transposed_copy(w), b), squares),
    "half of the weight": (lambda x, w, b: (x, torch.cat([w, w]).chunk(2)[1], b), squares),
    "columns of the inputs": (lambda x, w, b: (torch.cat([x, x], dim=1)[:, INPUTS:], w, b), squares),
}


@needs_onednn
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout_in_memory(layout):
    inputs = make(40)
    doubled = exact(inputs)
    results = []
    for leaves, function in ((inputs, linear), (doubled, F.linear)):
        arrange, loss = LAYOUTS[layout]
        results.append(torch.autograd.grad(loss(function(*arrange(*leaves))).sum(), leaves))
    for got, expected in zip(*results, strict=True):
        assert relative_error(got, expected) < 2e-6


@needs_bfloat16
def test_bfloat16_is_as_precise_as_torchs_own():
    inputs = make(300, torch.bfloat16)
    doubled = exact(inputs)
    weights = torch.randn(300, OUTPUTS, generator=torch.Generator().manual_seed(0)).bfloat16()
    expected = F.linear(*doubled)
    expected_gradients = gradients(expected, weights, doubled)
    errors = []
    for function in (linear, F.linear):
        output = function(*inputs)
        assert output.dtype == torch.bfloat16
        got = gradients(output, weights, inputs)
        errors.append(
            [relative_error(a, b) for a, b in zip((output, *got), (expected, *expected_gradients), strict=True)]
        )
    assert all(1e-4 < ours < 1.5 * own for ours, own in zip(*errors, strict=True))


@needs_onednn
@pytest.mark.parametrize("bias", [True, False])
def test_second_derivatives(bias):
    """create_graph=True: a penalty on gradients has the gradients of plain autograd."""

    def penalty(function, leaves):
        leaves = [leaf for leaf in leaves if leaf is not None]
        first = torch.autograd.grad(function(*leaves).pow(3).mean(), leaves, create_graph=True)
        return torch.autograd.grad(sum(gradient.square().sum() for gradient in first), leaves)

    inputs = make(bias=bias)
    for got, expected in zip(penalty(linear, inputs), penalty(F.linear, exact(inputs)), strict=True):
        assert expected.abs().max() > 0
        assert relative_error(got, expected) < 1e-5


@needs_onednn
def test_a_retained_graph_can_be_used_again():
    inputs = make()
    total = linear(*inputs).square().sum()
    first = torch.autograd.grad(total, inputs, retain_graph=True)
    for one, other in zip(first, torch.autograd.grad(total, inputs), strict=True):
        assert torch.equal(one, other)


@needs_onednn
def test_inputs_and_weight_alone_are_kept_for_the_gradient():
    inputs = make()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda packed: packed):
        linear(*inputs)
    assert [tensor.data_ptr() for tensor in kept] == [inputs[0].data_ptr(), inputs[1].data_ptr()]


@needs_onednn
@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=needs_bfloat16)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("then", ["none", "gelu", "add", "mul"])
def test_what_follows_is_done_in_the_same_call(then, bias, dtype):
    inputs = make(33, dtype, bias, requires_grad=False)
    other = torch.randn(33, OUTPUTS, generator=torch.Generator().manual_seed(0)).to(dtype)
    follows = {
        "none": lambda x: x,
        "gelu": F.gelu,
        "add": lambda x: x + other.double(),
        "mul": lambda x: x * other.double(),
    }
    expected = follows[then](F.linear(*exact(inputs)))
    before = other.clone()
    with Products() as products:
        got = fused_linear(*inputs, then=then, other=other if then in ("add", "mul") else None)
    assert len(products.names) == 1
    assert products.names[0].startswith(FUSED)
    assert got.dtype == dtype
    assert relative_error(got, expected) < (1e-6 if dtype == torch.float32 else 2**-8)
    assert torch.equal(other, before)


# When it may stand in


def make_layer(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Linear(INPUTS, OUTPUTS).to(dtype)


class Subclass(nn.Linear):
    pass


def hooked():
    layer = make_layer()
    layer.register_forward_hook(lambda *_: None)
    return layer


def parametrised():
    layer = make_layer()
    parametrize.register_parametrization(layer, "weight", nn.Identity())
    return layer


@needs_onednn
@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=needs_bfloat16)])
def test_plain_layers_are_fused(dtype):
    layer, values = make_layer(dtype), torch.randn(5, INPUTS, dtype=dtype)
    assert can_fuse(values, layer)
    assert can_fuse(values, layer, layer)
    assert can_fuse(values)
    with Products() as products:
        output = fast_linear(layer, values)
    assert products.names == [FUSED]
    torch.testing.assert_close(output, layer(values))


@needs_onednn
def test_without_arithmetic_in_bfloat16_the_layer_itself_is_called(monkeypatch):
    monkeypatch.setattr("mmbert_hf.onednn.takes_bfloat16", lambda: False)
    layer, values = make_layer(torch.bfloat16), torch.randn(5, INPUTS, dtype=torch.bfloat16)
    assert not can_fuse(values, layer)
    with Products() as products:
        output = fast_linear(layer, values)
    assert FUSED not in products.names
    assert torch.equal(output, layer(values))
    assert can_fuse(values.float(), make_layer(torch.float32))


def floats(*shape, dtype=torch.float32, device="cpu"):
    return torch.ones(shape, dtype=dtype, device=device)


CASES = {
    "three dimensions": (lambda: floats(2, 5, INPUTS), make_layer, nullcontext),
    "one dimension": (lambda: floats(INPUTS), make_layer, nullcontext),
    "float64": (lambda: floats(5, INPUTS, dtype=torch.float64), lambda: make_layer(torch.float64), nullcontext),
    "a hook": (lambda: floats(5, INPUTS), hooked, nullcontext),
    "a subclass": (lambda: floats(5, INPUTS), lambda: Subclass(INPUTS, OUTPUTS), nullcontext),
    "parametrised": (lambda: floats(5, INPUTS), parametrised, nullcontext),
    "autocast": (
        lambda: floats(5, INPUTS),
        make_layer,
        lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    ),
    "oneDNN is switched off": (
        lambda: floats(5, INPUTS),
        make_layer,
        lambda: torch.backends.mkldnn.flags(enabled=False, allow_tf32=None),
    ),
    "no values": (lambda: floats(5, INPUTS, device="meta"), lambda: make_layer().to("meta"), nullcontext),
}


@pytest.mark.parametrize("name", CASES)
def test_the_layer_itself_is_called(name):
    make_values, make_one, context = CASES[name]
    values, layer = make_values(), make_one()
    with context():
        assert not can_fuse(values, layer)
        with Products() as products:
            output = fast_linear(layer, values)
        expected = layer(values)
    assert not any(product.startswith(FUSED) for product in products.names)
    assert output.dtype == expected.dtype
    assert output.device.type == "meta" or torch.equal(output, expected)


@needs_onednn
def test_one_layer_that_is_more_stops_all():
    assert not can_fuse(floats(5, INPUTS), make_layer(), hooked())


def test_dtypes_that_differ_are_left_to_the_layer_to_refuse():
    values, layer = floats(5, INPUTS, dtype=torch.bfloat16), make_layer()
    assert not can_fuse(values, layer)
    with pytest.raises(RuntimeError, match="same dtype"):
        fast_linear(layer, values)


def test_half_precision_without_an_exponent_is_not_fused():
    assert not can_fuse(floats(5, INPUTS, dtype=torch.float16), make_layer(torch.float16))


def test_under_function_transforms_the_layer_itself_is_called():
    layer, values = make_layer(), torch.randn(3, 5, INPUTS)
    answers = []

    def call(one):
        answers.append(can_fuse(one, layer))
        return fast_linear(layer, one)

    torch.testing.assert_close(torch.func.vmap(call)(values), layer(values))
    assert answers == [False]
