"""Packing: which documents share a row, and how a long document is cut.

Design decisions:

- Best-fit decreasing: the longest first, each into the fullest row that still has room. With a few hundred rows at once
  this fills more than 99 % of them; no document is split for it.
- Rows are found by their room: a sorted list of the rooms that some open row has, and a stack of rows for each. A search
  is one bisection, so a length costs about a microsecond whatever the capacity.
- Where documents are long and rows hold only a few, best fit leaves several percent empty. `fullest_fit` is slower and
  fills a row at a time: the longest piece, and with it the subset of others that leaves least room. Sums that subsets
  reach are the bits of one large integer.
- A document longer than a row is cut into full pieces and a tail. The tail is kept, however short (mmBERT packs it with
  others), so nothing is lost.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence
from typing import Any

import numpy as np

# Others that `fullest_fit` looks at for a row.
NUM_CANDIDATES = 256


def best_fit(lengths: Sequence[int] | np.ndarray, capacity: int) -> list[list[int]]:
    """Packs lengths into as few rows as best-fit decreasing finds.

    Args:
        lengths: [N], whole numbers from 1 to `capacity`, such as tokens per document.
        capacity: Most that a row holds.

    Returns:
        The rows, each a list of indices into `lengths`, longest first; every index occurs exactly once.

    Raises:
        ValueError: A length is below 1 or above the capacity, or lengths are no vector of whole numbers.

    Example:
        >>> best_fit([3, 9, 2, 6, 1, 5], capacity=10)
        [[1], [3, 0, 4], [5, 2]]
    """
    lengths_N = _check_lengths(lengths, capacity)
    order = np.argsort(-lengths_N, kind="stable")
    rows: list[list[int]] = []
    rooms: list[int] = []  # rooms of at least 1 that some row has, ascending, each once
    rows_with: dict[int, list[int]] = {}
    for index, length in zip(order.tolist(), lengths_N[order].tolist(), strict=True):
        place = bisect_left(rooms, length)
        if place == len(rooms):
            row, room = len(rows), capacity
            rows.append([index])
        else:
            room = rooms[place]
            stack = rows_with[room]
            row = stack.pop()
            rows[row].append(index)
            if not stack:
                del rooms[place]
        room -= length
        if room:
            stack = rows_with.setdefault(room, [])
            if not stack:
                insort(rooms, room)
            stack.append(row)
    return rows


def fullest_fit(lengths: Sequence[int] | np.ndarray, capacity: int) -> list[list[int]]:
    """Packs lengths row by row, each as full as can be with the longest that is left in it.

    The subset is sought among at most `NUM_CANDIDATES` of the others, of all lengths.

    Args:
        lengths: As for `best_fit`.
        capacity: Most that a row holds.

    Returns:
        As `best_fit`. Earlier rows are fuller; the last ones may hold little.

    Raises:
        ValueError: As `best_fit`.

    Example:
        >>> best_fit([5, 4, 4, 3, 3], 10), fullest_fit([5, 4, 4, 3, 3], 10)
        ([[0, 1], [2, 3, 4]], [[0, 1], [2, 3, 4]])
        >>> best_fit([6, 5, 3, 2, 2, 2], 10), fullest_fit([6, 5, 3, 2, 2, 2], 10)
        ([[0, 2], [1, 3, 4], [5]], [[0, 3, 4], [1, 2, 5]])
    """
    lengths_N = _check_lengths(lengths, capacity)
    left = np.argsort(-lengths_N, kind="stable").tolist()
    sizes: list[int] = lengths_N.tolist()
    rows: list[list[int]] = []
    while left:
        first, left = left[0], left[1:]
        room = capacity - sizes[first]
        begin = bisect_left(left, -room, key=lambda index: -sizes[index])  # the first that fits
        step = -(-(len(left) - begin) // NUM_CANDIDATES) or 1
        candidates = range(begin, len(left), step)
        places = _fullest_subset([sizes[left[place]] for place in candidates], room)
        chosen = {candidates[place] for place in places}
        rows.append([first, *(left[place] for place in sorted(chosen))])
        left = [index for place, index in enumerate(left) if place not in chosen]
    return rows


def _fullest_subset(sizes: list[int], room: int) -> list[int]:
    """Places of the subset with the largest sum within a room; of equal ones that with the earliest sizes."""
    within = (1 << (room + 1)) - 1
    reached = [1]  # bit s of entry k: the first k sizes have a subset of sum s
    for size in sizes:
        reached.append(reached[-1] | (reached[-1] << size) & within)
        if reached[-1] >> room:
            break
    total = reached[-1].bit_length() - 1
    subset: list[int] = []
    for place in range(len(reached) - 2, -1, -1):
        if not reached[place] >> total & 1:
            subset.append(place)
            total -= sizes[place]
    return subset


def cut_into_rows(length: int, max_piece: int) -> list[tuple[int, int]]:
    """Cuts a document into pieces of exactly `max_piece` tokens and a tail of what is left.

    Args:
        length: Tokens of the document, at least 1.
        max_piece: Most tokens of a piece, at least 1.

    Returns:
        (start, stop) of each piece; together they cover the document once.

    Raises:
        ValueError: An argument is below 1.

    Example:
        >>> cut_into_rows(10, 4)
        [(0, 4), (4, 8), (8, 10)]
    """
    if length < 1 or max_piece < 1:
        raise ValueError(f"length and max_piece must be at least 1, got {length} and {max_piece}: drop empty documents")
    return [(start, min(start + max_piece, length)) for start in range(0, length, max_piece)]


def _check_lengths(lengths: Any, capacity: int) -> np.ndarray:
    lengths_N = np.asarray(lengths)
    if lengths_N.size == 0:
        return np.zeros(0, dtype=np.int64)
    if lengths_N.ndim != 1 or lengths_N.dtype.kind not in "iu":
        raise ValueError(
            f"lengths must be a vector of whole numbers, got shape {lengths_N.shape} and dtype {lengths_N.dtype}"
        )
    lengths_N = lengths_N.astype(np.int64)
    wrong = np.flatnonzero((lengths_N < 1) | (lengths_N > capacity))
    if wrong.size:
        raise ValueError(
            f"length {wrong[0]} is {lengths_N[wrong[0]]}, expected 1 to the capacity of {capacity} ({wrong.size} are "
            "wrong): drop empty documents, and cut long ones with cut_into_rows"
        )
    return lengths_N
