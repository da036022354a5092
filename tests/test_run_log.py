import doctest
import json

import pytest

from mmbert_hf import run_log
from mmbert_hf.run_log import read_run

PHASES = [{"name": "pretrain"}, {"name": "decay"}]


def write_state(folder, step, history, **more):
    folder.mkdir(parents=True, exist_ok=True)
    state = {"global_step": step, "max_steps": 40, "log_history": history, **more}
    (folder / "trainer_state.json").write_text(json.dumps(state))


@pytest.fixture
def history():
    return [
        {"step": 10, "loss": 5.0, "learning_rate": 1e-3, "tokens": 100, "phase": 0},
        {"step": 10, "eval_loss": 5.5, "eval_loss_eng": 5.0, "eval_loss_fao": 6.0},
        {"step": 20, "loss": 4.0, "learning_rate": 2e-3, "tokens": 200, "phase": 1, "tokens_per_second": 50.0},
        {"step": 20, "eval_loss": 4.0, "eval_loss_eng": 4.0, "eval_loss_srp_Cyrl": 3.0},
        {"step": 20, "train_runtime": 3.0, "train_loss": 4.5},
    ]


def test_docstring_examples():
    results = doctest.testmod(run_log)
    assert results.failed == 0
    assert results.attempted > 4


def test_records_become_columns(tmp_path, history):
    write_state(tmp_path, 20, history)
    run = read_run(tmp_path)
    assert (run.step, run.total_steps) == (20, 40)
    assert run.training["loss"] == [5.0, 4.0]
    assert run.training["tokens_per_second"] == [None, 50.0]
    assert all(len(column) == 2 for columns in (run.training, run.evaluation) for column in columns.values())
    assert run.language_losses == {"eng": [5.0, 4.0], "fao": [6.0, None], "srp_Cyrl": [None, 3.0]}
    assert "train_loss" not in run.training


def test_the_checkpoint_that_is_furthest_counts(tmp_path, history):
    write_state(tmp_path / "checkpoint-9", 9, history[:1])
    write_state(tmp_path / "checkpoint-20", 20, history)
    (tmp_path / "checkpoint-30").mkdir()
    (tmp_path / "checkpoint-30" / "trainer_state.json").write_text('{"global_step": 30, "log_hist')
    run = read_run(tmp_path)
    assert run.step == 20
    assert run.source.endswith("checkpoint-20/trainer_state.json")
    write_state(tmp_path, 20, history)
    assert read_run(tmp_path / "checkpoint-9").step == 9


def test_the_settings_are_found_from_a_checkpoint_too(tmp_path, history):
    write_state(tmp_path / "checkpoint-20", 20, history)
    (tmp_path / "run.json").write_text(json.dumps({"plan": {"phases": PHASES}, "quotas": {"fao": 7}}))
    for folder in (tmp_path, tmp_path / "checkpoint-20"):
        run = read_run(folder)
        assert run.settings["quotas"] == {"fao": 7}
        assert run.phase_names == ["pretrain", "decay"]


@pytest.mark.parametrize("settings", [{"phases": PHASES}, {"recipe": {"phases": PHASES}}])
def test_phases_are_found_where_they_are(tmp_path, history, settings):
    write_state(tmp_path, 20, history)
    (tmp_path / "run.json").write_text(json.dumps(settings))
    assert read_run(tmp_path).phase_names == ["pretrain", "decay"]


def test_progress_is_in_tokens_where_all_records_have_them(tmp_path, history):
    write_state(tmp_path, 20, history)
    assert read_run(tmp_path).progress == ("tokens", [100, 200])
    del history[0]["tokens"]
    history[0]["num_input_tokens_seen"], history[2]["num_input_tokens_seen"] = 90, 180
    write_state(tmp_path, 20, history)
    assert read_run(tmp_path).progress == ("num_input_tokens_seen", [90, 180])
    del history[0]["num_input_tokens_seen"]
    write_state(tmp_path, 20, history)
    assert read_run(tmp_path).progress == ("step", [10, 20])


def test_losses_before_and_after_come_from_the_record_of_the_run(tmp_path, history):
    write_state(tmp_path, 20, history)
    assert read_run(tmp_path).language_ends == {"eng": (5.0, 4.0)}  # the others were measured once
    write_state(tmp_path, 20, history[:3])
    assert read_run(tmp_path).language_ends == {}
    losses = {"before": {"fao": 9.0, "eng": 3.0}, "after": {"fao": 5.0}}
    (tmp_path / "run.json").write_text(json.dumps({"losses": losses}))
    assert read_run(tmp_path).language_ends == {"fao": (9.0, 5.0)}
    (tmp_path / "run.json").write_text(json.dumps({"losses": {"before": {"fao": 9.0}}}))
    assert read_run(tmp_path).language_ends == {}


def test_json_is_strict(tmp_path, history):
    history[0]["loss"] = float("nan")
    write_state(tmp_path, 20, history)
    read_run(tmp_path).to_json(tmp_path / "out.json")

    def refuse(constant):
        raise AssertionError(constant)

    values = json.loads((tmp_path / "out.json").read_text(), parse_constant=refuse)
    assert values["training"]["loss"] == [None, 4.0]
    assert values["evaluation"]["eval_loss_fao"] == [6.0, None]


def test_nothing_to_read_is_said(tmp_path, history):
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        read_run(tmp_path / "missing")
    with pytest.raises(FileNotFoundError, match=r"no trainer_state.json"):
        read_run(tmp_path)
    (tmp_path / "trainer_state.json").write_text("{")
    with pytest.raises(ValueError, match=r"trainer_state.json: damaged"):
        read_run(tmp_path)
    write_state(tmp_path, 20, history)
    (tmp_path / "run.json").write_text("[]")
    with pytest.raises(ValueError, match=r"run.json must hold an object"):
        read_run(tmp_path)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(ValueError, match=r"run.json is damaged"):
        read_run(tmp_path)
