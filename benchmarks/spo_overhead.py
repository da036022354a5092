"""What tracker, sampling and metrics cost a round, at 14,000 and at 1,000,000 prompts, against a step of training.

The parts are timed in turns in one process: drawing, reading values, advantages, update and metrics, as SPOTrainer does
them. The step that they are compared with is a whole step of the `addition` task, which is as small as steps get.
"""

import statistics
import time
from typing import Any

import numpy as np

NUM_PROMPTS = (14_000, 1_000_000)
BATCH, ROUNDS = 1024, 30


def one_round(tracker: Any, seed: int) -> None:
    """What SPOTrainer does with the tracker in a round, with rewards of nobody."""
    from mmbert_hf.trainers.spo.advantages import normalise, raw_advantages
    from mmbert_hf.trainers.spo.divergence import kept_share
    from mmbert_hf.trainers.spo.metrics import round_metrics
    from mmbert_hf.trainers.spo.sampling import draw_prompts

    rows, from_floor = draw_prompts(tracker, BATCH, seed=seed)
    rewards = np.random.default_rng((seed, tracker.round)).integers(0, 2, BATCH).astype(float)
    divergence = tracker.drift_since_visit(rows)
    values = tracker.values_at(rows)
    raw = raw_advantages(rewards, values, deviations=tracker.deviations_at(rows), variance_floor=tracker.variance_floor)
    _, std = normalise(raw, min_std=0.1)
    rho = kept_share(divergence, d_half=0.06, rho_min=0.8, rho_max=0.9)
    tracker.update(rows, rewards, rho)
    round_metrics(tracker, values, rewards, std, divergence, rho, from_floor, starvation_rounds=50)
    tracker.round += 1


def measure(num_prompts: int) -> dict[str, float]:
    """Seconds of a round: median, smallest and largest of `ROUNDS`."""
    from mmbert_hf import ValueTracker

    tracker = ValueTracker(num_prompts)
    for _ in range(3):
        one_round(tracker, seed=1)
    seconds = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        one_round(tracker, seed=1)
        seconds.append(time.perf_counter() - began)
    return {"median": statistics.median(seconds), "min": min(seconds), "max": max(seconds)}


def measure_all() -> dict[str, Any]:
    """Both sizes, and a step of training to hold against them."""
    from tempfile import TemporaryDirectory

    import spo_tasks
    from spo_learning import BATCH as STEP_BATCH
    from spo_learning import Cell, _quiet, make_trainer

    rounds = {str(number): measure(number) for number in NUM_PROMPTS}
    with TemporaryDirectory() as folder, _quiet():
        trainer = make_trainer(Cell("addition", "spo", 1, 1e-3), spo_tasks.make("addition"), folder)
        trainer.args.max_steps = 20
        began = time.perf_counter()
        trainer.train()
        step = (time.perf_counter() - began) / trainer.state.global_step
    return {"batch": BATCH, "rounds": rounds, "step_seconds": step, "step_batch": STEP_BATCH}
