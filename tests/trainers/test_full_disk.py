"""A disk that fills up while a checkpoint is written: the run stops with the system's error, the last checkpoint lives."""

import json
import subprocess
import sys

import pytest
import torch

SCRIPT = """
import resource, signal, sys
from transformers import Trainer, TrainerCallback, TrainingArguments
from mmbert_hf import AnnealingCallback, LanguageMixture, MaskingCollator, MMBertForMaskedLM, MMBertTokenizer
from mmbert_hf.schedules import Linear

folder, resume = sys.argv[1], sys.argv[2] == "resume"

class FullDisk(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 4 and not resume:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))

tokenizer = MMBertTokenizer.from_pretrained(folder + "/start")
model = MMBertForMaskedLM.from_pretrained(folder + "/start")
mixture = LanguageMixture({"fao": [list(range(30, 60))] * 4}, tokenizer, num_samples=24, max_length=12)
args = TrainingArguments(
    folder + "/out", max_steps=6, per_device_train_batch_size=4, train_sampling_strategy="sequential", save_steps=2,
    save_total_limit=1, report_to="none", use_cpu=True, dataloader_pin_memory=False, disable_tqdm=True,
)
callbacks = [AnnealingCallback(Linear(0.9, 0.3)), FullDisk()]
trainer = Trainer(model, args, train_dataset=mixture, data_collator=MaskingCollator(tokenizer), callbacks=callbacks)
trainer.train(resume_from_checkpoint=folder + "/out/checkpoint-2" if resume else None)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="file size limits are a POSIX feature")
def test_the_previous_checkpoint_survives_and_resumes(tmp_path, tiny_model, tokenizer):
    tiny_model.save_pretrained(tmp_path / "start")
    tokenizer.save_pretrained(tmp_path / "start")

    def run(how):
        command = [sys.executable, "-c", SCRIPT, str(tmp_path), how]
        return subprocess.run(command, capture_output=True, text=True, timeout=120)

    stopped = run("first")
    assert stopped.returncode != 0
    assert "File too large" in stopped.stderr or "os error 27" in stopped.stderr
    survivor = tmp_path / "out/checkpoint-2"
    assert json.loads((survivor / "trainer_state.json").read_text())["global_step"] == 2
    assert not (tmp_path / "out/checkpoint-4/trainer_state.json").exists()
    for name in ("optimizer.pt", "scheduler.pt"):
        assert torch.load(survivor / name, weights_only=True)
    resumed = run("resume")
    assert resumed.returncode == 0, resumed.stderr
    assert (tmp_path / "out/checkpoint-6/trainer_state.json").exists()
