import doctest
import random

import pytest
from datasets import ClassLabel, Dataset, Features, List, Value
from transformers import AutoTokenizer

from mmbert_hf.evaluation.finetuning import Entity, encode_tagged_texts, read_tagged_texts, tagging, tags_of_units
from mmbert_hf.evaluation.finetuning.tagging import check_tags, tagging_scores

WORDS = ["free", "Øll", "menniskju", "ብመንፅር", "dignity", "生れながら", "x", "рождаются", "🙂", "born"]
LABELS = ["A", "B"]


@pytest.fixture(params=["mmbert", "xlm-r"])
def fast_tokenizer(request, encoders):
    return AutoTokenizer.from_pretrained(encoders / request.param)


def tagged_words(seed, number=20, longest=40):
    rng = random.Random(seed)
    rows = []
    for _ in range(number):
        words = [rng.choice(WORDS) for _ in range(rng.randint(1, longest))]
        rows.append({"tokens": words, "ner_tags": [rng.choice(["O", "B-A", "I-A", "B-B", "I-B"]) for _ in words]})
    return Dataset.from_list(rows)


def named_characters(seed, number=20):
    """Texts with entities of whole words, of every length."""
    rng = random.Random(seed)
    rows = []
    for _ in range(number):
        words = [rng.choice(WORDS) for _ in range(rng.randint(2, 30))]
        text, entities, place = " ".join(words), [], 0
        while place < len(words):
            length = rng.randint(1, 3)
            if rng.random() < 0.4:
                start = len(" ".join(words[:place])) + (place > 0)
                end = len(" ".join(words[: place + length]))
                entities.append({"start": start, "end": end, "label": rng.choice(LABELS)})
            place += length
        rows.append({"text": text, "entities": entities})
    return Dataset.from_list(rows)


def test_docstring_examples():
    result = doctest.testmod(tagging)
    assert result.attempted >= 10
    assert result.failed == 0


@pytest.mark.parametrize("max_length", [16, 256])
def test_labels_are_where_brute_force_over_characters_puts_them(fast_tokenizer, max_length):
    tagged = read_tagged_texts(tagged_words(0))
    label2id = {name: number for number, name in enumerate(tagged.names)}
    features = encode_tagged_texts(fast_tokenizer, tagged, label2id, max_length=max_length)
    windows = fast_tokenizer(
        tagged.texts, truncation=True, max_length=max_length, stride=max_length // 4, return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )  # fmt: skip
    assert windows["input_ids"] == features.encoded["input_ids"]
    assert (len(windows["input_ids"]) > len(tagged)) == (max_length == 16)
    num_labelled, num_cut = 0, 0
    for row, (offsets, labels, sample) in enumerate(
        zip(windows["offset_mapping"], features.encoded["labels"], features.samples, strict=True)
    ):
        text, previous, cut = tagged.texts[sample], None, None
        is_later = row > 0 and features.samples[row - 1] == sample
        for (start, end), label in zip(offsets, labels, strict=True):
            visible = [place for place in range(start, end) if not text[place].isspace()]
            word = next((n for n, (a, b) in enumerate(tagged.words[sample]) if visible and a <= visible[0] < b), None)
            if is_later and word is not None and previous is None and visible[0] > tagged.words[sample][word][0]:
                cut = word  # its beginning is in the window before
            shown = word is not None and word not in (previous, cut)
            expected = label2id[tagged.tags[sample][word]] if shown else -100
            assert label == expected, (row, start, end)
            previous = previous if word is None else word
            num_labelled += label != -100
        num_cut += cut is not None
    assert num_labelled >= sum(map(len, tagged.tags))
    assert (num_cut > 0) == (max_length == 16)


@pytest.mark.parametrize("max_length", [16, 256])
@pytest.mark.parametrize("make", [tagged_words, named_characters])
def test_gold_labels_give_gold_entities(fast_tokenizer, make, max_length):
    tagged = read_tagged_texts(make(1))
    label2id = {name: number for number, name in enumerate(tagged.names)}
    features = encode_tagged_texts(fast_tokenizer, tagged, label2id, max_length=max_length)
    scores = tagging_scores(features.encoded["labels"], features, tagged, tagged.names)
    assert scores["f1"] == 1.0
    if make is tagged_words:
        assert tags_of_units(features.encoded["labels"], features, tagged.names) == tagged.tags
        assert scores["accuracy"] == 1.0


def test_what_no_token_shows_is_outside(fast_tokenizer):
    tagged = read_tagged_texts(Dataset.from_list([{"tokens": ["free", " ", "born"], "ner_tags": ["O", "B-A", "B-A"]}]))
    features = encode_tagged_texts(fast_tokenizer, tagged, {"O": 0, "B-A": 1})
    assert tags_of_units(features.encoded["labels"], features, ("O", "B-A")) == [["O", "O", "B-A"]]


def test_words_and_characters_say_the_same(fast_tokenizer):
    """The same entities, given as tags of words and as characters, are the same entities."""
    words = read_tagged_texts(tagged_words(2))
    rows = [
        {"text": text, "entities": [{"start": e.start, "end": e.end, "label": e.label} for e in entities]}
        for text, entities in zip(words.texts, words.entities, strict=True)
    ]
    characters = read_tagged_texts(Dataset.from_list(rows))
    assert characters.entities == words.entities
    assert set(characters.names) == set(words.names)


def test_integers_have_names():
    rows = {"tokens": [["a", "b"]], "ner_tags": [[0, 2]]}
    names = ["O", "B-A", "I-A"]
    features = Features({"tokens": List(Value("string")), "ner_tags": List(ClassLabel(names=names))})
    assert read_tagged_texts(Dataset.from_dict(rows, features=features)).tags == [["O", "I-A"]]
    plain = Dataset.from_dict(rows)
    assert read_tagged_texts(plain, names=names).names == tuple(names)
    with pytest.raises(ValueError, match="integers and the data set does not say what they mean: --tag-names"):
        read_tagged_texts(plain)
    with pytest.raises(ValueError, match="go up to 2, for 2 names"):
        read_tagged_texts(plain, names=names[:2])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"tokens": ["a"], "ner_tags": ["O", "O"]}, "row 0 has 1 words and 2 tags"),
        ({"words": ["a"], "ner_tags": ["O"]}, "expected the columns tokens and ner_tags, tags"),
        ({"text": "abc", "entities": [{"start": 1, "end": 9, "label": "A"}]}, "row 0.*not inside the text"),
        ({"text": "abc", "entities": [{"start": 0, "end": 2, "label": "A"}, {"start": 1, "end": 3, "label": "A"}]},
         "row 0.*overlap"),
    ],
)  # fmt: skip
def test_bad_rows_are_told(row, message):
    with pytest.raises(ValueError, match=message):
        read_tagged_texts(Dataset.from_list([row]))


def test_tags_that_were_never_seen_are_told():
    train, test = (read_tagged_texts(Dataset.from_list([{"tokens": ["a", "b"], "ner_tags": tags}]))
                   for tags in (["O", "B-A"], ["O", "B-C"]))  # fmt: skip
    with pytest.raises(ValueError, match=r"own.jsonl has tags that the training set does not have: B-C"):
        check_tags(train, test, "own.jsonl")


def test_parts_of_speech_are_scored_by_words(fast_tokenizer):
    tagged = read_tagged_texts(Dataset.from_list([{"tokens": ["free", "born"], "pos_tags": ["ADJ", "VERB"]}]))
    assert tagged.entities == [[]]
    features = encode_tagged_texts(fast_tokenizer, tagged, {"ADJ": 0, "VERB": 1})
    labels = [[0 if label == 1 else label for label in row] for row in features.encoded["labels"]]
    assert tagging_scores(labels, features, tagged, tagged.names) == {"accuracy": 0.5, "macro_f1": pytest.approx(1 / 3)}


def test_entities_are_cut_to_what_shows():
    tagged = read_tagged_texts(
        Dataset.from_list([{"text": "a  b ", "entities": [{"start": 1, "end": 5, "label": "A"}]}])
    )
    assert tagged.entities == [[Entity(3, 4, "A")]]
