import doctest
import gzip
import json
import logging
import lzma
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from datasets import Dataset, DatasetDict

from mmbert_hf.data.rows import FORMATS
from mmbert_hf.pruning import triplets
from mmbert_hf.pruning.triplets import (
    add_hard_negatives,
    check_different,
    load_triplets,
    read_triplets,
    select_triplets,
)
from mmbert_hf.testing import LoopbackHub

ROWS = [
    {"anchor": "ant", "positive": "a social insect", "negative": "a small bird"},
    {"anchor": "oak", "positive": "a tall tree", "negative": "NA"},
    {"anchor": "æðr", "positive": "a duck,\nof the sea", "negative": "null"},
]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def test_docstring_examples():
    result = doctest.testmod(triplets)
    assert result.attempted >= len(triplets.__all__)
    assert result.failed == 0


# --- reading and checking


@pytest.mark.parametrize("make", [list, Dataset.from_list])
def test_reading_keeps_texts_and_order(make):
    read = read_triplets(make([{**row, "score": 1.0} for row in ROWS]))
    assert (read.anchors, read.positives, read.negatives) == (
        ["ant", "oak", "æðr"],
        ["a social insect", "a tall tree", "a duck,\nof the sea"],
        ["a small bird", "NA", "null"],
    )
    assert len(read) == 3
    assert all(isinstance(column, list) for column in (read.anchors, read.positives, read.negatives))


def test_fingerprint_counts_content_order_and_borders():
    row = {"anchor": "ab", "positive": "c", "negative": "d"}
    prints = {
        read_triplets(rows).fingerprint
        for rows in (ROWS, ROWS[::-1], ROWS[:2], [row], [{**row, "anchor": "a", "positive": "bc"}])
    }
    assert len(prints) == 5
    assert read_triplets(Dataset.from_list(ROWS)).fingerprint == read_triplets(ROWS).fingerprint
    swapped = [{**row, "positive": row["negative"], "negative": row["positive"]} for row in ROWS]
    assert read_triplets(swapped).fingerprint not in prints


@pytest.mark.parametrize("make", [list, Dataset.from_list])
def test_missing_columns_are_named(make):
    pairs = make([{"anchor": "a", "positive": "b"}])
    with pytest.raises(
        ValueError, match=r"general set: no column negative among \['anchor', 'positive'\]; add_hard_neg"
    ):
        read_triplets(pairs, "general")
    with pytest.raises(
        ValueError, match=r"domain set: no column anchor, positive among \['query', 'negative'\]; rename"
    ):
        read_triplets(make([{"query": "a", "negative": "b"}]))


def test_empty_sets_are_refused():
    with pytest.raises(ValueError, match="domain set: it is empty"):
        read_triplets([])
    with pytest.raises(ValueError, match="domain set: it is empty"):
        read_triplets(Dataset.from_list(ROWS).select([]))


@pytest.mark.parametrize("wrong", ["", " \n\t", None, float("nan"), 7, ["a"]])
def test_values_that_are_no_text_are_counted(wrong):
    rows = [{**ROWS[0], "positive": wrong} if number in (1, 3, 4, 5) else ROWS[0] for number in range(8)]
    with pytest.raises(
        ValueError, match=r"4 of 8 values of 'positive' are no text \(row 1: .*, row 3: .*, row 4: .*\.\.\.\)"
    ):
        read_triplets(rows)


def test_columns_of_numbers_and_nulls_of_a_dataset():
    columns = {"anchor": ["a", "b"], "positive": ["c", None], "negative": ["d", "e"]}
    with pytest.raises(ValueError, match=r"1 of 2 values of 'positive' are no text \(row 1: None\)"):
        read_triplets(Dataset.from_dict(columns))
    with pytest.raises(ValueError, match=r"2 of 2 values of 'anchor' are no text \(row 0: nan, row 1: 1.0\)"):
        read_triplets(Dataset.from_dict({**columns, "anchor": [float("nan"), 1.0]}))


def test_other_things_than_datasets_are_refused():
    with pytest.raises(TypeError, match=r"got DatasetDict with the keys \['test', 'train'\]; pass one split"):
        read_triplets(DatasetDict(train=Dataset.from_list(ROWS), test=Dataset.from_list(ROWS)))
    with pytest.raises(TypeError, match="got str; load_triplets reads files"):
        read_triplets("triplets.jsonl")
    with pytest.raises(TypeError, match="got IterableDataset"):
        read_triplets(Dataset.from_list(ROWS).to_iterable_dataset())


def test_two_sets_that_are_the_same_are_refused(caplog):
    with pytest.raises(ValueError, match="hold the same 3 triplets"):
        check_different(read_triplets(ROWS), read_triplets(Dataset.from_list(ROWS)))
    with pytest.raises(ValueError, match="hold the same 3 triplets"):
        check_different(read_triplets(ROWS), read_triplets(ROWS[::-1]))
    others = [{**row, "anchor": row["anchor"] + "s"} for row in ROWS]
    with caplog.at_level(logging.WARNING, logger=triplets.__name__):
        check_different(read_triplets(ROWS), read_triplets(others))
        assert not caplog.messages
        check_different(read_triplets(ROWS), read_triplets([ROWS[1], *others]))
    assert caplog.messages == ["1 triplets are in both sets: 33.3 % of the domain set and 25.0 % of the general set"]


# --- loading


def write(path):
    """The rows as a file of the kind that its name says."""
    dataset = Dataset.from_list(ROWS)
    lines = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    if path.suffix == ".csv":
        dataset.to_csv(path, index=False)
    elif path.suffix == ".parquet":
        dataset.to_parquet(path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(ROWS), encoding="utf-8")
    else:
        compress = {".gz": gzip.compress, ".xz": lzma.compress}.get(path.suffix, bytes)
        path.write_bytes(compress(lines))


# datasets 4 leaves a CSV file open
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("suffix", sorted(FORMATS))
@pytest.mark.parametrize("kind", [str, lambda path: path])
def test_files_load_as_they_were_written(tmp_path, suffix, kind):
    path = tmp_path / f"own.set{suffix}"
    write(path)
    assert load_triplets(kind(path)).to_list() == ROWS


def test_files_that_are_not_there_are_told_at_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for source in ("data/triplets.jsonl", "./triplets", "triplets", "../own/set", "owner/name:", tmp_path / "owner"):
        with pytest.raises(FileNotFoundError, match=r"there is no file '.*'; a data set on the Hub is owner/name"):
            load_triplets(source)
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(ValueError, match=r"'folder.jsonl' is a folder: name a file"):
        load_triplets("folder.jsonl")
    (tmp_path / "triplets.txt").write_text("x")
    with pytest.raises(ValueError, match=r"'triplets.txt' is no file of triplets: its name must end in \.jsonl, "):
        load_triplets("triplets.txt")


def test_broken_files_are_named(tmp_path):
    path = tmp_path / "broken.jsonl"
    path.write_text('{"anchor": "a", "pos', encoding="utf-8")
    with pytest.raises(ValueError, match=r"broken.jsonl' cannot be read as json: "):
        load_triplets(path)
    path.write_text("", encoding="utf-8")
    with pytest.raises(ValueError, match=r"broken.jsonl' is empty"):
        load_triplets(path)


HUB_SCRIPT = """
    import json, sys
    from datasets import Dataset
    from mmbert_hf.pruning.triplets import load_triplets

    dataset = Dataset.from_list(json.loads(sys.argv[1]))
    dataset.push_to_hub("loopback/triplets", split="train")
    dataset.select([1]).push_to_hub("loopback/triplets", split="test")
    print(json.dumps([load_triplets("loopback/triplets" + split).to_list() for split in ("", ":test")]))
    """


def test_names_on_the_hub(tmp_path):
    with LoopbackHub() as hub:  # its address is read when the client is imported: a process of its own
        environment = {**os.environ, **hub.environment(), "HF_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", textwrap.dedent(HUB_SCRIPT), json.dumps(ROWS)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [ROWS, ROWS[1:2]]


# --- choosing


class Points:
    """Embeds a text of numbers as these numbers; a whole model would only hide where the points lie."""

    def encode_query(self, texts, **options):
        assert options["normalize_embeddings"]
        points = np.array([[float(number) for number in text.split()] for text in texts])
        return points / np.linalg.norm(points, axis=1, keepdims=True)


def at_angles(*degrees):
    angles = np.radians(degrees)
    return Dataset.from_list([{"anchor": f"{np.cos(a)!s} {np.sin(a)!s}", "number": i} for i, a in enumerate(angles)])


def test_of_each_cluster_the_row_nearest_its_centroid_is_chosen():
    dataset = at_angles(100, 0, 10, 4, 260, 90, 95, 270, 264)
    choices = [select_triplets(dataset, Points(), 3, seed=seed)["number"][:] for seed in range(5)]
    assert all(chosen == sorted(set(chosen)) and len(chosen) == 3 for chosen in choices)
    assert [3, 6, 8] in choices  # centroids start at random rows, which are not of three clusters under every seed


def test_equal_anchors_do_not_make_rows_fewer():
    dataset = at_angles(*[0] * 6, *[90] * 6, 180)
    chosen = select_triplets(dataset, Points(), 5)
    assert len(set(chosen["number"])) == 5
    assert len(set(chosen["anchor"])) == 3


def test_a_model_chooses_the_same_rows_again(bert_embedder, make_triplets):
    dataset = make_triplets(40)
    first, again, other = (select_triplets(dataset, bert_embedder, 12, seed=seed, batch_size=7) for seed in (0, 0, 1))
    assert first.to_list() == again.to_list() != other.to_list()
    assert first.column_names == ["anchor", "positive", "negative"]
    rows = dataset.to_list()
    places = [rows.index(row) for row in first.to_list()]
    assert places == sorted(set(places))
    assert len(places) == 12


def test_small_sets_are_taken_whole_and_said_so(caplog):
    dataset = at_angles(0, 90)
    with caplog.at_level(logging.WARNING, logger=triplets.__name__):
        assert select_triplets(dataset, Points(), 2) is dataset
        assert not caplog.messages
        assert select_triplets(dataset, Points()) is dataset
    assert caplog.messages == ["5000 triplets asked for, the set has 2: all are taken"]


def test_bad_choices_are_refused(bert_embedder, make_triplets):
    with pytest.raises(ValueError, match="num_triplets must be at least 1, got 0"):
        select_triplets(at_angles(0, 90), Points(), 0)
    with pytest.raises(ValueError, match="no column anchor"):
        select_triplets(Dataset.from_dict({"query": ["a"]}), Points(), 1)
    bert_embedder[0].auto_model.encoder.layer[1].output.dense.weight.data[:] = float("nan")
    with pytest.raises(ValueError, match=r"embeddings of 6 anchors are not finite \(rows \[0, 1, 2, 3, 4\]\)"):
        select_triplets(make_triplets(6), bert_embedder, 2)


# --- hard negatives


def test_hard_negatives_are_the_nearest_other_positives(bert_embedder, make_triplets, capfd):
    pairs = make_triplets(9).add_column("score", [1.0] * 9)
    pairs = pairs.remove_columns("negative")
    mined = add_hard_negatives(pairs, bert_embedder)
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")
    similarity = bert_embedder.encode(pairs["anchor"][:]) @ bert_embedder.encode(pairs["positive"][:]).T
    np.fill_diagonal(similarity, -np.inf)
    expected = [pairs["positive"][int(best)] for best in similarity.argmax(axis=1)]
    assert mined.to_dict() == {"anchor": pairs["anchor"][:], "positive": pairs["positive"][:], "negative": expected}
    assert read_triplets(mined).negatives == expected


def test_anchors_of_several_positives_take_none_of_their_own(bert_embedder):
    texts = {"anchor": ["law", "law", "law", "peace"], "positive": ["court", "judge", "judge", "music food"]}
    rows = add_hard_negatives(Dataset.from_dict(texts), bert_embedder).to_list()
    assert [(row["anchor"], row["positive"]) for row in rows] == [
        ("law", "court"),
        ("law", "judge"),
        ("peace", "music food"),
    ]
    assert [row["negative"] for row in rows[:2]] == ["music food"] * 2
    assert rows[2]["negative"] in ("court", "judge")


def test_anchors_without_negative_are_dropped_and_counted(bert_embedder, make_triplets, caplog):
    pairs = make_triplets(9).remove_columns("negative")
    similarity = bert_embedder.encode(pairs["anchor"][:]) @ bert_embedder.encode(pairs["positive"][:]).T
    np.fill_diagonal(similarity, np.inf)
    lowest = np.sort(similarity.min(axis=1))
    limit = float(lowest[3] + lowest[4]) / 2  # four anchors have another positive below it
    with caplog.at_level(logging.WARNING, logger=triplets.__name__):
        mined = add_hard_negatives(pairs, bert_embedder, max_score=limit, range_max=9)
    kept = [anchor for anchor, low in zip(pairs["anchor"], similarity.min(axis=1), strict=True) if low < limit]
    assert mined["anchor"][:] == kept
    assert caplog.messages == ["5 of 9 anchors are dropped: no negative was found"]
    with pytest.raises(ValueError, match=r"no negative was found for any of 9 anchors: .* \{'max_score': -1.5"):
        add_hard_negatives(pairs, bert_embedder, max_score=-1.5)


def test_bad_pairs_are_refused(bert_embedder, make_triplets):
    with pytest.raises(ValueError, match="has a column 'negative' already"):
        add_hard_negatives(make_triplets(3), bert_embedder)
    pairs = make_triplets(3).remove_columns("negative")
    with pytest.raises(ValueError, match="num_negatives, output_format cannot be set"):
        add_hard_negatives(pairs, bert_embedder, num_negatives=2, output_format="n-tuple")
    with pytest.raises(ValueError, match="there are 0 texts beside an anchor's own positives"):
        add_hard_negatives(pairs.select([0]), bert_embedder)
    with pytest.raises(ValueError, match="there are 2 texts beside"):
        add_hard_negatives(pairs, bert_embedder, range_min=2)
    with pytest.raises(ValueError, match="pair set: no column positive"):
        add_hard_negatives(Dataset.from_dict({"anchor": ["a"]}), bert_embedder)


def test_only_progress_bars_are_left_out(capsys):
    from tqdm import trange

    stream = triplets._WithoutProgressBars(sys.stderr)
    for _ in trange(3, file=stream):
        pass
    print("a message", file=stream)
    stream.write("a warning\n")
    assert capsys.readouterr().err == "a messagea warning\n"
