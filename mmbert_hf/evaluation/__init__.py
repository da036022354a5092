"""Measuring encoders: masked loss with fixed masks, and bitext retrieval."""

from mmbert_hf.evaluation.bitext import BitextScore, bitext_retrieval, embed_texts
from mmbert_hf.evaluation.masked import FixedMasks, MaskedScore, masked_losses, masked_scores

__all__ = [
    "BitextScore",
    "FixedMasks",
    "MaskedScore",
    "bitext_retrieval",
    "embed_texts",
    "masked_losses",
    "masked_scores",
]
