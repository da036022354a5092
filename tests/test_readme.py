"""The examples of the README and of docs/, run in the order in which they stand; pages that are marked, by tests/docs."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ON_THEIR_OWN = "run by the tests in order, on their own"
PAGES = [
    ROOT / "README.md",
    *(page for page in sorted((ROOT / "docs").glob("*.md")) if ON_THEIR_OWN not in page.read_text()),
]
BLOCKS = [
    block
    for page in PAGES
    for block in re.findall(r"^```python([^\n]*)\n(.*?)^```", page.read_text(), flags=re.MULTILINE | re.DOTALL)
]


@pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning")  # Trainer's default, without an accelerator
@pytest.mark.timeout(600)  # all pages in one go: a minute on a quiet core
def test_examples_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run = [code for info, code in BLOCKS if "no-run" not in info]
    assert len(run) >= 4
    names: dict = {}
    for code in run:
        exec(code, names)
    assert names["packed"].shape == (1, 7, 384)
    assert "torch.Size([1, " in capsys.readouterr().out
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {path.name for path in Path("export").iterdir()}


def test_the_stock_trainer_call_is_ten_lines_that_anneal():
    (code,) = [code for _, code in BLOCKS if "AnnealingCallback" in code]
    statements = [line for line in code.splitlines() if line and not line.startswith(("from", "import"))]
    assert len(statements) <= 10


def test_functions_that_papers_md_names_are_there():
    rows = re.findall(r"^\| .* \| (.*) \|$", (ROOT / "docs" / "papers.md").read_text(), re.MULTILINE)
    source, found = "", 0
    for part in (part for where in rows for part in where.split(";")):
        file = re.search(r"\]\(\.\./([^)]+)\)", part)
        source = (ROOT / file[1]).read_text() if file else source  # "the same": of the part before
        for name in re.findall(r"`(\w+)`", part):
            assert re.search(rf"^(def|class) {name}\b", source, re.MULTILINE), (name, part)
            found += 1
    assert found >= 40
