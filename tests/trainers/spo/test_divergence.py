"""Divergence against brute force, what is kept for it, and batches of what was kept."""

import doctest

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmbert_hf.trainers.spo import divergence as module
from mmbert_hf.trainers.spo.divergence import Probe, Trajectories, kept_share, token_divergence

properties = settings(deadline=None, derandomize=True, database=None, max_examples=60)
PAD = 9


def test_docstring_examples():
    result = doctest.testmod(module)
    assert result.attempted >= 1
    assert result.failed == 0


# What is kept of old values


@properties
@given(st.floats(0, 100), st.floats(1e-3, 10), st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)).map(sorted))
def test_kept_share_halves_and_is_clipped(divergence, d_half, bounds):
    low, high = bounds
    share = kept_share([divergence, divergence + d_half], d_half=d_half, rho_min=low, rho_max=high)
    free = 0.5 ** (divergence / d_half)
    assert share[0] == pytest.approx(min(max(free, low), high), rel=1e-12)
    assert share[1] == pytest.approx(min(max(free / 2, low), high), rel=1e-9)
    assert low <= share[1] <= share[0] <= high


def test_kept_share_by_hand():
    share = kept_share([0.0, 0.06, 0.12, 0.03], d_half=0.06, rho_min=0.0, rho_max=1.0)
    assert share == pytest.approx([1.0, 0.5, 0.25, 2**-0.5])
    assert kept_share([0.0, 9.0], d_half=0.06, rho_min=0.875, rho_max=0.96).tolist() == [0.96, 0.875]
    assert np.isnan(kept_share([np.nan], d_half=0.06, rho_min=0.875, rho_max=0.96)), "no number is made up"


# Divergence of tokens


@properties
@given(st.integers(1, 4), st.integers(1, 6), st.integers(0, 99))
def test_token_divergence_by_brute_force(num_responses, num_tokens, seed):
    rng = np.random.default_rng(seed)
    then, now = rng.normal(size=(2, num_responses, num_tokens)).astype(np.float32)
    mask = rng.integers(0, 2, size=(num_responses, num_tokens))
    then[mask == 0] = -np.inf  # what padding has there has no part, whatever it is
    total, number = token_divergence(torch.tensor(then), torch.tensor(now), torch.tensor(mask))
    for response in range(num_responses):
        expected = sum(
            abs(float(then[response, token]) - float(now[response, token]))
            for token in range(num_tokens)
            if mask[response, token]
        )
        assert float(total[response]) == pytest.approx(expected, abs=1e-12)
    assert number.tolist() == mask.sum(axis=1).tolist()
    assert total.dtype == torch.float64


def test_divergence_does_not_cancel():
    total, number = token_divergence(torch.tensor([[-1.0, -2.0]]), torch.tensor([[-2.0, -1.0]]), torch.ones(1, 2))
    assert (float(total), int(number)) == (2.0, 2)


def test_probe_measures_what_it_was_given():
    seen = {}

    def log_probs(**inputs):
        seen.update(inputs)
        return torch.tensor([[-1.5, -1.0], [-3.0, -7.0]])

    inputs = {"input_ids": torch.ones(2, 3), "attention_mask": torch.ones(2, 3), "logits_to_keep": 2}
    probe = Probe(inputs, torch.tensor([[1, 1], [1, 0]]), torch.tensor([[-1.0, -1.25], [-2.0, 0.0]]))
    assert probe.measure(log_probs) == (0.5 + 0.25 + 1.0, 3)
    assert seen == inputs


# Trajectories


def a_response(prompt, tokens, seed=0, max_tokens=4):
    """Tokens counted from 10 and 20, the second one not written by the policy."""
    rng = np.random.default_rng(seed)
    mask = [int(place != 1) for place in range(tokens)]
    return Trajectories(max_tokens).cut(range(10, 10 + prompt), range(20, 20 + tokens), mask, rng.normal(size=tokens))


def test_cut():
    prompt, response, mask, logps = a_response(6, 9)
    assert prompt.tolist() == [10, 11, 12, 13, 14, 15], "prompts stay whole"
    assert response.tolist() == [20, 21, 22, 23]
    assert mask.tolist() == [1, 0, 1, 1]
    assert logps == pytest.approx(np.random.default_rng(0).normal(size=9)[:4], abs=1e-6)
    assert [part.dtype for part in (prompt, response, mask, logps)] == [np.int32, np.int32, np.int8, np.float32]
    assert [len(part) for part in a_response(1, 2)] == [1, 2, 2, 2], "what is shorter stays"


def test_cut_takes_tensors():
    cut = Trajectories(2).cut(
        torch.tensor([1, 2]), torch.tensor([3, 4, 5]), torch.tensor([1, 1, 0]), torch.tensor([-1.0, -2.0, -3.0])
    )
    assert [part.tolist() for part in cut] == [[1, 2], [3, 4], [1, 1], [-1.0, -2.0]]


def test_batch_pads_prompts_on_the_left_and_responses_on_the_right():
    kept = Trajectories(4)
    kept.keep(np.array([7, 3]), [a_response(3, 2, seed=1), a_response(1, 4, seed=2)])
    inputs, logps, mask = kept.batch(np.array([3, 5, 7]), PAD, "cpu")
    assert inputs["input_ids"].tolist() == [
        [PAD, PAD, 10, 20, 21, 22, 23],
        [PAD, PAD, PAD, PAD, PAD, PAD, PAD],
        [10, 11, 12, 20, 21, PAD, PAD],
    ]
    assert inputs["attention_mask"].tolist() == [[0, 0, 1, 1, 1, 1, 1], [0, 0, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 0, 0]]
    assert inputs["logits_to_keep"] == 4
    assert mask.tolist() == [[1, 0, 1, 1], [0, 0, 0, 0], [1, 0, 0, 0]]
    assert logps[0].tolist() == kept.kept[3][3].tolist()
    assert logps[2].tolist() == [*kept.kept[7][3].tolist(), 0.0, 0.0]
    assert inputs["input_ids"].dtype == torch.long


def test_nothing_kept_is_no_divergence():
    inputs, then, mask = Trajectories(4).batch(np.array([0, 1]), PAD, "cpu")
    assert inputs["input_ids"].shape == (2, 2)
    assert inputs["attention_mask"].sum() == 4, "a row without any token is NaN in some kinds of attention"
    total, number = token_divergence(then, torch.full((2, inputs["logits_to_keep"]), -5.0), mask)
    assert (total / number.clamp(min=1)).tolist() == [0.0, 0.0]


def test_the_last_response_stays():
    kept = Trajectories(4)
    kept.keep(np.array([2, 2]), [a_response(1, 1), a_response(2, 3)])
    assert len(kept.kept[2][1]) == 3
    kept.keep(np.array([2]), [a_response(1, 2)])
    assert len(kept.kept[2][1]) == 2
    with pytest.raises(ValueError, match="shorter"):
        kept.keep(np.array([1, 2]), [a_response(1, 1)])


@properties
@given(st.dictionaries(st.integers(0, 10**6), st.tuples(st.integers(1, 5), st.integers(1, 6)), max_size=6))
def test_state_round_trip(lengths):
    kept, loaded = Trajectories(4), Trajectories(4)
    for row, (prompt, tokens) in lengths.items():
        kept.keep(np.array([row]), [a_response(prompt, tokens, seed=row)])
    state = kept.state_dict()
    loaded.keep(np.array([1]), [a_response(1, 1)])
    loaded.load_state_dict(state)
    assert loaded.kept.keys() == kept.kept.keys()
    for row, parts in kept.kept.items():
        for part, other in zip(parts, loaded.kept[row], strict=True):
            assert part.dtype == other.dtype
            np.testing.assert_array_equal(part, other)
    assert state.keys() == loaded.state_dict().keys()
    for name, array in state.items():
        np.testing.assert_array_equal(loaded.state_dict()[name], array)
        assert array.dtype == loaded.state_dict()[name].dtype


def test_an_empty_state_has_the_types_of_a_full_one():
    kept = Trajectories(4)
    empty = {name: array.dtype for name, array in kept.state_dict().items()}
    kept.keep(np.array([0]), [a_response(1, 2)])
    assert empty == {name: array.dtype for name, array in kept.state_dict().items()}


@pytest.mark.parametrize("number", [0, 1, 3])
def test_state_in_a_file(tmp_path, number):
    """What a checkpoint does; the tensors made of it must not be views of memory that cannot be written."""
    from safetensors.numpy import load_file, save_file

    kept, loaded = Trajectories(4), Trajectories(4)
    rows = np.arange(number)
    kept.keep(rows, [a_response(2 + row, 3, seed=row) for row in rows])
    save_file(kept.state_dict(), tmp_path / "kept.safetensors")
    loaded.load_state_dict(load_file(tmp_path / "kept.safetensors"))
    for one, other in zip(kept.batch(np.arange(4), PAD, "cpu"), loaded.batch(np.arange(4), PAD, "cpu"), strict=True):
        if isinstance(one, dict):
            assert one.keys() == other.keys()
            one, other = one["input_ids"], other["input_ids"]
        torch.testing.assert_close(one, other, rtol=0, atol=0)
