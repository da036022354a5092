"""What plugs into transformers' Trainer: callbacks, and in time the trainers of the recipe."""

from mmbert_hf.trainers.annealing import AnnealingCallback

__all__ = ["AnnealingCallback"]
