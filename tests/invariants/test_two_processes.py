"""Two processes train as one does: the same samples, masks and weights, through torch.distributed.run with gloo."""

import json
import os
import socket
import subprocess
import sys

import torch

SCRIPT = """
import json, os, sys
import torch
from transformers import Trainer, TrainingArguments
from mmbert_hf import AnnealingCallback, LanguageMixture, MaskingCollator, MMBertForMaskedLM, MMBertTokenizer
from mmbert_hf.schedules import Linear

folder, rows = sys.argv[1], int(sys.argv[2])
tokenizer = MMBertTokenizer.from_pretrained(folder + "/start")
model = MMBertForMaskedLM.from_pretrained(folder + "/start")
seen = []
model.register_forward_pre_hook(lambda m, args, kwargs: seen.append(kwargs["labels"].tolist()), with_kwargs=True)
documents = {"eng": [list(range(30, 60))] * 4, "fao": [list(range(60, 90))]}
mixture = LanguageMixture(documents, tokenizer, num_samples=16, counts={"eng": 1e6, "fao": 1.0}, max_length=12)
args = TrainingArguments(
    folder + "/out", max_steps=4, per_device_train_batch_size=rows, train_sampling_strategy="sequential",
    report_to="none", save_strategy="no", use_cpu=True, dataloader_pin_memory=False, learning_rate=1e-2,
    max_grad_norm=0.0, disable_tqdm=True, ddp_backend="gloo" if "RANK" in os.environ else None,
)
callback = AnnealingCallback(Linear(0.9, 0.3), Linear(1.0, 0.0))
Trainer(model, args, train_dataset=mixture, data_collator=MaskingCollator(tokenizer), callbacks=[callback]).train()
rank = int(os.environ.get("RANK", 0))
with open(f"{folder}/labels-{os.environ.get('WORLD_SIZE', 1)}-{rank}.json", "w") as file:
    json.dump(seen, file)
if rank == 0:
    torch.save(model.state_dict(), f"{folder}/weights-{os.environ.get('WORLD_SIZE', 1)}.pt")
"""


def run(folder, *command):
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, timeout=120, env=environment(), cwd=folder
    )
    assert done.returncode == 0, done.stderr[-4000:]


def environment():
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_two_processes_equal_one(tmp_path, tiny_model, tokenizer):
    tiny_model.save_pretrained(tmp_path / "start")
    tokenizer.save_pretrained(tmp_path / "start")
    (tmp_path / "script.py").write_text(SCRIPT)
    launcher = [
        "-m",
        "torch.distributed.run",
        "--nproc-per-node=2",
        "--master-addr=127.0.0.1",
        f"--master-port={free_port()}",
    ]
    run(tmp_path, "script.py", str(tmp_path), "4")
    run(tmp_path, *launcher, "script.py", str(tmp_path), "2")

    one = json.loads((tmp_path / "labels-1-0.json").read_text())
    two = [json.loads((tmp_path / f"labels-2-{rank}.json").read_text()) for rank in (0, 1)]
    for step, batch in enumerate(one):
        halves = two[0][step] + two[1][step]
        assert unpadded(halves) == unpadded(batch), f"step {step}"
    expected, actual = (torch.load(tmp_path / f"weights-{n}.pt", weights_only=True) for n in (1, 2))
    start = tiny_model.state_dict()
    # Adam makes a step of a gradient that is nothing but rounding, so single weights differ by a part of a step of 1e-3.
    for name, weight in expected.items():
        assert (actual[name] - weight).abs().max() < 1e-4, name
        assert (actual[name] - weight).abs().mean() < 1e-6, name
    assert not torch.allclose(
        expected["model.embeddings.tok_embeddings.weight"], start["model.embeddings.tok_embeddings.weight"], atol=1e-3
    )


def unpadded(rows):
    """Rows without the padding of their batch, which depends on how rows are split."""
    return [[label for label in row if label != -100] for row in rows]
