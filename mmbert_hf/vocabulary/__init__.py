"""A smaller vocabulary: tokenizer and embeddings without the tokens that some texts or languages never use."""

from mmbert_hf.vocabulary.embeddings import apply_to_model
from mmbert_hf.vocabulary.plan import VocabularyPlan, plan_trim
from mmbert_hf.vocabulary.tokenizer_json import apply_to_tokenizer
from mmbert_hf.vocabulary.trimming import trim

__all__ = ["VocabularyPlan", "apply_to_model", "apply_to_tokenizer", "plan_trim", "trim"]
