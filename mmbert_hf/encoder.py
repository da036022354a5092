"""The mmBERT encoder: ModernBERT's network, in our own code, with ModernBERT's parameter names.

A state dict of either implementation loads strictly into the other, and the same weights give the same numbers
(``tests/invariants/test_modernbert_parity.py``). Attention and its masks are in `mmbert_hf.attention`, positions in
`mmbert_hf.rotary`, the tasks in `mmbert_hf.heads` and `mmbert_hf.classification`.

Shape legend: B batch, L length in tokens, E hidden size, H heads.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import ModernBertConfig, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils.output_capturing import capture_outputs

from mmbert_hf.attention import LayerMask, MMBertAttention, attention_masks
from mmbert_hf.configuration import MMBertConfig, check_architecture, set_rope_theta
from mmbert_hf.initialization import initialize, linear
from mmbert_hf.rotary import MMBertRotaryEmbedding

__all__ = ["MMBertModel", "MMBertPreTrainedModel"]


class MMBertEmbeddings(nn.Module):
    """Token embeddings with a norm. Positions enter in the attention layers."""

    def __init__(self, config: ModernBertConfig) -> None:
        super().__init__()
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.tok_embeddings.initialization_role = "embedding"
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.norm_eps, bias=config.norm_bias)
        self.drop = nn.Dropout(config.embedding_dropout)

    def forward(self, input_ids: torch.Tensor | None = None, inputs_embeds: torch.Tensor | None = None) -> torch.Tensor:
        """Embed `input_ids` [B, L], or normalise the given embeddings [B, L, E]; returns [B, L, E]."""
        embedded = self.tok_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        return self.drop(self.norm(embedded))


class MMBertMLP(nn.Module):
    """Gated feed-forward block, Wo(gelu(x) * gate) (GeGLU, arXiv 2002.05202)."""

    def __init__(self, config: ModernBertConfig) -> None:
        super().__init__()
        self.Wi = linear(config.hidden_size, 2 * config.intermediate_size, bias=config.mlp_bias, role="input")
        self.act = ACT2FN[config.hidden_activation]
        self.drop = nn.Dropout(config.mlp_dropout)
        self.Wo = linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias, role="output")

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Transform each token of `hidden_states` [B, L, E]; same shape."""
        values, gate = self.Wi(hidden_states).chunk(2, dim=-1)
        return self.Wo(self.drop(self.act(values) * gate))


class MMBertEncoderLayer(GradientCheckpointingLayer):
    """One pre-norm block. The first has no norm before its attention: the embeddings are normalised already."""

    def __init__(self, config: ModernBertConfig, layer_index: int) -> None:
        super().__init__()
        self.attention_type = config.layer_types[layer_index]
        norm = {"eps": config.norm_eps, "bias": config.norm_bias}
        self.attn_norm = nn.Identity() if layer_index == 0 else nn.LayerNorm(config.hidden_size, **norm)
        self.attn = MMBertAttention(config, layer_index)
        self.mlp_norm = nn.LayerNorm(config.hidden_size, **norm)
        self.mlp = MMBertMLP(config)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: LayerMask,
        rotation: tuple[torch.Tensor, torch.Tensor],
        **kwargs: Any,
    ) -> torch.Tensor:
        """Add attention and feed-forward outputs to the residual stream [B, L, E]."""
        attended, _ = self.attn(self.attn_norm(hidden_states), attention_mask, rotation, **kwargs)
        hidden_states = hidden_states + attended
        return hidden_states + self.mlp(self.mlp_norm(hidden_states))


class MMBertPreTrainedModel(PreTrainedModel):
    """What every mmBERT model shares: loading, saving, initialisation and the RoPE switch.

    A `ModernBertConfig`, from a published checkpoint or made by hand, is accepted wherever a `MMBertConfig` is and
    turned into one.

    Example:
        >>> from transformers import ModernBertConfig
        >>> sizes = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 3, "intermediate_size": 48}
        >>> model = MMBertModel(ModernBertConfig(**sizes))
        >>> model.config.model_type
        'mmbert'
        >>> model.set_rope_theta(10_000)
        >>> model.config.local_rope_theta
        10000.0
    """

    config: MMBertConfig
    config_class = MMBertConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules: ClassVar[list[str]] = ["MMBertEmbeddings", "MMBertEncoderLayer"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_record_outputs: ClassVar[dict[str, type[nn.Module]]] = {
        "hidden_states": MMBertEncoderLayer,
        "attentions": MMBertAttention,
    }

    def __init__(self, config: ModernBertConfig) -> None:
        if issubclass(self.config_class, MMBertConfig) and type(config) is ModernBertConfig:
            config = MMBertConfig.from_modernbert(config)
        if isinstance(config, ModernBertConfig):  # anything else is refused, with a message, by the next line
            check_architecture(config)
        super().__init__(config)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, MMBertRotaryEmbedding):
            module.set_frequencies(self.config)
        elif hasattr(module, "initialization_role"):
            initialize(module, self.config)
        else:
            super()._init_weights(module)

    @torch.no_grad()
    def set_rope_theta(self, global_theta: float, local_theta: float | None = None) -> None:
        """Switch the RoPE bases in place, in the configuration and in the frequencies.

        Meant for the boundary between training phases: mmBERT goes from 10k to 160k where its context is extended.

        Args:
            global_theta: RoPE base of the global layers.
            local_theta: RoPE base of the local layers; the same as `global_theta` if None, as in every phase of mmBERT.

        Raises:
            ValueError: If a base is not a positive number. The model is unchanged then.
        """
        set_rope_theta(self.config, global_theta, local_theta)
        self.base_model.rotary_emb.set_frequencies(self.config)


class MMBertModel(MMBertPreTrainedModel):
    """The bare encoder: token ids in, one vector per token out.

    Args:
        config: Sizes and options.

    Example:
        >>> sizes = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 3, "intermediate_size": 48}
        >>> model = MMBertModel(MMBertConfig(**sizes, vocab_size=100)).eval()
        >>> input_ids = torch.tensor([[2, 17, 18, 1], [2, 19, 1, 0]])
        >>> output = model(input_ids, attention_mask=input_ids.ne(0), output_hidden_states=True)
        >>> output.last_hidden_state.shape
        torch.Size([2, 4, 32])
        >>> len(output.hidden_states)
        4
    """

    def __init__(self, config: ModernBertConfig) -> None:
        super().__init__(config)
        config = self.config
        self.embeddings = MMBertEmbeddings(config)
        self.layers = nn.ModuleList(MMBertEncoderLayer(config, index) for index in range(config.num_hidden_layers))
        self.final_norm = nn.LayerNorm(config.hidden_size, eps=config.norm_eps, bias=config.norm_bias)
        self.rotary_emb = MMBertRotaryEmbedding(config)
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        """Return the token embeddings."""
        return self.embeddings.tok_embeddings

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the token embeddings."""
        self.embeddings.tok_embeddings = value

    @capture_outputs
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | Mapping[str, LayerMask] | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutput:
        """Encode a batch.

        Args:
            input_ids: Token ids [B, L], int64.
            attention_mask: [B, L], nonzero at real tokens; other forms as in `attention_masks`.
            position_ids: [B or 1, L], int64; 0..L-1 if None. They turn the rotation only: the window of the local
                layers counts places in the row.
            inputs_embeds: Embeddings [B, L, E] in place of `input_ids`.
            **kwargs: ``output_hidden_states``, ``output_attentions`` (with eager attention), ``return_dict``; the rest
                goes to the attention implementation.

        Returns:
            ``last_hidden_state`` [B, L, E], and what was asked for.

        Raises:
            ValueError: If not exactly one of `input_ids` and `inputs_embeds` is given, or a mask has a wrong shape.
        """
        if (input_ids is None) == (inputs_embeds is None):
            given = "neither" if input_ids is None else "both"
            raise ValueError(f"got {given} of input_ids and inputs_embeds; pass exactly one of them")
        hidden_states = self.embeddings(input_ids, inputs_embeds)
        if position_ids is None:
            position_ids = torch.arange(hidden_states.shape[1], device=hidden_states.device)[None]
        masks = attention_masks(self.config, hidden_states, attention_mask)
        rotations = {
            layer_type: self.rotary_emb(position_ids, layer_type, hidden_states.dtype)
            for layer_type in self.rotary_emb.layer_types
        }
        for layer in self.layers:
            kind = layer.attention_type
            hidden_states = layer(hidden_states, masks[kind], rotations[kind], **kwargs)
        return BaseModelOutput(last_hidden_state=self.final_norm(hidden_states))
