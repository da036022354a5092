"""What the demo's numbers say, in sentences: the first screen of the report.

Design decisions:

- A verdict is a pure function of the metrics. Each states its criterion and its numbers, so a reader can disagree.
- The wording follows the numbers in every direction: a loss that rose, a control that fell further, an untrained model
  that retrieves as well are said as plainly as their opposites. A missing number gives "not measured", never a guess.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# Retrieval beats chance "by a wide margin" at this multiple of it or above.
WIDE_MARGIN = 2.0
# The logits of a reloaded model may differ from those of the trained one by less than this.
RELOAD_THRESHOLD = 1e-5
NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Verdict:
    """One result line.

    Attributes:
        title: What was asked, in a few words.
        holds: The answer; None where nothing was asked or nothing was measured.
        text: The answer with its numbers, in one to three sentences.
    """

    title: str
    holds: bool | None
    text: str


def loss_change(row: Mapping[str, Any]) -> float | None:
    """Return what the decay did to a held-out loss, in nats per masked token; None if it was not measured.

    Args:
        row: A language's or a tier's record, with ``loss_before_decay`` and ``loss_after_decay``.
    """
    if "loss_before_decay" not in row or "loss_after_decay" not in row:
        return None
    return float(row["loss_after_decay"] - row["loss_before_decay"])


def signed(value: float, digits: int = 3) -> str:
    """Return the number with its sign, the minus a real one.

    >>> signed(-0.25, 2), signed(0.25, 2)
    ('−0.25', '+0.25')
    """
    return f"{value:+.{digits}f}".replace("-", "\u2212")


def scientific(value: float) -> str:
    """Return a small number as a reader would write it.

    >>> scientific(2.38e-7), scientific(1e-5), scientific(0.0)
    ('2.4e-7', '1e-5', '0')
    """
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}" if value else "0"


def duration(seconds: float) -> str:
    """Return seconds as a reader would say them.

    >>> duration(243.4), duration(42.0)
    ('243 seconds (4 min 3 s)', '42 seconds')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} seconds"
    return f"{whole} seconds ({whole // 60} min {whole % 60} s)"


def summary(metrics: Mapping[str, Any]) -> str:
    """Return one sentence that says what was done; it claims nothing that the metrics do not hold."""
    parameters, corpus = metrics.get("parameters"), metrics.get("corpus", {})
    size = f" of {parameters / 1e6:.1f} million parameters" if parameters else ""
    text = f" on the {corpus['name']}" if "name" in corpus else ""
    count = f" in {corpus['languages']} languages" if "languages" in corpus else ""
    phases = f", through {len(metrics['phases'])} phases" if metrics.get("phases") else ""
    tail = ", and measured on articles that it never saw" if metrics.get("heldout") else ""
    if metrics.get("hub"):
        tail = f"{tail.replace(', and', ',')}, published to a Hub on this machine and loaded back"
    return f"A small multilingual encoder{size} was trained from scratch{text}{count}{phases}{tail}."


def verdicts(metrics: Mapping[str, Any]) -> list[Verdict]:
    """Return the result lines: each added language, retrieval, reloading, time.

    Args:
        metrics: See `mmbert_hf.demo.report.write_report`.
    """
    added = [added_language_verdict(metrics, code) for code in metrics.get("added_languages", ())]
    if not added:
        added = [Verdict("Languages added in the decay", None, f"{NOT_MEASURED}.".capitalize())]
    return [*added, retrieval_verdict(metrics), reload_verdict(metrics), time_verdict(metrics)]


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
        f"It {verb} chance by a wide margin: accuracy {_percent(accuracy)} against {_percent(chance)}, "
        f"{accuracy / chance:.2f} times as much (criterion: at least {WIDE_MARGIN:g} times)."
    )
    return Verdict(title, holds, f"{text} {_against_untrained(accuracy, bitext.get('accuracy_untrained'))}")


def _against_untrained(accuracy: float, untrained: float | None) -> str:
    if untrained is None:
        return f"The untrained model was {NOT_MEASURED}."
    if untrained < accuracy:
        return f"The same model untrained reaches {_percent(untrained)}."
    return f"The same model untrained reaches {_percent(untrained)}, no less: training did not help."


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


def time_verdict(metrics: Mapping[str, Any]) -> Verdict:
    """Say how long it took."""
    if "seconds" not in metrics:
        return Verdict("Time", None, f"{NOT_MEASURED}.".capitalize())
    cores = metrics.get("machine", {}).get("cpu_count")
    return Verdict("Time", None, f"{duration(metrics['seconds'])} in all{f', on {cores} CPU cores' if cores else ''}.")


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f}\u00a0%"  # no line break before the sign
