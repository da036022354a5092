"""One case in one mode: agreement, then times in turns, then ratios.

Design decisions:

- Before timing, every ModernBERT baseline has to agree with ours on the same batch (`steps.agreement`); where it does
  not, the run stops: a speed-up of something else is not worth reporting.
- That check is the first warm-up. Rounds of all implementations follow that are timed and dropped: one on the CPU, and
  three on CUDA, where clocks and algorithm choices settle.
- An implementation that runs out of memory on CUDA is left out of that case with a note; the others go on.
"""

import statistics
from collections.abc import Callable, Mapping
from typing import Any

import torch
from cases import Batch, Case, Kind, Mode, make_batch
from flops import step_flops
from implementations import OURS, XLMR, Settings, build, copy_weights, vocabulary_of
from peak_memory import cuda_peak
from steps import LIMITS, Probe, agreement, make_step, probe
from timing import alternate, compare, pairs_for
from transformers import PreTrainedModel

__all__ = ["DisagreementError", "build_models", "measure_case", "require_agreement"]

WARM_UP_ROUNDS = {"cpu": 1, "cuda": 3}

Models = Mapping[str, PreTrainedModel]


class DisagreementError(RuntimeError):
    """Two implementations with the same weights give different numbers."""


def build_models(names: list[str], kind: Kind, settings: Settings) -> dict[str, PreTrainedModel]:
    """Build the models of a kind; all but XLM-RoBERTa's get our weights.

    Args:
        names: Names from `implementations.names_for`, ours among them.
        kind: Bare encoder or masked language model.
        settings: Size, dtype, device, seed.

    Returns:
        The models by name, ours first.
    """
    models = {OURS: build(OURS, kind, settings)}
    for name in names:
        if name == OURS:
            continue
        models[name] = build(name, kind, settings)
        if name != XLMR:
            copy_weights(models[OURS], models[name])
    return models


def require_agreement(name: str, difference: Mapping[str, float | None], limit: float, where: str) -> None:
    """Raise if a baseline does not agree with ours.

    Args:
        name: The baseline.
        difference: From `steps.agreement`.
        limit: Largest relative difference that is rounding.
        where: Case and mode, for the message.

    Raises:
        DisagreementError: If a difference is above the limit or not a number.

    Example:
        >>> require_agreement("modernbert-sdpa", {"outputs": 2e-3, "loss": None}, 1e-4, "4x512 inference")
        Traceback (most recent call last):
        ...
        comparison.DisagreementError: 4x512 inference: outputs of mmbert and modernbert-sdpa differ by 0.002 (relative), \
and 0.0001 is allowed; one of them is wrong, so nothing is timed. Run the tests of the model
    """
    for what, value in difference.items():
        if value is not None and not value <= limit:
            raise DisagreementError(
                f"{where}: {what} of {OURS} and {name} differ by {value:.3g} (relative), and {limit:g} is allowed; one "
                "of them is wrong, so nothing is timed. Run the tests of the model"
            )


def _first_runs(
    models: Models, batch: Batch, mode: Mode, cannot_run: Mapping[str, str], limit: float, where: str
) -> tuple[dict[str, dict[str, float | None]], dict[str, str]]:
    """One step of each model: how far the baselines are from ours, and why those that cannot run do not."""
    differences: dict[str, dict[str, float | None]] = {}
    failures = dict(cannot_run)
    ours: Probe | None = None
    for name, model in models.items():
        if name in cannot_run:
            continue
        try:
            if name == XLMR:
                make_step(model, batch, mode)()
                continue
            found = probe(model, batch, mode)
        except torch.OutOfMemoryError as error:
            failures[name] = f"out of memory: {str(error).splitlines()[0]}"
            model.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()
            continue
        if name == OURS:
            ours = found
        elif ours is not None:
            difference = agreement(ours, found)
            require_agreement(name, difference, limit, where)
            differences[name] = {**difference, "limit": limit}
    return differences, failures


def _rounds(steps: Mapping[str, Callable[[], None]], pairs: int | None, device: str) -> dict[str, list[float]]:
    """Warm-up rounds, then the rounds that count."""
    for _ in range(WARM_UP_ROUNDS[device]):
        warm_up = alternate(steps, 1, device)
    return alternate(steps, pairs or pairs_for(sum(seconds[0] for seconds in warm_up.values())), device)


def _time_of(seconds: list[float], flops: int, real_tokens: int, peak_rate: float | None) -> dict[str, Any]:
    median = statistics.median(seconds)
    return {
        "median_seconds": median,
        "seconds": seconds,
        "tokens_per_second": real_tokens / median,
        "flops": flops,
        "matrix_rate_share": None if peak_rate is None else flops / median / peak_rate,
    }


def measure_case(
    models: Models,
    case: Case,
    mode: Mode,
    settings: Settings,
    *,
    pairs: int | None = None,
    peak_rate: float | None = None,
    peak_memory: Mapping[str, dict[str, Any]] | None = None,
    cannot_run: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Check and time one case in one mode.

    Args:
        models: From `build_models`, those that this case is measured with.
        case: The case.
        mode: Inference or training.
        settings: Those that the models were built with.
        pairs: Rounds to time; chosen by `timing.pairs_for` if None.
        peak_rate: Of the card, in operations per second; None if it is not known.
        peak_memory: Peak memory by name where it was measured before; on CUDA it is measured here if this is None.
        cannot_run: Implementations that are not to be run, and why.

    Returns:
        One of the ``results`` of the JSON file: the case, ``agreement``, ``implementations`` and ``ratios``.

    Raises:
        DisagreementError: If a baseline with our weights does not give our numbers.
    """
    batch = make_batch(case, vocabulary_of(case.kind, settings), settings.seed, settings.device)
    limit = LIMITS[settings.dtype]
    where = f"{case.name} {mode}"
    agreements, failures = _first_runs(models, batch, mode, cannot_run or {}, limit, where)
    steps = {name: make_step(model, batch, mode) for name, model in models.items() if name not in failures}
    seconds = _rounds(steps, pairs, settings.device) if steps else {}
    if peak_memory is None:
        peak_memory = {name: cuda_peak(step) for name, step in steps.items()} if settings.device == "cuda" else {}
    implementations: dict[str, Any] = {}
    for name, model in models.items():
        flops = step_flops(model.config, case, mode)
        implementations[name] = {
            "attention": model.config._attn_implementation,
            "time": _time_of(seconds[name], flops, case.real_tokens, peak_rate) if name in seconds else None,
            "peak_memory": peak_memory.get(name, {"bytes": None, "note": failures.get(name, "not measured")}),
            "note": failures.get(name),
        }
    return {
        **case.as_json(),
        "mode": mode,
        "pairs": max((len(times) for times in seconds.values()), default=0),
        "agreement": agreements,
        "implementations": implementations,
        "ratios": {
            name: compare(seconds[OURS], times) for name, times in seconds.items() if name != OURS and OURS in seconds
        },
    }
