"""What scores are worth: every method at 30 and 50 % of the feed-forward weights, one shot and after 100 steps.

Design decisions:

- A cell is one embedder, domain, seed, method and sparsity. It is a file in the output folder; a run that was stopped
  goes on with the cells that are missing, and each is the same whenever it is made.
- Measured is nDCG@10 of headword -> definition, on the domain and on the general entries of the test split. Values are
  kept per query, so that differences are paired. Whatever was chosen before was chosen on the selection split.
- Retraining is in float32: processors without bfloat16 arithmetic are fifteen times slower with it.
- The control is the dense model with the same 100 steps: same data, seed and optimizer.
- A seed decides the triplets that are scored, the order of the retraining data, and the method ``random``.
- Everything is fixed here, before any run.

Shape legend: Q queries.
"""

import json
import logging
import os
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gaprune_data import Entry, in_split, read_domains, triplets
from gaprune_embedders import load
from report import say

METHODS = ("dai", "dai-normalized", "fisher-domain", "fisher-general", "obd", "magnitude", "wanda", "random")
SPARSITIES = (0.3, 0.5)
SEEDS = (1, 2, 3)
DOMAIN_OF = {"minilm": "computing", "student": "living"}
NUM_TRIPLETS = 1000
RETRAINING = {"steps": 100, "batch_size": 8, "learning_rate": 1e-4, "bf16": False}
QUERIES = {"selection": 200, "test": 400}  # and as many documents
SPLIT_SEED = 0


@dataclass(frozen=True)
class Cell:
    """One row of the table; the control has the method ``dense``."""

    embedder: str
    seed: int
    method: str
    sparsity: float

    @property
    def file(self) -> str:
        """Name of its file."""
        return f"{self.embedder}-{self.seed}-{self.method}-{round(100 * self.sparsity)}.json"


def cells() -> Iterator[Cell]:
    """All of them, the controls first."""
    for embedder in DOMAIN_OF:
        for seed in SEEDS:
            yield Cell(embedder, seed, "dense", 0.0)
            for sparsity in reversed(SPARSITIES):
                for method in METHODS:
                    yield Cell(embedder, seed, method, sparsity)


def retrieval_sets(embedder: str, folder: Path, split: str = "test") -> dict[str, Any]:
    """Queries and documents of a split by ``{split}/{domain or general}``."""
    from mmbert_hf.evaluation import RetrievalSet

    sets, number = {}, QUERIES[split]
    for name, entries in zip(("domain", "general"), read_domains(folder)[DOMAIN_OF[embedder]], strict=True):
        chosen = in_split(entries, split, number, SPLIT_SEED)
        documents = [entry.definition for entry in chosen]
        queries = [entry.headword for entry in chosen]
        sets[f"{split}/{name}"] = RetrievalSet(queries, documents, [{place} for place in range(number)])
    return sets


def measure(model: Any, sets: dict[str, Any]) -> dict[str, list[float]]:
    """nDCG@10 per query, [Q] by set."""
    from mmbert_hf.evaluation import evaluate_retrieval

    return {name: np.round(evaluate_retrieval(model, each), 5).tolist() for name, each in sets.items()}


def training_entries(embedder: str, folder: Path) -> tuple[list[Entry], list[Entry]]:
    """The train split of the domain, and of everything else."""
    domain, general = read_domains(folder)[DOMAIN_OF[embedder]]
    return in_split(domain, "train"), in_split(general, "train", len(in_split(domain, "train")), SPLIT_SEED)


@lru_cache(maxsize=1)
def make_pruner(embedder: str, seed: int, folder: Path, output: Path) -> Any:
    """A pruner on this seed's triplets, scored; it serves every method, and its statistics are kept in the output folder."""
    from datasets import Dataset

    from mmbert_hf.pruning import GAPruneConfig, GAPruner

    domain, general = training_entries(embedder, folder)
    args = GAPruneConfig(
        num_triplets=NUM_TRIPLETS, seed=seed, statistics_dir=str(output / f"statistics-{embedder}-{seed}")
    )
    sets = [Dataset.from_dict(triplets(entries, seed)) for entries in (domain, general)]
    pruner = GAPruner(load(embedder, folder), sets[0], sets[1], args)
    pruner.score(progress=False)
    return pruner


def run(cell: Cell, folder: Path, output: Path) -> dict[str, Any]:
    """Prune, measure, retrain, measure."""
    from datasets import Dataset
    from mmbert_hf.trainers.gaprune import retrain

    from mmbert_hf.pruning import GAPruneConfig

    sets = retrieval_sets(cell.embedder, folder)
    record: dict[str, Any] = {"cell": asdict(cell)}
    mask = None
    if cell.method == "dense":
        model = load(cell.embedder, folder)
    else:
        pruner = make_pruner(cell.embedder, cell.seed, folder, output)
        pruned = pruner.prune(
            GAPruneConfig(method=cell.method, sparsity=cell.sparsity, seed=cell.seed, num_triplets=None), progress=False
        )
        model, mask, report = pruned.model, pruned.mask, pruned.report
        record |= {"term_shares": report.term_shares, "overlap_with_magnitude": report.overlap_with_magnitude}
        record["statistics"] = report.statistics
    record["one_shot"] = measure(model, sets)
    domain, _ = training_entries(cell.embedder, folder)
    pairs = triplets(domain, cell.seed)
    data = Dataset.from_dict({name: pairs[name] for name in ("anchor", "positive")})
    retrain(model, data, mask=mask, seed=cell.seed, progress=False, **RETRAINING)
    if mask is not None:
        mask.check(model)
    record["retrained"] = measure(model, sets)
    return record


def run_missing(
    folder: Path, output: Path, embedders: Collection[str] = tuple(DOMAIN_OF), seeds: Collection[int] = SEEDS
) -> None:
    """Make the cells of some embedders and seeds that are not there yet; processes may share the work by these."""
    torch.set_num_threads(1)
    logging.getLogger("mmbert_hf").setLevel(logging.ERROR)
    folder_of_cells = output / "cells"
    folder_of_cells.mkdir(parents=True, exist_ok=True)
    for cell in cells():
        path = folder_of_cells / cell.file
        if path.is_file() or cell.embedder not in embedders or cell.seed not in seeds:
            continue
        record = run(cell, folder, output)
        temporary = path.with_suffix(".partial")
        temporary.write_text(json.dumps(record), encoding="utf-8")
        os.replace(temporary, path)
        values = [
            f"{stage} {np.mean(record[stage]['test/domain']):.4f}/{np.mean(record[stage]['test/general']):.4f}"
            for stage in ("one_shot", "retrained")
        ]
        say(f"{cell.file}: {', '.join(values)}")
