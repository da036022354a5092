import doctest
from dataclasses import replace

import numpy as np
import pytest

from mmbert_hf import step_plan
from mmbert_hf.presets import get_preset
from mmbert_hf.recipes import Phase, Recipe
from mmbert_hf.schedules import Trapezoid
from mmbert_hf.step_plan import plan_steps, warmup_sizes


def test_docstring_examples():
    result = doctest.testmod(step_plan)
    assert result.attempted >= 3
    assert result.failed == 0


def make_recipe(total_tokens=100_000, **first):
    warmup = Trapezoid(warmup=0.25)
    decay = Trapezoid(decay=1.0, final=0.02)
    return Recipe(
        [
            Phase("pretrain", 0.8, ["eng"], 0.7, 0.3, 100, 1e4, 1e-3, warmup, **first),
            Phase("decay", 0.2, None, 0.3, 0.05, 200, 1.6e5, 5e-4, decay, weight_decay=4e-5),
        ],
        total_tokens,
    )


def test_every_step_against_counting():
    plan = plan_steps(make_recipe(), rows_per_step=4, num_micro_batches=2)
    # 80,000 tokens in steps of 400, 20,000 in steps of 800
    assert plan.num_steps == 200 + 25
    assert plan.first_steps == [0, 200]
    tokens = rows = 0
    for step in range(plan.num_steps):
        phase = plan.phase_at(step)
        assert (plan.tokens_before[step], plan.first_row[step]) == (tokens, rows)
        progress = tokens / 80_000 if step < 200 else (tokens - 80_000) / 20_000
        expected = phase.learning_rate * phase.learning_rate_schedule.at(progress)
        assert plan.learning_rate[step] == pytest.approx(expected, abs=1e-15)
        tokens += int(plan.rows[step]) * phase.max_length
        rows += int(plan.rows[step])
        assert plan.tokens_after(step) == tokens
    assert (tokens, rows) == (plan.num_tokens, plan.num_rows) == (100_000, 900)
    assert [(span.phase.name, span.first_row, span.num_rows) for span in plan.spans] == [
        ("pretrain", 0, 800),
        ("decay", 800, 100),
    ]


def test_the_edges_of_the_learning_rate():
    plan = plan_steps(make_recipe(), rows_per_step=4)
    assert plan.learning_rate[0] == 0.0  # near 0, where transformers' warm-up begins at its least rate
    assert plan.learning_rate[49] == pytest.approx(1e-3 * 49 / 50)
    assert plan.learning_rate[50] == plan.learning_rate[199] == pytest.approx(1e-3)
    assert plan.learning_rate[200] == pytest.approx(5e-4)
    assert plan.learning_rate[-1] > 5e-4 * 0.02


def test_values_at_switch_with_the_phase():
    plan = plan_steps(make_recipe(), rows_per_step=4)
    before, after = plan.values_at(199), plan.values_at(200)
    assert (before["phase"], before["mask_ratio"], before["rope_theta"], before["max_length"]) == (
        "pretrain",
        0.3,
        1e4,
        100,
    )
    assert (after["phase"], after["mask_ratio"], after["rope_theta"], after["max_length"]) == (
        "decay",
        0.05,
        1.6e5,
        200,
    )
    assert plan.values_at(10_000) == plan.values_at(plan.num_steps - 1)


def test_batch_warmup_gives_every_size_about_equally_many_steps():
    sizes = warmup_sizes(4, 32, 4, warmup_tokens=2_000_000, max_length=100)
    values, counts = np.unique(sizes, return_counts=True)
    assert values.tolist() == [4, 8, 12, 16, 20, 24, 28, 32]
    assert counts.max() - counts.min() <= 2
    tokens = values * counts * 100
    np.testing.assert_allclose(tokens / tokens.sum(), values / values.sum(), atol=0.002)
    assert (np.diff(sizes) >= 0).all()
    assert 2_000_000 <= sizes.sum() * 100 < 2_000_000 + 3200


def test_a_warmup_shorter_than_its_sizes_skips_some():
    sizes = warmup_sizes(1, 100, 1, warmup_tokens=5000, max_length=10)
    assert (np.diff(sizes) > 0).all()
    assert sizes[0] == 1
    assert len(warmup_sizes(1, 100, 1, 0, 10)) == 0


def test_batch_warmup_scales_with_the_rows_and_divides_into_micro_batches():
    recipe = make_recipe(1_000_000, batch_rows=64, min_batch_rows=8, batch_warmup=0.3)
    for rows, micro_batches, least in ((64, 1, 8), (32, 2, 4), (32, 8, 8), (16, 16, 16)):
        plan = plan_steps(recipe, rows_per_step=rows, num_micro_batches=micro_batches)
        assert plan.rows[0] == least
        assert not (plan.rows % micro_batches).any()
        assert plan.num_tokens == pytest.approx(1_000_000, abs=200 * rows)


def test_micro_batches_are_a_partition_in_order_whatever_their_number():
    warming = make_recipe(batch_rows=16, min_batch_rows=4, batch_warmup=0.5)
    for micro_batches in (1, 2, 4):
        plan = plan_steps(warming, num_micro_batches=micro_batches, rows_per_step=16)
        batches = list(plan.micro_batches())
        assert len(batches) == plan.num_steps * micro_batches
        assert [row for batch in batches for row in batch] == list(range(plan.num_rows))
        ends = [batch[-1] + 1 for batch in batches][micro_batches - 1 :: micro_batches]
        assert ends == (plan.first_row + plan.rows).tolist()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rows_per_step": 5, "num_micro_batches": 2}, "5 rows a step do not divide into 2 micro-batches.*take 6 rows"),
        ({"rows_per_step": 4000}, "phase 'pretrain' does not fit: its budget of 80,000 tokens"),
        ({}, "phase 'pretrain' names no batch_rows"),
        ({"num_micro_batches": 0}, "num_micro_batches must be at least 1"),
    ],
)
def test_plans_that_do_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        plan_steps(make_recipe(), **options)


def test_a_preset_that_does_not_fit_the_budget_names_phase_and_size():
    with pytest.raises(
        ValueError, match=r"phase 'pretrain' does not fit: its budget of 766,667 tokens.*4608 rows x 1,024"
    ):
        plan_steps(get_preset("mmbert-base-paper").recipe.scaled_to(1_000_000))
    with pytest.raises(ValueError, match="no number of tokens"):
        plan_steps(replace(make_recipe(), total_tokens=None), rows_per_step=4)


def test_phases_without_a_rate_take_the_trainers():
    recipe = Recipe([Phase("only", 1.0, None, 0.3, 0.05, 100)], 10_000)
    with pytest.raises(ValueError, match="names no learning rate"):
        plan_steps(recipe, rows_per_step=4)
    assert plan_steps(recipe, rows_per_step=4, learning_rate=3e-4).learning_rate.tolist() == [3e-4] * 25
