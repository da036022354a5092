import doctest
import math

import pytest

from mmbert_hf import schedules
from mmbert_hf.schedules import (
    Constant,
    Linear,
    Piecewise,
    Trapezoid,
    as_schedule,
    learning_rate_lambda,
    one_minus_sqrt,
)


def test_examples_in_the_docstrings():
    result = doctest.testmod(schedules)
    assert result.attempted >= 6
    assert result.failed == 0


@pytest.mark.parametrize(("fraction", "final"), [(0.0, 0.02), (0.25, 0.02), (0.81, 0.0), (1.0, 0.3)])
def test_one_minus_sqrt_is_the_published_formula(fraction, final):
    assert one_minus_sqrt(fraction, final) == pytest.approx(final + (1 - final) * (1 - math.sqrt(fraction)), abs=1e-15)


def test_trapezoid_against_tokens():
    # ModernBERT: linear to t_warm, 1, then 1 - f (1 - a) for the linear shape, in tokens t
    warm, stable, decay, final = 30, 50, 20, 0.04
    total = warm + stable + decay
    rate = Trapezoid(warmup=warm / total, decay=decay / total, final=final, shape="linear")
    for t in range(total + 1):
        expected = min(1.0, t / warm)
        if t > total - decay:
            expected = 1 - (t - (total - decay)) / decay * (1 - final)
        assert rate.at(t / total) == pytest.approx(expected, abs=1e-12)


def test_trapezoid_1_sqrt_falls_steeply_first():
    rate = Trapezoid(decay=0.5, final=0.0)
    first, second = rate.at(0.5) - rate.at(0.6), rate.at(0.9) - rate.at(1.0)
    assert first > 3 * second
    assert rate.at(1.0) == 0.0


def test_learning_rate_lambda_with_the_torch_scheduler():
    import torch

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    factor = learning_rate_lambda(Trapezoid(warmup=0.5, decay=0.5), 4)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    rates = []
    for _ in range(6):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([0.0, 1.0, 2.0, 2 * (1 - math.sqrt(0.5)), 0.0, 0.0])


def test_schedules_refuse_progress_outside_the_run():
    for schedule in (Constant(1), Linear(0, 1), Piecewise([1, 2], [0.5]), Trapezoid()):
        for progress in (-0.01, 1.01, math.nan):
            with pytest.raises(ValueError, match="progress must be"):
                schedule.at(progress)


def test_bad_schedules():
    with pytest.raises(ValueError, match="overlap"):
        Trapezoid(warmup=0.6, decay=0.6)
    with pytest.raises(ValueError, match="'1-sqrt', 'linear'"):
        Trapezoid(shape="inverse-sqrt")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="2 values need 1 boundaries"):
        Piecewise([1, 2], [])
    with pytest.raises(ValueError, match="rise strictly"):
        Piecewise([1, 2, 3], [0.5, 0.5])
    with pytest.raises(ValueError, match="total_steps"):
        learning_rate_lambda(Constant(1.0), 0)


def test_as_schedule_keeps_schedules_and_wraps_values():
    linear = Linear(0.3, 0.1)
    assert as_schedule(linear) is linear
    assert as_schedule(0.3).at(0.7) == 0.3
