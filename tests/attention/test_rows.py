"""What the layers of one forward share: tables of angles, buffers, and the way to another device."""

import pytest
import torch
from accelerate.utils import send_to_device

from mmbert_hf import MMBertConfig, MMBertModel

SIZES = {
    "vocab_size": 120,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "local_attention": 16,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,
}


def rows_of_first_layer(model: MMBertModel, ids: torch.Tensor, **inputs: torch.Tensor):
    """What the model hands to its first layer beside the hidden states."""
    seen = []
    with model.layers[0].register_forward_hook(lambda _, inputs, __: seen.append(inputs[1])):
        model(ids, **inputs)
    (rows,) = seen
    return rows


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_rows_move_between_devices_once(implementation):
    """As accelerate does where layers lie on several devices."""
    model = MMBertModel(MMBertConfig(**SIZES, attn_implementation=implementation)).eval()
    ids = torch.randint(5, 90, (2, 40))
    rows = rows_of_first_layer(model, ids, attention_mask=torch.ones_like(ids).tril(30))
    first, again = (send_to_device(rows, "meta") for _ in range(2))
    assert all(table.is_meta for pair in first.rotations.values() for table in pair)
    if implementation == "sdpa":
        assert first is again
        assert first.documents.cu_seqlens.is_meta
        assert send_to_device(rows, "cpu") is rows
    else:
        assert all(mask.is_meta for mask in first.masks.values())


def test_both_kinds_of_layer_share_one_table_of_angles_if_their_bases_agree():
    for local_theta, is_shared in ((160_000, True), (10_000, False)):
        model = MMBertModel(MMBertConfig(**SIZES, local_rope_theta=local_theta))
        tables = rows_of_first_layer(model, torch.randint(5, 90, (1, 40))).rotations
        assert (tables["full_attention"][0] is tables["sliding_attention"][0]) == is_shared


def test_layers_of_different_mode_do_not_share_a_buffer():
    model = MMBertModel(MMBertConfig(**{**SIZES, "local_attention": 64})).eval()
    ids = torch.randint(5, 90, (1, 90))
    expected = model(ids).last_hidden_state
    for index, layer in enumerate(model.layers):
        layer.train(index % 2 == 1)
    with torch.no_grad():
        torch.testing.assert_close(model(ids).last_hidden_state, expected, rtol=0, atol=1e-5)
