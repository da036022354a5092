"""Int8 files: real int8 weights, close embeddings, any batch and length, and nothing of it without the packages."""

import doctest
import sys

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto

from mmbert_hf.pruning import int8
from mmbert_hf.pruning.int8 import Int8Embedder, export_int8
from mmbert_hf.pruning.saving import save_embedder
from mmbert_hf.pruning.targets import encoder_of

TEXTS = ["free equal dignity", "the law of a country and its people", "music", "school work " * 12, "a border"]


def cosines(left, right):
    return (left * right).sum(1) / np.linalg.norm(left, axis=1) / np.linalg.norm(right, axis=1)


@pytest.fixture
def exported(bert_embedder, tmp_path):
    save_embedder(bert_embedder, tmp_path)
    return export_int8(bert_embedder, tmp_path)


def test_the_file_holds_int8_weights_and_gives_nearly_the_same(exported, bert_embedder, tmp_path):
    weights = onnx.load(exported).graph.initializer
    shapes = {
        kind: sorted(tuple(each.dims) for each in weights if each.data_type == kind and len(each.dims) == 2)
        for kind in (TensorProto.INT8, TensorProto.UINT8, TensorProto.FLOAT)
    }
    assert shapes[TensorProto.INT8] == sorted([(32, 32)] * 12 + [(32, 48), (48, 32)] * 3)
    assert shapes[TensorProto.UINT8] == sorted([(len(bert_embedder.tokenizer), 32), (64, 32), (2, 32)])
    assert shapes[TensorProto.FLOAT] == []
    num_weights = sum(tensor.numel() for tensor in bert_embedder.parameters())
    stored = sum(len(each.raw_data) for each in weights)
    assert stored < 1.5 * num_weights  # of 4 bytes each before; scales and biases weigh much in so small a model
    assert [path.name for path in exported.parent.iterdir()] == ["model_int8.onnx"]

    embedder = Int8Embedder(tmp_path, num_threads=1)
    expected = bert_embedder.encode(TEXTS)
    got = embedder.encode(TEXTS)
    assert (got.shape, got.dtype) == (expected.shape, np.float32)
    assert cosines(got, expected).min() > 0.98
    assert cosines(got, np.roll(expected, 1, axis=0)).max() < 0.98  # each text has its own
    for text, row in zip(TEXTS, expected, strict=True):  # other batches and lengths than the exporter saw
        assert cosines(embedder.encode([text]), row[None])[0] > 0.98
    assert cosines(embedder.encode(TEXTS * 9, batch_size=7), np.tile(expected, (9, 1))).min() > 0.98
    assert cosines(embedder.encode(["school work " * 200]), bert_embedder.encode(["school work " * 200]))[0] > 0.98


def test_nothing_in_it_says_where_on_this_computer_it_was_made(exported):
    """The exporter writes a stack trace beside every node."""
    assert b".py" not in exported.read_bytes()


@pytest.mark.slow
def test_a_file_is_replaced_on_request(exported, bert_embedder, tmp_path):
    with torch.no_grad():
        encoder_of(bert_embedder).embeddings.word_embeddings.weight.neg_()
    before = exported.read_bytes()
    export_int8(bert_embedder, tmp_path, overwrite=True)
    assert exported.read_bytes() != before


def test_an_existing_file_is_kept_otherwise(bert_embedder, tmp_path):
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "model_int8.onnx").write_bytes(b"precious")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        export_int8(bert_embedder, tmp_path)
    assert (tmp_path / "onnx" / "model_int8.onnx").read_bytes() == b"precious"


@pytest.mark.slow
@pytest.mark.parametrize("family", ["mpnet", "xlm_roberta", "modernbert", "mmbert"])
def test_other_families(family, request, tmp_path):
    model = request.getfixturevalue(f"{family}_embedder")
    export_int8(model, tmp_path)  # with the tokenizer, which is not there yet
    assert cosines(Int8Embedder(tmp_path).encode(TEXTS), model.encode(TEXTS)).min() > 0.95


@pytest.mark.slow
def test_a_decoder_in_half_precision_with_prompts(qwen3_embedder, tmp_path):
    """Last-token pooling, padding on the left; computed in float32, and the model keeps its own weights."""
    qwen3_embedder.bfloat16().train()
    before = {name: (tensor.dtype, tensor.data_ptr()) for name, tensor in qwen3_embedder.named_parameters()}
    export_int8(qwen3_embedder, tmp_path)
    assert {name: (tensor.dtype, tensor.data_ptr()) for name, tensor in qwen3_embedder.named_parameters()} == before
    assert qwen3_embedder.training
    embedder = Int8Embedder(tmp_path)
    qwen3_embedder.float()
    plain, with_prompt = qwen3_embedder.encode(TEXTS), qwen3_embedder.encode(TEXTS, prompt_name="query")
    assert cosines(embedder.encode(TEXTS), plain).min() > 0.95
    assert cosines(embedder.encode(TEXTS, prompt_name="query"), with_prompt).min() > 0.95
    with pytest.raises(ValueError, match=r"no prompt 'passage'; the model has \['query'\]"):
        embedder.encode(TEXTS, prompt_name="passage")
    with pytest.raises(ValueError, match="give a list"):
        embedder.encode("a text")


def test_missing_packages_are_named(bert_embedder, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [])
    for name in ("onnx", "onnxscript"):
        for loaded in [module for module in sys.modules if module.split(".")[0] == name]:
            monkeypatch.delitem(sys.modules, loaded)
    with pytest.raises(ValueError, match=r"int8 needs onnx, onnxscript.*: pip install onnx onnxscript"):
        export_int8(bert_embedder, tmp_path)
    with pytest.raises(ValueError, match="pip install onnx onnxscript"):
        Int8Embedder(tmp_path)


def test_what_cannot_be_exported_is_refused(bert_embedder, tmp_path):
    bert_embedder.prompts = {"query": "find: "}
    bert_embedder[1].include_prompt = False
    with pytest.raises(ValueError, match="leaves out the tokens of the prompt"):
        export_int8(bert_embedder, tmp_path)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(FileNotFoundError, match="write it with export_int8"):
        Int8Embedder(tmp_path)


def test_docstring_examples():
    assert doctest.testmod(int8).failed == 0
