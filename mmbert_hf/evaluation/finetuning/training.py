"""One fine-tuning with the stock Trainer, as every task does it.

Design decisions:

- The recipe is the plain one of GLUE and XTREME: AdamW, linear warm-up and decay, a fixed number of epochs, no choice among
  checkpoints. Whoever measures two models gives both the same settings and several seeds.
- Nothing is saved: the model is measured and forgotten. It starts anew from its checkpoint for every seed, which also
  draws the new head and the order of the rows.
- Work that reads text is done once, before the first seed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmbert_hf.evaluation.model_kinds import without_load_report
from mmbert_hf.evaluation.results import Score, SetName
from mmbert_hf.hub import fetching

__all__ = ["FinetuningSettings", "fine_tune", "load_tokenizer", "longest_input", "scores_of_seeds"]


@dataclass(frozen=True)
class FinetuningSettings:
    """How a model is fine-tuned.

    Attributes:
        learning_rate: Its peak.
        num_epochs: Passes over the training rows.
        max_steps: Steps of the optimizer in place of epochs; None for epochs.
        batch_size: Rows of a step.
        eval_batch_size: Rows of a forward pass in measuring.
        max_length: Tokens of a row.
        warmup_ratio: Part of the steps in which the learning rate rises.
        weight_decay: Of AdamW.
        bf16: Train in bfloat16.
        progress: Show progress bars.

    Raises:
        ValueError: A value is out of its range.

    Example:
        >>> FinetuningSettings(learning_rate=5e-5).num_epochs
        3.0
    """

    learning_rate: float = 3e-5
    num_epochs: float = 3.0
    max_steps: int | None = None
    batch_size: int = 32
    eval_batch_size: int = 64
    max_length: int = 256
    warmup_ratio: float = 0.06
    weight_decay: float = 0.01
    bf16: bool = False
    progress: bool = False

    def __post_init__(self) -> None:
        for name in ("learning_rate", "num_epochs", "max_steps", "batch_size", "eval_batch_size"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be above 0, got {value}")
        if self.max_length < 8:
            raise ValueError(f"max_length must be at least 8 tokens, got {self.max_length}")
        if not 0 <= self.warmup_ratio < 1 or not self.weight_decay >= 0:
            raise ValueError(
                f"warmup_ratio must be in [0, 1) and weight_decay at least 0, got {self.warmup_ratio} and {self.weight_decay}"
            )


def load_tokenizer(model: str, max_length: int) -> Any:
    """Load the fast tokenizer of a model, for rows of a length that the model can read.

    Args:
        model: Folder or Hub name.
        max_length: Tokens of a row.

    Returns:
        The tokenizer.

    Raises:
        ValueError: There is none, it knows no character offsets, or the model has fewer positions than that.
    """
    tokenizer = fetching.load_tokenizer(model)
    if not tokenizer.is_fast:
        raise ValueError(f"the tokenizer of {model} ({type(tokenizer).__name__}) is no fast one: it knows no offsets")
    longest = longest_input(model, tokenizer)
    if max_length > longest:
        raise ValueError(f"max_length is {max_length}, but {model} reads {longest} tokens: lower it")
    tokenizer.padding_side = "right"  # positions of answers count from the left
    return tokenizer


def longest_input(model: str, tokenizer: Any) -> int:
    """Return how many tokens a model reads at most.

    Args:
        model: Folder or Hub name.
        tokenizer: Of the model.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model)
    positions = getattr(config, "max_position_embeddings", None) or tokenizer.model_max_length
    if "roberta" in config.model_type or config.model_type == "camembert":
        positions -= config.pad_token_id + 1  # they count positions from behind the one of padding
    return int(min(positions, tokenizer.model_max_length))


def fine_tune(
    load: Callable[[], Any],
    train: Any,
    tests: Mapping[SetName, Any],
    collator: Any,
    tokenizer: Any,
    settings: FinetuningSettings,
    seed: int,
) -> dict[SetName, Any]:
    """Train a fresh model and return what it says of every test set.

    Args:
        load: Makes the model; called when random numbers are seeded.
        train: `datasets.Dataset` of encoded rows with labels.
        tests: Encoded rows by name; labels are not needed.
        collator: Makes batches.
        tokenizer: Of the model.
        settings: How to train.
        seed: Of the head, of the order of the rows and of dropout.

    Returns:
        Logits by name of the test set: an array [rows, ...], or a tuple of such arrays; token axes are padded by -100.
    """
    import torch
    from transformers import Trainer, TrainingArguments, set_seed

    set_seed(seed)
    with without_load_report():
        model = load()
    with tempfile.TemporaryDirectory(prefix="mmbert-evaluate-") as scratch:
        arguments = TrainingArguments(
            scratch,
            learning_rate=settings.learning_rate,
            num_train_epochs=settings.num_epochs,
            max_steps=settings.max_steps or -1,
            per_device_train_batch_size=settings.batch_size,
            per_device_eval_batch_size=settings.eval_batch_size,
            warmup_steps=settings.warmup_ratio,
            weight_decay=settings.weight_decay,
            bf16=settings.bf16,
            seed=seed,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=not settings.progress,
            dataloader_pin_memory=torch.cuda.is_available(),
        )
        trainer = Trainer(model, arguments, train_dataset=train, data_collator=collator, processing_class=tokenizer)
        _show_bars_alone(trainer, settings.progress)
        trainer.train()
        return {name: _logits(trainer.predict(test).predictions) for name, test in tests.items()}


def scores_of_seeds(
    task: str,
    seeds: Sequence[int],
    num_examples: Mapping[SetName, int],
    run: Callable[[int], Mapping[SetName, Mapping[str, float]]],
    main: Sequence[str],
) -> list[Score]:
    """Run once for every seed, and return every metric of every test set as a score.

    Args:
        task: As `Score` has it.
        seeds: All different.
        num_examples: Of each test set.
        run: From a seed to the metrics of each test set.
        main: Metrics that tables show.

    Raises:
        ValueError: There is no seed, or one comes twice.
    """
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"give at least one seed, and each once; got {list(seeds)}")
    return [
        Score(task, name.dataset, metric, value, language=name.language, num_examples=num_examples[name], seed=seed,
              config=name.config, split=name.split, is_main=metric in main)
        for seed in seeds
        for name, metrics in run(seed).items()
        for metric, value in metrics.items()
    ]  # fmt: skip


def _show_bars_alone(trainer: Any, progress: bool) -> None:
    """Let Trainer draw bars, but print no numbers: what is printed is the table, or JSON."""
    from transformers import PrinterCallback, ProgressCallback

    class Bars(ProgressCallback):
        def on_log(self, *_: Any, **__: Any) -> None:
            pass

    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    if progress:
        trainer.add_callback(Bars)


def _logits(predictions: Any) -> Any:
    """As float32: models in bfloat16 give what numpy has no arithmetic for."""
    if isinstance(predictions, tuple):
        return tuple(np.asarray(part, dtype=np.float32) for part in predictions)
    return np.asarray(predictions, dtype=np.float32)
