"""What the card of a trained encoder says: the recipe as it ran, and held-out losses as they were logged."""

from collections.abc import Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from mmbert_hf.languages import hub_code

if TYPE_CHECKING:
    from mmbert_hf.trainers.mlm import MLMTrainer

__all__ = ["card_languages", "encoder_facts", "ends"]

PACKAGES = ("mmbert-hf", "transformers", "torch")
LOSS_OF_LANGUAGE = "eval_loss_"


def encoder_facts(trainer: "MLMTrainer") -> dict[str, Any]:
    """Collect the facts of a run for `mmbert_hf.model_cards.encoder_card`.

    Args:
        trainer: In training, or behind it; phases that have not begun are left out.

    Returns:
        ``parameters``, ``phases`` (with the losses at the start and the end of each, means over a tenth of its logged steps),
        ``heldout_languages`` (language -> loss of the first and the last evaluation), ``seed`` and ``versions``.
    """
    history = trainer.state.log_history
    return {
        "parameters": sum(parameter.numel() for parameter in trainer.model.parameters()),
        "phases": _phases(trainer, history),
        "heldout_languages": _heldout(history),
        "seed": trainer.args.seed,
        "versions": {package: version(package) for package in PACKAGES},
    }


def ends(values: Sequence[float]) -> tuple[float, float]:
    """Means over the first and over the last tenth of what was logged, of one value at least.

    Example:
        >>> ends([4.0, 3.0, 2.0, 1.0])
        (4.0, 1.0)
    """
    tenth = max(1, len(values) // 10)
    return sum(values[:tenth]) / tenth, sum(values[-tenth:]) / tenth


def card_languages(languages: Sequence[str]) -> list[str]:
    """Hub codes of the languages of a mixture, each once, in order.

    Example:
        >>> card_languages(["fao", "srp_Cyrl", "srp_Latn", "code"])
        ['fo', 'sr', 'code']
    """
    return list(dict.fromkeys(language if language == "code" else hub_code(language) for language in languages))


def _phases(trainer: "MLMTrainer", history: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    plan, losses = trainer.plan, {entry["step"]: entry["loss"] for entry in history if "loss" in entry}
    firsts = [*plan.first_steps, plan.num_steps]
    records = []
    for phase, first, last in zip(plan.recipe.phases, firsts, firsts[1:], strict=False):
        logged = [losses[step] for step in sorted(losses) if first < step <= last]
        if not logged:
            continue
        start, end = ends(logged)
        languages = trainer.train_dataset.languages if phase.languages is None else phase.languages
        before = plan.tokens_after(first - 1) if first else 0
        records.append(
            {
                "name": phase.name,
                "languages": len(languages),
                "temperature": phase.language_temperature,
                "mask_ratio": phase.mask_ratio,
                "max_length": phase.max_length,
                "tokens": plan.tokens_after(min(last, trainer.state.global_step) - 1) - before,
                "loss_start": start,
                "loss_end": end,
            }
        )
    return records


def _heldout(history: Sequence[dict[str, Any]]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for entry in history:
        for name, value in entry.items():
            if name.startswith(LOSS_OF_LANGUAGE):
                found.setdefault(name.removeprefix(LOSS_OF_LANGUAGE), []).append(value)
    return {language: [values[0], values[-1]] for language, values in found.items()}
