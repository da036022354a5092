"""The models, in one place to import from.

The encoder is in `mmbert_hf.encoder`, the masked language model in `mmbert_hf.heads`, the other tasks are in
`mmbert_hf.classification`.
"""

from mmbert_hf.classification import (
    MMBertForMultipleChoice,
    MMBertForQuestionAnswering,
    MMBertForSequenceClassification,
    MMBertForTokenClassification,
)
from mmbert_hf.configuration import MMBertConfig
from mmbert_hf.encoder import MMBertModel, MMBertPreTrainedModel
from mmbert_hf.heads import MMBertForMaskedLM

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
