"""Draws: in proportion to their weights, nobody starved whatever the weights are, and a function of (seed, round)."""

import doctest
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mmbert_hf.trainers.spo import sampling as module
from mmbert_hf.trainers.spo.sampling import (
    SAMPLING,
    draw_prompts,
    floor_draws,
    floor_steps,
    prompt_weights,
    stratified_draws,
)
from mmbert_hf.trainers.spo.tracker import ValueTracker

properties = settings(deadline=None, derandomize=True, database=None, max_examples=60)


def tracker_of(values, weights=None, **options) -> ValueTracker:
    tracker = ValueTracker(len(values), **options)
    tracker.values[:] = values
    if weights is not None:
        tracker.weights[:] = weights
    return tracker


def rounds_of(tracker: ValueTracker, num_rounds: int, num_draws: int, **options) -> list[np.ndarray]:
    drawn = []
    for _ in range(num_rounds):
        drawn.append(draw_prompts(tracker, num_draws, **options)[0])
        tracker.round += 1
    return drawn


def test_docstring_examples():
    result = doctest.testmod(module)
    assert result.attempted >= 5
    assert result.failed == 0


# Weights


def test_weights_of_a_success_by_hand():
    tracker = tracker_of([0.0, 0.1, 0.5, 1.0], [2.0, 4.0, 16.0, 1.0])
    assert prompt_weights(tracker, "unsolved") == pytest.approx([1.05, 0.95, 0.55, 0.05])
    assert prompt_weights(tracker, "bernoulli") == pytest.approx([0.05, 0.35, 0.55, 0.05])
    assert prompt_weights(tracker, "uniform").tolist() == [1.0] * 4
    known = {"weight_offset": 0.5, "n_eff_power": 0.5}
    assert prompt_weights(tracker, "unsolved", **known) == pytest.approx([1 / 2**0.5 + 0.5, 0.95, 0.625, 0.5])
    assert prompt_weights(tracker, "bernoulli", **known) == pytest.approx([0.5, 0.65, 0.625, 0.5])


@pytest.mark.parametrize("scale", [1.0, 1e-3, 100.0])
def test_weights_of_any_reward_are_in_the_scale_of_a_success(scale):
    """Rewards from -1 to 3, in several units: the offset is as much beside each of them."""
    tracker = ValueTracker(4, kind="average", prior_weight=1.0)
    tracker.update([0, 0, 1, 1, 2], np.array([-1.0, -1.0, 3.0, 1.0, 0.0]) * scale, 0.0)
    # values -1, 2, 0 and the mean of all, 0.4
    assert prompt_weights(tracker, "unsolved") == pytest.approx([1.05, 0.3, 0.8, 0.7])
    spread = np.std([-1.0, -1.0, 3.0, 1.0, 0.0])
    assert prompt_weights(tracker, "bernoulli", weight_offset=0.0) == pytest.approx([0.0, 0.25, 0.0, spread / 4])


@pytest.mark.parametrize("sampling", SAMPLING)
def test_all_are_equal_while_nothing_is_known(sampling):
    for rewards in ([], [7.0], [7.0, 7.0]):
        tracker = ValueTracker(3, kind="average")
        tracker.update([0] * len(rewards), rewards)
        weights = prompt_weights(tracker, sampling, rng=np.random.default_rng(0))
        assert np.isfinite(weights).all()
        assert weights == pytest.approx([weights[0]] * 3)


def test_plausible_values_of_a_success():
    """Beta(v N, (1 - v) N) has mean v and variance v (1 - v) / (N + 1)."""
    tracker = tracker_of(np.repeat([0.2, 0.5, 0.0, 1.0], 20_000), np.repeat([3.0, 9.0, 4.0, 4.0], 20_000))
    weights = prompt_weights(tracker, "thompson", weight_offset=0.0, rng=np.random.default_rng(1)).reshape(4, -1)
    assert weights.mean(axis=1) == pytest.approx([0.8, 0.5, 1.0, 0.0], abs=0.01)
    assert weights.var(axis=1) == pytest.approx([0.04, 0.025, 0.0, 0.0], abs=0.001)


def test_plausible_values_of_any_reward():
    tracker = ValueTracker(20_001, kind="average", prior_value=5.0, prior_weight=4.0)
    tracker.update([0, 0], [0.0, 10.0])  # a range of 10, a deviation of 5
    weights = prompt_weights(tracker, "thompson", weight_offset=0.0, rng=np.random.default_rng(2))[1:]
    assert weights.mean() == pytest.approx(0.5, abs=0.01)
    assert weights.std() == pytest.approx(5 / math.sqrt(4) / 10, rel=0.05)


def test_weights_that_cannot_be():
    with pytest.raises(ValueError, match="sampling must be one of unsolved, bernoulli, thompson, uniform, got 'hard'"):
        prompt_weights(ValueTracker(2), "hard")
    with pytest.raises(ValueError, match="sampling='thompson' draws values: give rng"):
        prompt_weights(ValueTracker(2), "thompson")
    with pytest.raises(ValueError, match="there are no prompts to draw from"):
        draw_prompts(ValueTracker(0), 3)


# Draws by weight

some_weights = st.lists(st.sampled_from([0.0, 0.0, 1.0]) | st.floats(1e-6, 1e6), min_size=1, max_size=12)


@properties
@given(some_weights, st.integers(1, 200), st.integers(0, 9))
def test_numbers_of_draws_are_less_than_two_off(weights, num_draws, seed):
    drawn = stratified_draws(np.array(weights), num_draws, np.random.default_rng(seed))
    assert drawn.shape == (num_draws,)
    assert drawn.dtype == np.int64
    counts = np.bincount(drawn, minlength=len(weights))
    shares = np.array(weights) / sum(weights) if sum(weights) else np.full(len(weights), 1 / len(weights))
    assert (np.abs(counts - num_draws * shares) < 2 + 1e-9).all()
    if sum(weights):
        assert (counts[np.array(weights) == 0] == 0).all()


class Lowest:
    """The least of what a generator can give."""

    def random(self, number):
        return np.zeros(number)

    def permutation(self, array):
        return array


def test_the_ends_of_slices_belong_to_who_has_weight():
    assert stratified_draws(np.array([0.0, 1.0, 0.0, 1.0]), 2, Lowest()).tolist() == [1, 3]


@pytest.mark.parametrize("num_draws", [1, 7])
def test_draws_are_proportional(num_draws):
    """Over many rounds: within five standard errors of independent draws, which vary more."""
    weights, rng, num_rounds = np.array([0.0, 0.1, 1.0, 3.0, 0.5, 0.0, 5.4]), np.random.default_rng(3), 4000
    counts = sum(np.bincount(stratified_draws(weights, num_draws, rng), minlength=7) for _ in range(num_rounds))
    share = weights / weights.sum()
    error = np.sqrt(num_rounds * num_draws * share * (1 - share))
    assert (np.abs(counts - num_rounds * num_draws * share) <= 5 * error).all()


def test_draws_are_in_random_order():
    """Each process takes a slice of them, so no slice may be of one end of the data set, nor of the floor."""
    rng = np.random.default_rng(4)
    drawn = np.stack([stratified_draws(np.ones(64), 64, rng) for _ in range(200)])
    assert np.abs(drawn.mean(axis=0) - 31.5).max() < 8  # five standard errors are 6.5, a sorted one is 31 off
    tracker = tracker_of([0.0] * 32 + [1.0] * 32)
    rounds = np.stack(rounds_of(tracker, 300, 16, exploration_floor=0.5, weight_offset=0.0))
    from_floor_alone = (rounds >= 32).mean(axis=0)  # solved prompts come by the floor, a quarter of the draws
    assert from_floor_alone == pytest.approx([0.25] * 16, abs=0.13)


# Nobody starves


def longest_wait(rounds: list[np.ndarray], num_prompts: int) -> int:
    """The largest number of rounds from one visit (or the start) to the next, of any prompt, open ends included."""
    last = np.full(num_prompts, -1)
    longest = 0
    for number, drawn in enumerate(rounds):
        longest = max(longest, int((number - last[drawn]).max(initial=0)))
        last[drawn] = number
    return max(longest, int((len(rounds) - last).max()))


@pytest.mark.parametrize(
    ("num_prompts", "num_draws", "floor"),
    [
        (40, 8, 0.25),
        (100, 16, 0.05),
        (64, 16, 1.0),
        (7, 5, 0.1),
        (13, 3, 0.07),
        (5, 1, 0.05),
        (3, 64, 0.05),
        (1, 2, 0.3),
    ],
)
def test_nobody_waits_longer_than_the_floor_promises(num_prompts, num_draws, floor):
    """Hard prompts have weight 0 here, and an adversary keeps all others there as well, but for the one just answered."""
    promised = math.ceil(num_prompts / (floor * num_draws))
    tracker = tracker_of([1.0] * num_prompts)
    rounds = []
    for _ in range(max(300, 3 * promised)):
        drawn, _ = draw_prompts(tracker, num_draws, exploration_floor=floor, weight_offset=0.0)
        tracker.values[:] = 1.0
        tracker.values[drawn[0]] = 0.0
        tracker.round += 1
        rounds.append(drawn)
    assert longest_wait(rounds, num_prompts) <= promised


@properties
@given(st.integers(1, 40), st.integers(1, 40), st.floats(0.02, 1.0), st.integers(0, 5))
def test_the_walk_keeps_its_promise(num_prompts, num_draws, floor, seed):
    promised = math.ceil(num_prompts / (floor * num_draws))
    steps = [floor_steps(number, num_draws, floor) for number in range(2 * promised + 3)]
    walk = floor_draws(num_prompts, 0, sum(steps[-1]), seed)
    assert longest_wait([walk[start : start + number] for start, number in steps], num_prompts) <= promised


def test_without_a_floor_they_starve():
    """What the floor is for: the paper's offset alone leaves prompts unseen in as many rounds as visit all ten times."""
    options = {"exploration_floor": 0.0, "sampling": "bernoulli", "weight_offset": 0.05}
    tracker = tracker_of([0.5] * 950 + [0.0] * 50)
    drawn = np.concatenate(rounds_of(tracker, 125, 8, **options))
    assert len(np.unique(drawn[drawn >= 950])) < 25
    tracker.round = 0
    drawn = np.concatenate(rounds_of(tracker, 125, 80, **{**options, "exploration_floor": 0.1}))
    assert len(np.unique(drawn[drawn >= 950])) == 50


@pytest.mark.parametrize(("num_draws", "floor"), [(8, 0.05), (16, 0.1), (3, 1 / 3), (128, 0.05), (10, 0.0), (7, 1.0)])
def test_share_of_the_floor(num_draws, floor):
    """Rounds join without a gap, and the shares of single draws are carried over."""
    end = 0
    for number in range(200):
        start, drawn = floor_steps(number, num_draws, floor)
        assert start == end
        assert 0 <= drawn <= num_draws
        end = start + drawn
    assert end == math.floor(200 * num_draws * floor + 1e-6)
    tracker = ValueTracker(50)
    told = []
    for _ in range(100):
        drawn, from_floor = draw_prompts(tracker, num_draws, exploration_floor=floor)
        assert len(drawn) == num_draws
        told.append(from_floor)
        tracker.round += 1
    assert sum(told) == math.floor(100 * num_draws * floor + 1e-6)


# Uniform


@pytest.mark.parametrize(("num_prompts", "num_draws"), [(24, 8), (25, 8), (5, 16), (1, 3)])
def test_uniform_is_a_permutation_in_each_pass(num_prompts, num_draws):
    tracker = tracker_of(np.linspace(0, 1, num_prompts))
    rounds = rounds_of(tracker, 30, num_draws, sampling="uniform", exploration_floor=0.0)
    complete = 30 * num_draws // num_prompts
    passes = [set() for _ in range(complete + 2)]
    for number, drawn in enumerate(rounds):
        for row in drawn.tolist():  # of the first pass that is not over and has not had it
            turn = number * num_draws // num_prompts
            while row in passes[turn]:
                turn += 1
            passes[turn].add(row)
    assert all(len(each) == num_prompts for each in passes[:complete])
    if num_prompts == 3 * num_draws:  # other prompts come together in every pass
        assert not {frozenset(drawn) for drawn in rounds[:3]} & {frozenset(drawn) for drawn in rounds[3:6]}


def test_passes_differ_if_reshuffled_and_only_then():
    first, second = np.split(floor_draws(50, 0, 100, seed=3, reshuffled=True), 2)
    assert sorted(first) == sorted(second) == list(range(50))
    assert (first != second).mean() > 0.5
    np.testing.assert_array_equal(floor_draws(50, 0, 100, seed=3), np.tile(first, 2))
    assert (floor_draws(50, 0, 50, seed=4) != first).mean() > 0.5


@properties
@given(st.integers(1, 20), st.lists(st.integers(0, 30), max_size=6), st.booleans())
def test_the_walk_can_be_entered_anywhere(num_prompts, lengths, reshuffled):
    whole = floor_draws(num_prompts, 0, sum(lengths), seed=1, reshuffled=reshuffled)
    starts = np.cumsum([0, *lengths])[:-1]
    pieces = [
        floor_draws(num_prompts, start, length, seed=1, reshuffled=reshuffled)
        for start, length in zip(starts, lengths, strict=True)
    ]
    np.testing.assert_array_equal(np.concatenate([np.empty(0, np.int64), *pieces]), whole)


# The same for everybody


@pytest.mark.parametrize("sampling", SAMPLING)
def test_a_function_of_seed_and_round(sampling):
    tracker = tracker_of(np.linspace(0, 1, 100))
    options = {"sampling": sampling, "exploration_floor": 0.2}
    drawn = draw_prompts(tracker, 32, seed=5, **options)[0]
    np.random.seed(0)  # noqa: NPY002 - the global state must have no part
    np.testing.assert_array_equal(draw_prompts(tracker_of(tracker.values), 32, seed=5, **options)[0], drawn)
    assert (draw_prompts(tracker, 32, seed=6, **options)[0] != drawn).any()
    tracker.round = 1
    assert (draw_prompts(tracker, 32, seed=5, **options)[0] != drawn).any()


@pytest.mark.parametrize("sampling", SAMPLING)
def test_resumed_in_the_middle_is_straight(sampling):
    def run(tracker, until):
        drawn = []
        while tracker.round < until:
            rows = draw_prompts(tracker, 12, sampling=sampling, exploration_floor=0.1, n_eff_power=0.5, seed=7)[0]
            tracker.update(rows, rows % 2, 0.9)
            tracker.round += 1
            drawn.append(rows)
        return drawn

    straight = run(ValueTracker(30), 20)
    tracker = ValueTracker(30)
    before = run(tracker, 9)
    after = run(ValueTracker.from_state_dict(tracker.state_dict()), 20)
    np.testing.assert_array_equal(np.stack(before + after), np.stack(straight))


def test_a_million_prompts():
    tracker = ValueTracker(1_000_000)
    tracker.values[:900_000] = 1.0
    tracker.round = 123
    drawn, from_floor = draw_prompts(tracker, 4096, exploration_floor=0.25, weight_offset=0.0, sampling="thompson")
    assert from_floor == 1024
    assert drawn.min() >= 0
    assert drawn.max() < 1_000_000
    unsolved = (drawn >= 900_000).sum()  # all but the floor's, of which a tenth is
    assert 3072 + 50 < unsolved < 3072 + 170
    first, then = (floor_draws(1_000_000, *floor_steps(number, 4096, 0.25), seed=0) for number in (123, 124))
    assert len(np.unique(np.concatenate([first, then]))) == 2048


# Very many prompts


@pytest.mark.parametrize("sampling", ["unsolved", "thompson"])
def test_a_part_of_very_many_prompts_is_weighed_and_nobody_is_drawn_more_or_less(sampling, monkeypatch):
    """Prompts of four values: their shares of the draws are those of their weights, whatever part a round looks at."""
    monkeypatch.setattr(module, "MOST_WEIGHED", 100)
    weighed = []
    real = module.prompt_weights
    monkeypatch.setattr(
        module, "prompt_weights", lambda *args, **options: weighed.append(options["rows"]) or real(*args, **options)
    )
    values = np.tile([0.0, 0.3, 0.6, 1.0], 101)  # 404 prompts, no multiple of 100
    tracker = tracker_of(values, np.full(404, 8.0))
    drawn = np.concatenate(rounds_of(tracker, 3000, 16, sampling=sampling, exploration_floor=0.0))
    assert {len(rows) for rows in weighed} == {100}
    assert set(np.unique(np.concatenate(weighed))) == set(range(404)), "everybody is looked at"
    share = np.bincount(drawn % 4, minlength=4) / len(drawn)
    weights = 1 - np.array([0.0, 0.3, 0.6, 1.0]) + 0.05
    assert share == pytest.approx(weights / weights.sum(), abs=5 * 0.5 / np.sqrt(len(drawn)))
    alike = np.bincount(drawn[drawn % 4 == 0] // 4, minlength=101)  # those of one value among themselves
    assert (np.abs(alike - alike.mean()) < 5 * np.sqrt(alike.mean())).all()


def test_few_prompts_are_all_weighed(monkeypatch):
    drawn = draw_prompts(tracker_of([0.0] * 100), 32, seed=1)[0]
    monkeypatch.setattr(module, "MOST_WEIGHED", 100)
    np.testing.assert_array_equal(draw_prompts(tracker_of([0.0] * 100), 32, seed=1)[0], drawn)
