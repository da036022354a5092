"""How fresh weights are drawn: the "full_megatron" scheme of ModernBERT and mmBERT.

Every weight matrix is drawn from a normal distribution with mean 0, cut off at ``initializer_cutoff_factor`` (2)
standard deviations. The standard deviation depends on the role that a matrix plays, with s = ``initializer_range``
(0.02), L layers and hidden size E:

=============  =================  ==========================================================
role           deviation          matrices
=============  =================  ==========================================================
``embedding``  s                  token embeddings
``input``      s                  projections out of the residual stream: Wqkv, Wi
``output``     s / sqrt(2 L)      projections back into it: Wo; prediction head, decoder
``classifier`` 1 / sqrt(E)        the last layer of a classification head
=============  =================  ==========================================================

The residual stream is a sum of 2 L outputs, so the root keeps its variance from growing with depth. Biases start at 0,
norms at 1. A decoder that is tied to the embeddings has their deviation.
"""

import math
from typing import Literal

from torch import nn
from transformers import ModernBertConfig
from transformers import initialization as init  # leaves alone what was just loaded from a checkpoint

__all__ = ["Role", "initialize", "linear", "weight_deviation"]

Role = Literal["embedding", "input", "output", "classifier"]


def weight_deviation(config: ModernBertConfig, role: Role) -> float:
    """Standard deviation of the fresh weights of a matrix, before the cut-off.

    Args:
        config: Gives the initializer range, the number of layers and the hidden size.
        role: What the matrix does; see the module docstring.

    Returns:
        The standard deviation.

    Raises:
        ValueError: For an unknown role.

    Example:
        >>> from mmbert_hf.configuration import MMBertConfig
        >>> round(weight_deviation(MMBertConfig.base(), "output"), 5)
        0.00302
    """
    if role in ("embedding", "input"):
        return config.initializer_range
    if role == "output":
        return config.initializer_range / math.sqrt(2 * config.num_hidden_layers)
    if role == "classifier":
        return config.hidden_size**-0.5
    raise ValueError(f"role is {role!r}; it must be 'embedding', 'input', 'output' or 'classifier'")


def linear(in_features: int, out_features: int, *, bias: bool, role: Role) -> nn.Linear:
    """A linear layer that knows how its fresh weights are to be drawn.

    Args:
        in_features: Size of the inputs.
        out_features: Size of the outputs.
        bias: Whether to add a bias.
        role: What the matrix does; see the module docstring.

    Returns:
        The layer, with ``initialization_role`` set.

    Example:
        >>> linear(4, 8, bias=False, role="input").initialization_role
        'input'
    """
    layer = nn.Linear(in_features, out_features, bias=bias)
    layer.initialization_role = role
    return layer


def initialize(module: nn.Linear | nn.Embedding, config: ModernBertConfig) -> None:
    """Draw fresh weights in place for a layer that has an ``initialization_role``.

    Args:
        module: A linear layer or an embedding.
        config: Gives the deviations and the cut-off.

    Example:
        >>> from mmbert_hf.configuration import MMBertConfig
        >>> layer = linear(64, 64, bias=True, role="input")
        >>> initialize(layer, MMBertConfig.small(initializer_range=0.1))
        >>> layer.weight.abs().max().item() <= 0.2, layer.bias.sum().item()
        (True, 0.0)
    """
    deviation = weight_deviation(config, module.initialization_role)
    cutoff = config.initializer_cutoff_factor * deviation
    init.trunc_normal_(module.weight, mean=0.0, std=deviation, a=-cutoff, b=cutoff)
    if getattr(module, "bias", None) is not None:
        init.zeros_(module.bias)
