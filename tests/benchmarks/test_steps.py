import doctest
import math

import implementations
import pytest
import steps
import torch
from cases import Case, make_batch
from comparison import DisagreementError, build_models, require_agreement
from implementations import OURS, SDPA, SPARSE, XLMR, Settings, build, names_for
from steps import LIMITS, agreement, make_step, probe

SETTINGS = Settings(model="tiny")
CASE = Case("padded", (200, 90))


@pytest.mark.parametrize("module", [steps, implementations])
def test_doctests(module):
    assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize("mode", ["inference", "training"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_modernbert_with_our_weights_agrees(mode, dtype):
    settings = Settings(model="tiny", dtype=dtype)
    models = build_models([OURS, SDPA], "encoder", settings)
    batch = make_batch(CASE, 1000, seed=0)
    difference = agreement(*(probe(model, batch, mode) for model in models.values()))
    require_agreement(SDPA, difference, LIMITS[dtype], "here")
    assert (difference["gradients"] is None) == (mode == "inference")


def test_both_masked_language_models_agree_in_loss_and_gradients():
    case = Case("masked", (40, 30), kind="masked_lm")
    batch = make_batch(case, 1000, seed=0)
    models = build_models([OURS, SDPA, SPARSE], "masked_lm", SETTINGS)
    ours = probe(models[OURS], batch, "training")
    for name in (SDPA, SPARSE):
        difference = agreement(ours, probe(models[name], batch, "training"))
        assert None not in difference.values()
        require_agreement(name, difference, LIMITS["float32"], "here")


def test_a_window_that_is_one_too_wide_stops_the_run():
    models = build_models([OURS, SDPA], "encoder", SETTINGS)
    models[SDPA].config.local_attention += 2
    for layer in models[SDPA].layers:
        if layer.attn.sliding_window:
            layer.attn.sliding_window += 1
    batch = make_batch(CASE, 1000, seed=0)
    difference = agreement(*(probe(model, batch, "inference") for model in models.values()))
    with pytest.raises(DisagreementError, match="outputs of mmbert and modernbert-sdpa differ"):
        require_agreement(SDPA, difference, LIMITS["float32"], "here")


def test_an_ignored_padding_mask_stops_the_run():
    models = build_models([OURS, SDPA], "encoder", SETTINGS)
    batch = make_batch(CASE, 1000, seed=0)
    ours = probe(models[OURS], batch, "inference")
    real = batch.attention_mask.bool()
    with torch.inference_mode():
        unmasked = models[SDPA](batch.input_ids).last_hidden_state[real]
    difference = agreement(ours, steps.Probe(unmasked, None, {}))
    with pytest.raises(DisagreementError, match="outputs of mmbert and modernbert-sdpa differ"):
        require_agreement(SDPA, difference, LIMITS["float32"], "padded inference")


def test_a_wrong_gradient_stops_the_run_though_outputs_agree():
    model = build(OURS, "encoder", SETTINGS)
    batch = make_batch(CASE, 1000, seed=0)
    right, wrong = (probe(model, batch, "training") for _ in range(2))
    wrong.gradients["layers.1.attn.Wqkv.weight"].mul_(0.9)
    difference = agreement(wrong, right)
    assert difference["outputs"] == 0
    with pytest.raises(DisagreementError, match="gradients"):
        require_agreement(SDPA, difference, LIMITS["float32"], "padded training")


def test_padding_does_not_enter_the_loss():
    model = build(OURS, "encoder", SETTINGS)
    batch = make_batch(CASE, 1000, seed=0)
    before = probe(model, batch, "training").gradients
    batch.input_ids[batch.attention_mask == 0] = 7
    after = probe(model, batch, "training").gradients
    for name, gradient in before.items():
        torch.testing.assert_close(after[name], gradient, msg=name)


def test_not_a_number_stops_the_run():
    with pytest.raises(DisagreementError, match="nan"):
        require_agreement(SDPA, {"outputs": math.nan}, 1.0, "here")


@pytest.mark.parametrize(("mode", "training"), [("inference", False), ("training", True)])
def test_a_step_runs_in_its_mode_and_leaves_nothing(mode, training):
    model = build(OURS, "encoder", SETTINGS)
    seen = []
    model.register_forward_hook(lambda module, _, output: seen.append((module.training, output[0].requires_grad)))
    make_step(model, make_batch(CASE, 1000, seed=0), mode)()
    assert seen == [(training, training)]
    assert all(parameter.grad is None for parameter in model.parameters())


def test_xlm_roberta_runs_up_to_512_tokens():
    longest = Case("longest", (512,))
    make_step(build(XLMR, "encoder", SETTINGS), make_batch(longest, 1000, seed=0), "inference")()
    assert XLMR in names_for(longest, SETTINGS)[0]
    names, notes = names_for(Case("longer", (513,)), SETTINGS)
    assert XLMR not in names
    assert len(notes) == 1


def test_flash_attention_on_cuda_is_measured_or_said_to_be_missing():
    for dtype in LIMITS:
        names, notes = names_for(CASE, Settings(dtype=dtype, device="cuda"))
        assert ("modernbert-flash2" in names) != any("modernbert-flash2" in note for note in notes)


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="model is 'huge'"):
        build(OURS, "encoder", Settings(model="huge"))
    with pytest.raises(ValueError, match="no implementation 'bert'"):
        build("bert", "encoder", SETTINGS)


def test_the_sparse_baseline_decodes_labelled_tokens_only():
    case = Case("masked", (40, 30), kind="masked_lm")
    batch = make_batch(case, 1000, seed=0)
    rows = {}
    for name in (SDPA, SPARSE):
        model = build(name, "masked_lm", SETTINGS).train()
        logits = model(batch.input_ids, attention_mask=batch.attention_mask, labels=batch.labels).logits
        rows[name] = logits.shape[:-1].numel()
    assert rows == {SDPA: 80, SPARSE: case.labelled_tokens}
