"""A wide or deep model from a narrow one: by tiling its weights, or by duplicating its units so that nothing changes.

ModernBERT starts its large model from its base model this way (arXiv 2412.13663, section 2.2: centre tiling, after Phi).

Design decisions:

- Every method is one index per kind of unit (hidden unit, head, intermediate unit): which narrow unit a wide one copies.
  Heads are copied whole, with their size, since RoPE's frequencies belong to places in a head.
- ``"center"`` has the narrow units in the middle and repeats them to both sides, ``"tile"`` has them first and repeats
  them after. Sums over repeated inputs grow with the number of copies, as in ModernBERT. Neither preserves the function.
- ``"duplicate"`` repeats every unit equally often and divides what is read from copies by their number. It preserves
  the function: LayerNorm sees the same mean and variance, attention the same heads. A tied decoder cannot be divided
  without the embeddings, so the norm before it is.
- Added layers are copies of the nearest narrow layer of their kind (global or local) before them. With ``"duplicate"``
  their output projections are 0, so they add nothing to the residual stream until they are trained.
- Copies stay equal for ever if they read and are read alike, unless dropout tells them apart. `noise` breaks this: it
  perturbs how each copy of an input is read, and the perturbations of the copies of one input sum to 0. So it takes
  nothing away from what ``"duplicate"`` promises.

Shape legend: e, E narrow and wide hidden size.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch

from mmbert_hf.configuration import MMBertConfig
from mmbert_hf.heads import MMBertForMaskedLM
from mmbert_hf.tiling.plan import TilingMethod, check_fit, place_layers, tiled_index, widened_config

__all__ = ["TilingMethod", "tile_model", "widened_config"]


@dataclass
class _Tiling:
    """Index per kind of unit, and how weights are read along them."""

    hidden: torch.Tensor
    heads: torch.Tensor
    intermediate: torch.Tensor
    divides: bool
    noise: float
    generator: torch.Generator

    def matrix(self, weight: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        """Tile a linear layer's weight [out, in]; copies of an input are perturbed, and share their input if `divides`."""
        wide = weight[rows][:, columns]
        num_copies = torch.bincount(columns, minlength=weight.shape[1])
        if self.divides:
            wide = wide / num_copies[columns].to(wide.dtype)
        if self.noise:
            drawn = torch.randn(wide.shape, generator=self.generator, dtype=torch.float64)
            sums = drawn.new_zeros(wide.shape[0], weight.shape[1]).index_add_(1, columns, drawn)
            drawn -= (sums / num_copies)[:, columns]
            wide = wide + (self.noise * wide.double().std(correction=0) * drawn).to(wide.dtype)
        return wide

    def layer(self, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Tile the weights of one encoder layer, by their names in it."""
        num_hidden, num_intermediate = weights["mlp.Wo.weight"].shape
        three = torch.cat([self.heads + part * num_hidden for part in range(3)])  # queries, keys, values
        two = torch.cat([self.intermediate + part * num_intermediate for part in range(2)])  # values, gate
        axes = {
            "attn.Wqkv": (three, self.hidden),
            "attn.Wo": (self.hidden, self.heads),
            "mlp.Wi": (two, self.hidden),
            "mlp.Wo": (self.hidden, self.intermediate),
        }
        wide = {}
        for name, weight in weights.items():
            rows, columns = axes.get(name.rpartition(".")[0], (self.hidden, None))
            wide[name] = self.matrix(weight, rows, columns) if weight.ndim == 2 else weight[rows]
        return wide


@torch.no_grad()
def tile_model(
    narrow: MMBertForMaskedLM,
    wide_config: MMBertConfig,
    *,
    method: TilingMethod = "center",
    noise: float = 0.0,
    seed: int = 0,
) -> MMBertForMaskedLM:
    """Make a wider or deeper masked language model out of a narrow one.

    Args:
        narrow: The narrow model. It is not changed.
        wide_config: Configuration of the new model (`widened_config` makes one): no smaller anywhere, with the same
            vocabulary, head size and kind of weights.
        method: ``"center"`` or ``"tile"``, which do not preserve the function, or ``"duplicate"``, which does: the new
            model gives the same logits up to rounding. It needs a hidden and an intermediate size that are multiples of
            the narrow ones, and the same RoPE, window and norm epsilon.
        noise: Standard deviation of the perturbation of copied inputs, as a share of the standard deviation of the
            matrix; 0 for none. It changes nothing where copies carry equal values, as they do with ``"duplicate"``.
        seed: Of the noise.

    Returns:
        The new model, in eval mode, in the narrow model's type, on the CPU.

    Raises:
        ValueError: If the configurations do not fit together, naming the values.

    Example:
        >>> sizes = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 48}
        >>> narrow = MMBertForMaskedLM(MMBertConfig(**sizes, vocab_size=100)).eval().double()
        >>> wide = tile_model(narrow, widened_config(narrow.config, hidden_size=64), method="duplicate")
        >>> input_ids = torch.tensor([[2, 17, 18, 1]])
        >>> torch.allclose(wide(input_ids).logits, narrow(input_ids).logits, rtol=0, atol=1e-10)
        True
    """
    check_fit(narrow.config, wide_config, method)
    if not (math.isfinite(noise) and noise >= 0.0):
        raise ValueError(f"noise must be a number from 0 up, got {noise}")
    placed = place_layers(narrow.config.layer_types, wide_config.layer_types)
    head_size = wide_config.hidden_size // wide_config.num_attention_heads
    heads = tiled_index(narrow.config.num_attention_heads, wide_config.num_attention_heads, method)
    tiling = _Tiling(
        hidden=tiled_index(narrow.config.hidden_size, wide_config.hidden_size, method),
        heads=(heads[:, None] * head_size + torch.arange(head_size)).flatten(),
        intermediate=tiled_index(narrow.config.intermediate_size, wide_config.intermediate_size, method),
        divides=method == "duplicate",
        noise=noise,
        generator=torch.Generator().manual_seed(seed),
    )
    old = {name: weight.detach().cpu() for name, weight in narrow.state_dict().items()}
    new = _outer_weights(old, tiling, is_tied=wide_config.tie_word_embeddings)
    for index, weights in enumerate(_layers(old, placed, wide_config.layer_types)):
        if placed[index] is None and method == "duplicate":
            weights = {name: weight * (".Wo." not in name) for name, weight in weights.items()}
        new |= {f"model.layers.{index}.{name}": weight for name, weight in tiling.layer(weights).items()}
    return _built(wide_config, new, narrow.dtype)


def _outer_weights(old: dict[str, torch.Tensor], tiling: _Tiling, *, is_tied: bool) -> dict[str, torch.Tensor]:
    """The tiled weights outside the encoder's layers."""
    hidden, new = tiling.hidden, {}
    for name, weight in old.items():
        if name.startswith("model.layers.") or (is_tied and name == "decoder.weight"):
            continue
        if name == "decoder.bias":
            new[name] = weight.clone()
        elif name == "model.embeddings.tok_embeddings.weight":
            new[name] = weight[:, hidden]
        elif name == "decoder.weight":
            new[name] = tiling.matrix(weight, torch.arange(len(weight)), hidden)
        else:
            new[name] = tiling.matrix(weight, hidden, hidden) if weight.ndim == 2 else weight[hidden]
    if is_tied and tiling.divides:  # the decoder sums over copies of each input, and has no weights of its own
        num_copies = len(hidden) / len(old["head.norm.weight"])
        for name in new.keys() & {"head.norm.weight", "head.norm.bias"}:
            new[name] = new[name] / num_copies
    return new


def _layers(old: dict[str, torch.Tensor], placed: list[int | None], kinds: list[str]) -> list[dict[str, torch.Tensor]]:
    """Narrow weights for each layer of the deeper model; added layers repeat the last one of their kind, or the next."""
    found = []
    for index, kind in enumerate(kinds):
        same = [(place, layer) for place, layer in enumerate(placed) if layer is not None and kinds[place] == kind]
        source = max((layer for place, layer in same if place <= index), default=same[0][1] if same else 0)
        prefix = f"model.layers.{source}."
        weights = {name.removeprefix(prefix): weight for name, weight in old.items() if name.startswith(prefix)}
        if index > 0 and source == 0:  # the first layer reads the embeddings after their norm, and has none itself
            for part in ("weight", "bias"):
                if (name := f"model.embeddings.norm.{part}") in old:
                    weights[f"attn_norm.{part}"] = old[name]
        found.append(weights)
    return found


def _built(config: MMBertConfig, weights: dict[str, torch.Tensor], dtype: torch.dtype) -> MMBertForMaskedLM:
    """The model with exactly these weights, made without drawing others first."""
    state: dict[str, Any] = {name: weight.contiguous() for name, weight in weights.items()}
    model, report = MMBertForMaskedLM.from_pretrained(
        None, config=config, state_dict=state, dtype=dtype, output_loading_info=True
    )
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    return model
