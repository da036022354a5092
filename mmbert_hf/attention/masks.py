"""Dense masks of global and local layers, for the padded path.

Design decisions:

- Masks come from transformers' registry, so ``attn_implementation`` means what it means for ModernBERT.
- Two places depart from ModernBERT: a 4-D attention mask keeps the window of the local layers (there it lifts it), and
  packed rows keep their documents apart with every implementation.
- Rows that hold padding only give finite numbers.

Shape legend: B batch, L length in tokens, E hidden size, H heads.
"""

from collections.abc import Mapping
from typing import Any, TypeAlias

import torch
from transformers import ModernBertConfig
from transformers.masking_utils import create_bidirectional_mask, create_bidirectional_sliding_window_mask

from mmbert_hf.configuration import GLOBAL, LOCAL

__all__ = ["LayerMask", "attention_masks"]

# None (no restriction), bool (True: may attend) or additive floats, [B or 1, 1 or H, L, L]; flex attention has its own.
LayerMask: TypeAlias = Any


def attention_masks(
    config: ModernBertConfig,
    hidden_states: torch.Tensor,
    attention_mask: torch.Tensor | Mapping[str, LayerMask] | None,
    document_ids: torch.Tensor | None = None,
) -> Mapping[str, LayerMask]:
    """Masks of the global and the local layers, in the form that the attention implementation takes.

    A token of a local layer attends to the ``local_attention // 2`` tokens on either side and to itself.

    Args:
        config: Gives the window and the attention implementation.
        hidden_states: Embedded tokens [B, L, E], for shape, dtype and device.
        attention_mask: One of: None; [B, L], nonzero at real tokens; [B or 1, 1 or H, L, L], bool (True: may attend) or
            floats to add to the scores, to which the window of the local layers is added; or a mapping from layer type
            to mask, which is taken as it is.
        document_ids: [B or 1, L], int64: tokens of different documents of a row do not see each other. With a 4-D or
            mapped mask, which says all, it is not looked at.

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
        if document_ids is not None:
            arguments["and_mask_function"] = _same_document(document_ids.expand(hidden_states.shape[:2]))
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


def _same_document(document_ids_BL: torch.Tensor) -> Any:
    """A mask function of transformers' masking utilities: may query and key, numbers in a row, see each other?"""

    def same_document(batch: Any, head: Any, query: Any, key: Any) -> Any:
        return document_ids_BL[batch, query] == document_ids_BL[batch, key]

    return same_document


def _keep_window(mask_BHLL: torch.Tensor, reach: int) -> torch.Tensor:
    positions = torch.arange(mask_BHLL.shape[-1], device=mask_BHLL.device)
    outside = (positions[:, None] - positions[None, :]).abs() > reach
    blocked = False if mask_BHLL.dtype == torch.bool else torch.finfo(mask_BHLL.dtype).min
    return mask_BHLL.masked_fill(outside, blocked)
