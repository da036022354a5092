"""A mixture of languages as packed rows in training order: a map-style data set.

Design decisions:

- Row r is a pure function of (documents, settings, seed, r): the same for any number of ranks, workers and restarts.
  Rows are planned in blocks (`row_planner`) on the way, in whole numbers; every process plans all of them and reads
  only its own. So rows must be asked for in about rising order to be fast; any order is right.
- States between blocks are kept, fewer the longer the run, so that an earlier row is planned from the one before it.
  `state_at` and `load_state` let a resumed run start in the middle.
- A span of rows has the settings of its phase. Languages give tokens by temperature, or by shares set by hand, up to
  `max_repeats` passes over their documents in the whole run; what a small language cannot give, the others do.
- A row is a `BatchEncoding`, which Trainer hands to the collator whole; of a plain dict it drops what the model's
  forward does not name.
"""

from __future__ import annotations

import hashlib
import json
import operator
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers import BatchEncoding

from mmbert_hf.data.row_plan import (
    LANGUAGE,
    LENGTH,
    TAKEN,
    Block,
    PlannerState,
)
from mmbert_hf.data.row_planner import RowPlanner
from mmbert_hf.data.span_plans import check_documents, plan_languages, plan_quotas, plan_spans
from mmbert_hf.data.token_documents import TokenDocuments
from mmbert_hf.special_tokens import NUM_SPECIAL_TOKENS
from mmbert_hf.step_plan import RowSpan

MAX_KEPT_STATES = 64
STATE_VERSION = 1


class PackedMixture(torch.utils.data.Dataset):
    """Packed rows of many languages in training order.

    ``mixture[r]`` is a `transformers.BatchEncoding`:

    - `input_ids`: int32 [tokens], at most the phase's `max_length`; documents one after the other, each <bos> ... <eos>;
    - `document_lengths`: int32 [documents], special tokens included;
    - `languages`: int32 [documents], indices into `mixture.languages`;
    - `sample_index`: r;
    - `mask_ratio`: that of the phase.

    Args:
        documents: Language code -> its documents, as token ids without special tokens.
        spans: Rows of each phase, without gaps, from row 0 on. A phase's languages may be None for all there are.
        bos_token_id: Put in front of each piece of a document.
        eos_token_id: Put behind it.
        counts: Size of each language for the sampling probabilities; the tokens of its documents if None.
        shares: Shares set by hand for some languages.
        max_repeats: Most passes over the documents of a language in the whole run; None for no limit. A fraction of a
            pass counts by tokens.
        seed: Of everything random here, at least 0.

    Attributes:
        languages: Codes of `documents`, sorted.

    Raises:
        TypeError: `documents` is no mapping.
        ValueError: An unknown language code, a language without documents or count, a document without tokens, spans
            that leave gaps or whose rows get shorter, or more rows than the documents can fill under `max_repeats`.

    Example:
        >>> from mmbert_hf.data.token_documents import TokenDocuments
        >>> from mmbert_hf.recipes import Phase
        >>> from mmbert_hf.step_plan import RowSpan
        >>> documents = {"dan": TokenDocuments.from_arrays([[5, 6, 7], [8]]), "fao": TokenDocuments.from_arrays([[9]])}
        >>> phase = Phase("all", 1.0, ["dan", "fao"], language_temperature=1.0, mask_ratio=0.3, max_length=11)
        >>> mixture = PackedMixture(documents, [RowSpan(phase, 0, 1)], bos_token_id=2, eos_token_id=1)
        >>> mixture[0]["input_ids"].tolist(), mixture[0]["document_lengths"].tolist()
        ([2, 5, 6, 7, 1, 2, 8, 1, 2, 9, 1], [5, 3, 3])
        >>> mixture.tokens_per_language(), mixture.fill()
        ({'dan': 8, 'fao': 3}, 1.0)
    """

    def __init__(
        self,
        documents: Mapping[str, TokenDocuments],
        spans: Sequence[RowSpan],
        *,
        bos_token_id: int,
        eos_token_id: int,
        counts: Mapping[str, float] | None = None,
        shares: Mapping[str, float] | None = None,
        max_repeats: float | None = 4.0,
        seed: int = 0,
    ) -> None:
        if seed < 0:
            raise ValueError(f"seed must be at least 0, got {seed}")
        check_documents(documents)
        self.languages = sorted(documents)
        self.documents = [documents[code] for code in self.languages]
        self.spans = list(spans)
        self.counts = {code: float((counts or {}).get(code, documents[code].num_tokens)) for code in self.languages}
        if counts is not None and (missing := [code for code in self.languages if code not in counts]):
            raise ValueError(f"counts has no entry for {', '.join(missing[:5])}; every language of documents needs one")
        self.shares, self.max_repeats, self.seed = dict(shares or {}), max_repeats, seed
        self.bos_token_id, self.eos_token_id = bos_token_id, eos_token_id
        language_documents = plan_languages(documents, max_repeats)
        span_plans = plan_spans(language_documents, self.spans, self.counts, self.shares)
        self._planned, self._passes = plan_quotas(language_documents, self.spans, span_plans)
        self._planner = RowPlanner(language_documents, span_plans, seed)
        self._block: Block | None = None
        self._kept = {0: PlannerState.start(len(self.languages))}
        self._keep_every = 1
        self._cursors: dict[str, tuple[PlannerState, ...]] = {}  # where each kind of work stands

    @property
    def num_rows(self) -> int:
        """Rows of the run."""
        return self.spans[-1].first_row + self.spans[-1].num_rows

    def __len__(self) -> int:
        return self.num_rows

    def __getitem__(self, index: int) -> BatchEncoding:
        row = operator.index(index)
        if not 0 <= row < self.num_rows:
            raise IndexError(f"row {row} is outside this mixture of {self.num_rows} rows")
        number = self._planner.block_of(row)
        if self._block is None or self._block.number != number:
            self._block = next(self._blocks(number, "read"))
        place = row - self._block.first_row
        pieces_PC = self._block.pieces_PC[self._block.edges[place] : self._block.edges[place + 1]]
        document_lengths: np.ndarray = (pieces_PC[:, LENGTH] + NUM_SPECIAL_TOKENS).astype(np.int32)
        ends = np.cumsum(document_lengths)
        input_ids: np.ndarray = np.empty(ends[-1], dtype=np.int32)
        input_ids[ends - document_lengths] = self.bos_token_id
        input_ids[ends - 1] = self.eos_token_id
        for (language, document, start, length), end in zip(pieces_PC.tolist(), ends.tolist(), strict=True):
            tokens = self.documents[language].tokens(document)
            input_ids[end - 1 - length : end - 1] = tokens[start : start + length]
        return BatchEncoding(
            {
                "input_ids": input_ids,
                "document_lengths": document_lengths,
                "languages": pieces_PC[:, LANGUAGE].astype(np.int32),
                "sample_index": row,
                "mask_ratio": float(self.spans[self._planner.span_of(number)].phase.mask_ratio),
            }
        )

    def __getstate__(self) -> dict[str, Any]:
        # Without the planner, which has all lengths once more; memory-mapped documents are pickled as their folder.
        left_out = ("_planner", "_block")
        kept = {name: value for name, value in vars(self).items() if name not in left_out}
        return {**kept, "_span_plans": self._planner.spans}

    def __setstate__(self, state: dict[str, Any]) -> None:
        span_plans = state.pop("_span_plans")
        self.__dict__.update(state)
        documents = dict(zip(self.languages, self.documents, strict=True))
        self._planner = RowPlanner(plan_languages(documents, self.max_repeats), span_plans, self.seed)
        self._block = None

    # What is planned, and what comes out

    def quotas(self) -> list[dict[str, float]]:
        """The tokens that each language is to give to each span, special tokens included.

        They fill the rows wholly; packing leaves a little less room. What a span takes is within one piece of a
        document of its quotas, scaled to what it takes altogether; what stays in the pool at its end comes first in
        the next.

        Returns:
            Per span, language -> tokens, for the languages of its phase.
        """
        return [
            dict(zip((self.languages[language] for language in plan.active_A), planned_A.tolist(), strict=True))
            for plan, planned_A in zip(self._planner.spans, self._planned, strict=True)
        ]

    def repeats(self) -> dict[str, float]:
        """How many passes over its documents are planned for each language."""
        return dict(zip(self.languages, self._passes.tolist(), strict=True))

    def tokens_per_language(self, first_row: int = 0, stop_row: int | None = None) -> dict[str, int]:
        """Tokens of each language in some rows, special tokens included, exactly; the rows are planned for it.

        Args:
            first_row: The first row.
            stop_row: The row after the last; None for the end.

        Returns:
            Language -> tokens, languages without any included.
        """
        tokens_L: np.ndarray = np.zeros(len(self.languages), dtype=np.int64)
        for pieces_PC in self._pieces(first_row, stop_row):
            np.add.at(tokens_L, pieces_PC[:, LANGUAGE], pieces_PC[:, LENGTH] + NUM_SPECIAL_TOKENS)
        return dict(zip(self.languages, tokens_L.tolist(), strict=True))

    def fill(self, first_row: int = 0, stop_row: int | None = None) -> float:
        """The share of the capacity of some rows that holds tokens; arguments as in `tokens_per_language`."""
        first, stop = self._check_range(first_row, stop_row)
        capacity = sum(
            max(0, min(stop, span.first_row + span.num_rows) - max(first, span.first_row)) * span.phase.max_length
            for span in self.spans
        )
        return sum(self.tokens_per_language(first, stop).values()) / capacity if capacity else 1.0

    def left_over(self, span: int = -1) -> np.ndarray:
        """Pieces that were taken but stand in no row at the end of a span.

        Args:
            span: Number of the span; the last one's are never given out.

        Returns:
            int64 [pieces, 4]: index of the language, document, start and length (without special tokens).
        """
        number = self._planner.first_block(range(len(self.spans))[span] + 1)
        return self._state_before(number).pool_PC[:, :TAKEN]

    # Resuming

    @property
    def fingerprint(self) -> dict[str, Any]:
        """All that the order of the data depends on, as JSON: equal for mixtures with equal rows."""
        fields = ("languages", "language_temperature", "mask_ratio", "max_length")
        spans = []
        for span in self.spans:
            values = {name: getattr(span.phase, name) for name in fields}
            values["languages"] = None if values["languages"] is None else list(values["languages"])
            spans.append({"first_row": span.first_row, "num_rows": span.num_rows, **values})
        return {
            "version": STATE_VERSION,
            "documents": {code: docs.fingerprint for code, docs in zip(self.languages, self.documents, strict=True)},
            "counts": self.counts,
            "shares": self.shares,
            "max_repeats": self.max_repeats,
            "seed": self.seed,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": self.eos_token_id,
            "spans": spans,
        }

    def state_at(self, row: int) -> dict[str, Any]:
        """The state of planning at the start of the block that holds a row, as JSON.

        Args:
            row: From 0 to `num_rows`, the latter for the end of the run.

        Returns:
            What `load_state` takes; some kilobytes.
        """
        if not 0 <= row <= self.num_rows:
            raise IndexError(f"row {row} is outside this mixture of {self.num_rows} rows")
        number = self._planner.num_blocks if row == self.num_rows else self._planner.block_of(row)
        return {"fingerprint": self._digest(), **self._state_before(number).to_json()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Lets planning start where a state was taken, instead of at row 0.

        Args:
            state: From `state_at` of a mixture of the same documents, settings and seed.

        Raises:
            ValueError: It is from another mixture; compare the `fingerprint` of both.
        """
        if state.get("fingerprint") != self._digest():
            raise ValueError(
                "this state is from a mixture of other documents, settings or seed; resume with the same ones, or start "
                "without a state (PackedMixture.fingerprint lists what counts)"
            )
        loaded = PlannerState.from_json(state)
        self._kept[loaded.block] = loaded

    def _digest(self) -> str:
        return hashlib.sha256(json.dumps(self.fingerprint, sort_keys=True).encode()).hexdigest()

    # Planning on the way

    def _nearest_state(self, number: int) -> PlannerState:
        """The latest known state that is not past a block."""
        known = [*self._kept.values(), *(state for states in self._cursors.values() for state in states)]
        return max((state for state in known if state.block <= number), key=lambda state: state.block)

    def _state_before(self, number: int) -> PlannerState:
        """The state before a block; of the number of blocks, the state at the end."""
        state = self._nearest_state(number)
        while state.block < number:
            state = self._planner.plan(state)[1]
            self._keep(state)
        self._cursors["state"] = (state,)
        return state

    def _blocks(self, number: int, cursor: str) -> Iterator[Block]:
        """The blocks from a number on; the cursor lets later work go on from there."""
        before = self._state_before(number)
        while before.block < self._planner.num_blocks:
            block, after = self._planner.plan(before)
            self._keep(after)
            self._cursors[cursor] = before, after
            yield block
            before = after

    def _keep(self, state: PlannerState) -> None:
        if state.block % self._keep_every == 0:
            self._kept[state.block] = state
        if len(self._kept) > MAX_KEPT_STATES:
            self._keep_every *= 2
            self._kept = {block: kept for block, kept in self._kept.items() if block % self._keep_every == 0}

    def _pieces(self, first_row: int, stop_row: int | None) -> Iterator[np.ndarray]:
        """Pieces of some rows, block by block."""
        first, stop = self._check_range(first_row, stop_row)
        if first == stop:
            return
        for block in self._blocks(self._planner.block_of(first), "count"):
            if block.first_row >= stop:
                return
            edges = block.edges[max(0, first - block.first_row) : stop - block.first_row + 1]
            yield block.pieces_PC[edges[0] : edges[-1]]
            if block.first_row + block.num_rows >= stop:
                return

    def _check_range(self, first_row: int, stop_row: int | None) -> tuple[int, int]:
        stop = self.num_rows if stop_row is None else stop_row
        if not 0 <= first_row <= stop <= self.num_rows:
            raise IndexError(f"rows {first_row} to {stop} are outside this mixture of {self.num_rows} rows")
        return first_row, stop
