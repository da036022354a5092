import doctest

import pytest
from datasets import ClassLabel, Dataset, Features, Value

from mmbert_hf.evaluation.finetuning import classification, training
from mmbert_hf.evaluation.finetuning.classification import check_labels, find_text_columns, read_labelled_texts
from mmbert_hf.evaluation.finetuning.training import FinetuningSettings, load_tokenizer


def test_docstring_examples():
    for module in (classification, training):
        result = doctest.testmod(module)
        assert result.attempted >= 1
        assert result.failed == 0


@pytest.mark.parametrize(
    ("names", "text", "pair"),
    [
        ("sentence label idx", "sentence", None),
        ("sentence1 sentence2 label idx", "sentence1", "sentence2"),
        ("premise hypothesis label", "premise", "hypothesis"),
        ("question1 question2 label", "question1", "question2"),
        ("question sentence label", "question", "sentence"),
        ("text text_pair label", "text", "text_pair"),
        ("id text label", "text", None),
    ],
)
def test_columns_of_glue_are_found(names, text, pair):
    assert find_text_columns(names.split())[:2] == (text, pair)


def test_columns_can_be_named():
    names = ["body", "other", "class", "text"]
    assert find_text_columns(names, text="body", pair="other", label="class") == ("body", "other", "class")
    with pytest.raises(ValueError, match="no column label among"):
        find_text_columns(names)
    with pytest.raises(ValueError, match="no column of texts among"):
        find_text_columns(["body", "label"])
    with pytest.raises(ValueError, match="is paired with another"):
        find_text_columns(names, pair="other")


def texts(labels, **more):
    return Dataset.from_dict({"text": [f"text {place}" for place in range(len(labels))], "label": labels}, **more)


def test_labels_of_every_kind():
    names = ["no", "yes"]
    features = Features({"text": Value("string"), "label": ClassLabel(names=names)})
    assert read_labelled_texts(texts([1, 0], features=features)).labels == ["yes", "no"]
    assert read_labelled_texts(texts([1, 0], features=features)).names == ("no", "yes")
    assert read_labelled_texts(texts([10, 9])).names == ("9", "10")
    assert read_labelled_texts(texts(["b", "a"])).names == ("a", "b")
    assert read_labelled_texts(texts([0.5, 3.0])).names is None
    assert read_labelled_texts(texts([1, 2]), regression=True).labels == [1.0, 2.0]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([1, -1], "1 values of 'label' are -1, which is a hidden label"),
        (["a", None], "are no label, the first in row 1"),
    ],
)
def test_bad_labels_are_told(labels, message):
    with pytest.raises(ValueError, match=message):
        read_labelled_texts(texts(labels))


def test_sets_have_to_fit_together():
    train, values = read_labelled_texts(texts(["a", "b"])), read_labelled_texts(texts([0.5, 1.5]))
    with pytest.raises(ValueError, match="the training set has classes as labels and own has values"):
        check_labels(train, values, "own")
    with pytest.raises(ValueError, match="own has labels that the training set does not have: c"):
        check_labels(train, read_labelled_texts(texts(["a", "c"])), "own")
    with pytest.raises(ValueError, match="has one class, 'a'"):
        check_labels(read_labelled_texts(texts(["a"])), read_labelled_texts(texts(["a"])), "own")


def test_settings_are_checked():
    for wrong in ({"learning_rate": 0.0}, {"max_steps": 0}, {"max_length": 2}, {"warmup_ratio": 1.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            FinetuningSettings(**wrong)


def test_rows_longer_than_the_model_reads_are_told(encoders):
    assert load_tokenizer(str(encoders / "xlm-r"), 68).is_fast  # 70 positions, two of which are in front of the first
    with pytest.raises(ValueError, match=r"max_length is 69, but .* reads 68 tokens: lower it"):
        load_tokenizer(str(encoders / "xlm-r"), 69)
