"""The gated feed-forward block, whole and in pieces, against plain autograd."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from mmbert_hf import feed_forward
from mmbert_hf.configuration import MMBertConfig
from mmbert_hf.feed_forward import MMBertMLP, geglu
from mmbert_hf.onednn import _is_built_in, takes_bfloat16

GATE_PIECE = feed_forward.GATE_PIECE_TOKENS
PIECE = 8
SIZES = {
    "vocab_size": 120,
    "hidden_size": 24,
    "intermediate_size": 36,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}

needs_onednn = pytest.mark.skipif(
    not _is_built_in(), reason="oneDNN's linear layers are part of PyTorch for x86 processors alone"
)


class FusedCalls(TorchDispatchMode):
    """Notes how many rows go into each call of oneDNN's linear layers."""

    def __init__(self):
        super().__init__()
        self.rows = []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        if operator.name().startswith("mkldnn::_linear"):
            self.rows.append(len(args[0]))
        return operator(*args, **(kwargs or {}))


def make_pair(*shape, dtype=torch.float64, seed=0):
    values = torch.randn(2, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2
    return [one.to(dtype).requires_grad_() for one in values]


def plain(values, gate):
    return F.gelu(values) * gate


def make_mlp(seed=0, **options):
    """A block with weights that matter, also in its biases."""
    torch.manual_seed(seed)
    mlp = MMBertMLP(MMBertConfig(**SIZES, **options))
    for parameter in mlp.parameters():
        nn.init.normal_(parameter, std=0.4)
    return mlp


def make_hidden(tokens, dtype=torch.float32):
    return torch.randn(tokens, 24, generator=torch.Generator().manual_seed(tokens)).to(dtype)


def plain_mlp(mlp, hidden, activation=F.gelu):
    """By the modules themselves."""
    values, gate = mlp.Wi(hidden).chunk(2, dim=-1)
    return mlp.Wo(activation(values) * gate)


# The gate


@pytest.mark.parametrize("tokens", [0, 1, GATE_PIECE - 1, GATE_PIECE, GATE_PIECE + 1, 2 * GATE_PIECE + 3])
def test_values_and_gradients_of_the_gate(tokens):
    pair = make_pair(tokens, 3)
    weights = make_pair(tokens, 3, seed=1)[0].detach()
    results = []
    for function in (geglu, plain):
        output = function(*pair)
        results.append((output, *torch.autograd.grad((output * weights).sum(), pair)))
    for got, expected in zip(*results, strict=True):
        assert got.shape == (tokens, 3)
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-13)


def test_gradients_of_the_gate_are_those_of_finite_differences(monkeypatch):
    monkeypatch.setattr(feed_forward, "GATE_PIECE_TOKENS", 2)
    assert torch.autograd.gradcheck(geglu, make_pair(5, 3))


@pytest.mark.parametrize("frozen", [0, 1])
def test_one_side_may_be_frozen(frozen):
    pair = make_pair(5, 3)
    pair[frozen].requires_grad_(False)
    geglu(*pair).square().sum().backward()
    (expected,) = torch.autograd.grad(plain(*pair).square().sum(), pair[1 - frozen])
    assert pair[frozen].grad is None
    torch.testing.assert_close(pair[1 - frozen].grad, expected, rtol=0, atol=1e-13)


def test_halves_of_a_projection_in_rows_of_a_batch():
    """What the padded path has: views into one product, three dimensions, and a sum's expanded gradient."""
    projection = torch.randn(
        3, 5, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True
    )
    results = []
    for function in (geglu, plain):
        output = function(*projection.chunk(2, dim=-1))
        results.append((output, *torch.autograd.grad(output.sum(), projection)))
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-13)


def test_the_gate_keeps_its_inputs_and_nothing_else():
    pair = make_pair(2 * GATE_PIECE, 3)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda packed: packed):
        geglu(*pair)
    assert [tensor.data_ptr() for tensor in kept] == [tensor.data_ptr() for tensor in pair]


def test_the_gate_leaves_its_inputs_and_gradient_as_they_were():
    pair = make_pair(7, 3)
    before = [one.detach().clone() for one in pair]
    gradient = torch.ones(7, 3, dtype=torch.float64)
    geglu(*pair).backward(gradient)
    assert (gradient == 1).all()
    assert all(torch.equal(one, old) for one, old in zip(pair, before, strict=True))


def test_the_gate_in_bfloat16_is_as_precise_as_plain():
    pair = make_pair(300, 16, dtype=torch.bfloat16)
    exact = [one.detach().double().requires_grad_() for one in pair]
    weights = make_pair(300, 16, seed=1)[0].detach().bfloat16()
    results = []
    for function, inputs in ((geglu, pair), (plain, pair), (plain, exact)):
        output = function(*inputs)
        results.append((output, *torch.autograd.grad((output * weights).sum(), inputs)))
    for got, own, expected in zip(*results, strict=True):
        errors = [(one.double() - expected).square().mean().sqrt().item() for one in (got, own)]
        assert got.dtype == torch.bfloat16
        assert 0 < errors[0] < 1.2 * errors[1]


def test_second_derivatives_of_the_gate_are_refused():
    pair = make_pair(5, 3)
    gradient, _ = torch.autograd.grad(geglu(*pair).square().sum(), pair, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


# The block


@needs_onednn
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("tokens", [0, 1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE + 3])
def test_in_pieces_without_gradients(monkeypatch, tokens, training, bias):
    monkeypatch.setattr(feed_forward, "PIECE_TOKENS", PIECE)
    mlp, hidden = make_mlp(mlp_bias=bias).train(training), make_hidden(tokens)
    expected = plain_mlp(mlp.double(), hidden.double())
    mlp.float()
    with torch.no_grad(), FusedCalls() as calls:
        output = mlp(hidden)
    torch.testing.assert_close(output.double(), expected, rtol=0, atol=1e-5)
    pieces = [len(piece) for piece in hidden.split(PIECE)]
    assert calls.rows == [rows for rows in pieces for _ in range(3)]
    assert not output.requires_grad


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("tokens", [0, 1, GATE_PIECE + 1])
def test_with_gradients(tokens, bias):
    mlp, hidden = make_mlp(mlp_bias=bias).train(), make_hidden(tokens).requires_grad_()
    weights = torch.randn(tokens, 24, generator=torch.Generator().manual_seed(1))
    results = []
    for call in (mlp, lambda x: plain_mlp(mlp, x)):
        output = call(hidden)
        leaves = [hidden, *mlp.parameters()]
        results.append((output, *torch.autograd.grad((output * weights).sum(), leaves)))
    assert len(results[0]) == 2 + (4 if bias else 2)
    for got, expected in zip(*results, strict=True):
        scale = expected.abs().max().item() if expected.numel() else 1.0
        torch.testing.assert_close(got, expected, rtol=0, atol=2e-6 * max(scale, 1.0))


@needs_onednn
@pytest.mark.skipif(not takes_bfloat16(), reason="this processor has no arithmetic in bfloat16")
def test_bfloat16_in_pieces_is_as_precise_as_plain(monkeypatch):
    monkeypatch.setattr(feed_forward, "PIECE_TOKENS", 64)
    mlp, hidden = make_mlp().bfloat16(), make_hidden(300, torch.bfloat16)
    with torch.no_grad(), FusedCalls() as calls:
        output = mlp(hidden)
    with torch.no_grad():
        own = plain_mlp(mlp, hidden)
        expected = plain_mlp(mlp.double(), hidden.double())
    assert len(calls.rows) == 15
    assert output.dtype == torch.bfloat16
    errors = [(one.double() - expected).square().mean().sqrt().item() for one in (output, own)]
    assert 0 < errors[0] < 1.2 * errors[1]


@pytest.mark.parametrize("recorded", [True, False])
def test_other_activations_are_taken_as_they_are(monkeypatch, recorded):
    monkeypatch.setattr(feed_forward, "geglu", lambda *_: pytest.fail("this is not the gate of the activation"))
    mlp, hidden = make_mlp(hidden_activation="silu", mlp_bias=True), make_hidden(20)
    with torch.set_grad_enabled(recorded):
        torch.testing.assert_close(mlp(hidden), plain_mlp(mlp, hidden, F.silu), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("hooked", ["Wi", "Wo"])
def test_hooked_layers_are_called(hooked):
    mlp, hidden = make_mlp(mlp_bias=True), make_hidden(20)
    calls = []
    getattr(mlp, hooked).register_forward_hook(lambda *_: calls.append(hooked))
    for recorded in (True, False):
        with torch.set_grad_enabled(recorded):
            output = mlp(hidden)
        assert calls == [hooked] * (1 if recorded else 2)
        torch.testing.assert_close(output.detach(), plain_output(mlp, hidden, calls), rtol=1e-5, atol=1e-5)


def plain_output(mlp, hidden, calls):
    """`plain_mlp`, whose own calls do not count."""
    before = len(calls)
    output = plain_mlp(mlp, hidden).detach()
    del calls[before:]
    return output


@pytest.mark.parametrize("recorded", [True, False])
def test_dropout_between_gate_and_output(monkeypatch, recorded):
    monkeypatch.setattr(feed_forward, "PIECE_TOKENS", PIECE)
    mlp, hidden = make_mlp(mlp_dropout=0.5).train(), make_hidden(40)
    seen = []
    mlp.drop.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
    with torch.set_grad_enabled(recorded):
        assert not torch.equal(mlp(hidden), mlp(hidden))
        gated, dropped = seen[0]
        values, gate = mlp.Wi(hidden).chunk(2, dim=-1)
        torch.testing.assert_close(gated, plain(values, gate), rtol=1e-5, atol=1e-5)
        share = (dropped == 0).float().mean().item()
        assert share == pytest.approx(0.5, abs=0.1)
        assert torch.equal(mlp.eval()(hidden), mlp(hidden))
        torch.testing.assert_close(mlp(hidden), plain_mlp(mlp, hidden), rtol=1e-5, atol=1e-5)


def test_rows_of_a_batch():
    mlp = make_mlp()
    hidden = make_hidden(20).view(4, 5, 24)
    for recorded in (True, False):
        with torch.set_grad_enabled(recorded):
            torch.testing.assert_close(mlp(hidden), plain_mlp(mlp, hidden), rtol=1e-5, atol=1e-5)


def test_under_autocast_products_are_taken_in_bfloat16():
    mlp, hidden = make_mlp(), make_hidden(20)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for recorded in (True, False):
            with torch.set_grad_enabled(recorded), FusedCalls() as calls:
                output = mlp(hidden)
            assert output.dtype == torch.bfloat16
            torch.testing.assert_close(output, plain_mlp(mlp, hidden), rtol=2**-7, atol=0.05)
            assert calls.rows == []
