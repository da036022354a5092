"""A mask reaches the right weights through wrappers and adapters, says when it does not fit, and survives its file."""

import copy
import doctest

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn

from mmbert_hf.pruning import masks
from mmbert_hf.pruning.masks import PruningMask, masked_linears, unwrapped
from mmbert_hf.pruning.targets import encoder_of, find_targets

# peft 0.21 reads a property that transformers 5.23 has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
DOWN = "encoder.layer.1.output.dense"
QUERY = "encoder.layer.0.attention.self.query"


def random_mask(model, share=0.5, kinds="all"):
    generator = torch.Generator().manual_seed(3)
    encoder = encoder_of(model)
    return PruningMask(
        {
            target.name: torch.rand(encoder.get_submodule(target.name).weight.shape, generator=generator) >= share
            for target in find_targets(model, kinds)
        }
    )


def lora(**options):
    return LoraConfig(r=2, target_modules=["query", "dense"], **options)


def test_apply_sets_exactly_the_pruned_weights_to_zero(embedder):
    mask, before = random_mask(embedder), copy.deepcopy(encoder_of(embedder).state_dict())
    with pytest.raises(RuntimeError, match=rf"of \d+ in {next(iter(mask.kept))}; .*; and in \d+ more layers"):
        mask.check(embedder)
    mask.apply(embedder)
    mask.check(embedder)
    for name, value in encoder_of(embedder).state_dict().items():
        kept = mask.kept.get(name.removesuffix(".weight"))
        expected = before[name] if kept is None or not name.endswith("weight") else before[name] * kept
        assert torch.equal(value, expected), name


def test_sparsity_is_counted_over_all_weights():
    kept = {"a": torch.ones(2, 3, dtype=torch.bool), "b": torch.zeros(1, 2, dtype=torch.bool)}
    kept["a"][1, 2] = False
    mask = PruningMask(kept)
    assert (mask.num_weights, mask.num_pruned, mask.sparsity) == (8, 3, 3 / 8)
    assert mask.per_tensor() == {"a": 1 / 6, "b": 1.0}


def test_check_counts_what_is_not_zero(bert_embedder):
    mask = random_mask(bert_embedder)
    mask.apply(bert_embedder)
    weight = encoder_of(bert_embedder).get_submodule(DOWN).weight
    first, second = (~mask.kept[DOWN]).nonzero()[:2].tolist()
    with torch.no_grad():
        weight[tuple(first)], weight[tuple(second)] = 1e-30, float("nan")
    pruned = int((~mask.kept[DOWN]).sum())
    with pytest.raises(RuntimeError, match=rf"not zero: 2 of {pruned} in {DOWN}\. Something"):
        mask.check(bert_embedder)


def test_bfloat16(bert_embedder):
    mask = random_mask(bert_embedder)
    bert_embedder.bfloat16()
    mask.apply(bert_embedder)
    mask.check(bert_embedder)
    assert encoder_of(bert_embedder).get_submodule(DOWN).weight.dtype == torch.bfloat16


@pytest.mark.parametrize("wrap", ["embedder", "encoder", "peft", "native", "task", "compiled", "parallel", "peft_all"])
def test_weights_are_found_whatever_is_around_the_model(wrap, bert_embedder):
    encoder = encoder_of(bert_embedder)
    expected = {name: encoder.get_submodule(name).weight for name in (DOWN, QUERY)}
    mask = random_mask(bert_embedder)
    model = bert_embedder
    if wrap == "encoder":
        model = encoder
    elif wrap == "peft":
        bert_embedder[0].model = get_peft_model(encoder, lora())
        assert f"base_model.model.{QUERY}.base_layer" in dict(bert_embedder[0].auto_model.named_modules())
    elif wrap == "native":
        bert_embedder.add_adapter(lora(), adapter_name="one")
    elif wrap == "task":
        from transformers import BertForMaskedLM

        model = BertForMaskedLM(encoder.config)
        model.bert = encoder
    elif wrap == "compiled":
        model = torch.compile(bert_embedder, backend="eager")
    elif wrap == "parallel":
        model = nn.DataParallel(bert_embedder)
    elif wrap == "peft_all":
        model = get_peft_model(encoder, lora())
    found = mask.linears(model)
    assert all(found[name].weight is weight for name, weight in expected.items())
    mask.apply(model)
    assert all(not weight[~mask.kept[name]].any() for name, weight in expected.items())


def test_unwrapped_gives_the_transformers_model(bert_embedder):
    encoder = encoder_of(bert_embedder)
    assert unwrapped(torch.compile(nn.DataParallel(bert_embedder), backend="eager")) is encoder
    bert_embedder[0].model = get_peft_model(encoder, lora())
    assert unwrapped(bert_embedder) is encoder


def test_a_mask_of_another_model_changes_nothing(bert_embedder, modernbert_embedder):
    before = copy.deepcopy(bert_embedder.state_dict())
    with pytest.raises(ValueError, match=r"has 'layers.0.attn.Wqkv', which BertModel has not; it has encoder\.layer"):
        random_mask(modernbert_embedder).apply(bert_embedder)
    mask = random_mask(bert_embedder)
    narrow = PruningMask({**mask.kept, DOWN: mask.kept[DOWN][:, :-8]})
    with pytest.raises(ValueError, match=rf"{DOWN} is \[32, 40\] and its weight is \[32, 48\]"):
        narrow.apply(bert_embedder)
    with pytest.raises(ValueError, match=r"LayerNorm is torch.nn.modules.normalization.LayerNorm; masks are for"):
        masked_linears(bert_embedder, {"encoder.layer.0.output.LayerNorm": (32, 32)})
    assert all(torch.equal(value, before[name]) for name, value in bert_embedder.state_dict().items())


class Eight(nn.Linear):
    """As bitsandbytes keeps it: a subclass whose weight is a parameter of another class."""

    class Weight(nn.Parameter):
        pass

    def __init__(self, linear):
        super().__init__(linear.in_features, linear.out_features)
        self.weight = self.Weight(linear.weight.detach())


@pytest.mark.parametrize(
    ("change", "got"),
    [
        (lambda linear: Eight(linear), "a Weight of torch.float32"),
        (lambda linear: linear.to(torch.float8_e4m3fn), "a Parameter of torch.float8_e4m3fn"),
        (lambda linear: nn.utils.parametrizations.weight_norm(linear), "a Tensor of torch.float32"),
    ],
)
def test_weights_that_are_not_plain_are_refused(change, got, bert_embedder):
    mask = random_mask(bert_embedder)
    block = encoder_of(bert_embedder).encoder.layer[1].output
    block.dense = change(block.dense)
    with pytest.raises(TypeError, match=rf"the weight of {DOWN} is {got}"):
        mask.apply(bert_embedder)


def test_a_quantised_layer_is_refused(bert_embedder):
    mask = random_mask(bert_embedder)
    block = encoder_of(bert_embedder).encoder.layer[1].output
    block.dense = nn.Conv1d(48, 32, 1)  # any class that is not a linear layer, as in GPTQ or AWQ
    with pytest.raises(ValueError, match=r"Conv1d; masks are for torch.nn.Linear"):
        mask.check(bert_embedder)


def test_a_layer_that_peft_trains_as_a_copy_is_refused(bert_embedder):
    mask = random_mask(bert_embedder)
    bert_embedder[0].model = get_peft_model(
        encoder_of(bert_embedder), LoraConfig(r=2, target_modules=["query"], modules_to_save=["output.dense"])
    )
    with pytest.raises(ValueError, match=r"ModulesToSaveWrapper; .* modules_to_save"):
        mask.apply(bert_embedder)


def test_file_and_fingerprint(tmp_path, bert_embedder):
    mask = random_mask(bert_embedder)
    odd = PruningMask({**mask.kept, "odd": torch.rand(3, 7, generator=torch.Generator().manual_seed(0)) > 0.5})
    odd.save(tmp_path / "mask.safetensors")
    loaded = PruningMask.load(tmp_path / "mask.safetensors")
    assert loaded == odd
    assert loaded != mask
    assert loaded.fingerprint == odd.fingerprint
    assert hash(loaded) == hash(odd)
    assert loaded.fingerprint != mask.fingerprint
    assert PruningMask(dict(reversed(odd.kept.items()))).fingerprint == odd.fingerprint
    flipped = {name: tensor.clone() for name, tensor in odd.kept.items()}
    flipped["odd"][2, 6] ^= True
    assert PruningMask(flipped).fingerprint != odd.fingerprint
    assert PruningMask(flipped) != odd
    assert (
        PruningMask({"a": torch.ones(2, 4).bool()}).fingerprint
        != PruningMask({"a": torch.ones(4, 2).bool()}).fingerprint
    )
    packed = load_file(tmp_path / "mask.safetensors")
    assert (packed["odd"].dtype, packed["odd"].numel()) == (torch.uint8, 3)  # 21 bits
    assert packed[DOWN].numel() == 32 * 48 // 8


def test_damaged_and_foreign_files(tmp_path):
    path = tmp_path / "mask.safetensors"
    with pytest.raises(FileNotFoundError, match="there is no file"):
        PruningMask.load(path)
    mask = PruningMask({"a": torch.ones(4, 6).bool()})
    mask.save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(OSError, match="is damaged"):
        PruningMask.load(path)
    save_file({"a": torch.zeros(3, dtype=torch.uint8)}, path)
    with pytest.raises(ValueError, match="is no pruning mask"):
        PruningMask.load(path)
    path.write_bytes(whole.replace(b'format_version\\": \\"1', b'format_version\\": \\"2'))
    with pytest.raises(ValueError, match=r"has format version 2, and .* reads 1"):
        PruningMask.load(path)
    path.write_bytes(whole.replace(b"[4, 6]", b"[4, 9]"))
    with pytest.raises(ValueError, match=r"the tensors and the header of .* disagree"):
        PruningMask.load(path)
    with pytest.raises(OSError, match="could not write"):
        mask.save(tmp_path / "missing" / "mask.safetensors")


def test_bad_masks():
    with pytest.raises(ValueError, match="the mask is empty"):
        PruningMask({})
    with pytest.raises(TypeError, match=r"kept\['a'\] is of torch.float32; give a bool tensor"):
        PruningMask({"a": torch.ones(2, 2)})
    with pytest.raises(ValueError, match=r"kept\['a'\] is \[4\]"):
        PruningMask({"a": torch.ones(4).bool()})
    with pytest.raises(TypeError, match="does not support item assignment"):
        PruningMask({"a": torch.ones(2, 2).bool()}).kept["b"] = torch.ones(2, 2).bool()


def test_docstring_examples():
    assert doctest.testmod(masks).failed == 0
