"""Physically shallower models: whole blocks leave, and the configuration says what is left.

Design decisions:

- A block may go only if the model's own class can express the rest. Which it can is asked: the class is built from the
  new configuration, and each of its blocks must have the parameters and the settings (such as a window) of the block
  that is to stand there. ModernBERT, for one, has no norm in front of its first attention, so its block 0 stays.
- Every list in the configuration with one entry per block (``layer_types``) loses the entries of the blocks.
- Blocks are tried by taking them out of the running model and putting them back: no copy of a large model.
- The baseline is to drop the last blocks, as L3Prune does (Thennal et al., arXiv 2410.14578), which chooses how many by
  the loss before training.
"""

import copy
import math
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import nn
from transformers import PreTrainedModel

from mmbert_hf.pruning.skeleton import plain_settings, skeleton
from mmbert_hf.pruning.targets import encoder_of, find_blocks

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = ["choose_layers", "drop_layers", "droppable_layers", "last_layers", "without_layers"]

INDEX_NAMES = ("layer_idx", "layer_index", "layer_id")


def drop_layers(model: "SentenceTransformer", layers: Collection[int]) -> None:
    """Take blocks out of a model, in place. What is left computes as it did with these blocks skipped.

    Args:
        model: The embedder.
        layers: Numbers of the blocks to drop, from 0; in any order.

    Raises:
        ValueError: If there are no such blocks, none would be left, or the model's class cannot express the rest. The
            model is unchanged then.

    Example:
        >>> drop_layers(model, last_layers(model, 2))  # doctest: +SKIP
    """
    encoder = encoder_of(model)
    _check_layers(encoder, layers)
    if reason := _obstacle(encoder, layers):
        raise ValueError(
            f"without the layers {sorted(layers)} the model could not be loaded: {reason}. These can be dropped one at "
            f"a time: {droppable_layers(model)}"
        )
    _remove(encoder, layers)


@contextmanager
def without_layers(model: "SentenceTransformer", layers: Collection[int]) -> Iterator[None]:
    """The model without some blocks, for as long as the context lasts. Nothing is copied.

    Args:
        model: The embedder.
        layers: Numbers of the blocks.

    Raises:
        ValueError: If there are no such blocks, or none would be left.

    Example:
        >>> with without_layers(model, [3]):  # doctest: +SKIP
        ...     embeddings = model.encode(texts)
    """
    encoder = encoder_of(model)
    _check_layers(encoder, layers)
    blocks = find_blocks(encoder)[1]
    everything, values = list(blocks), _values_without(encoder.config, len(blocks), ())
    _remove(encoder, layers)
    try:
        yield
    finally:
        _fill(blocks, everything)
        _set_values(encoder.config, values)


def droppable_layers(model: "SentenceTransformer") -> list[int]:
    """The blocks that can be dropped alone.

    Args:
        model: The embedder.

    Returns:
        Their numbers, ascending. Dropping several can be impossible where dropping each is not; `drop_layers` checks.

    Example:
        >>> droppable_layers(modernbert)  # doctest: +SKIP
        [1, 2, 3]
    """
    encoder = encoder_of(model)
    num_layers = len(find_blocks(encoder)[1])
    return [layer for layer in range(num_layers) if num_layers > 1 and not _obstacle(encoder, [layer])]


def last_layers(model: "SentenceTransformer", num_dropped: int) -> list[int]:
    """The last blocks: what L3Prune drops.

    Args:
        model: The embedder.
        num_dropped: How many.

    Returns:
        Their numbers, ascending.

    Raises:
        ValueError: If no block would be left.

    Example:
        >>> last_layers(six_layers, 2)  # doctest: +SKIP
        [4, 5]
    """
    num_layers = len(find_blocks(encoder_of(model))[1])
    _check_number(num_dropped, num_layers)
    return list(range(num_layers - num_dropped, num_layers))


def choose_layers(
    model: "SentenceTransformer", num_dropped: int, loss: Callable[["SentenceTransformer"], float]
) -> list[int]:
    """Choose blocks to drop, greedily: each time the one without which the loss is lowest.

    Args:
        model: The embedder; as it was when this returns.
        num_dropped: How many blocks to choose.
        loss: What is asked of the model without some blocks; called once per candidate and round.

    Returns:
        Numbers of the blocks, in the order in which they were chosen: the first n are the choice for n.

    Raises:
        ValueError: If so many cannot be dropped, or the loss is NaN.

    Example:
        >>> choose_layers(model, 2, lambda model: float(1 - evaluator(model)["ndcg@10"]))  # doctest: +SKIP
        [4, 2]
    """
    encoder = encoder_of(model)
    num_layers = len(find_blocks(encoder)[1])
    _check_number(num_dropped, num_layers)
    chosen: list[int] = []
    while len(chosen) < num_dropped:
        left = [layer for layer in range(num_layers) if layer not in chosen]
        losses = {
            layer: _loss_without(model, [*chosen, layer], loss)
            for layer in left
            if not _obstacle(encoder, [*chosen, layer])
        }
        if not losses:
            raise ValueError(
                f"got num_dropped={num_dropped}, but after dropping {chosen} no other block can go: "
                f"{_obstacle(encoder, [*chosen, left[0]])}; drop at most {len(chosen)}"
            )
        chosen.append(min(losses, key=lambda layer: (losses[layer], -layer)))  # of equals the later one
    return chosen


def _loss_without(
    model: "SentenceTransformer", layers: Collection[int], loss: Callable[["SentenceTransformer"], float]
) -> float:
    with without_layers(model, layers):
        value = float(loss(model))
    if math.isnan(value):
        raise ValueError(f"the loss without the layers {sorted(layers)} is NaN; it must be a number to compare")
    return value


def _check_number(num_dropped: int, num_layers: int) -> None:
    if not 0 <= num_dropped < num_layers:
        raise ValueError(
            f"got num_dropped={num_dropped}; the model has {num_layers} blocks, and at least one must stay"
        )


def _check_layers(encoder: PreTrainedModel, layers: Collection[int]) -> None:
    num_layers = len(find_blocks(encoder)[1])
    if len(set(layers)) != len(layers) or not set(layers) <= set(range(num_layers)):
        raise ValueError(f"got the layers {sorted(layers)}; give different numbers in 0..{num_layers - 1}")
    if len(layers) == num_layers:
        raise ValueError(f"got all {num_layers} layers; at least one must stay")


# Taking blocks out


def _remove(encoder: PreTrainedModel, layers: Collection[int]) -> None:
    blocks = find_blocks(encoder)[1]
    values = _values_without(encoder.config, len(blocks), layers)
    _fill(blocks, [block for index, block in enumerate(blocks) if index not in layers])
    _set_values(encoder.config, values)


def _fill(blocks: nn.ModuleList, members: list[nn.Module]) -> None:
    """Put these blocks into the list, which stays the same object, and tell them their numbers."""
    del blocks[:]
    blocks.extend(members)
    for index, block in enumerate(members):
        for module in block.modules():
            for name in INDEX_NAMES:
                if type(getattr(module, name, None)) is int:
                    setattr(module, name, index)


def _values_without(config: Any, num_layers: int, layers: Collection[int]) -> dict[str, Any]:
    """The values of a configuration that speak of its blocks, as they are without some of them."""
    values: dict[str, Any] = {"num_hidden_layers": num_layers - len(layers)}
    for name, value in vars(config).items():
        is_about_tokens = name.endswith(("_token_id", "_token_ids", "_tokens"))
        if isinstance(value, list | tuple) and len(value) == num_layers and not is_about_tokens:
            values[name] = type(value)(each for index, each in enumerate(value) if index not in layers)
    return values


def _set_values(config: Any, values: dict[str, Any]) -> None:
    for name, value in values.items():
        setattr(config, name, value)


# What the class can express


def _obstacle(encoder: PreTrainedModel, layers: Collection[int]) -> str | None:
    """Why the model's class cannot build what is left without these blocks, or None."""
    blocks_name, blocks = find_blocks(encoder)
    config = copy.deepcopy(encoder.config)
    if config.num_hidden_layers != len(blocks):
        return f"its configuration says {config.num_hidden_layers} layers, and it has {len(blocks)} in {blocks_name}"
    _set_values(config, _values_without(config, len(blocks), layers))
    try:
        fresh_blocks = find_blocks(skeleton(encoder, config))[1]
    except ValueError as error:
        return str(error)
    kept = [index for index in range(len(blocks)) if index not in layers]
    for place, (index, fresh) in enumerate(zip(kept, fresh_blocks, strict=True)):
        if index != place and (difference := _difference(blocks[index], fresh)):
            return f"layer {index} would become layer {place} of {type(encoder).__name__}, which {difference}"
    return None


def _difference(block: nn.Module, fresh: nn.Module) -> str | None:
    """What a block of the class has that this one has not, or the reverse."""
    ours = {name: list(tensor.shape) for name, tensor in block.state_dict().items()}
    theirs = {name: list(tensor.shape) for name, tensor in fresh.state_dict().items()}
    if ours.keys() != theirs.keys():
        extra, missing = sorted(ours.keys() - theirs.keys()), sorted(theirs.keys() - ours.keys())
        return " and ".join(
            [f"has no {', '.join(extra)}"] * bool(extra) + [f"has {', '.join(missing)}"] * bool(missing)
        )
    for name, shape in theirs.items():
        if shape != ours[name]:
            return f"has {name} {shape} instead of {ours[name]}"
    for (name, module), other in zip(block.named_modules(), fresh.modules(), strict=True):
        settings, expected = plain_settings(module), plain_settings(other)
        for key, value in expected.items():
            if key in settings and settings[key] != value:
                return f"has {'.'.join(filter(None, [name, key]))} {value!r} instead of {settings[key]!r}"
    return None
