"""On what was measured: machine, card, versions, commit. What cannot be found out is None."""

import os
import platform
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import torch
import transformers

import mmbert_hf
from mmbert_hf.flops import bf16_peak

__all__ = ["available_memory", "bf16_peak", "busy_warning", "describe", "git_commit", "load_average"]

# CPU features that matrix products use.
FLAGS = ("avx2", "fma", "avx512f", "avx512_bf16", "avx512_fp16", "avx512_vnni", "amx_tile", "amx_bf16", "asimd", "bf16")
BUSY_LOAD_PER_CPU = 0.25


def load_average() -> list[float] | None:
    """Load of the last 1, 5 and 15 minutes, or None where the system does not say."""
    return list(os.getloadavg()) if hasattr(os, "getloadavg") else None


def busy_warning(load: list[float] | None, cpus: int) -> str | None:
    """A line to warn with if other work runs on the machine.

    Args:
        load: From `load_average`.
        cpus: Number of CPUs.

    Returns:
        The line, or None.

    Example:
        >>> busy_warning([0.1, 0.0, 0.0], cpus=2) is None
        True
        >>> busy_warning([1.5, 0.9, 0.4], cpus=2)
        'the machine is busy: load 1.50 on 2 CPUs; times will be too long and ratios noisy'
    """
    if load is None or load[0] <= BUSY_LOAD_PER_CPU * cpus:
        return None
    return f"the machine is busy: load {load[0]:.2f} on {cpus} CPUs; times will be too long and ratios noisy"


def _output_of(*command: str, folder: Path | None = None) -> str | None:
    if shutil.which(command[0]) is None:
        return None
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    return result.stdout.strip() if result.returncode == 0 else None


def git_commit(root: Path) -> dict[str, Any] | None:
    """The commit that is checked out in a folder.

    Args:
        root: Root of the working tree.

    Returns:
        ``commit`` and ``changed``, whether files in its folders mmbert_hf or benchmarks differ from it; None if `root`
        is not the root of a repository.
    """
    if not (root / ".git").exists():
        return None
    # Without the optional locks, looking cannot disturb a git command that somebody runs at the same time.
    commit = _output_of("git", "--no-optional-locks", "rev-parse", "HEAD", folder=root)
    if not commit:
        return None
    measured = ("mmbert_hf", "benchmarks")
    changes = _output_of("git", "--no-optional-locks", "status", "--porcelain", "--", *measured, folder=root)
    return {"commit": commit, "changed": None if changes is None else bool(changes)}


def _first_match(pattern: str, path: str) -> str | None:
    file = Path(path)
    found = re.search(pattern, file.read_text(), re.MULTILINE) if file.is_file() else None
    return found.group(1).strip() if found else None


def available_memory() -> int | None:
    """Bytes that new work can take, or None where the system does not say."""
    available = _first_match(r"^MemAvailable:\s*(\d+) kB$", "/proc/meminfo")
    return None if available is None else int(available) * 1024


def _processor() -> dict[str, Any]:
    flags = (_first_match(r"^(?:flags|Features)\s*:(.*)$", "/proc/cpuinfo") or "").split()
    memory = _first_match(r"^MemTotal:\s*(\d+) kB$", "/proc/meminfo")
    model = _first_match(r"^model name\s*:(.*)$", "/proc/cpuinfo") or platform.processor() or None
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpu": model,
        "cpus": os.cpu_count(),
        "usable_cpus": usable,
        "flags": [flag for flag in FLAGS if flag in flags] if flags else None,
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "memory_bytes": None if memory is None else int(memory) * 1024,
        "system": f"{platform.system()} {platform.machine()}",
        "threads": torch.get_num_threads(),
    }


def _card() -> dict[str, Any]:
    card = torch.cuda.get_device_properties(0)
    driver = _output_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0")
    return {
        "name": card.name,
        "memory_bytes": card.total_memory,
        "driver": driver,
        "cuda": torch.version.cuda,
        "bf16_peak_flops": bf16_peak(card.name),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
    }


def describe(device: str) -> dict[str, Any]:
    """Machine, card and versions in plain values.

    Args:
        device: With ``"cuda"`` the card is described too.

    Returns:
        ``processor``, ``card`` (None on the CPU), ``versions`` and ``repository``.

    Example:
        >>> describe("cpu")["versions"]["torch"] == torch.__version__
        True
    """
    return {
        "processor": _processor(),
        "card": _card() if device == "cuda" else None,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "mmbert_hf": mmbert_hf.__version__,
        },
        # Of the package that is imported: an installed copy has none.
        "repository": git_commit(Path(mmbert_hf.__file__).resolve().parent.parent),
    }
