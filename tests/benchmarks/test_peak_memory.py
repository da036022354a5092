import doctest
import sys

import peak_memory
import pytest
import torch
from cases import CASES
from implementations import OURS, Settings
from peak_memory import PROC, measure_in_child, step_peak

MEBIBYTE = 2**20
needs_proc = pytest.mark.skipif(not (PROC / "clear_refs").exists(), reason="needs /proc/self/clear_refs")
BLOCK = 64 * MEBIBYTE


def test_doctests():
    assert doctest.testmod(peak_memory).failed == 0


@needs_proc
def test_the_peak_counts_what_is_freed_within_the_step_and_not_what_was_there():
    there = torch.ones(2 * BLOCK, dtype=torch.uint8)
    earlier = torch.ones(4 * BLOCK, dtype=torch.uint8)
    del earlier  # a peak before the step
    peak = step_peak(lambda: torch.cat([torch.ones(BLOCK, dtype=torch.uint8)] * 2).max())
    assert peak["note"] is None
    assert 3 * BLOCK - 2 * MEBIBYTE < peak["bytes"] < 3 * BLOCK + 16 * MEBIBYTE
    assert there[0] == 1


@needs_proc
def test_a_child_measures_an_implementation():
    peak = measure_in_child(OURS, CASES["128x8"], "training", Settings(model="tiny"), threads=1)
    assert peak["note"] is None
    # At least the inputs of the gate and its activation, [1024, 96] floats each, of four layers, are kept for backward.
    assert 4 * 3 * 1024 * 96 * 4 < peak["bytes"] < 300 * MEBIBYTE


@pytest.fixture
def as_python(tmp_path, monkeypatch):
    def use(script):
        path = tmp_path / "python"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(path))

    return use


def test_a_child_that_is_killed_gives_no_figure(as_python):
    as_python("kill -9 $$")
    peak = measure_in_child(OURS, CASES["128x8"], "inference", Settings(model="tiny"), threads=1)
    assert peak == {"bytes": None, "note": "ended by signal 9, mostly out of memory"}


def test_a_child_that_fails_is_an_error(as_python):
    as_python("echo 'the reason' >&2; exit 1")
    with pytest.raises(RuntimeError, match="the reason"):
        measure_in_child(OURS, CASES["128x8"], "inference", Settings(model="tiny"), threads=1)


def test_without_proc_there_is_no_figure(tmp_path, monkeypatch):
    monkeypatch.setattr(peak_memory, "PROC", tmp_path)
    peak = step_peak(lambda: None)
    assert peak["bytes"] is None
    assert "no /proc/self/status" in peak["note"]


@needs_proc
def test_a_peak_that_cannot_be_reset_is_said_to_be_an_upper_bound(tmp_path, monkeypatch):
    (tmp_path / "status").write_text((PROC / "status").read_text())
    (tmp_path / "clear_refs").mkdir()  # cannot be written to
    monkeypatch.setattr(peak_memory, "PROC", tmp_path)
    peak = step_peak(lambda: torch.ones(BLOCK, dtype=torch.uint8).max())
    assert peak["bytes"] is not None
    assert peak["note"].startswith("upper bound")
