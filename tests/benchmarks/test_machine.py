import doctest

import machine
import pytest
from machine import bf16_peak, git_commit


def test_doctests():
    assert doctest.testmod(machine).failed == 0


@pytest.mark.parametrize(
    ("card", "teraflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA H200", 989),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362),
        ("NVIDIA GeForce RTX 4090", 165),
    ],
)
def test_known_cards(card, teraflops):
    assert bf16_peak(card) == teraflops * 1e12


@pytest.mark.parametrize(
    "card", ["NVIDIA L40", "NVIDIA GeForce RTX 4090 D", "NVIDIA H100", "NVIDIA A10", "Tesla T4", ""]
)
def test_an_unknown_card_has_no_rate(card):
    assert bf16_peak(card) is None


def test_outside_of_a_repository_there_is_no_commit(tmp_path):
    assert git_commit(tmp_path) is None
