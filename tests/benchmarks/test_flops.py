import doctest

import flops
import pytest
from cases import Case, make_batch
from flops import step_flops
from implementations import OURS, XLMR, Settings, build
from steps import make_step
from torch.utils.flop_counter import FlopCounterMode


def test_doctests():
    assert doctest.testmod(flops).failed == 0


@pytest.mark.parametrize("mode", ["inference", "training"])
@pytest.mark.parametrize("name", [OURS, XLMR])
def test_the_count_is_what_torch_counts(name, mode):
    # Full sequences within the window and attention written out: then no work is wasted, and all of it is visible.
    case, settings = Case("short", (40, 40)), Settings(model="tiny", attention="eager")
    model = build(name, "encoder", settings)
    model.set_attn_implementation("eager")
    step = make_step(model, make_batch(case, 1000, seed=0), mode)
    with FlopCounterMode(display=False) as counter:
        step()
    assert counter.get_total_flops() == pytest.approx(step_flops(model.config, case, mode), rel=1e-3)


def test_the_head_counts_labelled_tokens_only():
    config = build(OURS, "masked_lm", Settings(model="tiny")).config
    encoder, masked = Case("a", (10,)), Case("a", (10,), kind="masked_lm")
    head = step_flops(config, masked, "inference") - step_flops(config, encoder, "inference")
    assert head == 3 * 2 * 64 * (64 + 1000)
