"""Which checkpoints a run can continue from: those that were written to their end."""

import json
from pathlib import Path
from typing import Any

from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR


def read_state(checkpoint: str | Path) -> dict[str, Any] | None:
    """Return what `trainer_state.json` of a checkpoint holds; None if it is missing or was cut off.

    Trainer writes that file behind all others, so a checkpoint that has it whole was written to its end.
    """
    try:
        state = json.loads((Path(checkpoint) / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return state if isinstance(state, dict) else None


def last_complete_checkpoint(folder: str | Path, num_processes: int = 1) -> Path | None:
    """Return the newest checkpoint in a folder that was written to its end, or None.

    transformers' own `get_last_checkpoint` takes the highest number, also where the process was killed while saving.
    Each rank of the run that saved a checkpoint writes the state of its random numbers, so all of them are looked for.

    Args:
        folder: Where ``checkpoint-<step>`` folders are.
        num_processes: Ranks of the run that saved, where the checkpoint does not say how many there were. A planned run
            says so: continuing it with another number is refused by `PlanCallback.resume`, not silently started anew.

    Example:
        >>> last_complete_checkpoint("no/such/folder") is None
        True
    """
    found = [path for path in Path(folder).glob(f"{PREFIX_CHECKPOINT_DIR}-*") if path.name.rpartition("-")[2].isdigit()]
    for path in sorted(found, key=lambda path: int(path.name.rpartition("-")[2]), reverse=True):
        state = read_state(path)
        if state is not None and _has_random_states(path, _saving_processes(state, num_processes)):
            return path
    return None


def _saving_processes(state: dict[str, Any], default: int) -> int:
    """Return how many ranks wrote a checkpoint, by the state that `PlanCallback` keeps in it."""
    planned = state.get("stateful_callbacks", {}).get("PlanCallback", {})
    return int(planned.get("attributes", {}).get("fingerprint", {}).get("processes", default))


def _has_random_states(checkpoint: Path, num_processes: int) -> bool:
    names = ["rng_state.pth"] if num_processes == 1 else [f"rng_state_{rank}.pth" for rank in range(num_processes)]
    return all((checkpoint / name).is_file() for name in names)
