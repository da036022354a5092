"""The same weights give the same numbers as transformers' ModernBERT: outputs, losses and gradients.

Outputs are compared at real tokens: what the places of padding hold is not ModernBERT's but zero, and tested as such.
Rows are several windows long. Rows as long as a block of local attention, and longer, are in ``test_lengths.py``.
"""

import pytest
import torch
import transformers

from mmbert_hf import modeling
from mmbert_hf.attention import eager_attention

LENGTH = 70
# Real tokens of each row: all, padded right, padded left, with a hole, none.
SPANS = [[(0, 70)], [(0, 41)], [(25, 70)], [(0, 20), (33, 70)], []]


@pytest.fixture
def make_inputs(parity):
    """Return a function that makes the inputs of a task, in rows of every kind of padding."""

    def make(task, masked=True):
        # A row without any token makes ModernBERT's mean pooling divide by zero.
        spans = SPANS[:4] if task in parity.per_row else SPANS
        return parity.inputs(task, parity.mask(spans, LENGTH), masked)

    return make


def test_state_dicts_have_the_same_keys_and_shapes(parity, task):
    ours, native = parity.pair(task)
    assert {name: value.shape for name, value in ours.state_dict().items()} == {
        name: value.shape for name, value in native.state_dict().items()
    }
    native.load_state_dict(ours.state_dict(), strict=True)


@pytest.mark.parametrize("masked", [True, False], ids=["padded", "full"])
def test_outputs_and_gradients(parity, make_inputs, task, implementation, masked):
    ours, native = parity.pair(task, implementation)
    inputs = make_inputs(task, masked)
    real = parity.real(inputs)
    outputs = [model(**inputs) for model in (ours, native)]
    parity.assert_same_outputs(*outputs, real)
    for output in outputs:
        parity.objective(output, real).backward()
    parity.assert_same_gradients(ours, native)


def test_training_loss_and_gradients_of_the_masked_language_model(parity, make_inputs):
    """In training mode only labelled tokens are decoded here; the loss is the same."""
    ours, native = parity.pair("ForMaskedLM", "sdpa")
    inputs = make_inputs("ForMaskedLM")
    for model in (ours, native):
        model.train()(**inputs).loss.backward()
    parity.assert_same(ours(**inputs).loss, native(**inputs).loss)
    parity.assert_same_gradients(ours, native)


@pytest.mark.parametrize("options", [{"sparse_prediction": True}, {"tie_word_embeddings": False}], ids=str)
def test_options_of_the_masked_language_model(parity, make_inputs, options):
    ours, native = parity.pair("ForMaskedLM", "sdpa", **options)
    inputs = make_inputs("ForMaskedLM")
    parity.assert_same_outputs(ours(**inputs), native(**inputs), parity.real(inputs))
    del inputs["labels"]
    parity.assert_same_outputs(ours(**inputs), native(**inputs), parity.real(inputs))


def test_other_options_of_the_architecture(parity, make_inputs, implementation):
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
    ours, native = parity.pair("ForMaskedLM", implementation, **options)
    inputs = make_inputs("ForMaskedLM")
    parity.assert_same_outputs(ours(**inputs), native(**inputs), parity.real(inputs))


@pytest.mark.parametrize("rope_type", ["linear", "yarn"])
def test_scaled_rope(parity, make_inputs, rope_type):
    scaled = {"rope_type": rope_type, "rope_theta": 10_000.0, "factor": 4.0}
    rope = {"full_attention": scaled, "sliding_attention": {"rope_type": "default", "rope_theta": 500.0}}
    removed = {"global_rope_theta": None, "local_rope_theta": None}
    ours, native = parity.pair("Model", **removed, rope_parameters=rope)
    inputs = make_inputs("Model")
    parity.assert_same_outputs(ours(**inputs), native(**inputs), parity.real(inputs))


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("problem", ["regression", "multi_label_classification", "single_label_classification"])
def test_sequence_classification_problems(parity, make_inputs, problem, pooling):
    num_labels = 1 if problem == "regression" else 3
    ours, native = parity.pair("ForSequenceClassification", num_labels=num_labels, classifier_pooling=pooling)
    inputs = {name: value[:2] for name, value in make_inputs("ForSequenceClassification").items()}  # not padded left
    generator = torch.Generator().manual_seed(3)
    if problem == "regression":
        inputs["labels"] = torch.randn(2, generator=generator)
    elif problem == "multi_label_classification":
        inputs["labels"] = torch.randint(2, (2, 3), generator=generator).float()
    parity.assert_same_outputs(ours(**inputs), native(**inputs), parity.real(inputs))
    assert ours.config.problem_type == native.config.problem_type == problem


def test_multiple_choice_with_cls_pooling_under_left_padding(parity, make_inputs):
    ours, native = parity.pair("ForMultipleChoice", classifier_pooling="cls")
    inputs = make_inputs("ForMultipleChoice")
    parity.assert_same_outputs(ours(**inputs), native(**inputs), parity.real(inputs))


def given_positions(kind):
    """Position ids that open no document: none is 0 after the first real token of its row."""
    row = torch.arange(len(SPANS))[:, None]
    if kind == "repeating":
        return torch.arange(LENGTH) % 23 + 3 + row * 7
    if kind == "offset":
        return torch.arange(LENGTH)[None] + 100
    if kind == "offset of each row":
        return torch.arange(LENGTH) + row * 31
    # As generation code counts them: 0 at the first real token, and 0 at all padding before it.
    starts = torch.tensor([spans[0][0] if spans else 0 for spans in SPANS])[:, None]
    return (torch.arange(LENGTH) - starts).clamp(min=0)


@pytest.mark.parametrize("kind", ["repeating", "offset", "offset of each row", "from the first token"])
def test_given_positions(parity, make_inputs, implementation, kind):
    ours, native = parity.pair("Model", implementation)
    inputs = make_inputs("Model")
    real = parity.real(inputs)
    inputs["position_ids"] = given_positions(kind)
    changed = ours(**inputs).last_hidden_state
    parity.assert_same_outputs({"last_hidden_state": changed}, native(**inputs), real)
    del inputs["position_ids"]
    difference = (changed - ours(**inputs).last_hidden_state)[real].abs().max()
    assert (difference > 0.1) == (kind == "repeating")  # rotation is relative: an offset changes rounding only


def test_positions_of_padding_open_no_document(parity, make_inputs, implementation):
    """The common collators number padding 0, wherever it is."""
    ours, native = parity.pair("Model", implementation)
    inputs = make_inputs("Model")
    real = parity.real(inputs)
    inputs["position_ids"] = torch.arange(LENGTH) * real
    parity.assert_same_outputs(ours(**inputs), native(**inputs), real)


def test_given_embeddings_and_their_gradients(parity, make_inputs, task, implementation):
    ours, native = parity.pair(task, implementation)
    real = parity.real(make_inputs(task))
    both = [parity.embedded(native, make_inputs(task)) for _ in range(2)]
    outputs = [model(**inputs) for model, inputs in zip((ours, native), both, strict=True)]
    parity.assert_same_outputs(*outputs, real)
    for output in outputs:
        parity.objective(output, real).backward()
    parity.assert_same_gradients(ours, native)
    gradients = [inputs["inputs_embeds"].grad.flatten(0, -3) for inputs in both]
    parity.assert_same(*gradients)
    assert (gradients[0][~real] == 0).all()


def test_recorded_hidden_states(parity, make_inputs, implementation):
    ours, native = parity.pair("ForTokenClassification", implementation)
    inputs = make_inputs("ForTokenClassification")
    outputs = [model(**inputs, output_hidden_states=True) for model in (ours, native)]
    assert len(outputs[0].hidden_states) == 5
    parity.assert_same_outputs(*outputs, parity.real(inputs))


def test_recorded_hidden_states_and_attentions(parity, make_inputs):
    ours, native = parity.pair("ForTokenClassification")
    inputs = make_inputs("ForTokenClassification")
    outputs = [model(**inputs, output_hidden_states=True, output_attentions=True) for model in (ours, native)]
    assert len(outputs[0].hidden_states) == 5
    assert len(outputs[0].attentions) == 4
    parity.assert_same_outputs(*outputs, parity.real(inputs))


def test_places_of_padding_hold_zero(parity, make_inputs):
    model = parity.model("Model", "sdpa")
    inputs = make_inputs("Model")
    real = parity.real(inputs)
    output = model(**inputs, output_hidden_states=True)
    for hidden in (output.last_hidden_state, *output.hidden_states):
        assert (hidden[~real] == 0).all()
        assert (hidden[real] != 0).any(dim=-1).all()


def test_attention_implementations_are_called_as_by_modernbert(parity, make_inputs):
    """They take the window, and what the caller adds for them, from keywords."""
    calls = []

    def spy(module, query, key, value, attention_mask, **kwargs):
        calls.append((module.is_causal, module.layer_idx, query.shape, attention_mask, kwargs))
        return eager_attention(module, query, key, value, None, **kwargs)

    transformers.AttentionInterface.register("spy", spy)
    for model in parity.pair("Model", attention_dropout=0.25):
        model.config._attn_implementation = "spy"
        model.train()(make_inputs("Model")["input_ids"], own_option=3)
    ours, native = calls[:4], calls[4:]
    assert ours == native
    assert [kwargs["sliding_window"] for *_, kwargs in ours] == [None, 9, 9, None]
    assert all(kwargs["dropout"] == 0.25 and kwargs["own_option"] == 3 for *_, kwargs in ours)


def test_rows_of_padding_give_finite_numbers(parity, make_inputs, task, implementation):
    ours = parity.model(task, implementation)
    inputs = make_inputs(task)
    inputs["attention_mask"] = torch.zeros_like(inputs["attention_mask"])
    output = ours(**inputs)
    assert all(value.isfinite().all() for value in output.values())
    (output.last_hidden_state.sum() if task == "Model" else output.to_tuple()[0].sum()).backward()
    assert all(parameter.grad.isfinite().all() for parameter in ours.parameters() if parameter.grad is not None)


def test_every_task_of_modernbert_is_covered(parity):
    native = {name.removeprefix("ModernBert") for name in dir(transformers) if name.startswith("ModernBert")}
    native -= {name for name in native if name.startswith("Decoder")} | {"Config", "PreTrainedModel"}
    assert native == set(parity.tasks)
    assert set(modeling.__all__) >= {f"MMBert{task}" for task in parity.tasks}
