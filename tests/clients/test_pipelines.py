"""transformers' pipelines: a text gives the same alone and in a padded batch, and what the plain model says.

transformers 5 has no pipeline for question answering.
"""

import pytest
import torch
from transformers import pipeline


def flat(result):
    """Numbers and words of a pipeline's answer, in order."""
    if isinstance(result, dict):
        return [item for key in sorted(result) for item in flat(result[key])]
    if isinstance(result, list | tuple):
        return [item for part in result for item in flat(part)]
    if isinstance(result, torch.Tensor):
        return result.flatten().tolist()
    return [result if isinstance(result, str | None) else float(result)]


def assert_same(one, other):
    one, other = flat(one), flat(other)
    assert len(one) == len(other)
    for left, right in zip(one, other, strict=True):
        assert left == (right if isinstance(right, str | None) else pytest.approx(right, abs=1e-5))


@pytest.fixture
def make_pipeline(saved):
    def make(task, class_name, **options):
        made = pipeline(task, model=saved(class_name, **options), device="cpu")
        assert type(made.model).__name__ == class_name
        assert type(made.tokenizer).__name__ == "MMBertTokenizer"
        return made

    return make


def test_fill_mask(make_pipeline, texts):
    fill = make_pipeline("fill-mask", "MMBertForMaskedLM")
    masked = [f"{text}<mask>" for text in texts]
    alone = [fill(text) for text in masked]
    assert_same(fill(masked, batch_size=len(masked)), alone)
    inputs = fill.tokenizer(masked[0], return_tensors="pt")
    with torch.no_grad():
        logits = fill.model(**inputs).logits[0]
    place = inputs["input_ids"][0].eq(fill.tokenizer.mask_token_id).nonzero().item()
    best = logits[place].softmax(dim=-1).max(dim=-1)
    assert (alone[0][0]["token"], alone[0][0]["score"]) == (best.indices.item(), pytest.approx(best.values.item()))


def test_feature_extraction(make_pipeline, texts):
    extract = make_pipeline("feature-extraction", "MMBertModel")
    alone = [extract(text, return_tensors=True)[0] for text in texts]
    padded = extract(texts, batch_size=len(texts), return_tensors=True)
    for one, other, text in zip(alone, padded, texts, strict=True):
        inputs = extract.tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            torch.testing.assert_close(one, extract.model(**inputs).last_hidden_state[0], rtol=0, atol=1e-5)
        torch.testing.assert_close(other[0, : len(one)], one, rtol=0, atol=1e-5)  # what follows is padding


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_text_classification(make_pipeline, texts, pooling):
    classify = make_pipeline(
        "text-classification", "MMBertForSequenceClassification", num_labels=3, classifier_pooling=pooling
    )
    alone = [classify(text, top_k=None) for text in texts]
    assert_same(classify(texts, top_k=None, batch_size=len(texts)), alone)
    with torch.no_grad():
        expected = classify.model(**classify.tokenizer(texts[0], return_tensors="pt")).logits[0].softmax(dim=-1)
    scores = {answer["label"]: answer["score"] for answer in alone[0]}
    assert scores == {classify.model.config.id2label[i]: pytest.approx(p) for i, p in enumerate(expected.tolist())}


def test_token_classification(make_pipeline, texts):
    tag = make_pipeline("token-classification", "MMBertForTokenClassification", num_labels=3)
    alone = [tag(text, ignore_labels=[]) for text in texts]
    assert_same(tag(texts, ignore_labels=[], batch_size=len(texts)), alone)
    inputs = tag.tokenizer(texts[0], return_tensors="pt", return_special_tokens_mask=True)
    real = ~inputs.pop("special_tokens_mask")[0].bool()
    with torch.no_grad():
        best = tag.model(**inputs).logits[0, real].softmax(dim=-1).max(dim=-1)
    assert [answer["score"] for answer in alone[0]] == pytest.approx(best.values.tolist(), abs=1e-6)
    names = tag.model.config.id2label
    assert [answer["entity"] for answer in alone[0]] == [names[index] for index in best.indices.tolist()]


def test_zero_shot_classification(make_pipeline, texts):
    choose = make_pipeline("zero-shot-classification", "MMBertForSequenceClassification", num_labels=3)
    options = {"candidate_labels": ["rights", "slavery and everything about it"], "hypothesis_template": "About {}"}
    alone = [choose(text, **options) for text in texts]
    assert_same(choose(texts, batch_size=2 * len(texts), **options), alone)
    assert choose.entailment_id == 0
    logits = []
    for label in alone[0]["labels"]:
        inputs = choose.tokenizer(texts[0], f"About {label}", return_tensors="pt")
        with torch.no_grad():
            logits.append(choose.model(**inputs).logits[0, 0])
    assert alone[0]["scores"] == pytest.approx(torch.stack(logits).softmax(dim=0).tolist(), abs=1e-6)
