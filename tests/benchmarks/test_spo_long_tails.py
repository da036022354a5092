"""The engines against cases that have a closed form, what may not be lost, and the page against its numbers."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import spo_engines
import spo_lengths
import spo_long_tails
from scipy.special import ndtr
from spo_engines import NOT_USED, carry_over, first_complete, measure, slot_refill
from spo_lengths import Law, draw, expected_batch_time, quantile

RESULTS = Path(__file__).resolve().parents[2] / "docs/results"
PAGE = RESULTS / "2026-11-29-spo-long-tails.md"
NO_DIFFICULTY = np.zeros(100_000)


@pytest.fixture(scope="module")
def result():
    return json.loads(PAGE.with_suffix(".json").read_text(encoding="utf-8"))


def run_every_policy(lengths, batch, slots):
    """Every policy on as many slots; the refilling engine is left some lengths to end with."""
    num_batches = (lengths.size - slots * lengths.shape[1]) // batch
    return {
        "first complete": first_complete(lengths, batch, slots),
        "refill": slot_refill(lengths, batch, slots, num_batches),
        "carry over": carry_over(lengths, batch, slots),
    }


def measure_line(line, num_warmup=0):
    return measure(line, NO_DIFFICULTY[: len(line.lengths)], num_warmup)


def harmonic(last, first=1):
    return sum(1 / number for number in range(first, last + 1))


@pytest.mark.parametrize("group_size", [1, 2, 8])
def test_with_equal_lengths_every_policy_is_the_barrier(group_size):
    for line in run_every_policy(np.full((320 // group_size, group_size), 3.0), batch=16, slots=16).values():
        np.testing.assert_array_equal(line.batch_times, 3.0 * np.arange(1, len(line.batch_times) + 1))
        measured = measure_line(line, num_warmup=2)
        assert measured["throughput"] == pytest.approx(16 / 3)
        assert measured["slot_share"] == measured["length_bias"] == 1
        assert measured["mean_lag"] == measured["late"] == measured["dropped"] == 0


def test_two_lengths_by_hand():
    single = np.array([[1.0], [4.0], [1.0], [1.0], [1.0], [1.0], [1.0], [1.0]])
    barrier = first_complete(single, batch_size=2, num_launched=2)
    np.testing.assert_array_equal(barrier.batch_times, [4, 5, 6, 7])
    assert measure_line(barrier)["slot_share"] == pytest.approx(11 / 14)

    dropping = first_complete(single, batch_size=2, num_launched=4)
    np.testing.assert_array_equal(dropping.batch_times, [1, 2])
    np.testing.assert_array_equal(dropping.used_in, [0, NOT_USED, 0, NOT_USED, 1, 1, NOT_USED, NOT_USED])
    assert measure_line(dropping)["length_bias"] == pytest.approx(1 / (11 / 8))

    carried = carry_over(single, batch_size=2, pool_size=4)
    np.testing.assert_array_equal(carried.batch_times, [1, 2, 3])
    np.testing.assert_array_equal(carried.used_in, [0, NOT_USED, 0, 1, 1, 2, 2, NOT_USED])
    np.testing.assert_array_equal(carried.starts[:, 0], [0, 0, 0, 0, 1, 1, 2, 2])

    refilled = slot_refill(single, batch_size=2, slots=2, num_batches=3)
    np.testing.assert_array_equal(refilled.starts[:, 0], [0, 0, 1, 2, 3, 4, 4, 5])
    np.testing.assert_array_equal(refilled.batch_times, [2, 4, 5])
    # The straggler ends together with the fourth; it is older and goes first, but both fit.
    np.testing.assert_array_equal(refilled.used_in[:5], [0, 1, 0, 1, 2])
    np.testing.assert_array_equal(refilled.versions[:5, 0], [0, 0, 0, 1, 1])


def test_two_lengths_in_groups_by_hand():
    groups = np.array([[1.0, 4.0], [1.0, 1.0], [1.0, 1.0], [1.0, 1.0], [1.0, 1.0]])
    dropping = first_complete(groups[:2], batch_size=2, num_launched=4)
    np.testing.assert_array_equal(dropping.batch_times, [1])
    np.testing.assert_array_equal(dropping.dropped, [True, False])
    refilled = slot_refill(groups, batch_size=2, slots=2, num_batches=3)
    np.testing.assert_array_equal(refilled.starts, [[0, 0], [1, 2], [3, 4], [4, 5], [5, 6]])
    np.testing.assert_array_equal(refilled.batch_times, [3, 4, 5])
    np.testing.assert_array_equal(refilled.used_in, [1, 0, 2, NOT_USED, NOT_USED])
    # Its second trajectory ends at 5, but the third group began at 3, with the weights of one update.
    np.testing.assert_array_equal(refilled.versions[:3], [[0, 0], [0, 0], [1, 2]])


def test_exponential_lengths_follow_their_order_statistics():
    rng = np.random.default_rng(3)
    barrier = first_complete(rng.exponential(size=(32 * 4000, 1)), 32, 32)
    assert measure_line_time(barrier) == pytest.approx(harmonic(32), rel=0.02)
    singles = first_complete(rng.exponential(size=(64 * 4000, 1)), 32, 64)
    assert measure_line_time(singles) == pytest.approx(harmonic(64, first=33), rel=0.02)
    # Nothing is remembered, so what is carried over is as good as new, and takes the same time.
    carried = carry_over(rng.exponential(size=(64 + 32 * 3999, 1)), 32, 64)
    assert measure_line_time(carried) == pytest.approx(harmonic(64, first=33), rel=0.02)
    # Completions are a Poisson process with the number of slots as its rate.
    refilled = slot_refill(rng.exponential(size=(32 * 4000 + 64, 1)), 32, 64, num_batches=4000)
    assert measure_line_time(refilled) == pytest.approx(32 / 64, rel=0.02)


def measure_line_time(line):
    return line.batch_times[-1] / len(line.batch_times)


@pytest.mark.parametrize("group_size", [1, 4])
@pytest.mark.parametrize("update_time", [0.0, 3.0])
def test_nothing_is_lost_and_the_oldest_go_first(group_size, update_time):
    batch, pool, num_batches = 16, 64, 60
    lengths = (
        np.random.default_rng(5).pareto(1.2, size=((pool + batch * (num_batches - 1)) // group_size, group_size)) + 1
    )
    line = carry_over(lengths, batch, pool, update_time)
    used = line.used_in[line.used_in != NOT_USED]
    assert len(line.batch_times) == num_batches
    np.testing.assert_array_equal(np.bincount(used), np.full(num_batches, batch // group_size))
    assert not line.dropped.any()
    assert (line.used_in == NOT_USED).sum() == (pool - batch) // group_size, "the rest of the pool is under way"
    finish = (line.starts + line.lengths).max(1)
    waited = 0
    for number, now in enumerate(line.batch_times):
        taken = np.flatnonzero(line.used_in == number)
        left = np.flatnonzero((finish <= now) & ((line.used_in > number) | (line.used_in == NOT_USED)))
        left = left[line.starts[left, 0] <= now]
        assert (finish[taken] <= now).all()
        assert not len(left) or left.min() > taken.max(), "a complete one was passed over for a younger one"
        waited += len(left)
    assert (waited > 0) == (update_time > 0), "only a slow trainer leaves something to choose from"
    ends = line.batch_times + update_time
    np.testing.assert_array_equal(line.versions[:, 0], np.searchsorted(ends, line.starts[:, 0], side="right"))


def test_newest_first_leaves_the_old_ones_waiting():
    lengths = np.random.default_rng(5).lognormal(size=(64 + 16 * 199, 1))
    oldest, newest = (carry_over(lengths, 16, 64, 3.0, oldest_first) for oldest_first in (True, False))
    assert measure_line(newest, 20)["longest_lag"] > 2 * measure_line(oldest, 20)["longest_lag"]
    oldest_left, newest_left = (np.flatnonzero(line.used_in == NOT_USED).min() for line in (oldest, newest))
    assert newest_left < len(lengths) / 2 < oldest_left


@pytest.mark.parametrize("group_size", [1, 8])
def test_the_refilling_engine_is_always_full_and_takes_what_is_complete(group_size):
    slots, batch, num_batches = 24, 16, 50
    lengths = np.random.default_rng(7).lognormal(
        size=((num_batches * batch + slots * group_size) // group_size, group_size)
    )
    line = slot_refill(lengths, batch, slots, num_batches)
    begins, ends = np.sort(line.starts.ravel()), np.sort((line.starts + lengths).ravel())
    np.testing.assert_array_equal(begins[:slots], 0)
    np.testing.assert_array_equal(begins[slots:], ends[: len(begins) - slots])
    complete = (line.starts + lengths).max(1)
    np.testing.assert_array_equal(np.bincount(line.used_in + 1)[1:], batch // group_size)
    for number, now in enumerate(line.batch_times):
        assert complete[line.used_in == number].max() == now
        assert (complete[(line.used_in == NOT_USED) | (line.used_in > number)] >= now).all()
        assert (line.versions[line.used_in == number] <= number).all()


def test_groups_do_not_slow_a_refilling_engine():
    lengths = np.random.default_rng(9).lognormal(size=(600, 8))
    groups = slot_refill(lengths, 32, 32, num_batches=100)
    singles = slot_refill(lengths.reshape(-1, 1), 32, 32, num_batches=100)
    np.testing.assert_array_equal(groups.starts.ravel(), singles.starts.ravel())
    assert measure_line(groups, 20)["mean_lag"] > 2 * measure_line(singles, 20)["mean_lag"]


def test_mean_lag_obeys_littles_law():
    # Mean lag + 1 = trajectories launched and not yet used, at the moment of an update / batch.
    rng = np.random.default_rng(11)
    carried = carry_over(rng.lognormal(size=(96 + 32 * 1999, 1)), 32, 96)
    assert measure_line(carried, 50)["mean_lag"] == pytest.approx(96 / 32 - 1, rel=0.01)
    refilled = slot_refill(rng.lognormal(size=(32 * 2000 + 80, 1)), 32, 80, num_batches=2000)
    assert measure_line(refilled, 50)["mean_lag"] == pytest.approx((80 - 1) / 32, rel=0.01)


@pytest.mark.parametrize(
    "law", [Law("lognormal", 1.1), Law("pareto", 1.4), Law("stragglers", 5.0), Law("stragglers", 5.0, body_spread=0.0)]
)
def test_lengths_follow_their_law_and_batches_its_order_statistics(law):
    lengths, difficulties = draw(law, np.random.default_rng(13), 256 * 400, 1)
    assert lengths.max() <= spo_lengths.LONGEST
    assert difficulties.std() == pytest.approx(1, abs=0.02)
    shares = np.array([0.2, 0.5, 0.85, 0.95])
    np.testing.assert_allclose(np.quantile(lengths, shares), quantile(law, shares), rtol=0.03)
    for size in (1, 8):
        lengths, _ = draw(law, np.random.default_rng(17), 256 * 1000 // size, size)
        simulated = measure_line_time(first_complete(lengths, 128, 256))
        assert simulated == pytest.approx(expected_batch_time(law, 128, 256, size), rel=0.025)


def test_prompt_share_moves_variance_to_the_prompt():
    for share in (0.0, 0.5, 1.0):
        logs = np.log(draw(Law("lognormal", 0.8, prompt_share=share), np.random.default_rng(1), 20_000, 8)[0])
        assert logs.std() == pytest.approx(0.8, rel=0.02)
        within = logs.var(axis=1, ddof=1).mean()
        assert within == pytest.approx(0.64 * (1 - share), rel=0.02, abs=1e-12)


def test_dropping_trains_on_short_and_easy_prompts():
    law = Law("lognormal", 1.0, prompt_share=0.5)
    lengths, difficulties = draw(law, np.random.default_rng(19), 256 * 200, 1)
    dropped = measure(first_complete(lengths, 128, 256), difficulties, 20)
    # The mean of a lognormal variable below its median is Phi(-sigma) / 0.5 of its mean.
    assert dropped["length_bias"] == pytest.approx(2 * ndtr(-1.0), rel=0.03)
    assert dropped["hard"] < 0.1
    assert dropped["dropped"] == 0.5
    carried = measure(carry_over(lengths, 128, 256), difficulties, 20)
    assert carried["length_bias"] == pytest.approx(1, abs=0.03)
    assert carried["hard"] == pytest.approx(0.25, abs=0.01)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Law("uniform", 1.0), "choose one of lognormal"),
        (lambda: Law("pareto", -1.0), "give a positive"),
        (lambda: Law("pareto", 1.0, prompt_share=0.5), "lognormal lengths only"),
        (lambda: Law("stragglers", 0.5), "a multiple of 1 or more"),
        (lambda: quantile(Law("lognormal", 1.0, prompt_share=0.5), np.array([0.5])), "only if it is 0"),
        (lambda: first_complete(np.ones((4, 1)), 3, 2), "a launch takes at least a batch"),
        (lambda: first_complete(np.ones((5, 1)), 2, 2), "whole launches"),
        (lambda: first_complete(np.ones((4, 2)), 3, 4), "multiple of the group size, 2"),
        (lambda: first_complete(np.zeros((4, 1)), 2, 2), "positive lengths"),
        (lambda: slot_refill(np.ones((4, 1)), 2, 2, num_batches=2), "give at least 6"),
        (lambda: carry_over(np.ones((5, 1)), 2, 4), "the prompts are the pool and whole batches"),
        (lambda: carry_over(np.ones((4, 1)), 2, 4, update_time=-1.0), "give 0 or more"),
        (lambda: measure_line(first_complete(np.ones((4, 1)), 2, 2), num_warmup=2), "leave at least one"),
        (lambda: spo_long_tails.solve(Law("lognormal", 1.0), (0.1, 0.5)), "4.35 is outside"),
    ],
)
def test_errors_say_what_to_give(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_papers_number_needs_the_lengths_the_page_says(result):
    page = PAGE.read_text(encoding="utf-8")
    for name, (law, bounds) in spo_long_tails.SEARCHES.items():
        found = result["solved"][name]
        assert found["solved"]["parameter"] == pytest.approx(spo_long_tails.solve(law, bounds), rel=1e-6)
        assert found["solved"]["expected"] == pytest.approx(4.35, abs=1e-6)
        assert f"| {found['solved']['parameter']:.3f} |" in page
        mean, half_width = spo_long_tails.interval(found["solved"]["simulated"])
        assert mean == pytest.approx(4.35, abs=2 * half_width)
    # The laws of the other tables are these, rounded.
    for law, found in zip(list(spo_long_tails.SETTINGS.values())[:3], list(result["solved"].values())[:3], strict=True):
        assert law.parameter == round(found["solved"]["parameter"], 1 if law.kind == "stragglers" else 2)


def test_the_page_shows_the_tables_of_its_numbers(result):
    page = PAGE.read_text(encoding="utf-8").splitlines()
    for line in spo_long_tails.tables(result).splitlines():
        assert not line.startswith("|") or line in page
    assert result["constants"]["seeds"] == list(spo_long_tails.SEEDS)
    assert len(result["order"]["oldest first"]["mean_lag"]) == len(spo_long_tails.SEEDS) >= 20


def test_the_same_seeds_give_the_numbers_of_the_page(result):
    again = spo_long_tails.run_all(seeds=spo_long_tails.SEEDS[:1])
    compared = 0

    def compare(mine, theirs):
        nonlocal compared
        if isinstance(mine, dict):
            assert mine.keys() == theirs.keys()
            for key, value in mine.items():
                compare(value, theirs[key])
        else:
            theirs = theirs[:1] if isinstance(theirs, list) else theirs
            assert mine == pytest.approx(theirs, rel=1e-4)
            compared += 1

    for part, values in again.items():
        compare(values, result[part])
    assert compared > 400
    times = result["engines"]["lognormal 1.07"][spo_long_tails.BARRIER]["time_per_batch"]
    assert len(set(times)) == len(spo_long_tails.SEEDS), "every seed is another run"


def test_the_command_writes_what_it_shows(tmp_path, monkeypatch, capsys, result):
    parts = {name: result[name] for name in ("solved", "engines", "prompts", "slots", "order")}
    monkeypatch.setattr(spo_long_tails, "run_all", lambda: parts)
    monkeypatch.setitem(sys.modules, "machine", SimpleNamespace(describe=lambda device: {"device": device}))
    assert spo_long_tails.main(["--output", str(tmp_path / "out.json")]) == 0
    written = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert {name: written[name] for name in parts} == parts
    assert written["constants"] == result["constants"]
    assert capsys.readouterr().out == spo_long_tails.tables(parts) + "\n"
    with pytest.raises(SystemExit):
        spo_long_tails.main(["--output", str(tmp_path / "missing" / "out.json")])


def test_late_is_more_than_four_updates():
    line = spo_engines.Timeline(
        slots=1,
        lengths=np.ones((2, 1)),
        starts=np.zeros((2, 1)),
        versions=np.zeros((2, 1), int),
        used_in=np.array([4, 5]),
        dropped=np.zeros(2, bool),
        batch_times=np.arange(1.0, 7.0),
    )
    measured = measure_line(line)
    assert (measured["mean_lag"], measured["late"], measured["longest_lag"]) == (4.5, 0.5, 5)
