"""Languages as values: their codes, and how often each is sampled.

Design decisions:

- Languages are named by ISO 639-3 codes, with an ISO 15924 script where one language has texts in several: `fao`,
  `srp_Cyrl`. Nothing else is accepted, and nothing is guessed: a wrong code raises an error that names the right one.
- One table, `data/languages.tsv.xz`, holds names and the codes that the metadata of a model card on the Hub wants
  (ISO 639-1 where there is one, else ISO 639-3). It is read at the first look-up. It also knows the few retired and
  collective codes of mmBERT's training data, and `code` for source code.
- Languages are sampled as in mmBERT's annealed language learning (arXiv 2509.06888, section 3): with n_i tokens of
  language i and a temperature tau that falls from phase to phase,

      p_i = n_i^tau / sum_j n_j^tau,

  except for languages whose probability is set by hand. tau = 1 follows the data, tau = 0 is uniform. Powers are taken
  of n_i / max_j n_j, in logarithms, so that no count over- or underflows.

Shape legend: L languages.
"""

from __future__ import annotations

import difflib
import lzma
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from numbers import Real

import numpy as np

CODE_PATTERN = re.compile(r"([a-z]{3}|code)(?:_([A-Z][a-z]{3}))?")
# How far hand-set probabilities that cover every language may sum to something else than 1.
SHARES_TOLERANCE = 1e-9


@dataclass(frozen=True)
class Language:
    """A language, in one of its scripts where the script matters.

    Attributes:
        code: ISO 639-3 code, without the script.
        name: English reference name.
        hub_code: Code for the `language:` metadata of the Hub: ISO 639-1 where there is one, else ISO 639-3.
        scope: "individual", "macrolanguage", "collective", "retired" or "special".
        script: ISO 15924 code, or None.

    Example:
        >>> from mmbert_hf.languages import get_language
        >>> faroese = get_language("fao")
        >>> faroese.name, faroese.hub_code, faroese.script
        ('Faroese', 'fo', None)
    """

    code: str
    name: str
    hub_code: str
    scope: str
    script: str | None = None


def split_code(code: str) -> tuple[str, str | None]:
    """Splits a code into language and script, by its form alone.

    Args:
        code: ISO 639-3 code, optionally with an underscore and an ISO 15924 script.

    Returns:
        The language code and the script, None where the code has none.

    Raises:
        TypeError: `code` is no string.
        ValueError: `code` has another form.

    Example:
        >>> from mmbert_hf.languages import split_code
        >>> split_code("srp_Cyrl")
        ('srp', 'Cyrl')
        >>> split_code("fao")
        ('fao', None)
    """
    if not isinstance(code, str):
        raise TypeError(f"a language code must be a string, got {type(code).__name__} {code!r}")
    match = CODE_PATTERN.fullmatch(code)
    if match is None:
        raise ValueError(_describe_unknown(code))
    return match[1], match[2]


def get_language(code: str) -> Language:
    """Looks a language up by its code.

    Args:
        code: ISO 639-3 code such as `fao`, optionally with a script as in `srp_Cyrl`; `code` for source code.

    Returns:
        The language, with the script that was asked for.

    Raises:
        TypeError: `code` is no string.
        ValueError: There is no such code. The message names the right one where it can be told, from an ISO 639-1
            code, wrong case or a name.

    Example:
        >>> from mmbert_hf.languages import get_language
        >>> serbian = get_language("srp_Cyrl")
        >>> serbian.code, serbian.script, serbian.name, serbian.hub_code
        ('srp', 'Cyrl', 'Serbian', 'sr')
        >>> get_language("fo")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        ValueError: unknown language code 'fo': ... did you mean 'fao' (Faroese)?
    """
    base, script = split_code(code)
    language = _table().get(base)
    if language is None:
        raise ValueError(_describe_unknown(code))
    return replace(language, script=script) if script else language


def hub_code(code: str) -> str:
    """The code that the `language:` metadata of a model card wants.

    The predominant member of a macrolanguage has the macrolanguage's code (`cmn` -> `zh`), so that several codes may
    map to the same one: deduplicate before writing a list.

    Args:
        code: As for `get_language`. The script is ignored.

    Returns:
        ISO 639-1 code where there is one, else the ISO 639-3 code.

    Raises:
        TypeError: `code` is no string.
        ValueError: There is no such code.

    Example:
        >>> from mmbert_hf.languages import hub_code
        >>> [hub_code(code) for code in ("eng", "cmn_Hans", "fao", "tpi")]
        ['en', 'zh', 'fo', 'tpi']
    """
    return get_language(code).hub_code


@cache
def hub_codes() -> frozenset[str]:
    """Every code that the `language:` metadata of a model card takes for a language.

    Example:
        >>> from mmbert_hf.languages import hub_codes
        >>> "fo" in hub_codes(), "fao" in hub_codes()
        (True, False)
    """
    return frozenset(language.hub_code for language in _table().values())


def temper(counts_L: np.ndarray, temperature: float) -> np.ndarray:
    """Tempered distribution over counts, p_i = n_i^tau / sum_j n_j^tau.

    Args:
        counts_L: [L], tokens (or bytes, or documents) per language, finite and positive.
        temperature: tau in [0, 1]; 0 is uniform, 1 is proportional to the counts.

    Returns:
        [L], float64 probabilities.

    Raises:
        ValueError: Counts are empty, not one-dimensional, not finite or not positive, or the temperature is out of
            range.

    Example:
        >>> import numpy as np
        >>> from mmbert_hf.languages import temper
        >>> temper(np.array([8e9, 1e9]), 1 / 3).round(3).tolist()
        [0.667, 0.333]
    """
    _check_temperature(temperature)
    counts_L = np.asarray(counts_L, dtype=np.float64)
    if counts_L.ndim != 1 or counts_L.size == 0:
        raise ValueError(f"counts must be a non-empty vector, got shape {counts_L.shape}")
    if not (np.isfinite(counts_L) & (counts_L > 0)).all():
        raise ValueError("counts must be finite and greater than 0: leave out languages without data")
    logits_L = np.log(counts_L)
    weights_L = np.exp(temperature * (logits_L - logits_L.max()))
    return weights_L / weights_L.sum()


def sampling_probabilities(
    counts: Mapping[str, float], temperature: float, *, shares: Mapping[str, float] | None = None
) -> dict[str, float]:
    """Probability of each language, tempered except for hand-set shares (module docstring).

    Args:
        counts: Language -> tokens (or any measure of size), finite and positive.
        temperature: tau in [0, 1]; 0 is uniform, 1 is proportional to the counts.
        shares: Language -> probability set by hand, for some of the languages in `counts`; the others divide what is
            left. mmBERT sets English and code by hand.

    Returns:
        Language -> probability, in the order of `counts`; they sum to 1.

    Raises:
        TypeError: A count or a share is no number.
        ValueError: A count, a share or the temperature is out of range, a share has no count, or the shares leave
            nothing for the other languages.

    Example:
        >>> from mmbert_hf.languages import sampling_probabilities
        >>> counts = {"eng": 1e12, "deu": 1e10, "fao": 1e8}
        >>> sampling_probabilities({"deu": 1e10, "fao": 1e8}, 0.5)["deu"]
        0.9090909090909091
        >>> sampling_probabilities(counts, 0.0, shares={"eng": 0.5})
        {'eng': 0.5, 'deu': 0.25, 'fao': 0.25}
    """
    if not counts:
        raise ValueError("counts must name at least one language, got none")
    for language, count in counts.items():
        if _number(count, "count", language) <= 0 or not math.isfinite(count):
            raise ValueError(
                f"the count of {language!r} must be finite and greater than 0, got {count}: "
                "leave out languages without data"
            )
    _check_temperature(temperature)
    fixed = _check_shares(counts, shares or {})
    others = [language for language in counts if language not in fixed]
    probabilities = dict(fixed)
    if others:
        tempered_L = temper(np.array([counts[language] for language in others], dtype=np.float64), temperature)
        left = 1.0 - math.fsum(fixed.values())
        probabilities.update(zip(others, (left * tempered_L).tolist(), strict=True))
    return {language: probabilities[language] for language in counts}


def _check_temperature(temperature: float) -> None:
    """Refuses a temperature out of range (NaN is)."""
    if not isinstance(temperature, Real) or not 0.0 <= float(temperature) <= 1.0:
        raise ValueError(f"temperature must be in [0, 1] (0 uniform, 1 proportional to the counts), got {temperature}")


def _check_shares(counts: Mapping[str, float], shares: Mapping[str, float]) -> dict[str, float]:
    """The hand-set shares, checked; shares of all languages are scaled to sum to 1 exactly."""
    unknown = [language for language in shares if language not in counts]
    if unknown:
        raise ValueError(f"shares name {unknown}, which have no count: add counts for them or drop their shares")
    for language, share in shares.items():
        if not 0.0 < _number(share, "share", language) <= 1.0:
            raise ValueError(
                f"the share of {language!r} must be in (0, 1], got {share}: leave a language out instead of giving it 0"
            )
    total = math.fsum(shares.values())
    if shares and len(shares) == len(counts):
        if abs(total - 1.0) > SHARES_TOLERANCE:
            raise ValueError(f"shares cover every language, so they must sum to 1, got {total}")
        return {language: share / total for language, share in shares.items()}
    if total >= 1.0:
        raise ValueError(
            f"shares sum to {total}, which leaves nothing for the {len(counts) - len(shares)} other languages: "
            "lower them below 1 in total, or drop the other languages"
        )
    return {language: float(share) for language, share in shares.items()}


def _number(value: float, what: str, language: str) -> float:
    """`value` if it is a real number (bool is not)."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"the {what} of {language!r} must be a number, got {type(value).__name__} {value!r}")
    return float(value)


@cache
def _rows() -> list[list[str]]:
    """The packed table without its header: code, hub_code, alias, scope, name."""
    packed = files("mmbert_hf").joinpath("data", "languages.tsv.xz").read_bytes()
    return [line.split("\t") for line in lzma.decompress(packed).decode("utf-8").splitlines()[1:]]


@cache
def _table() -> dict[str, Language]:
    """ISO 639-3 code -> language."""
    return {code: Language(code, name, hub, scope) for code, hub, _, scope, name in _rows()}


def _describe_unknown(value: str) -> str:
    """The error message for a code that is not in the table."""
    expected = "expected an ISO 639-3 code of three small letters, with the script where it matters, as in 'srp_Cyrl'"
    suggestions = [f"{code!r} ({_table()[code.split('_')[0]].name})" for code in _suggest(value)]
    hint = f"; did you mean {' or '.join(suggestions)}?" if suggestions else ""
    return f"unknown language code {value!r}: {expected}{hint}"


def _suggest(value: str) -> list[str]:
    """Codes that `value` may stand for: wrong case or separator, ISO 639-1 and 639-2/B codes, names."""
    base, _, script = value.strip().replace("-", "_").partition("_")
    base = base.lower()
    codes = [base] if base in _table() else [row[0] for row in _rows() if base and base in (row[1], row[2])]
    if codes:
        suffix = f"_{script.title()}" if re.fullmatch(r"[A-Za-z]{4}", script) else ""
        return [code + suffix for code in codes]
    name = value.strip().casefold()
    by_name = {language.name.casefold(): code for code, language in _table().items()}
    if name in by_name:
        return [by_name[name]]
    holding = [other for other in by_name if name in re.findall(r"[^\W\d]+", other)]
    holding.sort(key=lambda other: (len(_table()[by_name[other]].hub_code), len(other)))  # large languages first
    return [by_name[other] for other in (holding or difflib.get_close_matches(name, by_name, cutoff=0.75))[:3]]
