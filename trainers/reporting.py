"""Throughput of a training run: tokens per second, tokens seen, how full the rows are, share of the device's peak.

Design decisions:

- The arithmetic is `Throughput`, which knows no Trainer: it is told what was trained on and when the clock stands
  still. A trainer that owns its ``log()`` calls it there, so that the values reach every integration (transformers
  calls its reporters before user callbacks).
- `ThroughputCallback` is the same for the stock Trainer. It reads `TrainerState.num_input_tokens_seen`, which
  transformers counts over all ranks and saves with the checkpoint; its values are in the log history and in what later
  callbacks see, not in TensorBoard.
- Counts of the ranks are summed by `Throughput.sync`, which has to run before a checkpoint is saved: one rank writes
  it, and what it writes has to be whole.
- What is not known is left out: no share of a peak that is not in the table, no fill without a capacity.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from mmbert_hf.flops import bf16_peak

__all__ = ["Throughput", "ThroughputCallback", "device_peak"]


def device_peak(device: torch.device | str, num_devices: int = 1) -> float | None:
    """Peak rate of the devices that train, in dense bfloat16 matrix products.

    Args:
        device: That of one rank.
        num_devices: How many there are, all of this kind.

    Returns:
        Floating-point operations per second of all of them; None for the CPU and for devices without a known peak
        (`mmbert_hf.flops.BF16_PEAKS`).

    Example:
        >>> device_peak("cpu", 8) is None
        True
    """
    device = torch.device(device)
    if device.type != "cuda":
        return None
    peak = bf16_peak(torch.cuda.get_device_name(device))
    return None if peak is None else peak * num_devices


class Throughput:
    """Counts what was trained on, and how long it took, from one `read` to the next.

    Args:
        peak_flops: Operations per second that all devices can do at most; None takes `device_peak` of the accelerator
            that `read` is given, if any.
        clock: Seconds that only rise.

    Attributes:
        tokens_seen: Real tokens of the run up to the last `sync`, over all ranks and restarts.
        languages_active: How many languages are sampled from, for whoever knows to set; None leaves it out.

    Example:
        >>> seconds = iter([0.0, 2.0])
        >>> throughput = Throughput(clock=lambda: next(seconds))
        >>> throughput.add(900, 1000)
        >>> throughput.read()
        {'tokens_seen': 900, 'tokens_per_second': 450.0, 'packing_fill': 0.9}
    """

    def __init__(self, *, peak_flops: float | None = None, clock: Callable[[], float] = time.perf_counter) -> None:
        self.peak_flops = peak_flops
        self.tokens_seen = 0
        self.languages_active: int | None = None
        self._clock = clock
        self.restart()

    def restart(self) -> None:
        """Begin a window now, without counts. Call it when training begins; `tokens_seen` stays."""
        self._pending = self._window = _NOTHING
        self._seconds, self._counted_until, self._is_paused = 0.0, self._clock(), False

    def add(self, num_tokens: int, capacity: int | None = None, *, flops: float | None = None) -> None:
        """Count a batch of this rank.

        Args:
            num_tokens: Real tokens, special tokens included, padding not.
            capacity: Tokens that would have fitted into the rows that were read; None if nobody knows.
            flops: Operations of its forward and backward pass (`mmbert_hf.flops`); None if nobody knows.

        Raises:
            ValueError: For negative counts, or more tokens than fit.
        """
        if num_tokens < 0 or (capacity is not None and num_tokens > capacity):
            raise ValueError(f"num_tokens must be in 0..capacity, got {num_tokens} of {capacity}")
        unknown = (num_tokens * (capacity is None), num_tokens * (flops is None))
        self._pending = _plus(self._pending, (num_tokens, capacity or 0, flops or 0.0, *unknown))

    def sync(self, accelerator: Any = None) -> None:
        """Take what was added since the last time into the window and `tokens_seen`, summed over the ranks.

        Args:
            accelerator: Of accelerate; every rank has to call this then. None for one rank, or where `add` is given the
                counts of all ranks.
        """
        pending, self._pending = self._pending, _NOTHING
        if accelerator is not None and accelerator.num_processes > 1:
            counts = torch.tensor(pending, dtype=torch.float64, device=accelerator.device)  # exact up to 2 ** 53
            pending = tuple(accelerator.reduce(counts, reduction="sum").tolist())
        self._window = _plus(self._window, pending)
        self.tokens_seen += round(pending[0])

    def pause(self) -> None:
        """Stop the clock, as for evaluation and saving. Does nothing if it stands."""
        self._count_time()
        self._is_paused = True

    def resume(self) -> None:
        """Let the clock run on. Does nothing if it runs."""
        if self._is_paused:
            self._counted_until, self._is_paused = self._clock(), False

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stop the clock for a block; inside another such block, for the outer one."""
        was_paused = self._is_paused
        self.pause()
        try:
            yield
        finally:
            if not was_paused:
                self.resume()

    def read(self, accelerator: Any = None) -> dict[str, float]:
        """Return the values of the window and begin the next one.

        Args:
            accelerator: As for `sync`, which is called; its device gives the peak if none was given.

        Returns:
            ``tokens_seen``; and where it is known ``tokens_per_second``, ``packing_fill`` (real tokens / capacity),
            ``flops_utilization`` (share of the peak, in [0, 1]) and ``languages_active``.
        """
        self.sync(accelerator)
        if self.peak_flops is None and accelerator is not None:
            self.peak_flops = device_peak(accelerator.device, accelerator.num_processes)
        self._count_time()
        seconds, (tokens, capacity, flops, *unknown) = self._seconds, self._window
        values: dict[str, float] = {"tokens_seen": self.tokens_seen}
        if tokens and seconds > 0:
            values["tokens_per_second"] = tokens / seconds
            if flops and not unknown[1] and self.peak_flops:
                values["flops_utilization"] = flops / seconds / self.peak_flops
        if capacity and not unknown[0]:
            values["packing_fill"] = tokens / capacity
        if self.languages_active is not None:
            values["languages_active"] = self.languages_active
        self._window, self._seconds = _NOTHING, 0.0
        return values

    def _count_time(self) -> None:
        if not self._is_paused:
            now = self._clock()
            self._seconds, self._counted_until = self._seconds + now - self._counted_until, now

    def state_dict(self) -> dict[str, int]:
        """Return what has to survive a restart: the tokens up to the last `sync`."""
        return {"tokens_seen": self.tokens_seen}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continue from what `state_dict` returned."""
        self.tokens_seen = int(state["tokens_seen"])


# Tokens, capacity, operations, tokens of unknown capacity, tokens of unknown operations.
_NOTHING: tuple[float, ...] = (0, 0, 0.0, 0, 0)


def _plus(one: Sequence[float], other: Sequence[float]) -> tuple[float, ...]:
    return tuple(a + b for a, b in zip(one, other, strict=True))


class ThroughputCallback(TrainerCallback):
    """Adds throughput to the log of the stock Trainer: to its history, and to what later callbacks report.

    Args:
        flops_per_token: Operations of forward and backward for one real token, on average
            (`mmbert_hf.flops.training_flops_per_token`); needed for ``flops_utilization``.
        clock: Seconds that only rise.

    Raises:
        ValueError: When training begins, if transformers does not count tokens without padding.

    Example:
        >>> from transformers import TrainingArguments
        >>> args = TrainingArguments("out", include_num_input_tokens_seen="non_padding", report_to="none")
        >>> callback = ThroughputCallback()  # Trainer(..., args=args, callbacks=[callback])
    """

    def __init__(self, *, flops_per_token: float | None = None, clock: Callable[[], float] = time.perf_counter) -> None:
        self.flops_per_token = flops_per_token
        self.throughput = Throughput(clock=clock)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Continue from the tokens of the checkpoint, if there is one."""
        if args.include_num_input_tokens_seen != "non_padding":
            raise ValueError(
                "ThroughputCallback needs TrainingArguments(include_num_input_tokens_seen='non_padding'), got "
                f"{args.include_num_input_tokens_seen!r}"
            )
        self.throughput.peak_flops = device_peak(args.device, args.world_size)
        dataset = getattr(kwargs.get("train_dataloader"), "dataset", None)
        languages = getattr(dataset, "languages", None)
        self.throughput.languages_active = None if languages is None else len(languages)
        self.throughput.load_state_dict({"tokens_seen": state.num_input_tokens_seen})
        self.throughput.restart()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Count the step; stop the clock if evaluation or saving follows."""
        tokens = state.num_input_tokens_seen - self.throughput.tokens_seen
        flops = None if self.flops_per_token is None else tokens * self.flops_per_token
        self.throughput.add(tokens, flops=flops)
        self.throughput.sync()
        if control.should_evaluate or control.should_save:
            self.throughput.pause()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Add the values to a log of training; logs of evaluation and the last summary are left alone."""
        if logs is None or "loss" not in logs:
            return
        values = self.throughput.read()
        logs.update(values)
        if state.log_history:
            state.log_history[-1].update(values)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Let the clock run on, unless saving follows."""
        if not control.should_save:
            self.throughput.resume()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Let the clock run on."""
        self.throughput.resume()
