"""Exact per-triplet gradients of linear layers in one pass: their sum and the sum of their squares.

Design decisions:

- The loss of a triplet touches that triplet alone: InfoNCE with its own negative and scale 20, no negatives shared
  within the batch. So a batch can go through the model at once, and the gradient of each triplet is a product of what
  went into a layer and what came back at its output, both restricted to the tokens of that triplet.
- Parameters are frozen while this runs, so backward computes gradients of activations only. The graph begins at the
  first layer looked at: layers before it cost a forward pass and no memory.
- Queries and documents go through the model separately, each with its own prompt and its own padding. A layer that is
  called several times, shared layers included, is dealt with when the gradients of all its calls are there.
- Squares are squared per triplet before they are summed, in float32 whatever the model's dtype, a piece of the outputs
  at a time so that the products of a batch stay in the cache.
- Rows may be padded, [R, L, features], or without padding, [T, features], as some encoders have them inside: one after
  the other, or in the order that MMBERT says. `check_rows` makes sure of it before anything is summed.

Shape legend: B triplets, R rows (texts), L tokens of the longest, T tokens of all rows, N tokens of a triplet (padded),
O outputs and I inputs of a layer, D size of an embedding.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from mmbert_hf.attention.packed import PackedRows
from mmbert_hf.encoder import MMBertEncoderLayer
from mmbert_hf.pruning.options import SCALE
from mmbert_hf.pruning.targets import encoder_of, evaluating, find_blocks
from mmbert_hf.pruning.texts import row_lengths, to_features

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = ["SCALE", "LayerSums", "add_batch", "add_products", "check_rows", "triplet_losses"]

PROBES = ("a b c d e f", "a", "a b c")
# Elements of a piece of per-triplet gradients: 1 MiB of float32, which stays in the second-level cache.
PIECE_ELEMENTS = 1 << 18


def triplet_losses(
    anchors_BD: torch.Tensor, positives_BD: torch.Tensor, negatives_BD: torch.Tensor, scale: float = SCALE
) -> torch.Tensor:
    """InfoNCE of each triplet with its one negative, in nats: float32 [B].

    ``-log(exp(c p) / (exp(c p) + exp(c n)))`` with the cosines p and n of the anchor with positive and negative, and
    the scale c.

    Example:
        >>> anchor, positive, negative = torch.eye(2)[:1], torch.eye(2)[:1], torch.eye(2)[1:]
        >>> round(float(triplet_losses(anchor, positive, negative, scale=1.0)), 4)  # log(1 + exp(0 - 1))
        0.3133
    """
    anchors, positives, negatives = anchors_BD.float(), positives_BD.float(), negatives_BD.float()
    difference = F.cosine_similarity(anchors, negatives) - F.cosine_similarity(anchors, positives)
    return F.softplus(scale * difference)


@dataclass
class LayerSums:
    """What is summed for one layer: float32, on the model's device.

    Attributes:
        gradient: Sum of the per-triplet gradients, [O, I].
        squares: Sum of their squares, [O, I].
        input_squares: Sum over real tokens of the squared inputs, [I].
    """

    gradient: torch.Tensor
    squares: torch.Tensor
    input_squares: torch.Tensor

    @classmethod
    def zeros(cls, layer: nn.Linear) -> "LayerSums":
        """Sums over nothing, for this layer."""
        empty = {"dtype": torch.float32, "device": layer.weight.device}
        return cls(
            torch.zeros(layer.weight.shape, **empty),
            torch.zeros(layer.weight.shape, **empty),
            torch.zeros(layer.in_features, **empty),
        )


@dataclass
class _Rows:
    """The rows of one call of the model: how long they are, and where their real tokens are if they are padded."""

    lengths: torch.Tensor  # int64 [R]
    mask: torch.Tensor | None  # bool [R, L]
    rows_per_triplet: int  # queries: one; documents: two, all positives, then all negatives
    places: torch.Tensor | None = (
        None  # int64 [T]: where each token is in the padded rows, if the encoder reorders them
    )

    def padded(self, tokens: torch.Tensor) -> torch.Tensor:
        """[R, L, features] from that, or from rows one after the other. What is added is zero."""
        if self.mask is not None and tokens.shape[:-1] == self.mask.shape:
            return tokens
        flat = tokens.flatten(0, -2)
        if flat.shape[0] != int(self.lengths.sum()):
            raise ValueError(
                f"a linear layer was called with {tuple(tokens.shape)}, which is neither rows padded to "
                f"{None if self.mask is None else tuple(self.mask.shape)} nor the {int(self.lengths.sum())} real "
                "tokens one after the other; its gradients cannot be told apart by triplet, choose other targets"
            )
        if self.places is not None and self.mask is not None:
            padded = flat.new_zeros(self.mask.numel(), flat.shape[-1])
            return padded.index_copy_(0, self.places, flat).view(*self.mask.shape, -1)
        return pad_sequence(list(flat.split(self.lengths.tolist())), batch_first=True)

    def by_triplet(self, tokens: torch.Tensor) -> torch.Tensor:
        """[B, N, features] in float32: the tokens of a triplet's rows side by side."""
        parts = self.padded(tokens).split(len(self.lengths) // self.rows_per_triplet)
        return (parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)).float()

    def squares(self, tokens: torch.Tensor) -> torch.Tensor:
        """Sum of the squares over real tokens: float32 [features]."""
        if self.mask is not None and tokens.shape[:-1] == self.mask.shape:
            tokens = tokens[self.mask]
        return tokens.flatten(0, -2).float().square().sum(dim=0)


@dataclass
class _Call:
    rows: _Rows
    inputs: torch.Tensor
    gradient: torch.Tensor | None = None


@dataclass
class _Layer:
    """The calls of one layer in a batch; `add` when the gradients of all of them are there."""

    sums: LayerSums
    calls: list[_Call] = field(default_factory=list)
    num_waiting: int = 0

    def begin(self, rows: _Rows, inputs: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """Note a call; returns its output, which sends its gradient here when it has one."""
        call = _Call(rows, inputs.detach())
        self.calls.append(call)
        self.num_waiting += 1
        self.sums.input_squares += rows.squares(call.inputs)
        if not output.requires_grad:
            output = output.detach().requires_grad_()  # the graph begins here

        def receive(gradient: torch.Tensor) -> None:
            call.gradient = gradient
            self.num_waiting -= 1
            if self.num_waiting == 0:
                self.add()

        output.register_hook(receive)
        return output

    def add(self) -> None:
        """Sum the gradients of the batch's triplets, and forget its calls."""
        pairs = [
            (call.rows.by_triplet(call.inputs), call.rows.by_triplet(call.gradient))
            for call in self.calls
            if call.gradient is not None
        ]
        self.calls, self.num_waiting = [], 0
        if pairs:
            add_products(
                self.sums,
                torch.cat([inputs for inputs, _ in pairs], dim=1),
                torch.cat([gradients for _, gradients in pairs], dim=1),
            )


def add_products(sums: LayerSums, inputs_BNI: torch.Tensor, gradients_BNO: torch.Tensor) -> None:
    """Add the per-triplet gradients ``gradients_b^T inputs_b`` and their squares to the sums, in place.

    Args:
        sums: Of the layer.
        inputs_BNI: What went into the layer, float32; what is there for padding does not matter.
        gradients_BNO: Gradient of the loss with respect to what came out, float32, zero at padding.
    """
    num_triplets, _, num_inputs = inputs_BNI.shape
    rows = max(1, PIECE_ELEMENTS // (num_triplets * num_inputs))
    gradients_BON = gradients_BNO.transpose(1, 2)
    for start in range(0, gradients_BON.shape[1], rows):
        piece = slice(start, start + rows)
        products = torch.bmm(gradients_BON[:, piece], inputs_BNI)
        sums.gradient[piece] += products.sum(dim=0)
        sums.squares[piece] += products.square_().sum(dim=0)


def add_batch(
    model: "SentenceTransformer",
    sums: dict[str, LayerSums],
    anchors: Sequence[str],
    positives: Sequence[str],
    negatives: Sequence[str],
    scale: float = SCALE,
) -> torch.Tensor:
    """Let B triplets through the model once and add their gradients to the sums.

    Args:
        model: An embedder. Its parameters, mode and hooks are afterwards as they were.
        sums: By name of the layer inside the transformers model; those layers are looked at.
        anchors: B queries.
        positives: B documents.
        negatives: B documents.
        scale: Of the loss.

    Returns:
        The losses, float32 [B].

    Raises:
        ValueError: A loss is not finite, or a layer's tokens cannot be told apart by triplet.
    """
    tape = {name: _Layer(layer_sums) for name, layer_sums in sums.items()}
    with _recording(model, tape) as current:
        queries = to_features(model, anchors, "query")
        current.rows = _rows_of(queries, 1)
        anchors_BD = model(queries)["sentence_embedding"]
        documents = to_features(model, [*positives, *negatives], "document")
        current.rows = _rows_of(documents, 2)
        positives_BD, negatives_BD = model(documents)["sentence_embedding"].chunk(2)
        losses = triplet_losses(anchors_BD, positives_BD, negatives_BD, scale)
        if not torch.isfinite(losses).all():
            raise ValueError(
                f"the loss of {int((~torch.isfinite(losses)).sum())} of {len(losses)} triplets is not finite: the "
                "model gives NaN or infinity for them; try it in float32"
            )
        losses.sum().backward()
        for layer in tape.values():
            layer.add()  # calls whose output the loss does not depend on never get a gradient
    return losses.detach()


def check_rows(model: "SentenceTransformer", layers: Sequence[str]) -> None:
    """Make sure that the tokens of a text can be told apart from those of others in every layer.

    Three texts of different lengths go through the model, and the gradient of each one's embedding must be zero at the
    tokens of the other two.

    Args:
        model: An embedder.
        layers: Names of linear layers inside the transformers model.

    Raises:
        ValueError: A layer mixes them; its gradients would not be per triplet.
    """
    encoder = encoder_of(model)
    tape = {name: _Layer(LayerSums.zeros(encoder.get_submodule(name))) for name in layers}
    with _recording(model, tape) as current:
        features = to_features(model, PROBES, "document")
        current.rows = _rows_of(features, len(PROBES))
        embeddings = model(features)["sentence_embedding"]
        weights = torch.linspace(1, 2, embeddings.shape[1], device=embeddings.device, dtype=embeddings.dtype)
        for row in range(len(PROBES)):
            for layer in tape.values():
                layer.num_waiting = -1  # `add` is not wanted here
            embeddings[row].backward(weights, retain_graph=True)
            for name, layer in tape.items():
                others = [
                    call.rows.padded(call.gradient)[[r for r in range(len(PROBES)) if r != row]]
                    for call in layer.calls
                    if call.gradient is not None
                ]
                if any(gradient.any() for gradient in others):
                    raise ValueError(
                        f"layer {name!r} gets the tokens of a batch in an order in which those of one text cannot be "
                        "told from those of another, so its gradients are not per triplet; score with batch_size=1"
                    )


@dataclass
class _Current:
    rows: _Rows | None = None


def _rows_of(features: dict[str, Any], rows_per_triplet: int) -> _Rows:
    mask = features.get("attention_mask") if "cu_seq_lens_q" not in features else None
    return _Rows(row_lengths(features), None if mask is None else mask.bool(), rows_per_triplet)


def _reorders(block: nn.Module) -> bool:
    """Whether the encoder is MMBERT's, which sorts rows by length and says so to its blocks."""
    return isinstance(block, MMBertEncoderLayer)


@contextmanager
def _recording(model: "SentenceTransformer", tape: dict[str, _Layer]) -> Iterator[_Current]:
    """Freeze the parameters and hook the layers; undo both."""
    encoder, current = encoder_of(model), _Current()
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def hook_for(layer: _Layer) -> Any:
        return lambda module, args, output: layer.begin(current.rows, args[0], output)  # type: ignore[arg-type]

    def see_order(block: nn.Module, args: tuple[Any, ...]) -> None:
        if isinstance(args[1], PackedRows) and current.rows is not None:
            current.rows.places = args[1].documents.indices

    handles = []
    try:
        for parameter in trainable:
            parameter.requires_grad_(False)
        handles = [encoder.get_submodule(name).register_forward_hook(hook_for(layer)) for name, layer in tape.items()]
        handles += [
            block.register_forward_pre_hook(see_order) for block in find_blocks(encoder)[1][:1] if _reorders(block)
        ]
        with evaluating(model), torch.enable_grad():
            yield current
    finally:
        for handle in handles:
            handle.remove()
        for parameter in trainable:
            parameter.requires_grad_(True)
