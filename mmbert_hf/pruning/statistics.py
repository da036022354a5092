"""What scores are made of, kept so that they are computed once: mean squared gradient, mean gradient, mean squared input.

Design decisions:

- Everything is float32 and lies in safetensors files, one per triplet set and block of layers, beside a
  ``statistics.json`` that says what they were computed from. They are read one tensor at a time.
- A fingerprint of the model (all its weights, prompts, longest text, pooling) and of both triplet sets is kept. Statistics of
  another model, or of other texts, are refused; nothing is ever filled in for a tensor that is missing.
- Without a folder they stay in memory.

Shape legend: O outputs, I inputs of a linear layer.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from mmbert_hf.pruning.gradients import LayerSums
from mmbert_hf.pruning.scores import SETS

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = ["STATISTICS_FILE", "Origin", "Statistics", "model_fingerprint", "write_block"]

STATISTICS_FILE = "statistics.json"
FORMAT = "mmbert-pruning-statistics-1"
NOT_COMPUTED_WITH = ("transformers_version", "_name_or_path", "architectures", "dtype")
FIELDS = ("fisher", "gradient", "input_square")


@dataclass(frozen=True)
class Origin:
    """What statistics were computed from. Two runs with the same origin give the same statistics.

    Attributes:
        model: From `model_fingerprint`.
        domain: Fingerprint of the domain triplets.
        general: Fingerprint of the general triplets.
        num_domain: Number of domain triplets.
        num_general: Number of general triplets.
        scale: Of the loss.
        layers: Names of the layers.
    """

    model: str
    domain: str
    general: str
    num_domain: int
    num_general: int
    scale: float
    layers: tuple[str, ...]

    @property
    def fingerprint(self) -> str:
        """sha256 of all of it."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    def differences(self, other: "Origin") -> list[str]:
        """What is not the same, each as a short sentence; `other` is what was asked for."""
        found = []
        for name, mine in asdict(self).items():
            wanted = getattr(other, name)
            if name == "layers" and tuple(mine) != wanted:
                found.append(f"layers: {len(mine)} there, {len(wanted)} asked for")
            elif name != "layers" and mine != wanted:
                short = [str(value)[:12] for value in (mine, wanted)]
                found.append(f"{name}: {short[0]} there, {short[1]} asked for")
        return found


def model_fingerprint(model: "SentenceTransformer") -> str:
    """sha256 of an embedder: all weights by name, configuration, prompts, the longest text it takes, and how it pools.

    Args:
        model: An embedder. Dtype counts, device does not.
    """
    digest = hashlib.sha256()
    texts = {"prompts": dict(model.prompts), "default": model.default_prompt_name, "length": model.max_seq_length}
    digest.update(json.dumps(texts, sort_keys=True).encode())
    # Positions in the list of modules, and the names inside them: the same in every version of sentence-transformers.
    for number, module in enumerate(model):
        inner = getattr(module, "auto_model", module)
        # poolings, heads, windows and such may differ without any weight that does
        digest.update(f"{number} {type(inner).__name__} {json.dumps(_settings(inner), sort_keys=True)}".encode())
        for name, tensor in inner.state_dict().items():
            digest.update(f"{number}.{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _settings(module: Any) -> dict[str, Any]:
    """What a module computes with, less what only newer versions write, and where it came from."""
    config = getattr(module, "config", None)
    if config is not None and hasattr(config, "to_json_string"):
        settings = json.loads(config.to_json_string())
        return {name: value for name, value in settings.items() if name not in NOT_COMPUTED_WITH}
    settings = module.get_config_dict() if hasattr(module, "get_config_dict") else {}
    return {name: value for name, value in settings.items() if not name.startswith("module_")}


class Statistics:
    """Statistics of both triplet sets, in memory or in a folder.

    Args:
        origin: What they were computed from.
        tensors: ``{set}/{layer}/{field}`` to tensor, for statistics in memory.
        folder: Where they lie otherwise.
    """

    def __init__(
        self, origin: Origin, tensors: Mapping[str, torch.Tensor] | None = None, folder: Path | None = None
    ) -> None:
        self.origin = origin
        self.folder = folder
        self._tensors = tensors
        self._files: dict[str, Any] = {}
        self._stack = ExitStack()

    @classmethod
    def open(cls, folder: str | os.PathLike[str], origin: Origin | None = None) -> "Statistics":
        """Open finished statistics.

        Args:
            folder: Where they were written.
            origin: What they must have been computed from; anything if None.

        Raises:
            FileNotFoundError: There are none, or they are not finished.
            ValueError: They are of another model, other texts or another version of this format, or damaged.
        """
        folder = Path(folder)
        path = folder / STATISTICS_FILE
        if not path.is_file():
            raise FileNotFoundError(
                f"{folder} holds no finished statistics ({STATISTICS_FILE} is missing); score first"
            )
        record = read_json(path)
        if record.get("format") != FORMAT:
            raise ValueError(f"{path} says format {record.get('format')!r}, expected {FORMAT!r}; score again")
        found = Origin(**{**record["origin"], "layers": tuple(record["origin"]["layers"])})
        check_origin(found, origin, folder)
        statistics = cls(found, folder=folder)
        statistics._index(record["files"])
        return statistics

    def _index(self, files: Sequence[str]) -> None:
        assert self.folder is not None
        for name in files:
            try:
                handle = self._stack.enter_context(safe_open(self.folder / name, framework="pt"))
            except (SafetensorError, FileNotFoundError) as error:
                raise ValueError(_damaged(self.folder / name, error)) from error
            self._files |= dict.fromkeys(handle.keys(), handle)

    def fisher(self, set_name: str, layer: str) -> torch.Tensor:
        """Mean over triplets of the squared gradient: float32 [O, I]."""
        return self._get(set_name, layer, "fisher")

    def gradient(self, set_name: str, layer: str) -> torch.Tensor:
        """Mean gradient over triplets: float32 [O, I]."""
        return self._get(set_name, layer, "gradient")

    def input_square(self, set_name: str, layer: str) -> torch.Tensor:
        """Mean over triplets of the summed squared inputs at real tokens: float32 [I]."""
        return self._get(set_name, layer, "input_square")

    def _get(self, set_name: str, layer: str, field: str) -> torch.Tensor:
        key = f"{set_name}/{layer}/{field}"
        if self._tensors is not None and key in self._tensors:
            return self._tensors[key]
        if key in self._files:
            return self._files[key].get_tensor(key)
        raise KeyError(
            f"the statistics have no {field} of layer {layer!r} for the set {set_name!r}; sets are {', '.join(SETS)}, "
            f"layers {', '.join(self.origin.layers[:3])}, ...: score with these targets"
        )

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write statistics in memory to a folder, one file per set; see `open`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        files = []
        for set_name in SETS:
            tensors = {
                f"{set_name}/{layer}/{field}": self._get(set_name, layer, field)
                for layer in self.origin.layers
                for field in FIELDS
            }
            write_atomically(tensors, folder / f"{set_name}.safetensors")
            files.append(f"{set_name}.safetensors")
        write_manifest(folder, self.origin, files)


def check_origin(found: Origin, wanted: Origin | None, folder: Path) -> None:
    """Refuse statistics that were computed from something else.

    Raises:
        ValueError: With what differs.
    """
    differences = found.differences(wanted) if wanted is not None else []
    if differences:
        raise ValueError(
            f"the statistics in {folder} are of another model or other texts ({'; '.join(differences)}); give another "
            "folder, or delete this one to score again"
        )


def read_json(path: Path) -> dict[str, Any]:
    """What a JSON file of a folder of statistics holds.

    Raises:
        ValueError: It is damaged.
    """
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise ValueError(_damaged(path, error)) from error


def _damaged(path: Path, error: Exception) -> str:
    return f"{path} is damaged or missing ({error}); delete the folder {path.parent} to score again"


def write_block(path: Path, set_name: str, sums: Mapping[str, LayerSums], num_triplets: int) -> None:
    """Write the means of one set over one block of layers; whole or not at all."""
    write_atomically(block_tensors(set_name, sums, num_triplets), path)


def block_tensors(set_name: str, sums: Mapping[str, LayerSums], num_triplets: int) -> dict[str, torch.Tensor]:
    """Means over triplets, by ``{set}/{layer}/{field}``, on the CPU."""
    tensors = {}
    for layer, layer_sums in sums.items():
        by_field = (layer_sums.squares, layer_sums.gradient, layer_sums.input_squares)
        for field, total in zip(FIELDS, by_field, strict=True):
            tensors[f"{set_name}/{layer}/{field}"] = (total / num_triplets).cpu()
    return tensors


def write_manifest(folder: Path, origin: Origin, files: Iterable[str]) -> None:
    """Write ``statistics.json``: from now on the statistics are finished."""
    record = {"format": FORMAT, "fingerprint": origin.fingerprint, "origin": asdict(origin), "files": list(files)}
    write_json(record, folder / STATISTICS_FILE)


def write_json(record: dict[str, Any], path: Path) -> None:
    """Write a JSON file that is either whole or not there."""
    temporary = path.with_name(f"{path.name}.partial")
    temporary.write_text(json.dumps(record, indent=1), encoding="utf-8")
    os.replace(temporary, path)


def write_atomically(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file that is either whole or not there.

    Raises:
        OSError: It cannot be written, for example for lack of space.
    """
    temporary = path.with_name(f"{path.name}.partial")
    try:
        save_file(tensors, temporary, metadata=metadata)
    except SafetensorError as error:
        temporary.unlink(missing_ok=True)  # half a file takes the space that is lacking
        raise OSError(f"could not write {path}: {error}") from error
    os.replace(temporary, path)
