"""Attention over padded rows, with dense masks: the path for what the packed one cannot do.

It serves ``attn_implementation`` "eager" and "flex_attention" and every registered name that is not known to
`mmbert_hf.attention.packed`, attention weights, masks of token pairs, tracing and function transforms.

Shape legend: B batch, L length in tokens, H heads, D head size.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from mmbert_hf.attention.masks import LayerMask
from mmbert_hf.rotary import apply_rotary

__all__ = ["PaddedRows", "eager_attention", "moved"]


@dataclass(frozen=True)
class PaddedRows:
    """What all layers share when they run on padded rows.

    Attributes:
        masks: Mask of each kind of layer, from `attention_masks`.
        rotations: Cosine and sine [B or 1, L, D2] of each kind of layer.
        options: Handed to the attention implementation.
    """

    masks: Mapping[str, LayerMask]
    rotations: Mapping[str, tuple[torch.Tensor, torch.Tensor]]
    options: Mapping[str, Any] = field(default_factory=dict)

    def attend(self, module: Any, qkv: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Rotate and mix, with the implementation that the configuration names.

        Args:
            module: The attention layer: gives the implementation, the kind of layer, the window and the dropout.
            qkv: Queries, keys and values [B, L, 3, H, D].

        Returns:
            The mixed values [B, L, H, D], and the weights [B, H, L, L] where the implementation gives them.
        """
        query_key = apply_rotary(qkv[:, :, :2], *self.rotations[module.attention_type])
        query, key = query_key.unbind(dim=2)
        implementation = ALL_ATTENTION_FUNCTIONS.get_interface(module.config._attn_implementation, eager_attention)
        return implementation(
            module,
            query.transpose(1, 2),
            key.transpose(1, 2),
            qkv[:, :, 2].transpose(1, 2),
            self.masks[module.attention_type],
            dropout=module.attention_dropout if module.training else 0.0,
            scaling=module.head_size**-0.5,
            sliding_window=module.sliding_window,
            deterministic=module.config.deterministic_flash_attn,
            **self.options,
        )

    def to(self, device: torch.device | str | int, non_blocking: bool = False, **_: object) -> "PaddedRows":
        """Move to a device; accelerate calls this where layers lie on several."""
        masks, rotations = (moved(values, device, non_blocking) for values in (self.masks, self.rotations))
        return replace(self, masks=masks, rotations=rotations)


def moved(values: Any, device: torch.device | str | int, non_blocking: bool = False) -> Any:
    """Move the tensors in a value, also inside mappings and tuples, to a device; what cannot move stays."""
    if isinstance(values, Mapping):
        return {name: moved(value, device, non_blocking) for name, value in values.items()}
    if isinstance(values, tuple):
        return tuple(moved(value, device, non_blocking) for value in values)
    return values.to(device, non_blocking=non_blocking) if isinstance(values, torch.Tensor) else values


def eager_attention(
    module: nn.Module,
    query_BHLD: torch.Tensor,
    key_BHLD: torch.Tensor,
    value_BHLD: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """softmax(q k^T * scaling + mask) v, written out; the only implementation that also returns the weights.

    Args:
        module: The attention layer, for its training flag.
        query_BHLD: Queries.
        key_BHLD: Keys.
        value_BHLD: Values.
        attention_mask: Bool (True: may attend) or floats to add, [B or 1, 1 or H, L, L], or None.
        scaling: Factor on the scores, 1 / sqrt(D).
        dropout: Probability that a weight is dropped in training.
        **kwargs: What other implementations take.

    Returns:
        The mixed values [B, L, H, D] and the weights [B, H, L, L].
    """
    scores_BHLL = query_BHLD @ key_BHLD.transpose(-2, -1) * scaling
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        scores_BHLL = scores_BHLL.masked_fill(~attention_mask, torch.finfo(scores_BHLL.dtype).min)
    elif attention_mask is not None:
        scores_BHLL = scores_BHLL + attention_mask
    precision = torch.promote_types(query_BHLD.dtype, torch.float32)
    weights_BHLL = scores_BHLL.softmax(dim=-1, dtype=precision).to(query_BHLD.dtype)
    weights_BHLL = nn.functional.dropout(weights_BHLL, p=dropout, training=module.training)
    return (weights_BHLL @ value_BHLD).transpose(1, 2).contiguous(), weights_BHLL
