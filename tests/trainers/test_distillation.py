"""The distillation loss: its terms, whom its gradient reaches, exact token ids after a vocabulary trim."""

import copy
import doctest
import json

import pytest
import torch
from mmbert_hf.trainers import distillation
from mmbert_hf.trainers.distillation import DistilledRankingLoss, distillation_term, teacher_ids
from mmbert_hf.trainers.gaprune import retrain
from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from tokenizers import Tokenizer
from transformers import BertModel, BertTokenizerFast

from mmbert_hf.pruning.targets import encoder_of


@pytest.fixture
def teacher(bert_embedder):
    """The embedder with other weights."""
    other = copy.deepcopy(bert_embedder)
    torch.manual_seed(7)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return other


@pytest.fixture
def trimmed(bert_embedder, word_piece, build_embedder):
    """The embedder with every third token that is no piece of the special ones or single characters gone, and what was kept."""
    values = json.loads(word_piece.backend_tokenizer.to_str())
    vocabulary = values["model"]["vocab"]
    by_id = sorted(vocabulary, key=vocabulary.get)
    kept = [
        index for index, token in enumerate(by_id) if index % 3 or len(token.removeprefix("##")) == 1 or "[" in token
    ]
    values["model"]["vocab"] = {by_id[old]: new for new, old in enumerate(kept)}
    for added in values["added_tokens"]:
        added["id"] = values["model"]["vocab"][added["content"]]
    for special in values["post_processor"]["special_tokens"].values():
        special["ids"] = [values["model"]["vocab"][token] for token in special["tokens"]]
    tokenizer = BertTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(values)), model_max_length=64)
    ids = torch.tensor(kept)
    encoder = encoder_of(bert_embedder)
    config = copy.deepcopy(encoder.config)
    config.vocab_size = len(kept)
    small = BertModel(config)
    state = encoder.state_dict()
    state["embeddings.word_embeddings.weight"] = state["embeddings.word_embeddings.weight"][ids]
    small.load_state_dict(state)
    return build_embedder(small, tokenizer), ids


def features(model, rows, names=("anchor", "positive", "negative")):
    return [dict(model.preprocess(list(rows[name]))) for name in names]


def test_the_distillation_term_vanishes_when_the_teacher_is_the_student(bert_embedder, make_triplets):
    loss = DistilledRankingLoss(bert_embedder, copy.deepcopy(bert_embedder), distillation_weight=3.0)
    rows = make_triplets(6)
    expected = MultipleNegativesRankingLoss(bert_embedder)(features(bert_embedder, rows), None)
    assert loss(features(bert_embedder, rows), None).item() == pytest.approx(expected.item(), abs=1e-5)


@pytest.mark.parametrize("columns", [("anchor", "positive"), ("anchor", "positive", "negative")])
def test_the_terms_add_up(columns, bert_embedder, teacher, make_triplets):
    rows = make_triplets(6)
    inputs = features(bert_embedder, rows, columns)
    ranking = MultipleNegativesRankingLoss(bert_embedder, scale=10.0)(copy.deepcopy(inputs), None)
    no_weight = DistilledRankingLoss(bert_embedder, teacher, scale=10.0, distillation_weight=0.0)
    torch.testing.assert_close(no_weight(copy.deepcopy(inputs), None), ranking)
    cosines = []
    for name in columns:  # from the texts, by the stock encode
        ours, theirs = (model.encode(list(rows[name]), convert_to_tensor=True) for model in (bert_embedder, teacher))
        cosines += torch.nn.functional.cosine_similarity(ours, theirs)
    term = 10.0 * (1 - torch.stack(cosines).mean())
    assert term > 0.1
    loss = DistilledRankingLoss(bert_embedder, teacher, scale=10.0, distillation_weight=0.5)
    torch.testing.assert_close(loss(inputs, None), ranking + 0.5 * term)


def test_the_term_is_float32_whatever_comes_in():
    student, teacher = torch.randn(4, 8, generator=torch.Generator().manual_seed(0)).bfloat16(), torch.ones(4, 8)
    expected = 20 * (1 - torch.nn.functional.cosine_similarity(student.float(), teacher)).mean()
    assert distillation_term(student, teacher).dtype == torch.float32
    torch.testing.assert_close(distillation_term(student, teacher), expected)


def test_only_the_student_belongs_to_the_loss_and_gets_a_gradient(bert_embedder, teacher, make_triplets):
    loss = DistilledRankingLoss(bert_embedder, teacher)
    assert {id(parameter) for parameter in loss.parameters()} == {
        id(parameter) for parameter in bert_embedder.parameters()
    }
    assert set(loss.state_dict()) == set(MultipleNegativesRankingLoss(bert_embedder).state_dict()) | {
        f"ranking.{name}" for name in MultipleNegativesRankingLoss(bert_embedder).state_dict()
    }
    before = copy.deepcopy(teacher.state_dict())
    loss.train()
    teacher.train()  # whatever was done to it
    loss(features(bert_embedder, make_triplets(6)), None).backward()
    assert not teacher.training
    assert all(parameter.grad is None for parameter in teacher.parameters())
    got = [name for name, parameter in bert_embedder.named_parameters() if parameter.grad is not None]
    assert len(got) == len([name for name, _ in bert_embedder.named_parameters() if "pooler" not in name])
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_the_distillation_gradient_draws_the_student_to_the_teacher(bert_embedder, teacher, make_triplets):
    rows = make_triplets(12)

    def similarity():
        ours, theirs = (
            model.encode(list(rows["positive"]), convert_to_tensor=True) for model in (bert_embedder, teacher)
        )
        return torch.nn.functional.cosine_similarity(ours, theirs).mean()

    before = similarity()
    options = {"steps": 20, "batch_size": 6, "learning_rate": 3e-3, "progress": False, "use_cpu": True}
    retrain(bert_embedder, rows, teacher=teacher, distillation_weight=10.0, **options)
    assert 1 - similarity() < 0.5 * (1 - before)


def test_ids_of_a_trimmed_vocabulary_reach_the_teacher_as_the_same_tokens(bert_embedder, trimmed, make_triplets):
    student, kept = trimmed
    assert len(student.tokenizer) < len(bert_embedder.tokenizer)
    assert torch.equal(teacher_ids(student, bert_embedder), kept)
    rows = make_triplets(6)
    seen = []
    handle = encoder_of(bert_embedder).embeddings.word_embeddings.register_forward_pre_hook(
        lambda module, args: seen.append(args[0])
    )
    loss = DistilledRankingLoss(student, bert_embedder, student_to_teacher_ids=kept)
    value = loss(features(student, rows), None)
    handle.remove()
    for ids, column in zip(seen, features(student, rows), strict=True):
        for theirs, ours in zip(ids.tolist(), column["input_ids"].tolist(), strict=True):
            assert bert_embedder.tokenizer.convert_ids_to_tokens(theirs) == student.tokenizer.convert_ids_to_tokens(
                ours
            )
    # the rows of the embedding are the same too, so the student is its teacher and nothing is left to distil
    ranking = MultipleNegativesRankingLoss(student)(features(student, rows), None)
    torch.testing.assert_close(value, ranking, rtol=0, atol=1e-5)


def test_a_missing_or_wrong_table_is_refused(bert_embedder, trimmed):
    student, kept = trimmed
    with pytest.raises(ValueError, match=rf"has {len(kept)} tokens, the teacher {len(bert_embedder.tokenizer)}, and"):
        DistilledRankingLoss(student, bert_embedder)
    for table in (kept[:-1], kept.float(), kept[None]):
        with pytest.raises(ValueError, match=rf"give int64 \[{len(kept)}\]"):
            DistilledRankingLoss(student, bert_embedder, student_to_teacher_ids=table)
    wrong = kept.clone()
    wrong[10], wrong[11] = kept[11], kept[10]
    with pytest.raises(ValueError, match=r"takes 2 tokens to others: .* has id 1[01] in the student"):
        DistilledRankingLoss(student, bert_embedder, student_to_teacher_ids=wrong)
    with pytest.raises(ValueError, match="tokens of the student are not in the teacher's vocabulary, such as"):
        teacher_ids(bert_embedder, student)


def test_other_bad_arguments(bert_embedder, teacher, qwen3_embedder, word_piece, build_embedder):
    config = copy.deepcopy(encoder_of(bert_embedder).config)
    config.hidden_size = 16
    narrow = build_embedder(BertModel(config), word_piece)
    with pytest.raises(ValueError, match="the student's embeddings have size 32 and the teacher's 16"):
        DistilledRankingLoss(bert_embedder, narrow)
    with pytest.raises(ValueError, match="their ids differ"):
        DistilledRankingLoss(bert_embedder, qwen3_embedder)
    with pytest.raises(ValueError, match="the teacher shares weights with the model"):
        DistilledRankingLoss(bert_embedder, bert_embedder)
    for options in ({"scale": 0.0}, {"distillation_weight": -1.0}, {"distillation_weight": float("nan")}):
        with pytest.raises(ValueError, match="scale must be above 0 and distillation_weight at least 0"):
            DistilledRankingLoss(bert_embedder, teacher, **options)


def test_inside_the_trainer(bert_embedder, trimmed, make_triplets, tmp_path):
    student, kept = trimmed
    dense = copy.deepcopy(bert_embedder.state_dict())
    loss = DistilledRankingLoss(student, bert_embedder, student_to_teacher_ids=kept)
    args = SentenceTransformerTrainingArguments(
        str(tmp_path / "run"), max_steps=4, per_device_train_batch_size=4, gradient_accumulation_steps=2, save_steps=4,
        learning_rate=1e-3, use_cpu=True, report_to="none", disable_tqdm=True, dataloader_pin_memory=False,
        logging_strategy="no",
    )  # fmt: skip
    before = copy.deepcopy(student.state_dict())
    trainer = SentenceTransformerTrainer(student, args, make_triplets(16), loss=loss)
    trainer.train()
    assert all(torch.equal(value, dense[name]) for name, value in bert_embedder.state_dict().items())
    assert any(not torch.equal(value, before[name]) for name, value in student.state_dict().items())
    optimised = {id(parameter) for group in trainer.optimizer.param_groups for parameter in group["params"]}
    assert optimised == {id(parameter) for parameter in student.parameters()}
    card = (tmp_path / "run" / "checkpoint-4" / "README.md").read_text()
    assert "DistilledRankingLoss" in card
    assert '"distillation_weight": 1.0' in card


def test_docstring_examples():
    assert doctest.testmod(distillation).failed == 0
