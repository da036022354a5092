import doctest
import gc
import itertools
import math

import pytest
import timing
from timing import alternate, compare, median_interval, pairs_for


def test_doctests():
    assert doctest.testmod(timing).failed == 0


@pytest.mark.parametrize("count", [6, 7, 8, 11, 15])
def test_the_coverage_is_that_of_all_ways_to_fall_around_the_median(count):
    interval = median_interval(range(1, count + 1))
    inside = 0
    for sides in itertools.product((False, True), repeat=count):  # each value below the true median or not
        below = sum(sides)
        # the true median lies between the values number `below` and `below + 1`
        inside += interval.low <= below and below + 1 <= interval.high
    assert interval.coverage == inside / 2**count >= 0.95


@pytest.mark.parametrize("count", [6, 9, 15, 40, 101])
def test_the_interval_is_the_shortest_that_covers(count):
    interval = median_interval(range(1, count + 1))
    assert interval.low + interval.high == count + 1  # the same rank from either end
    tail = sum(math.comb(count, below) for below in range(int(interval.low) + 1)) / 2**count
    assert 1 - 2 * tail < 0.95  # one rank narrower does not


def test_fifteen_values_give_the_fourth_from_either_end_in_any_order():
    values = [0.5, 9, 3, 7, 1, 2, 8, 4, 6, 5, 10, 11, 12, 13, 14]
    assert median_interval(values) == (3, 11, pytest.approx(0.96484375))


@pytest.mark.parametrize("count", range(6))
def test_fewer_than_six_values_have_no_interval(count):
    assert median_interval([1.0] * count) is None


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95.0])
def test_confidence_must_be_a_probability(confidence):
    with pytest.raises(ValueError, match="between 0 and 1"):
        median_interval([1.0] * 20, confidence)


def test_turns_alternate_and_the_collector_is_off_while_they_run():
    seen = []
    alternate({name: lambda name=name: seen.append((name, gc.isenabled())) for name in "ABC"}, rounds=3)
    assert seen == [(name, False) for name in "ABC" * 3]
    assert gc.isenabled()


def test_the_collector_is_on_again_after_an_error():
    def fail():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        alternate({"A": fail}, rounds=1)
    assert gc.isenabled()


def test_ratios_are_of_pairs_and_not_of_medians():
    # Each pair says 2, while the medians over the rounds would say 2 only by chance of order.
    result = compare([1.0, 10.0, 3.0, 4.0, 5.0, 6.0], [2.0, 20.0, 6.0, 8.0, 10.0, 12.0])
    assert result["ratios"] == [2.0] * 6
    assert (result["median"], result["interval"], result["note"]) == (2.0, [2.0, 2.0], None)
    assert compare([1.0, 2.0, 4.0], [4.0, 2.0, 2.0])["median"] == 1.0


@pytest.mark.parametrize(("ours", "baseline"), [([], []), ([1.0], [1.0, 2.0])])
def test_unpaired_times_are_refused(ours, baseline):
    with pytest.raises(ValueError, match="must be pairs"):
        compare(ours, baseline)


def test_fast_steps_get_more_pairs():
    assert [pairs_for(seconds) for seconds in (60, 1, 0.5, 0.0)] == [15, 15, 30, 101]
