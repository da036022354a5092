"""A run as data: what was logged, column by column, from the files that training leaves behind.

Design decisions:

- The source is transformers' `trainer_state.json`, in the run's folder or in one of its checkpoints; the one that is
  furthest counts. A file that was cut off while it was written is passed over, as long as there is another.
- A column is a plain list with one entry per record, None where a record lacks the key. So whatever a trainer or a
  callback logs is there, under the name that it was logged under.
- Records are told apart by their keys: those with ``loss`` are of training, those with a key that begins with ``eval_``
  of evaluation. The summary at the end of training is neither.
- `run.json`, which `mmbert pretrain` and its like write beside it, is taken over as it is.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["RUN_FILE", "STATE_FILE", "RunLog", "read_run"]

STATE_FILE = "trainer_state.json"
RUN_FILE = "run.json"
LANGUAGE_PREFIX = "eval_loss_"
# What counts how far the run is, the best first.
TOKEN_COLUMNS = ("tokens", "tokens_seen", "num_input_tokens_seen")

Columns = dict[str, list[Any]]


@dataclass(frozen=True)
class RunLog:
    """What a run logged.

    Attributes:
        source: The `trainer_state.json` that it was read from.
        step: Optimizer steps done when that was written.
        total_steps: Optimizer steps of the whole run.
        training: Name -> one value per training record, in order; ``step`` and ``loss`` are always there.
        evaluation: The same of the evaluation records; ``step`` is always there.
        settings: What `run.json` says; empty without it.

    Example:
        >>> run = RunLog("", 20, 20, {"step": [10, 20], "loss": [5.0, 4.0]}, {"step": [20], "eval_loss_fao": [4.5]})
        >>> run.language_losses
        {'fao': [4.5]}
    """

    source: str
    step: int
    total_steps: int
    training: Columns
    evaluation: Columns
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def language_losses(self) -> dict[str, list[float | None]]:
        """Language code -> its loss at each evaluation, in nats per masked token; None where it was not measured."""
        return {
            name.removeprefix(LANGUAGE_PREFIX): values
            for name, values in self.evaluation.items()
            if name.startswith(LANGUAGE_PREFIX)
        }

    @property
    def language_ends(self) -> dict[str, tuple[float, float]]:
        """Language code -> its loss at the first and at the last evaluation, of languages that were measured at both.

        `run.json` has them as ``losses`` before and after the run, from outside of the training's own log.
        """
        losses = self.settings.get("losses")
        if isinstance(losses, Mapping) and losses.get("before") and losses.get("after"):
            before, after = losses["before"], losses["after"]
        elif len(self.evaluation["step"]) > 1:
            before, after = ({code: column[end] for code, column in self.language_losses.items()} for end in (0, -1))
        else:
            return {}
        pairs = {code: (loss, after.get(code)) for code, loss in before.items()}
        return {code: pair for code, pair in pairs.items() if None not in pair}

    @property
    def progress(self) -> tuple[str, list[float]]:
        """The name of the column that says how far each training record is, and that column.

        The tokens of the plan, else the tokens seen, else the steps: the first that every record has.
        """
        for name in TOKEN_COLUMNS:
            if name in self.training and None not in self.training[name]:
                return name, self.training[name]
        return "step", self.training["step"]

    @property
    def phase_names(self) -> list[str]:
        """Names of the phases in order, from the settings; empty if they name none."""
        for settings in (self.settings, self.settings.get("plan"), self.settings.get("recipe")):
            phases = settings.get("phases") if isinstance(settings, Mapping) else None
            if phases and all(isinstance(phase, Mapping) and "name" in phase for phase in phases):
                return [str(phase["name"]) for phase in phases]
        return []

    def to_json(self, path: str | Path | None = None) -> str:
        """Return everything as JSON, and write it where a path is given.

        Args:
            path: A file; overwritten.

        Returns:
            The text. Numbers that are not finite, which JSON does not know, are null.
        """
        text = json.dumps(_finite(asdict(self)), indent=1, ensure_ascii=False, allow_nan=False)
        if path is not None:
            Path(path).write_text(text + "\n", encoding="utf-8")
        return text


def read_run(folder: str | Path) -> RunLog:
    """Read the log of a run.

    Args:
        folder: The output folder of a training, or one of its checkpoints.

    Returns:
        The log.

    Raises:
        FileNotFoundError: There is no such folder, or nothing in it was written by a trainer.
        ValueError: All of the files that it could be read from are damaged, or `run.json` is.

    Example:
        >>> import json, pathlib, tempfile
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> records = [{"step": 10, "loss": 5.5, "tokens": 1000}, {"step": 10, "eval_loss_fao": 5.25}]
        >>> state = {"global_step": 10, "max_steps": 20, "log_history": records}
        >>> _ = (folder / "trainer_state.json").write_text(json.dumps(state))
        >>> run = read_run(folder)
        >>> run.training, run.language_losses
        ({'step': [10], 'loss': [5.5], 'tokens': [1000]}, {'fao': [5.25]})
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder; give the output folder of a training")
    found = sorted(folder.glob(f"checkpoint-*/{STATE_FILE}"))
    candidates = [path for path in (folder / STATE_FILE, *found) if path.is_file()]
    if not candidates:
        raise FileNotFoundError(
            f"{folder} has no {STATE_FILE}, and no checkpoint with one; did its training save nothing (save_strategy='no'), "
            "or not reach its first checkpoint?"
        )
    states = {path: state for path in candidates if (state := _read_state(path)) is not None}
    if not states:
        raise ValueError(
            f"{', '.join(map(str, candidates))}: damaged or not of a trainer; nothing to read the run from"
        )
    path = max(states, key=lambda path: states[path]["global_step"])
    state = states[path]
    history = state["log_history"]
    training = [record for record in history if "loss" in record]
    evaluation = [
        record for record in history if "loss" not in record and any(name.startswith("eval_") for name in record)
    ]
    return RunLog(
        source=str(path),
        step=int(state["global_step"]),
        total_steps=int(state.get("max_steps") or state["global_step"]),
        training=_columns(training, ("step", "loss")),
        evaluation=_columns(evaluation, ("step",)),
        settings=_read_settings(folder) or _read_settings(path.parent.parent),
    )


def _read_state(path: Path) -> dict[str, Any] | None:
    """Return a trainer's state, or None if it is damaged or something else."""
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return None
    is_state = isinstance(state, dict) and isinstance(state.get("log_history"), list)
    return state if is_state and isinstance(state.get("global_step"), int) else None


def _read_settings(folder: Path) -> dict[str, Any]:
    path = folder / RUN_FILE
    if not path.is_file():
        return {}
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); restore it, or remove it to read the run without it") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{path} must hold an object, got {type(settings).__name__}")
    return settings


def _columns(records: Sequence[Mapping[str, Any]], always: Sequence[str]) -> Columns:
    names = dict.fromkeys([*always, *(name for record in records for name in record)])
    return {name: [record.get(name) for record in records] for name in names}


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    return [_finite(inner) for inner in value] if isinstance(value, (list, tuple)) else value
