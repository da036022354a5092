"""Floating-point operations of one step, counted from the architecture on real tokens.

Counted are the matrix products, two operations for a multiplication with its addition: the linear layers, and queries
times keys and weights times values over the token pairs that may attend to each other. Norms, softmax, activations,
rotations and the embedding look-up are not counted, nor is work on padding or outside the window: an implementation
that does such work gets no credit for it. Training counts three times the forward.
"""

from collections.abc import Sequence
from typing import Any

from cases import Case, Mode

from mmbert_hf.configuration import LOCAL

__all__ = ["attended_pairs", "encoder_flops", "step_flops"]


def attended_pairs(length: int, reach: int | None = None) -> int:
    """Pairs (i, j) of tokens of one sequence with abs(i - j) <= reach.

    Args:
        length: Tokens of the sequence.
        reach: Tokens on either side; None for all.

    Returns:
        The number of pairs, each token with itself included.

    Example:
        >>> attended_pairs(4), attended_pairs(4, reach=1), attended_pairs(4, reach=64)
        (16, 10, 16)
    """
    if reach is None:
        return length * length
    return length + 2 * sum(length - distance for distance in range(1, min(reach, length - 1) + 1))


def encoder_flops(config: Any, lengths: Sequence[int]) -> int:
    """Operations of one forward pass through an encoder.

    Args:
        config: Of mmBERT, ModernBERT or XLM-RoBERTa; one with ``layer_types`` has gated feed-forward blocks.
        lengths: Real tokens of each sequence.

    Returns:
        Floating-point operations.

    Example:
        >>> from mmbert_hf import MMBertConfig
        >>> encoder_flops(MMBertConfig.base(), [512]) / 1e9 / 512  # 2 x 110 million parameters, and attention
        0.23837568
    """
    width, inner, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    layer_types = getattr(config, "layer_types", None)
    feed_forward = (3 if layer_types else 2) * width * inner
    linear = 2 * sum(lengths) * layers * (4 * width * width + feed_forward)
    pairs = 0
    for layer_type in layer_types or [None] * layers:
        reach = config.local_attention // 2 if layer_type == LOCAL else None
        pairs += sum(attended_pairs(length, reach) for length in lengths)
    return linear + 4 * width * pairs


def step_flops(config: Any, case: Case, mode: Mode) -> int:
    """Operations of one step of a case.

    Args:
        config: Configuration of the model.
        case: Gives the lengths, and the labelled tokens, which alone count for the prediction head.
        mode: Training counts three times the forward.

    Returns:
        Floating-point operations.

    Example:
        >>> from cases import CASES
        >>> from mmbert_hf import MMBertConfig
        >>> inference, training = (step_flops(MMBertConfig.small(), CASES["4x512"], mode) for mode in CASES["4x512"].modes)
        >>> training == 3 * inference
        True
    """
    head = 2 * case.labelled_tokens * config.hidden_size * (config.hidden_size + config.vocab_size)
    forward = encoder_flops(config, case.lengths) + head
    return 3 * forward if mode == "training" else forward
