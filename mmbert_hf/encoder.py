"""The mmBERT encoder: ModernBERT's network with ModernBERT's parameter names.

Design decisions:

- Own code, ModernBERT's names: a state dict of either implementation loads strictly into the other.
- The attention kernel sits behind one function, `attend`, and the masks behind one, `attention_masks`. Both go through
  transformers' registries, so ``attn_implementation`` ("eager", "sdpa", "flash_attention_2", "flex_attention", or a
  registered name) means what it means for ModernBERT.
- Rotation angles are computed once per forward and kind of layer, at half the head size, and query and key are
  rotated together. The result is bit for bit ModernBERT's.
- Two places depart from ModernBERT: a 4-D attention mask keeps the window of the local layers (there it lifts it), and
  dropout after attention can be set apart from dropout of the attention weights (``attention_output_dropout``).
- Rows that hold padding only give finite numbers. Packed rows need per-row masks: ``position_ids`` alone do not keep
  documents apart.

Shape legend: B batch, L length in tokens, E hidden size, I intermediate size, H heads, D head size, D2 = D / 2.
"""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypeAlias

import torch
from torch import nn
from transformers import ModernBertConfig, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.masking_utils import create_bidirectional_mask, create_bidirectional_sliding_window_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils.output_capturing import capture_outputs

from mmbert_hf.configuration import GLOBAL, LOCAL, MMBertConfig, check_architecture, set_rope_theta
from mmbert_hf.initialization import initialize, linear

__all__ = ["MMBertModel", "MMBertPreTrainedModel", "apply_rotary", "attend", "attention_masks", "rotary_frequencies"]

# None (no restriction), bool (True: may attend) or additive floats, [B or 1, 1 or H, L, L]; flex attention has its own.
LayerMask: TypeAlias = Any


def rotary_frequencies(config: ModernBertConfig, layer_type: str) -> tuple[torch.Tensor, float]:
    """Angular frequencies of the rotary position embedding (RoFormer, arXiv 2104.09864, eq. 15).

    Args:
        config: Gives the RoPE parameters and the head size.
        layer_type: ``"full_attention"`` or ``"sliding_attention"``.

    Returns:
        theta^(-2 i / D) for i in 0..D/2-1, float32 [D2], and a factor for cosine and sine (1 for the default type).

    Example:
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
        ValueError: For a mask of another shape.

    Example:
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


class MMBertEmbeddings(nn.Module):
    """Token embeddings with a norm. Positions enter in the attention layers."""

    def __init__(self, config: ModernBertConfig) -> None:
        super().__init__()
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.tok_embeddings.initialization_role = "embedding"
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.norm_eps, bias=config.norm_bias)
        self.drop = nn.Dropout(config.embedding_dropout)

    def forward(
        self, input_ids: torch.Tensor | None = None, inputs_embeds: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Embed `input_ids` [B, L], or normalise the given embeddings [B, L, E]; returns [B, L, E]."""
        embedded = self.tok_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        return self.drop(self.norm(embedded))


class MMBertRotaryEmbedding(nn.Module):
    """Cosine and sine of the rotation angles, for each kind of layer.

    The frequencies stay float32 when the model is cast: in bfloat16 they are off by up to 0.4 %, which at position
    8000 is several whole turns.
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
