import doctest
import json

import pytest
from datasets import Dataset, DatasetDict

from mmbert_hf.data import rows
from mmbert_hf.data.rows import RowSource, flatten_squad, load_rows

CONTEXT = "Tórshavn er høvuðsstaður Føroya."
ARTICLES = [
    {
        "title": "Tórshavn",
        "paragraphs": [
            {
                "context": CONTEXT,
                "qas": [
                    {"id": "a", "question": "Hvør?", "answers": [{"text": "Tórshavn", "answer_start": 0}]},
                    {"id": 7, "question": "Nær?", "is_impossible": True, "answers": [], "plausible_answers": []},
                ],
            }
        ],
    }
]


def test_docstring_examples():
    result = doctest.testmod(rows)
    assert result.attempted >= 3
    assert result.failed == 0


def test_nested_squad_files_have_the_columns_of_the_hub(tmp_path):
    path = tmp_path / "tiquad.json"
    path.write_text(json.dumps({"version": "1", "data": ARTICLES}), encoding="utf-8")
    found = load_rows(path).to_list()
    assert [row["id"] for row in found] == ["a", "7"]
    assert found[0] == {
        "id": "a",
        "context": CONTEXT,
        "question": "Hvør?",
        "answers": {"text": ["Tórshavn"], "answer_start": [0]},
    }
    assert found[1]["answers"] == {"text": [], "answer_start": []}


def test_other_json_is_read_as_before(tmp_path):
    path = tmp_path / "own.json"
    path.write_text(json.dumps([{"text": 'says "paragraphs"', "label": 1}]))
    assert load_rows(path).to_list() == [{"text": 'says "paragraphs"', "label": 1}]


def test_what_is_no_squad_is_told(tmp_path):
    path = tmp_path / "broken.json"
    path.write_text(json.dumps({"data": [{"paragraphs": [{"qas": [{"question": "?"}]}]}]}))
    with pytest.raises(ValueError, match=r"broken.json': not the format of SQuAD, at question 0: KeyError 'context'"):
        load_rows(path)
    path.write_text('{"data": [{"paragraphs": [')
    with pytest.raises(ValueError, match=r"broken.json' cannot be read as json"):
        load_rows(path)
    with pytest.raises(ValueError, match="no question in it"):
        flatten_squad([])


def test_folders_of_datasets(tmp_path):
    data = Dataset.from_dict({"text": ["a", "b"]})
    data.save_to_disk(str(tmp_path / "one"))
    assert load_rows(str(tmp_path / "one"))["text"][:] == ["a", "b"]
    DatasetDict(train=data, test=data.select([1])).save_to_disk(str(tmp_path / "two"))
    with pytest.raises(ValueError, match=r"has several splits: name one of .*train, .*test"):
        load_rows(tmp_path / "two")
    assert load_rows(tmp_path / "two" / "test")["text"][:] == ["b"]


@pytest.mark.parametrize(
    ("source", "called"),
    [
        ("nyu-mll/glue/rte:validation", ("nyu-mll/glue", "rte", "validation")),
        ("nyu-mll/glue/rte", ("nyu-mll/glue", "rte", "test")),
        ("owner/name:dev", ("owner/name", None, "dev")),
        ("data/deep/test.jsonl", ("test.jsonl", None, None)),
    ],
)
def test_names_of_sources(source, called, monkeypatch):
    assert RowSource.read(source, "test") == called
    asked = []
    monkeypatch.setattr("datasets.load_dataset", lambda *args, **more: asked.append((*args, more["split"])))
    if called[2]:
        load_rows(source, split="test")
        assert asked == [called]


def test_a_mistyped_path_is_not_asked_of_the_hub(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file"):
        load_rows("./data/sets/own")
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(ValueError, match="is empty: expected one question a row"):
        load_rows(tmp_path / "empty.jsonl", "questions")
