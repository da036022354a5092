"""Weights in folders: read piece by piece, written shard by shard.

Design decisions:

- A tensor is read in pieces of whole rows, which safetensors maps from the file; a model never lies in memory as a
  whole. What a folder holds (names, shapes, types) is known before anything is read.
- A tied decoder is one tensor under two names. A folder may carry either or both; here it has one name, that of the
  embeddings, and both copies must agree.
- A folder is written beside its destination and renamed into place, as an export is (`mmbert_hf.conversion`).
"""

import json
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from huggingface_hub import snapshot_download, split_state_dict_into_shards_factory
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from mmbert_hf.configuration import MMBertConfig
from mmbert_hf.output_folders import TOKENIZER_FILES

__all__ = ["PIECE_ELEMENTS", "TensorShape", "WeightFolder", "write_shards"]

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
DOWNLOADED = ("config.json", "model*.safetensors", INDEX, *TOKENIZER_FILES)
MODEL_TYPES = ("mmbert", "modernbert")
DECODER, EMBEDDINGS = "decoder.weight", "model.embeddings.tok_embeddings.weight"
DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}  # what arithmetic in float32 serves
PIECE_ELEMENTS = 2**18  # one MiB of float32


@dataclass(frozen=True)
class TensorShape:
    """What a file says of a tensor: its shape, and its type as safetensors spells it (``"BF16"``)."""

    shape: tuple[int, ...]
    kind: str

    @property
    def dtype(self) -> torch.dtype | None:
        """The torch type, or None if tensors of this kind are not averaged (integers, 8-bit floats, float64)."""
        return DTYPES.get(self.kind)

    def pieces(self) -> Iterator[slice]:
        """Rows to read at a time, so that a piece has at most `PIECE_ELEMENTS` elements, or one row.

        >>> list(TensorShape((5, 2**17), "F32").pieces())
        [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
        """
        num_rows = self.shape[0] if self.shape else 1
        row_elements = max(1, torch.Size(self.shape[1:]).numel())
        step = max(1, PIECE_ELEMENTS // row_elements)
        return (slice(start, min(num_rows, start + step)) for start in range(0, num_rows, step))


@dataclass
class WeightFolder:
    """A model folder with safetensors, open for reading. Use it as a context manager.

    Attributes:
        name: As the user wrote it: a folder, a Hub name, or ``name@revision``.
        folder: Where the files are.
        config: Its configuration, of either model type, as mmBERT's.
        tensors: Name -> shape and type, in the order of the files.
    """

    name: str
    folder: Path
    config: MMBertConfig
    tensors: dict[str, TensorShape] = field(default_factory=dict)
    _slices: dict[str, Any] = field(default_factory=dict, repr=False)
    _files: ExitStack = field(default_factory=ExitStack, repr=False)

    @classmethod
    def open(cls, name: str | Path) -> Self:
        """Find a folder, or download a model from the Hub, and read its configuration and the headers of its weights.

        Args:
            name: A folder, a Hub name, or a Hub name with a branch, tag or commit: ``"owner/model@revision"``.

        Returns:
            The open folder.

        Raises:
            ValueError: If it is another kind of model, its index and files disagree, or a tied decoder is not tied.
            OSError: If there is no such folder or model, there are no safetensors in it, or a file is damaged.
        """
        folder = _find(str(name))
        opened = cls(str(name), folder, _read_config(str(name), folder))
        try:
            opened._open_files()
            opened._tie()
        except BaseException:
            opened.close()
            raise
        return opened

    def close(self) -> None:
        """Close the files."""
        self._slices.clear()
        self._files.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read(self, name: str, rows: slice) -> torch.Tensor:
        """Some rows of a tensor, as they are in the file; a tensor without dimensions as a whole."""
        try:
            return self._slices[name][rows if self.tensors[name].shape else ...]
        except SafetensorError as error:
            raise OSError(f"{self.name}: could not read {name}: {error}; copy the folder anew") from error

    def _open_files(self) -> None:
        by_file = _weight_map(self.name, self.folder)
        for path, expected in by_file.items():
            try:
                file = self._files.enter_context(safe_open(path, framework="pt"))
            except (SafetensorError, FileNotFoundError) as error:
                raise OSError(
                    f"{self.name}: {path.name} is missing or damaged ({error}); copy or download the folder anew"
                ) from error
            names = set(file.keys())
            if expected is not None and names != expected:
                raise ValueError(
                    f"{self.name}: {INDEX} and {path.name} disagree about {sorted(names ^ expected)[:5]}; the files are "
                    "of different models: save the model anew"
                )
            for tensor_name in sorted(names):
                part = file.get_slice(tensor_name)
                self._slices[tensor_name] = part
                self.tensors[tensor_name] = TensorShape(tuple(part.get_shape()), part.get_dtype())

    def _tie(self) -> None:
        if not self.config.tie_word_embeddings or DECODER not in self.tensors:
            return
        if EMBEDDINGS not in self.tensors:
            self.tensors[EMBEDDINGS], self._slices[EMBEDDINGS] = self.tensors[DECODER], self._slices[DECODER]
        shape = self.tensors[DECODER]
        if shape != self.tensors[EMBEDDINGS] or not all(
            torch.equal(self.read(DECODER, rows), self.read(EMBEDDINGS, rows)) for rows in shape.pieces()
        ):
            raise ValueError(
                f"{self.name}: config.json says that {DECODER} is tied to {EMBEDDINGS}, and the file has different "
                "values for them; delete one of them, or set tie_word_embeddings to false"
            )
        del self.tensors[DECODER], self._slices[DECODER]


def _find(name: str) -> Path:
    if Path(name).expanduser().is_dir():
        return Path(name).expanduser()
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise FileNotFoundError(f"{name} is not a folder; give a folder or a Hub name such as jhu-clsp/mmBERT-base")
    repository, _, revision = name.partition("@")
    return Path(snapshot_download(repository, revision=revision or None, allow_patterns=list(DOWNLOADED)))


def _read_config(name: str, folder: Path) -> MMBertConfig:
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{name} has no config.json; give the folder that save_pretrained wrote")
    model_type = json.loads(path.read_text(encoding="utf-8")).get("model_type")
    if model_type not in MODEL_TYPES:
        raise ValueError(f"{name} has model_type {model_type!r}; it must be one of {', '.join(MODEL_TYPES)}")
    return MMBertConfig.from_pretrained(folder)


def _weight_map(name: str, folder: Path) -> dict[Path, set[str] | None]:
    """The files with weights, and what the index says each holds (None without an index)."""
    if (folder / INDEX).is_file():
        weight_map = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
        files: dict[Path, set[str] | None] = {folder / file: set() for file in sorted(set(weight_map.values()))}
        for tensor_name, file in weight_map.items():
            held = files[folder / file]
            assert held is not None
            held.add(tensor_name)
        return files
    if not (folder / WEIGHTS).is_file():
        raise FileNotFoundError(
            f"{name} has no {WEIGHTS}; load it with AutoModelForMaskedLM.from_pretrained and write it again with "
            "save_pretrained, which turns a pytorch_model.bin into safetensors"
        )
    return {folder / WEIGHTS: None}


def write_shards(
    folder: Path, tensors: dict[str, torch.Tensor], compute: Iterable[tuple[str, torch.Tensor]], max_shard_size: str
) -> int:
    """Write weights as transformers does, one shard in memory at a time.

    Args:
        folder: An existing folder.
        tensors: Name -> a tensor of the shape and type to come; on the ``meta`` device, so that it needs no memory.
        compute: Name and value of every one of them, in the same order.
        max_shard_size: Largest file, such as ``"5GB"``; a larger tensor has a file of its own.

    Returns:
        Number of files.

    Raises:
        ValueError: If `max_shard_size` cannot be read.
    """
    plan = split_state_dict_into_shards_factory(
        tensors,
        get_storage_size=lambda tensor: tensor.nbytes,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=max_shard_size,
    )
    files = {file: set(names) for file, names in plan.filename_to_tensors.items()}
    pending: dict[str, dict[str, torch.Tensor]] = {file: {} for file in files}
    for name, value in compute:
        file = plan.tensor_to_filename[name]
        pending[file][name] = value
        del value  # or it would live on while the next one is computed
        if pending[file].keys() == files[file]:
            save_file(pending.pop(file), folder / file, metadata={"format": "pt"})
    assert not pending, f"not computed: {[sorted(files[file] - pending[file].keys()) for file in pending]}"
    if plan.is_sharded:
        metadata = {"total_parameters": sum(tensor.numel() for tensor in tensors.values()), **plan.metadata}
        index = {"metadata": metadata, "weight_map": plan.tensor_to_filename}
        (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return len(files)
