import argparse
import importlib.util
import json

import pytest

from mmbert_hf.cli import plot


def main(*argv):
    """Run the verb as ``mmbert`` does."""
    parser = argparse.ArgumentParser(prog="mmbert")
    plot.add_parser(parser.add_subparsers(dest="verb"))
    args = parser.parse_args(["plot", *map(str, argv)])
    return args.run(args)


@pytest.fixture
def folder(tmp_path):
    history = [{"step": step, "loss": 9.0 - step, "learning_rate": 1e-3} for step in (1, 2, 3)]
    state = {"global_step": 3, "max_steps": 3, "log_history": history}
    (tmp_path / "checkpoint-3").mkdir()
    (tmp_path / "checkpoint-3" / "trainer_state.json").write_text(json.dumps(state))
    return tmp_path


def test_the_picture_is_written_where_one_stands(folder, monkeypatch, capsys):
    pytest.importorskip("matplotlib", reason="pictures need the extra [plots]")
    monkeypatch.chdir(folder)
    assert main(folder) == 0
    assert (folder / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().out == "wrote plot.png\n"


def test_json_alone_needs_no_matplotlib(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None)
    assert main(folder, "--output", "out.json") == 0
    assert json.loads((folder / "out.json").read_text())["training"]["loss"] == [8.0, 7.0, 6.0]
    assert not (folder / "plot.png").exists()
    with pytest.raises(ValueError, match=r"pip install mmbert-hf\[plots\]"):
        main(folder, "--output", "run.png")


def test_json_is_printed(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    assert main(folder, "--json") == 0
    assert json.loads(capsys.readouterr().out)["training"]["loss"] == [8.0, 7.0, 6.0]
    assert not (folder / "plot.png").exists()


def test_a_picture_is_drawn_where_it_is_wanted(folder):
    pytest.importorskip("matplotlib", reason="pictures need the extra [plots]")
    assert main(folder, "--output", folder / "run.svg") == 0
    assert "<svg" in (folder / "run.svg").read_text()


def test_a_folder_without_a_run_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no trainer_state.json"):
        main(tmp_path, "--output", tmp_path / "out.json")
