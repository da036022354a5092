import doctest
import json

import pytest
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results

from mmbert_hf.evaluation import EvaluationResults, Score, add_to_card, results
from mmbert_hf.evaluation.results import check_card

SCORES = [
    Score("token-classification", "own.jsonl", "f1", 0.5, language="fao", num_examples=9, seed=1),
    Score("token-classification", "own.jsonl", "f1", 0.7, language="fao", num_examples=9, seed=2),
    Score("token-classification", "own.jsonl", "recall", 0.9, language="fao", seed=1, is_main=False),
    Score("token-classification", "unimelb-nlp/wikiann", "f1", 0.25, language="dan", config="da", split="test"),
    Score("fill-mask", "own.txt", "nats_per_token", 3.0, higher_is_better=False),
]
FOUND = EvaluationResults("tagging", "tiny", SCORES, {"seeds": [1, 2]}, {"torch": "2"})
TEXT = "# Mine\r\n\r\nText with --- in it.\r\n"
CARD = f"---\r\nlicense: apache-2.0\r\nlanguage:\r\n- 'no'\r\n- fo\r\ncustom: {{deep: [1, 2]}}\r\n---\r\n{TEXT}"


def test_docstring_examples():
    result = doctest.testmod(results)
    assert result.attempted >= 6
    assert result.failed == 0


def test_the_file_holds_all_of_it(tmp_path):
    path = FOUND.save(tmp_path / "new" / "folder")
    assert path.name == "results.json"
    assert EvaluationResults.load(path.parent) == FOUND
    assert json.loads(path.read_text())["scores"][0]["seed"] == 1
    with pytest.raises(ValueError, match="no results of mmbert evaluate"):
        EvaluationResults.from_json('{"kind": "tagging"}')


def test_means_and_deviations_over_seeds():
    summaries = FOUND.summaries()
    assert [each.num_seeds for each in summaries] == [2, 1, 1]
    assert summaries[0].score.value == pytest.approx(0.6)
    assert summaries[0].deviation == pytest.approx(0.2 / 2**0.5)
    assert summaries[1].deviation is None
    assert len(FOUND.summaries(main=False)) == 4
    lines = FOUND.table().splitlines()
    assert lines[0].split() == ["f1", "nats", "per", "token"]
    assert lines[1].split() == ["own.jsonl", "fao", "0.6000", "+-", "0.1414"]
    assert "unimelb-nlp/wikiann da dan" in lines[2]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_score_is_a_number(value):
    with pytest.raises(ValueError, match="no finite number"):
        Score("a", "b", "c", value)


def test_the_model_index_has_every_main_score_once():
    found = {(each.dataset_name, each.metric_type): each for each in FOUND.to_eval_results()}
    assert len(found) == len(FOUND.to_eval_results()) == 3
    own = found["own.jsonl fao", "f1"]
    assert (own.dataset_type, own.dataset_config, own.metric_value) == ("custom", "own.jsonl-fao", 0.6)
    assert own.metric_name == "f1, fine-tuned, mean of 2 seeds"
    hub = found["unimelb-nlp/wikiann da dan", "f1"]
    assert (hub.dataset_type, hub.dataset_config, hub.dataset_split) == ("unimelb-nlp/wikiann", "da-dan", "test")


def index(folder):
    return ModelCard.load(folder / "README.md").data.eval_results


def test_into_a_card_and_again(tmp_path):
    path = tmp_path / "README.md"
    path.write_bytes(CARD.encode())
    add_to_card(tmp_path, FOUND)
    once = path.read_bytes().decode()
    assert once.endswith(f"---\r\n{TEXT}")
    assert "\n" not in once.replace("\r\n", "")
    metadata = yaml.safe_load(once.split("---\r\n")[1])
    before = yaml.safe_load(CARD.split("---\r\n")[1])
    assert {name: metadata[name] for name in before} == before
    assert list(metadata) == [*before, "model-index"]
    assert sorted(map(str, index(tmp_path))) == sorted(map(str, FOUND.to_eval_results()))
    add_to_card(tmp_path, FOUND)
    assert path.read_bytes().decode() == once
    better = EvaluationResults("tagging", "tiny", [Score("fill-mask", "own.txt", "nats_per_token", 2.0)])
    add_to_card(tmp_path, better)
    values = sorted((each.dataset_name, each.metric_value) for each in index(tmp_path))
    assert values == [("own.jsonl fao", 0.6), ("own.txt", 2.0), ("unimelb-nlp/wikiann da dan", 0.25)]


def test_results_of_others_stay(tmp_path):
    theirs = {
        "name": "their name",
        "results": [
            {
                "task": {"type": "fill-mask", "name": "Masks"},
                "dataset": {"type": "c4", "name": "C4", "revision": "abc"},
                "metrics": [{"type": "loss", "value": 1.5, "name": "Loss", "verified": True}],
                "source": {"url": "https://example.org", "name": "paper"},
            }
        ],
    }
    (tmp_path / "README.md").write_text(f"---\n{yaml.safe_dump({'model-index': [theirs]})}---\n\ntext\n")
    _, before = model_index_to_eval_results([theirs])
    add_to_card(tmp_path, FOUND)
    name, after = model_index_to_eval_results(
        yaml.safe_load((tmp_path / "README.md").read_text().split("---\n")[1])["model-index"]
    )
    assert name == "their name"
    assert before[0] in after
    assert len(after) == 4


def test_a_card_that_cannot_be_read_is_not_touched(tmp_path):
    path = tmp_path / "README.md"
    for metadata in (
        "model-index: [{name: a}]",
        "model-index: [{name: a, results: []}, {name: b, results: []}]",
        "a: [1",
    ):
        path.write_text(f"---\n{metadata}\n---\n")
        before = path.read_bytes()
        for function in (check_card, lambda folder: add_to_card(folder, FOUND)):
            with pytest.raises(ValueError, match="cannot be read, mend"):
                function(tmp_path)
        assert path.read_bytes() == before
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        add_to_card(tmp_path / "none", FOUND)


def test_publish_carries_it_and_writes_a_text_where_there_is_none(tiny_model, tokenizer, tmp_path):
    from mmbert_hf.hub import publish

    tiny_model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    add_to_card(tmp_path, FOUND)
    assert (tmp_path / "README.md").read_text().strip().endswith("---")
    done = publish(tmp_path, "me/tiny", license="apache-2.0", dry_run=True)
    card = ModelCard(done.card)
    assert sorted(map(str, card.data.eval_results)) == sorted(map(str, FOUND.to_eval_results()))
    assert card.data.pipeline_tag == "fill-mask"
    assert "me/tiny" in card.text
