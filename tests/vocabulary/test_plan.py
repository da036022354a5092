"""Plans: what is counted, what stays, limits, bad input."""

import copy
import itertools

import numpy as np
import pytest

from mmbert_hf.vocabulary import VocabularyPlan, plan_trim
from mmbert_hf.vocabulary.plan import text_batches


def tokens_of(tokenizer, plan):
    return set(tokenizer.convert_ids_to_tokens(plan.kept_ids.tolist()))


def test_counts_are_those_of_whole_texts_with_special_tokens(any_tokenizer, inside):
    plan = plan_trim(any_tokenizer, inside)
    expected = np.bincount(
        [*itertools.chain.from_iterable(any_tokenizer(inside, truncation=False, max_length=None)["input_ids"])],
        minlength=plan.old_size,
    )
    assert max(map(len, any_tokenizer(inside)["input_ids"])) > any_tokenizer.model_max_length  # truncation would show
    np.testing.assert_array_equal(plan.counts, expected)
    assert plan.num_texts == len(inside)
    assert plan.coverage == plan.coverage_of_types == 1.0
    assert set(np.flatnonzero(expected)) <= set(plan.kept_ids)


def test_truncation_and_padding_of_the_tokenizer_do_not_count(byte_level, inside):
    tokenizer = copy.deepcopy(byte_level)
    tokenizer(inside, truncation=True, max_length=8, padding="max_length")  # leaves its settings in the backend
    assert tokenizer.backend_tokenizer.truncation is not None
    np.testing.assert_array_equal(plan_trim(tokenizer, inside).counts, plan_trim(byte_level, inside).counts)
    assert tokenizer.backend_tokenizer.truncation is not None


def test_special_tokens_stay_whatever_the_texts(any_tokenizer):
    plan = plan_trim(any_tokenizer, ["a"])
    assert set(any_tokenizer.all_special_ids) <= set(plan.kept_ids.tolist())
    assert plan.new_size < plan.old_size / 1.5


def test_bytes_stay(byte_fallback, byte_level):
    assert {f"<0x{byte:02X}>" for byte in range(256)} <= tokens_of(byte_fallback, plan_trim(byte_fallback, ["a"]))
    from tokenizers.pre_tokenizers import ByteLevel

    assert set(ByteLevel.alphabet()) <= tokens_of(byte_level, plan_trim(byte_level, ["a"]))


def test_min_count_drops_rare_tokens_and_says_how_many(any_tokenizer, inside):
    plan, all_ = (plan_trim(any_tokenizer, inside, min_count=count) for count in (4, 1))
    dropped = np.setdiff1d(all_.kept_ids, plan.kept_ids)
    assert len(dropped) > 0
    assert (plan.counts[dropped] < 4).all()
    assert 0.7 < plan.coverage < 1.0
    total = plan.counts.sum()
    assert plan.coverage == (total - plan.counts[dropped].sum()) / total


def test_max_vocabulary_keeps_the_most_frequent(word_piece, inside):
    smallest, largest = plan_trim(word_piece, inside, min_count=10**9), plan_trim(word_piece, inside)
    limit = (smallest.new_size + largest.new_size) // 2
    plan = plan_trim(word_piece, inside, max_vocabulary=limit)
    assert plan.new_size == limit
    added = np.setdiff1d(plan.kept_ids, smallest.kept_ids)
    dropped = np.setdiff1d(largest.kept_ids, plan.kept_ids)
    assert plan.counts[added].min() >= plan.counts[dropped].max()
    assert plan_trim(word_piece, inside, max_vocabulary=largest.new_size).new_size == largest.new_size
    with pytest.raises(ValueError, match=f"set it to {smallest.new_size} or more"):
        plan_trim(word_piece, inside, max_vocabulary=smallest.new_size - 1)


def test_max_vocabulary_counts_the_parts_of_bpe_tokens(byte_fallback, inside):
    largest = plan_trim(byte_fallback, inside)
    plan = plan_trim(byte_fallback, inside, max_vocabulary=largest.new_size - 20)
    assert plan.new_size <= largest.new_size - 20
    assert plan.coverage < 1.0


def test_keep_tokens_stay_with_their_parts(byte_level):
    long = max(byte_level.get_vocab(), key=len)
    without, plan = plan_trim(byte_level, ["a"]), plan_trim(byte_level, ["a"], keep_tokens=[long])
    added = tokens_of(byte_level, plan) - tokens_of(byte_level, without)
    assert long in added
    assert any(part != long and part in long for part in added)
    with pytest.raises(ValueError, match="nothing-like-it"):
        plan_trim(byte_level, ["a"], keep_tokens=["nothing-like-it"])


def test_the_same_plan_from_an_iterator(unigram, inside):
    np.testing.assert_array_equal(plan_trim(unigram, iter(inside)).kept_ids, plan_trim(unigram, inside).kept_ids)


def test_batches_are_bounded_and_lose_nothing():
    texts = ["a" * 600_000, "b" * 600_000, *("c" for _ in range(1500))]
    batches = list(text_batches(texts))
    assert [len(batch) for batch in batches] == [2, 1024, 476]
    assert list(itertools.chain(*batches)) == texts


def test_sizes_and_words_of_a_plan():
    plan = VocabularyPlan(np.array([0, 2, 3]), np.array([5, 1, 3, 1, 0]), num_texts=2)
    assert plan.removed_bytes(hidden_size=8, bytes_per_value=2) == 2 * 8 * 2
    assert plan.coverage_of_types == 3 / 4
    assert str(plan) == "3 of 5 tokens stay (60.0%), with 90.00% of the tokens in 2 texts"


@pytest.mark.parametrize("ids", [[], [1, 1], [2, 1], [-1, 2], [0, 5]])
def test_plans_that_are_none(ids):
    with pytest.raises(ValueError, match="ascending ids from 0 to 4"):
        VocabularyPlan(np.array(ids, dtype=np.int64), np.ones(5, dtype=np.int64), num_texts=1)


@pytest.mark.parametrize(
    ("texts", "error", "message"),
    [
        ([], ValueError, "got 0 texts"),
        (["", " \n"], ValueError, "got 2 texts"),
        ("one string", TypeError, "is a string"),
        (["a", None], TypeError, "text 1 is None"),
        (["a", float("nan")], TypeError, "text 1 is nan"),
        ([["a"]], TypeError, "text 0 is"),
    ],
)
def test_bad_texts(word_piece, texts, error, message):
    with pytest.raises(error, match=message):
        plan_trim(word_piece, texts)


def test_min_count_below_one(word_piece):
    with pytest.raises(ValueError, match="min_count must be at least 1, got 0"):
        plan_trim(word_piece, ["a"], min_count=0)
