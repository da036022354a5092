import doctest
import json

import pytest
from mmbert_hf.trainers import checkpoints
from mmbert_hf.trainers.checkpoints import last_complete_checkpoint, read_state


def test_docstring_examples():
    result = doctest.testmod(checkpoints)
    assert result.attempted >= 1
    assert result.failed == 0


@pytest.fixture
def make(tmp_path):
    """Write what counts of a checkpoint; `processes` is what a planned run says of itself."""

    def make(name, *, state=None, ranks=1, processes=None):
        folder = tmp_path / name
        folder.mkdir()
        if state is None:
            attributes = {"fingerprint": {} if processes is None else {"processes": processes}}
            state = json.dumps({"global_step": 1, "stateful_callbacks": {"PlanCallback": {"attributes": attributes}}})
        (folder / "trainer_state.json").write_text(state)
        for rank in range(ranks):
            (folder / ("rng_state.pth" if ranks == 1 else f"rng_state_{rank}.pth")).write_text("")
        return folder

    return make


def test_the_newest_is_by_number_not_by_letter(tmp_path, make):
    make("checkpoint-9")
    newest = make("checkpoint-10")
    assert last_complete_checkpoint(tmp_path) == newest


def test_other_folders_do_not_count(tmp_path, make):
    for name in ("checkpoint-best", "checkpoint-", "checkpoint-99-copy", "checkpoint-99.part", "tmp-checkpoint-99"):
        make(name)
    assert last_complete_checkpoint(tmp_path) is None
    assert last_complete_checkpoint(tmp_path, 2) is None
    oldest = make("checkpoint-3")
    (tmp_path / "checkpoint-4").write_text("a file")
    assert last_complete_checkpoint(tmp_path) == oldest


@pytest.mark.parametrize("state", ["", '{"global_step": 4, "best_metric": nu', "\x00\x00\x00\x00"])
def test_a_state_that_was_cut_off_falls_back_to_the_one_before(state, tmp_path, make):
    whole = make("checkpoint-2")
    cut = make("checkpoint-4", state=state)
    assert read_state(cut) is None
    assert last_complete_checkpoint(tmp_path) == whole


@pytest.mark.parametrize("state", ["[]", "null", "4"])
def test_a_state_that_is_json_of_another_kind_is_none(state, tmp_path, make):
    assert read_state(make("checkpoint-4", state=state)) is None
    assert last_complete_checkpoint(tmp_path) is None


def test_bytes_that_are_no_text_are_no_state(tmp_path, make):
    folder = make("checkpoint-4")
    (folder / "trainer_state.json").write_bytes(b'{"global_step": 4, "a": "\xff\xfe"}')
    assert read_state(folder) is None
    assert read_state(tmp_path / "checkpoint-5") is None


def test_every_rank_that_saved_has_written_its_random_state(tmp_path, make):
    first = make("checkpoint-2", ranks=3)
    second = make("checkpoint-4", ranks=3)
    assert last_complete_checkpoint(tmp_path, 3) == second
    (second / "rng_state_2.pth").unlink()
    assert last_complete_checkpoint(tmp_path, 3) == first
    assert last_complete_checkpoint(tmp_path, 1) is None  # a stock run does not say how many ranks there were


def test_a_planned_run_says_how_many_ranks_saved(tmp_path, make):
    """So that the run with another number finds it, and is refused instead of begun anew over it."""
    saved = make("checkpoint-4", ranks=2, processes=2)
    for now in (1, 2, 4):
        assert last_complete_checkpoint(tmp_path, now) == saved
    (saved / "rng_state_1.pth").unlink()
    for now in (1, 2, 4):
        assert last_complete_checkpoint(tmp_path, now) is None


def test_a_single_process_that_is_continued_by_two(tmp_path, make):
    assert last_complete_checkpoint(tmp_path, 2) is None
    saved = make("checkpoint-4", processes=1)
    assert last_complete_checkpoint(tmp_path, 2) == saved
