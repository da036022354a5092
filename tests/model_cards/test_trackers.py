"""The card of a tracker says what is in the table, and claims no calibration that was not measured."""

import doctest
import re

import numpy as np
from mmbert_hf.model_cards import trackers
from mmbert_hf.model_cards.trackers import tracker_card

from mmbert_hf import ValueTracker


def test_examples_in_the_docstrings():
    result = doctest.testmod(trackers)
    assert result.attempted >= 2
    assert result.failed == 0


def test_a_tracker_that_has_seen_something():
    tracker = ValueTracker(4)
    tracker.set_keys(["a", "b", "c", "d"])
    tracker.update([0, 0, 2], [1.0, 1.0, 0.0])
    card = tracker_card("me/values", tracker, base_model="me/policy", license="mit")
    assert re.findall("^## (.*)$", card.text, re.MULTILINE) == ["Use", "What it knew"]
    assert "4 rows" in card.text
    assert "2 of the prompts were answered at least once" in card.text
    assert f"mean value {np.mean(tracker.values):.3f}" in card.text
    assert "mean number of visits 0.8" in card.text
    assert "(https://huggingface.co/me/policy)" in card.text
    assert "value and reward differ by" in card.text
    assert "its row in the data set" not in card.text
    assert card.data.license == "mit"


def test_a_tracker_that_knows_nothing():
    for number in (0, 3):
        text = tracker_card("me/values", ValueTracker(number)).text
        assert "was not measured" in text
        assert "its row in the data set" in text
        assert "No licence was given" in text
        assert "nan" not in text
