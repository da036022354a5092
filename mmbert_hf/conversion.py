"""Between mmBERT and ModernBERT folders: same weights, same names, another ``model_type``.

Design decisions:

- What is published must load where this package is absent, so `export_modernbert` writes ``model_type: modernbert``
  with safetensors only. RoPE bases and layer pattern are written twice: as transformers 5 spells them
  (``rope_parameters``, ``layer_types``) and as transformers 4 does (``global_rope_theta``, ``local_rope_theta``,
  ``global_attn_every_n_layers``); without the latter, transformers 4 falls back to a local base of 10000.
- A folder is written beside its destination and then renamed into place. Renaming needs no space, so a full disk leaves
  the old folder as it was and no half-written one.
- A model that is read for conversion must match its files exactly; nothing is left to random initialisation.
- The classes named ``ModernBert...`` here are mmBERT's code on transformers' own `ModernBertConfig`. Registered with
  the Auto classes, they run native ModernBERT checkpoints in this process, and what they save is a native folder again.
"""

import json
import logging
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import ModernBertConfig, PreTrainedModel

from mmbert_hf.configuration import GLOBAL, LOCAL, MMBertConfig, check_vocabulary
from mmbert_hf.modeling import (
    MMBertForMaskedLM,
    MMBertForMultipleChoice,
    MMBertForQuestionAnswering,
    MMBertForSequenceClassification,
    MMBertForTokenClassification,
    MMBertModel,
    MMBertPreTrainedModel,
)
from mmbert_hf.output_folders import checked_destination, output_folder

__all__ = ["MODERNBERT_CLASSES", "export_modernbert", "from_modernbert", "modernbert_values"]

logger = logging.getLogger(__name__)


class ModernBertModel(MMBertModel):
    """`MMBertModel` on a native ModernBERT configuration."""

    config_class = ModernBertConfig


class ModernBertForMaskedLM(MMBertForMaskedLM):
    """`MMBertForMaskedLM` on a native ModernBERT configuration."""

    config_class = ModernBertConfig
    encoder_class = ModernBertModel


class ModernBertForSequenceClassification(MMBertForSequenceClassification):
    """`MMBertForSequenceClassification` on a native ModernBERT configuration."""

    config_class = ModernBertConfig
    encoder_class = ModernBertModel


class ModernBertForTokenClassification(MMBertForTokenClassification):
    """`MMBertForTokenClassification` on a native ModernBERT configuration."""

    config_class = ModernBertConfig
    encoder_class = ModernBertModel


class ModernBertForQuestionAnswering(MMBertForQuestionAnswering):
    """`MMBertForQuestionAnswering` on a native ModernBERT configuration."""

    config_class = ModernBertConfig
    encoder_class = ModernBertModel


class ModernBertForMultipleChoice(MMBertForMultipleChoice):
    """`MMBertForMultipleChoice` on a native ModernBERT configuration."""

    config_class = ModernBertConfig
    encoder_class = ModernBertModel


# Our class -> the class that runs the same network from a native ModernBERT configuration. For every pair,
# `AutoModel....register(ModernBertConfig, native, exist_ok=True)` makes the Auto classes use our code on native
# checkpoints, for the whole process.
MODERNBERT_CLASSES: dict[type[MMBertPreTrainedModel], type[MMBertPreTrainedModel]] = {
    MMBertModel: ModernBertModel,
    MMBertForMaskedLM: ModernBertForMaskedLM,
    MMBertForSequenceClassification: ModernBertForSequenceClassification,
    MMBertForTokenClassification: ModernBertForTokenClassification,
    MMBertForQuestionAnswering: ModernBertForQuestionAnswering,
    MMBertForMultipleChoice: ModernBertForMultipleChoice,
}


def modernbert_values(config: ModernBertConfig, architecture: str) -> dict[str, Any]:
    """The ``config.json`` of an exported model, in both spellings.

    Args:
        config: Configuration of the model, of either type.
        architecture: Name of the native class, such as ``"ModernBertForMaskedLM"``.

    Returns:
        Values for transformers 5 and 4. ``global_attn_every_n_layers`` is there if the layers follow such a pattern; if
        they do not, transformers 4 cannot express them and a warning is logged.

    Example:
        >>> config = MMBertConfig.small().with_rope_theta(160_000, 10_000)
        >>> values = modernbert_values(config, "ModernBertForMaskedLM")
        >>> values["model_type"], values["global_rope_theta"], values["local_rope_theta"]
        ('modernbert', 160000.0, 10000.0)
        >>> values["global_attn_every_n_layers"], values["rope_parameters"]["sliding_attention"]["rope_theta"]
        (3, 10000.0)
    """
    ours = config.to_dict()
    for name in ("model_type", "global_rope_theta", "local_rope_theta", "global_attn_every_n_layers"):
        ours.pop(name, None)
    native = json.loads(ModernBertConfig(**ours).to_json_string())
    values = {
        **native,
        "model_type": ModernBertConfig.model_type,
        "architectures": [architecture],
        "global_rope_theta": native["rope_parameters"][GLOBAL]["rope_theta"],
        "local_rope_theta": native["rope_parameters"][LOCAL]["rope_theta"],
    }
    every = _global_every(native["layer_types"])
    if every is not None:
        values["global_attn_every_n_layers"] = every
    rope_types = {parameters["rope_type"] for parameters in native["rope_parameters"].values()}
    if every is None or rope_types != {"default"}:
        logger.warning(
            "transformers 4 cannot express %s; the export loads rightly in transformers 5 only",
            f"the layer pattern {native['layer_types']}" if every is None else f"the RoPE types {sorted(rope_types)}",
        )
    return values


def _global_every(layer_types: list[str]) -> int | None:
    """The n for which exactly the layers 0, n, 2n, ... are global, or None."""
    for n in range(1, len(layer_types) + 1):
        if all((kind == GLOBAL) == (index % n == 0) for index, kind in enumerate(layer_types)):
            return n
    return None


def export_modernbert(
    model_or_folder: PreTrainedModel | str | Path,
    folder: str | Path,
    *,
    tokenizer: Any = None,
    overwrite: bool = False,
) -> Path:
    """Write a model as a ModernBERT folder, which transformers loads without this package and with the same outputs.

    Args:
        model_or_folder: A model of this package or of transformers' ModernBERT, or a folder or Hub name to load one
            from.
        folder: Where to write.
        tokenizer: Tokenizer to put in the folder. If None and the source is a folder with one, that one.
        overwrite: Replace what an earlier export left in `folder`: configuration, weights, and the tokenizer if a new
            one is written. Other files, such as a model card, stay.

    Returns:
        The path of the folder.

    Raises:
        FileExistsError: If `folder` is not empty and `overwrite` is false.
        NotADirectoryError: If `folder` is a file.
        TypeError: For a model of another kind, or one wrapped by peft, torch.compile or data parallelism.
        ValueError: If the source does not hold exactly one complete model, an adapter is loaded into the model, or the
            tokenizer does not fit it.
        OSError: If writing fails, for example for lack of space; `folder` is as it was then.

    Example:
        >>> import tempfile
        >>> from transformers import AutoModel
        >>> sizes = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 3, "intermediate_size": 48}
        >>> model = MMBertModel(MMBertConfig(**sizes, vocab_size=100))
        >>> with tempfile.TemporaryDirectory() as parent:
        ...     folder = export_modernbert(model, f"{parent}/published")
        ...     AutoModel.from_pretrained(folder).config.model_type
        'modernbert'
    """
    destination = checked_destination(folder, overwrite)  # before anything is loaded
    if isinstance(model_or_folder, str | Path):
        tokenizer = _tokenizer_in(Path(model_or_folder)) if tokenizer is None else tokenizer
        model: PreTrainedModel = _load(model_or_folder)
    else:
        model = model_or_folder
    architecture = MODERNBERT_CLASSES[_our_class(model)].__name__
    if getattr(model, "_hf_peft_config_loaded", False):
        raise ValueError(
            "the model has an adapter loaded, and only the adapter would be saved; merge or delete it first"
        )
    if tokenizer is not None:
        check_vocabulary(model, tokenizer)
    values = modernbert_values(model.config, architecture) | {"dtype": str(model.dtype).removeprefix("torch.")}

    with output_folder(destination, overwrite=overwrite, replaces_tokenizer=tokenizer is not None) as staging:
        _write(model, values, tokenizer, staging)
    return destination


def from_modernbert(source: PreTrainedModel | str | Path) -> MMBertPreTrainedModel:
    """Load or convert a ModernBERT model as the mmBERT class of the same network, bit for bit.

    Args:
        source: A folder or Hub name, of which ``architectures`` in the configuration says what it holds, or a model of
            transformers' ModernBERT, of which the weights are copied.

    Returns:
        The model, in eval mode if loaded, else in the mode and on the device of `source`.

    Raises:
        TypeError: For a model of another kind.
        ValueError: If the folder does not hold exactly one complete model of a kind known here.

    Example:
        >>> from transformers import ModernBertConfig, ModernBertForMaskedLM
        >>> sizes = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 3, "intermediate_size": 48}
        >>> type(from_modernbert(ModernBertForMaskedLM(ModernBertConfig(**sizes)))).__name__
        'MMBertForMaskedLM'
    """
    if isinstance(source, str | Path):
        return _load(source)
    model_class = _our_class(source)
    config = MMBertConfig.from_modernbert(source.config)
    weights = {name: weight.detach().clone() for name, weight in source.state_dict().items()}
    model = _load_exactly(model_class, None, config=config, state_dict=weights, dtype=source.dtype)
    return model.to(source.device).train(source.training)


def _our_class(model: PreTrainedModel) -> type[MMBertPreTrainedModel]:
    """The class of this package for a model of ours or of transformers' ModernBERT."""
    by_name = {native.__name__: ours for ours, native in MODERNBERT_CLASSES.items()}
    for parent in type(model).__mro__:
        if parent in MODERNBERT_CLASSES:
            return parent
        if parent.__name__ in by_name:
            return by_name[parent.__name__]
    known = ", ".join(sorted([*by_name, *(ours.__name__ for ours in MODERNBERT_CLASSES)]))
    raise TypeError(
        f"got a {type(model).__module__}.{type(model).__name__}; it must be one of {known}. Unwrap a compiled or "
        "parallel model first (accelerator.unwrap_model), and merge a peft model (merge_and_unload)"
    )


def _load(source: str | Path) -> MMBertPreTrainedModel:
    """Load a folder or Hub name of either model type as the class that its configuration names."""
    found = MMBertConfig.get_config_dict(source)[0].get("model_type")
    if found not in ("mmbert", "modernbert"):
        raise ValueError(f"{source} is a model of type {found!r}; it must be mmbert or modernbert")
    config = MMBertConfig.from_pretrained(source)
    names = {cls.__name__: ours for ours, native in MODERNBERT_CLASSES.items() for cls in (ours, native)}
    architectures = config.architectures or []
    if len(architectures) != 1 or architectures[0] not in names:
        raise ValueError(
            f"config.json of {source} names the architectures {architectures}; it must name one of "
            f"{', '.join(sorted(names))}. Load the model with the right class and pass that"
        )
    return _load_exactly(names[architectures[0]], source, config=config)


def _load_exactly(
    model_class: type[MMBertPreTrainedModel], source: str | Path | None, **kwargs: Any
) -> MMBertPreTrainedModel:
    """`from_pretrained`, but weights that are missing or left over are an error."""
    model, report = model_class.from_pretrained(source, output_loading_info=True, **kwargs)
    wrong = {kind: keys for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") if (keys := report[kind])}
    if wrong:
        where = "the given model" if source is None else source
        raise ValueError(f"the weights of {where} do not fit {model_class.__name__}: {wrong}")
    return model


def _tokenizer_in(folder: Path) -> Any:
    """The tokenizer that lies in a folder, or None."""
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")):
        return None
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def _write(model: PreTrainedModel, values: dict[str, Any], tokenizer: Any, folder: Path) -> None:
    try:
        model.save_pretrained(folder)
        text = json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False)
        (folder / "config.json").write_text(text + "\n", encoding="utf-8")
        if tokenizer is not None:
            save = getattr(tokenizer, "save_portable", tokenizer.save_pretrained)
            save(folder)
    except Exception as error:
        # tokenizers reports a failed write as a bare Exception, safetensors as an error of its own.
        if not isinstance(error, OSError | SafetensorError) and type(error) is not Exception:
            raise
        raise OSError(f"could not write the export beside its destination, which was not touched: {error}") from error
