"""Tokenising: the tokenizer's own ids, written once, found again, and never half written."""

import doctest
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmbert_hf.data import load_udhr, token_counts, tokenising
from mmbert_hf.data.sources import Source
from mmbert_hf.data.token_documents import TokenDocuments
from mmbert_hf.data.tokenising import TextEncoder, tokenize_source


@pytest.fixture(scope="module")
def texts():
    """Real text in many scripts, and what is awkward: special tokens, runs of spaces, emoji, one character."""
    corpus = [text.text(range(3)) for text in load_udhr(["eng", "fao", "rus", "tir", "jpn", "arb", "hin"]).values()]
    return [
        *corpus,
        "a",
        "  two   spaces \n\n and\ttabs ",
        "an <eos> and a <mask> within",
        "👩‍👩‍👧 é e\u0301",
        "x" * 5000,
    ]


@pytest.fixture(scope="module")
def encoder(tokenizer):
    return TextEncoder(tokenizer)


@pytest.fixture
def source(tmp_path, texts):
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return Source("mul", str(path))


@pytest.fixture
def forbid_reading(monkeypatch):
    """After it is called, a source must not be read."""

    def forbid(*arguments, **options):
        pytest.fail("the source was read again")

    return lambda: monkeypatch.setattr(tokenising, "iter_documents", forbid)


@pytest.mark.parametrize("module", [tokenising, token_counts])
def test_docstring_examples(module):
    assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize("num_proc", [1, 2])
def test_ids_are_those_of_the_tokenizer_in_order(source, texts, tokenizer, tmp_path, num_proc, monkeypatch):
    monkeypatch.setattr(tokenising, "DOCUMENTS_PER_BATCH", 2)
    documents = tokenize_source(source, tokenizer, tmp_path / "cache", num_proc=num_proc)
    expected = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    assert [documents.tokens(index).tolist() for index in range(len(documents))] == expected
    documents.verify()


def test_padding_and_truncation_of_the_last_call_do_not_reach_the_store(source, texts, tokenizer, tmp_path):
    first = tokenize_source(source, tokenizer, tmp_path / "cache")
    tokenizer(texts, padding=True, truncation=True, max_length=5)
    assert tokenizer.backend_tokenizer.truncation
    again = tokenize_source(source, tokenizer, tmp_path / "cache", overwrite=True)
    assert again.fingerprint == first.fingerprint
    assert again.folder == first.folder


def test_second_call_opens_the_store(source, encoder, tmp_path, forbid_reading):
    first = tokenize_source(source, encoder, tmp_path / "cache")
    forbid_reading()
    second = tokenize_source(source, encoder, tmp_path / "cache")
    assert (second.folder, second.fingerprint) == (first.folder, first.fingerprint)


def test_changed_files_settings_or_tokenizer_make_another_store(source, encoder, tokenizer, tmp_path):
    from mmbert_hf import MMBertTokenizer

    first = tokenize_source(source, encoder, tmp_path / "cache")
    other = MMBertTokenizer.train(["en to tre fire fem"] * 3, vocab_size=275)
    assert tokenize_source(source, other, tmp_path / "cache").folder != first.folder
    with open(source.location, "a", encoding="utf-8") as file:
        file.write('{"text": "one more"}\n')
    longer = tokenize_source(source, encoder, tmp_path / "cache")
    assert longer.folder != first.folder
    assert len(longer) == len(first) + 1
    assert len(TokenDocuments.open(first.folder)) == len(first)


@pytest.mark.parametrize("max_tokens", [1, 700, 701, 10**9])
def test_reading_stops_at_max_tokens(source, encoder, tmp_path, max_tokens, monkeypatch):
    monkeypatch.setattr(tokenising, "DOCUMENTS_PER_BATCH", 3)
    whole = tokenize_source(source, encoder, tmp_path / "cache")
    part = tokenize_source(Source("mul", source.location, max_tokens=max_tokens), encoder, tmp_path / "cache")
    assert part.num_tokens == min(max_tokens, whole.num_tokens)
    flat = [np.concatenate([d.tokens(index) for index in range(len(d))]) for d in (part, whole)]
    np.testing.assert_array_equal(flat[0], flat[1][: part.num_tokens])


def test_ready_made_ids_are_checked_against_the_vocabulary(encoder, tmp_path):
    path = tmp_path / "ids.parquet"
    pq.write_table(pa.table({"input_ids": [[5, 6], [encoder.vocab_size - 1]]}), path)
    documents = tokenize_source(Source("fao", str(path)), encoder, tmp_path / "cache")
    assert documents.tokens(1).tolist() == [encoder.vocab_size - 1]
    pq.write_table(pa.table({"input_ids": [[5, 6], [encoder.vocab_size]]}), path)
    with pytest.raises(ValueError, match=rf"token id {encoder.vocab_size}, but the vocabulary ends at"):
        tokenize_source(Source("fao", str(path)), encoder, tmp_path / "cache")


def test_documents_without_tokens_are_dropped_and_a_source_of_them_is_refused(tmp_path, caplog):
    from tokenizers import Tokenizer, models, normalizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1}, unk_token="<unk>"))
    backend.normalizer = normalizers.Replace("x", "")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    path = tmp_path / "a.txt"
    path.write_text("x\na\nxx\n")
    documents = tokenize_source(Source("fao", str(path)), tokenizer, tmp_path / "cache")
    assert [documents.tokens(index).tolist() for index in range(len(documents))] == [[1]]
    assert "dropped 2 documents without tokens" in caplog.text
    path.write_text("x\n")
    with pytest.raises(ValueError, match=r"has no document with tokens \(1 have none\)"):
        tokenize_source(Source("fao", str(path)), tokenizer, tmp_path / "cache")


def test_a_failed_run_leaves_no_store_and_the_next_one_starts_anew(source, encoder, tmp_path):
    good = Path(source.location).read_text(encoding="utf-8")
    with open(source.location, "a", encoding="utf-8") as file:
        file.write('{"text": broken')
    with pytest.raises(ValueError, match="not JSON"):
        tokenize_source(source, encoder, tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("meta.json"))
    Path(source.location).write_text(good, encoding="utf-8")
    tokenize_source(source, encoder, tmp_path / "cache").verify()


def test_a_damaged_store_is_refused_and_overwrite_mends_it(source, encoder, tmp_path):
    documents = tokenize_source(source, encoder, tmp_path / "cache")
    shard = next(documents.folder.glob("*.arrow"))
    shard.write_bytes(shard.read_bytes()[:-8])
    with pytest.raises(ValueError, match=r"is damaged: it has .*overwrite=True"):
        tokenize_source(source, encoder, tmp_path / "cache")
    mended = tokenize_source(source, encoder, tmp_path / "cache", overwrite=True)
    assert mended.fingerprint == documents.fingerprint
    mended.verify()


def test_two_at_once_write_one_store(source, encoder, tmp_path, monkeypatch):
    read = []
    both_waiting = threading.Barrier(2)
    real, real_fingerprint = tokenising.iter_documents, Source.fingerprint

    def counted(source):
        read.append(source)
        return real(source)

    def together(source):
        both_waiting.wait(timeout=30)
        return real_fingerprint(source)

    monkeypatch.setattr(tokenising, "iter_documents", counted)
    monkeypatch.setattr(Source, "fingerprint", together)
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(tokenize_source(source, encoder, tmp_path / "cache")))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert len(read) == 1
    assert results[0].fingerprint == results[1].fingerprint


KILLED = """
import os, signal, sys
from mmbert_hf import MMBertTokenizer
from mmbert_hf.data import tokenising, token_store
from mmbert_hf.data.sources import Source
token_store.TOKENS_PER_RECORD_BATCH = 100
tokenising.DOCUMENTS_PER_BATCH = 1
real = tokenising.iter_documents
def dying(source):
    for number, document in enumerate(real(source)):
        if number == 6:
            os.kill(os.getpid(), signal.SIGKILL)
        yield document
tokenising.iter_documents = dying
tokenising.tokenize_source(Source("mul", sys.argv[1]), MMBertTokenizer.from_pretrained(sys.argv[2]), sys.argv[3])
"""


def test_a_killed_run_is_started_anew(source, tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    arguments = [source.location, str(tmp_path / "tokenizer"), str(tmp_path / "cache")]
    done = subprocess.run([sys.executable, "-c", KILLED, *arguments], capture_output=True, env={**os.environ})
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert list((tmp_path / "cache").glob("*.partial/*.arrow"))  # it was in the middle of it
    documents = tokenize_source(source, tokenizer, tmp_path / "cache")
    documents.verify()
    assert not list((tmp_path / "cache").glob("*.partial"))
    assert documents.fingerprint == tokenize_source(source, tokenizer, tmp_path / "other").fingerprint


def test_wrong_arguments(source, tokenizer, tmp_path):
    with pytest.raises(ValueError, match="num_proc must be at least 1, got 0"):
        tokenize_source(source, tokenizer, tmp_path, num_proc=0)
    with pytest.raises(TypeError, match="expected a tokenizer of transformers with a `tokenizers` backend, got str"):
        tokenize_source(source, "name", tmp_path)


@pytest.mark.parametrize("value", ["", "M", "-5", "0", "1.5", "12X", 0, -1, True, None, "0.0000001M", float("nan")])
def test_wrong_token_counts_are_refused(value):
    with pytest.raises(ValueError, match="expected a number of tokens such as"):
        token_counts.parse_tokens(value)
