"""Language codes, the packed table and the sampling distribution."""

import doctest
import importlib.util
import inspect
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mmbert_hf import languages
from mmbert_hf.languages import (
    Language,
    get_language,
    hub_code,
    hub_codes,
    sampling_probabilities,
    split_code,
    temper,
)

ROOT = Path(__file__).parents[1]
PUBLIC = [Language, split_code, get_language, hub_code, hub_codes, temper, sampling_probabilities]


def load_tool(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def brute_force(counts, temperature):
    powers = {language: float(count) ** temperature for language, count in counts.items()}
    total = sum(powers.values())
    return {language: power / total for language, power in powers.items()}


# --- codes


def test_docstring_examples_run():
    result = doctest.testmod(languages)
    assert result.failed == 0
    assert result.attempted > 0


@pytest.mark.parametrize("public", PUBLIC, ids=lambda public: public.__name__)
def test_every_public_object_has_an_example(public):
    assert ">>>" in inspect.getdoc(public)


def test_public_names_are_the_ones_tested():
    own = {
        name
        for name, value in vars(languages).items()
        if getattr(value, "__module__", None) == languages.__name__ and not name.startswith("_")
    }
    assert own == {public.__name__ for public in PUBLIC}


def test_get_language():
    assert get_language("fao") == Language("fao", "Faroese", "fo", "individual", None)
    assert get_language("srp_Cyrl") == Language("srp", "Serbian", "sr", "individual", "Cyrl")
    assert get_language("fas").scope == "macrolanguage"
    assert get_language("code").scope == "special"


@pytest.mark.parametrize(
    ("code", "expected"),
    [("eng", "en"), ("fao", "fo"), ("tir", "ti"), ("tpi", "tpi"), ("srp_Latn", "sr"), ("code", "code")],
)
def test_hub_code(code, expected):
    assert hub_code(code) == expected


@pytest.mark.parametrize(
    ("member", "macrolanguage"), [("cmn", "zho"), ("arb", "ara"), ("pes", "fas"), ("ekk", "est"), ("zlm", "msa")]
)
def test_predominant_member_has_the_code_of_its_macrolanguage(member, macrolanguage):
    assert hub_code(member) == hub_code(macrolanguage)
    assert len(hub_code(member)) == 2


@pytest.mark.parametrize("code", ["daf", "eml", "kzj", "nah", "oto", "tok", "code"])
def test_codes_of_multilingual_corpora_outside_the_source_table(code):
    assert hub_code(code) == code


def test_every_hub_code_is_two_or_three_letters():
    codes = {language.hub_code for language in languages._table().values()} - {"code"}
    assert {len(code) for code in codes} == {2, 3}
    assert len(languages._table()) > 7800


@pytest.mark.parametrize(
    ("value", "suggestion"),
    [
        ("fo", "'fao' (Faroese)"),
        ("FAO", "'fao' (Faroese)"),
        ("fao ", "'fao' (Faroese)"),
        ("Faroese", "'fao' (Faroese)"),
        ("Faroes", "'fao' (Faroese)"),
        ("fo-Latn", "'fao_Latn' (Faroese)"),
        ("fao_latn", "'fao_Latn' (Faroese)"),
        ("pt-BR", "'por' (Portuguese)"),
        ("ger", "'deu' (German)"),
        ("zh", "'cmn' (Mandarin Chinese) or 'zho' (Chinese)"),
        ("greek", "'ell' (Modern Greek (1453-))"),
    ],
)
def test_wrong_code_names_the_right_one(value, suggestion):
    with pytest.raises(ValueError, match="unknown language code") as error:
        get_language(value)
    assert repr(value) in str(error.value)
    assert "ISO 639-3" in str(error.value)
    assert f"did you mean {suggestion}" in str(error.value)


@pytest.mark.parametrize("value", ["", "xyz", "qq", "xyz_Latn"])
def test_unknown_code_suggests_nothing_that_is_not_close(value):
    with pytest.raises(ValueError, match="unknown language code") as error:
        get_language(value)
    assert "did you mean" not in str(error.value)


@pytest.mark.parametrize("value", [None, 3, b"fao"])
def test_code_of_another_type(value):
    with pytest.raises(TypeError, match="must be a string"):
        get_language(value)


def test_import_is_light():
    script = (
        "import sys, mmbert_hf.languages, mmbert_hf.data.udhr; "
        "print([name for name in ('trl', 'sentence_transformers', 'datasets', 'matplotlib') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


# --- sampling


COUNTS = {"eng": 1e12, "deu": 87_337_285_702, "fao": 285_200_391, "tir": 97_007_349, "daf": 53_853, "aba": 216}


@pytest.mark.parametrize("temperature", [0.0, 0.3, 0.5, 0.7, 1.0])
def test_sampling_has_the_closed_form(temperature):
    probabilities = sampling_probabilities(COUNTS, temperature)
    assert probabilities == pytest.approx(brute_force(COUNTS, temperature), rel=1e-12)
    assert list(probabilities) == list(COUNTS)
    assert abs(sum(probabilities.values()) - 1) < 1e-12


def test_temperature_zero_is_uniform_and_one_is_proportional():
    assert set(sampling_probabilities(COUNTS, 0).values()) == {1 / 6}
    total = sum(COUNTS.values())
    assert sampling_probabilities(COUNTS, 1) == pytest.approx({key: n / total for key, n in COUNTS.items()}, rel=1e-12)


def test_lower_temperature_raises_small_languages_and_keeps_the_order():
    smallest = [sampling_probabilities(COUNTS, tau)["aba"] for tau in (0.7, 0.5, 0.3)]
    largest = [sampling_probabilities(COUNTS, tau)["eng"] for tau in (0.7, 0.5, 0.3)]
    assert smallest == sorted(smallest)
    assert len(set(smallest)) == 3
    assert largest == sorted(largest, reverse=True)
    values = list(sampling_probabilities(COUNTS, 0.3).values())
    assert values == sorted(values, reverse=True)


def test_scale_of_the_counts_does_not_matter():
    bytes_of = {language: 4.2 * count for language, count in COUNTS.items()}
    assert sampling_probabilities(bytes_of, 0.3) == pytest.approx(sampling_probabilities(COUNTS, 0.3), rel=1e-12)


@pytest.mark.parametrize("largest", [1e15, 1e300])
def test_large_counts_are_stable(largest):
    probabilities = sampling_probabilities({"eng": largest, "deu": largest, "fao": 1.0}, 1.0)
    assert probabilities["eng"] == probabilities["deu"] == pytest.approx(0.5, rel=1e-12)
    assert probabilities["fao"] == pytest.approx(0.5 / largest, rel=1e-9)
    assert abs(sum(probabilities.values()) - 1) < 1e-12


def test_many_languages_sum_to_one():
    counts = {str(index): 10.0 ** (index % 13) for index in range(1, 1834)}
    assert abs(sum(sampling_probabilities(counts, 0.3).values()) - 1) < 1e-12


def test_temper_agrees_with_the_mapping_form():
    array = temper(np.array(list(COUNTS.values())), 0.3)
    assert array.dtype == np.float64
    assert array.tolist() == list(sampling_probabilities(COUNTS, 0.3).values())


def test_shares_are_kept_and_the_others_follow_the_temperature():
    counts = {"deu": 1e10, "eng": 1e12, "fao": 1e8, "code": 1e11}
    probabilities = sampling_probabilities(counts, 0.5, shares={"code": 0.1, "eng": 0.3})
    rest = brute_force({"deu": 1e10, "fao": 1e8}, 0.5)
    expected = {"deu": 0.6 * rest["deu"], "eng": 0.3, "fao": 0.6 * rest["fao"], "code": 0.1}
    assert probabilities == pytest.approx(expected, rel=1e-12)
    assert list(probabilities) == list(counts)
    assert probabilities["eng"] == 0.3


def test_shares_of_every_language():
    counts = {"eng": 5, "fao": 5, "tir": 5}
    probabilities = sampling_probabilities(counts, 0.5, shares={"eng": 0.7, "fao": 0.2, "tir": 0.1})
    assert probabilities == pytest.approx({"eng": 0.7, "fao": 0.2, "tir": 0.1}, rel=1e-12)
    assert abs(sum(probabilities.values()) - 1) < 1e-12


@pytest.mark.parametrize("count", [0, -1, float("nan"), float("inf")])
def test_bad_count(count):
    with pytest.raises(ValueError, match="'fao' must be finite and greater than 0"):
        sampling_probabilities({"eng": 1, "fao": count}, 0.5)
    with pytest.raises(ValueError, match="finite and greater than 0"):
        temper(np.array([1, count]), 0.5)


@pytest.mark.parametrize("count", ["7", None, True])
def test_count_of_another_type(count):
    with pytest.raises(TypeError, match="the count of 'fao' must be a number"):
        sampling_probabilities({"fao": count}, 0.5)


@pytest.mark.parametrize("temperature", [-0.1, 1.1, float("nan"), float("inf")])
def test_bad_temperature(temperature):
    with pytest.raises(ValueError, match=r"temperature must be in \[0, 1\]"):
        sampling_probabilities({"fao": 1}, temperature)
    with pytest.raises(ValueError, match=r"temperature must be in \[0, 1\]"):
        sampling_probabilities({"fao": 1}, temperature, shares={"fao": 1.0})
    with pytest.raises(ValueError, match=r"temperature must be in \[0, 1\]"):
        temper(np.ones(2), temperature)


def test_no_counts():
    with pytest.raises(ValueError, match="at least one language"):
        sampling_probabilities({}, 0.5)


@pytest.mark.parametrize("counts", [np.ones((2, 2)), np.ones(0), np.float64(3)])
def test_temper_wants_a_vector(counts):
    with pytest.raises(ValueError, match="non-empty vector"):
        temper(counts, 0.5)


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ({"xho": 0.1}, r"\['xho'\], which have no count"),
        ({"eng": 0.0}, r"'eng' must be in \(0, 1\]"),
        ({"eng": -0.5}, r"'eng' must be in \(0, 1\]"),
        ({"eng": float("nan")}, r"'eng' must be in \(0, 1\]"),
        ({"eng": 1.0}, "leaves nothing for the 1 other"),
        ({"eng": 0.6, "fao": 0.3}, "must sum to 1, got 0.89"),
    ],
)
def test_bad_shares(shares, message):
    with pytest.raises(ValueError, match=message):
        sampling_probabilities({"eng": 2, "fao": 1}, 0.5, shares=shares)


def test_share_of_another_type():
    with pytest.raises(TypeError, match="the share of 'eng' must be a number"):
        sampling_probabilities({"eng": 2, "fao": 1}, 0.5, shares={"eng": "0.5"})


# --- the packer


SOURCE = """
export const iso6393 = [
  {
    name: 'Tok\\'s',
    type: 'living',
    scope: 'individual',
    iso6393: 'zzy'
  },
  {
    name: "Are'are",
    type: 'living',
    scope: 'individual',
    iso6393: 'aab',
    iso6392B: 'arr',
    iso6392T: 'aab',
    iso6391: 'aa'
  },
"""


@pytest.fixture
def packer(monkeypatch):
    tool = load_tool("pack_languages")
    monkeypatch.setattr(tool, "PREDOMINANT", {"zzy": "aab"})
    return tool


def test_packer_reads_the_source(packer):
    rows = {row[0]: row for row in packer.to_rows(packer.read_table(SOURCE))}
    assert rows["aab"] == ("aab", "aa", "arr", "individual", "Are'are")
    assert rows["zzy"] == ("zzy", "aa", "", "individual", "Tok's")
    assert rows["nah"][3] == "collective"


def test_packer_is_deterministic(packer, tmp_path, capsys):
    (tmp_path / "iso6393.js").write_text(SOURCE, encoding="utf-8")
    for name in ("one.xz", "two.xz"):
        packer.pack(tmp_path, tmp_path / name)
    assert (tmp_path / "one.xz").read_bytes() == (tmp_path / "two.xz").read_bytes()
    assert "9 codes" in capsys.readouterr().out


def test_packer_refuses_an_addition_that_the_source_has(packer, monkeypatch):
    monkeypatch.setattr(packer, "ADDITIONS", {"aab": ("individual", "Are'are")})
    with pytest.raises(SystemExit, match="outdated"):
        packer.to_rows(packer.read_table(SOURCE))


def test_packed_table_is_small():
    assert (ROOT / "mmbert_hf" / "data" / "languages.tsv.xz").stat().st_size <= 120_000
