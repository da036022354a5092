"""The gated feed-forward block (GeGLU, arXiv 2002.05202): most of an encoder's arithmetic.

Design decisions, both for processors without an accelerator, where passes over memory cost as much as arithmetic:

- In training, the gate is one function that keeps the projection alone and computes the activation again for the
  gradient, in pieces that stay in the cache.
- In inference, tokens go through the whole block a piece at a time, and activation and product are done inside the
  linear layers (`mmbert_hf.onednn`). Memory is bounded by the piece, not by the batch.

Shape legend: T tokens or (B, L) batch and length, E hidden size, I intermediate size.
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import ModernBertConfig
from transformers.activations import ACT2FN

from mmbert_hf.initialization import linear
from mmbert_hf.onednn import can_fuse, fused_linear
from mmbert_hf.shortcuts import is_traced

__all__ = ["MMBertMLP", "geglu"]

# Tokens in a piece: large enough for matrix products at full speed, small enough for the cache.
PIECE_TOKENS = 1024
GATE_PIECE_TOKENS = 128


class MMBertMLP(nn.Module):
    """Gated feed-forward block, Wo(gelu(x) * gate).

    Args:
        config: Sizes, activation and dropout.
    """

    def __init__(self, config: ModernBertConfig) -> None:
        super().__init__()
        self.Wi = linear(config.hidden_size, 2 * config.intermediate_size, bias=config.mlp_bias, role="input")
        self.act = ACT2FN[config.hidden_activation]
        self.drop = nn.Dropout(config.mlp_dropout)
        self.Wo = linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias, role="output")
        self.is_geglu = config.hidden_activation == "gelu"

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Transform each token of `hidden_states`, [T, E] or [B, L, E]; same shape."""
        drops = self.training and self.drop.p > 0
        if self.is_geglu and not drops and hidden_states.ndim == 2 and can_fuse(hidden_states, self.Wi, self.Wo):
            return self._in_pieces(hidden_states)
        projected = self.Wi(hidden_states)
        if self.is_geglu and projected.device.type == "cpu" and not is_traced(projected):
            return self.Wo(self.drop(geglu(projected)))
        values, gate = projected.chunk(2, dim=-1)
        return self.Wo(self.drop(self.act(values) * gate))

    def _in_pieces(self, hidden_TE: torch.Tensor) -> torch.Tensor:
        value_weight, gate_weight = self.Wi.weight.chunk(2)
        value_bias, gate_bias = (None, None) if self.Wi.bias is None else self.Wi.bias.chunk(2)
        out = torch.empty_like(hidden_TE)
        for piece, out_piece in zip(hidden_TE.split(PIECE_TOKENS), out.split(PIECE_TOKENS), strict=True):
            values = fused_linear(piece, value_weight, value_bias, then="gelu")
            gated = fused_linear(piece, gate_weight, gate_bias, then="mul", other=values)
            out_piece.copy_(fused_linear(gated, self.Wo.weight, self.Wo.bias))
        return out


def geglu(projected: torch.Tensor) -> torch.Tensor:
    """gelu(first half) * second half, with the exact (erf) GELU.

    Args:
        projected: [..., 2 I], any float dtype.

    Returns:
        [..., I]. Its gradient keeps `projected` and nothing else.

    Example:
        >>> geglu(torch.tensor([[0.0, 100.0, 3.0, 2.0]]))
        tensor([[  0., 200.]])
    """
    return _GeGLU.apply(projected)


class _GeGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, projected: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(projected)
        flat = projected.reshape(-1, projected.shape[-1])
        out = projected.new_empty((len(flat), flat.shape[1] // 2))
        for piece, out_piece in zip(flat.split(GATE_PIECE_TOKENS), out.split(GATE_PIECE_TOKENS), strict=True):
            values, gate = piece.chunk(2, dim=-1)
            torch.mul(F.gelu(values), gate, out=out_piece)
        return out.view(*projected.shape[:-1], out.shape[1])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        (projected,) = ctx.saved_tensors
        flat = projected.reshape(-1, projected.shape[-1])
        out = torch.empty_like(flat)
        pieces = (flat.split(GATE_PIECE_TOKENS), grad.reshape(len(flat), grad.shape[-1]).split(GATE_PIECE_TOKENS))
        for piece, grad_piece, out_piece in zip(*pieces, out.split(GATE_PIECE_TOKENS), strict=True):
            values, gate = piece.chunk(2, dim=-1)
            out_values, out_gate = out_piece.chunk(2, dim=-1)
            out_values.copy_(torch.ops.aten.gelu_backward(grad_piece * gate, values))
            torch.mul(F.gelu(values), grad_piece, out=out_gate)
        return out.view_as(projected)
