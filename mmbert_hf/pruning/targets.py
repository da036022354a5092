"""Which layers may be pruned, found by their type and by how data flows through them, never by a family's names.

Design decisions:

- Transformer blocks are the outermost `torch.nn.ModuleList` whose members hold linear layers. What is pruned is the
  `torch.nn.Linear` inside them; embeddings, norms and poolers stay.
- What a linear layer is for shows in what its input depends on. One short text goes through the model, every linear
  layer's output is cut off from what came before it, and the input of each layer is differentiated with respect to
  the outputs of the others. An input that depends on *other tokens* belongs to the projection that follows attention,
  and what it depends on are query, key and value. An input of which every element depends on *one* element (or one of
  each half, or one of each of two layers) of the same token is what an activation made of a wider projection: that is
  a feed-forward block, gated or not. Fused projections (Wqkv, Wi), grouped heads and any names are covered by that.
- Names are those inside the transformers model (``encoder.layer.3.output.dense``), as in ``model.safetensors``.

Shape legend: T tokens, F neurons of a feed-forward block.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn
from transformers import PreTrainedModel

from mmbert_hf.pruning.options import KINDS

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = ["FeedForward", "Kinds", "Target", "encoder_of", "find_blocks", "find_feed_forwards", "find_targets"]

Kinds = Literal["mlp", "attention", "all"]
PROBE = "a b c d e f g h"
NUM_PROBED_ELEMENTS = 8


@dataclass(frozen=True)
class Target:
    """A linear layer that may be pruned.

    Attributes:
        name: Of the module inside the transformers model.
        layer: Number of its block, from 0.
        kind: What it is part of.
    """

    name: str
    layer: int
    kind: Literal["mlp", "attention"]


@dataclass(frozen=True)
class FeedForward:
    """The feed-forward block of one transformer block.

    Attributes:
        layer: Number of the block, from 0.
        up: Names of the layers that make the neurons: one, or two (values and gate), or one with both when `is_fused`.
        down: Name of the layer that reads the neurons.
        width: Neurons F, the columns of `down`.
        is_fused: ``up[0]`` has 2F rows; neuron j is rows j and F + j.
    """

    layer: int
    up: tuple[str, ...]
    down: str
    width: int
    is_fused: bool


def encoder_of(model: "SentenceTransformer") -> PreTrainedModel:
    """The transformers model inside a SentenceTransformer.

    Args:
        model: An embedder.

    Raises:
        ValueError: Its first module holds no transformers model, as in an embedder of static word vectors.
    """
    encoder = getattr(model[0], "auto_model", None)
    if not isinstance(encoder, nn.Module) or not hasattr(encoder, "config"):
        raise ValueError(
            f"the first module of the embedder is {type(model[0]).__name__}, which holds no transformers model; "
            "pruning needs an embedder that starts with sentence_transformers' Transformer"
        )
    return encoder


def find_blocks(encoder: nn.Module) -> tuple[str, nn.ModuleList]:
    """The transformer blocks: the outermost list of modules that hold linear layers, the longest if there are several.

    Args:
        encoder: A transformers model.

    Returns:
        Its name inside `encoder`, and the list.

    Raises:
        ValueError: There is none.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> config = BertConfig(hidden_size=8, num_attention_heads=2, intermediate_size=16, num_hidden_layers=3)
        >>> name, blocks = find_blocks(BertModel(config))
        >>> name, len(blocks)
        ('encoder.layer', 3)
    """
    found = [
        (name, module)
        for name, module in encoder.named_modules()
        if isinstance(module, nn.ModuleList) and any(isinstance(part, nn.Linear) for part in module.modules())
    ]
    outermost = [
        (name, module) for name, module in found if not any(name.startswith(f"{other}.") for other, _ in found)
    ]
    if not outermost:
        raise ValueError(
            f"{type(encoder).__name__} has no list of blocks with torch.nn.Linear layers, so there is nothing to "
            "prune. Models with quantised weights keep no such layers: prune the unquantised model, then quantise it"
        )
    return max(outermost, key=lambda entry: len(entry[1]))


def find_targets(model: "SentenceTransformer", kinds: Kinds = "all") -> list[Target]:
    """The linear layers that may be pruned, in the order of the model.

    Args:
        model: An embedder.
        kinds: ``"mlp"``, ``"attention"`` or ``"all"``.

    Returns:
        At least one target.

    Raises:
        ValueError: No layer is of that kind, adapters are not merged, or weights are quantised.
    """
    if kinds not in KINDS:
        raise ValueError(f"targets must be one of {', '.join(KINDS)}; got {kinds!r}")
    targets = [target for target in _look(model).targets if kinds in ("all", target.kind)]
    if not targets:
        raise ValueError(
            f"{type(encoder_of(model)).__name__} has no linear layer of kind {kinds!r} in its blocks; "
            "choose other targets"
        )
    return targets


def find_feed_forwards(model: "SentenceTransformer") -> list[FeedForward]:
    """The feed-forward block of every transformer block.

    Args:
        model: An embedder.

    Returns:
        One per block that has one made of linear layers, in order.

    Raises:
        ValueError: There is none, adapters are not merged, or weights are quantised.
    """
    found = _look(model).feed_forwards
    if not found:
        raise ValueError(
            f"no block of {type(encoder_of(model)).__name__} has a feed-forward of linear layers with one activation "
            "between them, so there is no width to prune"
        )
    return found


@dataclass(frozen=True)
class _Structure:
    targets: list[Target]
    feed_forwards: list[FeedForward]


@dataclass
class _Call:
    """One call of a linear layer: what came in, and what went out as a leaf of the graph. [T, features] both."""

    inputs: torch.Tensor
    outputs: torch.Tensor


def _look(model: "SentenceTransformer") -> _Structure:
    """Let a short text through the model and see what the input of every linear layer depends on."""
    encoder = encoder_of(model)
    check_weights(encoder)
    blocks_name, blocks = find_blocks(encoder)
    layers = {
        f"{blocks_name}.{number}.{name}": number
        for number, block in enumerate(blocks)
        for name, part in block.named_modules()
        if isinstance(part, nn.Linear)
    }
    calls = _record(model, encoder, list(layers))
    targets: dict[str, Target] = {}
    feed_forwards = []
    for name, call in calls.items():
        within = {other: calls[other] for other in calls if layers[other] == layers[name] and other != name}
        feed_forward = _feed_forward(layers[name], name, call, within)
        if feed_forward is not None:
            feed_forwards.append(feed_forward)
            for part in (*feed_forward.up, name):
                targets[part] = Target(part, layers[part], "mlp")
    for name, call in calls.items():
        within = {other: calls[other] for other in calls if layers[other] == layers[name] and other != name}
        sources = _cross_token_sources(call, within)
        if sources and name not in targets:
            for part in (*sources, name):
                targets.setdefault(part, Target(part, layers[part], "attention"))
    return _Structure([targets[name] for name in layers if name in targets], feed_forwards)


def check_weights(encoder: nn.Module) -> None:
    """Refuse weights that cannot be scored or set to zero as they are.

    Raises:
        ValueError: Adapters are attached, or weights are quantised.
    """
    if hasattr(encoder, "peft_config") or any(hasattr(part, "base_layer") for part in encoder.modules()):
        raise ValueError(
            "adapters are attached to the model; merge them first (model.merge_and_unload() of PEFT), "
            "since scores and zeros of the base weights alone would not be those of the model that runs"
        )
    config = getattr(encoder, "config", None)
    quantised = [name for name, part in encoder.named_modules() if _is_quantised(part)]
    if quantised or getattr(config, "quantization_config", None) is not None:
        named = f" ({quantised[0]} and {len(quantised) - 1} more)" if quantised else ""
        raise ValueError(f"the model has quantised weights{named}; load it without quantisation, prune, then quantise")


def _is_quantised(part: nn.Module) -> bool:
    """Linear layers of integers, of eight-bit floats or of tensors of a special kind; layers of torch's own quantisation."""
    if "quantized" in type(part).__module__:
        return True
    if not isinstance(part, nn.Linear):
        return False
    weight = part.weight
    is_plain = type(weight) in (nn.Parameter, torch.Tensor)
    return not is_plain or not weight.is_floating_point() or weight.element_size() < 2


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for as long as the context lasts; then every module has the mode again that it had."""
    training = [part for part in model.modules() if part.training]
    model.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True


@contextmanager
def _hooks(handles: list[Any]) -> Iterator[None]:
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _record(model: "SentenceTransformer", encoder: nn.Module, names: list[str]) -> dict[str, _Call]:
    """Run the probe; every linear layer's output starts a graph of its own. Layers that were not called are left out."""
    calls: dict[str, _Call] = {}

    def recorder(name: str) -> Any:
        def hook(layer: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
            leaf = output.detach().requires_grad_()
            calls[name] = _Call(args[0], leaf)
            return leaf

        return hook

    features = model.preprocess([PROBE])
    features = {key: value.to(model.device) if hasattr(value, "to") else value for key, value in features.items()}
    with (
        evaluating(model),
        _hooks([encoder.get_submodule(name).register_forward_hook(recorder(name)) for name in names]),
        torch.enable_grad(),
    ):
        model(features)
    return calls


def _dependence(source: _Call, others: dict[str, _Call], cotangent: torch.Tensor) -> dict[str, torch.Tensor]:
    """Gradient of a weighted sum of a layer's input: name of each layer that it is made of -> [T, features]."""
    inputs = source.inputs.flatten(0, -2)
    if not inputs.requires_grad:
        return {}
    leaves = [other.outputs for other in others.values()]
    gradients = torch.autograd.grad(inputs, leaves, cotangent, retain_graph=True, allow_unused=True)
    return {
        name: gradient.flatten(0, -2)
        for name, gradient in zip(others, gradients, strict=True)
        if gradient is not None  # connected, even where the gradient happens to vanish
    }


def _feed_forward(layer: int, name: str, call: _Call, others: dict[str, _Call]) -> FeedForward | None:
    """The feed-forward that `name` closes, if each of its inputs is made of one neuron of the same token."""
    num_tokens, width = call.inputs.flatten(0, -2).shape
    sources: set[str] = set()
    is_fused = False
    for probe in range(NUM_PROBED_ELEMENTS):
        token, element = probe % num_tokens, probe * width // NUM_PROBED_ELEMENTS
        cotangent = torch.zeros(num_tokens, width, dtype=call.inputs.dtype, device=call.inputs.device)
        cotangent[token, element] = 1
        for other, gradient in _dependence(call, others, cotangent).items():
            rows, columns = gradient.nonzero(as_tuple=True)
            if not set(rows.tolist()) <= {token} or not set(columns.tolist()) <= {element, element + width}:
                return None
            is_fused = is_fused or gradient.shape[-1] == 2 * width
            sources.add(other)
    if not sources or any(others[other].outputs.shape[-1] not in (width, 2 * width) for other in sources):
        return None
    return FeedForward(layer, tuple(other for other in others if other in sources), name, width, is_fused)


def _cross_token_sources(call: _Call, others: dict[str, _Call]) -> list[str]:
    """The layers of which this layer's input reads other tokens: query, key and value, if it closes attention."""
    inputs = call.inputs.flatten(0, -2)
    cotangent = torch.zeros_like(inputs)
    cotangent[-1] = torch.linspace(
        1, 2, inputs.shape[-1], device=inputs.device
    )  # the last token: a decoder's looks at all others
    gradients = _dependence(call, others, cotangent)
    return list(gradients) if any(gradient[:-1].any() for gradient in gradients.values()) else []
