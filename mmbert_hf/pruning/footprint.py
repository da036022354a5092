"""What an embedder costs: bytes on disk, parameters, seconds; and the width that a size asks for.

Design decisions:

- Zeros are not counted as savings. Bytes are those of files that loading needs, seconds are measured.
- Sizes of pruned models are foreseen exactly, without making them: every block loses the same, and what is stored is
  known from the tensors (the header of the file, some kilobytes, is not counted).
- Models are timed in turns, so that whatever else the machine does hits all of them, and ratios are taken within a turn.
"""

import json
import math
import statistics
import struct
import tempfile
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from mmbert_hf.pruning.saving import save_embedder
from mmbert_hf.pruning.targets import encoder_of, find_blocks, find_feed_forwards

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = ["Footprint", "Latency", "measure_footprint", "measure_latency", "predict_bytes", "width_for_size"]

WEIGHTS = ("model.safetensors", "model-*-of-*.safetensors")
TOKENIZERS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
)
VOCABULARIES = (
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "*.model",
    "*.spm",
)  # read only where there is no tokenizer.json
SETTINGS = ("config.json", "modules.json", "*sentence_transformers.json", "sentence_*_config.json", "*.index.json",
            "generation_config.json", "processor_config.json")  # fmt: skip


@dataclass(frozen=True)
class Footprint:
    """The size of an embedder.

    Attributes:
        bytes_on_disk: All files that loading needs.
        weight_bytes: Those of the weights among them, of all modules.
        tokenizer_bytes: Those of the tokenizer.
        num_parameters: Numbers in the weight files.
    """

    bytes_on_disk: int
    weight_bytes: int
    tokenizer_bytes: int
    num_parameters: int


@dataclass(frozen=True)
class Latency:
    """How long an embedder takes for some texts.

    Attributes:
        median_seconds: Over the repeats.
        low_seconds: The fastest repeat.
        high_seconds: The slowest one.
        ratio: Median over the repeats of its seconds divided by those of the first model in the same repeat.
    """

    median_seconds: float
    low_seconds: float
    high_seconds: float
    ratio: float


# Measured


def measure_footprint(model_or_folder: "SentenceTransformer | str | Path") -> Footprint:
    """Bytes and parameters of an embedder as it is stored.

    Args:
        model_or_folder: A folder with a saved embedder, or an embedder, which is written to a temporary folder and
            measured there.

    Returns:
        The sizes. A model card, exports for other runtimes and masks are not counted; nor is the word list of a
        tokenizer that has a ``tokenizer.json``.

    Raises:
        ValueError: If the folder holds no weights in safetensors, or the embedder cannot be saved (`save_embedder`).

    Example:
        >>> measure_footprint("pruned").bytes_on_disk  # doctest: +SKIP
        45812345
    """
    if not isinstance(model_or_folder, str | Path):
        with tempfile.TemporaryDirectory() as parent:
            return measure_footprint(save_embedder(model_or_folder, Path(parent, "model")))
    folder = Path(model_or_folder)
    modules_file = folder / "modules.json"
    modules = json.loads(modules_file.read_text(encoding="utf-8")) if modules_file.is_file() else []
    folders = [folder, *(folder / module["path"] for module in modules if module["path"])]
    files = [file for each in folders if each.is_dir() for file in each.iterdir() if file.is_file()]
    weights = [file for file in files if _is_any(file, WEIGHTS)]
    if not any(file.parent == folder for file in weights):
        raise ValueError(
            f"{folder} holds no {' or '.join(WEIGHTS)}; give the folder of a saved embedder, with its weights in "
            "safetensors (save_pretrained writes them)"
        )
    has_tokenizer_file = (folder / "tokenizer.json").is_file()
    of_tokenizer = TOKENIZERS if has_tokenizer_file else TOKENIZERS + VOCABULARIES
    tokenizer = [file for file in files if _is_any(file, of_tokenizer)]
    needed = {*weights, *tokenizer, *(file for file in files if _is_any(file, SETTINGS))}
    return Footprint(
        bytes_on_disk=sum(file.stat().st_size for file in needed),
        weight_bytes=sum(file.stat().st_size for file in weights),
        tokenizer_bytes=sum(file.stat().st_size for file in tokenizer),
        num_parameters=sum(_num_stored(file) for file in weights),
    )


def _is_any(file: Path, patterns: Sequence[str]) -> bool:
    return any(fnmatch(file.name, pattern) for pattern in patterns)


def _num_stored(file: Path) -> int:
    """Numbers in a safetensors file, from its header."""
    with file.open("rb") as stream:
        header = json.loads(stream.read(struct.unpack("<Q", stream.read(8))[0]))
    return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")


def measure_latency(
    models: Mapping[str, "SentenceTransformer"], texts: Sequence[str], batch_size: int = 32, repeats: int = 5
) -> dict[str, Latency]:
    """Time embedders on the same texts, in turns.

    Args:
        models: Name -> embedder. Ratios are to the first.
        texts: What to encode.
        batch_size: Texts in a forward pass.
        repeats: Turns; one more, which is not counted, warms up.

    Returns:
        Name -> what was measured, tokenisation included.

    Raises:
        ValueError: If there is nothing to time.

    Example:
        >>> measure_latency({"dense": dense, "pruned": pruned}, texts)["pruned"].ratio  # doctest: +SKIP
        0.62
    """
    if not models or not texts or repeats < 1:
        raise ValueError(
            f"got {len(models)} models, {len(texts)} texts and {repeats} repeats; give at least one of each"
        )
    names, seconds = list(models), {name: [0.0] * repeats for name in models}
    for turn in range(-1, repeats):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            started = time.perf_counter()
            models[name].encode(list(texts), batch_size=batch_size, show_progress_bar=False)
            if turn >= 0:
                seconds[name][turn] = time.perf_counter() - started
    reference = seconds[names[0]]
    return {
        name: Latency(
            median_seconds=statistics.median(each),
            low_seconds=min(each),
            high_seconds=max(each),
            ratio=statistics.median(own / other for own, other in zip(each, reference, strict=True)),
        )
        for name, each in seconds.items()
    }


# Foreseen


def predict_bytes(
    model: "SentenceTransformer",
    *,
    width: int | None = None,
    dropped_layers: Collection[int] = (),
    vocabulary_size: int | None = None,
) -> int:
    """Bytes of the weights that a model would store after pruning, without pruning it.

    Args:
        model: The dense embedder.
        width: Neurons in each feed-forward; as now if None.
        dropped_layers: Numbers of the blocks that go.
        vocabulary_size: Rows of the embedding; as now if None.

    Returns:
        Bytes of all tensors; the safetensors files are larger by their headers alone.

    Raises:
        ValueError: If a width or a vocabulary is larger than now or below 1, or there are no such layers.

    Example:
        >>> predict_bytes(minilm), predict_bytes(minilm, width=768)  # doctest: +SKIP
        (90852864, 76678656)
    """
    if width is None and not dropped_layers and vocabulary_size is None:
        return _num_bytes(model)  # also of a model whose feed-forwards are not known as such
    parts = _parts(model)
    if width is not None and not 1 <= width <= parts.width:
        raise ValueError(f"got width={width}; it must be in 1..{parts.width}")
    if vocabulary_size is not None and not 1 <= vocabulary_size <= parts.num_rows:
        raise ValueError(f"got vocabulary_size={vocabulary_size}; it must be in 1..{parts.num_rows}")
    if not set(dropped_layers) < set(range(len(parts.block_bytes))):
        raise ValueError(
            f"got dropped_layers={sorted(dropped_layers)}; give numbers in 0..{len(parts.block_bytes) - 1}, not all"
        )
    return parts.total(width, set(dropped_layers), vocabulary_size)


def width_for_size(
    model: "SentenceTransformer",
    target_share: float,
    *,
    dropped_layers: int = 0,
    vocabulary_size: int | None = None,
    multiple: int = 32,
) -> int:
    """The largest width with which the stored weights are at most a share of those of the dense model.

    Args:
        model: The dense embedder.
        target_share: Of the bytes of its weights; more than 0 and at most 1.
        dropped_layers: How many blocks go besides; the last ones are reckoned with.
        vocabulary_size: Rows of the embedding that stay; as now if None.
        multiple: The width is a multiple of this, or the width of now.

    Returns:
        The width.

    Raises:
        ValueError: If no width is small enough; says the least share there is.

    Example:
        >>> width_for_size(minilm, 0.8)  # doctest: +SKIP
        544
    """
    if not 0 < target_share <= 1:
        raise ValueError(f"got target_share={target_share}; it must be above 0 and at most 1")
    parts = _parts(model)
    num_layers = len(parts.block_bytes)
    if not 0 <= dropped_layers < num_layers:
        raise ValueError(f"got dropped_layers={dropped_layers}; the model has {num_layers}, and at least one must stay")
    dropped = set(range(num_layers - dropped_layers, num_layers))
    dense = parts.total(None, set(), None)
    for width in [parts.width, *range(parts.width // multiple * multiple, 0, -multiple)]:
        if parts.total(width, dropped, vocabulary_size) <= target_share * dense:
            return width
    least = parts.total(min(multiple, parts.width), dropped, vocabulary_size) / dense
    raise ValueError(
        f"no width brings the weights down to {target_share:.3f} of their size; with {min(multiple, parts.width)} neurons "
        f"they are at {least:.3f}. Drop more layers, trim the vocabulary, or ask for a larger share"
    )


@dataclass(frozen=True)
class _Parts:
    """Where the bytes of a model are."""

    all_bytes: int
    block_bytes: list[int]  # per block
    neuron_bytes: list[int]  # per block, of one of its neurons
    row_bytes: int  # of one row of the embedding
    width: int
    num_rows: int

    def total(self, width: int | None, dropped: set[int], vocabulary_size: int | None) -> int:
        num_neurons = 0 if width is None else self.width - width
        num_rows = 0 if vocabulary_size is None else self.num_rows - vocabulary_size
        gone = sum(self.block_bytes[layer] for layer in dropped) + num_rows * self.row_bytes
        kept = [each for layer, each in enumerate(self.neuron_bytes) if layer not in dropped]
        return self.all_bytes - gone - num_neurons * sum(kept)


def _parts(model: "SentenceTransformer") -> _Parts:
    encoder, feed_forwards = encoder_of(model), find_feed_forwards(model)
    blocks = find_blocks(encoder)[1]
    neuron_bytes = [0] * len(blocks)
    for ff in feed_forwards:
        ups = [encoder.get_submodule(name) for name in ff.up]
        tensors = [*(up.weight for up in ups), *(up.bias for up in ups if up.bias is not None)]
        tensors.append(encoder.get_submodule(ff.down).weight)
        neuron_bytes[ff.layer] += sum(tensor.nbytes for tensor in tensors) // ff.width
    embedding = encoder.get_input_embeddings().weight
    return _Parts(
        all_bytes=_num_bytes(model),
        block_bytes=[_num_bytes(block) for block in blocks],
        neuron_bytes=neuron_bytes,
        row_bytes=embedding.nbytes // len(embedding),
        width=feed_forwards[0].width,
        num_rows=len(embedding),
    )


def _num_bytes(module: torch.nn.Module) -> int:
    """Bytes of the tensors that saving writes; tied ones are written once."""
    tensors = {tensor.data_ptr(): tensor for tensor in module.state_dict().values() if tensor.numel()}
    return sum(tensor.nbytes for tensor in tensors.values())
