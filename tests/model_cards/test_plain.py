"""Cards of policies, adapters, embedders and other models: what they say, and that they say what is missing."""

import doctest
import re

import pytest
import yaml
from mmbert_hf.model_cards import plain
from mmbert_hf.model_cards.plain import plain_card

FACTS = {
    "training": {"method": "SPO, one response per prompt", "steps": 300},
    "tracker": "me/values",
    "results": [["prompts", "before", "after"], ["all", "0.36", "0.70"]],
    "results_note": "One run.",
    "limits": "A demonstration.",
    "versions": {"torch": "2.13.0"},
}
SECTIONS = ["Use", "Training", "Results", "Limits"]
KINDS = {
    "policy": ("transformers", "text-generation", "AutoModelForCausalLM.from_pretrained", "finetune"),
    "adapter": ("peft", "text-generation", "AutoPeftModelForCausalLM.from_pretrained", "adapter"),
    "embedder": ("sentence-transformers", "sentence-similarity", "SentenceTransformer(", "finetune"),
    "model": ("transformers", "token-classification", "BertForTokenClassification.from_pretrained", "finetune"),
}


def test_examples_in_the_docstrings():
    result = doctest.testmod(plain)
    assert result.attempted >= 2
    assert result.failed == 0


@pytest.mark.parametrize("facts", [{}, FACTS], ids=["nothing", "everything"])
@pytest.mark.parametrize("kind", KINDS)
def test_sections_metadata_and_code(kind, facts):
    card = plain_card("me/it", facts, kind=kind, architecture="BertForTokenClassification", base_model="you/base")
    assert re.findall("^## (.*)$", card.text, re.MULTILINE) == SECTIONS
    library, pipeline, code, relation = KINDS[kind]
    metadata = yaml.safe_load(card.content.split("---")[1])
    assert (metadata["library_name"], metadata["pipeline_tag"], metadata["base_model_relation"]) == (
        library, pipeline, relation,
    )  # fmt: skip
    assert "license" not in metadata
    (block,) = re.findall(r"```python\n(.*?)```", card.text, re.DOTALL)
    compile(block, "card", "exec")
    assert code in block
    assert '"me/it"' in block
    assert "licence is not known" in card.text
    assert "\n\n\n" not in card.text
    assert ("Not measured." in card.text) == ("was not recorded" in card.text) == (not facts)
    if facts:
        assert "| steps | 300 |" in card.text
        assert "| prompts | before | after |\n|---|---|---|\n| all | 0.36 | 0.70 |" in card.text
        assert "(https://huggingface.co/datasets/me/values)" in card.text
        assert "torch 2.13.0" in card.text
        assert "arxiv.org/abs/2509.13232" in card.text


def test_a_licence_that_is_given():
    card = plain_card("me/it", {}, license=["mit", "other"])
    assert "Licence: mit, other." in card.text
    assert card.data.license == ["mit", "other"]


def test_prompts_of_any_text_stay_one_string():
    card = plain_card("me/it", {}, prompt='say "no"\n')
    (block,) = re.findall(r"```python\n(.*?)```", card.text, re.DOTALL)
    assert 'tokenizer("say \\"no\\"\\n"' in block
