import doctest
import random

import numpy as np
import pytest
from datasets import Dataset
from transformers import AutoTokenizer

from mmbert_hf.evaluation.finetuning import Questions, answer_scores, best_answers, encode_questions, question_answering
from mmbert_hf.evaluation.finetuning.question_answering import read_questions

WORDS = ["free", "Øll", "menniskju", "ብመንፅር", "dignity", "生れながら", "рождаются", "🙂", "born"]


@pytest.fixture(params=["mmbert", "xlm-r"])
def fast_tokenizer(request, encoders):
    return AutoTokenizer.from_pretrained(encoders / request.param)


def questions(seed, number=12, unanswerable=0.3):
    rng = random.Random(seed)
    rows = []
    for row in range(number):
        words = [rng.choice(WORDS) for _ in range(rng.randint(3, 30))]
        first = rng.randrange(len(words))
        text = " ".join(words[first : first + rng.randint(1, 2)])
        start = len(" ".join(words[:first])) + (first > 0)
        answers = (
            {"text": [], "answer_start": []}
            if rng.random() < unanswerable
            else {"text": [text], "answer_start": [start]}
        )
        rows.append({"id": str(row), "question": rng.choice(WORDS), "context": " ".join(words), "answers": answers})
    return read_questions(Dataset.from_list(rows))


def gold_logits(features):
    """Logits that say what the labels say."""
    lengths = [len(ids) for ids in features.encoded["input_ids"]]
    return [
        [10.0 * (np.arange(length + 3) == place) for length, place in zip(lengths, features.encoded[name], strict=True)]
        for name in ("start_positions", "end_positions")
    ]


def test_docstring_examples():
    result = doctest.testmod(question_answering)
    assert result.attempted >= 8
    assert result.failed == 0


@pytest.mark.parametrize(("max_length", "stride"), [(48, 20), (48, 32), (256, None)])
def test_gold_logits_give_gold_answers(fast_tokenizer, max_length, stride):
    asked = questions(0)
    features = encode_questions(fast_tokenizer, asked, max_length=max_length, stride=stride)
    assert (len(features.samples) > len(asked)) == (max_length == 48)
    assert 0 < asked.num_unanswerable < len(asked)
    found = best_answers(*gold_logits(features), features, asked.contexts, longest=max_length, allow_none=True)
    gold = [answer["text"] for answer in asked.answers]
    # an answer that no window holds as a whole cannot be found
    whole = {
        s
        for s, place, none in zip(
            features.samples, features.encoded["start_positions"], features.none_tokens, strict=True
        )
        if place != none
    }
    kept = [row for row, wanted in enumerate(gold) if not wanted or row in whole]
    assert len(kept) >= len(gold) - 2
    assert [found[row] for row in kept] == [(gold[row] or [""])[0] for row in kept]
    assert answer_scores([found[row] for row in kept], [gold[row] for row in kept])["exact_match"] == 1.0


def test_the_best_span_is_the_best_of_all_spans(fast_tokenizer):
    asked = questions(1, number=4)
    features = encode_questions(fast_tokenizer, asked, max_length=64)
    rng = np.random.default_rng(0)
    starts, ends = ([rng.normal(size=len(ids)) for ids in features.encoded["input_ids"]] for _ in range(2))
    found = best_answers(starts, ends, features, asked.contexts, longest=5)
    for sample, answer in enumerate(found):
        spans = [
            (start[first] + end[last], asked.contexts[sample][offsets[first][0] : offsets[last][1]])
            for start, end, offsets, own in zip(starts, ends, features.offsets, features.samples, strict=True)
            for first in range(len(offsets))
            for last in range(first, min(first + 5, len(offsets)))
            if own == sample and offsets[first] is not None and offsets[last] is not None
        ]
        assert answer == max(spans)[1]


def test_no_answer_is_what_every_window_says():
    context = "ein tvey"
    features = question_answering.AnswerFeatures({}, [[None, (0, 3)], [None, (4, 8)]], [0, 0], [0, 0])
    logits = [np.array([5.0, 1.0]), np.array([0.0, 2.0])]  # none scores 10 and 0, the spans 2 and 4
    assert best_answers(logits, logits, features, [context], allow_none=True) == ["tvey"]
    assert best_answers(logits, logits, features, [context], allow_none=True, none_threshold=-5.0) == [""]
    logits = [np.array([5.0, 1.0]), np.array([3.0, 2.0])]
    assert best_answers(logits, logits, features, [context], allow_none=True) == [""]
    assert best_answers(logits, logits, features, [context], allow_none=True, none_threshold=3.0) == ["tvey"]
    assert best_answers(logits, logits, features, [context]) == ["tvey"]


def test_a_question_that_leaves_no_room_is_told(fast_tokenizer):
    asked = Questions(["free " * 60], ["born"], [{"text": [], "answer_start": []}], ["q7"])
    with pytest.raises(ValueError, match=r"question q7 has \d+ tokens, which leaves no room .*--max-length"):
        encode_questions(fast_tokenizer, asked, max_length=64)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answers": {"text": ["free"], "answer_start": [1]}}, r"row 0 \(0\): the context has 'orn'"),
        ({"answers": {"text": ["born", "b"], "answer_start": [0]}}, "row 0: expected answers with the lists"),
        ({"context": " "}, "row 0 has no question or no context"),
    ],
)
def test_bad_rows_are_told(change, message):
    row = {"id": "0", "question": "?", "context": "born", "answers": {"text": ["born"], "answer_start": [0]}}
    with pytest.raises(ValueError, match=message):
        read_questions(Dataset.from_list([{**row, **change}]))
    with pytest.raises(ValueError, match="no column answers among"):
        read_questions(Dataset.from_list([{"question": "?", "context": "born"}]))


def test_answers_may_be_lists_of_answers():
    row = {"question": "?", "context": "born free", "answers": [{"text": "free", "answer_start": 5}]}
    assert read_questions(Dataset.from_list([row])).answers == [{"text": ["free"], "answer_start": [5]}]
