"""The configuration files of accelerate, read by accelerate: a misspelt key or value fails."""

import argparse
import os
import shlex
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType
from accelerate.utils.launch import prepare_multi_gpu_env

from mmbert_hf import modeling
from mmbert_hf.cli import build_parser

FOLDER = Path(__file__).resolve().parents[2] / "examples"
FILES = sorted((FOLDER / "accelerate").glob("*.yaml"))
PROCESSES = {"one_gpu": 1, "eight_gpus_ddp": 8, "eight_gpus_fsdp2": 8, "several_nodes": 32}


def check(path):
    """Parse `accelerate launch` with a file as it does itself, and refuse keys that it would pass over."""
    config = load_config_from_file(str(path))  # refuses unknown keys at the top
    known = {action.dest for action in launch_command_parser()._actions}
    unknown = sorted(key for key in config.fsdp_config if key not in known)
    if unknown:
        raise ValueError(f"{path.name}: unknown keys {unknown} in fsdp_config")
    args = launch_command_parser().parse_args(["--config_file", str(path), "-m", "mmbert_hf.cli", "pretrain"])
    args, defaults, _ = _validate_launch_command(args)
    return args, defaults


@pytest.fixture(autouse=True)
def unchanged_environment(monkeypatch):
    monkeypatch.setattr(os, "environ", os.environ.copy())


def test_there_is_a_file_for_each():
    assert {path.stem for path in FILES} == set(PROCESSES)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_accelerate_takes_it(path):
    args, defaults = check(path)
    assert args.num_processes == PROCESSES[path.stem]
    assert args.mixed_precision == "bf16"
    assert args.training_script == "mmbert_hf.cli"
    expected = {"one_gpu": DistributedType.NO, "eight_gpus_fsdp2": DistributedType.FSDP}
    assert defaults.distributed_type == expected.get(path.stem, DistributedType.MULTI_GPU)
    assert args.use_fsdp == (path.stem == "eight_gpus_fsdp2")
    assert args.multi_gpu == (defaults.distributed_type == DistributedType.MULTI_GPU)


def test_several_nodes_take_their_place_from_the_command_line():
    path = FOLDER / "accelerate" / "several_nodes.yaml"
    command = ["--config_file", str(path), "--machine_rank", "3", "--main_process_ip", "10.0.0.1", "script.py"]
    args, _, _ = _validate_launch_command(launch_command_parser().parse_args(command))
    assert (args.num_machines, args.machine_rank, args.main_process_ip) == (4, 3, "10.0.0.1")


def test_fsdp_is_the_second_version_around_our_layers():
    from accelerate import FullyShardedDataParallelPlugin

    args, _ = check(FOLDER / "accelerate" / "eight_gpus_fsdp2.yaml")
    # What the launcher hands over to the processes, and what accelerate makes of it there.
    os.environ.update({name: str(value) for name, value in prepare_multi_gpu_env(args).items()})
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2
    assert plugin.reshard_after_forward is True
    assert plugin.state_dict_type.name == "FULL_STATE_DICT"
    assert plugin.cpu_ram_efficient_loading
    assert plugin.transformer_cls_names_to_wrap == ["MMBertEncoderLayer"]
    sizes = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 3, "intermediate_size": 48}
    model = modeling.MMBertForMaskedLM(modeling.MMBertConfig(**sizes, vocab_size=100))
    plugin.set_auto_wrap_policy(model)
    wrapped = plugin.auto_wrap_policy.keywords["transformer_layer_cls"]
    assert [cls.__name__ for cls in wrapped] == ["MMBertEncoderLayer"]
    assert sum(isinstance(module, tuple(wrapped)) for module in model.modules()) == 3


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("eight_gpus_ddp", "num_processes", "num_proceses"),
        ("eight_gpus_ddp", "MULTI_GPU", "MULTI_GPUS"),
        ("eight_gpus_fsdp2", "fsdp_state_dict_type", "fsdp_state_dict_typ"),
        ("eight_gpus_fsdp2", "fsdp_version", "fsdp_versions"),
    ],
)
def test_a_misspelt_key_fails(tmp_path, name, old, new):
    path = tmp_path / f"{name}.yaml"
    path.write_text((FOLDER / "accelerate" / f"{name}.yaml").read_text().replace(old, new))
    with pytest.raises(ValueError, match=f"{new}|num_proce"):
        check(path)


def test_the_commands_of_the_readme_can_be_parsed():
    text = (FOLDER / "README.md").read_text().replace("\\\n", " ")
    commands = [line for line in map(str.strip, text.splitlines()) if line.startswith("accelerate launch")]
    assert len(commands) >= 3
    named = set()
    for command in commands:
        args = launch_command_parser().parse_args(shlex.split(command)[2:])
        assert isinstance(args, argparse.Namespace)
        assert args.module
        assert args.training_script == "mmbert_hf.cli"
        assert (FOLDER.parent / args.config_file).is_file()
        verb = build_parser().parse_args([argument.rstrip("'") for argument in args.training_script_args])
        assert verb.verb == "pretrain"
        named.add(Path(args.config_file).stem)
    assert named == set(PROCESSES)


def test_the_files_say_the_same_twice_nowhere():
    for path in FILES:
        keys = [line.split(":")[0] for line in path.read_text().splitlines() if line and line[0] not in "# "]
        assert len(keys) == len(set(keys)) == len(yaml.safe_load(path.read_text())), path.name
