"""Looking into what a Trainer hands to its callbacks: the encoder in a wrapped model, the order a loader reads in."""

from collections.abc import Iterator
from typing import Any

from torch.utils.data import SequentialSampler


def unwrapped_encoder(model: Any) -> Any:
    """Return the encoder inside a task model, a data-parallel wrapper or a compiled module."""
    for attribute in ("module", "_orig_mod", "base_model"):
        model = getattr(model, attribute, model)
    return model


def samplers(loader: Any) -> Iterator[Any]:
    """Yield a loader's sampler and those inside it: accelerate and a resume wrap samplers in samplers."""
    sampler = getattr(loader, "batch_sampler", None) or getattr(loader, "sampler", None)
    while sampler is not None:
        yield sampler
        sampler = getattr(sampler, "batch_sampler", None) or getattr(sampler, "sampler", None)


def reads_in_order(loader: Any) -> bool:
    """Tell whether a loader reads its data set from front to back."""
    return any(isinstance(sampler, SequentialSampler) for sampler in samplers(loader))
