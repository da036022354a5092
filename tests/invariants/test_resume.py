"""A run killed with SIGKILL at any point and resumed ends with the same bits, and reads the same rows on the way."""

import json
import os
import subprocess
import sys

SCRIPT = '''
import hashlib, json, os, random, signal, sys
import torch
from transformers import TrainerCallback
from mmbert_hf import MLMConfig, MLMTrainer, MMBertForMaskedLM, MMBertTokenizer
from mmbert_hf.recipes import Phase, Recipe
from mmbert_hf.schedules import Trapezoid
from mmbert_hf.trainers.checkpoints import last_complete_checkpoint

folder = sys.argv[1]
torch.set_num_threads(1)
tokenizer = MMBertTokenizer.from_pretrained(folder + "/start")
TEXTS = json.load(open(folder + "/texts.json"))
PHASES = [
    Phase("pretrain", 0.5, ["dan", "eng"], 0.7, 0.3, 32, 1e4, 4e-3, Trapezoid(warmup=0.3), 8e-5, 4, 2, 0.3),
    Phase("extend", 0.25, ["dan", "eng"], 0.5, 0.15, 64, 1.6e5, 4e-3, batch_rows=4),
    Phase("decay", 0.25, None, 0.3, 0.05, 64, 1.6e5, 2e-3, Trapezoid(decay=1.0, final=0.02), 4e-5, batch_rows=4),
]


def die():
    os.kill(os.getpid(), signal.SIGKILL)


class Kill(TrainerCallback):
    """At the beginning of a step, inside its accumulation window, or behind it."""

    def __init__(self, where, step):
        self.where, self.step = where, step

    def on_step_begin(self, args, state, control, **kwargs):
        if (self.where, self.step) == ("begin", state.global_step):
            die()

    def on_substep_end(self, args, state, control, **kwargs):
        if (self.where, self.step) == ("accumulating", state.global_step):
            die()

    def on_step_end(self, args, state, control, **kwargs):
        if (self.where, self.step) == ("end", state.global_step):
            die()


class KilledTrainer(MLMTrainer):
    """Dies while it saves: weights and optimizer are written, the rest is not."""

    kill_at = None

    def _save_rng_state(self, output_dir):
        if self.state.global_step == self.kill_at:
            die()
        super()._save_rng_state(output_dir)


def train(name, where=None, step=None, workers=0):
    output = f"{folder}/{name}"
    model = MMBertForMaskedLM.from_pretrained(folder + "/start", attention_output_dropout=0.1)
    args = MLMConfig(
        output, per_device_train_batch_size=2, gradient_accumulation_steps=2, max_repeats=None, save_steps=4,
        logging_steps=1, report_to="none", use_cpu=True, dataloader_pin_memory=False, disable_tqdm=True,
        dataloader_num_workers=workers,
    )
    trainer = KilledTrainer(
        model, args, TEXTS, processing_class=tokenizer, recipe=Recipe(PHASES, 8192), callbacks=[Kill(where, step)]
    )
    trainer.kill_at = step if where == "saving" else None

    def note(_, __, kwargs):
        line = f"{trainer.state.global_step} {hashlib.md5(str(kwargs['input_ids'].tolist()).encode()).hexdigest()}"
        with open(f"{output}-rows.txt", "a") as file:
            file.write(line + "\\n")

    model.register_forward_pre_hook(note, with_kwargs=True)
    last = last_complete_checkpoint(output)
    trainer.train(resume_from_checkpoint=None if last is None else str(last))
    torch.save(model.state_dict(), f"{folder}/{name}.pt")
    return trainer.plan, None if last is None else last.name


def in_child(function, *arguments):
    """Run in a forked process; return its exit status, negative for a signal."""
    child = os.fork()
    if not child:
        try:
            function(*arguments)
            os._exit(0)
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def straight():
    plan, _ = train("straight")
    json.dump({"steps": plan.num_steps, "first_steps": plan.first_steps}, open(folder + "/plan.json", "w"))


assert in_child(straight) == 0
plan = json.load(open(folder + "/plan.json"))
anywhere = random.Random(5)
points = [
    ("begin", plan["first_steps"][1]),           # the first step behind a phase switch has begun
    ("accumulating", plan["first_steps"][2]),    # inside the accumulation window of the switch to the decay
    ("saving", 8),                               # a checkpoint is half written
    ("accumulating", anywhere.randrange(5, plan["steps"])),
    ("end", anywhere.randrange(5, plan["steps"])),
]
report = {"plan": plan, "runs": []}
for number, (where, step) in enumerate(points):
    killed = in_child(train, f"run{number}", where, step)
    resumed_from = last_complete_checkpoint(f"{folder}/run{number}")
    workers = 2 if number == 0 else 0
    resumed = in_child(train, f"run{number}", None, None, workers)
    report["runs"].append(
        {"where": where, "step": step, "killed": killed, "resumed": resumed,
         "from": resumed_from.name if resumed_from else None}
    )
json.dump(report, open(folder + "/report.json", "w"))
'''


def test_a_killed_run_ends_with_the_same_bits(tmp_path, tiny_model, tokenizer, sentences):
    import torch

    tiny_model.save_pretrained(tmp_path / "start")
    tokenizer.save_pretrained(tmp_path / "start")
    (tmp_path / "texts.json").write_text(json.dumps({code: sentences[code] * 20 for code in ("dan", "eng", "fao")}))
    (tmp_path / "script.py").write_text(SCRIPT)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(
        [sys.executable, "script.py", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=280,
        env=environment,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    report = json.loads((tmp_path / "report.json").read_text())
    straight = torch.load(tmp_path / "straight.pt", weights_only=True)
    rows = (tmp_path / "straight-rows.txt").read_text().split("\n")[:-1]
    assert len(rows) == 2 * report["plan"]["steps"]  # two accumulated batches a step
    for number, run in enumerate(report["runs"]):
        assert (run["killed"], run["resumed"]) == (-9, 0), run
        saved = 4 * ((run["step"] - (run["where"] in ("saving", "end"))) // 4)
        assert run["from"] == f"checkpoint-{saved}", run
        weights = torch.load(tmp_path / f"run{number}.pt", weights_only=True)
        assert all(torch.equal(weights[name], straight[name]) for name in straight), run
        seen = (tmp_path / f"run{number}-rows.txt").read_text().split("\n")[:-1]
        behind = seen[-2 * (report["plan"]["steps"] - saved) :]  # what the resumed process read
        assert behind == rows[2 * saved :], run
        before = seen[: len(seen) - len(behind)]
        assert before == rows[: len(before)], run
    start = tiny_model.state_dict()
    assert max((straight[name] - start[name]).abs().max() for name in start) > 1e-3
