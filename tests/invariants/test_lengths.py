"""Rows as long as a block of local attention, one shorter, one longer, and many blocks long, equal ModernBERT's.

The window is mmBERT's: 64 tokens to either side.
"""

import pytest
import torch

LENGTHS = [1, 63, 64, 65, 128, 129, 513, 192]
WIDTH = 540
HOLE = 27  # shorter than the reach, so that tokens on either side of it see each other
OPTIONS = {
    "local_attention": 128,
    "num_hidden_layers": 3,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 2,
}


def spans(length, padding):
    """Where the real tokens of a row are."""
    if padding == "right":
        return [(0, length)]
    if padding == "left":
        return [(WIDTH - length, WIDTH)]
    half = length // 2
    return [(0, half), (half + HOLE, length + HOLE)]


def compare(parity, models, inputs):
    """Outputs and gradients, also those of the input embeddings, of ours and the native model."""
    real = parity.real(inputs)
    both = [parity.embedded(models[1], inputs) for _ in models]
    outputs = [model(**embedded) for model, embedded in zip(models, both, strict=True)]
    parity.assert_same_outputs(*outputs, real)
    for model, output in zip(models, outputs, strict=True):
        model.zero_grad()
        parity.objective(output, real).backward()
    parity.assert_same_gradients(*models)
    gradients = [embedded["inputs_embeds"].grad.flatten(0, -3) for embedded in both]
    parity.assert_same(*gradients, "gradient of the embeddings")
    assert (gradients[0][~real] == 0).all()


@pytest.mark.parametrize("padding", ["right", "left", "interior"])
def test_padded_rows_equal_modernbert(parity, task, implementation, padding):
    models = parity.pair(task, implementation, **OPTIONS)
    mask = parity.mask([spans(length, padding) for length in LENGTHS], WIDTH)
    assert mask.sum(dim=1).tolist() == LENGTHS
    compare(parity, models, parity.inputs(task, mask))


def test_rows_without_padding_equal_modernbert(parity, task, implementation):
    models = parity.pair(task, implementation, **OPTIONS)
    for length in LENGTHS:
        compare(parity, models, parity.inputs(task, torch.ones(2, length, dtype=torch.int64), masked=False))


@pytest.mark.parametrize("task", ["Model", "ForMaskedLM"])
def test_a_long_row_equals_modernbert(parity, task):
    models = parity.pair(task, "sdpa", **OPTIONS)
    compare(parity, models, parity.inputs(task, torch.ones(1, 2049, dtype=torch.int64), masked=False))


def test_a_row_equals_itself_in_a_larger_batch(parity, implementation):
    model = parity.model("Model", implementation, **OPTIONS)
    mask = parity.mask([spans(length, "right") for length in LENGTHS], WIDTH)
    inputs = parity.inputs("Model", mask)
    together = model(**inputs).last_hidden_state
    for row, length in enumerate(LENGTHS):
        alone = model(inputs["input_ids"][row : row + 1, :length]).last_hidden_state[0]
        parity.assert_same(together[row, :length], alone, f"length {length}")


def test_padding_side_and_width_change_nothing(parity, implementation):
    """The same tokens, padded on the other side or in a wider batch; RoPE is relative, so only rounding differs."""
    model = parity.model("Model", implementation, **OPTIONS)
    tokens = parity.inputs("Model", torch.ones(1, 200, dtype=torch.int64))["input_ids"]
    expected = model(tokens).last_hidden_state
    for left, right in [(0, 1), (0, 300), (1, 0), (300, 0), (64, 64)]:
        padded = torch.nn.functional.pad(tokens, (left, right))
        output = model(padded, attention_mask=padded.ne(0).long()).last_hidden_state
        parity.assert_same(output[:, left : left + 200], expected, f"{left}, {right}", tolerance=1e-4 if left else 5e-6)


@pytest.mark.parametrize("task", ["Model", "ForMaskedLM", "ForTokenClassification", "ForQuestionAnswering"])
def test_a_row_of_padding_adds_nothing_to_gradients(parity, task, implementation):
    model = parity.model(task, implementation, **OPTIONS)
    mask = parity.mask([spans(65, "right"), [], spans(130, "left")], WIDTH)
    inputs = parity.embedded(model, parity.inputs(task, mask))
    parity.objective(model(**inputs), mask.bool()).backward()
    gradients = {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    assert (inputs["inputs_embeds"].grad[1] == 0).all()
    assert (inputs["inputs_embeds"].grad[0, :65] != 0).any(dim=-1).all()
    model.zero_grad()
    without = {name: value[[0, 2]].detach() for name, value in inputs.items()}
    parity.objective(model(**without), mask[[0, 2]].bool()).backward()
    for name, value in model.named_parameters():
        if value.grad is not None:
            parity.assert_same(gradients[name], value.grad, name)


def test_padding_takes_no_gradient_from_any_place(parity):
    """Not even from the sum of all outputs, those at padding included."""
    model = parity.model("Model", "sdpa", **OPTIONS)
    mask = parity.mask([spans(65, "interior"), [], spans(130, "left")], WIDTH)
    inputs = parity.embedded(model, parity.inputs("Model", mask))
    (model(**inputs).last_hidden_state ** 3).sum().backward()
    gradient = inputs["inputs_embeds"].grad
    assert (gradient[~mask.bool()] == 0).all()
    assert (gradient[mask.bool()] != 0).any(dim=-1).all()


@pytest.mark.parametrize("layer", [0, 1], ids=["global", "local"])
def test_layers_see_real_tokens_only(parity, layer):
    """Padding costs nothing: the feed-forward of each layer runs over the real tokens."""
    model = parity.model("Model", "sdpa", **OPTIONS)
    mask = parity.mask([spans(length, "right") for length in LENGTHS], WIDTH)
    rows = []
    model.layers[layer].mlp.register_forward_hook(lambda _, inputs, __: rows.append(inputs[0].shape[:-1].numel()))
    model(**parity.inputs("Model", mask))
    assert rows == [sum(LENGTHS)]


def test_hidden_states_of_padded_rows_equal_modernbert(parity, implementation):
    ours, native = parity.pair("Model", implementation, **OPTIONS)
    mask = parity.mask([[(0, 32), (59, 92)], [], [(30, 160)]], 160)
    inputs = parity.inputs("Model", mask)
    outputs = [model(**inputs, output_hidden_states=True) for model in (ours, native)]
    assert len(outputs[0].hidden_states) == 4
    parity.assert_same_outputs(*outputs, mask.bool())
