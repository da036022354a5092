"""In bfloat16 the models are as near to their float32 results as ModernBERT is to its own."""

import pytest
import torch

OPTIONS = {"local_attention": 128}
LENGTHS = [300, 129, 64, 1]
WIDTH = 320


def rounded_pair(parity, task):
    """Ours and a native model in bfloat16, and the native one in float32, all with weights that bfloat16 can hold."""
    ours, native = parity.pair(task, "sdpa", **OPTIONS)
    _, reference = parity.pair(task, "sdpa", **OPTIONS)
    # Frequencies are cast with a native model; give it back its float32 ones, as from_pretrained(dtype=...) has them.
    frequencies = {name: value.clone() for name, value in native.base_model.rotary_emb.named_buffers()}
    for model in (ours, native):
        model.to(torch.bfloat16)
    for name, value in frequencies.items():
        setattr(native.base_model.rotary_emb, name, value)
    reference.load_state_dict({name: value.float() for name, value in native.state_dict().items()})
    return ours, native, reference


def error(values, reference):
    """Root mean square of the difference, relative to that of the reference."""
    return ((values.float() - reference).square().mean() / reference.square().mean()).sqrt().item()


def padded(parity, task, padding="right"):
    rows = [[(0, length)] if padding == "right" else [(WIDTH - length, WIDTH)] for length in LENGTHS]
    return parity.inputs(task, parity.mask(rows, WIDTH))


@pytest.mark.parametrize("padding", ["right", "left"])
@pytest.mark.parametrize("task", ["Model", "ForMaskedLM"])
def test_outputs(parity, task, padding):
    models = rounded_pair(parity, task)
    inputs = padded(parity, task, padding)
    inputs.pop("labels", None)
    real = parity.real(inputs)
    with torch.no_grad():
        ours, native, reference = (model(**inputs)[0][real] for model in models)
    assert ours.dtype == torch.bfloat16
    assert 1e-3 < error(native, reference) < 0.1
    assert error(ours, reference) < 1.5 * error(native, reference)


def test_gradients(parity):
    models = rounded_pair(parity, "ForMaskedLM")
    inputs = padded(parity, "ForMaskedLM")
    for model in models:
        model(**inputs).loss.backward()
    ours, native, reference = (
        {name: value.grad.float() for name, value in model.named_parameters()} for model in models
    )
    for name, expected in reference.items():
        assert error(ours[name], expected) < 1.5 * error(native[name], expected), name


def test_packed_documents(parity):
    """Packing adds no error: the same documents, in one row, against each alone in float32."""
    ours, native, reference = rounded_pair(parity, "Model")
    tokens = parity.inputs("Model", torch.ones(1, sum(LENGTHS)))["input_ids"]
    positions = torch.cat([torch.arange(length) for length in LENGTHS])[None]
    with torch.no_grad():
        packed = ours(tokens, position_ids=positions).last_hidden_state
        alone, expected = (
            torch.cat([model(part).last_hidden_state for part in tokens.split(LENGTHS, dim=1)], dim=1)
            for model in (native, reference)
        )
    assert error(packed, expected) < 1.5 * error(alone, expected)
