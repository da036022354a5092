"""Floating-point operations of the architecture, counted on real tokens, and what devices can do at most.

Design decisions:

- Counted are the matrix products, two operations for a multiplication with its addition: the linear layers, and queries
  times keys and weights times values over the token pairs that may attend to each other. Norms, softmax, activations,
  rotations and the embedding look-up are not counted, nor is work on padding or outside the window: an implementation
  that does such work gets no credit for it.
- The backward pass counts twice the forward. Gradient checkpointing, which computes the forward again, gets no credit.
- A device that is not in the table has no peak: a share of an unknown peak is not reported.
"""

import re
from collections.abc import Sequence
from typing import Any

from mmbert_hf.configuration import LOCAL

__all__ = [
    "BF16_PEAKS",
    "attended_pairs",
    "bf16_peak",
    "encoder_flops",
    "head_flops",
    "training_flops",
    "training_flops_per_token",
]

TRAINING_FACTOR = 3  # forward and backward, in forwards

# Peak rate of dense bfloat16 matrix products with float32 sums, in operations per second, from the makers' data sheets
# (halved where those count sparsity). The first pattern that fits the name of the device counts.
BF16_PEAKS: tuple[tuple[str, float], ...] = (
    (r"\bH200 NVL\b", 836e12),
    (r"\bH200\b", 989e12),
    (r"\bH100 PCIe\b", 756e12),
    (r"\bH100 NVL\b", 835e12),
    (r"\bH100\b.*\bHBM3\b|\bH100 SXM", 989e12),
    (r"\bA100\b", 312e12),
    (r"\bA30\b", 165e12),
    (r"\bL40S\b", 362e12),
    (r"\bL4\b", 121e12),
    (r"\bRTX 4090$", 165e12),
    (r"\bRTX 3090$", 71e12),
)


def bf16_peak(device_name: str) -> float | None:
    """Peak rate of a device in dense bfloat16 matrix products.

    Args:
        device_name: As `torch.cuda.get_device_name` gives it.

    Returns:
        Floating-point operations per second; None for a device that is not in the table.

    Example:
        >>> bf16_peak("NVIDIA H100 80GB HBM3") / 1e12, bf16_peak("NVIDIA L4") / 1e12, bf16_peak("NVIDIA L40")
        (989.0, 121.0, None)
    """
    return next((peak for pattern, peak in BF16_PEAKS if re.search(pattern, device_name)), None)


def attended_pairs(length: int, reach: int | None = None) -> int:
    """Pairs (i, j) of tokens of one sequence with abs(i - j) <= reach.

    Args:
        length: Tokens of the sequence, at least 1.
        reach: Tokens on either side; None for all.

    Returns:
        The number of pairs, each token with itself included.

    Example:
        >>> attended_pairs(4), attended_pairs(4, reach=1), attended_pairs(4, reach=64)
        (16, 10, 16)
    """
    if reach is None:
        return length * length
    reach = min(reach, length - 1)
    return length * (2 * reach + 1) - reach * (reach + 1)


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
    reaches = [config.local_attention // 2 if kind == LOCAL else None for kind in layer_types or [None] * layers]
    pairs = sum(
        reaches.count(reach) * sum(attended_pairs(length, reach) for length in lengths) for reach in set(reaches)
    )
    return linear + 4 * width * pairs


def head_flops(config: Any, labelled_tokens: int) -> int:
    """Operations of one forward pass through the prediction head and the decoder.

    Args:
        config: Of mmBERT, ModernBERT or XLM-RoBERTa.
        labelled_tokens: Tokens that are predicted; in training, no others pass through the head.

    Returns:
        Floating-point operations.

    Example:
        >>> from mmbert_hf import MMBertConfig
        >>> head_flops(MMBertConfig.base(), 1) / 2  # multiplications of one token: dense layer and vocabulary
        197197824.0
    """
    return 2 * labelled_tokens * config.hidden_size * (config.hidden_size + config.vocab_size)


def training_flops(config: Any, document_lengths: Sequence[int], labelled_tokens: int) -> int:
    """Operations of forward and backward of masked-language modelling on one batch.

    Args:
        config: Of mmBERT, ModernBERT or XLM-RoBERTa.
        document_lengths: Tokens of each document, special tokens included: attention does not leave a document, so
            packed rows cost what their documents cost.
        labelled_tokens: Tokens that are predicted.

    Returns:
        Floating-point operations.

    Example:
        >>> from mmbert_hf import MMBertConfig
        >>> config = MMBertConfig.small()
        >>> training_flops(config, [512, 512], 300) < training_flops(config, [1024], 300)
        True
    """
    return TRAINING_FACTOR * (encoder_flops(config, document_lengths) + head_flops(config, labelled_tokens))


def training_flops_per_token(config: Any, document_lengths: Sequence[int], mask_ratio: float) -> float:
    """Operations of forward and backward of masked-language modelling for one real token, on average.

    Args:
        config: Of mmBERT or ModernBERT.
        document_lengths: Tokens of the documents of a representative batch, special tokens included.
        mask_ratio: Share of the tokens that are predicted, in [0, 1].

    Returns:
        Floating-point operations per token.

    Raises:
        ValueError: There is no document, an empty one, or a ratio outside [0, 1].

    Example:
        >>> from mmbert_hf import MMBertConfig
        >>> config = MMBertConfig.small()
        >>> round(training_flops_per_token(config, [1024], 0.30) / 1e6)
        476
    """
    if not len(document_lengths) or min(document_lengths) < 1:
        raise ValueError(f"document_lengths must be one or more positive numbers of tokens, got {document_lengths!r}")
    if not 0.0 <= mask_ratio <= 1.0:
        raise ValueError(f"mask_ratio must be in [0, 1], got {mask_ratio}")
    lengths = [int(length) for length in document_lengths]
    head = TRAINING_FACTOR * head_flops(config, 1)
    return training_flops(config, lengths, 0) / sum(lengths) + mask_ratio * head
