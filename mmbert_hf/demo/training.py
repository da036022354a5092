"""The demo's training: one run through three phases, and a control that branches off where the decay begins.

Everything here is the stock `transformers.Trainer` with `AnnealingCallback`, `LanguageMixture` and `MaskingCollator`.
The control resumes from the run's own checkpoint at the end of the extension phase: same weights, optimizer state,
learning rates, seed and number of rows; only the two added languages are missing.
"""

import logging
from pathlib import Path
from typing import Any

import torch
from tqdm.contrib.logging import logging_redirect_tqdm
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from mmbert_hf.configuration import MMBertConfig
from mmbert_hf.data.mixture import LanguageMixture
from mmbert_hf.demo.settings import DemoSettings
from mmbert_hf.masking import MaskingCollator
from mmbert_hf.modeling import MMBertForMaskedLM
from mmbert_hf.progress import progress_bar
from mmbert_hf.recipes import Recipe
from mmbert_hf.schedules import learning_rate_lambda
from mmbert_hf.trainers.annealing import AnnealingCallback
from mmbert_hf.trainers.cards import ends
from mmbert_hf.trainers.checkpoints import last_complete_checkpoint
from mmbert_hf.trainers.stopping import StopOnInterrupt

logger = logging.getLogger(__name__)


def build_model(settings: DemoSettings, tokenizer: Any) -> MMBertForMaskedLM:
    """Return a fresh encoder of the demo's size, initialised from the demo's seed."""
    torch.manual_seed(settings.seed)
    config = MMBertConfig(
        vocab_size=len(tokenizer),
        hidden_size=settings.hidden_size,
        intermediate_size=settings.hidden_size * 3 // 2,
        num_hidden_layers=settings.num_hidden_layers,
        num_attention_heads=settings.hidden_size // 32,
        max_position_embeddings=max(settings.max_lengths),
        local_attention=64,
        global_rope_theta=settings.rope_thetas[0],
        local_rope_theta=settings.rope_thetas[0],
    )
    return MMBertForMaskedLM(config)


def build_mixture(
    settings: DemoSettings, recipe: Recipe, documents: dict[str, list[Any]], tokenizer: Any, counts: dict[str, float]
) -> LanguageMixture:
    """Return the rows of a run through `recipe`."""
    return LanguageMixture(
        documents,
        tokenizer,
        num_samples=settings.steps * settings.rows_per_step,
        temperature=recipe.language_temperature,
        counts=counts,
        languages=recipe.languages,
        max_length=recipe.max_length,
        seed=settings.seed,
    )


class SaveAt(TrainerCallback):
    """Save a checkpoint after the given optimizer steps."""

    def __init__(self, *steps: int) -> None:
        self.steps = steps

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Ask for a checkpoint."""
        if state.global_step in self.steps:
            control.should_save = True


class PhaseLog(TrainerCallback):
    """A progress bar over the run and one log line per phase; keeps each phase's first and last losses."""

    def __init__(
        self, settings: DemoSettings, recipe: Recipe, mixture: LanguageMixture, label: str, *, bar: bool = True
    ) -> None:
        self.shows_bar = bar
        self.recipe, self.mixture, self.label = recipe, mixture, label
        self.rows_per_step = settings.rows_per_step
        self.first_steps = [*recipe.first_steps(settings.steps), settings.steps]
        self.bar: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Open the bar where the run starts or resumes."""
        if not self.shows_bar:
            return
        self.bar = progress_bar(
            total=state.max_steps, initial=state.global_step, desc=self.label, unit="step", mininterval=1.0
        )

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Advance the bar."""
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Show the loss beside the bar, and at the end of a phase one line that says what it did."""
        if not logs or "loss" not in logs:
            return
        if self.bar is not None:
            self.bar.set_postfix(loss=f"{logs['loss']:.2f}", refresh=False)
        if state.global_step in self.first_steps[1:]:
            phase = self.summary(state.log_history)[-1]
            with logging_redirect_tqdm([logging.getLogger()]):
                logger.info(
                    "%s, %s: %d languages, temperature %.1f, mask ratio %.2f, rows of %d tokens: "
                    "%s tokens, loss %.2f -> %.2f",
                    *(self.label, phase["name"], phase["languages"], phase["temperature"], phase["mask_ratio"]),
                    *(phase["max_length"], f"{phase['tokens']:,}", phase["loss_start"], phase["loss_end"]),
                )

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Close the bar."""
        if self.bar is not None:
            self.bar.close()

    def summary(self, log_history: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return one record per finished phase; its losses are means over the first and the last tenth of its steps."""
        losses = {entry["step"]: entry["loss"] for entry in log_history if "loss" in entry}
        records = []
        for phase, first, last in zip(self.recipe.phases, self.first_steps, self.first_steps[1:], strict=False):
            steps = [losses[step] for step in range(first + 1, last + 1) if step in losses]
            if len(steps) < last - first:
                break
            start, end = ends(steps)
            rows = range(first * self.rows_per_step, last * self.rows_per_step)
            records.append(
                {
                    "name": phase.name,
                    "languages": len(phase.languages or ()),
                    "temperature": phase.language_temperature,
                    "mask_ratio": phase.mask_ratio,
                    "max_length": phase.max_length,
                    "rope_theta": phase.rope_theta,
                    "steps": last - first,
                    "tokens": sum(len(self.mixture[row]["input_ids"]) for row in rows),
                    "loss_start": start,
                    "loss_end": end,
                }
            )
        return records


class Interrupted(Exception):
    """The run was stopped by Ctrl-C after saving a checkpoint."""


def train(
    settings: DemoSettings,
    recipe: Recipe,
    mixture: LanguageMixture,
    tokenizer: Any,
    folder: Path,
    *,
    branch_from: Path | None = None,
    label: str = "train",
    progress: bool = True,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Train through the recipe, or continue a run whose checkpoints are in `folder`.

    Args:
        settings: Of the demo.
        recipe: The phases.
        mixture: The rows.
        tokenizer: Of the rows.
        folder: For checkpoints; the last one in it is resumed.
        branch_from: A checkpoint to start from when `folder` has none: the control.
        label: For the progress bar and the log.
        progress: Show the bar.

    Returns:
        The records of the phases, and the log of every step. The model is in the last checkpoint.

    Raises:
        Interrupted: After Ctrl-C; a checkpoint was saved, and the same call continues.
    """
    model = build_model(settings, tokenizer)
    optimizer, scheduler = _build_optimizer(model, settings)
    annealing = AnnealingCallback(recipe.mask_ratio, recipe.language_temperature, rope_theta=recipe.rope_theta)
    log, stop = PhaseLog(settings, recipe, mixture, label, bar=progress), StopOnInterrupt()
    args = TrainingArguments(
        str(folder),
        max_steps=settings.steps,
        per_device_train_batch_size=settings.rows_per_step,
        train_sampling_strategy="sequential",
        logging_steps=1,
        save_strategy="no",  # SaveAt and StopOnInterrupt say when
        report_to="none",
        seed=settings.seed,
        use_cpu=True,  # minutes on two cores, and the same numbers on a machine with any number of GPUs
        dataloader_pin_memory=False,
    )
    trainer = Trainer(
        model,
        args,
        train_dataset=mixture,
        data_collator=MaskingCollator(tokenizer, seed=settings.seed),
        optimizers=(optimizer, scheduler),
        callbacks=[annealing, SaveAt(recipe.first_steps(settings.steps)[-1], settings.steps), stop, log],
    )
    trainer.remove_callback(ProgressCallback)  # PhaseLog has the bar, without a line of numbers per step
    trainer.remove_callback(PrinterCallback)
    last = last_complete_checkpoint(folder)
    if last is not None:
        logger.info("%s: continuing behind step %s of %d", label, last.name.rpartition("-")[2], settings.steps)
    with stop.listening():
        trainer.train(resume_from_checkpoint=last or branch_from)
    if stop.interrupted:
        raise Interrupted(f"stopped after step {trainer.state.global_step} of {settings.steps}")
    return log.summary(trainer.state.log_history), trainer.state.log_history


def _build_optimizer(model: torch.nn.Module, settings: DemoSettings) -> tuple[Any, Any]:
    """AdamW with the paper's betas, decay on matrices alone, and the trapezoid as learning-rate schedule."""
    groups: list[dict[str, Any]] = [
        {"params": [p for p in model.parameters() if p.ndim >= 2], "weight_decay": 0.01},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.95), eps=1e-8)
    factor = learning_rate_lambda(settings.learning_rate_schedule, settings.steps)
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
