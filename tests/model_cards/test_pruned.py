"""The card of a pruned embedder says what was measured, and nothing else."""

import doctest

import pytest
import yaml
from huggingface_hub import ModelCard
from mmbert_hf.model_cards import pruned as module
from mmbert_hf.model_cards.pruned import inherited_metadata, pruned_embedder_card

from mmbert_hf.pruning import GAPruneConfig, PruningReport

MODELS = ("dense", "control", "pruned")


def test_examples_in_the_docstrings():
    result = doctest.testmod(module)
    assert result.attempted >= 8
    assert result.failed == 0


def header(card):
    return yaml.safe_load(card.content.split("---\n")[1])


@pytest.fixture
def report():
    """Everything that a report can hold."""
    shape = {"alignment": 0.5, "uniformity": -2.0, "effective_dimensionality": 30.0, "mean_dimension_correlation": 0.1}
    seconds = {"median_seconds": 1.25, "low_seconds": 1.0, "high_seconds": 2.0}
    sizes = {"weight_bytes": 700_000, "tokenizer_bytes": 300_000, "num_parameters": 175_000}
    quality = {
        "num_queries": 120,
        "num_documents": 118,
        "ndcg_at_10": {"dense": 0.41234, "control": 0.5, "pruned": 0.45678},
        "difference": {
            "dense": {"mean": 0.04444, "low": 0.01, "high": 0.08},
            "control": {"mean": -0.04322, "low": -0.1, "high": 0.0},
        },
    }
    return PruningReport(
        GAPruneConfig(granularity="ffn,vocabulary,layer,weight", method="dai", drop_layers=1).to_dict(),
        statistics="f1n9e7",
        num_triplets={"domain": 3000, "general": 4000},
        num_parameters=(300_000, 175_000),
        num_layers=(6, 5),
        dropped_layers=[3],
        width=(48, 24),
        vocabulary=(3000, 2000),
        coefficients={"alpha": 0.2, "beta": 1.0, "gamma": 0.5},
        term_shares={"domain": 0.1, "general": 0.2, "magnitude": 0.7},
        overlap_with_magnitude=0.4,
        sparsity=0.5,
        sparsity_per_layer={"layers.0.mlp.Wo": 0.5},
        mask="m4s6",
        measured={
            "models": list(MODELS),
            "quality": {"domain": quality, "general": quality},
            "footprint": {
                name: {"bytes_on_disk": 500_000 if name == "pruned" else 1_000_000, **sizes} for name in MODELS
            },
            "latency": {
                "num_texts": 200,
                "batch_size": 32,
                "repeats": 5,
                "machine": "A Processor, 2 threads",
                "seconds": {name: {**seconds, "ratio": 0.625 if name == "pruned" else 1.0} for name in MODELS},
            },
            "embeddings": {
                "domain": {name: shape | ({"cosine_to_dense": 0.9} if name != "dense" else {}) for name in MODELS}
            },
            "retraining": [
                {"steps": 100, "num_rows": 900, "batch_size": 64, "learning_rate": 1e-4, "teacher": "trained"}
            ],
        },
        versions={"torch": "2.13.0"},
    )


def test_a_full_card(report):
    card = pruned_embedder_card("me/small", report, base_model="you/large", license="mit", languages=["en"])
    text = card.text
    for line in (
        "|  | dense | control | pruned |",
        "| nDCG@10, domain (120 queries, 118 documents) | 0.4123 | 0.5000 | 0.4568 |",
        "| pruned less this model, general [95 % interval] | +0.0444 [+0.0100, +0.0800] | -0.0432 [-0.1000, +0.0000] |  |",
        "| bytes on disk | 1,000,000 (100.0%) | 1,000,000 (100.0%) | 500,000 (50.0%) |",
        "| latency, relative to dense | 1.00 | 1.00 | 0.62 |",
        "| seconds for 200 texts: median (fastest to slowest) | 1.25 (1 to 2) | 1.25 (1 to 2) | 1.25 (1 to 2) |",
        "A Processor, 2 threads",
        "| pruned | 0.5000 | -2.0000 | 30.0 | 0.1000 | 0.9000 |",
        "Neurons of each feed-forward: 48 before, 24 after.",
        "Tokens: 3,000 before, 2,000 after.",
        "Transformer blocks: 6 before, 5 after; dropped, counted from 0: 3 (chosen by: loss).",
        "50.0 % of the weights of 1 linear layers are zero",
        "alpha 0.2, beta 1.0, gamma 0.5",
        "domain 0.1, general 0.2, magnitude 0.7",
        "3,000 domain and 4,000 general triplets. Fingerprint of the statistics: `f1n9e7`",
        "Fingerprint: `m4s6`",
        "100 training steps, batches of 64, 900 rows, learning rate 0.0001, distilled from the dense model after the same",
        "Overlap with magnitude: 40.0 %",
        "made from: mit.",
        'SentenceTransformer("me/small")',
        "torch 2.13.0",
    ):
        assert line in text, line
    assert "not measured" not in text
    assert "None" not in text
    assert "chooses as magnitude does" not in text
    metadata = header(card)
    assert metadata["library_name"] == "sentence-transformers"
    assert metadata["pipeline_tag"] == "sentence-similarity"
    assert (metadata["base_model"], metadata["base_model_relation"]) == ("you/large", "finetune")
    assert metadata["license"] == "mit"
    assert "mmbert-hf" in metadata["tags"]
    values = [result["metrics"][0]["value"] for result in metadata["model-index"][0]["results"]]
    assert values == [0.4568, 0.4568]


def test_every_table_is_one_table(report):
    text = pruned_embedder_card("me/small", report).text
    for block in text.split("\n\n"):
        rows = [line for line in block.splitlines() if line.startswith("|")]
        assert len({row.count("|") for row in rows}) <= 1
        assert not rows or rows[1].startswith("|---|")
        assert "\n\n\n\n" not in text


def test_a_card_of_nothing_says_so():
    card = pruned_embedder_card("me/small", PruningReport(GAPruneConfig(granularity="vocabulary").to_dict()))
    for line in (
        "| nDCG@10, domain | not measured | not measured |",
        "| nDCG@10, general | not measured | not measured |",
        "| bytes on disk | not measured | not measured |",
        "| latency | not measured | not measured |",
        "Overlap with magnitude: not measured",
        "It was not trained after pruning",
        "That licence is not known here",
    ):
        assert line in card.text, line
    assert "None" not in card.text
    assert "Score:" not in card.text
    assert not {"license", "model-index", "base_model", "base_model_relation"} & header(card).keys()


def test_a_score_that_is_magnitude_is_called_so(report):
    report.overlap_with_magnitude = 0.96
    text = pruned_embedder_card("me/small", report).text
    assert "96.0 % of what was pruned is what magnitude alone would have pruned. On this model the" in text
    report.args["method"] = "magnitude"
    assert "On this model the" not in pruned_embedder_card("me/small", report).text


def test_training_without_a_control_is_said(report):
    report.measured["models"] = ["dense", "pruned"]
    text = pruned_embedder_card("me/small", report).text
    assert "with the same training was not measured" in text.replace("\n", " ")
    assert "`control` is" not in text


def test_zeros_save_nothing(report):
    assert "Zeros make no file smaller" not in pruned_embedder_card("me/small", report).text
    report.args["granularity"] = "weight"
    assert "Zeros make no file smaller" in pruned_embedder_card("me/small", report).text


def test_a_licence_of_its_own_name(report):
    inherited = inherited_metadata("---\nlicense: other\nlicense_name: gemma\nlicense_link: LICENSE\n---\n")
    card = pruned_embedder_card("me/small", report, **inherited)
    assert header(card)["license_link"] == "LICENSE"
    assert "made from: gemma." in card.text


def test_the_card_round_trips_through_its_file(report, tmp_path):
    card = pruned_embedder_card("me/small", report, languages=["no"])
    card.save(tmp_path / "README.md")
    again = ModelCard.load(tmp_path / "README.md")
    assert again.data.to_dict() == card.data.to_dict()
    assert again.data.language == ["no"]
