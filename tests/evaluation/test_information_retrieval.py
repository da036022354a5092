import doctest
import json

import numpy as np
import pytest
from datasets import Dataset

from mmbert_hf.evaluation import RetrievalSet, SetName, evaluate_retrieval, information_retrieval
from mmbert_hf.evaluation.information_retrieval import evaluate_information_retrieval, read_beir, read_pairs

NAME = SetName("own", "eng")


def test_docstring_examples():
    result = doctest.testmod(information_retrieval)
    assert result.attempted >= 2
    assert result.failed == 0


@pytest.fixture
def beir(tmp_path):
    """A folder in BEIR's format."""
    corpus = [{"_id": f"d{place}", "title": "law" if place == 1 else "", "text": f"text {place}"} for place in range(3)]
    queries = [{"_id": f"q{place}", "text": f"query {place}"} for place in range(3)]
    for name, rows in (("corpus", corpus), ("queries", queries)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    (tmp_path / "qrels").mkdir()
    lines = ["query-id\tcorpus-id\tscore", "q0\td1\t2", "q0\td2\t1", "q1\td0\t0", "q2\td0\t1"]
    (tmp_path / "qrels" / "test.tsv").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_folders_of_beir(beir):
    data = read_beir(beir)
    assert data.relevant == {"q0": {"d1", "d2"}, "q2": {"d0"}}
    assert data.queries == {"q0": "query 0", "q2": "query 2"}  # of q1 nothing is relevant
    assert data.documents == {"d0": "text 0", "d1": "law text 1", "d2": "text 2"}
    assert data.split == "test"
    (beir / "qrels" / "test.tsv").rename(beir / "qrels.tsv")
    assert read_beir(beir).relevant == data.relevant
    assert read_beir(beir).split is None
    (beir / "qrels.tsv").write_text("q0 0 d1 1\n".replace(" ", "\t"))  # as TREC has it
    assert read_beir(beir).relevant == {"q0": {"d1"}}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("q0 d1", "line 2: expected query, document and score between tabs, got 'q0 d1'"),
        ("q9\td1\t1", "line 2: queries.jsonl has no 'q9'"),
        ("q0\td9\t1", "line 2: corpus.jsonl has no 'd9'"),
    ],
)
def test_wrong_judgements_are_told(beir, line, message):
    (beir / "qrels" / "test.tsv").write_text(f"query-id\tcorpus-id\tscore\n{line}\n")
    with pytest.raises(ValueError, match=message):
        read_beir(beir)


def test_missing_files_are_told(beir):
    with pytest.raises(FileNotFoundError, match=r"neither qrels/dev.tsv nor qrels.tsv; --split may be test"):
        read_beir(beir, "dev")
    (beir / "corpus.jsonl").write_text('{"_id": "d0"}\n')
    with pytest.raises(ValueError, match=r"corpus.jsonl, line 1: expected an object with _id and text"):
        read_beir(beir)
    (beir / "queries.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match=r"queries.jsonl: BEIR's format has"):
        read_beir(beir)


@pytest.mark.parametrize("family", ["bert", "qwen3"])
def test_the_same_ndcg_as_ours(family, request, make_triplets):
    """qwen3 has a prompt for queries; without it the numbers are others."""
    model = request.getfixturevalue(f"{family}_embedder")
    rows = make_triplets(30, 3).select_columns(["anchor", "positive"])
    scores = {score.metric: score for score in evaluate_information_retrieval(model, read_pairs(rows), NAME)}
    pairs = RetrievalSet.from_pairs(rows["anchor"], rows["positive"])
    expected = float(evaluate_retrieval(model, pairs).mean())
    assert scores["ndcg@10"].value == pytest.approx(expected, abs=1e-6)
    assert (scores["ndcg@10"].language, scores["ndcg@10"].num_examples) == ("eng", len(pairs.queries))
    assert [name for name, score in scores.items() if score.is_main] == list(information_retrieval.MAIN)
    assert not scores["precision@5"].is_main
    assert len(scores) == 15
    if family == "qwen3":
        model.prompts["query"] = ""
        changed = {score.metric: score.value for score in evaluate_information_retrieval(model, read_pairs(rows), NAME)}
        assert changed != {name: score.value for name, score in scores.items()}


def test_pairs_that_repeat_are_one(bert_embedder):
    data = read_pairs(Dataset.from_dict({"anchor": ["a", "b", "a"], "positive": ["x", "x", "y"]}))
    assert data.relevant == {"q0": {"d0", "d1"}, "q1": {"d0"}}
    with pytest.raises(ValueError, match="no column positive among"):
        read_pairs(Dataset.from_dict({"anchor": ["a"]}))
    with pytest.raises(ValueError, match="1 values of 'positive' are no text, the first in row 1"):
        read_pairs(Dataset.from_dict({"anchor": ["a", "b"], "positive": ["x", " "]}))
    assert np.isfinite([score.value for score in evaluate_information_retrieval(bert_embedder, data, NAME)]).all()
