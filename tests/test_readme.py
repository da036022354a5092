"""The README's examples, run in the order in which they stand."""

import re
from pathlib import Path

import pytest

README = (Path(__file__).parent.parent / "README.md").read_text()
BLOCKS = re.findall(r"^```python([^\n]*)\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning")  # Trainer's default, without an accelerator
def test_examples_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run = [code for info, code in BLOCKS if "no-run" not in info]
    assert len(run) == 3
    names: dict = {}
    for code in run:
        exec(code, names)
    assert type(names["model"]).__name__ == "MMBertForMaskedLM"
    assert "torch.Size([1, " in capsys.readouterr().out
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {path.name for path in Path("export").iterdir()}


def test_the_stock_trainer_call_is_ten_lines_that_anneal():
    (code,) = [code for _, code in BLOCKS if "AnnealingCallback" in code]
    statements = [line for line in code.splitlines() if line and not line.startswith(("from", "import"))]
    assert len(statements) <= 10


def test_every_link_leads_somewhere():
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if "://" not in link]
    assert len(links) > 10
    for link in links:
        assert (Path(__file__).parent.parent / link).exists(), link
