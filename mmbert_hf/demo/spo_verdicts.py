"""What the numbers of the demo's third part say: did the policy get better, was its tracker right, does it load back?

The criteria were fixed on other seeds than those that are shown: a policy is clearly better at `BETTER_BY`, values are
calibrated at `CALIBRATED`. See `mmbert_hf.demo.verdicts` for how verdicts are worded.
"""

from collections.abc import Mapping
from typing import Any

from mmbert_hf.demo.wording import NOT_MEASURED, RELOAD_THRESHOLD, Verdict, percent, scientific, signed

# Accuracy over all prompts rises by this or more, and the interval of the difference lies above 0.
BETTER_BY = 0.2
# Mean difference of what was expected and what came, over the bins of values, at most.
CALIBRATED = 0.05


def spo_summary(spo: Mapping[str, Any]) -> str:
    """Return what was done in a sentence; empty if nothing was.

    Args:
        spo: The ``spo`` record of the metrics.
    """
    task, samples = spo.get("task", {}), spo.get("training", {}).get("samples")
    if "modulus" not in task:
        return ""
    improved = f", improved by SPO on {samples:,} single responses" if samples else ""
    tail = ", published with its value tracker to a Hub on this machine and loaded back" if spo.get("hub") else ""
    return f"A small causal language model was fitted to a part of arithmetic modulo {task['modulus']}{improved}{tail}."


def spo_verdicts(spo: Mapping[str, Any]) -> list[Verdict]:
    """Return the result lines of the policy.

    Args:
        spo: The ``spo`` record of the metrics.
    """
    return [better_verdict(spo), calibrated_verdict(spo), spo_reload_verdict(spo)]


def better_verdict(spo: Mapping[str, Any]) -> Verdict:
    """Say whether the policy answers more prompts right than before: `BETTER_BY`."""
    title, quality = "The policy answers clearly more prompts right", spo.get("quality", {})
    whole = quality.get("all", {})
    if not {"sampled", "greedy", "difference"} <= set(whole):
        return Verdict(title, None, f"It was {NOT_MEASURED}.")
    before, after = (whole["sampled"][when] for when in ("before", "after"))
    difference = whole["difference"]
    holds = after - before >= BETTER_BY and difference["low"] > 0
    verb = "rose" if after > before else "fell" if after < before else "stayed"
    text = (
        f"Its accuracy on all prompts {verb} from {percent(before)} to {percent(after)} (95\u00a0% interval of the "
        f"difference: {signed(difference['low'])} to {signed(difference['high'])}; criterion: above 0, and at least "
        f"{signed(BETTER_BY, 2)} in the mean). With the most probable answer it went from {percent(whole['greedy']['before'])} to "
        f"{percent(whole['greedy']['after'])}."
    )
    return Verdict(title, holds, f"{text} {_on_unseen(quality.get('unseen', {}))}")


def _on_unseen(unseen: Mapping[str, Any]) -> str:
    if not {"sampled", "num_prompts"} <= set(unseen):
        return f"On prompts that it was never asked it was {NOT_MEASURED}."
    before, after = (percent(unseen["sampled"][when]) for when in ("before", "after"))
    return f"On {unseen['num_prompts']} prompts that it was never asked: from {before} to {after}."


def calibrated_verdict(spo: Mapping[str, Any]) -> Verdict:
    """Say whether rewards came as the tracker expected them, over the whole run: `CALIBRATED`."""
    title, values = "The tracker's values are calibrated", spo.get("values", {})
    if "calibration_error" not in values:
        return Verdict(title, None, f"It was {NOT_MEASURED}.")
    error = values["calibration_error"]
    text = (
        f"Between the mean value and the mean reward of a bin of values lie {error:.3f} on average (criterion: at most "
        f"{CALIBRATED:g})."
    )
    worst, end = values.get("worst_bin"), values.get("end", {})
    if worst:
        text += (
            f" Farthest apart, among bins with a hundredth of the rewards or more, are a value of {worst['value']:.2f} and a "
            f"reward of {worst['reward']:.2f}."
        )
    if {"value", "accuracy"} <= set(end):
        text += (
            f" At the end the mean value is {percent(end['value'])}, and the accuracy on the same prompts "
            f"{percent(end['accuracy'])}."
        )
    return Verdict(title, error <= CALIBRATED, text)


def spo_reload_verdict(spo: Mapping[str, Any]) -> Verdict:
    """Say whether policy and tracker come back from the Hub as they were."""
    title, hub = "Policy and tracker load back as they were", spo.get("hub", {})
    if not {"reload_max_abs_diff", "tracker_is_equal", "table_is_equal"} <= set(hub):
        return Verdict(title, None, f"Reloading was {NOT_MEASURED}.")
    difference, equal = hub["reload_max_abs_diff"], hub["tracker_is_equal"] and hub["table_is_equal"]
    return Verdict(
        title,
        difference < RELOAD_THRESHOLD and equal,
        f"With plain transformers, where this package cannot be imported, the policy's logits differ by at most "
        f"{scientific(difference)}: {'below' if difference < RELOAD_THRESHOLD else 'not below'} the threshold of "
        f"{scientific(RELOAD_THRESHOLD)}. The tracker is {'equal to the bit' if equal else 'not the same'}.",
    )
