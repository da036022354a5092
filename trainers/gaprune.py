"""`GAPruneCallback` keeps pruned weights at zero while a model is retrained; `retrain` is the short retraining itself.

Design decisions:

- Gradients are masked where they are made, by a hook on the parameter that runs before anything accumulates or reduces
  them. So accumulated, reduced and clipped gradients, and the moments of the optimizer, are those of the sparse model.
- Weights are set to zero again after every optimizer step: weight decay leaves zeros alone, but momentum from before
  the mask and optimizers with a will of their own do not. Every save and the end of training check them.
- No parametrisation and no buffer: the model keeps its parameter names, and what is saved is a plain model.
- The mask lives with the callback, not with the checkpoint. A resumed run is given the same mask.
- With FSDP and DeepSpeed a process holds slices of the weights, and the mask is whole. That is refused.
- Adapters are dense. While they train, the base weights are frozen at zero; `merge_adapters` brings the mask back.
"""

import tempfile
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from mmbert_hf.pruning.masks import PruningMask
from mmbert_hf.pruning.texts import prompt_of

if TYPE_CHECKING:
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer

__all__ = ["GAPruneCallback", "merge_adapters", "retrain"]

COLUMNS = ("anchor", "positive", "negative")
SHARDED = ("FSDP", "DEEPSPEED", "MEGATRON_LM")


class GAPruneCallback(TrainerCallback):
    """Keeps the pruned weights of a model at zero while a Trainer trains it.

    Works with `SentenceTransformerTrainer` and the plain Trainer: gradient accumulation, clipping, any optimizer,
    resuming, mixed precision, data parallel training (DDP), adapters.

    Args:
        mask: What is kept, such as `PrunedEmbedder.mask`.

    Raises:
        TypeError: `mask` is no `PruningMask`, or a masked weight is quantised or sharded.
        ValueError: When the Trainer is made or training begins: the mask is of another model, or FSDP, DeepSpeed or
            Megatron-LM shards it.
        RuntimeError: At a save or at the end: a pruned weight is not zero.

    Example:
        >>> from mmbert_hf.pruning.masks import PruningMask
        >>> callback = GAPruneCallback(PruningMask({"layers.0.mlp.Wo": torch.tensor([[True, False]])}))
        >>> trainer = SentenceTransformerTrainer(model, args, triplets, callbacks=[callback])  # doctest: +SKIP
    """

    def __init__(self, mask: PruningMask) -> None:
        if not isinstance(mask, PruningMask):
            raise TypeError(
                f"GAPruneCallback takes a PruningMask, got {type(mask).__name__}; a model whose layers became smaller "
                "has none and needs no callback"
            )
        self.mask = mask
        self._pruned: list[tuple[nn.Parameter, Tensor]] = []  # weight, and where it is pruned, on its device
        self._remove_hooks = weakref.finalize(self, _remove, [])

    def on_init_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        """Refuse what cannot be trained, as soon as the Trainer is made."""
        _refuse_sharding(args)
        if model is not None:  # with model_init there is none yet
            self.mask.linears(model)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        """Apply the mask and hook the gradients of the masked weights."""
        _refuse_sharding(args)
        self._remove_hooks()  # those of a run that an exception ended
        self._pruned = [
            (linear.weight, ~self.mask.kept[name].to(linear.weight.device))
            for name, linear in self.mask.linears(model).items()
        ]
        self._zero_weights()
        handles = [
            weight.register_hook(partial(_masked, pruned)) for weight, pruned in self._pruned if weight.requires_grad
        ]
        self._remove_hooks = weakref.finalize(self, _remove, handles)

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Set the pruned weights to zero again."""
        self._zero_weights()

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        """Raise if a pruned weight is not zero."""
        self.mask.check(model)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        """Remove the hooks, and raise if a pruned weight is not zero."""
        self._remove_hooks()
        self._pruned = []
        self.mask.check(model)

    @torch.no_grad()
    def _zero_weights(self) -> None:
        for weight, pruned in self._pruned:
            weight.masked_fill_(pruned, 0)


def _masked(pruned: Tensor, gradient: Tensor) -> Tensor:
    """Not by a product: infinity times zero is not zero."""
    return gradient.masked_fill(pruned, 0)


def _remove(handles: list[Any]) -> None:
    for handle in handles:
        handle.remove()


def _refuse_sharding(args: TrainingArguments) -> None:
    from accelerate import PartialState

    if args.fsdp or args.deepspeed:
        used = "FSDP" if args.fsdp else "DEEPSPEED"
    else:  # from accelerate's configuration or launcher; the Trainer has set its state up by now
        used = PartialState().distributed_type.value
    if used in SHARDED:
        raise ValueError(
            f"GAPruneCallback does not work with {used}: it shards the weights, and the mask is whole. Train with "
            "data parallelism (torchrun, or accelerate launch without it), or with adapters on one device"
        )


def merge_adapters(model: Any, mask: PruningMask) -> Any:
    """Merge the adapters of a model into its weights, and set the pruned weights to zero again, in place.

    A merged adapter makes every weight of its layer nonzero, so that part of what it learned is dropped here; measure the
    model after this. All weights can be trained again afterwards.

    Args:
        model: A SentenceTransformer with adapters (``model.add_adapter(config)``, or a `PeftModel` inside), or the
            `PeftModel` of a transformers model.
        mask: What is kept.

    Returns:
        The SentenceTransformer; or the transformers model that was inside the `PeftModel`. Neither holds a trace of PEFT.

    Raises:
        ValueError: There are no adapters, the adapters contain values that are not finite, or the mask is of another
            model.
    """
    from peft import PeftModel

    mask.linears(model)
    holder = model[0] if isinstance(model, nn.Sequential) else None
    encoder = model if holder is None else holder.auto_model
    if isinstance(encoder, PeftModel):
        plain: Any = encoder.merge_and_unload(safe_merge=True)
    elif getattr(encoder, "_hf_peft_config_loaded", False):
        plain = _merge_native(encoder)
    else:
        raise ValueError(f"{type(encoder).__name__} has no adapters to merge; add them before training")
    if holder is not None and holder.auto_model is not plain:
        holder.model = plain
    for parameter in plain.parameters():
        parameter.requires_grad_(True)
    mask.apply(plain)
    return plain if holder is None else model


def _merge_native(encoder: Any) -> Any:
    """Merge adapters that transformers put into a model (``add_adapter``), which knows no merging of its own."""
    for name, layer in list(encoder.named_modules()):
        parent_name, _, child = name.rpartition(".")
        if hasattr(layer, "unload_and_optionally_merge_module"):  # modules_to_save and the like
            plain = layer.unload_and_optionally_merge_module(merge=True, safe_merge=True, adapter_names=None)
        elif hasattr(layer, "get_base_layer"):
            layer.merge(safe_merge=True)
            plain = layer.get_base_layer()
        else:
            continue
        setattr(encoder.get_submodule(parent_name), child, plain)
    encoder._hf_peft_config_loaded = False
    del encoder.peft_config
    return encoder


def retrain(
    model: "SentenceTransformer",
    dataset: "Dataset",
    *,
    steps: int = 100,
    batch_size: int = 32,
    learning_rate: float = 1e-4,
    teacher: "SentenceTransformer | None" = None,
    distillation_weight: float = 4.0,
    mask: PruningMask | None = None,
    id_map: Tensor | None = None,
    bf16: bool = False,
    seed: int = 0,
    output_dir: str | None = None,
    progress: bool = True,
    **training_arguments: Any,
) -> "SentenceTransformer":
    """Train a pruned embedder for some steps on pairs or triplets, with in-batch negatives.

    The learning rate rises over the first tenth of the steps and falls to zero in a straight line. Anchors get the
    model's query prompt and the other columns its document prompt. Random states of Python, NumPy and torch are set.

    Args:
        model: The embedder; trained in place, on the accelerator if there is one.
        dataset: With columns ``anchor``, ``positive`` and perhaps ``negative``; others are left out.
        steps: Optimizer steps.
        batch_size: Rows of a batch on one device; no text occurs twice in it.
        learning_rate: Its peak.
        teacher: A model to stay close to, such as the one before pruning; see `DistilledRankingLoss`.
        distillation_weight: Weight of that.
        mask: Weights to keep at zero.
        id_map: The student's token id -> the teacher's, int64, if the vocabulary was trimmed.
        bf16: Compute in bfloat16 where autocast does.
        seed: Of the order of the data, and of dropout.
        output_dir: Where checkpoints go, one at the end unless arguments say otherwise; none are written without it.
        progress: Show a progress bar.
        **training_arguments: Of `SentenceTransformerTrainingArguments`, on top of these.

    Returns:
        `model`, in evaluation mode.

    Raises:
        ValueError: A missing column, an empty dataset, numbers out of range, a teacher or mask that does not fit.
        RuntimeError: Weights that are not finite in the end, or a pruned weight that is not zero.
    """
    from mmbert_hf.trainers.distillation import DistilledRankingLoss
    from sentence_transformers import SentenceTransformerTrainer
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    if steps < 1 or batch_size < 2 or not learning_rate > 0:
        raise ValueError(
            f"steps must be at least 1, batch_size at least 2 (the other rows are the negatives) and learning_rate "
            f"above 0; got {steps}, {batch_size} and {learning_rate}"
        )
    if teacher is None and id_map is not None:
        raise ValueError("id_map takes the student's tokens to a teacher's, and there is no teacher; give one")
    dataset = _training_columns(dataset)
    if teacher is not None:
        loss: nn.Module = DistilledRankingLoss(
            model, teacher, distillation_weight=distillation_weight, student_to_teacher_ids=id_map
        )
    else:
        loss = MultipleNegativesRankingLoss(model)
    with ExitStack() as stack:
        folder = output_dir or stack.enter_context(tempfile.TemporaryDirectory(prefix="mmbert-retrain-"))
        options = {
            "max_steps": steps,
            "per_device_train_batch_size": batch_size,
            "learning_rate": learning_rate,
            "bf16": bf16,
            "seed": seed,
            "disable_tqdm": not progress,
            "save_strategy": "steps" if output_dir else "no",
            "save_steps": steps,
        }
        args = _arguments(model, dataset, folder, {**options, **training_arguments})
        callbacks = [] if mask is None else [GAPruneCallback(mask)]
        with _without_widgets(model):
            trainer = SentenceTransformerTrainer(model, args, dataset, loss=loss, callbacks=callbacks)
        _silence(trainer)
        trainer.train()
        # With bf16, accelerate leaves the model in a wrapper that goes on computing in bfloat16.
        trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
        model.__dict__.pop("forward", None)  # what unwrapping leaves is the method of the class
    if bad := [name for name, value in model.named_parameters() if not value.isfinite().all()]:
        raise RuntimeError(f"{len(bad)} weights are not finite after training, such as {bad[0]}; lower learning_rate")
    return model.eval()


def _training_columns(dataset: "Dataset") -> "Dataset":
    """The columns that the loss reads, in its order; it knows them by place, not by name."""
    if missing := [name for name in COLUMNS[:2] if name not in dataset.column_names]:
        raise ValueError(
            f"the dataset has the columns {', '.join(dataset.column_names)}; {', '.join(missing)} is missing. Rename "
            "columns with dataset.rename_column"
        )
    if len(dataset) == 0:
        raise ValueError("the dataset is empty; give at least two pairs to train on")
    return dataset.select_columns([name for name in COLUMNS if name in dataset.column_names])


def _arguments(model: "SentenceTransformer", dataset: "Dataset", folder: str, options: dict[str, Any]) -> Any:
    from sentence_transformers import SentenceTransformerTrainingArguments

    prompts = {
        name: prompt
        for name in dataset.column_names
        if (prompt := prompt_of(model, "query" if name == "anchor" else "document"))
    }
    values = {
        "prompts": prompts,
        "warmup_steps": 0.1,
        "lr_scheduler_type": "linear",
        "batch_sampler": "no_duplicates",
        "logging_strategy": "no",
        "report_to": "none",
        "dataloader_pin_memory": torch.accelerator.is_available(),
        "use_cpu": not torch.accelerator.is_available(),  # said aloud, since otherwise bf16 is refused there
    }
    return SentenceTransformerTrainingArguments(output_dir=folder, **{**values, **options})


@contextmanager
def _without_widgets(model: "SentenceTransformer") -> Iterator[None]:
    """The trainer would embed examples for the model card, with a progress bar of their own."""
    card = model.model_card_data
    widget, card.widget = card.widget, card.widget or [{}]
    try:
        yield
    finally:
        card.widget = widget


def _silence(trainer: Any) -> None:
    """Take out what prints a dictionary at the end; the bar itself stays."""
    from transformers.trainer_callback import PrinterCallback, ProgressCallback

    class Bar(ProgressCallback):
        """The progress bar without the logs."""

        def on_log(self, *args: Any, **kwargs: Any) -> None:
            """Nothing."""

    trainer.remove_callback(PrinterCallback)
    if trainer.pop_callback(ProgressCallback) is not None:
        trainer.add_callback(Bar())
