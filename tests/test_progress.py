"""Our bars obey what others' bars obey."""

import os
import subprocess
import sys
from pathlib import Path

import mmbert_hf.trainers
import pytest

import mmbert_hf
from mmbert_hf.progress import progress_bar

CODE = "from mmbert_hf.progress import progress_bar\nwith progress_bar(total=3, desc='ours') as bar: bar.update(3)"


def shown(environment):
    kept = {name: value for name, value in os.environ.items() if "DISABLE" not in name}
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, env={**kept, **environment})
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    return "ours" in done.stderr


@pytest.mark.parametrize(
    ("environment", "expected"),
    [({}, True), ({"TQDM_DISABLE": "1"}, False), ({"HF_HUB_DISABLE_PROGRESS_BARS": "1"}, False)],
)
def test_switches(environment, expected):
    assert shown(environment) == expected


def test_a_bar_that_is_not_wanted(capsys):
    with progress_bar(False, total=3, desc="ours") as bar:
        bar.update(3)
    assert capsys.readouterr().err == ""


def test_no_bar_passes_the_switches_by():
    """Every bar of the package is made in one place."""

    folders = {Path(module.__file__).parent for module in (mmbert_hf, mmbert_hf.trainers)}
    files = {file for folder in folders for file in folder.rglob("*.py")}
    found = [file.name for file in files if " tqdm(" in file.read_text(encoding="utf-8")]
    assert len(files) > 100
    assert found == ["progress.py"]
