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
        return json.loads((Path(checkpoint) / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def last_complete_checkpoint(folder: str | Path, num_processes: int = 1) -> Path | None:
    """Return the newest checkpoint in a folder that was written to its end, or None.

    transformers' own `get_last_checkpoint` takes the highest number, also where the process was killed while saving.

    Args:
        folder: Where ``checkpoint-<step>`` folders are.
        num_processes: Ranks of the run; each writes the state of its random numbers.

    Example:
        >>> last_complete_checkpoint("no/such/folder") is None
        True
    """
    names = ["rng_state.pth"] if num_processes == 1 else [f"rng_state_{rank}.pth" for rank in range(num_processes)]
    found = [path for path in Path(folder).glob(f"{PREFIX_CHECKPOINT_DIR}-*") if path.name.rpartition("-")[2].isdigit()]
    for path in sorted(found, key=lambda path: int(path.name.rpartition("-")[2]), reverse=True):
        if read_state(path) is not None and all((path / name).is_file() for name in names):
            return path
    return None
