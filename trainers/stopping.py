"""`StopOnInterrupt`: Ctrl-C and SIGTERM finish the step, save a checkpoint and stop.

A signal reaches the processes of a run at different moments, or only one of them. So they agree behind every step: one
that stopped alone would leave the others waiting for its gradients.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from transformers import TrainerCallback


class StopOnInterrupt(TrainerCallback):
    """On Ctrl-C or SIGTERM, finish the step, save a checkpoint and stop; the second time stop at once."""

    def __init__(self) -> None:
        self.interrupted = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take over the signals, and give them back however the training ends. Only the main thread gets signals."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = {number: signal.signal(number, self._on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Save and stop if any process was asked to."""
        self.interrupted = _any_process(self.interrupted, args)
        if self.interrupted:
            control.should_save = control.should_training_stop = True

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.interrupted:
            raise KeyboardInterrupt
        self.interrupted = True


def _any_process(flag: bool, args: Any) -> bool:
    """Return whether the flag is set in any process of the run."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return flag
    flags = torch.tensor(float(flag), device=args.device)
    torch.distributed.all_reduce(flags, torch.distributed.ReduceOp.MAX)
    return bool(flags.item())
