"""`PlanCallback`: keeps a Trainer on a `StepPlan`, and a resumed run on the plan that it began with.

Design decisions:

- Mask ratio, languages and lengths are in the data: a row of a `PackedMixture` carries them. What is left to switch
  between two steps is the model's RoPE base and the optimizer's weight decay. Both follow from the step number.
- The callback's state goes into `trainer_state.json`, which Trainer writes last: a fingerprint of everything that a
  resume must find unchanged, and where the mixture's planner stood. So the two can not disagree with the checkpoint.
- A resume with another recipe, tokenizer, data, seed or number of processes is refused with the difference. Who means
  it says ``allow_change``.
"""

import json
from collections.abc import Iterator
from typing import Any

import torch
from mmbert_hf.trainers.checkpoints import last_complete_checkpoint, read_state
from mmbert_hf.trainers.looking import reads_in_order, samplers, unwrapped_encoder
from torch.utils.data import Sampler
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from mmbert_hf.data.packed_mixture import PackedMixture
from mmbert_hf.optimization import set_phase
from mmbert_hf.step_plan import StepPlan


class TrainingDiverged(RuntimeError):
    """The loss or its gradient is not finite; the optimizer has not seen it."""


class PlanBatchSampler(Sampler[list[int]]):
    """Yields the rows of every micro-batch of a plan, in order; accelerate deals them out to the ranks."""

    def __init__(self, plan: StepPlan) -> None:
        self.plan = plan

    def __iter__(self) -> Iterator[list[int]]:
        yield from self.plan.micro_batches()

    def __len__(self) -> int:
        return self.plan.num_steps * self.plan.num_micro_batches


class PlanCallback(TrainerCallback, ExportableState):
    """Switches RoPE base and weight decay where a phase of the plan begins, and keeps the state of the data.

    Args:
        plan: Of the run.
        mixture: The rows that the trainer reads.
        fingerprint: What a resume must find unchanged, besides plan and mixture; JSON types.
    """

    def __init__(self, plan: StepPlan, mixture: PackedMixture, fingerprint: dict[str, Any] | None = None) -> None:
        self.plan, self.mixture = plan, mixture
        self.fingerprint = {"plan": plan.as_dict(), "data": mixture.fingerprint, **(fingerprint or {})}
        self._peaks = [  # of each phase; the weight decay is relative to it
            phase.learning_rate or float(plan.learning_rate[plan.phase == index].max())
            for index, phase in enumerate(plan.recipe.phases)
        ]
        self.tokens_seen = 0  # real tokens, for the trainer to set before it saves
        self._step = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Refuse a run that is not the plan's, and set what the first step needs."""
        if state.max_steps != self.plan.num_steps:
            raise ValueError(
                f"the plan has {self.plan.num_steps} steps and the trainer {state.max_steps}; "
                f"set TrainingArguments(max_steps={self.plan.num_steps}, num_train_epochs=1)"
            )
        micro_batches = args.world_size * args.gradient_accumulation_steps
        if micro_batches != self.plan.num_micro_batches:
            raise ValueError(
                f"the plan divides a step into {self.plan.num_micro_batches} micro-batches, the trainer into "
                f"{micro_batches} ({args.world_size} processes x {args.gradient_accumulation_steps} accumulated); "
                f"plan it with num_micro_batches={micro_batches}"
            )
        self._check_loader(args, kwargs.get("train_dataloader"))
        self._apply(state.global_step, **kwargs)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Set what the step needs."""
        self._apply(state.global_step, **kwargs)

    def on_pre_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        **kwargs: Any,
    ) -> None:
        """Stop before the optimizer sees a gradient that is not finite."""
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if not torch.isfinite(norm):
            raise TrainingDiverged(divergence(f"the norm of the gradient is {float(norm)}", state.global_step, args))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Remember how far the run is, for `state`."""
        self._step = state.global_step

    def state(self) -> dict[str, Any]:
        """Return what `trainer_state.json` keeps."""
        row = int(self.plan.first_row[self._step]) if self._step < self.plan.num_steps else self.plan.num_rows - 1
        attributes = {
            "fingerprint": self.fingerprint,
            "data_state": self.mixture.state_at(row),
            "tokens_seen": self.tokens_seen,
        }
        return {"args": {}, "attributes": attributes}

    def resume(self, checkpoint: str, *, allow_change: bool = False) -> None:
        """Check that a checkpoint belongs to this run, and set the mixture to where it stood.

        Args:
            checkpoint: Folder.
            allow_change: Take the checkpoint's weights for another run: the mixture then plans from its start.

        Raises:
            ValueError: It belongs to another run; the message has the differences.
        """
        saved = (read_state(checkpoint) or {}).get("stateful_callbacks", {}).get(type(self).__name__)
        if saved is None:
            raise ValueError(
                f"{checkpoint} holds no state of a planned run, so it can not be continued exactly; "
                "start from its weights instead: MLMTrainer(model=checkpoint)"
            )
        attributes = saved["attributes"]
        self.tokens_seen = int(attributes["tokens_seen"])
        changes = differences(attributes["fingerprint"], json.loads(json.dumps(self.fingerprint)))
        if not changes:
            self.mixture.load_state(attributes["data_state"])
        elif not allow_change:
            raise ValueError(
                f"{checkpoint} belongs to another run: {'; '.join(changes[:8])}"
                f"{f'; and {len(changes) - 8} more' if len(changes) > 8 else ''}. Set these back, take another "
                "output_dir, or continue all the same with allow_change=True (--allow-change)"
            )

    def _check_loader(self, args: TrainingArguments, loader: Any) -> None:
        if any(isinstance(sampler, PlanBatchSampler) for sampler in samplers(loader)):
            return
        sizes = sorted({int(rows) // self.plan.num_micro_batches for rows in self.plan.rows})
        if sizes != [args.train_batch_size]:
            raise ValueError(
                f"the plan's micro-batches have {sizes[0]} to {sizes[-1]} rows, the trainer's {args.train_batch_size}; "
                "a batch that grows or changes with the phase needs MLMTrainer"
            )
        if not reads_in_order(loader):
            raise ValueError(
                "a PackedMixture is already in training order and the loader shuffles it; "
                "set TrainingArguments(train_sampling_strategy='sequential')"
            )

    def _apply(self, step: int, *, model: Any = None, optimizer: Any = None, **_: Any) -> None:
        phase = self.plan.phase_at(step)
        encoder = unwrapped_encoder(model)
        bases = {kind["rope_theta"] for kind in encoder.config.rope_parameters.values()}
        if bases != {phase.rope_theta}:  # of global and local layers
            encoder.set_rope_theta(phase.rope_theta)
        if optimizer is not None:
            peak = self._peaks[int(self.plan.phase[min(step, self.plan.num_steps - 1)])]
            set_phase(optimizer, weight_decay=phase.weight_decay, max_learning_rate=peak)


def divergence(what: str, global_step: int, args: TrainingArguments) -> str:
    """Return the message of a `TrainingDiverged`: what is not finite, where, and what to go on from."""
    last = last_complete_checkpoint(args.output_dir, args.world_size)
    where = "No checkpoint was saved before" if last is None else f"The checkpoint of the last good step is {last}"
    return (
        f"step {global_step + 1}: {what}; the optimizer has not seen it. {where}. "
        "Continue with a lower learning_rate, or look at the rows of this step"
    )


def differences(before: Any, after: Any, name: str = "") -> list[str]:
    """List where two values of JSON types differ, as ``name: before -> after``.

    >>> differences({"seed": 1, "data": {"fao": "a"}}, {"seed": 2, "data": {"fao": "a", "eng": "b"}})
    ['seed: 1 -> 2', 'data.eng: none -> b']
    """
    if isinstance(before, dict) and isinstance(after, dict):
        lines = []
        for key in [*before, *(key for key in after if key not in before)]:
            inner = f"{name}.{key}" if name else str(key)
            lines += differences(before.get(key), after.get(key), inner)
        return lines
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        pairs = enumerate(zip(before, after, strict=True))
        return [line for index, (old, new) in pairs for line in differences(old, new, f"{name}[{index}]")]
    if before == after:
        return []
    if isinstance(before, list) and isinstance(after, list):  # of other lengths: what came and what went
        gone = [str(value) for value in before if value not in after]
        new = [str(value) for value in after if value not in before]
        if gone or new:
            changes = [
                f"{word} {', '.join(values):.60}" for word, values in (("without", gone), ("with", new)) if values
            ]
            return [f"{name}: {len(before)} -> {len(after)}, {', '.join(changes)}"]
    was, is_now = ("none" if value is None else f"{value!s:.60}" for value in (before, after))
    return [f"{name}: {was} -> {is_now}"]
