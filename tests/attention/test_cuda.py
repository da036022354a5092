"""On a CUDA card, every kernel in bfloat16 gives what float32 gives on a CPU, as nearly as bfloat16 does there."""

import pytest
import torch
from torch.nn.attention import varlen
from transformers.utils import is_flash_attn_2_available

from mmbert_hf.attention import packed
from mmbert_hf.attention.documents import find_documents
from mmbert_hf.attention.packed import BLOCK_LOCAL, TORCH_VARLEN, choose_kernel
from mmbert_hf.configuration import MMBertConfig
from mmbert_hf.modeling import MMBertForMaskedLM

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card")

CUDA = torch.device("cuda")
LENGTHS = [1, 300, 64, 129, 64]
SIZES = {
    "vocab_size": 120,
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "local_attention": 128,
    "initializer_range": 0.1,
}


def has_varlen():
    """Whether PyTorch's variable-length attention, with windows, runs on this card."""
    return packed._varlen_has_windows() and torch.cuda.get_device_capability() >= (8, 0)


@pytest.fixture(params=["sdpa", BLOCK_LOCAL, TORCH_VARLEN, "flash_attention_2"])
def implementation(request):
    if request.param == TORCH_VARLEN and not has_varlen():
        pytest.skip("needs a card of compute capability 8.0 and PyTorch with windows in varlen_attn")
    if request.param == "flash_attention_2" and not is_flash_attn_2_available():
        pytest.skip("needs the flash-attn package")
    return request.param


def make_model(implementation="sdpa"):
    torch.manual_seed(0)
    return MMBertForMaskedLM(MMBertConfig(**SIZES, attn_implementation=implementation)).bfloat16().eval()


def padded_batch():
    """One document a row, padded right."""
    generator = torch.Generator().manual_seed(1)
    input_ids = torch.randint(5, 120, (len(LENGTHS), max(LENGTHS)), generator=generator)
    mask = (torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]).long()
    return {"input_ids": input_ids, "attention_mask": mask, "labels": input_ids.masked_fill(mask == 0, -100)}


def packed_batch():
    """All documents in one row, told apart by bounds."""
    ids = torch.randint(5, 120, (1, sum(LENGTHS)), generator=torch.Generator().manual_seed(1))
    bounds = torch.tensor([0, *LENGTHS]).cumsum(0).int()
    names = {
        "cu_seq_lens_q": bounds,
        "cu_seq_lens_k": bounds,
        "max_length_q": max(LENGTHS),
        "max_length_k": max(LENGTHS),
    }
    return {"input_ids": ids, "labels": ids, **names}


def restarting_batch():
    """The same, told apart by positions."""
    batch = packed_batch()
    positions = torch.cat([torch.arange(length) for length in LENGTHS])[None]
    return {"input_ids": batch["input_ids"], "labels": batch["labels"], "position_ids": positions}


def batch_with_holes():
    """Padding inside documents, which only `block_local` can tell."""
    batch = padded_batch()
    batch["attention_mask"][:, 40:55] = 0
    batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    return batch


BATCHES = [padded_batch, packed_batch, restarting_batch, batch_with_holes]


def run(model, batch, device="cpu"):
    """Output at real tokens, loss, and gradients, on the CPU in float32."""
    model.to(device).zero_grad()
    batch = {name: value.to(device) if torch.is_tensor(value) else value for name, value in batch.items()}
    output = model(**batch, output_hidden_states=True)
    output.loss.backward()
    real = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).bool()
    results = {"last hidden state": output.hidden_states[-1][real].detach()}
    results |= {name: parameter.grad for name, parameter in model.named_parameters()}
    return {name: value.float().cpu() for name, value in results.items()}


def error(got, expected):
    return ((got - expected).square().mean() / expected.square().mean()).sqrt().item()


@pytest.mark.parametrize("make_batch", BATCHES, ids=lambda make_batch: make_batch.__name__)
def test_outputs_and_gradients(implementation, make_batch):
    batch = make_batch()
    reference = run(make_model().float(), batch)  # the same weights, those of bfloat16
    own = run(make_model(), batch)
    got = run(make_model(implementation), batch, CUDA)
    for name, expected in reference.items():
        assert 1e-4 < error(own[name], expected) < 0.2, name
        assert error(got[name], expected) < 1.5 * error(own[name], expected), name


@pytest.mark.parametrize("make_batch", BATCHES, ids=lambda make_batch: make_batch.__name__)
def test_float32(make_batch):
    """On `block_local`, since the other kernels take half precision alone; also without gradients."""
    batch = make_batch()
    model = make_model().float()
    reference = run(model, batch)
    got = run(model, batch, CUDA)
    for name, expected in reference.items():
        assert error(got[name], expected) < 1e-4, name
    real = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).bool()
    moved = {name: value.to(CUDA) if torch.is_tensor(value) else value for name, value in batch.items()}
    with torch.no_grad():
        hidden = model(**moved, output_hidden_states=True).hidden_states[-1].cpu()
    assert error(hidden[real], reference["last hidden state"]) < 1e-4


def test_sdpa_is_torch_varlen_here(monkeypatch):
    if not has_varlen():
        pytest.skip("needs a card of compute capability 8.0 and PyTorch with windows in varlen_attn")
    windows = []
    kernel = varlen.varlen_attn
    monkeypatch.setattr(
        varlen,
        "varlen_attn",
        lambda *args, **kwargs: (windows.append(kwargs["window_size"]), kernel(*args, **kwargs))[1],
    )
    model = make_model("sdpa")
    documents = find_documents((2, 8), device=CUDA)
    assert choose_kernel(model.config, CUDA, torch.bfloat16, documents, dropout=0.0) == TORCH_VARLEN
    assert choose_kernel(model.config, CUDA, torch.float32, documents, dropout=0.0) == BLOCK_LOCAL
    run(model, padded_batch(), CUDA)
    assert windows == [(-1, -1), (64, 64), (64, 64), (-1, -1)]
    run(model, batch_with_holes(), CUDA)
    assert len(windows) == 4
    with torch.no_grad(), torch.autocast("cuda", dtype=torch.bfloat16):
        make_model("sdpa").float().to(CUDA)(padded_batch()["input_ids"].to(CUDA))
    assert len(windows) == 8
