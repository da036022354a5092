"""What one timed step does, and whether two implementations give the same numbers in it.

Design decisions:

- A training step of the encoder is forward, the sum of the real tokens' outputs times fixed weights, backward, and
  ``zero_grad(set_to_none=True)``; of the masked language model, forward with its loss, backward, and the same. There is
  no optimizer: it costs the same for every implementation.
- Agreement is judged on the very batch and mode that are timed. Outputs: the largest over real tokens of
  ||a - b|| / ||b||, vectors of the hidden size. Gradients: ||a - b|| / ||b|| over all parameters together. Loss of the
  masked language model: abs(a - b) / abs(b). The largest of them must not exceed `LIMITS`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from cases import Batch, Mode
from transformers import PreTrainedModel

__all__ = ["LIMITS", "Probe", "agreement", "make_step", "probe"]

LIMITS = {"float32": 1e-4, "bfloat16": 3e-2}


def _output_weights(model: PreTrainedModel, batch: Batch) -> torch.Tensor:
    """Fixed random weights [B, L, E], zero at padding."""
    shape = (*batch.input_ids.shape, model.config.hidden_size)
    weights = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return weights.to(device=model.device, dtype=model.dtype) * batch.attention_mask[..., None].to(model.dtype)


def _loss(model: PreTrainedModel, batch: Batch, weights: torch.Tensor | None) -> tuple[torch.Tensor, Any]:
    if weights is None:
        output = model(batch.input_ids, attention_mask=batch.attention_mask, labels=batch.labels)
        return output.loss, output
    output = model(batch.input_ids, attention_mask=batch.attention_mask)
    return (output.last_hidden_state * weights).sum(dtype=torch.float32), output


def make_step(model: PreTrainedModel, batch: Batch, mode: Mode) -> Callable[[], None]:
    """A function that runs one step.

    Args:
        model: The model; it is put into the mode.
        batch: Inputs, on the model's device; with labels for a masked language model.
        mode: ``"inference"``, under `torch.inference_mode`, or ``"training"`` (module docstring).

    Returns:
        The function. It leaves no gradients behind.

    Example:
        >>> from cases import Case, make_batch
        >>> from implementations import OURS, Settings, build
        >>> model = build(OURS, "encoder", Settings(model="tiny"))
        >>> make_step(model, make_batch(Case("tiny", (3, 2)), 1000, seed=0), "training")()
        >>> any(parameter.grad is not None for parameter in model.parameters())
        False
    """
    model.train(mode == "training")
    if mode == "inference":

        def infer() -> None:
            with torch.inference_mode():
                model(batch.input_ids, attention_mask=batch.attention_mask)

        return infer
    weights = _output_weights(model, batch) if batch.labels is None else None

    def train() -> None:
        _loss(model, batch, weights)[0].backward()
        model.zero_grad(set_to_none=True)

    return train


@dataclass
class Probe:
    """What one implementation computes in a step.

    Attributes:
        outputs: Hidden states of the real tokens [T, E], float32.
        loss: Of a masked language model, else None.
        gradients: By parameter name; empty for inference.
    """

    outputs: torch.Tensor
    loss: float | None
    gradients: dict[str, torch.Tensor]


def probe(model: PreTrainedModel, batch: Batch, mode: Mode) -> Probe:
    """Run one step and keep what it computes.

    Args:
        model: The model; it is put into the mode.
        batch: As for `make_step`.
        mode: As for `make_step`.

    Returns:
        Outputs, loss and gradients. The model's gradients are cleared.
    """
    model.train(mode == "training")
    real = batch.attention_mask.bool()
    if mode == "inference":
        with torch.inference_mode():
            output = model(batch.input_ids, attention_mask=batch.attention_mask)
        return Probe(output.last_hidden_state[real].float(), None, {})
    weights = _output_weights(model, batch) if batch.labels is None else None
    # The hidden states are taken where they leave the encoder: a masked language model returns logits at most.
    kept: list[torch.Tensor] = []
    hook = model.base_model.register_forward_hook(
        lambda _module, _inputs, output: kept.append(output.last_hidden_state.detach()[real].float())
    )
    try:
        loss, _ = _loss(model, batch, weights)
    finally:
        hook.remove()
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad(set_to_none=True)
    return Probe(kept[0], loss.item() if batch.labels is not None else None, gradients)


def agreement(ours: Probe, baseline: Probe) -> dict[str, float | None]:
    """Relative differences (module docstring).

    Args:
        ours: From our model.
        baseline: From a model with the same weights on the same batch.

    Returns:
        ``outputs``, ``gradients`` and ``loss``; None for what the mode does not have. NaN if a value is not finite.

    Raises:
        ValueError: If the two do not have gradients for the same parameters.

    Example:
        >>> ones = torch.ones(2, 3)
        >>> agreement(Probe(ones * 1.5, None, {}), Probe(ones, None, {}))["outputs"]
        0.5
    """
    difference = (ours.outputs - baseline.outputs).norm(dim=-1) / baseline.outputs.norm(dim=-1)
    if ours.gradients.keys() != baseline.gradients.keys():
        raise ValueError(
            f"gradients of one implementation only: {sorted(ours.gradients.keys() ^ baseline.gradients.keys())}"
        )
    squares = [0.0, 0.0]
    for name, theirs in baseline.gradients.items():
        squares[0] += (ours.gradients[name].float() - theirs.float()).square().sum(dtype=torch.float64).item()
        squares[1] += theirs.float().square().sum(dtype=torch.float64).item()
    loss = None
    if ours.loss is not None and baseline.loss is not None:
        loss = abs(ours.loss - baseline.loss) / abs(baseline.loss)
    return {
        "outputs": difference.max().item(),
        "gradients": (squares[0] / squares[1]) ** 0.5 if baseline.gradients else None,
        "loss": loss,
    }
