"""Pruned weights stay zero while a model is retrained: the weights, their gradients, the optimizer's moments."""

import copy
import doctest
import gc

import pytest
import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from mmbert_hf.trainers import gaprune
from mmbert_hf.trainers.gaprune import GAPruneCallback, merge_adapters, retrain
from peft import LoraConfig, get_peft_model
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from transformers import Trainer, TrainerCallback, TrainingArguments

from mmbert_hf.pruning.masks import PruningMask
from mmbert_hf.pruning.targets import encoder_of, find_targets

# peft 0.21 reads a property that transformers 5.23 has renamed; 0.19 looks for the file of a model made in memory.
pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning",
    "ignore:Could not find a config file in:UserWarning",
)


@pytest.fixture
def mask(bert_embedder):
    generator = torch.Generator().manual_seed(1)
    encoder = encoder_of(bert_embedder)
    return PruningMask(
        {
            target.name: torch.rand(encoder.get_submodule(target.name).weight.shape, generator=generator) > 0.5
            for target in find_targets(bert_embedder)
        }
    )


@pytest.fixture
def make_trainer(tmp_path, make_triplets):
    def make(model, *callbacks, optimizer=None, **options):
        values = {
            "max_steps": 50,
            "per_device_train_batch_size": 4,
            "gradient_accumulation_steps": 2,
            "learning_rate": 5e-3,
            "weight_decay": 0.1,
            "max_grad_norm": 0.5,
            "save_strategy": "no",
            "report_to": "none",
            "use_cpu": True,
            "dataloader_pin_memory": False,
            "disable_tqdm": True,
            "logging_strategy": "no",
        }
        args = SentenceTransformerTrainingArguments(str(tmp_path / "run"), **{**values, **options})
        loss = MultipleNegativesRankingLoss(model)
        return SentenceTransformerTrainer(
            model, args, make_triplets(40), loss=loss, callbacks=list(callbacks), optimizers=(optimizer, None)
        )

    return make


def weights(model, mask):
    return {name: linear.weight for name, linear in mask.linears(model).items()}


def num_revived(model, mask):
    return sum(int(weight[~mask.kept[name]].count_nonzero()) for name, weight in weights(model, mask).items())


class Watch(TrainerCallback):
    """Counts, after every step, the pruned weights that are not zero, and the hooks on the weights."""

    def __init__(self, mask, fail_at=None):
        self.mask, self.fail_at, self.revived, self.hooks = mask, fail_at, [], set()

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.revived.append(num_revived(model, self.mask))
        self.hooks |= {len(weight._backward_hooks or ()) for weight in weights(model, self.mask).values()}
        if state.global_step == self.fail_at:
            raise KeyboardInterrupt


@pytest.mark.parametrize("kind", ["adamw", "momentum"])
def test_fifty_steps_with_momentum_decay_accumulation_and_clipping(kind, bert_embedder, mask, make_trainer):
    mask.apply(bert_embedder)
    before = copy.deepcopy(weights(bert_embedder, mask))
    optimizer = None
    if kind == "momentum":
        optimizer = torch.optim.SGD(bert_embedder.parameters(), 0.1, momentum=0.9, weight_decay=0.1)
    watch = Watch(mask)
    trainer = make_trainer(bert_embedder, GAPruneCallback(mask), watch, optimizer=optimizer)
    trainer.train()
    assert watch.revived == [0] * 50
    moments = ("exp_avg", "exp_avg_sq") if kind == "adamw" else ("momentum_buffer",)
    for name, weight in weights(bert_embedder, mask).items():
        state, kept = trainer.optimizer.state[weight], mask.kept[name]
        for moment in moments:
            assert not state[moment][~kept].any(), (name, moment)
            assert (state[moment][kept] != 0).float().mean() > 0.95, (name, moment)
        assert (weight[kept] != before[name][kept]).float().mean() > 0.95, name


def test_without_the_callback_they_come_back(bert_embedder, mask, make_trainer):
    mask.apply(bert_embedder)
    make_trainer(bert_embedder, max_steps=2).train()
    assert num_revived(bert_embedder, mask) > 0.9 * mask.num_pruned


def test_momentum_from_before_the_mask(bert_embedder, mask, make_trainer):
    optimizer = torch.optim.AdamW(bert_embedder.parameters(), 1e-3)
    make_trainer(bert_embedder, optimizer=optimizer, max_steps=2).train()
    watch = Watch(mask)
    make_trainer(bert_embedder, GAPruneCallback(mask), watch, optimizer=optimizer, max_steps=3).train()
    name, weight = next(iter(weights(bert_embedder, mask).items()))
    assert optimizer.state[weight]["exp_avg"][~mask.kept[name]].any()  # so the optimizer did write to them
    assert watch.revived == [0, 0, 0]


def test_a_resumed_run_is_the_straight_run(bert_embedder, mask, make_trainer, tmp_path):
    straight, resumed = bert_embedder, copy.deepcopy(bert_embedder)
    make_trainer(straight, GAPruneCallback(mask), max_steps=8, save_strategy="steps", save_steps=4).train()
    trainer = make_trainer(resumed, GAPruneCallback(mask), max_steps=8)
    trainer.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-4"))
    assert trainer.state.global_step == 8
    expected = straight.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in resumed.state_dict().items())
    mask.check(resumed)
    for name, weight in weights(resumed, mask).items():
        assert not trainer.optimizer.state[weight]["exp_avg_sq"][~mask.kept[name]].any()


def test_clipping_sees_the_norm_of_the_masked_gradient(bert_embedder, mask, make_trainer):
    for module in bert_embedder.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    mask.apply(bert_embedder)
    trainer = make_trainer(
        bert_embedder, GAPruneCallback(mask), max_steps=1, logging_strategy="steps", logging_steps=1, max_grad_norm=1e-3
    )
    batches = list(trainer.get_train_dataloader())[:2]
    for batch in batches:  # what a step sums up, from plain autograd
        (trainer.loss(*trainer.collect_features(batch)) / 2).backward()
    masked = weights(bert_embedder, mask)
    gradients = {
        parameter: parameter.grad.clone() for parameter in bert_embedder.parameters() if parameter.grad is not None
    }
    whole = torch.stack([gradient.norm() for gradient in gradients.values()]).norm()
    for name, weight in masked.items():
        gradients[weight] *= mask.kept[name]
    expected = torch.stack([gradient.norm() for gradient in gradients.values()]).norm()
    bert_embedder.zero_grad()
    trainer.train()
    got = trainer.state.log_history[0]["grad_norm"]
    assert got == pytest.approx(expected.item(), rel=1e-5)
    assert got < 0.95 * whole


def test_infinite_gradients_are_masked_too():
    kept = torch.tensor([[True, False]])
    got = gaprune._masked(~kept, torch.full((1, 2), float("inf")))
    assert got.tolist() == [[float("inf"), 0.0]]


def test_hooks_do_not_pile_up(bert_embedder, mask, make_trainer):
    callback, watch = GAPruneCallback(mask), Watch(mask, fail_at=2)
    trainer = make_trainer(bert_embedder, callback, watch, max_steps=3)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    watch.fail_at = None
    trainer.train()
    assert watch.hooks == {1}
    assert not any(weight._backward_hooks for weight in weights(bert_embedder, mask).values())


def test_hooks_go_with_a_callback_that_never_saw_the_end(bert_embedder, mask, make_trainer):
    trainer = make_trainer(bert_embedder, GAPruneCallback(mask), Watch(mask, fail_at=1))
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert all(weight._backward_hooks for weight in weights(bert_embedder, mask).values())
    del trainer
    gc.collect()
    assert not any(weight._backward_hooks for weight in weights(bert_embedder, mask).values())


class Writer(TrainerCallback):
    """Writes to a pruned weight after the step."""

    def __init__(self, mask):
        self.mask = mask

    def on_step_end(self, args, state, control, model=None, **kwargs):
        name, weight = next(iter(weights(model, self.mask).items()))
        with torch.no_grad():
            weight[tuple((~self.mask.kept[name]).nonzero()[0])] = 1.0


@pytest.mark.parametrize("strategy", ["steps", "no"])
def test_a_pruned_weight_that_is_not_zero_stops_a_save_and_the_end(strategy, bert_embedder, mask, make_trainer):
    trainer = make_trainer(
        bert_embedder, GAPruneCallback(mask), Writer(mask), max_steps=3, save_strategy=strategy, save_steps=1
    )
    with pytest.raises(RuntimeError, match=r"not zero: 1 of \d+ in encoder\.layer\.0\.attention\.self\.query\. Some"):
        trainer.train()
    assert trainer.state.global_step == (1 if strategy == "steps" else 3)


def test_the_plain_trainer_and_a_task_model(bert_embedder, mask, word_piece, tmp_path):
    from transformers import BertForSequenceClassification

    model = BertForSequenceClassification(encoder_of(bert_embedder).config)
    rows = [{**word_piece(text), "labels": number % 2} for number, text in enumerate(["free law", "work peace"] * 4)]
    args = TrainingArguments(
        str(tmp_path / "run"), max_steps=3, use_cpu=True, report_to="none", save_strategy="no", disable_tqdm=True,
        dataloader_pin_memory=False, learning_rate=1e-2, logging_strategy="no",
    )  # fmt: skip
    watch = Watch(mask)
    Trainer(model, args, train_dataset=rows, callbacks=[GAPruneCallback(mask), watch]).train()
    assert watch.revived == [0, 0, 0]


def test_a_mask_of_another_model_is_refused_when_the_trainer_is_made(bert_embedder, qwen3_embedder, mask, make_trainer):
    with pytest.raises(ValueError, match=r"which Qwen3Model has not; it has layers\.0"):
        make_trainer(qwen3_embedder, GAPruneCallback(mask))
    with pytest.raises(TypeError, match="takes a PruningMask, got NoneType"):
        GAPruneCallback(None)


@pytest.mark.parametrize("what", ["fsdp", "deepspeed", "launcher"])
def test_sharded_training_is_refused(what, bert_embedder, mask, tmp_path, monkeypatch):
    before = copy.deepcopy(bert_embedder.state_dict())
    args = TrainingArguments(str(tmp_path), use_cpu=True, fsdp=what == "fsdp" or None)
    if what == "deepspeed":
        args.deepspeed = {"zero_optimization": {"stage": 2}}  # making arguments with it needs the package
    if what == "launcher":
        monkeypatch.setitem(PartialState._shared_state, "distributed_type", DistributedType.FSDP)
    callback, name = GAPruneCallback(mask), "DEEPSPEED" if what == "deepspeed" else "FSDP"
    for event in (callback.on_init_end, callback.on_train_begin):
        with pytest.raises(ValueError, match=f"does not work with {name}: it shards the weights"):
            event(args, None, None, model=bert_embedder)
    assert all(torch.equal(value, before[name]) for name, value in bert_embedder.state_dict().items())


@pytest.mark.parametrize("style", ["native", "peft"])
def test_adapters_train_beside_the_mask_and_merge_into_it(style, bert_embedder, mask, make_trainer, tmp_path):
    mask.apply(bert_embedder)
    start = copy.deepcopy(weights(bert_embedder, mask))
    config = LoraConfig(r=2, lora_alpha=4, target_modules=["query", "output.dense"])
    if style == "native":
        bert_embedder.add_adapter(config)
    else:
        bert_embedder[0].model = get_peft_model(encoder_of(bert_embedder), config)
    make_trainer(bert_embedder, GAPruneCallback(mask), max_steps=5).train()
    assert all(torch.equal(weight, start[name]) for name, weight in weights(bert_embedder, mask).items())
    lora = {
        name.rpartition(".lora_")[0]: layer
        for name, layer in bert_embedder[0].auto_model.named_modules()
        if name.endswith("lora_B")
    }
    deltas = {
        name.removeprefix("base_model.model."): bert_embedder[0]
        .auto_model.get_submodule(name)
        .get_delta_weight("default")
        for name in lora
    }
    assert len(deltas) == 9  # three per block: query and two called output.dense
    assert all(delta.abs().max() > 1e-4 for delta in deltas.values())

    unmasked = copy.deepcopy(bert_embedder)
    merge_adapters(unmasked, PruningMask({name: torch.ones_like(kept) for name, kept in mask.kept.items()}))
    with pytest.raises(RuntimeError, match="pruned weights are not zero"):
        mask.check(unmasked)  # a merge alone makes the weights dense
    assert merge_adapters(bert_embedder, mask) is bert_embedder
    mask.check(bert_embedder)
    for name, weight in weights(bert_embedder, mask).items():
        expected = start[name] + deltas[name] if name in deltas else start[name]
        torch.testing.assert_close(weight, expected * mask.kept[name])
    assert all(parameter.requires_grad for parameter in bert_embedder.parameters())
    bert_embedder.save_pretrained(str(tmp_path / "merged"))
    reloaded = SentenceTransformer(str(tmp_path / "merged"), device="cpu")
    assert type(encoder_of(reloaded)).__name__ == "BertModel"
    assert {*reloaded.state_dict()} == {*bert_embedder.state_dict()}
    assert (reloaded.encode(["free law"]) == bert_embedder.encode(["free law"])).all()
    with pytest.raises(ValueError, match="BertModel has no adapters to merge"):
        merge_adapters(bert_embedder, mask)


def test_a_peft_model_and_whole_layers_merge(bert_embedder, mask):
    encoder = encoder_of(bert_embedder)
    config = LoraConfig(r=2, target_modules=["query"], modules_to_save=["pooler"], init_lora_weights=False)
    native = copy.deepcopy(bert_embedder)
    native.add_adapter(config)
    trained = encoder_of(native).pooler.modules_to_save["default"].dense.weight
    with torch.no_grad():
        trained += 1
    merge_adapters(native, mask)
    assert encoder_of(native).pooler.dense.weight is trained
    assert not [name for name, _ in native.named_modules() if "lora" in name or "modules_to_save" in name]
    plain = merge_adapters(get_peft_model(encoder, config), mask)
    assert plain is encoder
    mask.check(plain)


def test_retrain(bert_embedder, mask, make_triplets, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    mask.apply(bert_embedder)
    start, teacher = copy.deepcopy(weights(bert_embedder, mask)), copy.deepcopy(bert_embedder)
    rows = make_triplets(40).add_column("id", list(range(40))).select_columns(["id", "negative", "positive", "anchor"])
    options = {"steps": 10, "batch_size": 8, "mask": mask, "teacher": teacher, "use_cpu": True}
    assert retrain(bert_embedder, rows, progress=False, **options) is bert_embedder
    assert not bert_embedder.training
    mask.check(bert_embedder)
    assert all((weight != start[name]).any() for name, weight in weights(bert_embedder, mask).items())
    captured = capsys.readouterr()
    assert captured.out == ""
    assert list(tmp_path.iterdir()) == []
    retrain(bert_embedder, rows, output_dir=str(tmp_path / "out"), bf16=True, **options)
    captured = capsys.readouterr()
    assert "{'train" not in captured.out + captured.err
    assert "10/10" in captured.err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["checkpoint-10"]


class Record(TrainerCallback):
    def __init__(self):
        self.rates = []

    def on_step_begin(self, args, state, control, lr_scheduler=None, **kwargs):
        self.rates += lr_scheduler.get_last_lr()[:1]


def test_retrain_learns_with_the_rate_and_the_prompts_it_names(qwen3_embedder, make_triplets, monkeypatch):
    record, texts = Record(), []
    preprocess = qwen3_embedder.preprocess

    def spy(inputs, **kwargs):
        if "prompt" in kwargs:  # a batch; not the statistics for the model card
            texts.append((kwargs["prompt"], inputs[0]))
        return preprocess(inputs, **kwargs)

    monkeypatch.setattr(qwen3_embedder, "preprocess", spy)
    silence = gaprune._silence
    monkeypatch.setattr(gaprune, "_silence", lambda trainer: (silence(trainer), trainer.add_callback(record)))
    rows = make_triplets(40)

    def loss():
        embed = [qwen3_embedder.encode(list(rows[name]), convert_to_tensor=True) for name in ("anchor", "positive")]
        return torch.nn.functional.cross_entropy(20 * embed[0] @ embed[1].T, torch.arange(40))

    before = loss()
    texts.clear()
    retrain(qwen3_embedder, rows, steps=20, batch_size=8, learning_rate=1e-2, progress=False, use_cpu=True)
    assert [prompt for prompt, _ in texts[:3]] == ["find the law: ", None, None]
    assert [text in rows[name] for (_, text), name in zip(texts[:3], ("anchor", "positive", "negative"), strict=True)]
    assert record.rates == pytest.approx([0, 5e-3] + [1e-2 * (20 - step) / 18 for step in range(2, 20)])
    assert loss() < 0.8 * before


def test_retrain_is_repeatable(bert_embedder, make_triplets):
    other, third = copy.deepcopy(bert_embedder), copy.deepcopy(bert_embedder)
    for model, seed in ((bert_embedder, 5), (other, 5), (third, 6)):
        retrain(model, make_triplets(24), steps=2, batch_size=4, seed=seed, progress=False, use_cpu=True)
    expected = bert_embedder.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in other.state_dict().items())
    assert not all(torch.equal(value, expected[name]) for name, value in third.state_dict().items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be at least 1"),
        ({"batch_size": 1}, "batch_size at least 2"),
        ({"learning_rate": 0.0}, "learning_rate above 0"),
        ({"id_map": torch.arange(5)}, "there is no teacher; give one"),
        ({"columns": {"anchor": "question"}}, r"has the columns question, positive, negative; anchor is missing"),
        ({"rows": 0}, "the dataset is empty"),
    ],
)
def test_retrain_refuses(options, message, bert_embedder, make_triplets):
    rows = make_triplets(8).rename_columns(options.pop("columns", {})).select(range(options.pop("rows", 8)))
    with pytest.raises(ValueError, match=message):
        retrain(bert_embedder, rows, progress=False, use_cpu=True, **options)


def test_retrain_says_when_it_diverged(bert_embedder, make_triplets):
    with pytest.raises(RuntimeError, match=r"weights are not finite after training, such as .*; lower learning_rate"):
        retrain(
            bert_embedder,
            make_triplets(8),
            steps=2,
            batch_size=4,
            learning_rate=1e38,
            warmup_steps=0,
            progress=False,
            use_cpu=True,
        )


def test_docstring_examples():
    assert doctest.testmod(gaprune).failed == 0


def test_after_training_in_bfloat16_the_model_computes_in_float32(bert_embedder, make_triplets, tmp_path):
    """What is in memory is what a saved model is, loaded again: to the bit, without accelerate's wrapper."""
    retrain(bert_embedder, make_triplets(8), steps=2, batch_size=4, bf16=True, progress=False)
    assert "forward" not in vars(bert_embedder)
    bert_embedder.save_pretrained(str(tmp_path), create_model_card=False)
    texts = ["free equal dignity", "law"]
    assert torch.equal(
        SentenceTransformer(str(tmp_path), device="cpu").encode(texts, convert_to_tensor=True),
        bert_embedder.encode(texts, convert_to_tensor=True),
    )
