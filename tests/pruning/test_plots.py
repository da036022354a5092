"""Pictures show the numbers of the report; correlations are those of all weights."""

import doctest
import importlib.util

import numpy as np
import pytest
import torch

pytest.importorskip("matplotlib", reason="pictures need the extra [plots]")

from matplotlib.figure import Figure
from scipy.stats import spearmanr

from mmbert_hf import plotting
from mmbert_hf.pruning import GAPruneConfig, PrunedEmbedder, PruningReport, plots
from mmbert_hf.pruning.masks import PruningMask
from mmbert_hf.pruning.plots import plot_pruning, score_rank_correlations
from mmbert_hf.pruning.scores import METHODS, Scorer
from mmbert_hf.pruning.targets import encoder_of, find_targets


@pytest.fixture(autouse=True)
def coarse(monkeypatch):
    monkeypatch.setattr(plotting, "DPI", 30)  # nobody looks at these pixels


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are written, to look at their bars and texts."""
    figures = []
    save = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *args, **more: (figures.append(self), save(self, *args, **more))
    )
    return figures


def panels(figure):
    return {axis.get_title(loc="left"): axis for axis in figure.axes}


def test_docstring_examples():
    result = doctest.testmod(plots)
    assert result.attempted >= 3
    assert result.failed == 0


MEASURED = {
    "models": ["dense", "pruned"],
    "quality": {"domain": {"ndcg_at_10": {"dense": 0.5, "pruned": 0.25}}},
    "footprint": {"dense": {"bytes_on_disk": 8_000_000}, "pruned": {"bytes_on_disk": 2_000_000}},
    "latency": {
        "num_texts": 7,
        "seconds": {
            "dense": {"median_seconds": 2.0, "low_seconds": 1.5, "high_seconds": 3.0},
            "pruned": {"median_seconds": 1.0, "low_seconds": 0.5, "high_seconds": 1.25},
        },
    },
}


def test_bars_are_what_was_measured(tmp_path, drawn):
    paths = plot_pruning(PruningReport(GAPruneConfig().to_dict(), measured=MEASURED), tmp_path)
    assert [path.name for path in paths] == ["before_and_after.png"]
    assert paths[0].read_bytes().startswith(b"\x89PNG")
    found = panels(drawn[0])
    assert set(found) == {"nDCG@10, domain", "Size", "Latency"}
    heights = {name: [bar.get_height() for bar in axis.patches] for name, axis in found.items()}
    assert heights == {"nDCG@10, domain": [0.5, 0.25], "Size": [8.0, 2.0], "Latency": [2.0, 1.0]}
    assert [line.get_ydata().tolist() for line in found["Latency"].lines] == [[1.5, 3.0], [0.5, 1.25]]
    assert found["Latency"].get_ylim()[1] > 3.0, "the slowest repeat is in the picture"


def test_sparsity_of_every_layer(tmp_path, drawn):
    sparsity = {f"layers.{number}.mlp.Wo": number / 40 for number in range(40)}
    plot_pruning(PruningReport({}, sparsity_per_layer=sparsity), tmp_path)
    (axis,) = drawn[0].axes
    assert [bar.get_width() for bar in axis.patches] == list(sparsity.values())
    assert len(axis.get_yticks()) <= 16


def test_all_pictures_of_a_pruned_model(bert_embedder, collect, tmp_path):
    statistics = collect(bert_embedder)
    mask = PruningMask({"encoder.layer.0.output.dense": torch.rand(32, 48) > 0.5})
    report = PruningReport({}, sparsity_per_layer=mask.per_tensor(), measured=MEASURED)
    pruned = PrunedEmbedder(bert_embedder, mask, report, bert_embedder)
    paths = plot_pruning(pruned, tmp_path / "pictures", statistics)
    assert [path.stem for path in paths] == ["sparsity_per_layer", "score_correlation", "before_and_after"]
    assert all(path.is_file() for path in paths)
    pruned.dense = None
    for without in (pruned, report):
        with pytest.raises(ValueError, match="scores are those of the dense model"):
            plot_pruning(without, tmp_path, statistics)


def test_correlations_are_spearmans(bert_embedder, collect):
    statistics = collect(bert_embedder)
    found = score_rank_correlations(bert_embedder, statistics)
    encoder = encoder_of(bert_embedder)
    weights = {t.name: encoder.get_submodule(t.name).weight.detach() for t in find_targets(bert_embedder, "mlp")}
    scores = {}
    for method in ("obd", "wanda"):
        scorer = Scorer(method, weights, statistics)
        scores[method] = torch.cat([scorer.score(name).flatten() for name in weights]).numpy()
    assert found["obd"]["wanda"] == pytest.approx(spearmanr(scores["obd"], scores["wanda"]).statistic)
    assert set(found) == set(METHODS)
    assert all(found[method][method] == pytest.approx(1.0) for method in METHODS)
    assert found["dai"]["obd"] == found["obd"]["dai"]
    assert abs(found["random"]["magnitude"]) < 0.1


def test_a_sample_is_the_same_for_all_scores_and_near_the_whole(bert_embedder, collect):
    statistics = collect(bert_embedder)
    methods = ["obd", "magnitude"]
    whole = score_rank_correlations(bert_embedder, statistics, methods)
    some = score_rank_correlations(bert_embedder, statistics, methods, max_weights=3000)
    assert some == score_rank_correlations(bert_embedder, statistics, methods, max_weights=3000)
    assert some != whole
    assert some["obd"]["magnitude"] == pytest.approx(whole["obd"]["magnitude"], abs=0.1)
    assert some["obd"]["obd"] == pytest.approx(1.0)


def test_places_of_a_sample_are_spread_over_the_layers():
    sizes = [10, 1000, 5]
    places = plots._sample(sizes, 500, seed=0)
    assert sum(map(len, places)) == 500
    for size, each in zip(sizes, places, strict=True):
        assert len(each) == 0 or (each.min() >= 0 and each.max() < size)
        assert len(np.unique(each)) == len(each)


def test_a_score_that_is_constant_has_no_rank(bert_embedder, collect):
    statistics = collect(bert_embedder)
    for target in find_targets(bert_embedder, "mlp"):
        encoder_of(bert_embedder).get_submodule(target.name).weight.data.fill_(0.5)
    found = score_rank_correlations(bert_embedder, statistics, ["magnitude", "fisher-domain"])
    assert found["magnitude"]["fisher-domain"] is None
    assert found["fisher-domain"]["fisher-domain"] == pytest.approx(1.0)


def test_what_cannot_be_drawn(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="nothing to draw"):
        plot_pruning(PruningReport({}), tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None)
    with pytest.raises(ValueError, match=r"pip install mmbert-hf\[plots\]"):
        plot_pruning(PruningReport({}, sparsity_per_layer={"a": 0.5}), tmp_path)
