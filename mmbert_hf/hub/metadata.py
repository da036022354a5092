"""What the Hub accepts in a card's metadata, checked before anything is sent.

The identifiers of licences are those of the Hub's documentation ("Licenses", 2026).
"""

import difflib
from collections.abc import Iterable
from typing import Any

from mmbert_hf.languages import hub_code, hub_codes

__all__ = ["LICENSES", "check_languages", "check_license", "check_metadata", "language_codes"]

LICENSES = frozenset(
    """
    afl-3.0 agpl-3.0 apache-2.0 apple-amlr apple-ascl artistic-2.0 bigcode-openrail-m bigscience-bloom-rail-1.0
    bigscience-openrail-m bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 c-uda cc cc-by-2.0 cc-by-2.5 cc-by-3.0
    cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0
    cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0 cdla-permissive-2.0
    cdla-sharing-1.0 creativeml-openrail-m deepfloyd-if-license ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2
    fair-noncommercial-research-license gemma gfdl gpl gpl-2.0 gpl-3.0 grok2-community h-research intel-research isc lgpl
    lgpl-2.1 lgpl-3.0 lgpl-lr llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 lppl-1.3c mit mpl-2.0 ms-pl ncsa odbl odc-by
    ofl-1.1 open-mdw openmdw-1.0 openrail openrail++ osl-3.0 other pddl postgresql unknown unlicense wtfpl zlib
    """.split()
)
NOT_LANGUAGES = frozenset(("multilingual", "code"))  # the Hub takes these among languages


def check_license(license: str | Iterable[str] | None) -> None:
    """Refuse what the Hub does not know as a licence.

    Args:
        license: Identifier or identifiers; None passes.

    Raises:
        ValueError: It is none; the nearest ones are named.

    Example:
        >>> check_license("apache2")
        Traceback (most recent call last):
            ...
        ValueError: license 'apache2' is no identifier of the Hub; near it: apache-2.0. For any other give 'other', with \
the name of the licence
    """
    for name in [license] if isinstance(license, str) else license or []:
        if name not in LICENSES:
            near = difflib.get_close_matches(str(name).lower(), sorted(LICENSES))
            hint = f"; near it: {', '.join(near)}" if near else ""
            raise ValueError(
                f"license {name!r} is no identifier of the Hub{hint}. For any other give 'other', with the name of the licence"
            )


def check_languages(languages: str | Iterable[str] | None) -> None:
    """Refuse what is no language of the Hub: ISO 639-1 where there is a code, else ISO 639-3.

    Args:
        languages: Codes; None passes, and so do "multilingual" and "code".

    Raises:
        ValueError: One is unknown, or has a shorter code.

    Example:
        >>> check_languages(["fo", "tpi"])
        >>> check_languages(["fao"])
        Traceback (most recent call last):
            ...
        ValueError: language 'fao' is 'fo' on the Hub: ISO 639-1 where there is a code, else ISO 639-3
    """
    if languages is None:
        return
    for code in languages if isinstance(languages, Iterable) and not isinstance(languages, str) else [languages]:
        if not isinstance(code, str):
            raise ValueError(
                f"language {code!r} is no text: YAML reads the code of Norwegian as false, write it in quotes"
            )
        if code in NOT_LANGUAGES or code in hub_codes():
            continue
        wanted = hub_code(code)  # refuses what is no language at all
        raise ValueError(f"language {code!r} is {wanted!r} on the Hub: ISO 639-1 where there is a code, else ISO 639-3")


def language_codes(languages: str | Iterable[str]) -> list[str]:
    """The codes that the Hub wants, for codes of either kind, each once.

    Args:
        languages: ISO 639-1 or ISO 639-3, with or without a script; or one of them.

    Raises:
        ValueError: One is no code of a language.

    Example:
        >>> language_codes(["fao", "fo", "eng_Latn", "tpi", "code"])
        ['fo', 'en', 'tpi', 'code']
        >>> language_codes("fo,da")
        Traceback (most recent call last):
            ...
        ValueError: 'fo,da' is not one language: give a list, on the command line with blanks between
    """
    found = []
    for code in [languages] if isinstance(languages, str) else languages:
        if "," in code or " " in code:
            raise ValueError(f"{code!r} is not one language: give a list, on the command line with blanks between")
        known = code in NOT_LANGUAGES or code in hub_codes()
        found.append(code if known else hub_code(code))
    return list(dict.fromkeys(found))


def check_metadata(card: Any) -> None:
    """Check licence and languages of a card.

    Args:
        card: `huggingface_hub.ModelCard` or `DatasetCard`.

    Raises:
        ValueError: As `check_license` and `check_languages` say.
    """
    check_license(getattr(card.data, "license", None))
    check_languages(getattr(card.data, "language", None))
