"""Sources: real files in every format, damaged ones, and a data set streamed from a Hub on loopback."""

import doctest
import gzip
import json
import os
import subprocess
import sys
import textwrap

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmbert_hf.data import sources
from mmbert_hf.data.sources import Source, iter_documents, parse_source
from mmbert_hf.testing import LoopbackHub

TEXTS = [f"Skjal {number}: øll menniskju eru fødd fræls\n\tog jøvn" for number in range(30)]


def write_lines(path, texts, opener=open):
    with opener(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": text, "id": 1}, ensure_ascii=False) + "\n" for text in texts)
    return str(path)


def write_parquet(path, texts, column="text", **options):
    pq.write_table(pa.table({"id": list(range(len(texts))), column: texts}), path, **options)
    return str(path)


def no_sleep(seconds):
    pytest.fail(f"waited {seconds} s for something that cannot get better")


def read(location, **fields):
    return list(iter_documents(Source("fao", location, **fields), sleep=no_sleep))


def test_docstring_examples():
    assert doctest.testmod(sources).failed == 0


def test_every_format_gives_the_same_documents(tmp_path):
    flat = [text.replace("\n", " ") for text in TEXTS]
    (tmp_path / "a.txt").write_text("\ufeff" + "\r\n\r\n".join(flat), encoding="utf-8")
    assert read(str(tmp_path / "a.txt")) == flat
    assert read(write_lines(tmp_path / "a.jsonl", TEXTS)) == TEXTS
    assert read(write_lines(tmp_path / "a.jsonl.gz", TEXTS, gzip.open)) == TEXTS
    assert read(write_parquet(tmp_path / "a.parquet", TEXTS, row_group_size=7)) == TEXTS
    assert read(write_parquet(tmp_path / "b.parquet", TEXTS, "body"), text_column="body") == TEXTS


def test_patterns_folders_and_lists_are_read_in_order(tmp_path):
    (tmp_path / "deep").mkdir()
    write_lines(tmp_path / "2.jsonl", TEXTS[5:9])
    write_lines(tmp_path / "1.jsonl", TEXTS[:5])
    write_parquet(tmp_path / "deep" / "3.parquet", TEXTS[9:])
    (tmp_path / "README.md").write_text("not read")
    assert read(str(tmp_path)) == TEXTS
    assert read(f"{tmp_path}/*.jsonl") == TEXTS[:9]
    assert read((f"{tmp_path}/2.jsonl", f"{tmp_path}/1.jsonl")) == TEXTS[5:9] + TEXTS[:5]


def test_ready_made_ids_are_taken_as_they_are(tmp_path):
    ids = [[5, 6, 7], [8], list(range(90))]
    for found in (
        read(write_parquet(tmp_path / "ids.parquet", ids, "input_ids")),
        read(_write_json(tmp_path / "ids.jsonl", [{"input_ids": document} for document in ids])),
    ):
        assert [document.tolist() for document in found] == ids
        assert all(document.dtype == np.int32 for document in found)


def _write_json(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return str(path)


def test_blank_documents_are_skipped_with_one_warning(tmp_path, caplog):
    path = write_lines(tmp_path / "a.jsonl", ["one", "", " \n\t", "two"])
    assert read(path) == ["one", "two"]
    assert [record.message for record in caplog.records] == [f"'fao' from {path}: skipped 2 documents without text"]
    with pytest.raises(ValueError, match=r"has no document with text \(2 are blank\)"):
        read(write_lines(tmp_path / "b.jsonl", ["", " "]))
    (tmp_path / "c.txt").write_text("")
    with pytest.raises(ValueError, match="has no document with text"):
        read(str(tmp_path / "c.txt"))


# Damage: never tried again, always with file and place


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (['{"text": "a"}', '{"text": "b'], "line 2: not JSON"),
        (['{"text": "a"}', "", '["b"]'], "line 3: expected an object, got list"),
        (['{"body": "a"}'], r"line 1: expected 'text' \(or 'input_ids'\), got \['body'\]"),
        (['{"text": "a"}', '{"text": null}'], r"a\.jsonl, row 2: expected a text in 'text' .* got nothing"),
        (['{"text": 5}'], "row 1: expected a text in 'text' .* got int 5"),
        (['{"text": "\\ud800"}'], "row 1: half of a surrogate pair at character 0"),
        (['{"input_ids": [1, -2]}'], r"row 1 has ids from -2 to 1"),
        (['{"input_ids": [1, 2.5]}'], r"row 1 has float64 ids"),
    ],
)
def test_broken_lines_are_named(tmp_path, lines, message):
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    with pytest.raises((ValueError, TypeError), match=message):
        read(str(tmp_path / "a.jsonl"))


def test_text_in_another_encoding_is_named(tmp_path):
    (tmp_path / "a.txt").write_bytes("fyrst\ngóðan".encode("latin-1"))
    with pytest.raises(ValueError, match=r"a.txt, line 2 is not UTF-8: byte 0xf3 at offset 1"):
        read(str(tmp_path / "a.txt"))


def test_truncated_gzip_is_named(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "a.jsonl.gz"
    write_lines(path, ["".join(map(chr, rng.integers(97, 122, size=3000))) for _ in range(100)], gzip.open)
    path.write_bytes(path.read_bytes()[:-20_000])
    documents = iter_documents(Source("fao", str(path)), sleep=no_sleep)
    assert next(documents).isascii()
    with pytest.raises(ValueError, match=r"a.jsonl.gz is truncated or damaged after line \d\d "):
        list(documents)
    path.write_bytes(b"no gzip at all")
    with pytest.raises(ValueError, match=r"damaged after line 0"):
        read(str(path))


def test_truncated_and_corrupt_parquet_is_named(tmp_path):
    rng = np.random.default_rng(0)
    texts = ["".join(map(chr, rng.integers(97, 122, size=500))) for _ in range(4000)]
    path = tmp_path / "a.parquet"
    write_parquet(path, texts, row_group_size=1000, compression="snappy", use_dictionary=False)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1000])
    with pytest.raises(ValueError, match=r"a.parquet is truncated or damaged after row 0"):
        read(str(path))
    middle = len(whole) * 5 // 8  # in the third row group
    path.write_bytes(whole[:middle] + bytes(300_000) + whole[middle + 300_000 :])
    with pytest.raises(ValueError, match=r"a.parquet is truncated or damaged after row [12]\d\d\d"):
        read(str(path))


def test_parquet_without_the_column_is_named(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", TEXTS, "body")
    with pytest.raises(ValueError, match=r"expected 'text' \(or 'input_ids'\), got \['body', 'id'\]; set text_column"):
        read(path)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("fo", "a.txt"), ValueError, "did you mean 'fao'"),
        (("fao", ""), ValueError, "must be a path"),
        (("fao", ()), ValueError, "must be a path"),
        (("fao", "a.txt", "fao_Latn"), ValueError, "config of 'fao' from a.txt .* is read from files: drop it"),
    ],
)
def test_bad_sources_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        Source(*arguments)


def test_files_that_are_missing_or_of_another_kind_are_refused_before_reading(tmp_path):
    write_lines(tmp_path / "a.jsonl", TEXTS)
    with pytest.raises(FileNotFoundError, match=r"no file matches '.*missing.txt'"):
        read((str(tmp_path / "a.jsonl"), str(tmp_path / "missing.txt")))
    (tmp_path / "a.json").write_text("[]")
    with pytest.raises(ValueError, match=r"a.json cannot be read, expected one of .*name it .jsonl"):
        read(str(tmp_path / "a.json"))
    with pytest.raises(ValueError, match=r"max_tokens of 'fao' from a.txt must be at least 1, got 0"):
        Source("fao", "a.txt", max_tokens=0)


def test_command_line_form():
    assert parse_source("fao=a=b.jsonl") == Source("fao", "a=b.jsonl")
    assert parse_source("fao=owner/name:fao_Latn") == Source("fao", "hf://owner/name", config="fao_Latn")
    for wrong in ("fao", "=a.txt", "fao="):
        with pytest.raises(ValueError, match="expected LANGUAGE=LOCATION"):
            parse_source(wrong)


def test_fingerprint_follows_files_and_settings(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", TEXTS)
    first = Source("fao", path).fingerprint()
    assert Source("dan", path).fingerprint() == first
    assert Source("fao", path, max_tokens=5).fingerprint() != first
    assert Source("fao", path, text_column="body").fingerprint() != first
    stat = os.stat(path)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert Source("fao", path).fingerprint() != first


# The Hub

STREAM = """
import json, sys, time
import datasets.config
datasets.config.STREAMING_READ_RETRY_INTERVAL = datasets.config.STREAMING_OPEN_RETRY_INTERVAL = 0
from datasets import Dataset
from huggingface_hub import HfApi
from mmbert_hf.data import reading
from mmbert_hf.data.sources import Source, SourceError, iter_documents
from mmbert_hf.data.tokenising import tokenize_source
from mmbert_hf import MMBertTokenizer
reading.ROWS_PER_STATE = 10

texts = [f"text {number}" for number in range(90)]
Dataset.from_dict({"text": texts}).push_to_hub("loopback/web", config_name="dead")
Dataset.from_dict({"text": texts, "id": list(range(90))}).push_to_hub("loopback/web", config_name="fao_Latn", num_shards=3)
source = Source("fao", "loopback/web", config="fao_Latn")
result = {"streamed": list(iter_documents(source)) == texts}
sha = HfApi().dataset_info("loopback/web").sha
result["pinned"] = source.pinned().revision == sha and source.fingerprint() == source.pinned().fingerprint()

# A stream that dies in the middle: the real one, cut by an error of the connection after row 47 and after row 60
rows = reading.HubRows("loopback/web", "fao_Latn", "train", sha, "text")
opened, delivered = [], []
def dying(skip):
    opened.append(skip)
    for row in rows(skip):
        yield row
        if row.number in (47, 60) and row.number not in delivered:
            delivered.append(row.number)
            raise ConnectionResetError("wire cut")
again = list(reading.resume_on_failure(dying, "web", sleep=lambda seconds: None))
result["resumed"] = [row.value for row in again] == texts and [row.number for row in again] == list(range(1, 91))
result["opened"] = opened
result["state"] = rows._position

def message(source, **options):
    try:
        list(iter_documents(source, sleep=lambda seconds: result.setdefault("waits", []).append(seconds), **options))
    except Exception as error:
        return f"{type(error).__name__}: {error}"
result["no config"] = message(Source("fao", "loopback/web", config="nob_Latn"))
result["no set"] = message(Source("fao", "loopback/nothing"))
result["no column"] = message(Source("fao", "loopback/web", config="fao_Latn", text_column="body"))

# A data set whose file the hub never gives: the clients try again and again, without waiting here, then so do we
time.sleep = lambda seconds: None
result["dead"] = message(Source("fao", "loopback/web", config="dead"))

tokenizer = MMBertTokenizer.train(texts, vocab_size=280)
first = tokenize_source(source, tokenizer, sys.argv[1])
second = tokenize_source(Source("fao", "loopback/web", config="fao_Latn", revision=sha), tokenizer, sys.argv[1])
result["cached"] = first.folder == second.folder and len(first) == 90
print(json.dumps(result))
"""


def run_client(hub, script, *arguments):
    environment = {**os.environ, **hub.environment(), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_data_sets_on_the_hub_are_streamed_and_read_on(tmp_path):
    with LoopbackHub() as hub:
        hub.fail_next("cut", method="GET", path_contains="/dead/train-", times=100_000)
        result = run_client(hub, STREAM, tmp_path)
    assert result["streamed"]
    assert result["pinned"]
    assert result["resumed"]
    assert result["opened"] == [0, 47, 60]
    assert result["state"] == 90
    assert "ValueError" in result["no config"]
    assert "fao_Latn" in result["no config"]  # what there is
    assert result["no set"].startswith("SourceError: 'fao' from loopback/nothing cannot be read")
    assert result["no column"].startswith("ValueError: hf://loopback/web (fao_Latn): expected 'body' (or 'input_ids')")
    assert result["dead"].startswith(
        "SourceError: 'fao' from loopback/web (dead) broke 5 times in a row, with 0 documents"
    )
    assert result["waits"] == [1, 2, 4, 8]  # by that one alone
    assert result["cached"]
