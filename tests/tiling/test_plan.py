import doctest

import pytest
from transformers import ModernBertConfig

from mmbert_hf import MMBertConfig
from mmbert_hf.configuration import GLOBAL, LOCAL
from mmbert_hf.tiling import plan as tiling_plan
from mmbert_hf.tiling.plan import check_fit, place_layers, tiled_index, widened_config


def test_docstring_examples():
    result = doctest.testmod(tiling_plan)
    assert result.attempted >= 5
    assert result.failed == 0


def test_centre_tiling_of_the_released_widths():
    index = tiled_index(384, 768, "center").tolist()
    assert index[192 : 192 + 384] == list(range(384))
    assert index[:192] == list(range(192, 384))
    assert index[576:] == list(range(192))


@pytest.mark.parametrize("num_layers", [22, 28, 44])
def test_placement_keeps_order_and_kind_and_spreads(num_layers):
    narrow = MMBertConfig.base().layer_types
    wide = MMBertConfig.base(num_hidden_layers=num_layers).layer_types
    placed = place_layers(narrow, wide)
    where = [index for index, layer in enumerate(placed) if layer is not None]
    assert [placed[index] for index in where] == list(range(22))
    assert [wide[index] for index in where] == narrow
    assert where[0] == 0
    spread = [layer * (num_layers - 1) / 21 for layer in range(22)]
    assert max(abs(index - even) for index, even in zip(where, spread, strict=True)) <= 3


def test_the_placement_is_the_best_of_all():
    from itertools import combinations

    g, l = GLOBAL, LOCAL  # noqa: E741
    narrow, wide = [g, l, l, g, l], [g, l, l, g, l, l, g, l, l, g, l]

    def cost(where):
        return sum((index - layer * 10 / 4) ** 2 for layer, index in enumerate(where))

    possible = [where for where in combinations(range(11), 5) if where[0] == 0 and [wide[i] for i in where] == narrow]
    assert len(possible) > 5
    placed = place_layers(narrow, wide)
    assert cost([index for index, layer in enumerate(placed) if layer is not None]) == min(map(cost, possible))


@pytest.mark.parametrize(
    ("narrow", "wide"), [([GLOBAL, LOCAL], [GLOBAL]), ([GLOBAL], [LOCAL, GLOBAL]), ([GLOBAL, LOCAL], [GLOBAL] * 3)]
)
def test_layers_that_cannot_be_placed(narrow, wide):
    with pytest.raises(ValueError, match="do not fit in order"):
        place_layers(narrow, wide)


def test_a_wider_configuration_keeps_everything_else():
    narrow = MMBertConfig.small(local_rope_theta=10_000, layer_types=[GLOBAL, LOCAL] * 3, num_hidden_layers=6)
    wide = widened_config(narrow, hidden_size=768, num_hidden_layers=8)
    assert wide.layer_types == [GLOBAL, LOCAL] * 4
    assert (wide.num_attention_heads, wide.intermediate_size, wide.local_rope_theta) == (12, 1152, 10_000)
    assert (narrow.hidden_size, narrow.num_hidden_layers) == (384, 6)
    assert widened_config(ModernBertConfig(), hidden_size=1024).num_attention_heads == 16


def test_configurations_that_cannot_be_widened():
    with pytest.raises(ValueError, match="hidden_size 800 is not a multiple of 64"):
        widened_config(MMBertConfig.small(), hidden_size=800)
    irregular = MMBertConfig.small(layer_types=[GLOBAL, LOCAL, GLOBAL, GLOBAL], num_hidden_layers=4)
    with pytest.raises(ValueError, match="pass a configuration with layer_types"):
        widened_config(irregular, num_hidden_layers=6)
    assert widened_config(irregular, hidden_size=768).layer_types == irregular.layer_types


@pytest.mark.parametrize(
    ("method", "changes", "message"),
    [
        ("shear", {}, "it must be one of 'center', 'tile', 'duplicate'"),
        ("center", {"vocab_size": 1000}, "vocab_size is 256000 in the narrow model and 1000 in the wide one"),
        ("center", {"norm_bias": True}, "norm_bias is False"),
        ("center", {"hidden_size": 768}, r"heads have size 64 .* and 128 .* set num_attention_heads to 768 / 64"),
        ("tile", {"intermediate_size": 576}, "intermediate_size is 576 in the wide model and 1152"),
        ("duplicate", {"intermediate_size": 1536}, "1536 is not a multiple of 1152; .* use 1152 or 2304"),
        ("duplicate", {"local_rope_theta": 10_000.0}, "rope_parameters is .* needs it equal"),
        ("duplicate", {"local_attention": 64}, "local_attention is 128"),
    ],
)
def test_what_does_not_fit_is_named(method, changes, message):
    with pytest.raises(ValueError, match=message):
        check_fit(MMBertConfig.small(), MMBertConfig.small(**changes), method)
    if "rope" in message:  # another base is no matter where nothing is promised
        check_fit(MMBertConfig.small(), MMBertConfig.small(**changes), "center")
