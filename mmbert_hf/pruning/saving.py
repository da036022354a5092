"""Write an embedder so that plain ``SentenceTransformer(folder)`` loads it, with no code of ours.

Design decisions:

- sentence-transformers refuses classes from outside its package unless its user trusts remote code, so a model with
  such a module is refused here, before anything is written.
- An mmBERT encoder is written as the ModernBERT it is (``model_type: modernbert``), and its tokenizer as the plain class
  of transformers. Configurations of ModernBERT are written in the spelling of transformers 4 too, so that a changed
  layer pattern is not read as the usual one there.
- The folder appears at once, when all is written, or not at all.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import ModernBertConfig, PreTrainedModel

from mmbert_hf.conversion import MODERNBERT_CLASSES, modernbert_values
from mmbert_hf.output_folders import checked_destination, output_folder
from mmbert_hf.pruning.targets import check_weights, encoder_of

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = ["check_saveable", "save_embedder"]


def save_embedder(model: "SentenceTransformer", folder: str | Path, *, overwrite: bool = False) -> Path:
    """Write an embedder that loads without this package.

    Args:
        model: Made of modules of sentence-transformers, around a model of transformers or of this package.
        folder: Where to write. No model card is written.
        overwrite: Replace the model in a folder that is not empty; other files, such as a model card, stay.

    Returns:
        The path of the folder.

    Raises:
        FileExistsError: If `folder` is not empty and `overwrite` is false.
        NotADirectoryError: If it is a file.
        ValueError: If a module comes from elsewhere, adapters are not merged, or weights are quantised.
        OSError: If writing fails, for example for lack of space; `folder` is as it was then.

    Example:
        >>> save_embedder(pruned, "pruned")  # doctest: +SKIP
        PosixPath('/home/user/pruned')
    """
    destination = checked_destination(folder, overwrite)
    encoder = encoder_of(model)
    architecture = check_saveable(model)
    with output_folder(destination, overwrite=overwrite, replaces_tokenizer=True) as staging:
        _write(model, encoder, architecture, staging)
    return destination


def check_saveable(model: "SentenceTransformer") -> str:
    """Refuse what `save_embedder` cannot write, before anything is done with it; gives the name of the encoder's class.

    Args:
        model: An embedder.

    Raises:
        ValueError: If a module comes from elsewhere, adapters are not merged, or weights are quantised.
    """
    encoder = encoder_of(model)
    check_weights(encoder)
    architecture = _stock_architecture(encoder)
    _check_modules(model)
    return architecture


def _stock_architecture(encoder: PreTrainedModel) -> str:
    """Name of the class of transformers that loads these weights."""
    ours = {cls: native.__name__ for cls, native in MODERNBERT_CLASSES.items()}
    for cls in type(encoder).__mro__:
        if cls in ours:
            return ours[cls]
    if not type(encoder).__module__.startswith("transformers."):
        raise ValueError(
            f"the encoder is a {type(encoder).__module__}.{type(encoder).__name__}, which is no class of transformers, so "
            "others could load it only by trusting remote code; load the checkpoint without trust_remote_code"
        )
    return type(encoder).__name__


def _check_modules(model: "SentenceTransformer") -> None:
    from sentence_transformers.base.modules.module import Module

    parts = dict(model.named_children()) | {n: m for n, m in model.named_modules() if isinstance(m, Module)}
    foreign = {
        name: f"{type(module).__module__}.{type(module).__name__}"
        for name, module in parts.items()
        if module is not model and not type(module).__module__.startswith("sentence_transformers.")
    }
    if foreign:
        raise ValueError(
            f"the modules {foreign} are not of the sentence_transformers package, which refuses to load such classes "
            "without trust_remote_code; use its own modules, for example from sentence_transformers.sentence_transformer"
            ".modules"
        )


def _write(model: "SentenceTransformer", encoder: PreTrainedModel, architecture: str, folder: Path) -> None:
    try:
        model.save_pretrained(str(folder), create_model_card=False)
        if isinstance(encoder.config, ModernBertConfig):
            values = modernbert_values(encoder.config, architecture)
            _write_json(folder / "config.json", values | {"dtype": str(encoder.dtype).removeprefix("torch.")})
        tokenizer: Any = model.tokenizer
        if hasattr(tokenizer, "save_portable"):
            tokenizer.save_portable(folder)
    except Exception as error:
        if type(error) is not Exception:  # tokenizers reports a failed write so
            raise
        raise OSError(f"could not write the embedder beside its destination, which was not touched: {error}") from error


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
