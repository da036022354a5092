"""Words to tags (NER, POS). The same script for XLM-R and mmBERT: only the name of the model changes.

    python tagging.py --model FacebookAI/xlm-roberta-base --train train.jsonl --test test.jsonl --output_dir run
    python tagging.py --model jhu-clsp/mmBERT-base        --train train.jsonl --test test.jsonl --output_dir run

Rows have ``tokens`` (words) and ``tags`` (one each), as WikiANN, CoNLL and Universal Dependencies have; or ``text`` and
``entities``. Labels are placed by character offsets, in `mmbert_hf.evaluation.finetuning`: `word_ids` of a Gemma tokenizer
is no help on raw text. `mmbert evaluate tagging` does the same in one command, with several seeds and languages.
"""

from dataclasses import dataclass, field

from datasets import Dataset, load_dataset
from transformers import (
    AutoModelForTokenClassification,
    AutoTokenizer,
    DataCollatorForTokenClassification,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
)

from mmbert_hf.evaluation.finetuning import encode_tagged_texts, read_tagged_texts  # for any fast tokenizer
from mmbert_hf.evaluation.finetuning.tagging import check_tags, tagging_scores


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
    train, test = read_tagged_texts(data["train"]), read_tagged_texts(data["test"])
    check_tags(train, test)
    label2id = {name: number for number, name in enumerate(train.names)}
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    train_features, test_features = (
        encode_tagged_texts(tokenizer, tagged, label2id, max_length=args.max_length) for tagged in (train, test)
    )
    model = AutoModelForTokenClassification.from_pretrained(
        args.model, num_labels=len(label2id), id2label=dict(enumerate(train.names)), label2id=label2id
    )
    trainer = Trainer(
        model,
        training,
        train_dataset=Dataset.from_dict(train_features.encoded),
        data_collator=DataCollatorForTokenClassification(tokenizer),
        processing_class=tokenizer,
    )
    trainer.train()
    trainer.save_model()
    logits = trainer.predict(Dataset.from_dict(test_features.encoded)).predictions
    metrics = tagging_scores(logits.argmax(-1), test_features, test, train.names)
    print(", ".join(f"{name} {value:.3f}" for name, value in metrics.items()))
    return metrics


if __name__ == "__main__":
    main()
