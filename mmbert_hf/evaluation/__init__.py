"""Measuring encoders: masked loss with fixed masks, bitext and document retrieval, the shape of embedding spaces."""

from mmbert_hf.evaluation.bitext import BitextScore, bitext_retrieval, embed_texts
from mmbert_hf.evaluation.embeddings import (
    alignment_loss,
    cosine_to,
    effective_dimensionality,
    mean_dimension_correlation,
    uniformity_loss,
)
from mmbert_hf.evaluation.masked import FixedMasks, MaskedScore, masked_losses, masked_scores
from mmbert_hf.evaluation.retrieval import RetrievalSet, evaluate_retrieval, ndcg_at_k, paired_bootstrap

__all__ = [
    "BitextScore",
    "FixedMasks",
    "MaskedScore",
    "RetrievalSet",
    "alignment_loss",
    "bitext_retrieval",
    "cosine_to",
    "effective_dimensionality",
    "embed_texts",
    "evaluate_retrieval",
    "masked_losses",
    "masked_scores",
    "mean_dimension_correlation",
    "ndcg_at_k",
    "paired_bootstrap",
    "uniformity_loss",
]
