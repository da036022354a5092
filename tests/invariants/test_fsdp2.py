"""FSDP2 trains as one process does: `fully_shard` on a CPU mesh of two processes, through torch.distributed.run.

accelerate runs DDP in place of FSDP on a CPU without a word, so the sharding is done here by hand, as accelerate does
it on GPUs: each encoder layer by itself, then the root with embeddings, head and decoder. This file is the test and the
script of the processes.
"""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import distributed
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard

from mmbert_hf import MMBertForMaskedLM

OPTIMIZERS = ("stable_adamw", "adamw")
# As unlike as they come, so that the ranks have unequal work. Rank r of n trains on the rows r, r + n, ...
ROW_LENGTHS = ([7, 20, 3], [40], [11, 12], [5, 5, 30])
LOSS_FACTORS = (1.0, 1.0, 20.0)  # the last step's gradients jump, so that StableAdamW clips


def make_optimizer(name, model):
    if name == "adamw":
        return torch.optim.AdamW(model.parameters(), lr=1e-2, betas=(0.9, 0.95), weight_decay=0.1)
    from optimi import StableAdamW

    options = {"betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 8e-5, "decouple_lr": True, "max_lr": 1e-2}
    return StableAdamW(model.parameters(), lr=1e-2, **options)


def shard(model, world):
    mesh = distributed.device_mesh.init_device_mesh("cpu", (world,))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    for name, parameter in model.named_parameters():
        assert isinstance(parameter, DTensor), name
        assert parameter.placements == (Shard(0),), name


def clipping(optimizer):
    """The largest RMS by which StableAdamW divides its learning rate, from the state after a step."""
    ratios = []
    for parameter, state in optimizer.state.items():
        square = parameter.grad.pow(2) / state["exp_avg_sq"].clamp(min=1e-16)
        square = square.full_tensor() if isinstance(square, DTensor) else square
        ratios.append(square.mean().sqrt().item())
    return max(ratios)


def train(folder, optimizer_name, world=1, rank=0):
    """Train three steps from folder/start; return what is to be compared, and the whole weights."""
    model = MMBertForMaskedLM.from_pretrained(folder / "start").train()
    report = {"whole": {name: parameter.numel() for name, parameter in model.named_parameters()}}
    lent = []  # what a layer computes with: plain tensors of the full size, as the fast paths need them
    model.model.layers[1].mlp.register_forward_pre_hook(lambda mlp, _: lent.append(mlp.Wi.weight))
    if world > 1:
        shard(model, world)
        report["local"] = {name: parameter.to_local().numel() for name, parameter in model.named_parameters()}
    optimizer = make_optimizer(optimizer_name, model)
    report["losses"], report["clipping"] = [], []
    for factor, rows in zip(LOSS_FACTORS, torch.load(folder / "batches.pt", weights_only=True), strict=True):
        labelled = sum((row["labels"] != -100).sum() for row in rows)
        total = torch.zeros(())
        for row in rows[rank::world]:
            loss = model(**row, num_items_in_batch=labelled).loss
            # FSDP takes the mean over ranks of the gradients: `world` undoes that, as in Trainer.
            (factor * world * loss).backward()
            total += loss.detach()
        if world > 1:
            distributed.all_reduce(total)
        report["losses"].append(total.item())
        optimizer.step()
        if optimizer_name == "stable_adamw":
            report["clipping"].append(clipping(optimizer))
        optimizer.zero_grad()
    report["tied"] = model.decoder.weight is model.model.embeddings.tok_embeddings.weight
    report["lent"] = sorted({type(weight).__name__ for weight in lent})
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return report, get_model_state_dict(model, options=options)


def main(folder):
    world, rank = int(os.environ["WORLD_SIZE"]), int(os.environ["RANK"])
    distributed.init_process_group("gloo")
    for optimizer_name in OPTIMIZERS:
        report, weights = train(folder, optimizer_name, world, rank)
        if rank == 0:
            (folder / f"{optimizer_name}.json").write_text(json.dumps(report))
            torch.save(weights, folder / f"{optimizer_name}.pt")
    distributed.barrier()
    distributed.destroy_process_group()


def packed_row(lengths, vocabulary, generator):
    """One packed row of documents, a fifth of its tokens labelled."""
    input_ids = torch.randint(5, vocabulary, (1, sum(lengths)), generator=generator)
    chosen = torch.rand(input_ids.shape, generator=generator) < 0.2
    chosen[0, 0] = True
    return {
        "input_ids": input_ids.masked_fill(chosen, 4),
        "labels": input_ids.masked_fill(~chosen, -100),
        "cu_seq_lens_q": torch.tensor([0, *lengths]).cumsum(0).to(torch.int32),
        "max_length_q": max(lengths),
    }


@pytest.fixture(scope="module")
def sharded(tmp_path_factory, tokenizer):
    """The folder of a finished run of two processes, and the configuration of the model."""
    from mmbert_hf import MMBertConfig

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2}
    config = MMBertConfig(
        vocab_size=len(tokenizer),
        local_attention=16,
        initializer_range=0.08,
        attention_output_dropout=0.0,
        **sizes,
    )
    folder = tmp_path_factory.mktemp("sharded")
    torch.manual_seed(0)
    MMBertForMaskedLM(config).save_pretrained(folder / "start")
    generator = torch.Generator().manual_seed(0)
    rows = [[packed_row(lengths, config.vocab_size, generator) for lengths in ROW_LENGTHS] for _ in LOSS_FACTORS]
    torch.save(rows, folder / "batches.pt")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-addr=127.0.0.1"]
    command += [f"--master-port={port}", __file__, str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, cwd=folder)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_sharded_training_equals_one_process(sharded, optimizer):
    two = json.loads((sharded / f"{optimizer}.json").read_text())
    gathered = torch.load(sharded / f"{optimizer}.pt", weights_only=True)
    one, weights = train(sharded, optimizer)

    assert two["whole"] == one["whole"]
    assert two["local"].keys() == one["whole"].keys()
    for name, whole in one["whole"].items():
        assert abs(two["local"][name] - whole / 2) <= whole / 16, name
    assert two["tied"]
    assert two["lent"] == ["Parameter"]  # not DTensor: see mmbert_hf.shortcuts.is_plain_linear

    assert two["losses"] == pytest.approx(one["losses"], abs=1e-5)
    assert one["losses"][0] - one["losses"][-1] > 0.01
    if optimizer == "stable_adamw":  # the RMS is that of a whole tensor, not of a shard
        assert max(one["clipping"]) > 1.5
        assert two["clipping"] == pytest.approx(one["clipping"], rel=1e-3)
    start = MMBertForMaskedLM.from_pretrained(sharded / "start").state_dict()
    assert gathered.keys() == weights.keys() == start.keys()
    for name, weight in weights.items():
        # Adam makes a step of a gradient that is nothing but rounding: single weights differ, and the mean does not.
        torch.testing.assert_close(gathered[name], weight, rtol=0, atol=5e-5, msg=lambda text, n=name: f"{n}: {text}")
        assert (gathered[name] - weight).abs().mean() < 1e-6, name
        assert not torch.allclose(weight, start[name], atol=1e-3), name


def test_the_gathered_weights_are_those_of_a_plain_model(sharded):
    gathered = torch.load(sharded / "adamw.pt", weights_only=True)
    plain = MMBertForMaskedLM.from_pretrained(sharded / "start").eval()
    row = torch.load(sharded / "batches.pt", weights_only=True)[0][0]
    before = plain(**row).loss.item()
    plain.load_state_dict(gathered, strict=True)
    assert plain.decoder.weight is plain.model.embeddings.tok_embeddings.weight
    assert plain(**row).loss.item() < before - 0.01
    for name, parameter in plain.named_parameters():
        assert type(parameter) is torch.nn.Parameter, name
        assert torch.equal(parameter, gathered[name]), name


if __name__ == "__main__":
    main(Path(sys.argv[1]))
