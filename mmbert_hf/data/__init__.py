"""Corpora and how they are mixed."""

from mmbert_hf.data.udhr import (
    HELD_OUT_ARTICLES,
    TRAINING_ARTICLES,
    Declaration,
    aligned_paragraphs,
    load_udhr,
    read_corpus,
)

__all__ = [
    "HELD_OUT_ARTICLES",
    "TRAINING_ARTICLES",
    "Declaration",
    "aligned_paragraphs",
    "load_udhr",
    "read_corpus",
]
