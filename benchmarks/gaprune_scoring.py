"""What scoring costs: one exact pass, against the layout of the published code rebuilt from its description.

Design decisions:

- The published layout: three separate runs (general Fisher, domain Fisher, mean gradients of both sets for the
  alignment), micro-batches, every text padded to 512 tokens, in-batch negatives, a backward pass into all weights, and
  after every micro-batch a copy of each gradient to the host, where sums are kept. Its squares are those of micro-batch
  means, so it computes something else (arXiv 2509.10844 defines squares per triplet): this compares cost alone.
- Both see the same triplets of the same embedder, at their own padding. Each runs in a process of its own, with one
  thread; CPU seconds are those of the process from the first batch to the last, memory is the highest resident size
  less that before the first batch. Sums are part of both.
- A second row gives the published layout without its padding, so that it shows what the rest is worth.
"""

import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from gaprune_quality import DOMAIN_OF, NUM_TRIPLETS, make_pruner
from peak_memory import PROC, RESET_PEAK, read_kibibytes
from report import say

NUM_SCORED, MICRO_BATCH, PADDED_LENGTH = 16, 4, 512
LAYOUTS = ("one pass", "published", "published, not padded to 512")
SCALE = 20.0
assert NUM_SCORED <= NUM_TRIPLETS


def published_layout(model: Any, sets: dict[str, Any], layers: list[str], padded_length: int | None) -> None:
    """Score as the published code is said to."""
    general, domain = sets["general"], sets["domain"]
    _fisher_run(model, general, layers, padded_length)
    _fisher_run(model, domain, layers, padded_length)
    for triplets in (general, domain):
        _gradient_run(model, triplets, layers, padded_length)


def _fisher_run(model: Any, triplets: Any, layers: list[str], padded_length: int | None) -> dict[str, torch.Tensor]:
    sums: dict[str, torch.Tensor] = {}
    for gradients in _micro_batches(model, triplets, layers, padded_length):
        for name, gradient in gradients.items():
            squares = gradient.square()
            sums[name] = sums[name] + squares if name in sums else squares
    return sums


def _gradient_run(model: Any, triplets: Any, layers: list[str], padded_length: int | None) -> dict[str, torch.Tensor]:
    sums: dict[str, torch.Tensor] = {}
    for gradients in _micro_batches(model, triplets, layers, padded_length):
        for name, gradient in gradients.items():
            sums[name] = sums[name] + gradient if name in sums else gradient
    return sums


def _micro_batches(model: Any, triplets: Any, layers: list[str], padded_length: int | None) -> Any:
    encoder = model[0].auto_model
    for start in range(0, NUM_SCORED, MICRO_BATCH):
        rows = slice(start, start + MICRO_BATCH)
        anchors, positives, negatives = (
            _embed(model, column[rows], padded_length)
            for column in (triplets.anchors, triplets.positives, triplets.negatives)
        )
        scores = SCALE * anchors @ torch.cat([positives, negatives]).T
        torch.nn.functional.cross_entropy(scores, torch.arange(len(anchors))).backward()
        weights = {name: encoder.get_submodule(name).weight for name in layers}
        yield {name: weight.grad.detach().to("cpu", copy=True) for name, weight in weights.items()}
        model.zero_grad(set_to_none=True)


def _embed(model: Any, texts: list[str], padded_length: int | None) -> torch.Tensor:
    options = {"padding": "max_length", "max_length": padded_length} if padded_length else {"padding": True}
    features = model.tokenizer(texts, truncation=True, return_tensors="pt", **options)
    return torch.nn.functional.normalize(model(dict(features))["sentence_embedding"], dim=1)


def measure_one(layout: str, folder: Path, output: Path) -> dict[str, float]:
    """CPU seconds and peak memory of one layout, in this process."""
    from mmbert_hf.pruning.scoring import collect_statistics
    from mmbert_hf.pruning.triplets import read_triplets

    torch.set_num_threads(1)
    pruner = make_pruner("minilm", 1, folder, output)
    sets = {
        name: read_triplets(
            [
                {"anchor": a, "positive": p, "negative": n}
                for a, p, n in zip(each.anchors, each.positives, each.negatives, strict=True)
            ][:NUM_SCORED],
            name,
        )
        for name, each in pruner.triplets.items()
    }
    layers = [target.name for target in pruner.targets]
    model = pruner.model.eval()
    model.max_seq_length = PADDED_LENGTH
    (PROC / "clear_refs").write_text(RESET_PEAK)
    before, started = read_kibibytes("VmRSS", (PROC / "status").read_text()), time.process_time()
    if layout == "one pass":
        collect_statistics(model, sets, pruner.targets, progress=False)
    else:
        published_layout(model, sets, layers, PADDED_LENGTH if layout == "published" else None)
    seconds = time.process_time() - started
    peak = read_kibibytes("VmHWM", (PROC / "status").read_text()) - before
    return {
        "cpu_seconds": seconds,
        "peak_mib": peak / 1024,
        "maxrss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def measure_all(folder: Path, output: Path, repeats: int = 3) -> dict[str, Any]:
    """Every layout in processes of their own, in turns."""
    runs: dict[str, list[dict[str, float]]] = {layout: [] for layout in LAYOUTS}
    for _ in range(repeats):
        for layout in LAYOUTS:
            command = [sys.executable, __file__, str(folder), str(output), layout]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            runs[layout].append(json.loads(done.stdout.splitlines()[-1]))
            say(f"{layout}: {runs[layout][-1]}")
    return {"embedder": "minilm", "domain": DOMAIN_OF["minilm"], "triplets": NUM_SCORED, "runs": runs}


def table(result: dict[str, Any]) -> str:
    """The rows, with the ratio to the published layout."""
    lines = [
        "| layout | CPU seconds (min - max) | of published | peak memory, MiB | of published |",
        "|---|---|---|---|---|",
    ]
    medians = {
        layout: {name: statistics.median(run[name] for run in runs) for name in ("cpu_seconds", "peak_mib")}
        for layout, runs in result["runs"].items()
    }
    for layout, runs in result["runs"].items():
        seconds = sorted(run["cpu_seconds"] for run in runs)
        mine, theirs = medians[layout], medians["published"]
        lines.append(
            f"| {layout} | {mine['cpu_seconds']:.1f} ({seconds[0]:.1f} - {seconds[-1]:.1f}) | "
            f"{mine['cpu_seconds'] / theirs['cpu_seconds']:.3f} | {mine['peak_mib']:.0f} | "
            f"{mine['peak_mib'] / theirs['peak_mib']:.2f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    say(json.dumps(measure_one(sys.argv[3], Path(sys.argv[1]), Path(sys.argv[2]))))
