"""Trimmed models: same outputs, tied where they were tied, ids that follow their tokens."""

import copy
import logging

import numpy as np
import pytest
import torch

from mmbert_hf.vocabulary import VocabularyPlan, apply_to_model, plan_trim, trim
from mmbert_hf.vocabulary.embeddings import pinned_ids

HEADS = {
    "MMBertForMaskedLM": "byte_fallback",
    "BertForMaskedLM": "word_piece",
    "ModernBertForMaskedLM": "word_piece",
    "XLMRobertaForMaskedLM": "unigram",
    "Qwen2ForCausalLM": "byte_level",
}
MODERNBERT_IDS = dict.fromkeys(("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"))


def options_of(name, tokenizer):
    options = {"tie_word_embeddings": True, "pad_token_id": tokenizer.pad_token_id}
    if name == "ModernBertForMaskedLM":
        options |= {**MODERNBERT_IDS, "cls_token_id": tokenizer.cls_token_id, "sep_token_id": tokenizer.sep_token_id}
    if name == "Qwen2ForCausalLM":
        options |= {"eos_token_id": [tokenizer.eos_token_id], "bos_token_id": None, "num_key_value_heads": 1}
    return options


def ids_of(tokenizer, texts):
    return tokenizer(texts[:6], padding=True, truncation=True, return_tensors="pt")


@pytest.fixture(params=HEADS)
def headed(request, make_model):
    """A model with a language modelling head, its output matrix tied, and its tokenizer."""
    tokenizer = request.getfixturevalue(HEADS[request.param])
    model = make_model(request.param, len(tokenizer), **options_of(request.param, tokenizer))
    bias = model.get_output_embeddings().bias
    if bias is not None:
        torch.nn.init.normal_(bias)
    return model, tokenizer


@torch.no_grad()
def test_logits_are_equal_at_kept_ids(headed, inside):
    old, tokenizer = headed
    new, new_tokenizer = trim(old, tokenizer=tokenizer, texts=inside)
    kept = torch.from_numpy(plan_ids(tokenizer, new_tokenizer))
    assert new.config.vocab_size == len(new_tokenizer) < len(tokenizer)
    before, after = old(**ids_of(tokenizer, inside)).logits, new(**ids_of(new_tokenizer, inside)).logits
    assert after.shape[-1] == len(new_tokenizer)
    torch.testing.assert_close(after, before[..., kept], rtol=0, atol=2e-6)  # another width, another order of summing


def plan_ids(old, new):
    return np.array(old.convert_tokens_to_ids(new.convert_ids_to_tokens(range(len(new)))))


@torch.no_grad()
def test_saved_and_loaded_it_is_the_same_and_still_tied(headed, inside, tmp_path):
    old, tokenizer = headed
    new, new_tokenizer = trim(old, tokenizer=tokenizer, texts=inside)
    new.save_pretrained(tmp_path)
    loaded = type(old).from_pretrained(tmp_path).eval()
    for model in (new, loaded):
        assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
        assert model.get_output_embeddings().out_features == model.get_input_embeddings().num_embeddings
    features = ids_of(new_tokenizer, inside)
    assert torch.equal(loaded(**features).logits, new(**features).logits)
    assert new(**features, labels=features["input_ids"]).loss.isfinite()


@torch.no_grad()
def test_untied_matrices_are_cut_each_for_itself(make_model, byte_level, inside):
    options = {**options_of("Qwen2ForCausalLM", byte_level), "tie_word_embeddings": False}
    old = make_model("Qwen2ForCausalLM", len(byte_level), **options)
    new, new_tokenizer = trim(old, tokenizer=byte_level, texts=inside)
    kept = torch.from_numpy(plan_ids(byte_level, new_tokenizer))
    assert torch.equal(new.lm_head.weight, old.lm_head.weight[kept])
    assert torch.equal(new.get_input_embeddings().weight, old.get_input_embeddings().weight[kept])
    assert not torch.equal(new.lm_head.weight, new.get_input_embeddings().weight)


def test_nothing_of_the_old_size_is_left(make_model, word_piece, inside):
    """An untied BERT head has a bias of its own beside that of its decoder."""
    old = make_model("BertForMaskedLM", len(word_piece), pad_token_id=0, tie_word_embeddings=False)
    old.cls.predictions.bias = torch.nn.Parameter(old.cls.predictions.bias.detach().clone())
    new, tokenizer = trim(old, tokenizer=word_piece, texts=inside)
    assert {len(word_piece)} & {len(tensor) for tensor in old.state_dict().values()}
    assert not {len(word_piece)} & {len(tensor) for tensor in new.state_dict().values()}
    assert len(new.cls.predictions.bias) == len(new.cls.predictions.decoder.bias) == len(tokenizer)


def test_special_ids_follow_their_tokens(make_model, byte_level, inside):
    """The end-of-text token of a byte-level vocabulary is the last id, so it moves."""
    old = make_model("Qwen2ForCausalLM", len(byte_level), **options_of("Qwen2ForCausalLM", byte_level))
    new, tokenizer = trim(old, tokenizer=byte_level, texts=inside)
    assert byte_level.eos_token_id > tokenizer.eos_token_id == len(tokenizer) - 1
    assert new.config.eos_token_id == new.generation_config.eos_token_id == [tokenizer.eos_token_id]
    assert new.config.pad_token_id == new.get_input_embeddings().padding_idx == tokenizer.pad_token_id
    assert new.model.vocab_size == len(tokenizer)
    assert old.config.eos_token_id == old.generation_config.eos_token_id == [byte_level.eos_token_id]


@torch.no_grad()
def test_padding_rows_go(make_model, byte_level, inside):
    options = options_of("Qwen2ForCausalLM", byte_level)
    old = make_model("Qwen2ForCausalLM", len(byte_level) + 24, **options)
    new, tokenizer = trim(old, tokenizer=byte_level, texts=inside)
    assert new.get_input_embeddings().weight.shape == (len(tokenizer), 32)
    assert new.config.vocab_size == len(tokenizer)
    kept = torch.from_numpy(plan_ids(byte_level, tokenizer))
    assert torch.equal(new.get_input_embeddings().weight, old.get_input_embeddings().weight[kept])


def test_too_few_rows_are_an_error(make_model, byte_level):
    model = make_model("Qwen2Model", len(byte_level) - 1, num_key_value_heads=1)
    with pytest.raises(
        ValueError, match=f"has {len(byte_level) - 1} embeddings, but its tokenizer {len(byte_level)} ids"
    ):
        trim(model, tokenizer=byte_level, texts=["a"])


def test_an_id_of_no_token_becomes_none_and_is_logged(make_model, word_piece, inside, caplog):
    """ModernBERT's defaults belong to its own vocabulary of 50,368."""
    old = make_model("ModernBertModel", len(word_piece), pad_token_id=0)
    assert old.config.cls_token_id > len(word_piece)
    with caplog.at_level(logging.WARNING, logger="mmbert_hf.vocabulary"):
        new, _ = trim(old, tokenizer=word_piece, texts=inside)
    assert new.config.cls_token_id is None
    assert "cls_token_id was 50281" in caplog.text


def test_ids_of_the_configuration_stay(make_model, word_piece, inside):
    """Here the configuration alone names a token, one that the texts do not use."""
    unused = word_piece.convert_tokens_to_ids("human")
    assert unused not in plan_trim(word_piece, inside).kept_ids
    old = make_model("BertModel", len(word_piece), pad_token_id=0, eos_token_id=unused)
    new, tokenizer = trim(old, tokenizer=word_piece, texts=inside)
    assert tokenizer.convert_ids_to_tokens(new.config.eos_token_id) == "human"
    with pytest.raises(ValueError, match=f"eos_token_id is {unused}, a token that the plan drops"):
        apply_to_model(old, plan_trim(word_piece, inside))


@torch.no_grad()
def test_positions_that_start_behind_the_padding_id_do_not_move(make_model, byte_level, inside):
    """XLM-R counts positions from the padding id, which here is the last one but in a vocabulary that shrinks."""
    pad = 300
    model = make_model("XLMRobertaModel", len(byte_level), pad_token_id=pad, max_position_embeddings=400)
    assert set(range(pad + 1)) <= pinned_ids(model, len(byte_level))
    new, tokenizer = trim(model, tokenizer=byte_level, texts=inside)
    assert new.config.pad_token_id == pad
    before, after = (
        each(**ids_of(t, inside[:1])).last_hidden_state for each, t in ((model, byte_level), (new, tokenizer))
    )
    assert torch.equal(before, after)
    with pytest.raises(ValueError, match="positions start behind the padding id 300"):
        apply_to_model(model, plan_trim(byte_level, inside))


def test_the_given_model_is_not_changed(headed, inside):
    model, tokenizer = headed
    before, config = copy.deepcopy(model.state_dict()), model.config.to_dict()
    new, _ = trim(model, tokenizer=tokenizer, texts=inside)
    after = model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert model.config.to_dict() == config
    shared = {tensor.data_ptr() for tensor in model.parameters()} & {tensor.data_ptr() for tensor in new.parameters()}
    assert not shared
    assert new.config is not model.config


def test_a_second_table_is_refused(make_model):
    model = make_model("BertModel", 100, pad_token_id=0)
    model.extra = torch.nn.Embedding(100, 4)
    with pytest.raises(ValueError, match="extra is a second table with 100 rows"):
        apply_to_model(model, VocabularyPlan(np.arange(50), np.ones(100, dtype=np.int64), 1))


def test_wrapped_embeddings_are_refused(make_model):
    model = make_model("BertModel", 100, pad_token_id=0)
    model.embeddings.word_embeddings = torch.nn.Sequential(model.embeddings.word_embeddings)
    with pytest.raises(TypeError, match=r"are Sequential, expected nn\.Embedding"):
        apply_to_model(model, VocabularyPlan(np.arange(50), np.ones(100, dtype=np.int64), 1))


def test_the_type_and_frozen_weights_stay(make_model):
    model = make_model("BertModel", 100, pad_token_id=0).to(torch.bfloat16)
    model.get_input_embeddings().weight.requires_grad_(False)
    weight = (
        apply_to_model(model, VocabularyPlan(np.arange(50), np.ones(100, dtype=np.int64), 1))
        .get_input_embeddings()
        .weight
    )
    assert weight.dtype == torch.bfloat16
    assert not weight.requires_grad
