"""Corpora and how they are mixed."""

from mmbert_hf.data.udhr import (
    HELD_OUT_ARTICLES,
    TRAINING_ARTICLES,
    Declaration,
    aligned_paragraphs,
    load_udhr,
    read_corpus,
)
from mmbert_hf.data.wordnet import WORDNET_DOMAINS, WORDNET_SPLITS, load_wordnet_triplets

__all__ = [
    "HELD_OUT_ARTICLES",
    "TRAINING_ARTICLES",
    "WORDNET_DOMAINS",
    "WORDNET_SPLITS",
    "Declaration",
    "aligned_paragraphs",
    "load_udhr",
    "load_wordnet_triplets",
    "read_corpus",
]
