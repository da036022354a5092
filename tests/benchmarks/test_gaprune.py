"""The parts of the pruning benchmark that decide what is measured: texts, splits, tables."""

import gzip
import json

import gaprune
import gaprune_data
import gaprune_quality
import gaprune_scoring
import pytest
import torch

from mmbert_hf.pruning import GAPruneConfig
from mmbert_hf.pruning.targets import find_targets
from mmbert_hf.pruning.triplets import read_triplets


@pytest.fixture
def dictionaries(tmp_path):
    """A dictionary of four entries and a lexicon of three nouns, in the formats of the packages."""
    folder = tmp_path / "usr/share/dictd"
    folder.mkdir(parents=True)
    text = (
        "cache\n\n   <hardware> A small fast {memory} that keeps a cache of what was used lately.\n\n   (1997-06-25)\n"
        "see also\n\n   {cache}\n"
        "heap\n\n   An area of memory from which blocks are allocated in any order.\n"
        "Heap\n\n   A tree in which every parent is at least as large as children.\n"
    )
    (folder / "foldoc.dict.dz").write_bytes(gzip.compress(text.encode()))
    nouns = tmp_path / "usr/share/wordnet"
    nouns.mkdir(parents=True)
    lines = [
        "  1 This software and database is being provided",
        '00015388 05 n 02 animal 0 beast 0 000 | a living thing that moves by itself; "the animal ran"',
        "00017222 20 n 01 sea_holly 0 000 | any sea holly of the coast with bluish flowers",
        "00021939 06 n 01 artifact 0 000 | a man-made object taken as a whole",
    ]
    (nouns / "data.noun").write_text("\n".join(lines), encoding="latin-1")
    return tmp_path


def test_entries_do_not_name_their_headword(dictionaries):
    entries = gaprune_data.read_foldoc(dictionaries)
    assert [entry.headword for entry in entries] == ["cache", "heap"], "pointers and repeated headwords are left out"
    assert entries[0].definition == "A small fast memory that keeps a of what was used lately."
    wordnet = gaprune_data.read_wordnet(dictionaries)
    assert {entry.headword: entry.definition for entry in wordnet["living"]} == {
        "animal": "a living thing that moves by itself",
        "sea holly": "any of the coast with bluish flowers",
    }
    assert [entry.headword for entry in wordnet["general"]] == ["artifact"]


def test_a_split_depends_on_the_headword_alone():
    words = [gaprune_data.Entry(f"word {number}", "d") for number in range(2000)]
    shares = {name: len(gaprune_data.in_split(words, name)) / 2000 for name in ("train", "selection", "test")}
    assert shares == pytest.approx({"train": 0.5, "selection": 0.2, "test": 0.3}, abs=0.03)
    assert all(word.split == gaprune_data.Entry(word.headword.upper(), "other").split for word in words)


def test_negatives_are_of_other_entries():
    entries = [gaprune_data.Entry(f"word {number}", f"definition {number}") for number in range(50)]
    columns = gaprune_data.triplets(entries, seed=3)
    assert columns["negative"] != columns["positive"]
    assert sorted(columns["negative"]) == sorted(columns["positive"])
    assert all(
        negative != positive for negative, positive in zip(columns["negative"], columns["positive"], strict=True)
    )


def record(domain, general):
    values = {"test/domain": domain, "test/general": general}
    return {"one_shot": values, "retrained": values}


def test_quality_table_pairs_queries_and_leaves_out_what_is_missing():
    cells = {}
    for seed in gaprune.SEEDS:
        cells[gaprune.Cell("minilm", seed, "magnitude", 0.5).file] = record([0.0, 1.0, 0.5], [1.0, 1.0, 1.0])
        cells[gaprune.Cell("minilm", seed, "obd", 0.5).file] = record([0.1, 1.1, 0.6], [1.0, 1.0, 1.0])
    cells[gaprune.Cell("minilm", 1, "wanda", 0.5).file] = record([1.0] * 3, [1.0] * 3)
    table = gaprune.quality_tables(cells)
    assert "| obd | 0.600 +- 0.000 / 1.000 +- 0.000" in table
    assert "+0.1000 (+0.1000 to +0.1000)" in table, "the same difference for every query: no spread"
    assert "wanda" not in table, "two seeds are missing"


def test_the_summary_counts_every_query_once():
    cells = {}
    for cell in gaprune_quality.cells():
        level = {"magnitude": 0.4, "dai-normalized": 0.5}.get(cell.method, 0.3) + (0.1 if cell.sparsity == 0.3 else 0.0)
        values = {"test/domain": [level, level + 0.2], "test/general": [1.0, 1.0]}
        if (cell.method, cell.seed, cell.embedder) != ("wanda", 3, "student"):
            cells[cell.file] = {"one_shot": values, "retrained": values}
    summary = gaprune.quality_summary(cells)
    assert "| dai-normalized | 0.6500 |  | 0.6500 |  |" in summary
    assert "| magnitude | 0.5500 | -0.1000 (-0.1000 to -0.1000)" in summary
    assert "wanda" not in summary, "a record is missing"
    assert gaprune.quality_summary({}) == ""
    assert GAPruneConfig().method == gaprune.DEFAULT


def test_scoring_table_says_ratios_to_the_published_layout():
    runs = {
        "one pass": [{"cpu_seconds": 1.0, "peak_mib": 50.0}] * 3,
        "published": [{"cpu_seconds": 10.0, "peak_mib": 100.0}] * 3,
    }
    table = gaprune_scoring.table({"runs": runs})
    assert "| one pass | 1.0 (1.0 - 1.0) | 0.100 | 50 | 0.50 |" in table


def test_published_layout_is_what_it_is_said_to_be(monkeypatch, bert_embedder, make_triplets):
    """Its mean gradients are those of the batch loss, and its squares those of means: not per triplet."""
    monkeypatch.setattr(gaprune_scoring, "NUM_SCORED", 4)
    monkeypatch.setattr(gaprune_scoring, "MICRO_BATCH", 2)
    triplets = read_triplets(make_triplets(4), "domain")
    layers = [target.name for target in find_targets(bert_embedder)]
    batches = list(gaprune_scoring._micro_batches(bert_embedder, triplets, layers, 32))
    assert len(batches) == 2
    squares = gaprune_scoring._fisher_run(bert_embedder, triplets, layers, 32)
    name = layers[0]
    torch.testing.assert_close(squares[name], sum(batch[name].square() for batch in batches))
    unpadded = list(gaprune_scoring._micro_batches(bert_embedder, triplets, layers, None))
    torch.testing.assert_close(unpadded[0][name], batches[0][name], rtol=1e-4, atol=1e-5)


def test_report_without_measurements_is_empty(tmp_path, capsys):
    assert gaprune.main(["report", "--output", str(tmp_path)]) == 0
    assert capsys.readouterr().out.strip() == ""
    (tmp_path / "scoring.json").write_text(
        json.dumps({"runs": {name: [{"cpu_seconds": 1, "peak_mib": 1}] for name in ("one pass", "published")}})
    )
    assert "one pass" in gaprune.report(tmp_path)
