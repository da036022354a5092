import doctest
import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from mmbert_hf.trainers import mlm
from mmbert_hf.trainers.annealing import AnnealingCallback
from mmbert_hf.trainers.mlm import PlanBatchSampler, as_token_documents, make_plan
from mmbert_hf.trainers.plan import TrainingDiverged
from transformers import Trainer, TrainerCallback, TrainingArguments

from mmbert_hf import MLMConfig, MLMTrainer, MMBertForMaskedLM
from mmbert_hf.data.packed_mixture import PackedMixture
from mmbert_hf.masking import PackingCollator
from mmbert_hf.optimization import planned_scheduler, stable_adamw
from mmbert_hf.step_plan import plan_steps


def test_docstring_examples(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = doctest.testmod(mlm)
    assert result.attempted >= 6
    assert result.failed == 0


class Recorder(TrainerCallback):
    """What every step was made with, as model and optimizer have it."""

    def __init__(self):
        self.steps = []

    def on_pre_optimizer_step(self, args, state, control, model=None, optimizer=None, **kwargs):
        group = optimizer.param_groups[0]
        theta = model.config.rope_parameters["full_attention"]["rope_theta"]
        self.steps.append((group["lr"], group["weight_decay"], group["max_lr"], theta))


def record_batches(model):
    batches = []
    model.register_forward_pre_hook(lambda _, args, kwargs: batches.append(dict(kwargs)), with_kwargs=True)
    return batches


def test_every_step_is_the_plans(tiny_model, tokenizer, recipe, documents, make_args):
    recorder = Recorder()
    trainer = MLMTrainer(
        tiny_model, make_args(), documents, processing_class=tokenizer, recipe=recipe, callbacks=[recorder]
    )
    batches = record_batches(tiny_model)
    trainer.train()
    plan, labels = trainer.plan, {}
    assert len(recorder.steps) == len(batches) == plan.num_steps == trainer.state.global_step
    for step, (seen, batch) in enumerate(zip(recorder.steps, batches, strict=True)):
        phase = plan.phase_at(step)
        assert seen[0] == pytest.approx(plan.learning_rate[step])
        assert seen[1:] == (phase.weight_decay, phase.learning_rate, phase.rope_theta)
        capacity = int(plan.rows[step]) * phase.max_length
        assert 0.7 * capacity <= batch["input_ids"].numel() <= capacity
        assert int(batch["cu_seq_lens_q"][-1]) == batch["input_ids"].numel()
        assert batch["max_length_q"] <= phase.max_length
        labels.setdefault(phase.mask_ratio, []).append(batch["labels"][0])
    for ratio, parts in labels.items():
        found = (torch.cat(parts) != -100).float().mean()
        assert abs(float(found) - ratio) < 0.05, ratio
    assert {int(rows) for rows in plan.rows} >= {2, 4}  # the batch warmed up
    assert tiny_model.config.rope_parameters["full_attention"]["rope_theta"] == 1.6e5


def test_languages_enter_with_their_phase(tiny_model, tokenizer, recipe, documents, make_args):
    trainer = MLMTrainer(tiny_model, make_args(), documents, processing_class=tokenizer, recipe=recipe)
    mixture, spans = trainer.train_dataset, trainer.plan.spans
    before = mixture.tokens_per_language(0, spans[2].first_row)
    assert before["fao"] == 0
    assert before["dan"] > 0
    assert mixture.tokens_per_language(spans[2].first_row)["fao"] > 0


def test_the_loss_falls_and_is_measured_per_language(tiny_model, tokenizer, recipe, documents, make_args):
    trainer = MLMTrainer(
        tiny_model,
        make_args(),
        documents,
        {"dan": documents["dan"][:4], "eng": documents["eng"][:4]},
        tokenizer,
        recipe=recipe.scaled_to(16_384),
    )
    before = trainer.evaluate()
    assert sorted(before)[:3] == ["epoch", "eval_loss", "eval_loss_dan"]
    assert before["eval_loss"] == pytest.approx((before["eval_loss_eng"] + before["eval_loss_dan"]) / 2)
    trainer.train()
    after = trainer.evaluate()
    assert all(after[name] < before[name] - 0.3 for name in ("eval_loss_eng", "eval_loss_dan"))


def test_what_is_logged_reaches_an_integration(tiny_model, tokenizer, recipe, documents, make_args, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    os.environ["TENSORBOARD_LOGGING_DIR"] = str(tmp_path / "board")
    try:
        args = make_args(report_to=["tensorboard"])
        trainer = MLMTrainer(tiny_model, args, documents, processing_class=tokenizer, recipe=recipe)
        trainer.train()
    finally:
        del os.environ["TENSORBOARD_LOGGING_DIR"]
    board = EventAccumulator(str(next((tmp_path / "board").rglob("events.out*"))))
    board.Reload()
    for name in ("mask_ratio", "language_temperature", "languages_active", "packing_fill", "tokens_seen"):
        values = [event.value for event in board.Scalars(f"train/{name}")]
        assert len(values) == trainer.plan.num_steps, name
    ratios = [event.value for event in board.Scalars("train/mask_ratio")]
    expected = [trainer.plan.phase_at(step).mask_ratio for step in range(trainer.plan.num_steps)]
    assert ratios == pytest.approx(expected)
    tokens = trainer.train_dataset.tokens_per_language()
    assert board.Scalars("train/tokens_seen")[-1].value == sum(tokens.values())


def test_tensorboard_writes_into_the_output_folder_alone(
    tiny_model, tokenizer, recipe, documents, make_args, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    args = make_args(report_to=["tensorboard"])
    trainer = MLMTrainer(tiny_model, args, documents, {"fao": documents["fao"][:4]}, tokenizer, recipe=recipe)
    trainer.evaluate()  # before training
    trainer.train()
    assert len(list((tmp_path / "run").rglob("events.out*"))) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_what_is_logged_reaches_trackio(tiny_model, tokenizer, recipe, documents, make_args, tmp_path):
    """In a process of its own: trackio reads its folder when it is imported."""
    tiny_model.save_pretrained(tmp_path / "start")
    tokenizer.save_pretrained(tmp_path / "start")
    script = """
import json, pathlib, sys
from mmbert_hf import MLMConfig, MLMTrainer, MMBertTokenizer
folder = sys.argv[1]
args = MLMConfig(folder + "/run", recipe="tiny", phases=["decay"], total_tokens=2000, max_length=64, max_repeats=None,
    per_device_train_batch_size=4, report_to=["trackio"], project="annealing", run_name="one", use_cpu=True,
    logging_steps=1, save_strategy="no", disable_tqdm=True)
tokenizer = MMBertTokenizer.from_pretrained(folder + "/start")
texts = json.load(open(folder + "/texts.json"))
trainer = MLMTrainer(folder + "/start", args, texts, {"fao": texts["fao"][:2]}, tokenizer)
trainer.train()
trainer.evaluate()
import trackio
trackio.finish()
from trackio.sqlite_storage import SQLiteStorage
json.dump(SQLiteStorage.get_logs("annealing", SQLiteStorage.get_runs("annealing")[0]), open(folder + "/logs.json", "w"))
"""
    (tmp_path / "texts.json").write_text(json.dumps(documents))
    environment = {**os.environ, "TRACKIO_DIR": str(tmp_path / "trackio"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", script, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    logs = json.loads((tmp_path / "logs.json").read_text())
    steps = [entry for entry in logs if "train/loss" in entry]
    assert len(steps) == 8
    assert {entry["train/mask_ratio"] for entry in steps} == {0.05}
    assert all(entry["train/packing_fill"] > 0.7 for entry in steps)
    assert any("eval/loss_fao" in entry for entry in logs)


def test_all_of_it_works_with_the_stock_trainer(tiny_config, tokenizer, recipe, documents, make_args, tmp_path):
    """The same weights from `Trainer`, with the callback, the collator, the optimizer and the scheduler of the plan."""
    steady = recipe.with_languages([["dan", "eng"], ["dan", "eng"], None])
    steady = replace(steady, phases=[replace(phase, batch_warmup=0.0) for phase in steady.phases])
    weights = []
    for stock in (False, True):
        torch.manual_seed(0)
        model = MMBertForMaskedLM(tiny_config)
        if not stock:
            MLMTrainer(model, make_args(), documents, processing_class=tokenizer, recipe=steady).train()
        else:
            plan = plan_steps(steady, rows_per_step=4)
            ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
            mixture = PackedMixture(
                as_token_documents(documents, tokenizer), plan.spans, max_repeats=None, seed=42, **ids
            )
            optimizer = stable_adamw(model, learning_rate=float(plan.learning_rate.max()))
            args = TrainingArguments(
                str(tmp_path / "stock"),
                max_steps=plan.num_steps,
                per_device_train_batch_size=4,
                train_sampling_strategy="sequential",
                max_grad_norm=0.0,
                report_to="none",
                save_strategy="no",
                use_cpu=True,
                dataloader_pin_memory=False,
                disable_tqdm=True,
            )
            Trainer(
                model,
                args,
                train_dataset=mixture,
                data_collator=PackingCollator(tokenizer, seed=42),
                optimizers=(optimizer, planned_scheduler(optimizer, plan)),
                callbacks=[AnnealingCallback.from_plan(plan, mixture)],
            ).train()
        weights.append({name: weight.clone() for name, weight in model.state_dict().items()})
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_stock_trainer_off_the_plan_is_refused(tiny_model, tokenizer, recipe, documents, tmp_path):
    plan = plan_steps(recipe, rows_per_step=4)
    mixture = PackedMixture(
        as_token_documents(documents, tokenizer), plan.spans, bos_token_id=2, eos_token_id=1, max_repeats=None
    )
    args = TrainingArguments(
        str(tmp_path), max_steps=3, per_device_train_batch_size=4, report_to="none", use_cpu=True, disable_tqdm=True
    )
    callback = AnnealingCallback.from_plan(plan, mixture)
    trainer = Trainer(
        tiny_model, args, train_dataset=mixture, data_collator=PackingCollator(tokenizer), callbacks=[callback]
    )
    with pytest.raises(ValueError, match=f"the plan has {plan.num_steps} steps and the trainer 3"):
        trainer.train()
    args.max_steps = plan.num_steps
    with pytest.raises(ValueError, match=r"micro-batches have 2 to 4 rows, the trainer's 4.*needs MLMTrainer"):
        trainer.train()
    trainer.remove_callback(callback)
    steady = plan_steps(
        replace(recipe, phases=[replace(phase, batch_warmup=0.0) for phase in recipe.phases]), rows_per_step=4
    )
    args.max_steps = steady.num_steps
    trainer.add_callback(AnnealingCallback.from_plan(steady, mixture))
    with pytest.raises(ValueError, match="the loader shuffles it"):
        trainer.train()


def test_resume_in_the_same_process_equals_a_straight_run(tiny_config, tokenizer, recipe, documents, make_args):
    weights = []
    for stop_at in (None, 5):
        torch.manual_seed(0)
        model = MMBertForMaskedLM(tiny_config)
        args = make_args(save_strategy="steps", save_steps=5)
        args.output_dir += "" if stop_at is None else "-cut"
        if stop_at is not None:
            cut = MLMTrainer(
                model, args, documents, processing_class=tokenizer, recipe=recipe, callbacks=[StopAt(stop_at)]
            )
            cut.train()
            assert cut.state.global_step == stop_at
            model = MMBertForMaskedLM(tiny_config)
        args = make_args(save_strategy="steps", save_steps=5)
        args.output_dir += "" if stop_at is None else "-cut"
        trainer = MLMTrainer(model, args, documents, processing_class=tokenizer, recipe=recipe)
        trainer.train(resume_from_checkpoint=stop_at is not None)
        weights.append(model.state_dict())
        assert trainer.state.log_history[-2]["tokens_seen"] == sum(trainer.train_dataset.tokens_per_language().values())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


class StopAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= self.step


def test_another_run_is_refused_with_the_difference(tiny_model, tokenizer, recipe, documents, make_args):
    args = make_args(save_strategy="steps", save_steps=2)
    MLMTrainer(tiny_model, args, documents, processing_class=tokenizer, recipe=recipe, callbacks=[StopAt(2)]).train()
    for change, message in (
        ({"recipe": recipe.scaled_to(8192)}, "plan.total_tokens: 4096 -> 8192"),
        ({"train_dataset": {**documents, "fao": documents["fao"] + ["ein"]}}, "data.*fao"),
        ({"seed": 7}, "seed: 42 -> 7"),
        ({"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2}, "gradient_accumulation_steps: 1 -> 2"),
    ):
        given = {"train_dataset": documents, "recipe": recipe, **change}
        settings = {name: change[name] for name in change if name not in ("train_dataset", "recipe")}
        options = {"processing_class": tokenizer, "recipe": given["recipe"]}
        other = MLMTrainer(tiny_model, make_args(**settings), given["train_dataset"], **options)
        with pytest.raises(ValueError, match=message):
            other.train(resume_from_checkpoint=True)
    allowed = MLMTrainer(
        tiny_model, make_args(seed=7, allow_change=True), documents, processing_class=tokenizer, recipe=recipe
    )
    allowed.train(resume_from_checkpoint=True)
    assert allowed.state.global_step == allowed.plan.num_steps


def test_a_tokenizer_that_padded_or_cut_before_is_the_same(
    tiny_model, tokenizer, recipe, documents, make_args, tmp_path
):
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    used = type(tokenizer).from_pretrained(tmp_path / "tokenizer")
    used(["en to", "tre"], padding=True, truncation=True, max_length=5)
    trainers = [
        MLMTrainer(tiny_model, make_args(), documents, processing_class=each, recipe=recipe)
        for each in (tokenizer, used)
    ]
    assert trainers[0].plan_callback.fingerprint == trainers[1].plan_callback.fingerprint


def test_a_checkpoint_that_was_cut_off_is_not_resumed(tiny_model, tokenizer, recipe, documents, make_args, tmp_path):
    args = make_args(save_strategy="steps", save_steps=2)
    MLMTrainer(tiny_model, args, documents, processing_class=tokenizer, recipe=recipe, callbacks=[StopAt(4)]).train()
    (tmp_path / "run/checkpoint-4/trainer_state.json").write_text('{"best_metric": nu')
    again = MLMTrainer(tiny_model, make_args(), documents, processing_class=tokenizer, recipe=recipe)
    assert mlm.last_complete_checkpoint(tmp_path / "run").name == "checkpoint-2"
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == again.plan.num_steps
    (tmp_path / "run/checkpoint-2/rng_state.pth").unlink()
    with pytest.raises(ValueError, match="no complete checkpoint"):
        again.train(resume_from_checkpoint=True)


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_loss_that_is_not_finite_stops_before_the_optimizer(
    where, tiny_model, tokenizer, recipe, documents, make_args
):
    class Poison(TrainerCallback):
        def on_step_begin(self, args, state, control, model=None, **kwargs):
            if state.global_step == 3:
                self.good = {name: weight.clone() for name, weight in model.state_dict().items()}
                if where == "loss":
                    nan = float("nan")
                    model.register_forward_hook(lambda _, __, output: setattr(output, "loss", output.loss * nan))
                else:
                    model.model.final_norm.weight.register_hook(lambda gradient: gradient * float("inf"))

    poison = Poison()
    args = make_args(save_strategy="steps", save_steps=2)
    trainer = MLMTrainer(tiny_model, args, documents, processing_class=tokenizer, recipe=recipe, callbacks=[poison])
    with pytest.raises(
        TrainingDiverged, match=rf"step 4: the .*{where}.*checkpoint of the last good step is .*checkpoint-2"
    ):
        trainer.train()
    assert all(torch.equal(weight, poison.good[name]) for name, weight in tiny_model.state_dict().items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_steps": 5}, "set total_tokens instead"),
        ({"total_tokens": 100}, "does not fit: its budget of 50 tokens"),
        ({"phases": ["dekay"]}, "pretrain, extend, decay; got dekay"),
        ({"recipe": "mmbert-smal"}, "no preset is named 'mmbert-smal'"),
    ],
)
def test_what_can_not_be_planned_is_refused_before_work(
    options, message, tiny_model, tokenizer, recipe, documents, make_args
):
    recipe = None if "recipe" in options else recipe
    with pytest.raises(ValueError, match=message):
        MLMTrainer(tiny_model, make_args(**options), documents, processing_class=tokenizer, recipe=recipe)


def test_bad_arguments(tiny_model, tokenizer, recipe, documents, make_args, tmp_path):
    with pytest.raises(ValueError, match="processing_class=tokenizer"):
        MLMTrainer(tiny_model, make_args(), documents)
    with pytest.raises(TypeError, match="must be an MLMConfig, got TrainingArguments"):
        MLMTrainer(tiny_model, TrainingArguments(str(tmp_path)), documents, processing_class=tokenizer)
    tiny_model.config.max_position_embeddings = 48
    with pytest.raises(ValueError, match="rows of 64 tokens, the model 48 positions"):
        MLMTrainer(tiny_model, make_args(), documents, processing_class=tokenizer, recipe=recipe)
    with pytest.raises(TypeError, match="must be a list of texts, got one string"):
        as_token_documents({"fao": "ein tvey"}, tokenizer)
    tiny_model.config.max_position_embeddings = 128
    trainer = MLMTrainer(tiny_model, make_args(), documents, processing_class=tokenizer, recipe=recipe)
    with pytest.raises(ValueError, match="held-out texts per language"):
        trainer.evaluate()


def test_rates_and_rows_follow_the_arguments(make_args, recipe):
    plan = make_plan(
        make_args(learning_rate=1e-3, per_device_train_batch_size=8, max_length=48), recipe.scaled_to(65_536)
    )
    assert [phase.learning_rate for phase in plan.recipe.phases] == pytest.approx([1e-3, 1e-3, 5e-4])
    assert [phase.max_length for phase in plan.recipe.phases] == [32, 48, 48]
    assert plan.rows.max() == 8
    accumulated = make_plan(make_args(gradient_accumulation_steps=2, phases=["decay"]), recipe.scaled_to(65_536))
    assert (accumulated.num_micro_batches, accumulated.rows.tolist()[0], len(accumulated.recipe.phases)) == (2, 8, 1)
    assert len(PlanBatchSampler(accumulated)) == len(list(PlanBatchSampler(accumulated))) == 2 * accumulated.num_steps


def test_the_configuration_is_yaml_for_trl(tmp_path):
    from trl import TrlParser

    (tmp_path / "run.yaml").write_text(f"output_dir: {tmp_path}\nrecipe: tiny\ntotal_tokens: 1000000\nuse_cpu: true\n")
    (args,) = TrlParser(MLMConfig).parse_args_and_config(["--config", str(tmp_path / "run.yaml")])
    assert (args.recipe, args.total_tokens, args.optim, args.adam_beta2) == ("tiny", 1_000_000, "stable_adamw", 0.95)
    json.dumps(args.to_dict())
    assert all(field.metadata.get("help") for field in MLMConfig.__dataclass_fields__.values() if field.init)
