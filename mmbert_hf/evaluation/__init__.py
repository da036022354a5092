"""Measuring encoders: masked loss with fixed masks, bitext and document retrieval, the shape of embedding spaces.

And policies: completions sampled to problems, their answers checked, and pass@k, maj@k and avg@k.
"""

from mmbert_hf.evaluation.answers import Answer, AnswerChecker, ExactChecker, MathChecker, exact_match, get_checker
from mmbert_hf.evaluation.bitext import BitextScore, bitext_retrieval, embed_texts
from mmbert_hf.evaluation.embeddings import (
    alignment_loss,
    cosine_to,
    effective_dimensionality,
    mean_dimension_correlation,
    uniformity_loss,
)
from mmbert_hf.evaluation.masked import FixedMasks, MaskedScore, masked_losses, masked_scores
from mmbert_hf.evaluation.policies import evaluate_policy, load_policy, sample_policy
from mmbert_hf.evaluation.reasoning import (
    ReasoningScores,
    avg_at_k,
    maj_at_k,
    pass_at_k,
    reasoning_scores,
    vote_groups,
)
from mmbert_hf.evaluation.retrieval import (
    RetrievalSet,
    bootstrap_interval,
    evaluate_retrieval,
    ndcg_at_k,
    paired_bootstrap,
)
from mmbert_hf.evaluation.samples import (
    Problem,
    Samples,
    problems_from_rows,
    read_samples,
    sampling_summary,
    score_samples,
)
from mmbert_hf.evaluation.sampling import SamplingSettings

__all__ = [
    "Answer",
    "AnswerChecker",
    "BitextScore",
    "ExactChecker",
    "FixedMasks",
    "MaskedScore",
    "MathChecker",
    "Problem",
    "ReasoningScores",
    "RetrievalSet",
    "Samples",
    "SamplingSettings",
    "alignment_loss",
    "avg_at_k",
    "bitext_retrieval",
    "bootstrap_interval",
    "cosine_to",
    "effective_dimensionality",
    "embed_texts",
    "evaluate_policy",
    "evaluate_retrieval",
    "exact_match",
    "get_checker",
    "load_policy",
    "maj_at_k",
    "masked_losses",
    "masked_scores",
    "mean_dimension_correlation",
    "ndcg_at_k",
    "paired_bootstrap",
    "pass_at_k",
    "problems_from_rows",
    "read_samples",
    "reasoning_scores",
    "sample_policy",
    "sampling_summary",
    "score_samples",
    "uniformity_loss",
    "vote_groups",
]
