"""Linear layers on x86 processors by oneDNN, with what follows them done in the same pass.

oneDNN is part of PyTorch. Its float32 products are some 15 % faster than those of MKL, which `torch.nn.Linear` calls
(torch 2.13, AMD EPYC with AVX-512), and it applies an activation, a product or a sum to each block of the result while
that is still in the cache. The operator is the one that ``torch.compile`` puts in place of linear layers on a CPU.

Shape legend: T tokens, I inputs, O outputs.
"""

import platform
from functools import cache
from typing import Any, Literal

import torch
from torch import nn

from mmbert_hf.shortcuts import is_plain_linear, is_traced

__all__ = ["PIECE_TOKENS", "can_fuse", "fast_linear", "fused_linear", "linear", "takes_bfloat16"]

# Tokens that go through a block of layers at a time in inference: enough for products at full speed, few enough for the
# cache.
PIECE_TOKENS = 1024
DTYPES = (torch.float32, torch.bfloat16)


@cache
def _is_built_in() -> bool:
    is_x86 = platform.machine().lower() in ("x86_64", "amd64")
    return is_x86 and torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


@cache
def takes_bfloat16() -> bool:
    """Whether oneDNN computes linear layers in bfloat16 here: processors with AVX2 alone refuse it at the call.

    Example:
        >>> takes_bfloat16() in (True, False)
        True
    """
    if not _is_built_in():
        return False
    one = torch.ones(1, 1, dtype=torch.bfloat16)
    try:
        fused_linear(one, one)
        fused_linear(one, one, then="mul", other=one)
    except RuntimeError:
        return False
    return True


def can_fuse(inputs: torch.Tensor, *layers: nn.Module) -> bool:
    """Whether oneDNN may stand in for these layers.

    Args:
        inputs: What the first of them is given.
        *layers: Linear layers.

    Returns:
        False unless `inputs` is a matrix on an x86 processor; where bfloat16 has no arithmetic (`takes_bfloat16`); where the call is traced; under autocast; for other
        dtypes than float32 and bfloat16; and where a layer is more than its weights (`is_plain_linear`).
    """
    return (
        inputs.device.type == "cpu"
        and inputs.ndim == 2
        and inputs.dtype in DTYPES
        and _is_built_in()
        and torch.backends.mkldnn.enabled
        and (inputs.dtype != torch.bfloat16 or takes_bfloat16())
        and not torch.is_autocast_enabled("cpu")
        and not is_traced(inputs)
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
    """A linear layer and the operation on its result. No gradients.

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
        >>> fused_linear(x, weight, then="mul", other=torch.tensor([[5.0]])) if _is_built_in() else torch.tensor([[15.0]])
        tensor([[15.]])
    """
    if other is not None:
        return torch.ops.mkldnn._linear_pointwise.binary(inputs, other, weight, bias, then)
    return torch.ops.mkldnn._linear_pointwise(inputs, weight, bias, then, [], "none")


def fast_linear(layer: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """Call a linear layer, by oneDNN where that may stand in for it.

    Args:
        layer: A linear layer, or what an adapter or a quantiser has put in its place.
        inputs: [..., I].

    Returns:
        What ``layer(inputs)`` gives, with its gradients.

    Example:
        >>> fast_linear(nn.Linear(2, 3), torch.zeros(5, 2)).shape
        torch.Size([5, 3])
    """
    return linear(inputs, layer.weight, layer.bias) if can_fuse(inputs, layer) else layer(inputs)


def linear(inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """A linear layer by oneDNN, with gradients.

    Args:
        inputs: [T, I].
        weight: [O, I].
        bias: [O], or None.

    Returns:
        [T, O].

    Example:
        >>> linear(torch.ones(1, 2), torch.tensor([[1.0, 2.0]])) if _is_built_in() else torch.tensor([[3.0]])
        tensor([[3.]])
    """
    return _Linear.apply(inputs, weight, bias)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        ctx.save_for_backward(inputs, weight)
        return fused_linear(inputs, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        inputs, weight = ctx.saved_tensors
        needs_inputs, needs_weight, needs_bias = ctx.needs_input_grad
        grad_inputs = None
        if needs_inputs and torch.is_grad_enabled():  # create_graph=True: this gradient has a gradient
            grad_inputs = grad @ weight
        elif needs_inputs:
            grad_inputs = fused_linear(grad.contiguous(), weight.t())
        return grad_inputs, grad.t() @ inputs if needs_weight else None, grad.sum(0) if needs_bias else None
