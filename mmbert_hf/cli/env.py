"""``mmbert env``: what a report of a bug needs."""

import argparse
import os
import platform
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from mmbert_hf.cli.grammar import add_common_options, tell

PACKAGES = ("mmbert-hf", "torch", "transformers", "tokenizers", "accelerate", "peft", "datasets", "huggingface-hub",
            "sentence-transformers", "trl", "safetensors", "numpy", "flash-attn", "vllm", "deepspeed", "math-verify",
            "onnxruntime", "matplotlib")  # fmt: skip
SETTINGS = (
    "HF_ENDPOINT",
    "HF_HOME",
    "HF_HUB_OFFLINE",
    "TRANSFORMERS_OFFLINE",
    "CUDA_VISIBLE_DEVICES",
    "OMP_NUM_THREADS",
)


def add_parser(verbs: Any) -> None:
    """Add the verb to ``mmbert``."""
    parser = verbs.add_parser(
        "env",
        help="print what a report of a bug needs",
        description="Print versions, processors and settings, for a report of a bug. Tokens and file names are not printed.",
    )
    add_common_options(parser, dry_run=None)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the facts of this environment."""
    facts = environment()
    width = max(map(len, facts))
    tell(
        args,
        facts,
        (f"{name:<{width}}  {'not installed' if value is None else value}" for name, value in facts.items()),
    )
    return 0


def environment() -> dict[str, Any]:
    """Versions (None: not installed), processors and settings, by name.

    Example:
        >>> facts = environment()
        >>> facts["mmbert-hf"] is not None, facts["torch threads"] >= 1
        (True, True)
    """
    import torch

    from mmbert_hf.onednn import takes_bfloat16

    facts: dict[str, Any] = {"Python": platform.python_version(), "system": platform.platform()}
    for package in PACKAGES:
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            facts[package] = None
    facts["torch threads"] = torch.get_num_threads()
    facts["CPU instructions"] = torch.backends.cpu.get_cpu_capability()
    facts["bfloat16 on this CPU"] = "yes" if takes_bfloat16() else "no"
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    facts["GPUs"] = ", ".join(gpus) or "none"
    facts["bubblewrap"] = "found" if shutil.which("bwrap") else "not found"
    facts["virtual environment"] = "yes" if sys.prefix != sys.base_prefix else "no"
    # Folders may hold names of people: only whether these are set is said.
    facts["set"] = ", ".join(name for name in SETTINGS if os.environ.get(name)) or "nothing"
    return facts
