"""Fine-tuning as a measurement: classification, tagging and question answering by plain Trainer recipes."""

from typing import TYPE_CHECKING

from mmbert_hf._lazy import attach

if TYPE_CHECKING:
    from mmbert_hf.evaluation.finetuning.classification import (
        LabelledTexts,
        evaluate_classification,
        read_labelled_texts,
    )
    from mmbert_hf.evaluation.finetuning.metrics import (
        Entity,
        answer_scores,
        classification_scores,
        entities_of,
        entity_scores,
        normalise_answer,
        regression_scores,
    )
    from mmbert_hf.evaluation.finetuning.question_answering import (
        Questions,
        best_answers,
        encode_questions,
        evaluate_question_answering,
        read_questions,
    )
    from mmbert_hf.evaluation.finetuning.tagging import (
        TaggedTexts,
        encode_tagged_texts,
        evaluate_tagging,
        read_tagged_texts,
        tags_of_units,
    )
    from mmbert_hf.evaluation.finetuning.training import FinetuningSettings

_HOME = {
    **dict.fromkeys(("LabelledTexts", "evaluate_classification", "read_labelled_texts"), "classification"),
    **dict.fromkeys(
        ("Entity", "answer_scores", "classification_scores", "entities_of", "entity_scores", "normalise_answer",
         "regression_scores"), "metrics"),
    **dict.fromkeys(
        ("Questions", "best_answers", "encode_questions", "evaluate_question_answering", "read_questions"),
        "question_answering"),
    **dict.fromkeys(
        ("TaggedTexts", "encode_tagged_texts", "evaluate_tagging", "read_tagged_texts", "tags_of_units"), "tagging"),
    "FinetuningSettings": "training",
}  # fmt: skip

__all__ = [
    "Entity",
    "FinetuningSettings",
    "LabelledTexts",
    "Questions",
    "TaggedTexts",
    "answer_scores",
    "best_answers",
    "classification_scores",
    "encode_questions",
    "encode_tagged_texts",
    "entities_of",
    "entity_scores",
    "evaluate_classification",
    "evaluate_question_answering",
    "evaluate_tagging",
    "normalise_answer",
    "read_labelled_texts",
    "read_questions",
    "read_tagged_texts",
    "regression_scores",
    "tags_of_units",
]

__getattr__, __dir__ = attach(globals(), {name: f"{__name__}.{module}" for name, module in _HOME.items()})
