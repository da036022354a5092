"""Figures of a round by hand, and wasted groups by counting all outcomes."""

import doctest
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mmbert_hf.trainers.spo import metrics as module
from mmbert_hf.trainers.spo.metrics import brier_score, degenerate_group_share, round_metrics
from mmbert_hf.trainers.spo.tracker import ValueTracker

properties = settings(deadline=None, derandomize=True, database=None, max_examples=60)
nan = float("nan")


def of_round(tracker, values, rewards, from_floor=0, starvation_rounds=3):
    number = len(values)
    return round_metrics(
        tracker,
        np.array(values),
        np.array(rewards),
        0.25,
        np.linspace(0.0, 0.1, number),
        np.linspace(0.8, 0.9, number),
        from_floor,
        starvation_rounds=starvation_rounds,
    )


def test_docstring_examples():
    result = doctest.testmod(module)
    assert result.attempted >= 1
    assert result.failed == 0


@properties
@given(st.floats(0, 1), st.integers(1, 5))
def test_wasted_groups_by_counting_all_outcomes(value, group_size):
    expected = 0.0
    for outcome in itertools.product([0, 1], repeat=group_size):
        if len(set(outcome)) == 1:
            expected += math.prod(value if success else 1 - value for success in outcome)
    # a group of one is both: all zeros or all ones
    assert degenerate_group_share(np.array([value]), group_size)[0] == pytest.approx(expected, abs=1e-12)


def test_brier_score():
    assert brier_score(np.array([0.5, 0.25, 0.9]), np.array([1.0, 0.0, nan])) == pytest.approx((0.25 + 0.0625) / 2)
    assert math.isnan(brier_score(np.array([0.5]), np.array([nan])))


def test_figures_of_a_round_by_hand():
    tracker = ValueTracker(5, prior_weight=2.0)
    for number, rows in enumerate([[0, 1], [0, 0], [2], [1]]):
        tracker.round = number
        tracker.update(rows, [1.0] * len(rows), 0.5)
    found = of_round(tracker, [0.5, 0.75], [1.0, 0.0], from_floor=1)
    values = tracker.values
    expected = {
        "value_mean": values.mean(),
        "value_p10": np.quantile(values, 0.1),
        "value_p90": np.quantile(values, 0.9),
        "advantage_std": 0.25,
        "divergence": 0.05,
        "rho": 0.85,
        "n_eff": tracker.weights.mean(),
        "visits": 6 / 5,
        "unseen": 2 / 5,
        "floor_share": 0.5,
        "starved": 2 / 5,  # the unseen: round 3 is the fourth without them; row 0 was there two rounds ago
        "brier": (0.25 + 0.5625) / 2,
        "grpo_wasted": (values**8 + (1 - values) ** 8).mean(),
    }
    assert found == pytest.approx(expected, abs=1e-12)
    assert all(type(value) is float for value in found.values())


@pytest.mark.parametrize(("starvation_rounds", "share"), [(1, 0.8), (2, 0.6), (3, 0.4), (4, 0.4), (5, 0.0)])
def test_starved_is_from_so_many_rounds_without_a_visit_on(starvation_rounds, share):
    tracker = ValueTracker(5)
    for number, rows in enumerate([[0, 1], [0], [2], [1]]):
        tracker.round = number
        tracker.update(rows, [1.0] * len(rows))
    assert of_round(tracker, [0.5], [1.0], starvation_rounds=starvation_rounds)["starved"] == share


def test_of_averages_no_groups_are_said_to_be_wasted():
    tracker = ValueTracker(3, kind="average")
    nothing = of_round(tracker, [nan], [nan])
    assert math.isnan(nothing["value_mean"])
    assert math.isnan(nothing["value_p10"])
    assert math.isnan(nothing["brier"])
    tracker.update([0, 1], [3.0, 5.0])
    found = of_round(tracker, [4.0, 4.0], [3.0, 5.0])
    assert "grpo_wasted" not in found
    assert found["value_mean"] == pytest.approx((tracker.values[0] + tracker.values[1] + 4.0) / 3)


def test_of_very_many_prompts_some_are_looked_at(monkeypatch):
    tracker = ValueTracker(10)
    tracker.update(range(0, 10, 2), [1.0] * 5)
    whole = of_round(tracker, [0.5], [1.0])
    assert (whole["unseen"], whole["visits"]) == (0.5, 0.5)
    monkeypatch.setattr(module, "MAX_PROMPTS", 5)
    some = of_round(tracker, [0.5], [1.0])
    assert (some["unseen"], some["visits"], some["starved"]) == (0.0, 1.0, 0.0)
    assert some["value_mean"] == pytest.approx(tracker.values[0])
