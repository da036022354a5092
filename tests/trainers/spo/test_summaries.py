"""Tables say what the tracker and the log say, bin by bin and record by record."""

import doctest
import json
import math

import numpy as np
import pytest
from mmbert_hf.trainers.spo import summaries
from mmbert_hf.trainers.spo.summaries import (
    LOGGED,
    calibration_error,
    calibration_table,
    run_columns,
    visits_by_value,
    worst_bin,
)
from mmbert_hf.trainers.spo.tracker import ValueTracker


def make_tracker(rounds=30, num_prompts=40, seed=0):
    """A tracker that was asked prompts of different difficulty; the rewards follow their success rates."""
    rng = np.random.default_rng(seed)
    rates = np.linspace(0, 1, num_prompts)
    tracker = ValueTracker(num_prompts)
    for _ in range(rounds):
        rows = rng.integers(0, num_prompts, 16)
        tracker.update(rows, (rng.random(16) < rates[rows]).astype(float), 0.9)
        tracker.round += 1
    return tracker


def test_docstring_examples():
    result = doctest.testmod(summaries)
    assert result.attempted >= 7
    assert result.failed == 0


def test_calibration_is_of_values_from_before_the_rewards():
    tracker = ValueTracker(3, prior_value=0.05, prior_weight=1.0)
    tracker.update([0, 1], [1.0, 0.0])
    values = tracker.values.copy()
    tracker.update([0, 2], [0.0, 1.0])
    table = calibration_table(tracker)
    assert table["value"] == pytest.approx([0.05, values[0]])
    assert table["reward"] == pytest.approx([2 / 3, 0.0])
    assert table["count"] == [3.0, 1.0]
    apart = (abs(0.05 - 2 / 3) * 3 + values[0]) / 4
    assert calibration_error(table) == pytest.approx(apart)


def test_without_observations_there_is_no_error():
    assert calibration_table(ValueTracker(3)) == {"value": [], "reward": [], "count": []}
    assert math.isnan(calibration_error(calibration_table(ValueTracker(3))))
    assert worst_bin(calibration_table(ValueTracker(3))) is None
    average = ValueTracker(2, kind="average")
    average.update([0, 1], [3.0, -2.0])
    assert calibration_table(average)["count"] == []


def test_the_worst_bin_is_one_with_enough_observations():
    table = {"value": [0.1, 0.5, 0.9], "reward": [0.2, 0.45, 0.0], "count": [90.0, 8.0, 2.0]}
    assert worst_bin(table, 0.03) == {"value": 0.1, "reward": 0.2, "count": 90.0}
    assert worst_bin(table) == {"value": 0.9, "reward": 0.0, "count": 2.0}


def test_every_prompt_is_in_the_bin_of_its_value():
    tracker = make_tracker()
    tracker.values[:3] = 0.0, 1.0, 0.5  # both ends, and a boundary
    table = visits_by_value(tracker)
    assert sum(table["prompts"]) == 40
    assert np.dot(table["prompts"], table["mean"]) == pytest.approx(tracker.visits.sum())
    for low, high, prompts, mean, least, most in zip(*(table[name] for name in table), strict=True):
        inside = tracker.visits[(tracker.values >= low) & ((tracker.values < high) | (high == 1.0))]
        assert (prompts, least, most) == (len(inside), inside.min(), inside.max())
        assert mean == pytest.approx(inside.mean())
    assert "floor" not in table


def test_the_floor_is_its_share_of_the_visits():
    tracker = make_tracker()
    assert visits_by_value(tracker, 0.05)["floor"] == pytest.approx(0.05 * 30 * 16 / 40)
    assert visits_by_value(tracker, 0.0)["floor"] == 0.0


def test_rewards_of_any_size_are_binned_over_their_range_and_unknown_prompts_left_out():
    tracker = ValueTracker(5, kind="average")
    tracker.update([0, 1, 1, 2], [-3.0, 7.0, 7.0, 2.0])
    table = visits_by_value(tracker)
    assert sum(table["prompts"]) == 3
    assert (min(table["low"]), max(table["high"])) == (tracker.values[0], tracker.values[1])
    assert visits_by_value(ValueTracker(2, kind="average"))["mean"] == []
    same = ValueTracker(2, kind="average")
    same.update([0, 1], [4.0, 4.0])
    assert visits_by_value(same)["prompts"] == [2]


def test_tables_are_plain_numbers():
    tables = {"calibration": calibration_table(make_tracker()), "visits": visits_by_value(make_tracker(), 0.05)}
    assert json.loads(json.dumps(tables)) == tables


def test_columns_are_of_training_records_alone():
    log = [
        {"step": 1, "loss": 0.0, "reward": 0.5, "spo/rho": 0.9, "grad_norm": 2.0},
        {"step": 1, "eval_loss": 0.0, "eval_reward": 0.7},
        {"step": 2, "loss": 0.0, "reward": 0.6},
        {"step": 2, "train_runtime": 3.0},
    ]
    columns = run_columns(log)
    assert columns["step"] == [1, 2]
    assert columns["reward"] == [0.5, 0.6]
    assert columns["spo/rho"][0] == 0.9
    assert math.isnan(columns["spo/rho"][1])
    assert set(columns) == {"step", "reward", "spo/rho"}
    assert run_columns([]) == {"step": []}


@pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing\\w*` is deprecated:FutureWarning")
def test_a_run_logs_what_is_read_of_it(spo):
    trainer = spo()
    trainer.train()
    columns = run_columns(trainer.state.log_history)
    assert set(columns) == {"step", *LOGGED}
    assert all(np.isfinite(column).all() and len(column) == 2 for column in columns.values())
    assert sum(calibration_table(trainer.tracker)["count"]) == 8
