"""The pages that are a whole by themselves: every block is run in the order of the page, in a folder of its own.

What a fence says behind its language:

- nothing: the block is run. `mmbert` in this process, a launcher with its processes as a user starts them.
- `parse-only`: needs GPUs, a second machine or a corpus. The command is read by the real parsers, and its files exist.
- `no-run`: needs the network. Python has to compile and its imports to be there; `mmbert` is parsed.

Pages without the mark are run by `tests/test_readme.py`, all together.
"""

import ast
import importlib.util
import os
import re
import shlex
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
MARK = "<!-- The blocks of this page are run by the tests in order, on their own. -->"
PAGES = [page for page in sorted((ROOT / "docs").glob("*.md")) if MARK in page.read_text()]
EVERYWHERE = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "examples" / "README.md"]
pytestmark = pytest.mark.usefixtures("process_as_it_was")


def blocks_of(page, language):
    """Info behind the language and text of each block, in order."""
    pattern = rf"^```({language})([^\n]*)\n(.*?)^```"
    return re.findall(pattern, page.read_text(), flags=re.MULTILINE | re.DOTALL)


def commands_of(text):
    """The commands of a block, as words; comments and continued lines as a shell reads them."""
    lines = text.replace("\\\n", " ").splitlines()
    return [words for words in (shlex.split(line, comments=True) for line in lines) if words]


def run_command(words):
    from mmbert_hf.cli import main

    if words[0] == "mmbert":
        assert main(words[1:]) == 0, words
        return
    launchers = {("torchrun",): "torch.distributed.run", ("accelerate", "launch"): "accelerate.commands.launch"}
    module, number = next(
        (module, len(start)) for start, module in launchers.items() if tuple(words[: len(start)]) == start
    )
    command = [sys.executable, "-m", module, *words[number:]]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr


def parse_verb(words):
    """Read a command of ours; what goes on to transformers' arguments must be fields of them."""
    from mmbert_hf.cli import build_parser

    args, rest = build_parser().parse_known_args(words)
    if args.verb in ("pretrain", "extend", "decay"):
        from mmbert_hf import MLMConfig

        unknown = {word for word in rest if word.startswith("--")} - {f"--{field.name}" for field in fields(MLMConfig)}
        assert not unknown, (words, unknown)
    else:
        assert not rest, (words, rest)
    if args.verb == "spo":
        assert (ROOT / args.config).is_file(), args.config


def parse_command(words):
    """Read a command with the parsers of its programs, and look for its files."""
    if words[0] == "mmbert":
        parse_verb(words[1:])
    elif words[:2] == ["accelerate", "launch"]:
        from accelerate.commands.config.config_args import load_config_from_file
        from accelerate.commands.launch import launch_command_parser

        args = launch_command_parser().parse_args(words[2:])
        assert load_config_from_file(str(ROOT / args.config_file)).num_processes >= 8
        if args.module:
            assert args.training_script == "mmbert_hf.cli"
            parse_verb(args.training_script_args)
    elif words[0] == "torchrun":
        from torch.distributed.run import parse_args

        args = parse_args(words[1:])
        assert (args.module, args.training_script) == (True, "mmbert_hf.cli")
        parse_verb(args.training_script_args)
    elif words[:2] == ["trl", "vllm-serve"]:
        from trl.scripts.vllm_serve import make_parser

        make_parser().parse_args_into_dataclasses(words[2:], look_for_args_file=False)
    else:
        assert words[0] == "python", words
        load_script(ROOT / words[1]).build_parser().parse_args(words[2:])


def load_script(path):
    specification = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_there_are_such_pages():
    assert {page.stem for page in PAGES} >= {"quick-start", "add-a-language", "many-machines"}


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore:.*gradient_checkpointing. is deprecated:FutureWarning"
)  # transformers 5.23, TRL 1.16
@pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning")  # TRL's default, without an accelerator
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_blocks_of_a_page_run(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    names: dict = {}
    for language, info, text in blocks_of(page, "python|bash"):
        if "no-run" in info or "parse-only" in info:
            continue
        if language == "python":
            exec(compile(text, page.name, "exec"), names)
        else:
            for words in commands_of(text):
                run_command(words)
    printed = capsys.readouterr().out
    if page.stem == "quick-start":
        assert "MMBertModel torch.Size([1, " in printed
        dense, pruned = names["pruned"].report.num_parameters
        assert pruned < 0.7 * dense
        assert names["trainer"].evaluate()["eval_reward"] > names["before"] + 0.05
        assert {"README.md", "model.safetensors"} <= {path.name for path in Path("smaller").iterdir()}
        assert "you/smaller" in printed
    if page.stem == "add-a-language":
        assert re.search(r"^\+fao +\d\.\d+ +\d\.\d+ +-\d", printed, re.MULTILINE), "the added language got better"
        assert "fao: " in printed
        assert (
            Path("only-fao", "model.safetensors").stat().st_size < Path("base-fao", "model.safetensors").stat().st_size
        )
    if page.stem == "many-machines":
        assert {"config.json", "model.safetensors", "run.json"} <= {path.name for path in Path("two").iterdir()}


@pytest.mark.parametrize("page", EVERYWHERE, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_what_is_not_run_is_read(page):
    for language, info, text in blocks_of(page, "python|bash|yaml"):
        if language == "yaml":
            assert yaml.safe_load(text), text
        elif language == "python":
            tree = ast.parse(text)
            imports = [part for part in tree.body if isinstance(part, ast.Import | ast.ImportFrom)]
            exec(compile(ast.Module(imports, []), page.name, "exec"), {})
        elif "parse-only" in info or "no-run" in info:
            for words in commands_of(text):
                if words[0] != "pip":
                    parse_command(words)


def indented_commands(page):
    """Commands of ours in blocks without a fence, but for what an error looks like, and what a form is."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    lines = re.findall(r"^ {4}(mmbert .*)$", text.replace("\\\n", " "), re.MULTILINE)
    found = [shlex.split(line, comments=True) for line in lines]
    return [words for words in found if not words[1].endswith(":") and not {"KIND", "VERB", "--config"} & {*words}]


@pytest.mark.parametrize("page", EVERYWHERE, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_indented_commands_are_read(page):
    for words in indented_commands(page):
        parse_verb(words[1:])


def test_there_are_indented_commands():
    assert sum(len(indented_commands(page)) for page in EVERYWHERE) >= 15


@pytest.mark.parametrize(
    "command",
    [
        "mmbert decay base --add-langauge fao=fao.txt --output-dir out",
        "accelerate launch --config_file examples/accelerate/nine_gpus.yaml -m mmbert_hf.cli spo --config spo.yaml",
        "torchrun --nprocesses 2 -m mmbert_hf.cli extend base --data table.yaml --output-dir out",
        "python examples/data/tokenize_corpus.py --sauce corpus",
    ],
)
def test_a_misspelt_command_fails(command):
    with pytest.raises((AssertionError, SystemExit, OSError)):
        parse_command(shlex.split(command))
