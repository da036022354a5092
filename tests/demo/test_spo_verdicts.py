"""Tests of `mmbert_hf.demo.spo_verdicts`: the sentences follow the numbers, in every direction."""

import doctest

import pytest

from mmbert_hf.demo import wording
from mmbert_hf.demo.spo_verdicts import (
    better_verdict,
    calibrated_verdict,
    spo_reload_verdict,
    spo_summary,
    spo_verdicts,
)


def test_docstring_examples_of_the_wording():
    result = doctest.testmod(wording)
    assert result.attempted >= 5
    assert result.failed == 0


def quality(before: float, after: float, low: float = 0.01) -> dict:
    group = {
        "num_prompts": 529,
        "sampled": {"before": before, "after": after},
        "greedy": {"before": 0.375, "after": 0.875},
        "difference": {"mean": after - before, "low": low, "high": 0.5},
    }
    return {"quality": {"all": group, "unseen": {"num_prompts": 53, "sampled": {"before": 0.0625, "after": 0.125}}}}


@pytest.mark.parametrize(
    ("before", "after", "low", "holds", "verb"),
    [
        (0.25, 0.5, 0.01, True, "rose"),
        (0.25, 0.44, 0.01, False, "rose"),
        (0.25, 0.5, -0.01, False, "rose"),
        (0.5, 0.25, -0.3, False, "fell"),
        (0.5, 0.5, -0.1, False, "stayed"),
    ],
)
def test_a_policy_is_better_by_a_margin_and_for_certain(before, after, low, holds, verb):
    verdict = better_verdict(quality(before, after, low))
    assert verdict.holds is holds
    assert f"{verb} from {100 * before:.1f}\u00a0% to {100 * after:.1f}\u00a0%" in verdict.text
    assert "criterion: above 0, and at least +0.20 in the mean" in verdict.text
    assert "went from 37.5\u00a0% to 87.5\u00a0%" in verdict.text
    assert "On 53 prompts that it was never asked: from 6.2\u00a0% to 12.5\u00a0%." in verdict.text


@pytest.mark.parametrize(("error", "holds"), [(0.0, True), (0.05, True), (0.051, False), (0.4, False)])
def test_values_are_calibrated_up_to_a_bound(error, holds):
    worst = {"value": 0.451, "reward": 0.689, "count": 800.0}
    values = {"calibration_error": error, "worst_bin": worst, "end": {"value": 0.625, "accuracy": 0.75}}
    verdict = calibrated_verdict({"values": values})
    assert verdict.holds is holds
    assert f"lie {error:.3f} on average (criterion: at most 0.05)" in verdict.text
    assert "the mean value is 62.5\u00a0%, and the accuracy on the same prompts 75.0\u00a0%" in verdict.text
    assert "are a value of 0.45 and a reward of 0.69" in verdict.text
    assert "Farthest" not in calibrated_verdict({"values": {"calibration_error": error}}).text
    assert "At the end" not in calibrated_verdict({"values": {"calibration_error": error}}).text


@pytest.mark.parametrize(
    ("difference", "tracker", "table", "holds"),
    [
        (2e-7, True, True, True),
        (1e-5, True, True, False),
        (0.0, False, True, False),
        (0.0, True, False, False),
    ],
)
def test_policy_and_tracker_must_both_come_back(difference, tracker, table, holds):
    hub = {"reload_max_abs_diff": difference, "tracker_is_equal": tracker, "table_is_equal": table}
    verdict = spo_reload_verdict({"hub": hub})
    assert verdict.holds is holds
    assert (": below the threshold" in verdict.text) is (difference < 1e-5)
    assert ("equal to the bit" in verdict.text) is (tracker and table)


def test_what_was_not_measured():
    for verdict in spo_verdicts({}):
        assert verdict.holds is None
        assert "not measured" in verdict.text
    without_unseen = quality(0.25, 0.75)
    del without_unseen["quality"]["unseen"]
    assert better_verdict(without_unseen).text.endswith("never asked it was not measured.")
    assert spo_reload_verdict({"hub": {"reload_max_abs_diff": 0.0}}).holds is None


def test_the_summary_claims_only_what_was_done():
    task = {"task": {"modulus": 23}}
    assert spo_summary({}) == ""
    assert spo_summary(task) == "A small causal language model was fitted to a part of arithmetic modulo 23."
    assert spo_summary({**task, "training": {"samples": 38400}, "hub": {"repo_id": "loopback/policy"}}) == (
        "A small causal language model was fitted to a part of arithmetic modulo 23, improved by SPO on 38,400 single "
        "responses, published with its value tracker to a Hub on this machine and loaded back."
    )
