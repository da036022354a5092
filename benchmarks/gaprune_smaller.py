"""How small and fast a MiniLM gets for a domain, and what that costs: width and vocabulary together, 100 steps.

Design decisions:

- One configuration, fixed here before the final run; it was chosen on the selection split (seed 1).
- Neurons are chosen by ``dai-normalized``, what reads them is fitted again, and tokens that come less than three times in
  the dictionary's entries are gone: the documents in full are known to whoever searches them, the queries are not. Then 100 steps, distilling from the dense model that got the same 100 steps, which is also the control.
- Measured on the test split: nDCG@10 on the domain and on general entries, with paired bootstrap intervals, bytes on
  disk, and latency in turns. What is saved is loaded by plain sentence-transformers in a process that must not import
  this package, and must give the same embeddings.
"""

import json
import logging
import statistics
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from gaprune_data import in_split, read_domains, read_foldoc_texts, triplets
from gaprune_quality import DOMAIN_OF, RETRAINING, SEEDS, make_pruner, retrieval_sets, training_entries
from report import say

CONFIGURATION: dict[str, Any] = {
    "method": "dai-normalized",
    "granularity": "ffn,vocabulary",
    "ffn_width": 576,
    "vocabulary_min_count": 3,
}
TRAINING: dict[str, Any] = {**RETRAINING, "batch_size": 32, "learning_rate": 3e-4, "distillation_weight": 4.0}
NUM_LATENCY_TEXTS = 256

RELOAD = """
import sys
import numpy as np
from sentence_transformers import SentenceTransformer
model = SentenceTransformer(sys.argv[1], device="cpu")
np.save(sys.argv[2], model.encode(open(sys.argv[3]).read().splitlines()))
assert "mmbert_hf" not in sys.modules
"""


def run(seed: int, folder: Path, output: Path, split: str = "test") -> dict[str, Any]:
    """Prune, retrain, measure on a split, save and reload with one seed."""
    from datasets import Dataset

    from mmbert_hf.pruning import GAPruneConfig

    pruner = make_pruner("minilm", seed, folder, output)
    args = GAPruneConfig(seed=seed, num_triplets=None, **CONFIGURATION)
    pruned = pruner.prune(args, vocabulary_texts=read_foldoc_texts(folder), progress=False)
    sets = retrieval_sets("minilm", folder, split)
    texts = [entry.definition for entry in in_split(read_domains(folder)[DOMAIN_OF["minilm"]][0], "test")]
    record: dict[str, Any] = {"seed": seed}
    record["one_shot"] = pruned.measure(sets[f"{split}/domain"], sets[f"{split}/general"], latency_texts=texts[:32])[
        "quality"
    ]
    pairs = triplets(training_entries("minilm", folder)[0], seed)
    data = Dataset.from_dict({name: pairs[name] for name in ("anchor", "positive")})
    pruned.retrain(data, teacher="trained", seed=seed, progress=False, **TRAINING)
    record["retrained"] = pruned.measure(
        sets[f"{split}/domain"], sets[f"{split}/general"], latency_texts=texts[:NUM_LATENCY_TEXTS]
    )
    with TemporaryDirectory() as scratch:
        saved = pruned.save_pretrained(Path(scratch, "model"))
        lines, vectors = Path(scratch, "lines.txt"), Path(scratch, "vectors.npy")
        lines.write_text("\n".join(texts[:NUM_LATENCY_TEXTS]), encoding="utf-8")
        command = [sys.executable, "-c", RELOAD, str(saved), str(vectors), str(lines)]
        subprocess.run(command, check=True, capture_output=True)
        ours = pruned.model.encode(lines.read_text(encoding="utf-8").splitlines())
        record["reload_difference"] = float(np.abs(np.load(vectors) - ours).max())
    return record


def run_all(folder: Path, output: Path) -> dict[str, Any]:
    """All seeds; a seed that is there is not made again."""
    torch.set_num_threads(1)
    logging.getLogger("mmbert_hf").setLevel(logging.ERROR)
    records = []
    for seed in SEEDS:
        path = output / f"smaller-{seed}.json"
        if not path.is_file():
            record = run(seed, folder, output)
            path.write_text(json.dumps(record), encoding="utf-8")
        records.append(json.loads(path.read_text(encoding="utf-8")))
        say(f"seed {seed}: {json.dumps(records[-1]['retrained']['quality'])[:400]}")
    return {"configuration": CONFIGURATION, "training": TRAINING, "runs": records}


def latencies(folder: Path, output: Path) -> dict[str, Any]:
    """Time the pruned shape against the dense one, in turns, for every seed.

    Latency depends on sizes and tokens alone, so nothing is retrained: a few minutes, for when the machine is quiet.
    """
    from dataclasses import asdict

    from mmbert_hf.pruning import GAPruneConfig
    from mmbert_hf.pruning.footprint import measure_latency

    torch.set_num_threads(1)
    logging.getLogger("mmbert_hf").setLevel(logging.ERROR)
    texts = [entry.definition for entry in in_split(read_domains(folder)[DOMAIN_OF["minilm"]][0], "test")]
    found = {}
    for seed in SEEDS:
        pruner = make_pruner("minilm", seed, folder, output)
        args = GAPruneConfig(seed=seed, num_triplets=None, **CONFIGURATION)
        pruned = pruner.prune(args, vocabulary_texts=read_foldoc_texts(folder), progress=False)
        models = {"dense": pruned.dense, "pruned": pruned.model}
        taken = measure_latency(models, texts[:NUM_LATENCY_TEXTS], batch_size=32, repeats=7)
        found[str(seed)] = {name: asdict(each) for name, each in taken.items()}
        say(f"seed {seed}: {taken['pruned'].ratio:.3f} of dense")
    return {"runs": found}


def spread(values: list[float], digits: int = 3) -> str:
    """Mean and standard deviation."""
    return f"{statistics.fmean(values):.{digits}f} +- {statistics.stdev(values):.{digits}f}"


if __name__ == "__main__":
    run_all(Path(sys.argv[1]), Path(sys.argv[2]))
