"""SPO on two processes (DDP over gloo): both have the same tracker to the bit, each answers its part of the prompts."""

import importlib.util
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from mmbert_hf.trainers.spo.sampling import draw_prompts
from mmbert_hf.trainers.spo.tracker import ValueTracker
from mmbert_hf.trainers.spo.tracker_files import read_tracker

pytestmark = pytest.mark.filterwarnings(
    r"ignore:`(is_)?gradient_checkpointing\w*` is deprecated:FutureWarning"  # TRL 1.16 with transformers 5.23: TRL's own
)

SPO = Path(__file__).parents[1] / "trainers" / "spo" / "conftest.py"
SCRIPT = """
import hashlib, importlib.util, json, os, sys
import torch, transformers
from mmbert_hf.trainers.spo.tracker_files import write_tracker
from packaging.version import Version

if Version(transformers.__version__) < Version("5.23"):  # the Trainer of 5.17 loads the optimizer to "cpu:0", which is nowhere
    load = torch.load
    torch.load = lambda *args, map_location=None, **options: load(*args, map_location="cpu", **options)

folder, conftest = sys.argv[1:]
rank = int(os.environ["RANK"])
spec = importlib.util.spec_from_file_location("tiny_spo", conftest)
tiny = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tiny)
torch.set_num_threads(1)


def by_prompt(prompts, **_):
    return [float(int(prompt[2]) < 4) for prompt in prompts]


def digest(tensors):
    return hashlib.sha256(b"".join(tensor.detach().numpy().tobytes() for tensor in tensors)).hexdigest()


def make(name, reward, **options):
    values = {"per_device_train_batch_size": 3, "max_steps": 4, "ddp_backend": "gloo", **options}
    return tiny.make_trainer(f"{folder}/{name}", reward, **values)


def run(name, reward=tiny.odd, **options):
    recorder, updates, advantages = tiny.Recorder(reward), [], []
    trainer = make(name, recorder, **options)
    update, score = trainer.tracker.update, trainer._generate_and_score_completions

    def keep(rows, rewards, rho):
        updates.append((rows.tolist(), rho.tolist(), trainer.tracker.drift))
        update(rows, rewards, rho)

    def keep_advantages(inputs):
        output = score(inputs)
        advantages.append(output["advantages"].tolist())
        return output

    trainer.tracker.update, trainer._generate_and_score_completions = keep, keep_advantages
    trainer.train()
    write_tracker(f"{folder}/{name}-{rank}.safetensors", trainer.tracker)
    record = {
        "prompts": [call.prompts for call in recorder.calls],
        "rewards": [call.rewards for call in recorder.calls],
        "updates": updates,
        "advantages": advantages,
        "weights": digest(trainer.model.parameters()),
        "metrics": [
            {key: value for key, value in entry.items() if key.startswith("spo/")} for entry in trainer.state.log_history
        ],
    }
    if trainer._trajectories is not None:
        kept = trainer._trajectories.state_dict()
        record["kept"] = digest(torch.from_numpy(kept[part]) for part in sorted(kept))
    json.dump(record, open(f"{folder}/{name}-{rank}.json", "w"))
    return trainer


run("drift", d_half=3.0)
run("trajectory", divergence="trajectory", max_trajectory_tokens=2, d_half=3.0)
run("stream", dataset=tiny.make_sums(50).to_iterable_dataset())
run("equal", by_prompt, divergence="constant")

trainer = make("offline", by_prompt)
trainer.estimate_values(3)
write_tracker(f"{folder}/offline-{rank}.safetensors", trainer.tracker)

window = {"steps_per_generation": 4, "gradient_accumulation_steps": 2, "num_iterations": 2, "max_steps": 7}
straight = run("straight", save_strategy="steps", save_steps=2, **window)
resumed = make("resumed", tiny.odd, model=tiny.make_model(seed=9), **window)
resumed.train(resume_from_checkpoint=f"{folder}/straight/checkpoint-6")
write_tracker(f"{folder}/resumed-{rank}.safetensors", resumed.tracker)
json.dump({"weights": digest(resumed.model.parameters())}, open(f"{folder}/resumed-{rank}.json", "w"))
torch.distributed.barrier()
torch.distributed.destroy_process_group()
"""


@pytest.fixture(scope="module")
def tiny():
    spec = importlib.util.spec_from_file_location("tiny_spo", SPO)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The folder with what both processes recorded."""
    folder = tmp_path_factory.mktemp("two")
    (folder / "script.py").write_text(SCRIPT)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--master-addr=127.0.0.1", f"--master-port={port}"]
    done = subprocess.run(
        [sys.executable, *launcher, "script.py", str(folder), str(SPO)],
        capture_output=True,
        text=True,
        timeout=280,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


def records_of(folder, name):
    return [json.loads((folder / f"{name}-{rank}.json").read_text(encoding="utf-8")) for rank in (0, 1)]


def trackers_of(folder, name):
    return [read_tracker(folder / f"{name}-{rank}.safetensors")[0] for rank in (0, 1)]


def assert_same_tracker(found, expected):
    found, expected = found.state_dict(), expected.state_dict()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


@pytest.mark.parametrize("name", ["drift", "trajectory", "stream", "equal", "offline", "straight", "resumed"])
def test_both_have_the_same_tracker(ran, name):
    first, second = trackers_of(ran, name)
    assert_same_tracker(first, second)
    assert len(first) >= 10
    if name != "offline":
        weights = {record["weights"] for record in records_of(ran, name)}
        assert len(weights) == 1


@pytest.mark.parametrize("name", ["drift", "trajectory", "equal"])
def test_each_answers_its_part_of_what_is_drawn(ran, tiny, name):
    prompts, tracker = tiny.make_sums()["prompt"][:], ValueTracker(10)
    first, second = records_of(ran, name)
    assert first["updates"] == second["updates"]
    assert first["metrics"] == second["metrics"]
    assert len(first["prompts"]) == 4
    for number, (_, rho, tracker.drift) in enumerate(first["updates"]):
        rows, _ = draw_prompts(tracker, 6, seed=42)
        assert first["prompts"][number] == [prompts[row] for row in rows[:3]]
        assert second["prompts"][number] == [prompts[row] for row in rows[3:]]
        rewards, values = np.array(first["rewards"][number] + second["rewards"][number]), tracker.values[rows]
        raw = (rewards - values) / np.sqrt(values * (1 - values) + 0.02)
        expected = (raw - raw.mean()) / max(raw.std(ddof=1), 0.1)
        assert first["advantages"][number] + second["advantages"][number] == pytest.approx(expected, abs=1e-6)
        tracker.update(rows, rewards, rho)
        tracker.round += 1
    assert_same_tracker(trackers_of(ran, name)[0], tracker)
    assert first["advantages"] != second["advantages"]
    if name != "equal":
        shares = [rho for _, rho, _ in first["updates"]]
        assert len({share for part in shares for share in part}) > 2
    assert first.get("kept") == second.get("kept")
    assert ("kept" in first) == (name == "trajectory")


def test_a_stream_is_known_alike(ran):
    first, second = records_of(ran, "stream")
    tracker = ValueTracker()
    for number, (rows, rho, tracker.drift) in enumerate(first["updates"]):
        keys = first["prompts"][number] + second["prompts"][number]
        assert len(set(keys)) == 6  # the stream has each once
        assert tracker.rows_of(keys).tolist() == rows
        tracker.update(rows, first["rewards"][number] + second["rewards"][number], rho)
        tracker.round += 1
    found = trackers_of(ran, "stream")[0]
    assert found.values.tolist() == tracker.values.tolist()
    assert len(set(found.keys)) == 24


def test_one_process_with_twice_the_batch_draws_the_same(ran, tiny, tmp_path):
    recorder = tiny.Recorder(lambda prompts, **_: [float(int(prompt[2]) < 4) for prompt in prompts])
    one = tiny.make_trainer(tmp_path, recorder, per_device_train_batch_size=6, max_steps=4, divergence="constant")
    one.train()
    first, second = records_of(ran, "equal")
    for number, call in enumerate(recorder.calls):
        assert call.prompts == first["prompts"][number] + second["prompts"][number]
    assert_same_tracker(trackers_of(ran, "equal")[0], one.tracker)


def test_offline_values_are_those_of_all_samples(ran):
    assert trackers_of(ran, "offline")[0].values.tolist() == [3.5 / 4] * 4 + [0.5 / 4] * 6


def test_resumed_equals_straight(ran):
    for straight, resumed in zip(trackers_of(ran, "straight"), trackers_of(ran, "resumed"), strict=True):
        assert_same_tracker(resumed, straight)
    assert records_of(ran, "resumed")[0]["weights"] == records_of(ran, "straight")[0]["weights"]
