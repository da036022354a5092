"""What tracker, sampling and metrics cost a round, at 14,000 and at 1,000,000 prompts, against a step of training.

The parts are timed in turns in one process: drawing, reading values, advantages, update and metrics, as SPOTrainer does
them with its defaults. They are held against two whole steps of training: of the `addition` task, which is as small as steps
get (0.1 million parameters, one token a response), and of a model of 135 million parameters (the shape of SmolLM2, with random
weights) with `TOKENS` tokens a response, which is as small as models get that are trained for their own sake.
"""

import statistics
import time
from typing import Any

import numpy as np

NUM_PROMPTS = (14_000, 1_000_000)
BATCH, ROUNDS = 1024, 30
RESPONSES, TOKENS = 32, 32


def one_round(tracker: Any, seed: int) -> None:
    """What SPOTrainer does with the tracker in a round, with rewards of nobody."""
    from mmbert_hf.trainers.spo import SPOConfig
    from mmbert_hf.trainers.spo.advantages import normalise, raw_advantages
    from mmbert_hf.trainers.spo.divergence import kept_share
    from mmbert_hf.trainers.spo.metrics import round_metrics
    from mmbert_hf.trainers.spo.sampling import draw_prompts

    rows, from_floor = draw_prompts(tracker, BATCH, seed=seed)
    rewards = np.random.default_rng((seed, tracker.round)).integers(0, 2, BATCH).astype(float)
    divergence = tracker.drift_since_visit(rows)
    values = tracker.values_at(rows)
    raw = raw_advantages(rewards, values, deviations=tracker.deviations_at(rows), variance_floor=tracker.variance_floor)
    _, std = normalise(raw, min_std=SPOConfig.min_advantage_std)
    rho = kept_share(divergence, d_half=SPOConfig.d_half, rho_min=SPOConfig.rho_max, rho_max=SPOConfig.rho_max)
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


def small_step() -> tuple[float, int]:
    """Seconds of a step of `addition`, and its responses."""
    from tempfile import TemporaryDirectory

    import spo_tasks
    from spo_learning import BATCH as STEP_BATCH
    from spo_learning import Cell, _quiet, make_trainer

    with TemporaryDirectory() as folder, _quiet():
        trainer = make_trainer(Cell("addition", "spo", 1, 1e-3), spo_tasks.make("addition"), folder)
        trainer.args.max_steps = 20
        return _seconds_of_a_step(trainer), STEP_BATCH


def large_step(**sizes: int) -> tuple[float, int]:
    """Seconds of a step of a model of 135 million parameters, and its responses.

    Args:
        sizes: Of the model, where it is to be another one.
    """
    from tempfile import TemporaryDirectory

    import spo_tasks
    from mmbert_hf.trainers.spo import SPOConfig, SPOTrainer
    from spo_learning import _quiet
    from transformers import LlamaConfig, LlamaForCausalLM

    task = spo_tasks.make("addition")
    shape = {"vocab_size": 49_152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30}
    heads = {"num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True}
    ids = {"pad_token_id": task.tokenizer.pad_token_id, "eos_token_id": 49_151, "bos_token_id": None}
    # Weights are random, so eos is hardly ever said: all responses have TOKENS tokens.
    model = LlamaForCausalLM(LlamaConfig(**{**shape, **heads, **ids, **sizes}))
    with TemporaryDirectory() as folder, _quiet():
        args = SPOConfig(
            folder,
            per_device_train_batch_size=RESPONSES,
            max_completion_length=TOKENS,
            max_steps=2,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = SPOTrainer(model, spo_tasks.reward, args, task.dataset(), processing_class=task.tokenizer)
        return _seconds_of_a_step(trainer), RESPONSES


def _seconds_of_a_step(trainer: Any) -> float:
    began = time.perf_counter()
    trainer.train()
    return (time.perf_counter() - began) / int(trainer.state.global_step)


def measure_all() -> dict[str, Any]:
    """Both numbers of prompts, and both steps of training to hold against them."""
    rounds = {str(number): measure(number) for number in NUM_PROMPTS}
    steps = {"addition": small_step(), "135 M": large_step()}
    return {
        "batch": BATCH,
        "rounds": rounds,
        "steps": {name: {"seconds": s, "responses": n} for name, (s, n) in steps.items()},
    }
