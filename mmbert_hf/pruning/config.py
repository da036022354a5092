"""What a pruning run is asked for: one dataclass, checked before any work starts."""

from dataclasses import asdict, dataclass, field
from typing import Any

from mmbert_hf.pruning.options import CHOICES, GRANULARITIES, METHODS, SCALE, check_sparsity

__all__ = ["GAPruneConfig"]


@dataclass
class GAPruneConfig:
    """Options of `GAPruner`. Field by field as in transformers: each has a ``help`` text.

    Raises:
        ValueError: A value that no run can have.

    Example:
        >>> GAPruneConfig(granularity="ffn,vocabulary", sparsity=0.5).granularities
        ('vocabulary', 'ffn')
    """

    method: str = field(default="dai-normalized", metadata={"help": f"score of a weight: {', '.join(METHODS)}"})
    granularity: str = field(
        default="weight",
        metadata={
            "help": "what goes, one or several joined by commas: weight (zeros), 2:4 (zeros in the pattern of sparse "
            "tensor cores), ffn (neurons of the feed-forwards), layer (whole blocks), vocabulary (unused tokens). Only "
            "the last three make the model smaller and faster"
        },
    )
    sparsity: float = field(
        default=0.5, metadata={"help": "share that goes, in [0, 1): of weights, of neurons, or of layers alone"}
    )
    targets: str = field(
        default="mlp", metadata={"help": "linear layers that lose weights: mlp, attention or all; for weight and 2:4"}
    )
    budget: str = field(
        default="global", metadata={"help": "sparsity counts over all targets (global), each tensor, or each row"}
    )
    alpha: float | None = field(
        default=None, metadata={"help": "weight of gradient alignment in dai methods (default: the method's own)"}
    )
    beta: float | None = field(default=None, metadata={"help": "weight of the general Fisher information, subtracted"})
    gamma: float | None = field(default=None, metadata={"help": "weight of the square root of the magnitude"})
    target_size: float | None = field(
        default=None,
        metadata={
            "help": "size of the weights relative to the dense model, in (0, 1]; decides the width for ffn, "
            "else the number of layers"
        },
    )
    ffn_width: int | None = field(default=None, metadata={"help": "neurons that stay per feed-forward, for ffn"})
    width_multiple: int = field(default=32, metadata={"help": "widths are multiples of this, which hardware likes"})
    refit: bool = field(
        default=True, metadata={"help": "fit what reads the neurons again after some are gone, by least squares"}
    )
    drop_layers: int | None = field(default=None, metadata={"help": "blocks that go, for layer"})
    layer_choice: str = field(
        default="loss",
        metadata={
            "help": "which blocks go: loss (without which the loss rises least), score (the lowest sum of "
            "scores), last (the last ones, as L3Prune)"
        },
    )
    vocabulary_min_count: int = field(
        default=1, metadata={"help": "how often a token must come in the texts to stay, for vocabulary"}
    )
    vocabulary_from: str = field(
        default="both",
        metadata={"help": "triplets whose tokens stay, for vocabulary: those of both sets, or of the domain alone"},
    )
    scale: float = field(default=SCALE, metadata={"help": "scale of the cosines in the loss"})
    num_triplets: int | None = field(
        default=5000, metadata={"help": "representatives chosen from each set by k-means; None takes all"}
    )
    batch_size: int = field(default=8, metadata={"help": "triplets that go through the model at once"})
    max_memory_gb: float | None = field(
        default=None, metadata={"help": "for the sums of scoring, 8 bytes per weight; layers go in groups that fit"}
    )
    statistics_dir: str | None = field(
        default=None, metadata={"help": "folder where statistics are kept; interrupted scoring goes on there"}
    )
    seed: int = field(default=0, metadata={"help": "of k-means and of the method random"})

    def __post_init__(self) -> None:
        names = self.granularity.split(",") if isinstance(self.granularity, str) else list(self.granularity)
        names = [name.strip() for name in names]
        if not names or set(names) - set(GRANULARITIES) or len(set(names)) < len(names):
            raise ValueError(f"granularity is one or several of {', '.join(GRANULARITIES)}; got {', '.join(names)!r}")
        if {"weight", "2:4"} <= set(names):
            raise ValueError("granularity weight and 2:4 are two patterns for the same weights; choose one")
        self.granularity = ",".join(name for name in GRANULARITIES if name in names)
        self._check_choices()
        self._check_numbers()

    @property
    def granularities(self) -> tuple[str, ...]:
        """What goes, in the order in which it goes."""
        return tuple(self.granularity.split(","))

    def _check_choices(self) -> None:
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}; got {getattr(self, name)!r}")
        needed = {"ffn_width": "ffn", "drop_layers": "layer"}
        for name, granularity in needed.items():
            if getattr(self, name) is not None and granularity not in self.granularities:
                raise ValueError(f"{name} is for granularity {granularity}, which is not among {self.granularity!r}")
        if self.target_size is not None and not {"ffn", "layer"} & set(self.granularities):
            raise ValueError("target_size decides a width or a number of layers; add ffn or layer to the granularity")
        if self.target_size is not None and self.ffn_width is not None:
            raise ValueError("target_size decides the width; give it or ffn_width, not both")
        if {"ffn", "layer"} <= set(self.granularities) and self.drop_layers is None:
            raise ValueError("with ffn and layer together, say how many layers go: drop_layers=1")

    def _check_numbers(self) -> None:
        check_sparsity(self.sparsity)
        if self.target_size is not None and not 0 < self.target_size <= 1:
            raise ValueError(f"target_size is relative to the dense model, in (0, 1]; got {self.target_size}")
        least = {"batch_size": 1, "width_multiple": 1, "vocabulary_min_count": 1}
        optional = {"ffn_width": 1, "drop_layers": 0, "num_triplets": 1}
        for name, bound in {**least, **optional}.items():
            value = getattr(self, name)
            if (value is None and name in least) or (value is not None and value < bound):
                raise ValueError(f"{name} must be at least {bound}; got {value}")
        for name in ("scale", "max_memory_gb"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be above 0; got {value}")

    def to_dict(self) -> dict[str, Any]:
        """The options as JSON types."""
        return asdict(self)
