"""Texts into embeddings with gradients, with the prompts that the embedder itself uses for queries and documents.

Shape legend: R texts (rows), L longest of them in tokens, D size of an embedding.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = ["Role", "embed", "prompt_of", "row_lengths", "to_features"]

Role = Literal["query", "document"]
# As sentence-transformers' encode_query and encode_document look for them.
PROMPT_NAMES = {"query": ("query",), "document": ("document", "passage", "corpus")}


def prompt_of(model: "SentenceTransformer", role: Role) -> str | None:
    """The prompt that `encode_query` or `encode_document` puts in front of a text.

    Args:
        model: An embedder.
        role: What the text is.

    Returns:
        The prompt of that name, else the default prompt, else None.
    """
    for name in PROMPT_NAMES[role]:
        if name in model.prompts:
            return model.prompts[name] or None  # an empty one is a choice: no prompt
    default = model.default_prompt_name
    return model.prompts.get(default) or None if default is not None else None


def to_features(model: "SentenceTransformer", texts: Sequence[str], role: Role) -> dict[str, Any]:
    """What the embedder's modules are called with: token ids and masks on the model's device, prompts in front.

    Args:
        model: An embedder.
        texts: R texts.
        role: What they are.
    """
    features = model.preprocess(list(texts), prompt=prompt_of(model, role))
    return {name: value.to(model.device) if hasattr(value, "to") else value for name, value in features.items()}


def row_lengths(features: dict[str, Any]) -> torch.Tensor:
    """Number of real tokens of each row, prompts and special tokens included: int64 [R], on the CPU.

    Args:
        features: From `to_features`; rows padded to [R, L], or without padding and with ``cu_seq_lens_q``.
    """
    if "cu_seq_lens_q" in features:
        return features["cu_seq_lens_q"].long().diff().cpu()
    return features["attention_mask"].sum(dim=1).long().cpu()


def embed(model: "SentenceTransformer", texts: Sequence[str], role: Role) -> torch.Tensor:
    """Embeddings as the embedder returns them, with gradients.

    Args:
        model: An embedder, in the mode (training, evaluation) it is to run in.
        texts: R texts.
        role: What they are; decides the prompt.

    Returns:
        [R, D] in the model's dtype, on its device.
    """
    return model(to_features(model, texts, role))["sentence_embedding"]
