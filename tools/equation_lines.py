"""Write the lines of the functions into docs/papers.md, which says where each equation of the papers is.

    python tools/equation_lines.py       # also run by `make format`

A name in the last column of a table becomes a link to its line, in the file that stands before it. A test compares.
"""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "papers.md"
ROW = re.compile(r"^(\| .* \| )(.*)( \|)$", re.MULTILINE)
NAME = re.compile(r"(?:\[`(\w+)`\]\([^)]*\)|`(\w+)`)")
FILE = re.compile(r"\[[^]`]+\]\((\.\./[^)#]+)\)")


def line_of(file: Path, name: str) -> int:
    """Return the line on which a function or class of a file begins.

    Raises:
        ValueError: There is none of this name.
    """
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        if re.match(rf"(def|class) {name}\b", line):
            return number
    raise ValueError(f"{file} has no function or class {name!r}, which {PAGE.name} names")


def with_lines(page: str) -> str:
    """Return the page with every name as a link to its line."""
    path = ""

    def link(found: re.Match[str]) -> str:
        name = found[1] or found[2]
        return f"[`{name}`]({path}#L{line_of(PAGE.parent / path, name)})"

    def cell(row: re.Match[str]) -> str:
        nonlocal path
        parts = []
        for part in row[2].split(";"):
            file = FILE.search(part)
            path = file[1] if file else path  # "the same": the file of the part before
            parts.append(NAME.sub(link, part) if path else part)
        return row[1] + ";".join(parts) + row[3]

    return ROW.sub(cell, page)


if __name__ == "__main__":
    PAGE.write_text(with_lines(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
