import doctest

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mmbert_hf import MMBertForMaskedLM, flops
from mmbert_hf.flops import attended_pairs, bf16_peak, encoder_flops, head_flops, training_flops_per_token


def test_docstring_examples():
    results = doctest.testmod(flops)
    assert results.failed == 0
    assert results.attempted > 4


@pytest.mark.parametrize("length", [1, 2, 5, 9])
@pytest.mark.parametrize("reach", [None, 0, 1, 3, 20])
def test_pairs_are_those_of_the_window(length, reach):
    within = [(i, j) for i in range(length) for j in range(length) if reach is None or abs(i - j) <= reach]
    assert attended_pairs(length, reach) == len(within)


def test_packed_documents_cost_what_they_cost_apart(tiny_config):
    together = encoder_flops(tiny_config, [40, 30, 20])
    assert together == sum(encoder_flops(tiny_config, [length]) for length in (40, 30, 20))
    assert together < encoder_flops(tiny_config, [90])


def test_only_global_layers_grow_with_the_square(tiny_config):
    """One of the three layers is global; from the window on, the others add as much for each token."""
    shorter, longer = encoder_flops(tiny_config, [1000]), encoder_flops(tiny_config, [2000])
    assert longer - 2 * shorter == pytest.approx(4 * 32 * (2000**2 - 2 * 1000**2), rel=1e-3)


def test_a_training_step_is_what_torch_counts(tiny_config):
    # One document within the window and attention written out: then no work is wasted, and all of it is visible.
    tiny_config._attn_implementation = "eager"
    model = MMBertForMaskedLM(tiny_config).train()
    input_ids = torch.arange(5, 13)[None]
    labels = torch.where(torch.arange(8) < 4, input_ids, -100)
    with FlopCounterMode(display=False) as counter:
        model(input_ids, labels=labels).loss.backward()
    expected = 8 * training_flops_per_token(model.config, [8], mask_ratio=0.5)
    # The loss forms its gradients in the forward pass, where the counter sees them all the same.
    assert counter.get_total_flops() == pytest.approx(expected, rel=1e-3)


def test_the_average_is_over_tokens_not_documents(tiny_config):
    lengths = [8, 8, 100]
    whole = 3 * (encoder_flops(tiny_config, lengths) + head_flops(tiny_config, 1) * 0.25 * 116)
    assert training_flops_per_token(tiny_config, lengths, 0.25) * 116 == pytest.approx(whole)


@pytest.mark.parametrize("lengths", [[], [0], [5, -1]])
def test_documents_that_are_none_are_refused(tiny_config, lengths):
    with pytest.raises(ValueError, match="positive numbers of tokens"):
        training_flops_per_token(tiny_config, lengths, 0.3)


@pytest.mark.parametrize("ratio", [-0.1, 1.1, float("nan")])
def test_a_ratio_outside_is_refused(tiny_config, ratio):
    with pytest.raises(ValueError, match="mask_ratio"):
        training_flops_per_token(tiny_config, [5], ratio)


@pytest.mark.parametrize(
    ("device", "teraflops"),
    [("NVIDIA H100 80GB HBM3", 989), ("NVIDIA A100-SXM4-80GB", 312), ("NVIDIA L4", 121), ("NVIDIA H100 PCIe", 756)],
)
def test_known_devices(device, teraflops):
    assert bf16_peak(device) == teraflops * 1e12


@pytest.mark.parametrize("device", ["NVIDIA L40", "NVIDIA GeForce RTX 4090 D", "NVIDIA H100", "Tesla T4", "cpu", ""])
def test_an_unknown_device_has_no_peak(device):
    assert bf16_peak(device) is None
