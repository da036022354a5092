"""The wheel: one top-level package, with templates, data and the typing marker inside."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    # from a copy, so that setuptools' build folder does not land in the checkout
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    files = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    assert files.returncode == 0, files.stderr
    for name in files.stdout.splitlines():
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(source)]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    return zipfile.ZipFile(next(out.glob("*.whl")))


def test_only_top_level_package_is_ours(wheel):
    tops = {name.partition("/")[0] for name in wheel.namelist()}
    from mmbert_hf import __version__

    assert tops == {"mmbert_hf", f"mmbert_hf-{__version__}.dist-info"}


def test_every_module_and_data_file_is_inside(wheel):
    names = set(wheel.namelist())
    for folder, package in (
        ("mmbert_hf", "mmbert_hf"),
        ("trainers", "mmbert_hf/trainers"),
        ("model_cards", "mmbert_hf/model_cards"),
    ):
        for path in (ROOT / folder).rglob("*"):
            if (
                path.suffix in {".py", ".xz", ".md", ".typed", ".html", ".css", ".js"}
                and "__pycache__" not in path.parts
            ):
                assert f"{package}/{path.relative_to(ROOT / folder).as_posix()}" in names
    assert {"mmbert_hf/py.typed", "mmbert_hf/model_cards/templates/encoder.md", "mmbert_hf/data/udhr.jsonl.xz"} <= names


def test_metadata_declares_what_is_needed(wheel):
    from email.parser import Parser

    name = next(name for name in wheel.namelist() if name.endswith("METADATA"))
    metadata = Parser().parsestr(wheel.read(name).decode())
    required = {line.split(";")[0].split(">")[0].split("<")[0].strip() for line in metadata.get_all("Requires-Dist")}
    assert {"transformers", "torch", "datasets", "huggingface-hub", "peft", "accelerate", "trl"} <= required
    extras = {"all", "completion", "corpus", "demo", "dev", "docs", "evaluate", "flash", "plots", "reasoning"}
    assert set(metadata.get_all("Provides-Extra")) == extras
    assert metadata["License"] == "Apache-2.0"
    entry_points = next(name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    assert "mmbert = mmbert_hf.cli:main" in wheel.read(entry_points).decode()


def test_installed_wheel_runs_away_from_the_checkout(wheel, tmp_path):
    wheel.extractall(tmp_path)
    code = "import mmbert_hf, mmbert_hf.trainers, mmbert_hf.model_cards; print(mmbert_hf.trainers.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / "mmbert_hf" / "trainers" / "__init__.py")


def test_one_version():
    from importlib.metadata import version

    from mmbert_hf import __version__

    assert version("mmbert-hf") == __version__
    assert f"\nversion: {__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## {__version__} " in (ROOT / "CHANGELOG.md").read_text()
