"""``mmbert spo`` from a file to a model and a published tracker; mistakes are told in one sentence before a model is loaded."""

import dataclasses
import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from mmbert_hf.cli import main, spo
from mmbert_hf.testing import LoopbackHub

# transformers 5.23 warns of what TRL 1.16 itself sets and reads
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing. is deprecated:FutureWarning")
ROOT = Path(__file__).resolve().parents[2]
EIGHT_GPUS = ROOT / "examples" / "accelerate" / "eight_gpus_ddp.yaml"
REWARDS = '''
import json, os, signal
from pathlib import Path


class Judge:
    pass


not_a_function = 3


def correct(completions, answer, **_):
    return [float(text == right) for text, right in zip(completions, answer)]


def begins(completions, **_):
    return [float(text[0].isdigit()) for text in completions]


def interrupting(completions, answer, trainer_state, **_):
    """Presses Ctrl-C once, in the third step."""
    if trainer_state.global_step == 2 and not Path("pressed").exists():
        Path("pressed").touch()
        os.kill(os.getpid(), signal.SIGINT)
    return correct(completions, answer)


def search(text: str) -> str:
    """Find a text.

    Args:
        text: What to find.
    """
    return text
'''
SETTINGS = {
    "model_name_or_path": "model",
    "dataset_name": "sums.jsonl",
    "reward_funcs": ["rewards.py:correct"],
    "output_dir": "run",
    "max_steps": 4,
    "save_steps": 2,
    "per_device_train_batch_size": 8,
    "learning_rate": "1e-3",
    "max_completion_length": 2,
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "disable_tqdm": True,
    "logging_steps": 1,
    "report_to": "none",
}


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """A folder with a model that knows nothing, prompts and reward functions."""
    spec = importlib.util.spec_from_file_location("make_toy", ROOT / "examples" / "spo" / "make_toy.py")
    make_toy = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make_toy)
    make_toy.FIT_STEPS = 1
    folder, sums, tokenizer = tmp_path_factory.mktemp("toy"), make_toy.make_sums()[:20], make_toy.make_tokenizer()
    make_toy.make_model(tokenizer, sums).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in sums))
    (folder / "rewards.py").write_text(REWARDS)
    return folder


@pytest.fixture
def work(toy, tmp_path, monkeypatch):
    """A copy of it as the current folder; no network, and no cache but this test's."""
    folder = shutil.copytree(toy, tmp_path / "work")
    monkeypatch.chdir(folder)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(os, "environ", os.environ.copy())
    return folder


def write(name="c.yaml", **changes):
    """A file of settings; None takes one out."""
    settings = {key: value for key, value in {**SETTINGS, **changes}.items() if value is not None}
    Path(name).write_text(yaml.safe_dump(settings, sort_keys=False))
    return name


def run(*words, **changes):
    return main(["spo", "--config", write(**changes), *map(str, words)])


def log_of(folder):
    return json.loads(Path(folder, "trainer_state.json").read_text())["log_history"]


def weights_of(folder):
    return Path(folder, "model.safetensors").read_bytes()


# Help


def test_help_names_settings_that_there_are(capsys):
    from mmbert_hf.trainers.spo import SPOConfig

    from mmbert_hf.cli.spo_settings import build_parser

    assert main(["spo", "--help-all"]) == 0
    text = capsys.readouterr().out
    missing = [field.name for field in dataclasses.fields(SPOConfig) if field.init and f"--{field.name}" not in text]
    assert not missing
    names = {action.dest for action in build_parser()._actions}
    lines = [
        line[2:] for line in spo.HELP.splitlines() if line.startswith("  ") and not line.startswith("  accelerate")
    ]
    told = {name for line in lines for name in line.split("   ")[0].split(", ") if name != "..."}
    assert len(told) > 20
    assert told <= names


# The page


def rows_of(page, first):
    """Cells of the table whose head begins with a word."""
    lines = page.split(f"| {first} |", 1)[1].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[: lines.index("")]]


def test_the_page_says_what_the_defaults_are():
    from mmbert_hf.trainers.spo.config import PAPER, SPOConfig
    from trl import GRPOConfig

    page = (ROOT / "docs" / "spo.md").read_text()
    defaults = {field.name: field.default for field in dataclasses.fields(SPOConfig)}
    told = {row[0].strip("`"): row[1:3] for row in rows_of(page, "option")}
    own = {field.name for field in dataclasses.fields(SPOConfig)} - {
        field.name for field in dataclasses.fields(GRPOConfig)
    }
    assert set(told) == own
    for name, (default, paper) in told.items():
        values = defaults[name], PAPER.get(name, defaults[name])
        expected = [
            "none" if value is None else f"`{value}`" if isinstance(value, str) else str(value) for value in values
        ]
        assert [default, paper] == expected, name
    for name in set(PAPER) - set(told):
        assert f"`{name}`" in page


def test_the_page_names_every_figure():
    import numpy as np
    from mmbert_hf.trainers.spo.metrics import round_metrics
    from mmbert_hf.trainers.spo.tracker import ValueTracker

    page = (ROOT / "docs" / "spo.md").read_text()
    told = {name for row in rows_of(page, "figure") for name in re.findall("spo/([a-z0-9_]+)", row[0])}
    one = np.ones(1)
    metrics = round_metrics(ValueTracker(1), one, one, 1.0, one, one, 0, starvation_rounds=1)
    assert told == {*metrics, "estimate_tokens", "estimate_seconds"}


# Runs


def test_from_a_file_to_a_published_tracker(work, tmp_path):
    """In a process of its own, as a user starts it."""
    with LoopbackHub() as hub:
        environment = {**os.environ, **hub.environment(), "OMP_NUM_THREADS": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
        environment |= {"HF_DATASETS_CACHE": str(tmp_path / "cache")}
        publish = {"push_to_hub": True, "hub_model_id": "loopback/policy", "push_tracker_to": "loopback/values"}
        command = [sys.executable, "-m", "mmbert_hf.cli", "spo", "--config", write(**publish), "--hub_token", hub.token]
        done = subprocess.run(command, capture_output=True, text=True, timeout=280, env=environment)
        assert done.returncode == 0, done.stderr[-4000:]
        assert "published the tracker: " in done.stdout
        uploaded = " ".join(record.path for record in hub.requests)
        assert "loopback/policy" in uploaded
        assert "datasets/loopback/values" in uploaded

    from mmbert_hf.trainers.spo import load_tracker
    from transformers import AutoModelForCausalLM

    assert AutoModelForCausalLM.from_pretrained("run").config.hidden_size == 64
    tracker, metadata = load_tracker("run")
    assert (tracker.round, tracker.visits.sum()) == (4, 32)
    assert metadata["processes"] == 1
    assert load_tracker("run/checkpoint-4")[0].values.tolist() == tracker.values.tolist()
    settings = Path("run/settings.yaml").read_text()
    assert hub.token not in settings
    assert yaml.safe_load(settings)["learning_rate"] == 1e-3
    assert any("spo/value_mean" in entry for entry in log_of("run"))


def test_stopped_it_saves_and_the_same_command_continues_to_the_same_bits(work, capsys):
    kept = {"reward_funcs": ["rewards.py:interrupting"], "save_steps": 100, "lr_scheduler_type": "constant"}
    Path("pressed").touch()
    assert run(**kept, output_dir="straight") == 0
    Path("pressed").unlink()
    assert run(**kept) == 130
    assert "stopped behind step 3 of 4; the same command continues" in capsys.readouterr().err
    assert [path.name for path in Path("run").glob("checkpoint-*")] == ["checkpoint-3"]
    assert run("--dry-run", **kept) == 0
    assert "# checkpoint: continues run/checkpoint-3" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert run(**kept) == 0
    assert weights_of("run") == weights_of("straight") != weights_of("model")
    checkpoints = sorted(Path("run").glob("checkpoint-*"))
    capsys.readouterr()
    assert run("--dry-run", **kept) == 0
    assert "# checkpoint: run/checkpoint-4, the end of this run: nothing is left to train" in capsys.readouterr().out
    assert run(**kept) == 0
    assert "the run was at its end, nothing was trained" in capsys.readouterr().out
    assert weights_of("run") == weights_of("straight")
    assert sorted(Path("run").glob("checkpoint-*")) == checkpoints


def test_a_reward_that_is_not_there_is_told_before_other_settings(work, capsys):
    assert run(max_steps=1, save_steps=1) == 0
    capsys.readouterr()
    assert run(max_steps=1, save_steps=1, reward_funcs=["rewards.py:corect"]) == 2
    error = capsys.readouterr().err
    assert "corect" in error
    assert "other settings" not in error


def test_a_value_that_the_configuration_refuses_is_told_with_its_line(work, capsys):
    assert run(sampling="bernouli") == 2
    error = capsys.readouterr().err
    assert re.search(r"sampling must be one of .*, got 'bernouli'.*c.yaml, line \d+", error), error


def test_a_run_with_other_settings_is_refused(work, capsys):
    assert run(max_steps=1, save_steps=1) == 0
    assert run(max_steps=1, save_steps=1, logging_steps=5) == 0, "what is logged decides nothing"
    assert run(max_steps=1, save_steps=1, learning_rate="2e-3", beta=None) == 2
    message = capsys.readouterr().err
    assert "learning_rate was 0.001, is 0.002" in message
    assert "--allow_change" in message
    assert run("--allow_change", max_steps=2, save_steps=1, learning_rate="2e-3") == 0
    assert Path("run/checkpoint-2").is_dir()
    assert "allow_change" not in yaml.safe_load(Path("run/settings.yaml").read_text())


def test_a_checkpoint_of_two_processes_is_refused_by_one(work, capsys):
    from mmbert_hf.trainers.spo.tracker_files import TRACKER_FILE, read_tracker, write_tracker

    assert run(max_steps=1, save_steps=1) == 0
    folder = Path("run/checkpoint-1")
    tracker, metadata = read_tracker(folder / TRACKER_FILE)
    write_tracker(folder / TRACKER_FILE, tracker, **{**metadata, "processes": 2})
    shutil.copy(folder / "rng_state.pth", folder / "rng_state_1.pth")
    (folder / "rng_state.pth").rename(folder / "rng_state_0.pth")
    capsys.readouterr()
    assert run(max_steps=2, save_steps=1, allow_change=True) == 2
    assert "saved by 2 processes and 1 are running" in capsys.readouterr().err


def test_lora_mixtures_evaluation_and_an_average_of_two_rewards(work):
    rows = [json.loads(line) for line in Path("sums.jsonl").read_text().splitlines()]
    import datasets

    datasets.Dataset.from_list(rows[:10]).to_parquet("first.parquet")
    mixture = [
        {"path": "first.parquet", "fraction": 0.5},
        {"path": "sums.jsonl", "columns": ["prompt", "answer"], "fraction": 0.5},
    ]
    changes = {
        "dataset_name": None,
        "datasets": mixture,
        "test_split_size": 0.2,
        "eval_strategy": "steps",
        "eval_steps": 1,
    }
    changes |= {"use_peft": True, "lora_target_modules": ["q_proj", "v_proj"], "max_steps": 1, "save_strategy": "no"}
    changes |= {"per_device_eval_batch_size": 4}
    changes |= {"reward_funcs": ["rewards.py:correct", "rewards.correct"], "reward_weights": [1, 0.5]}
    assert run(**changes) == 0
    assert json.loads(Path("run/adapter_config.json").read_text())["r"] == 16
    assert any("eval_reward" in entry for entry in log_of("run"))

    from mmbert_hf.trainers.spo import load_tracker

    tracker, _ = load_tracker("run")
    assert (len(tracker), tracker.kind) == (16, "average")


@pytest.mark.slow
def test_two_processes_are_one_run(work):
    """`accelerate launch` with the configuration for eight GPUs, on the CPU with two processes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    smaller = ["--num_processes", "2", "--mixed_precision", "no", "--main_process_port", port]
    launcher = ["-m", "accelerate.commands.launch", "--config_file", str(EIGHT_GPUS), *smaller]
    config = write(max_steps=1, save_steps=1)
    command = [sys.executable, *launcher, "-m", "mmbert_hf.cli", "spo", "--config", config]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=280, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.count("saved in run") == 1

    from mmbert_hf.trainers.spo import load_tracker

    tracker, metadata = load_tracker("run/checkpoint-1")
    assert (tracker.visits.sum(), metadata["processes"]) == (16, 2)


# Dry runs


def test_a_dry_run_prints_yaml_that_says_the_same(work, capsys):
    from mmbert_hf.cli.spo_settings import read_settings

    assert run("--dry-run", "--hub_token", "secret", "--seed", "7", "--max_steps", "9", env={"SOME_KEY": "hidden"}) == 0
    text = capsys.readouterr().out
    assert "secret" not in text
    assert "hidden" not in text
    assert os.environ["SOME_KEY"] == "hidden"
    assert not Path("run").exists()
    assert "# prompts: 20, with the columns prompt, answer" in text
    assert "# reward rewards.py:correct: [0.0, 0.0]" in text
    assert "# generation: 8 responses (8 a device x 1 steps x 1 processes)" in text
    given = yaml.safe_load(text)
    assert (given["seed"], given["max_steps"]) == (7, 9), "flags override the file"
    Path("again.yaml").write_text(text)
    assert read_settings("again.yaml").given == given


def test_a_dry_run_sees_rewards_that_would_stop_the_run(work, capsys):
    Path("far.py").write_text("def far(completions, **_):\n    return [5.0] * len(completions)\n")
    assert run("--dry-run", reward_funcs=["far.py:far"]) == 2
    assert "rewards must be in [0, 1] for Beta values, got 5 to 5" in capsys.readouterr().err
    assert run("--dry-run", reward_funcs=["far.py:far"], value_model="average") == 0


def test_a_stream_and_tools(work, capsys):
    tools = ["rewards.py:search"]
    assert run("--dry-run", dataset_streaming=True, tools=tools, sampling="uniform") == 0
    text = capsys.readouterr().out
    assert "# prompts: a stream, taken as it comes" in text
    assert "# tools: search" in text


def test_the_paper_is_a_start_that_the_file_and_flags_change(work):
    from mmbert_hf.trainers.spo.config import PAPER

    from mmbert_hf.cli.spo_settings import read_settings

    config = read_settings(write(paper=True, learning_rate=None, rho_min=0.5), ["--sampling", "uniform"]).config
    differing = {name for name, value in PAPER.items() if getattr(config, name) != value}
    assert differing == {"rho_min", "sampling"}
    assert read_settings(write(), []).config.sampling == "thompson"


def test_reward_functions_are_tried_on_what_a_model_may_say(work, capsys):
    assert run("--dry-run", reward_funcs=["rewards.py:begins"]) == 2
    assert "begins fails on an empty response: IndexError" in capsys.readouterr().err


# Mistakes

MISTAKES = {
    "key": (
        {"learning_rat": 1},
        [],
        r"c.yaml, line \d+: there is no setting 'learning_rat'; did you mean 'learning_rate'",
    ),
    "flag": ({}, ["--model-name", "x"], "there is no setting '--model-name'; did you mean"),
    "word": ({"max_steps": "many"}, [], r"c.yaml, line \d+: max_steps must be a whole number, got 'many'"),
    "fraction": ({"max_steps": 1.5}, [], "max_steps must be a whole number, got 1.5"),
    "truth": ({"use_cpu": "perhaps"}, [], "use_cpu must be true or false, got 'perhaps'"),
    "list": ({"max_steps": [1, 2]}, [], r"max_steps takes one value, got \[1, 2\]"),
    "flag's value": ({}, ["--max_steps", "many"], "argument --max_steps.*invalid int value: 'many'"),
    "choice": ({"dtype": "float8"}, [], "dtype must be one of auto, bfloat16, float16, float32, got 'float8'"),
    "range": ({"rho_max": 2}, [], "rho_min <= rho_max <= 1 must hold, got 0.8 and 2"),
    "groups": ({"num_generations": 8}, [], "num_generations must be 1, got 8"),
    "output": ({"output_dir": None}, [], "nowhere to write to: give output_dir"),
    "model": ({"model_name_or_path": None}, [], "no model to train"),
    "no such model": ({"model_name_or_path": "./mdel"}, [], "there is no folder './mdel'"),
    "no prompts": ({"dataset_name": None}, [], "give the prompts once"),
    "prompts twice": ({"datasets": [{"path": "sums.jsonl"}]}, [], "give the prompts once"),
    "mixture": ({"dataset_name": None, "datasets": [{"path": "sums.jsonl", "spilt": "a"}]}, [], "did you mean 'split'"),
    "no file": ({"dataset_name": "smus.jsonl"}, [], "there is no file or folder 'smus.jsonl'"),
    "kind": ({"dataset_name": "rewards.py"}, [], "'rewards.py' is no file of prompts"),
    "split": ({"dataset_train_split": "trian"}, [], "sums.jsonl cannot be loaded: Unknown split"),
    "column": ({"dataset_name": "bare.jsonl"}, [], "needs a column 'prompt', it has question"),
    "broken": ({"dataset_name": "broken.jsonl"}, [], "broken.jsonl cannot be loaded: "),
    "evaluation": ({"eval_strategy": "steps"}, [], "a file has one split: name another to evaluate on"),
    "no evaluation": ({"eval_dataset_name": "sums.jsonl"}, [], "eval_dataset_name is never looked at"),
    "rewards": ({"reward_funcs": None}, [], "nothing says what a good response is"),
    "reward": ({"reward_funcs": ["rewards.py:corect"]}, [], "has no 'corect'; did you mean 'correct'"),
    "reward's file": ({"reward_funcs": ["reward.py:correct"]}, [], "there is no file 'reward.py' in"),
    "reward's module": ({"reward_funcs": ["nowhere.correct"]}, [], "nowhere cannot be imported: ModuleNotFoundError"),
    "reward's name": (
        {"reward_funcs": "correct"},
        [],
        "expected file.py:function, package.module.function, or one of acc",
    ),
    "class": ({"reward_funcs": ["rewards.py:Judge"]}, [], "must be a function, got a class"),
    "number": ({"reward_funcs": ["rewards.py:not_a_function"]}, [], "must be a function, got int"),
    "tool": ({"tools": ["serach"]}, [], "tool 'serach': expected"),
    "four bits": ({"load_in_4bit": True}, [], "set use_peft"),
    "tracker's name": ({"push_tracker_to": "values"}, [], "push_tracker_to must be owner/name, got 'values'"),
    "checkpoint": ({"resume_from_checkpoint": "run/checkpoint-9"}, [], "there is no folder 'run/checkpoint-9'"),
    "variables": ({"env": ["A=1"]}, [], "env must be a mapping"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told_in_one_sentence(work, capsys, name):
    changes, words, expected = MISTAKES[name]
    Path("bare.jsonl").write_text('{"question": "1+1="}\n')
    Path("broken.jsonl").write_text('{"prompt": "1+1=", "answer": "2"}\n{"prom')
    assert run(*words, "--dry-run", **changes) == 2
    out, err = capsys.readouterr()
    assert not out
    lines = [line for line in err.splitlines() if line.startswith("mmbert spo: ")]
    assert len(lines) == 1
    assert re.search(expected, lines[0]), lines[0]
    assert "Traceback" not in err
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("max_steps: 3\nseed: [1,\n", "c.yaml, line 3: not YAML: expected the node content, but found '<stream end>'"),
        ("seed: 1\n beta: 2\n", "c.yaml, line 2: not YAML: mapping values are not allowed here"),
        ("seed: {a: 1\nbeta: 2", "(while parsing a flow mapping in line 1)"),
        ("max_steps: 3\nseed: 1\nmax_steps: 4\n", "c.yaml, line 3: 'max_steps' is there twice, before in line 1"),
        ("- max_steps\n", "c.yaml: expected a mapping from names to values, got list"),
    ],
)
def test_what_is_no_mapping_names_its_line(work, capsys, text, expected):
    Path("c.yaml").write_text(text)
    assert main(["spo", "--config", "c.yaml"]) == 2
    assert expected in capsys.readouterr().err


def test_no_file_at_all(work, capsys):
    assert main(["spo", "--config", "d.yaml"]) == 2
    assert "there is no file 'd.yaml'" in capsys.readouterr().err
    assert main(["spo"]) == 2
    assert "nowhere to write to" in capsys.readouterr().err


def test_a_sandbox_that_is_not_there_is_a_mistake(monkeypatch):
    from mmbert_hf.trainers.spo import python_tool

    from mmbert_hf.cli import spo_inputs

    def refuse(*_, **__):
        raise RuntimeError("bubblewrap is missing: install it")

    monkeypatch.setattr(python_tool, "PythonTool", refuse)
    with pytest.raises(ValueError, match="tool 'python': bubblewrap is missing"):
        spo_inputs.load_tool("python")


def test_a_missing_package_is_a_mistake(work, capsys, monkeypatch):
    from mmbert_hf.trainers.spo import trainer

    def refuse(*_, **__):
        raise ImportError("vLLM is not available")

    monkeypatch.setattr(trainer.SPOTrainer, "__init__", refuse)
    assert run(use_vllm=True) == 2
    assert "a package is missing: vLLM is not available" in capsys.readouterr().err
