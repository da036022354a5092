"""From scores to what is kept: over the whole model, per layer, per row, or two of every four.

Design decisions:

- The global budget is exact and never joins the layers: a float32 score is a 32-bit number whose order is that of the
  float, so two histograms of 2^16 bins (upper half, then lower half of the bits) find the value of any rank. A layer's
  scores are computed again in each of the three passes, and memory is that of one layer.
- Ties are broken by position, the earlier is kept, so the count is exact and the result repeats.

Shape legend: O outputs, I inputs of a linear layer.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import torch

from mmbert_hf.pruning.options import check_sparsity

__all__ = ["Budget", "keep_global", "keep_per_row", "keep_per_tensor", "keep_two_of_four", "num_pruned"]

Budget = Literal["global", "tensor", "row"]
NUM_BINS = 1 << 16


def num_pruned(total: int, sparsity: float) -> int:
    """How many of `total` weights go: the nearest whole number, halves up.

    Raises:
        ValueError: `sparsity` is outside [0, 1).

    Example:
        >>> num_pruned(10, 0.25)
        3
    """
    check_sparsity(sparsity)
    return int(total * sparsity + 0.5)


def _ordered(scores: torch.Tensor) -> torch.Tensor:
    """int64 numbers in [0, 2^32) in the order of the float32 scores."""
    bits = (scores.float() + 0.0).contiguous().view(torch.int32).long()  # adding zero makes -0 equal to 0
    return torch.where(bits >= 0, bits, bits ^ 0x7FFFFFFF) + (1 << 31)


def keep_global(
    score: Callable[[str], torch.Tensor], layers: Sequence[str], sparsity: float
) -> dict[str, torch.Tensor]:
    """Keep the highest scores over all layers together.

    Args:
        score: Gives the finite scores [O, I] of a layer; called three times for each.
        layers: Names.
        sparsity: Share of all weights that go, in [0, 1).

    Returns:
        bool [O, I] by layer, True where a weight is kept; exactly `num_pruned` are False over all layers.

    Example:
        >>> scores = {"a": torch.tensor([[1.0, 4.0]]), "b": torch.tensor([[3.0, 2.0]])}
        >>> keep_global(scores.__getitem__, ["a", "b"], 0.5)
        {'a': tensor([[False,  True]]), 'b': tensor([[ True, False]])}
    """
    upper = torch.zeros(NUM_BINS, dtype=torch.int64)
    for layer in layers:
        upper += torch.bincount(_ordered(score(layer)).flatten() >> 16, minlength=NUM_BINS).cpu()
    rank = num_pruned(int(upper.sum()), sparsity)  # so many go
    if rank == 0:
        return {layer: torch.ones(score(layer).shape, dtype=torch.bool) for layer in layers}
    upper_bin, below = _bin_of(upper, rank)
    lower = torch.zeros(NUM_BINS, dtype=torch.int64)
    for layer in layers:
        keys = _ordered(score(layer)).flatten()
        lower += torch.bincount(keys[keys >> 16 == upper_bin] & (NUM_BINS - 1), minlength=NUM_BINS).cpu()
    lower_bin, below_lower = _bin_of(lower, rank - below)
    threshold = (upper_bin << 16) | lower_bin
    kept_ties = int(lower[lower_bin]) - (rank - below - below_lower)
    kept = {}
    for layer in layers:
        keys = _ordered(score(layer))
        tied = (keys == threshold).flatten()
        first = tied & (tied.cumsum(0) <= kept_ties)
        kept_ties -= int(first.sum())
        kept[layer] = ((keys > threshold) | first.view(keys.shape)).cpu()
    return kept


def _bin_of(histogram: torch.Tensor, rank: int) -> tuple[int, int]:
    """The bin of the `rank`-th smallest entry (from 1), and how many entries are in the bins before it."""
    cumulated = histogram.cumsum(0)
    number = int(torch.searchsorted(cumulated, rank))
    return number, int(cumulated[number] - histogram[number])


def keep_per_tensor(scores_OI: torch.Tensor, sparsity: float) -> torch.Tensor:
    """Keep the highest scores of one layer: bool [O, I].

    Example:
        >>> keep_per_tensor(torch.tensor([[1.0, 4.0], [3.0, 2.0]]), 0.25)
        tensor([[False,  True],
                [ True,  True]])
    """
    return keep_global(lambda _: scores_OI, ["this"], sparsity)["this"]


def keep_per_row(scores_OI: torch.Tensor, sparsity: float) -> torch.Tensor:
    """Keep the highest scores of every output: bool [O, I]; the same number in each row.

    Example:
        >>> keep_per_row(torch.tensor([[1.0, 4.0], [3.0, 2.0]]), 0.5)
        tensor([[False,  True],
                [ True, False]])
    """
    num_kept = scores_OI.shape[-1] - num_pruned(scores_OI.shape[-1], sparsity)
    order = scores_OI.argsort(dim=-1, descending=True, stable=True)[..., :num_kept]
    return torch.zeros_like(scores_OI, dtype=torch.bool).scatter_(-1, order, True).cpu()


def check_fours(widths: Iterable[int]) -> None:
    """Refuse numbers of inputs that are no multiple of four.

    Raises:
        ValueError: There is one.
    """
    if odd := [inputs for inputs in widths if inputs % 4]:
        raise ValueError(f"2:4 needs inputs in groups of four; the layer has {odd[0]}. Choose other targets")


def keep_two_of_four(scores_OI: torch.Tensor) -> torch.Tensor:
    """Keep the two highest of every four neighbouring inputs: bool [O, I], the pattern of sparse tensor cores.

    Raises:
        ValueError: The number of inputs is no multiple of four.

    Example:
        >>> keep_two_of_four(torch.tensor([[1.0, 4.0, 3.0, 2.0]]))
        tensor([[False,  True,  True, False]])
    """
    outputs, inputs = scores_OI.shape
    check_fours([inputs])
    return keep_per_row(scores_OI.view(outputs * inputs // 4, 4), 0.5).view(outputs, inputs)
