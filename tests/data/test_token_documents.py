"""Documents in memory and in stores: what is read back, what is refused, and what stays open."""

import copy
import doctest
import multiprocessing
import os
import pickle

import numpy as np
import pytest

from mmbert_hf.data import token_documents, token_store
from mmbert_hf.data.token_documents import META_FILE, TokenDocuments
from mmbert_hf.data.token_store import TokenStoreWriter


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256_000, size=length, dtype=np.int32) for length in rng.integers(1, 90, size=50)]


@pytest.fixture
def store(tmp_path, arrays, monkeypatch):
    """Several files of several record batches each."""
    monkeypatch.setattr(token_store, "TOKENS_PER_RECORD_BATCH", 200)
    with TokenStoreWriter(tmp_path / "store", tokens_per_file=600) as writer:
        for first in range(0, len(arrays), 3):
            writer.add(arrays[first : first + 3])
        writer.finish(source="arrays")
    assert len(list((tmp_path / "store").glob("*.arrow"))) > 2
    return tmp_path / "store"


@pytest.mark.parametrize("module", [token_documents, token_store])
def test_docstring_examples(module):
    assert doctest.testmod(module).failed == 0


def test_documents_come_back_from_memory_and_from_a_store(arrays, store):
    for documents in (TokenDocuments.from_arrays(arrays), TokenDocuments.open(store)):
        assert len(documents) == len(arrays)
        assert documents.lengths.dtype == np.int32
        assert documents.lengths.tolist() == list(map(len, arrays))
        assert documents.num_tokens == sum(map(len, arrays))
        for index, array in enumerate(arrays):
            found = documents.tokens(index)
            assert found.dtype == np.int32
            np.testing.assert_array_equal(found, array)
        for outside in (-1, len(arrays)):
            with pytest.raises(IndexError, match=f"document {outside} is outside these 50 documents"):
                documents.tokens(outside)


def test_tokens_are_views_that_cannot_be_written(arrays, store):
    for documents in (TokenDocuments.from_arrays(arrays), TokenDocuments.open(store)):
        first, again = documents.tokens(7), documents.tokens(7)
        assert np.shares_memory(first, again)
        with pytest.raises(ValueError, match="read-only"):
            first[0] = 1


def test_fingerprint_is_that_of_the_content_not_of_the_files(arrays, store):
    memory = TokenDocuments.from_arrays(arrays)
    assert TokenDocuments.open(store).fingerprint == memory.fingerprint
    assert TokenDocuments.from_arrays([array.tolist() for array in arrays]).fingerprint == memory.fingerprint
    assert TokenDocuments.from_arrays(arrays[::-1]).fingerprint != memory.fingerprint
    joined = [np.concatenate(arrays[:2]), *arrays[2:]]  # the same tokens, other borders
    assert TokenDocuments.from_arrays(joined).fingerprint != memory.fingerprint


def test_source_arrays_are_copied(arrays):
    documents = TokenDocuments.from_arrays(arrays)
    before = int(arrays[0][0])
    arrays[0][0] += 1
    assert documents.tokens(0)[0] == before


def test_stores_keep_no_file_open(store):
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else pytest.skip("no /proc")
    kept = [TokenDocuments.open(store) for _ in range(10)]
    assert len(os.listdir("/proc/self/fd")) == before
    assert kept[0].tokens(49).size


def _tokens_in_child(documents, index, queue):
    queue.put(documents.tokens(index).tolist())


def test_pickle_of_a_store_is_the_name_of_its_folder(arrays, store):
    documents = TokenDocuments.open(store)
    assert len(pickle.dumps(documents)) < 500
    copied = pickle.loads(pickle.dumps(documents))
    assert copied.fingerprint == documents.fingerprint
    memory = copy.deepcopy(TokenDocuments.from_arrays(arrays))
    assert memory.tokens(4).tolist() == arrays[4].tolist()
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=_tokens_in_child, args=(documents, 30, queue))
    child.start()
    assert queue.get() == arrays[30].tolist()
    child.join()


@pytest.mark.parametrize(
    ("arrays", "error", "message"),
    [
        ([], ValueError, "there are no documents"),
        ([[1], []], ValueError, "document 1 is empty"),
        ([[[1, 2]]], ValueError, "document 0 is empty or not one-dimensional"),
        ([[1], [1.5]], TypeError, "document 1 has float64 ids"),
        ([[True]], TypeError, "document 0 has bool ids"),
        ([[1, [2]]], ValueError, "document 0 is no flat sequence"),
        ([[-1, 5]], ValueError, "ids from -1 to 5"),
        ([[2**31]], ValueError, "ids from 2147483648"),
        ("text", TypeError, "arrays must be a sequence"),
        (["text"], TypeError, "document 0"),
    ],
)
def test_bad_arrays_are_refused(arrays, error, message):
    with pytest.raises((error, ValueError), match=message):
        TokenDocuments.from_arrays(arrays)


# Damage


def test_a_truncated_file_is_named_with_the_way_out(store):
    path = store / "tokens-00001.arrow"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=rf"{path} is damaged: it has \d+ bytes.*delete {store} .*overwrite=True"):
        TokenDocuments.open(store)


def test_a_missing_file_is_named(store):
    (store / "tokens-00001.arrow").unlink()
    with pytest.raises(FileNotFoundError, match=rf"tokens-00001.arrow is missing: delete {store}"):
        TokenDocuments.open(store)


def test_a_file_of_the_right_size_with_other_content_is_refused(store):
    path = store / "tokens-00000.arrow"
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(ValueError, match=f"{path} is damaged"):
        TokenDocuments.open(store)


def test_verify_finds_a_flipped_bit(store, arrays):
    path = store / "tokens-00000.arrow"
    data = bytearray(path.read_bytes())
    place = data.index(arrays[0].tobytes())
    data[place] ^= 1
    path.write_bytes(bytes(data))
    documents = TokenDocuments.open(store)
    with pytest.raises(ValueError, match="the tokens are not those that were written"):
        documents.verify()


def test_an_interrupted_write_is_no_store(tmp_path, arrays):
    with TokenStoreWriter(tmp_path / "store", tokens_per_file=1) as writer:
        writer.add(arrays)
        writer._write_batch()
    assert list((tmp_path / "store").glob("*.arrow"))
    with pytest.raises(FileNotFoundError, match=f"has no {META_FILE}: its writing was interrupted"):
        TokenDocuments.open(tmp_path / "store")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        TokenDocuments.open(tmp_path / "nowhere")


@pytest.mark.parametrize("text", ["", "[]", '{"version": 1}', '{"version": 1, "shards": [{"name": "x"}]}'])
def test_a_broken_meta_file_is_refused(store, text):
    (store / META_FILE).write_text(text)
    with pytest.raises(ValueError, match=r"meta.json is damaged"):
        TokenDocuments.open(store)


def test_another_version_is_refused(store):
    text = (store / META_FILE).read_text().replace('"version": 1', '"version": 2')
    (store / META_FILE).write_text(text)
    with pytest.raises(ValueError, match="is of version 2, expected 1"):
        TokenDocuments.open(store)


def test_a_store_is_not_written_over(store):
    with pytest.raises(FileExistsError, match="holds a store already"):
        TokenStoreWriter(store)


@pytest.mark.parametrize("is_stored", [True, False])
def test_head_is_the_first_documents_and_pickles_small(is_stored, tmp_path):
    import pickle

    arrays = [np.arange(1, 2 + number % 7, dtype=np.int32) for number in range(4000)]
    whole = TokenDocuments.from_arrays(arrays)
    if is_stored:
        writer = TokenStoreWriter(tmp_path / "store", tokens_per_file=3000)
        with writer:
            writer.add(arrays)
            writer.finish()
        whole = TokenDocuments.open(tmp_path / "store")
    for number in (1, 17, 2500, 4000):
        head = whole.head(number)
        again = pickle.loads(pickle.dumps(head))
        for documents in (head, again):
            assert len(documents) == number
            assert all(np.array_equal(documents.tokens(i), arrays[i]) for i in (0, number // 2, number - 1))
            assert documents.fingerprint == f"{whole.fingerprint}[:{number}]"
        with pytest.raises(IndexError):
            head.tokens(number)
    if is_stored:
        assert len(pickle.dumps(whole.head(17))) < 1000
    whole.head(3).verify()
    for wrong in (0, 4001):
        with pytest.raises(ValueError, match=rf"1\.\.4000, got {wrong}"):
            whole.head(wrong)
