"""Prune embedders for a domain: GAPrune (arXiv 2509.10844) and what it is compared with, for any SentenceTransformer."""

from typing import TYPE_CHECKING

from mmbert_hf._lazy import attach

if TYPE_CHECKING:
    from mmbert_hf.pruning.config import GAPruneConfig
    from mmbert_hf.pruning.masks import PruningMask
    from mmbert_hf.pruning.pruner import GAPruner
    from mmbert_hf.pruning.report import PruningReport
    from mmbert_hf.pruning.result import PrunedEmbedder
    from mmbert_hf.pruning.triplets import add_hard_negatives, load_triplets, read_triplets, select_triplets

# Where each name lives. Loaded on first access: the options alone need no torch.
_HOME = {
    "GAPruneConfig": "mmbert_hf.pruning.config",
    "GAPruner": "mmbert_hf.pruning.pruner",
    "PrunedEmbedder": "mmbert_hf.pruning.result",
    "PruningMask": "mmbert_hf.pruning.masks",
    "PruningReport": "mmbert_hf.pruning.report",
    "add_hard_negatives": "mmbert_hf.pruning.triplets",
    "load_triplets": "mmbert_hf.pruning.triplets",
    "read_triplets": "mmbert_hf.pruning.triplets",
    "select_triplets": "mmbert_hf.pruning.triplets",
}

__all__ = [
    "GAPruneConfig",
    "GAPruner",
    "PrunedEmbedder",
    "PruningMask",
    "PruningReport",
    "add_hard_negatives",
    "load_triplets",
    "read_triplets",
    "select_triplets",
]

__getattr__, __dir__ = attach(globals(), _HOME)
