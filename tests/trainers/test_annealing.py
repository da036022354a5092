import doctest

import pytest
import torch
from mmbert_hf.trainers import annealing as module
from transformers import Trainer, TrainerCallback, TrainingArguments

from mmbert_hf import AnnealingCallback, LanguageMixture, MaskingCollator
from mmbert_hf.masking import IGNORE_INDEX
from mmbert_hf.schedules import Linear, Piecewise

STEPS, ROWS = 6, 4
MASK_RATIO = Piecewise([1.0, 0.0], [0.5])
TEMPERATURE = Piecewise([1.0, 0.0], [0.5])


def test_examples_in_the_docstrings():
    result = doctest.testmod(module)
    assert result.attempted >= 3
    assert result.failed == 0


class Recorder(TrainerCallback):
    """Keeps what reached the model: labels and language of each step."""

    def __init__(self, model):
        self.batches = []
        model.register_forward_pre_hook(self._hook, with_kwargs=True)

    def _hook(self, model, args, kwargs):
        self.batches.append({name: kwargs[name].clone() for name in ("input_ids", "labels")})


def make_mixture(tokenizer, num_samples=STEPS * ROWS):
    # distinct ids per language, so that a row tells its language
    documents = {"eng": [[30 + i for i in range(8)]] * 3, "fao": [[50 + i for i in range(8)]]}
    return LanguageMixture(
        documents, tokenizer, num_samples=num_samples, counts={"eng": 1e9, "fao": 1.0}, max_length=16
    )


def make_args(tmp_path, **changes):
    settings = {
        "max_steps": STEPS,
        "per_device_train_batch_size": ROWS,
        "train_sampling_strategy": "sequential",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "dataloader_pin_memory": False,
    }
    return TrainingArguments(str(tmp_path), **(settings | changes))


def make_trainer(tmp_path, model, tokenizer, callback, dataset=None, collator=None, **changes):
    return Trainer(
        model,
        make_args(tmp_path, **changes),
        train_dataset=dataset if dataset is not None else make_mixture(tokenizer),
        data_collator=collator if collator is not None else MaskingCollator(tokenizer),
        callbacks=[callback],
    )


@pytest.mark.parametrize(
    "changes", [{}, {"dataloader_num_workers": 2}, {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2}]
)
def test_every_batch_has_the_ratio_and_temperature_of_its_step(tmp_path, tiny_model, tokenizer, changes):
    recorder = Recorder(tiny_model)
    callback = AnnealingCallback(MASK_RATIO, TEMPERATURE)
    trainer = make_trainer(tmp_path, tiny_model, tokenizer, callback, **changes)
    trainer.train()
    assert len(recorder.batches) == STEPS * changes.get("gradient_accumulation_steps", 1)
    half = len(recorder.batches) // 2
    for number, batch in enumerate(recorder.batches):
        text = batch["input_ids"] != tokenizer.pad_token_id
        predicted = (batch["labels"] != IGNORE_INDEX).sum() / (text.sum() - 2 * len(text))
        assert predicted == (1.0 if number < half else 0.0), f"batch {number}"
    # temperature 1 with counts 1e9 to 1 is all English; temperature 0 is uniform
    mixture = trainer.train_dataset
    assert mixture.samples_per_language(0, STEPS * ROWS // 2) == {"eng": STEPS * ROWS // 2, "fao": 0}
    assert mixture.samples_per_language(STEPS * ROWS // 2)["fao"] >= 2
    assert [mixture[i]["progress"] for i in range(STEPS * ROWS)] == [i // ROWS / STEPS for i in range(STEPS * ROWS)]


def test_values_are_logged_with_the_loss_they_made(tmp_path, tiny_model, tokenizer):
    seen = []

    class Later(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            seen.append(dict(logs))

    trainer = make_trainer(tmp_path, tiny_model, tokenizer, AnnealingCallback(MASK_RATIO, TEMPERATURE))
    trainer.add_callback(Later())
    trainer.train()
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["mask_ratio"] for entry in history] == [1.0, 1.0, 1.0, 0.0, 0.0, 0.0]
    assert [entry["language_temperature"] for entry in history] == [1.0, 1.0, 1.0, 0.0, 0.0, 0.0]
    assert history[0]["loss"] > 0
    assert history[-1]["loss"] == 0  # ratio 0: nothing to predict
    assert [entry["mask_ratio"] for entry in seen if "loss" in entry] == [entry["mask_ratio"] for entry in history]


def test_plain_data_sets_get_the_ratio_too(tmp_path, tiny_model, tokenizer):
    recorder = Recorder(tiny_model)
    dataset = [{"input_ids": list(range(30, 40))} for _ in range(STEPS * ROWS)]
    make_trainer(tmp_path, tiny_model, tokenizer, AnnealingCallback(MASK_RATIO), dataset=dataset).train()
    shares = [float((batch["labels"] != IGNORE_INDEX).float().mean()) for batch in recorder.batches]
    assert shares[:3] == [1.0, 1.0, 1.0]
    assert shares[-2:] == [0.0, 0.0]  # the loader fetches one batch ahead: the fourth still has the old ratio


def test_progress_in_tokens(tmp_path, tiny_model, tokenizer):
    # 8 text tokens and 2 special ones a row, 4 rows a step: half of 240 tokens is done after 3 steps
    recorder = Recorder(tiny_model)
    callback = AnnealingCallback(MASK_RATIO, unit="tokens", total_tokens=240)
    trainer = make_trainer(tmp_path, tiny_model, tokenizer, callback)
    trainer.train()
    predicted = [int((batch["labels"] != IGNORE_INDEX).sum()) for batch in recorder.batches]
    assert predicted == [32, 32, 32, 0, 0, 0]
    assert [entry["mask_ratio"] for entry in trainer.state.log_history if "loss" in entry] == [1.0] * 3 + [0.0] * 3


def test_rope_theta_switches_between_two_steps_and_is_saved(tmp_path, tiny_model, tokenizer):
    thetas = []
    tiny_model.register_forward_pre_hook(
        lambda model, args: thetas.append(model.config.rope_parameters["full_attention"]["rope_theta"])
    )
    callback = AnnealingCallback(0.5, rope_theta=Piecewise([10_000.0, 160_000.0], [0.5]))
    make_trainer(tmp_path, tiny_model, tokenizer, callback).train()
    assert thetas == [10_000.0] * 3 + [160_000.0] * 3
    frequencies = tiny_model.model.rotary_emb.full_attention_inv_freq
    width = tiny_model.config.hidden_size // tiny_model.config.num_attention_heads
    assert torch.allclose(frequencies, 160_000.0 ** (-torch.arange(0, width, 2) / width))


@pytest.mark.parametrize("workers", [0, 2])
def test_resume_is_the_straight_run_to_the_bit(tmp_path, tiny_config, tokenizer, workers):
    from mmbert_hf import MMBertForMaskedLM

    def run(folder, resume=None):
        torch.manual_seed(0)
        model = MMBertForMaskedLM(tiny_config)
        callback = AnnealingCallback(Linear(0.9, 0.3), Linear(1.0, 0.0), rope_theta=Piecewise([1e4, 1.6e5], [0.5]))
        changes = {"save_strategy": "steps", "save_steps": 2, "dataloader_num_workers": workers}
        trainer = make_trainer(tmp_path / folder, model, tokenizer, callback, **changes)
        trainer.train(resume_from_checkpoint=resume)
        return model, trainer

    straight, trainer = run("straight")
    resumed, again = run("resumed", tmp_path / "straight" / "checkpoint-4")
    assert again.state.global_step == STEPS
    for name, parameter in straight.state_dict().items():
        assert torch.equal(parameter, resumed.state_dict()[name]), name

    def values(trainer):
        kept = ("step", "loss", "mask_ratio", "language_temperature", "rope_theta")
        return [{name: entry[name] for name in kept} for entry in trainer.state.log_history if "loss" in entry]

    assert values(again) == values(trainer)


class TestRefusals:
    def test_no_collator(self, tmp_path, tiny_model, tokenizer):
        trainer = make_trainer(tmp_path, tiny_model, tokenizer, AnnealingCallback(0.3), collator=lambda rows: rows)
        with pytest.raises(ValueError, match=r"data_collator=MaskingCollator\(tokenizer\)"):
            trainer.train()

    def test_no_mixture(self, tmp_path, tiny_model, tokenizer):
        dataset = [{"input_ids": [30, 31]}] * 30
        callback = AnnealingCallback(language_temperature=0.3)
        with pytest.raises(ValueError, match=r"train_dataset=LanguageMixture"):
            make_trainer(tmp_path, tiny_model, tokenizer, callback, dataset=dataset).train()

    def test_shuffled_mixture(self, tmp_path, tiny_model, tokenizer):
        trainer = make_trainer(
            tmp_path, tiny_model, tokenizer, AnnealingCallback(0.3), train_sampling_strategy="random"
        )
        with pytest.raises(ValueError, match="train_sampling_strategy='sequential'"):
            trainer.train()

    def test_short_mixture(self, tmp_path, tiny_model, tokenizer):
        dataset = make_mixture(tokenizer, num_samples=STEPS * ROWS - 1)
        with pytest.raises(ValueError, match="has 23 samples but 6 steps of 4 read 24; build it with num_samples=24"):
            make_trainer(tmp_path, tiny_model, tokenizer, AnnealingCallback(0.3), dataset=dataset).train()

    def test_model_without_rope_switch(self, tmp_path, tokenizer, tiny_config):
        from transformers import BertConfig, BertForMaskedLM

        model = BertForMaskedLM(BertConfig(vocab_size=500, hidden_size=8, num_hidden_layers=1, num_attention_heads=1))
        with pytest.raises(ValueError, match="rope_theta needs an MMBERT model, got BertForMaskedLM"):
            make_trainer(tmp_path, model, tokenizer, AnnealingCallback(rope_theta=1e4)).train()

    def test_checkpoint_of_another_vocabulary_size(self, tmp_path, tokenizer, tiny_config):
        from mmbert_hf import MMBertConfig, MMBertForMaskedLM

        sizes = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 8}
        model = MMBertForMaskedLM(MMBertConfig(vocab_size=len(tokenizer) - 10, **sizes))
        with pytest.raises(ValueError, match=f"{len(tokenizer) - 10}.*{len(tokenizer)}"):
            make_trainer(tmp_path, model, tokenizer, AnnealingCallback(0.3)).train()

    def test_tokens_that_nothing_counts(self, tmp_path, tiny_model, tokenizer):
        dataset = [{"input_ids": [30, 31]}] * 30
        callback = AnnealingCallback(0.3, unit="tokens", total_tokens=10)
        with pytest.raises(ValueError, match="include_num_input_tokens_seen"):
            make_trainer(tmp_path, tiny_model, tokenizer, callback, dataset=dataset).train()

    def test_bad_arguments(self):
        with pytest.raises(ValueError, match="nothing to anneal"):
            AnnealingCallback()
        with pytest.raises(ValueError, match="'steps' or 'tokens', got 'epochs'"):
            AnnealingCallback(0.3, unit="epochs")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="total_tokens goes with"):
            AnnealingCallback(0.3, unit="tokens")
        with pytest.raises(ValueError, match="mask_ratio"):
            AnnealingCallback(1.3)
        with pytest.raises(ValueError, match="language_temperature"):
            AnnealingCallback(language_temperature=-0.3)
