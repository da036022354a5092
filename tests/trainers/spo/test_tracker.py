"""The tracker against the recursions of the paper, a brute-force variance, any order, and itself after a pause."""

import doctest
import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mmbert_hf.trainers.spo import tracker as module
from mmbert_hf.trainers.spo.rewards import combine
from mmbert_hf.trainers.spo.tracker import NUM_BINS, ROW_ARRAYS, ValueTracker

# The same examples in every run: a failure is one for everybody.
properties = settings(deadline=None, derandomize=True, database=None, max_examples=60)

unit = st.floats(0.0, 1.0)
success = st.sampled_from([0.0, 1.0])
KINDS = ["beta", "average"]


def assert_same(one: ValueTracker, other: ValueTracker, **tolerance) -> None:
    """Everything that two trackers know is the same, bit for bit unless a tolerance is given."""
    states = one.state_dict(), other.state_dict()
    assert states[0].keys() == states[1].keys()
    for name, expected in states[0].items():
        if tolerance and not isinstance(expected, str | list | type(None)):
            np.testing.assert_allclose(states[1][name], expected, err_msg=name, **tolerance)
        else:
            np.testing.assert_array_equal(states[1][name], expected, err_msg=name)


def a_life(tracker: ValueTracker, rounds: range) -> None:
    """Rounds of training: drift, repeats, rewards that are missing, forgetting."""
    for number in rounds:
        rng = np.random.default_rng(number)
        tracker.drift += rng.uniform(0, 0.05)
        rows = rng.integers(0, len(tracker), size=6)
        rewards = rng.integers(0, 2, size=6) * 1.0 if tracker.kind == "beta" else rng.normal(3, 2, size=6)
        rewards[rng.uniform(size=6) < 0.2] = np.nan
        tracker.update(rows, rewards, 2.0 ** -tracker.drift_since_visit(rows))
        tracker.round += 1


def test_docstring_examples():
    result = doctest.testmod(module)
    assert result.attempted >= 3
    assert result.failed == 0


# The recursions of the paper


@properties
@given(st.lists(st.tuples(success | unit, unit), max_size=30), unit, st.floats(0.1, 20.0))
def test_alpha_and_beta_of_the_paper(observations, prior_value, prior_weight):
    tracker = ValueTracker(3, prior_value=prior_value, prior_weight=prior_weight)
    alpha, beta = prior_value * prior_weight, (1 - prior_value) * prior_weight
    for reward, rho in observations:
        tracker.update([1], [reward], rho)
        alpha, beta = rho * alpha + reward, rho * beta + 1 - reward
        assert tracker.values[1] == pytest.approx(alpha / (alpha + beta), abs=1e-12)
        assert tracker.weights[1] == pytest.approx(alpha + beta, rel=1e-12)
    assert tracker.visits.tolist() == [0, len(observations), 0]
    assert tracker.values[[0, 2]].tolist() == [prior_value] * 2


@properties
@given(st.lists(st.tuples(st.floats(-100, 100), unit), max_size=30), st.floats(-100, 100))
def test_moving_average_of_the_paper(observations, prior_value):
    tracker = ValueTracker(1, kind="average", prior_value=prior_value, prior_weight=3.0)
    value, weight = prior_value, 3.0
    for reward, rho in observations:
        tracker.update([0], [reward], rho)
        value += (reward - value) / (rho * weight + 1)
        weight = rho * weight + 1
        assert tracker.values[0] == pytest.approx(value, abs=1e-10)
        assert tracker.weights[0] == pytest.approx(weight, rel=1e-12)


# Several rewards of one prompt in one batch

batches = st.lists(st.tuples(st.integers(0, 2), success | unit), min_size=1, max_size=12)


@properties
@given(batches.flatmap(lambda batch: st.tuples(st.just(batch), st.permutations(batch))), st.tuples(unit, unit, unit))
def test_repeats_are_one_forgetting_and_all_their_rewards_in_any_order(both, rho_of_row):
    one, other = ValueTracker(3), ValueTracker(3)
    for tracker, batch in zip((one, other), both, strict=True):
        rows, rewards = zip(*batch, strict=True)
        tracker.update([0, 1, 2], [0.25, 0.5, 1.0])
        tracker.update(rows, rewards, [rho_of_row[row] for row in rows])
    assert_same(one, other, rtol=1e-12, atol=1e-12)

    for row, first in enumerate((0.25, 0.5, 1.0)):
        rewards = [reward for place, reward in both[0] if place == row]
        rho = rho_of_row[row] if rewards else 1.0
        alpha = rho * (1 + first) + sum(rewards)
        beta = rho * (2 - first) + sum(1 - reward for reward in rewards)
        assert one.values[row] == pytest.approx(alpha / (alpha + beta), abs=1e-12)
        assert one.weights[row] == pytest.approx(alpha + beta, rel=1e-12)
        assert one.visits[row] == 1 + len(rewards)


def test_repeats_are_not_forgotten_once_each():
    once, each = ValueTracker(1), ValueTracker(1)
    once.update([0, 0], [1.0, 1.0], 0.5)
    for _ in range(2):
        each.update([0], [1.0], 0.5)
    assert once.weights[0] == 0.5 * 2 + 2
    assert each.weights[0] == 0.5 * (0.5 * 2 + 1) + 1


def test_rho_of_a_repeated_prompt_is_that_of_its_first_occurrence():
    tracker = ValueTracker(2)
    tracker.update([1, 0, 1], [1.0, 1.0, 1.0], [0.25, 0.5, 0.75])
    assert tracker.weights.tolist() == [0.5 * 2 + 1, 0.25 * 2 + 2]


# Spread


@properties
@given(st.lists(st.tuples(st.lists(st.floats(-9, 9), min_size=1, max_size=4), unit), min_size=1, max_size=10))
def test_running_variance_by_brute_force(batch_list):
    """Each reward has the weight of all the forgetting since, and the prior is a mass with the variance of all rewards."""
    tracker = ValueTracker(2, kind="average", prior_value=1.5, prior_weight=3.0)
    points, weights, everything = [1.5], [3.0], []
    for number, (rewards, rho) in enumerate(batch_list):
        tracker.update([0, *[1] * len(rewards)], [7.0, *rewards], [1.0, *[rho] * len(rewards)])
        everything += [7.0, *rewards]
        if number == 0:
            prior_variance = np.var(everything)
        points += rewards
        weights = [weight * rho for weight in weights] + [1.0] * len(rewards)
    mean = np.average(points, weights=weights)
    variance = (weights @ (points - mean) ** 2 + weights[0] * prior_variance) / sum(weights)
    assert tracker.values[1] == pytest.approx(mean, abs=1e-10)
    assert tracker.deviations_at([1])[0] ** 2 == pytest.approx(variance, rel=1e-9, abs=1e-10)
    assert tracker.reward_mean == pytest.approx(np.mean(everything), abs=1e-10)
    assert tracker.reward_variance == pytest.approx(np.var(everything), rel=1e-9, abs=1e-10)
    assert tracker.reward_count == len(everything)
    assert tracker.reward_range == (min(everything), max(everything))


def test_deviation_of_a_success():
    tracker = ValueTracker(3, prior_weight=2)
    a_life(tracker, range(20))
    assert tracker.deviations_at([2, 0]) == pytest.approx(
        np.sqrt(tracker.values[[2, 0]] * (1 - tracker.values[[2, 0]]))
    )
    # of binary rewards the running variance, which nobody reads there, is the same number
    assert tracker.squares / tracker.weights == pytest.approx(tracker.values * (1 - tracker.values), abs=1e-12)


def test_a_prompt_never_seen_has_the_variance_of_all_rewards():
    tracker = ValueTracker(3, kind="average")
    assert tracker.deviations_at([0, 2]).tolist() == [0.0, 0.0]
    tracker.update([0, 0, 1], [1.0, 3.0, 8.0])
    assert tracker.deviations_at([2])[0] == pytest.approx(np.std([1.0, 3.0, 8.0]), abs=1e-12)
    assert tracker.deviations_at([0])[0] < 3
    assert tracker.variance_floor == pytest.approx(0.08 * np.var([1.0, 3.0, 8.0]), abs=1e-12)


def test_variance_floor_of_a_success():
    tracker = ValueTracker(1)
    assert tracker.variance_floor == pytest.approx(0.02)
    tracker.update([0], [1.0])
    assert tracker.variance_floor == pytest.approx(0.02)


# What values can be


@properties
@given(
    st.lists(st.tuples(st.lists(success | unit, min_size=1, max_size=5), unit), max_size=20),
    unit,
    st.floats(1e-6, 1e6),
)
def test_values_stay_in_range(batch_list, prior_value, prior_weight):
    tracker = ValueTracker(1, prior_value=prior_value, prior_weight=prior_weight)
    for rewards, rho in batch_list:
        tracker.update([0] * len(rewards), rewards, rho)
        assert 0 <= tracker.values[0] <= 1
        assert tracker.weights[0] >= 1
        assert 0 <= tracker.deviations_at([0])[0] <= 0.5
    assert tracker.calibration[:, 0].sum() == tracker.visits[0]


@pytest.mark.parametrize("weights", [(0.2, 0.8), (0.1,) * 10])
def test_weights_that_float32_rounds_above_one_are_taken(weights):
    number = len(weights)
    rewards = combine(np.ones((1, number)), np.array(weights, dtype=np.float32))
    assert rewards[0] > 1
    tracker = ValueTracker(1, prior_value=1.0)
    tracker.update([0], rewards)
    assert tracker.values[0] == 1.0


@pytest.mark.parametrize("kind", KINDS)
def test_no_reward_changes_nothing(kind):
    tracker, without = (ValueTracker(4, kind=kind) for _ in range(2))
    a_life(tracker, range(5))
    a_life(without, range(5))
    tracker.update([0, 1, 1], [np.nan] * 3, 0.5)
    tracker.update([], [])
    assert_same(tracker, without)
    tracker.update([0, 3, 1, 0], [np.nan, 1.0, 0.0, 0.5], [0.1, 0.5, 0.6, 0.7])
    without.update([3, 1, 0], [1.0, 0.0, 0.5], [0.5, 0.6, 0.7])
    assert_same(tracker, without)


def test_prior_of_an_average_is_the_mean_of_all_rewards():
    tracker = ValueTracker(3, kind="average", prior_weight=2.0)
    assert np.isnan(tracker.values_at([0, 1])).all()
    assert np.isnan(tracker.values_at([0], [np.nan])).all()
    assert tracker.values_at([0, 1, 2], [4.0, np.nan, 8.0]).tolist() == [6.0, 6.0, 6.0]
    tracker.update([0, 1, 2], [4.0, np.nan, 8.0], 0.5)  # in the first batch: the mean of that batch
    assert tracker.values_at([0, 1, 2], [99.0, 99.0, 99.0]).tolist() == [5.0, 6.0, 7.0]
    tracker.update([0, 0], [1.0, 3.0])
    assert tracker.values_at([1])[0] == np.mean([4.0, 8.0, 1.0, 3.0])
    tracker.update([1], [7.0])  # its prior was the mean before this reward
    assert tracker.values[1] == pytest.approx(4.0 + (7.0 - 4.0) / 3, abs=1e-12)


def test_a_prior_that_is_given_stays():
    tracker = ValueTracker(2, kind="average", prior_value=-3.0)
    tracker.update([0], [100.0])
    assert tracker.values_at([1])[0] == -3.0


def test_values_at_is_a_copy():
    tracker = ValueTracker(2)
    tracker.values_at([0, 1])[:] = 9
    assert tracker.values.tolist() == [0.5, 0.5]


# Rows and keys


@pytest.mark.parametrize("kind", KINDS)
def test_growing_leaves_the_old_and_adds_the_unseen(kind):
    tracker = ValueTracker(2, kind=kind, prior_weight=4.0)
    a_life(tracker, range(4))
    before = tracker.state_dict()
    tracker.grow(3)
    assert len(tracker) == 5
    fresh = ValueTracker(3, kind=kind, prior_weight=4.0)
    for name in ROW_ARRAYS:
        array = getattr(tracker, name)
        np.testing.assert_array_equal(array[:2], before[name])
        np.testing.assert_array_equal(array[2:], getattr(fresh, name), err_msg=name)
        assert array.dtype == before[name].dtype
    tracker.grow(0)
    assert len(tracker) == 5


def test_rows_by_key():
    tracker = ValueTracker(0)
    assert tracker.rows_of(["b", "a", "b", "c", "a"]).tolist() == [0, 1, 0, 2, 1]
    tracker.update([0], [1.0])
    assert tracker.rows_of(["d", "a", "d"]).tolist() == [3, 1, 3]
    assert tracker.rows_of([]).dtype == np.int64
    assert tracker.keys == ["b", "a", "c", "d"]
    assert len(tracker) == 4
    assert tracker.values.round(3).tolist() == [0.667, 0.5, 0.5, 0.5]


def test_names_for_rows():
    tracker = ValueTracker(2)
    tracker.set_keys(["x", "y"])
    assert tracker.rows_of(["y", "z"]).tolist() == [1, 2]
    with pytest.raises(ValueError, match="got 2 keys for 3 prompts"):
        tracker.set_keys(["x", "y"])
    with pytest.raises(ValueError, match="ids of prompts must differ, got 'x' more than once"):
        tracker.set_keys(["x", "y", "x"])
    assert tracker.keys == ["x", "y", "z"], "nothing changed"
    with pytest.raises(ValueError, match="have keys: rows_of"):
        tracker.grow(1)


def test_prompts_without_keys_cannot_be_looked_up():
    with pytest.raises(ValueError, match="this tracker has 2 prompts without keys: they are known by number"):
        ValueTracker(2).rows_of(["a"])


# Drift, rounds


def test_drift_since_the_last_answer():
    tracker = ValueTracker(3)
    tracker.drift = 0.4
    tracker.grow(1)
    tracker.update([0, 1], [1.0, np.nan])
    tracker.round, tracker.drift = 7, 1.0
    tracker.update([1], [1.0])
    tracker.drift = 1.25
    assert tracker.drift_since_visit([0, 1, 2, 3]) == pytest.approx([0.85, 0.25, 0.0, 0.0])
    assert tracker.last_round.tolist() == [0, 7, -1, -1]


def test_calibration_counts_values_from_before_the_rewards():
    tracker = ValueTracker(3, prior_value=1.0, prior_weight=1.0)
    tracker.update([0, 1, 0], [1.0, 0.0, 0.0])  # three values of 1, in the last bin
    tracker.update([0, 2], [1.0, np.nan])  # two thirds
    expected = np.zeros((NUM_BINS, 3))
    expected[9] = 3, 3.0, 1.0
    expected[6] = 1, 2 / 3, 1.0
    assert tracker.calibration == pytest.approx(expected)


def test_no_calibration_of_averages():
    tracker = ValueTracker(1, kind="average")
    tracker.update([0], [50.0])
    assert not tracker.calibration.any()


# Known before training


def test_start_from_samples_of_a_success():
    tracker = ValueTracker(4)
    tracker.drift = 0.5
    tracker.start_from([0, 1, 3], [0.0, 8.0, 3.0], [8, 8, 0], weight=5.0)
    assert tracker.values == pytest.approx([0.5 / 9, 8.5 / 9, 0.5, 0.5])
    assert tracker.weights.tolist() == [5.0, 5.0, 2.0, 2.0]
    assert tracker.visits.tolist() == [0] * 4
    tracker.drift = 0.75
    assert tracker.drift_since_visit([0, 1, 2, 3]).tolist() == [0.25, 0.25, 0.0, 0.0]
    tracker.update([0], [1.0], 0.5)
    assert tracker.values[0] == pytest.approx((0.5 * 5 * 0.5 / 9 + 1) / (0.5 * 5 + 1), abs=1e-12)
    assert ValueTracker.start_from.__kwdefaults__["weight"] == 8.0


def test_start_from_samples_of_any_reward():
    samples = {0: [1.0, 3.0], 1: [10.0, 10.0, 16.0], 2: []}
    tracker = ValueTracker(3, kind="average")
    tracker.start_from(
        list(samples),
        [sum(some) for some in samples.values()],
        [len(some) for some in samples.values()],
        [sum(reward**2 for reward in some) for some in samples.values()],
    )
    everything = samples[0] + samples[1]
    assert tracker.values_at([0, 1, 2]) == pytest.approx([2.0, 12.0, np.mean(everything)])
    expected = [np.std(samples[0]), np.std(samples[1]), np.std(everything)]
    assert tracker.deviations_at([0, 1, 2]) == pytest.approx(expected)
    assert tracker.reward_variance == pytest.approx(np.var(everything))
    assert tracker.reward_range == (2.0, 12.0)
    # the first reward adds to the variance of the samples, it does not replace it
    tracker.update([1], [12.0], 0.5)
    assert tracker.deviations_at([1])[0] ** 2 == pytest.approx(np.var(samples[1]) * 4 / 5)


def test_samples_that_hardly_differ_do_not_look_certain():
    """The variance of equal rewards is rounding; without that of all rewards nothing would keep it from being divided by."""
    tracker = ValueTracker(2, kind="average")
    tracker.start_from([0, 1], [8 * 0.1, 8 * 0.7], [8, 8], [8 * 0.1**2, 8 * 0.7**2])
    assert tracker.deviations_at([0])[0] < 1e-7
    assert tracker.variance_floor == pytest.approx(0.08 * 0.3**2)


@pytest.mark.parametrize("kind", KINDS)
def test_values_of_another_run(kind):
    other = ValueTracker(3, kind=kind)
    a_life(other, range(4))
    other.grow(1)
    tracker = ValueTracker(5, kind=kind)
    tracker.drift = 2.0
    tracker.adopt(other, [0, 1, 2, 4], [3, 2, 1, 0])
    for name in ("values", "weights", "squares"):
        np.testing.assert_array_equal(getattr(tracker, name)[[4, 2, 1, 0]], getattr(other, name))
    assert tracker.visits.tolist() == [0] * 5
    np.testing.assert_array_equal(tracker.deviations_at([4, 2, 1, 0]), other.deviations_at([0, 1, 2, 3]))
    assert tracker.values_at([4, 2, 1, 0]) == pytest.approx(other.values_at([0, 1, 2, 3]), abs=1e-12)
    assert tracker.reward_range == other.reward_range
    tracker.drift = 2.5
    assert tracker.drift_since_visit(range(5)).tolist() == [0.0, 0.5, 0.5, 0.0, 0.5], "row 0 is the unseen one"


# The state


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("keyed", [False, True])
def test_continued_is_straight(kind, keyed):
    def fresh():
        tracker = ValueTracker(9, kind=kind, prior_weight=3.0)
        if keyed:
            tracker.set_keys([f"p{number}" for number in range(9)])
        return tracker

    straight, stopped = fresh(), fresh()
    a_life(straight, range(20))
    a_life(stopped, range(8))
    state = stopped.state_dict()
    assert_same(stopped, ValueTracker.from_state_dict(state))
    a_life(stopped, range(8, 12))  # the state is a copy, and does not move on
    for _ in range(2):  # and neither does it with what is made of it
        continued = ValueTracker.from_state_dict(state)
        a_life(continued, range(8, 20))
        assert_same(straight, continued)
    if keyed:
        assert continued.rows_of(["p4", "new"]).tolist() == [4, 9]
        assert "new" not in state["keys"]


def test_the_state_is_plain():
    tracker = ValueTracker(2, kind="average")
    a_life(tracker, range(3))
    plain = {name: value for name, value in tracker.state_dict().items() if not isinstance(value, np.ndarray)}
    assert ValueTracker.from_state_dict({**tracker.state_dict(), **json.loads(json.dumps(plain))}).reward_range == (
        tracker.reward_range
    )


def test_states_that_are_none():
    state = ValueTracker(2).state_dict()
    with pytest.raises(ValueError, match="no drift, visits: it is not one, or it was cut off"):
        ValueTracker.from_state_dict({name: value for name, value in state.items() if name not in ("visits", "drift")})
    with pytest.raises(ValueError, match=r"must have one length, got .*'values': 2, 'weights': 1"):
        ValueTracker.from_state_dict({**state, "weights": np.ones(1)})
    with pytest.raises(ValueError, match="got 3 keys for 2 prompts"):
        ValueTracker.from_state_dict({**state, "keys": ["a", "b", "c"]})


# What is refused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "gamma"}, "kind must be one of beta, average, got 'gamma'"),
        ({"num_prompts": -1}, "num_prompts must be at least 0, got -1"),
        ({"prior_weight": 0.0}, "prior_weight must be above 0, got 0.0"),
        ({"prior_weight": float("nan")}, "prior_weight must be above 0, got nan"),
        ({"prior_weight": float("inf")}, "prior_weight must be above 0, got inf"),
        ({"prior_value": float("inf"), "kind": "average"}, "prior_value must be finite, got inf"),
        ({"prior_value": 1.5}, r"prior_value must be in \[0, 1\] with kind='beta', got 1.5"),
    ],
)
def test_trackers_that_cannot_be(arguments, message):
    with pytest.raises(ValueError, match=message):
        ValueTracker(**arguments)


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        ("beta", ([0, 1], [1.0]), r"two lists of the same length, got \(2,\), \(1,\)"),
        ("beta", ([[0]], [[1.0]]), r"two lists of the same length, got \(1, 1\)"),
        ("beta", ([0, 3], [1.0, 1.0]), r"rows must be in \[0, 3\), got 0 to 3"),
        ("beta", ([-1], [1.0]), r"rows must be in \[0, 3\), got -1 to -1"),
        ("beta", ([0, 1], [1.0, 1.0], [0.5, 1.5]), r"rho must be in \[0, 1\], got 0.5 to 1.5"),
        ("beta", ([0], [1.0], -0.1), r"rho must be in \[0, 1\], got -0.1 to -0.1"),
        ("beta", ([0], [1.0], np.nan), r"rho must be in \[0, 1\], got nan"),
        ("beta", ([0, 1], [-1.0, 1.0]), r"in \[0, 1\] for Beta values, got -1 to 1: scale .* value_model='average'"),
        ("beta", ([0], [1.00001]), r"got 1.00001 to 1.00001"),
        ("beta", ([0], [np.inf]), "rewards must be finite, got inf"),
        ("average", ([0, 1], [5.0, -np.inf]), "rewards must be finite, got -inf"),
    ],
)
def test_updates_that_cannot_be_change_nothing(kind, arguments, message):
    tracker = ValueTracker(3, kind=kind)
    with pytest.raises(ValueError, match=message):
        tracker.update(*arguments)
    assert_same(tracker, ValueTracker(3, kind=kind))


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        ("beta", ([0, 0], [1.0, 1.0], [2, 2]), r"rows must be different and in \[0, 3\), got 0 to 0"),
        ("beta", ([3], [1.0], [2]), r"rows must be different and in \[0, 3\), got 3 to 3"),
        ("beta", ([-1], [1.0], [2]), r"rows must be different and in \[0, 3\), got -1 to -1"),
        ("beta", ([0], [20.0], [8]), r"rewards must be in \[0, 1\] for Beta values, got 2.5"),
        ("average", ([0], [20.0], [8]), "starts from squares as well"),
    ],
)
def test_starts_that_cannot_be_change_nothing(kind, arguments, message):
    tracker = ValueTracker(3, kind=kind)
    with pytest.raises(ValueError, match=message):
        tracker.start_from(*arguments)
    assert_same(tracker, ValueTracker(3, kind=kind))


def test_other_refusals():
    with pytest.raises(ValueError, match="the other tracker has kind 'average', this one 'beta'"):
        ValueTracker(2).adopt(ValueTracker(2, kind="average"), [0], [0])
    with pytest.raises(ValueError, match="grows by at least 0 prompts, got -1"):
        ValueTracker(2).grow(-1)


def test_numpy_alone():
    """The parts that say so need no framework, and are quick to import."""
    script = (
        "import sys\n"
        "from mmbert_hf.trainers.spo import advantages, metrics, prompts, sampling, tracker, tracker_files, ValueTracker\n"
        "print(repr(ValueTracker(3)), {'torch', 'trl', 'transformers', 'datasets', 'scipy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "ValueTracker(3 prompts, 0 seen, kind='beta', round 0) set()"
