"""The demo's third part: a small policy is fitted to a part of modular arithmetic, and improved by rewards alone (SPO).

Design decisions:

- Four stages, each with its result in the folder ``spo/``: fitting and SPO (here), measuring (`spo_measuring`), publishing
  (`spo_publishing`).
- Three groups of prompts. *Fitted*: the policy was shown the answers. *Rewarded*: it is asked them by SPO, as it is the
  fitted ones, and learns only whether it was right. *Unseen*: neither. So what is learnt by heart, what is found, and what
  carries over can be told apart.
- One thread: so small a policy gains nothing from more, loses much where cores are busy, and gives the same sums on a
  machine with any number of cores.
- float32 is asked for: GRPOConfig takes bfloat16 by itself, which processors without such arithmetic emulate, fifteen
  times slower.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from mmbert_hf.data.arithmetic import (
    arithmetic_examples,
    arithmetic_tokenizer,
    encode_answers,
    exact_answer,
    split_examples,
)
from mmbert_hf.demo.plots import can_plot
from mmbert_hf.demo.settings import SPOSettings
from mmbert_hf.demo.training import Interrupted
from mmbert_hf.progress import progress_bar
from mmbert_hf.trainers.cards import ends
from mmbert_hf.trainers.checkpoints import last_complete_checkpoint
from mmbert_hf.trainers.spo import SPOConfig, SPOTrainer
from mmbert_hf.trainers.spo.plots import plot_run, run_tables
from mmbert_hf.trainers.spo.summaries import calibration_error, worst_bin
from mmbert_hf.trainers.spo.tracker_files import save_tracker_dataset
from mmbert_hf.trainers.stopping import StopOnInterrupt

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

STEPS_PER_LOOK = 5  # of fitting, between two looks at the accuracy


@dataclass
class SPOJob:
    """One run of the third part: its settings, and where it works.

    Attributes:
        settings: Fixed before the run.
        folder: Gets ``fitted/`` and ``policy/`` (models), ``run/`` (checkpoints), ``tracker/`` (a data set).
        progress: Show bars.
    """

    settings: SPOSettings
    folder: Path
    progress: bool = True

    @cached_property
    def tokenizer(self) -> Any:
        """A token for every number."""
        return arithmetic_tokenizer(self.settings.modulus)

    @cached_property
    def examples(self) -> "Dataset":
        """All prompts with their answers."""
        return arithmetic_examples(self.settings.modulus, self.settings.operations)

    @cached_property
    def fitted(self) -> "Dataset":
        """The prompts whose answers the policy is shown."""
        return split_examples(self.examples, self.settings.fitted_share, self.settings.seed)[0]

    @cached_property
    def asked(self) -> "Dataset":
        """The prompts of SPO: the fitted ones, and those that are only rewarded."""
        return split_examples(self.examples, 1 - self.settings.unseen_share, self.settings.seed)[0]

    @cached_property
    def groups(self) -> dict[str, np.ndarray]:
        """Group -> which of all prompts are in it, bool [prompts]."""
        prompts = self.examples["prompt"][:]
        fitted, asked = (np.isin(prompts, rows["prompt"][:]) for rows in (self.fitted, self.asked))
        return {"all": np.ones(len(prompts), bool), "fitted": fitted, "rewarded": asked & ~fitted, "unseen": ~asked}

    def load(self, name: str) -> Any:
        """A policy of the job, in evaluation mode, on the CPU."""
        return AutoModelForCausalLM.from_pretrained(self.folder / name).eval()

    def save(self, model: Any, name: str) -> None:
        """Write a policy with its tokenizer."""
        model.save_pretrained(self.folder / name)
        self.tokenizer.save_pretrained(self.folder / name)


def build_policy(settings: SPOSettings, tokenizer: Any) -> LlamaForCausalLM:
    """Return a fresh policy of the demo's size, initialised from the demo's seed."""
    torch.manual_seed(settings.seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=settings.hidden_size,
        intermediate_size=2 * settings.hidden_size,
        num_hidden_layers=settings.num_hidden_layers,
        num_attention_heads=4,
        max_position_embeddings=16,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    return LlamaForCausalLM(config)


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute with one thread, and with as many as before afterwards."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


# The stages


@one_thread()
def fit(job: SPOJob) -> dict[str, Any]:
    """Fit a fresh policy to the answers of some prompts until it is right often enough; write ``fitted/``.

    Returns:
        The task, and what was done, as JSON types.
    """
    settings, model = job.settings, build_policy(job.settings, job.tokenizer)
    ids_BT, labels_BT = (_tensor(encode_answers(job.fitted, job.tokenizer)[name]) for name in ("input_ids", "labels"))
    all_PT = _tensor(encode_answers(job.examples, job.tokenizer)["input_ids"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.fit_learning_rate)
    steps, accuracy = 0, right_probability(model, all_PT)
    with progress_bar(job.progress, total=settings.max_fit_steps, desc="fit", unit="step") as bar:
        while accuracy < settings.fitted_accuracy and steps < settings.max_fit_steps:
            for _ in range(min(STEPS_PER_LOOK, settings.max_fit_steps - steps)):
                optimizer.zero_grad()
                model(input_ids=ids_BT, labels=labels_BT).loss.backward()
                optimizer.step()
                steps += 1
                bar.update()
            accuracy = right_probability(model, all_PT)
    job.save(model, "fitted")
    numbers = {name: int(inside.sum()) for name, inside in job.groups.items()}
    logger.info("fitted to %d of %d answers in %d steps: %.3f", numbers["fitted"], numbers["all"], steps, accuracy)
    return {
        "task": {"modulus": settings.modulus, "operations": settings.operations, "prompts": numbers},
        "policy": {
            "class": type(model).__name__,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
        },
        "fitting": {"steps": steps, "accuracy": accuracy, "is_reached": accuracy >= settings.fitted_accuracy},
    }


@torch.no_grad()
def right_probability(model: Any, ids: torch.Tensor) -> float:
    """Return the probability of the right answer, averaged over the prompts.

    Args:
        model: A policy.
        ids: int64 [prompts, T] of `encode_answers`: prompt, answer of one token, end.
    """
    log_probs = model(input_ids=ids[:, :-2]).logits[:, -1].log_softmax(-1)
    return float(log_probs.gather(1, ids[:, -2:-1]).exp().mean())


def _tensor(rows: Any) -> torch.Tensor:
    return torch.tensor(rows[:])


class StepBar(TrainerCallback):
    """A progress bar over the steps with the reward beside it, and no line of numbers."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.bar: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Open the bar where the run starts or resumes."""
        self.bar = progress_bar(
            total=state.max_steps, initial=state.global_step, desc=self.label, unit="step", mininterval=1.0
        )

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Advance the bar."""
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Show the reward."""
        if self.bar is not None and logs and "reward" in logs:
            self.bar.set_postfix(reward=f"{logs['reward']:.2f}", refresh=False)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Close the bar."""
        if self.bar is not None:
            self.bar.close()


@contextmanager
def _without_deprecations() -> Iterator[None]:
    """Silence what TRL 1.16 does to transformers 5.23: its own default is deprecated there."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`(is_)?gradient_checkpointing\w*` is deprecated", FutureWarning)
        yield


@_without_deprecations()
def build_trainer(job: SPOJob) -> SPOTrainer:
    """Return the trainer that improves the fitted policy."""
    settings = job.settings
    args = SPOConfig(
        str(job.folder / "run"),
        max_steps=settings.steps,
        per_device_train_batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="constant",
        rho_max=settings.rho_max,
        max_completion_length=1,
        prompt_id_column="prompt",  # readable in the data set of the tracker
        logging_steps=settings.logging_steps,
        save_strategy="no",  # StopOnInterrupt says when
        report_to="none",
        seed=settings.seed,
        use_cpu=True,  # the same numbers on a machine with any number of GPUs
        bf16=False,
        gradient_checkpointing=False,
        dataloader_pin_memory=False,
        disable_tqdm=True,
    )
    trainer = SPOTrainer(job.load("fitted"), exact_answer, args, job.asked, processing_class=job.tokenizer)
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    return trainer


@one_thread()
def train(job: SPOJob) -> dict[str, Any]:
    """Improve the fitted policy by SPO, or continue; write ``policy/`` and ``tracker/``.

    Returns:
        What was done and what the tracker knows, as JSON types.

    Raises:
        Interrupted: After Ctrl-C; a checkpoint was saved, and the same call continues.
    """
    settings, trainer, stop = job.settings, build_trainer(job), StopOnInterrupt()
    trainer.add_callback(stop)
    if job.progress:
        trainer.add_callback(StepBar("spo"))
    last = last_complete_checkpoint(job.folder / "run")
    if last is not None:
        logger.info("spo: continuing behind step %s of %d", last.name.rpartition("-")[2], settings.steps)
    with stop.listening(), _without_deprecations():
        trainer.train(resume_from_checkpoint=last)
    if stop.interrupted and trainer.state.global_step < settings.steps:
        raise Interrupted(f"stopped after step {trainer.state.global_step} of {settings.steps}")
    job.save(trainer.accelerator.unwrap_model(trainer.model), "policy")
    save_tracker_dataset(job.folder / "tracker", trainer.tracker, fingerprint=trainer.prompts.fingerprint)
    if can_plot():
        plot_run(trainer.state.log_history, trainer.tracker, job.folder / "plots" / "run.png")
    tables = run_tables(trainer.state.log_history, trainer.tracker)
    rewards = tables["log"]["reward"]
    first, last_ones = ends(rewards)
    error = calibration_error(tables["calibration"])
    logger.info("spo: reward %.3f -> %.3f, calibration error %.3f", first, last_ones, error)
    return {
        "training": {
            "steps": settings.steps,
            "batch_size": settings.batch_size,
            "samples": settings.steps * settings.batch_size,
            "reward": {"first": first, "last": last_ones},
            "grpo_wasted": tables["log"]["spo/grpo_wasted"][-1],
            "log": tables["log"],
        },
        "values": {
            "kind": trainer.tracker.kind,
            "calibration_error": error,
            "worst_bin": worst_bin(tables["calibration"]),
            "calibration": tables["calibration"],
            "visits": tables["visits"],
        },
    }
