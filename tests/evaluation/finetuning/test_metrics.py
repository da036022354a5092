import doctest
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from mmbert_hf.evaluation.finetuning import metrics
from mmbert_hf.evaluation.finetuning.metrics import (
    Entity,
    answer_scores,
    classification_scores,
    entities_of,
    entity_scores,
    normalise_answer,
    regression_scores,
)


def test_docstring_examples():
    result = doctest.testmod(metrics)
    assert result.attempted >= 7
    assert result.failed == 0


def test_classes_by_hand():
    found = classification_scores([1, 1, 0, 0, 1, 0], [1, 0, 0, 0, 1, 1])
    assert found["accuracy"] == pytest.approx(4 / 6)
    assert found["macro_f1"] == pytest.approx((2 * 2 / (2 * 2 + 2) + 2 * 2 / (2 * 2 + 2)) / 2)
    assert found["matthews_correlation"] == pytest.approx((2 * 2 - 1 * 1) / (3 * 3 * 3 * 3) ** 0.5)
    with pytest.raises(ValueError, match="got 1 predictions and 2 labels"):
        classification_scores([1], [1, 0])


def test_values_by_hand():
    found = regression_scores([1.0, 2.0, 4.0], [1.0, 3.0, 2.0])
    assert found["pearson"] == pytest.approx(1.0 / ((14 / 3) * 2.0) ** 0.5)
    assert found["spearman"] == pytest.approx(0.5)
    assert regression_scores([1.0, 1.0], [0.0, 1.0]) == {"pearson": 0.0, "spearman": 0.0}
    with pytest.raises(ValueError, match="all 2 labels are the same"):
        regression_scores([1.0, 2.0], [3.0, 3.0])


@pytest.mark.parametrize(
    ("tags", "entities"),
    [
        ("O O", []),
        ("B-A I-A O", [(0, 2, "A")]),
        ("B-A B-A", [(0, 1, "A"), (1, 2, "A")]),
        ("B-A I-B", [(0, 1, "A"), (1, 2, "B")]),
        ("I-A I-A O I-A", [(0, 2, "A"), (3, 4, "A")]),
        ("O I-A B-A I-A", [(1, 2, "A"), (2, 4, "A")]),
        ("B-A-B I-A-B", [(0, 2, "A-B")]),
    ],
)
def test_entities_of_tags(tags, entities):
    tags = tags.split()
    assert entities_of(tags, [(place, place + 1) for place in range(len(tags))]) == entities


def test_entity_scores_by_hand():
    gold = [[Entity(0, 2, "A"), Entity(3, 4, "B")], [], [Entity(0, 1, "A")]]
    found = [[Entity(0, 2, "A"), Entity(3, 4, "A")], [Entity(0, 1, "B")], [Entity(0, 1, "A")]]
    assert entity_scores(found, gold) == {
        "precision": 2 / 4,
        "recall": 2 / 3,
        "f1": pytest.approx(2 * (1 / 2) * (2 / 3) / (1 / 2 + 2 / 3)),
    }
    assert entity_scores([[]], [[]])["f1"] == 0.0
    assert entity_scores([[Entity(0, 2, "A")]], [[Entity(0, 1, "A")]])["f1"] == 0.0  # half of it is nothing


def test_entities_of_one_word_are_labels_of_words():
    """Where every entity is one word, entity F1 is scikit-learn's micro F1 over the labels but O."""
    rng = random.Random(0)
    tags, found = ([[rng.choice(["O", "B-A", "B-B"]) for _ in range(6)] for _ in range(20)] for _ in range(2))
    spans = [(place, place + 1) for place in range(6)]
    ours = entity_scores([entities_of(own, spans) for own in found], [entities_of(own, spans) for own in tags])
    flat = [[tag for own in both for tag in own] for both in (tags, found)]
    assert ours["f1"] == pytest.approx(f1_score(*flat, labels=["B-A", "B-B"], average="micro"))


def test_answers_are_compared_in_any_script():
    assert normalise_answer("«Tórshavn», (í) Føroyum…") == "tórshavn í føroyum"
    assert normalise_answer("ሃገረ፡ኤርትራ።") == "ሃገረ ኤርትራ"
    assert normalise_answer("The a an") == "the a an"
    assert normalise_answer("The cat, a dog", strip_articles=True) == "cat dog"
    assert answer_scores(["東京都"], [["東京"]])["f1"] == pytest.approx(0.8)


def test_answer_scores_by_hand():
    found = answer_scores(["a b c", "x", "", "some"], [["b c d", "b"], ["x"], [], []])
    assert found["exact_match"] == pytest.approx(2 / 4)
    assert found["f1"] == pytest.approx((2 / 3 + 1 + 1 + 0) / 4)
    assert answer_scores([""], [["a"]]) == {"exact_match": 0.0, "f1": 0.0}
    assert answer_scores(["word word"], [["word"]])["f1"] == pytest.approx(2 / 3)  # a word counts as often as it stands


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(max_size=20), min_size=1, max_size=5), st.data())
def test_bounds(gold, data):
    answers = [data.draw(st.one_of(st.just(text), st.text(max_size=20))) for text in gold]
    scores = answer_scores(answers, [[text] for text in gold])
    assert 0 <= scores["exact_match"] <= scores["f1"] <= 1
    assert answer_scores(gold, [[text] for text in gold]) == {"exact_match": 1.0, "f1": 1.0}
