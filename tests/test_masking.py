import doctest
import math

import numpy as np
import pytest
import torch

from mmbert_hf import masking
from mmbert_hf.masking import IGNORE_INDEX, MaskingCollator, PackingCollator, mask_tokens
from mmbert_hf.schedules import Linear, Piecewise


def test_examples_in_the_docstrings():
    result = doctest.testmod(masking)
    assert result.attempted >= 5
    assert result.failed == 0


def big_sample(n=200_000):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(10, 100, (n,), generator=generator)
    ids[::50] = 1  # a special token
    return ids, generator


def test_shares_are_80_10_10():
    ids, generator = big_sample()
    maskable = ids >= 10
    masked, labels = mask_tokens(ids, maskable, 0.3, 4, torch.arange(10, 100), generator)
    chosen = labels != IGNORE_INDEX
    # five standard deviations of a binomial on these counts
    assert chosen[maskable].float().mean().item() == pytest.approx(0.3, abs=5 * math.sqrt(0.21 / maskable.sum()))
    n = int(chosen.sum())
    is_mask = (masked[chosen] == 4).float().mean().item()
    same = (masked[chosen] == ids[chosen]).float().mean().item()
    assert is_mask == pytest.approx(0.8, abs=5 * math.sqrt(0.16 / n))
    assert same == pytest.approx(0.1 + 0.1 / 90, abs=5 * math.sqrt(0.09 / n))
    assert torch.equal(labels[chosen], ids[chosen])
    assert torch.equal(masked[~chosen], ids[~chosen])


def test_special_tokens_are_never_chosen_nor_drawn():
    ids, generator = big_sample()
    masked, labels = mask_tokens(ids, ids >= 10, 1.0, 4, torch.arange(10, 100), generator)
    assert (labels[ids == 1] == IGNORE_INDEX).all()
    assert (masked[ids == 1] == 1).all()
    assert set(masked[ids >= 10].tolist()) <= {4, *range(10, 100)}


def test_ratio_zero_and_one():
    ids = torch.arange(10, 60)
    everywhere = torch.ones_like(ids, dtype=torch.bool)
    masked, labels = mask_tokens(ids, everywhere, 0.0, 4, torch.arange(10, 60))
    assert torch.equal(masked, ids)
    assert (labels == IGNORE_INDEX).all()
    assert torch.equal(mask_tokens(ids, everywhere, 1.0, 4, torch.arange(10, 60))[1], ids)


@pytest.mark.parametrize("ratio", [-0.1, 1.1, math.nan])
def test_ratio_out_of_range_names_the_value(tokenizer, ratio):
    with pytest.raises(ValueError, match=f"^mask_ratio must be .*got {ratio}"):
        MaskingCollator(tokenizer, ratio)
    with pytest.raises(ValueError, match=f"mask_ratio.*got {ratio}"):
        mask_tokens(torch.tensor([7]), torch.tensor([True]), ratio, 4, torch.tensor([7]))


def test_schedule_that_leaves_the_range_is_refused(tokenizer):
    with pytest.raises(ValueError, match=r"mask_ratio at progress 1.0 .* got 1.5"):
        MaskingCollator(tokenizer, Linear(0.5, 1.5))


def test_missing_mask_token_is_refused(tokenizer):
    class NoMask:
        mask_token_id = None
        pad_token_id = 0

    with pytest.raises(ValueError, match=r"NoMask\) has no mask token.*add_special_tokens"):
        MaskingCollator(NoMask())


def test_collator_pads_on_the_tokenizers_side_and_masks_only_text(tokenizer, sentences):
    collator = MaskingCollator(tokenizer, 1.0, pad_to_multiple_of=16)
    samples = [{"input_ids": tokenizer(text)["input_ids"]} for text in sentences["eng"] + sentences["tir"]]
    batch = collator(samples)
    assert batch["input_ids"].shape[1] % 16 == 0
    for row, sample in enumerate(samples):
        n = len(sample["input_ids"])
        assert batch["attention_mask"][row].tolist() == [1] * n + [0] * (batch["input_ids"].shape[1] - n)
        assert batch["labels"][row, 1 : n - 1].tolist() == sample["input_ids"][1:-1]
        assert (batch["labels"][row, n:] == IGNORE_INDEX).all()
        assert (batch["input_ids"][row, n:] == tokenizer.pad_token_id).all()
        assert batch["input_ids"][row, 0] == tokenizer.bos_token_id
        assert batch["labels"][row, 0] == batch["labels"][row, n - 1] == IGNORE_INDEX


def test_mask_special_tokens_is_the_authors_choice(tokenizer, sentences):
    sample = {"input_ids": tokenizer(sentences["eng"][0])["input_ids"]}
    labels = MaskingCollator(tokenizer, 1.0, mask_special_tokens=True)([sample])["labels"]
    assert labels[0].tolist() == sample["input_ids"]


def test_indexed_samples_get_their_own_masks_and_their_own_ratio(tokenizer):
    collator = MaskingCollator(tokenizer, Piecewise([1.0, 0.0], [0.5]))
    ids = list(range(20, 60))
    early = {"input_ids": ids, "sample_index": 0, "progress": 0.0}
    late = {"input_ids": ids, "sample_index": 1, "progress": 0.5}
    labels = collator([early, late])["labels"]
    assert (labels[0] != IGNORE_INDEX).all()
    assert (labels[1] == IGNORE_INDEX).all()
    # the neighbours in the batch do not matter, the index and the seed do
    half = MaskingCollator(tokenizer, 0.5)
    alone = half([early])["input_ids"][0]
    assert torch.equal(half([late, early])["input_ids"][1], alone)
    assert not torch.equal(half([early | {"sample_index": 7}])["input_ids"][0], alone)
    assert not torch.equal(MaskingCollator(tokenizer, 0.5, seed=1)([early])["input_ids"][0], alone)


def test_ratio_for_other_data_sets_is_shared_with_worker_processes(tokenizer):
    collator = MaskingCollator(tokenizer, 0.0)
    data = [{"input_ids": list(range(20, 60))} for _ in range(8)]
    loader = torch.utils.data.DataLoader(
        data, batch_size=1, collate_fn=collator, num_workers=1, prefetch_factor=1, multiprocessing_context="fork"
    )
    masked = []
    for number, batch in enumerate(loader):
        if number == 2:
            collator.current_mask_ratio = 1.0
        masked.append(int((batch["labels"] != IGNORE_INDEX).sum()))
    assert masked[:3] == [0, 0, 0]
    assert masked[-2:] == [40, 40]  # seen by the worker, late by at most what it had prefetched


def packed_row(number, lengths, *, ratio=0.5):
    """A row as `PackedMixture` gives it: documents <bos> ... <eos> one after the other, int32."""
    generator = torch.Generator().manual_seed(number)
    documents = [[2, *torch.randint(10, 300, (length - 2,), generator=generator).tolist(), 1] for length in lengths]
    return {
        "input_ids": np.array([token for document in documents for token in document], np.int32),
        "document_lengths": np.array(lengths, np.int32),
        "languages": np.zeros(len(lengths), np.int32),
        "sample_index": number,
        "mask_ratio": ratio,
    }


ROWS = [packed_row(number, lengths) for number, lengths in enumerate([[40, 24], [64], [3, 30, 31], [17, 40], [60]])]


def test_packed_rows_are_joined_with_their_document_boundaries(tokenizer):
    batch = PackingCollator(tokenizer)(ROWS[:3])
    assert sorted(batch) == ["cu_seq_lens_q", "input_ids", "labels", "max_length_q"]
    assert batch["cu_seq_lens_q"].tolist() == [0, 40, 64, 128, 131, 161, 192]
    assert batch["cu_seq_lens_q"].dtype == torch.int32
    assert (type(batch["max_length_q"]), batch["max_length_q"]) == (int, 64)
    ids, labels = batch["input_ids"], batch["labels"]
    assert (ids.shape, ids.dtype, labels.shape, labels.dtype) == ((1, 192), torch.int64, (1, 192), torch.int64)
    written = torch.from_numpy(np.concatenate([row["input_ids"] for row in ROWS[:3]])).long()
    assert torch.equal(torch.where(labels[0] == IGNORE_INDEX, ids[0], labels[0]), written)


@pytest.mark.parametrize("sizes", [[5], [1] * 5, [2, 3], [4, 1]])
def test_masks_of_a_packed_row_depend_on_its_number_alone(sizes, tokenizer):
    collator, rows = PackingCollator(tokenizer, seed=3), iter(ROWS)
    batches = [collator([next(rows) for _ in range(size)]) for size in sizes]
    for name in ("input_ids", "labels"):
        together = torch.cat([batch[name] for batch in batches], 1)
        torch.manual_seed(len(sizes))  # the global generator has no say
        alone = torch.cat([PackingCollator(tokenizer, seed=3)([row])[name] for row in ROWS], 1)
        assert torch.equal(together, alone)
    turned = collator(ROWS[::-1])
    assert torch.equal(turned["labels"][0, :60], batches[-1]["labels"][0, -60:])


def test_number_and_seed_of_a_packed_row_make_its_masks(tokenizer):
    labels = PackingCollator(tokenizer, seed=3)([ROWS[1]])["labels"]
    assert not torch.equal(PackingCollator(tokenizer, seed=4)([ROWS[1]])["labels"], labels)
    assert not torch.equal(PackingCollator(tokenizer, seed=3)([{**ROWS[1], "sample_index": 9}])["labels"], labels)


def test_the_mask_ratio_of_a_packed_row_wins(tokenizer):
    rows = [packed_row(0, [500], ratio=0.0), packed_row(1, [500], ratio=1.0), packed_row(2, [500])]
    del rows[2]["mask_ratio"]
    collator = PackingCollator(tokenizer, 0.2)
    collator.current_mask_ratio = 0.1  # as a callback would set it
    parts = collator(rows)["labels"][0].reshape(3, 500)
    assert (parts[0] == IGNORE_INDEX).all()
    assert int((parts[1] != IGNORE_INDEX).sum()) == 498  # all but <bos> and <eos>
    assert 20 < int((parts[2] != IGNORE_INDEX).sum()) < 80


def test_special_tokens_of_packed_rows_are_not_chosen_unless_asked_for(tokenizer):
    row = packed_row(0, [5] * 40, ratio=1.0)
    special = torch.from_numpy(np.isin(row["input_ids"], [1, 2]))
    batch = PackingCollator(tokenizer)([row])
    assert torch.equal(batch["labels"][0] == IGNORE_INDEX, special)
    assert torch.equal(batch["input_ids"][0][special], torch.tensor([2, 1] * 40))
    chosen = PackingCollator(tokenizer, mask_special_tokens=True)([row])["labels"][0]
    assert (chosen != IGNORE_INDEX).all()


def test_document_lengths_that_do_not_fit_are_refused(tokenizer):
    short = {**ROWS[0], "document_lengths": np.array([40, 23], np.int32)}
    with pytest.raises(ValueError, match=r"document_lengths of row .* sum to 63, but it has 64 tokens"):
        PackingCollator(tokenizer)([short])


def test_document_lengths_are_checked_row_by_row(tokenizer):
    short = {**ROWS[0], "document_lengths": np.array([40, 23], np.int32)}
    long = {**ROWS[1], "document_lengths": np.array([65], np.int32)}
    with pytest.raises(ValueError, match="document_lengths"):
        PackingCollator(tokenizer)([short, long])


def test_rows_of_other_data_sets_are_one_document_each(tokenizer):
    batch = PackingCollator(tokenizer)([tokenizer("Alle mennesker"), tokenizer("Ingen")])
    lengths = [len(tokenizer(text)["input_ids"]) for text in ("Alle mennesker", "Ingen")]
    assert batch["cu_seq_lens_q"].diff().tolist() == lengths
