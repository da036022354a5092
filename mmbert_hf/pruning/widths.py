"""Physically narrower feed-forwards: whole neurons leave, and the layer that read them is fitted again.

Design decisions:

- Every block gets the same width. Stock classes have one number for it, and a pruned model must load as a stock class.
- What the model's own class makes of a changed configuration is asked, not guessed: it is built without memory (on the
  ``meta`` device), and its shapes must be those of the pruned weights. Modules that keep a copy of the width take it
  from there too.
- With second moments of the neurons, what leaves is in part said by what stays (`mmbert_hf.pruning.refitting`).

Shape legend: E hidden size, F neurons, K neurons that are kept.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import PreTrainedModel

from mmbert_hf.pruning.refitting import activation_moments, refit_columns
from mmbert_hf.pruning.skeleton import plain_settings, skeleton
from mmbert_hf.pruning.targets import FeedForward, encoder_of, find_feed_forwards

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = [
    "activation_moments",
    "choose_neurons",
    "neuron_scores",
    "shrink_feed_forwards",
]

# What families call the width of their feed-forward; the first that holds it counts.
SIZE_NAMES = ("intermediate_size", "hidden_dim", "ffn_dim", "d_ff", "n_inner", "encoder_ffn_dim")


# Which neurons


def neuron_scores(
    feed_forwards: Sequence[FeedForward], weight_scores: Mapping[str, torch.Tensor]
) -> list[torch.Tensor]:
    """Score of every neuron: the sum over the weights that are gone when it is gone.

    Args:
        feed_forwards: Where the neurons are.
        weight_scores: Name of a linear layer -> score of each of its weights [out, in].

    Returns:
        Per feed-forward, float64 [F]: its rows of `up` (of both halves, or of both layers) and its column of `down`.

    Raises:
        ValueError: If scores are missing, or of another shape than the layers.

    Example:
        >>> block = FeedForward(layer=0, up=("up",), down="down", width=2, is_fused=False)
        >>> scores = {"up": torch.tensor([[1.0, 2.0], [3.0, 4.0]]), "down": torch.tensor([[10.0, 20.0]])}
        >>> neuron_scores([block], scores)
        [tensor([13., 27.], dtype=torch.float64)]
    """
    if missing := sorted({name for ff in feed_forwards for name in (*ff.up, ff.down)} - weight_scores.keys()):
        raise ValueError(
            f"no scores for {missing[:3]} and {len(missing) - 3} more; score every linear of the feed-forwards"
            if len(missing) > 3
            else f"no scores for {missing}; score every linear of the feed-forwards"
        )
    return [_scores_of(ff, weight_scores) for ff in feed_forwards]


def _scores_of(ff: FeedForward, weight_scores: Mapping[str, torch.Tensor]) -> torch.Tensor:
    rows = 2 * ff.width if ff.is_fused else ff.width
    for name, axis, expected in [*((name, 0, rows) for name in ff.up), (ff.down, 1, ff.width)]:
        shape = tuple(weight_scores[name].shape)
        if len(shape) != 2 or shape[axis] != expected:
            raise ValueError(f"the scores of {name} are {list(shape)}; dimension {axis} must be {expected}")
    total = weight_scores[ff.down].sum(dim=0, dtype=torch.float64)
    for name in ff.up:
        by_row = weight_scores[name].sum(dim=1, dtype=torch.float64)
        total = total + by_row.view(-1, ff.width).sum(dim=0)
    return total


def choose_neurons(scores: Sequence[torch.Tensor], width: int) -> list[torch.Tensor]:
    """The neurons to keep: the best `width` of every feed-forward.

    Args:
        scores: Per feed-forward, [F].
        width: Neurons that stay in each.

    Returns:
        Per feed-forward their indices, int64 [K], ascending. Of neurons with equal scores the earlier ones stay.

    Raises:
        ValueError: If `width` is not in 1..F, or a score is NaN.

    Example:
        >>> choose_neurons([torch.tensor([0.5, 2.0, 0.5, 1.0])], 3)
        [tensor([0, 1, 3])]
    """
    for index, each in enumerate(scores):
        if not 1 <= width <= len(each):
            raise ValueError(f"width is {width}; it must be in 1..{len(each)}, the neurons of feed-forward {index}")
        if each.isnan().any():
            raise ValueError(
                f"{int(each.isnan().sum())} of the {len(each)} scores of feed-forward {index} are NaN; the statistics "
                "they come from hold NaN or infinite values"
            )
    return [each.sort(descending=True, stable=True).indices[:width].sort().values for each in scores]


# The smaller model


def shrink_feed_forwards(
    model: "SentenceTransformer",
    feed_forwards: Sequence[FeedForward],
    kept: Sequence[torch.Tensor],
    moments: Sequence[torch.Tensor] | None = None,
    ridge: float = 1e-3,
) -> None:
    """Take neurons out of every feed-forward, in place; the configuration says the new width.

    Args:
        model: The embedder; its weights are replaced, so make the optimizer afterwards.
        feed_forwards: All of the model's (`find_feed_forwards`).
        kept: Per feed-forward the neurons that stay, int64 [K], ascending, the same number in all.
        moments: Per feed-forward the second moments of its neurons (`activation_moments`). The remaining columns of
            `down` are fitted to them (`refit_columns`); if None they stay as they are.
        ridge: See `refit_columns`.

    Raises:
        ValueError: If the neurons do not fit the feed-forwards, a layer is not a plain linear, or the configuration
            cannot express the new width. The model is unchanged then.

    Example:
        >>> shrink_feed_forwards(model, blocks, choose_neurons(scores, 768), moments)  # doctest: +SKIP
    """
    encoder = encoder_of(model)
    width = _check_kept(model, encoder, feed_forwards, kept, moments)
    config = copy.deepcopy(encoder.config)
    size_name = _size_name(config, feed_forwards[0].width)
    setattr(config, size_name, width)
    reference = skeleton(encoder, config)
    for ff in feed_forwards:
        _check_width(ff, reference, width, size_name)
    by_block = zip(feed_forwards, kept, moments or [None] * len(kept), strict=True)
    downs = [_narrow_down(encoder, ff, kept_K, moments_FF, ridge) for ff, kept_K, moments_FF in by_block]

    for ff, kept_K, down_EK in zip(feed_forwards, kept, downs, strict=True):
        rows = torch.cat([kept_K, kept_K + ff.width]) if ff.is_fused else kept_K
        for name in ff.up:
            up = encoder.get_submodule(name)
            bias = None if up.bias is None else up.bias.detach()[rows.to(up.bias.device)]
            _replace(up, up.weight.detach()[rows.to(up.weight.device)], bias)
        down = encoder.get_submodule(ff.down)
        _replace(down, down_EK, down.bias)
    setattr(encoder.config, size_name, width)
    _update_sizes(encoder, reference, feed_forwards[0].width, width)


def _narrow_down(
    encoder: PreTrainedModel, ff: FeedForward, kept_K: torch.Tensor, moments_FF: torch.Tensor | None, ridge: float
) -> torch.Tensor:
    weight_EF = encoder.get_submodule(ff.down).weight.detach()
    if moments_FF is None:
        return weight_EF[:, kept_K.to(weight_EF.device)]
    return refit_columns(weight_EF, kept_K, moments_FF, ridge)


def _replace(linear: nn.Linear, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
    """Put other weights into a linear layer. Copies: a slice would keep all of the old tensor, and be saved with it."""
    linear.weight = nn.Parameter(weight.clone().contiguous(), requires_grad=linear.weight.requires_grad)
    if bias is not linear.bias and bias is not None:
        linear.bias = nn.Parameter(bias.clone(), requires_grad=linear.bias.requires_grad)
    linear.out_features, linear.in_features = weight.shape


def _check_kept(
    model: "SentenceTransformer",
    encoder: PreTrainedModel,
    feed_forwards: Sequence[FeedForward],
    kept: Sequence[torch.Tensor],
    moments: Sequence[torch.Tensor] | None,
) -> int:
    """The new width, if what is asked for fits the model."""
    if list(feed_forwards) != find_feed_forwards(model):
        raise ValueError(
            f"got {len(feed_forwards)} feed-forwards that are not those of the model; pass find_feed_forwards(model), "
            "all of it: a stock class has one width for all blocks"
        )
    if len(kept) != len(feed_forwards) or (moments is not None and len(moments) != len(feed_forwards)):
        counts = f"{len(kept)} sets of kept neurons" + ("" if moments is None else f" and {len(moments)} moments")
        raise ValueError(f"got {counts} for {len(feed_forwards)} feed-forwards; give one for each")
    if len(widths := {len(each) for each in kept}) != 1 or 0 in widths:
        raise ValueError(f"the feed-forwards would get the widths {sorted(widths)}; keep the same number in each")
    for ff, kept_K in zip(feed_forwards, kept, strict=True):
        if not (kept_K[1:] > kept_K[:-1]).all() or kept_K[0] < 0 or kept_K[-1] >= ff.width:
            raise ValueError(f"the kept neurons of {ff.down} must be ascending indices in 0..{ff.width - 1}")
        for name in (*ff.up, ff.down):
            if type(layer := encoder.get_submodule(name)) is not nn.Linear:
                raise ValueError(
                    f"{name} is a {type(layer).__name__}; only plain torch.nn.Linear layers can be made narrower: merge "
                    "adapters and load the model without quantisation"
                )
    return widths.pop()


def _size_name(config: Any, width: int) -> str:
    """The name under which a configuration holds the width of the feed-forwards."""
    for name in SIZE_NAMES:
        if getattr(config, name, None) == width:
            return name
    if hasattr(config, "n_inner") and config.n_inner is None and 4 * config.hidden_size == width:
        return "n_inner"  # GPT-2: None means four times the hidden size
    held = {name: getattr(config, name) for name in SIZE_NAMES if hasattr(config, name)}
    raise ValueError(
        f"the feed-forwards have {width} neurons and {type(config).__name__} holds {held}: it derives the width in a way "
        f"that is not known here, so a narrower model could not be loaded; prune single weights or layers instead"
    )


def _check_width(ff: FeedForward, reference: PreTrainedModel, width: int, size_name: str) -> None:
    rows = 2 * width if ff.is_fused else width
    wanted = [*((name, 0, rows) for name in ff.up), (ff.down, 1, width)]
    for name, axis, expected in wanted:
        shape = list(reference.get_submodule(name).weight.shape)
        if shape[axis] != expected:
            raise ValueError(
                f"{type(reference).__name__} makes {name} {shape} for {size_name}={width}, and dimension {axis} would be "
                f"{expected} after pruning, so the pruned model could not be loaded; try a width that is a multiple of 64"
            )


def _update_sizes(encoder: PreTrainedModel, reference: PreTrainedModel, before: int, after: int) -> None:
    """Change the copies of the width that modules keep (such as ``Qwen3MLP.intermediate_size``)."""
    for name, module in encoder.named_modules():
        fresh = plain_settings(reference.get_submodule(name)) if _has(reference, name) else {}
        for key, value in plain_settings(module).items():
            if value == before and fresh.get(key) == after and type(value) is int:
                setattr(module, key, after)


def _has(model: nn.Module, name: str) -> bool:
    try:
        model.get_submodule(name)
    except AttributeError:
        return False
    return True
