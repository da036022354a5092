"""Queries to documents, as an embedder. The same script for XLM-R and mmBERT: only the name of the model changes.

    python retrieval.py --model FacebookAI/xlm-roberta-base --train train.jsonl --test test.jsonl --output_dir run
    python retrieval.py --model jhu-clsp/mmBERT-base        --train train.jsonl --test test.jsonl --output_dir run

Rows have ``anchor`` (query) and ``positive`` (its document); in training, the other documents of a batch are wrong answers.
"""

from dataclasses import dataclass, field

from datasets import load_dataset
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from transformers import HfArgumentParser

import mmbert_hf  # noqa: F401 - makes model_type mmbert known; XLM-R and published mmBERT checkpoints do not need it
from mmbert_hf.evaluation import RetrievalSet, evaluate_retrieval


@dataclass
class Arguments:
    """What is fine-tuned on what."""

    model: str = field(metadata={"help": "folder or Hub name"})
    train: str = field(metadata={"help": "file to train on"})
    test: str = field(metadata={"help": "file to measure on"})
    max_length: int = field(default=256, metadata={"help": "tokens of a text; the rest is cut off"})


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Fine-tune and return the metrics of the test file."""
    parser = HfArgumentParser([Arguments, SentenceTransformerTrainingArguments])
    args, training = parser.parse_args_into_dataclasses(argv)
    kind = {"jsonl": "json"}.get(args.train.rpartition(".")[2], args.train.rpartition(".")[2])
    data = load_dataset(kind, data_files={"train": args.train, "test": args.test})
    transformer = Transformer(args.model, max_seq_length=args.max_length)
    model = SentenceTransformer(
        modules=[transformer, Pooling(transformer.get_embedding_dimension(), pooling_mode="mean")]
    )
    trainer = SentenceTransformerTrainer(
        model,
        training,
        train_dataset=data["train"].select_columns(["anchor", "positive"]),
        loss=MultipleNegativesRankingLoss(model),
    )
    trainer.train()
    model.save_pretrained(training.output_dir, create_model_card=False)
    test = RetrievalSet.from_pairs(data["test"]["anchor"][:], data["test"]["positive"][:])
    ndcg = float(evaluate_retrieval(model, test).mean())
    print(f"nDCG@10 {ndcg:.3f}")
    return {"ndcg_at_10": ndcg}


if __name__ == "__main__":
    main()
