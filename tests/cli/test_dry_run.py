"""``--dry-run``, ``--json`` and ``--quiet``: nothing is written, and stdout is the result alone, for every verb that writes."""

import json
import re

import pytest

from mmbert_hf.cli import main
from mmbert_hf.hub import publish


@pytest.fixture
def call(capsys, monkeypatch, tmp_path):
    """Call a verb; its JSON, or its output."""
    monkeypatch.chdir(tmp_path)

    def run(*words):
        before = {str(path) for path in tmp_path.rglob("*")}
        assert main([*map(str, words)]) == 0
        out = capsys.readouterr().out
        added = {str(path) for path in tmp_path.rglob("*")} - before
        assert not added or "--dry-run" not in words, added
        return json.loads(out) if "--json" in words else out

    return run


def test_convert(call, folder):
    words = ("convert", folder, "--output-dir", "out")
    assert call(*words, "--dry-run", "--json") == {
        "model": str(folder),
        "is": "mmbert",
        "to": "modernbert",
        "folder": "out",
    }
    assert "would be written to out as modernbert" in call(*words, "--dry-run")
    assert call(*words, "--json", "--quiet") == {"folder": "out", "model_type": "modernbert", "tokenizer": True}


def test_init(call, folder):
    words = ("init", "--tile-from", folder, "--num-hidden-layers", 6, "--output-dir", "out")
    planned = call(*words, "--dry-run", "--json")
    assert planned["num_hidden_layers"] == 6
    assert "would be written to out" in call(*words, "--dry-run")
    assert call(*words, "--json") == planned


def test_merge(call, folder):
    words = ("merge", folder, folder, "--method", "linear", "--output-dir", "out")
    assert call(*words, "--dry-run", "--json")["checkpoints"] == [str(folder)] * 2
    assert "2 checkpoints fit together" in call(*words, "--dry-run")
    done = call(*words, "--json")
    assert (done["folder"], [one["weight"] for one in done["checkpoints"]]) == ("out", [0.5, 0.5])


def test_trim(call, folder, tmp_path):
    (tmp_path / "texts.txt").write_text("Øll menniskju eru fødd fræls\n")
    words = ("trim", folder, "--texts", "texts.txt", "--output-dir", "out")
    planned = call(*words, "--dry-run", "--json")
    assert planned["tokens"] < planned["tokens_before"]
    assert "would be written to out" in call(*words, "--dry-run", "--quiet")
    assert call(*words, "--json") == planned


@pytest.mark.parametrize("verb", ["pretrain", "extend", "decay"])
def test_training(call, folder, tmp_path, verb):
    (tmp_path / "fao.txt").write_text("Øll menniskju eru fødd fræls\n" * 8)
    (tmp_path / "table.yaml").write_text("languages:\n  fao: {source: fao.txt}\n")
    model = ["--model", folder] if verb == "pretrain" else [folder]
    small = ("--total-tokens", "2k", "--max-length", 64, "--rows", 1, "--use_cpu", "true")
    words = (verb, *model, "--data", "table.yaml", "--output-dir", "out", *small)
    planned = call(*words, "--dry-run", "--json")
    assert ([phase["name"] for phase in planned["phases"]], planned["languages"]) == ([verb], ["fao"])
    lines = call(*words, "--dry-run").splitlines()
    assert lines[0].startswith(f"{verb}: 1 languages, {planned['num_steps']} steps")
    assert lines[-1] == "would be written to out"


def test_training_prints_json_alone(call, folder, tmp_path):
    (tmp_path / "fao.txt").write_text("Øll menniskju eru fødd fræls og jøvn til virðingar\n" * 40)
    (tmp_path / "table.yaml").write_text("languages:\n  fao: {source: fao.txt}\n")
    small = ("--total-tokens", "1k", "--max-length", 64, "--rows", 1, "--use_cpu", "true", "--report_to", "none")
    done = call("decay", folder, "--data", "table.yaml", "--output-dir", "out", *small, "--json")
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert (done["folder"], done["after"]) == ("out", record["losses"]["after"])
    card = publish(tmp_path / "out", "you/fao", dry_run=True).card
    assert 'from_pretrained("you/fao")' in card
    assert f"| fao | {done['before']['fao']:.3f} | {done['after']['fao']:.3f} |" in card
    assert re.search(r"\| decay \| 1 \| [\d.]+ \| 0.05 \| 64 \| ", card)
    assert "language:\n- fo\n" in card


def test_a_mistake_is_told_in_a_dry_run(capsys, folder, tmp_path):
    (tmp_path / "table.yaml").write_text("languages:\n  fao: {source: gone.txt}\n")
    words = ["decay", folder, "--data", tmp_path / "table.yaml", "--output-dir", tmp_path / "out", "--dry-run"]
    assert main([*map(str, words), "--total-tokens", "2k", "--max-length", "64", "--rows", "1"]) == 2
    assert "gone.txt" in capsys.readouterr().err
