"""The demo's second part: prune a real embedder for WordNet's living things, retrain, measure, publish, load it back.

Design decisions:

- Four stages, each with its result in the folder ``prune/``: one-shot pruning, retraining, measuring, publishing.
- Scores, vocabulary and training see the training split alone; what is measured is a sample of the test split. It is
  one task: find a noun's definition among those of other nouns.
- The vocabulary is trimmed to all training triplets, the neurons are scored on a few: a token that is gone is gone.
- Four models are measured, since neither pruning nor training may take credit for the other: dense, dense with the same
  steps (``control``), pruned as it fell (``one-shot``), and pruned and retrained (``pruned``).
"""

import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmbert_hf.data.wordnet import load_wordnet_triplets
from mmbert_hf.demo import reloading_embedder
from mmbert_hf.demo.embedder import MINILM
from mmbert_hf.demo.plots import can_plot
from mmbert_hf.demo.settings import PruneSettings
from mmbert_hf.evaluation.retrieval import RetrievalSet
from mmbert_hf.hub import publish as publish_to_hub
from mmbert_hf.pruning import GAPruneConfig, GAPruner, PrunedEmbedder
from mmbert_hf.pruning.measuring import measure_models
from mmbert_hf.pruning.plots import plot_pruning
from mmbert_hf.pruning.saving import save_embedder

if TYPE_CHECKING:
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer

logger = logging.getLogger(__name__)

REPO_ID = "loopback/minilm-living-things"
SETS = {"domain": "living", "general": "general"}  # in the words of pruning and of WordNet's triplets
COLUMNS = ("anchor", "positive", "negative")
NUM_PROBES = 16


@dataclass
class PruneJob:
    """One run of the second part: its settings, and where it works.

    Attributes:
        settings: Fixed before the run.
        folder: Gets ``one-shot/``, ``control/``, ``retrained/``, ``export/`` and ``statistics/``.
        source: Folder of the dense embedder.
        progress: Show bars.
    """

    settings: PruneSettings
    folder: Path
    source: Path
    progress: bool = True

    @cached_property
    def train(self) -> dict[str, "Dataset"]:
        """The training triplets of both sets, in an order drawn from the seed."""
        return {
            name: _sample(domain, "train", self.settings.num_triplets, self.settings.seed)
            for name, domain in SETS.items()
        }

    @cached_property
    def tests(self) -> dict[str, RetrievalSet]:
        """Nouns of the test split and their definitions."""
        samples = {
            name: _sample(domain, "test", self.settings.num_queries, self.settings.seed)
            for name, domain in SETS.items()
        }
        return {name: RetrievalSet.from_pairs(rows["anchor"], rows["positive"]) for name, rows in samples.items()}

    def load(self, name: str | None = None) -> "SentenceTransformer":
        """The dense embedder, or the model in a folder of the job; on the CPU, so that every machine gives the figures."""
        from sentence_transformers import SentenceTransformer

        return SentenceTransformer(str(self.source if name is None else self.folder / name), device="cpu")

    def load_pruned(self, name: str) -> PrunedEmbedder:
        """A pruned embedder of the job with its report and the dense one."""
        return PrunedEmbedder.from_pretrained(self.folder / name, dense=self.load(), device="cpu")


def _sample(domain: str, split: str, number: int | None, seed: int) -> "Dataset":
    rows = load_wordnet_triplets(domain, split).shuffle(seed=seed)
    return rows if number is None else rows.select(range(min(number, len(rows))))


# The stages


def prune(job: PruneJob) -> dict[str, Any]:
    """Score and prune, and write ``one-shot/``.

    Returns:
        What is known of the embedder and of the pruning, as JSON types.
    """
    settings, dense = job.settings, job.load()
    texts = [text for rows in job.train.values() for column in COLUMNS for text in rows[column]]
    config = GAPruneConfig(
        method=settings.method,
        granularity="ffn,vocabulary",
        ffn_width=settings.ffn_width,
        num_triplets=None,
        seed=settings.seed,
        statistics_dir=str(job.folder / "statistics"),
    )
    scored = {name: rows.select(range(min(settings.num_scored, len(rows)))) for name, rows in job.train.items()}
    pruner = GAPruner(dense, scored["domain"], scored["general"], config)
    pruned = pruner.prune(vocabulary_texts=texts, progress=job.progress)
    report = pruned.report
    if settings.embedder is None:
        report.base_model = MINILM.name
    pruned.save_pretrained(job.folder / "one-shot", overwrite=True, **_card(settings))
    logger.info(
        "pruned for living things: %d -> %d neurons per layer, %d -> %d tokens, %.1f -> %.1f MB",
        *(*(report.width or ()), *(report.vocabulary or ()), *(size / 1e6 for size in report.weight_bytes or ())),
    )
    return {
        "embedder": _describe(settings),
        "train_triplets": {name: len(rows) for name, rows in job.train.items()},
        "scored_triplets": report.num_triplets,
        **{name: getattr(report, name) for name in ("width", "vocabulary", "term_shares", "overlap_with_magnitude")},
    }


def _describe(settings: PruneSettings) -> dict[str, Any]:
    if settings.embedder is not None:
        return {"name": settings.embedder}
    return {
        "name": MINILM.name,
        "license": MINILM.license,
        "package": f"{MINILM.package} {MINILM.version}",
        "sha256": MINILM.sha256,
    }


def _card(settings: PruneSettings) -> dict[str, Any]:
    """What the card says of the parent: known of the packaged embedder, else what its own card says."""
    known = {"base_model": MINILM.name, "license": MINILM.license} if settings.embedder is None else {}
    return {**known, "languages": ["en"]}


def retrain(job: PruneJob) -> dict[str, Any]:
    """Train the dense model for some steps, and the pruned one for as many towards it; write ``control/``, ``retrained/``.

    Returns:
        What was done, as JSON types.
    """
    from datasets import concatenate_datasets

    settings, pruned = job.settings, job.load_pruned("one-shot")
    pairs = concatenate_datasets(list(job.train.values())).select_columns(["anchor", "positive"])
    logger.info("retraining: %d steps of the dense model, then as many of the pruned one", settings.retrain_steps)
    pruned.retrain(
        pairs,
        settings.retrain_steps,
        teacher="trained",
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        seed=settings.seed,
        progress=job.progress,
        use_cpu=True,
    )
    assert pruned.control is not None
    save_embedder(pruned.control, job.folder / "control", overwrite=True)
    pruned.save_pretrained(job.folder / "retrained", overwrite=True, **_card(settings))
    return pruned.report.measured["retraining"][-1]


def measure(job: PruneJob) -> dict[str, Any]:
    """Measure the four models on both sets of test queries.

    Returns:
        What `mmbert_hf.pruning.measuring.measure_models` gives.
    """
    names = {"dense": None, "control": "control", "one-shot": "one-shot", "pruned": "retrained"}
    models = {name: job.load(folder) for name, folder in names.items()}
    texts = job.tests["domain"].documents[: job.settings.num_latency_texts]
    measured = measure_models(models, job.tests["domain"], job.tests["general"], latency_texts=texts)
    for name, quality in measured["quality"].items():
        logger.info(
            "nDCG@10, %s: dense %.3f, pruned %.3f, after retraining %.3f (dense with the same steps: %.3f)",
            name,
            *(quality["ndcg_at_10"][model] for model in ("dense", "one-shot", "pruned", "control")),
        )
    return measured


def publish(job: PruneJob, measured: Mapping[str, Any]) -> dict[str, Any]:
    """Publish the retrained model with its card to a Hub on this machine, and load it back without this package.

    Args:
        job: The run.
        measured: From `measure`, for the card.

    Returns:
        The ``hub`` record: names, commit, files, largest difference of an embedding.

    Raises:
        RuntimeError: The published model could not be loaded, or the process imported this package.
    """
    from mmbert_hf.testing import LoopbackHub

    pruned = job.load_pruned("retrained")
    pruned.report.measured = {**pruned.report.measured, **measured}
    export = pruned.save_pretrained(job.folder / "export", overwrite=True, repo_id=REPO_ID, **_card(job.settings))
    plots = plot_pruning(pruned, job.folder / "plots") if can_plot() else []
    probes = [
        text for test in job.tests.values() for text in (*test.queries[:NUM_PROBES], *test.documents[:NUM_PROBES])
    ]
    expected = pruned.model.encode(probes, batch_size=32, show_progress_bar=False)
    with LoopbackHub(job.folder.parent / "hub") as hub:
        endpoint = hub.endpoint
        published = publish_to_hub(
            export,
            REPO_ID,
            plots=plots,
            endpoint=endpoint,
            token=hub.token,
            commit_message="Publish the demo's pruned embedder",
        )
        logger.info("published %s to the Hub at %s", REPO_ID, endpoint)
        embeddings, loaded = _reload(hub.environment(), probes)
    logger.info("reloaded without package: %s", loaded["model_class"])
    return {
        "repo_id": REPO_ID,
        "endpoint": endpoint,
        "commit": published.commit,
        "files": [{"name": name, "bytes": size} for name, size in published.files.items()],
        "reload_class": loaded["model_class"],
        "reload_modules": loaded["modules"],
        "reload_max_abs_diff": float(np.abs(embeddings - expected).max()),
        "probes": len(probes),
    }


def _reload(environment: Mapping[str, str], texts: Sequence[str]) -> tuple[np.ndarray, dict[str, Any]]:
    """Load the published model in a process of its own and return its embeddings and what it loaded."""
    # -P keeps the script's folder off sys.path; the script is run by its path, so the package is not imported.
    command = [sys.executable, "-P", str(Path(reloading_embedder.__file__))]
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "embeddings.npy"
        request = {"repo_id": REPO_ID, "texts": list(texts), "embeddings_file": str(file)}
        done = subprocess.run(
            command, input=json.dumps(request), capture_output=True, text=True, env={**os.environ, **environment}
        )
        if done.returncode != 0:
            raise RuntimeError(f"loading {REPO_ID} with plain sentence-transformers failed:\n{done.stderr}")
        answer = json.loads(done.stdout.splitlines()[-1])
        if answer["package_imported"]:
            raise RuntimeError(f"loading {REPO_ID} imported mmbert_hf; the published model must not need it")
        return np.load(file), answer
