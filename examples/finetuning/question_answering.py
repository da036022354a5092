"""Answers as spans of a context (SQuAD's format, as TiQuAD and FoQA have it). The same script for XLM-R and mmBERT.

    python question_answering.py --model FacebookAI/xlm-roberta-base --train t.jsonl --test d.jsonl --output_dir run
    python question_answering.py --model jhu-clsp/mmBERT-base        --train t.jsonl --test d.jsonl --output_dir run

Rows have ``question``, ``context`` and ``answers`` with the lists ``text`` and ``answer_start`` (characters), or the file is a
nested one of SQuAD. mmBERT reads 8,192 tokens at once, so ``--max_length 4096`` leaves few contexts in pieces. Windows and
answers are made in `mmbert_hf.evaluation.finetuning`; `mmbert evaluate question-answering` does the same in one command,
with several seeds and languages.
"""

from dataclasses import dataclass, field

from datasets import Dataset
from transformers import (
    AutoModelForQuestionAnswering,
    AutoTokenizer,
    DataCollatorWithPadding,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
)

from mmbert_hf.data.rows import load_rows
from mmbert_hf.evaluation.finetuning import answer_scores, best_answers, encode_questions, read_questions


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
    train, test = (read_questions(load_rows(source)) for source in (args.train, args.test))
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    train_features, test_features = (
        encode_questions(tokenizer, asked, max_length=args.max_length) for asked in (train, test)
    )
    trainer = Trainer(
        AutoModelForQuestionAnswering.from_pretrained(args.model),
        training,
        train_dataset=Dataset.from_dict(train_features.encoded),
        data_collator=DataCollatorWithPadding(tokenizer),
        processing_class=tokenizer,
    )
    trainer.train()
    trainer.save_model()
    starts, ends = trainer.predict(Dataset.from_dict(test_features.encoded)).predictions[:2]
    answers = best_answers(
        starts,
        ends,
        test_features,
        test.contexts,
        longest=args.longest_answer,
        allow_none=train.num_unanswerable > 0,
    )
    metrics = answer_scores(answers, [answer["text"] for answer in test.answers])
    print(f"exact match {metrics['exact_match']:.3f}, F1 {metrics['f1']:.3f}")
    return metrics


if __name__ == "__main__":
    main()
