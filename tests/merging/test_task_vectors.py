import doctest
import warnings

import pytest
import torch
from peft.utils import merge_utils

from mmbert_hf.merging import task_vectors
from mmbert_hf.merging.task_vectors import MagnitudeTrim, ema_weights, ties


def test_docstring_examples():
    result = doctest.testmod(task_vectors)
    assert result.attempted >= 3
    assert result.failed == 0


def trimmed(tensor, density, rows=7):
    trim = MagnitudeTrim(lambda: iter(tensor.split(rows)), density)
    return torch.cat([trim(piece) for piece in tensor.split(rows)])


@pytest.mark.parametrize("density", [0.003, 0.2, 0.29, 0.5, 0.999, 1.0])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_the_trim_keeps_what_peft_keeps(density, scale):
    tensor = torch.randn(50, 40, generator=torch.Generator().manual_seed(0)) * scale
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft warns at density 1
        expected = merge_utils.prune(tensor, density, "magnitude")
    assert torch.equal(trimmed(tensor, density), expected)
    assert expected.count_nonzero() == int(density * 2000)


def test_of_equal_magnitudes_the_first_stay_across_pieces():
    tensor = torch.tensor([1.0, -1.0, 1.0, 2.0, -1.0, 1.0, 0.0, 1.0])
    assert trimmed(tensor, 0.5, rows=2).tolist() == [1.0, -1.0, 1.0, 2.0, 0.0, 0.0, 0.0, 0.0]


def test_a_tensor_too_small_for_the_density_is_emptied():
    assert trimmed(torch.tensor([3.0, 1.0, 2.0]), 0.3).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("sign", ["total", "frequency"])
def test_the_whole_is_pefts_ties(sign):
    generator = torch.Generator().manual_seed(1)
    vectors = [torch.randn(30, 20, generator=generator) for _ in range(3)]
    weights = [1.0, 0.5, 2.0]
    expected = merge_utils.ties(vectors, torch.tensor(weights), 0.4, sign)
    merged, agreed = ties(torch.stack([trimmed(vector, 0.4) for vector in vectors]), weights, sign)
    assert torch.equal(merged, expected)
    assert agreed.shape == (3, 30, 20)


def test_ema_weights_are_the_closed_form():
    weights = ema_weights(5, 0.8)
    for index, weight in enumerate(weights):
        assert weight == pytest.approx((1 - 0.8) * 0.8 ** (4 - index) / (1 - 0.8**5))
    assert sum(weights) == pytest.approx(1.0)
    assert ema_weights(1, 0.8) == [1.0]
