"""`SPOConfig`: the arguments of `SPOTrainer`, GRPOConfig's and what single streams need.

Design decisions:

- The defaults are what the benchmark supports (docs/results); `SPOConfig.paper()` is the published method.
- GRPOConfig insists on two generations a prompt. It is told so for the time of its own checks and no longer
  (`_OneGeneration`); nothing of TRL's code is repeated.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

from mmbert_hf.trainers.spo.sampling import SAMPLING
from mmbert_hf.trainers.spo.tracker import KINDS
from trl import GRPOConfig

__all__ = ["SPOConfig"]

logger = logging.getLogger(__name__)

DIVERGENCES = ("drift", "trajectory", "constant")
ADVANTAGE_SCALES = ("batch", "prompt")
NORMALIZATIONS = ("sequence", "token")
INITIAL_VALUES = ("prior", "warmup", "offline")
PAPER = {
    "divergence": "trajectory",
    "d_half": 0.06,
    "rho_min": 0.875,
    "rho_max": 0.96,
    "sampling": "bernoulli",
    "weight_offset": 0.05,
    "n_eff_power": 0.0,
    "exploration_floor": 0.0,
    "advantage_scale": "batch",
    "advantage_normalization": "sequence",
    "min_advantage_std": 1e-6,
    "initial_values": "offline",
    "num_initial_samples": 8,
    "epsilon": 0.2,
    "epsilon_high": 0.28,
    "beta": 0.0,
    "loss_type": "dapo",
    "learning_rate": 1e-6,
}


class _OneGeneration(int):
    """The number 1, but not below 2: for the checks of GRPOConfig, whose only objection to 1 is that it is."""

    def __lt__(self, other: object) -> bool:
        return False


def _choice(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")


@dataclass
class SPOConfig(GRPOConfig):
    """Arguments of `SPOTrainer`: all of GRPOConfig's, and those below.

    Every prompt is answered once, so `num_generations` is 1 and the batch of a generation
    (``per_device_train_batch_size x steps_per_generation x processes``) holds as many prompts as responses. In evaluation
    `num_generations_eval` responses may be asked for. `scale_rewards` and `multi_objective_aggregation` are about groups
    and have no part here.

    Raises:
        ValueError: An argument is outside its range, or asks for groups.

    Example:
        >>> SPOConfig("out", per_device_train_batch_size=4).num_generations  # doctest: +SKIP
        1
    """

    num_generations: int | None = field(
        default=1,
        metadata={
            "help": "Always 1: every prompt is answered once. For several answers in evaluation set num_generations_eval."
        },
    )
    num_generations_eval: int | None = field(
        default=1, metadata={"help": "Answers per prompt in evaluation, which average the reward."}
    )
    prompt_id_column: str | None = field(
        default=None,
        metadata={
            "help": "Column with a different id for every prompt, by which values are found again when the data set has "
            "changed. Default: a prompt is known by its row, or in a stream by its content."
        },
    )
    value_model: str = field(
        default="auto",
        metadata={
            "help": "'beta' for rewards in [0, 1], 'average' (moving average and variance) for any reward. 'auto': 'beta' "
            "with one reward function, 'average' with several or with a reward model."
        },
    )
    prior_value: float | None = field(
        default=None,
        metadata={
            "help": "Value of a prompt never seen. Default: 0.5 with 'beta', with 'average' the mean of all rewards."
        },
    )
    prior_weight: float = field(default=2.0, metadata={"help": "How many observations the prior counts as."})
    initial_values: str = field(
        default="prior",
        metadata={
            "help": "'prior'; 'warmup': every prompt is visited once before priorities count; 'offline': "
            "num_initial_samples responses to every prompt before training, as in the paper; or the folder, file or Hub "
            "data set of a tracker."
        },
    )
    num_initial_samples: int = field(
        default=8, metadata={"help": "Responses to every prompt with initial_values='offline'."}
    )
    divergence: str = field(
        default="constant",
        metadata={
            "help": "How far the policy moved since a prompt was answered, which decides how much is forgotten. 'drift': "
            "one number for all, measured on the previous batch; 'trajectory': on the prompt's last response, as in the "
            "paper's recipe; 'constant': not measured, rho is rho_max."
        },
    )
    d_half: float = field(
        default=0.06, metadata={"help": "Divergence, in nats per token, at which half of what is known is forgotten."}
    )
    rho_min: float = field(default=0.8, metadata={"help": "Least that is kept of the old weight at a visit."})
    rho_max: float = field(default=0.96, metadata={"help": "Most that is kept of the old weight at a visit."})
    max_trajectory_tokens: int = field(
        default=256, metadata={"help": "Tokens kept of each prompt's last response with divergence='trajectory'."}
    )
    sampling: str = field(
        default="thompson",
        metadata={
            "help": "Weight of a prompt with value v: 'unsolved' 1 - v, 'bernoulli' sqrt(v(1-v)) as in the paper, "
            "'thompson' 1 - v with v drawn from what is known of it, 'uniform' 1."
        },
    )
    weight_offset: float = field(default=0.05, metadata={"help": "Added to the weight of every prompt."})
    n_eff_power: float = field(
        default=0.0, metadata={"help": "Weights are divided by N_eff to this power: prompts little known come sooner."}
    )
    exploration_floor: float = field(
        default=0.05,
        metadata={"help": "Share of the draws that visits all prompts in turn, whatever their weights are."},
    )
    advantage_scale: str = field(
        default="prompt",
        metadata={
            "help": "'prompt': each advantage is divided by the standard deviation of its prompt's rewards (from the "
            "tracker) before the batch is normalised; 'batch': it is not, as in the paper."
        },
    )
    advantage_normalization: str = field(
        default="sequence",
        metadata={"help": "Mean and std of advantages over 'sequence' (the paper) or 'token' (SPO++)."},
    )
    min_advantage_std: float = field(
        default=0.1,
        metadata={"help": "Least standard deviation that advantages are divided by, so that noise is not amplified."},
    )
    starvation_rounds: int = field(
        default=50, metadata={"help": "Prompts not seen for so many rounds are counted in spo/starved."}
    )

    def __post_init__(self) -> None:
        """Check what GRPOConfig does not know."""
        if self.num_generations != 1:
            raise ValueError(
                f"num_generations must be 1, got {self.num_generations}: SPO answers every prompt once. For several "
                "answers per prompt in evaluation set num_generations_eval; for groups in training use GRPOTrainer"
            )
        self._check_choices()
        self._check_ranges()
        self.num_generations = _OneGeneration(1)
        self.num_generations_eval = self.num_generations_eval or 1
        super().__post_init__()
        self.num_generations = 1
        assert self.generation_batch_size is not None
        if self.generation_batch_size < 2:
            raise ValueError(
                "a generation must have at least 2 responses, since advantages are normalised over them; got "
                f"per_device_train_batch_size {self.per_device_train_batch_size} x steps_per_generation "
                f"{self.steps_per_generation} x {self.world_size} process: raise one of them"
            )
        if self.scale_rewards != "group":
            logger.warning(
                "scale_rewards=%r is about groups and has no effect here; advantage_scale and min_advantage_std say how "
                "advantages are scaled",
                self.scale_rewards,
            )

    def _check_choices(self) -> None:
        _choice("value_model", self.value_model, ("auto", *KINDS))
        _choice("divergence", self.divergence, DIVERGENCES)
        _choice("sampling", self.sampling, SAMPLING)
        _choice("advantage_scale", self.advantage_scale, ADVANTAGE_SCALES)
        _choice("advantage_normalization", self.advantage_normalization, NORMALIZATIONS)
        if self.multi_objective_aggregation != "sum_then_normalize":
            raise ValueError(
                f"multi_objective_aggregation={self.multi_objective_aggregation!r} normalises each reward within a group, "
                "and there are no groups: use 'sum_then_normalize'"
            )

    def _check_ranges(self) -> None:
        if not 0 < self.rho_min <= self.rho_max <= 1:
            raise ValueError(f"0 < rho_min <= rho_max <= 1 must hold, got {self.rho_min} and {self.rho_max}")
        if not 0 <= self.exploration_floor <= 1:
            raise ValueError(f"exploration_floor must be in [0, 1], got {self.exploration_floor}")
        for name in ("d_half", "prior_weight"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        for name in ("weight_offset", "n_eff_power", "min_advantage_std"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        for name in ("num_initial_samples", "max_trajectory_tokens", "starvation_rounds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    @classmethod
    def paper(cls, *args: Any, **overrides: Any) -> SPOConfig:
        """The published method (arXiv 2509.13232 and its recipe): offline values, trajectory divergence, Bernoulli weights.

        Args:
            args: As for the class.
            overrides: Arguments that differ from the paper's.

        Raises:
            ValueError: As the class.
        """
        return cls(*args, **{**PAPER, **overrides})
