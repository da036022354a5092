"""What a checkpoint holds of SPO beside what GRPOTrainer writes, so that a resumed run is the run that was never stopped.

Design decisions:

- The tracker is one file, the same on every process and written by one. What differs (what is left of a generation that
  serves several steps, the responses that drift is measured on, metrics not logged yet) is a file for each process.
- A resumed run has the bits of a straight one, also inside the window of a generation. (But for a stream that has begun
  anew before the checkpoint: Trainer finds its place within the first pass alone.)
- A run that is at its end is not trained on. (Trainer makes one more step when it resumes from a last step.)
- What does not belong to the run is refused before anything of it is changed.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from mmbert_hf.trainers.checkpoints import read_state
from mmbert_hf.trainers.spo.divergence import Probe
from mmbert_hf.trainers.spo.tracker_files import TRACKER_FILE, read_tracker, write_tracker
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import TrainerState
from transformers.trainer_utils import TrainOutput, get_last_checkpoint

if TYPE_CHECKING:
    from mmbert_hf.trainers.spo.trainer import SPOTrainer
    from transformers import TrainingArguments

__all__ = ["check_fingerprint", "end_of_run", "load_end", "load_run", "save_run", "save_tracker_of"]

logger = logging.getLogger(__name__)

PROCESS_FILE = "spo_process_{rank}.pt"
TRAJECTORIES_FILE = "spo_trajectories.safetensors"


def save_tracker_of(trainer: SPOTrainer, folder: Path) -> Path:
    """Write a trainer's tracker into a folder, with what is checked when a run goes on from there."""
    folder.mkdir(parents=True, exist_ok=True)
    write_tracker(
        folder / TRACKER_FILE,
        trainer.tracker,
        fingerprint=trainer.prompts.fingerprint,
        processes=trainer.accelerator.num_processes,
        is_estimated=trainer._is_estimated,
        divergence=trainer.args.divergence,
    )
    return folder / TRACKER_FILE


def save_run(trainer: SPOTrainer, folder: Path) -> None:
    """Write the part of a checkpoint that is SPO's. To be called on every process."""
    folder.mkdir(parents=True, exist_ok=True)
    if trainer.args.should_save:
        save_tracker_of(trainer, folder)
        if trainer._trajectories is not None:
            from safetensors.numpy import save_file

            save_file(trainer._trajectories.state_dict(), folder / TRAJECTORIES_FILE)
    is_inside = trainer._step % (trainer.args.steps_per_generation * trainer.num_iterations) != 0
    state = {
        "step": trainer._step,
        "window": trainer._buffered_inputs if is_inside else None,
        "probe": None if trainer._probe is None else vars(trainer._probe),
        "metrics": dict(trainer._metrics["train"]),
    }
    torch.save(state, folder / PROCESS_FILE.format(rank=trainer.accelerator.process_index))


def load_run(trainer: SPOTrainer, folder: Path) -> None:
    """Put a trainer where `save_run` left another.

    Raises:
        ValueError: The checkpoint is of other prompts, another number of processes, another kind of values, another
            divergence, or another `steps_per_generation`.
        FileNotFoundError: The checkpoint was saved without what a run needs to go on.
    """
    tracker, metadata = read_tracker(folder / TRACKER_FILE)
    check_fingerprint(metadata["fingerprint"], trainer.prompts.fingerprint, folder)
    if metadata["processes"] != trainer.accelerator.num_processes:
        raise ValueError(
            f"{folder} was saved by {metadata['processes']} processes and {trainer.accelerator.num_processes} are running: "
            "continue with the same number, or start anew with initial_values set to the checkpoint"
        )
    if tracker.kind != trainer.tracker.kind:
        raise ValueError(f"{folder} has values of kind {tracker.kind!r}, this run {trainer.tracker.kind!r}")
    if metadata["divergence"] != trainer.args.divergence:
        raise ValueError(
            f"{folder} was saved with divergence={metadata['divergence']!r} and this run has "
            f"{trainer.args.divergence!r}: continue with the same, or start anew with initial_values set to the checkpoint"
        )
    state = _read_process_file(trainer, folder)
    trainer.tracker, trainer._is_estimated = tracker, metadata["is_estimated"]
    if trainer._trajectories is not None:
        from safetensors.numpy import load_file

        trainer._trajectories.load_state_dict(load_file(folder / TRAJECTORIES_FILE))
    trainer._step, trainer._buffered_inputs = state["step"], state["window"]
    trainer._probe = None if state["probe"] is None else Probe(**state["probe"])
    for name, values in state["metrics"].items():
        trainer._metrics["train"][name] = values


def end_of_run(args: TrainingArguments, checkpoint: str | bool | Path | None) -> Path | None:
    """The checkpoint, if all steps that the arguments ask for were made when it was saved; else None.

    Args:
        args: Of the run that is to continue.
        checkpoint: As in `Trainer.train`: a folder, or True for the last one.
    """
    folder = get_last_checkpoint(args.output_dir) if checkpoint is True else checkpoint
    state = read_state(folder) if folder else None
    if not folder or state is None:
        return None
    if args.max_steps > 0:
        is_end = state["global_step"] >= args.max_steps
    else:  # the number of whole passes is kept, a part of one is not
        is_whole = float(args.num_train_epochs).is_integer()
        is_end = is_whole and state["global_step"] >= state["max_steps"] > 0
        is_end = is_end and state["num_train_epochs"] >= args.num_train_epochs
    return Path(folder) if is_end else None


def load_end(trainer: SPOTrainer, folder: Path) -> TrainOutput:
    """Put a trainer where the last checkpoint of a run left it: weights, tracker, steps and log."""
    trainer._load_from_checkpoint(str(folder))
    trainer.state = TrainerState.load_from_json(str(folder / TRAINER_STATE_NAME))
    trainer.state.is_local_process_zero = trainer.is_local_process_zero()
    trainer.state.is_world_process_zero = trainer.is_world_process_zero()
    load_run(trainer, folder)
    logger.info("%s is the end of this run: nothing is left to train", folder)
    return TrainOutput(trainer.state.global_step, float("nan"), {})


def _read_process_file(trainer: SPOTrainer, folder: Path) -> dict[str, Any]:
    path = folder / PROCESS_FILE.format(rank=trainer.accelerator.process_index)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is not there, so this run cannot go on where it stopped (save_only_model leaves it out): start "
            "anew with initial_values set to the checkpoint"
        )
    device = trainer.accelerator.device
    # Of several processes each has a cpu of its own number, which torch.load does not know.
    where = "cpu" if device.type == "cpu" else device
    state: dict[str, Any] = torch.load(path, map_location=where, weights_only=True)
    if state["window"] is not None and len(state["window"]) != trainer.args.steps_per_generation:
        raise ValueError(
            f"{folder} was saved inside a generation that serves {len(state['window'])} steps, and this run has "
            f"steps_per_generation={trainer.args.steps_per_generation}: continue with the same"
        )
    return state


def check_fingerprint(found: Any, expected: str, source: Any) -> None:
    """Refuse a tracker of other prompts.

    Raises:
        ValueError: The fingerprints differ.
    """
    if found != expected:
        raise ValueError(
            f"the tracker in {source} is of other prompts than this data set (fingerprint {found}, expected {expected}): "
            "give the data set it was made with. With prompt_id_column, initial_values carries values over by id"
        )
