import doctest

import yaml
from huggingface_hub import ModelCard
from mmbert_hf.model_cards import cards, encoder_card

FACTS = {
    "parameters": 1_631_488,
    "corpus": {"name": "Universal Declaration of Human Rights", "languages": 442, "held_out_articles": [26, 27]},
    "phases": [
        {
            "name": "pretrain",
            "languages": 60,
            "temperature": 0.7,
            "mask_ratio": 0.3,
            "max_length": 128,
            "tokens": 1234567,
            "loss_start": 8.7654,
            "loss_end": 6.1234,
        }
    ],
    "heldout_mean": {"added": {"languages": 2, "loss_before_decay": 9.5, "loss_after_decay": 7.25}},
    "bitext": {"languages": 100, "items": 10, "accuracy": 0.345, "chance": 0.1, "accuracy_untrained": 0.2},
    "seed": 7,
    "versions": {"torch": "2.13.0"},
}


def test_examples_in_the_docstrings():
    result = doctest.testmod(cards)
    assert result.attempted >= 3
    assert result.failed == 0


def header(card):
    return yaml.safe_load(card.content.split("---")[1])


def test_full_card_has_the_numbers_and_valid_metadata():
    card = encoder_card("me/tiny", FACTS, languages=["fo", "ti"], base_model="jhu-clsp/mmBERT-small")
    assert "| pretrain | 60 | 0.7 | 0.3 | 128 | 1,234,567 | 8.77 to 6.12 |" in card.text
    assert "| added | 2 | 9.500 | 7.250 |" in card.text
    assert "accuracy 0.345, chance 0.100, untrained model 0.200" in card.text
    assert "with seed 7" in card.text
    assert "torch 2.13.0" in card.text
    assert "not measured" not in card.text
    metadata = header(card)
    assert metadata["library_name"] == "transformers"
    assert metadata["pipeline_tag"] == "fill-mask"
    assert metadata["license"] == "apache-2.0"
    assert metadata["base_model"] == "jhu-clsp/mmBERT-small"
    assert "mmbert-hf" in metadata["tags"]
    results = metadata["model-index"][0]["results"]
    assert sorted(result["metrics"][0]["value"] for result in results) == [0.345, 7.25]


def test_card_of_nothing_renders_and_says_so():
    card = encoder_card("me/tiny", {})
    assert card.text.count("not measured") >= 3
    assert "were not recorded" in card.text
    assert "model-index" not in header(card)
    assert "None" not in card.text


def test_card_round_trips_through_its_file(tmp_path):
    card = encoder_card("me/tiny", FACTS, languages=["fo", "no"])
    card.save(tmp_path / "README.md")
    again = ModelCard.load(tmp_path / "README.md")
    assert again.data.to_dict() == card.data.to_dict()
    assert again.data.language == ["fo", "no"]  # not YAML's false
    assert again.text.strip() == card.text.strip()


def test_code_block_of_the_card_runs(tmp_path, tiny_model, tokenizer):
    from mmbert_hf import export_modernbert

    export_modernbert(tiny_model, tmp_path / "export", tokenizer=tokenizer)
    text = encoder_card(str(tmp_path / "export"), FACTS).text
    code = text.split("```python\n")[1].split("```")[0]
    printed = []
    exec(code, {"print": printed.append})
    assert len(printed) == 1
