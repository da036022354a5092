"""What the demo's numbers say, in sentences: the first screen of the report.

Design decisions:

- A verdict is a pure function of the metrics. Each states its criterion and its numbers, so a reader can disagree.
- The wording follows the numbers in every direction: a loss that rose, a control that fell further, an untrained model
  that retrieves as well are said as plainly as their opposites. A missing number gives "not measured", never a guess.
"""

from collections.abc import Mapping
from typing import Any

from mmbert_hf.demo.spo_verdicts import spo_summary, spo_verdicts
from mmbert_hf.demo.wording import (
    NOT_MEASURED,
    RELOAD_THRESHOLD,
    Verdict,
    duration,
    percent,
    scientific,
    share,
    signed,
)

# Retrieval beats chance "by a wide margin" at this multiple of it or above.
WIDE_MARGIN = 2.0
# A pruned embedder is small and fast at this share of the dense one's bytes and seconds or below, and good at this share
# of the nDCG@10 of the dense one as it came, and of the dense one after the same training, or above.
PRUNED_BYTES, PRUNED_SECONDS = 0.55, 0.70
PRUNED_QUALITY, PRUNED_QUALITY_TRAINED = 0.975, 0.92


def loss_change(row: Mapping[str, Any]) -> float | None:
    """Return what the decay did to a held-out loss, in nats per masked token; None if it was not measured.

    Args:
        row: A language's or a tier's record, with ``loss_before_decay`` and ``loss_after_decay``.
    """
    if "loss_before_decay" not in row or "loss_after_decay" not in row:
        return None
    return float(row["loss_after_decay"] - row["loss_before_decay"])


def summary(metrics: Mapping[str, Any]) -> str:
    """Return what was done in a sentence or two; they claim nothing that the metrics do not hold."""
    others = " ".join(filter(None, (_prune_summary(metrics.get("prune", {})), spo_summary(metrics.get("spo", {})))))
    if others and not metrics.get("phases"):
        return others
    parameters, corpus = metrics.get("parameters"), metrics.get("corpus", {})
    size = f" of {parameters / 1e6:.1f} million parameters" if parameters else ""
    text = f" on the {corpus['name']}" if "name" in corpus else ""
    count = f" in {corpus['languages']} languages" if "languages" in corpus else ""
    phases = f", through {len(metrics['phases'])} phases" if metrics.get("phases") else ""
    tail = ", and measured on articles that it never saw" if metrics.get("heldout") else ""
    if metrics.get("hub"):
        tail = f"{tail.replace(', and', ',')}, published to a Hub on this machine and loaded back"
    return f"A small multilingual encoder{size} was trained from scratch{text}{count}{phases}{tail}.{f' {others}' if others else ''}"


def _prune_summary(prune: Mapping[str, Any]) -> str:
    name = prune.get("embedder", {}).get("name")
    if name is None:
        return ""
    tail = ", published to a Hub on this machine and loaded back" if prune.get("hub") else ""
    steps = prune.get("retraining", {}).get("steps")
    retrained = f", retrained for {steps} steps" if steps else ""
    return f"The embedder {name} was pruned for the animals and plants of WordNet{retrained}{tail}."


def verdicts(metrics: Mapping[str, Any]) -> list[Verdict]:
    """Return the result lines: each added language, retrieval, reloading; the pruned embedder's; the policy's; time.

    Args:
        metrics: See `mmbert_hf.demo.report.write_report`.
    """
    added = [added_language_verdict(metrics, code) for code in metrics.get("added_languages", ())]
    if not added:
        added = [Verdict("Languages added in the decay", None, f"{NOT_MEASURED}.".capitalize())]
    encoder = [*added, retrieval_verdict(metrics), reload_verdict(metrics)]
    prune = metrics.get("prune", {})
    pruned = [pruned_size_verdict(prune), pruned_quality_verdict(prune), pruned_reload_verdict(prune)]
    return [*encoder, *pruned, *spo_verdicts(metrics.get("spo", {})), time_verdict(metrics)]


def added_language_verdict(metrics: Mapping[str, Any], code: str) -> Verdict:
    """Say whether the held-out loss of a language that enters in the decay fell there, and further than without it."""
    name = metrics.get("names", {}).get(code, code)
    title = f"The held-out loss of {name} falls in the decay"
    row = metrics.get("heldout", {}).get(code, {})
    change = loss_change(row)
    if change is None:
        return Verdict(title, None, f"It was {NOT_MEASURED}.")
    before, after = row["loss_before_decay"], row["loss_after_decay"]
    verb = "fell" if change < 0 else "rose" if change > 0 else "went"
    text = f"It {verb} from {before:.3f} to {after:.3f} nats per masked token ({signed(change)})."
    return Verdict(title, change < 0, f"{text} {_against_control(name, after, row.get('loss_after_control'))}")


def _against_control(name: str, after: float, control: float | None) -> str:
    if control is None:
        return f"The control decay without it was {NOT_MEASURED}."
    start = f"After a control decay without {name} it is {control:.3f}"
    if after < control:
        return f"{start}, which is {control - after:.3f} higher."
    return f"{start}, no higher: seeing {name} in the decay did not help it."


def retrieval_verdict(metrics: Mapping[str, Any]) -> Verdict:
    """Say whether translation retrieval reaches `WIDE_MARGIN` times chance, and what an untrained model reaches."""
    title, bitext = "Translation retrieval beats chance by a wide margin", metrics.get("bitext", {})
    if "accuracy" not in bitext or "chance" not in bitext:
        return Verdict(title, None, f"It was {NOT_MEASURED}.")
    accuracy, chance = bitext["accuracy"], bitext["chance"]
    holds = accuracy >= WIDE_MARGIN * chance
    verb = "beats" if holds else "does not beat"
    text = (
        f"It {verb} chance by a wide margin: accuracy {percent(accuracy)} against {percent(chance)}, "
        f"{accuracy / chance:.2f} times as much (criterion: at least {WIDE_MARGIN:g} times)."
    )
    return Verdict(title, holds, f"{text} {_against_untrained(accuracy, bitext.get('accuracy_untrained'))}")


def _against_untrained(accuracy: float, untrained: float | None) -> str:
    if untrained is None:
        return f"The untrained model was {NOT_MEASURED}."
    if untrained < accuracy:
        return f"The same model untrained reaches {percent(untrained)}."
    return f"The same model untrained reaches {percent(untrained)}, no less: training did not help."


def reload_verdict(metrics: Mapping[str, Any]) -> Verdict:
    """Say whether the published model, loaded back in fresh processes, gives the same logits."""
    title, hub = "The published model loads back with the same logits", metrics.get("hub", {})
    differences = {
        way: hub[f"reload_{key}_max_abs_diff"]
        for way, key in (("with this package", "with_package"), ("with plain transformers", "without_package"))
        if f"reload_{key}_max_abs_diff" in hub
    }
    if len(differences) < 2:
        return Verdict(title, None, f"Reloading was {NOT_MEASURED}.")
    holds = all(difference < RELOAD_THRESHOLD for difference in differences.values())
    listed = " and ".join(f"{scientific(difference)} {way}" for way, difference in differences.items())
    relation = "below" if holds else "not below"
    return Verdict(
        title, holds, f"They differ by at most {listed}: {relation} the threshold of {scientific(RELOAD_THRESHOLD)}."
    )


def pruned_size_verdict(prune: Mapping[str, Any]) -> Verdict:
    """Say how much smaller and faster the pruned embedder is than the dense one: `PRUNED_BYTES`, `PRUNED_SECONDS`."""
    title = "The pruned embedder is about half as large, and faster"
    footprint, seconds = prune.get("footprint", {}), prune.get("latency", {}).get("seconds", {})
    if not {"dense", "pruned"} <= set(footprint) or not {"dense", "pruned"} <= set(seconds):
        return Verdict(title, None, f"It was {NOT_MEASURED}.")
    dense, pruned = (footprint[name]["bytes_on_disk"] for name in ("dense", "pruned"))
    ratio = seconds["pruned"]["ratio"]
    spread = " to ".join(f"{seconds['pruned'][end]:.2f}" for end in ("low_seconds", "high_seconds"))
    spread_dense = " to ".join(f"{seconds['dense'][end]:.2f}" for end in ("low_seconds", "high_seconds"))
    return Verdict(
        title,
        pruned <= PRUNED_BYTES * dense and ratio <= PRUNED_SECONDS,
        f"It takes {pruned / 1e6:.1f} MB on disk against {dense / 1e6:.1f} ({percent(pruned / dense)}; criterion: at most "
        f"{percent(PRUNED_BYTES)}), and {percent(ratio)} of the time for the same texts ({spread} s against {spread_dense} s; "
        f"criterion: at most {percent(PRUNED_SECONDS)}).",
    )


def pruned_quality_verdict(prune: Mapping[str, Any]) -> Verdict:
    """Say what is left of the domain's quality (`PRUNED_QUALITY`, `PRUNED_QUALITY_TRAINED`), and what else it cost."""
    title = "The pruned embedder keeps its quality in the domain"
    quality = prune.get("quality", {})
    domain = quality.get("domain", {}).get("ndcg_at_10", {})
    if not {"dense", "control", "pruned"} <= set(domain):
        return Verdict(title, None, f"It was {NOT_MEASURED}.")
    dense, control, pruned = (domain[name] for name in ("dense", "control", "pruned"))
    text = (
        f"nDCG@10 on living things is {pruned:.3f}: {share(pruned, dense)} of the dense model's {dense:.3f} (criterion: at "
        f"least {percent(PRUNED_QUALITY)}), and {share(pruned, control)} of the {control:.3f} that the dense model reaches "
        f"after the same training (criterion: at least {percent(PRUNED_QUALITY_TRAINED)})."
    )
    holds = pruned >= PRUNED_QUALITY * dense and pruned >= PRUNED_QUALITY_TRAINED * control
    return Verdict(title, holds, f"{text} {_on_other_nouns(quality.get('general', {}))}")


def _on_other_nouns(quality: Mapping[str, Any]) -> str:
    ndcg, difference = quality.get("ndcg_at_10", {}), quality.get("difference", {}).get("dense")
    if not {"dense", "pruned"} <= set(ndcg) or difference is None:
        return f"On other nouns it was {NOT_MEASURED}."
    interval = f"{signed(difference['low'])} to {signed(difference['high'])}"
    verb = "fell" if difference["high"] < 0 else "rose" if difference["low"] > 0 else "did not change for certain"
    return (
        f"On other nouns it {verb}: from {ndcg['dense']:.3f} to {ndcg['pruned']:.3f} (95\u00a0% interval of the difference: "
        f"{interval})."
    )


def pruned_reload_verdict(prune: Mapping[str, Any]) -> Verdict:
    """Say whether the published embedder, loaded by plain sentence-transformers, gives the same embeddings."""
    title = "The published pruned embedder loads without this package"
    difference = prune.get("hub", {}).get("reload_max_abs_diff")
    if difference is None:
        return Verdict(title, None, f"Reloading was {NOT_MEASURED}.")
    holds = difference < RELOAD_THRESHOLD
    return Verdict(
        title,
        holds,
        f"With plain sentence-transformers its embeddings differ by at most {scientific(difference)}: "
        f"{'below' if holds else 'not below'} the threshold of {scientific(RELOAD_THRESHOLD)}.",
    )


def time_verdict(metrics: Mapping[str, Any]) -> Verdict:
    """Say how long it took."""
    if "seconds" not in metrics:
        return Verdict("Time", None, f"{NOT_MEASURED}.".capitalize())
    cores = metrics.get("machine", {}).get("cpu_count")
    return Verdict("Time", None, f"{duration(metrics['seconds'])} in all{f', on {cores} CPU cores' if cores else ''}.")
