"""What every prompt is worth before training: several responses to each from the policy as it is, rewarded as in training."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from mmbert_hf.trainers.spo.rewards import combine
from mmbert_hf.trainers.spo.tracker import check_rewards

if TYPE_CHECKING:
    from mmbert_hf.trainers.spo.trainer import SPOTrainer

__all__ = ["Estimate", "portions", "sample_values"]

logger = logging.getLogger(__name__)


@dataclass
class Estimate:
    """What was seen of P prompts, and what it cost.

    Attributes:
        sums: Of the rewards of each prompt, float64 [P].
        squares: Sums of squared rewards, float64 [P].
        numbers: Of rewards that were not None, float64 [P].
        tokens: Of prompts and responses, on all processes.
        seconds: On the clock.
    """

    sums: np.ndarray
    squares: np.ndarray
    numbers: np.ndarray
    tokens: int = 0
    seconds: float = 0.0


def sample_values(trainer: SPOTrainer, num_samples: int, generate: Callable[[list], Any]) -> Estimate:
    """Answer every prompt of a trainer so many times.

    Args:
        trainer: Its prompts, model, batch size and processes; its model's mode is as before afterwards.
        num_samples: Responses to each prompt, at least 1.
        generate: GRPOTrainer's own round of generation and rewards, in evaluation mode.
    """
    began, number = time.perf_counter(), len(trainer.tracker)
    estimate = Estimate(np.zeros(number), np.zeros(number), np.zeros(number))
    size = trainer.args.per_device_train_batch_size * trainer.args.steps_per_generation
    was_training, generations, trainer.num_generations_eval = trainer.model.training, trainer.num_generations_eval, 1
    try:
        for rows, fresh in portions(number, num_samples, size * trainer.accelerator.num_processes):
            trainer.model.eval()  # every time: continuous batching leaves it in training mode
            own = rows[trainer.accelerator.process_index * size :][:size]
            output = generate(trainer._take(own))
            estimate.tokens += int(trainer.accelerator.gather(output["prompt_mask"].sum()).sum())
            # not from completion_mask, in which mask_truncated_completions leaves out what was paid for
            estimate.tokens += round(trainer._metrics["eval"]["completions/mean_length"][-1] * len(rows))
            rewards = combine(trainer._rewards.cpu().numpy(), trainer.reward_weights.cpu().numpy())
            check_rewards(rewards, trainer.tracker.kind)
            known = fresh & ~np.isnan(rewards)
            for array, added in (
                (estimate.sums, rewards),
                (estimate.squares, rewards**2),
                (estimate.numbers, np.ones(len(rewards))),
            ):
                np.add.at(array, rows[known], added[known])
    finally:
        trainer.model.train(was_training)
        trainer.num_generations_eval = generations
        trainer._metrics["eval"].clear()
    estimate.seconds = time.perf_counter() - began
    logger.info(
        "%d responses to estimate values: %d tokens, %.0f s",
        int(estimate.numbers.sum()),
        estimate.tokens,
        estimate.seconds,
    )
    return estimate


def portions(num_prompts: int, num_samples: int, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows int64 [size], each `num_samples` times in all, and which are to be counted: the last portion is filled up.

    Example:
        >>> [(rows.tolist(), fresh.tolist()) for rows, fresh in portions(3, 1, 2)]
        [([0, 1], [True, True]), ([2, 2], [True, False])]
    """
    rows: np.ndarray = np.repeat(np.arange(num_prompts), num_samples)
    for start in range(0, len(rows), size):
        portion = rows[start : start + size]
        fresh = np.arange(size) < len(portion)
        yield np.resize(portion, size), fresh
