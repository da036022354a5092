"""What a pruning run did and what it cost: everything a card, a table or a plot says, as JSON types."""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mmbert_hf.pruning.config import GAPruneConfig
from mmbert_hf.pruning.footprint import predict_bytes
from mmbert_hf.pruning.masks import PruningMask
from mmbert_hf.pruning.scores import Scorer
from mmbert_hf.pruning.statistics import Statistics
from mmbert_hf.pruning.targets import encoder_of, find_blocks

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = ["REPORT_FILE", "PruningReport"]

REPORT_FILE = "pruning.json"
VERSIONS = ("mmbert-hf", "torch", "transformers", "sentence-transformers")


@dataclass
class PruningReport:
    """Facts about one pruned embedder. Pairs are (dense, pruned); None is "not so" or "not measured".

    Attributes:
        args: The options, as `GAPruneConfig.to_dict`.
        base_model: Name or folder that the dense model was loaded from, if it is known.
        statistics: Fingerprint of what the scores were computed from.
        num_triplets: Triplets scored, by set.
        num_parameters: Numbers in the weights.
        weight_bytes: Bytes of the weights.
        num_layers: Transformer blocks.
        dropped_layers: Their numbers in the dense model.
        width: Neurons of a feed-forward.
        vocabulary: Tokens.
        coefficients: alpha, beta, gamma as they were used.
        term_shares: Share of the score's terms, see `mmbert_hf.pruning.scores.Scorer.term_shares`.
        alignment: Cosine of the mean gradients of both sets, by layer.
        overlap_with_magnitude: Share of what was pruned that magnitude would have pruned too.
        sparsity: Share of zeros among the weights of the mask.
        sparsity_per_layer: The same by layer.
        mask: Fingerprint of the mask.
        weights: Fingerprint of the weights as pruning left them.
        changed_elsewhere: Whether they were changed since by something else than `PrunedEmbedder.retrain`.
        measured: What was measured of the dense and of the pruned model: quality, latency, bytes on disk.
        versions: Of the libraries.
    """

    args: dict[str, Any]
    base_model: str | None = None
    statistics: str | None = None
    num_triplets: dict[str, int] = field(default_factory=dict)
    num_parameters: tuple[int, int] | None = None
    weight_bytes: tuple[int, int] | None = None
    num_layers: tuple[int, int] | None = None
    dropped_layers: list[int] = field(default_factory=list)
    width: tuple[int, int] | None = None
    vocabulary: tuple[int, int] | None = None
    coefficients: dict[str, float] = field(default_factory=dict)
    term_shares: dict[str, float] = field(default_factory=dict)
    alignment: dict[str, float] = field(default_factory=dict)
    overlap_with_magnitude: float | None = None
    sparsity: float | None = None
    sparsity_per_layer: dict[str, float] = field(default_factory=dict)
    mask: str | None = None
    weights: str | None = None
    changed_elsewhere: bool = False
    measured: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    @classmethod
    def begin(cls, model: "SentenceTransformer", args: GAPruneConfig, statistics: Statistics | None) -> "PruningReport":
        """A report on what is about to be done to a dense model."""
        report = cls(args.to_dict(), versions={name: version(name) for name in VERSIONS})
        report.base_model = getattr(encoder_of(model).config, "_name_or_path", None) or None
        if statistics is not None:
            origin = statistics.origin
            report.statistics = origin.fingerprint
            report.num_triplets = {"domain": origin.num_domain, "general": origin.num_general}
        size = (_num_parameters(model), predict_bytes(model), len(find_blocks(encoder_of(model))[1]))
        report.num_parameters, report.weight_bytes, report.num_layers = ((value, value) for value in size)
        return report

    def describe_scores(self, scorer: Scorer) -> None:
        """Say what the scores are made of."""
        self.coefficients = scorer.coefficients
        self.term_shares = scorer.term_shares()
        self.alignment = scorer.alignments() if scorer.statistics is not None else {}

    def finish(self, model: "SentenceTransformer", mask: PruningMask | None) -> None:
        """Say what came out."""
        assert self.num_parameters is not None, "begin() first"
        assert self.weight_bytes is not None
        assert self.num_layers is not None
        self.num_parameters = (self.num_parameters[0], _num_parameters(model))
        self.weight_bytes = (self.weight_bytes[0], predict_bytes(model))
        self.num_layers = (self.num_layers[0], len(find_blocks(encoder_of(model))[1]))
        self.weights = weights_fingerprint(model)
        if mask is not None:
            self.sparsity, self.sparsity_per_layer, self.mask = mask.sparsity, mask.per_tensor(), mask.fingerprint

    def __str__(self) -> str:
        """The report in a few lines."""
        args = self.args
        lines = [f"{args.get('method')}, {args.get('granularity')}, statistics {(self.statistics or 'none')[:12]}"]
        pairs = ("num_parameters", "weight_bytes", "num_layers", "width", "vocabulary")
        for name in pairs:
            pair = getattr(self, name)
            if pair is not None and (pair[0] != pair[1] or name == "num_parameters"):
                lines.append(f"{name.replace('_', ' ')}: {pair[0]:,} -> {pair[1]:,} ({pair[1] / pair[0]:.1%})")
        shares = ", ".join(f"{name} {share:.3g}" for name, share in self.term_shares.items())
        facts = {
            "zeros": None if self.sparsity is None else f"{self.sparsity:.1%} of the weights of the mask",
            "shares of the score's terms": shares or None,
            "of what was pruned, magnitude would have pruned": None
            if self.overlap_with_magnitude is None
            else f"{self.overlap_with_magnitude:.1%}",
        }
        return "\n".join([*lines, *(f"{name}: {value}" for name, value in facts.items() if value is not None)])

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON types."""
        return json.loads(json.dumps(asdict(self), allow_nan=False))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "PruningReport":
        """The report that `to_dict` gave."""
        pairs = ("num_parameters", "weight_bytes", "num_layers", "width", "vocabulary")
        native: dict[str, Any] = {
            name: tuple(value) if name in pairs and value else value for name, value in values.items()
        }
        return cls(**native)

    def save(self, path: str | Path) -> None:
        """Write the report as JSON."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> "PruningReport":
        """Read what `save` wrote."""
        return cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))


def weights_fingerprint(model: "SentenceTransformer") -> str:
    """sha256 of the weights of the transformers model inside an embedder, by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(encoder_of(model).state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _num_parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
