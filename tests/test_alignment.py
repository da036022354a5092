"""Labels on tokens: from words, from character spans, from answers; on raw text and on pre-split words."""

import copy

import pytest

from mmbert_hf.alignment import align_labels, check_answer, check_spans
from mmbert_hf.token_labels import (
    LabelledSpan,
    continuation_ids,
    label_spans,
    label_words,
    locate_span,
    visible_span,
    words_of_tokens,
)
from mmbert_hf.tokenization import MMBertTokenizer

TEXT = "Anna  Lee lives in 東京 since 2024."
WORDS = TEXT.split()
LABEL2ID = {"O": 0, "B-PER": 1, "I-PER": 2, "B-LOC": 3, "I-LOC": 4, "B-DATE": 5, "I-DATE": 6}
SPANS = [(0, 9, "PER"), (19, 21, "LOC"), (28, 32, "DATE")]
TAGS = ["B-PER", "I-PER", "O", "O", "B-LOC", "O", "B-DATE"]


@pytest.fixture(scope="module")
def tokenizer() -> MMBertTokenizer:
    return MMBertTokenizer.train([TEXT, "Anna lives in Lee", "since the", "and then", "東京"] * 4, 340, min_frequency=4)


def labelled(tokenizer, encoded, row=0):
    """Pairs of (token, label), the labels that are ignored left out."""
    batched = isinstance(encoded["labels"][0], list)
    labels = encoded["labels"][row] if batched else encoded["labels"]
    assert len(labels) == len(encoded.tokens(row))
    return [(token, label) for token, label in zip(encoded.tokens(row), labels, strict=True) if label != -100]


# Arithmetic


def test_visible_span_drops_spaces_at_both_ends():
    assert visible_span(" ▁Paris\n", 0, 8) == (2, 7)
    assert visible_span("New York", 0, 8) == (0, 8)
    assert visible_span(" \u3000▁", 0, 3) is None


def test_words_of_tokens_go_by_the_first_visible_character():
    spans = [None, (0, 2), (2, 4), (5, 8), (4, 5), (9, 10)]
    assert words_of_tokens(spans, [(0, 4), (5, 9)]) == [None, 0, 0, 1, None, None]


def test_label_words():
    words = [None, 0, 0, 1, None, 1, 2, None]
    assert label_words(words, [7, 8, 9]) == [-100, 7, -100, 8, -100, -100, 9, -100]
    every = label_words(words, [7, 8, 9], label_all_tokens=True, continuation={7: 70}, ignore_index=-1)
    assert every == [-1, 7, 70, 8, -1, 8, 9, -1]


def test_label_spans_begins_once_and_continues_in_later_windows():
    spans = [LabelledSpan(2, 6, 1, 2), LabelledSpan(6, 7, 3, 4)]
    tokens = [None, (0, 2), (1, 3), (3, 5), (5, 6), (6, 7), (6, 7), (7, 9)]
    assert label_spans(tokens, spans, 0) == [-100, 0, 1, 2, 2, 3, 4, 0]
    assert label_spans([(3, 5), (5, 7)], spans, 0) == [2, 2]


def test_locate_span():
    tokens = [None, (0, 3), (4, 6), None, (6, 9), (9, 10)]
    assert locate_span(tokens, (4, 9)) == (2, 4)
    assert locate_span(tokens, (5, 7)) == (2, 4)
    assert locate_span(tokens, (8, 12)) is None
    assert locate_span(tokens, (12, 14)) is None


def test_continuation_ids():
    assert continuation_ids({"O": 0, "B-A": 1, "I-A": 2, "B-B": 3}) == {1: 2}
    assert continuation_ids(None) == {}


# Words


def test_word_labels_go_to_the_first_visible_token(tokenizer):
    encoded = tokenizer.align_labels(WORDS, word_labels=list(range(7)), is_split_into_words=True)
    pairs = labelled(tokenizer, encoded)
    assert [label for _, label in pairs] == list(range(7))
    # The tokens are those that open the words, and never a lone space.
    assert all(
        word.startswith(token.lstrip("▁")) and token != "▁" for (token, _), word in zip(pairs, WORDS, strict=True)
    )
    assert "offset_mapping" not in encoded


def test_a_lone_space_before_a_word_is_not_its_first_token(tokenizer):
    for text, options in (("in 7", {}), (["in", "7"], {"is_split_into_words": True})):
        encoded = tokenizer.align_labels(text, word_labels=[1, 2], **options)
        assert encoded.tokens()[-3:-1] == ["▁", "<0x37>"]
        assert encoded["labels"][-3:] == [-100, 2, -100]


def test_word_labels_on_raw_text_are_those_on_words(tokenizer):
    single_spaced = " ".join(WORDS)
    for label_all_tokens in (False, True):
        options = {"word_labels": TAGS, "label2id": LABEL2ID, "label_all_tokens": label_all_tokens}
        raw = tokenizer.align_labels(single_spaced, **options)
        split = tokenizer.align_labels(WORDS, is_split_into_words=True, **options)
        assert raw.data == split.data
        assert labelled(tokenizer, raw) == labelled(tokenizer, tokenizer.align_labels(TEXT, **options))


def test_label_all_tokens_continues_entities(tokenizer):
    encoded = tokenizer.align_labels("2024 Lee", word_labels=["B-DATE", "O"], label2id=LABEL2ID, label_all_tokens=True)
    assert [label for _, label in labelled(tokenizer, encoded)][:4] == [5, 6, 6, 6]
    plain = tokenizer.align_labels("2024 Lee", word_labels=[5, 0], label_all_tokens=True)
    assert [label for _, label in labelled(tokenizer, plain)][:4] == [5, 5, 5, 5]
    assert plain["labels"][0] == plain["labels"][-1] == -100


# Spans


def test_spans_label_every_token_they_touch(tokenizer):
    encoded = tokenizer.align_labels(TEXT, spans=SPANS, label2id=LABEL2ID, return_offsets_mapping=True)
    expected = {}
    for start, end, name in SPANS:
        for position in range(start, end):
            expected[position] = name
    begun = []
    for (start, end), label in zip(encoded["offset_mapping"], encoded["labels"], strict=True):
        visible = visible_span(TEXT, start, end)
        if visible is None:
            assert label == -100
            continue
        name = expected.get(visible[0])
        assert label in ([LABEL2ID[f"B-{name}"], LABEL2ID[f"I-{name}"]] if name else [0])
        begun += [name] if label % 2 else []
    assert begun == ["PER", "LOC", "DATE"]


def test_the_token_that_starts_at_the_space_belongs_to_the_span(tokenizer):
    encoded = tokenizer.align_labels("lives in", spans=[(6, 8, 9)], outside=0)
    assert labelled(tokenizer, encoded)[-1] == ("▁in", 9)
    with_space = tokenizer.align_labels("lives in", spans=[(5, 8, 9)], outside=0)
    assert with_space["labels"] == encoded["labels"]


def test_spans_in_words_are_those_in_the_joined_text(tokenizer):
    text = " ".join(WORDS)
    spans = [(0, 8, "PER"), (18, 20, "LOC")]
    raw = tokenizer.align_labels(text, spans=spans, label2id=LABEL2ID)
    split = tokenizer.align_labels(WORDS, spans=spans, label2id=LABEL2ID, is_split_into_words=True)
    assert raw.data == split.data
    assert {1, 2, 3} <= set(raw["labels"])


def test_batches_padding_pairs_and_tensors(tokenizer):
    texts, spans = [TEXT, "Lee"], [SPANS, [(0, 3, "PER")]]
    batch = tokenizer.align_labels(texts, spans=spans, label2id=LABEL2ID, padding=True, return_tensors="np")
    single = tokenizer.align_labels("Lee", spans=spans[1], label2id=LABEL2ID)
    assert batch["labels"].shape == batch["input_ids"].shape
    assert batch["labels"][1].tolist()[: len(single["labels"])] == single["labels"]
    assert set(batch["labels"][1].tolist()[len(single["labels"]) :]) == {-100}
    pair = tokenizer.align_labels("since 2024", "Lee", spans=[(0, 3, "PER")], label2id=LABEL2ID, sequence=1)
    assert pair["labels"][-len(single["labels"]) + 1 :] == single["labels"][1:]
    assert set(pair["labels"][: -len(single["labels"])]) == {-100}
    assert tokenizer.align_labels("a", spans=[], outside=3, return_tensors="np")["labels"].shape == (1, 3)


def test_windows_are_labelled_one_by_one(tokenizer):
    whole = tokenizer.align_labels(TEXT, spans=SPANS, label2id=LABEL2ID)["labels"][1:-1]
    options = {"truncation": True, "max_length": 7, "stride": 0, "return_overflowing_tokens": True}
    windows = tokenizer.align_labels(TEXT, spans=SPANS, label2id=LABEL2ID, **options)
    assert len(windows["labels"]) > 2
    assert [label for row in windows["labels"] for label in row[1:-1]] == whole
    tags = tokenizer.align_labels(
        [WORDS, ["Lee"]], word_labels=[TAGS, ["B-PER"]], label2id=LABEL2ID, **options, is_split_into_words=True
    )
    assert labelled(tokenizer, tags, -1)[0][1] == 1


# Answers


@pytest.mark.parametrize("answer", ["Lee lives in", "東京", "2024", "Anna", "2024."])
def test_answers_are_found(tokenizer, answer):
    start = TEXT.index(answer)
    encoded = tokenizer.align_labels("who lives?", TEXT, answers=(start, answer), return_offsets_mapping=True)
    first, last = encoded["start_positions"], encoded["end_positions"]
    found = TEXT[encoded["offset_mapping"][first][0] : encoded["offset_mapping"][last][1]]
    assert found.strip() == answer
    assert encoded.sequence_ids()[first] == encoded.sequence_ids()[last] == 1
    columns = {"answer_start": [start, 0], "text": [answer, "Anna"]}
    squad = tokenizer.align_labels(["who lives?"], [TEXT], answers=[columns], return_tensors="np")
    assert squad["start_positions"].tolist() == [first]
    assert squad["end_positions"].tolist() == [last]


def test_windows_without_the_whole_answer_point_to_bos(tokenizer):
    contexts, answers = [TEXT, TEXT], [(TEXT.index("2024"), "2024"), None]
    options = {"truncation": "only_second", "max_length": 20, "stride": 6, "return_overflowing_tokens": True}
    encoded = tokenizer.align_labels(["when?", "why?"], contexts, answers=answers, **options)
    found = 0
    for row, sample in enumerate(encoded["overflow_to_sample_mapping"]):
        first, last = encoded["start_positions"][row], encoded["end_positions"][row]
        if (first, last) == (0, 0):
            continue
        found += 1
        assert sample == 0
        assert tokenizer.decode(encoded["input_ids"][row][first : last + 1]).strip() == "2024"
    assert found >= 1
    left = copy.deepcopy(tokenizer)
    left.padding_side = "left"
    padded = left.align_labels(["?", "?"], ["a", TEXT], answers=[None, None], padding=True)
    assert padded["input_ids"][0][padded["start_positions"][0]] == left.bos_token_id


# The function, on encodings of any fast tokenizer


def test_function_takes_encodings_of_the_plain_class(tokenizer, tmp_path):
    from transformers import PreTrainedTokenizerFast

    tokenizer.save_portable(tmp_path)
    plain = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    expected = tokenizer.align_labels(TEXT, spans=SPANS, label2id=LABEL2ID)["labels"]
    assert align_labels(plain(TEXT), TEXT, spans=SPANS, label2id=LABEL2ID) == {"labels": expected}
    own = tokenizer(WORDS, is_split_into_words=True)
    expected = tokenizer.align_labels(WORDS, word_labels=TAGS, label2id=LABEL2ID, is_split_into_words=True)["labels"]
    assert align_labels(own, WORDS, word_labels=TAGS, label2id=LABEL2ID, is_split_into_words=True)["labels"] == expected


# Errors


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        ([(4, 9, "LOC"), (0, 7, "PER")], r"\(0, 7\) 'Anna  L' and \(6, 9\) 'Lee' overlap"),
        ([(19, 99, "LOC")], "need 0 <= start < end <= 33"),
        ([(-1, 3, "LOC")], "not inside the text"),
        ([(5, 5, "LOC")], "not inside the text"),
        ([(4, 6, "LOC")], "nothing but white space"),
        ([(0, 4, "ORG")], r"'ORG' is not in label2id, which has \['B-DATE'"),
    ],
)
def test_wrong_spans(spans, message):
    with pytest.raises(ValueError, match=message):
        check_spans(TEXT, spans, LABEL2ID)


def test_spans_are_sorted_and_cut_to_what_is_visible():
    assert check_spans(TEXT, [(10, 16, 5), (3, 6, 4)], None) == [LabelledSpan(3, 4, 4, 4), LabelledSpan(10, 15, 5, 5)]
    assert check_spans(TEXT, [(0, 4, "PER")], {"PER": 7, "B-PER": 1, "I-PER": 2}) == [LabelledSpan(0, 4, 7, 7)]


def test_wrong_answers():
    with pytest.raises(ValueError, match="has 'Lee l' at character 6, not the answer 'lives'"):
        check_answer(TEXT, (6, "lives"))
    with pytest.raises(ValueError, match="at character -3"):
        check_answer(TEXT, (-3, "24."))
    with pytest.raises(ValueError, match="not the answer ''"):
        check_answer(TEXT, (3, ""))
    with pytest.raises(ValueError, match="1 answer_start but 0 text"):
        check_answer(TEXT, {"answer_start": [3], "text": []})
    assert check_answer(TEXT, {"answer_start": [], "text": []}) is None


def test_wrong_calls(tokenizer):
    def fails(message, *args, error=ValueError, **kwargs):
        with pytest.raises(error, match=message):
            tokenizer.align_labels(*args, **kwargs)

    fails("exactly one of word_labels, spans and answers, got none", TEXT)
    fails(r"got \['word_labels', 'spans'\]", TEXT, word_labels=[], spans=[])
    fails(r"text 1 \('Lee'\): 2 labels for 1 words", ["a", "Lee"], word_labels=[[0], [0, 1]])
    fails("spans has 1 entries for 2 texts", ["a", "Lee"], spans=[[]], outside=0)
    fails("the label 'O' is a name: pass label2id", TEXT, spans=[(0, 4, 1)])
    fails("the label 'B-PER' is a name: pass label2id", "Anna", word_labels=["B-PER"])
    fails("float", "Anna", word_labels=[1.0], error=TypeError)
    fails("there is no text_pair", TEXT, spans=[], outside=0, sequence=1)
    fails("add_special_tokens=True", ["?"], [TEXT], answers=[None], add_special_tokens=False)
    with pytest.raises(ValueError, match="BatchEncoding of a fast tokenizer"):
        align_labels({"input_ids": [2, 1]}, "", spans=[], outside=0)
    with pytest.raises(ValueError, match="return_offsets_mapping=True"):
        align_labels(tokenizer(WORDS, is_split_into_words=True), WORDS, spans=[], outside=0, is_split_into_words=True)
    with pytest.raises(ValueError, match="has 2 texts, but 1 were passed"):
        align_labels(tokenizer(["a", "b"]), ["a"], word_labels=[[0]])
