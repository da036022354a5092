"""`mmbert prune` from files to a measured model; mistakes are told before a model is loaded."""

import argparse
import dataclasses
import json

import pytest
import torch
from sentence_transformers import SentenceTransformer

from mmbert_hf.cli import main, prune, prune_data
from mmbert_hf.pruning import GAPruneConfig, GAPruner, PrunedEmbedder

WORDS = "free equal dignity rights slavery law person born human beings held servitude".split()


def rows(start, count=40):
    """Triplets with different anchors."""
    texts = [f"{WORDS[n % 12]} {WORDS[n * 5 % 11]} {WORDS[n * 7 % 12]} {n}" for n in range(start, start + count + 2)]
    triplets = zip(texts, texts[1:], texts[2:], strict=False)
    return [{"anchor": a, "positive": f"the {p}", "negative": f"no {n}"} for a, p, n in triplets]


def write(path, content):
    path.write_text("".join(json.dumps(row) + "\n" for row in content))
    return path


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    """No network, and no cache but this test's."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture(scope="module")
def model(tokenizer, tmp_path_factory):
    """The folder of a tiny embedder."""
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    from mmbert_hf import MMBertConfig, MMBertModel
    from mmbert_hf.pruning.saving import save_embedder

    torch.manual_seed(0)
    config = MMBertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        local_attention=8,
        initializer_range=0.2,
    )
    source = tmp_path_factory.mktemp("source")
    MMBertModel(config).save_pretrained(source)
    tokenizer.save_pretrained(source)
    modules = [Transformer(str(source)), Pooling(32, pooling_mode="mean"), Normalize()]
    folder = save_embedder(SentenceTransformer(modules=modules, device="cpu"), tmp_path_factory.mktemp("model") / "it")
    (folder / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n")
    return folder


@pytest.fixture
def sets(tmp_path):
    """Options that name two files of triplets."""
    domain, general = write(tmp_path / "domain.jsonl", rows(0)), write(tmp_path / "general.jsonl", rows(500))
    return ["--domain", str(domain), "--general", str(general)]


def run(*argv):
    return main(["prune", *map(str, argv)])


def test_from_files_to_a_measured_model(model, sets, tmp_path, capsys):
    out = tmp_path / "small"
    options = ["--granularity", "ffn,vocabulary", "--ffn-width", 20, "--batch-size", 8, "--output-dir", out]
    options += ["--retrain-steps", 2, "--retrain-batch-size", 4, "--plots", "--quiet"]
    pytest.importorskip("matplotlib", reason="pictures need the extra [plots]")
    assert run(model, *sets, *options) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["dense", "control", "pruned"]
    assert lines[1].startswith("nDCG@10, domain (4 queries, 4 documents)")
    assert any(line.startswith("bytes on disk") for line in lines)
    assert any(line.startswith("latency, relative to dense") for line in lines)
    assert lines[-1] == f'load it with: SentenceTransformer("{out}")'
    assert f"written to {out}" in lines
    pruned = PrunedEmbedder.from_pretrained(out, device="cpu")
    assert pruned.report.width == (40, 20)
    assert pruned.report.vocabulary[1] < pruned.report.vocabulary[0]
    assert pruned.report.num_triplets == {"domain": 36, "general": 36}, "a tenth was seen by nothing"
    (retraining,) = pruned.report.measured["retraining"]
    assert (retraining["steps"], retraining["num_rows"], retraining["teacher"]) == (2, 36, "trained")
    assert "license: cc-by-4.0" in (out / "README.md").read_text()
    assert sorted(path.name for path in (out / "plots").iterdir()) == ["before_and_after.png", "score_correlation.png"]
    assert (tmp_path / "small.statistics" / "statistics.json").is_file()


def test_interrupted_it_goes_on_with_the_statistics_it_has(model, sets, tmp_path, monkeypatch):
    from mmbert_hf.pruning import scoring

    def stopped(*_, **__):
        raise KeyboardInterrupt

    options = ["--output-dir", tmp_path / "small", "--batch-size", 8, "--quiet"]
    with monkeypatch.context() as patch:
        patch.setattr(GAPruner, "_mask", stopped)
        assert run(model, *sets, *options) == 130
    assert not (tmp_path / "small").exists()
    monkeypatch.setattr(scoring, "add_batch", lambda *_, **__: pytest.fail("scored twice"))
    assert run(model, *sets, *options) == 0
    assert SentenceTransformer(str(tmp_path / "small"), device="cpu").encode(["law"]).shape == (1, 32)


def test_test_files_and_mined_negatives(model, tmp_path, capsys):
    pairs = [{name: row[name] for name in ("anchor", "positive")} for row in rows(0)]
    domain, general = write(tmp_path / "d.jsonl", pairs), write(tmp_path / "g.jsonl", rows(500))
    test = write(tmp_path / "test.jsonl", pairs[:3])
    options = ["--domain", domain, "--general", general, "--test-domain", test, "--method", "magnitude"]
    options += ["--output-dir", tmp_path / "small", "--batch-size", 8]
    assert run(model, *options) == 2
    assert "give --mine-negatives" in capsys.readouterr().err
    assert run(model, *options, "--mine-negatives") == 0
    out, notices = capsys.readouterr()
    assert "domain: 37 rows, 3 held out for measuring" in notices
    assert "nDCG@10, domain (3 queries, 3 documents)" in out
    assert "control" not in out, "nothing was trained"


def test_what_is_measured_is_in_no_set(tmp_path):
    shared = rows(0)
    domain, general = write(tmp_path / "d.jsonl", shared), write(tmp_path / "g.jsonl", rows(20))
    retrain = write(tmp_path / "r.jsonl", rows(0, 60))
    args = argparse.Namespace(
        domain=str(domain), general=str(general), retrain_data=str(retrain), retrain_steps=1, mine_negatives=False,
        test_domain=None, test_general=None, quiet=True,
    )  # fmt: skip
    sets, tests = prune_data.read_data(args)
    measured = {*tests["domain"].queries, *tests["general"].queries}
    assert len(tests["domain"].queries) == len(tests["general"].queries) == 4
    assert not any(measured & set(dataset["anchor"]) for dataset in sets.values())
    assert len(sets["retrain"]) == 60 - len(measured & {row["anchor"] for row in rows(0, 60)})


def test_the_same_anchors_are_held_out_in_any_order():
    texts = [f"anchor {number}" for number in range(300)]
    assert prune_data.held_out_anchors(texts, "--domain") == prune_data.held_out_anchors(
        texts[::-1] + texts[:5], "--domain"
    )
    assert len(prune_data.held_out_anchors(map(str, range(30_000)), "--domain")) == 1000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--general", "{domain}"], "--domain and --general are the same"),
        (["--test-domain", "{domain}"], "--domain and --test-domain are the same"),
        (["--sparsity", "1.5"], "sparsity"),
        (["--granularity", "rows"], "granularity is one or several of"),
        (["--output-dir", ""], "nowhere to write to"),
        (["--output-dir", "{here}"], "is not empty"),
        (["--private"], "--private is for --push-to-hub"),
        (["--retrain-batch-size", "1"], "--retrain-batch-size at least 2"),
        (["--domain", "{here}/none.jsonl"], "there is no file"),
        (["--domain", "{few}"], "--domain has 10 different anchors"),
        (["--domain", "{renamed}"], "anchor is missing"),
        (["--domain", "{empty}"], "1 values of 'anchor' are no text, the first in row 2"),
        (["--general", "{null}"], "1 values of 'negative' are no text, the first in row 5"),
        (["--retrain-data", "{null}", "--retrain-steps", "1"], "null.jsonl': 1 values of 'negative' are no text"),
    ],
)
def test_mistakes_are_told_before_a_model_is_loaded(options, message, sets, tmp_path, model, capsys, monkeypatch):
    import sentence_transformers

    monkeypatch.setattr(sentence_transformers, "SentenceTransformer", lambda *_: pytest.fail("a model was loaded"))
    places = {
        "domain": sets[1],
        "here": tmp_path,
        "few": write(tmp_path / "few.jsonl", rows(0, 10)),
        "null": write(
            tmp_path / "null.jsonl",
            [{**row, "negative": row["negative"] if n != 5 else None} for n, row in enumerate(rows(0))],
        ),
        "renamed": write(tmp_path / "renamed.jsonl", [{"query": "a", "positive": "b", "negative": "c"}]),
        "empty": write(
            tmp_path / "empty.jsonl", [{**row, "anchor": row["anchor"] * (n != 2)} for n, row in enumerate(rows(0))]
        ),
    }
    given = [option.format(**places) for option in options]
    assert run(model, *sets, "--output-dir", tmp_path / "small", "--quiet", *given) == 2
    error = capsys.readouterr().err
    assert error.startswith("mmbert prune: ")
    assert message in error
    assert "Traceback" not in error
    assert not (tmp_path / "small").exists()


def test_a_mistyped_model_and_a_missing_token(sets, tmp_path, model, capsys, monkeypatch):
    assert run("./nowhere", *sets, "--output-dir", tmp_path / "small") == 2
    assert "there is no folder './nowhere'" in capsys.readouterr().err
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    assert run(model, *sets, "--push-to-hub", "small") == 2
    assert "no token for the Hub" in capsys.readouterr().err


def test_published_and_not_lost_when_that_fails(sets, tmp_path, model, capsys, monkeypatch):
    from huggingface_hub import HfApi

    from mmbert_hf.testing import LoopbackHub

    with LoopbackHub() as hub:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.endpoint)
        monkeypatch.setattr("transformers.utils.hub._hf_api", None)  # a client that another test may have made
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", hub.token)
        monkeypatch.setenv("TMPDIR", str(tmp_path))
        monkeypatch.setattr("tempfile.tempdir", None)
        options = ["--method", "magnitude", "--push-to-hub", "small", "--private", "--quiet"]
        hub.fail_next(400, method="POST", path_contains="/commit/")
        assert run(model, *sets, *options) == 2
        error = capsys.readouterr().err
        folder = error.partition("The model is in ")[2].partition(". To publish it")[0]
        assert f"from_pretrained('{folder}').push_to_hub('small', private=True)" in error
        PrunedEmbedder.from_pretrained(folder, device="cpu").push_to_hub("small", private=True)
        published = HfApi().model_info("loopback/small")
        assert published.private
        assert published.card_data.license == "cc-by-4.0"
        assert run(model, *sets, *options) == 0
        assert capsys.readouterr().out.splitlines()[-1] == 'load it with: SentenceTransformer("loopback/small")'


def test_a_lost_connection_loses_no_model(sets, tmp_path, model, capsys, monkeypatch):
    """It is an error of the HTTP client, which is no OSError."""
    from mmbert_hf.testing import LoopbackHub

    measure = PrunedEmbedder.measure

    def measure_and_lose_the_connection(*args, **options):
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
        monkeypatch.setattr("transformers.utils.hub._hf_api", None)  # a client that another test may have made
        return measure(*args, **options)

    with LoopbackHub() as hub:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.endpoint)
        monkeypatch.setattr("transformers.utils.hub._hf_api", None)  # a client that another test may have made
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", hub.token)
        monkeypatch.setenv("TMPDIR", str(tmp_path))
        monkeypatch.setattr("tempfile.tempdir", None)
        monkeypatch.setattr(PrunedEmbedder, "measure", measure_and_lose_the_connection)
        assert run(model, *sets, "--method", "magnitude", "--push-to-hub", "small", "--quiet") == 2
    folder = capsys.readouterr().err.partition("The model is in ")[2].partition(". To publish it")[0]
    assert PrunedEmbedder.from_pretrained(folder, device="cpu").mask is not None


def test_a_model_that_cannot_be_saved_is_refused_before_it_is_scored(sets, tmp_path, model, capsys, monkeypatch):
    from sentence_transformers.sentence_transformer.modules import Normalize

    class Mine(Normalize):
        """A module of somebody's own."""

    monkeypatch.setattr(GAPruner, "__init__", lambda *_: pytest.fail("work began"))
    load = SentenceTransformer

    def loaded(name):
        return load(modules=[*load(name, device="cpu"), Mine()], device="cpu")

    monkeypatch.setattr("sentence_transformers.SentenceTransformer", loaded)
    assert run(model, *sets, "--output-dir", tmp_path / "small", "--quiet") == 2
    assert "are not of the sentence_transformers package" in capsys.readouterr().err


def test_every_option_of_the_pruning_is_there():
    parser = argparse.ArgumentParser()
    prune.add_parser(parser.add_subparsers())
    given = ["--refit", "--num-triplets", "none", "--alpha", "0.5", "--ffn-width", "7", "--statistics-dir", "here"]
    args = parser.parse_args(["prune", "model", "--domain", "a", "--general", "b", *given])
    assert (args.num_triplets, args.alpha, args.ffn_width, args.refit) == (None, 0.5, 7, True)
    assert not hasattr(args, "sparsity"), "what is not given is the dataclass's own default"
    help_text = " ".join(prune_help().split())
    for field in dataclasses.fields(GAPruneConfig):
        assert f"--{field.name.replace('_', '-')}" in help_text


def prune_help():
    parser = argparse.ArgumentParser()
    verbs = parser.add_subparsers()
    prune.add_parser(verbs)
    with pytest.raises(SystemExit):
        verbs.choices["prune"].parse_known_args([])
    return verbs.choices["prune"].format_help()


def test_the_vocabulary_of_a_corpus(model, sets, tmp_path, capsys):
    """Fewer tokens than the triplets have; refused where no vocabulary is trimmed."""
    texts = tmp_path / "texts.txt"
    texts.write_text("menniskju\n")
    options = [model, *sets, "--granularity", "vocabulary", "--quiet"]
    assert run(*options, "--vocabulary-texts", texts, "--output-dir", tmp_path / "small") == 0
    assert run(*options, "--output-dir", tmp_path / "larger") == 0
    small, larger = (
        json.loads((tmp_path / name / "pruning.json").read_text())["vocabulary"] for name in ("small", "larger")
    )
    assert small[1] < larger[1] < larger[0]
    capsys.readouterr()
    assert run(model, *sets, "--vocabulary-texts", texts, "--output-dir", tmp_path / "no") == 2
    assert "--vocabulary-texts are for granularity vocabulary" in capsys.readouterr().err


def test_docstring_examples():
    import doctest

    result = doctest.testmod(prune_data)
    assert result.attempted >= 1
    assert result.failed == 0
