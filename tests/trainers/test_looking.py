import pytest
import torch
from accelerate import Accelerator
from mmbert_hf.trainers.looking import reads_in_order, samplers, unwrapped_encoder
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler

from mmbert_hf import MMBertForMaskedLM


class Wrapper(nn.Module):
    """As DistributedDataParallel holds its model."""

    def __init__(self, module):
        super().__init__()
        self.module = module


def compiled(model):
    return torch.compile(model, backend="eager")  # nothing is run; the default back end would be imported


def wrappings():
    yield "bare", lambda model: model
    yield "data-parallel", Wrapper
    yield "compiled", compiled
    yield "data-parallel of compiled", lambda model: Wrapper(compiled(model))
    yield "compiled data-parallel", lambda model: compiled(Wrapper(model))
    yield "encoder alone", lambda model: model.model


@pytest.mark.parametrize(("name", "wrap"), list(wrappings()))
def test_the_encoder_is_found_in_every_wrapping(name, wrap, tiny_model):
    encoder = unwrapped_encoder(wrap(tiny_model))
    assert encoder is tiny_model.model
    encoder.set_rope_theta(5e4)
    assert tiny_model.config.rope_parameters["full_attention"]["rope_theta"] == 5e4


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft asks for it
def test_an_adapter_leaves_the_switch_within_reach(tiny_config):
    from peft import LoraConfig, get_peft_model

    model = MMBertForMaskedLM(tiny_config)
    adapted = get_peft_model(model, LoraConfig(target_modules=["Wqkv"]))
    found = unwrapped_encoder(adapted)
    assert found.config is model.config
    frequencies = {name: buffer.clone() for name, buffer in model.model.rotary_emb.named_buffers()}
    found.set_rope_theta(5e4)
    assert any(not torch.equal(buffer, frequencies[name]) for name, buffer in model.model.rotary_emb.named_buffers())


def test_samplers_are_seen_through_what_wraps_them():
    data = list(range(8))
    inner = SequentialSampler(data)
    plain = DataLoader(data, batch_size=2, sampler=inner)
    assert inner in list(samplers(plain))
    prepared = Accelerator(cpu=True).prepare(plain)
    assert any(isinstance(sampler, SequentialSampler) for sampler in samplers(prepared))
    from accelerate import skip_first_batches

    resumed = skip_first_batches(prepared, 2)
    assert [batch.tolist() for batch in resumed] == [[4, 5], [6, 7]]
    assert any(isinstance(sampler, SequentialSampler) for sampler in samplers(resumed))
    assert list(samplers(None)) == []


def test_order_is_told_from_shuffling():
    data = list(range(8))
    assert reads_in_order(DataLoader(data, batch_size=2))
    assert reads_in_order(DataLoader(data, batch_sampler=BatchSampler(SequentialSampler(data), 2, False)))
    assert not reads_in_order(DataLoader(data, batch_size=2, shuffle=True))
    assert not reads_in_order(DataLoader(data, batch_sampler=BatchSampler(RandomSampler(data), 2, False)))
    assert not reads_in_order(None)
