"""What a run leaves for another one. (That it goes on as if it had not stopped: tests/invariants/test_spo_resume.py.)"""

import numpy as np
import pytest
from mmbert_hf.trainers.spo.run_files import check_fingerprint, load_run, save_run
from mmbert_hf.trainers.spo.tracker_files import read_tracker

pytestmark = pytest.mark.filterwarnings(
    "ignore:`(is_)?gradient_checkpointing\\w*` is deprecated:FutureWarning"  # TRL 1.16 with transformers 5.23: TRL's own
)


def test_a_checkpoint_that_is_refused_changes_nothing(spo, tmp_path):
    save_run(spo(folder="first"), tmp_path / "saved")
    for path in (tmp_path / "saved").glob("spo_process_*.pt"):
        path.unlink()
    trainer = spo(folder="second")
    tracker = trainer.tracker
    with pytest.raises(FileNotFoundError, match="cannot go on where it stopped"):
        load_run(trainer, tmp_path / "saved")
    assert trainer.tracker is tracker


def test_a_tracker_is_saved_for_another_run(spo, tmp_path):
    first = spo(max_steps=1)
    first.train()
    path = first.save_tracker(tmp_path / "kept")
    assert read_tracker(path)[0].values.tolist() == first.tracker.values.tolist()
    second = spo(initial_values=str(tmp_path / "kept"), folder="second")
    assert second.tracker.values.tolist() == first.tracker.values.tolist()


def test_fingerprints():
    check_fingerprint("a", "a", "here")
    with pytest.raises(ValueError, match="tracker in here is of other prompts"):
        check_fingerprint("a", "b", "here")


def test_values_are_taken_over_from_a_checkpoint(spo, tiny, tmp_path):
    first = spo(max_steps=3, save_strategy="steps", save_steps=3, save_only_model=True)
    first.train()
    checkpoint = tmp_path / "run" / "checkpoint-3"
    kept = read_tracker(checkpoint / "spo_tracker.safetensors")[0].state_dict()
    for name, value in first.tracker.state_dict().items():
        np.testing.assert_array_equal(kept[name], value, err_msg=name)
    second = spo(initial_values=str(checkpoint), folder="second")
    for name in ("values", "weights", "squares"):
        np.testing.assert_array_equal(getattr(second.tracker, name), getattr(first.tracker, name))
    assert not second.tracker.visits.any()
    assert second.tracker.round == 0
    second.train()
    with pytest.raises(ValueError, match=r"of other prompts than this data set.*prompt_id_column"):
        spo(initial_values=str(checkpoint), dataset=tiny.sums(9), folder="third")
    with pytest.raises(ValueError, match=r"kind 'beta', this one 'average'"):
        spo(initial_values=str(checkpoint), value_model="average", folder="fourth")
