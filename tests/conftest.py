"""Shared by all tests: a small tokenizer over several scripts, a tiny model, and silence from transformers."""

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest

SENTENCES = {
    "eng": ["All human beings are born free and equal in dignity and rights.", "No one shall be held in slavery."],
    "dan": ["Alle mennesker er født frie og lige i værdighed og rettigheder.", "Ingen må holdes i slaveri."],
    "fao": ["Øll menniskju eru fødd fræls og jøvn til virðingar.", "Eingin skal liva í trældómi."],
    "rus": ["Все люди рождаются свободными и равными.", "Никто не должен содержаться в рабстве."],
    "tir": ["ብመንፅር ክብርን መሰልን ኩሎም ሰባት እንትውለዱ ነፃን ማዕርን እዮም።"],
    "jpn": ["すべての人間は、生れながらにして自由である。"],
}


GEMMA = Path(
    os.environ.get("MMBERT_GEMMA2_TOKENIZER", Path(__file__).parents[1] / ".." / "shared" / "data" / "gemma2-tokenizer")
)


@pytest.fixture(scope="session")
def gemma_folder() -> Path:
    """The folder with the tokenizer of Gemma 2, which the published checkpoints have."""
    if not (GEMMA / "tokenizer.json").is_file():
        pytest.skip("set MMBERT_GEMMA2_TOKENIZER to a folder with Gemma 2's tokenizer.json")
    return GEMMA


@pytest.fixture(scope="session")
def sentences() -> dict[str, list[str]]:
    return SENTENCES


@pytest.fixture(scope="session")
def tokenizer():
    from mmbert_hf import MMBertTokenizer

    return MMBertTokenizer.train([text for texts in SENTENCES.values() for text in texts] * 3, vocab_size=420)


@pytest.fixture
def tiny_config(tokenizer):
    """Small enough for milliseconds, with weights large enough (0.08) that a wrong mask shows."""
    from mmbert_hf import MMBertConfig

    return MMBertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=128,
        local_attention=16,
        initializer_range=0.08,
    )


@pytest.fixture
def tiny_model(tiny_config):
    import torch

    from mmbert_hf import MMBertForMaskedLM

    torch.manual_seed(0)
    return MMBertForMaskedLM(tiny_config)
