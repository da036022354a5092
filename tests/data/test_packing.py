import doctest
from itertools import combinations

import numpy as np
import pytest

from mmbert_hf.data import packing
from mmbert_hf.data.packing import best_fit, cut_into_rows, fullest_fit


def naive_best_fit(lengths, capacity):
    """The textbook: the longest first, into the row with the least room that is enough."""
    rooms = []
    for length in sorted(lengths, reverse=True):
        fitting = [row for row, room in enumerate(rooms) if room >= length]
        if fitting:
            rooms[min(fitting, key=lambda row: rooms[row])] -= length
        else:
            rooms.append(capacity - length)
    return sorted(rooms)


def fewest_rows(lengths, capacity):
    """The optimum, by trying everything."""
    best = len(lengths)

    def place(position, rooms):
        nonlocal best
        if len(rooms) >= best:
            return
        if position == len(lengths):
            best = len(rooms)
            return
        for row, room in enumerate(rooms):
            if room >= lengths[position]:
                place(position + 1, [*rooms[:row], room - lengths[position], *rooms[row + 1 :]])
        place(position + 1, [*rooms, capacity - lengths[position]])

    place(0, [])
    return best


def test_docstring_examples():
    results = doctest.testmod(packing)
    assert (results.failed, results.attempted > 1) == (0, True)


@pytest.mark.parametrize("seed", range(12))
def test_rows_are_those_of_the_textbook(seed):
    rng = np.random.default_rng(seed)
    capacity = int(rng.integers(1, 60))
    lengths = rng.integers(1, capacity + 1, size=rng.integers(0, 200))
    rows = best_fit(lengths, capacity)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    fills = [int(lengths[row].sum()) for row in rows]
    assert sorted(capacity - fill for fill in fills) == naive_best_fit(lengths.tolist(), capacity)
    assert all(one + other > capacity for one, other in combinations(fills, 2))


@pytest.mark.parametrize("seed", range(8))
def test_hardly_more_rows_than_the_optimum(seed):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 11, size=9).tolist()
    assert 9 * len(best_fit(lengths, 10)) <= 11 * fewest_rows(lengths, 10) + 6  # the known bound of best-fit decreasing


def test_a_hundred_thousand_lengths():
    lengths = np.minimum(8192, np.random.default_rng(0).lognormal(5, 1, 100_000).astype(int) + 1)
    rows = best_fit(lengths, 8192)
    assert sum(map(len, rows)) == 100_000
    assert lengths.sum() / (8192 * len(rows)) > 0.999


@pytest.mark.parametrize("seed", range(10))
def test_the_fullest_fit_leaves_least_room_beside_the_longest(seed):
    rng = np.random.default_rng(seed)
    capacity = int(rng.integers(10, 50))
    lengths = rng.integers(1, capacity + 1, size=11)
    rows = fullest_fit(lengths, capacity)
    assert sorted(index for row in rows for index in row) == list(range(11))
    left = set(range(11))
    for row in rows:
        assert lengths[row[0]] == max(lengths[index] for index in left)
        left.remove(row[0])
        others = [lengths[list(subset)].sum() for size in range(len(left) + 1) for subset in combinations(left, size)]
        room = capacity - lengths[row[0]]
        assert lengths[row[1:]].sum() == max(total for total in others if total <= room)
        left -= set(row[1:])


@pytest.mark.parametrize("pack", [best_fit, fullest_fit])
@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        ([3, 0], "length 1 is 0, expected 1 to the capacity of 10"),
        ([3, 11], "length 1 is 11.*cut_into_rows"),
        ([1.5], "whole numbers, got shape .* float64"),
        ([[1], [2]], r"vector of whole numbers, got shape \(2, 1\)"),
    ],
)
def test_bad_lengths_are_refused(pack, lengths, message):
    with pytest.raises(ValueError, match=message):
        pack(lengths, 10)
    assert pack([], 10) == []


@pytest.mark.parametrize(("length", "sizes"), [(1, [1]), (4, [4]), (5, [4, 1]), (8, [4, 4]), (11, [4, 4, 3])])
def test_a_document_is_cut_into_full_pieces_and_a_tail(length, sizes):
    pieces = cut_into_rows(length, 4)
    assert [stop - start for start, stop in pieces] == sizes
    assert [place for start, stop in pieces for place in range(start, stop)] == list(range(length))


@pytest.mark.parametrize(("length", "max_piece"), [(0, 4), (4, 0)])
def test_nothing_to_cut_is_refused(length, max_piece):
    with pytest.raises(ValueError, match=f"at least 1, got {length} and {max_piece}"):
        cut_into_rows(length, max_piece)
