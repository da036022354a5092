import doctest
import math

import pytest

from mmbert_hf import presets
from mmbert_hf.presets import PRESETS, get_preset
from mmbert_hf.step_plan import plan_steps

BILLION = 10**9


def test_docstring_examples():
    assert doctest.testmod(presets).failed == 0


@pytest.mark.parametrize("name", ["mmbert-base-paper", "mmbert-small-paper"])
def test_the_papers_numbers(name):
    recipe = get_preset(name).recipe
    assert recipe.total_tokens == 3000 * BILLION
    tokens = [phase.share * recipe.total_tokens for phase in recipe.phases]
    assert tokens == pytest.approx([2300 * BILLION, 600 * BILLION, 100 * BILLION])
    for field, values in {
        "language_temperature": [0.7, 0.5, 0.3],
        "mask_ratio": [0.30, 0.15, 0.05],
        "max_length": [1024, 8192, 8192],
        "rope_theta": [1e4, 1.6e5, 1.6e5],
        "batch_rows": [4608, 4608, 4608],
    }.items():
        assert [getattr(phase, field) for phase in recipe.phases] == values, field


def test_base_and_small_differ_where_the_paper_says():
    base, small = (get_preset(f"mmbert-{size}-paper").recipe.phases for size in ("base", "small"))
    assert [phase.learning_rate for phase in base] == [8e-4] * 3
    assert [phase.learning_rate for phase in small] == [8e-4, 4e-4, 4e-4]
    assert [phase.weight_decay for phase in base] == [8e-5] * 3
    assert [phase.weight_decay for phase in small] == [8e-5, 4e-5, 4e-5]
    for phases, warmup, batch_warmup in ((base, 3, 60), (small, 4, 100)):
        tokens = 2300 * BILLION
        assert phases[0].learning_rate_schedule.at(warmup * BILLION / tokens) == pytest.approx(1.0)
        assert phases[0].learning_rate_schedule.at(warmup * BILLION / tokens / 2) == pytest.approx(0.5)
        assert phases[0].batch_warmup * tokens == pytest.approx(batch_warmup * BILLION)
    # at half of the decay: 1-sqrt to 2 %, linear to 4 %
    assert base[2].learning_rate_schedule.at(0.5) == pytest.approx(0.02 + 0.98 * (1 - math.sqrt(0.5)))
    assert small[2].learning_rate_schedule.at(0.5) == pytest.approx(0.52)
    assert base[2].learning_rate_schedule.at(1.0) == pytest.approx(0.02)
    assert small[2].learning_rate_schedule.at(1.0) == pytest.approx(0.04)


def test_the_released_presets_differ_in_length_and_base_in_its_mask_ratio():
    for size in ("base", "small"):
        assert get_preset(f"mmbert-{size}-released").recipe.total_tokens == 2690 * BILLION
    assert get_preset("mmbert-base-released").recipe.phases[0].mask_ratio == 0.25
    assert get_preset("mmbert-small-released").recipe.phases[0].mask_ratio == 0.30


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_plans(name):
    preset = get_preset(name)
    plan = plan_steps(preset.recipe)
    assert plan.num_tokens == pytest.approx(preset.recipe.total_tokens, rel=1e-3)
    assert plan.rows[0] < plan.rows.max()
    assert plan.learning_rate[0] == 0.0


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'mmbert-small-paper'"):
        get_preset("mmbert-small-papr")
