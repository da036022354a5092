"""What GRPOTrainer can do, SPOTrainer can: one short run of each, with weights that change and losses that are numbers."""

import inspect
import math
import re

import numpy as np
import peft
import pytest
import torch
from mmbert_hf.trainers.spo import SPOConfig, SPOTrainer
from mmbert_hf.trainers.spo import trainer as module
from transformers import LlamaForSequenceClassification, TrainerCallback
from trl import GRPOTrainer

pytestmark = pytest.mark.filterwarnings(
    "ignore:`(is_)?gradient_checkpointing\\w*` is deprecated:FutureWarning"  # TRL 1.16 with transformers 5.23: TRL's own
)

LOSSES = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo", "cispo", "sapo", "vespo")


def train(trainer):
    """Train, and return the names of the weights that changed and what was logged at each step."""
    before = {name: weight.clone() for name, weight in trainer.model.named_parameters()}
    trainer.train()
    steps = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(steps) == trainer.state.global_step >= 1
    assert all(math.isfinite(entry["loss"]) and math.isfinite(entry["grad_norm"]) for entry in steps)
    assert all(weight.isfinite().all() for weight in trainer.model.parameters())
    changed = [name for name, weight in trainer.model.named_parameters() if not torch.equal(weight, before[name])]
    assert changed
    return changed, steps


def test_every_loss_is_in_the_list():
    source = inspect.getsource(GRPOTrainer._compute_loss)
    conditions = re.findall(r"self\.loss_type (?:==|in) (\"\w+\"|\[[^]]+\])", source)
    assert {name for condition in conditions for name in re.findall(r"\w+", condition)} == set(LOSSES)


OPTIONS = {
    **{f"loss {name}": {"loss_type": name} for name in LOSSES},
    "sequence importance": {"importance_sampling_level": "sequence", "loss_type": "grpo"},
    "two iterations": {"num_iterations": 2},
    "a generation for two steps": {"steps_per_generation": 2},
    "a generation of two micro-batches": {"steps_per_generation": 2, "gradient_accumulation_steps": 2},
    "two generations for a step": {"steps_per_generation": 1, "gradient_accumulation_steps": 2},
    "three at a time": {"per_device_train_batch_size": 3},
    "more at a time than there are": {"per_device_train_batch_size": 13},
    "gradient checkpointing": {"gradient_checkpointing": True},
    "truncated responses masked": {"mask_truncated_completions": True, "max_completion_length": 8, "max_steps": 4},
    "entropy": {"top_entropy_quantile": 0.5, "entropy_coef": 0.01},
    "bfloat16": {"bf16": True},
    "unused columns removed": {"remove_unused_columns": True},
    "padded to a multiple": {"pad_to_multiple_of": 8},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_options(spo, options):
    trainer = spo(**options)
    _, steps = train(trainer)
    micro_batches = trainer.state.global_step * trainer.args.gradient_accumulation_steps
    rounds = -(-micro_batches // (trainer.args.steps_per_generation * trainer.args.num_iterations))
    assert trainer.tracker.round == rounds
    assert trainer.tracker.visits.sum() == rounds * trainer.args.generation_batch_size
    assert any(entry["grad_norm"] > 0 for entry in steps)


def test_conversations(spo, tiny):
    recorder = tiny.Recorder()
    trainer = spo(recorder, dataset=tiny.sums(conversational=True))
    train(trainer)
    assert recorder.calls[0].prompts[0][0]["role"] == "user"
    assert recorder.calls[0].completions[0][0]["role"] == "assistant"


def test_all_arguments_may_be_left_out(tiny, tmp_path, monkeypatch):
    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = True

    # but for the processor, on which GRPOTrainer has to be told not to use bfloat16
    monkeypatch.setattr(module, "SPOConfig", lambda folder: SPOConfig(folder, use_cpu=True, bf16=False))
    monkeypatch.chdir(tmp_path)
    tiny.model().save_pretrained("start")
    tiny.tokenizer().save_pretrained("start")
    trainer = SPOTrainer("start", tiny.odd, train_dataset=tiny.sums(), callbacks=[Stop()])
    assert isinstance(trainer.args, SPOConfig)
    assert trainer.args.output_dir == "start-SPO"
    trainer.train()
    assert trainer.tracker.visits.sum() == trainer.args.generation_batch_size


# Rewards.


def short(completions, **_):
    return [1.0 - len(completion) / 3 for completion in completions]


async def odd_in_time(completions, **_):
    return [float(sum(map(ord, completion)) % 2) for completion in completions]


def for_some(prompts, **_):
    return [None if int(prompt[2]) % 2 else 1.0 for prompt in prompts]


def for_none(prompts, **_):
    return [None] * len(prompts)


def test_several_rewards_are_summed_by_weight(spo, tiny):
    trainer = spo([tiny.odd, short, odd_in_time, for_none], reward_weights=[1.0, -2.0, 0.5, 3.0], max_steps=3)
    assert trainer.tracker.kind == "average"
    _, steps = train(trainer)
    for entry in steps:
        means = [entry[f"rewards/{name}/mean"] for name in ("odd", "short", "odd_in_time")]
        assert entry["reward"] == pytest.approx(np.dot(means, [1.0, -2.0, 0.5]), abs=1e-6)
    assert trainer.tracker.reward_mean == pytest.approx(np.mean([entry["reward"] for entry in steps]), abs=1e-6)
    assert trainer.tracker.reward_count == 12


def test_weights_that_sum_to_one_in_float32(spo):
    always = [lambda completions, **_: [1.0] * len(completions)] * 3  # 0.2 + 0.2 + 0.6 is 1.00000003 there
    trainer = spo(always, reward_weights=[0.2, 0.2, 0.6], value_model="beta", max_steps=1)
    trainer.train()
    assert trainer.tracker.reward_mean == 1


def test_an_awaited_reward(spo):
    trainer = spo(odd_in_time)
    train(trainer)
    assert trainer.tracker.reward_count == 8


def test_a_response_without_a_reward_changes_nothing(spo, tiny):
    both = tiny.Recorder(lambda **columns: [
        None if skip is None else good for skip, good in zip(for_some(**columns), tiny.odd(**columns), strict=True)
    ])  # fmt: skip
    trainer = spo(both, max_steps=4, exploration_floor=1.0)
    train(trainer)
    assert (trainer.tracker.visits[1::2] == 0).all()
    assert (trainer.tracker.values[1::2] == 0.5).all()
    assert trainer.tracker.visits.sum() == sum(reward is not None for call in both.calls for reward in call.rewards) > 4

    nothing = spo(for_none, folder="nothing")
    before = nothing.model.lm_head.weight.clone()
    nothing.train()
    assert not nothing.tracker.visits.any()
    assert nothing.tracker.round == 2
    assert torch.equal(nothing.model.lm_head.weight, before)
    assert nothing.state.log_history[0]["reward"] is None


@pytest.mark.parametrize("given", ["folder", "model"])
def test_a_reward_model(spo, tiny, tmp_path, given):
    judge = LlamaForSequenceClassification(tiny.model().config.__class__(**tiny.model().config.to_dict(), num_labels=1))
    judge.save_pretrained(tmp_path / "judge")
    tiny.tokenizer().save_pretrained(tmp_path / "judge")
    options = {"reward_processing_classes": tiny.tokenizer()} if given == "model" else {}
    trainer = spo(judge if given == "model" else str(tmp_path / "judge"), **options)
    assert trainer.tracker.kind == "average"
    train(trainer)
    low, high = trainer.tracker.reward_range
    assert low < high
    assert trainer.tracker.reward_count == 8


def test_rewards_may_log(spo, tiny, tmp_path, capsys):
    def reward(completions, log_extra, log_metric, trainer_state, answer, **_):
        log_extra("answer", list(answer))
        log_metric("share", float(trainer_state.global_step))
        return tiny.odd(completions)

    trainer = spo(reward, log_completions=True)
    _, steps = train(trainer)
    assert [entry["share"] for entry in steps] == [0.0, 1.0]
    assert "answer" in capsys.readouterr().out
    assert (tmp_path / "run" / "completions").is_dir()


# Models.


def test_a_reference_model(spo, tiny, tmp_path):
    tiny.model().save_pretrained(tmp_path / "start")
    trainer = spo(model=str(tmp_path / "start"), beta=0.1)
    _, steps = train(trainer)
    assert steps[0]["kl"] == pytest.approx(0, abs=1e-6)
    assert steps[1]["kl"] > 1e-4


@pytest.mark.parametrize("beta", [0.0, 0.1])
@pytest.mark.parametrize("given", ["config", "model"])
def test_lora(spo, tiny, given, beta):
    config = peft.LoraConfig(target_modules=["q_proj", "v_proj"], r=2, lora_dropout=0.3, task_type="CAUSAL_LM")
    model = tiny.model()
    options = {"model": model, "peft_config": config}
    if given == "model":
        options = {"model": peft.get_peft_model(model, config)}
    trainer = spo(beta=beta, max_steps=3, **options)
    changed, steps = train(trainer)
    assert all("lora_" in name and ".ref." not in name for name in changed)
    assert ("kl" in steps[0]) == (beta > 0)
    assert trainer.tracker.drift > 0


def test_a_model_that_sees(spo, tiny, tmp_path):
    model, processor, pictures = tiny.pictures()
    trainer = spo(
        model=model, processing_class=processor, dataset=pictures, steps_per_generation=2,
        gradient_accumulation_steps=1, max_steps=4, save_strategy="steps", save_steps=3,
    )  # fmt: skip
    changed, _ = train(trainer)
    assert any("vision_tower" in name for name in changed)
    assert trainer.tracker.drift > 0
    checkpoint = str(tmp_path / "run" / "checkpoint-3")
    resumed = spo(  # from_pretrained: resuming renames no weights, so Trainer of transformers 5.23 leaves LLaVA as it is
        model=type(model).from_pretrained(checkpoint), processing_class=processor, dataset=pictures,
        steps_per_generation=2, gradient_accumulation_steps=1, max_steps=4,
    )  # fmt: skip
    resumed.train(resume_from_checkpoint=checkpoint)
    assert all(torch.equal(a, b) for a, b in zip(resumed.model.parameters(), trainer.model.parameters(), strict=True))


# Data.


def test_a_stream(spo, tiny):
    recorder = tiny.Recorder()
    stream = tiny.sums(6).to_iterable_dataset()
    trainer = spo(recorder, dataset=stream, max_steps=6, shuffle_dataset=False)
    train(trainer)
    asked = [prompt for call in recorder.calls for prompt in call.prompts]
    assert asked[:4] == tiny.sums(6)["prompt"][:4]  # as they come
    assert len(trainer.tracker) == len(set(asked)) == 4 + (len(set(asked)) > 4) * 2
    assert trainer.tracker.visits.sum() == 24


def test_several_evaluation_sets(spo, tiny):
    recorder = tiny.Recorder()
    sets = {"near": tiny.sums(4), "far": tiny.sums(2, first=50)}
    trainer = spo(recorder, eval_dataset=sets, per_device_eval_batch_size=2)
    train(trainer)
    recorder.calls.clear()
    metrics = trainer.evaluate()
    assert {"eval_near_loss", "eval_far_loss"} <= metrics.keys()
    asked = [prompt for call in recorder.calls for prompt in call.prompts]
    assert sorted(asked[:4]) == sorted(sets["near"]["prompt"])
    assert sorted(asked[4:]) == sorted(sets["far"]["prompt"])
    assert trainer.tracker.visits.sum() == 8
