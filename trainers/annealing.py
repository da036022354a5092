"""`AnnealingCallback`: the falling mask ratio and language temperature of mmBERT, on the stock Trainer.

Design decisions:

- The callback carries no state of its own. Everything follows from the schedules and from how much of the run is done,
  so a resumed run continues exactly.
- With a `LanguageMixture`, mask ratio and temperature are fixed per sample when training begins: the samples of
  optimizer step ``k`` of ``n`` get the values at ``k / n``, whatever workers and prefetching do. With any other data set
  the mask ratio is set at each step through shared memory, and batches that a loader fetched ahead keep the older one.
- What the callback needs and does not find is an error when training begins, not a silent constant.
"""

from collections.abc import Iterator
from typing import Any, Literal

from mmbert_hf.trainers.looking import reads_in_order, unwrapped_encoder
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from mmbert_hf.configuration import check_vocabulary
from mmbert_hf.data.mixture import LanguageMixture
from mmbert_hf.data.packed_mixture import PackedMixture
from mmbert_hf.masking import MaskingCollator
from mmbert_hf.schedules import Schedule, as_schedule, check_fraction_schedule
from mmbert_hf.step_plan import StepPlan


class AnnealingCallback(TrainerCallback):
    """Sets mask ratio, language temperature and RoPE base from the progress of training, and logs them.

    Args:
        mask_ratio: A number in [0, 1] or a schedule (``at(progress)``); reaches the trainer's `MaskingCollator`.
        language_temperature: A number in [0, 1] or a schedule; reaches the trainer's `LanguageMixture`.
        rope_theta: A schedule of the RoPE base; switches global and local layers of an MMBERT model between two steps.
        unit: What progress counts: optimizer ``"steps"`` or ``"tokens"``.
        total_tokens: Tokens in the run, with ``unit="tokens"``.

    Raises:
        ValueError: A ratio or temperature outside [0, 1]. When training begins: no `MaskingCollator` or `LanguageMixture` to reach, a loader that shuffles the
            mixture, a mixture that is shorter than the run, a model whose vocabulary is not the tokenizer's, or tokens that nothing
            counts.

    Example:
        >>> from mmbert_hf.schedules import Linear, Piecewise
        >>> annealing = AnnealingCallback(
        ...     mask_ratio=Linear(0.50, 0.00), language_temperature=Piecewise([0.7, 0.5, 0.3], [0.7, 0.9])
        ... )
        >>> annealing.values_at(0.6)
        {'mask_ratio': 0.2, 'language_temperature': 0.7}
    """

    def __init__(
        self,
        mask_ratio: float | Schedule | None = None,
        language_temperature: float | Schedule | None = None,
        *,
        rope_theta: float | Schedule | None = None,
        unit: Literal["steps", "tokens"] = "steps",
        total_tokens: int | None = None,
    ) -> None:
        if unit not in ("steps", "tokens"):
            raise ValueError(f"unit must be 'steps' or 'tokens', got {unit!r}")
        if (unit == "tokens") != (total_tokens is not None):
            raise ValueError(f"total_tokens goes with unit='tokens' and only with it, got {unit=} and {total_tokens=}")
        given = {"mask_ratio": mask_ratio, "language_temperature": language_temperature, "rope_theta": rope_theta}
        self.schedules = {name: as_schedule(value) for name, value in given.items() if value is not None}
        for name in ("mask_ratio", "language_temperature"):
            if name in self.schedules:
                check_fraction_schedule(name, self.schedules[name])
        if not self.schedules:
            raise ValueError("nothing to anneal; give mask_ratio, language_temperature or rope_theta")
        self.unit, self.total_tokens = unit, total_tokens
        self._collator: MaskingCollator | None = None
        self._mixture: LanguageMixture | None = None
        self._applied: dict[str, Any] = {}  # the values of the step that last began: what its loss was made with

    @staticmethod
    def from_plan(plan: StepPlan, mixture: PackedMixture) -> TrainerCallback:
        """Return the callback that runs a whole recipe, packed and counted in tokens, on the stock Trainer.

        It goes with ``Trainer(train_dataset=mixture, data_collator=PackingCollator(tokenizer), optimizers=(optimizer,
        planned_scheduler(optimizer, plan)))``. `MLMTrainer` puts all of this together, and can let the batch grow.

        Args:
            plan: Every optimizer step of the run, from `plan_steps`; its batches must all have one size.
            mixture: The rows of the plan.
        """
        from mmbert_hf.trainers.plan import PlanCallback

        return PlanCallback(plan, mixture)

    def values_at(self, progress: float) -> dict[str, Any]:
        """Return the value of every schedule when the fraction `progress` of the run is done."""
        return {name: schedule.at(progress) for name, schedule in self.schedules.items()}

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        train_dataloader: Any = None,
        model: Any = None,
        **kwargs: Any,
    ) -> None:
        """Find collator and mixture, tie them to this run, and refuse what would anneal wrongly."""
        self._collator = _first_of(MaskingCollator, _collators(train_dataloader))
        self._mixture = _first_of(LanguageMixture, [getattr(train_dataloader, "dataset", None)])
        if "mask_ratio" in self.schedules:
            if self._collator is None:
                raise ValueError("mask_ratio needs Trainer(data_collator=MaskingCollator(tokenizer)); found none")
            self._collator.mask_ratio = self.schedules["mask_ratio"]
        if self._collator is not None:
            check_vocabulary(unwrapped_encoder(model), self._collator.tokenizer)
        if "language_temperature" in self.schedules and self._mixture is None:
            raise ValueError("language_temperature needs Trainer(train_dataset=LanguageMixture(...)); found none")
        if "rope_theta" in self.schedules and not hasattr(unwrapped_encoder(model), "set_rope_theta"):
            raise ValueError(f"rope_theta needs an MMBERT model, got {type(model).__name__}")
        if self._mixture is not None:
            self._bind_mixture(self._mixture, args, state, train_dataloader)
        elif self.unit == "tokens" and args.include_num_input_tokens_seen in (False, "no"):
            raise ValueError(
                "unit='tokens' needs a LanguageMixture or TrainingArguments(include_num_input_tokens_seen='all')"
            )
        self._apply(self._progress(args, state), model)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        """Set the values of the step that begins."""
        self._apply(self._progress(args, state), model)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Hand the next step's mask ratio to the loader, which may fetch the batch before the step begins."""
        if self._collator is not None and "mask_ratio" in self.schedules:
            self._collator.current_mask_ratio = self.values_at(self._progress(args, state))["mask_ratio"]

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Add the values to the log, to the trainer's history and to what later callbacks report."""
        if logs is not None:
            logs.update(self._applied)
        if state.log_history:
            state.log_history[-1].update(self._applied)

    def _bind_mixture(
        self, mixture: LanguageMixture, args: TrainingArguments, state: TrainerState, loader: Any
    ) -> None:
        samples_per_step = _samples_per_step(args)
        needed = state.max_steps * samples_per_step
        if len(mixture) < needed:
            raise ValueError(
                f"the LanguageMixture has {len(mixture)} samples but {state.max_steps} steps of {samples_per_step} read "
                f"{needed}; build it with num_samples={needed}"
            )
        if not reads_in_order(loader):
            raise ValueError(
                "a LanguageMixture is already in training order and the loader shuffles it; "
                "set TrainingArguments(train_sampling_strategy='sequential')"
            )
        mixture.bind(
            temperature=self.schedules.get("language_temperature"),
            samples_per_step=samples_per_step,
            total_samples=needed if self.unit == "steps" else None,
            total_tokens=self.total_tokens,
        )
        _ = mixture.plan  # once, here: worker processes inherit it

    def _progress(self, args: TrainingArguments, state: TrainerState) -> float:
        if self.unit == "steps":
            return min(1.0, state.global_step / max(1, state.max_steps))
        assert self.total_tokens is not None
        if self._mixture is None:
            return min(1.0, state.num_input_tokens_seen / self.total_tokens)
        first_sample = min(state.global_step * _samples_per_step(args), len(self._mixture) - 1)
        return float(self._mixture.plan.progress[first_sample])

    def _apply(self, progress: float, model: Any) -> None:
        values = self._applied = self.values_at(progress)
        if self._collator is not None and "mask_ratio" in values:
            self._collator.current_mask_ratio = values["mask_ratio"]
        if "rope_theta" in values:
            encoder = unwrapped_encoder(model)
            if encoder.config.rope_parameters["full_attention"]["rope_theta"] != values["rope_theta"]:
                encoder.set_rope_theta(values["rope_theta"])


def _samples_per_step(args: TrainingArguments) -> int:
    return args.train_batch_size * args.gradient_accumulation_steps * args.world_size


def _collators(loader: Any) -> Iterator[Any]:
    """Yield the loader's collator and those it wraps: Trainer puts one around it that drops columns."""
    collator = getattr(loader, "collate_fn", None)
    while collator is not None:
        yield collator
        collator = getattr(collator, "data_collator", None)


def _first_of(kind: type, candidates: Any) -> Any:
    return next((candidate for candidate in candidates if isinstance(candidate, kind)), None)
