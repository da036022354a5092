"""The configuration of mmBERT: released sizes, token ids and RoPE bases.

Design decisions:

- mmBERT is ModernBERT with another vocabulary and other RoPE bases, so `MMBertConfig` is a `ModernBertConfig` with its
  own ``model_type`` and defaults. The defaults are the released base model.
- A configuration that cannot work is refused when it is made, with a plain ``ValueError`` that says what to change.
- RoPE theta is read and set by name (`global_rope_theta`, `local_rope_theta`), since training switches it between
  phases: 10k / 10k in pre-training, 160k / 160k from context extension on.
- ``cls_token_id`` is 2, the ``<bos>`` that the tokenizer really puts first. The published files say 1 there (the
  separator); a loaded file keeps what it says, and nothing in this package reads the field.
"""

import copy
import math
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import ModernBertConfig

from mmbert_hf.registration import register
from mmbert_hf.special_tokens import BOS_TOKEN_ID, EOS_TOKEN_ID, MASK_TOKEN_ID, PAD_TOKEN_ID

__all__ = ["PRESETS", "MMBertConfig", "check_architecture", "check_vocabulary", "set_rope_theta"]

GLOBAL, LOCAL = "full_attention", "sliding_attention"  # transformers' names for the two kinds of layer
RELEASED_ROPE_THETA = 160_000.0
# RoPE types whose frequencies depend on the length of each batch. The layers here take fixed frequencies.
LENGTH_DEPENDENT_ROPE_TYPES = ("dynamic", "longrope")

# Sizes of the released models. Everything else is the same in both.
PRESETS: dict[str, dict[str, int]] = {
    "small": {"hidden_size": 384, "intermediate_size": 1152, "num_hidden_layers": 22, "num_attention_heads": 6},
    "base": {"hidden_size": 768, "intermediate_size": 1152, "num_hidden_layers": 22, "num_attention_heads": 12},
}


def check_architecture(config: ModernBertConfig) -> None:
    """Raise if no model can be built from `config`.

    Args:
        config: A `MMBertConfig`, or a `ModernBertConfig` for use with the classes of this package.

    Raises:
        ValueError: Naming the field, its value, and what it has to be.

    Example:
        >>> from transformers import ModernBertConfig
        >>> check_architecture(ModernBertConfig(hidden_size=768, num_attention_heads=12))
        >>> check_architecture(ModernBertConfig(hidden_size=768, num_attention_heads=10))
        Traceback (most recent call last):
        ...
        ValueError: hidden_size 768 is not a multiple of num_attention_heads 10; 768 / 12 = 64 is the released head size
    """
    _check_sizes(config)
    _check_layers(config)
    for layer_type, parameters in config.rope_parameters.items():
        if parameters["rope_type"] in LENGTH_DEPENDENT_ROPE_TYPES:
            raise ValueError(
                f"rope_type {parameters['rope_type']!r} of {layer_type} changes with the length of each batch, which "
                "is not supported; use 'default', 'linear', 'yarn' or 'llama3'"
            )
        _check_theta(f"rope_theta of {layer_type}", parameters["rope_theta"])


def _check_sizes(config: ModernBertConfig) -> None:
    for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name} is {getattr(config, name)}; it must be at least 1")
    if config.hidden_size % config.num_attention_heads:
        raise ValueError(
            f"hidden_size {config.hidden_size} is not a multiple of num_attention_heads {config.num_attention_heads}; "
            "768 / 12 = 64 is the released head size"
        )
    head_size = config.hidden_size // config.num_attention_heads
    if head_size % 2:
        raise ValueError(
            f"hidden_size {config.hidden_size} / num_attention_heads {config.num_attention_heads} gives heads of "
            f"{head_size}; RoPE rotates pairs, so the head size must be even"
        )
    if config.local_attention < 1:
        raise ValueError(f"local_attention is {config.local_attention}; it is a window in tokens, 128 in mmBERT")
    if config.pad_token_id is not None and not 0 <= config.pad_token_id < config.vocab_size:
        raise ValueError(
            f"pad_token_id {config.pad_token_id} is outside the vocabulary of {config.vocab_size} tokens; "
            f"set it to an id in 0..{config.vocab_size - 1} or to None"
        )


def _check_layers(config: ModernBertConfig) -> None:
    layer_types = config.layer_types or []
    if len(layer_types) != config.num_hidden_layers:
        raise ValueError(
            f"layer_types names {len(layer_types)} layers and num_hidden_layers is {config.num_hidden_layers}; "
            "pass both, or leave layer_types out for every third layer global"
        )
    if unknown := set(layer_types) - {GLOBAL, LOCAL}:
        raise ValueError(f"layer_types holds {sorted(unknown)}; each layer is {GLOBAL!r} or {LOCAL!r}")


def _check_theta(name: str, theta: float) -> float:
    if isinstance(theta, bool) or not isinstance(theta, int | float) or not (math.isfinite(theta) and theta > 0):
        raise ValueError(f"{name} is {theta!r}; it must be a positive number (10000 and 160000 in mmBERT)")
    return float(theta)


def set_rope_theta(config: ModernBertConfig, global_theta: float, local_theta: float | None = None) -> None:
    """Set the RoPE bases of a configuration in place; nothing changes if one of them is refused.

    Args:
        config: The configuration to change.
        global_theta: RoPE base of the global layers.
        local_theta: RoPE base of the local layers; the same as `global_theta` if None, as in every phase of mmBERT.

    Raises:
        ValueError: If a base is not a positive number.

    Example:
        >>> config = MMBertConfig.small()
        >>> set_rope_theta(config, 10_000)
        >>> config.local_rope_theta
        10000.0
    """
    global_theta = _check_theta("global_theta", global_theta)
    local_theta = global_theta if local_theta is None else _check_theta("local_theta", local_theta)
    config.rope_parameters[GLOBAL]["rope_theta"] = global_theta
    config.rope_parameters[LOCAL]["rope_theta"] = local_theta


@strict
class MMBertConfig(ModernBertConfig):
    """Configuration of an mmBERT encoder. The defaults are the released base model.

    Every field of `transformers.ModernBertConfig` is accepted; those below differ from it or are new.

    Args:
        vocab_size: Number of tokens (256000: Gemma 2's).
        pad_token_id: 0.
        eos_token_id: 1, closes every segment.
        bos_token_id: 2, opens every sequence.
        cls_token_id: 2; see the module docstring for the published value.
        sep_token_id: 1.
        mask_token_id: 4. None in a ModernBERT file that does not state it.
        classifier_pooling: How sequences are pooled for classification, ``"mean"`` or ``"cls"``.
        attention_output_dropout: Dropout after the output projection of attention (0.1 when mmBERT was trained). None
            takes `attention_dropout`, which is what ModernBERT does; mmBERT's training drops here and nowhere else.
        global_rope_theta: RoPE base of the global layers, 160000. Short for an entry of `rope_parameters`.
        local_rope_theta: RoPE base of the local layers, 160000 (10000 in ModernBERT).

    Raises:
        ValueError: For a configuration that cannot work (`check_architecture`), or a RoPE base given twice with
            different values.

    Example:
        >>> config = MMBertConfig(num_hidden_layers=6, local_rope_theta=10_000)
        >>> config.hidden_size, config.vocab_size, config.local_rope_theta
        (768, 256000, 10000.0)
        >>> config.layer_types[:4]
        ['full_attention', 'sliding_attention', 'sliding_attention', 'full_attention']
        >>> MMBertConfig(hidden_size=100, num_attention_heads=12)
        Traceback (most recent call last):
        ...
        ValueError: hidden_size 100 is not a multiple of num_attention_heads 12; 768 / 12 = 64 is the released head size
    """

    model_type = "mmbert"
    default_theta = {"global": RELEASED_ROPE_THETA, "local": RELEASED_ROPE_THETA}  # noqa: RUF012 (as upstream has it)

    vocab_size: int = 256_000
    pad_token_id: int | None = PAD_TOKEN_ID
    eos_token_id: int | list[int] | None = EOS_TOKEN_ID
    bos_token_id: int | None = BOS_TOKEN_ID
    cls_token_id: int | None = BOS_TOKEN_ID
    sep_token_id: int | None = EOS_TOKEN_ID
    mask_token_id: int | None = MASK_TOKEN_ID
    classifier_pooling: Literal["cls", "mean"] = "mean"
    attention_output_dropout: float | int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        # Standardising writes into the dictionary, which may be the caller's or another configuration's.
        self.rope_parameters: Any = copy.deepcopy(self.rope_parameters)
        super().__post_init__(**kwargs)
        # Auto classes hold our models as tuples (see registration), and look into this list when they read one.
        self.architectures: Any = self.architectures or []
        check_architecture(self)
        set_rope_theta(self, self.global_rope_theta, self.local_rope_theta)  # as floats

    def convert_rope_params_to_dict(self, **kwargs: Any) -> dict[str, Any]:
        """Fold `global_rope_theta` and `local_rope_theta` into `rope_parameters` (called by transformers)."""
        _check_sizes(self)  # here, since what follows reads the layer types
        _check_layers(self)
        names = {GLOBAL: "global_rope_theta", LOCAL: "local_rope_theta"}
        by_name = {layer_type: kwargs[name] for layer_type, name in names.items() if kwargs.get(name) is not None}
        for layer_type, theta in by_name.items():
            _check_theta(names[layer_type], theta)
        unused = super().convert_rope_params_to_dict(**kwargs)
        for layer_type, theta in by_name.items():
            if theta != (kept := self.rope_parameters[layer_type]["rope_theta"]):
                raise ValueError(
                    f"the RoPE base of {layer_type} is given twice: {kept} in rope_parameters and {theta} by name; "
                    "pass one of them"
                )
        return unused

    @property
    def global_rope_theta(self) -> float:
        """RoPE base of the global layers."""
        return self.rope_parameters[GLOBAL]["rope_theta"]

    @global_rope_theta.setter
    def global_rope_theta(self, theta: float) -> None:
        self.rope_parameters[GLOBAL]["rope_theta"] = _check_theta("global_rope_theta", theta)

    @property
    def local_rope_theta(self) -> float:
        """RoPE base of the local layers."""
        return self.rope_parameters[LOCAL]["rope_theta"]

    @local_rope_theta.setter
    def local_rope_theta(self, theta: float) -> None:
        self.rope_parameters[LOCAL]["rope_theta"] = _check_theta("local_rope_theta", theta)

    def with_rope_theta(self, global_theta: float, local_theta: float | None = None) -> "MMBertConfig":
        """Return a copy with other RoPE bases. To switch a model in place use its `set_rope_theta`.

        Args:
            global_theta: RoPE base of the global layers.
            local_theta: RoPE base of the local layers; the same as `global_theta` if None, as in every phase of mmBERT.

        Returns:
            A new configuration.

        Raises:
            ValueError: If a base is not a positive number.

        Example:
            >>> pretraining = MMBertConfig.small().with_rope_theta(10_000)
            >>> pretraining.global_rope_theta, pretraining.local_rope_theta
            (10000.0, 10000.0)
        """
        config = copy.deepcopy(self)
        set_rope_theta(config, global_theta, local_theta)
        return config

    @classmethod
    def small(cls, **overrides: Any) -> "MMBertConfig":
        """Configuration of mmBERT-small: 140M parameters, 42M without the embeddings.

        Args:
            **overrides: Any field of the configuration.

        Returns:
            The configuration.

        Example:
            >>> MMBertConfig.small(num_labels=3).hidden_size
            384
        """
        return cls(**{**PRESETS["small"], **overrides})

    @classmethod
    def base(cls, **overrides: Any) -> "MMBertConfig":
        """Configuration of mmBERT-base: 307M parameters, 110M without the embeddings.

        Args:
            **overrides: Any field of the configuration.

        Returns:
            The configuration.

        Example:
            >>> MMBertConfig.base(classifier_pooling="cls").num_attention_heads
            12
        """
        return cls(**{**PRESETS["base"], **overrides})

    @classmethod
    def from_modernbert(cls, config: ModernBertConfig) -> "MMBertConfig":
        """Return the mmBERT configuration of the same network.

        Args:
            config: Configuration of a ModernBERT checkpoint, such as the published mmBERT files give.

        Returns:
            A new configuration with every value of `config`, ModernBERT's defaults included.

        Example:
            >>> from transformers import ModernBertConfig
            >>> MMBertConfig.from_modernbert(ModernBertConfig()).local_rope_theta
            10000.0
        """
        values = _with_modernbert_defaults(config.to_dict())
        return cls(**values, attn_implementation=config._attn_implementation)

    @classmethod
    def get_config_dict(cls, *args: Any, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Read a configuration file; one of ModernBERT is read as the mmBERT configuration of the same network."""
        values, unused = super().get_config_dict(*args, **kwargs)
        return _with_modernbert_defaults(values), unused

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> "MMBertConfig":
        """Make a configuration from a dictionary, also from one of ModernBERT."""
        return super().from_dict(_with_modernbert_defaults(config_dict), **kwargs)


def _with_modernbert_defaults(values: dict[str, Any]) -> dict[str, Any]:
    """Fill a ModernBERT dictionary with ModernBERT's defaults, so that ours do not take their place."""
    if values.get("model_type") != ModernBertConfig.model_type:
        return values
    filled = ModernBertConfig(**values).to_dict()
    return {"mask_token_id": None, **filled, "model_type": MMBertConfig.model_type}


def check_vocabulary(model_or_config: Any, tokenizer: Any) -> None:
    """Raise if the tokenizer can produce ids that the model has no embedding for, or has no mask token.

    Args:
        model_or_config: A model or its configuration.
        tokenizer: The tokenizer that will feed it.

    Raises:
        ValueError: Naming both sizes and the fix.

    Example:
        >>> from types import SimpleNamespace
        >>> class Tokenizer(SimpleNamespace):
        ...     def __len__(self):
        ...         return 256_000
        >>> check_vocabulary(MMBertConfig.small(), Tokenizer(mask_token_id=4))
        >>> check_vocabulary(MMBertConfig.small(vocab_size=50_368), Tokenizer(mask_token_id=4))
        Traceback (most recent call last):
        ...
        ValueError: the tokenizer has 256000 tokens and the model 50368 embeddings; ...
    """
    config: ModernBertConfig = getattr(model_or_config, "config", model_or_config)
    size, mask_token_id = len(tokenizer), getattr(tokenizer, "mask_token_id", None)
    if size > config.vocab_size:
        raise ValueError(
            f"the tokenizer has {size} tokens and the model {config.vocab_size} embeddings; load the tokenizer that "
            f"belongs to the checkpoint, or call model.resize_token_embeddings({size}) and train the new rows"
        )
    if mask_token_id is None:
        raise ValueError(
            f"the tokenizer ({size} tokens) has no mask token, and the model ({config.vocab_size} embeddings) is "
            "trained with one; mmBERT's is '<mask>', id 4: set tokenizer.mask_token to it"
        )
    if mask_token_id >= config.vocab_size:
        raise ValueError(
            f"the mask token has id {mask_token_id} and the model {config.vocab_size} embeddings; load the tokenizer "
            f"that belongs to the checkpoint, or call model.resize_token_embeddings({mask_token_id + 1})"
        )


register()  # importing this module may have brought transformers in, whose Auto classes then still lack it
