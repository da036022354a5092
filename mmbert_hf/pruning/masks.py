"""Pruning masks: which weights are kept, one bit per weight, and how they get to the weights of a model.

Design decisions:

- A mask is a value: boolean tensors on the CPU by module name, never changed. What is done with it (zero the weights,
  check them, mask gradients) looks the weights up in the model each time.
- One function finds the weights, `masked_linears`. It sees through what training puts around a model and its layers:
  data-parallel wrappers, compiled modules, PEFT adapters. So a mask fits the model before, during and after training.
- Only plain weights count: a ``torch.nn.Linear`` whose weight is a ``Parameter`` of 16 bits or more. A quantised or
  sharded weight that reads as zero need not be zero where it is stored, so it is refused.
- On disk a mask is a safetensors file of packed bits, eight weights a byte, with the shapes in its header.

Shape legend: O outputs and I inputs of a linear layer.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from mmbert_hf.pruning.targets import encoder_of

__all__ = ["PruningMask", "masked_linears", "unwrapped"]

FORMAT, FORMAT_VERSION, METADATA_KEY = "mmbert_hf.pruning_mask", "1", "mask"
PLAIN_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
MODEL_WRAPPERS = ("module", "_orig_mod")  # data parallel; torch.compile
LAYER_WRAPPERS = ("_orig_mod", "_checkpoint_wrapped_module", "base_layer")  # the last one: PEFT


def unwrapped(model: nn.Module) -> nn.Module:
    """The transformers model inside whatever holds it; module names of a mask begin there.

    Args:
        model: A SentenceTransformer, a transformers model with or without a head, or either of them inside a
            `PeftModel`, a data-parallel wrapper or a compiled module.

    Raises:
        ValueError: A SentenceTransformer that holds no transformers model.
    """
    for wrapper in MODEL_WRAPPERS:
        if isinstance(inner := getattr(model, wrapper, None), nn.Module):
            return unwrapped(inner)
    if hasattr(model, "get_base_model"):  # a PeftModel
        return unwrapped(model.get_base_model())
    if isinstance(model, nn.Sequential):  # a SentenceTransformer
        encoder: nn.Module = encoder_of(model)
        return encoder.get_base_model() if hasattr(encoder, "get_base_model") else encoder
    return getattr(model, "base_model", model)


def masked_linears(model: nn.Module, shapes: Mapping[str, Iterable[int]]) -> dict[str, nn.Linear]:
    """Find linear layers by the names they have without wrappers and adapters.

    Args:
        model: As `unwrapped` takes it.
        shapes: Module name inside the transformers model -> [O, I].

    Returns:
        Name -> the layer that holds the plain weight: inside an adapter, its base layer.

    Raises:
        ValueError: No such module, no plain linear layer, or another shape.
        TypeError: A weight that is quantised, sharded or computed.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> model = BertModel(BertConfig(hidden_size=8, num_attention_heads=2, intermediate_size=16))
        >>> masked_linears(model, {"encoder.layer.3.output.dense": (8, 16)})
        {'encoder.layer.3.output.dense': Linear(in_features=16, out_features=8, bias=True)}
    """
    encoder = unwrapped(model)
    found = {}
    for name, shape in shapes.items():
        linear = found[name] = _plain_linear(name, _find(encoder, name))
        if tuple(linear.weight.shape) != tuple(shape):
            raise ValueError(
                f"the mask of {name} is {list(shape)} and its weight is {list(linear.weight.shape)}; the mask belongs "
                "to another model, or the model was made narrower after it"
            )
    return found


def _find(encoder: nn.Module, name: str) -> nn.Module:
    module = encoder
    for part in name.split("."):
        inner = getattr(module, part, None)
        if not isinstance(inner, nn.Module):
            linears = [path for path, layer in encoder.named_modules() if isinstance(layer, nn.Linear)]
            close = get_close_matches(name, linears, n=3) or linears[:3]
            raise ValueError(
                f"the mask has {name!r}, which {type(encoder).__name__} has not; it has "
                f"{', '.join(close) or 'no linear layers'}. The mask belongs to another model"
            )
        module = _without_wrappers(inner)
    return module


def _without_wrappers(module: nn.Module) -> nn.Module:
    for wrapper in LAYER_WRAPPERS:
        if isinstance(inner := getattr(module, wrapper, None), nn.Module):
            return _without_wrappers(inner)
    return module


def _plain_linear(name: str, module: nn.Module) -> nn.Linear:
    if not isinstance(module, nn.Linear):
        raise ValueError(
            f"{name} is {type(module).__module__}.{type(module).__name__}; masks are for torch.nn.Linear. Load the "
            "model without quantisation, and do not list the layer in modules_to_save of an adapter"
        )
    weight = module.weight
    if type(weight) is not nn.Parameter or weight.dtype not in PLAIN_DTYPES:
        raise TypeError(
            f"the weight of {name} is a {type(weight).__name__} of {weight.dtype}, and a mask needs a plain parameter "
            f"of {', '.join(str(dtype).removeprefix('torch.') for dtype in PLAIN_DTYPES)}; load the model without "
            "quantisation, sharding or parametrisation"
        )
    return module


class PruningMask:
    """Which weights of which linear layers are kept; the others are zero.

    Args:
        kept: Module name inside the transformers model (``"encoder.layer.3.output.dense"``) -> bool [O, I], True where
            the weight is kept. The tensors are not copied and must not be changed.

    Attributes:
        kept: The same, read-only, on the CPU.
        num_weights: Weights that the mask covers, kept or not.
        num_pruned: How many of them are zero.

    Raises:
        ValueError: No tensor, or one that is not [O, I].
        TypeError: A tensor that is not of bool.

    Example:
        >>> mask = PruningMask({"encoder.layer.0.output.dense": torch.tensor([[True, False], [True, True]])})
        >>> mask
        PruningMask(1 of 4 weights pruned in 1 layer)
        >>> mask.sparsity, mask.per_tensor()
        (0.25, {'encoder.layer.0.output.dense': 0.25})
    """

    def __init__(self, kept: Mapping[str, Tensor]) -> None:
        if not kept:
            raise ValueError("the mask is empty; give the kept weights of at least one linear layer")
        for name, tensor in kept.items():
            if not isinstance(tensor, Tensor) or tensor.dtype != torch.bool:
                got = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
                raise TypeError(f"kept[{name!r}] is of {got}; give a bool tensor, True where the weight is kept")
            if tensor.ndim != 2 or tensor.numel() == 0:
                raise ValueError(f"kept[{name!r}] is {list(tensor.shape)}; a linear weight is [outputs, inputs]")
        self.kept: Mapping[str, Tensor] = MappingProxyType(
            {name: tensor.detach().to("cpu") for name, tensor in kept.items()}
        )
        self.num_weights = sum(tensor.numel() for tensor in kept.values())
        self.num_pruned = sum(_num_pruned(tensor) for tensor in self.kept.values())

    @property
    def sparsity(self) -> float:
        """Share of zeros over all weights that the mask covers."""
        return self.num_pruned / self.num_weights

    def per_tensor(self) -> dict[str, float]:
        """Share of zeros of each layer."""
        return {name: _num_pruned(tensor) / tensor.numel() for name, tensor in self.kept.items()}

    def linears(self, model: nn.Module) -> dict[str, nn.Linear]:
        """The layers of a model that the mask is for; raises as `masked_linears` does if it does not fit."""
        return masked_linears(model, {name: tensor.shape for name, tensor in self.kept.items()})

    @torch.no_grad()
    def apply(self, model: nn.Module) -> None:
        """Set the pruned weights of a model to zero, in place. With adapters, those of the base weights.

        Args:
            model: A SentenceTransformer or transformers model, wrapped or not.

        Raises:
            ValueError: The mask is of another model; nothing was changed then.
            TypeError: A weight is quantised or sharded; nothing was changed then.
        """
        for name, linear in self.linears(model).items():
            linear.weight.masked_fill_(~self.kept[name].to(linear.weight.device), 0)

    @torch.no_grad()
    def check(self, model: nn.Module) -> None:
        """Raise if a pruned weight of a model is not zero.

        Args:
            model: As for `apply`.

        Raises:
            RuntimeError: Naming the layers, and how many of their pruned weights are not zero.
            ValueError: The mask is of another model.
            TypeError: A weight is quantised or sharded.
        """
        revived = []
        for name, linear in self.linears(model).items():
            pruned = ~self.kept[name].to(linear.weight.device)
            if count := int(((linear.weight != 0) & pruned).sum()):  # NaN is not zero either
                revived.append(f"{count} of {int(pruned.sum())} in {name}")
        if revived:
            shown = "; ".join(revived[:5]) + (f"; and in {len(revived) - 5} more layers" if len(revived) > 5 else "")
            raise RuntimeError(
                f"pruned weights are not zero: {shown}. Something wrote to them; train with GAPruneCallback(mask), "
                "and after merging an adapter call mask.apply(model)"
            )

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of names, shapes and bits; the order of the layers does not matter."""
        digest = hashlib.sha256()
        for name in sorted(self.kept):
            digest.update(json.dumps([name, list(self.kept[name].shape)]).encode())
            digest.update(_pack(self.kept[name]).numpy().tobytes())
        return digest.hexdigest()

    def save(self, path: str | Path) -> None:
        """Write a safetensors file of packed bits, one uint8 tensor a layer.

        Args:
            path: The file, such as ``pruning_mask.safetensors``.

        Raises:
            OSError: If it cannot be written.
        """
        shapes = {name: list(tensor.shape) for name, tensor in self.kept.items()}
        # One entry: safetensors writes several in an order that changes, and the same mask should be the same file.
        header = json.dumps({"format": FORMAT, "format_version": FORMAT_VERSION, "shapes": shapes}, sort_keys=True)
        metadata = {METADATA_KEY: header}
        try:
            save_file({name: _pack(tensor) for name, tensor in self.kept.items()}, path, metadata=metadata)
        except SafetensorError as error:
            raise OSError(f"could not write {path}: {error}") from error

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a file that `save` wrote.

        Args:
            path: The file.

        Raises:
            FileNotFoundError: There is no such file.
            OSError: It is damaged.
            ValueError: It is no mask, or a newer version wrote it.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"there is no file {path}; give the file that PruningMask.save wrote")
        try:
            with safe_open(path, framework="pt") as file:
                metadata: dict[str, Any] = json.loads((file.metadata() or {}).get(METADATA_KEY, "{}"))
                packed = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        except SafetensorError as error:
            raise OSError(f"{path} is damaged ({error}); copy it anew") from error
        if metadata.get("format") != FORMAT:
            raise ValueError(f"{path} is no pruning mask; give the file that PruningMask.save wrote")
        if metadata["format_version"] != FORMAT_VERSION:
            raise ValueError(
                f"{path} has format version {metadata['format_version']}, and this version of mmbert-hf reads "
                f"{FORMAT_VERSION}; install a newer one"
            )
        shapes = metadata["shapes"]
        sizes = {name: -(-shape[0] * shape[1] // 8) for name, shape in shapes.items()}
        if sizes != {name: tensor.numel() for name, tensor in packed.items()}:
            raise ValueError(f"the tensors and the header of {path} disagree; write the mask anew")
        return cls({name: _unpack(packed[name], *shape) for name, shape in shapes.items()})

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, PruningMask):
            return NotImplemented
        return self.kept.keys() == other.kept.keys() and all(
            torch.equal(tensor, other.kept[name]) for name, tensor in self.kept.items()
        )

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __repr__(self) -> str:
        layers = f"{len(self.kept)} layer" + ("s" if len(self.kept) > 1 else "")
        return f"PruningMask({self.num_pruned} of {self.num_weights} weights pruned in {layers})"


def _num_pruned(kept: Tensor) -> int:
    return kept.numel() - int(kept.sum())


def _pack(kept_OI: Tensor) -> Tensor:
    return torch.from_numpy(np.packbits(kept_OI.contiguous().numpy()))


def _unpack(packed: Tensor, num_outputs: int, num_inputs: int) -> Tensor:
    bits = np.unpackbits(packed.numpy(), count=num_outputs * num_inputs)
    return torch.from_numpy(bits.view(np.bool_)).reshape(num_outputs, num_inputs)
