import pytest

pytest.importorskip("matplotlib", reason="pictures need the extra [plots]")

from matplotlib.figure import Figure

from mmbert_hf import plotting
from mmbert_hf.evaluation import EvaluationResults, Score
from mmbert_hf.evaluation.results_plot import MOST_BARS, plot_results


@pytest.fixture
def drawn(monkeypatch):
    figures = []
    save = Figure.savefig
    monkeypatch.setattr(plotting, "DPI", 30)
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *args, **more: (figures.append(self), save(self, *args, **more))
    )
    return figures


def test_bars_are_the_scores_the_best_first(tmp_path, drawn):
    values = {"dan": 0.2, "fao": 0.5, "isl": 0.3}
    scores = [
        Score("a", "own", "f1", value + seed / 10, language=code, seed=seed)
        for code, value in values.items()
        for seed in (1, 3)
    ]
    scores += [
        Score("a", "own", "loss", value, higher_is_better=False, language=code) for code, value in values.items()
    ]
    path = plot_results(EvaluationResults("tagging", "tiny", scores), tmp_path / "new" / "results.png")
    assert path.stat().st_size > 1000
    assert [each.name for each in path.parent.iterdir()] == ["results.png"]
    f1, loss = drawn[0].axes
    assert [round(bar.get_width(), 6) for bar in f1.patches] == [0.7, 0.5, 0.4]
    assert [label.get_text() for label in f1.get_yticklabels()] == ["own fao", "own isl", "own dan"]
    assert [bar.get_width() for bar in loss.patches] == [0.2, 0.3, 0.5]
    assert loss.get_title(loc="left") == "loss (less is better)"
    assert len(f1.containers) > len(loss.containers)  # the deviations


def test_many_sets_are_cut_and_none_is_told(tmp_path, drawn):
    scores = [Score("a", f"set {number}", "f1", number / 100) for number in range(MOST_BARS + 5)]
    plot_results(EvaluationResults("mteb", "tiny", scores), tmp_path / "results.png")
    assert len(drawn[0].axes[0].patches) == MOST_BARS
    assert drawn[0].axes[0].get_xlabel() == f"the best {MOST_BARS} of {MOST_BARS + 5}"
    with pytest.raises(ValueError, match="no scores to draw"):
        plot_results(EvaluationResults("mteb", "tiny", []), tmp_path / "results.png")
