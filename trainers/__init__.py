"""What plugs into transformers' Trainer, sentence-transformers and TRL: callbacks, trainers, whole runs."""

from typing import TYPE_CHECKING

from mmbert_hf._lazy import attach

if TYPE_CHECKING:
    from mmbert_hf.trainers.annealing import AnnealingCallback

_HOME = {"AnnealingCallback": "mmbert_hf.trainers.annealing"}

__all__ = ["AnnealingCallback"]

__getattr__, __dir__ = attach(globals(), _HOME)
