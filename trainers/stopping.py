"""`StopOnInterrupt`: Ctrl-C and SIGTERM finish the step, save a checkpoint and stop."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

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
        """Save and stop if asked to."""
        if self.interrupted:
            control.should_save = control.should_training_stop = True

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.interrupted:
            raise KeyboardInterrupt
        self.interrupted = True
