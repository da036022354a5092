import doctest
import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from mmbert_hf.trainers import plan
from mmbert_hf.trainers.mlm import MLMTrainer, as_token_documents
from mmbert_hf.trainers.plan import PlanCallback, differences
from transformers import Trainer, TrainerCallback, TrainingArguments

from mmbert_hf import MMBertForMaskedLM
from mmbert_hf.data.packed_mixture import PackedMixture
from mmbert_hf.masking import PackingCollator
from mmbert_hf.step_plan import plan_steps


def test_docstring_examples():
    result = doctest.testmod(plan)
    assert result.attempted >= 1
    assert result.failed == 0


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ({"a": 1}, {"a": 1}, []),
        ({"a": {"b": [1, {"c": 2}]}}, {"a": {"b": [1, {"c": 3}]}}, ["a.b[1].c: 2 -> 3"]),
        ({"a": [1, 2]}, {"a": [1, 2, 3]}, ["a: 2 -> 3, with 3"]),
        ({"a": {"b": 1}}, {"a": 4}, ["a: {'b': 1} -> 4"]),
        ({"old": 1}, {"new": 1}, ["old: 1 -> none", "new: none -> 1"]),
        ({"a": None}, {"a": 0}, ["a: none -> 0"]),
        (1, 1.5, [": 1 -> 1.5"]),
    ],
)
def test_differences(before, after, expected):
    assert differences(before, after) == expected


def test_a_language_more_among_many_is_in_the_difference():
    many = [f"l{number:02}" for number in range(60)]
    (line,) = differences({"languages": many}, {"languages": [*many, "fao"]})
    old, _, new = line.removeprefix("languages: ").partition(" -> ")
    assert old != new


@pytest.fixture
def steps(recipe):
    return plan_steps(recipe, rows_per_step=4)


@pytest.fixture
def mixture(steps, documents, tokenizer):
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    return PackedMixture(as_token_documents(documents, tokenizer), steps.spans, max_repeats=None, **ids)


def checkpoint_of(callback, folder, **changes):
    """What Trainer writes of a callback."""
    state = {**callback.state(), **changes}
    (folder / "trainer_state.json").write_text(json.dumps({"stateful_callbacks": {"PlanCallback": state}}))
    return str(folder)


def test_a_checkpoint_without_a_plan_is_refused(steps, mixture, tmp_path):
    callback = PlanCallback(steps, mixture)
    for state in ('{"global_step": 4}', '{"stateful_callbacks": {"EarlyStopping": {}}}', '{"global_st'):
        (tmp_path / "trainer_state.json").write_text(state)
        with pytest.raises(ValueError, match=r"holds no state of a planned run.*MLMTrainer\(model=checkpoint\)"):
            callback.resume(str(tmp_path))
        with pytest.raises(ValueError, match="holds no state"):
            callback.resume(str(tmp_path), allow_change=True)  # there is nothing to allow


def test_what_is_saved_is_where_the_next_step_begins(steps, mixture, tmp_path):
    callback = PlanCallback(steps, mixture, {"seed": 3})
    callback.on_step_end(None, SimpleNamespace(global_step=7), None)
    callback.tokens_seen = 1234
    attributes = callback.state()["attributes"]
    assert attributes["data_state"] == mixture.state_at(int(steps.first_row[7]))
    assert attributes["fingerprint"]["seed"] == 3
    again = PlanCallback(steps, mixture, {"seed": 3})
    again.resume(checkpoint_of(callback, tmp_path))
    assert again.tokens_seen == 1234
    callback.on_step_end(None, SimpleNamespace(global_step=steps.num_steps), None)
    again.resume(checkpoint_of(callback, tmp_path))  # behind the last step, too


def test_many_differences_are_counted(steps, mixture, tmp_path):
    saved = checkpoint_of(PlanCallback(steps, mixture, {f"setting{number}": 1 for number in range(11)}), tmp_path)
    other = PlanCallback(steps, mixture, {f"setting{number}": 2 for number in range(11)})
    with pytest.raises(ValueError, match=r"setting0: 1 -> 2; .*setting7: 1 -> 2; and 3 more\. Set these back"):
        other.resume(saved)
    other.resume(saved, allow_change=True)


def test_a_plan_for_other_micro_batches_is_refused(tiny_model, tokenizer, recipe, documents, tmp_path):
    steady = replace(recipe, phases=[replace(phase, batch_warmup=0.0) for phase in recipe.phases])
    steps = plan_steps(steady, rows_per_step=4)
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    mixture = PackedMixture(as_token_documents(documents, tokenizer), steps.spans, max_repeats=None, **ids)
    args = TrainingArguments(
        str(tmp_path),
        max_steps=steps.num_steps,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    callbacks = [PlanCallback(steps, mixture)]
    trainer = Trainer(
        tiny_model, args, train_dataset=mixture, data_collator=PackingCollator(tokenizer), callbacks=callbacks
    )
    with pytest.raises(
        ValueError, match=r"into 1 micro-batches, the trainer into 2 \(1 processes x 2 acc.*num_micro_batches=2"
    ):
        trainer.train()


class Seen(TrainerCallback):
    """What the model and the optimizer have at every step that is run."""

    def __init__(self):
        self.steps = {}

    def on_pre_optimizer_step(self, args, state, control, model=None, optimizer=None, **kwargs):
        thetas = {values["rope_theta"] for values in model.config.rope_parameters.values()}
        frequencies = torch.cat([buffer.flatten() for buffer in model.model.rotary_emb.buffers()])
        groups = [(group["weight_decay"], group["max_lr"]) for group in optimizer.param_groups]
        self.steps[state.global_step] = thetas, groups, frequencies.clone()


class StopAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= self.step


@pytest.mark.parametrize("offset", [-1, 0, 1])
def test_the_phase_is_there_from_the_first_step_after_a_resume(
    offset, tiny_config, tokenizer, recipe, documents, make_args
):
    """Stopped before, at and behind the switch to the decay; the model that continues has the first phase's settings."""
    first, seen = None, []
    args = make_args(save_strategy="steps", save_steps=1)
    for resume in (False, True):
        torch.manual_seed(0)
        model, callbacks = MMBertForMaskedLM(tiny_config), [Seen()]
        model.set_rope_theta(1e4)
        trainer = MLMTrainer(model, args, documents, processing_class=tokenizer, recipe=recipe, callbacks=callbacks)
        first = trainer.plan.first_steps[2] + offset
        if not resume:
            trainer.add_callback(StopAt(first))
        trainer.train(resume_from_checkpoint=resume)
        seen.append(callbacks[0].steps)
        assert trainer.plan_callback.tokens_seen > 0
    assert list(seen[1]) == list(range(first, trainer.plan.num_steps))
    assert list(seen[0]) == list(range(first))
    for step, (thetas, groups, frequencies) in (seen[0] | seen[1]).items():
        phase = trainer.plan.phase_at(step)
        assert thetas == {phase.rope_theta}
        assert groups[0] == (phase.weight_decay, phase.learning_rate)
        assert groups[1][0] == 0.0
        expected = MMBertForMaskedLM(tiny_config)
        expected.set_rope_theta(phase.rope_theta)
        buffers = torch.cat([buffer.flatten() for buffer in expected.model.rotary_emb.buffers()])
        assert torch.equal(frequencies, buffers)
