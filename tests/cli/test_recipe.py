import pytest

from mmbert_hf.cli import main
from mmbert_hf.presets import PRESETS


def recipe(capsys, *argv):
    status = main(["recipe", "show", *map(str, argv)])
    done = capsys.readouterr()
    return status, done.out.splitlines(), done.err


def test_without_a_name_all_presets_are_named(capsys):
    status, lines, _ = recipe(capsys)
    assert status == 0
    assert [line.split()[0] for line in lines] == list(PRESETS)
    assert lines[0].endswith("base   3 phases, 3,000,000,000,000 tokens")


def test_a_preset_has_its_published_numbers(capsys):
    status, lines, _ = recipe(capsys, "mmbert-small-paper")
    assert status == 0
    table = {line[:22].strip(): line[22:].split("  ") for line in lines[:-1]}
    cells = {name: [cell.strip() for cell in found if cell.strip()] for name, found in table.items()}
    assert cells["phase"] == ["pretrain", "extend", "decay"]
    assert cells["mask ratio"] == ["0.3", "0.15", "0.05"]
    assert cells["RoPE base"] == ["10,000", "160,000", "160,000"]
    assert cells["learning rate"] == ["0.0008", "0.0004", "0.0004"]
    assert cells["learning-rate shape"][-1] == "linear to 4%"
    assert cells["batch warm-up"] == ["from 48 in 100,000,000,000 tokens", "none", "none"]
    assert lines[-1].split(" steps, ")[0].replace(",", "").isdigit()


def test_scaled_to_a_budget_every_step_is_counted(capsys):
    _, lines, _ = recipe(capsys, "tiny", "--total-tokens", "1M", "--rows-per-step", 2)
    assert lines[1].split()[1:] == ["600,000", "200,000", "200,000"]
    steps, rows, tokens = (int(part.split()[0].replace(",", "")) for part in lines[-1].split(", "))
    assert rows == pytest.approx(600_000 / 256 + 400_000 / 1024, abs=4)
    assert steps > rows / 2  # the batch grows
    assert tokens == pytest.approx(1_000_000, abs=3 * 1024)


def test_the_picture_is_written(capsys, tmp_path):
    pytest.importorskip("matplotlib", reason="pictures need the extra [plots]")
    status, lines, _ = recipe(capsys, "tiny", "--plot", tmp_path / "tiny.png")
    assert status == 0
    assert lines[-1] == f"drawn into {tmp_path / 'tiny.png'}"
    assert (tmp_path / "tiny.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("tinny",), "did you mean 'tiny'"),
        (("tiny", "--total-tokens", "many"), "expected a number of tokens such as"),
        (("tiny", "--total-tokens", "10k"), "does not fit: its budget of"),
        (("tiny", "--rows-per-step", "-3"), "rows_per_step"),
    ],
)
def test_mistakes_are_one_message_and_status_2(argv, message, capsys):
    status, _, error = recipe(capsys, *argv)
    assert status == 2
    assert error.startswith("mmbert recipe: ")
    assert message in error


def test_unknown_arguments_are_refused(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["recipe", "show", "tiny", "--rows-pr-step", "4"])
    assert "there is no option '--rows-pr-step 4'; did you mean '--rows-per-step'?" in capsys.readouterr().err
