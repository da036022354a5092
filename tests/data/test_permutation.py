import doctest

import numpy as np
import pytest

from mmbert_hf.data import permutation
from mmbert_hf.data.permutation import IndexPermutation


def test_docstring_examples():
    results = doctest.testmod(permutation)
    assert (results.failed, results.attempted > 1) == (0, True)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 15, 16, 17, 255, 256, 257, 1000, 65_537])
@pytest.mark.parametrize("seed", [0, (3, 1, 2)])
def test_every_number_occurs_once(n, seed):
    order = IndexPermutation(n, seed)
    assert len(order) == n
    assert np.array_equal(np.sort(order(np.arange(n))), np.arange(n))


def test_ints_and_arrays_of_any_shape_agree():
    order = IndexPermutation(1000, 7)
    places = np.array([[0, 5, 999], [1, 1, 500]], dtype=np.int32)
    values = order(places)
    assert (values.shape, values.dtype) == ((2, 3), np.int64)
    assert values.tolist() == [[order(int(place)) for place in row] for row in places]
    assert order(np.zeros(0, dtype=np.int64)).shape == (0,)
    assert type(order(3)) is int


def test_seeds_give_different_orders_and_the_same_seed_the_same():
    orders = {tuple(IndexPermutation(50, seed)(np.arange(50))) for seed in [*range(20), (0, 1), (1, 0), (2**70, 3)]}
    assert len(orders) == 23
    assert IndexPermutation(50, 3)(np.arange(50)).tolist() == IndexPermutation(50, [3])(np.arange(50)).tolist()


@pytest.mark.parametrize(("n", "critical"), [(3, 20.52), (4, 49.73)])  # chi-square, p = 0.001, n! - 1 degrees
def test_all_orders_of_a_few_are_equally_likely(n, critical):
    drawn = [tuple(IndexPermutation(n, (n, seed))(np.arange(n))) for seed in range(3000)]
    counts = np.unique(drawn, axis=0, return_counts=True)[1]
    expected = 3000 / {3: 6, 4: 24}[n]
    assert ((counts - expected) ** 2 / expected).sum() < critical


def test_places_and_steps_of_many_are_uniform():
    """Where single entries go over seeds, and how far neighbours lie apart inside one order: 19 degrees, p = 0.001."""
    first = np.array([IndexPermutation(100, seed)(np.array([0, 57])) for seed in range(2000)])
    for column in first.T:
        counts = np.bincount(column // 5, minlength=20)
        assert ((counts - 100) ** 2 / 100).sum() < 43.8
    order = IndexPermutation(100_000, 1)(np.arange(100_000))
    counts = np.bincount((np.diff(order) % 100_000) // 5000, minlength=20)
    assert ((counts - counts.mean()) ** 2 / counts.mean()).sum() < 43.8


def test_size_costs_nothing():
    order = IndexPermutation(10**15, 4)
    values = order(np.arange(10**15 - 1000, 10**15))
    assert len(np.unique(values)) == 1000
    assert 0 <= values.min() <= values.max() < 10**15
    assert values.std() > 10**14


@pytest.mark.parametrize(("n", "seed", "message"), [(0, 0, "n must be at least 1, got 0"), (3, -1, "at least 0")])
def test_bad_arguments_are_refused(n, seed, message):
    with pytest.raises(ValueError, match=message):
        IndexPermutation(n, seed)


@pytest.mark.parametrize("place", [-1, 10, np.array([3, 10])])
def test_places_outside_are_refused(place):
    with pytest.raises(IndexError, match=r"places must be in \[0, 10\)"):
        IndexPermutation(10)(place)
