"""Scoring on two processes (gloo) gives the statistics of one, in memory and in a folder, straight and resumed."""

import json
import os
import socket
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

SCRIPT = """
import json, os, sys
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from mmbert_hf.pruning import GAPruneConfig, GAPruner, scoring

folder, stop_at = sys.argv[1], int(sys.argv[2])
world, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
domain, general = (Dataset.from_list(rows) for rows in json.load(open(folder + "/triplets.json")))
model = SentenceTransformer(folder + "/model", device="cpu")
seen, add_batch = [], scoring.add_batch

def recording(model, sums, anchors, *texts, **options):
    if stop_at and len(seen) == stop_at:
        os._exit(7)
    seen.append(anchors)
    return add_batch(model, sums, anchors, *texts, **options)

scoring.add_batch = recording
keep = scoring.collect_statistics
import mmbert_hf.pruning.pruner as pruner_module
pruner_module.collect_statistics = lambda *a, **o: keep(*a, **o, save_seconds=0)
where = f"{folder}/statistics-{world}" if len(sys.argv) > 3 else None
statistics = GAPruner(
    model, domain, general, GAPruneConfig(batch_size=2, statistics_dir=where)
).score(progress=False)
if where is None and rank == world - 1:
    statistics.save(f"{folder}/saved-{world}")
json.dump(seen, open(f"{folder}/seen-{world}-{rank}.json", "w"))
if world > 1:
    assert torch.distributed.is_initialized()
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
"""


def run(folder, *command, expected=0):
    done = subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        text=True,
        timeout=200,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
        cwd=folder,
    )
    assert (done.returncode == 0) == (expected == 0), done.stderr[-4000:]


def launcher():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return ["-m", "torch.distributed.run", "--nproc-per-node=2", "--master-addr=127.0.0.1", f"--master-port={port}"]


@pytest.fixture
def folder(tmp_path, tiny_model, tokenizer, sentences):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    tiny_model.model.save_pretrained(tmp_path / "encoder")
    tokenizer.save_pretrained(tmp_path / "encoder")
    transformer = Transformer(str(tmp_path / "encoder"))
    pooling = Pooling(transformer.auto_model.config.hidden_size, pooling_mode="mean")
    SentenceTransformer(modules=[transformer, pooling], device="cpu").save_pretrained(str(tmp_path / "model"))
    texts = [text for group in sentences.values() for text in group]
    sets = [
        [
            {"anchor": texts[i % 10][:20], "positive": texts[(i + 1) % 10], "negative": texts[(i + shift) % 10]}
            for i in range(7)
        ]
        for shift in (3, 5)
    ]
    (tmp_path / "triplets.json").write_text(json.dumps(sets))
    (tmp_path / "script.py").write_text(SCRIPT)
    return tmp_path


def read(folder):
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def assert_close(one, two):
    assert one.keys() == two.keys() != set()
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-5, atol=1e-6 * float(tensor.abs().max()))


def test_two_processes_equal_one(folder):
    run(folder, "script.py", str(folder), "0")
    run(folder, *launcher(), "script.py", str(folder), "0")
    assert_close(read(folder / "saved-1"), read(folder / "saved-2"))
    one, *two = (json.loads((folder / f"seen-{name}.json").read_text()) for name in ("1-0", "2-0", "2-1"))
    per_set = len(one) // 2
    for start, share in ((0, per_set), (per_set, 2 * per_set)):
        dealt = [batch for seen in two for batch in seen if batch in one[start:share]]
        assert sorted(map(tuple, dealt)) == sorted(map(tuple, one[start:share])), "none twice, none left out"
    assert all(len(seen) < len(one) for seen in two)


def test_two_processes_that_were_killed_go_on(folder):
    run(folder, "script.py", str(folder), "0", "folder")
    run(folder, *launcher(), "script.py", str(folder), "1", "folder", expected=7)
    assert list((folder / "statistics-2").glob("*rank*")), "something was kept"
    run(folder, *launcher(), "script.py", str(folder), "0", "folder")
    assert_close(read(folder / "statistics-1"), read(folder / "statistics-2"))
    seen = [json.loads((folder / f"seen-2-{rank}.json").read_text()) for rank in (0, 1)]
    all_batches = json.loads((folder / "seen-1-0.json").read_text())
    assert sum(map(len, seen)) < len(all_batches), "the batches that were kept are not done again"
