"""Local layers need memory that grows with the length of a row, not with its square, and packed rows likewise.

Every tensor that an operator returns is recorded, forward and backward; nothing is timed or sampled.
"""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mmbert_hf.configuration import MMBertConfig
from mmbert_hf.modeling import MMBertModel

LENGTH = 8192
HIDDEN = 384
# The layer of mmBERT-small, under a small vocabulary.
SMALL = {"vocab_size": 64, "hidden_size": HIDDEN, "intermediate_size": 1152, "num_attention_heads": 6}


class Allocations(TorchDispatchMode):
    """Records the storage behind every tensor that an operator returns; views add nothing."""

    def __init__(self):
        super().__init__()
        self.largest_elements = 0
        self.largest_operator = ""
        self.total_bytes = 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        known = {leaf.untyped_storage().data_ptr() for leaf in tree_leaves((args, kwargs)) if torch.is_tensor(leaf)}
        returned = operator(*args, **kwargs)
        for leaf in tree_leaves(returned):
            if torch.is_tensor(leaf) and leaf.untyped_storage().data_ptr() not in known:
                size_bytes = leaf.untyped_storage().nbytes()
                self.total_bytes += size_bytes
                elements = size_bytes // leaf.itemsize
                if elements > self.largest_elements:
                    self.largest_elements, self.largest_operator = elements, str(operator)
        return returned


def make_model(*layer_types):
    torch.manual_seed(0)
    config = MMBertConfig(
        **SMALL, num_hidden_layers=len(layer_types), layer_types=list(layer_types), attn_implementation="sdpa"
    )
    return MMBertModel(config)


def run(model, length, backward, **arguments):
    """Forward, and backward if asked, over one row; returns what was allocated."""
    input_ids = torch.randint(5, 64, (1, length), generator=torch.Generator().manual_seed(0))
    with torch.set_grad_enabled(backward), Allocations() as allocations:
        output = model(input_ids, **arguments).last_hidden_state
        if backward:
            output.backward(torch.ones_like(output))
    return allocations


def test_the_record_sees_a_square_mask():
    with Allocations() as allocations:
        places = torch.arange(1000)
        ((places[:, None] - places).abs() <= 64)[None].expand(8, -1, -1)
    assert allocations.largest_elements == 1000**2
    assert allocations.total_bytes == 8 * 1000 + 2 * 8 * 1000**2 + 1000**2


@pytest.mark.parametrize("backward", [False, True], ids=["inference", "training"])
def test_a_local_layer_holds_no_square(backward):
    allocations = run(make_model("sliding_attention"), LENGTH, backward)
    # The widest activation is the gated feed-forward's: L x 6 E, 19 million elements. A mask has 67 million.
    limit = 2 * LENGTH * 3 * HIDDEN
    assert limit < LENGTH**2 / 3
    assert allocations.largest_elements <= limit, allocations.largest_operator


@pytest.mark.parametrize("backward", [False, True], ids=["inference", "training"])
def test_memory_of_a_local_layer_is_linear(backward):
    model = make_model("sliding_attention")
    half, whole = (run(model, length, backward) for length in (LENGTH // 4, LENGTH // 2))
    assert whole.total_bytes <= 2.05 * half.total_bytes
    assert whole.largest_elements <= 2.05 * half.largest_elements


@pytest.mark.parametrize("told_by", ["bounds", "positions"])
def test_packed_rows_hold_no_square(told_by):
    """Global layers too: 32 documents of 128 tokens need twice what 16 need, and no mask over the whole row."""
    model = make_model("full_attention", "sliding_attention")
    allocations = []
    for count in (16, 32):
        bounds = torch.arange(count + 1, dtype=torch.int32) * 128
        arguments = {"position_ids": torch.arange(128).repeat(count)[None]}
        if told_by == "bounds":
            arguments = {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds, "max_length_q": 128, "max_length_k": 128}
        allocations.append(run(model, 128 * count, False, **arguments))
    half, whole = allocations
    assert whole.total_bytes <= 2.05 * half.total_bytes
    assert whole.largest_elements <= 2.05 * half.largest_elements
