"""Advantages: what they are blind to, what a missing reward does, and when they are nothing."""

import doctest

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mmbert_hf.trainers.spo import advantages as module
from mmbert_hf.trainers.spo.advantages import normalise, raw_advantages

properties = settings(deadline=None, derandomize=True, database=None, max_examples=60)

nan = float("nan")
tenths = st.integers(-50, 50).map(lambda number: number / 10)
batches = st.lists(tenths, min_size=2, max_size=12)
unequal = batches.filter(lambda batch: len(set(batch)) > 1)


def test_docstring_examples():
    result = doctest.testmod(module)
    assert result.attempted >= len(module.__all__)
    assert result.failed == 0


def test_raw_by_hand():
    raw = raw_advantages([1.0, 0.0, nan, 0.5], [0.25, 0.25, 0.25, 1.0])
    np.testing.assert_array_equal(raw, [0.75, -0.25, nan, -0.5])


def test_raw_in_units_of_the_prompt():
    scaled = raw_advantages([1.0, 1.0, nan, 1.0], [0.1, 0.5, 0.5, 1.0], [0.3, 0.5, 0.5, 0.0], variance_floor=0.02)
    expected = [0.9 / np.sqrt(0.09 + 0.02), 0.5 / np.sqrt(0.25 + 0.02), nan, 0.0]
    np.testing.assert_allclose(scaled, expected, rtol=1e-14)
    # a rare success is worth more than one that was expected, and more so than without the prompt's own scale
    assert scaled[0] / scaled[1] > 0.9 / 0.5


def test_a_certain_prompt_is_not_divided_by_nothing():
    assert raw_advantages([1.0, 3.0], [0.5, 1.0], [0.0, 2.0]).tolist() == [0.5, 1.0]


@properties
@given(unequal)
def test_mean_and_unbiased_std(raw):
    advantages, std = normalise(raw)
    assert std == pytest.approx(np.std(raw, ddof=1), rel=1e-12)
    assert advantages.mean() == pytest.approx(0, abs=1e-12)
    assert advantages.std(ddof=1) == pytest.approx(1, rel=1e-12)
    assert (np.argsort(advantages, kind="stable") == np.argsort(raw, kind="stable")).all()


@properties
@given(unequal, tenths, st.floats(0.1, 50.0))
def test_shift_and_scale_change_nothing(raw, shift, scale):
    expected, std = normalise(raw)
    moved, moved_std = normalise(np.array(raw) * scale + shift)
    assert moved == pytest.approx(expected, abs=1e-9)
    assert moved_std == pytest.approx(std * scale, rel=1e-9)


@properties
@given(st.lists(st.tuples(tenths, st.booleans(), st.integers(1, 9)), min_size=1, max_size=12), st.booleans())
def test_responses_without_a_reward_have_no_part(batch, by_token):
    raw, known, tokens = (np.array(column) for column in zip(*batch, strict=True))
    advantages, std = normalise(np.where(known, raw, nan), tokens if by_token else None, min_std=0.01)
    assert (advantages[~known] == 0).all()
    expected, expected_std = normalise(raw[known], tokens[known] if by_token else None, min_std=0.01)
    assert advantages[known] == pytest.approx(expected, abs=1e-12)
    assert std == pytest.approx(expected_std, abs=1e-12)


@properties
@given(st.lists(st.tuples(tenths, st.integers(0, 9)), min_size=2, max_size=12), st.sampled_from([0.0, 0.5, 20.0]))
def test_over_tokens_is_each_token_with_the_number_of_its_response(batch, min_std):
    raw, tokens = (np.array(column) for column in zip(*batch, strict=True))
    advantages, std = normalise(raw, tokens, min_std=min_std)
    each, each_std = normalise(np.repeat(raw, tokens), min_std=min_std)
    assert np.repeat(advantages, tokens) == pytest.approx(each, abs=1e-11)
    assert std == pytest.approx(each_std, abs=1e-11)
    assert np.isfinite(advantages).all()


def test_over_tokens_is_not_over_responses():
    raw = [1.0, 0.0, 0.0, 1.0]
    assert normalise(raw, [2, 2, 2, 2])[0] == pytest.approx(np.array([1, -1, -1, 1]) * np.sqrt(7 / 8))
    assert normalise(raw, [10, 1, 1, 10])[0][0] < 0.5 < -normalise(raw, [10, 1, 1, 10])[0][1]


def test_least_std():
    raw = np.array([0.01, -0.01, 0.0])
    advantages, std = normalise(raw, min_std=0.1)
    assert std == pytest.approx(0.01)
    assert advantages == pytest.approx(raw / 0.1)
    assert normalise(raw * 100, min_std=0.1)[0] == pytest.approx([1.0, -1.0, 0.0])


@properties
@given(st.floats(-1e6, 1e6), st.integers(1, 9), st.sampled_from([0.0, 1e-6, 0.1]), st.booleans())
def test_all_equal_is_nothing_exactly(value, number, min_std, by_token):
    """Three times 0.1 has a mean beside 0.1: rounding divided by its own std would look like a signal."""
    raw = np.array([value] * number + [nan])
    advantages, std = normalise(raw, np.arange(number + 1) + 1 if by_token else None, min_std=min_std)
    assert advantages.tolist() == [0.0] * (number + 1)
    assert std == 0


@pytest.mark.parametrize("raw", [[], [nan, nan], [3.0], [nan, 3.0]])
def test_fewer_than_two_are_nothing(raw):
    advantages, std = normalise(raw)
    assert advantages.tolist() == [0.0] * len(raw)
    assert std == 0
