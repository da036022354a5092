"""The pass over the triplets: batches by length, layers in blocks that fit into memory, any number of processes.

Design decisions:

- Triplets are sorted by length, so that little of a batch is padding. Sums do not depend on the order.
- Process p of P takes the batches p, p + P, ...; one reduction per block of layers joins the sums at its end. Under
  ``accelerate launch`` or torchrun that is all there is to do.
- With a folder, each process keeps its sums there every minute. Scoring that was interrupted goes on with the next
  batch, from sums with the same bits, and blocks that are finished are not done again.

Shape legend: O outputs, I inputs of a linear layer.
"""

import hashlib
import logging
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open

from mmbert_hf.progress import progress_bar
from mmbert_hf.pruning.gradients import SCALE, LayerSums, add_batch, check_rows
from mmbert_hf.pruning.scores import SETS
from mmbert_hf.pruning.statistics import (
    STATISTICS_FILE,
    Origin,
    Statistics,
    block_tensors,
    check_origin,
    model_fingerprint,
    read_json,
    write_atomically,
    write_block,
    write_json,
    write_manifest,
)
from mmbert_hf.pruning.targets import Target, encoder_of
from mmbert_hf.pruning.texts import row_lengths, to_features
from mmbert_hf.pruning.triplets import Triplets

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = ["blocks_of_layers", "collect_statistics"]

logger = logging.getLogger(__name__)

ORIGIN_FILE = "origin.json"
BYTES_PER_WEIGHT = 8  # two float32 sums
LENGTH_BATCH = 256


@dataclass(frozen=True)
class _Processes:
    rank: int
    count: int

    @classmethod
    def running(cls, model: "SentenceTransformer") -> "_Processes":
        """The processes that a launcher started, joined; the model goes to the device of this one."""
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            from accelerate import PartialState

            model.to(PartialState().device)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return cls(torch.distributed.get_rank(), torch.distributed.get_world_size())
        return cls(0, 1)

    def wait(self) -> None:
        if self.count > 1:
            torch.distributed.barrier()

    def join(self, sums: dict[str, LayerSums]) -> None:
        """Replace the sums of every process by their total."""
        if self.count > 1:
            for layer in sums.values():
                for tensor in (layer.gradient, layer.squares, layer.input_squares):
                    torch.distributed.all_reduce(tensor)

    def agree(self, value: bool) -> bool:
        """What the first process says."""
        if self.count == 1:
            return value
        said = [value]
        torch.distributed.broadcast_object_list(said)
        return bool(said[0])


def blocks_of_layers(
    model: "SentenceTransformer", targets: Sequence[Target], max_memory_gb: float | None
) -> list[list[str]]:
    """Groups of targets, whole transformer blocks each, whose sums fit into the memory given.

    Args:
        model: An embedder.
        targets: From `mmbert_hf.pruning.targets.find_targets`.
        max_memory_gb: For the sums, in GB (1e9 bytes): 8 bytes per weight. None is no limit: one group.

    Raises:
        ValueError: A single transformer block needs more.
    """
    encoder = encoder_of(model)
    by_layer: dict[int, list[str]] = {}
    for target in targets:
        by_layer.setdefault(target.layer, []).append(target.name)
    limit = float("inf") if max_memory_gb is None else max_memory_gb * 1e9
    groups: list[list[str]] = []
    used = 0.0
    for names in by_layer.values():
        size = BYTES_PER_WEIGHT * sum(encoder.get_submodule(name).weight.numel() for name in names)
        if size > limit:
            raise ValueError(
                f"max_memory_gb={max_memory_gb} is too little for one transformer block, whose sums take "
                f"{size / 1e9:.3g} GB; allow that much, or choose fewer targets"
            )
        if not groups or used + size > limit:
            groups.append([])
            used = 0.0
        groups[-1] += names
        used += size
    return groups


def collect_statistics(
    model: "SentenceTransformer",
    triplets: dict[str, Triplets],
    targets: Sequence[Target],
    *,
    folder: str | Path | None = None,
    batch_size: int = 8,
    max_memory_gb: float | None = None,
    scale: float = SCALE,
    progress: bool = True,
    save_seconds: float = 60.0,
) -> Statistics:
    """Score both triplet sets: one pass each, or one per group of layers where memory is limited.

    Args:
        model: An embedder; on its device, in its dtype, in evaluation mode.
        triplets: ``domain`` and ``general``.
        targets: The layers.
        folder: Where statistics are kept, and interrupted scoring goes on; in memory if None.
        batch_size: Triplets that go through the model at once.
        max_memory_gb: See `blocks_of_layers`.
        scale: Of the loss.
        progress: Show a bar.
        save_seconds: How often the sums are kept.

    Returns:
        The statistics; those in the folder if they are there already.

    Raises:
        ValueError: The folder holds statistics of something else, a loss is not finite, a batch size below 1, or
            memory does not suffice.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1; got {batch_size}")
    processes = _Processes.running(model)
    layers = tuple(target.name for target in targets)
    groups = blocks_of_layers(model, targets, max_memory_gb)
    origin = Origin(
        model=model_fingerprint(model),
        domain=triplets["domain"].fingerprint,
        general=triplets["general"].fingerprint,
        num_domain=len(triplets["domain"]),
        num_general=len(triplets["general"]),
        scale=scale,
        layers=layers,
    )
    if folder is not None:
        folder = Path(folder)
        _claim(folder, origin, processes)
        if processes.agree((folder / STATISTICS_FILE).is_file()):
            return Statistics.open(folder, origin)
    if batch_size > 1:
        check_rows(model, layers)
    tensors: dict[str, torch.Tensor] = {}
    files: list[str] = []
    for set_name in SETS:
        batches = _batches(model, triplets[set_name], batch_size)
        for names in groups:
            run = _Pass(model, set_name, triplets[set_name], batches, names, scale, processes, progress, save_seconds)
            if folder is None:
                tensors |= block_tensors(set_name, run.sums_without_folder(), len(triplets[set_name]))
            else:
                file = folder / _file_name(set_name, names)
                run.write(file)
                files.append(file.name)
    if folder is None:
        return Statistics(origin, tensors)
    if processes.rank == 0:
        write_manifest(folder, origin, files)
    processes.wait()
    return Statistics.open(folder, origin)


def _file_name(set_name: str, layers: Sequence[str]) -> str:
    """A name that says which layers are in the file, so that another grouping never takes it for its own."""
    return f"{set_name}-{hashlib.sha256(' '.join(layers).encode()).hexdigest()[:12]}.safetensors"


def _claim(folder: Path, origin: Origin, processes: _Processes) -> None:
    """Say what is being scored here, or refuse a folder in which something else was."""
    path = folder / ORIGIN_FILE
    if path.is_file():
        record = read_json(path)
        check_origin(Origin(**{**record, "layers": tuple(record["layers"])}), origin, folder)
    elif folder.exists() and (
        not folder.is_dir() or {file.name for file in folder.iterdir()} - {f"{ORIGIN_FILE}.partial"}
    ):
        raise ValueError(f"{folder} holds something else than statistics; give another folder")
    processes.wait()
    if processes.rank == 0 and not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        write_json(asdict(origin), path)
    processes.wait()


def _batches(model: "SentenceTransformer", triplets: Triplets, batch_size: int) -> list[list[int]]:
    """Numbers of triplets, batch by batch, the shortest first: sorted by the longest of their documents."""
    longest = torch.zeros(len(triplets), dtype=torch.int64)
    for texts in (triplets.positives, triplets.negatives):
        for start in range(0, len(texts), LENGTH_BATCH):
            lengths = row_lengths(to_features(model, texts[start : start + LENGTH_BATCH], "document"))
            longest[start : start + LENGTH_BATCH] = longest[start : start + LENGTH_BATCH].maximum(lengths)
    order = longest.argsort(stable=True).tolist()
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


@dataclass
class _Pass:
    """One pass over one set, for some layers."""

    model: "SentenceTransformer"
    set_name: str
    triplets: Triplets
    batches: list[list[int]]
    layers: list[str]
    scale: float
    processes: _Processes
    progress: bool
    save_seconds: float

    def sums_without_folder(self) -> dict[str, LayerSums]:
        sums = self._zeros()
        for _ in self._run(sums, 0):
            pass
        self.processes.join(sums)
        return sums

    def write(self, file: Path) -> None:
        """Do the pass unless `file` is there; go on where an interrupted one stopped."""
        if self.processes.agree(file.is_file()):
            return
        partial = file.with_name(f"{file.stem}.rank-{self.processes.rank}-of-{self.processes.count}.safetensors")
        sums, first = self._resume(partial)
        saved = time.monotonic()
        for done in self._run(sums, first):
            if time.monotonic() - saved >= self.save_seconds:
                self._keep(sums, partial, done)
                saved = time.monotonic()
        self.processes.join(sums)
        if self.processes.rank == 0:
            write_block(file, self.set_name, sums, len(self.triplets))
        self.processes.wait()
        partial.unlink(missing_ok=True)

    def _zeros(self) -> dict[str, LayerSums]:
        encoder = encoder_of(self.model)
        return {name: LayerSums.zeros(encoder.get_submodule(name)) for name in self.layers}

    def _run(self, sums: dict[str, LayerSums], first: int) -> Iterator[int]:
        """Add the batches of this process from number `first` of its own; yields how many are done after each."""
        own = self.batches[self.processes.rank :: self.processes.count]
        bar = progress_bar(
            self.progress and self.processes.rank == 0,
            total=sum(map(len, own)),
            initial=sum(map(len, own[:first])),
            desc=f"scoring {self.set_name}, {len(self.layers)} layers",
            unit="triplet",
        )
        with bar:
            for number in range(first, len(own)):
                rows = own[number]
                columns = (self.triplets.anchors, self.triplets.positives, self.triplets.negatives)
                anchors, positives, negatives = ([column[row] for row in rows] for column in columns)
                add_batch(self.model, sums, anchors, positives, negatives, scale=self.scale)
                bar.update(len(rows))
                yield number + 1

    def _keep(self, sums: dict[str, LayerSums], path: Path, done: int) -> None:
        tensors = {
            f"{name}/{field}": getattr(layer, field).cpu()
            for name, layer in sums.items()
            for field in ("gradient", "squares", "input_squares")
        }
        write_atomically(tensors, path, {"done": str(done), "batches": self._division})

    @property
    def _division(self) -> str:
        """How the triplets are divided into batches; how far one division has come says nothing about another."""
        return f"{len(self.triplets)} by {max(map(len, self.batches))}"

    def _resume(self, path: Path) -> tuple[dict[str, LayerSums], int]:
        if not path.is_file():
            return self._zeros(), 0
        try:
            sums, done = self._kept(path)
        except SafetensorError as error:
            logger.warning("%s is damaged (%s); this part is scored from its start", path, error)
            return self._zeros(), 0
        if sums is None:
            logger.warning("%s is of another batch size or memory limit; this part is scored from its start", path)
            return self._zeros(), 0
        logger.info("scoring of the %s set goes on at batch %d", self.set_name, done)
        return sums, done

    def _kept(self, path: Path) -> tuple[dict[str, LayerSums] | None, int]:
        """The sums of an interrupted pass, None if it was another one, and how many batches they are of."""
        fields = ("gradient", "squares", "input_squares")
        with safe_open(path, framework="pt", device=str(self.model.device)) as file:
            record = file.metadata() or {}
            names = {f"{name}/{field}" for name in self.layers for field in fields}
            if record.get("batches") != self._division or set(file.keys()) != names:
                return None, 0
            sums = {name: LayerSums(*(file.get_tensor(f"{name}/{field}") for field in fields)) for name in self.layers}
        return sums, int(record["done"])
