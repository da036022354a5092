"""From documents and phases to what the row planner needs: limits, shares and quotas of every span, all checked.

Design decisions:

- Everything that can be wrong with a mixture is found here, before the first row is planned, with the figures and the
  setting to change.
- Quotas count row tokens: each piece of a document brings two special tokens. How many that makes is counted exactly
  for every row length, so an allowance of whole passes is one.
- Where `max_repeats` is no whole number, a language may give one piece less than its limit, so that its last piece
  never passes it.

Shape legend: L languages, A languages active in a span.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np

from mmbert_hf.data.quotas import language_shares, water_fill
from mmbert_hf.data.row_plan import MIN_MAX_LENGTH, LanguageDocuments, SpanPlan
from mmbert_hf.languages import get_language
from mmbert_hf.special_tokens import NUM_SPECIAL_TOKENS
from mmbert_hf.step_plan import RowSpan


def check_documents(documents: Any) -> None:
    """Refuses documents that no row can be made of.

    Args:
        documents: Language code -> documents (`lengths`, `num_tokens`, `fingerprint`, `tokens`).

    Raises:
        TypeError: It is no mapping.
        ValueError: There is no language, an unknown one, one without documents, or a document without tokens.
    """
    if not isinstance(documents, Mapping):
        raise TypeError(f"documents must be like {{'fao': TokenDocuments}}, got {type(documents).__name__}")
    if not documents:
        raise ValueError("documents is empty: a mixture needs one language at least")
    for code, of_language in documents.items():
        get_language(code)
        if len(of_language) == 0:
            raise ValueError(f"language {code!r} has no documents: leave it out or give it some text")
        if of_language.lengths.min() < 1:
            number = int(np.flatnonzero(of_language.lengths < 1)[0])
            raise ValueError(f"document {number} of language {code!r} has no tokens: drop empty documents")


def plan_languages(documents: Mapping[str, Any], max_repeats: float | None) -> list[LanguageDocuments]:
    """The languages of a mixture, sorted by code, with the most tokens that each may give.

    Args:
        documents: Language code -> documents.
        max_repeats: Most passes over the documents of a language; None for no limit.

    Raises:
        ValueError: `max_repeats` is not above 0.

    Example:
        >>> from mmbert_hf.data.token_documents import TokenDocuments
        >>> [language] = plan_languages({"fao": TokenDocuments.from_arrays([[5, 6, 7]])}, max_repeats=4)
        >>> language.limit_tokens
        12
    """
    if max_repeats is not None and (
        isinstance(max_repeats, bool) or not isinstance(max_repeats, Real) or not 0 < max_repeats < math.inf
    ):
        raise ValueError(f"max_repeats must be a number above 0, or None for no limit, got {max_repeats!r}")
    return [
        LanguageDocuments(
            code,
            documents[code].lengths,
            int(documents[code].num_tokens),
            None if max_repeats is None else math.floor(max_repeats * int(documents[code].num_tokens)),
        )
        for code in sorted(documents)
    ]


def plan_spans(
    languages: Sequence[LanguageDocuments],
    spans: Sequence[RowSpan],
    counts: Mapping[str, float],
    shares: Mapping[str, float],
) -> list[SpanPlan]:
    """Works out who shares in each span, and how.

    Args:
        languages: As `plan_languages` returns them.
        spans: Rows of each phase.
        counts: Language -> size, for the sampling probabilities.
        shares: Language -> share set by hand, for some.

    Raises:
        ValueError: Spans leave gaps, are empty or have shrinking rows; a phase names a language twice or one without
            documents; a share or temperature is out of range.
    """
    if not spans:
        raise ValueError("spans is empty: a mixture needs the rows of one phase at least")
    index = {language.code: number for number, language in enumerate(languages)}
    _check_known(shares, index, "shares")
    pass_sizes: dict[tuple[int, int], tuple[int, int]] = {}
    plans: list[SpanPlan] = []
    for span in spans:
        name, max_length = f"phase {span.phase.name!r}", span.phase.max_length
        _check_span(span, plans[-1] if plans else None)
        active = list(index) if span.phase.languages is None else list(span.phase.languages)
        _check_known(active, index, name)
        if not active or len(set(active)) < len(active):
            twice = sorted({code for code in active if active.count(code) > 1})
            raise ValueError(f"{name}: name at least one language, each once; got {twice or active}")
        try:
            probabilities = language_shares(counts, span.phase.language_temperature, shares, active)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        active_A = np.array(sorted(index[code] for code in active), dtype=np.int64)
        for number in active_A.tolist():
            if (number, max_length) not in pass_sizes:
                pass_sizes[number, max_length] = _pass_size(languages[number], max_length)
        sizes = np.array([pass_sizes[number, max_length] for number in active_A.tolist()], dtype=np.float64)
        shares_A = np.array([probabilities[languages[number].code] for number in active_A.tolist()])
        row_tokens_A, pieces_A = sizes.T
        plans.append(SpanPlan(span.first_row, span.num_rows, max_length, active_A, shares_A, row_tokens_A, pieces_A))
    return plans


def plan_quotas(
    languages: Sequence[LanguageDocuments], spans: Sequence[RowSpan], plans: Sequence[SpanPlan]
) -> tuple[list[np.ndarray], np.ndarray]:
    """The row tokens that each language gives to each span when rows are full, and its passes in all of them.

    Args:
        languages: As `plan_languages` returns them.
        spans: Rows of each phase.
        plans: As `plan_spans` returns them.

    Returns:
        Per span [A], float64 row tokens; and [L], float64 passes over the documents of each language.

    Raises:
        ValueError: The languages of a span may not give as much; the message has the figures and what to change.
    """
    num_tokens_L = np.array([language.num_tokens for language in languages], dtype=np.float64)
    limits_L = np.array([_or_infinity(language.limit_tokens) for language in languages])
    taken_L = np.zeros(len(languages))
    planned: list[np.ndarray] = []
    for span, plan in zip(spans, plans, strict=True):
        active_A = plan.active_A
        per_token_A = plan.row_tokens_A / num_tokens_L[active_A]
        room_A = np.maximum(0.0, limits_L[active_A] - taken_L[active_A]) * per_token_A
        _check_supply(languages, span, plan, room_A)
        quotas_A = water_fill(plan.shares_A, float(plan.num_rows * plan.max_length), room_A)
        taken_L[active_A] += quotas_A / per_token_A
        planned.append(quotas_A)
    return planned, taken_L / num_tokens_L


def _check_supply(languages: Sequence[LanguageDocuments], span: RowSpan, plan: SpanPlan, room_A: np.ndarray) -> None:
    active = [languages[number] for number in plan.active_A.tolist()]
    # A limit inside a pass may be missed by up to a piece.
    missed = [
        min(int(language.lengths.max()) + NUM_SPECIAL_TOKENS, plan.max_length)
        if language.limit_tokens is not None and language.limit_tokens % language.num_tokens
        else 0
        for language in active
    ]
    supply = float(np.maximum(0.0, room_A - missed).sum())
    wanted = plan.num_rows * plan.max_length
    if supply >= wanted * (1 - 1e-12):
        return
    now = max((language.limit_tokens or 0) / language.num_tokens for language in active)
    enough = now + (wanted - supply) / float(plan.row_tokens_A.sum())
    enough = math.ceil(10 * enough + 0.5) / 10  # a part of a pass may miss a piece
    raise ValueError(
        f"phase {span.phase.name!r} fills {plan.num_rows:,} rows of {plan.max_length:,} tokens, {wanted:,} together, but "
        f"its {len(active)} languages have only {math.floor(supply):,} left to give under max_repeats, "
        f"{math.ceil(wanted - supply):,} too few: set max_repeats to {enough:g} or more "
        f"(now {now:.3g}), add text, or plan fewer tokens"
    )


def _check_span(span: RowSpan, before: SpanPlan | None) -> None:
    name, max_length = f"phase {span.phase.name!r}", span.phase.max_length
    expected = before.first_row + before.num_rows if before else 0
    if span.first_row != expected or span.num_rows < 1:
        raise ValueError(
            f"{name}: its rows are {span.num_rows} from row {span.first_row} on, expected at least 1 from row {expected} "
            "on: spans follow each other without gaps"
        )
    if max_length < MIN_MAX_LENGTH:
        raise ValueError(f"{name}: max_length must be at least {MIN_MAX_LENGTH}, got {max_length}")
    if before and max_length < before.max_length:
        raise ValueError(
            f"{name}: max_length falls from {before.max_length} to {max_length}; it may only grow, since pieces that "
            "wait for a row cross into the next phase"
        )


def _check_known(codes: Iterable[str], index: Mapping[str, int], where: str) -> None:
    missing = [code for code in codes if code not in index]
    for code in missing:
        get_language(code)  # a wrong code says which one is meant
    if missing:
        raise ValueError(
            f"{where} names {', '.join(missing[:5])}{' ...' if len(missing) > 5 else ''}, but there are no documents for "
            f"{'them' if len(missing) > 1 else 'it'}: add them to documents or leave the language out"
        )


def _pass_size(language: LanguageDocuments, max_length: int) -> tuple[int, int]:
    """Row tokens and pieces of one pass over a language."""
    max_piece = max_length - NUM_SPECIAL_TOKENS
    num_pieces = len(language.lengths) + int(((language.lengths - 1) // max_piece).sum(dtype=np.int64))
    return language.num_tokens + NUM_SPECIAL_TOKENS * num_pieces, num_pieces


def _or_infinity(limit: int | None) -> float:
    return math.inf if limit is None else float(limit)
