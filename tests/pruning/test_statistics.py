"""Statistics: kept, opened again, and refused where they are of something else."""

import dataclasses
import json

import pytest
import torch

from mmbert_hf.pruning.statistics import STATISTICS_FILE, Statistics, model_fingerprint
from mmbert_hf.pruning.targets import encoder_of


def test_a_folder_holds_what_memory_holds(bert_embedder, collect, tmp_path, assert_same):
    in_memory = collect(bert_embedder)
    assert_same(collect(bert_embedder, tmp_path / "statistics"), in_memory)
    in_memory.save(tmp_path / "saved")
    assert_same(Statistics.open(tmp_path / "saved", in_memory.origin), in_memory)


def test_they_are_means_over_triplets(bert_embedder, collect, assert_same):
    """Twice the same triplets: the same means."""
    one, two = collect(bert_embedder, num_rows=4), collect(bert_embedder, num_rows=4, batch_size=4)
    assert_same(one, two, rtol=1e-5)
    layer = one.origin.layers[0]
    assert (one.fisher("domain", layer) >= one.gradient("domain", layer).square() * (1 - 1e-4)).all(), "Jensen"


def test_finished_statistics_are_opened_and_not_computed(bert_embedder, collect, tmp_path, monkeypatch, assert_same):
    first = collect(bert_embedder, tmp_path)

    def fail(*args, **options):
        raise AssertionError("scored again")

    monkeypatch.setattr("mmbert_hf.pruning.scoring.add_batch", fail)
    assert_same(collect(bert_embedder, tmp_path), first)


def test_another_model_or_other_texts_are_refused(bert_embedder, collect, tmp_path):
    collect(bert_embedder, tmp_path)
    with pytest.raises(ValueError, match=r"are of another model or other texts \(domain: .* there, .* asked for\)"):
        collect(bert_embedder, tmp_path, seed=2)
    with torch.no_grad():
        encoder_of(bert_embedder).encoder.layer[0].output.dense.weight[0, 0] += 1e-3
    with pytest.raises(ValueError, match=r"\(model: "):
        collect(bert_embedder, tmp_path)


def test_the_fingerprint_sees_weights_prompts_and_length(bert_embedder):
    before = model_fingerprint(bert_embedder)
    assert model_fingerprint(bert_embedder) == before
    bert_embedder.prompts["query"] = "find: "
    prompted = model_fingerprint(bert_embedder)
    bert_embedder.max_seq_length = 7
    assert len({before, prompted, model_fingerprint(bert_embedder)}) == 3


def test_the_fingerprint_sees_the_pooling(bert_embedder):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    modules = [bert_embedder[0], Pooling(32, pooling_mode="cls"), bert_embedder[2]]
    other = SentenceTransformer(modules=modules, device="cpu")
    assert model_fingerprint(other) != model_fingerprint(bert_embedder)


@pytest.mark.parametrize("name", [STATISTICS_FILE, "domain-*.safetensors", "origin.json"])
def test_damaged_files_are_named(name, bert_embedder, collect, tmp_path):
    collect(bert_embedder, tmp_path)
    (path,) = tmp_path.glob(name)
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ValueError, match=rf"{path.name} is damaged .*; delete the folder .* to score again"):
        collect(bert_embedder, tmp_path)


def test_a_full_disk_is_an_os_error(bert_embedder, collect, tmp_path, monkeypatch):
    from safetensors import SafetensorError

    def fails(_, path, **__):
        path.touch()
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    with monkeypatch.context() as patch:
        patch.setattr("mmbert_hf.pruning.statistics.save_file", fails)
        with pytest.raises(OSError, match=r"could not write .*No space left"):
            collect(bert_embedder, tmp_path)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["origin.json"]
    collect(bert_embedder, tmp_path)


def test_unfinished_and_foreign_folders(bert_embedder, collect, tmp_path):
    with pytest.raises(FileNotFoundError, match="no finished statistics"):
        Statistics.open(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds something else than statistics"):
        collect(bert_embedder, tmp_path)
    (tmp_path / STATISTICS_FILE).write_text(json.dumps({"format": "other"}))
    with pytest.raises(ValueError, match="format 'other'"):
        Statistics.open(tmp_path)


def test_nothing_is_invented_for_a_missing_tensor(bert_embedder, collect):
    statistics = collect(bert_embedder)
    with pytest.raises(KeyError, match="no fisher of layer 'pooler'"):
        statistics.fisher("domain", "pooler")


def test_differences_are_named(bert_embedder, collect):
    origin = collect(bert_embedder).origin
    other = dataclasses.replace(origin, num_domain=9, layers=origin.layers[:2])
    assert origin.differences(other) == ["num_domain: 5 there, 9 asked for", "layers: 18 there, 2 asked for"]
    assert origin.fingerprint != other.fingerprint
