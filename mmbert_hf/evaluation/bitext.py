"""Bitext retrieval: does a sentence find its translation?

Design decisions:

- A query in one language is compared by cosine with every item of another language; it is right when its own
  translation is the nearest. Accuracy is averaged over queries, then over ordered pairs of languages, so a language
  with fewer items does not weigh less. Chance is the mean of ``1 / items``.
- Embeddings of one language share a large common part ("which language is this?") that says nothing about the item. It
  can be removed by subtracting the language's mean, estimated on text that is not evaluated.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True)
class BitextScore:
    """Result of `bitext_retrieval`.

    Attributes:
        accuracy: Mean over ordered language pairs of the share of queries whose nearest item is their translation.
        chance: What guessing scores.
        num_pairs: Ordered language pairs.
        per_language: Mean accuracy of the pairs that start at a language.
    """

    accuracy: float
    chance: float
    num_pairs: int
    per_language: dict[str, float]


@torch.no_grad()
def embed_texts(
    model: Any, tokenizer: Any, texts: Sequence[str], *, max_length: int = 512, batch_size: int = 32
) -> np.ndarray:
    """Return the mean of the last hidden states over real tokens: float32 [texts, hidden size].

    Args:
        model: An encoder, or a task model with `base_model`.
        tokenizer: Of the model.
        texts: What to embed; longer texts are truncated.
        max_length: In tokens.
        batch_size: Texts per forward pass; texts are sorted by length first.
    """
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    embeddings: list[Any] = [None] * len(texts)
    was_training = model.training
    model.eval()
    for start in range(0, len(order), batch_size):
        numbers = order[start : start + batch_size]
        batch = tokenizer(
            [texts[i] for i in numbers], truncation=True, max_length=max_length, padding=True, return_tensors="pt"
        ).to(model.device)
        hidden = model.base_model(**batch)[0].float()
        mask = batch["attention_mask"][..., None]
        means = (hidden * mask).sum(1) / mask.sum(1)
        for number, mean in zip(numbers, means.cpu().numpy(), strict=True):
            embeddings[number] = mean
    model.train(was_training)
    return np.stack(embeddings)


def bitext_retrieval(
    embeddings: Mapping[str, Mapping[Any, np.ndarray]], centres: Mapping[str, np.ndarray] | None = None
) -> BitextScore:
    """Score translation retrieval between all ordered pairs of languages.

    Args:
        embeddings: Per language, item -> vector [hidden size]. A pair is scored on the items that both languages have.
        centres: Per language a vector to subtract first, estimated on other text; none is subtracted if None.

    Returns:
        Accuracy and chance.

    Raises:
        ValueError: Fewer than two languages, or a pair with fewer than two common items: there is nothing to retrieve.

    Example:
        >>> axis = np.eye(3)
        >>> score = bitext_retrieval({"dan": dict(enumerate(axis)), "fao": dict(enumerate(axis[:2] + 0.1))})
        >>> score.accuracy, score.num_pairs, score.chance
        (1.0, 2, 0.5)
    """
    if len(embeddings) < 2:
        raise ValueError(f"bitext retrieval needs at least two languages, got {list(embeddings)}")
    unit = {
        code: {item: _unit(vector - (0.0 if centres is None else centres[code])) for item, vector in items.items()}
        for code, items in embeddings.items()
    }
    accuracy: dict[str, list[float]] = {code: [] for code in unit}
    chance = []
    for source, queries in unit.items():
        for target, candidates in unit.items():
            if source == target:
                continue
            common = [item for item in queries if item in candidates]
            if len(common) < 2:
                raise ValueError(f"{source} and {target} have {len(common)} items in common; at least two are needed")
            similarity = np.stack([queries[i] for i in common]) @ np.stack([candidates[i] for i in common]).T
            accuracy[source].append(float((similarity.argmax(1) == np.arange(len(common))).mean()))
            chance.append(1.0 / len(common))
    per_language = {code: float(np.mean(values)) for code, values in accuracy.items()}
    return BitextScore(
        accuracy=float(np.mean([value for values in accuracy.values() for value in values])),
        chance=float(np.mean(chance)),
        num_pairs=len(chance),
        per_language=per_language,
    )


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / max(float(np.linalg.norm(vector)), 1e-12)
