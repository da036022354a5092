"""Which versions of TRL `SPOTrainer` was tested with, and what of TRL's private parts it stands on.

TRL changes private methods between releases, and subclasses that stand on them break in silence. So the range is checked
before anything is loaded, and a test compares `PRIVATE_PARTS` with the TRL that is installed.
"""

import inspect
from importlib.metadata import version

from packaging.specifiers import SpecifierSet
from packaging.version import Version

__all__ = ["TESTED_TRL", "changed_parts", "check_trl"]

TESTED_TRL = SpecifierSet(">=1.10,<1.17")

# Overridden or called by SPOTrainer: name of the method, and its first parameters.
PRIVATE_PARTS = {
    "_generate_and_score_completions": ("self", "inputs"),
    "_calculate_rewards": ("self", "inputs", "prompts", "completions", "completion_ids_list"),
    "_get_per_token_logps_and_entropies": (
        "self",
        "model",
        "input_ids",
        "attention_mask",
        "logits_to_keep",
        "batch_size",
    ),
    "_get_train_sampler": ("self", "dataset"),
    "_remove_unused_columns": ("self", "dataset", "description"),
    "_get_output_dir": ("self", "trial"),
    "_save_checkpoint": ("self", "model", "trial"),
    "_save_optimizer_and_scheduler": ("self", "output_dir"),
    "_load_optimizer_and_scheduler": ("self", "checkpoint"),
}


def check_trl(installed: str | None = None) -> None:
    """Refuse a TRL that `SPOTrainer` was not tested with.

    Args:
        installed: Its version; that of the environment if None.

    Raises:
        ValueError: The version is outside the tested range.
    """
    installed = version("trl") if installed is None else installed
    if not TESTED_TRL.contains(Version(installed), prereleases=True):
        raise ValueError(
            f"SPOTrainer was tested with trl {TESTED_TRL} and stands on private parts of it; trl {installed} is installed. "
            f"Install one of the range (pip install 'trl{TESTED_TRL}'), or a newer mmbert-hf"
        )


def changed_parts() -> list[str]:
    """What of `PRIVATE_PARTS` is not in the installed TRL as it was tested: one sentence each, empty if all is."""
    from trl import GRPOTrainer

    changed = []
    for name, expected in PRIVATE_PARTS.items():
        method = getattr(GRPOTrainer, name, None)
        if method is None:
            changed.append(f"GRPOTrainer.{name} is gone")
            continue
        found = tuple(inspect.signature(method).parameters)[: len(expected)]
        if found != expected:
            changed.append(f"GRPOTrainer.{name} takes {', '.join(found)}, not {', '.join(expected)}")
    return changed
