"""A run of SPO that was stopped and resumed has the bits of one that was not: weights, optimizer, tracker, log.

A generation serves four optimizer steps here (two halves, each used twice), so that checkpoints lie at its beginning, behind
its first step and in its middle. Other runs are refused.
"""

import functools
import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from mmbert_hf.trainers.spo.run_files import end_of_run
from mmbert_hf.trainers.spo.tracker_files import read_tracker, write_tracker

pytestmark = pytest.mark.filterwarnings(
    r"ignore:`(is_)?gradient_checkpointing\w*` is deprecated:FutureWarning"  # TRL 1.16 with transformers 5.23: TRL's own
)

SPO = Path(__file__).parents[1] / "trainers" / "spo" / "conftest.py"
WINDOW = {
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "steps_per_generation": 4,
    "num_iterations": 2,
    "max_steps": 9,
    "logging_steps": 3,
    "save_strategy": "steps",
    "save_steps": 1,
}
TIMES = {"step_time", "train_runtime", "train_samples_per_second", "train_steps_per_second", "spo/estimate_seconds"}


@pytest.fixture(scope="module")
def tiny():
    spec = importlib.util.spec_from_file_location("tiny_spo", SPO)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with module.imports_out_of_the_way():
        yield module


def kept_at(folder, step):
    """What a checkpoint holds: weights, optimizer, tracker, and what was logged."""
    checkpoint = folder / f"checkpoint-{step}"
    weights = torch.load(checkpoint / "optimizer.pt", weights_only=True)["state"]
    tracker = read_tracker(checkpoint / "spo_tracker.safetensors")[0].state_dict()
    log = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    return (checkpoint / "model.safetensors").read_bytes(), weights, tracker, log


def assert_same(found, expected, resumed_at):
    assert found[0] == expected[0]
    assert found[1].keys() == expected[1].keys()
    for name, state in expected[1].items():
        for part, value in state.items():
            assert torch.equal(found[1][name][part], value), (name, part)
    for name, value in expected[2].items():
        np.testing.assert_array_equal(found[2][name], value, err_msg=name)
    assert [comparable(entry, resumed_at) for entry in found[3]] == [
        comparable(entry, resumed_at) for entry in expected[3]
    ]


def comparable(entry, resumed_at):
    """Without times; and without the loss that Trainer logs first after resuming, whose mean starts at the checkpoint."""
    left_out = {*TIMES, "loss"} if 0 < entry["step"] - resumed_at < WINDOW["logging_steps"] else TIMES
    return {name: value for name, value in entry.items() if name not in left_out}


RUNS = {
    "drift": {},
    "trajectory": {"divergence": "trajectory", "max_trajectory_tokens": 2},
    "thompson": {"sampling": "thompson", "divergence": "constant", "exploration_floor": 0.3},
    "offline": {"initial_values": "offline", "num_initial_samples": 1, "value_model": "average"},
    "stream": {"prompt_id_column": "name"},
}
STEPS = (1, 4, 6)  # behind the first step, at the beginning of the second generation, in its middle
CASES = [(name, step) for name in RUNS for step in (STEPS if name in ("drift", "trajectory") else STEPS[-1:])]


@pytest.fixture(scope="module")
def straight(tiny, tmp_path_factory):
    """A function from the name of a run to the folder of one that was not stopped."""

    @functools.cache
    def run(name):
        folder = tmp_path_factory.mktemp("straight")
        trainer = make_run(tiny, folder, name)
        trainer.train()
        assert trainer.tracker.round == 3
        return folder

    return run


def make_run(tiny, folder, name, **options):
    # a stream of more than one pass: Trainer skips one pass at most
    dataset = tiny.make_sums(30).to_iterable_dataset() if name == "stream" else tiny.make_sums()
    return tiny.make_trainer(folder, dataset=dataset, **{**WINDOW, **RUNS[name], **options})


@pytest.mark.parametrize(("name", "step"), CASES)
def test_resumed_equals_straight(tiny, straight, tmp_path, name, step):
    folder = straight(name)
    resumed = make_run(tiny, tmp_path, name, model=tiny.make_model(seed=9))
    resumed.train(resume_from_checkpoint=str(folder / f"checkpoint-{step}"))
    assert_same(kept_at(tmp_path, 9), kept_at(folder, 9), step)
    assert resumed.tracker.round == 3
    if resumed.args.divergence == "drift":
        assert resumed.tracker.drift > 0


@pytest.mark.parametrize("name", ["drift", "trajectory"])
def test_a_run_at_its_end_is_loaded_and_not_trained_on(tiny, straight, tmp_path, name, monkeypatch):
    folder = straight(name) / "checkpoint-9"
    again = make_run(tiny, tmp_path, name, model=tiny.make_model(seed=9))
    monkeypatch.setattr(again, "training_step", lambda *_: pytest.fail("it is trained on"))
    done = again.train(resume_from_checkpoint=str(folder))
    assert (done.global_step, again.state.global_step, again.tracker.round) == (9, 9, 3)
    assert [entry["step"] for entry in again.state.log_history] == [
        entry["step"] for entry in json.loads((folder / "trainer_state.json").read_text())["log_history"]
    ]
    again.save_model(str(tmp_path / "model"))
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    found, expected = (
        read_tracker(file)[0].state_dict()
        for file in (again.save_tracker(tmp_path), folder / "spo_tracker.safetensors")
    )
    for key, value in expected.items():
        np.testing.assert_array_equal(found[key], value, err_msg=key)


def test_where_a_run_ends(tiny, straight, tmp_path):
    folder = straight("drift")
    args = make_run(tiny, tmp_path, "drift").args
    assert end_of_run(args, None) is None
    assert end_of_run(args, folder / "checkpoint-6") is None
    assert end_of_run(args, str(folder / "checkpoint-9")) == folder / "checkpoint-9"
    args.output_dir = str(folder)
    assert end_of_run(args, True) == folder / "checkpoint-9"
    args.max_steps = 10
    assert end_of_run(args, True) is None
    state = json.loads((folder / "checkpoint-9" / "trainer_state.json").read_text())
    args.max_steps, args.num_train_epochs = -1, state["num_train_epochs"]
    assert end_of_run(args, True) == folder / "checkpoint-9"
    args.num_train_epochs = state["num_train_epochs"] + 1
    assert end_of_run(args, True) is None
    args.num_train_epochs = state["num_train_epochs"] - 0.5  # a part of a pass: nobody knows which
    assert end_of_run(args, True) is None


@pytest.fixture(scope="module")
def checkpoint(tiny, tmp_path_factory):
    """Of a short run, in the middle of a generation."""
    folder = tmp_path_factory.mktemp("short")
    tiny.make_trainer(folder, **{**WINDOW, "max_steps": 2, "save_steps": 2}).train()
    return folder / "checkpoint-2"


@pytest.fixture
def resume(tiny, tmp_path, checkpoint):
    """A function that changes a copy of the checkpoint and resumes from it with other options."""

    def run(change=None, **options):
        folder = shutil.copytree(checkpoint, tmp_path / "checkpoint-2")
        if change is not None:
            change(folder)
        tiny.make_trainer(tmp_path / "resumed", **{**WINDOW, "max_steps": 3, **options}).train(
            resume_from_checkpoint=str(folder)
        )

    return run


def test_as_it_is_it_goes_on(resume):
    resume()


def test_another_data_set(resume, tiny):
    with pytest.raises(ValueError, match=r"of other prompts than this data set.*give the data set it was made with"):
        resume(dataset=tiny.make_sums(first=1))


def test_another_number_of_processes(resume):
    def change(folder):
        tracker, metadata = read_tracker(folder / "spo_tracker.safetensors")
        write_tracker(folder / "spo_tracker.safetensors", tracker, **{**metadata, "processes": 2})

    with pytest.raises(
        ValueError, match=r"was saved by 2 processes and 1 are running.*initial_values set to the checkpoint"
    ):
        resume(change)


OTHER = {
    "divergence": ({"divergence": "trajectory"}, "was saved with divergence='drift' and this run has 'trajectory'"),
    "kind": ({"value_model": "average"}, "has values of kind 'beta', this run 'average'"),
    "window": (
        {"steps_per_generation": 2},
        "a generation that serves 4 steps, and this run has steps_per_generation=2",
    ),
}


@pytest.mark.parametrize(("options", "message"), OTHER.values(), ids=OTHER)
def test_other_options(resume, options, message):
    with pytest.raises(ValueError, match=message):
        resume(**options)


FILES = {
    "spo_tracker.safetensors": "spo_tracker.safetensors is not there: no tracker was saved",
    "spo_process_0.pt": "spo_process_0.pt is not there, so this run cannot go on where it stopped",
}


@pytest.mark.parametrize(("name", "message"), FILES.items())
def test_a_missing_file(resume, name, message):
    with pytest.raises(FileNotFoundError, match=message):
        resume(lambda folder: (folder / name).unlink())


def test_a_tracker_that_was_cut_off(resume):
    def change(folder):
        path = folder / "spo_tracker.safetensors"
        path.write_bytes(path.read_bytes()[:-9])

    with pytest.raises(ValueError, match="is not a tracker, or was cut off"):
        resume(change)


def test_weights_alone(tiny, tmp_path):
    options = {**WINDOW, "max_steps": 2, "save_steps": 2, "save_only_model": True}
    tiny.make_trainer(tmp_path, **options).train()
    with pytest.raises(FileNotFoundError, match=r"save_only_model leaves it out.*initial_values set to the checkpoint"):
        tiny.make_trainer(tmp_path / "resumed", **options).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
