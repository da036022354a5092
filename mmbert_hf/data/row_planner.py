"""Which pieces of which documents stand in which packed row: whole numbers only, no tokens.

Design decisions:

- Rows are planned in blocks of about `TOKENS_PER_BLOCK` tokens; a block never crosses a span. What a block needs from
  the ones before it is a small `PlannerState`, so planning can start at any block whose state was kept. It is a pure
  function of state and settings: every rank and worker plans everything, and all agree.
- A block takes pieces from each language, packs them with what earlier blocks left in the pool, and gives out the
  fullest rows. The rest waits; rows with a piece that has waited `MAX_WAIT` blocks go first, so nothing is left for
  good. The last block of a span takes no more than its rows hold, so that little crosses into the next span.
- A language's target is its quota of the span, times how much of the span is done. Quotas are worked out again for
  every block (what packing left empty needs no tokens). A language takes its next piece once a part of that piece is
  due; the part is seeded, uniform in [0, 1), one for each language and span. So small languages enter at random times,
  not all in the first block, what all take is what is wanted on average, and at the end of a span each language is
  within one piece of its quota.
- Documents of one pass come in the order of an `IndexPermutation` seeded by (seed, language code, pass). A language
  stops where the next piece would pass its limit of tokens.
- A piece fills `max_length` less the two special tokens; sizes and quotas count them ("row tokens"), limits do not.

Shape legend: L languages, A languages active in a span, P pieces, C columns of a piece.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from mmbert_hf.data.packing import best_fit, fullest_fit
from mmbert_hf.data.permutation import IndexPermutation
from mmbert_hf.data.quotas import water_fill
from mmbert_hf.data.row_plan import (
    DOCUMENT,
    LANGUAGE,
    LENGTH,
    START,
    TAKEN,
    Block,
    LanguageDocuments,
    PlannerState,
    SpanPlan,
)
from mmbert_hf.special_tokens import NUM_SPECIAL_TOKENS

# Rows' worth of pieces that a block takes beyond what it gives out, to choose among.
SLACK_SHARE = 1 / 64
MIN_SLACK_ROWS = 2
MAX_WAIT = 3  # blocks
# Blocks that best fit fills less than this are packed again with more effort.
FULL_ENOUGH = 0.995
# Documents of a language whose order is worked out at once.
ORDER_CHUNK = 512
# Purposes of random numbers, so that no two share a stream.
_ORDER, _PART, _SHUFFLE = range(3)


class RowPlanner:
    """Plans rows block by block (module docstring).

    Args:
        languages: In the order that pieces number them in.
        spans: One after the other, without gaps.
        seed: Of everything random here, at least 0.
    """

    def __init__(self, languages: Sequence[LanguageDocuments], spans: Sequence[SpanPlan], seed: int) -> None:
        self.languages, self.spans, self.seed = list(languages), list(spans), seed
        self._codes = [int.from_bytes(language.code.encode(), "big") for language in self.languages]
        self._first_blocks = np.cumsum([0, *(span.num_blocks for span in self.spans)]).tolist()
        self._num_tokens_L = np.array([language.num_tokens for language in self.languages], dtype=np.float64)
        limits = [language.limit_tokens for language in self.languages]
        self._limits_L = np.array([np.inf if limit is None else limit for limit in limits], dtype=np.float64)
        self._parts_of: dict[int, np.ndarray] = {}
        # Sizes of next pieces, and the (visit, start, max_length) that they were looked up for.
        self._sizes_L: np.ndarray = np.zeros(len(self.languages), dtype=np.int64)
        self._sizes_of_L3: np.ndarray = np.zeros((len(self.languages), 3), dtype=np.int64)
        self._orders: dict[int, tuple[tuple[int, int], np.ndarray, np.ndarray]] = {}

    @property
    def num_blocks(self) -> int:
        """Blocks of all spans."""
        return self._first_blocks[-1]

    def block_of(self, row: int) -> int:
        """The block that holds a row."""
        number = bisect_right([span.first_row for span in self.spans], row) - 1
        span = self.spans[number]
        block = (row - span.first_row) * span.num_blocks // span.num_rows
        if block + 1 < span.num_blocks and span.block_start(block + 1) <= row:
            block += 1
        return self._first_blocks[number] + block

    def span_of(self, block: int) -> int:
        """The number of the span that holds a block."""
        return bisect_right(self._first_blocks, block) - 1

    def first_block(self, span: int) -> int:
        """The first block of a span; of the number of spans, the number of blocks."""
        return self._first_blocks[span]

    def first_row(self, block: int) -> int:
        """The first row of a block; of the number of blocks, the number of rows."""
        if block == self.num_blocks:
            return self.spans[-1].first_row + self.spans[-1].num_rows
        number = self.span_of(block)
        return self.spans[number].block_start(block - self._first_blocks[number])

    def plan(self, state: PlannerState) -> tuple[Block, PlannerState]:
        """Plans the block that comes next, and returns it with the state after it."""
        block, number = state.block, self.span_of(state.block)
        span, first_row = self.spans[number], self.first_row(state.block)
        num_rows = self.first_row(block + 1) - first_row
        rest_rows = span.first_row + span.num_rows - first_row
        after = state.copy()
        if block == self._first_blocks[number]:
            after.drawn_L[:] = 0
        pool_PC = np.concatenate([after.pool_PC, *self._draw(after, number, num_rows, rest_rows)])
        chosen, rest = _pack(pool_PC, num_rows, span.max_length, block)
        shuffle = np.random.default_rng([self.seed, _SHUFFLE, block]).permutation(num_rows)
        chosen = [chosen[place] for place in shuffle]
        edges = np.cumsum([0, *map(len, chosen)])
        pieces_PC = pool_PC[[piece for row in chosen for piece in row], :TAKEN]
        left_over = np.array([piece for row in rest for piece in row], dtype=np.int64)
        return Block(block, first_row, edges, pieces_PC), replace(after, block=block + 1, pool_PC=pool_PC[left_over])

    def _draw(self, state: PlannerState, number: int, num_rows: int, rest_rows: int) -> list[np.ndarray]:
        """Takes the pieces that a block needs; the counters in `state` are changed."""
        span = self.spans[number]
        pool_tokens = int((state.pool_PC[:, LENGTH] + NUM_SPECIAL_TOKENS).sum())
        slack = max(MIN_SLACK_ROWS, round(SLACK_SHARE * num_rows)) * span.max_length
        rest = rest_rows * span.max_length - pool_tokens
        need = min(num_rows * span.max_length + slack - pool_tokens, rest)
        if need <= 0:
            return []
        target_A = self._targets(state, span, need, rest)
        active_A, part_A = span.active_A, self._parts(number)
        taken: list[np.ndarray] = []
        due_A = target_A - state.drawn_L[active_A]
        for place in np.flatnonzero(due_A > part_A * self._next_sizes(state, active_A, span.max_length)):
            credit, part = float(due_A[place]), float(part_A[place])
            need -= self._take(state, int(active_A[place]), credit, part, span.max_length, taken)
        while need > 0:  # what the parts did not cancel out: the nearest to their next piece go on, one piece each
            due_A = target_A - state.drawn_L[active_A]
            due_A[state.exhausted_L[active_A]] = 0.0
            order = np.argsort(part_A - due_A / self._next_sizes(state, active_A, span.max_length), kind="stable")
            order = order[due_A[order] > 0]
            if not order.size:
                break
            for place in order:
                need -= self._take(state, int(active_A[place]), 1.0, 0.0, span.max_length, taken)
                if need <= 0:
                    break
        return taken

    def _targets(self, state: PlannerState, span: SpanPlan, need: int, rest: int) -> np.ndarray:
        """[A] row tokens that each language should have given to the span by the end of the block."""
        active_A = span.active_A
        drawn_A = state.drawn_L[active_A].astype(np.float64)
        row_tokens_per_token_A = span.row_tokens_A / self._num_tokens_L[active_A]
        room_A = np.maximum(0.0, self._limits_L[active_A] - state.tokens_L[active_A]) * row_tokens_per_token_A
        room_A[state.exhausted_L[active_A]] = 0.0
        allowances_A = drawn_A + room_A
        done = float(drawn_A.sum())
        total = min(done + rest, float(allowances_A.sum()))
        quotas_A = water_fill(span.shares_A, total, allowances_A)
        return quotas_A * min(1.0, (done + need) / total)

    def _parts(self, number: int) -> np.ndarray:
        """[A] uniform in [0, 1): the part of a piece that must be due before a language takes it."""
        if number not in self._parts_of:
            codes = [self._codes[language] for language in self.spans[number].active_A]
            seeds = ([self.seed, _PART, number, code] for code in codes)
            self._parts_of[number] = np.array([np.random.default_rng(seed).random() for seed in seeds])
        return self._parts_of[number]

    def _next_sizes(self, state: PlannerState, active_A: np.ndarray, max_length: int) -> np.ndarray:
        """[A] row tokens of the piece that each language takes next."""
        now_A3 = np.stack([state.visits_L[active_A], state.starts_L[active_A], np.full(len(active_A), max_length)], 1)
        for language in active_A[(self._sizes_of_L3[active_A] != now_A3).any(1)].tolist():
            _, lengths = self._documents_from(language, int(state.visits_L[language]))
            left = int(lengths[0]) - int(state.starts_L[language]) + NUM_SPECIAL_TOKENS
            self._sizes_L[language] = min(max_length, left)
        self._sizes_of_L3[active_A] = now_A3
        return self._sizes_L[active_A]

    def _take(
        self,
        state: PlannerState,
        language: int,
        credit: float,
        part: float,
        max_length: int,
        taken: list[np.ndarray],
    ) -> int:
        """Takes pieces of a language while this part of the next is within its credit; returns their row tokens."""
        total, limit = 0, self.languages[language].limit_tokens
        while total < credit and not state.exhausted_L[language]:
            documents, lengths = self._documents_from(language, int(state.visits_L[language]))
            place, start, length = _cut(lengths, int(state.starts_L[language]), max_length, credit - total)
            ends = np.cumsum(length + NUM_SPECIAL_TOKENS)
            due_at = ends - (1.0 - part) * (length + NUM_SPECIAL_TOKENS)
            num_taken = int(np.searchsorted(due_at, credit - total))
            if limit is not None:
                within = np.searchsorted(np.cumsum(length), limit - state.tokens_L[language], side="right")
                state.exhausted_L[language] = within < num_taken
                num_taken = min(num_taken, int(within))
            if not num_taken:
                break
            last = num_taken - 1
            stop = int(start[last] + length[last])
            is_whole = stop == lengths[place[last]]
            state.visits_L[language] += place[last] + is_whole
            state.starts_L[language] = 0 if is_whole else stop
            state.tokens_L[language] += ends[last] - NUM_SPECIAL_TOKENS * num_taken
            state.drawn_L[language] += ends[last]
            total += int(ends[last])
            piece_PC: np.ndarray = np.empty((num_taken, 5), dtype=np.int64)
            piece_PC[:, LANGUAGE], piece_PC[:, TAKEN] = language, state.block
            piece_PC[:, DOCUMENT] = documents[place[:num_taken]]
            piece_PC[:, START], piece_PC[:, LENGTH] = start[:num_taken], length[:num_taken]
            taken.append(piece_PC)
            if num_taken < len(ends):
                break
        return total

    def _documents_from(self, language: int, visit: int) -> tuple[np.ndarray, np.ndarray]:
        """The documents from a visit on, to the end of its chunk of the pass, with their lengths."""
        lengths = self.languages[language].lengths
        epoch, place = divmod(visit, len(lengths))
        chunk = place // ORDER_CHUNK
        kept = self._orders.get(language)
        if kept is None or kept[0] != (epoch, chunk):
            order = IndexPermutation(len(lengths), [self.seed, _ORDER, self._codes[language], epoch])
            places = np.arange(chunk * ORDER_CHUNK, min((chunk + 1) * ORDER_CHUNK, len(lengths)))
            documents = order(places)
            kept = (epoch, chunk), documents, np.asarray(lengths[documents])
            self._orders[language] = kept
        first = place - chunk * ORDER_CHUNK
        return kept[1][first:], kept[2][first:]


def _cut(
    lengths: np.ndarray, first_start: int, max_length: int, wanted: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """[P] document, start and length of the pieces of documents, the first of them from `first_start` on.

    There are enough pieces for `wanted` row tokens or they are all: the later pieces of a very long document are left
    out where the ones before are enough.
    """
    max_piece = max_length - NUM_SPECIAL_TOKENS
    lengths = lengths.astype(np.int64)
    starts = np.zeros_like(lengths)
    starts[0] = first_start
    num_pieces = np.minimum(-(-(lengths - starts) // max_piece), int(wanted / max_length) + 1)
    place: np.ndarray = np.repeat(np.arange(len(lengths)), num_pieces)
    number = np.arange(len(place)) - np.repeat(np.cumsum(num_pieces) - num_pieces, num_pieces)
    start = starts[place] + number * max_piece
    return place, start, np.minimum(max_piece, lengths[place] - start)


def _pack(pool_PC: np.ndarray, num_rows: int, max_length: int, block: int) -> tuple[list[list[int]], list[list[int]]]:
    """Packs the pool and divides the rows into those given out now and the rest."""
    sizes_P: np.ndarray = pool_PC[:, LENGTH] + NUM_SPECIAL_TOKENS

    def tokens(rows: list[list[int]]) -> int:
        return int(sizes_P[[piece for row in rows for piece in row]].sum())

    packed = _choose(best_fit(sizes_P, max_length), pool_PC, num_rows, block)
    if tokens(packed[0]) < FULL_ENOUGH * num_rows * max_length:
        again = _choose(fullest_fit(sizes_P, max_length), pool_PC, num_rows, block)
        if tokens(again[0]) > tokens(packed[0]):
            return again
    return packed


def _choose(
    rows: list[list[int]], pool_PC: np.ndarray, num_rows: int, block: int
) -> tuple[list[list[int]], list[list[int]]]:
    """Divides packed rows into those given out now (pieces that have waited first, then the fullest) and the rest."""
    rows = _spread(rows, num_rows)
    flat = np.array([piece for row in rows for piece in row])
    edges = np.cumsum([0, *map(len, rows)])[:-1]
    tokens = np.add.reduceat(pool_PC[flat, LENGTH] + NUM_SPECIAL_TOKENS, edges)
    waited = block - np.minimum.reduceat(pool_PC[flat, TAKEN], edges) >= MAX_WAIT
    ranked = np.lexsort([-tokens, ~waited]).tolist()
    return [rows[row] for row in ranked[:num_rows]], [rows[row] for row in ranked[num_rows:]]


def _spread(rows: list[list[int]], num_rows: int) -> list[list[int]]:
    """Rows split until there are enough, for a run that ends with hardly a token to spare."""
    while len(rows) < num_rows:
        longest = max(range(len(rows)), key=lambda row: len(rows[row]), default=None)
        if longest is None or len(rows[longest]) < 2:
            pieces = sum(map(len, rows))
            raise ValueError(
                f"{num_rows} rows are left, but only {pieces} pieces of documents: raise max_repeats, add text, or plan "
                "fewer tokens"
            )
        row = rows[longest]
        rows = [*rows[:longest], row[::2], *rows[longest + 1 :], row[1::2]]
    return rows
