"""Several checkpoints into one: TIES, weighted average, exponentially weighted average.

mmBERT's last step (arXiv 2509.06888): the base model is a TIES merge (arXiv 2306.01708) of its three decay checkpoints
around the last mid-training checkpoint; for the small model an exponentially weighted average is the alternative.

Design decisions:

- Memory does not grow with the model or with the number of checkpoints: tensors are read and merged in pieces of rows
  (`mmbert_hf.weight_files`). Held in memory are one output shard and a few pieces per checkpoint.
- Arithmetic in float32, whatever the checkpoints hold.
- The arithmetic is in `mmbert_hf.merging.task_vectors`; what may be merged at all, in `mmbert_hf.merging.checks`. TIES trims each
  tensor by itself, as `peft` does, not the whole task vector at once.
- Nothing is merged that does not belong together: another network (RoPE bases included), tokenizer, shape or integer
  tensor is an error that names the difference.
- ``merge.json`` in the output says what was merged, how, and what the trim and the election left of each task vector.
"""

import json
import math
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from mmbert_hf.merging.checks import check_belong_together, result_dtypes, tokenizer_source
from mmbert_hf.merging.task_vectors import MagnitudeTrim, MajoritySign, ema_weights, ties
from mmbert_hf.output_folders import TOKENIZER_FILES, checked_destination, output_folder
from mmbert_hf.weight_files import WeightFolder, write_shards

__all__ = ["MERGE_FILE", "MergeMethod", "merge_checkpoints"]

MergeMethod = Literal["ties", "linear", "ema"]
MERGE_FILE = "merge.json"


@dataclass
class Contribution:
    """What one checkpoint brought to a merge, as ``merge.json`` has it.

    Attributes:
        checkpoint: Folder or Hub name, as given.
        weight: Its factor.
        norm: Of its task vector, checkpoint - base; for averages of checkpoint - result.
        kept: Share of the task vector's squared norm that the trim left; None for averages.
        agreed: Share of those non-zero values that have the elected sign; None for averages.
    """

    checkpoint: str
    weight: float
    norm: float
    kept: float | None = None
    agreed: float | None = None


@dataclass
class _Totals:
    squared_norm: float = 0.0
    squared_norm_kept: float = 0.0
    num_kept: int = 0
    num_agreed: int = 0


@dataclass
class _Merge:
    """One merge: checkpoints and options, and sums for the report that grow as tensors are merged."""

    checkpoints: list[WeightFolder]
    base: WeightFolder | None
    weights: list[float]
    density: float
    majority_sign: MajoritySign
    dtypes: dict[str, torch.dtype | None]

    def __post_init__(self) -> None:
        self.totals = [_Totals() for _ in self.checkpoints]

    def planned(self) -> dict[str, torch.Tensor]:
        """Name -> a tensor of the shape and type to come, without memory."""
        shapes = self.checkpoints[0].tensors
        return {
            name: self.checkpoints[0].read(name, slice(None)).to("meta")
            if dtype is None
            else torch.empty(shapes[name].shape, dtype=dtype, device="meta")
            for name, dtype in self.dtypes.items()
        }

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Name and value of every merged tensor."""
        for name in self.checkpoints[0].tensors:
            yield name, self._merged(name)

    def _merged(self, name: str) -> torch.Tensor:
        shape, dtype = self.checkpoints[0].tensors[name], self.dtypes[name]
        if dtype is None:  # integers, found equal everywhere
            return self.checkpoints[0].read(name, slice(None)).clone()
        merged = torch.empty(shape.shape, dtype=dtype)
        trims = [] if self.base is None else [self._trim(folder, name) for folder in self.checkpoints]
        for rows in shape.pieces():
            at = rows if shape.shape else ...
            merged[at] = self._average(name, rows) if self.base is None else self._around_base(name, rows, trims)
            if not _is_finite(merged[at]):
                raise ValueError(f"the merged {name} does not fit into {dtype}; pass dtype='bfloat16' or 'float32'")
        return merged

    def _trim(self, folder: WeightFolder, name: str) -> MagnitudeTrim:
        return MagnitudeTrim(
            lambda: (self._task_vector(folder, name, rows) for rows in folder.tensors[name].pieces()), self.density
        )

    def _task_vector(self, folder: WeightFolder, name: str, rows: slice) -> torch.Tensor:
        assert self.base is not None
        return _read_float(folder, name, rows) - _read_float(self.base, name, rows)

    def _around_base(self, name: str, rows: slice, trims: list[MagnitudeTrim]) -> torch.Tensor:
        assert self.base is not None
        vectors = [self._task_vector(folder, name, rows) for folder in self.checkpoints]
        trimmed = torch.stack([trim(vector) for trim, vector in zip(trims, vectors, strict=True)])
        merged, agreed = ties(trimmed, self.weights, self.majority_sign)
        for totals, vector, kept, agreeing in zip(self.totals, vectors, trimmed, agreed, strict=True):
            totals.squared_norm += _squared_norm(vector)
            totals.squared_norm_kept += _squared_norm(kept)
            totals.num_kept += int(kept.count_nonzero())
            totals.num_agreed += int(agreeing.count_nonzero())
        return _read_float(self.base, name, rows) + merged

    def _average(self, name: str, rows: slice) -> torch.Tensor:
        values = [_read_float(folder, name, rows) for folder in self.checkpoints]
        merged = torch.zeros_like(values[0])
        for weight, value in zip(self.weights, values, strict=True):
            merged.add_(value, alpha=weight)
        for totals, value in zip(self.totals, values, strict=True):
            totals.squared_norm += _squared_norm(value - merged)
        return merged

    def contributions(self) -> list[Contribution]:
        """The report, once every tensor is merged."""
        found = []
        for folder, weight, totals in zip(self.checkpoints, self.weights, self.totals, strict=True):
            contribution = Contribution(folder.name, weight, math.sqrt(totals.squared_norm))
            if self.base is not None:  # a checkpoint that is the base has nothing to keep: 0
                contribution.kept = totals.squared_norm_kept / (totals.squared_norm or 1.0)
                contribution.agreed = totals.num_agreed / (totals.num_kept or 1)
            found.append(contribution)
        return found


def _read_float(folder: WeightFolder, name: str, rows: slice) -> torch.Tensor:
    piece = folder.read(name, rows).float()
    if not _is_finite(piece):
        raise ValueError(f"{folder.name}: {name} holds NaN or infinity; merge an earlier checkpoint of that run")
    return piece


def _is_finite(piece: torch.Tensor) -> bool:
    return bool(piece.sum(dtype=torch.float64).isfinite())  # cannot overflow, and NaN and infinity stay


def _squared_norm(piece: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(piece, dtype=torch.float64) ** 2)


def merge_checkpoints(
    checkpoints: Sequence[str | Path],
    output_dir: str | Path,
    *,
    method: MergeMethod = "ties",
    base: str | Path | None = None,
    weights: Sequence[float] | None = None,
    density: float | None = None,
    majority_sign: MajoritySign = "total",
    ema_decay: float | None = None,
    dtype: torch.dtype | str | None = None,
    max_shard_size: str = "5GB",
    overwrite: bool = False,
    dry_run: bool = False,
) -> Path:
    """Merge checkpoints of one network into a new folder.

    Args:
        checkpoints: Folders or Hub names (``name@revision`` for a branch), of ``model_type`` mmbert or modernbert, in
            safetensors. For ``"ema"`` the oldest first.
        output_dir: Where to write weights, configuration, tokenizer files (those of the base or else of the first
            folder that has them) and ``merge.json``. It loads with ``AutoModelForMaskedLM``.
        method: ``"ties"``: base + disjoint mean of the trimmed task vectors checkpoint - base. ``"linear"``: weighted
            average. ``"ema"``: weighted average with `ema_weights`.
        base: What the task vectors start from, for ``"ties"`` alone: in mmBERT the last mid-training checkpoint.
        weights: One number per checkpoint, 1 each if None. An average divides them by their sum; in TIES they
            multiply the trimmed task vectors.
        density: Share of each tensor's task vector that TIES keeps, in (0, 1]. mmBERT's is not published; TIES' own
            default is 0.2. Must be given.
        majority_sign: How TIES elects a sign; see `ties`.
        ema_decay: See `ema_weights`. Must be given for ``"ema"``; mmBERT's is not published.
        dtype: Type of the result, such as ``"bfloat16"``; that of the checkpoints if None.
        max_shard_size: Largest file.
        overwrite: Replace the model in a folder that is not empty.
        dry_run: Check everything, and write nothing.

    Returns:
        The path of the folder.

    Raises:
        ValueError: If options and method, or the folders, do not fit together; the message says where they differ.
        OSError: If a folder cannot be found, read or written. `output_dir` is as it was then.

    Example:
        >>> import tempfile
        >>> from mmbert_hf import MMBertConfig, MMBertForMaskedLM
        >>> sizes = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 48}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("mid", "eng", "all"):
        ...         MMBertForMaskedLM(MMBertConfig(**sizes, vocab_size=100)).save_pretrained(f"{folder}/{name}")
        ...     decays = [f"{folder}/eng", f"{folder}/all"]
        ...     merged = merge_checkpoints(decays, f"{folder}/merged", base=f"{folder}/mid", density=0.5)
        ...     type(MMBertForMaskedLM.from_pretrained(merged)).__name__
        'MMBertForMaskedLM'
    """
    factors = _checked_factors(len(checkpoints), method, base, weights, density, majority_sign, ema_decay)
    inputs = [*checkpoints] if base is None else [base, *checkpoints]
    if Path(output_dir).resolve() in {Path(name).resolve() for name in inputs}:
        raise ValueError(f"{output_dir} is one of the checkpoints to merge; write to another folder")
    checked_destination(output_dir, overwrite)  # before anything is downloaded
    with ExitStack() as stack:
        folders = [stack.enter_context(WeightFolder.open(name)) for name in inputs]
        check_belong_together(folders)
        sources = folders if base is None else folders[1:]
        with_tokenizer = tokenizer_source(folders)
        dtypes = result_dtypes(sources, dtype)
        merge = _Merge(sources, None if base is None else folders[0], factors, density or 1.0, majority_sign, dtypes)
        if dry_run:
            return Path(output_dir)
        replaces_tokenizer = with_tokenizer is not None
        with output_folder(output_dir, overwrite=overwrite, replaces_tokenizer=replaces_tokenizer) as destination:
            _write_config(folders[0], merge, destination)
            if with_tokenizer is not None:
                for path in (path for pattern in TOKENIZER_FILES for path in with_tokenizer.glob(pattern)):
                    if path.is_file():
                        shutil.copyfile(path, destination / path.name)
            write_shards(destination, merge.planned(), merge.tensors(), max_shard_size)
            _write_report(merge, destination, method, density, majority_sign, ema_decay)
    return Path(output_dir)


def _checked_factors(
    num_checkpoints: int,
    method: str,
    base: str | Path | None,
    weights: Sequence[float] | None,
    density: float | None,
    majority_sign: str,
    ema_decay: float | None,
) -> list[float]:
    """The factor of every checkpoint; raises if an option is missing, wrong, or of another method."""
    if method not in get_args(MergeMethod):
        raise ValueError(f"method is {method!r}; it must be one of {', '.join(map(repr, get_args(MergeMethod)))}")
    if majority_sign not in get_args(MajoritySign):
        raise ValueError(f"majority_sign is {majority_sign!r}; it must be 'total' or 'frequency'")
    if num_checkpoints < 1:
        raise ValueError("got no checkpoints; name at least one")
    given = {"base": base, "weights": weights, "density": density, "ema_decay": ema_decay}
    needed = {"ties": ["base", "density"], "linear": [], "ema": ["ema_decay"]}[method]
    allowed = needed if method == "ema" else [*needed, "weights"]
    for name, value in given.items():
        if value is None and name in needed:
            option = f"--{name.replace('_', '-')}"
            raise ValueError(f"method {method!r} needs {name} ({option}); see merge_checkpoints or mmbert merge --help")
        if value is not None and name not in allowed:
            raise ValueError(f"method {method!r} takes no {name}, got {value!r}; leave it out")
    if density is not None and not 0.0 < density <= 1.0:
        raise ValueError(f"density must be in (0, 1], got {density}; it is the share of each task vector that stays")
    if ema_decay is not None:
        return ema_weights(num_checkpoints, ema_decay)
    factors = [1.0] * num_checkpoints if weights is None else [float(weight) for weight in weights]
    if len(factors) != num_checkpoints or not all(map(math.isfinite, factors)):
        raise ValueError(f"{num_checkpoints} checkpoints need as many finite weights, got {factors}")
    if method == "ties":
        return factors
    if min(factors) < 0.0 or sum(factors) == 0.0:
        raise ValueError(f"the weights of an average must not be negative, and not all 0; got {factors}")
    return [factor / math.fsum(factors) for factor in factors]


def _write_config(source: WeightFolder, merge: _Merge, folder: Path) -> None:
    values = json.loads((source.folder / "config.json").read_text(encoding="utf-8"))
    floats = {name: dtype for name, dtype in merge.dtypes.items() if dtype is not None}
    largest = max(floats, key=lambda name: math.prod(merge.checkpoints[0].tensors[name].shape))
    values.pop("torch_dtype", None)  # as transformers 4 spells it
    values["dtype"] = str(floats[largest]).removeprefix("torch.")
    (folder / "config.json").write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_report(
    merge: _Merge,
    folder: Path,
    method: str,
    density: float | None,
    majority_sign: str,
    ema_decay: float | None,
) -> None:
    report: dict[str, Any] = {"method": method}
    if merge.base is not None:
        report |= {"base": merge.base.name, "density": density, "majority_sign": majority_sign}
    if ema_decay is not None:
        report["ema_decay"] = ema_decay
    report["num_parameters"] = sum(math.prod(shape.shape) for shape in merge.checkpoints[0].tensors.values())
    report["checkpoints"] = [
        {name: value for name, value in asdict(contribution).items() if value is not None}
        for contribution in merge.contributions()
    ]
    (folder / MERGE_FILE).write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
