import doctest
import math

import pytest
import torch
from torch import nn

from mmbert_hf import MMBertConfig, MMBertForMaskedLM, optimization
from mmbert_hf.optimization import parameter_groups, planned_scheduler, set_phase, stable_adamw
from mmbert_hf.recipes import Phase, Recipe
from mmbert_hf.schedules import Trapezoid
from mmbert_hf.step_plan import plan_steps


def test_docstring_examples():
    assert doctest.testmod(optimization).failed == 0


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.matrix = nn.Parameter(torch.randn(3, 4, generator=generator, dtype=torch.float64))
        self.bias = nn.Parameter(torch.randn(4, generator=generator, dtype=torch.float64))


def closed_form(weight, gradients, rate, decay, peak, betas=(0.9, 0.95), eps=1e-8):
    """StableAdamW from its formulas, in float64 (mmBERT, section 3; ModernBERT training code)."""
    mean, square = torch.zeros_like(weight), torch.zeros_like(weight)
    for step, gradient in enumerate(gradients, start=1):
        first, second = ((beta - beta**step) / (1 - beta**step) for beta in betas)  # debiased betas
        mean = first * mean + (1 - first) * gradient
        square = second * square + (1 - second) * gradient**2
        rms = (gradient**2 / square.clamp(min=eps**2)).mean().sqrt()
        clipped = rate / max(1.0, rms)
        weight = weight * (1 - clipped / peak * decay) - clipped * mean / (square.sqrt() + eps)
    return weight


@pytest.mark.parametrize("scale", [1.0, 100.0])  # the second gradient is much larger: the clip acts
def test_steps_equal_the_closed_form(scale):
    model = Two()
    start = model.matrix.detach().clone()
    optimizer = stable_adamw(model, learning_rate=0.1, weight_decay=9e-4)
    for group in optimizer.param_groups:
        group["lr"] = 0.04  # not the peak: the decay is relative to the peak
    gradients = [torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(i)) for i in (1, 2)]
    gradients[1] *= scale
    for gradient in gradients:
        model.matrix.grad, model.bias.grad = gradient.clone(), torch.ones_like(model.bias)
        optimizer.step()
    expected = closed_form(start, gradients, rate=0.04, decay=9e-4, peak=0.1)
    torch.testing.assert_close(model.matrix.detach(), expected, rtol=0, atol=1e-12)
    unclipped = gradients[1].abs().mean() < 2
    assert unclipped == (scale == 1.0)


def test_one_steps_decay_is_the_fraction_itself_and_not_the_rate_times_it():
    model = Two()
    start, bias = model.matrix.detach().clone(), model.bias.detach().clone()
    optimizer = stable_adamw(model, learning_rate=8e-4, weight_decay=8e-5)
    model.matrix.grad, model.bias.grad = torch.zeros_like(start), torch.zeros_like(bias)
    optimizer.step()
    torch.testing.assert_close(model.matrix.detach(), start * (1 - 8e-5), rtol=0, atol=1e-16)
    assert torch.equal(model.bias.detach(), bias)  # no decay on biases
    too_weak = start * (1 - 8e-4 * 8e-5)
    assert (model.matrix.detach() - too_weak).abs().max() > 1e-6


def test_groups_of_the_encoder():
    config = MMBertConfig(
        vocab_size=90, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2
    )
    model = MMBertForMaskedLM(config)
    decayed, rest = parameter_groups(model, 8e-5)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert "model.embeddings.tok_embeddings.weight" in {names[id(p)] for p in decayed["params"]}  # tied, and decayed
    assert {names[id(p)].rpartition(".")[2] for p in rest["params"]} == {"bias", "weight"}
    assert all("norm" in names[id(p)] or names[id(p)].endswith("bias") for p in rest["params"])
    assert len(decayed["params"]) + len(rest["params"]) == len(list(model.parameters()))
    with pytest.raises(ValueError, match="no trainable parameter"):
        parameter_groups(model.requires_grad_(False), 8e-5)


def test_the_scheduler_gives_every_step_the_plans_rate():
    decay = Trapezoid(decay=1.0, final=0.02)
    phases = [
        Phase("pretrain", 0.5, None, 0.7, 0.3, 10, 1e4, 1e-3, Trapezoid(warmup=0.4)),
        Phase("decay", 0.5, None, 0.3, 0.05, 10, 1e4, 5e-4, decay),
    ]
    plan = plan_steps(Recipe(phases, 200), rows_per_step=1)
    model = Two()
    optimizer = stable_adamw(model, learning_rate=1e-3)
    scheduler = planned_scheduler(optimizer, plan)
    seen = []
    for _ in range(plan.num_steps):
        seen.append(optimizer.param_groups[0]["lr"])
        model.matrix.grad, model.bias.grad = torch.ones_like(model.matrix), torch.ones_like(model.bias)
        optimizer.step()
        scheduler.step()
    assert seen == pytest.approx(plan.learning_rate.tolist(), rel=1e-12)
    assert seen[0] == 0.0
    assert seen[10] == pytest.approx(5e-4)


def test_the_phase_sets_decay_and_peak_of_the_group_that_decays():
    optimizer = stable_adamw(Two(), learning_rate=8e-4)
    set_phase(optimizer, weight_decay=4e-5, max_learning_rate=4e-4)
    decayed, rest = optimizer.param_groups
    assert (decayed["weight_decay"], decayed["max_lr"]) == (4e-5, 4e-4)
    assert rest["weight_decay"] == 0.0
    assert math.isclose(rest["max_lr"], 8e-4)
