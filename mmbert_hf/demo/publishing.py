"""The demo's last stage: publish to a Hub on this machine and load back in fresh processes.

The model goes up as the ModernBERT export, so whoever downloads it needs nothing of this package. Two processes of
their own then load it: one with this package, where `AutoModel` is asked to give MMBERT classes, and one that must not
import it. Both return their logits for the same held-out paragraphs.
"""

import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmbert_hf.conversion import export_modernbert
from mmbert_hf.data.udhr import HELD_OUT_ARTICLES, Declaration
from mmbert_hf.demo import reloading
from mmbert_hf.hub import publish as publish_to_hub
from mmbert_hf.languages import hub_code
from mmbert_hf.model_cards import encoder_card
from mmbert_hf.testing import LoopbackHub

logger = logging.getLogger(__name__)

REPO_ID = "loopback/mmbert-udhr-demo"
NUM_PROBES = 8


def publish_and_reload(
    folder: Path,
    model: Any,
    tokenizer: Any,
    corpus: Mapping[str, Declaration],
    languages: Sequence[str],
    facts: Mapping[str, Any],
    plots: Sequence[Path] = (),
) -> dict[str, Any]:
    """Export, publish and reload the trained model.

    Args:
        folder: Of the demo; gets ``export/`` (the published files) and ``hub/`` (the Hub's repositories).
        model: The trained masked language model.
        tokenizer: Of the model.
        corpus: The declarations, for texts to compare logits on.
        languages: From the best to the least resourced.
        facts: What was measured, for the card.
        plots: Pictures for the card.

    Returns:
        The ``hub`` record of metrics.json.

    Raises:
        RuntimeError: A process could not load the published model; the message holds its output.
    """
    export = export_modernbert(model, folder / "export", tokenizer=tokenizer, overwrite=True)
    encoder_card(REPO_ID, facts, languages=sorted({hub_code(code) for code in languages})).save(export / "README.md")
    probes = [corpus[code].paragraphs(HELD_OUT_ARTICLES)[0] for code in languages[:NUM_PROBES]]
    expected = _logits(model, tokenizer, probes)
    with LoopbackHub(folder / "hub") as hub:
        published = publish_to_hub(
            export,
            REPO_ID,
            endpoint=hub.endpoint,
            token=hub.token,
            commit_message="Publish the demo's encoder",
            plots=plots,
        )
        logger.info("published %s to the Hub at %s", REPO_ID, hub.endpoint)
        record: dict[str, Any] = {
            "repo_id": REPO_ID,
            "endpoint": hub.endpoint,
            "commit": published.commit,
            "files": [{"name": name, "bytes": size} for name, size in published.files.items()],
        }
        for name in ("with_package", "without_package"):
            logits, loaded = _reload(hub.environment(), probes, with_package=name == "with_package")
            record[f"reload_{name}_max_abs_diff"] = float(np.abs(logits - expected).max())
            record[f"reload_{name}_class"] = loaded["model_class"]
            logger.info("reloaded %s: %s", name.replace("_", " "), loaded["model_class"])
    return record


@torch.no_grad()
def _logits(model: Any, tokenizer: Any, texts: Sequence[str]) -> np.ndarray:
    batch = tokenizer(list(texts), padding=True, truncation=True, max_length=128, return_tensors="pt")
    return model.eval()(**batch).logits[batch["attention_mask"].bool()].float().numpy()


def _reload(
    environment: Mapping[str, str], texts: Sequence[str], *, with_package: bool
) -> tuple[np.ndarray, dict[str, Any]]:
    """Load the published model in a process of its own and return its logits and what it loaded."""
    # -P keeps the script's folder off sys.path; the script is run by its path, so the package is not imported.
    command = [sys.executable, "-P", str(Path(reloading.__file__))]
    with tempfile.TemporaryDirectory() as scratch:
        logits_file = Path(scratch) / "logits.npy"
        request = {
            "repo_id": REPO_ID,
            "texts": list(texts),
            "with_package": with_package,
            "logits_file": str(logits_file),
        }
        done = subprocess.run(
            command, input=json.dumps(request), capture_output=True, text=True, env={**os.environ, **environment}
        )
        if done.returncode != 0:
            how = "with" if with_package else "without"
            raise RuntimeError(f"loading {REPO_ID} {how} the package failed:\n{done.stderr}")
        answer = json.loads(done.stdout.splitlines()[-1])
        if answer["package_imported"] != with_package:
            raise RuntimeError(f"asked for {with_package=}, but mmbert_hf imported: {answer['package_imported']}")
        return np.load(logits_file), answer
