import pytest

from mmbert_hf.data.udhr import load_udhr
from mmbert_hf.demo.settings import (
    DemoSettings,
    PruneSettings,
    SPOSettings,
    declared_counts,
    demo_recipe,
    order_languages,
)
from mmbert_hf.demo.tiers import DECAY_ONLY, EXTENSION_TIER, PRETRAINING_TIER
from mmbert_hf.languages import sampling_probabilities


def test_tiers_are_the_papers_sizes_and_in_the_corpus():
    corpus = load_udhr()
    assert (len(PRETRAINING_TIER), len(EXTENSION_TIER)) == (60, 50)
    everything = [*PRETRAINING_TIER, *EXTENSION_TIER, *DECAY_ONLY]
    assert len(set(everything)) == 112
    assert set(everything) <= set(corpus)


def test_recipe_is_the_papers():
    languages = order_languages(list(load_udhr()))
    recipe = demo_recipe(DemoSettings(), languages)
    assert [phase.name for phase in recipe.phases] == ["pretrain", "extend", "decay"]
    assert [phase.language_temperature for phase in recipe.phases] == [0.7, 0.5, 0.3]
    assert [phase.mask_ratio for phase in recipe.phases] == [0.30, 0.15, 0.05]
    assert [len(phase.languages) for phase in recipe.phases] == [60, 110, len(languages)]
    assert [phase.rope_theta for phase in recipe.phases] == [1e4, 1.6e5, 1.6e5]
    assert not set(DECAY_ONLY) & set(recipe.phases[1].languages)
    assert set(DECAY_ONLY) <= set(recipe.phases[2].languages)


def test_control_differs_by_the_added_languages_alone():
    languages = order_languages(list(load_udhr()))
    run, control = demo_recipe(DemoSettings(), languages), demo_recipe(DemoSettings(), languages, without=DECAY_ONLY)
    assert run.phases[:2] == control.phases[:2]
    assert set(run.phases[2].languages) - set(control.phases[2].languages) == set(DECAY_ONLY)
    assert run.boundaries == control.boundaries


def test_the_learning_rate_decays_in_the_decay_phase_alone():
    settings = DemoSettings()
    recipe = demo_recipe(settings, order_languages(list(load_udhr())))
    last_boundary = recipe.boundaries[-1]
    rate = settings.learning_rate_schedule
    assert rate.at(last_boundary) == pytest.approx(1.0)
    assert rate.at(settings.warmup) == 1.0
    assert rate.at(last_boundary + 0.01) < 0.9
    assert rate.at(1.0) == pytest.approx(settings.final_learning_rate)


def test_declared_skew_is_real_and_temperature_flattens_it():
    counts = declared_counts(order_languages(list(load_udhr())), 1.0)
    assert counts["eng"] / counts["tir"] > 100
    flat, steep = sampling_probabilities(counts, 0.3), sampling_probabilities(counts, 0.7)
    assert flat["tir"] / flat["eng"] > 5 * steep["tir"] / steep["eng"]


def test_a_smaller_demo_keeps_every_tier_and_the_added_languages():
    languages = order_languages(list(load_udhr()), 11)
    assert languages == ["eng", "rus", "cmn_Hans", "bos_Latn", "cat", "srp_Latn", "fao", "tir", *languages[-3:]]
    with pytest.raises(ValueError, match="at least 5, got 4"):
        order_languages(list(load_udhr()), 4)


def test_settings_survive_json():
    import json

    settings = DemoSettings(seed=3, max_lengths=(64, 96, 128))
    assert DemoSettings.from_dict(json.loads(json.dumps(settings.as_dict()))) == settings


@pytest.mark.parametrize(("name", "value"), [("steps", -5), ("seed", -1), ("rows_per_step", 0), ("hidden_size", 8)])
def test_sizes_that_no_run_can_have_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} must be at least .*, got {value}"):
        DemoSettings(**{name: value})


def test_settings_of_the_pruning_survive_json():
    import json

    settings = PruneSettings(seed=3, embedder="folder", num_triplets=40)
    assert PruneSettings.from_dict(json.loads(json.dumps(settings.as_dict()))) == settings


@pytest.mark.parametrize(("name", "value"), [("seed", -1), ("num_triplets", 1), ("batch_size", 1), ("num_queries", 1)])
def test_sizes_that_no_pruning_can_have_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} must be at least .*, got {value}"):
        PruneSettings(**{name: value})


def test_settings_of_the_policy_survive_json():
    import json

    settings = SPOSettings(seed=3, operations="+*", fitted_share=0.25)
    assert SPOSettings.from_dict(json.loads(json.dumps(settings.as_dict()))) == settings


@pytest.mark.parametrize(("name", "value"), [("seed", -1), ("modulus", 1), ("batch_size", 1), ("num_samples", 0)])
def test_sizes_that_no_policy_can_have_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} must be at least .*, got {value}"):
        SPOSettings(**{name: value})


@pytest.mark.parametrize(("fitted", "unseen"), [(0.0, 0.1), (0.3, 0.0), (0.5, 0.5)])
def test_every_group_of_prompts_needs_some(fitted, unseen):
    with pytest.raises(
        ValueError, match=f"above 0 and leave prompts that are only rewarded, got {fitted} and {unseen}"
    ):
        SPOSettings(fitted_share=fitted, unseen_share=unseen)
