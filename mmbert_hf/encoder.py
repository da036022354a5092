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
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils import logging
from transformers.utils.generic import can_return_tuple
from transformers.utils.output_capturing import capture_outputs

from mmbert_hf.attention import (
    Documents,
    LayerMask,
    MMBertAttention,
    PackedRows,
    PaddedRows,
    attention_masks,
    choose_kernel,
    document_ids,
    find_documents,
    runs_packed,
)
from mmbert_hf.attention.documents import check_cu_seq_lens, has_several, positions_within
from mmbert_hf.attention.packed import BLOCK_LOCAL, SDPA
from mmbert_hf.configuration import MMBertConfig, check_architecture, set_rope_theta
from mmbert_hf.feed_forward import MMBertMLP
from mmbert_hf.initialization import initialize
from mmbert_hf.rotary import MMBertRotaryEmbedding
from mmbert_hf.shortcuts import is_traced

__all__ = ["MMBertModel", "MMBertPreTrainedModel"]

logger = logging.get_logger(__name__)

CAPTURED = ("output_hidden_states", "output_attentions")


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

    def forward(self, hidden_states: torch.Tensor, rows: PaddedRows | PackedRows) -> torch.Tensor:
        """Add attention and feed-forward outputs to the residual stream, [T, E] or [B, L, E]."""
        attended, _ = self.attn(self.attn_norm(hidden_states), rows)
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

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: Any = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        cu_seq_lens_q: torch.Tensor | None = None,
        max_length_q: int | None = None,
        **kwargs: Any,
    ) -> BaseModelOutput:
        """Encode a batch, padded anywhere or packed.

        Args:
            input_ids: Token ids [B, L], int64.
            attention_mask: [B, L], nonzero at real tokens; other forms as in `attention_masks`.
            position_ids: [B or 1, L], int64; 0..L-1 if None. They turn the rotation: the window of the local layers
                counts places in the row. A position 0 after the first token of a row opens a new document, and
                documents do not see each other.
            inputs_embeds: Embeddings [B, L, E] in place of `input_ids`.
            cu_seq_lens_q: Documents of one packed row, [documents + 1], int32, from 0 to L, as transformers'
                ``DataCollatorWithFlattening`` gives them. Then B is 1, positions count within documents, and a 0 among
                `position_ids` opens nothing. ``cu_seq_lens_k`` and ``max_length_k`` are taken to be the same.
            max_length_q: Length of the longest of them; saves reading it from the device.
            **kwargs: ``output_hidden_states``, ``output_attentions`` (with eager attention), ``return_dict``; the rest
                goes to the attention implementation.

        Returns:
            ``last_hidden_state`` [B, L, E], and what was asked for. Zeros at padding, except on the padded path.

        Raises:
            ValueError: If not exactly one of `input_ids` and `inputs_embeds` is given, or a mask or `cu_seq_lens_q` do
                not fit it.
        """
        inputs = inputs_embeds if input_ids is None else input_ids
        if inputs is None or (input_ids is not None and inputs_embeds is not None):
            given = "neither" if inputs is None else "both"
            raise ValueError(f"got {given} of input_ids and inputs_embeds; pass exactly one of them")
        if cu_seq_lens_q is None and kwargs.get("cu_seq_lens_k") is not None:
            raise ValueError(
                "got cu_seq_lens_k without cu_seq_lens_q; documents attend to themselves: pass both, equal"
            )
        captured = {name: kwargs.pop(name) for name in CAPTURED if name in kwargs}
        options = {name: value for name, value in kwargs.items() if name not in ("cu_seq_lens_k", "max_length_k")}
        if not self._can_pack(inputs, attention_mask, captured):
            embedded = self.embeddings(input_ids, inputs_embeds)
            padded = self._padded_rows(embedded, attention_mask, position_ids, cu_seq_lens_q, options | captured)
            return self._run_layers(embedded, padded, **captured, return_dict=True)

        if attention_mask is not None and attention_mask.shape != inputs.shape[:2]:
            raise ValueError(
                f"attention_mask is {tuple(attention_mask.shape)} and the input {tuple(inputs.shape[:2])} "
                "(batch, length); they must be the same"
            )
        documents = find_documents(
            tuple(inputs.shape[:2]),
            device=inputs.device,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cu_seq_lens=cu_seq_lens_q,
            max_length=None if max_length_q is None else int(max_length_q),
            sort=self.config._attn_implementation in (SDPA, BLOCK_LOCAL),
        )
        tokens = documents.unpad(inputs)
        embedded = self.embeddings(*((tokens, None) if inputs_embeds is None else (None, tokens)))
        packed = self._packed_rows(embedded, documents, options)
        outputs = self._run_layers(embedded, packed, **captured, return_dict=True)
        return _padded(outputs, documents)

    @capture_outputs
    def _run_layers(self, hidden_states: torch.Tensor, rows: PaddedRows | PackedRows, **_: Any) -> BaseModelOutput:
        for layer in self.layers:
            hidden_states = layer(hidden_states, rows)
        return BaseModelOutput(last_hidden_state=self.final_norm(hidden_states))

    def _can_pack(self, inputs: torch.Tensor, attention_mask: Any, captured: Mapping[str, Any]) -> bool:
        """Whether this call can run on real tokens alone, without dense masks on padded rows."""
        if is_traced(inputs):
            return False
        if attention_mask is not None and (isinstance(attention_mask, Mapping) or attention_mask.ndim != 2):
            logger.warning_once(
                "a mask of token pairs was given: the batch runs padded, with all scores of its local layers, which is "
                "slower; pass [batch, length], or packed rows with cu_seq_lens_q or position_ids that restart"
            )
            return False
        wants_weights = captured.get("output_attentions", self.config.output_attentions)
        return not wants_weights and runs_packed(self.config._attn_implementation)

    def _padded_rows(
        self,
        embedded: torch.Tensor,
        attention_mask: torch.Tensor | Mapping[str, LayerMask] | None,
        position_ids: torch.Tensor | None,
        cu_seq_lens: torch.Tensor | None,
        options: Mapping[str, Any],
    ) -> PaddedRows:
        shape = tuple(embedded.shape[:2])
        if cu_seq_lens is not None:
            check_cu_seq_lens(cu_seq_lens, shape)
        is_token_mask = isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2
        token_mask = attention_mask if is_token_mask else None
        ids = document_ids(shape, position_ids, cu_seq_lens, token_mask)
        if ids is not None and not is_traced(embedded) and not has_several(ids, token_mask):
            ids = None
        masks = attention_masks(self.config, embedded, attention_mask, ids)
        if position_ids is None and cu_seq_lens is not None:
            position_ids = positions_within(cu_seq_lens, shape[1])
        elif position_ids is None:
            position_ids = torch.arange(shape[1], device=embedded.device)[None]
        return PaddedRows(masks, self._rotations(position_ids, embedded.dtype), options)

    def _packed_rows(self, embedded: torch.Tensor, documents: Documents, options: Mapping[str, Any]) -> PackedRows:
        device, dtype = embedded.device, embedded.dtype
        rotations = self._rotations(documents.positions, dtype)
        if torch.is_autocast_enabled(device.type):
            dtype = torch.get_autocast_dtype(device.type)
        dropout = self.config.attention_dropout if self.training else 0.0
        kernel = choose_kernel(self.config, device, dtype, documents, dropout=dropout)
        return PackedRows(documents, kernel, rotations, options)

    def _rotations(
        self, position_ids: torch.Tensor, dtype: torch.dtype
    ) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        precision, bases = torch.promote_types(dtype, torch.float32), self.config.rope_parameters
        rotations: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        for kind in self.rotary_emb.layer_types:  # in mmBERT both kinds have the same base, and share one table
            same = next((other for other in rotations if bases[other] == bases[kind]), None)
            rotations[kind] = self.rotary_emb(position_ids, kind, precision) if same is None else rotations[same]
        return rotations


def _padded(outputs: BaseModelOutput, documents: Documents) -> BaseModelOutput:
    """Put what was captured on packed tokens back to the places of the padded batch."""
    last = documents.pad(outputs.last_hidden_state)
    hidden_states = outputs.hidden_states
    if hidden_states is not None:
        hidden_states = tuple(
            last if state is outputs.last_hidden_state else None if state is None else documents.pad(state)
            for state in hidden_states
        )
    return BaseModelOutput(last_hidden_state=last, hidden_states=hidden_states, attentions=outputs.attentions)
