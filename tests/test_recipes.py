import doctest
import math

import pytest

from mmbert_hf import recipes
from mmbert_hf.presets import get_preset
from mmbert_hf.recipes import Phase, Recipe


def test_docstring_examples():
    result = doctest.testmod(recipes)
    assert result.attempted >= 6
    assert result.failed == 0


def make_phases(**decay):
    values = {"languages": ["eng", "fao"], "language_temperature": 0.3, "mask_ratio": 0.05, "max_length": 64} | decay
    return [Phase("pretrain", 0.7, ["eng"], 0.7, 0.30, max_length=32), Phase("decay", 0.3, **values)]


def test_recipe_switches_at_its_boundary_and_nowhere_else():
    recipe = Recipe(make_phases())
    for total in (10, 37, 1000, 12345):
        _, first = recipe.first_steps(total)
        assert recipe.at((first - 1) / total).name == "pretrain"
        assert recipe.at(first / total).name == "decay"
        assert recipe.mask_ratio.at((first - 1) / total) == 0.30
        assert recipe.mask_ratio.at(first / total) == 0.05
    assert recipe.languages.at(1.0) == ["eng", "fao"]
    assert recipe.max_length.at(0.0) == 32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"languages": ["fao"]}, "drops eng"),
        ({"max_length": 16}, "max_length falls from 32 to 16"),
        ({"mask_ratio": 0.4}, r"mask_ratio rises from 0.3 to 0.4"),
        ({"language_temperature": 0.9}, r"language_temperature rises from 0.7 to 0.9"),
        ({"mask_ratio": 1.4}, r"mask_ratio must be a number in \[0, 1\], got 1.4"),
        ({"language_temperature": -0.1}, r"language_temperature must be a number in \[0, 1\], got -0.1"),
        ({"language_temperature": math.nan}, "got nan"),
        ({"languages": []}, "has no languages"),
        ({"max_length": 2}, "max_length must be at least 3"),
    ],
)
def test_recipe_refuses_phases_that_do_not_grow(change, message):
    with pytest.raises(ValueError, match=message):
        Recipe(make_phases(**change))


def test_recipe_refuses_shares_that_do_not_sum_to_one():
    with pytest.raises(ValueError, match=r"sum to 1, got 0\.5"):
        Recipe([Phase("only", 0.5, ["eng"], 0.7, 0.3)])
    with pytest.raises(ValueError, match="at least one phase"):
        Recipe([])


def test_all_languages_may_follow_some_but_not_the_other_way_round():
    assert Recipe(make_phases(languages=None)).languages.at(1.0) is None
    first, second = make_phases()
    with pytest.raises(ValueError, match="names languages while 'decay' has all"):
        Recipe([Phase("decay", 0.5, None, 0.7, 0.3), Phase("late", 0.5, ["eng"], 0.3, 0.05)])
    assert Recipe([first, second]).with_languages([["eng"], None]).phases[1].languages is None


def test_scaling_changes_the_tokens_alone():
    recipe = get_preset("mmbert-small-paper").recipe
    scaled = recipe.scaled_to(1_000_000)
    assert scaled.total_tokens == 1_000_000
    assert scaled.phases == recipe.phases


def test_only_keeps_the_tokens_of_the_phases_that_are_left():
    recipe = get_preset("mmbert-base-paper").recipe
    late = recipe.only("extend", "decay")
    assert late.total_tokens == 700 * 10**9
    assert [round(phase.share * 7) for phase in late.phases] == [6, 1]
    with pytest.raises(ValueError, match="pretrain, extend, decay; got dekay"):
        recipe.only("dekay")
    with pytest.raises(ValueError, match="got none"):
        recipe.only()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate must be positive, got 0.0"),
        ({"batch_rows": 0}, "batch_rows must be at least 1"),
        ({"batch_rows": 8, "min_batch_rows": 9}, "min_batch_rows 9 is more than batch_rows 8"),
        ({"batch_warmup": 1.5}, r"batch_warmup must be a number in \[0, 1\]"),
        ({"weight_decay": -1.0}, "weight_decay"),
    ],
)
def test_bad_phases(change, message):
    with pytest.raises(ValueError, match=message):
        Phase("decay", 1.0, None, 0.3, 0.05, **change)


def test_a_recipe_is_json():
    import json

    text = json.dumps(get_preset("tiny").recipe.as_dict())
    assert json.loads(text)["phases"][1]["max_length"] == 1024
