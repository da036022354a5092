import json

import annealing
import pytest

from mmbert_hf import MMBertTokenizer
from mmbert_hf.data import TRAINING_ARTICLES, load_udhr
from mmbert_hf.step_plan import plan_steps


def test_a_hundred_languages_none_twice():
    languages = annealing.choose_languages()
    assert {phase: len(codes) for phase, codes in languages.items()} == annealing.TIERS
    assert len({code for codes in languages.values() for code in codes}) == 100
    assert languages == annealing.choose_languages()
    assert languages["decay"][:2] == ["fao", "tir"]


def test_variants_differ_in_what_they_say_alone():
    languages = annealing.choose_languages()
    recipes = {variant: annealing.make_recipe(variant, languages) for variant in annealing.VARIANTS}
    plans = {variant: plan_steps(recipe) for variant, recipe in recipes.items()}
    annealed = plans["annealed"]
    for variant, plan in plans.items():
        assert (plan.rows == annealed.rows).all()
        assert (plan.learning_rate == annealed.learning_rate).all()
        differing = {
            name
            for mine, other in zip(recipes[variant].phases, recipes["annealed"].phases, strict=True)
            for name in vars(mine)
            if vars(mine)[name] != vars(other)[name]
        }
        expected = {
            "annealed": set(),
            "constant temperature": {"language_temperature"},
            "constant mask ratio": {"mask_ratio"},
            "without the added languages": {"languages"},
        }
        assert differing == expected[variant]
    assert not set(languages["decay"]) & set(recipes["without the added languages"].phases[-1].languages)


def test_the_table_by_hand():
    languages = {"pretrain": ["a"], "extend": ["b"], "decay": ["c", "d"]}
    losses = {
        "annealed": 1.0,
        "constant temperature": 2.0,
        "constant mask ratio": 3.0,
        "without the added languages": 5.0,
    }
    runs = [
        {"variant": variant, "seed": seed, "losses": {"a": loss, "b": loss + 1, "c": loss + seed, "d": loss - seed}}
        for seed in (1, 2)
        for variant, loss in losses.items()
    ]
    runs[0]["losses"]["a"] = 3.0  # annealed, seed 1: 3, and 1 with seed 2
    lines = annealing.summary({"languages": languages, "runs": runs}).splitlines()
    assert lines[0].startswith(
        "| variant | from the start (1) | from the extension (1) | added in the decay (2) | all (4) |"
    )
    assert lines[2] == "| annealed | 2.000 ± 1.414 | 2.000 ± 0.000 | 1.000 ± 0.000 | 1.500 ± 0.354 |"
    assert lines[6].startswith("| annealed minus constant temperature | +0.000 ± 1.414 | -1.000 ± 0.000 |")


@pytest.mark.filterwarnings("ignore:.*os.fork:DeprecationWarning")
def test_one_run_trains_and_measures_every_language(tmp_path, monkeypatch):
    monkeypatch.setattr(annealing, "TOTAL_TOKENS", 12_000)
    monkeypatch.setattr(annealing, "TIERS", {"pretrain": 2, "extend": 1, "decay": 3})
    codes = [code for entered in annealing.choose_languages().values() for code in entered]
    texts = [text.text(TRAINING_ARTICLES) for text in load_udhr(codes).values()]
    MMBertTokenizer.train(texts, vocab_size=900).save_pretrained(tmp_path / "tokenizer")
    annealing.train_one("without the added languages", 1, str(tmp_path / "tokenizer"), str(tmp_path / "run.json"))
    record = json.loads((tmp_path / "run.json").read_text())
    assert sorted(record["losses"]) == sorted(codes)
    assert sorted(record["tokens"]) == sorted(codes[:3])
    assert 0.9 < record["fill"] <= 1.0
