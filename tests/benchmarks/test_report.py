import doctest
import json

import pytest
import report
from report import HEADER, rows_of, table, write_json


def test_doctests():
    assert doctest.testmod(report).failed == 0


def test_json_round_trip_keeps_every_digit_and_puts_timings_in_one_line(tmp_path):
    document = {"seconds": [0.1, 1e-05, 0.3333333333333333, 3], "texts": ["[1,\n 2]"], "nothing": None, "empty": []}
    write_json(document, tmp_path / "a.json")
    text = (tmp_path / "a.json").read_text()
    assert json.loads(text) == document
    assert "[0.1, 1e-05, 0.3333333333333333, 3]" in text


def test_a_value_that_json_cannot_hold_leaves_the_last_file(tmp_path):
    write_json({"a": 1}, tmp_path / "a.json")
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json({"a": float("nan")}, tmp_path / "a.json")
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": 1}


def test_the_ratio_stands_in_the_row_of_the_baseline():
    time = {"median_seconds": 1.0, "tokens_per_second": 1.0, "matrix_rate_share": 0.5}
    memory = {"bytes": None, "note": "not measured"}
    result = {
        "case": "mixed",
        "mode": "training",
        "pairs": 6,
        "implementations": {name: {"time": time, "peak_memory": memory} for name in ("mmbert", "other")},
        "ratios": {"other": {"median": 2.5, "interval": [2.0, 3.0]}},
    }
    rows = [dict(zip(HEADER, row, strict=True)) for row in rows_of(result)]
    assert [row["x ours"] for row in rows] == ["1", "2.500"]
    assert [row["95 % interval"] for row in rows] == ["-", "2.000..3.000"]
    assert rows[1]["rate"] == "50.0 %"
    result["implementations"]["other"]["time"] = None
    result["ratios"] = {}
    assert set(rows_of(result)[1][3:]) == {"-"}


def test_columns_line_up():
    lines = table([HEADER, ["1x8192", "inference", "modernbert-sdpa-sparse", *["9"] * 7]]).splitlines()
    assert lines[0].index("implementation") == lines[1].index("modernbert")
    assert len(lines[0]) == len(lines[1])
