"""What is published, as a folder of files: models and trackers are written, folders are taken as they are.

Design decisions:

- What leaves is what others can load without this package: an mmBERT encoder becomes a ModernBERT folder, also inside of an
  embedder. A folder that is like that already is not copied.
- The kind of a thing is read from what it is (class, configuration), never from its name.
- Only what is safe to load is written: safetensors, and tables.
"""

import json
import sys
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal

from mmbert_hf.hub.local_files import published_names
from mmbert_hf.hub.names import public_name

__all__ = ["Staged", "stage"]

Kind = Literal["encoder", "embedder", "policy", "adapter", "model", "tracker"]
Architecture = Literal["modernbert", "mmbert"]
CARRIED_OVER = ("README.md", "pruning.json", "pruning_mask.safetensors", "plots/*", "LICENSE*", "NOTICE*")
CAUSAL, OURS = "ForCausalLM", "mmbert"
EXPECTED = (
    "a folder with config.json (a model), adapter_config.json (an adapter), modules.json (an embedder) or tracker.json (a "
    "tracker), or one of these as an object"
)


@dataclass(frozen=True)
class Staged:
    """Files ready to be published.

    Attributes:
        kind: What they are.
        folder: Where they are.
        base_model: What it was made from, where the files say so.
        architecture: Class that loads it, where there is one.
        left_out: What of a converted folder is not published.
    """

    kind: Kind
    folder: Path
    base_model: str | None = None
    architecture: str | None = None
    left_out: tuple[str, ...] = ()

    @property
    def repo_type(self) -> str:
        """What it is on the Hub: "model" or "dataset"."""
        return "dataset" if self.kind == "tracker" else "model"


def stage(
    source: Any, scratch: Path, *, architecture: Architecture = "modernbert", processing_class: Any = None
) -> Staged:
    """Bring something into the form it is published in.

    Args:
        source: A folder, a model of transformers or PEFT, a SentenceTransformer, a `PrunedEmbedder` or a `ValueTracker`.
        scratch: Empty folder for what has to be written.
        architecture: What an mmBERT encoder is published as.
        processing_class: Tokenizer or processor of a model that is not in a folder.

    Raises:
        TypeError: It is something else.
        ValueError: A folder holds nothing of the kind, a model comes without `processing_class`, or it cannot be saved.
        FileNotFoundError: The folder is not there.
    """
    if architecture not in ("modernbert", "mmbert"):
        raise ValueError(f"architecture must be 'modernbert' or 'mmbert', got {architecture!r}")
    if isinstance(source, str | Path):
        return _stage_folder(Path(source).expanduser(), scratch, architecture)
    if _is_a(source, "mmbert_hf.trainers.spo.tracker", "ValueTracker"):
        from mmbert_hf.trainers.spo.tracker_files import save_tracker_dataset

        return Staged("tracker", save_tracker_dataset(scratch, source))
    if _is_a(source, "mmbert_hf.pruning.result", "PrunedEmbedder"):
        source.save_pretrained(scratch)
        return Staged("embedder", scratch)
    if _is_a(source, "sentence_transformers", "SentenceTransformer"):
        from mmbert_hf.pruning.saving import save_embedder

        return Staged("embedder", save_embedder(source, scratch))
    return _stage_model(source, scratch, architecture, processing_class)


def _is_a(source: Any, module: str, name: str) -> bool:
    """Whether it is of a class, without an import: what was not imported has no objects."""
    return module in sys.modules and isinstance(source, getattr(sys.modules[module], name, ()))


def _stage_model(model: Any, scratch: Path, architecture: Architecture, processing_class: Any) -> Staged:
    if not hasattr(model, "save_pretrained") or not hasattr(model, "config"):
        raise TypeError(f"a {type(model).__name__} cannot be published; expected {EXPECTED}")
    if processing_class is None:
        raise ValueError(
            "give processing_class, the model's tokenizer, which is published with it; or publish the folder that both were "
            "saved to"
        )
    if _is_a(model, "peft", "PeftModel"):
        model.save_pretrained(scratch)
        (scratch / "README.md").unlink(missing_ok=True)  # a form to be filled in
        processing_class.save_pretrained(scratch)
        return _describe(scratch)
    if model.config.model_type == OURS and architecture == "modernbert":
        _export(model, scratch, processing_class)
        return _describe(scratch)
    model.save_pretrained(scratch)
    processing_class.save_pretrained(scratch)
    return _describe(scratch)


def _stage_folder(folder: Path, scratch: Path, architecture: Architecture) -> Staged:
    if folder.is_file():
        raise NotADirectoryError(f"{folder} is a file; give the folder that it is in")
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    if (folder / "spo_tracker.safetensors").is_file() and not (folder / "config.json").is_file():
        from mmbert_hf.trainers.spo.tracker_files import load_tracker, save_tracker_dataset

        tracker, metadata = load_tracker(folder)
        return Staged("tracker", save_tracker_dataset(scratch, tracker, **metadata))
    staged = _describe(folder)
    if architecture == "mmbert" or _model_type(folder) != OURS:
        return staged
    if staged.kind == "embedder":
        from sentence_transformers import SentenceTransformer

        from mmbert_hf.pruning.saving import save_embedder

        save_embedder(SentenceTransformer(str(folder), device="cpu"), scratch)
    else:
        _export(str(folder), scratch, None)
    return replace(_describe(scratch), left_out=_carry_over(folder, scratch))


def _carry_over(folder: Path, scratch: Path) -> tuple[str, ...]:
    """Copy what a conversion does not write and others need; return what stays behind."""
    names, left_out = published_names(folder)
    for name in names:
        target = scratch / name
        if target.exists():
            continue
        if not any(fnmatch(name, pattern) for pattern in CARRIED_OVER):
            left_out.append(name)
            continue
        target.parent.mkdir(exist_ok=True)
        target.write_bytes((folder / name).read_bytes())
    return tuple(left_out)


def _export(model_or_folder: Any, scratch: Path, tokenizer: Any) -> None:
    from mmbert_hf.conversion import export_modernbert

    export_modernbert(model_or_folder, scratch, tokenizer=tokenizer)


def _describe(folder: Path) -> Staged:
    """Say what the files of a folder are."""
    if (folder / "adapter_config.json").is_file():
        base = _read(folder / "adapter_config.json").get("base_model_name_or_path")
        return Staged("adapter", folder, base_model=public_name(base))
    if (folder / "modules.json").is_file():
        return Staged("embedder", folder)
    if (folder / "tracker.json").is_file():
        return Staged("tracker", folder)
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} holds nothing that can be published; expected {EXPECTED}")
    config = _read(folder / "config.json")
    architecture = next(iter(config.get("architectures") or ()), None)
    if config.get("model_type") in (OURS, "modernbert"):
        return Staged("encoder", folder, architecture=architecture)
    kind: Kind = "policy" if architecture is not None and architecture.endswith(CAUSAL) else "model"
    return Staged(kind, folder, base_model=public_name(config.get("_name_or_path")), architecture=architecture)


def _model_type(folder: Path) -> str | None:
    path = folder / "config.json"
    if (folder / "modules.json").is_file() and not path.is_file():
        first = json.loads((folder / "modules.json").read_text(encoding="utf-8"))[0]["path"]
        path = folder / first / "config.json"
    return _read(path).get("model_type") if path.is_file() else None


def _read(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} must be a JSON object")
    return values
