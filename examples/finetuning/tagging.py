"""Words to tags (NER, POS). The same script for XLM-R and mmBERT: only the name of the model changes.

    python tagging.py --model FacebookAI/xlm-roberta-base --train train.jsonl --test test.jsonl --output_dir run
    python tagging.py --model jhu-clsp/mmBERT-base        --train train.jsonl --test test.jsonl --output_dir run

Rows have ``tokens`` (words) and ``tags`` (one each), as WikiANN, CoNLL and Universal Dependencies have. Labels are placed by
character offsets: `word_ids` of a Gemma tokenizer is no help on raw text.
"""

from dataclasses import dataclass, field

import numpy as np
from datasets import load_dataset
from transformers import (
    AutoModelForTokenClassification,
    AutoTokenizer,
    DataCollatorForTokenClassification,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
)

from mmbert_hf.alignment import align_labels  # for any fast tokenizer

IGNORED = -100


@dataclass
class Arguments:
    """What is fine-tuned on what."""

    model: str = field(metadata={"help": "folder or Hub name"})
    train: str = field(metadata={"help": "file to train on"})
    test: str = field(metadata={"help": "file to measure on"})
    max_length: int = field(default=256, metadata={"help": "tokens of a sentence; the rest is cut off"})


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Fine-tune and return the metrics of the test file."""
    args, training = HfArgumentParser([Arguments, TrainingArguments]).parse_args_into_dataclasses(argv)
    kind = {"jsonl": "json"}.get(args.train.rpartition(".")[2], args.train.rpartition(".")[2])
    data = load_dataset(kind, data_files={"train": args.train, "test": args.test})
    names = sorted({tag for tags in data["train"]["tags"] for tag in tags})
    label2id = {name: number for number, name in enumerate(names)}
    tokenizer = AutoTokenizer.from_pretrained(args.model)

    def encode(rows):
        texts = [
            " ".join(words) for words in rows["tokens"]
        ]  # a raw text keeps the spaces that a Gemma tokenizer reads
        encoding = tokenizer(texts, truncation=True, max_length=args.max_length)
        spans = [
            [(start, start + len(word), tag) for word, start, tag in zip(words, _starts(words), tags, strict=True)]
            for words, tags in zip(rows["tokens"], rows["tags"], strict=True)
        ]
        return {**encoding, **align_labels(encoding, texts, spans=spans, label2id=label2id, outside=IGNORED)}

    data = data.map(encode, batched=True, remove_columns=data["train"].column_names)
    model = AutoModelForTokenClassification.from_pretrained(
        args.model, num_labels=len(names), id2label=dict(enumerate(names)), label2id=label2id
    )

    def accuracy(prediction) -> dict[str, float]:
        known = prediction.label_ids != IGNORED
        return {"accuracy": float(np.mean(prediction.predictions.argmax(-1)[known] == prediction.label_ids[known]))}

    trainer = Trainer(
        model,
        training,
        train_dataset=data["train"],
        eval_dataset=data["test"],
        data_collator=DataCollatorForTokenClassification(tokenizer),
        processing_class=tokenizer,
        compute_metrics=accuracy,
    )
    trainer.train()
    trainer.save_model()
    metrics = trainer.evaluate()
    print(f"accuracy of words {metrics['eval_accuracy']:.3f}")
    return metrics


def _starts(words: list[str]) -> list[int]:
    """First character of each word where words are joined by blanks."""
    starts, place = [], 0
    for word in words:
        starts.append(place)
        place += len(word) + 1
    return starts


if __name__ == "__main__":
    main()
