import doctest
import importlib.util
import math

import pytest

pytest.importorskip("matplotlib", reason="pictures need the extra [plots]")

from matplotlib.figure import Figure

from mmbert_hf import plotting
from mmbert_hf.plotting import batch_rows_at, plot_recipe, plot_run
from mmbert_hf.presets import get_preset
from mmbert_hf.recipes import Phase, Recipe
from mmbert_hf.run_log import RunLog
from mmbert_hf.step_plan import plan_steps


@pytest.fixture(autouse=True)
def coarse(monkeypatch):
    monkeypatch.setattr(plotting, "DPI", 30)  # nobody looks at these pixels


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are written, to look at their lines."""
    figures = []
    save = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *args, **more: (figures.append(self), save(self, *args, **more))
    )
    return figures


def panels(figure):
    return {axis.get_title(loc="left"): axis for axis in figure.axes}


def texts(axis):
    return [text.get_text() for text in axis.texts]


@pytest.fixture
def run():
    steps = list(range(1, 41))
    training = {
        "step": steps,
        "tokens": [step * 1000 for step in steps],
        "loss": [9.0] * 20 + [4.0] * 20,
        "phase": [0] * 20 + [1] * 20,
        "mask_ratio": [0.3] * 20 + [0.05] * 20,
        "learning_rate": [1e-3] * 40,
        "tokens_per_second": [None, *[5e4] * 39],
    }
    evaluation = {"step": [20, 30, 40], "eval_loss_eng": [3.0, 3.5, 4.0], "eval_loss_fao": [6.0, None, 5.0]}
    evaluation["eval_loss_new"] = [None, None, 5.0]
    return RunLog("state", 40, 80, training, evaluation, {"phases": [{"name": "pretrain"}, {"name": "decay"}]})


def test_docstring_examples():
    results = doctest.testmod(plotting)
    assert results.failed == 0
    assert results.attempted > 4


def test_a_run_is_drawn_over_tokens(tmp_path, run, drawn):
    path = plot_run(run, tmp_path / "new" / "run.png")
    assert path.read_bytes().startswith(b"\x89PNG")
    axes = panels(drawn[0])
    assert set(axes) == {
        "Training loss",
        "Learning rate",
        "Mask ratio and language temperature",
        "Throughput",
        "Held-out loss, first and last evaluation",
    }
    loss = axes["Training loss"]
    assert texts(loss) == ["pretrain", "decay"]
    assert loss.get_xlabel() == "tokens"
    assert loss.get_xlim() == (0, 40_000)
    shade = next(patch for patch in loss.patches if patch.get_x() > 0)
    assert shade.get_x() == 20_000


def test_the_moving_mean_does_not_cross_a_phase(tmp_path, run, drawn):
    plot_run(run, tmp_path / "run.png")
    faint, first, second = panels(drawn[0])["Training loss"].lines
    assert list(faint.get_ydata()) == run.training["loss"]
    assert set(first.get_ydata()) == {9.0}
    assert set(second.get_ydata()) == {4.0}
    assert len(first.get_ydata()) == len(second.get_ydata()) == 20


def test_languages_are_shown_first_and_last(tmp_path, run, drawn):
    plot_run(run, tmp_path / "run.png")
    axis = panels(drawn[0])["Held-out loss, first and last evaluation"]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["fao", "eng"]  # `new` was measured once
    by_label = {line.get_label(): list(line.get_xdata()) for line in axis.lines}
    assert (by_label["first"], by_label["last"]) == ([6.0, 3.0], [5.0, 4.0])


def test_a_run_without_phases_and_tokens_is_drawn_over_steps(tmp_path, drawn):
    run = RunLog("state", 2, 2, {"step": [1, 2], "loss": [math.nan, 3.0]}, {"step": []})
    plot_run(run, tmp_path / "run.svg")
    (axis,) = drawn[0].axes
    assert axis.get_xlabel() == "step"
    assert list(axis.lines[0].get_xdata()) == [2.0]


def test_a_run_that_logged_nothing_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no record of a training loss"):
        plot_run(RunLog("state", 0, 9, {"step": [], "loss": []}, {"step": []}), tmp_path / "run.png")


def test_a_recipe_is_drawn_over_its_tokens(tmp_path, drawn):
    recipe = get_preset("mmbert-base-paper").recipe
    plot_recipe(recipe, tmp_path / "recipe.png")
    axes = panels(drawn[0])
    assert set(axes) == {"Learning rate", "Mask ratio and language temperature", "Row length", "Batch size"}
    rate = axes["Learning rate"]
    assert texts(rate) == ["pretrain", "extend", "decay"]
    assert rate.get_xlim() == (0, 3e12)
    (line,) = rate.lines
    assert (line.get_ydata()[0], max(line.get_ydata())) == (0.0, 8e-4)
    assert line.get_ydata()[-1] == pytest.approx(0.02 * 8e-4)
    ratio, temperature = axes["Mask ratio and language temperature"].lines
    assert sorted(set(ratio.get_ydata())) == [0.05, 0.15, 0.30]
    assert sorted(set(temperature.get_ydata())) == [0.3, 0.5, 0.7]
    (rows,) = axes["Batch size"].lines
    assert (rows.get_ydata()[0], rows.get_ydata()[-1]) == (48, 4608)


def test_what_a_recipe_leaves_open_is_left_out(tmp_path, drawn):
    plot_recipe(Recipe([Phase("only", 1.0, None, 0.7, 0.3)]), tmp_path / "recipe.png")
    axes = panels(drawn[0])
    assert "Batch size" not in axes
    assert axes["Learning rate"].get_xlabel() == "share of the run"
    assert "share of the peak" in axes["Learning rate"].get_ylabel()


def test_the_batch_size_is_that_of_the_plan():
    phase = Phase("a", 1.0, None, 0.7, 0.3, 100, learning_rate=1e-3, batch_rows=64, min_batch_rows=8, batch_warmup=0.5)
    plan = plan_steps(Recipe([phase], 2_000_000))
    for step in range(0, plan.num_steps, 37):
        drawn = batch_rows_at(phase, int(plan.tokens_before[step]) / 2_000_000)
        assert abs(drawn - plan.rows[step]) <= 1, step


def test_an_ending_that_is_no_picture_is_refused(tmp_path, run):
    with pytest.raises(ValueError, match=r"run.txt has no ending of a picture; take one of .*\.png"):
        plot_run(run, tmp_path / "run.txt")


def test_without_matplotlib_the_error_says_what_to_install(tmp_path, run, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "matplotlib" else find(name, *more)
    )
    with pytest.raises(ValueError, match=r"pip install mmbert-hf\[plots\]"):
        plot_run(run, tmp_path / "run.png")
