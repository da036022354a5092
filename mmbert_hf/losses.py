"""Losses of the task heads, as pure functions.

Every mean runs over ``num_items_in_batch`` where the caller gives it (`Trainer` does, so gradient accumulation equals
one large batch), else over what is labelled. A batch without a label has loss 0 and zero gradients, not NaN. Sums are
taken in float32 or better.

Shape legend: B batch, C classes, L length in tokens, E hidden size, N labelled tokens.
"""

from typing import TypeAlias

import torch
from torch.nn import functional as F

from mmbert_hf.linear_cross_entropy import linear_cross_entropy
from mmbert_hf.masking import IGNORE_INDEX

__all__ = [
    "IGNORE_INDEX",
    "ItemCount",
    "classification_loss",
    "labelled_rows",
    "mean_cross_entropy",
    "mean_linear_cross_entropy",
    "span_loss",
]

ItemCount: TypeAlias = torch.Tensor | int | float | None


def labelled_rows(hidden_BLE: torch.Tensor, labels_BL: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Pick the tokens that have a label.

    Args:
        hidden_BLE: Token vectors.
        labels_BL: Labels, -100 where there is none.

    Returns:
        The picked vectors [N, E] and their labels [N]. N may be 0; the vectors keep their gradient graph.

    Example:
        >>> labelled_rows(torch.arange(6.0).view(1, 3, 2), torch.tensor([[-100, 7, -100]]))
        (tensor([[2., 3.]]), tensor([7]))
    """
    labels = labels_BL.reshape(-1).to(hidden_BLE.device)
    rows = (labels != IGNORE_INDEX).nonzero().squeeze(1)
    return hidden_BLE.flatten(0, 1).index_select(0, rows), labels.index_select(0, rows)


def mean_cross_entropy(
    logits: torch.Tensor, labels: torch.Tensor, num_items_in_batch: ItemCount = None
) -> torch.Tensor:
    """Cross entropy, summed and divided by a count, in float32 or better.

    Args:
        logits: [..., C], any float dtype.
        labels: [...], int64, -100 where there is none.
        num_items_in_batch: What to divide by, such as the labels of all accumulation steps; those of this call if None.

    Returns:
        A scalar; 0 with a gradient graph if nothing is labelled.

    Example:
        >>> logits = torch.tensor([[0.0, 0.0], [5.0, 1.0]])
        >>> round(mean_cross_entropy(logits, torch.tensor([0, -100])).item(), 4)
        0.6931
        >>> mean_cross_entropy(logits, torch.tensor([-100, -100])).item()
        0.0
    """
    labels = labels.reshape(-1).to(logits.device)
    total = F.cross_entropy(
        _precise(logits).reshape(-1, logits.shape[-1]), labels, ignore_index=IGNORE_INDEX, reduction="sum"
    )
    return _divide(total, (labels != IGNORE_INDEX).sum(), num_items_in_batch)


def mean_linear_cross_entropy(
    vectors_NE: torch.Tensor,
    weight_CE: torch.Tensor,
    bias_C: torch.Tensor | None,
    labels_N: torch.Tensor,
    num_items_in_batch: ItemCount = None,
) -> torch.Tensor:
    """Cross entropy of a linear layer, summed and divided by a count, without all logits at once.

    Args:
        vectors_NE: What the layer is given.
        weight_CE: Its weight.
        bias_C: Its bias, or None.
        labels_N: Labels, int64, -100 where there is none.
        num_items_in_batch: As for `mean_cross_entropy`.

    Returns:
        A scalar; 0 with a gradient graph if nothing is labelled.

    Example:
        >>> zeros = torch.zeros(3, 2)
        >>> round(mean_linear_cross_entropy(zeros, torch.ones(4, 2), None, torch.tensor([1, -100, 3])).item(), 4)
        1.3863
    """
    total = linear_cross_entropy(vectors_NE, weight_CE, bias_C, labels_N)
    return _divide(total, (labels_N != IGNORE_INDEX).sum(), num_items_in_batch)


def classification_loss(
    logits: torch.Tensor, labels: torch.Tensor, problem_type: str, num_items_in_batch: ItemCount = None
) -> torch.Tensor:
    """Loss of sequence classification.

    Args:
        logits: [B, C].
        labels: [B] classes for ``"single_label_classification"``; [B, C] of 0 and 1 for
            ``"multi_label_classification"``; [B, C], or [B] if C is 1, for ``"regression"``.
        problem_type: One of the three: cross entropy, binary cross entropy, squared error.
        num_items_in_batch: What to divide the sum by; the number of labels of this call if None.

    Returns:
        A scalar.

    Raises:
        ValueError: For another problem type.

    Example:
        >>> classification_loss(torch.tensor([[1.0], [3.0]]), torch.tensor([1.0, 1.0]), "regression").item()
        2.0
    """
    if problem_type == "single_label_classification":
        return mean_cross_entropy(logits, labels, num_items_in_batch)
    targets = _precise(labels.to(logits.device, logits.dtype))
    if problem_type == "regression":
        total = F.mse_loss(_precise(logits), targets.view_as(logits), reduction="sum")
    elif problem_type == "multi_label_classification":
        total = F.binary_cross_entropy_with_logits(_precise(logits), targets.view_as(logits), reduction="sum")
    else:
        raise ValueError(
            f"problem_type is {problem_type!r}; it must be 'single_label_classification', "
            "'multi_label_classification' or 'regression'"
        )
    return _divide(total, torch.tensor(targets.numel()), num_items_in_batch)


def span_loss(
    start_logits: torch.Tensor,
    end_logits: torch.Tensor,
    start_positions: torch.Tensor,
    end_positions: torch.Tensor,
    num_items_in_batch: ItemCount = None,
) -> torch.Tensor:
    """Loss of extractive question answering: mean of the cross entropies of start and end.

    Args:
        start_logits: [B, L].
        end_logits: [B, L].
        start_positions: [B] or [B, 1]. Positions outside the row, where the answer was cut off, do not count.
        end_positions: Same.
        num_items_in_batch: What to divide each sum by; the number of positions inside their rows if None.

    Returns:
        A scalar.

    Example:
        >>> zeros = torch.zeros(1, 4)
        >>> round(span_loss(zeros, zeros, torch.tensor([1]), torch.tensor([9])).item(), 4)  # log(4) / 2
        0.6931
    """
    losses = []
    for logits, positions in ((start_logits, start_positions), (end_logits, end_positions)):
        positions = positions.reshape(-1)
        inside = (positions >= 0) & (positions < logits.shape[1])
        labels = positions.masked_fill(~inside, IGNORE_INDEX)
        losses.append(mean_cross_entropy(logits, labels, num_items_in_batch))
    return (losses[0] + losses[1]) / 2


def _precise(values: torch.Tensor) -> torch.Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _divide(total: torch.Tensor, count: torch.Tensor, num_items_in_batch: ItemCount) -> torch.Tensor:
    denominator = torch.as_tensor(count if num_items_in_batch is None else num_items_in_batch, device=total.device)
    return total / denominator.clamp(min=1)
