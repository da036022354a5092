"""StableAdamW as the recipe uses it: fully decoupled weight decay, none on biases and norms, a rate planned by steps.

Design decisions:

- The optimizer is torch-optimi's. Its two switches that matter are set here and nowhere else: `decouple_lr`, without
  which a weight decay of 8e-5 is multiplied by the learning rate and a thousand times too weak, and `max_lr`, which
  the decay is relative to: a weight loses the fraction ``weight_decay * lr / max_lr`` in a step.
- transformers offers the same optimizer as ``optim="stable_adamw"``, but reads ``decouple_lr=False`` and ``=True`` in
  `optim_args` both as true, and knows no `max_lr` that changes with the phase. So it is built here.
- `max_lr` and the weight decay belong to the phase: the paper's small model has half of both behind pre-training.
"""

from typing import Any

import torch
from torch import nn

from mmbert_hf.step_plan import StepPlan

BETAS, EPSILON = (0.9, 0.95), 1e-8  # mmBERT, all phases


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Divide the trainable parameters: matrices and embeddings decay, biases and norms do not.

    Args:
        model: Tied parameters count once.
        weight_decay: Of the first group.

    Returns:
        Two groups for an optimizer, each with `params`, `weight_decay` and `decays`.

    Example:
        >>> groups = parameter_groups(nn.Linear(2, 3), 8e-5)
        >>> [(len(group["params"]), group["weight_decay"]) for group in groups]
        [(1, 8e-05), (1, 0.0)]
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trainable:
        raise ValueError(f"{type(model).__name__} has no trainable parameter; unfreeze some with requires_grad_()")
    return [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": weight_decay, "decays": True},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0, "decays": False},
    ]


def stable_adamw(
    model: nn.Module,
    *,
    learning_rate: float,
    weight_decay: float = 8e-5,
    betas: tuple[float, float] = BETAS,
    epsilon: float = EPSILON,
) -> torch.optim.Optimizer:
    """Return StableAdamW with the recipe's settings.

    The step of a tensor is divided by ``max(1, RMS)`` with ``RMS = sqrt(mean(g^2 / max(v, eps^2)))``, its decay too
    (mmBERT, section 3; ModernBERT training code).

    Args:
        model: Its trainable parameters are optimised.
        learning_rate: Peak; the weight decay is relative to it.
        weight_decay: Fraction of a weight that a step at the peak takes away.
        betas: Of the moving averages of the gradient and its square.
        epsilon: Added to the denominator.
    """
    from optimi import StableAdamW

    return StableAdamW(
        parameter_groups(model, weight_decay),
        lr=learning_rate,
        betas=betas,
        eps=epsilon,
        weight_decay=weight_decay,
        decouple_lr=True,
        max_lr=learning_rate,
    )


def planned_scheduler(optimizer: torch.optim.Optimizer, plan: StepPlan) -> torch.optim.lr_scheduler.LambdaLR:
    """Return the scheduler that gives the optimizer the learning rate of every step of a plan."""
    peak = float(plan.learning_rate.max())
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] = peak
    last = plan.num_steps - 1
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: float(plan.learning_rate[min(step, last)]) / peak)


def set_phase(optimizer: torch.optim.Optimizer, *, weight_decay: float, max_learning_rate: float) -> None:
    """Set the decay of a phase and the peak that it is relative to; groups that do not decay stay as they are."""
    for group in optimizer.param_groups:
        if group.get("decays"):
            group["weight_decay"], group["max_lr"] = weight_decay, max_learning_rate
