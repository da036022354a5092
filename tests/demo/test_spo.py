"""The third part of the demo on a tiny policy: who is asked what, what is measured, published, loaded back, and resumed."""

import dataclasses
import io
import json
import os
import shutil
import signal
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import torch
from mmbert_hf.trainers.spo.tracker_files import load_tracker

from mmbert_hf.data.arithmetic import encode_answers, exact_answer
from mmbert_hf.demo import pipeline, spo, spo_measuring, spo_publishing
from mmbert_hf.demo.pipeline import run_demo
from mmbert_hf.demo.settings import SPOSettings
from mmbert_hf.demo.state import STAGES

TINY = SPOSettings(
    modulus=5,
    max_fit_steps=8,
    hidden_size=16,
    num_hidden_layers=1,
    steps=6,
    batch_size=8,
    learning_rate=1e-2,
    logging_steps=1,
    num_samples=4,
)


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> tuple[Path, dict]:
    folder, printed = tmp_path_factory.mktemp("demo") / "out", io.StringIO()
    with redirect_stdout(printed), redirect_stderr(printed):
        metrics = run_demo(folder, spo_settings=TINY, only="spo", progress=False)
    assert printed.getvalue() == ""  # without progress it says nothing
    return folder, metrics


@pytest.fixture
def job(demo) -> spo.SPOJob:
    return spo.SPOJob(TINY, demo[0] / "spo", progress=False)


def test_metrics_hold_the_run_and_nothing_of_the_other_parts(demo):
    folder, metrics = demo
    record = metrics["spo"]
    assert json.loads((folder / "metrics.json").read_text()) == json.loads(json.dumps(metrics))
    assert not {"phases", "heldout", "bitext", "hub", "settings", "prune"} & set(metrics)
    assert set(metrics["stages"]) == set(STAGES["spo"])
    assert record["settings"] == TINY.as_dict()
    assert record["task"]["prompts"] == {"all": 25, "fitted": 8, "rewarded": 14, "unseen": 3}
    assert record["fitting"]["steps"] == 8
    assert record["fitting"]["is_reached"] is False
    assert record["training"]["samples"] == 48
    assert record["training"]["log"]["step"] == [1, 2, 3, 4, 5, 6]
    assert sum(record["values"]["calibration"]["count"]) == 48
    assert sum(record["values"]["visits"]["prompts"]) == 22
    assert record["training"]["reward"]["last"] == record["training"]["log"]["reward"][-1]
    assert sum(check["holds"] is not None for check in metrics["checks"]) == 3


def test_prompts_are_in_one_group_each_and_spo_asks_no_unseen_one(demo, job):
    groups = {name: set(np.array(job.examples["prompt"][:])[inside]) for name, inside in job.groups.items()}
    assert groups["all"] == groups["fitted"] | groups["rewarded"] | groups["unseen"]
    assert sum(map(len, groups.values())) == 2 * len(groups["all"])
    tracker, _ = load_tracker(demo[0] / "spo" / "tracker")
    assert set(tracker.keys) == groups["fitted"] | groups["rewarded"]
    assert set(job.fitted["prompt"]) == groups["fitted"]
    other = spo.SPOJob(dataclasses.replace(TINY, seed=2), Path("unused"))
    assert set(other.fitted["prompt"]) != groups["fitted"]


def test_fitting_stops_when_the_policy_is_right_often_enough(tmp_path):
    settings = dataclasses.replace(TINY, fitted_accuracy=0.12, max_fit_steps=60)
    job = spo.SPOJob(settings, tmp_path, progress=False)
    record = spo.fit(job)["fitting"]
    assert record["is_reached"]
    assert 0 < record["steps"] < 60
    assert record["accuracy"] >= 0.12
    ids = torch.tensor(encode_answers(job.examples, job.tokenizer)["input_ids"][:])
    assert spo.right_probability(job.load("fitted"), ids) == pytest.approx(record["accuracy"])
    fresh = spo.build_policy(settings, job.tokenizer)
    assert spo.right_probability(fresh, ids) < record["accuracy"]


def test_quality_is_that_of_the_policies(demo, job):
    quality = demo[1]["spo"]["quality"]
    for when, name in (("before", "fitted"), ("after", "policy")):
        model = job.load(name)
        ids = torch.tensor(encode_answers(job.examples, job.tokenizer)["input_ids"][:])
        with torch.no_grad():
            right = (model(ids[:, :4]).logits[:, -1].argmax(-1) == ids[:, 4]).numpy()
        for group, inside in job.groups.items():
            assert quality[group]["greedy"][when] == pytest.approx(right[inside].mean())
            assert quality[group]["sampled"][when] <= quality[group]["solved"][when]
    weights = [len(job.fitted), 14, 3]
    groups = [quality[group]["sampled"]["after"] for group in ("fitted", "rewarded", "unseen")]
    assert np.average(groups, weights=weights) == pytest.approx(quality["all"]["sampled"]["after"])
    difference = quality["all"]["difference"]
    assert difference["mean"] == pytest.approx(quality["all"]["sampled"]["after"] - quality["all"]["sampled"]["before"])
    assert difference["low"] <= difference["mean"] <= difference["high"]


def test_values_at_the_end_stand_beside_the_accuracy_on_the_same_prompts(demo, job):
    end, quality = demo[1]["spo"]["values"]["end"], demo[1]["spo"]["quality"]
    tracker, _ = load_tracker(job.folder / "tracker")
    assert end["value"] == pytest.approx(tracker.values.mean())
    asked = (8 * quality["fitted"]["sampled"]["after"] + 14 * quality["rewarded"]["sampled"]["after"]) / 22
    assert end["accuracy"] == pytest.approx(asked)
    assert end["mean_abs_difference"] > 0


def test_policy_and_tracker_come_back_from_the_hub(demo):
    folder, metrics = demo
    hub = metrics["spo"]["hub"]
    assert hub["reload_max_abs_diff"] < 1e-5
    assert hub["reload_class"] == "transformers.models.llama.modeling_llama.LlamaForCausalLM"
    assert hub["tracker_is_equal"] is hub["table_is_equal"] is True
    files = {"README.md", "config.json", "model.safetensors", "tokenizer.json", "plots/run.png"}
    assert files == {file["name"] for file in hub["files"]} - {"generation_config.json", "tokenizer_config.json"}
    assert {"README.md", "tracker.json", "data/train-00000-of-00001.parquet"} == {
        file["name"] for file in hub["tracker_files"]
    }
    assert (folder / "hub" / "models" / spo_publishing.REPO_ID).is_dir()
    assert (folder / "hub" / "datasets" / spo_publishing.TRACKER_REPO_ID).is_dir()
    card = (folder / "spo" / "policy" / "README.md").read_text()
    assert f'AutoModelForCausalLM.from_pretrained("{spo_publishing.REPO_ID}")' in card
    assert "| responses | 48, rewarded if right |" in card
    assert str(folder) not in card


def test_a_policy_or_tracker_that_differs_is_seen(demo, job, monkeypatch):
    """The comparison is of what the Hub gave: others than those of the job must show."""
    real = spo.SPOJob.load
    monkeypatch.setattr(spo.SPOJob, "load", lambda self, name: real(self, "fitted"))
    tracker, _ = load_tracker(job.folder / "tracker")
    given = iter([load_tracker(job.folder / "tracker"), (tracker, {})])
    monkeypatch.setattr(spo_publishing, "load_tracker", lambda source: next(given))
    tracker.calibration[0, 0] += 1  # no column of the table
    facts = {
        key: demo[1]["spo"][key] for key in ("settings", "task", "policy", "fitting", "training", "quality", "values")
    }
    hub = spo_publishing.publish(job, facts)
    assert hub["reload_max_abs_diff"] > 1e-3
    assert hub["tracker_is_equal"] is False
    assert hub["table_is_equal"] is True


def test_every_column_of_the_table_counts(job):
    tracker, _ = load_tracker(job.folder / "tracker")
    names = ("values", "weights", "squares", "visits", "last_round", "last_drift")
    columns = {f"column_{name}": getattr(tracker, name).copy() for name in names}
    columns["column_id"] = np.array(tracker.keys)
    assert spo_publishing.same_table(tracker, {**columns, "logits": np.zeros(2)})
    for name in names:
        changed = columns[f"column_{name}"].copy()
        changed[0] += 1
        assert not spo_publishing.same_table(tracker, {**columns, f"column_{name}": changed})
    assert not spo_publishing.same_table(tracker, {**columns, "column_id": columns["column_id"][::-1]})
    del columns["column_visits"]
    assert not spo_publishing.same_table(tracker, columns)


def without_hub(monkeypatch, expected):
    """A process of its own takes seconds, and is tested above."""
    monkeypatch.setattr(spo_publishing, "publish", lambda *_: expected["spo"]["hub"])


def test_ctrl_c_in_the_training_continues_to_the_same_result(demo, tmp_path, monkeypatch, caplog):
    calls = []

    def interrupt(completions, answer, **more):
        calls.append(len(completions))
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return exact_answer(completions, answer, **more)

    without_hub(monkeypatch, demo[1])
    monkeypatch.setattr(spo, "exact_answer", interrupt)
    folder = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt, match=r"stopped after step 3 of 6; what is done is kept in .*same command"):
        run_demo(folder, spo_settings=TINY, only="spo", progress=False)
    assert [path.name for path in (folder / "spo" / "run").iterdir() if path.is_dir()] == ["checkpoint-3"]
    assert not (folder / "spo" / "policy").exists()
    with caplog.at_level("INFO", logger="mmbert_hf"):
        metrics = run_demo(folder, spo_settings=TINY, only="spo", progress=False)
    assert "spo: continuing behind step 3 of 6" in caplog.text
    assert len(calls) == 6
    for name in ("fitting", "training", "values", "quality"):
        assert metrics["spo"][name] == demo[1]["spo"][name], name


def test_a_stopped_demo_goes_on_with_the_stage_that_is_missing(demo, tmp_path, monkeypatch, caplog):
    done = []
    without_hub(monkeypatch, demo[1])
    for module, name in ((spo, "fit"), (spo, "train"), (spo_measuring, "measure")):
        real = getattr(module, name)

        def counted(job, name=name, real=real):
            done.append(name)
            if name == "measure" and done.count(name) == 1:
                raise KeyboardInterrupt
            return real(job)

        monkeypatch.setattr(module, name, counted)
    folder = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt, match=r"what is done is kept in .*give the same command again"):
        run_demo(folder, spo_settings=TINY, only="spo", progress=False)
    with caplog.at_level("INFO", logger="mmbert_hf"):
        metrics = run_demo(folder, spo_settings=TINY, only="spo", progress=False)
    assert done == ["fit", "train", "measure", "measure"]
    assert "stages already done: spo_fit, spo_train)" in caplog.text
    assert metrics["spo"]["quality"] == demo[1]["spo"]["quality"]


def test_the_report_shows_the_run(demo):
    folder, metrics = demo
    page = (folder / "report.html").read_text()
    section = page.partition('<section id="spo">')[2].partition("</section>")[0]
    assert "not measured" not in section
    assert section.count("<svg") == 6
    assert {path.stem for path in (folder / "plots").iterdir()} == set(pipeline_figures())
    assert "mmbert demo --output-dir out --only spo --seed 1" in page
    for check in metrics["checks"][6:9]:
        assert check["text"].partition(":")[0].replace("'", "&#39;") in page


def pipeline_figures():
    from mmbert_hf.demo.plots import SPO_FIGURES

    return SPO_FIGURES


def test_a_finished_run_is_reported_beside_an_encoder(demo, tmp_path, monkeypatch):
    """The encoder is added later: the record of the policy is enough, nothing of it is computed again."""
    folder = tmp_path / "out"
    shutil.copytree(demo[0], folder)
    monkeypatch.setattr(spo, "SPOJob", None)
    encoder = {"seed": 1, "settings": {"seed": 1, "steps": 5}, "phases": []}
    monkeypatch.setattr(pipeline, "_run_encoder", lambda state, progress: (encoder, {}, None))
    metrics = run_demo(folder, only="encoder", progress=False)
    assert metrics["spo"] == json.loads(json.dumps(demo[1]["spo"]))
    assert "--only encoder" in (folder / "report.html").read_text()
