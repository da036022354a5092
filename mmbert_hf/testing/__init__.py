"""Test equipment that ships with the package: `LoopbackHub`, a small Hugging Face Hub on 127.0.0.1."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmbert_hf.testing.loopback_hub import LoopbackHub

__all__ = ["LoopbackHub"]


def __getattr__(name: str) -> Any:
    # Lazy, so that `python -m mmbert_hf.testing.loopback_hub` does not find its own module imported already.
    if name == "LoopbackHub":
        from mmbert_hf.testing.loopback_hub import LoopbackHub

        return LoopbackHub
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
