"""Rotary position embedding (RoFormer, arXiv 2104.09864): pairs of a head turn by angles that grow with position.

Design decisions:

- Angles are computed once per forward and kind of layer, at half the head size, and query and key are rotated
  together. The result is bit for bit ModernBERT's.
- Frequencies stay float32 whatever the model is cast to.

Shape legend: B batch, L length in tokens, H heads, D head size, D2 = D / 2.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import ModernBertConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

__all__ = ["MMBertRotaryEmbedding", "apply_rotary", "rotary_frequencies", "rotate", "rotate_into"]

# Tokens that are rotated at a time on a CPU: what stays in the cache.
PIECE_TOKENS = 256


def rotary_frequencies(config: ModernBertConfig, layer_type: str) -> tuple[torch.Tensor, float]:
    """Angular frequencies of the rotations (eq. 15).

    Args:
        config: Gives the RoPE parameters and the head size.
        layer_type: ``"full_attention"`` or ``"sliding_attention"``.

    Returns:
        theta^(-2 i / D) for i in 0..D/2-1, float32 [D2], and a factor for cosine and sine (1 for the default type).

    Example:
        >>> from mmbert_hf.configuration import MMBertConfig
        >>> config = MMBertConfig(hidden_size=8, num_attention_heads=2, global_rope_theta=10_000)
        >>> rotary_frequencies(config, "full_attention")
        (tensor([1.0000, 0.0100]), 1.0)
    """
    parameters = config.rope_parameters[layer_type]
    if parameters["rope_type"] != "default":
        return ROPE_INIT_FUNCTIONS[parameters["rope_type"]](config, layer_type=layer_type)
    head_size = config.hidden_size // config.num_attention_heads
    exponents = torch.arange(0, head_size, 2, dtype=torch.float32) / head_size
    return 1.0 / parameters["rope_theta"] ** exponents, 1.0


def apply_rotary(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate pairs (i, i + D/2) of each head by the angles of their position, in float32 or better.

    Args:
        states: Queries, keys or both, [B, L, ..., H, D].
        cos: Cosine of the angles, [B or 1, L, D2].
        sin: Sine of the angles, same shape.

    Returns:
        The rotated states, shape and dtype of `states`.

    Example:
        >>> quarter = torch.tensor([[[0.0]]]), torch.tensor([[[1.0]]])
        >>> apply_rotary(torch.tensor([[[[1.0, 2.0]]]]), *quarter)
        tensor([[[[-2.,  1.]]]])
    """
    broadcast = (*cos.shape[:2], *[1] * (states.ndim - 3), cos.shape[-1])
    cos, sin = cos.view(broadcast), sin.view(broadcast)
    first, second = states.to(torch.promote_types(states.dtype, torch.float32)).chunk(2, dim=-1)
    rotated = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
    return rotated.to(states.dtype)


def rotate_into(out: torch.Tensor, qkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> None:
    """Rotate queries and keys and copy values, from `qkv` to `out`, in float32 or better. No gradients.

    Args:
        out: [T, 3, H, D]; may be `qkv` itself.
        qkv: Queries, keys and values [T, 3, H, D].
        cos: Cosine of the angles, [T, D2], float32 or better.
        sin: Sine of the angles, same.

    Example:
        >>> qkv = torch.tensor([1.0, 2.0]).expand(1, 3, 1, 2).clone()
        >>> rotate_into(qkv, qkv, torch.tensor([[0.0]]), torch.tensor([[1.0]]))
        >>> qkv[0, :, 0]
        tensor([[-2.,  1.],
                [-2.,  1.],
                [ 1.,  2.]])
    """
    step = PIECE_TOKENS if qkv.device.type == "cpu" else max(1, len(qkv))
    for piece, out_piece, cos_piece, sin_piece in zip(*(x.split(step) for x in (qkv, out, cos, sin)), strict=True):
        _rotate_piece(out_piece[:, :2], piece[:, :2], cos_piece[:, None, None], sin_piece[:, None, None], out is qkv)
    if out is not qkv:
        out[:, 2].copy_(qkv[:, 2])


def _rotate_piece(
    out: torch.Tensor, states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, in_place: bool
) -> None:
    source = states.to(cos.dtype, copy=in_place)
    wide_cos = torch.cat((cos, cos), dim=-1)  # one product over whole heads is faster than two over halves
    rotated = torch.mul(source, wide_cos, out=out) if out.dtype == cos.dtype else source * wide_cos
    first, second = source.chunk(2, dim=-1)
    rotated_first, rotated_second = rotated.chunk(2, dim=-1)
    rotated_first.addcmul_(second, sin, value=-1)
    rotated_second.addcmul_(first, sin)
    if rotated is not out:
        out.copy_(rotated)


def rotate(qkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate queries and keys together; values pass.

    Args:
        qkv: Queries, keys and values [T, 3, H, D].
        cos: Cosine of the angles, [T, D2].
        sin: Sine of the angles, same.

    Returns:
        [T, 3, H, D], dtype of `qkv`.

    Example:
        >>> quarter = torch.tensor([[0.0]]), torch.tensor([[1.0]])
        >>> rotate(torch.tensor([1.0, 2.0]).expand(1, 3, 1, 2).clone(), *quarter).view(3, 2)
        tensor([[-2.,  1.],
                [-2.,  1.],
                [ 1.,  2.]])
    """
    return _Rotate.apply(qkv, cos, sin)


class _Rotate(torch.autograd.Function):
    """The gradient of a rotation is the rotation back, so nothing but the angles is kept."""

    @staticmethod
    def forward(ctx: Any, qkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(cos, sin)
        out = torch.empty_like(qkv)
        rotate_into(out, qkv, cos, sin)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        out = torch.empty_like(grad)
        rotate_into(out, grad, cos, -sin)
        return out, None, None


class MMBertRotaryEmbedding(nn.Module):
    """Cosine and sine of the rotation angles, for each kind of layer.

    The frequencies stay float32 when the model is cast: in bfloat16 they are off by up to 0.4 %, which at position
    8000 is several whole turns.

    Args:
        config: Gives the RoPE parameters, the kinds of layer and the head size.

    Example:
        >>> from mmbert_hf.configuration import MMBertConfig
        >>> rotary = MMBertRotaryEmbedding(MMBertConfig(hidden_size=8, num_attention_heads=2))
        >>> cos, sin = rotary(torch.tensor([[0, 1]]), "full_attention", torch.float32)
        >>> cos.shape
        torch.Size([1, 2, 2])
        >>> cos[0, 0].tolist(), sin[0, 0].tolist()
        ([1.0, 1.0], [0.0, 0.0])
    """

    def __init__(self, config: ModernBertConfig) -> None:
        super().__init__()
        self.layer_types = sorted(set(config.layer_types))
        self.scaling: dict[str, float] = {}
        for layer_type in self.layer_types:
            frequencies, self.scaling[layer_type] = rotary_frequencies(config, layer_type)
            self.register_buffer(f"{layer_type}_inv_freq", frequencies, persistent=False)

    def set_frequencies(self, config: ModernBertConfig) -> None:
        """Recompute the frequencies in place (the buffers stay the same tensors) from `config`."""
        for layer_type in self.layer_types:
            frequencies, self.scaling[layer_type] = rotary_frequencies(config, layer_type)
            getattr(self, f"{layer_type}_inv_freq").copy_(frequencies)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], *args: Any, **kwargs: Any) -> nn.Module:
        before = dict(self.named_buffers(recurse=False))
        super()._apply(fn, *args, **kwargs)
        for name, after in list(self.named_buffers(recurse=False)):
            if after.dtype != torch.float32:
                self.register_buffer(name, before[name].to(after.device), persistent=False)
        return self

    @torch.no_grad()
    def forward(
        self, position_ids: torch.Tensor, layer_type: str, dtype: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosine and sine [B or 1, L, D2] in `dtype` at `position_ids` [B or 1, L]; angles are float32."""
        frequencies = getattr(self, f"{layer_type}_inv_freq").to(position_ids.device, torch.float32)
        angles = position_ids[..., None].float() * frequencies
        scaling = self.scaling[layer_type]
        return (angles.cos() * scaling).to(dtype), (angles.sin() * scaling).to(dtype)
