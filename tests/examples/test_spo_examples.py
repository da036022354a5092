"""The examples of ``mmbert spo``: every file is read by the parser of the verb, their commands by accelerate, the toy runs."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from accelerate.commands.launch import launch_command_parser

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "examples" / "spo"
FILES = sorted(FOLDER.glob("*.yaml"))
WITHOUT_GPU = ["--use_cpu", "true", "--bf16", "false"]
# transformers 5.23 warns of what TRL 1.16 itself sets and reads
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing. is deprecated:FutureWarning"),
    pytest.mark.usefixtures("process_as_it_was"),
]


def commands_of(path):
    """The commands in the comments of a file."""
    lines = [line.lstrip("# ") for line in path.read_text().splitlines() if line.startswith("#")]
    return [shlex.split(line) for line in lines if line.startswith(("accelerate launch", "trl ", "mmbert ", "python "))]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_verb_reads_it(path):
    from mmbert_hf.cli.spo_settings import read_settings

    settings = read_settings(path, WITHOUT_GPU)
    content = yaml.safe_load(path.read_text())
    for name, value in content.items():
        (home,) = [part for part in settings[:4] if hasattr(part, name)]
        if name not in ("use_cpu", "bf16", "eval_strategy", "report_to"):  # given by us, or read into other types
            assert getattr(home, name) == (float(value) if name == "learning_rate" else value), name
    assert settings.config.num_generations == 1


def test_what_the_comments_say_of_batches():
    from mmbert_hf.cli.spo_settings import read_settings

    one, server, eight = (
        read_settings(FOLDER / f"{name}.yaml", WITHOUT_GPU).config
        for name in ("one_gpu_vllm_colocate", "vllm_server", "eight_gpus_deepspeed")
    )
    assert one.generation_batch_size == 128
    assert server.generation_batch_size * 8 == 512
    assert eight.generation_batch_size * 8 == 1024
    assert eight.steps_per_generation // eight.gradient_accumulation_steps == 8


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_commands_can_be_parsed(path):
    from mmbert_hf.cli import build_parser

    commands = commands_of(path)
    assert commands
    named = []
    for command in commands:
        if command[0] == "accelerate":
            args = launch_command_parser().parse_args(command[2:])
            assert args.module
            assert args.training_script == "mmbert_hf.cli"
            assert args.config_file is None or (ROOT / args.config_file).is_file()
            assert args.num_processes == (8 if args.config_file is None else None)
            command = ["mmbert", *args.training_script_args]
        if command[0] == "mmbert":
            args, rest = build_parser().parse_known_args(command[1:])
            assert (args.verb, rest) == ("spo", [])
            named.append(Path(args.config).name)
        if command[0] == "trl":
            from trl.scripts.vllm_serve import make_parser

            (args,) = make_parser().parse_args_into_dataclasses(command[2:], look_for_args_file=False)
            assert args.model == yaml.safe_load(path.read_text())["model_name_or_path"]
    assert set(named) == {path.name}


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "spo"
    shutil.copytree(FOLDER, folder, ignore=shutil.ignore_patterns("toy", "__pycache__"))
    return folder


@pytest.mark.slow
def test_the_toy_runs(folder, monkeypatch):
    """The script as a user runs it, the verb in this process, with few steps."""
    from mmbert_hf.trainers.spo import load_tracker

    from mmbert_hf.cli import main

    monkeypatch.chdir(folder)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", folder / "cache")
    done = subprocess.run(
        [sys.executable, "make_toy.py"], capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    assert len(Path("toy/sums.jsonl").read_text().splitlines()) == 256
    few = [
        "--max_steps",
        "8",
        "--save_steps",
        "8",
        "--eval_steps",
        "8",
        "--logging_steps",
        "1",
        "--disable_tqdm",
        "true",
    ]
    assert main(["spo", "--config", "cpu_toy.yaml", *few]) == 0
    log = json.loads(Path("toy/run/trainer_state.json").read_text())["log_history"]
    first, last = (entry["eval_reward"] for entry in log if "eval_reward" in entry)
    assert 0.15 < first < 0.4, "some sums are right from the start"
    assert last > 0.1, "and are not forgotten at once"
    tracker, _ = load_tracker("toy/run")
    assert (len(tracker), tracker.visits.sum()) == (256, 8 * 64)


def test_the_readme_names_every_file():
    text = (ROOT / "examples" / "README.md").read_text()
    assert [path.name for path in FILES if f"`spo/{path.name}`" not in text] == []
