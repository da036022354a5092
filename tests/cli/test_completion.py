"""`mmbert --print-completion`: the script completes verbs, options and choices in a real bash."""

import subprocess
import sys

import pytest

from mmbert_hf.cli import main


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    done = subprocess.run(
        [sys.executable, "-m", "mmbert_hf.cli", "--print-completion", "bash"],
        capture_output=True,
        text=True,
        check=True,
    )
    path = tmp_path_factory.mktemp("completion") / "mmbert.sh"
    path.write_text(done.stdout)
    return path


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["mmbert", "pru"], ["prune"]),
        (["mmbert", "trim", "--over"], ["--overwrite"]),
        (["mmbert", "merge", "--method", ""], ["ties", "linear", "ema"]),
        (["mmbert", "trim", "mod"], ["model"]),
    ],
)
def test_bash(script, tmp_path, words, expected):
    (tmp_path / "model").mkdir()
    line = " ".join(f"'{word}'" for word in words)
    call = f"source {script}; COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; _shtab_mmbert; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    done = subprocess.run(["bash", "-c", call], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.split() == expected


def test_a_missing_package_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "shtab", None)
    with pytest.raises(SystemExit, match="2"):
        main(["--print-completion", "zsh"])
    assert "pip install 'mmbert-hf[completion]'" in capsys.readouterr().err
