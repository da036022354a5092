"""The values that row planning works on: languages, spans, the state between blocks, planned rows.

Design decisions:

- All of them are immutable; the state is small and becomes JSON, so it can be kept, saved with a checkpoint, and be
  planned on from anywhere.
- A piece of a document is one row of an int64 array with the columns language, document, start, length and the block
  that took it, so that thousands of pieces are handled at once.

Shape legend: L languages, A languages active in a span, P pieces.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from mmbert_hf.special_tokens import NUM_SPECIAL_TOKENS

TOKENS_PER_BLOCK = 2**20
MIN_ROWS_PER_BLOCK = 16
MIN_MAX_LENGTH = NUM_SPECIAL_TOKENS + 1
# Columns of a piece.
LANGUAGE, DOCUMENT, START, LENGTH, TAKEN = range(5)
COUNTERS = ("visits_L", "starts_L", "tokens_L", "drawn_L")  # fields of a state that count by language


@dataclass(frozen=True)
class LanguageDocuments:
    """What the planner knows of a language: `lengths` (tokens per document), their sum, and the most it may give."""

    code: str
    lengths: np.ndarray
    num_tokens: int
    limit_tokens: int | None


@dataclass(frozen=True)
class SpanPlan:
    """A run of rows with the same settings.

    Attributes:
        first_row: Its first row.
        num_rows: Its rows, at least 1.
        max_length: Tokens that a row holds.
        active_A: [A], int64, indices of its languages.
        shares_A: [A], float64, the share of each.
        row_tokens_A: [A], float64, row tokens of one pass over each.
        pieces_A: [A], float64, pieces of one pass over each.
    """

    first_row: int
    num_rows: int
    max_length: int
    active_A: np.ndarray
    shares_A: np.ndarray
    row_tokens_A: np.ndarray
    pieces_A: np.ndarray

    @property
    def num_blocks(self) -> int:
        """Blocks of nearly equal size."""
        return -(-self.num_rows // max(MIN_ROWS_PER_BLOCK, TOKENS_PER_BLOCK // self.max_length))

    def block_start(self, block: int) -> int:
        """The first row of the span's block number `block`."""
        return self.first_row + self.num_rows * block // self.num_blocks


@dataclass(frozen=True)
class PlannerState:
    """All that planning needs to go on with a block. Never changed in place.

    Attributes:
        block: The block that comes next.
        visits_L: [L], int64, documents of each language that were taken whole, repeats included.
        starts_L: [L], int64, tokens already taken of the document that comes next.
        tokens_L: [L], int64, tokens taken, special tokens not included.
        drawn_L: [L], int64, row tokens taken in this span (special tokens included).
        exhausted_L: [L], bool, whether the next piece would have passed the limit.
        pool_PC: [P, 5], int64, pieces that were taken and stand in no row yet.
    """

    block: int
    visits_L: np.ndarray
    starts_L: np.ndarray
    tokens_L: np.ndarray
    drawn_L: np.ndarray
    exhausted_L: np.ndarray
    pool_PC: np.ndarray

    @classmethod
    def start(cls, num_languages: int) -> PlannerState:
        """The state before the first block."""
        counters: dict[str, Any] = {name: np.zeros(num_languages, dtype=np.int64) for name in COUNTERS}
        return cls(
            0, **counters, exhausted_L=np.zeros(num_languages, dtype=bool), pool_PC=np.zeros((0, 5), dtype=np.int64)
        )

    def copy(self) -> PlannerState:
        """A state that shares no array with this one."""
        return replace(self, **{name: value.copy() for name, value in vars(self).items() if name != "block"})

    def to_json(self) -> dict[str, Any]:
        """The state as numbers and lists."""
        arrays = {name: value.tolist() for name, value in vars(self).items() if name != "block"}
        return {"block": self.block, **arrays}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> PlannerState:
        """The state that `to_json` wrote."""
        return cls(
            int(values["block"]),
            **{name: np.array(values[name], dtype=np.int64) for name in COUNTERS},
            exhausted_L=np.array(values["exhausted_L"], dtype=bool),
            pool_PC=np.array(values["pool_PC"], dtype=np.int64).reshape(-1, 5),
        )


class Block(NamedTuple):
    """Planned rows: row `first_row + i` holds the pieces ``pieces_PC[edges[i]:edges[i + 1]]``."""

    number: int
    first_row: int
    edges: np.ndarray
    pieces_PC: np.ndarray

    @property
    def num_rows(self) -> int:
        """Rows of the block."""
        return len(self.edges) - 1
