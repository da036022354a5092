"""What a wide or deep model copies from where: configurations, unit indices, places of layers.

The weights follow in `mmbert_hf.tiling`, which has the methods and the source.
"""

import copy
import math
from typing import Literal, get_args

import torch
from transformers import ModernBertConfig

from mmbert_hf.configuration import GLOBAL, LOCAL, MMBertConfig

__all__ = ["TilingMethod", "check_fit", "place_layers", "tiled_index", "widened_config"]

TilingMethod = Literal["center", "tile", "duplicate"]
# What decides which weights there are and what they mean. Equal for every method.
STRUCTURE = (
    "vocab_size norm_bias attention_bias mlp_bias classifier_bias decoder_bias tie_word_embeddings hidden_activation "
    "classifier_activation"
).split()
FUNCTION = "rope_parameters local_attention norm_eps".split()  # further values that a preserved function needs equal


def widened_config(narrow: ModernBertConfig, **sizes: int | None) -> MMBertConfig:
    """The configuration of a larger model of the same kind.

    Args:
        narrow: Configuration of the narrow model, of either type.
        **sizes: ``hidden_size``, ``intermediate_size``, ``num_hidden_layers``; as in `narrow` if None or left out.
            Heads keep their size, so their number follows from ``hidden_size``; layers keep their pattern.

    Returns:
        A new configuration.

    Raises:
        ValueError: If the hidden size is no multiple of the head size, or the layers have no pattern to continue.

    Example:
        >>> config = widened_config(MMBertConfig.small(), hidden_size=1024, num_hidden_layers=28)
        >>> config.num_attention_heads, config.layer_types.count("full_attention")
        (16, 10)
    """
    ours = narrow if isinstance(narrow, MMBertConfig) else MMBertConfig.from_modernbert(narrow)
    values = copy.deepcopy(ours.to_dict()) | {name: size for name, size in sizes.items() if size is not None}
    head_size = ours.hidden_size // ours.num_attention_heads
    if values["hidden_size"] % head_size:
        raise ValueError(
            f"hidden_size {values['hidden_size']} is not a multiple of {head_size}, the size of the heads, which stays"
        )
    values["num_attention_heads"] = values["hidden_size"] // head_size
    if values["num_hidden_layers"] != ours.num_hidden_layers:
        values["layer_types"] = _continued(ours.layer_types, values["num_hidden_layers"])
    return MMBertConfig.from_dict(values)


def _continued(layer_types: list[str], num_layers: int) -> list[str]:
    """The first `num_layers` layers of a pattern in which every n-th layer is global, starting with the first."""
    for every in range(1, len(layer_types) + 1):
        pattern = [LOCAL if index % every else GLOBAL for index in range(max(num_layers, len(layer_types)))]
        if pattern[: len(layer_types)] == layer_types:
            return pattern[:num_layers]
    raise ValueError(
        f"the layers {layer_types} are not every n-th global, so {num_layers} layers cannot continue them; pass a "
        "configuration with layer_types"
    )


def tiled_index(narrow: int, wide: int, method: TilingMethod) -> torch.Tensor:
    """Which narrow unit each wide unit copies.

    Args:
        narrow: Number of narrow units.
        wide: Number of wide units, at least `narrow`; for ``"duplicate"`` a multiple of it.
        method: See the module docstring.

    Returns:
        [wide], int64, values in 0..narrow - 1.

    Example:
        >>> tiled_index(3, 8, "center").tolist(), tiled_index(3, 8, "tile").tolist()
        ([1, 2, 0, 1, 2, 0, 1, 2], [0, 1, 2, 0, 1, 2, 0, 1])
    """
    before = (wide - narrow) // 2 if method == "center" else 0
    return (torch.arange(wide) - before) % narrow


def place_layers(narrow: list[str], wide: list[str]) -> list[int | None]:
    """Where the layers of a narrow model go in a deeper one: in order, on layers of their kind, evenly spread.

    The first layer, which has no attention norm, goes on the first. Of all such placements it is the one whose squared
    distances from an even spread sum to the least.

    Args:
        narrow: Kinds of the narrow model's layers.
        wide: Kinds of the deeper model's layers.

    Returns:
        For each layer of the deeper model the narrow layer that goes there, or None where a layer is added.

    Raises:
        ValueError: If there is no such placement.

    Example:
        >>> g, l = "full_attention", "sliding_attention"
        >>> place_layers([g, l, l, g], [g, l, l, g, l, l, g])
        [0, None, 1, None, 2, None, 3]
    """
    # cost[i]: least cost of narrow layers 0..j with layer j on wide layer i; grown by one narrow layer at a time
    cost = [0.0 if index == 0 and narrow[0] == wide[0] else math.inf for index in range(len(wide))]
    came_from: list[list[int]] = []
    stretch = (len(wide) - 1) / max(1, len(narrow) - 1)
    for layer, kind in enumerate(narrow[1:], start=1):
        best, place, grown, origins = math.inf, -1, [math.inf] * len(wide), [-1] * len(wide)
        for index in range(1, len(wide)):
            if cost[index - 1] < best:
                best, place = cost[index - 1], index - 1
            if wide[index] == kind:
                grown[index], origins[index] = best + (index - layer * stretch) ** 2, place
        cost = grown
        came_from.append(origins)
    if not narrow or min(cost) == math.inf:
        raise ValueError(
            f"{len(narrow)} layers {narrow} do not fit in order into {len(wide)} layers {wide}; the deeper model needs "
            "as many of each kind, and the same kind first"
        )
    placed: list[int | None] = [None] * len(wide)
    index = cost.index(min(cost))
    for layer in range(len(narrow) - 1, -1, -1):
        placed[index] = layer
        index = came_from[layer - 1][index] if layer else index
    return placed


def check_fit(narrow: MMBertConfig, wide: MMBertConfig, method: str) -> None:
    """Raise unless a model can be tiled into another with a method.

    Args:
        narrow: Configuration of the narrow model.
        wide: Configuration of the wide one.
        method: One of `TilingMethod`.

    Raises:
        ValueError: Naming the two values that do not fit, and the fix.
    """
    if method not in get_args(TilingMethod):
        raise ValueError(f"method is {method!r}; it must be one of {', '.join(map(repr, get_args(TilingMethod)))}")
    for name in STRUCTURE + (FUNCTION if method == "duplicate" else []):
        if getattr(narrow, name) != getattr(wide, name):
            raise ValueError(
                f"{name} is {getattr(narrow, name)!r} in the narrow model and {getattr(wide, name)!r} in the wide one; "
                f"method {method!r} needs it equal"
            )
    head_sizes = [config.hidden_size // config.num_attention_heads for config in (narrow, wide)]
    if head_sizes[0] != head_sizes[1]:
        raise ValueError(
            f"the heads have size {head_sizes[0]} in the narrow model and {head_sizes[1]} in the wide one; heads are "
            f"copied whole: set num_attention_heads to {wide.hidden_size} / {head_sizes[0]}"
        )
    for name in ("hidden_size", "intermediate_size"):
        before, after = getattr(narrow, name), getattr(wide, name)
        if after < before:
            raise ValueError(f"{name} is {after} in the wide model and {before} in the narrow one; it must not shrink")
        if method == "duplicate" and after % before:
            raise ValueError(
                f"{name} {after} is not a multiple of {before}; 'duplicate' repeats every unit equally often: use "
                f"{after // before * before} or {(after // before + 1) * before}, or method 'center'"
            )
