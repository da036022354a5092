import doctest

import numpy as np
import pytest

from mmbert_hf.evaluation import embeddings
from mmbert_hf.evaluation.embeddings import (
    alignment_loss,
    cosine_to,
    effective_dimensionality,
    mean_dimension_correlation,
    uniformity_loss,
)


def test_docstring_examples():
    result = doctest.testmod(embeddings)
    assert result.attempted >= len(embeddings.__all__)
    assert result.failed == 0


def test_alignment_by_angle():
    angles = np.array([0.0, np.pi / 3, np.pi / 2, np.pi])
    x = np.tile([1.0, 0.0], (4, 1)) * 7  # lengths do not count
    y = np.stack([np.cos(angles), np.sin(angles)], axis=1) * 0.1
    # |u - v|^2 = 2 - 2 cos
    assert alignment_loss(x, y) == pytest.approx((0 + 1 + 2 + 4) / 4, abs=1e-14)


def test_uniformity_by_hand():
    # the corners of a square on the circle: of 12 ordered pairs 8 are at squared distance 2, and 4 at 4
    square = np.array([[3.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -2.0]])
    for t in (0.5, 2, 3):
        expected = np.log((8 * np.exp(-2 * t) + 4 * np.exp(-4 * t)) / 12)
        assert uniformity_loss(square, t) == pytest.approx(expected, abs=1e-14)
    assert uniformity_loss(np.ones((5, 3))) == pytest.approx(0.0, abs=1e-12)
    # a potential that underflows in float64 has a logarithm nevertheless
    assert uniformity_loss(np.array([[1.0, 0.0], [-1.0, 0.0]]), t=1000) == -4000


def test_uniformity_does_not_depend_on_the_blocks(monkeypatch):
    x = np.random.default_rng(0).normal(size=(23, 4))
    whole = uniformity_loss(x)
    monkeypatch.setattr(embeddings, "BLOCK_VALUES", 23 * 5)
    assert uniformity_loss(x) == pytest.approx(whole, abs=1e-13)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    pairs = [np.exp(-2 * ((unit[i] - unit[j]) ** 2).sum()) for i in range(23) for j in range(i)]
    assert whole == pytest.approx(np.log(np.mean(pairs)), abs=1e-13)


@pytest.mark.parametrize("variances", [[1.0, 1.0, 1.0], [4.0, 1.0, 0.0], [9.0, 0.0, 0.0], [5.0, 3.0, 2.0]])
def test_effective_dimensionality_of_known_variances(variances):
    # plus and minus one standard deviation along each axis, turned and moved: the eigenvalues are the variances
    rng = np.random.default_rng(0)
    rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    axes = np.diag(np.sqrt(variances))
    x = np.concatenate([axes, -axes]) @ rotation + rng.normal(size=3)
    shares = np.array([variance for variance in variances if variance]) / sum(variances)
    assert effective_dimensionality(x) == pytest.approx(np.prod(shares**-shares), rel=1e-12)


def test_effective_dimensionality_with_fewer_texts_than_dimensions():
    x = np.random.default_rng(1).normal(size=(5, 40))
    padded = np.concatenate([x, np.tile(x.mean(axis=0), (95, 1))])  # rows at the mean add nothing to the covariance
    assert effective_dimensionality(x) == pytest.approx(effective_dimensionality(padded), rel=1e-12)
    assert effective_dimensionality(np.eye(5)) == pytest.approx(4, rel=1e-12)


def test_dimension_correlation_against_numpy():
    x = np.random.default_rng(2).normal(size=(50, 6)) @ np.random.default_rng(3).normal(size=(6, 6))
    correlation = np.abs(np.corrcoef(x, rowvar=False))
    expected = correlation[~np.eye(6, dtype=bool)].mean()
    assert mean_dimension_correlation(x) == pytest.approx(expected, abs=1e-14)
    constant = np.concatenate([x, np.full((50, 2), 0.1)], axis=1)  # no variation, no correlation
    assert mean_dimension_correlation(constant) == pytest.approx(expected, abs=1e-14)
    assert mean_dimension_correlation(x.astype(np.float32)) == pytest.approx(expected, abs=1e-6)


def test_uncorrelated_dimensions():
    signs = np.array([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    assert mean_dimension_correlation(signs + 5) == 0.0


def test_cosine_is_per_row():
    x, y = np.array([[1.0, 0.0], [1.0, 1.0], [3.0, 4.0]]), np.array([[0.0, 2.0], [5.0, 0.0], [6.0, 8.0]])
    assert cosine_to(x, y) == pytest.approx([0, np.sqrt(0.5), 1], abs=1e-15)
    assert (cosine_to(x, x) <= 1).all()


def test_bad_matrices_are_told():
    good = np.eye(3)
    for function in (alignment_loss, cosine_to):
        with pytest.raises(ValueError, match=r"shapes \(3, 3\) and \(2, 3\)"):
            function(good, good[:2])
        with pytest.raises(ValueError, match=r"has 1 rows of zeros, .* \(rows \[1\]\)"):
            function(good, good * [[1], [0], [1]])
    for function in (uniformity_loss, effective_dimensionality, mean_dimension_correlation):
        with pytest.raises(ValueError, match=r"at least 2 rows, got the shape \(1, 3\)"):
            function(good[:1])
        with pytest.raises(ValueError, match=r"2 rows that are not finite \(rows \[0, 2\]\)"):
            function(np.array([[np.nan], [1], [np.inf]]) + good)
    for function in (effective_dimensionality, mean_dimension_correlation):
        with pytest.raises(ValueError, match="all 4 rows are the same"):
            function(np.ones((4, 3)))
    with pytest.raises(ValueError, match="1 of 3 dimensions vary"):
        mean_dimension_correlation(np.array([[1.0, 0.1, 0.3], [2.0, 0.1, 0.3], [3.0, 0.1, 0.3]]))
