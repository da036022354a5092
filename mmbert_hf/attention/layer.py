"""The attention layer of the encoder: projections around what the rows of a batch do.

Shape legend: T tokens or (B, L) batch and length, E hidden size, H heads, D head size.
"""

import torch
from torch import nn
from transformers import ModernBertConfig

from mmbert_hf.attention.packed import PackedRows
from mmbert_hf.attention.padded import PaddedRows
from mmbert_hf.configuration import LOCAL
from mmbert_hf.initialization import linear
from mmbert_hf.onednn import fast_linear

__all__ = ["MMBertAttention"]


class MMBertAttention(nn.Module):
    """Multi-head self-attention with rotary positions, over everything or over a window.

    Args:
        config: Sizes and options.
        layer_index: Which layer of the encoder this is; says whether it is global or local.
    """

    def __init__(self, config: ModernBertConfig, layer_index: int) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_index  # this name is read by attention implementations of transformers
        self.is_causal = False  # likewise
        self.attention_type = config.layer_types[layer_index]
        self.head_size = config.hidden_size // config.num_attention_heads
        self.attention_dropout = config.attention_dropout
        # How far a token sees on either side. Attention functions of transformers count the token itself: to reach 64
        # tokens on either side is a window of 65 to them.
        self.reach = config.local_attention // 2 if self.attention_type == LOCAL else None
        self.sliding_window = None if self.reach is None else self.reach + 1

        self.Wqkv = linear(config.hidden_size, 3 * config.hidden_size, bias=config.attention_bias, role="input")
        self.Wo = linear(config.hidden_size, config.hidden_size, bias=config.attention_bias, role="output")
        output_dropout = getattr(config, "attention_output_dropout", None)
        self.out_drop = nn.Dropout(config.attention_dropout if output_dropout is None else output_dropout)

    def forward(
        self, hidden_states: torch.Tensor, rows: PaddedRows | PackedRows
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Mix tokens.

        Args:
            hidden_states: [T, E] of a packed batch, or [B, L, E] of a padded one.
            rows: Which of the two it is, and which tokens see each other.

        Returns:
            The same shape, and the attention weights [B, H, L, L] where there are any.
        """
        weights: torch.Tensor | None = None
        if isinstance(rows, PackedRows) and rows.can_project(self, hidden_states):
            mixed = rows.project_and_attend(self, hidden_states)
        else:
            qkv = fast_linear(self.Wqkv, hidden_states).unflatten(-1, (3, -1, self.head_size))
            mixed, weights = rows.attend(self, qkv)
        return self.out_drop(fast_linear(self.Wo, mixed.flatten(-2))), weights
