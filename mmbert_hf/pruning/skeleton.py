"""What a model's own class makes of a changed configuration, asked instead of guessed.

A pruned model is loaded by building its class from its configuration and filling in the weights. So whether a change can
be expressed is seen by building the class, without memory, and comparing.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

__all__ = ["plain_settings", "skeleton"]


def skeleton(encoder: PreTrainedModel, config: Any) -> PreTrainedModel:
    """The model that a configuration stands for, without memory: what loading a saved folder would build.

    Args:
        encoder: A model of the class to build.
        config: The configuration.

    Returns:
        A model of that class with all its weights on the ``meta`` device.

    Raises:
        ValueError: If the class refuses the configuration.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> config = BertConfig(vocab_size=10, hidden_size=4, num_attention_heads=1, num_hidden_layers=1, intermediate_size=6)
        >>> config.intermediate_size = 5
        >>> skeleton(BertModel(config), config).encoder.layer[0].output.dense.weight.shape
        torch.Size([4, 5])
    """
    try:
        with _on_meta():
            return type(encoder)(copy.deepcopy(config))
    except (ValueError, TypeError, IndexError, KeyError) as error:
        raise ValueError(f"{type(encoder).__name__} cannot be built after this change: {error}") from error


@contextmanager
def _on_meta() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]), torch.device("meta"):  # building must not change what is drawn next
        yield


def plain_settings(module: nn.Module) -> dict[str, Any]:
    """The numbers, strings and flags that a module keeps beside its weights.

    Args:
        module: Any module.

    Returns:
        Attribute -> value, without the mode and the place in the model (``layer_idx``).

    Example:
        >>> plain_settings(nn.LayerNorm(4))["eps"]
        1e-05
    """
    skipped = {"training", "layer_idx", "layer_index", "gradient_checkpointing"}
    return {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_") and name not in skipped and isinstance(value, bool | int | float | str | None)
    }
