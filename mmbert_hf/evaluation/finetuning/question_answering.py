"""Answers as spans of a context: the tasks of SQuAD, MLQA, TiQuAD and FoQA.

Design decisions:

- A context that is longer than a row is read in overlapping windows. A window without the whole answer is labelled as having
  none, and the best answer over all windows counts.
- The answer is cut out of the context by characters. Every pair of a first and a last token is looked at, up to the longest
  answer: no list of candidates that could miss the best one.
- "No answer" is compared as in SQuAD 2: its score is the lowest over the windows, since one window that has the answer is
  enough. It is only allowed where the training set has questions without answers, or a threshold is given.

Shape legend: F windows, S tokens of a window.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mmbert_hf.alignment import align_labels, check_answer
from mmbert_hf.evaluation.finetuning.metrics import answer_scores
from mmbert_hf.evaluation.finetuning.training import (
    FinetuningSettings,
    fine_tune,
    load_tokenizer,
    scores_of_seeds,
)
from mmbert_hf.evaluation.results import Score, SetName
from mmbert_hf.token_labels import Span, visible_span

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = [
    "AnswerFeatures",
    "Questions",
    "best_answers",
    "encode_questions",
    "evaluate_question_answering",
    "read_questions",
]

LONGEST_ANSWER = 30  # tokens, if the training set has no longer one


@dataclass(frozen=True)
class Questions:
    """Questions, their contexts, and the right answers.

    Attributes:
        questions: Texts.
        contexts: Text that each is about.
        answers: For each {"text": [...], "answer_start": [...]}, in characters of the context; empty lists for none.
        ids: Names of the questions.
    """

    questions: list[str]
    contexts: list[str]
    answers: list[dict[str, list[Any]]]
    ids: list[str]

    def __len__(self) -> int:
        return len(self.questions)

    @property
    def num_unanswerable(self) -> int:
        """Questions without an answer."""
        return sum(not answer["text"] for answer in self.answers)


class AnswerFeatures(NamedTuple):
    """Windows of tokens, and where their characters are.

    Attributes:
        encoded: Columns for the model: input_ids, attention_mask, start_positions and end_positions, [F] lists of [S].
        offsets: Visible characters of each token of the context, None for all other tokens: [F] lists of [S].
        samples: Question of each window: [F].
        none_tokens: The token of each window that is marked where it has no answer, its first special one: [F].
    """

    encoded: dict[str, list[Any]]
    offsets: list[list[Span | None]]
    samples: list[int]
    none_tokens: list[int]


def read_questions(
    rows: Dataset, *, question: str = "question", context: str = "context", answers: str = "answers"
) -> Questions:
    """Take questions and answers out of a data set, and check them.

    Args:
        rows: With these columns; `mmbert_hf.data.rows.load_rows` makes them of a nested file.
        question: Column of the questions.
        context: Column of the contexts.
        answers: Column of the answers: {"text": [...], "answer_start": [...]}, or a list of {"text", "answer_start"}.

    Raises:
        ValueError: A column is missing, a text is none, or an answer is not in its context where it is said to be.

    Example:
        >>> from datasets import Dataset
        >>> answer = {"text": ["Tórshavn"], "answer_start": [10]}
        >>> row = {"question": "Hvar?", "context": "Hann er í Tórshavn.", "answers": answer}
        >>> read_questions(Dataset.from_list([row])).answers[0]["text"]
        ['Tórshavn']
    """
    missing = [name for name in (question, context, answers) if name not in rows.column_names]
    if missing:
        raise ValueError(
            f"no column {', '.join(missing)} among {rows.column_names}: name it (--question-column, --context-column, "
            "--answers-column)"
        )
    if len(rows) == 0:
        raise ValueError("it has no rows")
    found = Questions(
        rows[question][:],
        rows[context][:],
        [_columns(value, row) for row, value in enumerate(rows[answers][:])],
        [str(name) for name in (rows["id"][:] if "id" in rows.column_names else range(len(rows)))],
    )
    for row, (asked, text, answer) in enumerate(zip(found.questions, found.contexts, found.answers, strict=True)):
        if not all(isinstance(value, str) and value.strip() for value in (asked, text)):
            raise ValueError(f"row {row} has no question or no context")
        for start, wanted in zip(answer["answer_start"], answer["text"], strict=True):
            try:
                check_answer(text, (start, wanted))
            except ValueError as error:
                raise ValueError(f"row {row} ({found.ids[row]}): {error}") from error
    return found


def encode_questions(
    tokenizer: Any, questions: Questions, *, max_length: int = 384, stride: int | None = None
) -> AnswerFeatures:
    """Cut questions with their contexts into windows of tokens, labelled with the first right answer.

    Args:
        tokenizer: Any fast one.
        questions: What to encode.
        max_length: Tokens of a window, the question and special tokens included.
        stride: Tokens of the context that two windows share; a fourth of `max_length` if None.

    Returns:
        The windows.

    Raises:
        ValueError: A question leaves no room for the context.

    Example:
        >>> from mmbert_hf import MMBertTokenizer
        >>> tokenizer = MMBertTokenizer.train(["ein tvey trý fýra fimm"] * 9, vocab_size=300)
        >>> asked = Questions(["ein"], ["ein tvey trý fýra fimm"], [{"text": ["trý"], "answer_start": [9]}], ["1"])
        >>> features = encode_questions(tokenizer, asked, max_length=64)
        >>> start, end = (features.encoded[f"{name}_positions"][0] for name in ("start", "end"))
        >>> features.offsets[0][start][0], features.offsets[0][end][1]
        (9, 12)
    """
    stride = max_length // 4 if stride is None else stride
    room = max_length - tokenizer.num_special_tokens_to_add(pair=True) - stride
    lengths = [len(ids) for ids in tokenizer(questions.questions, add_special_tokens=False)["input_ids"]]
    too_long = next((row for row, length in enumerate(lengths) if length >= room), None)
    if too_long is not None:
        raise ValueError(
            f"question {questions.ids[too_long]} has {lengths[too_long]} tokens, which leaves no room for its context in "
            f"{max_length} tokens with a stride of {stride}: raise max_length (--max-length)"
        )
    encoding = tokenizer(
        questions.questions,
        questions.contexts,
        truncation="only_second",
        max_length=max_length,
        stride=stride,
        return_overflowing_tokens=True,
    )
    labels = align_labels(encoding, questions.contexts, answers=questions.answers, sequence=1)
    samples = list(encoding["overflow_to_sample_mapping"])
    offsets = [
        [
            visible_span(questions.contexts[sample], *span) if part == 1 else None
            for span, part in zip(row.offsets, row.sequence_ids, strict=True)
        ]
        for row, sample in zip(encoding.encodings, samples, strict=True)
    ]
    columns = {name: encoding[name] for name in encoding if name in tokenizer.model_input_names}
    none_tokens = [row.special_tokens_mask.index(1) for row in encoding.encodings]
    return AnswerFeatures({**columns, **labels}, offsets, samples, none_tokens)


def best_answers(
    start_logits: Sequence[np.ndarray] | np.ndarray,
    end_logits: Sequence[np.ndarray] | np.ndarray,
    features: AnswerFeatures,
    contexts: Sequence[str],
    *,
    longest: int = LONGEST_ANSWER,
    allow_none: bool = False,
    none_threshold: float = 0.0,
) -> list[str]:
    """Choose the best answer of each question over its windows.

    Args:
        start_logits: [F, at least S].
        end_logits: [F, at least S].
        features: The windows.
        contexts: Of the questions.
        longest: Tokens of an answer, at most.
        allow_none: Whether a question may have no answer.
        none_threshold: How much more than the best answer "no answer" has to score, as a sum of two logits.

    Returns:
        For each question characters of its context, without white space around them; "" for no answer.
    """
    best: list[tuple[float, str]] = [(-np.inf, "")] * len(contexts)
    lowest_none = [np.inf] * len(contexts)
    windows = zip(features.offsets, features.samples, features.none_tokens, strict=True)
    for start, end, (offsets, sample, none) in zip(start_logits, end_logits, windows, strict=True):
        start_S = np.asarray(start, dtype=np.float64)[: len(offsets)]
        end_S = np.asarray(end, dtype=np.float64)[: len(offsets)]
        lowest_none[sample] = min(lowest_none[sample], start_S[none] + end_S[none])
        score, first, last = _best_span(start_S, end_S, offsets, longest)
        if score > best[sample][0]:
            text = contexts[sample][offsets[first][0] : offsets[last][1]]  # type: ignore[index]
            best[sample] = (score, text)
    return [
        "" if allow_none and none > score + none_threshold else text
        for (score, text), none in zip(best, lowest_none, strict=True)
    ]


def evaluate_question_answering(
    model: str,
    train: Questions,
    tests: Mapping[SetName, Questions],
    settings: FinetuningSettings | None = None,
    seeds: Sequence[int] = (1,),
    *,
    stride: int | None = None,
    none_threshold: float | None = None,
    strip_articles: bool = False,
) -> list[Score]:
    """Fine-tune a model on questions with answers and measure it on others.

    Args:
        model: Folder or Hub name of an encoder.
        train: What it learns.
        tests: What it is measured on, by name.
        settings: How it is trained; `max_length` 384 if None.
        seeds: It is trained once for each.
        stride: Tokens that two windows of a context share; a fourth of a window if None.
        none_threshold: As for `best_answers`. None: 0 if the training set has questions without answers; else every
            question gets an answer.
        strip_articles: As for `mmbert_hf.evaluation.finetuning.metrics.normalise_answer`.

    Returns:
        exact_match and f1, for each seed and set; where a set has questions without answers, also has_answer_f1 and
        no_answer_accuracy.

    Raises:
        ValueError: A question leaves no room for its context, or a setting is out of its range.
    """
    from datasets import Dataset
    from transformers import AutoModelForQuestionAnswering, DataCollatorWithPadding

    settings = settings or FinetuningSettings(max_length=384)
    tokenizer = load_tokenizer(model, settings.max_length)
    learnt, *others = (
        encode_questions(tokenizer, asked, max_length=settings.max_length, stride=stride)
        for asked in (train, *tests.values())
    )
    encoded = dict(zip(tests, others, strict=True))
    spans = zip(learnt.encoded["start_positions"], learnt.encoded["end_positions"], strict=True)
    longest = max(LONGEST_ANSWER, *(end - start + 1 for start, end in spans))
    rows = {name: Dataset.from_dict(features.encoded) for name, features in encoded.items()}
    collator = DataCollatorWithPadding(tokenizer)
    allow_none = none_threshold is not None or train.num_unanswerable > 0

    def run(seed: int) -> dict[SetName, dict[str, float]]:
        logits = fine_tune(
            lambda: AutoModelForQuestionAnswering.from_pretrained(model),
            Dataset.from_dict(learnt.encoded),
            {name: test.remove_columns(["start_positions", "end_positions"]) for name, test in rows.items()},
            collator,
            tokenizer,
            settings,
            seed,
        )
        found = {}
        for name, asked in tests.items():
            answers = best_answers(
                logits[name][0],
                logits[name][1],
                encoded[name],
                asked.contexts,
                longest=longest,
                allow_none=allow_none,
                none_threshold=none_threshold or 0.0,
            )
            found[name] = _scores(answers, asked, strip_articles)
        return found

    counts = {name: len(asked) for name, asked in tests.items()}
    return scores_of_seeds("question-answering", seeds, counts, run, ("exact_match", "f1"))


def _scores(answers: Sequence[str], asked: Questions, strip_articles: bool) -> dict[str, float]:
    gold = [answer["text"] for answer in asked.answers]
    scores = answer_scores(answers, gold, strip_articles=strip_articles)
    with_answer = [row for row, wanted in enumerate(gold) if wanted]
    if 0 < len(with_answer) < len(gold):
        chosen = ([sequence[row] for row in with_answer] for sequence in (answers, gold))
        scores["has_answer_f1"] = answer_scores(*chosen, strip_articles=strip_articles)["f1"]  # type: ignore[arg-type]
        none = [not answers[row] for row, wanted in enumerate(gold) if not wanted]
        scores["no_answer_accuracy"] = sum(none) / len(none)
    return scores


def _best_span(
    start_S: np.ndarray, end_S: np.ndarray, offsets: Sequence[Span | None], longest: int
) -> tuple[float, int, int]:
    """Score, first and last token of the best span of the context; minus infinity where there is none."""
    outside = np.array([span is None for span in offsets])
    start_S, end_S = np.where(outside, -np.inf, start_S), np.where(outside, -np.inf, end_S)
    best = (-np.inf, 0, 0)
    for extra in range(min(longest, len(offsets))):
        scores = start_S[: len(start_S) - extra] + end_S[extra:]
        first = int(scores.argmax())
        if scores[first] > best[0]:
            best = (float(scores[first]), first, first + extra)
    return best


def _columns(answers: Any, row: int) -> dict[str, list[Any]]:
    """The answers of one question as two lists."""
    if isinstance(answers, Mapping) and {"text", "answer_start"} <= set(answers):
        texts, starts = answers["text"], answers["answer_start"]
        if isinstance(texts, list) and isinstance(starts, list) and len(texts) == len(starts):
            return {"text": texts, "answer_start": starts}
    elif isinstance(answers, list) and all(
        isinstance(each, Mapping) and {"text", "answer_start"} <= set(each) for each in answers
    ):
        return {name: [each[name] for each in answers] for name in ("text", "answer_start")}
    elif answers is None:
        return {"text": [], "answer_start": []}
    raise ValueError(
        f"row {row}: expected answers with the lists text and answer_start, of one length, got {answers!r:.80}"
    )
