"""`MLMConfig`: the arguments of `MLMTrainer`."""

from dataclasses import dataclass, field
from typing import Any

from transformers import TrainingArguments

from mmbert_hf.optimization import BETAS, EPSILON


@dataclass
class MLMConfig(TrainingArguments):
    """Arguments of `MLMTrainer`: those of `TrainingArguments`, and what the recipe needs.

    A step reads ``per_device_train_batch_size x gradient_accumulation_steps x processes`` packed rows, each as long as
    the phase says. Number of steps, learning rates, weight decay and batch-size warm-up follow from the recipe and its
    number of tokens, so `max_steps`, `num_train_epochs`, `lr_scheduler_type` and warm-up arguments are not used.

    Parameters whose defaults differ from `TrainingArguments`: `learning_rate`, `optim`, `adam_beta1`, `adam_beta2`,
    `adam_epsilon`, `max_grad_norm` and `logging_steps`.

    Raises:
        ValueError: Arguments that contradict the recipe.
    """

    recipe: str = field(
        default="mmbert-small-paper",
        metadata={
            "help": "Name of a preset (`mmbert recipe show`); MLMTrainer(recipe=...) takes a Recipe of your own."
        },
    )
    phases: list[str] | None = field(
        default=None, metadata={"help": "Run only these phases of the recipe, such as decay. Default: all."}
    )
    total_tokens: int | None = field(
        default=None,
        metadata={"help": "Tokens in the run; the recipe's phases are scaled to it. Default: the recipe's."},
    )
    max_length: int | None = field(
        default=None, metadata={"help": "Shorter rows than the recipe's, where memory or the model's context is short."}
    )
    max_repeats: float | None = field(
        default=4.0, metadata={"help": "How often the text of a language may be read at most, over the whole run."}
    )
    mask_special_tokens: bool = field(
        default=False, metadata={"help": "Also predict special tokens, as the authors' code does."}
    )
    eval_mask_ratio: float = field(default=0.15, metadata={"help": "Share of held-out tokens to predict."})
    eval_max_length: int = field(default=1024, metadata={"help": "Longest held-out row, in tokens."})
    token_cache_dir: str | None = field(
        default=None, metadata={"help": "Where tokenised sources are kept. Default: beside the Hub's cache."}
    )
    allow_change: bool = field(
        default=False,
        metadata={"help": "Continue a checkpoint although recipe, data, tokenizer or processes are others."},
    )
    learning_rate: float | None = field(
        default=None,
        metadata={"help": "Peak of the first phase; the others keep their proportion to it. Default: the recipe's."},
    )
    optim: str = field(default="stable_adamw", metadata={"help": "stable_adamw is the recipe's."})
    adam_beta1: float = field(default=BETAS[0], metadata={"help": "Decay of the gradient's moving average."})
    adam_beta2: float = field(default=BETAS[1], metadata={"help": "Decay of the squared gradient's moving average."})
    adam_epsilon: float = field(default=EPSILON, metadata={"help": "Added to the optimizer's denominator."})
    max_grad_norm: float = field(default=0.0, metadata={"help": "StableAdamW clips by itself; 0 is no clipping."})
    logging_steps: float = field(default=10, metadata={"help": "Optimizer steps between two log entries."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_steps > 0:
            raise ValueError(
                f"max_steps={self.max_steps}: the number of steps follows from the number of tokens; "
                "set total_tokens instead"
            )
        if self.n_gpu > 1:
            raise ValueError(
                f"{self.n_gpu} GPUs in one process: packed rows can not be split by DataParallel. Start one process per "
                "GPU with `accelerate launch`, or show one GPU with CUDA_VISIBLE_DEVICES=0"
            )
        if self.split_batches:
            raise ValueError("split_batches can not be used: a step's rows are divided by the plan")
        if self.device.type == "cpu":
            self.dataloader_pin_memory = False  # torch warns that there is nothing to pin for
        self.accelerator_config.even_batches = False  # every rank gets equally many micro-batches by the plan

    @property
    def num_micro_batches(self) -> int:
        """Parts that the rows of a step are divided into: processes x accumulated batches."""
        return self.world_size * self.gradient_accumulation_steps

    @property
    def split_batches(self) -> Any:
        """Whether accelerate was asked to divide batches itself."""
        return self.accelerator_config.split_batches
