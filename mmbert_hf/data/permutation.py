"""A random order of very many things, without storing it.

Design decisions:

- A permutation of hundreds of millions of documents would take gigabytes in every worker process. A Feistel network
  computes single entries of one: numbers are split into two halves, and each round adds a keyed hash of one half to the
  other. Every round can be undone, so the whole is a bijection (Black and Rogaway, 2002, "Ciphers with arbitrary finite
  domains").
- The halves are digits to two bases near the square root of n, not bits, so the network permutes hardly more than n
  numbers. Results of n or more are put in again until they are below n ("cycle walking"): a bijection on range(n).
- The hash is the finaliser of splitmix64. This is for shuffling, not for secrets.
"""

import math
from collections.abc import Sequence
from typing import Any, overload

import numpy as np

NUM_ROUNDS = 6


class IndexPermutation:
    """A seeded random permutation of range(n) with access to any entry, in constant memory.

    Args:
        n: How many numbers, at least 1.
        seed: A whole number of at least 0, or several.

    Raises:
        ValueError: `n` is below 1, or a seed is below 0.

    Example:
        >>> order = IndexPermutation(5, seed=3)
        >>> sorted(order(i) for i in range(5))
        [0, 1, 2, 3, 4]
        >>> order(np.arange(5)).tolist() == [order(i) for i in range(5)]
        True
    """

    def __init__(self, n: int, seed: int | Sequence[int] = 0) -> None:
        if n < 1:
            raise ValueError(f"n must be at least 1, got {n}: there is nothing to permute")
        seeds = [seed] if isinstance(seed, int) else list(seed)
        if any(number < 0 for number in seeds):
            raise ValueError(f"seeds must be at least 0, got {seeds}")
        self.n = n
        base = math.isqrt(n - 1) + 1
        self._bases = np.uint64(base), np.uint64(-(-n // base))
        # numpy takes [1] and [1, 0] for the same seed; with their number they are two.
        self._keys = np.random.SeedSequence([*seeds, len(seeds)]).generate_state(NUM_ROUNDS, np.uint64)

    def __len__(self) -> int:
        return self.n

    @overload
    def __call__(self, index: int) -> int: ...

    @overload
    def __call__(self, index: np.ndarray) -> np.ndarray: ...

    def __call__(self, index: Any) -> Any:
        """Returns what stands at `index` (an int, or an integer array of any shape) in the permutation.

        Args:
            index: Places in [0, n).

        Returns:
            An int for an int, else an int64 array of the same shape.

        Raises:
            IndexError: A place is outside [0, n).
        """
        places = np.asarray(index)
        if places.size and not (places.min() >= 0 and places.max() < self.n):
            raise IndexError(f"places must be in [0, {self.n}), got {places.min()} to {places.max()}")
        values = self._permute_once(places.reshape(-1).astype(np.uint64))
        outside = np.flatnonzero(values >= self.n)
        while outside.size:
            values[outside] = self._permute_once(values[outside])
            outside = outside[values[outside] >= self.n]
        return int(values[0]) if places.ndim == 0 else values.astype(np.int64).reshape(places.shape)

    def _permute_once(self, values: np.ndarray) -> np.ndarray:
        """One pass through the network: a bijection on the product of the bases, which is at least n."""
        base_left, base_right = self._bases
        left, right = values // base_right, values % base_right
        for number, key in enumerate(self._keys):
            if number % 2 == 0:
                left = (left + _mix(right + key) % base_left) % base_left
            else:
                right = (right + _mix(left + key) % base_right) % base_right
        return left * base_right + right


def _mix(values: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64; products wrap around at 2^64."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
