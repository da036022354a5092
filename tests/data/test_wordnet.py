"""The embedded triplets and their packer."""

import doctest
import importlib.util
import json
import lzma
import sys
from itertools import product
from pathlib import Path

import pytest

from mmbert_hf.data import wordnet
from mmbert_hf.data.wordnet import WORDNET_DOMAINS, WORDNET_SPLITS, load_wordnet_triplets

ROOT = Path(__file__).parents[2]
DATA_FILE = ROOT / "mmbert_hf" / "data" / "wordnet_triplets.jsonl.xz"
NOTICE = "  1 This software and database is provided.  \n  2 WordNet 3.0 Copyright 2006 by Princeton University.  \n"


@pytest.fixture(scope="module")
def rows():
    """Domain and split -> rows."""
    return {key: load_wordnet_triplets(*key).to_list() for key in product(WORDNET_DOMAINS, WORDNET_SPLITS)}


@pytest.fixture(scope="module")
def packer():
    spec = importlib.util.spec_from_file_location("pack_wordnet", ROOT / "tools" / "pack_wordnet.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["pack_wordnet"] = module
    spec.loader.exec_module(module)
    return module


# --- the triplets


def test_docstring_examples():
    result = doctest.testmod(wordnet)
    assert result.failed == 0
    assert result.attempted > 0


def test_every_field_has_text(rows):
    for part in rows.values():
        assert len(part) > 1000
        assert all(text.strip() == text and text for row in part for text in row.values())
        assert all(len(row[column].split()) >= 5 for row in part for column in ("positive", "negative"))


def test_no_definition_holds_the_noun(rows):
    for row in (row for part in rows.values() for row in part):
        assert row["anchor"].lower() not in row["positive"].lower()
        assert row["anchor"].lower() not in row["negative"].lower()


def test_negatives_are_definitions_of_other_nouns_of_the_same_part(rows):
    for part in rows.values():
        positives = {row["positive"] for row in part}
        assert len(positives) == len({row["anchor"].lower() for row in part}) == len(part)
        assert all(row["negative"] != row["positive"] for row in part)
        assert {row["negative"] for row in part} <= positives


def test_parts_share_no_anchor_and_no_definition(rows):
    texts = [{row[column].lower() for row in part for column in row} for part in rows.values()]
    for number, part in enumerate(texts):
        for other in texts[:number]:
            assert not part & other


def test_first_line_says_where_it_is_from(rows):
    header = json.loads(lzma.decompress(DATA_FILE.read_bytes()).split(b"\n")[0])
    assert (header["source"], header["version"]) == ("WordNet", "3.0")
    assert header["rows"] == {f"{domain} {split}": len(part) for (domain, split), part in rows.items()}
    assert "Permission to use, copy, modify and distribute" in header["license"]
    assert header["license"].endswith("LICENSEE agrees to preserve same.")


def test_the_file_stays_small():
    assert DATA_FILE.stat().st_size < 450_000


def test_unknown_names_are_told_with_the_choices():
    with pytest.raises(ValueError, match="no domain 'plants': choose 'living' or 'general'"):
        load_wordnet_triplets("plants", "train")
    with pytest.raises(ValueError, match="no split 'dev': choose 'train', 'selection' or 'test'"):
        load_wordnet_triplets("living", "dev")


# --- the packer


def line(offset, file, words, gloss, pointers=()):
    """One line of data.noun."""
    names = " ".join(f"{word} 0" for word in words)
    targets = "".join(f" {symbol} {target} n 0000" for symbol, target in pointers)
    return f"{offset:08d} {file} n {len(words):02x} {names} {len(pointers):03d}{targets} | {gloss}  \n"


@pytest.fixture
def source(tmp_path):
    """Forty birds of one kind, forty tools of one kind, and one entry with a headword that is there already."""
    birds = [line(n, "05", [f"Bird_{n}x"], f"a bird that sings the song {n}", [("@", "00000900")]) for n in range(40)]
    tools = [
        line(100 + n, "06", [f"tool_{n}x", "thing"], f'a thing to turn screw {n}; "he turned it"', [("@", "00000901")])
        for n in range(40)
    ]
    same = line(304, "06", ["bird_0x"], "the same headword as the first bird has")
    (tmp_path / "data.noun").write_text(NOTICE + "".join([*birds, *tools, same]), encoding="latin-1")
    return tmp_path


def test_packer_parses_words_pointers_and_glosses(packer):
    gloss = 'small bird, the Common Swift (common swifts): sleeps on the air; "a common swift flew"'
    pointers = [("+", "00000007"), ("@i", "00000042"), ("@", "00000043")]
    entry = packer.parse_line(line(5, "05", ["common_swift"] + ["swift"] * 11, gloss, pointers))
    assert entry == packer.Entry("common swift", "small bird, the: sleeps on the air", "05", "00000042")
    assert (entry.domain, entry.family) == ("living", ("05", "00000042"))
    assert len(packer.parse_line(line(5, "05", ["swift"], "bird " * 50)).gloss.split()) == 32


@pytest.mark.parametrize(
    ("word", "gloss"),
    [
        ("ant", "an insect that eats the leaves of plants"),
        ("ox", "a strong animal that pulls a cart"),
        ("saw", "a saw that cuts wood"),
        ("plane", 'what some call a "smoother of wood"'),
    ],
)
def test_packer_leaves_out_what_does_not_serve(packer, word, gloss):
    assert packer.parse_line(line(5, "06", [word], gloss)) is None


def test_packer_pairs_siblings_within_a_split(packer, source, tmp_path, capsys):
    packer.pack(source, tmp_path / "one.xz")
    header, *records = map(json.loads, lzma.decompress((tmp_path / "one.xz").read_bytes()).decode().splitlines())
    assert {record["anchor"].split()[0] for record in records} == {"Bird", "tool"}
    assert len(records) == sum(header["rows"].values()) == 80
    splits = {record["positive"]: (record["domain"], record["split"]) for record in records}
    for record in records:
        assert splits[record["negative"]] == (record["domain"], record["split"])
        assert record["negative"] != record["positive"]
        assert '"' not in record["positive"]
    assert header["license"].splitlines()[1] == "WordNet 3.0 Copyright 2006 by Princeton University."
    assert "100.0% of the negatives are siblings" in capsys.readouterr().out


def test_packer_takes_families_whole(packer):
    entries = [packer.Entry(f"word {n}", f"gloss of number {n}", "05", f"{n % 7}") for n in range(70)]
    taken = packer.take_families(entries, 25)
    assert len(taken) == 30
    families = {entry.family for entry in taken}
    assert taken == [entry for entry in entries if entry.family in families]


def test_packer_falls_back_to_the_same_subject_field(packer):
    def entry(word, gloss, file):
        """In the split train, and in a family of its own."""
        entries = (packer.Entry(f"{word} {number}", gloss, file, "") for number in range(50))
        return next(entry for entry in entries if entry.split == "train")

    lone = entry("lone", "the only one of its kind", "05")
    same_field = entry("near", "one of another kind here", "05")
    other_field = entry("far", "one of another field altogether", "20")
    negatives = packer.with_negatives([lone, same_field, other_field])
    assert list(negatives) == [(lone, same_field.gloss, False), (same_field, lone.gloss, False)]


def test_packer_output_is_deterministic(packer, source, tmp_path):
    for name in ("one.xz", "two.xz"):
        packer.pack(source, tmp_path / name)
    assert (tmp_path / "one.xz").read_bytes() == (tmp_path / "two.xz").read_bytes()


def test_packer_refuses_another_folder(packer, tmp_path):
    with pytest.raises(SystemExit, match="expected the unpacked Debian package wordnet-base"):
        packer.read_source(tmp_path)
