"""Prune embedders for a domain: GAPrune (arXiv 2509.10844) and what it is compared with, for any SentenceTransformer."""

from mmbert_hf.pruning.config import GAPruneConfig
from mmbert_hf.pruning.masks import PruningMask
from mmbert_hf.pruning.pruner import GAPruner
from mmbert_hf.pruning.report import PruningReport
from mmbert_hf.pruning.result import PrunedEmbedder
from mmbert_hf.pruning.triplets import add_hard_negatives, load_triplets, read_triplets, select_triplets

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
