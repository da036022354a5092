"""The card of a training: the recipe's real values, what was logged, and no word of what was not."""

import doctest
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from mmbert_hf.trainers import cards
from mmbert_hf.trainers.cards import encoder_facts

from mmbert_hf import MLMTrainer


def test_examples_in_the_docstrings():
    result = doctest.testmod(cards)
    assert result.attempted >= 1
    assert result.failed == 0


@pytest.fixture
def trainer(tiny_model, tokenizer, recipe, documents, make_args, sentences):
    held_out = {"dan": sentences["dan"]}
    return MLMTrainer(tiny_model, make_args(), documents, held_out, processing_class=tokenizer, recipe=recipe)


def test_a_card_of_a_run(trainer):
    trainer.evaluate()
    trainer.train()
    trainer.evaluate()
    trainer.create_model_card(license="mit", tags=["mine"])
    text = Path(trainer.args.output_dir, "README.md").read_text()
    metadata = yaml.safe_load(text.split("---")[1])
    assert metadata["license"] == "mit"
    assert {"mine", "mmbert-hf"} <= set(metadata["tags"])
    assert set(metadata["language"]) <= {"da", "fo", "en", "ru", "ti", "ja"}
    facts = encoder_facts(trainer)
    assert [phase["name"] for phase in facts["phases"]] == [phase.name for phase in trainer.plan.recipe.phases]
    assert sum(phase["tokens"] for phase in facts["phases"]) == trainer.plan.num_tokens
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert facts["phases"][0]["loss_start"] == pytest.approx(losses[0])
    for phase in facts["phases"]:
        assert f"| {phase['name']} | {phase['languages']} | {phase['temperature']} | {phase['mask_ratio']} |" in text
    first, last = facts["heldout_languages"]["dan"]
    assert f"| dan | {first:.3f} | {last:.3f} |" in text
    assert "Bitext retrieval: not measured." in text


def test_before_anything_was_done(trainer):
    trainer.create_model_card()
    card = ModelCard.load(f"{trainer.args.output_dir}/README.md")
    assert "phases of training were not recorded" in card.text
    assert "Held-out loss: not measured." in card.text
    assert "licence is not known" in card.text
    assert card.data.license is None
