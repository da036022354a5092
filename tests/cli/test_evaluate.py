"""`mmbert evaluate`: every kind from data in its own format to a table; mistakes are told before weights are loaded."""

import doctest
import json
import random
import re
import sys

import pytest
from huggingface_hub import ModelCard

from mmbert_hf.cli import evaluate_texts, main
from mmbert_hf.evaluation import EvaluationResults

WORDS = ["free", "born", "equal", "dignity", "rights", "slavery"]
FINETUNING = ["--max-steps", 40, "--batch-size", 16, "--learning-rate", 3e-3, "--max-length", 48]

pytestmark = pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning", "ignore:`is_gradient_checkpointing`")


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    """No network, no cache but this test's."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("mmbert_hf.plotting.DPI", 30)


@pytest.fixture(scope="module")
def embedder(tmp_path_factory, word_piece):
    """The folder of a tiny embedder."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("embedder")
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
    config = BertConfig(vocab_size=len(word_piece), max_position_embeddings=64, **sizes, initializer_range=0.2)
    BertModel(config).save_pretrained(folder / "encoder")
    word_piece.save_pretrained(folder / "encoder")
    modules = [Transformer(str(folder / "encoder")), Pooling(32, pooling_mode="mean")]
    SentenceTransformer(modules=modules, device="cpu").save_pretrained(
        str(folder / "embedder"), create_model_card=False
    )
    return folder / "embedder"


def run(*argv):
    return main(["evaluate", *map(str, argv)])


def write(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def toy(task, number, seed):
    """Tasks that a tiny model learns in seconds: one word decides. The most frequent class has half of the rows."""
    rng = random.Random(seed)
    for row in range(number):
        words = [rng.choice(WORDS[1:]) for _ in range(4)]
        if task == "classification":
            words[rng.randrange(4)] = "free" if row % 2 else "born"
            yield {"premise": words[0], "hypothesis": " ".join(words), "label": "yes" if "free" in words else "no"}
        elif task == "values":
            yield {"text": " ".join(words), "label": words.count("born") / 2}
        elif task == "words":
            yield {"tokens": words, "ner_tags": ["B-A" if word == "born" else "O" for word in words]}
        elif task == "characters":
            text = " ".join(words)
            starts = [sum(len(word) + 1 for word in words[:place]) for place in range(4)]
            found = [(start, start + 4) for start, word in zip(starts, words, strict=True) if word == "born"]
            yield {"text": text, "entities": [{"start": a, "end": b, "label": "A"} for a, b in found]}


def squad(number, seed):
    """The nested file format; a third of the questions have no answer."""
    rng, paragraphs = random.Random(seed), []
    for row in range(number):
        words = rng.sample(WORDS[2:], 3)
        answer = None if row % 3 == 0 else rng.choice(WORDS[:2])
        if answer:
            words.insert(rng.randrange(4), answer)
        context = " ".join(words)
        answers = [{"text": answer, "answer_start": context.index(answer)}] if answer else []
        question = {"id": str(row), "question": "what", "answers": answers, "is_impossible": answer is None}
        paragraphs.append({"context": context, "qas": [question]})
    return json.dumps({"version": "v2.0", "data": [{"title": "", "paragraphs": paragraphs}]})


CASES = {
    "classes": ("classification", "classification", "accuracy", 0.9),
    "values": ("classification", "values", "pearson", 0.8),
    "words": ("tagging", "words", "f1", 0.9),
    "characters": ("tagging", "characters", "f1", 0.9),
}


def test_docstring_examples():
    result = doctest.testmod(evaluate_texts)
    assert result.attempted >= 1
    assert result.failed == 0


@pytest.mark.parametrize("model", ["xlm-r", "mmbert"])
@pytest.mark.parametrize("case", CASES)
def test_fine_tuning_learns(case, model, encoders, tmp_path, capsys):
    kind, task, metric, least = CASES[case]
    train = write(tmp_path / "train.jsonl", toy(task, 256, 0))
    test = write(tmp_path / "test.jsonl", toy(task, 40, 1))
    command = [
        kind,
        encoders / model,
        "--train",
        train,
        "--test",
        f"eng={test}",
        *FINETUNING,
        "--output-dir",
        tmp_path / "out",
    ]
    assert run(*command, "--quiet") == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    results = EvaluationResults.load(tmp_path / "out")
    scores = {score.metric: score for score in results.scores}
    assert scores[metric].value >= least, scores
    assert (scores[metric].language, scores[metric].num_examples, scores[metric].seed) == ("eng", 40, 1)
    assert f"{scores[metric].value:.4f}" in printed.out
    assert str(tmp_path) not in (tmp_path / "out" / "results.json").read_text()


@pytest.mark.parametrize(("model", "seeds"), [("xlm-r", [3]), ("mmbert", [1, 2])])
def test_answers_of_nested_files_are_learnt(model, seeds, encoders, tmp_path, capsys):
    (tmp_path / "train.json").write_text(squad(256, 0))
    (tmp_path / "dev.json").write_text(squad(42, 1))
    data = ["--train", tmp_path / "train.json", "--test", tmp_path / "dev.json", "--seeds", *seeds]
    assert (
        run("question-answering", encoders / model, *data, *FINETUNING, "--output-dir", tmp_path / "out", "--json") == 0
    )
    results = EvaluationResults.from_json(capsys.readouterr().out)
    exact = [score for score in results.scores if score.metric == "exact_match"]
    assert [score.seed for score in exact] == seeds
    assert min(score.value for score in exact) >= 0.8  # no answer at all: 1/3
    none = [score.value for score in results.scores if score.metric == "no_answer_accuracy"]
    assert min(none) >= 0.7
    assert results.summaries()[0].num_seeds == len(seeds)
    assert results.settings["seeds"] == seeds
    assert results.settings["train"]["name"] == "train.json"


def test_masked_loss_from_files_and_from_a_table(folder, sentences, tmp_path, capsys):
    for code in ("eng", "fao"):
        (tmp_path / f"{code}.txt").write_text("\n".join(sentences[code] * 2), encoding="utf-8")
    texts = [f"{code}={tmp_path}/{code}.txt" for code in ("eng", "fao")]
    command = ["masked-loss", folder, "--max-length", 40, "--mask-ratio", 0.4, "--quiet"]
    assert run(*command, "--texts", *texts, "--output-dir", tmp_path / "one") == 0
    assert "nats per token" in capsys.readouterr().out
    (tmp_path / "table.yaml").write_text("languages:\n  eng: {source: eng.txt}\n  fao: {source: fao.txt}\n")
    assert run(*command, "--data", tmp_path / "table.yaml", "--output-dir", tmp_path / "two") == 0
    first, second = (EvaluationResults.load(tmp_path / name) for name in ("one", "two"))
    assert first.scores == second.scores
    assert {score.language for score in first.scores} == {"eng", "fao"}
    assert all(score.dataset in ("eng.txt", "fao.txt") for score in first.scores)


def test_bitext_by_an_encoder_and_by_an_embedder(encoders, embedder, tmp_path, capsys):
    texts = [" ".join(WORDS[place:] + WORDS[:place]) for place in range(4)]
    data = write(tmp_path / "pairs.jsonl", [{"dan": text, "fao": text} for text in texts])
    for model in (encoders / "mmbert", embedder):
        assert run("bitext", model, "--pairs", f"dan-fao={data}", "--output-dir", tmp_path / "out", "--json") == 0
        results = EvaluationResults.from_json(capsys.readouterr().out)
        accuracy = {score.language: score.value for score in results.scores if score.metric == "accuracy"}
        assert accuracy == {"dan-fao": 1.0, "fao-dan": 1.0}  # every sentence is its own translation


def test_retrieval_from_pairs_and_folders_into_a_card(embedder, tmp_path, capsys):
    texts = [" ".join(WORDS[place:]) for place in range(4)]
    pairs = write(tmp_path / "pairs.jsonl", [{"anchor": text, "positive": text} for text in texts])
    beir = tmp_path / "own"
    (beir / "qrels").mkdir(parents=True)
    for name in ("queries", "corpus"):
        write(beir / f"{name}.jsonl", [{"_id": str(place), "text": text} for place, text in enumerate(texts)])
    (beir / "qrels" / "test.tsv").write_text(
        "query-id\tcorpus-id\tscore\n" + "".join(f"{n}\t{n}\t1\n" for n in range(4))
    )
    card = embedder / "README.md"
    card.write_text("---\nlicense: mit\n---\n\n# Mine\n")
    command = [
        "retrieval",
        embedder,
        "--data",
        pairs,
        f"eng={beir}",
        "--add-to-card",
        "--quiet",
        "--output-dir",
        tmp_path / "out",
    ]
    assert run(*command) == 0
    assert str(card) in capsys.readouterr().out
    once = card.read_text()
    assert once.endswith("---\n\n# Mine\n")
    assert ModelCard(once).data.license == "mit"
    found = {(each.dataset_name, each.metric_type): each.metric_value for each in ModelCard(once).data.eval_results}
    assert found["pairs.jsonl", "ndcg_at_10"] == found["own eng", "ndcg_at_10"] == 1.0
    assert run(*command) == 0
    assert card.read_text() == once
    assert (tmp_path / "out" / "results.json").is_file()


def test_an_encoder_is_measured_as_an_embedder_only_if_asked(encoders, tmp_path, capsys):
    pairs = write(tmp_path / "pairs.jsonl", [{"anchor": word, "positive": word} for word in WORDS])
    command = ["retrieval", encoders / "mmbert", "--data", pairs, "--output-dir", tmp_path / "out", "--quiet"]
    assert run(*command) == 2
    assert "give --pooling mean to measure it as it is" in capsys.readouterr().err
    assert run(*command, "--pooling", "mean") == 0
    assert "1.0000" in capsys.readouterr().out


def test_mteb_writes_its_files_into_the_output(embedder, tmp_path, capsys, monkeypatch):
    from mteb.abstasks import AbsTaskSTS
    from mteb.abstasks.task_metadata import TaskMetadata

    class OwnSTS(AbsTaskSTS):
        metadata = TaskMetadata(
            name="OwnSTS", description="own", reference=None, dataset={"path": "own/own", "revision": "1"}, type="STS",
            category="t2t", modalities=["text"], eval_splits=["test"], eval_langs=["eng-Latn"], main_score="cosine_spearman",
        )  # fmt: skip

        def load_data(self, num_proc=None, **kwargs):
            from datasets import Dataset, DatasetDict

            rows = {"sentence1": WORDS, "sentence2": [WORDS[0]] * 6, "score": [5, 0, 1, 2, 3, 4]}
            self.dataset = DatasetDict({"test": Dataset.from_dict(rows)})
            self.data_loaded = True

    registry = sys.modules["mteb.get_tasks"]._TASKS_REGISTRY
    monkeypatch.setitem(registry, "OwnSTS", OwnSTS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("warnings.warn", lambda *_, **__: None)  # mteb's own
        assert run("mteb", embedder, "--tasks", "OwnSTS", "--output-dir", tmp_path / "out", "--quiet") == 0
    assert "OwnSTS" in capsys.readouterr().out
    (score,) = [score for score in EvaluationResults.load(tmp_path / "out").scores if score.is_main]
    assert (score.dataset, score.metric, score.language) == ("OwnSTS", "cosine_spearman", "eng_Latn")
    (file,) = (tmp_path / "out" / "mteb").rglob("OwnSTS.json")
    assert json.loads(file.read_text())["scores"]["test"][0]["main_score"] == pytest.approx(score.value, abs=1e-5)


def test_dry_runs_compute_nothing(encoders, embedder, folder, tmp_path, capsys, monkeypatch):
    for name in ("transformers.Trainer.train", "sentence_transformers.SentenceTransformer.encode"):
        monkeypatch.setattr(name, lambda *_, **__: pytest.fail("computed"))
    train = write(tmp_path / "train.jsonl", toy("classification", 8, 0))
    words = write(tmp_path / "words.jsonl", toy("words", 8, 0))
    pairs = write(tmp_path / "pairs.jsonl", [{"anchor": word, "positive": word} for word in WORDS])
    (tmp_path / "qa.json").write_text(squad(9, 0))
    (tmp_path / "fao.txt").write_text("Øll menniskju\n")
    cases = {
        "8 rows of .*train.jsonl, 2 classes: no, yes": ["classification", encoders / "mmbert", "--train", train, "--test", train],
        "2 tags: O, B-A": ["tagging", encoders / "xlm-r", "--train", words, "--test", words],
        "3 questions without an answer": ["question-answering", encoders / "mmbert", "--train", tmp_path / "qa.json", "--test",
                                          tmp_path / "qa.json", "--max-length", 60],
        "6 queries, 6 documents": ["retrieval", embedder, "--data", pairs],
        "27 tasks of mteb": ["mteb", embedder, "--benchmarks", "ChemTEB"],
        "'fao' from ": ["masked-loss", folder, "--max-length", 64, "--texts", f"fao={tmp_path}/fao.txt"],
    }  # fmt: skip
    for expected, command in cases.items():
        extra = ["--max-length", 48] if command[0] in ("classification", "tagging") else []
        assert run(*command, *extra, "--output-dir", tmp_path / "out", "--dry-run") == 0
        assert re.search(expected, capsys.readouterr().out), expected
    assert not (tmp_path / "out").exists()


def bad(tmp_path, encoders, embedder):
    """Command -> part of the sentence that it ends with."""
    train = write(tmp_path / "train.jsonl", toy("classification", 8, 0))
    words = write(tmp_path / "words.jsonl", toy("words", 8, 0))
    mmbert, out = encoders / "mmbert", ["--output-dir", tmp_path / "out"]
    both = ["--train", train, "--test", train, *out]
    return [
        (["masked-loss", mmbert, "--texts", "fao=x.txt", *out], "which has no head that predicts masked tokens"),
        (["masked-loss", embedder, "--texts", "fao=x.txt", *out], "measure it with retrieval, bitext or mteb"),
        (["retrieval", "./none", "--data", train, *out], "there is no folder './none'"),
        (["retrieval", embedder, "--data", train, *out], "no column anchor, positive among"),
        (["retrieval", embedder, "--data", train, "--pooling", "mean", *out], "has a pooling of its own"),
        (["bitext", mmbert, "--pairs", f"{train}", *out], "is not CODE-CODE=SOURCE, such as dan-fao=pairs.csv"),
        (["bitext", mmbert, "--pairs", f"dan-xx={train}", *out], "unknown language code 'xx'"),
        (["mteb", embedder, "--tasks", "Sts17", *out], "mteb has no task 'Sts17'; near it: STS17"),
        (["mteb", embedder, *out], "name at least one task or benchmark"),
        (["classification", encoders / "xlm-r", *both], "max_length is 256, but"),
        (["classification", mmbert, "--train", words, "--test", words, "--max-length", 48, *out], "no column of texts among"),
        (["classification", mmbert, *both, "--max-length", 48, "--label-column", "x"], "no column x among"),
        (["classification", mmbert, *both, "--max-length", 48, "--seeds", 1, 1], "--seeds must be different"),
        (["classification", mmbert, *both, "--max-length", 48, "--add-to-card", "--output-dir", train], "is a file; give a folder"),
        (["classification", "own/model", *both, "--add-to-card"], "--add-to-card writes into the folder of a model"),
        (["tagging", mmbert, "--train", train, "--test", train, "--max-length", 48, *out], "expected the columns tokens"),
        (["tagging", mmbert, "--train", tmp_path / "no.jsonl", "--test", words, "--max-length", 48, *out], "there is no file"),
        (["question-answering", mmbert, *both, "--max-length", 48], "no column question, context, answers among"),
    ]  # fmt: skip


def test_bad_input_is_one_sentence_and_status_2(tmp_path, encoders, embedder, capsys, monkeypatch):
    for name in ("transformers.PreTrainedModel.from_pretrained", "sentence_transformers.SentenceTransformer.__init__"):
        monkeypatch.setattr(name, lambda *_, **__: pytest.fail("loaded"))
    for command, message in bad(tmp_path, encoders, embedder):
        assert run(*command, "--quiet") == 2, command
        error = capsys.readouterr().err
        assert error.startswith("mmbert evaluate: "), error
        assert message in error, error
        assert error.count("\n") == 1, error
    assert not (tmp_path / "out").exists()


def test_decoders_are_refused(tmp_path, embedder, capsys):
    (tmp_path / "policy").mkdir()
    (tmp_path / "policy" / "config.json").write_text('{"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}')
    train = write(tmp_path / "train.jsonl", toy("classification", 8, 0))
    assert (
        run("classification", tmp_path / "policy", "--train", train, "--test", train, "--output-dir", tmp_path / "out")
        == 2
    )
    assert "generates text: this is for encoders; mmbert evaluate-policy" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("package", "command", "extra"),
    [
        ("mteb", ["mteb", "MODEL", "--tasks", "STS17"], "pip install 'mmbert-hf[evaluate]'"),
        ("matplotlib", ["mteb", "MODEL", "--tasks", "STS17", "--plot"], "pip install mmbert-hf[plots]"),
    ],
)
def test_what_is_missing_is_named(package, command, extra, embedder, tmp_path, capsys, monkeypatch):
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == package else find(name, *more))
    command = [embedder if part == "MODEL" else part for part in command]
    assert run(*command, "--output-dir", tmp_path / "out") == 2
    assert extra in capsys.readouterr().err


def test_unknown_flags_and_kinds_are_refused(capsys):
    for argv in (["mteb", "a/b", "--output-dir", "x", "--no-such"], ["no-such-kind"], ["mteb", "a/b"]):
        with pytest.raises(SystemExit, match="2"):
            run(*argv)
        assert "mmbert" in capsys.readouterr().err


def test_an_interrupt_leaves_nothing_half_written(embedder, tmp_path, capsys, monkeypatch):
    pairs = write(tmp_path / "pairs.jsonl", [{"anchor": word, "positive": word} for word in WORDS])

    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("sentence_transformers.SentenceTransformer.encode", stop)
    command = ["retrieval", embedder, "--data", pairs, "--output-dir", tmp_path / "out", "--add-to-card"]
    before = {path: path.read_bytes() for path in embedder.rglob("*") if path.is_file()}
    assert run(*command) == 130
    assert capsys.readouterr().err.endswith("mmbert evaluate: stopped\n")
    assert not (tmp_path / "out").exists()
    assert {path: path.read_bytes() for path in embedder.rglob("*") if path.is_file()} == before
