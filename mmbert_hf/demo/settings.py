"""What the demo runs: sizes, phases, languages, the declared resource skew, pruning, SPO. All is fixed before the run.

The Universal Declaration has about the same length in every language, so temperature sampling would have nothing to
smooth. The demo therefore *declares* how much text each language has: by Zipf's law over the order of the languages in
their tiers. The sampler is told these counts; the texts themselves are not cut or repeated.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mmbert_hf.demo.tiers import DECAY_ONLY, EXTENSION_TIER, PRETRAINING_TIER
from mmbert_hf.recipes import Phase, Recipe
from mmbert_hf.schedules import Trapezoid

# The two languages that the report follows: in the decay of the run, never in the control.
ADDED_LANGUAGES = DECAY_ONLY


@dataclass(frozen=True)
class DemoSettings:
    """Every number of the demo; the defaults take about four minutes on two cores.

    Attributes:
        seed: Of initialisation, sampling and masks.
        steps: Optimizer steps of the whole run, over all phases.
        rows_per_step: Rows in a batch.
        shares: Share of the steps in pre-training, extension and decay.
        max_lengths: Longest row per phase, in tokens.
        rope_thetas: RoPE base per phase; rises with the context, as in the paper.
        vocab_size: Of the tokenizer trained here.
        hidden_size: Of the encoder; heads are 32 wide.
        num_hidden_layers: Of the encoder.
        learning_rate: Peak.
        final_learning_rate: Relative to the peak, at the end of the decay.
        warmup: Share of the steps.
        zipf_exponent: Of the declared resource skew.
        heldout_mask_ratio: For measuring.
        max_languages: Cut the corpus to this many languages, for a quick look; None is all.

    Raises:
        ValueError: A size that no run can have.
    """

    seed: int = 1
    steps: int = 640
    rows_per_step: int = 16
    shares: tuple[float, float, float] = (0.6, 0.1, 0.3)
    max_lengths: tuple[int, int, int] = (128, 256, 256)
    rope_thetas: tuple[float, float, float] = (10_000.0, 160_000.0, 160_000.0)
    vocab_size: int = 8192
    hidden_size: int = 128
    num_hidden_layers: int = 4
    learning_rate: float = 2e-3
    final_learning_rate: float = 0.02
    warmup: float = 0.06
    zipf_exponent: float = 1.0
    heldout_mask_ratio: float = 0.15
    max_languages: int | None = None

    def __post_init__(self) -> None:
        least = {
            "seed": 0,
            "steps": 5,
            "rows_per_step": 1,
            "vocab_size": 500,
            "hidden_size": 32,
            "num_hidden_layers": 1,
        }
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise ValueError(f"{name} must be at least {bound}, got {getattr(self, name)}")

    def as_dict(self) -> dict[str, Any]:
        """Return the settings as JSON types."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "DemoSettings":
        """Return the settings that `as_dict` wrote."""
        native: dict[str, Any] = {k: tuple(value) if isinstance(value, list) else value for k, value in values.items()}
        return cls(**native)

    @property
    def learning_rate_schedule(self) -> Trapezoid:
        """Warm-up, stable, and 1-sqrt over exactly the decay phase."""
        return Trapezoid(warmup=self.warmup, decay=self.shares[2], final=self.final_learning_rate)


@dataclass(frozen=True)
class PruneSettings:
    """Every number of the demo's second part, in which an embedder is pruned for a domain: WordNet's animals and plants.

    Chosen on the selection split; the defaults are to take less than two minutes on two cores.

    Attributes:
        seed: Of samples, and of the order of the training data.
        embedder: Folder of the embedder; None is `mmbert_hf.demo.embedder.MINILM`.
        num_triplets: Use so many training triplets of each set, for vocabulary and training; None is all.
        num_scored: Training triplets of each set that scores are computed from.
        method: Score of a neuron.
        ffn_width: Neurons that stay in each feed-forward.
        retrain_steps: Optimizer steps, of the dense model first and then of the pruned one, which learns from it.
        batch_size: Pairs in a step.
        learning_rate: Peak.
        num_queries: Test queries of each set; their definitions are the documents.
        num_latency_texts: Texts that are encoded for the clock.

    Raises:
        ValueError: A size that no run can have.
    """

    seed: int = 1
    embedder: str | None = None
    num_triplets: int | None = None
    num_scored: int = 150
    method: str = "dai-normalized"
    ffn_width: int = 640
    retrain_steps: int = 24
    batch_size: int = 32
    learning_rate: float = 1e-4
    num_queries: int = 300
    num_latency_texts: int = 64

    def __post_init__(self) -> None:
        least = {"seed": 0, "num_triplets": 2, "num_scored": 1, "ffn_width": 1, "retrain_steps": 1, "batch_size": 2}
        for name, bound in {**least, "num_queries": 2, "num_latency_texts": 1}.items():
            value = getattr(self, name)
            if value is not None and value < bound:
                raise ValueError(f"{name} must be at least {bound}, got {value}")

    def as_dict(self) -> dict[str, Any]:
        """Return the settings as JSON types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "PruneSettings":
        """Return the settings that `as_dict` wrote."""
        return cls(**values)


@dataclass(frozen=True)
class SPOSettings:
    """Every number of the demo's third part, in which a small policy gets better at modular arithmetic by rewards alone.

    Chosen on seeds 11 to 14; the defaults are to take about a minute on two cores. What `SPOConfig` has beside these is at
    its defaults.

    Attributes:
        seed: Of initialisation, of the split of the prompts, and of everything that is drawn.
        modulus: Numbers are below this; every number is one token.
        operations: Of the prompts, some of ``+-*``.
        fitted_share: Share of the prompts whose answers the policy is fitted to first.
        unseen_share: Share of the prompts that are kept for measuring alone.
        fitted_accuracy: Fitting stops as soon as the probability of the right answer is this, on average over all prompts.
        max_fit_steps: Or after so many steps.
        fit_learning_rate: Constant.
        hidden_size: Of the policy; heads are a quarter as wide.
        num_hidden_layers: Of the policy.
        steps: Optimizer steps of SPO.
        batch_size: Responses in a step, each to one prompt.
        learning_rate: Of SPO, constant. At 1e-3 the policy collapses.
        rho_max: What values keep at a visit. They have to follow a policy that gets better within a minute, which the 0.96 of
            `SPOConfig` does less closely.
        logging_steps: Steps that a point of the curves is the mean of.
        num_samples: Answers to each prompt that accuracy is measured by.

    Raises:
        ValueError: A size that no run can have.
    """

    seed: int = 1
    modulus: int = 23
    operations: str = "+"
    fitted_share: float = 0.3
    unseen_share: float = 0.1
    fitted_accuracy: float = 1 / 3
    max_fit_steps: int = 200
    fit_learning_rate: float = 1e-3
    hidden_size: int = 128
    num_hidden_layers: int = 2
    steps: int = 250
    batch_size: int = 128
    learning_rate: float = 3e-4
    rho_max: float = 0.9
    logging_steps: int = 5
    num_samples: int = 16

    def __post_init__(self) -> None:
        least = {"seed": 0, "modulus": 2, "max_fit_steps": 1, "hidden_size": 8, "num_hidden_layers": 1, "steps": 1}
        for name, bound in {**least, "batch_size": 2, "logging_steps": 1, "num_samples": 1}.items():
            if getattr(self, name) < bound:
                raise ValueError(f"{name} must be at least {bound}, got {getattr(self, name)}")
        if not (self.fitted_share > 0 and self.unseen_share > 0 and self.fitted_share + self.unseen_share < 1):
            raise ValueError(
                "fitted_share and unseen_share must be above 0 and leave prompts that are only rewarded, got "
                f"{self.fitted_share} and {self.unseen_share}"
            )

    def as_dict(self) -> dict[str, Any]:
        """Return the settings as JSON types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "SPOSettings":
        """Return the settings that `as_dict` wrote."""
        return cls(**values)


def order_languages(available: Sequence[str], max_languages: int | None = None) -> list[str]:
    """Return the corpus's languages from the best to the least resourced: tier by tier, the rest alphabetically.

    Args:
        available: The languages of the corpus.
        max_languages: Keep only so many: the two added languages, and of the three tiers about equally many.

    Raises:
        ValueError: `max_languages` leaves no language for some tier.
    """
    tiers = [
        [code for code in PRETRAINING_TIER if code in available],
        [code for code in EXTENSION_TIER if code in available],
        sorted(set(available) - {*PRETRAINING_TIER, *EXTENSION_TIER, *DECAY_ONLY}),
    ]
    if max_languages is not None:
        if max_languages < len(DECAY_ONLY) + len(tiers):
            raise ValueError(f"max_languages must be at least {len(DECAY_ONLY) + len(tiers)}, got {max_languages}")
        rest = max_languages - len(DECAY_ONLY)
        tiers = [tier[: (rest + place) // len(tiers)] for place, tier in enumerate(tiers)]
    return [*tiers[0], *tiers[1], *(code for code in DECAY_ONLY if code in available), *tiers[2]]


def declared_counts(languages: Sequence[str], exponent: float) -> dict[str, float]:
    """Return the declared number of tokens of each language: Zipf's law over the order given, 1e9 for the first."""
    return {code: 1e9 * (rank + 1) ** -exponent for rank, code in enumerate(languages)}


def demo_recipe(settings: DemoSettings, languages: Sequence[str], *, without: Sequence[str] = ()) -> Recipe:
    """Return the three phases of the paper over the corpus's languages.

    Args:
        settings: Of the demo.
        languages: From `order_languages`.
        without: Languages that the decay leaves out: the control.
    """
    first = [code for code in languages if code in PRETRAINING_TIER]
    second = [code for code in languages if code in (*PRETRAINING_TIER, *EXTENSION_TIER)]
    everything = [code for code in languages if code not in without]
    tiers = zip(("pretrain", "extend", "decay"), settings.shares, (first, second, everything), strict=True)
    return Recipe(
        [
            Phase(name, share, tier, temperature, mask_ratio, max_length, rope_theta)
            for (name, share, tier), temperature, mask_ratio, max_length, rope_theta in zip(
                tiers, (0.7, 0.5, 0.3), (0.30, 0.15, 0.05), settings.max_lengths, settings.rope_thetas, strict=True
            )
        ]
    )
