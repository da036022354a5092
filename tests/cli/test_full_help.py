"""``--help-all`` is made once, and shown without torch from then on."""

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from mmbert_hf.cli import full_help as module
from mmbert_hf.cli import main
from mmbert_hf.cli.full_help import full_help, help_file
from mmbert_hf.cli.grammar import VerbParser


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path))
    return tmp_path / "mmbert-hf" / "help"


def make():
    parser = VerbParser(prog="verb", usage="verb [options]", add_help=False)
    parser.add_argument("--one-setting", help="what it is")
    return parser


def fail():
    raise AssertionError("the text is made a second time")


def test_the_second_time_imports_nothing_heavy(tmp_path):
    heavy = ("torch", "transformers", "trl", "datasets", "numpy")
    code = (
        "import sys; from mmbert_hf.cli import main\n"
        "assert main(['spo', '--help-all']) == 0\n"
        f"print([name for name in {heavy!r} if name in sys.modules])"
    )
    texts, imported = [], []
    for _ in range(2):
        environment = {**os.environ, "HF_HOME": str(tmp_path)}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        text, _, last = done.stdout.rstrip("\n").rpartition("\n")
        texts.append(text)
        imported.append(last)
    assert texts[0] == texts[1]
    assert "--exploration_floor" in texts[1]
    assert "torch" in imported[0]
    assert imported[1] == "[]"


@pytest.mark.parametrize("verb", ["pretrain", "extend", "decay"])
def test_training_verbs_print_their_own_options_and_those_of_the_trainer(verb, cache, capsys):
    with pytest.raises(SystemExit) as stop:
        main([verb, "--help-all"])
    assert not stop.value.code
    text = capsys.readouterr().out
    assert text.startswith(f"usage: mmbert {verb}")
    assert all(f"{name} " in text for name in ("--held-out", "--bf16", "--token_cache_dir"))


def test_a_text_is_kept(cache):
    text = full_help("verb", make)
    assert "--one-setting" in text
    assert "usage" not in text
    assert full_help("verb", fail) == text
    assert [file.parent for file in cache.iterdir()] == [cache]


@pytest.mark.parametrize("package", module.PACKAGES)
def test_no_text_of_another_version(cache, package, monkeypatch):
    full_help("verb", make)
    real = metadata.version
    monkeypatch.setattr(module.metadata, "version", lambda name: "0.0" if name == package else real(name))
    with pytest.raises(AssertionError, match="a second time"):
        full_help("verb", fail)


@pytest.mark.parametrize("package", ["mmbert_hf", "mmbert_hf.trainers"])
def test_no_text_of_other_settings(cache, package, tmp_path, monkeypatch):
    """A changed file of either package is another text."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "settings.py").write_text("a = 1")
    real = module.util.find_spec

    def find(name):
        spec = real(name)
        if name == package:
            spec.submodule_search_locations = [str(tmp_path / "code")]
        return spec

    monkeypatch.setattr(module.util, "find_spec", find)
    before = help_file("verb")
    assert help_file("verb") == before
    (tmp_path / "code" / "settings.py").write_text("a = 12")
    assert help_file("verb") != before


def test_a_cache_that_cannot_be_written_to(cache):
    cache.parent.parent.mkdir(exist_ok=True)
    Path(cache.parent).write_text("a file where the folder would be")
    assert "--one-setting" in full_help("verb", make)
