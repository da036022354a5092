"""Files that are whole, or as they were. Folders: tests/test_conversion.py."""

import pytest

from mmbert_hf.output_folders import write_whole


def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    path = write_whole(tmp_path / "results.json", "old")
    monkeypatch.setattr("pathlib.Path.replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        write_whole(path, "new")
    assert [(each.name, each.read_text()) for each in tmp_path.iterdir()] == [("results.json", "old")]
