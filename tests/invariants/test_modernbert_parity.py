"""The same weights give the same numbers as transformers' ModernBERT: outputs, losses and gradients.

The weights are drawn wide, and rows are several windows long, so that a mask that is off by one token, or missing,
changes the numbers by far more than the tolerance.
"""

import pytest
import torch
import transformers

from mmbert_hf import modeling
from mmbert_hf.attention import eager_attention
from mmbert_hf.configuration import MMBertConfig

LENGTH = 70
SIZES = {
    "vocab_size": 120,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "local_attention": 16,
    "initializer_range": 0.08,
    "global_rope_theta": 30_000.0,
    "local_rope_theta": 500.0,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 2,
    "cls_token_id": 2,
    "sep_token_id": 1,
}
TASKS = {
    "Model": {},
    "ForMaskedLM": {},
    "ForSequenceClassification": {"num_labels": 3, "classifier_pooling": "mean"},
    "ForTokenClassification": {"num_labels": 5},
    "ForQuestionAnswering": {},
    "ForMultipleChoice": {"classifier_pooling": "mean"},
}
# Real tokens of each row: all, padded right, padded left, with a hole, none.
SPANS = [[(0, 70)], [(0, 41)], [(25, 70)], [(0, 20), (33, 70)], []]


def make_pair(task, implementation="eager", **options):
    """A native model with wide random weights, and ours with the same."""
    torch.manual_seed(0)
    options = {**SIZES, **TASKS[task], **options}
    native_class = getattr(transformers, f"ModernBert{task}")
    native = native_class(transformers.ModernBertConfig(**options, attn_implementation=implementation)).eval()
    with torch.no_grad():
        for name, parameter in native.named_parameters():
            parameter.normal_(1.0 if "norm.weight" in name else 0.0, 0.15)
    ours_class = getattr(modeling, f"MMBert{task}")
    ours = ours_class(MMBertConfig(**options, attn_implementation=implementation)).eval()
    ours.load_state_dict(native.state_dict(), strict=True)
    return ours, native


def make_inputs(task, masked=True):
    """Random tokens in rows of every kind of padding, and labels for the task."""
    generator = torch.Generator().manual_seed(1)
    # A row without any token makes ModernBERT's mean pooling divide by zero.
    spans = SPANS[:4] if task in ("ForSequenceClassification", "ForMultipleChoice") else SPANS
    input_ids = torch.randint(5, 120, (len(spans), LENGTH), generator=generator)
    mask = torch.zeros_like(input_ids)
    for row, row_spans in enumerate(spans):
        for start, end in row_spans:
            mask[row, start:end] = 1
    if not masked:
        mask = torch.ones_like(mask)
    inputs = {"input_ids": input_ids, "attention_mask": mask if masked else None}
    labels = torch.where((torch.rand(mask.shape, generator=generator) < 0.3) & mask.bool(), input_ids, -100)
    if task == "ForMaskedLM":
        inputs["labels"] = labels
    elif task == "ForTokenClassification":
        inputs["labels"] = torch.where(labels >= 0, labels % 5, -100)
    elif task == "ForSequenceClassification":
        inputs["labels"] = torch.arange(len(spans)) % 3
    elif task == "ForQuestionAnswering":
        inputs["start_positions"], inputs["end_positions"] = torch.arange(len(spans)), torch.arange(len(spans)) + 30
    elif task == "ForMultipleChoice":
        inputs = {name: None if value is None else value.view(2, 2, LENGTH) for name, value in inputs.items()}
        if not masked:  # ModernBERT's mean pooling needs a mask here
            inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        inputs["labels"] = torch.tensor([0, 1])
    return inputs


def assert_same(ours, native, what=""):
    assert native.isfinite().all(), what
    # The comparison is relative to the largest entry: single entries may be sums that almost cancel.
    scale = native.abs().max().clamp(min=1e-8)
    torch.testing.assert_close(ours / scale, native / scale, rtol=0, atol=5e-6, msg=lambda text: f"{what}: {text}")


def assert_same_outputs(ours, native):
    assert set(ours) == set(native)
    for name, value in native.items():
        values = value if isinstance(value, tuple) else (value,)
        got = ours[name] if isinstance(ours[name], tuple) else (ours[name],)
        assert len(got) == len(values)
        for index, (a, b) in enumerate(zip(got, values, strict=True)):
            assert a.shape == b.shape
            assert_same(a, b, f"{name} {index}")


def assert_same_gradients(ours, native):
    for (name, a), (_, b) in zip(ours.named_parameters(), native.named_parameters(), strict=True):
        assert a.grad is not None, name
        assert_same(a.grad, b.grad, name)


def objective(output):
    """The loss; for the bare encoder, fixed random weights on its output."""
    if output.get("loss") is not None:
        return output.loss
    hidden = output.last_hidden_state
    return (hidden * torch.randn(hidden.shape, generator=torch.Generator().manual_seed(2))).mean()


@pytest.mark.parametrize("task", TASKS)
def test_state_dicts_have_the_same_keys_and_shapes(task):
    ours, native = make_pair(task)
    assert {name: value.shape for name, value in ours.state_dict().items()} == {
        name: value.shape for name, value in native.state_dict().items()
    }
    native.load_state_dict(ours.state_dict(), strict=True)


@pytest.mark.parametrize("masked", [True, False], ids=["padded", "full"])
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("task", TASKS)
def test_outputs_and_gradients(task, implementation, masked):
    ours, native = make_pair(task, implementation)
    inputs = make_inputs(task, masked)
    outputs = [model(**inputs) for model in (ours, native)]
    assert_same_outputs(*outputs)
    for output in outputs:
        objective(output).backward()
    assert_same_gradients(ours, native)


def test_training_loss_and_gradients_of_the_masked_language_model():
    """In training mode only labelled tokens are decoded here; the loss is the same."""
    ours, native = make_pair("ForMaskedLM", "sdpa")
    inputs = make_inputs("ForMaskedLM")
    for model in (ours, native):
        model.train()(**inputs).loss.backward()
    assert_same(ours(**inputs).loss, native(**inputs).loss)
    assert_same_gradients(ours, native)


@pytest.mark.parametrize("options", [{"sparse_prediction": True}, {"tie_word_embeddings": False}], ids=str)
def test_options_of_the_masked_language_model(options):
    ours, native = make_pair("ForMaskedLM", "sdpa", **options)
    inputs = make_inputs("ForMaskedLM")
    assert_same_outputs(ours(**inputs), native(**inputs))
    del inputs["labels"]
    assert_same_outputs(ours(**inputs), native(**inputs))


def test_other_options_of_the_architecture():
    options = {
        "attention_bias": True,
        "mlp_bias": True,
        "norm_bias": True,
        "classifier_bias": True,
        "decoder_bias": False,
        "hidden_activation": "silu",
        "global_attn_every_n_layers": 2,
        "local_attention": 9,
    }
    ours, native = make_pair("ForMaskedLM", "sdpa", **options)
    inputs = make_inputs("ForMaskedLM")
    assert_same_outputs(ours(**inputs), native(**inputs))


@pytest.mark.parametrize("rope_type", ["linear", "yarn"])
def test_scaled_rope(rope_type):
    scaled = {"rope_type": rope_type, "rope_theta": 10_000.0, "factor": 4.0}
    rope = {"full_attention": scaled, "sliding_attention": {"rope_type": "default", "rope_theta": 500.0}}
    removed = {"global_rope_theta": None, "local_rope_theta": None}
    ours, native = make_pair("Model", **removed, rope_parameters=rope)
    inputs = make_inputs("Model")
    assert_same_outputs(ours(**inputs), native(**inputs))


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("problem", ["regression", "multi_label_classification", "single_label_classification"])
def test_sequence_classification_problems(problem, pooling):
    num_labels = 1 if problem == "regression" else 3
    ours, native = make_pair("ForSequenceClassification", num_labels=num_labels, classifier_pooling=pooling)
    inputs = {name: value[:2] for name, value in make_inputs("ForSequenceClassification").items()}  # not padded left
    generator = torch.Generator().manual_seed(3)
    if problem == "regression":
        inputs["labels"] = torch.randn(2, generator=generator)
    elif problem == "multi_label_classification":
        inputs["labels"] = torch.randint(2, (2, 3), generator=generator).float()
    assert_same_outputs(ours(**inputs), native(**inputs))
    assert ours.config.problem_type == native.config.problem_type == problem


def test_multiple_choice_with_cls_pooling_under_left_padding():
    ours, native = make_pair("ForMultipleChoice", classifier_pooling="cls")
    inputs = make_inputs("ForMultipleChoice")
    assert_same_outputs(ours(**inputs), native(**inputs))


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_given_positions(implementation):
    ours, native = make_pair("Model", implementation)
    inputs = make_inputs("Model")
    inputs["position_ids"] = (torch.arange(LENGTH) % 23 + torch.arange(5)[:, None] * 7).clone()
    changed = ours(**inputs).last_hidden_state
    assert_same(changed, native(**inputs).last_hidden_state)
    del inputs["position_ids"]
    assert (changed - ours(**inputs).last_hidden_state).abs().max() > 0.1


@pytest.mark.parametrize("task", TASKS)
def test_given_embeddings(task):
    ours, native = make_pair(task)
    inputs = make_inputs(task)
    inputs["inputs_embeds"] = native.get_input_embeddings()(inputs.pop("input_ids")).detach()
    assert_same_outputs(ours(**inputs), native(**inputs))


def test_recorded_hidden_states_and_attentions():
    ours, native = make_pair("ForTokenClassification")
    inputs = make_inputs("ForTokenClassification")
    outputs = [model(**inputs, output_hidden_states=True, output_attentions=True) for model in (ours, native)]
    assert len(outputs[0].hidden_states) == 5
    assert len(outputs[0].attentions) == 4
    assert_same_outputs(*outputs)


def test_attention_implementations_are_called_as_by_modernbert():
    """Flash attention takes the window, and packed sequences their bounds, from keywords."""
    calls = []

    def spy(module, query, key, value, attention_mask, **kwargs):
        calls.append((module.is_causal, module.layer_idx, query.shape, attention_mask, kwargs))
        return eager_attention(module, query, key, value, None, **kwargs)

    transformers.AttentionInterface.register("spy", spy)
    for model in make_pair("Model", attention_dropout=0.25):
        model.config._attn_implementation = "spy"
        model.train()(make_inputs("Model")["input_ids"], max_length_q=3)
    ours, native = calls[:4], calls[4:]
    assert ours == native
    assert [kwargs["sliding_window"] for *_, kwargs in ours] == [None, 9, 9, None]
    assert all(kwargs["dropout"] == 0.25 and kwargs["max_length_q"] == 3 for *_, kwargs in ours)


def test_bfloat16():
    ours, native = make_pair("ForMaskedLM", "sdpa", num_hidden_layers=2)
    inputs = make_inputs("ForMaskedLM")
    # Frequencies are cast with a native model; give it back its float32 ones, as from_pretrained(dtype=...) has them.
    frequencies = {name: value.clone() for name, value in native.model.rotary_emb.named_buffers()}
    for model in (ours, native):
        model.to(torch.bfloat16)
    for name, value in frequencies.items():
        setattr(native.model.rotary_emb, name, value)
    torch.testing.assert_close(ours(**inputs).logits, native(**inputs).logits, rtol=0, atol=0.05)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("task", TASKS)
def test_rows_of_padding_give_finite_numbers(task, implementation):
    ours, _ = make_pair(task, implementation)
    inputs = make_inputs(task)
    inputs["attention_mask"] = torch.zeros_like(inputs["attention_mask"])
    output = ours(**inputs)
    assert all(value.isfinite().all() for value in output.values())
    objective(output).backward()
    assert all(parameter.grad.isfinite().all() for parameter in ours.parameters() if parameter.grad is not None)


def test_every_task_of_modernbert_is_covered():
    native = {name.removeprefix("ModernBert") for name in dir(transformers) if name.startswith("ModernBert")}
    native -= {name for name in native if name.startswith("Decoder")} | {"Config", "PreTrainedModel"}
    assert native == set(TASKS)
    assert set(modeling.__all__) >= {f"MMBert{task}" for task in TASKS}
