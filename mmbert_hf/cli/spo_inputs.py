"""What ``mmbert spo`` trains on: prompts from files and the Hub, and the functions that reward and help.

Design decisions:

- A function is named by its place: ``rewards.py:correct`` is in a file, ``package.rewards.correct`` is imported, from the
  current folder too, and a few have short names.
- Paths are relative to the current folder, as all paths of a command line are.
- Functions are tried without a model, on the first prompts with an empty response: a response may be empty, so a function
  that cannot take one will fail hours later.
"""

import asyncio
import difflib
import functools
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trl import DatasetMixtureConfig

    from mmbert_hf.cli.spo_settings import Settings

__all__ = ["load_data", "load_reward", "load_tool", "try_reward"]

TRL_REWARDS = ("accuracy_reward", "reasoning_accuracy_reward", "think_format_reward", "get_soft_overlong_punishment")
OVERLONG = {"max_completion_len": 1280, "soft_punish_cache": 256}  # of get_soft_overlong_punishment in TRL's own script
PYTHON = "python"
NUM_TRIED = 2


def load_reward(name: str) -> Callable[..., Any]:
    """Find a reward function by its place, or by its short name in TRL.

    Args:
        name: ``file.py:function``, ``package.module.function``, or one of `TRL_REWARDS`.

    Returns:
        The function.

    Raises:
        ValueError: There is none.

    Example:
        >>> load_reward("think_format_reward").__name__
        'think_format_reward'
    """
    if name not in TRL_REWARDS:
        return _load_function(name, "reward function", TRL_REWARDS)
    from trl import rewards

    found = getattr(rewards, name)
    return found(**OVERLONG) if name == "get_soft_overlong_punishment" else found


def load_tool(name: str) -> Callable[..., Any]:
    """Find a tool by its place; ``python`` is `PythonTool` with its default limits.

    Raises:
        ValueError: There is no such function, or no sandbox for ``python``.
    """
    if name != PYTHON:
        return _load_function(name, "tool", (PYTHON,))
    from mmbert_hf.trainers.spo.python_tool import PythonTool

    try:
        return PythonTool().run_python
    except RuntimeError as error:
        raise ValueError(f"tool {name!r}: {error}") from error


def _load_function(name: str, what: str, short: Sequence[str]) -> Callable[..., Any]:
    place, _, attribute = name.rpartition(":") if ":" in name else name.rpartition(".")
    if not place or not attribute:
        raise ValueError(
            f"{what} {name!r}: expected file.py:function, package.module.function, or one of {', '.join(short)}"
        )
    try:
        module = _load_file(Path(place).resolve()) if place.endswith(".py") else _import(place)
    except FileNotFoundError as error:
        raise ValueError(f"{what} {name!r}: there is no file {place!r} in {Path.cwd()}") from error
    except Exception as error:
        raise ValueError(f"{what} {name!r}: {place} cannot be imported: {type(error).__name__}: {error}") from error
    found = getattr(module, attribute, None)
    if found is None:
        close = difflib.get_close_matches(attribute, dir(module), n=1)
        raise ValueError(
            f"{what} {name!r}: {place} has no {attribute!r}" + (f"; did you mean {close[0]!r}?" if close else "")
        )
    if not callable(found) or inspect.isclass(found):
        raise ValueError(
            f"{what} {name!r} must be a function, got {'a class' if callable(found) else type(found).__name__}"
        )
    return found


def _import(name: str) -> ModuleType:
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    return importlib.import_module(name)


@functools.cache
def _load_file(path: Path) -> ModuleType:
    """Run a file as a module, once."""
    spec = importlib.util.spec_from_file_location(f"mmbert_local_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses and pickle look for it
    spec.loader.exec_module(module)
    return module


def try_reward(function: Callable[..., Any], name: str, examples: Sequence[dict[str, Any]]) -> list[float | None]:
    """Call a reward function as the trainer does, with empty responses.

    Args:
        function: Sync or async.
        name: As it is called in messages.
        examples: Rows of the data set, all with the same columns.

    Returns:
        What it gave.

    Raises:
        ValueError: It failed, or what it gave are no rewards.

    Example:
        >>> try_reward(lambda completions, answer, **_: [float(c == a) for c, a in zip(completions, answer)], "equal",
        ...     [{"prompt": "1+1=", "answer": "2"}])
        [0.0]
    """
    from transformers import TrainerState

    from mmbert_hf.trainers.spo.rewards import checked

    empty = [[{"role": "assistant", "content": ""}] if isinstance(row["prompt"], list) else "" for row in examples]
    columns = {key: [row[key] for row in examples] for key in examples[0] if key not in ("prompt", "completion")}
    arguments = {
        **columns,
        "prompts": [row["prompt"] for row in examples],
        "completions": empty,
        "completion_ids": [[] for _ in examples],
        "trainer_state": TrainerState(),
        "log_extra": lambda *_: None,
        "log_metric": lambda *_: None,
    }
    try:
        given = checked(function, name)(**arguments)
        return asyncio.run(given) if inspect.iscoroutine(given) else given
    except Exception as error:
        if isinstance(error, ValueError) and str(error).startswith("reward function"):
            raise
        raise ValueError(
            f"reward function {name} fails on an empty response: {type(error).__name__}: {error}"
        ) from error


def load_data(settings: "Settings") -> tuple[Any, Any]:
    """Load the prompts to train on, and those to evaluate on if there is an evaluation.

    Args:
        settings: ``dataset_name`` or ``datasets``, and the splits.

    Returns:
        Two `datasets.Dataset` or `IterableDataset`; the second may be None.

    Raises:
        FileNotFoundError: A name is no file, no folder, and cannot be a name on the Hub.
        ValueError: A file cannot be read, a split is not there, or there is nothing to evaluate on.
    """
    script, wants_evaluation = settings.script, settings.config.eval_strategy != "no"
    evaluation = None
    if wants_evaluation and script.eval_dataset_name:
        split = "train" if Path(script.eval_dataset_name).is_file() else script.dataset_test_split
        evaluation = _load(script.eval_dataset_name, split=split)
    if script.dataset_name is None:
        parts = _load_mixture(settings.mixture)
        if wants_evaluation and evaluation is None and "test" not in parts:
            raise ValueError(
                "there is nothing to evaluate on: set test_split_size, eval_dataset_name, or eval_strategy 'no'"
            )
        train = parts["train"]
        if wants_evaluation and evaluation is None:
            evaluation = parts["test"]
    else:
        options = {"name": script.dataset_config, "streaming": script.dataset_streaming}
        train = _load(script.dataset_name, split=script.dataset_train_split, **options)
        if wants_evaluation and evaluation is None:
            if Path(script.dataset_name).is_file():
                raise ValueError("a file has one split: name another to evaluate on (eval_dataset_name)")
            evaluation = _load(script.dataset_name, split=script.dataset_test_split, **options)
    if evaluation is not None and evaluation.column_names and "prompt" not in evaluation.column_names:
        raise ValueError(f"the evaluation set needs a column 'prompt', it has {', '.join(evaluation.column_names)}")
    return train, evaluation


def _load_mixture(mixture: "DatasetMixtureConfig") -> Any:
    from trl import get_dataset

    for entry in mixture.datasets:
        entry.path, files = _place(entry.path)
        entry.data_files = files or entry.data_files
    return _reading("datasets", get_dataset, mixture)


def _load(source: str, **options: Any) -> Any:
    from datasets import load_dataset

    path, files = _place(source)
    return _reading(source, load_dataset, path, **options, **({"data_files": files} if files else {}))


def _place(source: str) -> tuple[str, str | None]:
    """Path and files for `load_dataset`: the builder and the file, a folder, or the name on the Hub."""
    from mmbert_hf.data.rows import FORMATS
    from mmbert_hf.data.sources import looks_like_hub

    path = Path(source)
    builder = next((kind for suffix, (kind, _) in FORMATS.items() if path.name.lower().endswith(suffix)), None)
    if path.is_file():
        if builder is None or path.stat().st_size == 0:
            raise ValueError(
                f"{source!r} is no file of prompts: it is empty, or its name ends in none of {', '.join(FORMATS)}"
            )
        return builder, str(path)
    if not path.is_dir() and (builder is not None or not looks_like_hub(source)):
        raise FileNotFoundError(f"there is no file or folder {source!r}, and a name on the Hub is owner/name")
    return source, None


def _reading(source: str, call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Call what loads a data set; what is wrong with it is said in one sentence."""
    from datasets.exceptions import DatasetGenerationError

    try:
        return call(*arguments, **options)
    except (DatasetGenerationError, ValueError) as error:
        raise ValueError(f"{source} cannot be loaded: {error.__cause__ or error}") from error
