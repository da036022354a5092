"""Metrics of the fine-tuning tasks: classes, values, entities, answers.

Design decisions:

- scikit-learn and scipy compute what they have. Entities and answers are counted here: thirty lines each, for any language.
- An entity is a label with its characters, and it is right if all three are: how words were cut into tokens never shows.
- Tags are read as leniently as conlleval does: an I- that continues nothing begins an entity.
- Answers are compared as SQuAD does (lower case, no punctuation, white space as one blank), for all scripts: punctuation is
  what Unicode calls so; the Ethiopic word space is a space; every Chinese or Japanese character is a word of its own, as in
  MLQA. English articles count, unless asked for otherwise: elsewhere "a" and "an" are words.
"""

from __future__ import annotations

import math
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from mmbert_hf.token_labels import Span

__all__ = [
    "Entity",
    "answer_scores",
    "classification_scores",
    "entities_of",
    "entity_scores",
    "normalise_answer",
    "regression_scores",
]

ARTICLES = re.compile(r"\b(a|an|the)\b")
ETHIOPIC_WORD_SPACE = "\u1361"
UNSPACED = re.compile(r"([\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff])")  # kana and ideographs


class Entity(NamedTuple):
    """Characters [start, end) of a text, and what they name."""

    start: int
    end: int
    label: str


def classification_scores(predictions: Sequence[int], labels: Sequence[int]) -> dict[str, float]:
    """Accuracy, macro F1 and the correlation coefficient of Matthews.

    Args:
        predictions: Class of each example.
        labels: The right ones.

    Returns:
        accuracy, macro_f1 and matthews_correlation.

    Raises:
        ValueError: The lists are empty or differ in length.

    Example:
        >>> classification_scores([0, 1, 1, 1], [0, 1, 0, 1])["accuracy"]
        0.75
    """
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

    _check_lengths(predictions, labels)
    return {
        "accuracy": float(accuracy_score(labels, predictions)),
        "macro_f1": float(f1_score(labels, predictions, average="macro", zero_division=0.0)),
        "matthews_correlation": float(matthews_corrcoef(labels, predictions)),
    }


def regression_scores(predictions: Sequence[float], labels: Sequence[float]) -> dict[str, float]:
    """Correlations of Pearson and Spearman, as for STS-B.

    Args:
        predictions: Value of each example.
        labels: The right ones.

    Returns:
        pearson and spearman; 0 where the predictions are all the same, which says nothing of the labels.

    Raises:
        ValueError: The lists differ in length or have fewer than two values, or the labels are all the same.

    Example:
        >>> regression_scores([0.1, 0.2, 0.4], [1.0, 2.0, 4.0])["spearman"]
        1.0
    """
    from scipy.stats import pearsonr, spearmanr

    _check_lengths(predictions, labels)
    if len(set(labels)) < 2:
        raise ValueError(f"all {len(labels)} labels are the same: nothing can correlate with them")
    if len(set(predictions)) < 2:
        return {"pearson": 0.0, "spearman": 0.0}
    return {
        "pearson": float(pearsonr(predictions, labels).statistic),
        "spearman": round(float(spearmanr(predictions, labels).statistic), 12),
    }


def entities_of(tags: Sequence[str], spans: Sequence[Span]) -> list[Entity]:
    """Read the entities off a sequence of tags.

    Args:
        tags: "O", "B-x" and "I-x", one for each word or token.
        spans: Characters of each, in order.

    Returns:
        Entities from the first character of their first word to the last of their last. An "I-x" behind anything but
        "B-x" or "I-x" begins one.

    Raises:
        ValueError: There are not as many spans as tags.

    Example:
        >>> entities_of(["B-LOC", "I-LOC", "O", "I-PER"], [(0, 3), (4, 8), (9, 11), (12, 15)])
        [Entity(start=0, end=8, label='LOC'), Entity(start=12, end=15, label='PER')]
    """
    found: list[Entity] = []
    previous = "O"
    for tag, (start, end) in zip(tags, spans, strict=True):
        prefix, _, label = tag.partition("-")
        if tag != "O":
            continues = prefix == "I" and previous in (f"B-{label}", f"I-{label}")
            found.append(Entity(found.pop().start if continues else start, end, label))
        previous = tag
    return found


def entity_scores(predicted: Sequence[Iterable[Entity]], gold: Sequence[Iterable[Entity]]) -> dict[str, float]:
    """Precision, recall and F1 over the entities of all texts (micro average).

    Args:
        predicted: Entities of each text.
        gold: The right ones.

    Returns:
        precision, recall and f1; 0 where there is nothing to divide by.

    Raises:
        ValueError: The lists are empty or differ in length.

    Example:
        >>> gold = [[Entity(0, 4, "LOC"), Entity(5, 9, "PER")]]
        >>> entity_scores([[Entity(0, 4, "LOC"), Entity(5, 8, "PER")]], gold)["f1"]
        0.5
    """
    _check_lengths(predicted, gold)
    pairs = [(set(found), set(wanted)) for found, wanted in zip(predicted, gold, strict=True)]
    right = sum(len(found & wanted) for found, wanted in pairs)
    num_found, num_wanted = sum(len(found) for found, _ in pairs), sum(len(wanted) for _, wanted in pairs)
    return {
        "f1": 2 * right / max(1, num_found + num_wanted),
        "precision": right / max(1, num_found),
        "recall": right / max(1, num_wanted),
    }


def normalise_answer(text: str, *, strip_articles: bool = False) -> str:
    """Bring an answer into the form that is compared.

    Args:
        text: An answer.
        strip_articles: Also remove "a", "an" and "the", as the evaluation of SQuAD does.

    Returns:
        It in lower case, without punctuation, with single blanks.

    Example:
        >>> normalise_answer("  Tórshavn,  í Føroyum. "), normalise_answer("The cat!", strip_articles=True)
        ('tórshavn í føroyum', 'cat')
    """
    text = text.lower().replace(ETHIOPIC_WORD_SPACE, " ")
    text = "".join(character for character in text if not _is_punctuation(character))
    if strip_articles:
        text = ARTICLES.sub(" ", text)
    return " ".join(text.split())


def answer_scores(
    predicted: Sequence[str], gold: Sequence[Sequence[str]], *, strip_articles: bool = False
) -> dict[str, float]:
    """Exact match and F1 of words, as for SQuAD: of each question the best over its right answers, then the mean.

    Args:
        predicted: Answer of each question; "" for none.
        gold: The right answers of each; an empty list where there is none, and then only "" is right.
        strip_articles: As for `normalise_answer`.

    Returns:
        exact_match and f1, from 0 to 1.

    Raises:
        ValueError: The lists are empty or differ in length.

    Example:
        >>> answer_scores(["in Tórshavn", ""], [["Tórshavn"], []])
        {'exact_match': 0.5, 'f1': 0.8333333333333333}
    """
    _check_lengths(predicted, gold)
    exact, overlap = [], []
    for answer, wanted in zip(predicted, gold, strict=True):
        found = normalise_answer(answer, strip_articles=strip_articles)
        # as SQuAD does: an answer of punctuation alone is none
        targets = [normalise_answer(text, strip_articles=strip_articles) for text in wanted]
        targets = [target for target in targets if target] or [""]
        exact.append(max(float(found == target) for target in targets))
        overlap.append(max(_word_f1(found, target) for target in targets))
    return {"exact_match": math.fsum(exact) / len(exact), "f1": math.fsum(overlap) / len(overlap)}


def _word_f1(found: str, target: str) -> float:
    words, wanted = (UNSPACED.sub(r" \1 ", text).split() for text in (found, target))
    if not words or not wanted:
        return float(words == wanted)
    common = sum((Counter(words) & Counter(wanted)).values())
    return 2 * common / (len(words) + len(wanted))


def _is_punctuation(character: str) -> bool:
    return character in string.punctuation or unicodedata.category(character).startswith("P")


def _check_lengths(predictions: Sequence[Any] | np.ndarray, labels: Sequence[Any] | np.ndarray) -> None:
    if len(predictions) != len(labels) or not len(labels):
        raise ValueError(f"got {len(predictions)} predictions and {len(labels)} labels: one of each, and at least one")
