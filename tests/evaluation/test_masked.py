import doctest

import pytest
import torch

from mmbert_hf.evaluation import FixedMasks, masked, masked_scores
from mmbert_hf.evaluation.masked import token_byte_lengths
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
