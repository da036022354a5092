"""`MLMTrainer` on two processes (DDP over gloo) does what one process does with the same global batch."""

import json
import os
import socket
import subprocess
import sys

import torch

SCRIPT = """
import json, os, sys
import torch
import torch.distributed
from torch.nn.parallel import DistributedDataParallel
from mmbert_hf import MLMConfig, MLMTrainer, MMBertForMaskedLM, MMBertTokenizer
from mmbert_hf.recipes import Phase, Recipe
from mmbert_hf.schedules import Trapezoid

folder, accumulated, workers = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
world, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
tokenizer = MMBertTokenizer.from_pretrained(folder + "/start")
model = MMBertForMaskedLM.from_pretrained(folder + "/start")
phases = [
    Phase("pretrain", 0.5, ["dan", "eng"], 0.7, 0.3, 32, 1e4, 4e-3, Trapezoid(warmup=0.3), 8e-5, 4, 2, 0.3),
    Phase("decay", 0.5, None, 0.3, 0.15, 64, 1.6e5, 2e-3, Trapezoid(decay=1.0, final=0.02), 4e-5, batch_rows=4),
]
texts = json.load(open(folder + "/texts.json"))
args = MLMConfig(
    f"{folder}/out{world}", per_device_train_batch_size=2, gradient_accumulation_steps=accumulated, max_repeats=None,
    logging_steps=1, save_strategy="steps", save_steps=6, report_to="none", use_cpu=True, disable_tqdm=True,
    dataloader_pin_memory=False, dataloader_num_workers=workers, ddp_backend="gloo" if world > 1 else None,
)
seen = []
model.register_forward_pre_hook(lambda m, a, kwargs: seen.append(kwargs["labels"].tolist()), with_kwargs=True)
trainer = MLMTrainer(model, args, texts, {"fao": texts["fao"][:2]}, tokenizer, recipe=Recipe(phases, 4096))
trainer.train()
assert isinstance(trainer.model_wrapped, DistributedDataParallel) == (world > 1)
record = {"labels": list(seen), "log": trainer.state.log_history, "loss": trainer.evaluate()["eval_loss"]}
json.dump(record, open(f"{folder}/record-{world}-{rank}.json", "w"))
if rank == 0:
    torch.save(model.state_dict(), f"{folder}/weights-{world}.pt")
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


def test_two_processes_equal_one(tmp_path, tiny_model, tokenizer, sentences):
    tiny_model.save_pretrained(tmp_path / "start")
    tokenizer.save_pretrained(tmp_path / "start")
    (tmp_path / "texts.json").write_text(json.dumps({code: sentences[code] * 20 for code in ("dan", "eng", "fao")}))
    (tmp_path / "script.py").write_text(SCRIPT)
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--master-addr=127.0.0.1"]
    run(tmp_path, "script.py", str(tmp_path), "2", "0")
    run(tmp_path, *launcher, f"--master-port={free_port()}", "script.py", str(tmp_path), "1", "1")

    one = json.loads((tmp_path / "record-1-0.json").read_text())
    two = [json.loads((tmp_path / f"record-2-{rank}.json").read_text()) for rank in (0, 1)]
    # the ranks deal the micro-batches of every step among themselves: none twice, none lost
    assert one["labels"] == [batch for pair in zip(two[0]["labels"], two[1]["labels"], strict=True) for batch in pair]
    for mine, theirs in zip(one["log"], two[0]["log"], strict=True):
        for name in ("loss", "learning_rate", "tokens_seen", "packing_fill", "batch_rows"):
            if name in mine:
                assert abs(mine[name] - theirs[name]) <= 1e-5, (mine["step"], name)
    assert abs(one["loss"] - two[0]["loss"]) <= 1e-5
    assert two[0]["loss"] == two[1]["loss"]
    expected, actual = (torch.load(tmp_path / f"weights-{n}.pt", weights_only=True) for n in (1, 2))
    start = tiny_model.state_dict()
    assert all(torch.allclose(actual[name], weight, rtol=0, atol=1e-5) for name, weight in expected.items())
    assert max((expected[name] - start[name]).abs().max() for name in start) > 1e-3
    assert sorted(path.name for path in (tmp_path / "out2/checkpoint-6").glob("rng_state_*")) == [
        "rng_state_0.pth",
        "rng_state_1.pth",
    ]
