"""A pruned embedder, and what is known of it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mmbert_hf.pruning.masks import PruningMask
from mmbert_hf.pruning.report import PruningReport

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = ["PrunedEmbedder"]


@dataclass
class PrunedEmbedder:
    """What `GAPruner.prune` returns.

    Attributes:
        model: The pruned embedder, made of stock modules.
        mask: The weights that are zero, to keep them so while training; None if the pruned model has no zeros.
        report: What was done.
        dense: The model before pruning.
    """

    model: "SentenceTransformer"
    mask: PruningMask | None
    report: PruningReport
    dense: "SentenceTransformer"
