"""What must be the same in checkpoints that are merged: network, tokenizer, tensors.

Design decisions:

- Configurations are compared as the networks they describe, so a ModernBERT folder and an mmBERT folder of the same
  network fit. Only values that cannot change what a given input gives (dropout, initialisation, file types) may differ.
- Of the tokenizer, ``tokenizer.json`` is compared, without its padding and truncation, which are settings of the last
  call and not of the tokenizer.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from mmbert_hf.configuration import MMBertConfig
from mmbert_hf.weight_files import DTYPES, WeightFolder

__all__ = ["check_belong_together", "result_dtypes", "tokenizer_source"]

TOKENIZER = "tokenizer.json"
# Values of a configuration that may differ. They act in training, in loading, or on what is returned.
FREE_VALUES = frozenset(
    "_name_or_path architectures attention_dropout attention_output_dropout chunk_size_feed_forward classifier_dropout "
    "deterministic_flash_attn dtype embedding_dropout initializer_cutoff_factor initializer_range mlp_dropout "
    "model_type output_attentions output_hidden_states problem_type return_dict sparse_prediction torch_dtype "
    "transformers_version".split()
)


def check_belong_together(folders: Sequence[WeightFolder]) -> None:
    """Raise unless all folders hold the same network with the same tokenizer and the same tensors.

    Args:
        folders: Open folders; each is compared with the first.

    Raises:
        ValueError: Naming two folders and what differs between them.
    """
    first = folders[0]
    for other in folders[1:]:
        _check_same_config(first, other)
        _check_same_tensors(first, other)
        _check_same_integers(first, other)
    with_tokenizer = [folder for folder in folders if (folder.folder / TOKENIZER).is_file()]
    for other in with_tokenizer[1:]:
        _check_same_tokenizer(with_tokenizer[0], other)


def _check_same_config(first: WeightFolder, other: WeightFolder) -> None:
    ours, theirs = (json.loads(folder.config.to_json_string(use_diff=False)) for folder in (first, other))
    fields = MMBertConfig().to_dict().keys() - FREE_VALUES  # a file may hold other values, which nothing reads
    differ = {name: (ours.get(name), theirs.get(name)) for name in sorted(fields) if ours.get(name) != theirs.get(name)}
    if differ:
        shown = "; ".join(f"{name} is {mine} and {their}" for name, (mine, their) in differ.items())
        raise ValueError(
            f"{first.name} and {other.name} are different networks: {shown}. Only equal ones can be merged"
        )


def _check_same_tensors(first: WeightFolder, other: WeightFolder) -> None:
    for one, another in ((first, other), (other, first)):
        if only := sorted(one.tensors.keys() - another.tensors.keys()):
            raise ValueError(
                f"{one.name} has {_some(only)}, which {another.name} has not; save both with the same model class"
            )
    for name, tensor in first.tensors.items():
        theirs = other.tensors[name]
        both_float = tensor.dtype is not None and theirs.dtype is not None
        if tensor.shape != theirs.shape or (tensor.kind != theirs.kind and not both_float):
            raise ValueError(
                f"{name} is {list(tensor.shape)} {tensor.kind} in {first.name} and {list(theirs.shape)} {theirs.kind} "
                f"in {other.name}; only tensors of one shape can be merged"
            )


def _check_same_integers(first: WeightFolder, other: WeightFolder) -> None:
    for name, tensor in first.tensors.items():
        if tensor.dtype is None and not all(
            torch.equal(first.read(name, rows), other.read(name, rows)) for rows in tensor.pieces()
        ):
            raise ValueError(
                f"{name} is {tensor.kind} and differs between {first.name} and {other.name}; only "
                f"{', '.join(DTYPES)} tensors are merged, others must be equal"
            )


def _check_same_tokenizer(first: WeightFolder, other: WeightFolder) -> None:
    one, another = (folder.folder / TOKENIZER for folder in (first, other))
    if one.read_bytes() == another.read_bytes():
        return
    ours, theirs = _tokenizer_values(one), _tokenizer_values(another)
    if differ := sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)):
        raise ValueError(
            f"the tokenizers of {first.name} and {other.name} differ in {_some(differ)} of {TOKENIZER}; their "
            "embeddings belong to different tokens and cannot be merged"
        )


def _tokenizer_values(path: Path) -> dict[str, Any]:
    values = json.loads(path.read_text(encoding="utf-8"))
    return {name: value for name, value in values.items() if name not in ("padding", "truncation")}


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def tokenizer_source(folders: Sequence[WeightFolder]) -> Path | None:
    """The first folder that has a tokenizer, or None."""
    return next((folder.folder for folder in folders if (folder.folder / TOKENIZER).is_file()), None)


def result_dtypes(folders: Sequence[WeightFolder], dtype: torch.dtype | str | None) -> dict[str, torch.dtype | None]:
    """The type of every merged tensor; None for tensors that are copied.

    Args:
        folders: The checkpoints, without the base.
        dtype: Type for all float tensors; those of the checkpoints if None.

    Returns:
        Name -> type.

    Raises:
        ValueError: If `dtype` is unknown, or is None and the checkpoints have different types.
    """
    known = {str(one).removeprefix("torch."): one for one in DTYPES.values()}
    wanted = str(dtype).removeprefix("torch.")
    if dtype is not None and wanted not in known:
        raise ValueError(f"dtype is {dtype!r}; it must be one of {', '.join(known)}")
    found: dict[str, torch.dtype | None] = {}
    for name, tensor in folders[0].tensors.items():
        kinds = sorted({folder.tensors[name].kind for folder in folders})
        if tensor.dtype is not None and dtype is None and len(kinds) > 1:
            raise ValueError(
                f"{name} is {' in some and '.join(kinds)} in other checkpoints; pass dtype to say what the result is"
            )
        found[name] = None if tensor.dtype is None else known[wanted] if dtype is not None else tensor.dtype
    if not any(found.values()):
        raise ValueError(f"{folders[0].name} has no {', '.join(DTYPES)} tensors; convert it to one of these types")
    return found
