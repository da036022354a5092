import doctest

import pytest

from mmbert_hf.cli import tables
from mmbert_hf.cli.tables import format_table

ROWS = [["", "dense", "pruned"], ["bytes on disk", "1,000", "50"]]


def test_docstring_examples():
    result = doctest.testmod(tables)
    assert result.attempted >= 3
    assert result.failed == 0


@pytest.mark.parametrize(("columns", "lines"), [("28", 2), ("27", 3)])
def test_what_is_wider_than_the_terminal_gets_lines_of_its_own(monkeypatch, columns, lines):
    monkeypatch.setenv("COLUMNS", columns)
    text = format_table(ROWS).splitlines()
    assert len(text) == lines
    assert max(map(len, text)) <= int(columns)


def test_a_file_has_no_width(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setattr("sys.__stdout__", None)
    assert len(format_table([[name * 30 for name in row] for row in ROWS]).splitlines()) == 2
