"""Targets are found by type and data flow: every family, no names."""

import doctest

import pytest
from torch import nn

from mmbert_hf.pruning import targets
from mmbert_hf.pruning.targets import FeedForward, encoder_of, find_blocks, find_feed_forwards, find_targets


def kinds_of(model) -> dict[str, str]:
    """Kinds of the linear layers of block 1, by the name inside the block."""
    name, _ = find_blocks(encoder_of(model))
    return {target.name.removeprefix(f"{name}.1."): target.kind for target in find_targets(model) if target.layer == 1}


def test_bert(bert_embedder):
    assert kinds_of(bert_embedder) == {
        "attention.self.query": "attention",
        "attention.self.key": "attention",
        "attention.self.value": "attention",
        "attention.output.dense": "attention",
        "intermediate.dense": "mlp",
        "output.dense": "mlp",
    }
    assert find_feed_forwards(bert_embedder)[2] == FeedForward(
        2, ("encoder.layer.2.intermediate.dense",), "encoder.layer.2.output.dense", 48, False
    )


@pytest.mark.parametrize("family", ["modernbert", "mmbert"])
def test_fused_projections(family, request):
    model = request.getfixturevalue(f"{family}_embedder")
    assert kinds_of(model) == {"attn.Wqkv": "attention", "attn.Wo": "attention", "mlp.Wi": "mlp", "mlp.Wo": "mlp"}
    assert find_feed_forwards(model)[1] == FeedForward(1, ("layers.1.mlp.Wi",), "layers.1.mlp.Wo", 40, True)


def test_attention_as_wide_as_the_feed_forward_is_not_taken_for_one(qwen3_embedder):
    kinds = kinds_of(qwen3_embedder)
    assert encoder_of(qwen3_embedder).layers[1].self_attn.o_proj.in_features == 48
    assert {name for name, kind in kinds.items() if kind == "attention"} == {
        f"self_attn.{letter}_proj" for letter in "qkvo"
    }
    assert {name for name, kind in kinds.items() if kind == "mlp"} == {"mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"}
    feed_forward = find_feed_forwards(qwen3_embedder)[0]
    assert feed_forward.down == "layers.0.mlp.down_proj"
    assert set(feed_forward.up) == {"layers.0.mlp.gate_proj", "layers.0.mlp.up_proj"}


def test_every_linear_layer_of_every_block_has_a_kind(embedder):
    encoder = encoder_of(embedder)
    name, blocks = find_blocks(encoder)
    linear = {
        f"{name}.{path}" for path, part in blocks.named_modules() if isinstance(part, nn.Linear) and "bias" not in path
    }
    assert {target.name for target in find_targets(embedder)} == linear
    assert len(find_feed_forwards(embedder)) == len(blocks)
    mlp, attention = (find_targets(embedder, kind) for kind in ("mlp", "attention"))
    assert len(mlp) + len(attention) == len(linear)


def test_looking_leaves_the_model_as_it_was(bert_embedder):
    bert_embedder.train()
    find_targets(bert_embedder)
    assert bert_embedder.training
    assert not any(part._forward_hooks for part in encoder_of(bert_embedder).modules())
    assert all(parameter.grad is None for parameter in bert_embedder.parameters())


def test_refusals(bert_embedder):
    with pytest.raises(ValueError, match="one of mlp, attention, all; got 'ffn'"):
        find_targets(bert_embedder, "ffn")
    with pytest.raises(ValueError, match="no list of blocks"):
        find_blocks(nn.Sequential(nn.Linear(2, 2)))
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    static = SentenceTransformer(
        modules=[StaticEmbedding(bert_embedder.tokenizer.backend_tokenizer, embedding_dim=4)], device="cpu"
    )
    with pytest.raises(ValueError, match="StaticEmbedding, which holds no transformers model"):
        find_targets(static)


def test_adapters_and_quantised_weights_are_refused(bert_embedder):
    import torch
    from peft import LoraConfig

    class Packed(nn.Linear):
        """A linear layer whose weight is stored as whole numbers."""

    encoder = encoder_of(bert_embedder)
    layer = encoder.encoder.layer[0].intermediate.dense
    weight = layer.weight
    for dtype in (torch.int8, torch.float8_e4m3fn):
        layer.weight = nn.Parameter(torch.zeros_like(weight, dtype=dtype), requires_grad=False)
        with pytest.raises(ValueError, match=r"quantised weights \(encoder.layer.0.intermediate.dense and 0 more"):
            find_targets(bert_embedder)
    layer.weight = weight
    bert_embedder.add_adapter(LoraConfig(r=2, target_modules=["query"]))
    with pytest.raises(ValueError, match="adapters are attached"):
        find_targets(bert_embedder)


@pytest.mark.filterwarnings("ignore")
def test_a_part_that_torch_has_quantised_is_refused(bert_embedder):
    """Its layers are no `torch.nn.Linear` any more, so that they would just not be seen."""
    import torch

    block = encoder_of(bert_embedder).encoder.layer[1]
    block.output = torch.ao.quantization.quantize_dynamic(block.output, {nn.Linear}, dtype=torch.qint8)
    with pytest.raises(ValueError, match=r"quantised weights \(encoder.layer.1.output.dense"):
        find_targets(bert_embedder)


def test_every_module_keeps_its_mode(bert_embedder):
    frozen = encoder_of(bert_embedder).encoder.layer[0]
    bert_embedder.train()
    frozen.eval()
    find_targets(bert_embedder)
    assert bert_embedder.training
    assert not frozen.training

    def fail(*_):
        raise RuntimeError("on purpose")

    handle = frozen.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="on purpose"):
        find_targets(bert_embedder)
    handle.remove()
    assert bert_embedder.training
    assert not frozen.training


def test_docstring_examples():
    assert doctest.testmod(targets).failed == 0
