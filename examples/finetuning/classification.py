"""Texts to classes. The same script for XLM-R and mmBERT: only the name of the model changes.

    python classification.py --model FacebookAI/xlm-roberta-base --train train.jsonl --test test.jsonl --output_dir run
    python classification.py --model jhu-clsp/mmBERT-base        --train train.jsonl --test test.jsonl --output_dir run

Rows have ``text`` and ``label``, in JSONL, CSV or parquet. All of TrainingArguments can be given. Without a script, with
pairs of texts, values, several seeds and languages: `mmbert evaluate classification`.
"""

from dataclasses import dataclass, field

import numpy as np
from datasets import ClassLabel, load_dataset
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
)

import mmbert_hf  # noqa: F401 - makes model_type mmbert known; XLM-R and published mmBERT checkpoints do not need it


@dataclass
class Arguments:
    """What is fine-tuned on what."""

    model: str = field(metadata={"help": "folder or Hub name"})
    train: str = field(metadata={"help": "file to train on"})
    test: str = field(metadata={"help": "file to measure on"})
    max_length: int = field(default=256, metadata={"help": "tokens of a text; the rest is cut off"})


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Fine-tune and return the metrics of the test file."""
    args, training = HfArgumentParser([Arguments, TrainingArguments]).parse_args_into_dataclasses(argv)
    kind = {"jsonl": "json"}.get(args.train.rpartition(".")[2], args.train.rpartition(".")[2])
    data = load_dataset(kind, data_files={"train": args.train, "test": args.test})
    names = sorted(set(map(str, data["train"]["label"])))
    data = data.map(lambda row: {"label": str(row["label"])}).cast_column("label", ClassLabel(names=names))

    tokenizer = AutoTokenizer.from_pretrained(args.model)
    data = data.map(lambda rows: tokenizer(rows["text"], truncation=True, max_length=args.max_length), batched=True)
    labels = dict(enumerate(names))
    model = AutoModelForSequenceClassification.from_pretrained(
        args.model, num_labels=len(names), id2label=labels, label2id={name: number for number, name in labels.items()}
    )

    def accuracy(prediction) -> dict[str, float]:
        return {"accuracy": float(np.mean(prediction.predictions.argmax(-1) == prediction.label_ids))}

    trainer = Trainer(
        model,
        training,
        train_dataset=data["train"],
        eval_dataset=data["test"],
        data_collator=DataCollatorWithPadding(tokenizer),
        processing_class=tokenizer,
        compute_metrics=accuracy,
    )
    trainer.train()
    trainer.save_model()
    metrics = trainer.evaluate()
    print(f"accuracy {metrics['eval_accuracy']:.3f}")
    return metrics


if __name__ == "__main__":
    main()
