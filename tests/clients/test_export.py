"""torch.compile, torch.export and ONNX: the padded inputs of any shape, the same numbers.

Only what stands at real tokens is compared: what a model says about padding means nothing.
"""

import copy
import warnings

import onnxruntime
import pytest
import torch
from torch.export import Dim

NAMES = ("input_ids", "attention_mask")


def inputs_of(lengths, width, *, left=False, seed=0):
    """Random ids with this many real tokens per row, [len(lengths), width]."""
    ids = torch.randint(5, 400, (len(lengths), width), generator=torch.Generator().manual_seed(seed))
    places = torch.arange(width).flip(0) if left else torch.arange(width)
    mask = (places < torch.tensor(lengths)[:, None]).long()
    return {"input_ids": ids.masked_fill(mask == 0, 0), "attention_mask": mask}


def values(model, inputs):
    """What a model, or an exported program, says at the real tokens, or about the rows."""
    said = model(**inputs)
    hidden = said.logits if "logits" in said else said.last_hidden_state
    return hidden[inputs["attention_mask"].bool()] if hidden.ndim == 3 else hidden


TRACED = inputs_of([20, 12, 5], 20)
# Other batch sizes and lengths; rows longer and shorter than a window; padding on either side, within, and of a whole row.
OTHERS = {
    "longer": inputs_of([33, 7, 30, 2, 33], 33, seed=1),
    "no padding": inputs_of([50, 50], 50, seed=2),
    "left": inputs_of([9, 40], 40, left=True, seed=3),
    "an empty row": inputs_of([0, 11, 24], 24, seed=4),
}
CLASSES = pytest.mark.parametrize("class_name", ["MMBertModel", "MMBertForMaskedLM"])


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def check_compiled(model, backend, dynamic):
    """Forward and backward of a compiled copy against the model itself, in one graph."""
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True, backend=backend, dynamic=dynamic)
    for inputs in (TRACED, OTHERS["longer"] if dynamic else TRACED):
        for runner in (model, compiled):
            runner.zero_grad()
            values(runner, inputs).square().mean().backward()
        with torch.no_grad():
            torch.testing.assert_close(values(compiled, inputs), values(model, inputs), rtol=0, atol=1e-5)
        for (name, one), (_, other) in zip(model.named_parameters(), compiled.named_parameters(), strict=True):
            torch.testing.assert_close(other.grad, one.grad, rtol=0, atol=1e-5, msg=name)


@pytest.mark.parametrize(("class_name", "backend"), [("MMBertModel", "eager"), ("MMBertForMaskedLM", "aot_eager")])
def test_compiles_in_one_graph(make_model, class_name, backend):
    check_compiled(make_model(class_name), backend, dynamic=None)


def test_compiles_for_any_shape(make_model):
    check_compiled(make_model("MMBertForMaskedLM"), "eager", dynamic=True)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")  # torch's own
def test_compiles_with_inductor(make_model):
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        pytest.skip("no C++ compiler")
    check_compiled(make_model("MMBertModel", num_hidden_layers=2), "inductor", dynamic=None)


@pytest.mark.parametrize("class_name", ["MMBertForSequenceClassification", "MMBertForTokenClassification"])
@pytest.mark.parametrize("compiled", [False, True], ids=["export", "compile"])
def test_classifiers_trace_too(make_model, class_name, compiled):
    """What stands behind the encoder does not hinder tracing either."""
    model = make_model(class_name)
    if compiled:
        other = torch.compile(model, fullgraph=True, backend="eager")
    else:
        other = torch.export.export(model, (), TRACED).module()
    with torch.no_grad():
        torch.testing.assert_close(values(other, TRACED), values(model, TRACED), rtol=0, atol=1e-5)


def dynamic_shapes():
    batch, length = Dim("batch"), Dim("length")
    return {name: {0: batch, 1: length} for name in NAMES}


@CLASSES
def test_exported_programs_take_other_shapes(make_model, class_name):
    model = make_model(class_name)
    program = torch.export.export(model, (), TRACED, dynamic_shapes=dynamic_shapes())
    for name, inputs in OTHERS.items():
        with torch.no_grad():
            got, expected = values(program.module(), inputs), values(model, inputs)
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


def test_onnx_runtime_gives_the_same_numbers(make_model, tmp_path):
    model = make_model("MMBertForMaskedLM")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns of its own parts: shared axis names, deprecated treespecs
        torch.onnx.export(
            model,
            (),
            tmp_path / "model.onnx",
            kwargs=TRACED,
            dynamic_shapes=dynamic_shapes(),
            output_names=["logits"],
            dynamo=True,
            verbose=False,
        )
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    assert [(entry.name, len(entry.shape)) for entry in session.get_inputs()] == [(name, 2) for name in NAMES]
    for name, inputs in OTHERS.items():
        (logits,) = session.run(None, {key: value.numpy() for key, value in inputs.items()})
        real = inputs["attention_mask"].bool()
        with torch.no_grad():
            expected = model(**inputs).logits[real]
        torch.testing.assert_close(
            torch.from_numpy(logits)[real], expected, rtol=0, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
        )
