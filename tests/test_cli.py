import pytest

from mmbert_hf.cli import main

pytestmark = pytest.mark.usefixtures("process_as_it_was")


def test_version(capsys):
    from mmbert_hf import __version__

    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"mmbert-hf {__version__}\n"


def test_a_verb_is_needed(capsys):
    with pytest.raises(SystemExit, match="2"):
        main([])
    assert "VERB" in capsys.readouterr().err


def test_bad_input_is_one_sentence_and_status_2(tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("mine")
    assert main(["demo", "--output-dir", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("mmbert demo: ")
    assert str(tmp_path) in error
    assert "--overwrite" in error
    assert "Traceback" not in error
    assert (tmp_path / "thesis.txt").read_text() == "mine"
    with pytest.raises(FileExistsError):
        main(["demo", "--output-dir", str(tmp_path), "--debug"])
