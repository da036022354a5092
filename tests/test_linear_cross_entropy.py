"""The chunked loss: the numbers of plain cross entropy, never more logits than allowed, and no needless product."""

import copy
import doctest

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from mmbert_hf import linear_cross_entropy as module
from mmbert_hf.linear_cross_entropy import MAX_LOGITS, linear_cross_entropy

ROWS, SIZE, VOCABULARY = 13, 6, 41


def make_inputs(dtype=torch.float64, bias=True, scale=1.0):
    """Hidden vectors, weight, bias or None, and labels of which three do not count."""
    torch.manual_seed(0)
    hidden = (torch.randn(ROWS, SIZE, dtype=torch.float64) * scale).to(dtype).requires_grad_()
    weight = torch.randn(VOCABULARY, SIZE, dtype=torch.float64).to(dtype).requires_grad_()
    bias_values = torch.randn(VOCABULARY, dtype=torch.float64).to(dtype).requires_grad_() if bias else None
    labels = torch.randint(VOCABULARY, (ROWS,))
    labels[[0, 5, 12]] = -100
    return hidden, weight, bias_values, labels


def plain(hidden, weight, bias, labels):
    return F.cross_entropy(F.linear(hidden, weight, bias), labels, ignore_index=-100, reduction="sum")


def gradients(loss, *inputs, **options):
    return torch.autograd.grad(loss, [tensor for tensor in inputs if tensor is not None], **options)


class Watch(TorchDispatchMode):
    """Notes the name of each operation and the shapes that it is given, and every memory that results lie in."""

    def __init__(self):
        super().__init__()
        self.calls, self.storages = [], {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        shapes = [tuple(value.shape) for value in args if isinstance(value, torch.Tensor)]
        self.calls.append((function.overloadpacket.__name__, shapes))
        for value in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(value, torch.Tensor):
                # The storage is kept, so that no address is used twice.
                storage = value.untyped_storage()
                self.storages.setdefault(storage.data_ptr(), (storage, value.dtype, tuple(value.shape)))
        return result

    def made(self, *inputs):
        """Return address, elements, dtype and first shape of each memory that no input lies in."""
        old = {tensor.untyped_storage().data_ptr() for tensor in inputs}
        return [
            (data, storage.nbytes() // dtype.itemsize, dtype, shape)
            for data, (storage, dtype, shape) in self.storages.items()
            if data not in old
        ]

    def products(self):
        return [shapes for name, shapes in self.calls if name in ("mm", "addmm", "addmm_", "mv", "addmv", "addmv_")]


# The same numbers as plain cross entropy


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("rows", [1, 3, 4, 10, 1000])
def test_loss_and_gradients_equal_plain_cross_entropy(rows, bias):
    *inputs, labels = make_inputs(bias=bias)
    loss = linear_cross_entropy(*inputs, labels, max_logits=rows * VOCABULARY)
    expected = plain(*inputs, labels)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradients(3 * loss, *inputs), gradients(3 * expected, *inputs))
    assert loss.shape == ()
    assert loss.dtype == torch.float64


def test_gradients_are_those_of_finite_differences():
    *inputs, labels = make_inputs()
    assert torch.autograd.gradcheck(lambda *tensors: linear_cross_entropy(*tensors, labels, max_logits=100), inputs)


@pytest.mark.parametrize("scale", [0.0, 1e3], ids=["all logits equal", "logits of thousands"])
def test_float32_is_stable_at_extremes(scale):
    *inputs, labels = make_inputs(torch.float32, scale=scale)
    loss = linear_cross_entropy(*inputs, labels, max_logits=100)
    expected = plain(*inputs, labels)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradients(loss, *inputs), gradients(expected, *inputs))


def test_a_certain_and_right_prediction_has_a_precise_gradient():
    """The gradient at the label is the sum of the other shares, not 1 minus a share that rounds to 1."""
    hidden = torch.ones(1, 1, requires_grad=True)
    weight = torch.tensor([[20.0], [0.0]], requires_grad=True)
    linear_cross_entropy(hidden, weight, None, torch.tensor([0])).backward()
    share = torch.tensor(-20.0).exp()
    torch.testing.assert_close(weight.grad, torch.stack([-share, share])[:, None], rtol=1e-6, atol=0)


@pytest.mark.parametrize("value", [float("-inf"), float("nan")])
def test_a_token_that_is_ruled_out_is_exact_and_nan_stays_nan(value):
    *inputs, labels = make_inputs()
    inputs[2].data[(labels[1] + 1) % VOCABULARY] = value
    labels[labels == (labels[1] + 1) % VOCABULARY] = -100
    loss = linear_cross_entropy(*inputs, labels, max_logits=100)
    torch.testing.assert_close(loss, plain(*inputs, labels), equal_nan=True)
    assert loss.isnan() == (value != value)


def test_rows_in_any_memory_layout():
    _, weight, bias, labels = make_inputs()
    wide = torch.randn(2 * ROWS, SIZE, dtype=torch.float64, requires_grad=True)
    tall = weight.detach().t().contiguous().t().requires_grad_()
    loss = linear_cross_entropy(wide[::2], tall, bias, labels.int(), max_logits=100)
    expected = plain(wide[::2], tall, bias, labels)
    torch.testing.assert_close(gradients(loss, wide, tall, bias), gradients(expected, wide, tall, bias))


# Nothing to predict


@pytest.mark.parametrize("rows", [0, 4], ids=["no rows", "no labels"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_labelled_gives_zero_and_zero_gradients(rows, dtype):
    hidden = torch.randn(rows, SIZE, dtype=dtype, requires_grad=True)
    _, weight, bias, _ = make_inputs(dtype)
    loss = linear_cross_entropy(hidden, weight, bias, torch.full((rows,), -100))
    loss.backward()
    assert loss.item() == 0
    assert loss.dtype == torch.float32
    for tensor in (hidden, weight, bias):
        assert torch.equal(tensor.grad, torch.zeros_like(tensor))


def test_rows_without_a_label_cost_nothing():
    hidden, weight, _, _ = make_inputs()
    labels = torch.full((ROWS,), -100)
    labels[7] = 3
    with Watch() as watch:
        linear_cross_entropy(hidden, weight, None, labels)
    assert watch.products()[0] == [(1, SIZE), (SIZE, VOCABULARY)]


# Memory


def make_wide_inputs(dtype):
    """A vocabulary so large that only logits and the gradient of the weight are large."""
    torch.manual_seed(0)
    hidden = torch.randn(ROWS, 16, dtype=dtype, requires_grad=True)
    weight = torch.randn(400, 16, dtype=dtype, requires_grad=True)
    bias = torch.randn(400, dtype=dtype, requires_grad=True)
    return hidden, weight, bias, torch.arange(ROWS)


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_tensor_holds_more_logits_than_allowed(rows, dtype):
    """Nothing is larger but the gradient of the weight and, where products are rounded, its float32 sum."""
    *inputs, labels = make_wide_inputs(dtype)
    with Watch() as watch:
        loss = linear_cross_entropy(*inputs, labels, max_logits=rows * 400)
        forward = watch.made(*inputs)
        (loss / 3).backward()
    large = [(made_dtype, shape) for _, size, made_dtype, shape in watch.made(*inputs) if size > rows * 400]
    expected = {torch.float32: [torch.float32], torch.bfloat16: [torch.float32, torch.bfloat16]}[dtype]
    assert large == [(made_dtype, (400, 16)) for made_dtype in expected]
    backward = watch.made(*inputs)[len(forward) :]
    assert all(size <= ROWS * 16 for _, size, _, _ in backward)  # the gradients are scaled where they are


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_of_all_chunks_share_one_buffer(dtype):
    *inputs, labels = make_wide_inputs(dtype)
    with Watch() as watch:
        linear_cross_entropy(*inputs, labels, max_logits=5 * 400)
    chunks = [shapes for name, shapes in watch.calls if name == "addmm"]
    assert [shapes[1] for shapes in chunks] == [(5, 16), (5, 16), (3, 16)]
    # In bfloat16, each chunk has a float32 copy of at most sixteen rows besides.
    made = [shape for _, _, made_dtype, shape in watch.made(*inputs) if made_dtype == dtype and shape[-1:] == (400,)]
    assert [shape for shape in made if len(shape) == 2] == [(5, 400)]


@pytest.mark.parametrize(
    ("rows", "max_logits", "expected"),
    [(10, 4 * VOCABULARY, 4), (9, 4 * VOCABULARY, 3), (10, 1, 1), (10, MAX_LOGITS, 10), (0, MAX_LOGITS, 1)],
)
def test_chunks_are_about_equal(rows, max_logits, expected):
    assert module._rows_per_chunk(rows, VOCABULARY, max_logits) == expected


def test_by_default_128_rows_of_mmberts_vocabulary_fit():
    assert module._rows_per_chunk(1280, 256_000, MAX_LOGITS) == 128
    assert module._rows_per_chunk(1280, 32_000, MAX_LOGITS) > 128


# What needs no gradient costs no product


@pytest.mark.parametrize("frozen", [(), (0,), (1,), (2,), (0, 2), (1, 2), (0, 1), (0, 1, 2)])
def test_frozen_inputs_cost_no_product(frozen):
    *inputs, labels = make_inputs()
    expected = gradients(plain(*inputs, labels), *inputs)
    for index in frozen:
        inputs[index].requires_grad_(False)
    with Watch() as watch:
        loss = linear_cross_entropy(*inputs, labels)
    rows = int((labels != -100).sum())
    products = {
        0: [(rows, VOCABULARY), (VOCABULARY, SIZE)],
        1: [(VOCABULARY, SIZE), (VOCABULARY, rows), (rows, SIZE)],
        2: [(VOCABULARY, rows), (rows,)],
    }
    ran = [shapes[-3:] if len(shapes[0]) == 2 else shapes for shapes in watch.products()]
    assert len(ran) == 1 + 3 - len(frozen)
    for index, product in products.items():
        assert any(shapes[-len(product) :] == product for shapes in ran) == (index not in frozen)
    assert loss.requires_grad == (len(frozen) < 3)
    for index, tensor in enumerate(inputs):
        if index not in frozen:
            torch.testing.assert_close(gradients(loss, tensor, retain_graph=True)[0], expected[index])


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients_only_the_logits_are_computed(mode):
    *inputs, labels = make_inputs()
    with mode(), Watch() as watch:
        loss = linear_cross_entropy(*inputs, labels)
    assert len(watch.products()) == 1
    assert not loss.requires_grad
    torch.testing.assert_close(loss.clone(), plain(*inputs, labels).detach())


# Backward


@pytest.mark.parametrize("factor", [1.0, 0.25])
def test_a_retained_graph_can_be_used_again(factor):
    *inputs, labels = make_inputs()
    expected = gradients(factor * plain(*inputs, labels), *inputs)
    loss = factor * linear_cross_entropy(*inputs, labels, max_logits=100)
    first = gradients(loss, *inputs, retain_graph=True)
    kept = [gradient.clone() for gradient in first]
    second = gradients(2 * loss, *inputs, retain_graph=True)
    third = gradients(loss, *inputs)
    torch.testing.assert_close(first, expected)
    torch.testing.assert_close(list(first), kept, rtol=0, atol=0)  # the later passes did not touch it
    torch.testing.assert_close([gradient / 2 for gradient in second], list(expected))
    torch.testing.assert_close(third, expected)


def test_a_freed_graph_says_so():
    *inputs, labels = make_inputs()
    loss = linear_cross_entropy(*inputs, labels)
    loss.backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        loss.backward()


def test_gradients_are_handed_over_without_a_copy():
    """The memory that the forward pass summed the weight's gradient in becomes ``weight.grad``."""
    *inputs, labels = make_inputs()
    with Watch() as watch:
        loss = linear_cross_entropy(*inputs, labels)
        (loss / 7).backward()
    made = [data for data, _, _, shape in watch.made(*inputs) if shape == (VOCABULARY, SIZE)]
    assert made == [inputs[1].grad.data_ptr()]
    names = [name for name, shapes in watch.calls if (VOCABULARY, SIZE) in shapes]
    assert "clone" not in names
    assert names.count("mul_") == 1


def test_a_gradient_of_one_costs_no_pass():
    *inputs, labels = make_inputs()
    loss = linear_cross_entropy(*inputs, labels)
    with Watch() as watch:
        loss.backward()
    assert not [shapes for name, shapes in watch.calls if name.startswith("mul") and (VOCABULARY, SIZE) in shapes]


def test_gradients_accumulate():
    *inputs, labels = make_inputs()
    expected = gradients(2 * plain(*inputs, labels), *inputs)
    for _ in range(2):
        linear_cross_entropy(*inputs, labels).backward()
    torch.testing.assert_close([tensor.grad for tensor in inputs], list(expected))


def test_second_derivatives_are_refused():
    *inputs, labels = make_inputs()
    loss = linear_cross_entropy(*inputs, labels)
    with pytest.raises(RuntimeError, match="no second derivatives"):
        gradients(loss, *inputs, create_graph=True)


def test_tied_weights():
    """The weight is an embedding as well: both gradients add up."""
    _, weight, bias, labels = make_inputs()
    ids = torch.arange(ROWS)
    expected = gradients(plain(torch.tanh(F.embedding(ids, weight)), weight, bias, labels) / 10, weight, bias)
    (linear_cross_entropy(torch.tanh(F.embedding(ids, weight)), weight, bias, labels) / 10).backward()
    torch.testing.assert_close([weight.grad, bias.grad], list(expected))


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(reentrant):
    *inputs, labels = make_inputs()
    expected = gradients(plain(torch.tanh(inputs[0]), *inputs[1:], labels), *inputs)

    def run(hidden):
        return linear_cross_entropy(torch.tanh(hidden), *inputs[1:], labels, max_logits=100)

    checkpoint(run, inputs[0], use_reentrant=reentrant).backward()
    torch.testing.assert_close([tensor.grad for tensor in inputs], list(expected))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # by torch.compile itself
def test_a_compiled_caller_gives_the_same_gradients():
    *inputs, labels = make_inputs()

    def run(hidden, labels):
        return linear_cross_entropy(torch.tanh(hidden), *inputs[1:], labels, max_logits=100) / 3

    torch._dynamo.reset()
    compiled = torch.compile(run, backend="aot_eager")
    loss = compiled(inputs[0], labels)
    torch.testing.assert_close(gradients(loss, *inputs), gradients(run(inputs[0], labels), *inputs))
    reasons = torch._dynamo.explain(run)(inputs[0], labels).break_reasons
    torch._dynamo.reset()
    assert len(reasons) == 1


# Dtypes


def assert_close_to_exact(got, exact, share):
    """Assert that the error is at most a share of the largest number; one rounding to bfloat16 is 1/512."""
    for value, expected in zip(got, exact, strict=True):
        assert (value.double() - expected).abs().max() <= share * expected.abs().max()


def exact_gradients(inputs, labels):
    doubles = [None if tensor is None else tensor.detach().double().requires_grad_() for tensor in inputs]
    loss = plain(*doubles, labels)
    return loss.detach(), gradients(loss, *doubles)


@pytest.mark.parametrize("rows", [1, 1000])
def test_bfloat16_multiplies_in_bfloat16_and_sums_in_float32(rows):
    *inputs, labels = make_inputs(torch.bfloat16)
    loss, exact = exact_gradients(inputs, labels)
    with Watch() as watch:
        got = linear_cross_entropy(*inputs, labels, max_logits=rows * VOCABULARY)
    assert got.dtype == torch.float32
    assert_close_to_exact([got], [loss], 0.01)
    found = gradients(got, *inputs)
    assert [gradient.dtype for gradient in found] == [torch.bfloat16] * 3
    assert_close_to_exact(found, exact, 0.02)
    assert not [shapes for name, shapes in watch.calls if name == "addmm_"]  # no sum in bfloat16


def test_bfloat16_takes_softmax_and_logarithm_in_float32():
    """Rounded to bfloat16, log(1000) would be 6.90625."""
    hidden, weight = torch.zeros(40, 2, dtype=torch.bfloat16), torch.zeros(1000, 2, dtype=torch.bfloat16)
    loss = linear_cross_entropy(hidden, weight, None, torch.arange(40)) / 40
    torch.testing.assert_close(loss, torch.tensor(1000.0).log())


def test_bfloat16_sums_over_many_chunks_without_loss():
    """2000 equal rows, one a chunk: a sum kept in bfloat16 would stop growing at a 256th of a row's share."""
    rows = 2000
    hidden = torch.ones(rows, 1, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True)
    bias = torch.zeros(2, dtype=torch.bfloat16, requires_grad=True)
    linear_cross_entropy(hidden, weight, bias, torch.zeros(rows, dtype=torch.long), max_logits=2).backward()
    assert weight.grad.flatten().tolist() == [-1000.0, 1000.0]
    assert bias.grad.tolist() == [-1000.0, 1000.0]


@pytest.mark.parametrize("hidden_dtype", [torch.float32, torch.bfloat16])
def test_autocast_on_the_cpu(hidden_dtype):
    *inputs, labels = make_inputs(torch.float32)
    inputs[0] = inputs[0].detach().to(hidden_dtype).requires_grad_()
    loss, exact = exact_gradients(inputs, labels)
    with torch.autocast("cpu", torch.bfloat16), Watch() as watch:
        got = linear_cross_entropy(*inputs, labels, max_logits=100)
    assert got.dtype == torch.float32
    assert_close_to_exact([got], [loss], 0.01)
    found = gradients(got, *inputs, retain_graph=True)
    assert [gradient.dtype for gradient in found] == [tensor.dtype for tensor in inputs]
    assert_close_to_exact(found, exact, 0.02)
    assert (torch.bfloat16, (2, VOCABULARY)) in [(dtype, shape) for _, _, dtype, shape in watch.made()]  # the buffer
    again = gradients(got, *inputs)  # outside autocast, yet computed as in the forward pass
    torch.testing.assert_close(again, found, rtol=0, atol=0)


def test_autocast_leaves_float64_alone():
    *inputs, labels = make_inputs()
    with torch.autocast("cpu", torch.bfloat16):
        loss = linear_cross_entropy(*inputs, labels)
    torch.testing.assert_close(loss, plain(*inputs, labels))


def test_float16_is_multiplied_in_float32():
    """A large vocabulary overflows float16 at the label and underflows it elsewhere."""
    *inputs, labels = make_inputs(torch.float16)
    loss, exact = exact_gradients(inputs, labels)
    got = linear_cross_entropy(*inputs, labels)
    torch.testing.assert_close(got.double(), loss, rtol=1e-6, atol=0)
    found = gradients(got, *inputs)
    assert [gradient.dtype for gradient in found] == [torch.float16] * 3
    assert_close_to_exact(found, exact, 1e-3)


def test_float16_autocast_multiplies_in_float32_and_loses_no_scaled_gradient():
    """Gradients too small for float16 are scaled, as a `GradScaler` does, before they are rounded."""
    *inputs, _ = make_inputs(torch.float32)
    labels = torch.arange(ROWS)
    small = (inputs[1].detach() * 1e-8).requires_grad_()
    hidden = inputs[0].detach().half().requires_grad_()
    with torch.autocast("cpu", torch.float16), Watch() as watch:
        loss = linear_cross_entropy(hidden, small, inputs[2], labels, max_logits=100)
    assert torch.float16 not in {dtype for _, _, dtype, _ in watch.made(hidden)}
    _, exact = exact_gradients((hidden, small, inputs[2]), labels)
    found = gradients(loss * 2.0**16, hidden)[0]
    assert found.dtype == torch.float16
    assert_close_to_exact([found], [exact[0] * 2**16], 1e-3)


# Refused


@pytest.mark.parametrize("label", [VOCABULARY, -1, -101])
def test_labels_outside_the_vocabulary_are_refused_before_work(label):
    *inputs, labels = make_inputs()
    labels[3] = label
    with Watch() as watch, pytest.raises(IndexError, match=rf"they must lie in 0\.\.{VOCABULARY - 1}, or be -100"):
        linear_cross_entropy(*inputs, labels)
    assert not watch.products()


@pytest.mark.parametrize(
    ("index", "shape"), [(0, (2, 3, SIZE)), (0, (ROWS, 5)), (1, (0, SIZE)), (2, (VOCABULARY, 1)), (3, (ROWS, 1))]
)
def test_shapes_that_do_not_fit_are_refused(index, shape):
    inputs = list(make_inputs())
    inputs[index] = torch.zeros(shape, dtype=inputs[index].dtype)
    with pytest.raises(ValueError, match=r"have the shapes .* flatten batches first"):
        linear_cross_entropy(*inputs)


def test_other_nonsense_is_refused():
    hidden, weight, bias, labels = make_inputs()
    with pytest.raises(ValueError, match="max_logits is 0"):
        linear_cross_entropy(hidden, weight, bias, labels, max_logits=0)
    with pytest.raises(TypeError, match=r"torch\.float64, torch\.float32, torch\.float64; they must have one dtype"):
        linear_cross_entropy(hidden, weight.float(), bias, labels)


def test_inputs_are_left_as_they_were():
    inputs = make_inputs()
    before = copy.deepcopy(inputs)
    linear_cross_entropy(*inputs).backward()
    assert all(torch.equal(tensor, old) for tensor, old in zip(inputs, before, strict=True))


def test_docstring_examples():
    results = doctest.testmod(module)
    assert results.failed == 0
    assert results.attempted > 0
