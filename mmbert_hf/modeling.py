"""The models, in one place to import from. The encoder is in `mmbert_hf.encoder`, the tasks are in `mmbert_hf.heads`."""

from mmbert_hf.configuration import MMBertConfig
from mmbert_hf.encoder import MMBertModel, MMBertPreTrainedModel
from mmbert_hf.heads import (
    MMBertForMaskedLM,
    MMBertForMultipleChoice,
    MMBertForQuestionAnswering,
    MMBertForSequenceClassification,
    MMBertForTokenClassification,
)

__all__ = [
    "MMBertConfig",
    "MMBertForMaskedLM",
    "MMBertForMultipleChoice",
    "MMBertForQuestionAnswering",
    "MMBertForSequenceClassification",
    "MMBertForTokenClassification",
    "MMBertModel",
    "MMBertPreTrainedModel",
]
