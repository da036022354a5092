"""Tests of `mmbert_hf.demo.verdicts`: the sentences follow the numbers, in every direction."""

import pytest

from mmbert_hf.demo.verdicts import (
    added_language_verdict,
    loss_change,
    pruned_quality_verdict,
    pruned_reload_verdict,
    pruned_size_verdict,
    reload_verdict,
    retrieval_verdict,
    summary,
    time_verdict,
    verdicts,
)


def faroese(**losses: float) -> dict:
    return {"names": {"fao": "Faroese"}, "heldout": {"fao": {f"loss_{name}": loss for name, loss in losses.items()}}}


def test_a_loss_that_fell_further_than_in_the_control():
    verdict = added_language_verdict(faroese(before_decay=6.2, after_decay=5.6, after_control=6.05), "fao")
    assert verdict.holds is True
    assert verdict.title == "The held-out loss of Faroese falls in the decay"
    assert verdict.text == (
        "It fell from 6.200 to 5.600 nats per masked token (−0.600). "
        "After a control decay without Faroese it is 6.050, which is 0.450 higher."
    )


@pytest.mark.parametrize(("after", "word"), [(6.5, "rose from 6.200 to 6.500"), (6.2, "went from 6.200 to 6.200")])
def test_a_loss_that_did_not_fall(after, word):
    verdict = added_language_verdict(faroese(before_decay=6.2, after_decay=after, after_control=7.0), "fao")
    assert verdict.holds is False
    assert word in verdict.text


@pytest.mark.parametrize("control", [5.5, 5.6])
def test_a_control_that_is_as_good_is_said(control):
    verdict = added_language_verdict(faroese(before_decay=6.2, after_decay=5.6, after_control=control), "fao")
    assert verdict.holds is True
    assert f"it is {control:.3f}, no higher: seeing Faroese in the decay did not help it." in verdict.text


def test_missing_losses_are_not_measured():
    assert added_language_verdict({}, "fao").text == "It was not measured."
    assert added_language_verdict({}, "fao").holds is None
    without_control = added_language_verdict(faroese(before_decay=6.2, after_decay=5.6), "fao")
    assert without_control.holds is True
    assert without_control.text.endswith("The control decay without it was not measured.")
    assert loss_change({"loss_before_decay": 1.0}) is None


@pytest.mark.parametrize(("accuracy", "holds"), [(0.2, True), (0.199, False), (0.05, False)])
def test_the_criterion_of_retrieval_is_twice_chance(accuracy, holds):
    verdict = retrieval_verdict({"bitext": {"accuracy": accuracy, "chance": 0.1, "accuracy_untrained": 0.04}})
    assert verdict.holds is holds
    assert ("It beats chance by a wide margin" in verdict.text) is holds
    assert ("It does not beat chance by a wide margin" in verdict.text) is not holds
    assert "criterion: at least 2 times" in verdict.text


def test_an_untrained_model_that_is_as_good_is_said():
    bitext = {"accuracy": 0.3, "chance": 0.1, "accuracy_untrained": 0.31}
    assert "training did not help" in retrieval_verdict({"bitext": bitext}).text
    assert "training did not help" not in retrieval_verdict({"bitext": bitext | {"accuracy_untrained": 0.29}}).text
    del bitext["accuracy_untrained"]
    assert retrieval_verdict({"bitext": bitext}).text.endswith("The untrained model was not measured.")


@pytest.mark.parametrize(
    ("with_package", "without_package", "holds"),
    [(0.0, 2.4e-7, True), (0.0, 1e-5, False), (0.3, 0.0, False)],
)
def test_both_reloads_must_be_below_the_threshold(with_package, without_package, holds):
    hub = {"reload_with_package_max_abs_diff": with_package, "reload_without_package_max_abs_diff": without_package}
    verdict = reload_verdict({"hub": hub})
    assert verdict.holds is holds
    assert (": below the threshold of 1e-5." in verdict.text) is holds
    assert (": not below the threshold of 1e-5." in verdict.text) is not holds


def test_one_reload_is_not_enough():
    assert reload_verdict({"hub": {"reload_with_package_max_abs_diff": 0.0}}).holds is None


def sizes(pruned_bytes: float, ratio: float) -> dict:
    dense = {"low_seconds": 0.9, "high_seconds": 1.1, "ratio": 1.0}
    return {
        "footprint": {"dense": {"bytes_on_disk": 100e6}, "pruned": {"bytes_on_disk": pruned_bytes}},
        "latency": {"seconds": {"dense": dense, "pruned": {"low_seconds": 0.5, "high_seconds": 0.8, "ratio": ratio}}},
    }


@pytest.mark.parametrize(
    ("pruned_bytes", "ratio", "holds"),
    [(55e6, 0.70, True), (55.1e6, 0.70, False), (55e6, 0.71, False), (120e6, 1.3, False)],
)
def test_a_pruned_embedder_must_be_both_small_and_fast(pruned_bytes, ratio, holds):
    verdict = pruned_size_verdict(sizes(pruned_bytes, ratio))
    assert verdict.holds is holds
    assert f"{pruned_bytes / 1e6:.1f} MB on disk against 100.0" in verdict.text
    assert f"{100 * ratio:.1f}\u00a0% of the time" in verdict.text
    assert "0.50 to 0.80 s against 0.90 to 1.10 s" in verdict.text


def quality(dense: float, control: float, pruned: float, low: float = -0.1, high: float = -0.02) -> dict:
    domain = {"ndcg_at_10": {"dense": dense, "control": control, "pruned": pruned}}
    general = {"ndcg_at_10": {"dense": 0.6, "pruned": 0.54}, "difference": {"dense": {"low": low, "high": high}}}
    return {"quality": {"domain": domain, "general": general}}


@pytest.mark.parametrize(
    ("dense", "control", "pruned", "holds"),
    [(0.4, 0.42, 0.391, True), (0.4, 0.42, 0.389, False), (0.4, 0.46, 0.42, False), (0.4, 0.3, 0.5, True)],
)
def test_quality_is_held_against_dense_and_against_dense_with_the_same_training(dense, control, pruned, holds):
    verdict = pruned_quality_verdict(quality(dense, control, pruned))
    assert verdict.holds is holds
    assert f"is {pruned:.3f}: {100 * pruned / dense:.1f}\u00a0% of the dense model's {dense:.3f}" in verdict.text
    assert f"{100 * pruned / control:.1f}\u00a0% of the {control:.3f}" in verdict.text


@pytest.mark.parametrize(
    ("low", "high", "verb"),
    [(-0.1, -0.02, "fell"), (0.01, 0.02, "rose"), (-0.01, 0.02, "did not change for certain")],
)
def test_what_other_nouns_lose_is_said_with_its_interval(low, high, verb):
    text = pruned_quality_verdict(quality(0.4, 0.4, 0.4, low, high)).text
    assert f"On other nouns it {verb}: from 0.600 to 0.540" in text
    assert f"{low:+.3f} to {high:+.3f}".replace("-", "−") in text


@pytest.mark.parametrize(("difference", "holds"), [(2e-7, True), (1e-5, False), (0.1, False)])
def test_a_pruned_embedder_must_load_to_the_same(difference, holds):
    verdict = pruned_reload_verdict({"hub": {"reload_max_abs_diff": difference}})
    assert verdict.holds is holds
    assert (": below the threshold" in verdict.text) is holds


@pytest.mark.parametrize("verdict", [pruned_size_verdict, pruned_quality_verdict, pruned_reload_verdict])
def test_a_pruning_that_was_not_measured(verdict):
    assert verdict({}).holds is None
    assert "not measured" in verdict({}).text
    without_control = quality(0.4, 0.4, 0.4)
    del without_control["quality"]["domain"]["ndcg_at_10"]["control"]
    assert pruned_quality_verdict(without_control).holds is None


def test_time():
    assert time_verdict({"seconds": 243.4, "machine": {"cpu_count": 2}}).text == (
        "243 seconds (4 min 3 s) in all, on 2 CPU cores."
    )
    assert time_verdict({}).text == "Not measured."


def test_the_summary_claims_only_what_the_metrics_hold():
    full = {
        "parameters": 1_812_345,
        "corpus": {"name": "Universal Declaration of Human Rights", "languages": 440},
        "phases": [{}, {}, {}],
        "heldout": {"fao": {}},
        "hub": {"repo_id": "loopback/demo"},
    }
    assert summary(full) == (
        "A small multilingual encoder of 1.8 million parameters was trained from scratch on the Universal Declaration of "
        "Human Rights in 440 languages, through 3 phases, measured on articles that it never saw, published to a Hub on "
        "this machine and loaded back."
    )
    assert summary({}) == "A small multilingual encoder was trained from scratch."
    prune = {"embedder": {"name": "owner/embedder"}, "retraining": {"steps": 40}, "hub": {"repo_id": "loopback/small"}}
    pruned = (
        "The embedder owner/embedder was pruned for the animals and plants of WordNet, retrained for 40 steps, published "
        "to a Hub on this machine and loaded back."
    )
    assert summary({"prune": prune}) == pruned
    assert summary(full | {"prune": prune}) == f"{summary(full)} {pruned}"
    policy = {"task": {"modulus": 23}}
    assert summary({"spo": policy}).startswith("A small causal language model was fitted")
    assert summary(full | {"prune": prune, "spo": policy}) == f"{summary(full)} {pruned} {summary({'spo': policy})}"
    without_hub = summary({key: value for key, value in full.items() if key != "hub"})
    assert "Hub" not in without_hub
    assert without_hub.endswith("through 3 phases, and measured on articles that it never saw.")


def test_there_is_a_line_per_added_language_and_question():
    lines = verdicts({"added_languages": ["fao", "tir"], "names": {"fao": "Faroese"}})
    assert [line.title for line in lines[:2]] == [
        "The held-out loss of Faroese falls in the decay",
        "The held-out loss of tir falls in the decay",
    ]
    assert len(lines) == 11
    assert all("not measured" in line.text.lower() and line.holds is None for line in lines)
    assert verdicts({})[0].text == "Not measured."
