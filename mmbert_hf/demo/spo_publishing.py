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
from huggingface_hub import DatasetCard, DatasetCardData, HfApi, ModelCard, ModelCardData

from mmbert_hf.demo import reloading_policy
from mmbert_hf.demo.spo import SPOJob
from mmbert_hf.demo.wording import percent
from mmbert_hf.hub import require_token
from mmbert_hf.testing import LoopbackHub
from mmbert_hf.trainers.spo.tracker import ROW_ARRAYS, ValueTracker
from mmbert_hf.trainers.spo.tracker_files import load_tracker

logger = logging.getLogger(__name__)

REPO_ID = "loopback/arithmetic-spo"
TRACKER_REPO_ID = "loopback/arithmetic-spo-tracker"
PAPER = "https://arxiv.org/abs/2509.13232"


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
    policy_card(facts).save(job.folder / "policy" / "README.md")
    tracker_card(facts).save(job.folder / "tracker" / "README.md")
    tracker, _ = load_tracker(job.folder / "tracker")
    prompts = job.examples["prompt"][:]
    expected = _logits(job.load("policy"), job.tokenizer, prompts)
    with LoopbackHub(job.folder.parent / "hub") as hub, tempfile.TemporaryDirectory() as scratch:
        api = HfApi(endpoint=hub.endpoint, token=hub.token)
        require_token(api)
        record: dict[str, Any] = {"repo_id": REPO_ID, "tracker_repo_id": TRACKER_REPO_ID, "endpoint": hub.endpoint}
        for key, name, folder, kind in (
            ("", REPO_ID, job.folder / "policy", "model"),
            ("tracker_", TRACKER_REPO_ID, job.folder / "tracker", "dataset"),
        ):
            api.create_repo(name, repo_type=kind, exist_ok=True)
            message = "Publish the demo's policy" if kind == "model" else "Publish the tracker of the demo's policy"
            commit = api.upload_folder(repo_id=name, repo_type=kind, folder_path=folder, commit_message=message)
            record[f"{key}commit"], record[f"{key}files"] = commit.oid, _files(folder)
            logger.info("published %s to the Hub at %s", name, hub.endpoint)
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


def policy_card(facts: Mapping[str, Any]) -> ModelCard:
    """Return the card of the policy: what it is, how to use it, and what was measured.

    Args:
        facts: ``settings``, ``task``, ``policy``, ``fitting``, ``training`` and ``quality`` of the ``spo`` record.
    """
    task, training, prompts = facts["task"], facts["training"], facts["task"]["prompts"]
    data = ModelCardData(library_name="transformers", pipeline_tag="text-generation", tags=["trl", "spo", "mmbert-hf"])
    rows = "\n".join(
        f"| {group} | {row['num_prompts']} | {percent(row['sampled']['before'])} | {percent(row['sampled']['after'])} |"
        for group, row in facts["quality"].items()
    )
    return ModelCard(f"""---
{data.to_yaml()}
---

# {REPO_ID.partition("/")[2]}

A causal language model of {facts["policy"]["parameters"]:,} parameters that does arithmetic modulo {task["modulus"]} and
nothing else. It was fitted to the answers of {prompts["fitted"]} of {prompts["all"]} prompts, and then improved by
Single-stream Policy Optimization ({PAPER}): {training["samples"]:,} single responses, one for each prompt that was drawn,
rewarded if right.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{REPO_ID}")
model = AutoModelForCausalLM.from_pretrained("{REPO_ID}")
batch = tokenizer("{task["modulus"] - 1}{task["operations"][0]}{task["modulus"] - 1}=", return_tensors="pt")
print(tokenizer.decode(model(**batch).logits[0, -1].argmax()))
```

Accuracy of {facts["settings"]["num_samples"]} sampled answers to each prompt, before and after (one run, seed
{facts["settings"]["seed"]}):

| prompts | how many | before | after |
|---|---|---|---|
{rows}

"fitted": the answers were shown; "rewarded": only whether an answer was right; "unseen": neither. What the run expected of
each prompt is in the data set `{TRACKER_REPO_ID}`. A demonstration of a method, not a model to build on.
""")


def tracker_card(facts: Mapping[str, Any]) -> DatasetCard:
    """Return the card of the tracker.

    Args:
        facts: As for `policy_card`, with ``values``.
    """
    data = DatasetCardData(tags=["spo", "mmbert-hf"], pretty_name="Value tracker of a run of SPO")
    return DatasetCard(f"""---
{data.to_yaml()}
---

# {TRACKER_REPO_ID.partition("/")[2]}

What a run of Single-stream Policy Optimization ({PAPER}) knew of its prompts in the end: a row for each prompt (`id`) with its
expected reward (`values`), how many observations that stands on (`weights`, `squares`), and when it was last asked (`visits`,
`last_round`, `last_drift`). `tracker.json` has the rest of the state. The policy is `{REPO_ID}`.

Over the whole run, value and reward differ by {facts["values"]["calibration_error"]:.3f} on average over bins of values.

`mmbert_hf.trainers.spo.load_tracker("{TRACKER_REPO_ID}")` gives the tracker back; with `SPOConfig(initial_values=...)` a run
starts from it.
""")


def _files(folder: Path) -> list[dict[str, Any]]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and ".cache" not in path.parts]
    return [{"name": path.relative_to(folder).as_posix(), "bytes": path.stat().st_size} for path in files]


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
