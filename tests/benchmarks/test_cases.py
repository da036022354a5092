import doctest

import cases
import pytest
import torch
from cases import CASES, Case, make_batch


def test_doctests():
    assert doctest.testmod(cases).failed == 0


def test_mixed_lengths_are_what_the_case_promises():
    case = CASES["mixed"]
    assert len(case.lengths) == 16
    assert min(case.lengths) >= 16
    assert max(case.lengths) == 512
    assert case.real_share == pytest.approx(0.44, abs=0.01)


@pytest.mark.parametrize("name", CASES)
def test_the_batch_has_the_lengths_of_the_case(name):
    case = CASES[name]
    batch = make_batch(case, vocabulary=50, seed=1)
    assert batch.attention_mask.sum(1).tolist() == list(case.lengths)
    assert batch.attention_mask.diff(dim=1).max() <= 0  # padding on the right
    assert (batch.input_ids != 0).long().equal(batch.attention_mask)
    assert batch.input_ids.max() == 49


def test_ids_follow_the_seed():
    first, same, other = (make_batch(CASES["4x512"], 500, seed).input_ids for seed in (1, 1, 2))
    assert first.equal(same)
    assert not first.equal(other)


def test_labels_are_on_thirty_percent_of_the_real_tokens_and_masked_in_the_input():
    case = Case("padded", (100, 50, 30), kind="masked_lm")
    batch = make_batch(case, vocabulary=500, seed=0)
    labelled = batch.labels != -100
    assert labelled.sum() == case.labelled_tokens == 54
    assert batch.attention_mask[labelled].all()
    assert torch.equal(batch.input_ids == 4, labelled)
    assert batch.labels[labelled].min() >= 5


def test_the_encoder_has_no_labels():
    assert make_batch(CASES["128x8"], 50, seed=0).labels is None
    assert CASES["128x8"].labelled_tokens == 0
