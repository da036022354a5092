"""What tests of verbs share."""

import pytest
import torch


@pytest.fixture(autouse=True)
def as_it_was(process_as_it_was):
    """Verbs are called in the process of the tests."""


@pytest.fixture
def folder(tiny_model, tokenizer, tmp_path):
    """A tiny masked language model with its tokenizer."""
    tiny_model.eval().save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def logits():
    """A function from a folder and a text to what plain Auto classes say of it."""
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    def say(folder, text):
        with torch.no_grad():
            batch = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")
            return AutoModelForMaskedLM.from_pretrained(folder).eval()(**batch).logits

    return say
