import doctest

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoTokenizer, XLMRobertaConfig, XLMRobertaForMaskedLM

from mmbert_hf.evaluation import SetName, evaluate_bitext, evaluate_masked_loss, languages, masked_scores
from mmbert_hf.evaluation.languages import read_parallel_texts
from mmbert_hf.evaluation.masked import FixedMasks


def test_docstring_examples():
    result = doctest.testmod(languages)
    assert result.attempted >= 9
    assert result.failed == 0


def test_masked_loss_of_each_language(tiny_model, tokenizer, sentences):
    names = {SetName(f"{code}.txt", code): texts for code, texts in sentences.items()}
    options = {"mask_ratio": 0.4, "max_length": 40, "seed": 3}
    scores = evaluate_masked_loss(tiny_model, tokenizer, names, **options)
    expected = masked_scores(tiny_model, FixedMasks(sentences, tokenizer, **options))
    for code, score in expected.items():
        own = {each.metric: each for each in scores if each.language == code}
        assert own["nats_per_token"].value == score.nats_per_token
        assert own["nats_per_byte"].value == score.nats_per_byte
        assert own["accuracy"].value == score.accuracy
        assert {each.num_examples for each in own.values()} == {score.num_masked_tokens}
        assert [each.higher_is_better for each in own.values()] == [False, False, True]


def test_an_xlm_r_is_measured_through_all_its_logits(encoders):
    """It has no `head`; and bytes of text that it does not know are not counted, so there are no nats per byte."""
    tokenizer = AutoTokenizer.from_pretrained(encoders / "xlm-r")
    torch.manual_seed(0)
    model = XLMRobertaForMaskedLM(XLMRobertaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=70, pad_token_id=1, type_vocab_size=1)).eval()  # fmt: skip
    texts = {
        SetName("a.txt", "eng"): ["free born equal rights"] * 9,
        SetName("b.txt", "tir"): ["ብመንፅር ክብርን መሰልን ኩሎም"] * 9,
    }
    scores = {
        (each.language, each.metric): each.value
        for each in evaluate_masked_loss(model, tokenizer, texts, mask_ratio=0.5, max_length=32)
    }
    assert ("eng", "nats_per_byte") in scores
    assert ("tir", "nats_per_byte") not in scores
    masks = FixedMasks({"eng": texts[SetName("a.txt", "eng")]}, tokenizer, mask_ratio=0.5, max_length=32)
    nats, count = 0.0, 0
    for ids, labels in masks.rows["eng"]:
        with torch.no_grad():
            log_p = model(input_ids=ids[None]).logits[0].log_softmax(-1)
        for place in (labels != -100).nonzero().flatten().tolist():
            nats, count = nats - float(log_p[place, labels[place]]), count + 1
    assert scores["eng", "nats_per_token"] == pytest.approx(nats / count, rel=1e-5)


def test_both_directions_of_a_pair():
    vectors = {"a": [1.0, 0.0], "b": [0.0, 1.0], "x": [1.0, 0.2], "y": [1.0, 0.4]}
    scores = evaluate_bitext(
        lambda texts: np.array([vectors[text] for text in texts]), {SetName("own", "dan-fao"): (["a", "b"], ["x", "y"])}
    )
    found = {(score.language, score.metric): score.value for score in scores}
    # a -> x and b -> y; but x and y are both nearest to a
    assert found == {
        ("dan-fao", "accuracy"): 1.0, ("fao-dan", "accuracy"): 0.5, ("dan-fao", "chance"): 0.5, ("fao-dan", "chance"): 0.5,
    }  # fmt: skip
    with pytest.raises(ValueError, match="does not name two languages"):
        evaluate_bitext(lambda texts: texts, {SetName("own", "dan"): ([], [])})


@pytest.mark.parametrize(
    "rows",
    [
        {"dan": ["a", "b", "a"], "fao": ["x", "y", "x"]},
        {"sentence1": ["a", "b"], "sentence2": ["x", "y"]},
        {"translation": [{"dan": "a", "fao": "x"}, {"dan": "b", "fao": "y"}]},
    ],
)
def test_parallel_texts_of_every_form(rows):
    assert read_parallel_texts(Dataset.from_dict(rows), "dan", "fao") == (["a", "b"], ["x", "y"])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"dan": ["a", "a"], "fao": ["x", "y"]}, "'a' stands with different translations"),
        ({"dan": ["a", ""], "fao": ["x", "y"]}, "1 rows lack a sentence"),
        ({"dan": ["a"], "fao": ["x"]}, "there are 1 different pairs"),
        ({"dan": ["a"], "isl": ["x"]}, "expected the columns dan and fao, or sentence1"),
    ],
)
def test_wrong_pairs_are_told(rows, message):
    with pytest.raises(ValueError, match=message):
        read_parallel_texts(Dataset.from_dict(rows), "dan", "fao")
