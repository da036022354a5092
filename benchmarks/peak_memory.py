"""Peak memory of one step.

Design decisions:

- On the CPU each measurement is a fresh child process: what one implementation leaves in the allocator must not count
  for or against another. The child builds the model, runs one step on eight tokens so that code pages and thread pools
  are there, gives free memory back, resets the kernel's peak (writes 5 to /proc/self/clear_refs), notes the resident
  size, runs one step, and reports VmHWM minus that size; the kernel counts both to about 0.1 MB. Weights are not in the
  figure; activations, temporary buffers and, in training, gradients are.
- Where the peak cannot be reset, ru_maxrss is taken instead, with a note: it includes the peak of loading and so is an
  upper bound. Where there is no /proc there is no figure. None is ever made up.
- On CUDA it is ``max_memory_allocated`` minus what was allocated before the step, in the process that times.

Run by encoder.py as ``python peak_memory.py JSON``.
"""

import ctypes
import gc
import json
import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from cases import CASES, Case, Mode, make_batch
from implementations import Settings, build, vocabulary_of
from steps import make_step

__all__ = ["PROC", "cuda_peak", "measure_in_child", "read_kibibytes", "step_peak"]

PROC = Path("/proc/self")
RESET_PEAK = "5"  # see proc_pid_clear_refs(5)


def read_kibibytes(field: str, status: str) -> int:
    """A field of ``/proc/self/status``.

    Args:
        field: Such as ``"VmHWM"``.
        status: The text of the file.

    Returns:
        Its value in KiB.

    Raises:
        ValueError: If there is no such field.

    Example:
        >>> read_kibibytes("VmHWM", "VmPeak:\\t 9 kB\\nVmHWM:\\t   2072 kB\\n")
        2072
    """
    for line in status.splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1])
    raise ValueError(f"/proc/self/status has no field {field}")


def step_peak(step: Callable[[], Any]) -> dict[str, Any]:
    """Memory that one step adds to this process at its peak.

    Args:
        step: What to run.

    Returns:
        ``bytes`` (None where it cannot be known) and ``note`` (None if all is well).

    Example:
        >>> if (PROC / "clear_refs").exists():
        ...     step_peak(lambda: torch.ones(2**24).sum())["bytes"] > 2**26 - 2**20
        ... else:
        ...     True
        True
    """
    gc.collect()
    _give_back()
    if not (PROC / "status").is_file():
        return {"bytes": None, "note": f"no peak memory on {sys.platform}: there is no /proc/self/status"}
    try:
        (PROC / "clear_refs").write_text(RESET_PEAK)
    except OSError as error:
        before = read_kibibytes("VmRSS", (PROC / "status").read_text())
        step()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return {
            "bytes": (peak - before) * 1024,
            "note": f"upper bound from ru_maxrss, loading included: the peak could not be reset ({error})",
        }
    before = read_kibibytes("VmRSS", (PROC / "status").read_text())
    step()
    return {"bytes": (read_kibibytes("VmHWM", (PROC / "status").read_text()) - before) * 1024, "note": None}


def _give_back() -> None:
    """Return freed memory to the system where glibc can; else the step could reuse it unseen."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def cuda_peak(step: Callable[[], Any]) -> dict[str, Any]:
    """Memory that one step allocates on the CUDA device at its peak; as `step_peak`."""
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    torch.cuda.synchronize()
    return {"bytes": torch.cuda.max_memory_allocated() - before, "note": None}


def measure_in_child(name: str, case: Case, mode: Mode, settings: Settings, threads: int) -> dict[str, Any]:
    """Measure one implementation in a fresh process.

    Args:
        name: The implementation.
        case: One of `CASES`.
        mode: Inference or training.
        settings: Of the models; the device must be the CPU.
        threads: Threads of torch.

    Returns:
        As `step_peak`. A child that the system ended, mostly for lack of memory, gives None and a note.

    Raises:
        RuntimeError: If the child failed in any other way; with what it wrote.
    """
    task = {"name": name, "case": case.name, "mode": mode, "threads": threads, "settings": asdict(settings)}
    command = [sys.executable, str(Path(__file__).resolve()), json.dumps(task)]
    child = subprocess.run(command, capture_output=True, text=True, check=False)
    if child.returncode < 0:
        signal = -child.returncode
        return {"bytes": None, "note": f"ended by signal {signal}" + (", mostly out of memory" if signal == 9 else "")}
    if child.returncode:
        raise RuntimeError(f"measuring the memory of {name}, {case.name}, {mode} failed:\n{child.stderr[-4000:]}")
    return json.loads(child.stdout.splitlines()[-1])


def _die_first() -> None:
    """If memory runs out, let the system end this process and not the one that waits for it."""
    if (PROC / "oom_score_adj").exists():
        (PROC / "oom_score_adj").write_text("1000")


def main(task: dict[str, Any]) -> dict[str, Any]:
    """Do what `measure_in_child` asks for, in this process."""
    _die_first()
    torch.set_num_threads(task["threads"])
    settings, case = Settings(**task["settings"]), CASES[task["case"]]
    model = build(task["name"], case.kind, settings)
    vocabulary = vocabulary_of(case.kind, settings)
    warm_up = make_batch(Case("warm-up", (8,), kind=case.kind), vocabulary, settings.seed)
    make_step(model, warm_up, task["mode"])()
    del warm_up
    step = make_step(model, make_batch(case, vocabulary, settings.seed), task["mode"])
    return step_peak(step)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(json.loads(sys.argv[1]))) + "\n")
