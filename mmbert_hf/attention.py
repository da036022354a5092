"""Attention: the masks of global and local layers, the kernel, and the module around it.

Design decisions:

- The kernel sits behind one function, `attend`, and the masks behind one, `attention_masks`. Both go through
  transformers' registries, so ``attn_implementation`` ("eager", "sdpa", "flash_attention_2", "flex_attention", or a
  registered name) means what it means for ModernBERT.
- Two places depart from ModernBERT: a 4-D attention mask keeps the window of the local layers (there it lifts it), and
  dropout after attention can be set apart from dropout of the attention weights (``attention_output_dropout``).
- Rows that hold padding only give finite numbers. Packed rows need per-row masks: ``position_ids`` alone do not keep
  documents apart.

Shape legend: B batch, L length in tokens, E hidden size, H heads, D head size.
"""

from collections.abc import Mapping
from typing import Any, TypeAlias

import torch
from torch import nn
from transformers import ModernBertConfig
from transformers.masking_utils import create_bidirectional_mask, create_bidirectional_sliding_window_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from mmbert_hf.configuration import GLOBAL, LOCAL
from mmbert_hf.initialization import linear
from mmbert_hf.rotary import apply_rotary

__all__ = ["LayerMask", "MMBertAttention", "attend", "attention_masks", "eager_attention"]

# None (no restriction), bool (True: may attend) or additive floats, [B or 1, 1 or H, L, L]; flex attention has its own.
LayerMask: TypeAlias = Any


def attention_masks(
    config: ModernBertConfig,
    hidden_states: torch.Tensor,
    attention_mask: torch.Tensor | Mapping[str, LayerMask] | None,
) -> Mapping[str, LayerMask]:
    """Masks of the global and the local layers, in the form that the attention implementation takes.

    A token of a local layer attends to the ``local_attention // 2`` tokens on either side and to itself.

    Args:
        config: Gives the window and the attention implementation.
        hidden_states: Embedded tokens [B, L, E], for shape, dtype and device.
        attention_mask: One of: None; [B, L], nonzero at real tokens; [B or 1, 1 or H, L, L], bool (True: may attend) or
            floats to add to the scores, to which the window of the local layers is added; or a mapping from layer type
            to mask, which is taken as it is.

    Returns:
        A mask, or None for no restriction, per layer type.

    Raises:
        ValueError: For a mask of another shape, or of a shape that the implementation cannot take.

    Example:
        >>> from mmbert_hf.configuration import MMBertConfig
        >>> config = MMBertConfig(num_hidden_layers=2, local_attention=2, attn_implementation="sdpa")
        >>> masks = attention_masks(config, torch.zeros(1, 4, config.hidden_size), torch.tensor([[1, 1, 1, 0]]))
        >>> masks["sliding_attention"][0, 0].int()
        tensor([[1, 1, 0, 0],
                [1, 1, 1, 0],
                [0, 1, 1, 0],
                [0, 0, 1, 0]], dtype=torch.int32)
    """
    if isinstance(attention_mask, Mapping):
        return attention_mask
    length = hidden_states.shape[1]
    if attention_mask is None or attention_mask.ndim == 2:
        if attention_mask is not None and attention_mask.shape != hidden_states.shape[:2]:
            raise ValueError(
                f"attention_mask is {tuple(attention_mask.shape)} and the input {tuple(hidden_states.shape[:2])} "
                "(batch, length); they must be the same"
            )
        arguments = {"config": config, "inputs_embeds": hidden_states, "attention_mask": attention_mask}
        return {
            GLOBAL: create_bidirectional_mask(**arguments),
            LOCAL: create_bidirectional_sliding_window_mask(**arguments),
        }
    if attention_mask.ndim != 4 or attention_mask.shape[-2:] != (length, length):
        raise ValueError(
            f"attention_mask is {tuple(attention_mask.shape)}; it must be [batch, length], or [batch or 1, heads or 1, "
            f"length, length] with length {length}"
        )
    if "flash" in (config._attn_implementation or ""):
        raise ValueError(
            f"attention_mask is {tuple(attention_mask.shape)} and attention {config._attn_implementation!r}, which "
            "takes no mask of token pairs; pass [batch, length], or load with attn_implementation='sdpa'"
        )
    return {GLOBAL: attention_mask, LOCAL: _keep_window(attention_mask, config.local_attention // 2)}


def _keep_window(mask_BHLL: torch.Tensor, reach: int) -> torch.Tensor:
    positions = torch.arange(mask_BHLL.shape[-1], device=mask_BHLL.device)
    outside = (positions[:, None] - positions[None, :]).abs() > reach
    blocked = False if mask_BHLL.dtype == torch.bool else torch.finfo(mask_BHLL.dtype).min
    return mask_BHLL.masked_fill(outside, blocked)


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


def attend(
    module: "MMBertAttention",
    query_BHLD: torch.Tensor,
    key_BHLD: torch.Tensor,
    value_BHLD: torch.Tensor,
    attention_mask: LayerMask,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Mix values with the attention implementation that the configuration names.

    Args:
        module: The attention layer: gives the implementation, the window and the dropout.
        query_BHLD: Rotated queries.
        key_BHLD: Rotated keys.
        value_BHLD: Values.
        attention_mask: This layer's mask from `attention_masks`.
        **kwargs: Handed to the implementation; flash attention takes ``cu_seq_lens_q`` and its like here.

    Returns:
        The mixed values [B, L, H, D], and the weights [B, H, L, L] where the implementation gives them.
    """
    implementation = ALL_ATTENTION_FUNCTIONS.get_interface(module.config._attn_implementation, eager_attention)
    return implementation(
        module,
        query_BHLD,
        key_BHLD,
        value_BHLD,
        attention_mask,
        dropout=module.attention_dropout if module.training else 0.0,
        scaling=module.head_size**-0.5,
        sliding_window=module.sliding_window,
        deterministic=module.config.deterministic_flash_attn,
        **kwargs,
    )


class MMBertAttention(nn.Module):
    """Multi-head self-attention with rotary positions, over everything or over a window."""

    def __init__(self, config: ModernBertConfig, layer_index: int) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_index  # this name is read by attention implementations of transformers
        self.is_causal = False  # likewise
        self.head_size = config.hidden_size // config.num_attention_heads
        self.attention_dropout = config.attention_dropout
        # Attention functions count the token itself: to reach 64 tokens on either side is a window of 65 to them.
        is_local = config.layer_types[layer_index] == LOCAL
        self.sliding_window = config.local_attention // 2 + 1 if is_local else None

        self.Wqkv = linear(config.hidden_size, 3 * config.hidden_size, bias=config.attention_bias, role="input")
        self.Wo = linear(config.hidden_size, config.hidden_size, bias=config.attention_bias, role="output")
        output_dropout = getattr(config, "attention_output_dropout", None)
        self.out_drop = nn.Dropout(config.attention_dropout if output_dropout is None else output_dropout)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: LayerMask,
        rotation: tuple[torch.Tensor, torch.Tensor],
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Mix `hidden_states` [B, L, E]; returns [B, L, E] and the weights [B, H, L, L] where there are any."""
        batch, length, _ = hidden_states.shape
        qkv = self.Wqkv(hidden_states).view(batch, length, 3, -1, self.head_size)
        query, key = apply_rotary(qkv[:, :, :2], *rotation).unbind(dim=2)
        value = qkv[:, :, 2]
        mixed, weights = attend(
            self, query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), attention_mask, **kwargs
        )
        return self.out_drop(self.Wo(mixed.reshape(batch, length, -1))), weights
