"""transformers' Trainer: checkpointing, bf16, accumulation and flattened rows, against the plain run."""

import pytest
import torch
from transformers import (
    DataCollatorForTokenClassification,
    DataCollatorWithFlattening,
    Trainer,
    TrainingArguments,
)

from mmbert_hf import MaskingCollator

CHECKPOINTING = (
    "activation_checkpointing"  # its name in newer transformers, where the other warns
    if "activation_checkpointing" in TrainingArguments.__dataclass_fields__
    else "gradient_checkpointing"
)


@pytest.fixture
def examples(tokenizer, texts):
    """Rows for token classification. Each has another number of labels."""
    rows = []
    for text in [*texts, texts[0][:30], texts[2][:40]]:
        ids = tokenizer(text)["input_ids"]
        labels = [-100 if i % (2 + len(rows) % 3) == 0 else token % 2 for i, token in enumerate(ids)]
        rows.append({"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels})
    return rows


def train(model, data, collator, folder, **options):
    """Train in the order of `data`; returns the trainer and the mean loss."""
    arguments = {
        "use_cpu": True,
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
        "optim": "sgd",
        "learning_rate": 0.2,
        "weight_decay": 0.0,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "train_sampling_strategy": "sequential",
        **options,
    }
    trainer = Trainer(model, TrainingArguments(str(folder), **arguments), data_collator=collator, train_dataset=data)
    return trainer, trainer.train().training_loss


def assert_same_weights(one, other, atol):
    for (name, left), (_, right) in zip(one.named_parameters(), other.named_parameters(), strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=atol, msg=lambda text, name=name: f"{name}: {text}")


def distance(one, other):
    return max((p - q).abs().max().item() for p, q in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_gives_the_same_weights(make_model, tokenizer, examples, tmp_path, reentrant):
    collator = DataCollatorForTokenClassification(tokenizer)
    start, plain, checkpointed = (make_model("MMBertForTokenClassification") for _ in range(3))
    _, loss = train(plain, examples, collator, tmp_path)
    options = {CHECKPOINTING: True, f"{CHECKPOINTING}_kwargs": {"use_reentrant": reentrant}}
    runs = []
    handle = checkpointed.model.layers[1].attn.Wqkv.register_forward_pre_hook(lambda *_: runs.append(1))
    _, other = train(checkpointed, examples, collator, tmp_path, **options)
    handle.remove()
    assert len(runs) == 2 * 2  # each step runs each layer again
    assert loss == pytest.approx(other, abs=1e-6)
    assert_same_weights(plain, checkpointed, atol=1e-6)
    assert distance(start, plain) > 1e-3


@pytest.mark.parametrize("class_name", ["MMBertForTokenClassification", "MMBertForMaskedLM"])
def test_accumulated_steps_equal_one_large_batch(make_model, tokenizer, examples, tmp_path, class_name):
    """The rows have different numbers of labels: a mean of means would be another gradient."""
    collator = DataCollatorForTokenClassification(tokenizer)
    large, small = make_model(class_name), make_model(class_name)
    _, loss = train(large, examples, collator, tmp_path)
    _, other = train(small, examples, collator, tmp_path, per_device_train_batch_size=1, gradient_accumulation_steps=4)
    assert loss == pytest.approx(other, abs=1e-5)
    assert_same_weights(large, small, atol=1e-6)


def test_bf16_on_the_cpu(make_model, tokenizer, examples, tmp_path):
    collator = DataCollatorForTokenClassification(tokenizer)
    full, half = make_model("MMBertForTokenClassification"), make_model("MMBertForTokenClassification")
    _, loss = train(full, examples, collator, tmp_path)
    seen = set()
    handle = half.model.layers[1].attn.Wqkv.register_forward_hook(lambda _m, _i, output: seen.add(output.dtype))
    _, other = train(half, examples, collator, tmp_path, bf16=True)
    handle.remove()
    assert seen == {torch.bfloat16}
    assert {parameter.dtype for parameter in half.parameters()} == {torch.float32}
    assert loss == pytest.approx(other, abs=2e-2)
    assert 1e-6 < distance(full, half) < 2e-2


def test_masking_collator_trains_a_masked_language_model(make_model, tokenizer, examples, tmp_path):
    data = [{"input_ids": row["input_ids"]} for row in examples]
    model = make_model()
    collator = MaskingCollator(tokenizer, mask_ratio=0.3)
    trainer, _ = train(
        model, data, collator, tmp_path, max_steps=30, per_device_train_batch_size=8, logging_steps=1, learning_rate=0.5
    )
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 30
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])


# Flattened rows: the documents of a batch in one row, without padding.

FLATTENED = pytest.mark.parametrize(
    "collator",
    [
        DataCollatorWithFlattening(),
        DataCollatorWithFlattening(return_flash_attn_kwargs=True),
        DataCollatorWithFlattening(return_flash_attn_kwargs=True, return_position_ids=False),
    ],
    ids=["position_ids", "both", "cu_seq_lens"],
)


def separate_loss(model, rows):
    """The mean over the labels of all rows, each row on its own. The collator drops the first label of each row."""
    total, count = torch.zeros(()), 0
    for row in rows:
        labels = torch.tensor([[-100, *row["labels"][1:]]])
        number = labels.ne(-100).sum()
        total = total + number * model(torch.tensor([row["input_ids"]]), labels=labels).loss
        count += number
    return total / count


@FLATTENED
@pytest.mark.parametrize("class_name", ["MMBertForTokenClassification", "MMBertForMaskedLM"])
def test_flattened_rows_equal_separate_rows(make_model, examples, collator, class_name):
    flat, separate = make_model(class_name).train(), make_model(class_name).train()
    loss, expected = flat(**collator(examples)).loss, separate_loss(separate, examples)
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-5)
    loss.backward()
    expected.backward()
    for (name, one), (_, other) in zip(flat.named_parameters(), separate.named_parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=0, atol=1e-5, msg=name)


@FLATTENED
def test_trainer_on_flattened_rows_equals_padded_batches(make_model, tokenizer, examples, tmp_path, collator):
    for row in examples:
        row["labels"][0] = -100
    data = [{key: row[key] for key in ("input_ids", "labels")} for row in examples]
    padded, flat = make_model("MMBertForTokenClassification"), make_model("MMBertForTokenClassification")
    _, loss = train(padded, examples, DataCollatorForTokenClassification(tokenizer), tmp_path)
    _, other = train(flat, data, collator, tmp_path)
    assert loss == pytest.approx(other, abs=1e-5)
    assert_same_weights(padded, flat, atol=1e-5)
