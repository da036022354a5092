"""The second part of the demo on a tiny embedder: what is pruned, measured, published and loaded back."""

import dataclasses
import io
import json
import shutil
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from mmbert_hf.data.wordnet import load_wordnet_triplets
from mmbert_hf.demo import pipeline, pruning
from mmbert_hf.demo.pipeline import run_demo
from mmbert_hf.demo.settings import PruneSettings
from mmbert_hf.demo.state import STAGES

TINY = PruneSettings(
    num_triplets=40,
    num_scored=8,
    ffn_width=16,
    retrain_steps=2,
    batch_size=4,
    learning_rate=1e-2,
    num_queries=12,
    num_latency_texts=4,
)


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> str:
    """A tiny embedder that reads WordNet, saved as plain sentence-transformers saves it, with a licence in its card."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
    from tokenizers import BertWordPieceTokenizer
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("embedder")
    trained = BertWordPieceTokenizer()
    trained.train_from_iterator(load_wordnet_triplets("living")["positive"][:400], vocab_size=900, show_progress=False)
    trained.save(str(folder / "tokenizer.json"))
    tokenizer = BertTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), model_max_length=64)
    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=64,
        vocab_size=len(tokenizer),
        initializer_range=0.2,
    )
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    modules = [Transformer(str(folder)), Pooling(32, pooling_mode="mean"), Normalize()]
    SentenceTransformer(modules=modules, device="cpu").save_pretrained(str(folder / "saved"))
    (folder / "saved" / "README.md").write_text("---\nlicense: mit\n---\n# Tiny\n")
    return str(folder / "saved")


@pytest.fixture(scope="module")
def settings(source) -> PruneSettings:
    return dataclasses.replace(TINY, embedder=source)


@pytest.fixture(scope="module")
def demo(settings, tmp_path_factory) -> tuple[Path, dict]:
    folder, printed = tmp_path_factory.mktemp("demo") / "out", io.StringIO()
    with redirect_stdout(printed), redirect_stderr(printed):
        metrics = run_demo(folder, prune_settings=settings, only="prune", progress=False)
    assert printed.getvalue() == ""  # without progress it says nothing
    return folder, metrics


def test_metrics_hold_the_pruning_and_nothing_of_the_encoder(demo, settings):
    folder, metrics = demo
    prune = metrics["prune"]
    assert json.loads((folder / "metrics.json").read_text()) == json.loads(json.dumps(metrics))
    assert not {"phases", "heldout", "bitext", "hub", "settings"} & set(metrics)
    assert set(metrics["stages"]) == set(STAGES["prune"])
    assert prune["settings"] == settings.as_dict()
    assert prune["width"] == (48, 16)
    assert prune["vocabulary"][1] < prune["vocabulary"][0]
    assert prune["scored_triplets"] == {"domain": 8, "general": 8}
    assert prune["retraining"]["steps"] == 2
    assert prune["retraining"]["teacher"] == "trained"
    assert prune["retraining"]["num_rows"] == 80
    assert sum(check["holds"] is not None for check in metrics["checks"]) == 3


def test_four_models_are_measured_and_they_differ(demo):
    _, metrics = demo
    prune = metrics["prune"]
    models = ["dense", "control", "one-shot", "pruned"]
    assert prune["models"] == models
    sizes = [prune["footprint"][model]["num_parameters"] for model in models]
    assert sizes[0] == sizes[1] > sizes[2] == sizes[3]
    for name in ("domain", "general"):
        assert prune["quality"][name]["num_queries"] == 12
        shapes = [prune["embeddings"][name][model]["uniformity"] for model in models]
        assert len(set(shapes)) == 4  # no model is measured twice under two names


def test_the_published_embedder_loads_without_the_package(demo):
    folder, metrics = demo
    hub = metrics["prune"]["hub"]
    assert hub["reload_max_abs_diff"] < 1e-5
    assert hub["reload_class"].startswith("SentenceTransformer around transformers.models.bert.")
    assert all(module.startswith("sentence_transformers.") for module in hub["reload_modules"])
    files = {file["name"] for file in hub["files"]}
    assert {"README.md", "config.json", "model.safetensors", "pruning.json", "plots/before_and_after.png"} <= files
    card = (folder / "prune" / "export" / "README.md").read_text()
    assert "license: mit" in card  # from the parent's card
    assert f'SentenceTransformer("{pruning.REPO_ID}")' in card
    for row in ("one-shot", "control", "nDCG@10, domain", "nDCG@10, general", "bytes on disk"):
        assert row in card
    report = json.loads((folder / "prune" / "export" / "pruning.json").read_text())
    assert report["args"]["granularity"] == "vocabulary,ffn"
    assert report["num_parameters"] == [metrics["prune"]["footprint"][m]["num_parameters"] for m in ("dense", "pruned")]


def test_a_reload_that_differs_is_seen(demo, settings, monkeypatch):
    """The comparison is of what the Hub gave: another model published under the name must show."""
    folder, metrics = demo
    job = pruning.PruneJob(settings, folder / "prune", Path(settings.embedder), progress=False)
    real = pruning.publish_to_hub
    monkeypatch.setattr(
        pruning, "publish_to_hub", lambda _, *args, **options: real(job.folder / "one-shot", *args, **options)
    )
    measured = {name: metrics["prune"][name] for name in ("models", "quality", "embeddings", "footprint", "latency")}
    assert pruning.publish(job, measured)["reload_max_abs_diff"] > 1e-3


def test_nothing_that_is_measured_was_trained_on(settings):
    job = pruning.PruneJob(settings, Path("unused"), Path("unused"))
    for name, test in job.tests.items():
        seen = {text for rows in job.train.values() for column in pruning.COLUMNS for text in rows[column]}
        assert not seen & {*test.queries, *test.documents}, name
    whole = pruning.PruneJob(PruneSettings(), Path("unused"), Path("unused"))
    assert {name: len(test.queries) for name, test in whole.tests.items()} == {"domain": 300, "general": 300}


def test_the_seed_draws_the_samples(settings):
    first, again, other = (
        pruning.PruneJob(dataclasses.replace(settings, seed=seed), Path("unused"), Path("unused")) for seed in (1, 1, 2)
    )
    assert first.tests == again.tests != other.tests
    assert first.train["domain"]["anchor"] == again.train["domain"]["anchor"] != other.train["domain"]["anchor"]


def test_a_stopped_demo_goes_on_with_the_stage_that_is_missing(demo, settings, tmp_path, monkeypatch, caplog):
    _, expected = demo
    done = []
    for name in ("prune", "retrain", "measure", "publish"):
        real = getattr(pruning, name)

        def counted(*args, name=name, real=real):
            if name == "measure" and "measure" not in done:
                done.append(name)
                raise KeyboardInterrupt
            done.append(name)
            return expected["prune"]["hub"] if name == "publish" else real(*args)  # a process of its own takes seconds

        monkeypatch.setattr(pruning, name, counted)
    folder = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt, match=r"what is done is kept in .*give the same command again"):
        run_demo(folder, prune_settings=settings, only="prune", progress=False)
    assert done == ["prune", "retrain", "measure"]
    done.append("again")
    with caplog.at_level("INFO", logger="mmbert_hf"):
        metrics = run_demo(folder, prune_settings=settings, only="prune", progress=False)
    assert done[4:] == ["measure", "publish"]
    assert "stages already done: prune, prune_retrain)" in caplog.text
    assert metrics["prune"]["quality"] == expected["prune"]["quality"]


def test_a_finished_pruning_is_reported_beside_an_encoder_without_the_embedder(demo, settings, tmp_path, monkeypatch):
    """The encoder is added later, where the embedder is gone: its record is enough."""
    folder = tmp_path / "out"
    shutil.copytree(demo[0], folder)
    encoder = {"seed": 1, "settings": {"seed": 1, "steps": 5}, "phases": []}
    monkeypatch.setattr(pipeline, "_run_encoder", lambda state, progress: (encoder, {}, None))
    metrics = run_demo(folder, only="encoder", progress=False)
    assert metrics["prune"] == json.loads(json.dumps(demo[1]["prune"]))
    assert (
        "not measured"
        not in (folder / "report.html").read_text().partition('<section id="prune">')[2].partition("</section>")[0]
    )
