"""What the demo's verdicts are made of: a result line, and numbers as a reader would write them."""

from dataclasses import dataclass

NOT_MEASURED = "not measured"
# The logits of a reloaded model may differ from those of the trained one by less than this.
RELOAD_THRESHOLD = 1e-5


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


def percent(fraction: float) -> str:
    """Return a fraction as a percentage; there is no line break before the sign.

    >>> percent(0.125).split()
    ['12.5', '%']
    """
    return f"{100 * fraction:.1f}\u00a0%"


def share(part: float, whole: float) -> str:
    """Return a part of a whole as a percentage, a dash if there is no whole.

    >>> share(1, 2).split(), share(1, 0)
    (['50.0', '%'], '–')
    """
    return percent(part / whole) if whole else "–"
