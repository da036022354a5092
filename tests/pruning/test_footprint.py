"""Sizes foreseen are sizes on disk, to the byte; times are paired."""

import doctest
import struct
import time

import pytest
import torch
from sentence_transformers.sentence_transformer.modules import Dense

from mmbert_hf.pruning import footprint
from mmbert_hf.pruning.footprint import measure_footprint, measure_latency, predict_bytes, width_for_size
from mmbert_hf.pruning.layers import drop_layers
from mmbert_hf.pruning.saving import save_embedder
from mmbert_hf.pruning.targets import encoder_of, find_feed_forwards
from mmbert_hf.pruning.widths import shrink_feed_forwards


def tensor_bytes(folder):
    """What the weight files hold beside their headers."""
    total = 0
    for file in folder.rglob("*.safetensors"):
        content = file.read_bytes()
        total += len(content) - 8 - struct.unpack("<Q", content[:8])[0]
    return total


def shrink_to(model, width):
    feed_forwards = find_feed_forwards(model)
    shrink_feed_forwards(model, feed_forwards, [torch.arange(width)] * len(feed_forwards))


@pytest.mark.parametrize("family", ["bert", "modernbert", "qwen3"])
def test_predicted_bytes_are_those_of_the_file(family, request, tmp_path):
    model = request.getfixturevalue(f"{family}_embedder")
    num_rows = len(encoder_of(model).get_input_embeddings().weight)
    dense = predict_bytes(model)
    pruned = predict_bytes(model, width=16, dropped_layers=[1], vocabulary_size=num_rows - 50)
    assert tensor_bytes(save_embedder(model, tmp_path / "dense")) == dense
    shrink_to(model, 16)
    drop_layers(model, [1])
    encoder_of(model).resize_token_embeddings(num_rows - 50)
    assert tensor_bytes(save_embedder(model, tmp_path / "pruned")) == pruned < dense


def test_half_precision_and_other_modules_count_as_stored(bert_embedder, tmp_path):
    bert_embedder.append(Dense(32, 8)).bfloat16()
    assert tensor_bytes(save_embedder(bert_embedder, tmp_path / "out")) == predict_bytes(bert_embedder)


def test_the_width_is_the_largest_that_is_small_enough(bert_embedder):
    dense = predict_bytes(bert_embedder)
    for options in ({}, {"dropped_layers": 1}, {"vocabulary_size": 120}):
        layers = {"dropped_layers": [2]} if "dropped_layers" in options else options
        share = predict_bytes(bert_embedder, width=22, **layers) / dense
        assert width_for_size(bert_embedder, share, multiple=4, **options) == 20
        assert width_for_size(bert_embedder, share + 1e-9, multiple=2, **options) == 22
    assert width_for_size(bert_embedder, 1.0, multiple=32) == 48  # all of it, though no multiple


def test_a_share_out_of_reach_names_the_least(bert_embedder):
    least = predict_bytes(bert_embedder, width=8) / predict_bytes(bert_embedder)
    with pytest.raises(ValueError, match=f"with 8 neurons they are at {least:.3f}"):
        width_for_size(bert_embedder, 0.05, multiple=8)
    with pytest.raises(ValueError, match="target_share=0; it must be above 0"):
        width_for_size(bert_embedder, 0)
    with pytest.raises(ValueError, match="dropped_layers=3; the model has 3"):
        width_for_size(bert_embedder, 0.5, dropped_layers=3)


@pytest.mark.parametrize("options", [{"width": 49}, {"width": 0}, {"vocabulary_size": 0}, {"dropped_layers": [3]}])
def test_sizes_that_cannot_be_are_refused(bert_embedder, options):
    with pytest.raises(ValueError, match=f"got {next(iter(options))}="):
        predict_bytes(bert_embedder, **options)


def test_a_footprint_counts_what_loading_needs(bert_embedder, tmp_path):
    folder = save_embedder(bert_embedder, tmp_path / "out")
    needed = [path for path in folder.rglob("*") if path.is_file()]
    (folder / "onnx").mkdir()
    for extra in ("README.md", "vocab.txt", "pytorch_model.bin", "pruning_mask.safetensors", "onnx/model.onnx"):
        (folder / extra).write_bytes(b"0" * 100_000)
    got = measure_footprint(folder)
    assert got.bytes_on_disk == sum(path.stat().st_size for path in needed)
    assert got.weight_bytes == (folder / "model.safetensors").stat().st_size
    assert got.tokenizer_bytes == sum(path.stat().st_size for path in folder.glob("tokenizer*"))
    assert got.num_parameters == sum(parameter.numel() for parameter in bert_embedder.parameters())
    assert measure_footprint(bert_embedder) == got
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"holds no model\.safetensors"):
        measure_footprint(folder)


class Slow:
    """Something that encodes, on a clock of its own."""

    def __init__(self, name, calls, seconds, clock):
        self.name, self.calls, self.seconds, self.clock = name, calls, seconds, clock

    def encode(self, texts, batch_size, show_progress_bar):
        self.calls.append(self.name)
        self.clock.now += self.seconds * (2 if len(self.calls) > 4 else 1)  # the machine gets slower meanwhile


class Clock:
    now = 0.0


def test_models_take_turns_and_ratios_are_within_a_turn(monkeypatch):
    clock, calls = Clock(), []
    monkeypatch.setattr(time, "perf_counter", lambda: clock.now)
    models = {name: Slow(name, calls, seconds, clock) for name, seconds in (("dense", 1.0), ("pruned", 0.5))}
    latency = measure_latency(models, ["text"], repeats=3)
    assert calls == ["pruned", "dense", "dense", "pruned", "pruned", "dense", "dense", "pruned"]
    assert latency["pruned"].ratio == 0.5
    assert (latency["dense"].low_seconds, latency["dense"].median_seconds, latency["dense"].high_seconds) == (1, 2, 2)
    assert latency["dense"].ratio == 1.0


def test_a_real_model_is_timed(bert_embedder):
    latency = measure_latency({"dense": bert_embedder}, ["free equal dignity"] * 3, repeats=2)["dense"]
    assert 0 < latency.low_seconds <= latency.median_seconds <= latency.high_seconds
    with pytest.raises(ValueError, match="got 1 models, 0 texts"):
        measure_latency({"dense": bert_embedder}, [])


def test_docstring_examples():
    assert doctest.testmod(footprint).failed == 0
