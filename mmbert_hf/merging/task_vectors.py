"""The arithmetic of merging, on tensors and numbers: trim, sign election, weights of an average.

Design decisions:

- Sign election and disjoint mean are those of ``peft.utils.merge_utils``. The trim selects what `peft` selects, but
  reads the tensor in pieces: `torch.topk` over the embeddings takes seven times their memory. Among equal magnitudes,
  of which bfloat16 has many, the first ones stay, so that a merge can be repeated to the bit.

Source: TIES-Merging, arXiv 2306.01708, section 3.

Shape legend: N checkpoints, P parameters.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import torch

__all__ = ["MagnitudeTrim", "MajoritySign", "ema_weights", "ties"]

MajoritySign = Literal["total", "frequency"]


def ema_weights(num_checkpoints: int, decay: float) -> list[float]:
    """Weights of an exponentially weighted average, oldest first: ``decay ** (n - 1 - i)``, divided by their sum.

    Args:
        num_checkpoints: n, at least 1.
        decay: How much less each older checkpoint counts, in (0, 1).

    Returns:
        n weights that rise and sum to 1.

    Raises:
        ValueError: If `decay` is not in (0, 1).

    Example:
        >>> [round(weight, 4) for weight in ema_weights(3, 0.5)]
        [0.1429, 0.2857, 0.5714]
    """
    if not 0.0 < decay < 1.0:
        raise ValueError(f"ema_decay must be in (0, 1), got {decay}")
    powers = [decay ** (num_checkpoints - 1 - index) for index in range(num_checkpoints)]
    return [power / math.fsum(powers) for power in powers]


class MagnitudeTrim:
    """Keeps the values of largest magnitude of a tensor that comes in pieces, and sets the others to 0.

    The k-th largest magnitude is found exactly, by counting: the bits of a non-negative float32 sort as the float does,
    so one pass counts their upper halves and a second the lower halves of those that share the upper one.

    Args:
        pieces: Gives the tensor in pieces, float32, any shapes; called twice.
        density: Share to keep; of n values ``int(density * n)`` stay.

    Example:
        >>> tensor = torch.tensor([0.5, -4.0, 3.0, 0.5, -0.5])
        >>> trim = MagnitudeTrim(lambda: iter(tensor.split(2)), density=0.6)
        >>> [trim(piece).tolist() for piece in tensor.split(2)]  # of three equal ones the first stays
        [[0.5, -4.0], [3.0, 0.0], [0.0]]
    """

    def __init__(self, pieces: Callable[[], Iterator[torch.Tensor]], density: float) -> None:
        upper_counts = torch.zeros(2**15, dtype=torch.int64)
        for piece in pieces():
            upper_counts += torch.bincount(_magnitude_bits(piece) >> 16, minlength=2**15)
        wanted = int(density * int(upper_counts.sum()))
        upper, wanted = _place_from_the_top(upper_counts, wanted)
        lower_counts = torch.zeros(2**16, dtype=torch.int64)
        for piece in pieces():
            bits = _magnitude_bits(piece)
            lower_counts += torch.bincount(bits[bits >> 16 == upper] & 0xFFFF, minlength=2**16)
        lower, self._num_equal = _place_from_the_top(lower_counts, wanted)
        self._threshold = upper << 16 | lower

    def __call__(self, piece: torch.Tensor) -> torch.Tensor:
        """Trim the next piece; same shape. Pieces come once each, in the order in which they were counted."""
        bits = _magnitude_bits(piece)
        equal = bits == self._threshold
        kept = (bits > self._threshold) | (equal & (equal.cumsum(0) <= self._num_equal))
        self._num_equal -= min(self._num_equal, int(equal.sum()))
        return torch.where(kept.view(piece.shape), piece, 0.0)


def _magnitude_bits(piece: torch.Tensor) -> torch.Tensor:
    return piece.abs().view(torch.int32).flatten()


def _place_from_the_top(counts: torch.Tensor, wanted: int) -> tuple[int, int]:
    """The bin that holds the `wanted`-th largest value, and how many values of that bin are wanted."""
    if wanted == 0:
        return counts.numel() - 1, 0
    from_top = counts.flip(0).cumsum(0)
    place = int(torch.searchsorted(from_top, wanted))
    above = int(from_top[place - 1]) if place else 0
    return counts.numel() - 1 - place, wanted - above


def ties(
    trimmed_NP: torch.Tensor, weights: Sequence[float], majority_sign: MajoritySign = "total"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Elect a sign for each parameter and average the task vectors that agree with it (TIES, steps 2 and 3).

    Args:
        trimmed_NP: Task vectors after the trim, [checkpoints, parameters or any shape], float32.
        weights: One factor per checkpoint, applied after the election. All equal to w, they are the paper's lambda.
        majority_sign: By sum of values (``"total"``, the paper) or by number of checkpoints (``"frequency"``). An even
            vote elects plus.

    Returns:
        The merged task vector, and which values agreed, [checkpoints, ...], bool.

    Example:
        >>> merged, agreed = ties(torch.tensor([[3.0, 1.0], [-1.0, 0.0], [1.0, 3.0]]), [1, 1, 1])
        >>> merged.tolist()  # (3 + 1) / 2, (1 + 3) / 2
        [2.0, 2.0]
    """
    from peft.utils.merge_utils import calculate_majority_sign_mask, disjoint_merge, reshape_weight_task_tensors

    agreed = calculate_majority_sign_mask(trimmed_NP, method=majority_sign)
    factors = reshape_weight_task_tensors(trimmed_NP, torch.tensor(weights, dtype=torch.float32))
    return disjoint_merge(trimmed_NP * factors, agreed), agreed
