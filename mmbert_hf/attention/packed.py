"""Attention over the real tokens of a batch, document by document, and the choice of the kernel.

Design decisions:

- ``attn_implementation="sdpa"``, the default, stands for PyTorch's own kernels, whichever is best for the device:
  variable-length attention on CUDA in half precision, and everywhere else `block_local` below. Each can be asked for by
  its name: ``"torch_varlen"``, ``"block_local"``. ``"flash_attention_2"`` and its like are the flash-attn package.
- `block_local`: global layers run group by group of equally long documents, without masks and without copies; local
  layers in blocks, all documents at once (`mmbert_hf.attention.block_local`). Where no document is longer than a
  window, local layers are global ones.
- The varlen kernels count the tokens of a window, so a document with padding inside would have a wrong one. Such a
  batch goes to `block_local`, which counts places, with a notice.

Shape legend: T tokens, H heads, D head size, D2 = D / 2.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import torch
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface, ModernBertConfig
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import logging

from mmbert_hf.attention.block_local import (
    block_local_attention,
    block_mask,
    block_size,
    blocks_of,
    empty_buffer,
    mix_blocks,
)
from mmbert_hf.attention.documents import Documents
from mmbert_hf.attention.padded import moved
from mmbert_hf.onednn import PIECE_TOKENS, can_fuse, fused_linear
from mmbert_hf.rotary import rotate, rotate_into

__all__ = ["BLOCK_LOCAL", "TORCH_VARLEN", "PackedRows", "choose_kernel", "grouped_attention", "runs_packed"]

logger = logging.get_logger(__name__)

SDPA = "sdpa"
BLOCK_LOCAL = "block_local"
TORCH_VARLEN = "torch_varlen"

# Where these two cannot serve (see `mmbert_hf.attention.padded`), they are plain scaled dot-product attention.
for _name in (BLOCK_LOCAL, TORCH_VARLEN):
    AttentionInterface.register(_name, ALL_ATTENTION_FUNCTIONS[SDPA])
    AttentionMaskInterface.register(_name, ALL_MASK_ATTENTION_FUNCTIONS[SDPA])


def runs_packed(implementation: str) -> bool:
    """Whether an attention implementation can run on packed tokens.

    Args:
        implementation: An ``attn_implementation``.

    Returns:
        True for PyTorch's kernels and for flash attention; False for ``"eager"``, ``"flex_attention"`` and names that
        others have registered.

    Example:
        >>> runs_packed("sdpa"), runs_packed("flash_attention_2"), runs_packed("eager")
        (True, True, False)
    """
    return implementation in (SDPA, BLOCK_LOCAL, TORCH_VARLEN) or "flash" in implementation


def choose_kernel(
    config: ModernBertConfig, device: torch.device, dtype: torch.dtype, documents: Documents, *, dropout: float
) -> str:
    """Choose the kernel for one batch.

    Args:
        config: Gives the attention implementation and the head size.
        device: Where the tokens are.
        dtype: Of queries, keys and values.
        documents: The batch.
        dropout: Probability that an attention weight is dropped.

    Returns:
        `BLOCK_LOCAL`, `TORCH_VARLEN`, or the name of a flash attention.

    Raises:
        ValueError: If ``"torch_varlen"`` was asked for and cannot run.

    Example:
        >>> from mmbert_hf import MMBertConfig
        >>> from mmbert_hf.attention.documents import find_documents
        >>> config = MMBertConfig.small(attn_implementation="sdpa")
        >>> choose_kernel(config, torch.device("cpu"), torch.float32, find_documents((2, 8)), dropout=0.0)
        'block_local'
    """
    implementation = config._attn_implementation
    if implementation == BLOCK_LOCAL:
        return BLOCK_LOCAL
    if implementation in (SDPA, TORCH_VARLEN):
        lacking = _lacking_for_varlen(device, dtype, config.hidden_size // config.num_attention_heads, dropout)
        if lacking and implementation == TORCH_VARLEN:
            raise ValueError(
                f"attn_implementation is {TORCH_VARLEN!r}, which needs {lacking}; use 'sdpa', which takes the best "
                "kernel that there is"
            )
        kernel = BLOCK_LOCAL if lacking else TORCH_VARLEN
    else:
        kernel = implementation
    if kernel != BLOCK_LOCAL and documents.has_gaps:
        logger.warning_once(
            f"attention {kernel!r} cannot tell padding inside a document; batches with such padding run on "
            f"{BLOCK_LOCAL!r}, with the right result and slower"
        )
        return BLOCK_LOCAL
    return kernel


def _lacking_for_varlen(device: torch.device, dtype: torch.dtype, head_size: int, dropout: float) -> str:
    """What variable-length attention of PyTorch lacks to run; empty if nothing."""
    if device.type != "cuda":
        return f"a CUDA device (the model is on {device})"
    if dtype not in (torch.float16, torch.bfloat16):
        return f"float16 or bfloat16 (queries are {dtype}; load with dtype=torch.bfloat16 or train with bf16=True)"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "a card of compute capability 8.0 or more"
    if head_size > 256 or head_size % 8:
        return f"a head size that is a multiple of 8 and at most 256 (it is {head_size})"
    if dropout:
        return "attention_dropout=0"
    if not _varlen_has_windows():
        return "PyTorch with windows in torch.nn.attention.varlen (2.13 has them)"
    return ""


@cache
def _varlen_has_windows() -> bool:
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return False
    return "window_size" in inspect.signature(varlen_attn).parameters


def grouped_attention(
    qkv_T3HD: torch.Tensor, groups: list[tuple[int, int]], *, scaling: float, dropout: float = 0.0
) -> torch.Tensor:
    """Every token attends to its whole document.

    Args:
        qkv_T3HD: Rotated queries, keys, and values, document by document.
        groups: (number of documents, length) of each run of equally long documents.
        scaling: Factor on the scores.
        dropout: Probability that an attention weight is dropped.

    Returns:
        The mixed values [T, H, D].

    Example:
        >>> qkv = torch.tensor([1.0, 3.0, 7.0]).view(3, 1, 1, 1).expand(3, 3, 1, 1) * torch.tensor([0, 0, 1]).view(3, 1, 1)
        >>> grouped_attention(qkv, [(1, 1), (1, 2)], scaling=1.0).flatten()
        tensor([1., 5., 5.])
    """
    mixed = []
    pieces = qkv_T3HD.split([number * length for number, length in groups])
    for (number, length), piece in zip(groups, pieces, strict=True):
        query, key, value = piece.unflatten(0, (number, length)).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, scale=scaling)
        mixed.append(out.transpose(1, 2).flatten(0, 1))
    return torch.cat(mixed) if len(mixed) > 1 else mixed[0]


@dataclass(frozen=True)
class PackedRows:
    """What all layers share when they run on packed tokens.

    Attributes:
        documents: Where documents begin and end.
        kernel: From `choose_kernel`.
        rotations: Cosine and sine [T, D2] of each kind of layer, float32 or better.
        options: Handed to flash attention.
    """

    documents: Documents
    kernel: str
    rotations: Mapping[str, tuple[torch.Tensor, torch.Tensor]]
    options: Mapping[str, Any] = field(default_factory=dict)
    _block_masks: dict[tuple[int, int, torch.dtype], torch.Tensor] = field(default_factory=dict)
    _buffers: dict[int, torch.Tensor] = field(default_factory=dict)
    _moved: dict[torch.device, "PackedRows"] = field(default_factory=dict)

    def attend(self, module: Any, qkv: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Rotate and mix.

        Args:
            module: The attention layer: gives the kind of layer, the reach and the dropout.
            qkv: Queries, keys and values [T, 3, H, D].

        Returns:
            The mixed values [T, H, D], and None, since no weights are kept.
        """
        if len(qkv) == 0:
            return qkv[:, 2], None
        cos, sin = self.rotations[module.attention_type]
        dropout = module.attention_dropout if module.training else 0.0
        scaling = module.head_size**-0.5
        if self.kernel == BLOCK_LOCAL and self._is_windowed(module):
            mask = self._block_mask(module, qkv)
            return block_local_attention(qkv, cos, sin, mask, scaling=scaling, dropout=dropout), None
        rotated = rotate(qkv, cos, sin)
        if self.kernel == BLOCK_LOCAL:
            return grouped_attention(rotated, self.documents.groups, scaling=scaling, dropout=dropout), None
        if self.kernel == TORCH_VARLEN:
            return self._torch_varlen(rotated, module.reach, scaling), None
        return self._flash(rotated, module, scaling, dropout), None

    def can_project(self, module: Any, hidden_TE: torch.Tensor) -> bool:
        """Whether `project_and_attend` may stand in for the projection of `module` and `attend`."""
        if self.kernel != BLOCK_LOCAL or torch.is_grad_enabled() or len(hidden_TE) == 0:
            return False
        return can_fuse(hidden_TE, module.Wqkv)

    def project_and_attend(self, module: Any, hidden_TE: torch.Tensor) -> torch.Tensor:
        """Project, rotate and mix where no gradient is recorded, piece by piece into one buffer for all layers.

        Args:
            module: The attention layer, if `can_project`.
            hidden_TE: What it is given; at least one token.

        Returns:
            The mixed values [T, H, D].
        """
        num_tokens = len(hidden_TE)
        reach = module.config.local_attention // 2
        size = block_size(reach, training=module.training)
        if size not in self._buffers:  # one for all layers, unless some are in training mode and some are not
            like = hidden_TE.view(num_tokens, 1, -1, module.head_size).expand(-1, 3, -1, -1)
            self._buffers[size] = empty_buffer(num_tokens, like, reach, size)
        buffer = self._buffers[size]
        tokens = buffer[reach : reach + num_tokens]
        pieces = (x.split(PIECE_TOKENS) for x in (hidden_TE, tokens, *self.rotations[module.attention_type]))
        for hidden, out, cos, sin in zip(*pieces, strict=True):
            rotate_into(out, fused_linear(hidden, module.Wqkv.weight, module.Wqkv.bias).view_as(out), cos, sin)
        dropout, scaling = module.attention_dropout if module.training else 0.0, module.head_size**-0.5
        if self._is_windowed(module):
            mask = self._block_mask(module, buffer)
            blocks = blocks_of(buffer, reach, size)
            return mix_blocks(blocks, mask, num_tokens, scaling=scaling, dropout=dropout)
        return grouped_attention(tokens, self.documents.groups, scaling=scaling, dropout=dropout)

    def _is_windowed(self, module: Any) -> bool:
        return module.reach is not None and not self.documents.fit_into(module.reach)

    def _block_mask(self, module: Any, qkv: torch.Tensor) -> torch.Tensor:
        # By mode, not by whether a gradient is recorded: checkpointing runs a layer in both ways, and has to drop the
        # same attention weights.
        size = block_size(module.reach, training=module.training)
        key = (module.reach, size, qkv.dtype)
        if key not in self._block_masks:
            self._block_masks[key] = block_mask(self.documents.keys, module.reach, size, qkv.dtype)
        return self._block_masks[key]

    def _torch_varlen(self, qkv: torch.Tensor, reach: int | None, scaling: float) -> torch.Tensor:
        from torch.nn.attention.varlen import varlen_attn

        starts, longest = self.documents.cu_seqlens, self.documents.max_length
        window = (-1, -1) if reach is None else (reach, reach)
        return varlen_attn(*qkv.unbind(1), starts, starts, longest, longest, scale=scaling, window_size=window)

    def _flash(self, qkv: torch.Tensor, module: Any, scaling: float, dropout: float) -> torch.Tensor:
        query, key, value = (part[None].transpose(1, 2) for part in qkv.unbind(1))
        starts, longest = self.documents.cu_seqlens, self.documents.max_length
        packed = {"cu_seq_lens_q": starts, "cu_seq_lens_k": starts, "max_length_q": longest, "max_length_k": longest}
        mixed, _ = ALL_ATTENTION_FUNCTIONS[self.kernel](
            module,
            query,
            key,
            value,
            None,
            dropout=dropout,
            scaling=scaling,
            sliding_window=module.sliding_window,
            deterministic=module.config.deterministic_flash_attn,
            **{**self.options, **packed},
        )
        return mixed[0]

    def to(self, device: torch.device | str | int, non_blocking: bool = False, **_: object) -> "PackedRows":
        """Move to a device; accelerate calls this where layers lie on several."""
        device = torch.device(device)
        documents = self.documents.to(device, non_blocking)
        if documents is self.documents:
            return self
        if device not in self._moved:  # once, not for every layer that lies there
            rotations = moved(self.rotations, device, non_blocking)
            fresh: dict[str, Any] = {"_block_masks": {}, "_buffers": {}, "_moved": {}}
            self._moved[device] = replace(self, documents=documents, rotations=rotations, **fresh)
        return self._moved[device]
