"""Links between pages, and the documentation as Sphinx builds it: no warning, and every public name is in it."""

import importlib
import re
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "examples").rglob("*.md")),
]
# Not for users: the verbs and the demo are described by `mmbert --help`.
INTERNAL = {"mmbert_hf.cli", "mmbert_hf.demo"}


def anchors_of(page):
    """Headings of a page as a git host writes them into its addresses."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_link_leads_somewhere(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in link or link.startswith("mailto:"):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert target.resolve().is_relative_to(ROOT), link
        if re.fullmatch(r"L\d+", anchor):
            assert int(anchor[1:]) <= len(target.read_text().splitlines()), link
        elif anchor:
            assert anchor in anchors_of(target), (link, sorted(anchors_of(target)))


def packages():
    """Every package of ours that says what is public."""
    folders = {"mmbert_hf": ROOT / "mmbert_hf", "mmbert_hf.trainers": ROOT / "trainers"}
    folders["mmbert_hf.model_cards"] = ROOT / "model_cards"
    for name, folder in folders.items():
        for file in sorted(folder.rglob("__init__.py")):
            package = ".".join([name, *file.parent.relative_to(folder).parts])
            if not any(package == each or package.startswith(f"{each}.") for each in INTERNAL):
                yield package


def outermost(package, name, member):
    """The shortest package that has a name: where it is documented, once."""
    parts = package.split(".")
    for end in range(1, len(parts) + 1):
        parent = importlib.import_module(".".join(parts[:end]))
        if name in getattr(parent, "__all__", ()) and getattr(parent, name) is member:
            return parent.__name__
    raise AssertionError(f"{package} has no {name}")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The command of `make docs`, into another folder."""
    out = tmp_path_factory.mktemp("docs")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-c", "docs", ".", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out


@pytest.mark.slow
def test_the_documentation_builds_without_warnings(built):
    for page in ("README", "docs/index", "docs/quick-start", "docs/results/verified", "examples/README"):
        assert (built / f"{page}.html").is_file(), page
    index = (built / "docs" / "index.html").read_text()
    for page in sorted((ROOT / "docs").glob("*.md")):
        assert page.stem == "index" or f'href="{page.stem}.html"' in index, page.name
    assert "share that goes, in [0, 1)" in (built / "docs" / "api" / "pruning.html").read_text(), "help of an option"


@pytest.mark.slow
def test_every_public_name_is_in_the_reference(built):
    inventory = zlib.decompress((built / "objects.inv").read_bytes().split(b"\n", 4)[4]).decode()
    names = {line.split(" ", 1)[0] for line in inventory.splitlines() if " py:" in line}
    found = 0
    for package in packages():
        module = importlib.import_module(package)
        for name in module.__all__:
            assert f"{outermost(package, name, getattr(module, name))}.{name}" in names, f"{package}.{name}"
            found += 1
    assert found > 100
