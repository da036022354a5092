"""What the card of a policy says: the method with the values that it ran with, the reward, and what the tracker knows."""

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmbert_hf.trainers.cards import ends

if TYPE_CHECKING:
    from mmbert_hf.trainers.spo.trainer import SPOTrainer

__all__ = ["policy_facts"]

PACKAGES = ("mmbert-hf", "trl", "transformers", "torch")
SETTINGS = ("sampling", "exploration_floor", "divergence", "rho_min", "rho_max", "advantage_scale",
            "advantage_normalization", "min_advantage_std", "initial_values", "loss_type", "beta", "learning_rate",
            "temperature", "max_completion_length", "seed")  # fmt: skip
METRICS = {"reward": "reward of a response", "completions/mean_length": "tokens of a response",
           "spo/value_mean": "what the tracker expected of a prompt", "spo/brier": "Brier score of the tracker"}  # fmt: skip


def policy_facts(trainer: "SPOTrainer") -> dict[str, Any]:
    """Collect the facts of a run for `mmbert_hf.model_cards.plain_card`.

    Args:
        trainer: In training, or behind it.

    Returns:
        ``training`` (name -> value), ``results`` (rows of a table: means over the first and the last tenth of what was
        logged), ``results_note`` and ``versions``.
    """
    args, tracker, state = trainer.args, trainer.tracker, trainer.state
    training: dict[str, Any] = {
        "method": "SPO, one response a prompt, on TRL's GRPOTrainer",
        "rewards": ", ".join(trainer.reward_func_names),
        "steps": f"{state.global_step:,}",
        "responses a generation": f"{args.generation_batch_size:,}",
        "responses": f"{int(tracker.visits.sum()):,}",
        "prompts": f"{len(tracker):,}, of which {int((tracker.visits > 0).sum()):,} were answered",
        "tokens read and written": f"{int(state.num_input_tokens_seen):,}",
    }
    training |= {name: getattr(args, name) for name in SETTINGS}
    rows = _rows(state.log_history)
    return {
        "training": training,
        "results": [["", "at first", "at last"], *rows] if rows else None,
        "results_note": "Of training, means over the first and the last tenth of what was logged; no other data were measured.",
        "versions": {package: version(package) for package in PACKAGES},
    }


def base_of(trainer: "SPOTrainer") -> str | None:
    """The parent's name on the Hub; None for a model from a folder, or from nowhere."""
    from mmbert_hf.hub.names import public_name

    model: Any = trainer.accelerator.unwrap_model(trainer.model)
    configs: dict[str, Any] = getattr(model, "peft_config", {})
    names = [getattr(each, "base_model_name_or_path", None) for each in configs.values()]
    names.append(getattr(model.config, "_name_or_path", None))
    return next((public_name(name) for name in names if name and not Path(name).exists()), None)


def _rows(history: Sequence[dict[str, Any]]) -> list[list[str]]:
    rows = []
    for name, meaning in METRICS.items():
        values = [entry[name] for entry in history if name in entry]
        if values:
            rows.append([meaning, *(f"{value:.4g}" for value in ends(values))])
    return rows
