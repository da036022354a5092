"""Attention of global and local layers, over packed tokens or padded rows.

`documents` says which tokens belong together, `packed` and `padded` are the two ways to run a batch, `layer` is the
module between them and the encoder.
"""

from mmbert_hf.attention.documents import Documents, document_ids, find_documents
from mmbert_hf.attention.layer import MMBertAttention
from mmbert_hf.attention.masks import LayerMask, attention_masks
from mmbert_hf.attention.packed import PackedRows, choose_kernel, runs_packed
from mmbert_hf.attention.padded import PaddedRows, eager_attention

__all__ = [
    "Documents",
    "LayerMask",
    "MMBertAttention",
    "PackedRows",
    "PaddedRows",
    "attention_masks",
    "choose_kernel",
    "document_ids",
    "eager_attention",
    "find_documents",
    "runs_packed",
]
