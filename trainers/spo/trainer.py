"""`SPOTrainer`: Single-stream Policy Optimization (arXiv 2509.13232) on TRL's GRPOTrainer.

    trainer = SPOTrainer("Qwen/Qwen3-0.6B", reward_funcs=accuracy_reward, train_dataset=dataset)
    trainer.train()

Design decisions:

- A thin subclass: generation, rewards, loss, tools, vLLM and everything else are GRPOTrainer's. In a round of generation
  this class chooses the prompts before, and replaces the advantages after; the parts are in files of their own (tracker,
  sampling, divergence, advantages), which know nothing of trainers.
- Prompts, values and advantages are computed from what all processes have gathered, by the same arithmetic on each. So
  nothing has to be sent around to keep the trackers alike.
- Rewards are taken where GRPOTrainer has gathered them (`_calculate_rewards`).
- What a checkpoint holds is said, written and read in run_files.
- Evaluation is GRPOTrainer's own and leaves the tracker alone.

Shape legend: B responses of a generation on all processes, L those of this process.
"""

from __future__ import annotations

import logging
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object, is_peft_model
from mmbert_hf.model_cards.plain import plain_card
from mmbert_hf.trainers.publishing import PublishingMixin
from mmbert_hf.trainers.spo.advantages import normalise, raw_advantages
from mmbert_hf.trainers.spo.card import base_of, policy_facts
from mmbert_hf.trainers.spo.compatibility import check_trl
from mmbert_hf.trainers.spo.config import INITIAL_VALUES, SPOConfig
from mmbert_hf.trainers.spo.divergence import Probe, Trajectories, kept_share, token_divergence
from mmbert_hf.trainers.spo.estimation import sample_values
from mmbert_hf.trainers.spo.metrics import round_metrics
from mmbert_hf.trainers.spo.prompts import DatasetPrompts, open_prompts
from mmbert_hf.trainers.spo.rewards import checked, combine
from mmbert_hf.trainers.spo.run_files import (
    check_fingerprint,
    end_of_run,
    load_end,
    load_run,
    save_run,
    save_tracker_of,
)
from mmbert_hf.trainers.spo.sampling import draw_prompts
from mmbert_hf.trainers.spo.tracker import ValueTracker
from mmbert_hf.trainers.spo.tracker_files import load_tracker, push_tracker
from torch.utils.data import Sampler
from trl import GRPOTrainer
from trl.models.utils import disable_gradient_checkpointing

__all__ = ["SPOTrainer"]

logger = logging.getLogger(__name__)

IMAGE_INPUTS = ("pixel_values", "image_grid_thw", "num_images", "pixel_attention_mask", "image_sizes", "token_type_ids",
                "mm_token_type_ids", "spatial_shapes", "num_tiles", "image_position_ids")  # fmt: skip


class SPOTrainer(PublishingMixin, GRPOTrainer):
    """GRPOTrainer with one response per prompt: a value for every prompt, kept over the run, takes the place of the group.

    Args:
        model: As in GRPOTrainer: a name, a folder, a model, or a PeftModel.
        reward_funcs: As in GRPOTrainer.
        args: `SPOConfig`; defaults if None.
        train_dataset: As in GRPOTrainer, with a column ``prompt``. A map-style data set is drawn from by value; a stream is
            taken as it comes.
        kwargs: All other arguments of GRPOTrainer.

    Attributes:
        tracker: `ValueTracker`, a row for each prompt.

    Raises:
        ValueError: The data set is empty or has no prompts, ids are not unique, options do not go together, or the
            installed TRL was not tested.
        TypeError: `args` is a GRPOConfig and no SPOConfig.

    Example:
        >>> trainer = SPOTrainer("tiny", reward_funcs=lambda completions, **_: [1.0] * len(completions))  # doctest: +SKIP
    """

    _tag_names = ["trl", "spo", "mmbert-hf"]  # noqa: RUF012 - GRPOTrainer's own attribute
    _name = "SPO"
    _paper = {  # noqa: RUF012 - GRPOTrainer's own attribute
        "title": "Single-stream Policy Optimization",
        "id": "2509.13232",
        "citation": textwrap.dedent("""\
            @article{spo2025,
                title  = {{Single-stream Policy Optimization}},
                year   = 2025,
                eprint = {arXiv:2509.13232},
            }"""),
    }

    def __init__(
        self,
        model: Any,
        reward_funcs: Any = None,
        args: SPOConfig | None = None,
        train_dataset: Any = None,
        **kwargs: Any,
    ) -> None:
        check_trl()
        if args is None:
            name = model if isinstance(model, str) else model.config._name_or_path
            args = SPOConfig(f"{name.rstrip('/').split('/')[-1] or 'model'}-SPO")
        elif not isinstance(args, SPOConfig):
            raise TypeError(f"args must be an SPOConfig, got {type(args).__name__}; it takes the same arguments")
        _check_reference_model(model, args, kwargs.get("peft_config"))
        with_environments = kwargs.get("environment_factory") is not None
        self.prompts = open_prompts(
            train_dataset, args.prompt_id_column, args.sampling, needs_prompt=not with_environments
        )
        if args.initial_values in ("offline", "warmup") and not isinstance(self.prompts, DatasetPrompts):
            raise ValueError(
                f"initial_values={args.initial_values!r} visits every prompt, and those of a stream or of an environment "
                "are not known before training: use 'prior', or the values of another run"
            )
        start = None if args.initial_values in INITIAL_VALUES else _load_start(args.initial_values)
        super().__init__(model, reward_funcs, args, train_dataset, **kwargs)
        self.reward_funcs = [
            checked(function, name) for function, name in zip(self.reward_funcs, self.reward_func_names, strict=True)
        ]
        self.tracker = self._new_tracker()
        if start is not None:
            self._adopt(*start)
        self._trajectories = Trajectories(args.max_trajectory_tokens) if args.divergence == "trajectory" else None
        if self._trajectories is not None and self._is_vlm:
            raise ValueError("divergence='trajectory' keeps text alone: for models that see use 'drift' or 'constant'")
        self._probe: Probe | None = None
        self._rewards = torch.empty(0)  # [B, F] of the last generation
        self._is_estimated = args.initial_values != "offline"
        self._uncharged_tokens = 0  # of estimate_values; Trainer sets its own count back when training starts

    def _new_tracker(self) -> ValueTracker:
        args: SPOConfig = self.args
        kind: Any = args.value_model
        if kind == "auto":
            model_or_several = len(self.reward_funcs) > 1 or isinstance(self.reward_funcs[0], torch.nn.Module)
            kind = "average" if model_or_several else "beta"
        number = len(self.prompts) if isinstance(self.prompts, DatasetPrompts) else 0
        tracker = ValueTracker(number, kind=kind, prior_value=args.prior_value, prior_weight=args.prior_weight)
        if self.prompts.keys is not None:
            tracker.set_keys(self.prompts.keys)
        return tracker

    def _adopt(self, other: ValueTracker, metadata: dict[str, Any]) -> None:
        """Values of another run, by id, or by row if it had the same prompts."""
        tracker, source = self.tracker, self.args.initial_values
        if not isinstance(self.prompts, DatasetPrompts) and other.keys is not None:
            tracker.rows_of(other.keys)  # a stream has no rows before its prompts come
        if tracker.keys is not None and other.keys is not None:
            row_of = {key: row for row, key in enumerate(other.keys)}
            rows = [row for row, key in enumerate(tracker.keys) if key in row_of]
            tracker.adopt(other, rows, [row_of[tracker.keys[row]] for row in rows])
            logger.info("values of %d of %d prompts are taken from %s", len(rows), len(tracker), source)
            return
        check_fingerprint(metadata.get("fingerprint"), self.prompts.fingerprint, source)
        tracker.adopt(other, slice(None), slice(None))

    # Data: the loader gives placeholders, the prompts are drawn at the moment of generation.

    def _get_train_sampler(self, dataset: Any = None) -> Sampler:
        rounds = max(1, len(self.train_dataset if dataset is None else dataset) // self.args.generation_batch_size)
        return _Placeholders(
            rounds * self.args.generation_batch_size * self.num_iterations * self.args.steps_per_generation
        )

    def _choose(self, inputs: list[dict[str, Any]]) -> tuple[np.ndarray, list[dict[str, Any]], int]:
        """Rows of the whole generation, int64 [B]; the examples of this process; how many draws are the floor's."""
        if not isinstance(self.prompts, DatasetPrompts):
            return self.tracker.rows_of(gather_object(self.prompts.keys_of(inputs))), inputs, 0
        args: SPOConfig = self.args
        number = len(inputs) * self.accelerator.num_processes
        sampling: Any = args.sampling
        is_warmup = args.initial_values == "warmup" and self.tracker.round * number < len(self.tracker)
        rows, from_floor = draw_prompts(
            self.tracker,
            number,
            sampling="uniform" if is_warmup else sampling,
            exploration_floor=args.exploration_floor,
            weight_offset=args.weight_offset,
            n_eff_power=args.n_eff_power,
            seed=args.seed,
        )
        own = rows[self.accelerator.process_index * len(inputs) :][: len(inputs)]
        return rows, self._take(own), from_floor

    def _take(self, rows: np.ndarray) -> list[dict[str, Any]]:
        assert isinstance(self.prompts, DatasetPrompts)
        if self.args.remove_unused_columns:
            self.prompts.dataset = self._remove_unused_columns(self.prompts.dataset, description="training")
        return self.prompts.take(rows)

    # One round of generation.

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        if not self.model.training:
            return super()._generate_and_score_completions(inputs)
        if not self._is_estimated:
            self.estimate_values(self.args.num_initial_samples)
        self.state.num_input_tokens_seen += self._uncharged_tokens
        self._uncharged_tokens = 0
        rows, examples, from_floor = self._choose(inputs)
        divergence = self._measure_divergence(rows)
        output = super()._generate_and_score_completions(examples)
        rewards = combine(self._rewards.cpu().numpy(), self.reward_weights.cpu().numpy())
        written = (
            output["completion_mask"]
            if output.get("tool_mask") is None
            else output["completion_mask"] * output["tool_mask"]
        )
        advantages = self._learn(rows, rewards, divergence, self.accelerator.gather(written.sum(dim=1)), from_floor)
        start = self.accelerator.process_index * len(examples)
        output["advantages"] = torch.tensor(
            advantages[start : start + len(examples)], dtype=torch.float32, device=self.accelerator.device
        )
        self._remember(rows, output, written)
        self.tracker.round += 1
        return output

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> torch.Tensor:
        self._rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        return self._rewards

    def _learn(
        self, rows: np.ndarray, rewards: np.ndarray, divergence: np.ndarray, num_tokens: torch.Tensor, from_floor: int
    ) -> np.ndarray:
        """Advantages of the whole generation, float64 [B]; the tracker learns its rewards."""
        args: SPOConfig = self.args
        values = self.tracker.values_at(rows, rewards)
        scale: dict[str, Any] = {}
        if args.advantage_scale == "prompt":
            scale = {"deviations": self.tracker.deviations_at(rows), "variance_floor": self.tracker.variance_floor}
        raw = raw_advantages(rewards, values, **scale)
        by_token = num_tokens.cpu().numpy() if args.advantage_normalization == "token" else None
        advantages, std = normalise(raw, by_token, min_std=args.min_advantage_std)
        rho = kept_share(divergence, d_half=args.d_half, rho_min=args.rho_min, rho_max=args.rho_max)
        self.tracker.update(rows, rewards, rho)
        metrics = round_metrics(
            self.tracker, values, rewards, std, divergence, rho, from_floor, starvation_rounds=args.starvation_rounds
        )
        self._report(metrics, advantages)
        return advantages

    def _report(self, metrics: dict[str, float], advantages: np.ndarray) -> None:
        """Add our figures to those of GRPOTrainer, and take back what it says of groups of one."""
        own: Any = self._metrics["train"]
        own["frac_reward_zero_std"].pop()
        if not own["frac_reward_zero_std"]:
            del own["frac_reward_zero_std"]
        for name, value in metrics.items():
            own[f"spo/{name}"].append(value)
        logged: Any = self._logs["advantages"]
        for _ in range(min(len(logged), len(advantages))):
            logged.pop()
        logged.extend(advantages.tolist())

    # How far the policy has moved.

    def _log_probs(self, **inputs: Any) -> torch.Tensor:
        """Log-probabilities of the response's tokens under the policy as it is now, float [L, C]."""
        was_training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad(), disable_gradient_checkpointing(self.model, self.args.gradient_checkpointing_kwargs):
                size = self.args.per_device_train_batch_size
                return self._get_per_token_logps_and_entropies(self.model, batch_size=size, **inputs)[0]
        finally:
            self.model.train(was_training)

    def _measure_divergence(self, rows: np.ndarray) -> np.ndarray:
        """Divergence since the last visit of each chosen prompt, float64 [B], in nats per token."""
        if self._trajectories is not None:
            return self._measure_trajectories(rows)
        if self._probe is not None:
            moved = torch.tensor(
                self._probe.measure(self._log_probs), dtype=torch.float64, device=self.accelerator.device
            )
            total, number = self.accelerator.reduce(moved, reduction="sum").tolist()
            self.tracker.drift += total / max(number, 1)
        return self.tracker.drift_since_visit(rows)

    def _measure_trajectories(self, rows: np.ndarray) -> np.ndarray:
        assert self._trajectories is not None
        own = np.array_split(rows, self.accelerator.num_processes)[self.accelerator.process_index]
        inputs, then, mask = self._trajectories.batch(own, self._tokenizer.pad_token_id, self.accelerator.device)
        total, number = token_divergence(then, self._log_probs(**inputs), mask)
        return self.accelerator.gather(total / number.clamp(min=1)).cpu().numpy()

    def _remember(self, rows: np.ndarray, output: dict[str, Any], written: torch.Tensor) -> None:
        """Keep what the next round measures the divergence on."""
        if self.args.divergence == "constant":
            return
        images = {name: output[name] for name in IMAGE_INPUTS if output.get(name) is not None}
        size = len(written) if images or self._trajectories is not None else self.args.per_device_train_batch_size
        ids, attention = (
            torch.cat([output[f"prompt_{part}"][:size], output[f"completion_{part}"][:size]], dim=1)
            for part in ("ids", "mask")
        )
        inputs = {"input_ids": ids, "attention_mask": attention, "logits_to_keep": written.size(1), **images}
        logps = self._log_probs(**inputs)  # not old_per_token_logps, which has the dropout of training in it
        if self._trajectories is None:
            self._probe = Probe(inputs, written[:size], logps)
            return
        responses = [
            self._trajectories.cut(
                output["prompt_ids"][place][output["prompt_mask"][place].bool()].cpu(),
                *(each[place].cpu() for each in (output["completion_ids"], written, logps)),
            )
            for place in range(len(written))
        ]
        self._trajectories.keep(rows, gather_object(responses))

    # Values before training.

    def estimate_values(self, num_samples: int) -> ValueTracker:
        """Set the value of every prompt from responses of the present policy, as the paper does before training.

        The responses are generated, and rewarded, as in training. When training starts, their tokens are added to those
        that the run has seen, so that a comparison by tokens charges them.

        Args:
            num_samples: Responses to each prompt; the paper has 8.

        Returns:
            The tracker: v = (sum + 0.5) / (n + 1) with kind "beta", N_eff = 1 / (1 - rho_min).

        Raises:
            ValueError: Prompts come as a stream, or `num_samples` is below 1.
        """
        if not isinstance(self.prompts, DatasetPrompts):
            raise ValueError("initial_values='offline' needs a data set whose prompts are known before training")
        if num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, got {num_samples}")
        estimate = sample_values(self, num_samples, super()._generate_and_score_completions)
        self.tracker.start_from(
            np.arange(len(self.tracker)),
            estimate.sums,
            estimate.numbers,
            estimate.squares,
            weight=1 / max(1 - self.args.rho_min, 1e-6),
        )
        self._uncharged_tokens += estimate.tokens
        self._is_estimated = True
        self._metrics["train"]["spo/estimate_tokens"].append(float(estimate.tokens))
        self._metrics["train"]["spo/estimate_seconds"].append(estimate.seconds)
        return self.tracker

    # Checkpoints and the Hub.

    def save_tracker(self, folder: str | Path) -> Path:
        """Write the tracker into a folder, where ``initial_values`` of another run finds it.

        Args:
            folder: Made if it is not there.

        Returns:
            The path of the file, ``spo_tracker.safetensors``.
        """
        return save_tracker_of(self, Path(folder))

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        save_run(self, Path(output_dir))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        if self.args.save_only_model and self.args.should_save:
            self.save_tracker(Path(self._get_output_dir(trial=trial), f"checkpoint-{self.state.global_step}"))

    def train(self, resume_from_checkpoint: str | Path | bool | None = None, **kwargs: Any) -> Any:
        """Train, or continue; as in Trainer, but that a run which is at its end is loaded and not trained on."""
        end = end_of_run(self.args, resume_from_checkpoint)
        if end is None or self.is_deepspeed_enabled or self.is_fsdp_enabled:
            return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)
        return load_end(self, end)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            load_run(self, Path(checkpoint))

    def create_model_card(
        self,
        model_name: str | None = None,
        dataset_name: str | None = None,
        tags: str | list[str] | None = None,
        **_: Any,
    ) -> None:
        """Write README.md into `output_dir`: the method with its values, rewards as they were logged, what the tracker knows.

        Args:
            model_name: Name of the model; that of the repository or of `output_dir` if None.
            dataset_name: Name of the data set on the Hub.
            tags: More tags.
        """
        if not self.is_world_process_zero():
            return
        folder = Path(self.args.output_dir)
        card = plain_card(
            self.hub_model_id or self.args.hub_model_id or model_name or folder.name,
            policy_facts(self),
            kind="adapter" if is_peft_model(self.accelerator.unwrap_model(self.model)) else "policy",
            base_model=base_of(self),
            datasets=[] if dataset_name is None else [dataset_name],
            tags=list(dict.fromkeys([*([tags] if isinstance(tags, str) else tags or ()), *self._tag_names])),
        )
        card.save(folder / "README.md")

    def push_tracker_to_hub(self, repo_id: str, **arguments: Any) -> str | None:
        """Publish the tracker as a data set: what this run knows of every prompt.

        Args:
            repo_id: ``owner/name``.
            arguments: Of `push_tracker`: private, revision, create_pr, token, commit_message.

        Returns:
            The address of the commit on the main process, else None.
        """
        if not self.accelerator.is_main_process:
            return None
        arguments.setdefault("token", self.args.hub_token)
        return push_tracker(self.tracker, repo_id, fingerprint=self.prompts.fingerprint, **arguments)


class _Placeholders(Sampler):
    """So many times row 0: the loader has to give something, and what it gives is not looked at."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __iter__(self) -> Iterator[int]:
        return iter([0] * self.number)

    def __len__(self) -> int:
        return self.number


def _load_start(source: str) -> tuple[ValueTracker, dict[str, Any]]:
    """The tracker that `initial_values` names, before a model is loaded for nothing."""
    try:
        return load_tracker(source)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"initial_values={source!r} is none of {', '.join(INITIAL_VALUES)}, and there is no tracker: {error}"
        ) from error


def _check_reference_model(model: Any, args: SPOConfig, peft_config: Any) -> None:
    """GRPOTrainer loads the reference of a KL penalty from where the model came from, which must be somewhere."""
    if args.beta == 0 or isinstance(model, str) or is_peft_model(model) or peft_config is not None:
        return
    if not getattr(model.config, "_name_or_path", ""):
        raise ValueError(
            f"beta={args.beta} needs a reference model, which is loaded from where the model was loaded from; this one was "
            "made in memory. Save it and pass the folder, pass a PeftModel, or set beta=0"
        )
