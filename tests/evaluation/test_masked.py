import doctest

import numpy as np
import pytest
import torch

from mmbert_hf.evaluation import FixedMasks, masked, masked_scores
from mmbert_hf.evaluation.masked import masked_losses, token_byte_lengths
from mmbert_hf.masking import IGNORE_INDEX


def test_examples_in_the_docstrings():
    result = doctest.testmod(masked)
    assert result.attempted >= 4
    assert result.failed == 0


def test_scores_against_brute_force_in_float64(tiny_model, tokenizer, sentences):
    masks = FixedMasks(sentences, tokenizer, mask_ratio=0.4, max_length=40, seed=5)
    scores = masked_scores(tiny_model, masks, tokens_per_batch=128)
    model = tiny_model.double().eval()
    for language, rows in masks.rows.items():
        nats, right, count, num_bytes = 0.0, 0, 0, 0
        for ids, labels in rows:
            with torch.no_grad():
                log_p = model(input_ids=ids[None]).logits[0].log_softmax(-1)
            for position in (labels != IGNORE_INDEX).nonzero().flatten().tolist():
                target = int(labels[position])
                nats -= float(log_p[position, target])
                right += int(log_p[position].argmax()) == target
                token = tokenizer.convert_ids_to_tokens(target)
                num_bytes += 1 if token.startswith("<0x") else len(token.replace("▁", " ").encode())
                count += 1
        score = scores[language]
        assert score.num_masked_tokens == count
        assert score.nats_per_token == pytest.approx(nats / count, rel=1e-5)
        assert score.nats_per_byte == pytest.approx(nats / num_bytes, rel=1e-5)
        assert score.accuracy == pytest.approx(right / count)


def test_token_bytes_sum_to_the_text(tokenizer, sentences):
    lengths = token_byte_lengths(tokenizer)
    for texts in sentences.values():
        for text in [*texts, "emoji 🙂 and a rare sign ꙮ"]:
            ids = tokenizer(text)["input_ids"]
            assert int(lengths[torch.tensor(ids)].sum()) == len(text.encode())


def test_masks_are_the_same_every_time_and_differ_by_seed(tokenizer, sentences):
    def rows(seed):
        return FixedMasks(sentences, tokenizer, mask_ratio=0.4, seed=seed).rows

    for language, expected in rows(1).items():
        for (ids, labels), (again, labels_again) in zip(expected, rows(1)[language], strict=True):
            assert torch.equal(ids, again)
            assert torch.equal(labels, labels_again)
    assert any(not torch.equal(a[1], b[1]) for a, b in zip(rows(1)["eng"], rows(2)["eng"], strict=True))


def test_the_result_does_not_depend_on_batching_and_leaves_the_mode(tiny_model, tokenizer, sentences):
    masks = FixedMasks(sentences, tokenizer, mask_ratio=0.4, max_length=24)
    tiny_model.train()
    big = masked_scores(tiny_model, masks)
    small = masked_scores(tiny_model, masks, tokens_per_batch=1, languages=["fao", "tir"])
    assert tiny_model.training
    assert list(small) == ["fao", "tir"]
    for language, score in small.items():
        assert score.nats_per_token == pytest.approx(big[language].nats_per_token, rel=1e-5)


def test_nothing_masked_is_an_error(tokenizer):
    with pytest.raises(ValueError, match="nothing is masked in the 1 held-out rows of 'fao'"):
        FixedMasks({"fao": ["ein"]}, tokenizer, mask_ratio=0.0)
    with pytest.raises(ValueError, match="'fao' has no held-out text"):
        FixedMasks({"fao": []}, tokenizer)


def test_losses_through_the_forward_are_the_scores(tiny_model, tokenizer, sentences):
    masks = FixedMasks(sentences, tokenizer, mask_ratio=0.4, max_length=24)
    scores, losses = masked_scores(tiny_model, masks), masked_losses(tiny_model, masks)
    assert list(losses) == list(sentences)
    for language, loss in losses.items():
        assert loss == pytest.approx(scores[language].nats_per_token, rel=1e-5), language


@pytest.mark.parametrize("tokens_per_batch", [1, 50, 100_000])
def test_losses_do_not_depend_on_how_rows_are_joined(tokens_per_batch, tiny_model, tokenizer, sentences):
    masks = FixedMasks(sentences, tokenizer, mask_ratio=0.2, max_length=12, seed=1)
    sizes = {int((labels != IGNORE_INDEX).sum()) for rows in masks.rows.values() for _, labels in rows}
    assert 0 in sizes  # a row with nothing to predict does not spoil the mean
    assert len(sizes) > 2  # and rows count by their masked tokens
    seen = []
    hook = tiny_model.register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs), with_kwargs=True)
    losses = masked_losses(tiny_model, masks, tokens_per_batch=tokens_per_batch)
    hook.remove()
    assert max(batch["input_ids"].numel() for batch in seen) <= max(12, tokens_per_batch)
    assert all(int(batch["cu_seq_lens_q"][-1]) == batch["input_ids"].numel() for batch in seen)
    assert len(seen) == {1: sum(map(len, masks.rows.values())), 100_000: len(sentences)}.get(
        tokens_per_batch, len(seen)
    )
    for language, score in masked_scores(tiny_model, masks).items():
        assert losses[language] == pytest.approx(score.nats_per_token, rel=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_losses_are_measured_without_dropout_and_leave_the_mode(training, tiny_config, tokenizer, sentences):
    from mmbert_hf import MMBertForMaskedLM

    tiny_config.attention_output_dropout = 0.5
    model = MMBertForMaskedLM(tiny_config).train(training)
    masks = FixedMasks({"eng": sentences["eng"]}, tokenizer, mask_ratio=0.4)
    losses = masked_losses(model, masks)
    assert masked_losses(model, masks) == losses
    assert model.training is training
    assert all(module.training is training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_token_ids_are_held_out_text_as_well(tokenizer, sentences):
    ids = {code: tokenizer(texts, add_special_tokens=False)["input_ids"] for code, texts in sentences.items()}
    arrays = {code: [np.array(found, np.int32) for found in documents] for code, documents in ids.items()}
    expected = FixedMasks(sentences, tokenizer, mask_ratio=0.4, max_length=24).rows
    for given in (ids, arrays):
        for language, rows in FixedMasks(given, tokenizer, mask_ratio=0.4, max_length=24).rows.items():
            assert len(rows) == len(expected[language])
            for (row, labels), (row_of_text, labels_of_text) in zip(rows, expected[language], strict=True):
                assert torch.equal(row, row_of_text)
                assert torch.equal(labels, labels_of_text)
