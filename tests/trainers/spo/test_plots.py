"""Pictures show the numbers of the log and of the tracker; what is not known is not drawn."""

import doctest
import importlib.util
import json
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="pictures need the extra [plots]")

from matplotlib.figure import Figure
from mmbert_hf.trainers.spo import plots
from mmbert_hf.trainers.spo.plots import PANELS, draw_panel, plot_run, run_tables
from mmbert_hf.trainers.spo.summaries import calibration_table
from mmbert_hf.trainers.spo.tracker import ValueTracker
from mmbert_hf.trainers.spo.tracker_files import TRACKER_FILE, write_tracker

from mmbert_hf import plotting

STEPS = list(range(5, 65, 5))


@pytest.fixture(autouse=True)
def coarse(monkeypatch):
    monkeypatch.setattr(plotting, "DPI", 30)  # nobody looks at these pixels


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are written, to look at their lines and texts."""
    figures = []
    save = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *args, **more: (figures.append(self), save(self, *args, **more))
    )
    return figures


def panels(figure):
    return {axis.get_title(loc="left"): axis for axis in figure.axes}


def make_log():
    return [
        {
            "step": step,
            "loss": 0.0,
            "reward": 0.2 + step / 100,
            "spo/value_p10": 0.1,
            "spo/value_mean": 0.3 + step / 1000,
            "spo/value_p90": 0.8,
            "spo/rho": 0.85,
            "spo/divergence": 0.01 * step,
            "spo/floor_share": 0.05,
        }
        for step in STEPS
    ]


@pytest.fixture
def tracker():
    """Four prompts, of which one was asked often."""
    tracker = ValueTracker(4)
    for reward in (0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0):
        tracker.update([0, 1], [reward, 1.0])
    tracker.update([2], [1.0])
    return tracker


def test_docstring_examples():
    result = doctest.testmod(plots)
    assert result.attempted >= 2
    assert result.failed == 0


@pytest.mark.parametrize(("name", "start"), [("run.png", b"\x89PNG"), ("sub/run.svg", b"<?xml")])
def test_all_panels_in_both_kinds_of_picture(tracker, drawn, tmp_path, name, start):
    path = plot_run(make_log(), tracker, tmp_path / name)
    assert path == tmp_path / name
    assert path.read_bytes().startswith(start)
    assert list(panels(drawn[0])) == list(PANELS.values())
    for axis in drawn[0].axes:
        assert axis.get_xlabel()
        assert axis.get_ylabel()


def test_curves_are_those_of_the_log(tracker, drawn, tmp_path):
    log = make_log()
    del log[3]["spo/rho"]
    log[4]["spo/rho"] = float("nan")
    plot_run(log, tracker, tmp_path / "run.png")
    found = panels(drawn[0])
    lines = found["Reward"].lines
    assert lines[0].get_xdata().tolist() == STEPS
    assert lines[0].get_ydata().tolist() == [record["reward"] for record in log]
    assert found["Values"].lines[0].get_ydata().tolist() == [record["spo/value_mean"] for record in log]
    band = found["Values"].collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == (0.1, 0.8)
    assert found["Kept at a visit"].lines[0].get_xdata().tolist() == STEPS[:3] + STEPS[5:]
    assert found["Divergence since the last visit"].lines[0].get_ydata()[-1] == pytest.approx(0.6)


def test_calibration_and_visits_are_those_of_the_tracker(tracker, drawn, tmp_path):
    plot_run(make_log(), tracker, tmp_path / "run.png")
    found, table = panels(drawn[0]), calibration_table(tracker)
    np.testing.assert_allclose(
        found["Calibration"].collections[0].get_offsets(), np.transpose([table["value"], table["reward"]])
    )
    assert [text.get_text() for text in found["Calibration"].texts] == [f"{count:.0f}" for count in table["count"]]
    bars = found["Visits by difficulty"]
    by_value = sorted((tracker.values[row], int(tracker.visits[row])) for row in range(4))
    assert [bar.get_height() for bar in bars.patches] == [visits for _, visits in by_value]
    for bar, (value, _) in zip(bars.patches, by_value, strict=True):
        assert bar.get_x() <= value < bar.get_x() + 0.1
    assert [text.get_text() for text in bars.texts] == ["1"] * 4
    (floor,) = (line for line in bars.lines if line.get_label().startswith("floor"))
    assert floor.get_ydata() == pytest.approx([0.05 * 15 / 4] * 2)
    assert bars.get_ylim()[1] > 7


def test_a_panel_without_its_numbers_is_left_out(tracker, drawn, tmp_path):
    plot_run([{"step": 1, "loss": 0.0, "reward": 1.0}], None, tmp_path / "run.png")
    assert list(panels(drawn[0])) == ["Reward"]
    plot_run([], tracker, tmp_path / "run.png")
    assert list(panels(drawn[1])) == ["Calibration", "Visits by difficulty"]
    assert "floor" not in str([line.get_label() for line in panels(drawn[1])["Visits by difficulty"].lines])
    figure = Figure()
    assert draw_panel(figure.subplots(), "values", run_tables(make_log())) is True
    axis = Figure().subplots()
    assert draw_panel(axis, "values", run_tables([])) is False
    assert not axis.has_data()


def test_rewards_of_any_size(drawn, tmp_path):
    tracker = ValueTracker(3, kind="average")
    tracker.update([0, 1, 2], [-4.0, 6.0, 2.0])
    log = [{**record, "reward": record["reward"] - 5, "spo/value_p10": -4.0} for record in make_log()]
    plot_run(log, tracker, tmp_path / "run.png")
    found = panels(drawn[0])
    assert "Calibration" not in found
    assert found["Reward"].get_ylim()[0] < -4.5
    assert found["Values"].get_ylim()[0] < -4


@pytest.fixture
def folder(tracker, tmp_path):
    """The output folder of a run, with the tracker in its checkpoint."""
    checkpoint = tmp_path / "run" / "checkpoint-60"
    checkpoint.mkdir(parents=True)
    state = {"global_step": 60, "max_steps": 60, "log_history": make_log()}
    (checkpoint / "trainer_state.json").write_text(json.dumps(state))
    write_tracker(checkpoint / TRACKER_FILE, tracker)
    return tmp_path / "run"


def test_a_run_or_a_checkpoint_brings_its_tracker(folder, drawn, tmp_path):
    for source in (folder, str(folder / "checkpoint-60")):
        plot_run(source, None, tmp_path / "run.png")
        assert list(panels(drawn[-1])) == list(PANELS.values())
    other = ValueTracker(4)
    other.update([0], [1.0])
    plot_run(folder, other, tmp_path / "run.png")
    assert [bar.get_height() for bar in panels(drawn[-1])["Visits by difficulty"].patches] == [0.0, 1.0]
    (folder / "checkpoint-60" / TRACKER_FILE).unlink()
    plot_run(folder, None, tmp_path / "run.png")
    assert "Calibration" not in panels(drawn[-1])


def test_what_cannot_be_drawn(tracker, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="there is nothing to draw"):
        plot_run([{"step": 1, "loss": 0.0}], ValueTracker(3), tmp_path / "run.png")
    with pytest.raises(FileNotFoundError, match=r"no trainer_state\.json"):
        plot_run(tmp_path, None, tmp_path / "run.png")
    with pytest.raises(ValueError, match=r"has no ending of a picture"):
        plot_run(make_log(), tracker, tmp_path / "run.txt")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None)
    with pytest.raises(ValueError, match=r"pip install mmbert-hf\[plots\]"):
        plot_run(make_log(), tracker, tmp_path / "run.png")


def test_importing_the_module_imports_nothing_heavy():
    heavy = "{'matplotlib', 'torch', 'trl', 'transformers', 'datasets'}"
    code = f"import sys, mmbert_hf.trainers.spo.plots; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
