"""What a set of embeddings looks like, as numbers: the diagnostics by which GAPrune (arXiv 2509.10844) compares models.

Design decisions:

- Pure functions on matrices of embeddings, one row a text, computed in float64 whatever comes in.
- Alignment and uniformity are those of Wang and Isola (arXiv 2005.10242): on unit vectors, so rows are normalised
  here. Lower is better for both: positives lie close together, all texts are spread over the sphere.
- Effective dimensionality is the exponential of the entropy of the covariance's normalised eigenvalues: the effective
  rank of Roy and Vetterli (EUSIPCO 2007), taken of the covariance instead of the matrix itself.

Shape legend: N texts, D embedding dimensions, B rows of a block.
"""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = [
    "alignment_loss",
    "cosine_to",
    "effective_dimensionality",
    "mean_dimension_correlation",
    "uniformity_loss",
]

BLOCK_VALUES = 2**23  # similarities of one block: 64 MiB


def alignment_loss(x: np.ndarray, y: np.ndarray) -> float:
    """Mean squared distance of pairs on the unit sphere (Wang and Isola, arXiv 2005.10242, with alpha = 2).

    Args:
        x: Embeddings, [N, D].
        y: Embeddings of their positives, [N, D].

    Returns:
        From 0, where each pair has one direction, to 4, where each has opposite ones.

    Raises:
        ValueError: The shapes differ, or a row is not finite or zero.

    Example:
        >>> alignment_loss(np.array([[1.0, 0.0], [0.0, 2.0]]), np.array([[3.0, 0.0], [1.0, 0.0]]))
        1.0
    """
    x, y = _unit(x, "x"), _unit(y, "y")
    _check_same_shape(x, y)
    return float(np.square(x - y).sum(axis=1).mean())


def uniformity_loss(x: np.ndarray, t: float = 2) -> float:
    """Logarithm of the mean Gaussian potential of all pairs of different rows (Wang and Isola, arXiv 2005.10242).

    Args:
        x: Embeddings, [N, D].
        t: Of the potential ``exp(-t |u - v|^2)`` of unit vectors u and v.

    Returns:
        From ``-4 t`` to 0, where all rows have one direction.

    Raises:
        ValueError: There are fewer than two rows, or a row is not finite or zero.

    Example:
        >>> uniformity_loss(np.array([[1.0, 0.0], [-1.0, 0.0]]))
        -8.0
    """
    x = _unit(x, "x", least=2)
    exponents = []  # of each block its largest exponent, and the sum of the potentials divided by that potential
    rows_per_block = max(1, BLOCK_VALUES // len(x))
    for start in range(0, len(x), rows_per_block):
        rows = np.arange(start, min(start + rows_per_block, len(x)))
        exponent_BN = -t * np.maximum(2 - 2 * (x[rows] @ x.T), 0)
        exponent_BN[rows - start, rows] = -np.inf  # a row is no pair with itself
        exponents.append(np.logaddexp.reduce(exponent_BN, axis=None))
    return float(np.logaddexp.reduce(exponents) - np.log(len(x) * (len(x) - 1)))


def effective_dimensionality(x: np.ndarray) -> float:
    """How many dimensions the embeddings fill: exp of the entropy of the covariance's normalised eigenvalues.

    Args:
        x: Embeddings, [N, D]; their mean is subtracted, their lengths count.

    Returns:
        From 1, where all rows lie on a line, to ``min(N - 1, D)``.

    Raises:
        ValueError: There are fewer than two rows, one is not finite, or all are the same.

    Example:
        >>> corners = np.array([[1.0, 0.0, 1.0], [-1.0, 0.0, 1.0], [0.0, 1.0, 1.0], [0.0, -1.0, 1.0]])
        >>> round(effective_dimensionality(corners), 6)
        2.0
    """
    centred = _centred(x)
    # Its eigenvalues are those of the covariance, but for zeros and a factor that the normalisation removes.
    gram = centred.T @ centred if len(centred) >= centred.shape[1] else centred @ centred.T
    eigenvalues = np.maximum(np.linalg.eigvalsh(gram), 0)
    shares = eigenvalues / eigenvalues.sum()
    shares = shares[shares > 0]
    return float(np.exp(-(shares * np.log(shares)).sum()))


def mean_dimension_correlation(x: np.ndarray) -> float:
    """Mean absolute correlation of two different dimensions over the texts.

    A dimension that has the same value for all texts has no correlation and is left out.

    Args:
        x: Embeddings, [N, D].

    Returns:
        From 0, where dimensions are uncorrelated, to 1, where one tells all others.

    Raises:
        ValueError: There are fewer than two rows, one is not finite, or fewer than two dimensions vary.

    Example:
        >>> round(mean_dimension_correlation(np.array([[0.0, 0.0], [1.0, -2.0], [2.0, -4.0]])), 6)
        1.0
    """
    centred = _centred(x)
    # Below this a spread is rounding, not variation.
    spread = np.linalg.norm(centred, axis=0)
    varies = spread > np.finfo(np.float64).eps * len(centred) * np.abs(np.asarray(x, dtype=np.float64)).max(axis=0)
    if varies.sum() < 2:
        raise ValueError(f"{varies.sum()} of {len(varies)} dimensions vary: a correlation needs two")
    scaled = centred[:, varies] / spread[varies]
    correlation_DD = np.clip(np.abs(scaled.T @ scaled), 0, 1)
    size = len(correlation_DD)
    return float((correlation_DD.sum() - np.trace(correlation_DD)) / (size * (size - 1)))


def cosine_to(x: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Cosine of each row to the same row of another matrix, such as the embeddings of the dense model.

    Args:
        x: Embeddings, [N, D].
        reference: Other embeddings of the same texts, [N, D].

    Returns:
        float64 [N], from -1 to 1.

    Raises:
        ValueError: The shapes differ, or a row is not finite or zero.

    Example:
        >>> cosine_to(np.array([[2.0, 0.0], [0.0, 1.0]]), np.array([[1.0, 0.0], [0.0, -3.0]]))
        array([ 1., -1.])
    """
    x, reference = _unit(x, "x"), _unit(reference, "reference")
    _check_same_shape(x, reference)
    return np.clip((x * reference).sum(axis=1), -1, 1)


def _as_matrix(x: Any, name: str, least: int = 1) -> np.ndarray:
    """float64 [N, D], checked."""
    matrix = np.asarray(x, dtype=np.float64)
    if matrix.ndim != 2 or len(matrix) < least or matrix.shape[1] == 0:
        raise ValueError(f"{name} must be a matrix with at least {least} rows, got the shape {matrix.shape}")
    broken = np.flatnonzero(~np.isfinite(matrix).all(axis=1))
    if len(broken):
        raise ValueError(f"{name} has {len(broken)} rows that are not finite (rows {broken[:5].tolist()})")
    return matrix


def _unit(x: Any, name: str, least: int = 1) -> np.ndarray:
    """Rows of length 1."""
    matrix = _as_matrix(x, name, least)
    lengths = np.linalg.norm(matrix, axis=1, keepdims=True)
    zeros = np.flatnonzero(lengths == 0)
    if len(zeros):
        raise ValueError(f"{name} has {len(zeros)} rows of zeros, which have no direction (rows {zeros[:5].tolist()})")
    return matrix / lengths


def _centred(x: Any) -> np.ndarray:
    """Rows less their mean; refuses rows that are all the same."""
    matrix = _as_matrix(x, "x", least=2)
    if (matrix == matrix[0]).all():
        raise ValueError(f"all {len(matrix)} rows are the same: there is no variation to describe")
    return matrix - matrix.mean(axis=0)


def _check_same_shape(x: np.ndarray, y: np.ndarray) -> None:
    if x.shape != y.shape:
        raise ValueError(f"expected one row for each row, got the shapes {x.shape} and {y.shape}")
