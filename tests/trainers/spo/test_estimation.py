"""Values from responses before training: everybody the same number of times, paid for, and the trainer as it was."""

import numpy as np
import pytest
from mmbert_hf.trainers.spo.estimation import portions

pytestmark = pytest.mark.filterwarnings(
    "ignore:`(is_)?gradient_checkpointing\\w*` is deprecated:FutureWarning"  # TRL 1.16 with transformers 5.23: TRL's own
)


@pytest.mark.parametrize(("prompts", "samples", "size"), [(5, 3, 4), (4, 2, 8), (3, 1, 7)])
def test_portions_are_full_and_count_everybody_alike(prompts, samples, size):
    counted = np.zeros(prompts, dtype=int)
    for rows, fresh in portions(prompts, samples, size):
        assert len(rows) == len(fresh) == size
        np.add.at(counted, rows[fresh], 1)
    assert (counted == samples).all()


def test_offline_values_are_paid_for(spo, tiny):
    recorder = tiny.Recorder(lambda prompts, **_: [float(int(prompt[2]) < 4) for prompt in prompts])  # "0+3="
    trainer = spo(recorder, initial_values="offline", num_initial_samples=3, num_generations_eval=2, max_steps=1)
    before = None

    def remember(*args):
        nonlocal before
        before = before or trainer.tracker.state_dict()
        return choose(*args)

    choose, trainer._choose = trainer._choose, remember
    trainer.train()
    assert before["values"].tolist() == [3.5 / 4] * 4 + [0.5 / 4] * 6
    assert before["weights"] == pytest.approx(1 / (1 - trainer.args.rho_min))
    asked = [prompt for call in recorder.calls[:-1] for prompt in call.prompts]
    assert {asked[:30].count(prompt) for prompt in asked} == {3}  # and the last batch is filled up
    tokens = sum(len(ids) for call in recorder.calls for ids in call.ids) + 4 * 4 * len(recorder.calls)
    assert trainer.state.num_input_tokens_seen == tokens
    entry = trainer.state.log_history[0]
    assert entry["num_tokens"] == tokens
    assert 0 < entry["spo/estimate_tokens"] < tokens
    assert trainer.num_generations_eval == 2
    assert trainer.tracker.round == 1


def test_values_may_be_estimated_before_training(spo, tiny):
    # truncated responses are masked, and paid for all the same
    recorder = tiny.Recorder()
    trainer = spo(recorder, max_steps=1, mask_truncated_completions=True)
    is_training = trainer.model.training
    assert trainer.estimate_values(2) is trainer.tracker
    assert trainer.model.training == is_training
    trainer.train()
    assert len(recorder.calls) == 6
    tokens = sum(len(ids) for call in recorder.calls for ids in call.ids) + 4 * 4 * len(recorder.calls)
    assert trainer.state.num_input_tokens_seen == tokens
