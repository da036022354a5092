"""Measuring encoders: masked loss with fixed masks, bitext and document retrieval, the shape of embedding spaces.

And embedders by the evaluators of sentence-transformers and mteb, encoders by fine-tuning them, policies by their answers:
pass@k, maj@k and avg@k. Everything is loaded on first access.
"""

from typing import TYPE_CHECKING

from mmbert_hf._lazy import attach

if TYPE_CHECKING:
    from mmbert_hf.evaluation.answers import Answer, AnswerChecker, ExactChecker, MathChecker, exact_match, get_checker
    from mmbert_hf.evaluation.bitext import BitextScore, bitext_retrieval, embed_texts
    from mmbert_hf.evaluation.embeddings import (
        alignment_loss,
        cosine_to,
        effective_dimensionality,
        mean_dimension_correlation,
        uniformity_loss,
    )
    from mmbert_hf.evaluation.finetuning.classification import evaluate_classification, read_labelled_texts
    from mmbert_hf.evaluation.finetuning.question_answering import evaluate_question_answering, read_questions
    from mmbert_hf.evaluation.finetuning.tagging import evaluate_tagging, read_tagged_texts
    from mmbert_hf.evaluation.finetuning.training import FinetuningSettings
    from mmbert_hf.evaluation.information_retrieval import (
        RetrievalData,
        evaluate_information_retrieval,
        read_beir,
        read_pairs,
    )
    from mmbert_hf.evaluation.languages import evaluate_bitext, evaluate_masked_loss, read_parallel_texts
    from mmbert_hf.evaluation.masked import FixedMasks, MaskedScore, masked_losses, masked_scores
    from mmbert_hf.evaluation.model_kinds import read_model_kind
    from mmbert_hf.evaluation.mteb_tasks import evaluate_mteb, select_mteb_tasks
    from mmbert_hf.evaluation.policies import evaluate_policy, load_policy, sample_policy
    from mmbert_hf.evaluation.reasoning import (
        ReasoningScores,
        avg_at_k,
        maj_at_k,
        pass_at_k,
        reasoning_scores,
        vote_groups,
    )
    from mmbert_hf.evaluation.results import EvaluationResults, Score, SetName, add_to_card
    from mmbert_hf.evaluation.results_plot import plot_results
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

_HOME = {
    "Answer": "mmbert_hf.evaluation.answers",
    "AnswerChecker": "mmbert_hf.evaluation.answers",
    "BitextScore": "mmbert_hf.evaluation.bitext",
    "EvaluationResults": "mmbert_hf.evaluation.results",
    "ExactChecker": "mmbert_hf.evaluation.answers",
    "FinetuningSettings": "mmbert_hf.evaluation.finetuning.training",
    "FixedMasks": "mmbert_hf.evaluation.masked",
    "MaskedScore": "mmbert_hf.evaluation.masked",
    "MathChecker": "mmbert_hf.evaluation.answers",
    "Problem": "mmbert_hf.evaluation.samples",
    "ReasoningScores": "mmbert_hf.evaluation.reasoning",
    "RetrievalData": "mmbert_hf.evaluation.information_retrieval",
    "RetrievalSet": "mmbert_hf.evaluation.retrieval",
    "Samples": "mmbert_hf.evaluation.samples",
    "SamplingSettings": "mmbert_hf.evaluation.sampling",
    "Score": "mmbert_hf.evaluation.results",
    "SetName": "mmbert_hf.evaluation.results",
    "add_to_card": "mmbert_hf.evaluation.results",
    "alignment_loss": "mmbert_hf.evaluation.embeddings",
    "avg_at_k": "mmbert_hf.evaluation.reasoning",
    "bitext_retrieval": "mmbert_hf.evaluation.bitext",
    "bootstrap_interval": "mmbert_hf.evaluation.retrieval",
    "cosine_to": "mmbert_hf.evaluation.embeddings",
    "effective_dimensionality": "mmbert_hf.evaluation.embeddings",
    "embed_texts": "mmbert_hf.evaluation.bitext",
    "evaluate_bitext": "mmbert_hf.evaluation.languages",
    "evaluate_classification": "mmbert_hf.evaluation.finetuning.classification",
    "evaluate_information_retrieval": "mmbert_hf.evaluation.information_retrieval",
    "evaluate_masked_loss": "mmbert_hf.evaluation.languages",
    "evaluate_mteb": "mmbert_hf.evaluation.mteb_tasks",
    "evaluate_policy": "mmbert_hf.evaluation.policies",
    "evaluate_question_answering": "mmbert_hf.evaluation.finetuning.question_answering",
    "evaluate_retrieval": "mmbert_hf.evaluation.retrieval",
    "evaluate_tagging": "mmbert_hf.evaluation.finetuning.tagging",
    "exact_match": "mmbert_hf.evaluation.answers",
    "get_checker": "mmbert_hf.evaluation.answers",
    "load_policy": "mmbert_hf.evaluation.policies",
    "maj_at_k": "mmbert_hf.evaluation.reasoning",
    "masked_losses": "mmbert_hf.evaluation.masked",
    "masked_scores": "mmbert_hf.evaluation.masked",
    "mean_dimension_correlation": "mmbert_hf.evaluation.embeddings",
    "ndcg_at_k": "mmbert_hf.evaluation.retrieval",
    "paired_bootstrap": "mmbert_hf.evaluation.retrieval",
    "pass_at_k": "mmbert_hf.evaluation.reasoning",
    "plot_results": "mmbert_hf.evaluation.results_plot",
    "problems_from_rows": "mmbert_hf.evaluation.samples",
    "read_beir": "mmbert_hf.evaluation.information_retrieval",
    "read_labelled_texts": "mmbert_hf.evaluation.finetuning.classification",
    "read_model_kind": "mmbert_hf.evaluation.model_kinds",
    "read_pairs": "mmbert_hf.evaluation.information_retrieval",
    "read_parallel_texts": "mmbert_hf.evaluation.languages",
    "read_questions": "mmbert_hf.evaluation.finetuning.question_answering",
    "read_samples": "mmbert_hf.evaluation.samples",
    "read_tagged_texts": "mmbert_hf.evaluation.finetuning.tagging",
    "reasoning_scores": "mmbert_hf.evaluation.reasoning",
    "sample_policy": "mmbert_hf.evaluation.policies",
    "sampling_summary": "mmbert_hf.evaluation.samples",
    "score_samples": "mmbert_hf.evaluation.samples",
    "select_mteb_tasks": "mmbert_hf.evaluation.mteb_tasks",
    "uniformity_loss": "mmbert_hf.evaluation.embeddings",
    "vote_groups": "mmbert_hf.evaluation.reasoning",
}

__all__ = [
    "Answer",
    "AnswerChecker",
    "BitextScore",
    "EvaluationResults",
    "ExactChecker",
    "FinetuningSettings",
    "FixedMasks",
    "MaskedScore",
    "MathChecker",
    "Problem",
    "ReasoningScores",
    "RetrievalData",
    "RetrievalSet",
    "Samples",
    "SamplingSettings",
    "Score",
    "SetName",
    "add_to_card",
    "alignment_loss",
    "avg_at_k",
    "bitext_retrieval",
    "bootstrap_interval",
    "cosine_to",
    "effective_dimensionality",
    "embed_texts",
    "evaluate_bitext",
    "evaluate_classification",
    "evaluate_information_retrieval",
    "evaluate_masked_loss",
    "evaluate_mteb",
    "evaluate_policy",
    "evaluate_question_answering",
    "evaluate_retrieval",
    "evaluate_tagging",
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
    "plot_results",
    "problems_from_rows",
    "read_beir",
    "read_labelled_texts",
    "read_model_kind",
    "read_pairs",
    "read_parallel_texts",
    "read_questions",
    "read_samples",
    "read_tagged_texts",
    "reasoning_scores",
    "sample_policy",
    "sampling_summary",
    "score_samples",
    "select_mteb_tasks",
    "uniformity_loss",
    "vote_groups",
]

__getattr__, __dir__ = attach(globals(), _HOME)
