"""Verbs set up logging and progress bars for their process; called in a test's, they must not leave that behind."""

import logging

import datasets
import pytest
import torch
from transformers.utils import logging as transformers_logging


@pytest.fixture(autouse=True)
def process_as_it_was():
    loggers = [logging.getLogger(), logging.getLogger("mmbert_hf")]
    before = [(logger, logger.level, logger.handlers[:]) for logger in loggers]
    had_bars = datasets.are_progress_bars_disabled(), transformers_logging.is_progress_bar_enabled()
    yield
    for logger, level, handlers in before:
        logger.setLevel(level)
        logger.handlers[:] = handlers
    if not had_bars[0]:
        datasets.enable_progress_bars()
    if had_bars[1]:
        transformers_logging.enable_progress_bar()


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
