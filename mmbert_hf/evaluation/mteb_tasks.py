"""Tasks and benchmarks of mteb by their own names, run by mteb itself.

Design decisions:

- mteb does the work: its tasks, its evaluators, its files. Here names are checked, and its results become scores.
- Results of mteb are kept under a name that has a fingerprint of the model's weights in it. So a stopped run goes on where it
  was, and a folder whose model has changed is measured anew.
- The mean over a benchmark is given only if all of it was run: a subset of its languages is not that benchmark.
"""

from __future__ import annotations

import copy
import difflib
import hashlib
import importlib.util
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmbert_hf.evaluation.results import Score
from mmbert_hf.hub.names import public_name

if TYPE_CHECKING:
    from mteb import AbsTask
    from sentence_transformers import SentenceTransformer

__all__ = ["TaskSelection", "check_mteb", "evaluate_mteb", "model_fingerprint", "select_mteb_tasks"]

FEW_LANGUAGES = 3  # that a score names; more are "several"


def check_mteb() -> None:
    """Raise a ValueError that says what to install, unless mteb is there."""
    if importlib.util.find_spec("mteb") is None:
        raise ValueError("tasks of mteb need mteb, which is not installed: pip install 'mmbert-hf[evaluate]'")


@dataclass(frozen=True)
class TaskSelection:
    """Tasks to run, and the benchmarks that they belong to.

    Attributes:
        tasks: Each once.
        benchmarks: Name -> names of its tasks, for benchmarks that are run whole.
        left_out: Tasks of which nothing is in the languages that were asked for.
    """

    tasks: tuple[AbsTask, ...]
    benchmarks: Mapping[str, tuple[str, ...]]
    left_out: tuple[str, ...] = ()


def select_mteb_tasks(
    tasks: Sequence[str | AbsTask] = (), benchmarks: Sequence[str] = (), languages: Sequence[str] | None = None
) -> TaskSelection:
    """Find tasks and benchmarks by the names that mteb has for them; no data are read.

    Args:
        tasks: Names such as "STS17", or tasks themselves.
        benchmarks: Names such as "ChemTEB".
        languages: Only the parts in these, as ISO 639-3 codes ("fao") or with a script ("fao-Latn"); all if None.

    Raises:
        ValueError: mteb is missing, it has no such name (the nearest are named), a language is none, a task is not one
            of texts, or nothing is left.
    """
    check_mteb()
    import mteb
    from mteb.languages import check_language_code

    for code in languages or ():
        try:
            check_language_code(code)
        except ValueError as error:
            raise ValueError(
                f"{code!r} is no language as mteb names them: ISO 639-3, such as fao or fao-Latn"
            ) from error
    chosen: dict[str, AbsTask] = {}
    whole: dict[str, tuple[str, ...]] = {}
    for task in tasks:
        found = _named_task(task) if isinstance(task, str) else task
        chosen[found.metadata.name] = found
    for name in benchmarks:
        known = {each.name: each for each in mteb.get_benchmarks()}
        aliases = {alias: each for each in known.values() for alias in each.aliases or ()}
        benchmark = known.get(name) or aliases.get(name)
        if benchmark is None:
            raise ValueError(f"mteb has no benchmark {name!r}{_nearest(name, [*known, *aliases])}")
        members = {task.metadata.name: task for task in benchmark.tasks}
        chosen |= {key: task for key, task in members.items() if key not in chosen}
        if not languages:
            whole[benchmark.name] = tuple(members)
    left_out = []
    for key, task in list(chosen.items()):
        if "text" not in task.metadata.modalities:
            raise ValueError(f"{key} of mteb is about {', '.join(task.metadata.modalities)}: choose tasks of text")
        if languages:
            try:  # on a copy: filters change a task, and mteb has one benchmark for all callers
                chosen[key] = copy.copy(task).filter_languages(list(languages))
                empty = not chosen[key].hf_subsets
            except ValueError:  # nothing is left
                empty = True
            if empty:
                left_out.append(key)
                del chosen[key]
    if not chosen:
        what = f"in {', '.join(languages or ())}: {', '.join(left_out)} have other languages" if left_out else ""
        raise ValueError(f"there is no task {what}" if what else "name at least one task or benchmark of mteb")
    return TaskSelection(tuple(chosen.values()), whole, tuple(left_out))


def evaluate_mteb(
    model: SentenceTransformer,
    selection: TaskSelection,
    folder: str | Path,
    *,
    name: str = "model",
    batch_size: int = 32,
    progress: bool = False,
) -> list[Score]:
    """Run tasks of mteb and return their scores.

    Args:
        model: An embedder.
        selection: What to run.
        folder: Where mteb writes its own results; what is there for this very model is not run again.
        name: Folder or Hub name of the model.
        batch_size: Texts per forward pass.
        progress: Show progress bars.

    Returns:
        For each task, split and subset the main metric of mteb (shown in tables), the others of its numbers, and for
        each whole benchmark the mean over its tasks.

    Raises:
        ValueError: mteb is missing.
        OSError: Data of a task cannot be had.
    """
    check_mteb()
    import mteb
    from mteb.cache import ResultCache

    wrapped = mteb.SentenceTransformerEncoderWrapper(model)
    known_as = public_name(name) or f"local/{Path(name).name or 'model'}"
    meta = wrapped.mteb_model_meta.model_copy(update={"name": known_as, "revision": model_fingerprint(model)})
    wrapped.mteb_model_meta = meta
    found = mteb.evaluate(
        wrapped,
        list(selection.tasks),
        co2_tracker=False,
        encode_kwargs={"batch_size": batch_size, "show_progress_bar": progress},
        cache=ResultCache(Path(folder)),
        show_progress_bar=progress,
    )
    scores: list[Score] = []
    means: dict[str, float] = {}
    tasks = {task.metadata.name: task for task in selection.tasks}
    for result in found.task_results:
        scores += scores_of_task(result, tasks[result.task_name])
        means[result.task_name] = _rounded(result.get_score())
    for benchmark, members in selection.benchmarks.items():
        if set(members) <= set(means):
            value = sum(means[member] for member in members) / len(members)
            scores.append(Score("benchmark", benchmark, "mean_over_tasks", value, num_examples=len(members)))
    return scores


def scores_of_task(result: Any, task: AbsTask) -> list[Score]:
    """Turn a `TaskResult` of mteb into scores: each number of each split and subset.

    Args:
        result: What mteb found.
        task: What it ran, which says which metric is the main one.
    """
    scores = []
    name, kind, main = task.metadata.name, task.metadata.type, task.metadata.main_score
    for split, subsets in result.scores.items():
        for subset in subsets:
            languages = list(dict.fromkeys(code.replace("-", "_") for code in subset["languages"]))
            common = {
                "language": "+".join(languages) if len(languages) <= FEW_LANGUAGES else "several",
                "config": subset["hf_subset"],
                "split": split,
            }
            scores.append(Score(kind, name, main, _rounded(subset["main_score"]), **common))
            for metric, value in subset.items():
                is_number = isinstance(value, int | float) and not isinstance(value, bool) and value == value
                if is_number and metric not in ("main_score", main):
                    scores.append(Score(kind, name, metric, _rounded(value), **common, is_main=False))
    return scores


def model_fingerprint(model: SentenceTransformer) -> str:
    """Hexadecimal digits that say whether two embedders are the same: weights, prompts, lengths and similarity."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    settings = [model.prompts, model.default_prompt_name, model.max_seq_length, str(model.similarity_fn_name)]
    digest.update(json.dumps(settings, sort_keys=True).encode())
    return digest.hexdigest()[:40]


def _rounded(value: float) -> float:
    """As mteb writes it into its files: what is read back is what was measured."""
    return round(float(value), 6)


def _named_task(name: str) -> AbsTask:
    import mteb
    from mteb import tasks as all_tasks

    try:
        return mteb.get_task(name)
    except KeyError as error:
        classes = [
            each for each in vars(all_tasks).values() if isinstance(each, type) and issubclass(each, mteb.AbsTask)
        ]
        every = {each.metadata.name for each in classes}
        raise ValueError(f"mteb has no task {name!r}{_nearest(name, every)}") from error


def _nearest(name: str, known: Iterable[str]) -> str:
    """The names that are nearest, whatever their case, as the end of a sentence."""
    lower: dict[str, str] = {}
    for each in sorted(known):
        lower.setdefault(each.lower(), each)
    close = difflib.get_close_matches(name.lower(), lower, n=3, cutoff=0.5)
    return f"; near it: {', '.join(lower[each] for each in close)}" if close else ""
