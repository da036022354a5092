"""Cross entropy of a linear layer over a large vocabulary, without the logits of all rows at once.

512 rows of 256000 logits are 524 MB, and plain autograd holds them, their softmax and their gradient. Here the rows go
through in chunks, in one buffer, and the forward pass forms the gradients as well: a chunk's logits turn into their own
gradient in place and are used up before the next chunk overwrites them.

Design decisions:

- This function is used everywhere, torch's own (`torch.nn.functional.linear_cross_entropy`, from 2.13 on) nowhere.
  Measured 2026-11-23, torch 2.13.0, fp32, loss and gradients of 1229 rows x 256000 x 384, two threads of a shared CPU,
  seconds of CPU time of 2 or 3 runs (1 run of the larger chunks), peak memory above the inputs:

      plain linear and cross_entropy             15.2 - 15.9 s   3790 MB
      torch's, batch_chunk_size=128              12.7 - 13.8 s    811 - 884 MB
      this, 128 rows a chunk (64; 256; 512)      12.0 - 12.4 s    542 MB   (14.9 s, 479; 11.2 s, 667; 10.6 s, 836 MB)

  393 MB of each are the gradient of the weight. In bfloat16, 256 rows, one run: plain 1.9 s and 795 MB; torch's 7.6 s
  and 1989 MB, with a loss rounded to bfloat16; this 1.6 s and 720 MB.
- Products are 83 % of the time and run near what the CPU can do. Tried for the logits and left out: computing them
  transposed (6 % faster, but softmax over strided columns), in column blocks of 1024 (10 - 15 %, with 250 small
  products a chunk, which a GPU would not like), by oneDNN's fused linear (9 %, allocates each chunk anew).
- float16 is multiplied in float32: gradients over a large vocabulary overflow it at the label and underflow elsewhere.
- Gradients are formed before the factor of the loss is known, so the backward pass is one multiplication in place.

Shape legend: N rows, E hidden size, V vocabulary, R rows of one chunk.
"""

from typing import Any, TypeAlias

import torch

from mmbert_hf.masking import IGNORE_INDEX

__all__ = ["MAX_LOGITS", "linear_cross_entropy"]

MAX_LOGITS = 128 * 256_000
# Products in bfloat16 become float32 in pieces: so many rows of logits, so many rows of the weight's gradient.
ROUNDED_BLOCK_ROWS = 16
ROUNDED_BLOCK_VOCABULARY = 16_384

Gradients: TypeAlias = tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]


def linear_cross_entropy(
    hidden_NE: torch.Tensor,
    weight_VE: torch.Tensor,
    bias_V: torch.Tensor | None,
    labels_N: torch.Tensor,
    *,
    max_logits: int = MAX_LOGITS,
) -> torch.Tensor:
    """Sum the cross entropies of ``softmax(hidden @ weight.T + bias)`` at the labels, in little memory.

    Args:
        hidden_NE: Vectors, any float dtype.
        weight_VE: One row for each token of the vocabulary, of the dtype of `hidden_NE` (any under autocast).
        bias_V: One number for each token, or None.
        labels_N: Token ids, integers; rows with -100 do not count.
        max_logits: The most logits (rows times vocabulary) that exist at once, but never less than one row of them.
            Products in bfloat16 need a sixteen-row float32 copy beside.

    Returns:
        A scalar in nats, float32 or better; 0 with a gradient graph if nothing is labelled.

    Raises:
        ValueError: For shapes that do not fit, or `max_logits` below 1.
        TypeError: For dtypes that differ, outside autocast.
        IndexError: For a label outside the vocabulary.
        RuntimeError: In a backward pass with ``create_graph=True``; there are no second derivatives.

    Example:
        >>> hidden, weight = torch.zeros(3, 2, requires_grad=True), torch.ones(4, 2)
        >>> loss = linear_cross_entropy(hidden, weight, None, torch.tensor([0, 3, -100]))
        >>> round(loss.item(), 4)  # 2 log(4)
        2.7726
        >>> loss.backward()
        >>> hidden.grad.shape
        torch.Size([3, 2])
    """
    return _summed_loss(hidden_NE, weight_VE, bias_V, labels_N, max_logits)


@torch.compiler.disable  # one graph break; what is inside reads numbers and would break a graph many times
def _summed_loss(
    hidden_NE: torch.Tensor,
    weight_VE: torch.Tensor,
    bias_V: torch.Tensor | None,
    labels_N: torch.Tensor,
    max_logits: int,
) -> torch.Tensor:
    """Check the inputs, drop the rows that do not count, and compute the loss, with gradients if anything needs them."""
    _check(hidden_NE, weight_VE, bias_V, labels_N, max_logits)
    labels_N = labels_N.to(hidden_NE.device, torch.long)
    rows = (labels_N != IGNORE_INDEX).nonzero().squeeze(1)
    if len(rows) < len(labels_N):
        hidden_NE, labels_N = hidden_NE.index_select(0, rows), labels_N.index_select(0, rows)
    _check_range(labels_N, len(weight_VE))
    dtype = _product_dtype(hidden_NE, weight_VE, bias_V)
    inputs = (hidden_NE, weight_VE, bias_V)
    if torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in inputs):
        return _LinearCrossEntropy.apply(*inputs, labels_N, max_logits, dtype)
    return _loss_and_gradients(*inputs, labels_N, max_logits, dtype, (False, False, False))[0]


class _LinearCrossEntropy(torch.autograd.Function):
    """Loss and gradients in the forward pass; the backward pass scales the gradients and hands them over."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_NE: torch.Tensor,
        weight_VE: torch.Tensor,
        bias_V: torch.Tensor | None,
        labels_N: torch.Tensor,
        max_logits: int,
        dtype: torch.dtype,
    ) -> torch.Tensor:
        ctx.save_for_backward(hidden_NE, weight_VE, bias_V, labels_N)
        ctx.options = (max_logits, dtype, ctx.needs_input_grad[:3])
        loss, ctx.gradients = _loss_and_gradients(hidden_NE, weight_VE, bias_V, labels_N, *ctx.options)
        return loss

    @staticmethod
    def backward(ctx: Any, grad_loss: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        # Not `once_differentiable`: it lets gradients that are constants pass into a penalty, where they add nothing.
        if torch.is_grad_enabled():
            raise RuntimeError(
                "linear_cross_entropy has no second derivatives; call backward without create_graph=True"
            )
        # Kept on ctx, not among the saved tensors: those may not be changed in place, and a copy of the weight's
        # gradient costs as much as twelve layers. A second backward pass over a retained graph forms them anew.
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            _, gradients = _loss_and_gradients(*ctx.saved_tensors, *ctx.options)
        # Reading the number is free on the CPU alone; elsewhere it would wait for the device.
        if grad_loss.device.type != "cpu" or grad_loss.item() != 1:
            for gradient in gradients:
                if gradient is not None:
                    gradient.mul_(grad_loss)
        return (*gradients, None, None, None)


def _loss_and_gradients(
    hidden_NE: torch.Tensor,
    weight_VE: torch.Tensor,
    bias_V: torch.Tensor | None,
    labels_N: torch.Tensor,
    max_logits: int,
    dtype: torch.dtype,
    needed: tuple[bool, bool, bool],
) -> tuple[torch.Tensor, Gradients]:
    """Return the summed loss and the gradients of hidden, weight and bias, None where not needed.

    Products are taken in `dtype`; losses, softmax and sums over chunks in float32 or better.
    """
    exact = torch.promote_types(dtype, torch.float32)
    hidden, weight = hidden_NE.to(dtype), weight_VE.to(dtype)
    bias = None if bias_V is None else bias_V.to(dtype)
    losses_N = hidden.new_empty(len(hidden), dtype=exact)
    grad_hidden_NE = torch.empty_like(hidden_NE, dtype=exact) if needed[0] else None  # autograd casts it, once scaled
    grad_weight_VE = torch.zeros_like(weight_VE, dtype=exact) if needed[1] else None
    grad_bias_V = None if bias_V is None or not needed[2] else torch.zeros_like(bias_V, dtype=exact)
    chunk_rows = _rows_per_chunk(len(hidden), len(weight), max_logits)
    buffer_RV = hidden.new_empty(chunk_rows, len(weight))
    with torch.autocast(hidden.device.type, enabled=False):
        for start in range(0, len(hidden), chunk_rows):
            rows = slice(start, start + chunk_rows)
            hidden_RE = hidden[rows]
            logits_RV = buffer_RV[: len(hidden_RE)]
            if bias is None:
                torch.mm(hidden_RE, weight.t(), out=logits_RV)
            else:
                torch.addmm(bias, hidden_RE, weight.t(), out=logits_RV)
            losses_N[rows], shares_R = _differentiate(logits_RV, labels_N[rows])
            if grad_hidden_NE is not None:
                grad_hidden_NE[rows] = torch.mm(logits_RV, weight) * shares_R[:, None]
            if grad_weight_VE is not None:
                scaled_RE = (hidden_RE * shares_R[:, None]).to(dtype)
                _add_product(grad_weight_VE, logits_RV, scaled_RE, max_logits)
            if grad_bias_V is not None:
                grad_bias_V += torch.mv(logits_RV.t(), shares_R.to(dtype))
    grad_weight = None if grad_weight_VE is None else grad_weight_VE.to(weight_VE.dtype)
    grad_bias = None if grad_bias_V is None or bias_V is None else grad_bias_V.to(bias_V.dtype)
    return losses_N.sum(), (grad_hidden_NE, grad_weight, grad_bias)


def _differentiate(logits_RV: torch.Tensor, labels_R: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Turn logits into their gradient, up to a factor for each row, in place.

    The gradient is softmax minus one-hot. With e_j = exp(logit_j - largest logit) and s = sum_j e_j, it is e_j / s,
    and -sum_{j != label} e_j / s at the label. The buffer gets it without the division, which the caller spends on the
    narrow factor of each product: one pass less over the vocabulary.

    Returns:
        The losses [R] and the factors 1 / s [R], float32 or better.
    """
    exact = torch.promote_types(logits_RV.dtype, torch.float32)
    block_rows = len(logits_RV) if logits_RV.dtype == exact else ROUNDED_BLOCK_ROWS
    losses, shares = [], []
    for part, labels in zip(logits_RV.split(block_rows), labels_R[:, None].split(block_rows), strict=True):
        work = part.to(exact)  # the part itself, or a copy of few rows
        largest = work.amax(1, keepdim=True)
        distance = largest - work.gather(1, labels)
        work.sub_(largest).exp_()
        others = work.scatter_(1, labels, 0).sum(1, keepdim=True)
        work.scatter_(1, labels, -others)
        if work.dtype != part.dtype:
            part.copy_(work)
        total = others + distance.neg().exp()
        losses.append((total.log() + distance).squeeze(1))
        shares.append(total.reciprocal().squeeze(1))
    return torch.cat(losses), torch.cat(shares)


def _add_product(
    grad_weight_VE: torch.Tensor, grad_logits_RV: torch.Tensor, hidden_RE: torch.Tensor, most: int
) -> None:
    """Add ``grad_logits.T @ hidden`` in place; a rounded product, through a temporary of at most `most` numbers."""
    if grad_weight_VE.dtype == hidden_RE.dtype:
        grad_weight_VE.addmm_(grad_logits_RV.t(), hidden_RE)
        return
    step = min(ROUNDED_BLOCK_VOCABULARY, max(1, most // hidden_RE.shape[1]))
    for total, part in zip(grad_weight_VE.split(step), grad_logits_RV.split(step, dim=1), strict=True):
        total += torch.mm(part.t(), hidden_RE)


def _rows_per_chunk(rows: int, vocabulary: int, max_logits: int) -> int:
    """Return the size of chunks that are about equal: each costs a pass over the gradient of the weight."""
    most = max(1, max_logits // vocabulary)
    chunks = max(1, -(-rows // most))
    return max(1, -(-rows // chunks))


def _product_dtype(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.dtype:
    """Return the dtype of the products: that of autocast, else that of the inputs; float32 for float16."""
    device, dtype = hidden.device.type, hidden.dtype
    if torch.is_autocast_enabled(device):
        # As in autocast itself: float64 stays.
        dtype = dtype if dtype == torch.float64 else torch.get_autocast_dtype(device)
    elif any(tensor is not None and tensor.dtype != dtype for tensor in (weight, bias)):
        dtypes = (dtype, weight.dtype, None if bias is None else bias.dtype)
        raise TypeError(
            f"hidden, weight and bias are {', '.join(map(str, dtypes))}; they must have one dtype: "
            "cast them or use torch.autocast"
        )
    return torch.float32 if dtype == torch.float16 else dtype


def _check(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, labels: torch.Tensor, max_logits: int
) -> None:
    fits = hidden.ndim == weight.ndim == 2 and hidden.shape[1] == weight.shape[1] and len(weight) > 0
    if not fits or labels.shape != hidden.shape[:1] or (bias is not None and bias.shape != weight.shape[:1]):
        shapes = [None if tensor is None else tuple(tensor.shape) for tensor in (hidden, weight, bias, labels)]
        raise ValueError(
            f"hidden, weight, bias and labels have the shapes {shapes}; they must be [rows, size], "
            "[vocabulary, size], [vocabulary] or None, and [rows]: flatten batches first"
        )
    if max_logits < 1:
        raise ValueError(f"max_logits is {max_logits}; it must be at least 1")


def _check_range(labels: torch.Tensor, vocabulary: int) -> None:
    if len(labels) == 0:
        return
    least, most = torch.stack(labels.aminmax()).tolist()
    if least < 0 or most >= vocabulary:
        raise IndexError(
            f"labels run from {least} to {most}; they must lie in 0..{vocabulary - 1}, or be {IGNORE_INDEX} where "
            "nothing is predicted: were they made with a tokenizer of another vocabulary?"
        )
