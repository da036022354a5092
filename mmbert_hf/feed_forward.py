"""The gated feed-forward block (GeGLU, arXiv 2002.05202): most of an encoder's arithmetic.

Design decisions, both for processors without an accelerator, where passes over memory cost as much as arithmetic:

- In training, the gate is one function that keeps the projection alone and computes the activation again for the
  gradient, in pieces that stay in the cache.
- In inference, tokens go through the whole block a piece at a time, and activation and product are done inside the
  linear layers (`mmbert_hf.onednn`). Memory is bounded by the piece, not by the batch.

Shape legend: T tokens or (B, L) batch and length, E hidden size, I intermediate size.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers import ModernBertConfig
from transformers.activations import ACT2FN

from mmbert_hf import initialization
from mmbert_hf.onednn import PIECE_TOKENS, can_fuse, fast_linear, fused_linear, linear
from mmbert_hf.shortcuts import is_traced

__all__ = ["MMBertMLP", "geglu"]

GATE_PIECE_TOKENS = 512


class MMBertMLP(nn.Module):
    """Gated feed-forward block, Wo(gelu(x) * gate).

    Args:
        config: Sizes, activation and dropout.
    """

    def __init__(self, config: ModernBertConfig) -> None:
        super().__init__()
        self.Wi = initialization.linear(
            config.hidden_size, 2 * config.intermediate_size, bias=config.mlp_bias, role="input"
        )
        self.act = ACT2FN[config.hidden_activation]
        self.drop = nn.Dropout(config.mlp_dropout)
        self.Wo = initialization.linear(
            config.intermediate_size, config.hidden_size, bias=config.mlp_bias, role="output"
        )
        self.is_geglu = config.hidden_activation == "gelu"

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Transform each token of `hidden_states`, [T, E] or [B, L, E]; same shape."""
        fuses = self.is_geglu and can_fuse(hidden_states, self.Wi)
        drops = self.training and self.drop.p > 0
        if fuses and not drops and not torch.is_grad_enabled() and can_fuse(hidden_states, self.Wo):
            return self._in_pieces(hidden_states)
        if fuses:
            gated = geglu(*(linear(hidden_states, weight, bias) for weight, bias in self._halves()))
        else:
            values, gate = self.Wi(hidden_states).chunk(2, dim=-1)
            is_cheap = self.is_geglu and values.device.type == "cpu" and not is_traced(values)
            gated = geglu(values, gate) if is_cheap else self.act(values) * gate
        return fast_linear(self.Wo, self.drop(gated))

    def _halves(self) -> list[tuple[torch.Tensor, torch.Tensor | None]]:
        """Weight and bias of the values and of the gate: two products over half the columns each are faster than one."""
        biases = (None, None) if self.Wi.bias is None else self.Wi.bias.chunk(2)
        return list(zip(self.Wi.weight.chunk(2), biases, strict=True))

    def _in_pieces(self, hidden_TE: torch.Tensor) -> torch.Tensor:
        (value_weight, value_bias), (gate_weight, gate_bias) = self._halves()
        out = torch.empty_like(hidden_TE)
        for piece, out_piece in zip(hidden_TE.split(PIECE_TOKENS), out.split(PIECE_TOKENS), strict=True):
            values = fused_linear(piece, value_weight, value_bias, then="gelu")
            gated = fused_linear(piece, gate_weight, gate_bias, then="mul", other=values)
            out_piece.copy_(fused_linear(gated, self.Wo.weight, self.Wo.bias))
        return out


def geglu(values_TI: torch.Tensor, gate_TI: torch.Tensor) -> torch.Tensor:
    """gelu(values) * gate, with the exact (erf) GELU.

    Args:
        values_TI: [T, I], or any other shape; any float dtype.
        gate_TI: Same.

    Returns:
        The same shape. Its gradient keeps the two inputs and nothing else.

    Example:
        >>> geglu(torch.tensor([[0.0, 100.0]]), torch.tensor([[3.0, 2.0]]))
        tensor([[  0., 200.]])
    """
    return _GeGLU.apply(values_TI, gate_TI)


class _GeGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(values, gate)
        out = torch.empty_like(values)
        for values_piece, gate_piece, out_piece in _pieces(values, gate, out):
            torch.ops.aten.gelu.out(values_piece, out=out_piece).mul_(gate_piece)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        grads = torch.empty_like(grad), torch.empty_like(grad)
        for values, gate, piece, grad_values, grad_gate in _pieces(*ctx.saved_tensors, grad, *grads):
            torch.mul(piece, gate, out=grad_gate)
            torch.ops.aten.gelu_backward.grad_input(grad_gate, values, grad_input=grad_values)
            torch.ops.aten.gelu.out(values, out=grad_gate).mul_(piece)
        return grads


def _pieces(*tensors: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    return zip(*(tensor.split(GATE_PIECE_TOKENS) for tensor in tensors), strict=True)
