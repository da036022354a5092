"""The scripts for beginners, run as they are: what they print to be better is better."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "examples" / "quickstart"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing. is deprecated:FutureWarning"),  # transformers, TRL
    pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning"),  # TRL's default, without an accelerator
]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A function that runs a script in an empty folder, offline, and returns what its `main` does."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def run_script(name):
        specification = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
        module = importlib.util.module_from_spec(specification)
        specification.loader.exec_module(module)
        return module.main(["--output-dir", "out"])

    return run_script


def test_encoder(run, capsys):
    losses = run("encoder")
    gains = {code: before - after for code, (before, after) in losses["pretrain"].items()}
    for code in ("dan", "isl", "nno"):
        assert gains[code] > 0.5, code
        assert gains[code] > 2 * gains["fao"], "a language without training stays unknown"
    before, after = losses["decay"]["fao"]
    assert after < before - 0.5, "the added language is learned"
    assert "ModernBertModel (1, " in capsys.readouterr().out
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {
        file.name for file in Path("out/encoder").iterdir()
    }


def test_prune(run, capsys):
    measured = run("prune")
    dense, pruned = (measured["footprint"][name]["weight_bytes"] for name in ("dense", "pruned"))
    assert pruned < 0.65 * dense
    quality = measured["quality"]["domain"]["ndcg_at_10"]
    assert quality["pruned"] > 0.85 * quality["dense"]
    printed = capsys.readouterr().out
    assert all(f"{name}:" in printed for name in ("dense", "control", "pruned"))
    assert "(384,)" in printed


def test_policy(run, capsys):
    before, after, trainer = run("policy")
    assert after > before + 0.05
    assert (len(trainer.tracker), trainer.tracker.visits.sum()) == (23 * 23, 100 * 128)
    printed = capsys.readouterr().out
    assert f"{before:.3f} -> {after:.3f}" in printed
    assert "hardest" in printed
    assert {"config.json", "model.safetensors"} <= {file.name for file in Path("out/policy").iterdir()}


def test_the_readme_names_every_script():
    text = (ROOT / "examples" / "README.md").read_text()
    scripts = sorted(FOLDER.glob("*.py"))
    assert len(scripts) >= 3
    assert [file.name for file in scripts if f"`quickstart/{file.name}`" not in text] == []
