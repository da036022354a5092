"""The last stage of the demo's third part: policy and tracker go to a Hub on this machine and come back.

Design decisions:

- The policy is a plain causal language model, and the tracker a plain data set. Both are loaded in a process in which
  this package cannot be imported; the logits must be the same, and every column of the table.
- The tracker is loaded here as well, as a run that continues from it would do (`load_tracker`): all of its state must be
  the same, to the bit.
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
from huggingface_hub import HfApi

from mmbert_hf.demo import reloading_policy
from mmbert_hf.demo.spo import SPOJob
from mmbert_hf.demo.wording import percent
from mmbert_hf.hub import publish as publish_to_hub
from mmbert_hf.model_cards.plain import plain_card
from mmbert_hf.model_cards.trackers import tracker_card
from mmbert_hf.testing import LoopbackHub
from mmbert_hf.trainers.spo.tracker import ROW_ARRAYS, ValueTracker
from mmbert_hf.trainers.spo.tracker_files import load_tracker

logger = logging.getLogger(__name__)

REPO_ID = "loopback/arithmetic-spo"
TRACKER_REPO_ID = "loopback/arithmetic-spo-tracker"


def publish(job: SPOJob, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Publish ``policy/`` and ``tracker/`` with their cards, and load them back.

    Args:
        job: The run.
        facts: What the other stages returned, for the cards.

    Returns:
        The ``hub`` record: names, commits, files, largest difference of a logit, whether the tracker is the same.

    Raises:
        RuntimeError: The process that loads could not do so; the message holds its output.
    """
    tracker, _ = load_tracker(job.folder / "tracker")
    prompts = job.examples["prompt"][:]
    card = plain_card(REPO_ID, policy_facts(facts), tags=["trl", "spo"], prompt=prompts[0])
    card.save(job.folder / "policy" / "README.md")
    tracker_card(TRACKER_REPO_ID, tracker, base_model=REPO_ID).save(job.folder / "tracker" / "README.md")
    expected = _logits(job.load("policy"), job.tokenizer, prompts)
    with LoopbackHub(job.folder.parent / "hub") as hub, tempfile.TemporaryDirectory() as scratch:
        record: dict[str, Any] = {"repo_id": REPO_ID, "tracker_repo_id": TRACKER_REPO_ID, "endpoint": hub.endpoint}
        for key, name, message in (
            ("", REPO_ID, "Publish the demo's policy"),
            ("tracker_", TRACKER_REPO_ID, "Publish the tracker of the demo's policy"),
        ):
            folder = job.folder / ("tracker" if key else "policy")
            done = publish_to_hub(
                folder,
                name,
                plots=() if key else sorted((job.folder / "plots").glob("*.png")),
                endpoint=hub.endpoint,
                token=hub.token,
                commit_message=message,
            )
            record[f"{key}commit"] = done.commit
            record[f"{key}files"] = [{"name": file, "bytes": size} for file, size in done.files.items()]
            logger.info("published %s to the Hub at %s", name, hub.endpoint)
        api = HfApi(endpoint=hub.endpoint, token=hub.token)
        fetched = api.snapshot_download(TRACKER_REPO_ID, repo_type="dataset", local_dir=Path(scratch, "tracker"))
        loaded, _ = load_tracker(fetched)
        arrays, answer = _reload(hub.environment(), prompts)
    record["tracker_is_equal"] = same_trackers(tracker, loaded)
    record["table_is_equal"] = same_table(tracker, arrays)
    record["reload_class"] = answer["model_class"]
    record["reload_max_abs_diff"] = float(np.abs(arrays["logits"] - expected).max())
    record["probes"] = len(prompts)
    logger.info("reloaded without package: %s, and %d columns", answer["model_class"], len(answer["columns"]))
    return record


def same_trackers(one: ValueTracker, other: ValueTracker) -> bool:
    """Return whether two trackers are in the same state, to the bit."""
    states = one.state_dict(), other.state_dict()
    if states[0].keys() != states[1].keys():
        return False
    return all(
        np.array_equal(value, states[1][name], equal_nan=True)
        if isinstance(value, np.ndarray)
        else value == states[1][name]
        for name, value in states[0].items()
    )


def same_table(tracker: ValueTracker, arrays: Mapping[str, np.ndarray]) -> bool:
    """Return whether the columns that came back are the rows of the tracker.

    Args:
        tracker: With keys.
        arrays: ``column_<name>`` -> [P].
    """
    expected = {"id": np.asarray(tracker.keys), **{name: getattr(tracker, name) for name in ROW_ARRAYS}}
    found = {name.removeprefix("column_"): column for name, column in arrays.items() if name.startswith("column_")}
    if expected.keys() != found.keys():
        return False
    return all(np.array_equal(column, found[name], equal_nan=name != "id") for name, column in expected.items())


def policy_facts(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What the card of the policy says: how it was trained, what was measured, and what it is good for.

    Args:
        facts: ``settings``, ``task``, ``policy``, ``fitting``, ``training`` and ``quality`` of the ``spo`` record.

    Returns:
        For `mmbert_hf.model_cards.plain.plain_card`.
    """
    settings, task, training, prompts = facts["settings"], facts["task"], facts["training"], facts["task"]["prompts"]
    rows = [
        [group, row["num_prompts"], percent(row["sampled"]["before"]), percent(row["sampled"]["after"])]
        for group, row in facts["quality"].items()
    ]
    return {
        "training": {
            "method": "SPO, one response per prompt",
            "task": f"arithmetic modulo {task['modulus']}, and nothing else",
            "parameters": f"{facts['policy']['parameters']:,}",
            "fitted before, to the answers of": f"{prompts['fitted']} of {prompts['all']} prompts",
            "responses": f"{training['samples']:,}, rewarded if right",
            "seed": settings["seed"],
        },
        "tracker": TRACKER_REPO_ID,
        "results": [["prompts", "how many", "accuracy before", "accuracy after"], *rows],
        "results_note": (
            f'Of {settings["num_samples"]} sampled answers to each prompt, one run. "fitted": the answers were shown; '
            '"rewarded": only whether an answer was right; "unseen": neither.'
        ),
        "limits": "A demonstration of a method, not a model to build on.",
    }


@torch.no_grad()
def _logits(model: Any, tokenizer: Any, prompts: Sequence[str]) -> np.ndarray:
    batch = tokenizer(list(prompts), padding=True, return_tensors="pt")
    return model(**batch).logits[batch["attention_mask"].bool()].float().numpy()


def _reload(environment: Mapping[str, str], prompts: Sequence[str]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Load policy and table in a process of its own; return its arrays and what it loaded."""
    # -P keeps the script's folder off sys.path; the script is run by its path, so the package is not imported.
    command = [sys.executable, "-P", str(Path(reloading_policy.__file__))]
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "arrays.npz"
        request = {
            "repo_id": REPO_ID,
            "tracker_repo_id": TRACKER_REPO_ID,
            "prompts": list(prompts),
            "arrays_file": str(file),
        }
        done = subprocess.run(
            command, input=json.dumps(request), capture_output=True, text=True, env={**os.environ, **environment}
        )
        if done.returncode != 0:
            raise RuntimeError(f"loading {REPO_ID} and {TRACKER_REPO_ID} without the package failed:\n{done.stderr}")
        with np.load(file) as arrays:
            return dict(arrays), json.loads(done.stdout.splitlines()[-1])
