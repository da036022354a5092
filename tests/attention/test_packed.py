"""The choice of the kernel, what each kernel is given, and the short way where no gradient is recorded."""

import inspect
from contextlib import contextmanager

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import varlen
from transformers import AttentionInterface

from mmbert_hf import encoder
from mmbert_hf.attention import MMBertAttention, block_local, packed
from mmbert_hf.attention.documents import find_documents
from mmbert_hf.attention.packed import BLOCK_LOCAL, TORCH_VARLEN, PackedRows, choose_kernel, grouped_attention
from mmbert_hf.configuration import MMBertConfig
from mmbert_hf.modeling import MMBertModel
from mmbert_hf.onednn import takes_bfloat16

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SIZES = {
    "vocab_size": 120,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "local_attention": 16,
    "initializer_range": 0.2,
}
LENGTHS = [30, 1, 5, 30, 17]


def make_model(implementation="sdpa", **options):
    torch.manual_seed(0)
    return MMBertModel(MMBertConfig(**{**SIZES, **options}, attn_implementation=implementation)).eval()


def packed_inputs(lengths=LENGTHS):
    generator = torch.Generator().manual_seed(1)
    input_ids = torch.randint(5, 120, (1, sum(lengths)), generator=generator)
    return {"input_ids": input_ids, "position_ids": torch.cat([torch.arange(length) for length in lengths])[None]}


def padded_inputs(lengths=LENGTHS):
    generator = torch.Generator().manual_seed(2)
    input_ids = torch.randint(5, 120, (len(lengths), max(lengths)), generator=generator)
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    return {"input_ids": input_ids, "attention_mask": mask}


def bounds_inputs(lengths=LENGTHS):
    bounds = torch.tensor([0, *lengths]).cumsum(0)  # int64, as a caller may well give them
    return {"input_ids": packed_inputs(lengths)["input_ids"], "cu_seq_lens_q": bounds, "max_length_q": max(lengths)}


LAYOUTS = {"packed": packed_inputs, "padded": padded_inputs, "bounds": bounds_inputs}


def with_a_gap():
    inputs = padded_inputs()
    inputs["attention_mask"][0, 10:13] = 0
    return inputs


def gradients(model, inputs):
    """Of a fixed random direction of the output, by name."""
    model.zero_grad()
    output = model(**inputs).last_hidden_state
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(3), dtype=output.dtype)
    (output * weights).mean().backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.fixture
def notices(monkeypatch):
    """What is said once, from a fresh start."""
    logger = packed.logger
    said = []
    type(logger).warning_once.cache_clear()
    monkeypatch.setattr(logger, "warning", lambda text, *_, **__: said.append(text))
    yield said
    type(logger).warning_once.cache_clear()


# The choice


def choose(implementation="sdpa", device=CPU, dtype=torch.float32, dropout=0.0, documents=None, **options):
    config = MMBertConfig(**{**SIZES, **options}, attn_implementation=implementation)
    return choose_kernel(config, device, dtype, documents or find_documents((2, 8)), dropout=dropout)


@pytest.fixture
def card(monkeypatch):
    """A card that PyTorch is told of; nothing runs on it."""
    capability = [8, 0]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: tuple(capability))
    return capability


def test_on_a_cpu_sdpa_is_block_local():
    assert choose("sdpa") == BLOCK_LOCAL
    assert choose("sdpa", dtype=torch.bfloat16) == BLOCK_LOCAL


def test_block_local_is_taken_anywhere(card):
    assert choose(BLOCK_LOCAL) == BLOCK_LOCAL
    assert choose(BLOCK_LOCAL, CUDA, torch.bfloat16) == BLOCK_LOCAL


@pytest.mark.parametrize("implementation", ["sdpa", TORCH_VARLEN])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_on_a_card_in_half_precision_sdpa_is_torch_varlen(card, implementation, dtype):
    assert choose(implementation, CUDA, dtype) == TORCH_VARLEN
    card[:] = 9, 0
    assert choose(implementation, CUDA, dtype) == TORCH_VARLEN


LACKING = [
    ({"device": CPU}, "a CUDA device (the model is on cpu)"),
    ({"dtype": torch.float32}, "float16 or bfloat16 (queries are torch.float32; load with dtype=torch.bfloat16"),
    ({"capability": (7, 5)}, "a card of compute capability 8.0 or more"),
    ({"hidden_size": 48}, "a head size that is a multiple of 8 and at most 256 (it is 12)"),
    ({"hidden_size": 4 * 264}, "a head size that is a multiple of 8 and at most 256 (it is 264)"),
    ({"dropout": 0.1}, "attention_dropout=0"),
    ({"has_windows": False}, "PyTorch with windows in torch.nn.attention.varlen"),
]


@pytest.mark.parametrize(("given", "reason"), LACKING)
def test_without_what_it_needs_torch_varlen_is_refused_and_sdpa_is_block_local(card, monkeypatch, given, reason):
    arguments = {"device": CUDA, "dtype": torch.bfloat16, **given}
    card[:] = arguments.pop("capability", card)
    has_windows = arguments.pop("has_windows", True)
    monkeypatch.setattr(packed, "_varlen_has_windows", lambda: has_windows)
    assert choose("sdpa", **arguments) == BLOCK_LOCAL
    with pytest.raises(ValueError, match="use 'sdpa', which takes the best kernel") as refused:
        choose(TORCH_VARLEN, **arguments)
    assert f"attn_implementation is 'torch_varlen', which needs {reason}" in str(refused.value)


def test_a_model_refuses_torch_varlen_on_a_cpu():
    with pytest.raises(ValueError, match=r"needs a CUDA device \(the model is on cpu\)"):
        make_model(TORCH_VARLEN)(**padded_inputs())


@pytest.mark.parametrize("name", ["flash_attention_2", "flash_attention_3", "kernels-community/flash-attn2"])
def test_flash_attention_is_passed_on_by_its_name(name, monkeypatch):
    config = MMBertConfig(**SIZES)
    config._attn_implementation = name
    assert choose_kernel(config, CUDA, torch.bfloat16, find_documents((2, 8)), dropout=0.1) == name
    assert packed.runs_packed(name)


@pytest.mark.parametrize("name", ["eager", "flex_attention", "somebody_elses"])
def test_others_run_on_padded_rows(name):
    assert not packed.runs_packed(name)


def test_the_installed_torch_has_windows():
    parameters = inspect.signature(varlen.varlen_attn).parameters
    assert packed._varlen_has_windows() == ("window_size" in parameters)


@pytest.mark.parametrize("implementation", ["sdpa", TORCH_VARLEN, "flash_attention_2"])
def test_padding_inside_a_document_goes_to_block_local_with_one_notice(card, notices, implementation):
    config = MMBertConfig(**SIZES)
    config._attn_implementation = implementation
    kernel = TORCH_VARLEN if implementation == "sdpa" else implementation
    gaps = find_documents((5, 30), attention_mask=with_a_gap()["attention_mask"])
    none = find_documents((5, 30), attention_mask=padded_inputs()["attention_mask"])
    for documents, expected in ((none, kernel), (gaps, BLOCK_LOCAL), (gaps, BLOCK_LOCAL), (none, kernel)):
        assert choose_kernel(config, CUDA, torch.bfloat16, documents, dropout=0.0) == expected
    assert len(notices) == 1
    assert f"attention {kernel!r} cannot tell padding inside a document" in notices[0]


def test_on_a_cpu_padding_inside_needs_no_notice(notices):
    gaps = find_documents((5, 30), attention_mask=with_a_gap()["attention_mask"])
    assert choose("sdpa", documents=gaps) == BLOCK_LOCAL
    assert notices == []


def test_documents_that_are_not_sorted_run_on_block_local_too(notices):
    """Other kernels leave documents in the order of the batch; one with gaps comes to this one as it is."""
    AttentionInterface.register("never_flash", lambda *_, **__: pytest.fail("called"))
    model, inputs = make_model(), with_a_gap()
    expected, expected_gradients = model(**inputs).last_hidden_state, gradients(model, inputs)
    model.config._attn_implementation = "never_flash"
    torch.testing.assert_close(model(**inputs).last_hidden_state, expected, rtol=0, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).last_hidden_state, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(gradients(model, inputs), expected_gradients, rtol=1e-4, atol=1e-6)
    assert len(notices) == 1


# Global attention by groups


@pytest.mark.parametrize("groups", [[(3, 7)], [(2, 1), (1, 4), (3, 9)], [(1, 5)]])
def test_groups_equal_separate_calls(groups):
    tokens = sum(number * length for number, length in groups)
    qkv = torch.randn(tokens, 3, 2, 8, generator=torch.Generator().manual_seed(0))
    mixed = grouped_attention(qkv, groups, scaling=0.4)
    start = 0
    for number, length in groups:
        for _ in range(number):
            query, key, value = qkv[start : start + length].permute(1, 2, 0, 3)[:, None]
            alone = F.scaled_dot_product_attention(query, key, value, scale=0.4)
            torch.testing.assert_close(mixed[start : start + length], alone[0].transpose(0, 1), rtol=0, atol=1e-6)
            start += length
    assert start == tokens == len(mixed)


def test_gradients_of_groups_are_those_of_finite_differences():
    qkv = torch.randn(7, 3, 1, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: grouped_attention(x, [(2, 1), (1, 5)], scaling=0.7), qkv)


def test_groups_hold_no_mask(monkeypatch):
    """Each group is one call over its documents as a batch, views of the packed row, without a mask."""
    calls = []
    attention = F.scaled_dot_product_attention

    def spy(query, key, value, *masks, **options):
        assert not masks
        assert options == {"dropout_p": 0.0, "scale": 0.4}
        calls.append((tuple(query.shape), {part.untyped_storage().data_ptr() for part in (query, key, value)}))
        return attention(query, key, value, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    qkv = torch.randn(22, 3, 2, 8)
    grouped_attention(qkv, [(2, 3), (4, 4)], scaling=0.4)
    assert calls == [((2, 2, 3, 8), {qkv.data_ptr()}), ((4, 2, 4, 8), {qkv.data_ptr()})]


# What the variable-length kernel of torch is given


class Varlen:
    """The definition of variable-length attention, in float64, in place of the kernel; counts its calls."""

    def __init__(self):
        self.windows = []

    def __call__(self, query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale=None, window_size=(-1, -1)):
        assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
        assert torch.equal(cu_seq_q, cu_seq_k)
        assert cu_seq_q[0] == 0
        assert cu_seq_q[-1] == len(query)
        assert isinstance(max_q, int)
        assert max_q == max_k == cu_seq_q.diff().max()
        self.windows.append(window_size)
        before, after = window_size
        mixed = []
        for start, end in zip(cu_seq_q.tolist(), cu_seq_q.tolist()[1:], strict=False):
            ahead = torch.arange(end - start) - torch.arange(end - start)[:, None]
            hidden = ((before >= 0) & (-ahead > before)) | ((after >= 0) & (ahead > after))
            parts = (part[start:end].double().transpose(0, 1) for part in (query, key, value))
            q, k, v = parts
            scores = (q @ k.transpose(1, 2) * scale).masked_fill(hidden, -torch.inf)
            mixed.append((scores.softmax(dim=-1) @ v).transpose(0, 1))
        return torch.cat(mixed).to(query.dtype)


@pytest.fixture
def reference(monkeypatch):
    """The definition in place of the kernel, and the choice forced, since both want a card."""
    own = inspect.signature(Varlen()).parameters
    real = inspect.signature(varlen.varlen_attn).parameters
    for name, parameter in own.items():
        assert (real[name].kind, real[name].default) == (parameter.kind, parameter.default)
    required = {name for name, parameter in real.items() if parameter.default is parameter.empty}
    assert required <= set(own)
    monkeypatch.setattr(encoder, "choose_kernel", lambda *_, **__: TORCH_VARLEN)
    kernel = Varlen()
    monkeypatch.setattr(varlen, "varlen_attn", kernel)
    return kernel


@pytest.mark.parametrize("implementation", ["sdpa", TORCH_VARLEN])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_torch_varlen_gets_what_gives_the_right_numbers(reference, layout, implementation):
    inputs = LAYOUTS[layout]()
    expected_model, model = make_model("eager").double(), make_model(implementation).double()
    expected = expected_model(**inputs).last_hidden_state
    real = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"])).bool()
    for recorded in (True, False):
        with torch.set_grad_enabled(recorded):
            output = model(**inputs).last_hidden_state
        torch.testing.assert_close(output[real], expected[real], rtol=0, atol=1e-9)
    assert reference.windows == 2 * [(-1, -1), (8, 8), (8, 8), (-1, -1)]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_through_torch_varlen(reference, layout):
    inputs = LAYOUTS[layout]()
    if layout == "padded":  # what stands at padding is each path's own, and so would be its gradient
        inputs = {"input_ids": inputs["input_ids"]}
    expected, got = (gradients(make_model(name).double(), inputs) for name in ("eager", "sdpa"))
    assert len(reference.windows) == 4
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-9)


def test_a_document_that_fits_into_a_window_keeps_it_for_the_kernel(reference):
    make_model()(**packed_inputs([3, 4]))
    assert reference.windows == [(-1, -1), (8, 8), (8, 8), (-1, -1)]


# What a forward makes once


@contextmanager
def counted(monkeypatch, module, name):
    calls = []
    original = getattr(module, name)
    with monkeypatch.context() as patch:
        patch.setattr(module, name, lambda *args, **kwargs: (calls.append(1), original(*args, **kwargs))[1])
        yield calls


@pytest.mark.parametrize("recorded", [True, False], ids=["training", "inference"])
def test_one_mask_for_all_local_layers(monkeypatch, recorded):
    model = make_model(num_hidden_layers=6)
    with torch.set_grad_enabled(recorded), counted(monkeypatch, packed, "block_mask") as masks:
        model(**packed_inputs())
        assert len(masks) == 1
        model(**packed_inputs())
        assert len(masks) == 2


def test_one_buffer_for_all_layers_without_gradients(monkeypatch):
    model = make_model(num_hidden_layers=6)
    with (
        counted(monkeypatch, packed, "empty_buffer") as shared,
        counted(monkeypatch, block_local, "empty_buffer") as own,
    ):
        with torch.no_grad():
            model(**packed_inputs())
        assert (len(shared), len(own)) == (1, 0)
        model(**packed_inputs())
        assert (len(shared), len(own)) == (1, 4)  # kept for the gradients, one a local layer


def test_documents_within_a_window_need_no_mask(monkeypatch):
    with counted(monkeypatch, packed, "block_mask") as masks:
        make_model()(**packed_inputs([9, 3]))
        assert masks == []
        make_model()(**packed_inputs([10, 3]))
        assert masks == [1]


# The short way


@pytest.fixture
def fuses():
    if not packed.fused_linear.__globals__["_is_built_in"]():
        pytest.skip("the short way is oneDNN's, which PyTorch has on x86 alone")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("piece", [1024, 16, 7])
def test_without_gradients_the_numbers_are_the_same(fuses, monkeypatch, layout, piece):
    monkeypatch.setattr(packed, "PIECE_TOKENS", piece)
    model, inputs = make_model(attention_bias=True), LAYOUTS[layout]()
    with torch.no_grad():
        for layer in model.layers:
            nn.init.normal_(layer.attn.Wqkv.bias, std=0.5)
    recorded = model(**inputs).last_hidden_state
    with torch.no_grad(), counted(monkeypatch, PackedRows, "project_and_attend") as calls:
        short = model(**inputs).last_hidden_state
    assert len(calls) == 4
    torch.testing.assert_close(short, recorded, rtol=0, atol=2e-5)


@pytest.mark.skipif(not takes_bfloat16(), reason="this processor has no arithmetic in bfloat16")
def test_bfloat16_without_gradients(fuses, monkeypatch):
    """As near to the exact numbers as with gradients."""
    exact, model = make_model(), make_model().bfloat16()
    exact.load_state_dict(model.state_dict())
    inputs = padded_inputs()
    reference, recorded = exact(**inputs).last_hidden_state, model(**inputs).last_hidden_state
    with torch.no_grad(), counted(monkeypatch, PackedRows, "project_and_attend") as calls:
        short = model(**inputs).last_hidden_state
    assert len(calls) == 4
    errors = [(output.float() - reference).square().mean().sqrt().item() for output in (short, recorded)]
    assert 0 < errors[0] < 1.5 * errors[1]


def test_hooks_on_the_projection_are_called_without_gradients():
    model, inputs = make_model(), padded_inputs()
    with torch.no_grad():
        before = model(**inputs).last_hidden_state
        calls = []
        handle = model.layers[1].attn.Wqkv.register_forward_hook(lambda *_: calls.append(1))
        watched = model(**inputs).last_hidden_state
        handle.remove()
        model.layers[1].attn.Wqkv.register_forward_hook(lambda _, __, output: 2 * output)
        changed = model(**inputs).last_hidden_state
    assert calls == [1]
    torch.testing.assert_close(watched, before, rtol=0, atol=2e-5)
    assert not torch.allclose(changed, before, atol=1e-2)


class WithAdapter(nn.Module):
    """A projection with a low-rank addition; it shows its weight, as adapters do."""

    def __init__(self, base):
        super().__init__()
        self.base = base
        self.down = nn.Linear(base.in_features, 2, bias=False)
        self.up = nn.Linear(2, base.out_features, bias=False)
        self.calls = 0

    @property
    def weight(self):
        return self.base.weight

    @property
    def bias(self):
        return self.base.bias

    def forward(self, inputs):
        self.calls += 1
        return self.base(inputs) + self.up(self.down(inputs))


@pytest.mark.parametrize("place", ["attn.Wqkv", "attn.Wo", "mlp.Wi", "mlp.Wo"])
def test_adapters_in_place_of_a_projection_are_called(place):
    model, inputs = make_model(), padded_inputs()
    parent = model.layers[1].get_submodule(place.split(".")[0])
    name = place.split(".")[1]
    adapter = WithAdapter(getattr(parent, name))
    setattr(parent, name, adapter)
    recorded = model(**inputs).last_hidden_state
    with torch.no_grad():
        output = model(**inputs).last_hidden_state
    assert adapter.calls == 2
    torch.testing.assert_close(output, recorded, rtol=0, atol=2e-5)
    merged = make_model()
    with torch.no_grad():
        layer = merged.layers[1].get_submodule(place)
        layer.weight += adapter.up.weight @ adapter.down.weight
        torch.testing.assert_close(output, merged(**inputs).last_hidden_state, rtol=0, atol=5e-5)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_drops_the_same_attention_weights_again(reentrant):
    """What the backward pass recomputes is what the forward pass gave, dropout included."""
    options = {"attention_dropout": 0.5, "attention_output_dropout": 0.0, "local_attention": 96}
    model = make_model(**options).train()
    outputs = []
    for layer in model.layers:
        layer.attn.register_forward_hook(lambda module, _, output: outputs.append((module.layer_idx, output[0])))
    enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
    enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    torch.manual_seed(0)
    model(**packed_inputs([150, 60, 7])).last_hidden_state.square().sum().backward()
    first, again = outputs[:4], sorted(outputs[4:], key=lambda entry: entry[0])
    assert [index for index, _ in first] == [index for index, _ in again] == [0, 1, 2, 3]
    for (index, one), (_, other) in zip(first, again, strict=True):
        torch.testing.assert_close(
            one, other, rtol=0, atol=1e-5, msg=lambda text, index=index: f"layer {index}: {text}"
        )


def test_no_tokens():
    for implementation in ("sdpa", BLOCK_LOCAL):
        model = make_model(implementation)
        with torch.no_grad():
            output = model(torch.zeros(2, 3, dtype=torch.int64), attention_mask=torch.zeros(2, 3)).last_hidden_state
        assert (output == 0).all()


# Moving


def test_rows_moved_to_a_device_leave_what_was_made_there():
    documents = find_documents((1, 40))
    angles = torch.zeros(40, 8)
    rows = PackedRows(
        documents, BLOCK_LOCAL, {"sliding_attention": (angles, angles), "full_attention": (angles, angles)}
    )
    module = MMBertAttention(MMBertConfig(**SIZES), 1).eval()
    with torch.no_grad():
        module(torch.randn(40, 64), rows)
    assert rows._block_masks
    assert rows.to("cpu") is rows
    moved = rows.to("meta")
    assert moved.documents.positions.device.type == "meta"
    assert {part.device.type for pair in moved.rotations.values() for part in pair} == {"meta"}
    assert not moved._block_masks
    assert not moved._buffers
    assert moved.kernel == rows.kernel
