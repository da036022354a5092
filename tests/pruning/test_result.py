"""A pruned embedder is measured, retrained, saved whole or not at all, and loaded again to go on."""

import copy
import json
import stat

import pytest
import torch
from huggingface_hub import ModelCard

from mmbert_hf.evaluation.retrieval import RetrievalSet
from mmbert_hf.pruning import GAPruneConfig, GAPruner, PrunedEmbedder
from mmbert_hf.pruning.result import MASK_FILE
from mmbert_hf.pruning.targets import encoder_of

OPTIONS = {"batch_size": 4, "progress": False}
TEXTS = ["free equal dignity", "law of the country"]


@pytest.fixture
def prune(make_triplets):
    """A function from a model and options to what `GAPruner` makes of it."""

    def run(model, **options):
        args = GAPruneConfig(**{"method": "magnitude", "width_multiple": 4, **options})
        pruner = GAPruner(model, make_triplets(8, seed=1), make_triplets(8, seed=2), args)
        return pruner.prune(progress=False)

    return run


@pytest.fixture
def retrieval_set(make_triplets):
    rows = make_triplets(6, seed=3)
    return RetrievalSet.from_pairs(rows["anchor"], rows["positive"])


def embeddings(model):
    return model.encode(TEXTS, convert_to_tensor=True, show_progress_bar=False)


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """sentence-transformers asks the Hub for the parent of a model that it trains, if it may."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def test_measured_of_dense_and_pruned(bert_embedder, prune, retrieval_set):
    pruned = prune(bert_embedder, granularity="ffn")
    measured = pruned.measure(retrieval_set, batch_size=4)
    assert pruned.report.measured == measured
    assert measured["models"] == ["dense", "pruned"]
    assert "general" not in measured["quality"]
    sizes = measured["footprint"]
    assert sizes["pruned"]["bytes_on_disk"] < sizes["dense"]["bytes_on_disk"]
    assert pruned.report.to_dict()["measured"] == measured  # JSON


def test_zeros_stay_through_retraining_and_the_report_says_what_was_done(bert_embedder, prune, make_triplets):
    pruned = prune(bert_embedder, sparsity=0.5)
    pruned.report.measured = {"quality": {}}
    before = weights(pruned.model)
    assert pruned.retrain(make_triplets(8, seed=1), steps=2, teacher=None, **OPTIONS) is pruned.model
    assert not same(before, weights(pruned.model))
    pruned.mask.check(pruned.model)
    pruned.retrain(make_triplets(8, seed=1), 2, teacher="dense", learning_rate=1e-3, seed=5, **OPTIONS)
    first, second = pruned.report.measured["retraining"]
    assert first == {
        "steps": 2, "num_rows": 8, "teacher": None, "batch_size": 4, "learning_rate": 1e-4, "seed": 0
    }  # fmt: skip
    assert (second["teacher"], second["learning_rate"], second["seed"]) == ("dense", 1e-3, 5)
    assert second["distillation_weight"] == 4.0
    assert "quality" not in pruned.report.measured, "what was measured before is not of this model"


def test_the_trained_teacher_is_the_control_and_is_measured(bert_embedder, prune, make_triplets, retrieval_set):
    from mmbert_hf.trainers.gaprune import retrain

    pruned = prune(bert_embedder, granularity="ffn")
    dense = weights(bert_embedder)
    alone = retrain(copy.deepcopy(bert_embedder), make_triplets(8, seed=1), steps=3, **OPTIONS)
    pruned.retrain(make_triplets(8, seed=1), steps=3, teacher="trained", distillation_weight=0.5, **OPTIONS)
    assert same(dense, weights(bert_embedder)), "the dense model is not trained"
    assert same(weights(alone), weights(pruned.control)), "the control has the same steps, and nothing else"
    measured = pruned.measure(retrieval_set)
    assert measured["models"] == ["dense", "control", "pruned"]
    assert pruned.report.measured["retraining"][0]["teacher"] == "trained"
    assert set(measured["quality"]["domain"]["difference"]) == {"dense", "control"}
    again = weights(pruned.control)
    pruned.retrain(make_triplets(8, seed=1), steps=2, teacher="trained", **OPTIONS)
    assert not same(again, weights(pruned.control)), "a second call trains the control on"


def test_a_teacher_reads_a_trimmed_vocabulary_by_token(bert_embedder, prune, make_triplets, monkeypatch):
    from mmbert_hf.trainers import distillation

    pruned = prune(bert_embedder, granularity="vocabulary")
    assert len(pruned.model.tokenizer) < len(bert_embedder.tokenizer)
    seen = []
    term = distillation.distillation_term

    def watched(*given):
        seen.append(term(*given))
        return seen[-1]

    monkeypatch.setattr(distillation, "distillation_term", watched)
    for dropout in [module for module in pruned.model.modules() if isinstance(module, torch.nn.Dropout)]:
        dropout.p = 0.0
    pruned.retrain(make_triplets(8, seed=1), steps=1, **OPTIONS)
    # The trimmed model gives what the dense one gives, so the teacher agrees if it reads the same tokens.
    assert float(seen[0].detach()) < 1e-4


def test_bad_teachers(bert_embedder, mpnet_embedder, modernbert_embedder, mmbert_embedder, prune, make_triplets):
    pruned = prune(bert_embedder)
    before = weights(pruned.model)
    rows = make_triplets(8, seed=1)
    with pytest.raises(ValueError, match="'dense', 'trained', None or an embedder; got 'best'"):
        pruned.retrain(rows, teacher="best")
    with pytest.raises(ValueError, match="tokens of the student are not in the teacher's vocabulary"):
        pruned.retrain(rows, teacher=mmbert_embedder)
    with pytest.raises(ValueError, match="mask cannot be given"):
        pruned.retrain(rows, mask=pruned.mask)
    pruned.dense = None
    for teacher in ("dense", "trained"):
        with pytest.raises(ValueError, match="from_pretrained"):
            pruned.retrain(rows, teacher=teacher)
    with pytest.raises(ValueError, match="measuring needs the model before pruning"):
        pruned.measure()
    assert same(before, weights(pruned.model))


def test_what_is_saved_is_all_of_it(bert_embedder, prune, tmp_path):
    pruned = prune(bert_embedder, sparsity=0.4)
    folder = pruned.save_pretrained(tmp_path / "small")
    names = {path.name for path in folder.iterdir()}
    assert {"model.safetensors", "tokenizer.json", "modules.json", MASK_FILE, "pruning.json", "README.md"} <= names
    assert 'SentenceTransformer("small")' in (folder / "README.md").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["small"]
    for path in folder.rglob("*"):
        wanted = 0o755 if path.is_dir() else 0o644
        assert stat.S_IMODE(path.stat().st_mode) & wanted == wanted, path


def test_nothing_is_saved_when_something_is_wrong(bert_embedder, prune, tmp_path, monkeypatch):
    pruned = prune(bert_embedder)
    encoder_of(pruned.model).encoder.layer[0].output.dense.weight.data.fill_(1.0)
    with pytest.raises(RuntimeError, match="pruned weights are not zero"):
        pruned.save_pretrained(tmp_path / "small")
    pruned.mask.apply(pruned.model)
    monkeypatch.setattr(type(pruned.report), "save", lambda *_: (_ for _ in ()).throw(OSError("no space left")))
    with pytest.raises(OSError, match="no space left"):
        pruned.save_pretrained(tmp_path / "small")
    assert list(tmp_path.iterdir()) == []


def test_replaced_whole(bert_embedder, prune, tmp_path):
    folder = prune(bert_embedder, sparsity=0.4).save_pretrained(tmp_path / "small")
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model_int8.onnx").write_text("of the old weights")
    (folder / "notes.txt").write_text("mine")
    smaller = prune(bert_embedder, granularity="ffn")
    with pytest.raises(FileExistsError, match="not empty"):
        smaller.save_pretrained(folder)
    assert (folder / MASK_FILE).is_file()
    smaller.save_pretrained(folder, overwrite=True)
    assert not (folder / MASK_FILE).exists()
    assert not (folder / "onnx" / "model_int8.onnx").exists()
    assert (folder / "notes.txt").read_text() == "mine"
    assert PrunedEmbedder.from_pretrained(folder, device="cpu").mask is None


def test_int8_lies_in_the_same_folder(bert_embedder, prune, tmp_path):
    pytest.importorskip("onnxruntime")
    from mmbert_hf.pruning.int8 import Int8Embedder

    folder = prune(bert_embedder, granularity="ffn").save_pretrained(tmp_path / "small", int8=True)
    assert Int8Embedder(folder).encode(TEXTS).shape == (2, 32)


@pytest.mark.parametrize("family", ["bert", "mmbert", "qwen3"])
def test_loaded_again_to_go_on(family, request, prune, make_triplets, tmp_path):
    dense = request.getfixturevalue(f"{family}_embedder")
    pruned = prune(dense, granularity="vocabulary,weight", sparsity=0.5)
    folder = pruned.save_pretrained(tmp_path / "small")
    again = PrunedEmbedder.from_pretrained(folder, device="cpu")
    assert again.mask == pruned.mask
    assert again.dense is None
    assert again.report.args["granularity"] == "vocabulary,weight"
    torch.testing.assert_close(embeddings(again.model), embeddings(pruned.model))
    again.dense = dense
    again.retrain(make_triplets(8, seed=1), steps=2, **OPTIONS)
    again.mask.check(again.model)


def test_only_a_whole_pruned_embedder_is_loaded(bert_embedder, prune, tmp_path):
    folder = prune(bert_embedder).save_pretrained(tmp_path / "small")
    other = prune(bert_embedder, method="random").mask
    other.save(folder / MASK_FILE)
    with pytest.raises(ValueError, match="is not the one of its report"):
        PrunedEmbedder.from_pretrained(folder)
    (folder / MASK_FILE).unlink()
    with pytest.raises(ValueError, match="is missing"):
        PrunedEmbedder.from_pretrained(folder)
    (folder / "pruning.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"no pruning.json"):
        PrunedEmbedder.from_pretrained(folder)
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        PrunedEmbedder.from_pretrained(tmp_path / "nowhere")


def test_the_parents_licence_comes_along(bert_embedder, prune, tmp_path):
    from sentence_transformers import SentenceTransformer

    parent = tmp_path / "parent"
    bert_embedder.save_pretrained(str(parent), create_model_card=False)
    (parent / "README.md").write_text("---\nlicense: cc-by-4.0\nbase_model: someone/original\n---\n# Parent\n")
    pruned = prune(SentenceTransformer(str(parent), device="cpu"), granularity="ffn", statistics_dir=str(tmp_path))
    folder = pruned.save_pretrained(tmp_path / "small")
    data = ModelCard.load(folder / "README.md").data
    assert data.license == "cc-by-4.0"
    assert data.base_model == "someone/original"
    again = PrunedEmbedder.from_pretrained(folder, device="cpu").save_pretrained(tmp_path / "again")
    data = ModelCard.load(again / "README.md").data
    assert (data.license, data.base_model) == ("cc-by-4.0", "someone/original")
    given = pruned.save_pretrained(tmp_path / "given", license="mit", base_model="you/large", tags=["law"])
    data = ModelCard.load(given / "README.md").data
    assert (data.license, data.base_model) == ("mit", "you/large")
    assert "law" in data.tags
    for path in folder.rglob("*"):
        if path.suffix in (".json", ".md"):
            assert str(tmp_path) not in path.read_text(), f"{path} tells of this computer"
    assert json.loads((folder / "pruning.json").read_text())["base_model"] is None


def test_no_licence_is_invented(bert_embedder, prune, tmp_path):
    folder = prune(bert_embedder).save_pretrained(tmp_path / "small")
    card = ModelCard.load(folder / "README.md")
    assert card.data.license is None
    assert "That licence is not known here" in card.text


def test_training_elsewhere_is_not_denied(bert_embedder, prune, tmp_path):
    """A card never says that a model was not trained when its weights have changed since pruning."""
    pruned = prune(bert_embedder, granularity="ffn", width_multiple=4)
    first = pruned.save_pretrained(tmp_path / "as-pruned")
    assert "It was not trained after pruning" in (first / "README.md").read_text()
    with torch.no_grad():
        next(pruned.model.parameters()).add_(1e-3)
    second = pruned.save_pretrained(tmp_path / "trained")
    card = (second / "README.md").read_text()
    assert "in a training that is not recorded here" in card
    assert "It was not trained" not in card
