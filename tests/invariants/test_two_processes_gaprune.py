"""Retraining with a mask on two processes (DDP over gloo) is what one process does with the same global batch."""

import json
import os
import socket
import subprocess
import sys

import torch

from mmbert_hf.pruning.masks import PruningMask
from mmbert_hf.pruning.targets import encoder_of, find_targets

SCRIPT = """
import json, os, sys
import datasets, torch
import torch.distributed
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from torch.nn.parallel import DistributedDataParallel
from transformers import TrainerCallback
from mmbert_hf.pruning.masks import PruningMask
from mmbert_hf.trainers.gaprune import GAPruneCallback

folder, accumulated = sys.argv[1], int(sys.argv[2])
world, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
model = SentenceTransformer(folder + "/start", device="cpu")
for module in model.modules():
    if isinstance(module, torch.nn.Dropout):
        module.p = 0.0  # processes draw their own
mask = PruningMask.load(folder + "/mask.safetensors")
rows = datasets.Dataset.from_dict(json.load(open(folder + "/rows.json")))
args = SentenceTransformerTrainingArguments(
    f"{folder}/out{world}", max_steps=6, per_device_train_batch_size=4, gradient_accumulation_steps=accumulated,
    learning_rate=1e-3, weight_decay=0.1, max_grad_norm=0.5, logging_steps=1, save_strategy="steps", save_steps=3,
    report_to="none", use_cpu=True, disable_tqdm=True, dataloader_pin_memory=False,
    ddp_backend="gloo" if world > 1 else None,
)


class Watch(TrainerCallback):
    revived, reduced = 0, []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        for name, linear in mask.linears(model).items():
            Watch.revived += int(linear.weight.grad[~mask.kept[name]].count_nonzero())
        Watch.reduced.append(sum(float(parameter.grad.abs().sum()) for parameter in model.parameters() if parameter.grad is not None))

    def on_step_end(self, args, state, control, model=None, **kwargs):
        Watch.revived += sum(
            int(linear.weight[~mask.kept[name]].count_nonzero()) for name, linear in mask.linears(model).items()
        )


loss = MultipleNegativesRankingLoss(model)
trainer = SentenceTransformerTrainer(model, args, rows, loss=loss, callbacks=[GAPruneCallback(mask), Watch()])
trainer.train()
assert isinstance(trainer.model_wrapped, DistributedDataParallel) == (world > 1)
norms = [entry["grad_norm"] for entry in trainer.state.log_history if "grad_norm" in entry]
record = {"revived": Watch.revived, "reduced": Watch.reduced, "norms": norms}
json.dump(record, open(f"{folder}/record-{world}-{rank}.json", "w"))
torch.save(model.state_dict(), f"{folder}/weights-{world}-{rank}.pt")
if world > 1:
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
"""


def run(folder, *command):
    done = subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        text=True,
        timeout=200,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr[-4000:]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_two_processes_equal_one(tmp_path, bert_embedder, make_triplets):
    generator = torch.Generator().manual_seed(1)
    mask = PruningMask(
        {
            target.name: torch.rand(
                encoder_of(bert_embedder).get_submodule(target.name).weight.shape, generator=generator
            )
            > 0.5
            for target in find_targets(bert_embedder)
        }
    )
    mask.save(tmp_path / "mask.safetensors")
    bert_embedder.save_pretrained(str(tmp_path / "start"))
    (tmp_path / "rows.json").write_text(json.dumps(make_triplets(48).to_dict()))
    (tmp_path / "script.py").write_text(SCRIPT)
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--master-addr=127.0.0.1"]
    run(tmp_path, "script.py", str(tmp_path), "2")
    run(tmp_path, *launcher, f"--master-port={free_port()}", "script.py", str(tmp_path), "1")

    one, *two = (json.loads((tmp_path / f"record-{name}.json").read_text()) for name in ("1-0", "2-0", "2-1"))
    assert [record["revived"] for record in (one, *two)] == [
        0,
        0,
        0,
    ]  # gradients after reducing, weights after the step
    assert two[0]["reduced"] == two[1]["reduced"]
    for record in two:
        torch.testing.assert_close(torch.tensor(record["norms"]), torch.tensor(one["norms"]), rtol=1e-4, atol=0)
    weights = [torch.load(tmp_path / f"weights-{name}.pt", weights_only=True) for name in ("1-0", "2-0", "2-1")]
    start = bert_embedder.state_dict()
    for name, expected in weights[0].items():
        assert torch.equal(weights[1][name], weights[2][name]), name
        torch.testing.assert_close(weights[1][name], expected, rtol=0, atol=1e-5)
    assert max((weights[0][name] - start[name]).abs().max() for name in start) > 1e-3
