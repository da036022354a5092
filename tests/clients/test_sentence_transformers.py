"""sentence-transformers' four kinds of models from a folder of ours, against the plain model and sums by hand."""

import copy

import datasets
import pytest
import torch
from sentence_transformers import CrossEncoder, SentenceTransformer, SparseEncoder
from sentence_transformers.cross_encoder import CrossEncoderTrainer, CrossEncoderTrainingArguments
from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from sentence_transformers.sentence_transformer.trainer import SentenceTransformerTrainer
from sentence_transformers.sentence_transformer.training_args import SentenceTransformerTrainingArguments
from sentence_transformers.sparse_encoder.modules import MLMTransformer, SpladePooling

from mmbert_hf import MMBertForMaskedLM, MMBertForSequenceClassification, MMBertModel

PAIRS = [("free", "All human beings"), ("Ingen", "No one shall be held in slavery. " * 4), ("a", "b")]
TRAINING = {
    "use_cpu": True,
    "report_to": [],
    "save_strategy": "no",
    "disable_tqdm": True,
    "optim": "sgd",
    "weight_decay": 0.0,
    "lr_scheduler_type": "constant",
    "max_grad_norm": 0.0,
}


def plain(model_class, folder):
    return model_class.from_pretrained(folder).eval()


def inner(model):
    """The transformers model inside a model of sentence-transformers."""
    return model[0].auto_model


@pytest.fixture
def embedder(saved):
    transformer = Transformer(saved())
    pooling = Pooling(transformer.auto_model.config.hidden_size, pooling_mode="mean")
    return SentenceTransformer(modules=[transformer, pooling], device="cpu")


def mean_by_hand(model, tokenizer, text):
    """One text without padding, the plain mean over its tokens, those of the template included."""
    return model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(dim=0)


def test_embeddings_are_means_over_real_tokens(embedder, saved, tokenizer, texts):
    assert type(inner(embedder)) is MMBertModel
    together = embedder.encode(texts, batch_size=len(texts), convert_to_tensor=True)
    alone = torch.stack([embedder.encode(text, convert_to_tensor=True) for text in texts])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)
    model = plain(MMBertModel, saved())
    with torch.no_grad():
        expected = torch.stack([mean_by_hand(model, tokenizer, text) for text in texts])
    torch.testing.assert_close(together, expected, rtol=0, atol=1e-5)


def test_a_folder_is_enough_and_a_saved_embedder_is_the_same(embedder, saved, texts, tmp_path):
    expected = embedder.encode(texts, convert_to_tensor=True)
    assert torch.equal(SentenceTransformer(saved(), device="cpu").encode(texts, convert_to_tensor=True), expected)
    embedder.save_pretrained(str(tmp_path))
    again = SentenceTransformer(str(tmp_path), device="cpu")
    assert type(inner(again)) is MMBertModel
    assert torch.equal(again.encode(texts, convert_to_tensor=True), expected)


def test_one_training_step_is_the_step_by_hand(embedder, saved, tokenizer, texts, tmp_path):
    anchors, positives = texts[:3], texts[3:]
    arguments = SentenceTransformerTrainingArguments(
        str(tmp_path), max_steps=1, per_device_train_batch_size=3, learning_rate=0.1, **TRAINING
    )
    data = datasets.Dataset.from_dict({"anchor": anchors, "positive": positives})
    loss = MultipleNegativesRankingLoss(embedder, scale=20.0)
    SentenceTransformerTrainer(embedder, arguments, data, loss=loss).train()

    model = plain(MMBertModel, saved())
    untrained = copy.deepcopy(model.state_dict())
    left, right = (
        torch.nn.functional.normalize(torch.stack([mean_by_hand(model, tokenizer, text) for text in side]))
        for side in (anchors, positives)
    )
    torch.nn.functional.cross_entropy(20 * left @ right.T, torch.arange(3)).backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    trained = inner(embedder).state_dict()
    assert not torch.allclose(trained["layers.1.attn.Wqkv.weight"], untrained["layers.1.attn.Wqkv.weight"], atol=1e-4)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(trained[name], value, rtol=0, atol=1e-5, msg=name)


@pytest.fixture
def scorer(saved):
    return CrossEncoder(saved("MMBertForSequenceClassification", num_labels=1), device="cpu")


def test_scores_of_pairs_are_those_of_the_plain_model(scorer, saved, tokenizer, tmp_path):
    together = scorer.predict(PAIRS, batch_size=len(PAIRS), convert_to_tensor=True)
    alone = torch.stack([scorer.predict(pair, convert_to_tensor=True).squeeze() for pair in PAIRS])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)
    model = plain(MMBertForSequenceClassification, saved("MMBertForSequenceClassification", num_labels=1))
    with torch.no_grad():
        logits = torch.stack([model(**tokenizer(*pair, return_tensors="pt")).logits.squeeze() for pair in PAIRS])
    torch.testing.assert_close(together, logits.sigmoid(), rtol=0, atol=1e-5)
    scorer.save_pretrained(str(tmp_path))
    again = CrossEncoder(str(tmp_path), device="cpu")
    assert torch.equal(again.predict(PAIRS, convert_to_tensor=True), together)


def test_a_scorer_learns_pairs(scorer, tmp_path):
    labels = [1.0, 0.0, 1.0]
    data = datasets.Dataset.from_dict({"query": [q for q, _ in PAIRS], "text": [t for _, t in PAIRS], "label": labels})
    arguments = CrossEncoderTrainingArguments(
        str(tmp_path), max_steps=12, per_device_train_batch_size=3, learning_rate=0.5, **TRAINING
    )
    before = torch.nn.functional.binary_cross_entropy(
        scorer.predict(PAIRS, convert_to_tensor=True), torch.tensor(labels)
    )
    trainer = CrossEncoderTrainer(scorer, arguments, data, loss=BinaryCrossEntropyLoss(scorer))
    trainer.train()
    after = torch.nn.functional.binary_cross_entropy(
        scorer.predict(PAIRS, convert_to_tensor=True), torch.tensor(labels)
    )
    assert after < before / 2


def test_splade_takes_the_logits_of_every_token(saved, tokenizer, texts):
    splade = SparseEncoder(modules=[MLMTransformer(saved()), SpladePooling(pooling_strategy="max")], device="cpu")
    assert type(inner(splade)) is MMBertForMaskedLM
    together = splade.encode(texts, batch_size=len(texts), convert_to_sparse_tensor=False)
    alone = torch.stack([splade.encode(text, convert_to_sparse_tensor=False) for text in texts])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)
    model = plain(MMBertForMaskedLM, saved())
    with torch.no_grad():
        logits = [model(**tokenizer(text, return_tensors="pt")).logits[0] for text in texts]
    expected = torch.stack([each.relu().log1p().amax(dim=0) for each in logits])
    torch.testing.assert_close(together, expected, rtol=0, atol=1e-5)

    features = splade.preprocess(texts) if hasattr(splade, "preprocess") else splade.tokenize(texts)
    splade.train()(features)["sentence_embedding"].sum().backward()  # in training too, where there are no labels
    assert inner(splade).model.layers[0].attn.Wqkv.weight.grad.abs().sum() > 0
