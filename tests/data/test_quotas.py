import csv
import doctest
import math
import os
from pathlib import Path

import numpy as np
import pytest

from mmbert_hf.data import quotas
from mmbert_hf.data.quotas import capped_quotas, language_shares, water_fill

COUNTS = {"eng": 8e9, "code": 4e9, "dan": 4e6, "fao": 1e4}


def test_docstring_examples():
    results = doctest.testmod(quotas)
    assert (results.failed, results.attempted > 2) == (0, True)


@pytest.mark.parametrize("temperature", [0.0, 0.3, 0.5, 0.7, 1.0])
def test_shares_follow_the_formula(temperature):
    shares = language_shares(COUNTS, temperature)
    total = sum(count**temperature for count in COUNTS.values())
    assert shares == pytest.approx({code: count**temperature / total for code, count in COUNTS.items()}, rel=1e-12)


def test_hand_set_shares_stay_and_the_others_divide_the_rest():
    shares = language_shares(COUNTS, 0.5, {"eng": 0.3, "code": 0.1})
    assert (shares["eng"], shares["code"]) == (0.3, 0.1)
    assert shares["dan"] / shares["fao"] == pytest.approx(20.0)
    assert math.fsum(shares.values()) == pytest.approx(1.0, abs=1e-15)


def test_only_active_languages_share():
    shares = language_shares(COUNTS, 0.5, {"eng": 0.3, "code": 0.1}, ["eng", "fao", "dan"])
    assert list(shares) == ["eng", "fao", "dan"]
    assert shares["eng"] == 0.3
    assert math.fsum(shares.values()) == pytest.approx(1.0, abs=1e-15)
    with pytest.raises(ValueError, match="counts has no entry for deu"):
        language_shares(COUNTS, 0.5, None, ["eng", "deu"])


def raise_the_level(shares, total, allowances):
    """Brute force: hand out what is left again and again until nobody is over."""
    full, given = set(), {}
    while True:
        left = total - math.fsum(allowances[code] for code in full)
        weight = math.fsum(share for code, share in shares.items() if code not in full)
        given = {code: allowances[code] if code in full else left * shares[code] / weight for code in shares}
        over = {code for code in shares if code not in full and given[code] > allowances[code]}
        if not over:
            return given
        full |= over


@pytest.mark.parametrize("seed", range(20))
def test_quotas_are_those_of_brute_force(seed):
    rng = np.random.default_rng(seed)
    codes = [f"l{number}" for number in range(rng.integers(1, 12))]
    shares = dict(zip(codes, rng.dirichlet(np.ones(len(codes))).tolist(), strict=True))
    allowances = dict(zip(codes, rng.lognormal(4, 2, len(codes)).tolist(), strict=True))
    if seed % 3 == 0:
        allowances[codes[0]] = math.inf
    supply = math.fsum(allowances.values())
    total = float(rng.random()) * (supply if math.isfinite(supply) else 1000.0)
    given = capped_quotas(shares, total, allowances)
    assert given == pytest.approx(raise_the_level(shares, total, allowances), rel=1e-10)
    assert math.fsum(given.values()) == pytest.approx(total, rel=1e-12)
    assert all(given[code] <= allowances[code] for code in codes)


def test_without_limits_quotas_are_the_shares():
    given = water_fill(np.array([0.5, 0.3, 0.2]), 1e12, np.full(3, np.inf))
    assert given.tolist() == [5e11, 3e11, 2e11]


def test_one_limit_may_bring_the_next_language_to_its_own():
    given = capped_quotas({"eng": 0.6, "dan": 0.3, "fao": 0.1}, 100, {"eng": 40, "dan": 35, "fao": 90})
    assert given == {"eng": 40.0, "dan": 35.0, "fao": 25.0}


def test_everything_may_be_given():
    assert capped_quotas({"eng": 0.9, "dan": 0.1}, 30, {"eng": 10, "dan": 20}) == {"eng": 10.0, "dan": 20.0}
    assert capped_quotas({"eng": 0.9, "dan": 0.1}, 0, {"eng": 0, "dan": 20}) == {"eng": 0.0, "dan": 0.0}


def test_too_much_is_refused_with_figures_and_the_fix():
    with pytest.raises(
        ValueError, match=r"1,000 tokens .* 2 languages may give 30 together, 970 too few: raise max_rep"
    ):
        capped_quotas({"eng": 0.9, "dan": 0.1}, 1000, {"eng": 10, "dan": 20})
    with pytest.raises(ValueError, match=r"no entry for dan; give math\.inf"):
        capped_quotas({"eng": 0.9, "dan": 0.1}, 10, {"eng": 10})
    with pytest.raises(ValueError, match="shares must be positive"):
        capped_quotas({"eng": 0.0}, 10, {"eng": 10})


AUTHORS_COUNTS = Path(
    os.environ.get(
        "MMBERT_LANGUAGE_COUNTS", Path(__file__).parents[2] / ".." / "shared" / "data" / "mmbert_language_counts.csv"
    )
)


@pytest.mark.skipif(
    not AUTHORS_COUNTS.is_file(),
    reason="set MMBERT_LANGUAGE_COUNTS to the authors' table of tokens per language and phase",
)
def test_the_authors_own_counts_follow_the_formula():
    """Their extension mixture follows from their pre-training mixture, temperature 0.5 from 0.7, but for hand-set shares."""
    with AUTHORS_COUNTS.open() as file:
        rows = {row["language"]: (float(row["pretrain"]), float(row["ext"])) for row in csv.DictReader(file)}
    both = {code: row for code, row in rows.items() if min(row) > 0 and code not in ("eng", "code")}
    assert len(both) == 59
    before, after = np.log(np.array(list(both.values()))).T
    slope = np.polyfit(before, after, 1)[0]
    assert slope == pytest.approx(0.71, abs=0.005)  # 0.5 / 0.7
    sizes = {code: row[0] ** (1 / 0.7) for code, row in both.items()}
    ours = np.log(list(language_shares(sizes, 0.5).values()))
    slope, intercept = np.polyfit(ours, after - np.log(np.exp(after).sum()), 1)
    assert slope == pytest.approx(1.0, abs=0.02)
    assert intercept == pytest.approx(0.0, abs=0.1)
