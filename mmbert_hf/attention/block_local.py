"""Local attention in blocks: the cost grows linearly with the number of tokens, and no L x L scores exist.

The packed row is cut into blocks of queries. The queries of a block see the block itself and `reach` tokens on either
side of it, which is as far as their windows go, and a mask cuts out each one's own window and document. All documents
of a batch are done by one call of scaled dot-product attention.

Design decisions:

- Keys and values of neighbouring blocks overlap: they are one buffer under overlapping strides, never copied. The
  buffer has `reach` rows of padding at either end and is written by the rotation of queries and keys, which has to
  write somewhere anyhow.
- Rows of padding are documents of their own, so that no row of scores is empty and nothing is NaN.

Shape legend: T tokens, H heads, D head size, D2 = D / 2, N blocks, S queries in a block, R reach, K = S + 2 R keys.
"""

from typing import Any

import torch
from torch.nn import functional as F

from mmbert_hf.rotary import rotate_into

__all__ = ["block_local_attention", "block_mask", "block_size", "blocks_of", "empty_buffer", "mix_blocks"]


def block_size(reach: int, *, training: bool) -> int:
    """How many queries make a block.

    Args:
        reach: How many tokens on either side a token sees.
        training: Whether the model is in training mode.

    Returns:
        About the reach in training and half of it in inference, a multiple of 16: measured best for a reach of 64
        and 1024 to 8192 tokens, fp32, on a CPU.

    Example:
        >>> block_size(64, training=False), block_size(64, training=True)
        (32, 64)
    """
    return max(16, -(-reach // 16) * 16 if training else reach // 32 * 16)


def block_mask(keys_T: torch.Tensor, reach: int, size: int, dtype: torch.dtype) -> torch.Tensor:
    """What each query may see of the keys of its block.

    Args:
        keys_T: One number a token, int64, of which the distance says whether two tokens see each other (see
            `Documents.keys`).
        reach: The largest distance at which they do.
        size: Queries in a block, S.
        dtype: Of the scores.

    Returns:
        [N, 1, S, K]: 0 where a query may look and minus infinity elsewhere, to be added to the scores.

    Example:
        >>> block_mask(torch.tensor([0, 1, 2]), reach=1, size=2, dtype=torch.float32).exp().int().squeeze(1)[0]
        tensor([[0, 1, 1, 0],
                [0, 1, 1, 1]], dtype=torch.int32)
    """
    num_blocks = -(-len(keys_T) // size)
    total = num_blocks * size + 2 * reach
    # Padding: far from every token and from each other, yet each place sees itself.
    padded = (torch.arange(total, device=keys_T.device) + 1) * -(2 * reach + 2)
    padded[reach : reach + len(keys_T)] = keys_T
    queries = padded[reach : reach + num_blocks * size].view(num_blocks, size, 1)
    keys = padded.unfold(0, size + 2 * reach, size)[:, None, :]
    hidden = (queries - keys).abs() > reach
    return torch.zeros(hidden.shape, dtype=dtype, device=keys_T.device).masked_fill_(hidden, -torch.inf)[:, None]


def empty_buffer(num_tokens: int, like_3HD: torch.Tensor, reach: int, size: int) -> torch.Tensor:
    """A buffer for the rotated queries, keys and values of a packed row, with padding at both ends.

    Args:
        num_tokens: T.
        like_3HD: Gives heads, head size, dtype and device, [..., 3, H, D].
        reach: How many tokens on either side a token sees, R.
        size: Queries in a block, S.

    Returns:
        [N S + 2 R, 3, H, D]; the tokens belong in the rows from R to R + T, and the others are zero.
    """
    rows = like_3HD.new_empty((-(-num_tokens // size) * size + 2 * reach, *like_3HD.shape[-3:]))
    rows[:reach].zero_()
    rows[reach + num_tokens :].zero_()
    return rows


def blocks_of(buffer: torch.Tensor, reach: int, size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries of each block, and the keys and values that they may see, without a copy.

    Args:
        buffer: From `empty_buffer`, filled.
        reach: R.
        size: S.

    Returns:
        Queries [N, H, S, D], keys and values [N, H, K, D]; those of neighbouring blocks overlap.

    Example:
        >>> buffer = empty_buffer(4, torch.zeros(3, 1, 1), reach=1, size=2)
        >>> buffer[1:5] = torch.arange(1.0, 5.0).view(4, 1, 1, 1)
        >>> queries, keys, _ = blocks_of(buffer, reach=1, size=2)
        >>> queries.flatten(1).tolist(), keys.flatten(1).tolist()
        ([[1.0, 2.0], [3.0, 4.0]], [[0.0, 1.0, 2.0, 3.0], [2.0, 3.0, 4.0, 0.0]])
    """
    num_rows, _, heads, head_size = buffer.shape
    num_blocks = (num_rows - 2 * reach) // size
    row, first = 3 * heads * head_size, buffer.storage_offset()
    strides = (size * row, head_size, row, 1)
    query_shape = (num_blocks, heads, size, head_size)
    key_shape = (num_blocks, heads, size + 2 * reach, head_size)
    return (
        buffer.as_strided(query_shape, strides, first + reach * row),
        buffer.as_strided(key_shape, strides, first + heads * head_size),
        buffer.as_strided(key_shape, strides, first + 2 * heads * head_size),
    )


def mix_blocks(
    blocks: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    mask_N1SK: torch.Tensor,
    num_tokens: int,
    *,
    scaling: float,
    dropout: float = 0.0,
) -> torch.Tensor:
    """Mix values within windows.

    Args:
        blocks: From `blocks_of`.
        mask_N1SK: The mask from `block_mask`.
        num_tokens: T.
        scaling: Factor on the scores.
        dropout: Probability that an attention weight is dropped.

    Returns:
        The mixed values [T, H, D].
    """
    mixed_NHSD = F.scaled_dot_product_attention(*blocks, mask_N1SK, dropout_p=dropout, scale=scaling)
    return mixed_NHSD.transpose(1, 2).flatten(0, 1)[:num_tokens]


def block_local_attention(
    qkv_T3HD: torch.Tensor,
    cos_TD2: torch.Tensor,
    sin_TD2: torch.Tensor,
    mask_N1SK: torch.Tensor,
    *,
    scaling: float,
    dropout: float = 0.0,
) -> torch.Tensor:
    """Rotate queries and keys, and mix values within windows.

    Args:
        qkv_T3HD: Queries, keys and values, not rotated yet.
        cos_TD2: Cosine of the rotation angles.
        sin_TD2: Sine of the rotation angles.
        mask_N1SK: The mask from `block_mask`; its shape gives block size and reach.
        scaling: Factor on the scores.
        dropout: Probability that an attention weight is dropped.

    Returns:
        The mixed values [T, H, D].
    """
    size, num_keys = mask_N1SK.shape[-2:]
    blocks = _RotatedBlocks.apply(qkv_T3HD, cos_TD2, sin_TD2, size, (num_keys - size) // 2)
    return mix_blocks(blocks, mask_N1SK, len(qkv_T3HD), scaling=scaling, dropout=dropout)


class _RotatedBlocks(torch.autograd.Function):
    """Rotated queries [N, H, S, D] and overlapping keys and values [N, H, K, D] of a packed row."""

    @staticmethod
    def forward(
        ctx: Any, qkv_T3HD: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, size: int, reach: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        ctx.save_for_backward(cos, sin)
        ctx.reach, ctx.num_tokens = reach, len(qkv_T3HD)
        buffer = empty_buffer(len(qkv_T3HD), qkv_T3HD, reach, size)
        rotate_into(buffer[reach : reach + len(qkv_T3HD)], qkv_T3HD, cos, sin)
        return blocks_of(buffer, reach, size)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any, grad_queries: torch.Tensor, grad_keys: torch.Tensor, grad_values: torch.Tensor
    ) -> tuple[torch.Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        num_blocks, heads, size, head_size = grad_queries.shape
        reach = ctx.reach
        rows = grad_queries.new_empty((num_blocks * size + 2 * reach, 3, heads, head_size))
        blocks = rows[reach : reach + num_blocks * size].unflatten(0, (num_blocks, size))
        blocks[:, :, 0] = grad_queries.transpose(1, 2)
        for index, grad in ((1, grad_keys), (2, grad_values)):
            _add_up(rows[:, index], grad.transpose(1, 2), reach, size)
        grad = rows[reach : reach + ctx.num_tokens]
        rotate_into(grad, grad, cos, -sin)
        return grad, None, None, None, None


def _add_up(rows: torch.Tensor, grads_NKHD: torch.Tensor, reach: int, size: int) -> None:
    """Write to `rows` the sum of what each block has for them; rows of padding are left to chance.

    The middle of a block is its own and fills every row; what lies `shift` rows beside the middle is added.
    """
    num_blocks = len(grads_NKHD)

    def place(start: int, width: int) -> torch.Tensor:
        strides = (size * rows.stride(0), *rows.stride())
        return rows.as_strided(
            (num_blocks, width, *rows.shape[1:]), strides, rows.storage_offset() + start * strides[1]
        )

    place(reach, size).copy_(grads_NKHD[:, reach : reach + size])
    for shift in range(0, reach, size):  # in steps of one block, so that no row is written twice by one addition
        width = min(size, reach - shift)
        before, after = reach - shift - width, reach + size + shift
        for start in (before, after):
            place(start, width).add_(grads_NKHD[:, start : start + width])
