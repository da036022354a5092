"""When a call may go around modules or look at values: not where somebody else is watching it.

Faster paths use the weights of a layer without calling it, and let shapes depend on values. Both are wrong where a call
is recorded rather than run, or where the layer is more than its weights.
"""

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

__all__ = ["is_plain_linear", "is_traced"]


def is_plain_linear(layer: nn.Module) -> bool:
    """Whether calling a layer does nothing but multiply by its weight and add its bias.

    Args:
        layer: Any module.

    Returns:
        False for adapters, quantised and parametrised layers, and for layers with hooks, such as those by which sharded
        training gathers weights and large models are moved between devices.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> is_plain_linear(layer)
        True
        >>> _ = layer.register_forward_hook(print)
        >>> is_plain_linear(layer)
        False
    """
    return (
        type(layer) is nn.Linear
        and type(layer.weight) in (nn.Parameter, torch.Tensor)
        and not (layer._forward_hooks or layer._forward_pre_hooks or "forward" in layer.__dict__)
        and not (layer._backward_hooks or layer._backward_pre_hooks)
        and not torch.nn.modules.module._has_any_global_hook()
    )


def is_traced(tensor: torch.Tensor) -> bool:
    """Whether the values of `tensor` cannot be looked at, so that the shape of what follows must not depend on them.

    Args:
        tensor: An input of the running forward.

    Returns:
        True under torch.compile, torch.export and ONNX export, torch.jit.trace, CUDA graph capture and function
        transforms (torch.func.vmap and its like), and for tensors without values (meta and fake tensors).

    Example:
        >>> is_traced(torch.zeros(1)), is_traced(torch.zeros(1, device="meta"))
        (False, True)
    """
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or isinstance(tensor, FakeTensor | torch.fx.Proxy)
        or tensor.device.type == "meta"
        or torch._C._are_functorch_transforms_active()
        or (tensor.device.type == "cuda" and torch.cuda.is_current_stream_capturing())
    )
