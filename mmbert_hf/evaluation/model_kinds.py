"""What kind of model a folder or a name on the Hub is, read from its small files before any weights are."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmbert_hf.hub.names import check_folder_or_hub_name

__all__ = ["ModelKind", "load_embedder", "read_model_kind", "require_embedder", "require_encoder", "require_masked_lm"]

DECODERS = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")


@dataclass(frozen=True)
class ModelKind:
    """What the files of a model say that it is.

    Attributes:
        name: Folder or Hub name.
        is_embedder: It has the modules of sentence-transformers.
        architecture: Class that it was saved from; "" if that is not said.
        model_type: Of its configuration; "" where that lies in a folder of a module.
    """

    name: str
    is_embedder: bool
    architecture: str
    model_type: str

    def __str__(self) -> str:
        if self.is_embedder:
            return f"{self.name} is a sentence-transformers model"
        return f"{self.name} is a {self.architecture or self.model_type or 'model that does not say what it is'}"


def read_model_kind(name: str) -> ModelKind:
    """Read what a model is.

    Args:
        name: Folder or Hub name.

    Raises:
        FileNotFoundError: There is no such folder, and it cannot be a name on the Hub; or it has no model in it.
        OSError: The Hub cannot be reached, or does not have it.

    Example:
        >>> read_model_kind("./no-such-folder")
        Traceback (most recent call last):
            ...
        FileNotFoundError: there is no folder './no-such-folder', and a name on the Hub is owner/name
    """
    check_folder_or_hub_name(name)
    modules, config = _read_json(name, "modules.json"), _read_json(name, "config.json")
    if modules is None and config is None:
        where = "" if Path(name).is_dir() else " on the Hub, or the Hub may not be asked (HF_HUB_OFFLINE)"
        raise FileNotFoundError(
            f"{name} has neither config.json nor modules.json{where}: it is no model of transformers"
        )
    config = config or {}
    architectures = config.get("architectures") or [""]
    return ModelKind(name, modules is not None, architectures[0], config.get("model_type", ""))


def require_masked_lm(kind: ModelKind) -> None:
    """Refuse what predicts no masked tokens.

    Raises:
        ValueError: It is an embedder, or was saved without a head of masked language modelling.
    """
    if kind.is_embedder:
        raise ValueError(
            f"{kind}, which has no head that predicts masked tokens: measure it with retrieval, bitext or mteb, or give the "
            "masked language model that it was made from"
        )
    if not kind.architecture.endswith(("ForMaskedLM", "ForPreTraining")):
        raise ValueError(f"{kind}, which has no head that predicts masked tokens: give a model saved as ...ForMaskedLM")


def require_embedder(kind: ModelKind, pooling: str | None = None) -> None:
    """Refuse what is no embedder, unless a pooling is named that makes one of an encoder.

    Raises:
        ValueError: It is no embedder; or it is one and a pooling is named all the same; or it is a decoder.
    """
    if kind.is_embedder:
        if pooling is not None:
            raise ValueError(f"{kind} and has a pooling of its own: leave out --pooling")
        return
    _refuse_decoder(kind)
    if pooling is None:
        raise ValueError(
            f"{kind} and not of sentence-transformers, so its vectors were not trained to be compared: fine-tune it "
            "first (examples/finetuning/retrieval.py), or give --pooling mean to measure it as it is"
        )


def require_encoder(kind: ModelKind) -> None:
    """Refuse what cannot be fine-tuned as an encoder.

    Raises:
        ValueError: It is a decoder, or the configuration of its transformer is not where transformers looks for it.
    """
    _refuse_decoder(kind)
    if not kind.model_type:
        raise ValueError(
            f"{kind} without a config.json of its own: give the folder of its transformer, such as 0_Transformer"
        )


@contextmanager
def without_load_report() -> Iterator[None]:
    """Load without a report of heads that are left out, or drawn at random: here they have to be."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)


def _refuse_decoder(kind: ModelKind) -> None:
    if kind.architecture.endswith(DECODERS):
        raise ValueError(
            f"{kind}, which generates text: this is for encoders; mmbert evaluate-policy measures policies"
        )


def _read_json(name: str, file: str) -> Any:
    """A small file of a folder or of the Hub; None if the repository does not have it."""
    from transformers.utils import cached_file

    try:
        path = cached_file(name, file, _raise_exceptions_for_missing_entries=False)
    except OSError as error:  # says in several lines what to do about tokens
        raise OSError(f"{name} cannot be read: {str(error).strip().splitlines()[0]}") from error
    if path is None:
        return None
    with open(path, encoding="utf-8") as opened:
        try:
            return json.load(opened)
        except ValueError as error:
            raise ValueError(f"{file} of {name} is no JSON: {error}") from error


def load_embedder(kind: ModelKind, *, pooling: str | None = None, max_length: int | None = None) -> Any:
    """Load an embedder, or make one of an encoder.

    Args:
        kind: What it is; `require_embedder` checks it.
        pooling: How an encoder's hidden states become a vector: "mean" or "cls".
        max_length: Tokens of a text, the rest is cut off; the model's own limit if None.

    Returns:
        `sentence_transformers.SentenceTransformer` in evaluation mode.

    Raises:
        ValueError: As `require_embedder` says.
    """
    require_embedder(kind, pooling)
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    if kind.is_embedder:
        model = SentenceTransformer(kind.name)
        if max_length is not None:
            model.max_seq_length = max_length
        return model.eval()
    with without_load_report():
        transformer = Transformer(kind.name, max_seq_length=max_length)
    size = transformer.get_embedding_dimension()
    return SentenceTransformer(modules=[transformer, Pooling(size, pooling_mode=pooling)]).eval()
