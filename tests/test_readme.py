"""The examples of the README and of docs/, run in the order in which they stand; pages that are marked, by tests/docs."""

import importlib.util
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


def test_papers_md_names_functions_by_their_lines():
    specification = importlib.util.spec_from_file_location("equation_lines", ROOT / "tools" / "equation_lines.py")
    tool = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(tool)
    page = (ROOT / "docs" / "papers.md").read_text()
    assert tool.with_lines(page) == page, "lines have moved: python tools/equation_lines.py"
    links = re.findall(r"\[`(\w+)`\]\(\.\./([^)#]+)#L(\d+)\)", page)
    assert len(links) >= 40
    for name, file, line in links:
        assert re.match(rf"(def|class) {name}\b", (ROOT / file).read_text().splitlines()[int(line) - 1]), name
    with pytest.raises(ValueError, match="no function or class 'temperate'"):
        tool.with_lines(page.replace("`temper`", "`temperate`"))
