import argparse
import json

import pytest
import torch
from safetensors.torch import load_file

from mmbert_hf import MMBertConfig, MMBertForMaskedLM
from mmbert_hf.cli import merge


def run(*argv):
    parser = argparse.ArgumentParser()
    merge.add_parser(parser.add_subparsers())
    args = parser.parse_args(["merge", *map(str, argv)])
    return args.run(args)


@pytest.fixture
def folders(tmp_path):
    config = MMBertConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2, vocab_size=90
    )
    paths = [tmp_path / name for name in ("mid", "one", "two")]
    for seed, path in enumerate(paths):
        torch.manual_seed(seed)
        MMBertForMaskedLM(config).save_pretrained(path)
    return paths


def test_ties_says_what_it_did(tmp_path, folders, capsys):
    base, one, two = folders
    out = tmp_path / "out"
    options = ("--output-dir", out, "--method", "ties", "--base", base, "--density", "0.5", "--dtype", "bfloat16")
    assert run(one, two, *options) == 0
    lines = capsys.readouterr().out.splitlines()
    num_parameters = MMBertForMaskedLM.from_pretrained(out).num_parameters()
    assert lines[0] == f"2 checkpoints, {num_parameters:,} parameters, ties around {base}, density 0.5"
    reported = json.loads((out / "merge.json").read_text())["checkpoints"][0]
    weights = {name: value.flatten() for name, value in load_file(one / "model.safetensors").items()}
    start = load_file(base / "model.safetensors")
    norm = torch.cat([value - start[name].flatten() for name, value in weights.items()]).norm().item()
    assert reported["norm"] == pytest.approx(norm, rel=1e-4)
    assert lines[1].startswith(f"  {one}: weight 1, task vector norm {norm:.4g}, {reported['kept']:.1%} of it")
    assert 0.5 < reported["kept"] < 1.0
    assert 0.5 < reported["agreed"] < 1.0
    assert lines[-1] == f"written to {out}"
    assert load_file(out / "model.safetensors")["decoder.bias"].dtype == torch.bfloat16


def test_averages(tmp_path, folders, capsys):
    assert run(*folders, "--method", "linear", "--weights", 1, 1, 2, "--output-dir", tmp_path / "linear") == 0
    assert f"{folders[2]}: weight 0.5, distance from the result" in capsys.readouterr().out
    arguments = ("--method", "ema", "--ema-decay", 0.5, "--output-dir", tmp_path / "ema")
    assert run(*folders, *arguments) == 0
    assert f"{folders[2]}: weight 0.5714, distance" in capsys.readouterr().out
    with pytest.raises(FileExistsError, match="not empty"):
        run(*folders, *arguments)
    assert run(*folders, *arguments, "--overwrite") == 0


def test_bad_input_is_a_plain_error(tmp_path, folders):
    with pytest.raises(ValueError, match="method 'ties' needs base"):
        run(*folders, "--output-dir", tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        run(tmp_path / "nowhere", "--method", "linear", "--output-dir", tmp_path / "out")
    assert not (tmp_path / "out").exists()
