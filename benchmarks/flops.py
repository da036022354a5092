"""Floating-point operations of one step of a case, counted as in `mmbert_hf.flops`."""

from typing import Any

from cases import Case, Mode

from mmbert_hf.flops import encoder_flops, head_flops, training_flops

__all__ = ["step_flops"]


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
    if mode == "training":
        return training_flops(config, case.lengths, case.labelled_tokens)
    return encoder_flops(config, case.lengths) + head_flops(config, case.labelled_tokens)
