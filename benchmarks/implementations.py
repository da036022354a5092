"""Who is measured: our models and the baselines, built from random weights.

Design decisions:

- ModernBERT of transformers gets our weights, so both must give the same numbers. Weights are drawn with a deviation of
  0.04, not the 0.02 of training: at 0.02 attention is so flat that a wrong mask hardly shows, and far above 0.04
  rounding in bfloat16 grows too much over 22 layers to tell anything.
- XLM-RoBERTa's shape is timed on the same batches as far as its 512 positions go. It has other weights and does other
  work; it stands for what a user of a multilingual encoder has now. Its dropout is set to 0: mmBERT has none here.
- The encoder cases use a vocabulary of 32000 to save memory: of the embedding table only the used rows are read.
  The masked language model has the released 256000.
"""

from dataclasses import dataclass
from typing import Any

import torch
from cases import Case, Kind
from transformers import (
    ModernBertConfig,
    ModernBertForMaskedLM,
    ModernBertModel,
    PreTrainedModel,
    XLMRobertaConfig,
    XLMRobertaModel,
)
from transformers.utils import is_flash_attn_2_available

from mmbert_hf import MMBertConfig, MMBertForMaskedLM, MMBertModel
from mmbert_hf.conversion import modernbert_values

__all__ = ["BASELINES", "MODELS", "OURS", "XLMR", "Settings", "build", "copy_weights", "names_for", "vocabulary_of"]

OURS = "mmbert"
SDPA, FLASH, SPARSE = "modernbert-sdpa", "modernbert-flash2", "modernbert-sdpa-sparse"
XLMR = "xlm-roberta-shape"
BASELINES = (SDPA, FLASH, SPARSE, XLMR)
XLMR_LONGEST_TOKENS = 512
INITIALIZER_RANGE = 0.04

# Sizes that differ from the base model. "tiny" is for trying the script: its times mean nothing.
TINY = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 96}
MODELS: tuple[str, ...] = ("small", "base", "tiny")


@dataclass(frozen=True)
class Settings:
    """What the models of a run have in common.

    Attributes:
        model: ``"small"``, ``"base"`` or ``"tiny"``.
        dtype: ``"float32"`` or ``"bfloat16"``, of weights and activations; no autocast.
        device: ``"cpu"`` or ``"cuda"``.
        seed: Of weights, token ids and labels.
        attention: Attention implementation of our models; None for their default.
        without: Baselines to leave out.
    """

    model: str = "small"
    dtype: str = "float32"
    device: str = "cpu"
    seed: int = 0
    attention: str | None = None
    without: tuple[str, ...] = ()


def vocabulary_of(kind: Kind, settings: Settings) -> int:
    """Number of token ids: 32000 for the encoder, 256000 for the masked language model, 1000 for tiny models.

    Example:
        >>> vocabulary_of("encoder", Settings()), vocabulary_of("masked_lm", Settings())
        (32000, 256000)
    """
    if settings.model == "tiny":
        return 1000
    return 32_000 if kind == "encoder" else 256_000


def names_for(case: Case, settings: Settings) -> tuple[list[str], list[str]]:
    """The implementations that a case is measured with, ours first.

    Args:
        case: The case.
        settings: Device and dtype decide whether flash attention can run.

    Returns:
        The names, and a note for each baseline that is left out.

    Example:
        >>> from cases import CASES
        >>> names_for(CASES["1x2048"], Settings())
        (['mmbert', 'modernbert-sdpa'], ['1x2048: no xlm-roberta-shape, which has 512 positions'])
    """
    names, notes = [OURS, SDPA], []
    if case.kind == "masked_lm":
        names.append(SPARSE)
    if settings.device == "cuda" and settings.dtype == "bfloat16" and is_flash_attn_2_available():
        names.append(FLASH)
    elif settings.device == "cuda":
        why = "it takes no float32" if settings.dtype == "float32" else "flash_attn is not installed"
        notes.append(f"{case.name}: no {FLASH}: {why}")
    if case.kind == "encoder" and case.length <= XLMR_LONGEST_TOKENS:
        names.append(XLMR)
    elif case.kind == "encoder":
        notes.append(f"{case.name}: no {XLMR}, which has {XLMR_LONGEST_TOKENS} positions")
    notes += [f"{case.name}: no {name}, by --without" for name in names if name in settings.without]
    return [name for name in names if name not in settings.without], notes


def build(name: str, kind: Kind, settings: Settings) -> PreTrainedModel:
    """One model with random weights.

    Args:
        name: One of the names that `names_for` gives.
        kind: Bare encoder or masked language model.
        settings: Size, dtype, device and seed.

    Returns:
        The model.

    Raises:
        ValueError: For an unknown name or size, or an attention implementation that transformers does not know.

    Example:
        >>> build("modernbert-sdpa", "encoder", Settings(model="tiny", dtype="bfloat16")).dtype
        torch.bfloat16
    """
    if settings.model not in MODELS:
        raise ValueError(f"model is {settings.model!r}; it must be one of {', '.join(MODELS)}")
    torch.manual_seed(settings.seed)
    config = _our_config(kind, settings)
    if name == OURS:
        model = (MMBertForMaskedLM if kind == "masked_lm" else MMBertModel)(config)
    elif name in (SDPA, FLASH, SPARSE):
        model = _modernbert(name, kind, config)
    elif name == XLMR and kind == "encoder":
        model = XLMRobertaModel(_xlmr_config(kind, settings), add_pooling_layer=False)
    else:
        raise ValueError(
            f"no implementation {name!r} of kind {kind!r}; there are {OURS}, {SDPA}, {FLASH}, {SPARSE} "
            f"(masked_lm) and {XLMR} (encoder)"
        )
    return model.to(device=settings.device, dtype=getattr(torch, settings.dtype))


def _our_config(kind: Kind, settings: Settings) -> MMBertConfig:
    options: dict[str, Any] = {"vocab_size": vocabulary_of(kind, settings), "initializer_range": INITIALIZER_RANGE}
    if settings.attention is not None:
        options["attn_implementation"] = settings.attention
    if settings.model == "tiny":
        return MMBertConfig(**TINY, **options)
    return getattr(MMBertConfig, settings.model)(**options)


def _modernbert(name: str, kind: Kind, config: MMBertConfig) -> PreTrainedModel:
    native_class = ModernBertForMaskedLM if kind == "masked_lm" else ModernBertModel
    native = ModernBertConfig.from_dict(
        modernbert_values(config, native_class.__name__) | {"sparse_prediction": name == SPARSE}
    )
    return native_class._from_config(native, attn_implementation="flash_attention_2" if name == FLASH else "sdpa")


def _xlmr_config(kind: Kind, settings: Settings) -> XLMRobertaConfig:
    sizes = TINY if settings.model == "tiny" else {}
    return XLMRobertaConfig(
        **sizes,
        vocab_size=vocabulary_of(kind, settings),
        max_position_embeddings=XLMR_LONGEST_TOKENS + 2,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        pad_token_id=0,  # that of the batches
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        attn_implementation="sdpa",
    )


def copy_weights(ours: PreTrainedModel, baseline: PreTrainedModel) -> None:
    """Give a ModernBERT baseline our weights; all of them must fit.

    Args:
        ours: Our model.
        baseline: A ModernBERT model of the same kind and size, changed in place.

    Raises:
        RuntimeError: If a weight is missing, left over or of another shape.

    Example:
        >>> ours, baseline = (build(name, "encoder", Settings(model="tiny")) for name in (OURS, SDPA))
        >>> copy_weights(ours, baseline)
        >>> torch.equal(ours.layers[1].attn.Wo.weight, baseline.layers[1].attn.Wo.weight)
        True
    """
    baseline.load_state_dict(ours.state_dict(), strict=True)
