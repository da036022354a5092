"""Answers as spans of a context (SQuAD's format, as TiQuAD and FoQA have it). The same script for XLM-R and mmBERT.

    python question_answering.py --model FacebookAI/xlm-roberta-base --train t.jsonl --test d.jsonl --output_dir run
    python question_answering.py --model jhu-clsp/mmBERT-base        --train t.jsonl --test d.jsonl --output_dir run

Rows have ``question``, ``context`` and ``answers`` with the lists ``text`` and ``answer_start`` (characters). mmBERT reads
8,192 tokens at once, so ``--max_length 4096`` leaves few contexts in pieces.
"""

from dataclasses import dataclass, field

import numpy as np
from datasets import load_dataset
from transformers import (
    AutoModelForQuestionAnswering,
    AutoTokenizer,
    DataCollatorWithPadding,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
)

from mmbert_hf.alignment import align_labels  # for any fast tokenizer


@dataclass
class Arguments:
    """What is fine-tuned on what."""

    model: str = field(metadata={"help": "folder or Hub name"})
    train: str = field(metadata={"help": "file to train on"})
    test: str = field(metadata={"help": "file to measure on"})
    max_length: int = field(default=384, metadata={"help": "tokens of question and piece of context"})
    longest_answer: int = field(default=30, metadata={"help": "tokens"})


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Fine-tune and return the metrics of the test file."""
    args, training = HfArgumentParser([Arguments, TrainingArguments]).parse_args_into_dataclasses(argv)
    kind = {"jsonl": "json"}.get(args.train.rpartition(".")[2], args.train.rpartition(".")[2])
    data = load_dataset(kind, data_files={"train": args.train, "test": args.test})
    tokenizer = AutoTokenizer.from_pretrained(args.model)

    def encode(rows):
        encoding = tokenizer(
            rows["question"],
            rows["context"],
            truncation="only_second",
            max_length=args.max_length,
            stride=args.max_length // 4,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        labels = align_labels(encoding, rows["context"], answers=rows["answers"], sequence=1)
        offsets = [
            [span if part == 1 else (-1, -1) for span, part in zip(spans, encoding.sequence_ids(row), strict=True)]
            for row, spans in enumerate(encoding["offset_mapping"])
        ]
        sample = encoding["overflow_to_sample_mapping"]
        return {"input_ids": encoding["input_ids"], "attention_mask": encoding["attention_mask"], **labels,
                "offsets": offsets, "sample": sample}  # fmt: skip

    def encoded(name):
        rows = data[name]
        return rows.map(encode, batched=True, batch_size=len(rows), remove_columns=rows.column_names)

    train, test = encoded("train"), encoded("test")
    trainer = Trainer(
        AutoModelForQuestionAnswering.from_pretrained(args.model),
        training,
        train_dataset=train.remove_columns(["offsets", "sample"]),
        data_collator=DataCollatorWithPadding(tokenizer),
        processing_class=tokenizer,
    )
    trainer.train()
    trainer.save_model()
    starts, ends = trainer.predict(test.remove_columns(["offsets", "sample"])).predictions[:2]
    answers = best_spans(starts, ends, test["offsets"], test["sample"], data["test"]["context"], args.longest_answer)
    pairs = list(zip(answers, data["test"]["answers"], strict=True))
    exact = float(np.mean([answer in wanted["text"] if wanted["text"] else not answer for answer, wanted in pairs]))
    print(f"exact match {exact:.3f}")
    return {"exact_match": exact}


def best_spans(starts, ends, offsets, samples, contexts, longest: int) -> list[str]:
    """The span with the largest sum of logits over all pieces of a context; "" where no token beats the first one."""
    best = [(-np.inf, "")] * len(contexts)
    for start, end, spans, sample in zip(starts, ends, offsets, samples, strict=True):
        inside = [place for place, (first, _) in enumerate(spans) if first >= 0]
        candidates = [(start[0] + end[0], "")]
        for first in sorted(inside, key=lambda place: -start[place])[:20]:
            for last in (place for place in inside if first <= place < first + longest):
                candidates.append(
                    (start[first] + end[last], contexts[sample][spans[first][0] : spans[last][1]].strip())
                )
        best[sample] = max(best[sample], max(candidates, key=lambda pair: pair[0]), key=lambda pair: pair[0])
    return [text for _, text in best]


if __name__ == "__main__":
    main()
