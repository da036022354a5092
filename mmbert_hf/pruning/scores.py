"""How much a weight matters: the scores of GAPrune (arXiv 2509.10844) and the ones it is compared with.

Design decisions:

- Every score is a function of tensors of one layer and a few numbers, so that it can be checked by hand. `Scorer` puts
  them together with the statistics and gives the score of one layer at a time: a model's scores are never in memory at
  once.
- ``dai`` is the paper's formula to the letter. On models at the usual scale of weights its Fisher term is many orders
  below its magnitude term, and its ranking is that of magnitude; `term_shares` says so for the model at hand.
- ``dai-normalized`` divides domain Fisher, general Fisher and absolute weights by their means over all targets, which
  makes the terms comparable. Its defaults leave out what did not help (docs/results/): beta 0, alpha 0.

Shape legend: O outputs, I inputs of a linear layer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch

from mmbert_hf.pruning.options import METHODS

__all__ = ["DEFAULTS", "METHODS", "Method", "Scorer", "StatisticsLike", "alignment", "dai", "dai_terms"]

Method = Literal["dai", "dai-normalized", "fisher-domain", "fisher-general", "obd", "magnitude", "wanda", "random"]
# alpha, beta and gamma of the methods that have them.
DEFAULTS: dict[str, dict[str, float]] = {
    "dai": {"alpha": 0.2, "beta": 1.0, "gamma": 0.5},
    "dai-normalized": {"alpha": 0.0, "beta": 0.0, "gamma": 0.5},
}
DATA_FREE = ("magnitude", "random")
SETS = ("domain", "general")


def alignment(gradient_domain: torch.Tensor, gradient_general: torch.Tensor, eps: float = 1e-12) -> float:
    """Cosine of the two mean gradients of a tensor: one number per tensor (arXiv 2509.10844, alignment s).

    Args:
        gradient_domain: Mean gradient over the domain triplets, any shape.
        gradient_general: Mean gradient over the general triplets, same shape.
        eps: Added to the product of the norms.

    Example:
        >>> round(alignment(torch.tensor([1.0, 0.0]), torch.tensor([1.0, 1.0])), 6)
        0.707107
        >>> alignment(torch.zeros(2), torch.ones(2))
        0.0
    """
    domain, general = gradient_domain.flatten().double(), gradient_general.flatten().double()
    return float(domain @ general / (domain.norm() * general.norm() + eps))


def dai_terms(
    weight: torch.Tensor,
    fisher_domain: torch.Tensor,
    fisher_general: torch.Tensor,
    aligned: float,
    *,
    alpha: float = 0.2,
    beta: float = 1.0,
    gamma: float = 0.5,
) -> dict[str, torch.Tensor]:
    """The three terms of the Domain Alignment Importance, each with its sign and the alignment factor.

    Args:
        weight: [O, I].
        fisher_domain: Mean squared per-triplet gradient over the domain triplets, [O, I].
        fisher_general: The same over the general triplets, [O, I].
        aligned: From `alignment`, in [-1, 1].
        alpha: Weight of the alignment.
        beta: Weight of the general Fisher information, which is subtracted.
        gamma: Weight of the square root of the magnitude.

    Returns:
        ``domain``, ``general`` and ``magnitude``, float32 [O, I]; their sum is `dai`.
    """
    size = weight.float().abs()
    factor = 1 + alpha * aligned
    return {
        "domain": fisher_domain * size * factor,
        "general": fisher_general * size * (-beta * factor),
        "magnitude": size.sqrt() * (gamma * factor),
    }


def dai(
    weight: torch.Tensor,
    fisher_domain: torch.Tensor,
    fisher_general: torch.Tensor,
    aligned: float,
    *,
    alpha: float = 0.2,
    beta: float = 1.0,
    gamma: float = 0.5,
) -> torch.Tensor:
    """Domain Alignment Importance (arXiv 2509.10844).

    ``[(F_dom - beta F_gen) |w| + gamma sqrt(|w|)] (1 + alpha s)``; arguments as in `dai_terms`.

    Returns:
        float32 [O, I].

    Example:
        >>> weight, domain, general = torch.tensor([[-4.0]]), torch.tensor([[3.0]]), torch.tensor([[1.0]])
        >>> dai(weight, domain, general, aligned=0.5)  # ((3 - 1) * 4 + 0.5 * 2) * 1.1
        tensor([[9.9000]])
    """
    terms = dai_terms(weight, fisher_domain, fisher_general, aligned, alpha=alpha, beta=beta, gamma=gamma)
    return terms["domain"] + terms["general"] + terms["magnitude"]


class StatisticsLike(Protocol):
    """What a `Scorer` reads: see `mmbert_hf.pruning.statistics.Statistics`."""

    def fisher(self, set_name: str, layer: str) -> torch.Tensor:
        """Mean squared per-triplet gradient, float32 [O, I]."""

    def gradient(self, set_name: str, layer: str) -> torch.Tensor:
        """Mean gradient, float32 [O, I]."""

    def input_square(self, set_name: str, layer: str) -> torch.Tensor:
        """Mean squared input per real token, float32 [I]."""


@dataclass
class Scorer:
    """Scores of one method, layer by layer.

    Args:
        method: One of `METHODS`.
        weights: [O, I] by name of the layer; all targets, since means are taken over them.
        statistics: May be None for methods that need no data (``magnitude``, ``random``).
        alpha: Of ``dai`` and ``dai-normalized``; None is the method's default.
        beta: Same.
        gamma: Same.
        seed: Of ``random``.

    Raises:
        ValueError: An unknown method, or statistics are missing.
    """

    method: str
    weights: Mapping[str, torch.Tensor]
    statistics: StatisticsLike | None = None
    alpha: float | None = None
    beta: float | None = None
    gamma: float | None = None
    seed: int = 0
    _means: dict[str, float] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}; got {self.method!r}")
        if self.statistics is None and self.method not in DATA_FREE:
            raise ValueError(f"method {self.method!r} needs statistics; call score() first, or use 'magnitude'")

    @property
    def coefficients(self) -> dict[str, float]:
        """alpha, beta and gamma as they are used; empty for methods without them."""
        given = {"alpha": self.alpha, "beta": self.beta, "gamma": self.gamma}
        defaults = DEFAULTS.get(self.method, {})
        return {name: default if given[name] is None else float(given[name]) for name, default in defaults.items()}  # type: ignore[arg-type]

    @property
    def layers(self) -> list[str]:
        """Names of the layers, in order."""
        return list(self.weights)

    def score(self, layer: str) -> torch.Tensor:
        """The score of every weight of a layer, float32 [O, I]: the higher, the more it matters.

        Raises:
            ValueError: A score is NaN or infinite.
        """
        score = self._score(layer)
        if not torch.isfinite(score).all():
            bad = int((~torch.isfinite(score)).sum())
            raise ValueError(
                f"{bad} of {score.numel()} scores of {layer!r} are not finite: the weights, or the statistics, hold "
                "NaN or infinity; check the model, and score again in float32"
            )
        return score

    def _score(self, layer: str) -> torch.Tensor:
        weight = self.weights[layer].detach().float()
        if self.method == "random":
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.layers.index(layer))
            return torch.rand(weight.shape, generator=generator).to(weight.device)
        if self.method == "magnitude":
            return weight.abs()
        statistics: Any = self.statistics
        if self.method in ("dai", "dai-normalized"):
            terms = self.terms(layer)
            return terms["domain"] + terms["general"] + terms["magnitude"]
        if self.method == "wanda":
            return weight.abs() * statistics.input_square("domain", layer).to(weight.device).sqrt()
        fisher = {name: statistics.fisher(name, layer).to(weight.device) for name in self._fisher_sets()}
        if self.method == "obd":
            return (fisher["domain"] + fisher["general"]) * weight.square() / 4  # 1/2 F w^2 with the mean of both sets
        return next(iter(fisher.values()))

    def _fisher_sets(self) -> Sequence[str]:
        return {"fisher-domain": ("domain",), "fisher-general": ("general",)}.get(self.method, SETS)

    def terms(self, layer: str) -> dict[str, torch.Tensor]:
        """The three terms of ``dai`` or ``dai-normalized`` of a layer; see `dai_terms`."""
        statistics: Any = self.statistics
        weight = self.weights[layer].detach().float()
        domain, general = (statistics.fisher(name, layer).to(weight.device) for name in SETS)
        if self.method == "dai-normalized":
            means = self._term_means()
            weight, domain, general = weight / means["weight"], domain / means["domain"], general / means["general"]
        aligned = alignment(*(statistics.gradient(name, layer) for name in SETS))
        return dai_terms(weight, domain, general, aligned, **self.coefficients)

    def alignments(self) -> dict[str, float]:
        """`alignment` of every layer, by name."""
        statistics: Any = self.statistics
        return {layer: alignment(*(statistics.gradient(name, layer) for name in SETS)) for layer in self.layers}

    def term_shares(self) -> dict[str, float]:
        """Share of each term of ``dai`` in the sum of the absolute terms over all targets: ``domain``, ``general``, ``magnitude``.

        Empty for methods without terms.
        """
        if not self.coefficients:
            return {}
        sums = dict.fromkeys(("domain", "general", "magnitude"), 0.0)
        for layer in self.layers:
            for name, term in self.terms(layer).items():
                sums[name] += float(term.abs().sum(dtype=torch.float64))
        total = sum(sums.values())
        return {name: value / total if total else 0.0 for name, value in sums.items()}

    def _term_means(self) -> dict[str, float]:
        """Means over all targets: of the absolute weights and of both Fishers. 1 where all are zero."""
        if not self._means:
            statistics: Any = self.statistics
            sums, count = dict.fromkeys(("weight", *SETS), 0.0), 0
            for layer, weight in self.weights.items():
                count += weight.numel()
                sums["weight"] += float(weight.detach().float().abs().sum(dtype=torch.float64))
                for name in SETS:
                    sums[name] += float(statistics.fisher(name, layer).sum(dtype=torch.float64))
            self._means = {name: value / count or 1.0 for name, value in sums.items()}
        return self._means
