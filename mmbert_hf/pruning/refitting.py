"""What leaves a feed-forward can in part be said by what stays: the layer that reads the neurons is fitted again.

Design decisions:

- The output of a feed-forward is linear in its neurons. The columns of `down` that remain are the ridge regression of
  the old output on the kept neurons, from second moments that one forward pass over a few texts collects.
- Only the change of the weights is solved for. Where nothing is lost (no neuron leaves, or one that nobody reads), it
  is exactly zero.
- Products of a batch are taken in float32 and added up in float64; the regression is done in float64.

Shape legend: E hidden size, F neurons, K neurons that are kept, T tokens.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

import torch
from torch import nn

from mmbert_hf.pruning.targets import FeedForward, encoder_of, evaluating
from mmbert_hf.pruning.texts import Role, to_features

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = ["activation_moments", "refit_columns"]


def activation_moments(
    model: "SentenceTransformer",
    texts: Mapping[Role, Sequence[str]],
    feed_forwards: Sequence[FeedForward],
    *,
    batch_size: int = 32,
) -> list[torch.Tensor]:
    """Second moments of the neurons over texts, in one forward pass.

    They are sums: those of several calls can be added. A float64 [F, F] per feed-forward is held, so for a large model
    pass a part of its feed-forwards at a time.

    Args:
        model: The embedder.
        texts: What to read, by role, which decides about the prompt: ``{"query": [...], "document": [...]}``.
        feed_forwards: Those to look at.
        batch_size: Texts in a forward pass.

    Returns:
        Per feed-forward the sum of h h^T over the real tokens, float64 [F, F], where h [F] is the input of `down`, on
        the model's device. The products of a batch are taken in float32.

    Raises:
        ValueError: If there are no texts.

    Example:
        >>> moments = activation_moments(model, {"document": ["A text.", "Another."]}, blocks)  # doctest: +SKIP
    """
    if not any(texts.values()):
        raise ValueError(f"got no texts under {sorted(texts)}; give some as {{'query': [...], 'document': [...]}}")
    encoder = encoder_of(model)
    downs = [encoder.get_submodule(ff.down) for ff in feed_forwards]
    sums = [
        torch.zeros(ff.width, ff.width, dtype=torch.float64, device=down.weight.device)
        for ff, down in zip(feed_forwards, downs, strict=True)
    ]
    mask: torch.Tensor | None = None  # of the batch that is running

    with ExitStack() as stack, evaluating(model), torch.no_grad():
        for down, total in zip(downs, sums, strict=True):

            def add(_: nn.Module, inputs: tuple[torch.Tensor, ...], total: torch.Tensor = total) -> None:
                h_TF = _real_tokens(inputs[0], mask).float()
                total.add_(h_TF.T @ h_TF)

            stack.callback(down.register_forward_pre_hook(add).remove)
        for role, of_role in texts.items():
            for start in range(0, len(of_role), batch_size):
                features = to_features(model, of_role[start : start + batch_size], role)
                mask = features.get("attention_mask")
                model(features)
    return sums


def _real_tokens(hidden: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """The rows [T, F] of `hidden` ([B, L, F], or [T, F] where the encoder has left padding out) at real tokens."""
    rows = hidden.flatten(0, -2)
    if mask is None:
        return rows
    is_real = mask.bool().flatten().to(rows.device)
    if len(rows) == len(is_real):
        return rows[is_real]
    assert len(rows) == is_real.sum(), f"{len(rows)} rows for a mask of {int(is_real.sum())} in {len(is_real)} tokens"
    return rows


def refit_columns(
    weight_EF: torch.Tensor, kept_K: torch.Tensor, moments_FF: torch.Tensor, ridge: float = 1e-3
) -> torch.Tensor:
    """Weights on the kept neurons that come closest to what all neurons said.

    W' = argmin sum_t |W h_t - W' h_t[kept]|^2 + lambda |W' - W[:, kept]|^2, with lambda = ridge * mean(diag C) and C the
    second moments. With R the removed neurons, W' = W[:, kept] + W[:, R] C[R, kept] (C[kept, kept] + lambda I)^-1.

    Args:
        weight_EF: Weight of `down`, [E, F].
        kept_K: The neurons that stay, int64 [K].
        moments_FF: Second moments C, [F, F].
        ridge: How strongly the weights are held where they are, in units of a neuron's mean square; 0 or more.

    Returns:
        [E, K], in the dtype of the weight; computed in float64.

    Raises:
        ValueError: If the moments are not finite, or the kept neurons are linearly dependent and `ridge` is 0.

    Example:
        >>> weight, moments = torch.tensor([[1.0, 2.0]]), torch.ones(2, 2)  # the two neurons always say the same
        >>> refit_columns(weight, torch.tensor([0]), moments, ridge=0.0)
        tensor([[3.]])
    """
    if ridge < 0:
        raise ValueError(f"ridge is {ridge}; it must be 0 or more (0.001 is a good value)")
    moments = moments_FF.to(weight_EF.device, torch.float64)
    if not moments.isfinite().all():
        raise ValueError("the second moments hold NaN or infinite values; look at what the model gives for the texts")
    weight, kept_K = weight_EF.double(), kept_K.to(weight_EF.device)
    if not moments.any():  # neurons that never say anything: no weight is better than another
        return weight_EF[:, kept_K]
    is_removed = torch.ones(weight.shape[1], dtype=torch.bool, device=weight.device)
    is_removed[kept_K] = False
    square = moments[kept_K][:, kept_K]
    square.diagonal().add_(ridge * moments.diagonal().mean())
    factor, failed = torch.linalg.cholesky_ex(square)
    if failed:
        raise ValueError(
            f"the {len(kept_K)} kept neurons are linearly dependent on the texts, so their weights are not determined; "
            f"use more texts, or a larger ridge than {ridge} (0.001 is a good value)"
        )
    lost_EK = weight[:, is_removed] @ moments[is_removed][:, kept_K]
    change_EK = torch.cholesky_solve(lost_EK.T, factor).T
    return (weight[:, kept_K] + change_EK).to(weight_EF.dtype)
