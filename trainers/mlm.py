"""`MLMTrainer`: mmBERT's recipe on transformers' Trainer, over packed rows of many languages.

Design decisions:

- The run is planned before it begins (`StepPlan`): which phase, how many rows, which learning rate at every step. The
  trainer is thin: it hands the plan to a mixture, a batch sampler, an optimizer, a scheduler and a callback.
- Everything that a step reads follows from its number, so a killed run continues to the bit, and any number of
  processes reads the same rows.
- A loss or gradient that is not finite stops the run before the optimizer has seen it.
- What is logged goes through `log`, so that it reaches TensorBoard, trackio and every other integration.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from mmbert_hf.model_cards import encoder_card
from mmbert_hf.trainers.cards import card_languages, encoder_facts
from mmbert_hf.trainers.checkpoints import last_complete_checkpoint
from mmbert_hf.trainers.looking import unwrapped_encoder
from mmbert_hf.trainers.mlm_config import MLMConfig
from mmbert_hf.trainers.plan import PlanBatchSampler, PlanCallback, TrainingDiverged, divergence
from mmbert_hf.trainers.publishing import PublishingMixin
from mmbert_hf.trainers.reporting import Throughput, device_peak
from torch import nn
from torch.utils.data import DataLoader
from transformers import Trainer
from transformers.integrations import TensorBoardCallback
from transformers.integrations.integration_utils import default_logdir

from mmbert_hf.configuration import check_vocabulary
from mmbert_hf.data.packed_mixture import PackedMixture
from mmbert_hf.data.token_documents import TokenDocuments
from mmbert_hf.data.tokenising import TextEncoder
from mmbert_hf.evaluation.masked import FixedMasks, masked_losses
from mmbert_hf.flops import training_flops_per_token
from mmbert_hf.hub.names import public_name
from mmbert_hf.masking import PackingCollator
from mmbert_hf.optimization import planned_scheduler, stable_adamw
from mmbert_hf.presets import get_preset
from mmbert_hf.recipes import Recipe
from mmbert_hf.step_plan import StepPlan, plan_steps


class MLMTrainer(PublishingMixin, Trainer):
    """Masked-language-model training by an annealed recipe, from a table of languages to a checkpoint.

    Args:
        model: An `MMBertForMaskedLM`, or a folder or Hub name of one: mmBERT's published checkpoints, too.
        args: See `MLMConfig`.
        train_dataset: Per language (ISO 639-3, optionally with a script; `code` for program code) its documents: texts,
            token ids, or `TokenDocuments`. Or a `PackedMixture` that was made for the same plan.
        eval_dataset: Per language held-out texts; `evaluate` gives the loss of each.
        processing_class: The tokenizer of the model.
        recipe: Overrides ``args.recipe``.
        counts: Declared size of each language, for the sampling probabilities; its number of tokens if None.
        shares: Hand-set shares of some languages in every phase; the others divide the rest by temperature.
        **kwargs: Of `Trainer`: callbacks, optimizers, compute_metrics and so on.

    Raises:
        ValueError: What can not be trained is refused here, before anything runs: a plan that does not fit, a
            vocabulary that is not the tokenizer's, rows longer than the model's context, languages without text.

    Example:
        >>> from mmbert_hf import MLMConfig, MMBertForMaskedLM, MMBertConfig, MMBertTokenizer
        >>> texts = {"dan": ["en to tre fire fem"] * 40, "fao": ["ein tvey trý fýra fimm"] * 10}
        >>> tokenizer = MMBertTokenizer.train(texts["dan"] + texts["fao"], vocab_size=300)
        >>> config = MMBertConfig(vocab_size=300, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        ...                       num_attention_heads=2, max_position_embeddings=1024)
        >>> args = MLMConfig("run", recipe="tiny", phases=["decay"], total_tokens=20_000, max_repeats=None,
        ...                  per_device_train_batch_size=1, report_to="none", use_cpu=True)
        >>> trainer = MLMTrainer(MMBertForMaskedLM(config), args, texts, processing_class=tokenizer)
        >>> trainer.plan.num_steps, trainer.train_dataset.languages
        (20, ['dan', 'fao'])
    """

    _tag_names = ("mmbert", "masked-language-modeling")

    def __init__(
        self,
        model: str | Path | nn.Module,
        args: MLMConfig,
        train_dataset: Mapping[str, Any] | PackedMixture,
        eval_dataset: Mapping[str, Sequence[str]] | None = None,
        processing_class: Any = None,
        *,
        recipe: Recipe | None = None,
        counts: Mapping[str, float] | None = None,
        shares: Mapping[str, float] | None = None,
        callbacks: Sequence[Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if processing_class is None:
            raise ValueError("MLMTrainer needs the tokenizer of the model: processing_class=tokenizer")
        if not isinstance(args, MLMConfig):
            raise TypeError(f"args must be an MLMConfig, got {type(args).__name__}")
        model = load_model(model) if isinstance(model, str | Path) else model
        check_vocabulary(unwrapped_encoder(model), processing_class)
        self.plan = make_plan(args, recipe)
        _check_context(model, self.plan)
        if not isinstance(train_dataset, PackedMixture):
            train_dataset = PackedMixture(
                as_token_documents(train_dataset, processing_class),
                self.plan.spans,
                bos_token_id=processing_class.bos_token_id,
                eos_token_id=processing_class.eos_token_id,
                counts=counts,
                shares=shares,
                max_repeats=args.max_repeats,
                seed=args.seed,
            )
        if len(train_dataset) != self.plan.num_rows:
            raise ValueError(
                f"the mixture has {len(train_dataset)} rows and the plan {self.plan.num_rows}; make it of plan.spans"
            )
        fingerprint = {
            "tokenizer": TextEncoder(processing_class).fingerprint,
            "seed": args.seed,
            "processes": args.world_size,
            "gradient_accumulation_steps": args.gradient_accumulation_steps,
        }
        self.plan_callback = PlanCallback(self.plan, train_dataset, fingerprint)
        self._masks: FixedMasks | None = None
        self._throughput = Throughput()
        self._flops_per_token: dict[str, float] = {}
        self.optimizer: Any
        self.lr_scheduler: Any
        self.control: Any
        args.max_steps = self.plan.num_steps
        super().__init__(
            model,
            args,
            data_collator=PackingCollator(
                processing_class, mask_special_tokens=args.mask_special_tokens, seed=args.seed
            ),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            callbacks=[self.plan_callback, *(callbacks or ())],
            **kwargs,
        )
        for callback in self.callback_handler.callbacks:
            # An evaluation before training would else be logged below the working folder (transformers 5.23).
            if isinstance(callback, TensorBoardCallback) and callback.logging_dir is None:
                callback.logging_dir = str(Path(args.output_dir, default_logdir()))

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """Train, or continue a run.

        Args:
            resume_from_checkpoint: A folder; or True for the newest checkpoint in `output_dir` that was written to its
                end, however the run was stopped.
            **kwargs: Of `Trainer.train`.

        Raises:
            ValueError: No complete checkpoint, or one of another run (see ``allow_change``).
            TrainingDiverged: The loss or its gradient is not finite.
        """
        if resume_from_checkpoint is True:
            found = last_complete_checkpoint(self.args.output_dir, self.args.world_size)
            if found is None:
                raise ValueError(f"{self.args.output_dir} has no complete checkpoint to continue from")
            resume_from_checkpoint = str(found)
        if resume_from_checkpoint:
            self.plan_callback.resume(str(resume_from_checkpoint), allow_change=self.args.allow_change)
        self._throughput.tokens_seen = self.plan_callback.tokens_seen
        self._throughput.restart()
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def get_train_dataloader(self) -> DataLoader:
        """Return the loader of this rank's micro-batches, in the plan's order."""
        args = self.args
        loader = DataLoader(
            self.train_dataset,
            batch_sampler=PlanBatchSampler(self.plan),
            collate_fn=self.data_collator,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
            persistent_workers=args.dataloader_persistent_workers,
            prefetch_factor=args.dataloader_prefetch_factor,
        )
        return self.accelerator.prepare(loader)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Create StableAdamW with fully decoupled weight decay, or what ``args.optim`` names."""
        if self.optimizer is None and self.args.optim == "stable_adamw":
            first = self.plan.phase_at(0)
            self.optimizer = stable_adamw(
                self.model if model is None else model,
                learning_rate=float(self.plan.learning_rate.max()),
                weight_decay=first.weight_decay,
                betas=(self.args.adam_beta1, self.args.adam_beta2),
                epsilon=self.args.adam_epsilon,
            )
        return super().create_optimizer(model)

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        """Create the scheduler that follows the plan."""
        if self.lr_scheduler is None:
            self.lr_scheduler = planned_scheduler(optimizer or self.optimizer, self.plan)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """Forward and backward of one micro-batch; a loss that is not finite stops the run."""
        tokens = inputs["input_ids"].numel()
        loss = super().training_step(model, inputs, *args, **kwargs)
        if not torch.isfinite(loss):
            raise TrainingDiverged(divergence(f"the loss is {loss.item()}", self.state.global_step, self.args))
        step = self.state.global_step
        capacity = int(self.plan.rows[step]) // self.plan.num_micro_batches * self.plan.phase_at(step).max_length
        self._throughput.add(tokens, capacity, flops=self._flops(inputs))
        return loss

    def _flops(self, inputs: Mapping[str, Any]) -> float | None:
        """Operations of a micro-batch, estimated from the first one of each phase; None where no peak is known."""
        if device_peak(self.args.device) is None:
            return None
        phase = self.plan.phase_at(self.state.global_step)
        if phase.name not in self._flops_per_token:
            lengths = inputs["cu_seq_lens_q"].diff().tolist()
            config = unwrapped_encoder(self.model).config
            self._flops_per_token[phase.name] = training_flops_per_token(config, lengths, phase.mask_ratio)
        return self._flops_per_token[phase.name] * inputs["input_ids"].numel()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add what the last step was made with, and how fast, to every log of a training loss."""
        if "loss" in logs:
            step = max(0, self.state.global_step - 1)
            values = self.plan.values_at(step)
            logs.update({name: value for name, value in values.items() if name != "phase"})
            logs["phase"] = self.plan.first_steps.index(max(s for s in self.plan.first_steps if s <= step))
            logs["tokens"] = self.plan.tokens_after(step)
            active = self.plan.phase_at(step).languages
            self._throughput.languages_active = len(self.train_dataset.languages if active is None else active)
            logs.update(self._throughput.read(self.accelerator))
        super().log(logs, start_time)

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Measure the masked loss of every held-out language, in nats per masked token, on masks drawn once.

        Args:
            eval_dataset: Per language held-out texts; the trainer's if None.
            ignore_keys: Not used; of `Trainer.evaluate`.
            metric_key_prefix: Of the names in the result.

        Returns:
            ``eval_loss_<language>`` for every language and ``eval_loss``, their mean.
        """
        with self._throughput.paused():
            losses = masked_losses(self.model, self._held_out(eval_dataset))
        metrics = {f"{metric_key_prefix}_loss": sum(losses.values()) / len(losses)}
        metrics |= {f"{metric_key_prefix}_loss_{language}": loss for language, loss in losses.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _held_out(self, texts: Mapping[str, Sequence[str]] | None) -> FixedMasks:
        if texts is None and self._masks is not None:
            return self._masks
        chosen = self.eval_dataset if texts is None else texts
        if not isinstance(chosen, Mapping):
            raise ValueError("evaluate needs held-out texts per language: MLMTrainer(eval_dataset={'fao': [...]})")
        context = unwrapped_encoder(self.model).config.max_position_embeddings
        masks = FixedMasks(
            chosen,
            self.processing_class,
            mask_ratio=self.args.eval_mask_ratio,
            max_length=min(self.args.eval_max_length, context),
            seed=self.args.seed,
        )
        if texts is None:
            self._masks = masks
        return masks

    def create_model_card(
        self,
        language: str | Sequence[str] | None = None,
        license: str | None = None,
        tags: str | Sequence[str] | None = None,
        model_name: str | None = None,
        finetuned_from: str | None = None,
        dataset: str | Sequence[str] | None = None,
        **_: Any,
    ) -> None:
        """Write README.md into `output_dir`: the recipe as it ran, and held-out losses as they were logged.

        Args:
            language: Hub codes; those of the mixture if None.
            license: Identifier of the Hub; left open if None.
            tags: More tags.
            model_name: Name of the model; that of the repository or of `output_dir` if None.
            finetuned_from: The parent's name on the Hub; where the model was loaded from if None.
            dataset: Names of data sets on the Hub.
        """
        if not self.is_world_process_zero():
            return
        name = self.hub_model_id or self.args.hub_model_id or model_name or Path(self.args.output_dir).name
        parent = finetuned_from or getattr(unwrapped_encoder(self.model).config, "_name_or_path", None)
        card = encoder_card(
            name,
            encoder_facts(self),
            languages=_listed(language) or card_languages(self.train_dataset.languages),
            license=license,
            base_model=public_name(parent),
            datasets=_listed(dataset),
            tags=_listed(tags),
        )
        card.save(Path(self.args.output_dir, "README.md"))

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        with self._throughput.paused():
            self._throughput.sync(self.accelerator)  # every rank has to, and only one writes
            self.plan_callback.tokens_seen = self._throughput.tokens_seen
            super()._save_checkpoint(model, trial)


def _listed(given: str | Sequence[str] | None) -> list[str]:
    return [given] if isinstance(given, str) else list(given or ())


def make_plan(args: MLMConfig, recipe: Recipe | None = None) -> StepPlan:
    """Return the plan of a run.

    Args:
        args: Batch sizes, number of tokens, phases and learning rate.
        recipe: Instead of the preset ``args.recipe``.

    Raises:
        ValueError: A phase that is shorter than a step, or a learning rate that nobody names.
    """
    recipe = get_preset(args.recipe).recipe if recipe is None else recipe
    if args.phases:
        recipe = recipe.only(*args.phases)
    if args.total_tokens is not None:
        recipe = recipe.scaled_to(args.total_tokens)
    if args.max_length is not None:
        shorter = [replace(phase, max_length=min(phase.max_length, args.max_length)) for phase in recipe.phases]
        recipe = replace(recipe, phases=shorter)
    first = recipe.phases[0]
    if args.learning_rate is not None and first.learning_rate is not None:
        factor = args.learning_rate / first.learning_rate
        scaled = [
            replace(phase, learning_rate=(phase.learning_rate or first.learning_rate) * factor)
            for phase in recipe.phases
        ]
        recipe = replace(recipe, phases=scaled)
    micro_batches = args.num_micro_batches
    rows = [
        args.per_device_train_batch_size * (phase.batch_rows or 1) / (first.batch_rows or 1) for phase in recipe.phases
    ]
    return plan_steps(
        recipe,
        rows_per_step=[max(1, round(count)) * micro_batches for count in rows],
        num_micro_batches=micro_batches,
        learning_rate=args.learning_rate,
    )


def as_token_documents(documents: Mapping[str, Any], tokenizer: Any) -> dict[str, TokenDocuments]:
    """Return documents per language as `TokenDocuments`: they themselves, texts, or token ids without special tokens.

    Raises:
        TypeError: One text instead of a list of them.
    """
    result = {}
    for language, given in documents.items():
        if isinstance(given, TokenDocuments):
            result[language] = given
            continue
        if isinstance(given, str):
            raise TypeError(
                f"the documents of {language!r} must be a list of texts, got one string; "
                "read a file with mmbert_hf.read_corpus(path)"
            )
        given = list(given)
        if given and isinstance(given[0], str):
            given = tokenizer(given, add_special_tokens=False, verbose=False)["input_ids"]
        result[language] = TokenDocuments.from_arrays(given)
    return result


def load_model(name_or_path: str | Path) -> nn.Module:
    """Return the masked language model of a folder or Hub name, whether it says ``mmbert`` or ``modernbert``."""
    from transformers import AutoConfig

    from mmbert_hf.conversion import from_modernbert
    from mmbert_hf.modeling import MMBertForMaskedLM

    if AutoConfig.from_pretrained(name_or_path).model_type == "modernbert":
        return from_modernbert(str(name_or_path))
    return MMBertForMaskedLM.from_pretrained(name_or_path)


def _check_context(model: nn.Module, plan: StepPlan) -> None:
    context = unwrapped_encoder(model).config.max_position_embeddings
    longest = max(phase.max_length for phase in plan.recipe.phases)
    if longest > context:
        raise ValueError(
            f"the recipe has rows of {longest:,} tokens, the model {context:,} positions; "
            "set max_length, or model.config.max_position_embeddings where the context is to grow"
        )
