"""What the demo's third part measures: the policy before and after SPO on all prompts, and the tracker's values at the end.

Before and after are sampled with the same random numbers, prompt by prompt (`mmbert_hf.evaluation.sampling`), and right is
what `mmbert_hf.evaluation.answers` calls right, not the reward that the policy was trained with.
"""

import logging
from typing import Any

import numpy as np

from mmbert_hf.demo.spo import SPOJob, one_thread
from mmbert_hf.evaluation.policies import evaluate_policy
from mmbert_hf.evaluation.retrieval import paired_bootstrap
from mmbert_hf.evaluation.samples import Problem
from mmbert_hf.trainers.spo.tracker_files import load_tracker

logger = logging.getLogger(__name__)

BATCH_SIZE = 512  # answers that are sampled at once


@one_thread()
def measure(job: SPOJob) -> dict[str, Any]:
    """Measure the policy before and after SPO on all prompts, and the tracker's values at the end.

    Returns:
        ``quality`` by group: ``sampled`` (share of right answers of `num_samples`), ``solved`` (at least one of them is
        right), ``greedy`` (the most probable answer is), and the difference of the first with its interval over prompts;
        and ``end``, the mean value of the tracker beside the accuracy on the same prompts.
    """
    scores = {when: _scores(job, name) for when, name in (("before", "fitted"), ("after", "policy"))}
    quality: dict[str, Any] = {}
    for group, inside in job.groups.items():
        quality[group] = {"num_prompts": int(inside.sum())}
        for score in scores["before"]:
            quality[group][score] = {when: float(each[score][inside].mean()) for when, each in scores.items()}
        after, before = (scores[when]["sampled"][inside] for when in ("after", "before"))
        interval = paired_bootstrap(after, before, seed=job.settings.seed)
        quality[group]["difference"] = dict(zip(("mean", "low", "high"), interval, strict=True))
        logger.info("accuracy, %s: %.3f -> %.3f", group, *quality[group]["sampled"].values())
    tracker, _ = load_tracker(job.folder / "tracker")
    sampled = dict(zip(job.examples["prompt"][:], scores["after"]["sampled"], strict=True))
    accuracy = np.array([sampled[prompt] for prompt in tracker.keys or ()])
    end = {
        "value": float(tracker.values.mean()),
        "accuracy": float(accuracy.mean()),
        "mean_abs_difference": float(np.abs(tracker.values - accuracy).mean()),
    }
    return {"quality": quality, "end": end}


def _scores(job: SPOJob, name: str) -> dict[str, np.ndarray]:
    """Scores of every prompt, float64 [prompts]."""
    model, number = job.load(name), job.settings.num_samples
    problems = [Problem(row["prompt"], row["prompt"], row["answer"]) for row in job.examples]
    options: dict[str, Any] = {
        "max_new_tokens": 1,
        "batch_size": BATCH_SIZE,
        "checker": "exact",
        "seed": job.settings.seed,
    }
    sampled = evaluate_policy(model, job.tokenizer, problems, number, **options).per_problem
    greedy = evaluate_policy(model, job.tokenizer, problems, 1, temperature=0.0, **options).per_problem
    return {"sampled": sampled[f"avg@{number}"], "solved": sampled[f"pass@{number}"], "greedy": greedy["avg@1"]}
