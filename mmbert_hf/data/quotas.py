"""Quotas: how many tokens each language gives to a phase.

Design decisions:

- Pure functions of numbers. Shares follow p_i = n_i^tau / sum_j n_j^tau (mmBERT, section 3), except where set by hand.
- No language gives more than its allowance (what may be repeated of it). What it leaves goes to the others in
  proportion to their shares, which may bring the next one to its allowance: water-filling. The level is found by
  sorting, not by iterating, so the result is exact in float64.

Shape legend: L languages.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from mmbert_hf.languages import sampling_probabilities

# What rounding may add to a total: allowances that are too small by less than this are enough.
ROUNDING = 1e-12


def language_shares(
    counts: Mapping[str, float],
    temperature: float,
    fixed_shares: Mapping[str, float] | None = None,
    languages: Sequence[str] | None = None,
) -> dict[str, float]:
    """The share of each language: set by hand, or p_i = n_i^tau / sum_j n_j^tau of what those leave.

    Args:
        counts: Language -> tokens, finite and positive.
        temperature: tau in [0, 1].
        fixed_shares: Language -> share set by hand, in (0, 1]; those of other languages than the active are ignored.
        languages: The active languages; all of `counts` if None.

    Returns:
        Active language -> share; they sum to 1.

    Raises:
        ValueError: An active language has no count, or as for `mmbert_hf.languages.sampling_probabilities`.

    Example:
        >>> language_shares({"eng": 9e6, "dan": 4e6, "fao": 1e6}, 0.5, {"eng": 0.4}, ["eng", "dan", "fao"])
        {'eng': 0.4, 'dan': 0.39999999999999997, 'fao': 0.19999999999999998}
    """
    active = list(counts) if languages is None else list(languages)
    missing = [code for code in active if code not in counts]
    if missing:
        raise ValueError(f"counts has no entry for {', '.join(missing[:5])}; every active language needs one")
    fixed = {code: share for code, share in (fixed_shares or {}).items() if code in set(active)}
    return sampling_probabilities({code: counts[code] for code in active}, temperature, shares=fixed)


def capped_quotas(shares: Mapping[str, float], num_tokens: float, allowances: Mapping[str, float]) -> dict[str, float]:
    """Divides tokens among languages by share, none above its allowance.

    Args:
        shares: Language -> share, positive.
        num_tokens: Tokens to divide.
        allowances: Language -> most tokens that it may give; infinity for no limit. One for each of `shares`.

    Returns:
        Language -> tokens, which sum to `num_tokens`. Languages below their allowance have them in proportion to their
        shares.

    Raises:
        ValueError: All allowances together are less than `num_tokens`.

    Example:
        >>> capped_quotas({"eng": 0.5, "dan": 0.3, "fao": 0.2}, 100, {"eng": 1000, "dan": 1000, "fao": 4})
        {'eng': 60.0, 'dan': 36.0, 'fao': 4.0}
    """
    missing = [code for code in shares if code not in allowances]
    if missing:
        raise ValueError(f"allowances has no entry for {', '.join(missing[:5])}; give math.inf for no limit")
    quotas_L = water_fill(
        np.fromiter(shares.values(), np.float64, len(shares)),
        num_tokens,
        np.array([allowances[code] for code in shares], dtype=np.float64),
    )
    return dict(zip(shares, quotas_L.tolist(), strict=True))


def water_fill(shares_L: np.ndarray, num_tokens: float, allowances_L: np.ndarray) -> np.ndarray:
    """`capped_quotas` of arrays.

    Args:
        shares_L: [L], float64, positive.
        num_tokens: Tokens to divide.
        allowances_L: [L], float64, at least 0, or infinity.

    Returns:
        [L], float64 tokens.

    Raises:
        ValueError: All allowances together are less than `num_tokens`.

    Example:
        >>> water_fill(np.array([1.0, 1.0]), 10.0, np.array([2.0, np.inf])).tolist()
        [2.0, 8.0]
    """
    if not (shares_L > 0).all() or not (allowances_L >= 0).all() or not num_tokens >= 0:
        raise ValueError("shares must be positive, allowances and the number of tokens at least 0")
    supply = float(allowances_L.sum())
    if supply < num_tokens * (1.0 - ROUNDING):
        raise ValueError(
            f"{num_tokens:,.0f} tokens are wanted, but the {len(shares_L)} languages may give {supply:,.0f} "
            f"together, {math.ceil(num_tokens - supply):,} too few: raise max_repeats, add text, or plan fewer tokens"
        )
    # A language reaches its allowance when the level (tokens per share) reaches allowance / share. With the k lowest of
    # these levels full, the others stand at levels_L[k]; the level sought is the first that no further language limits.
    full_at_L = allowances_L / shares_L
    order = np.argsort(full_at_L, kind="stable")
    given_L = np.concatenate([[0.0], np.cumsum(allowances_L[order][:-1])])
    sharing_L = np.cumsum(shares_L[order][::-1])[::-1]
    # Infinite allowances come last: where they are in `given`, an earlier level was the right one.
    levels_L = np.where(np.isfinite(given_L), (num_tokens - given_L) / sharing_L, np.inf)
    reached = np.flatnonzero(levels_L <= full_at_L[order])
    if not reached.size:  # every language gives all it may, up to rounding
        return allowances_L.copy()
    return np.minimum(levels_L[reached[0]] * shares_L, allowances_L)
