"""Where the documents of a batch lie: the map between the padded [B, L] and the packed [T] order of tokens.

Design decisions:

- A document is what attends to itself alone: a row of a padded batch, or one of several in a packed row. Everything
  between the embeddings and the output runs on the T real tokens, documents one after the other.
- Documents are sorted by length. Those of equal length are neighbours then, and a group of them is a [n, length] batch
  without padding and without a copy.
- Reading lengths from a device costs one synchronisation a batch, and nothing is read before it is needed: kernels that
  take ``cu_seqlens`` never ask for the lengths of a packed row that came with its own.
- The window of local layers counts places in the row, as in ModernBERT. A place that is padded inside a row still
  counts, so documents with such gaps keep their places beside their order.

Shape legend: B batch, L length in tokens, T real tokens, N documents.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from typing import Any

import torch

from mmbert_hf.shortcuts import is_traced

__all__ = ["Documents", "document_ids", "find_documents", "has_several", "positions_within"]


def document_ids(
    shape: tuple[int, int],
    position_ids_BL: torch.Tensor | None = None,
    cu_seq_lens: torch.Tensor | None = None,
    attention_mask: torch.Tensor | None = None,
) -> torch.Tensor | None:
    """Number the documents within each row of a packed batch. Made of tensor operations alone, so it can be traced.

    Args:
        shape: (B, L).
        position_ids_BL: [B or 1, L]. A position 0 opens a document.
        cu_seq_lens: Where documents begin in the one row, and where the last ends, [N + 1].
        attention_mask: [B, L], nonzero at real tokens: positions of padding, often 0, open nothing.

    Returns:
        [B or 1, L], int64, growing along each row; None if nothing says that rows are packed.

    Example:
        >>> document_ids((1, 5), position_ids_BL=torch.tensor([[0, 1, 2, 0, 1]]))
        tensor([[1, 1, 1, 2, 2]])
        >>> document_ids((1, 5), cu_seq_lens=torch.tensor([0, 3, 5]))
        tensor([[1, 1, 1, 2, 2]])
    """
    if cu_seq_lens is not None:
        places = torch.arange(shape[1], device=cu_seq_lens.device)
        return torch.bucketize(places, cu_seq_lens.to(places.dtype), right=True)[None]
    if position_ids_BL is not None:
        opens = position_ids_BL.eq(0)
        return (opens if attention_mask is None else opens & attention_mask.ne(0)).cumsum(dim=1)
    return None


def has_several(ids_BL: torch.Tensor, attention_mask: torch.Tensor | None = None) -> bool:
    """Whether a row holds more than one document.

    Args:
        ids_BL: From `document_ids`.
        attention_mask: [B, L], nonzero at real tokens: the others are not looked at.

    Returns:
        True if two real tokens of a row have different numbers.

    Example:
        >>> has_several(torch.tensor([[0, 0, 1, 1]]), torch.tensor([[0, 0, 1, 1]]))
        False
    """
    if attention_mask is None:
        return bool((ids_BL != ids_BL[:, :1]).any())
    padding = attention_mask.eq(0)
    least = ids_BL.masked_fill(padding, ids_BL.shape[1] + 1).amin(dim=1)
    return bool((ids_BL.masked_fill(padding, -1).amax(dim=1) > least).any())


def positions_within(cu_seq_lens: torch.Tensor, length: int) -> torch.Tensor:
    """Position of each token in its document, as it would have alone.

    Args:
        cu_seq_lens: Where documents begin in the one row, and where the last ends, [N + 1].
        length: L.

    Returns:
        int64 [1, L].

    Example:
        >>> positions_within(torch.tensor([0, 3, 5]), 5)
        tensor([[0, 1, 2, 0, 1]])
    """
    starts = cu_seq_lens.long()
    places = torch.arange(length, device=starts.device)
    return (places - starts[torch.bucketize(places, starts, right=True) - 1])[None]


@dataclass(frozen=True)
class Documents:
    """The documents of one batch. Made by `find_documents`.

    Attributes:
        shape: (B, L) of the padded batch.
        indices: Where each packed token stands in the flattened padded batch, int64 [T]; None if the packed order is
            the padded one.
        cu_seqlens: Where documents begin in the packed order, and where the last ends, int32 [N + 1].
        positions: Position of each token for the rotation, int64 [T].
        places: Place of each token in its row, int64 [T].
        known_lengths: Length of each document where it is known without reading the device.
        known_max_length: Length of the longest document, likewise.
    """

    shape: tuple[int, int]
    indices: torch.Tensor | None
    cu_seqlens: torch.Tensor
    positions: torch.Tensor
    places: torch.Tensor
    known_lengths: list[int] | None = None
    known_max_length: int | None = None

    @property
    def num_tokens(self) -> int:
        """How many real tokens there are."""
        return len(self.positions)

    @cached_property
    def lengths(self) -> list[int]:
        """Length of each document in tokens, in the packed order."""
        return self.cu_seqlens.diff().tolist() if self.known_lengths is None else self.known_lengths

    @cached_property
    def max_length(self) -> int:
        """Length of the longest document; 0 if there is none."""
        return max(self.lengths, default=0) if self.known_max_length is None else self.known_max_length

    @cached_property
    def groups(self) -> list[tuple[int, int]]:
        """(number of documents, length) of each run of documents of equal length, in the packed order.

        Example:
            >>> find_documents((3, 4), attention_mask=torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 1, 1]])).groups
            [(2, 2), (1, 4)]
        """
        return [(len(list(run)), length) for length, run in groupby(self.lengths) if length > 0]

    @cached_property
    def has_gaps(self) -> bool:
        """Whether padding lies inside a document."""
        if self.indices is None:
            return False
        steps = self.places.diff()
        inside = torch.ones_like(steps, dtype=torch.bool)
        boundaries = self.cu_seqlens[1:-1].long() - 1
        inside[boundaries[(boundaries >= 0) & (boundaries < len(steps))]] = False
        return bool(((steps != 1) & inside).any())

    def fit_into(self, reach: int) -> bool:
        """Whether every document is known to lie within `reach` places, so that no window cuts anything.

        False where a document has padding inside, however short it is.
        """
        return max(self.lengths, default=0) <= reach + 1 and not self.has_gaps

    @cached_property
    def keys(self) -> torch.Tensor:
        """One number a token, int64 [T]: its distance to another token's is their distance in places if both are in one
        document, and more than L plus 2**20 if they are not."""
        tokens = torch.arange(self.num_tokens, device=self.places.device)
        document = torch.bucketize(tokens, self.cu_seqlens[1:].long(), right=True)
        return document * (2 * self.shape[1] + 2**20) + self.places

    def unpad(self, values: torch.Tensor) -> torch.Tensor:
        """Pick the real tokens of `values` [B, L, ...]; returns [T, ...]."""
        flat = values.reshape(-1, *values.shape[2:])
        return flat if self.indices is None else flat.index_select(0, self.indices)

    def pad(self, values: torch.Tensor) -> torch.Tensor:
        """Put `values` [T, ...] back to where they were; returns [B, L, ...] with zeros at padding."""
        if self.indices is not None:
            flat = values.new_zeros((self.shape[0] * self.shape[1], *values.shape[1:]))
            values = flat.index_copy(0, self.indices, values)
        return values.view(*self.shape, *values.shape[1:])

    def to(self, device: torch.device | str | int, non_blocking: bool = False, **_: object) -> "Documents":
        """Move to a device; accelerate calls this where layers lie on several."""
        if self.positions.device == torch.device(device):
            return self
        names = ("indices", "cu_seqlens", "positions", "places")
        tensors = {name: getattr(self, name) for name in names}
        moved: dict[str, Any] = {
            n: None if t is None else t.to(device, non_blocking=non_blocking) for n, t in tensors.items()
        }
        return replace(self, **moved)


def find_documents(
    shape: tuple[int, int],
    *,
    device: torch.device | str = "cpu",
    attention_mask: torch.Tensor | None = None,
    position_ids: torch.Tensor | None = None,
    cu_seq_lens: torch.Tensor | None = None,
    max_length: int | None = None,
    sort: bool = True,
) -> Documents:
    """Find the documents of a batch, padded anywhere or packed.

    Args:
        shape: (B, L).
        device: Where the tokens are.
        attention_mask: [B, L], nonzero at real tokens; None if all are.
        position_ids: [B or 1, L]. Without `cu_seq_lens`, a position 0 that is not the first of its row opens a
            document.
        cu_seq_lens: Documents of the one row of a packed batch, [N + 1], from 0 to L.
        max_length: Length of the longest of them, if known.
        sort: Sort the documents by length. Otherwise they stay in the order of the batch.

    Returns:
        The documents.

    Raises:
        ValueError: If `cu_seq_lens` do not fit the batch. Those on an accelerator are not read, so only their shape is
            checked.

    Example:
        >>> documents = find_documents((2, 3), attention_mask=torch.tensor([[1, 1, 1], [0, 1, 0]]))
        >>> documents.lengths, documents.indices, documents.positions
        ([1, 3], tensor([4, 0, 1, 2]), tensor([1, 0, 1, 2]))
        >>> find_documents((1, 5), position_ids=torch.tensor([[0, 1, 0, 1, 2]])).groups
        [(1, 2), (1, 3)]
    """
    batch, length = shape
    if cu_seq_lens is not None:
        check_cu_seq_lens(cu_seq_lens, shape)
        cu_seq_lens = cu_seq_lens.to(device)
    attention_mask = None if attention_mask is None else attention_mask.to(device)
    position_ids = None if position_ids is None else position_ids.to(device)
    places_BL = torch.arange(length, device=device).expand(batch, length)
    ids = document_ids(shape, position_ids, cu_seq_lens, attention_mask)
    if position_ids is None and cu_seq_lens is not None:
        position_ids = positions_within(cu_seq_lens, length)
    positions = (places_BL if position_ids is None else position_ids.expand(batch, length)).reshape(-1)
    places = places_BL.reshape(-1)
    if attention_mask is None and cu_seq_lens is not None and not sort:
        return Documents(shape, None, cu_seq_lens.to(torch.int32), positions, places, known_max_length=max_length)
    if attention_mask is None and ids is None:
        cu_seqlens = torch.arange(0, batch * length + 1, max(length, 1), device=device, dtype=torch.int32)
        return Documents(shape, None, cu_seqlens, positions, places, known_lengths=[length] * (batch if length else 0))

    rows = torch.arange(batch, device=device)[:, None].expand(batch, length)
    numbers = (rows if ids is None else rows * (length + 1) + ids).reshape(-1)
    indices = None
    if attention_mask is not None:
        indices = attention_mask.reshape(-1).ne(0).nonzero().squeeze(1)
        numbers, positions, places = (values.index_select(0, indices) for values in (numbers, positions, places))
    _, token_documents, counts = torch.unique_consecutive(numbers, return_inverse=True, return_counts=True)
    order = _by_length(counts, token_documents) if sort else None
    if order is not None:
        indices = order if indices is None else indices.index_select(0, order)
        positions, places = positions.index_select(0, order), places.index_select(0, order)
        counts = counts.sort(stable=True).values
    elif len(positions) == batch * length:
        indices = None
    cu_seqlens = torch.nn.functional.pad(counts.cumsum(0), (1, 0)).to(torch.int32)
    return Documents(shape, indices, cu_seqlens, positions, places)


def _by_length(counts_N: torch.Tensor, documents_T: torch.Tensor) -> torch.Tensor | None:
    """The order of tokens that sorts their documents by length, [T]; None if they are sorted."""
    if bool((counts_N.diff() >= 0).all()):
        return None
    ranks = torch.empty_like(counts_N)
    ranks[counts_N.argsort(stable=True)] = torch.arange(len(counts_N), device=counts_N.device)
    return ranks[documents_T].argsort(stable=True)


def check_cu_seq_lens(cu_seq_lens: torch.Tensor, shape: tuple[int, int]) -> None:
    """Raise a ValueError if `cu_seq_lens` [N + 1] do not fit a batch of `shape`; see `find_documents`."""
    if not isinstance(cu_seq_lens, torch.Tensor):
        raise TypeError(f"cu_seq_lens_q is a {type(cu_seq_lens).__name__}; pass an integer tensor [documents + 1]")
    if shape[0] != 1 or cu_seq_lens.ndim != 1 or len(cu_seq_lens) < 2:
        raise ValueError(
            f"cu_seq_lens_q is {tuple(cu_seq_lens.shape)} and the batch {shape}; packed input is one row of "
            "documents, [1, length], and cu_seq_lens_q [documents + 1] says where each begins and the last ends"
        )
    if cu_seq_lens.device.type == "cpu" and not is_traced(cu_seq_lens):
        first, last = int(cu_seq_lens[0]), int(cu_seq_lens[-1])
        falls = (cu_seq_lens.diff() < 0).nonzero().squeeze(1).tolist()
        if first != 0 or last != shape[1] or falls:
            where = f" and falls after entry {falls[0]}" if falls else ""
            raise ValueError(
                f"cu_seq_lens_q runs from {first} to {last}{where}; it must grow from 0 to the length of the row, "
                f"{shape[1]}"
            )
