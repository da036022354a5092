"""A mixture of languages, sampled by temperature, as a map-style data set in training order.

Design decisions:

- Sample ``i`` is a pure function of (documents, settings, seed, i). Worker processes, prefetching, several ranks and a
  resume all see the same samples without any state to pass around. In exchange the loader must read in order:
  ``TrainingArguments(train_sampling_strategy="sequential")``.
- Each sample carries its place (`sample_index`) and how much of the run is done there (`progress`), so the masking
  ratio of a sample is exact as well. Samples are `BatchEncoding`, which Trainer hands to the collator whole; of a plain
  dict it drops what the model's forward does not name.
- Languages are drawn with ``p_i = n_i^tau / sum_j n_j^tau`` (mmBERT, section 3), the temperature and the set of active
  languages being those at the start of the sample's optimizer step.
- A document longer than a row is cut into pieces of nearly equal length, so no row is a short left-over. Each pass over
  a language visits every piece once, in an order of its own.
"""

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from transformers import BatchEncoding

from mmbert_hf.languages import get_language, sampling_probabilities
from mmbert_hf.schedules import Schedule, as_schedule
from mmbert_hf.special_tokens import NUM_SPECIAL_TOKENS


class Plan(NamedTuple):
    """Where every sample comes from; all arrays have one entry per sample.

    Attributes:
        language: Index into `LanguageMixture.languages`, int32.
        visit: How many samples of this language, cut to this length, came before; int64.
        max_length: Longest row at that point, in tokens; int32.
        progress: Fraction of the run done when the sample's optimizer step starts; float64.
    """

    language: np.ndarray
    visit: np.ndarray
    max_length: np.ndarray
    progress: np.ndarray


def cut(length: int, max_piece: int) -> list[tuple[int, int]]:
    """Cut `length` tokens into as few pieces of at most `max_piece` as possible, of nearly equal length.

    >>> cut(10, 4)
    [(0, 3), (3, 6), (6, 10)]
    """
    num_pieces = max(1, math.ceil(length / max_piece))
    edges = [length * i // num_pieces for i in range(num_pieces + 1)]
    return list(pairwise(edges))


class LanguageMixture(torch.utils.data.Dataset):
    """Rows of many languages in training order, for `Trainer(train_dataset=...)`.

    The order matters: set ``TrainingArguments(train_sampling_strategy="sequential")``. `AnnealingCallback` refuses a
    loader that shuffles; without it nothing else does.

    Args:
        documents: Per language (ISO 639-3, optionally with a script; `code` for program code) a sequence of documents,
            each a text or a sequence of token ids without special tokens.
        tokenizer: Tokenises the texts and gives `<bos>` and `<eos>`.
        num_samples: Rows in the run: optimizer steps x rows per step.
        temperature: Exponent of the sampling probabilities in [0, 1], or a schedule of it.
        counts: Size of each language for the probabilities; the number of tokens in its documents if None.
        languages: The active languages, or a schedule of them; all if None.
        max_length: Longest row in tokens, special tokens included, or a schedule of it.
        seed: Of everything random here.

    Raises:
        ValueError: Languages without documents or counts, empty documents, an unknown language code, or a temperature
            outside [0, 1].

    Example:
        >>> from mmbert_hf import MMBertTokenizer
        >>> texts = {"dan": ["en to tre"] * 4, "fao": ["ein tvey trý"]}
        >>> tokenizer = MMBertTokenizer.train(texts["dan"] + texts["fao"], vocab_size=300)
        >>> mixture = LanguageMixture(texts, tokenizer, num_samples=8, temperature=0.3, max_length=16)
        >>> len(mixture), sorted(mixture[0]), sum(mixture.samples_per_language().values())
        (8, ['input_ids', 'progress', 'sample_index'], 8)
    """

    def __init__(
        self,
        documents: Mapping[str, Sequence[Any]],
        tokenizer: Any,
        *,
        num_samples: int,
        temperature: float | Schedule = 0.7,
        counts: Mapping[str, float] | None = None,
        languages: Sequence[str] | Schedule | None = None,
        max_length: int | Schedule = 1024,
        seed: int = 0,
    ) -> None:
        if num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, got {num_samples}")
        if not isinstance(documents, Mapping) or not documents:
            raise ValueError(
                f"documents must be like {{'fao': ['text', ...]}}, one language at least; got {documents!r:.80}"
            )
        if tokenizer.bos_token_id is None or tokenizer.eos_token_id is None:
            raise ValueError(
                f"rows are <bos> text <eos>, but {type(tokenizer).__name__} has no bos_token or no eos_token"
            )
        self.documents = {code: _tokenise(code, texts, tokenizer) for code, texts in documents.items()}
        self.languages = list(self.documents)
        self.counts = _complete_counts(self.documents, counts)
        self.bos_token_id, self.eos_token_id = int(tokenizer.bos_token_id), int(tokenizer.eos_token_id)
        self.num_samples, self.seed = num_samples, seed
        self.active_languages = as_schedule(languages if languages is not None else self.languages)
        self.max_length = as_schedule(max_length)
        self._temperature = as_schedule(temperature)
        self.samples_per_step = 1
        self.unit: Literal["samples", "tokens"] = "samples"
        self.total: float = num_samples
        self._check_schedules()

    @property
    def temperature(self) -> Schedule:
        """The sampling temperature over progress. Set it with `bind`."""
        return self._temperature

    def bind(
        self,
        *,
        temperature: float | Schedule | None = None,
        samples_per_step: int | None = None,
        total_samples: int | None = None,
        total_tokens: int | None = None,
    ) -> None:
        """Tie the mixture to a run; `AnnealingCallback` does this when training begins.

        Args:
            temperature: Replaces the temperature.
            samples_per_step: Samples that one optimizer step reads, over all ranks and accumulated batches; they all
                have the temperature and progress of the step's start.
            total_samples: Samples in the run: progress is counted in samples (the default, with `num_samples`).
            total_tokens: Tokens in the run: progress is counted in tokens, special tokens included.

        Raises:
            ValueError: Both totals at once, or a value out of range.
        """
        if total_samples is not None and total_tokens is not None:
            raise ValueError("give total_samples or total_tokens, not both: progress has one unit")
        if samples_per_step is not None:
            if samples_per_step < 1:
                raise ValueError(f"samples_per_step must be at least 1, got {samples_per_step}")
            self.samples_per_step = samples_per_step
        if total_tokens is not None:
            self.unit, self.total = "tokens", total_tokens
        elif total_samples is not None:
            self.unit, self.total = "samples", total_samples
        if self.total < 1:
            raise ValueError(f"the run must have at least one sample and one token, got a total of {self.total}")
        if temperature is not None:
            self._temperature = as_schedule(temperature)
        self._check_schedules()
        self.__dict__.pop("plan", None)

    @cached_property
    def plan(self) -> Plan:
        """The source of every sample. Computed once, on first use, at about 50 microseconds an optimizer step."""
        blocks: list[Plan] = []
        visits: dict[int, np.ndarray] = {}
        done = 0  # samples, or tokens
        for first in range(0, self.num_samples, self.samples_per_step):
            size = min(self.samples_per_step, self.num_samples - first)
            block = self._draw(first, size, min(1.0, done / self.total), visits)
            blocks.append(block)
            done += size if self.unit == "samples" else self._num_tokens(block)
        return Plan(*(np.concatenate(arrays) for arrays in zip(*blocks, strict=True)))

    def __len__(self) -> int:
        return self.num_samples

    def __getitem__(self, index: int) -> BatchEncoding:
        if not 0 <= index < self.num_samples:
            raise IndexError(f"sample {index} is outside this mixture of {self.num_samples} samples")
        plan = self.plan
        piece = self._piece(int(plan.language[index]), int(plan.visit[index]), int(plan.max_length[index]))
        input_ids = np.concatenate([[self.bos_token_id], piece, [self.eos_token_id]])
        return BatchEncoding({"input_ids": input_ids, "sample_index": index, "progress": float(plan.progress[index])})

    def language_of(self, index: int) -> str:
        """Return the language of sample `index`."""
        return self.languages[self.plan.language[index]]

    def samples_per_language(self, start: int = 0, stop: int | None = None) -> dict[str, int]:
        """Return how many of the samples `start` to `stop` each language gets, languages without any included."""
        drawn = np.bincount(self.plan.language[start:stop], minlength=len(self.languages))
        return dict(zip(self.languages, drawn.tolist(), strict=True))

    def _check_schedules(self) -> None:
        for progress in (0.0, 0.5, 1.0):
            active = self.active_languages.at(progress)
            missing = [code for code in active if code not in self.documents]
            if missing or not active:
                raise ValueError(
                    f"at progress {progress} the active languages are {list(active)[:5]}, but there are no documents for "
                    f"{missing[:5] or 'any language'}; add them to documents or take them out of languages"
                )
            if self.max_length.at(progress) <= NUM_SPECIAL_TOKENS:
                raise ValueError(f"max_length must be above {NUM_SPECIAL_TOKENS}, got {self.max_length.at(progress)}")
            sampling_probabilities({code: self.counts[code] for code in active}, self._temperature.at(progress))

    def _draw(self, first: int, size: int, progress: float, visits: dict[int, np.ndarray]) -> Plan:
        """Draw the samples of one optimizer step; `visits` (max_length -> count per language) is updated."""
        active = list(self.active_languages.at(progress))
        probabilities = sampling_probabilities({c: self.counts[c] for c in active}, self._temperature.at(progress))
        rng = np.random.default_rng([self.seed, first])
        drawn = rng.choice(len(active), size=size, p=np.fromiter(probabilities.values(), float))
        language = np.array([self._index[code] for code in active], dtype=np.int32)[drawn]
        max_length = int(self.max_length.at(progress))
        seen = visits.setdefault(max_length, np.zeros(len(self.languages), dtype=np.int64))
        visit: np.ndarray = np.empty(size, dtype=np.int64)
        for row, code in enumerate(language):
            visit[row] = seen[code]
            seen[code] += 1
        return Plan(language, visit, np.full(size, max_length, np.int32), np.full(size, progress))

    def _num_tokens(self, block: Plan) -> int:
        pieces = zip(block.language.tolist(), block.visit.tolist(), block.max_length.tolist(), strict=True)
        return sum(len(self._piece(*piece)) + NUM_SPECIAL_TOKENS for piece in pieces)

    def _piece(self, language: int, visit: int, max_length: int) -> np.ndarray:
        """Return the token ids of the language's piece number `visit`, each pass over the pieces in its own order."""
        pieces = self._pieces(language, max_length)
        epoch, position = divmod(visit, len(pieces))
        document, start, stop = pieces[self._order(language, max_length, epoch)[position]]
        return self.documents[self.languages[language]][document][start:stop]

    def _order(self, language: int, max_length: int, epoch: int) -> np.ndarray:
        """Return the order of the pieces in one pass; the latest of each language is kept."""
        kept = self._order_cache.get((language, max_length))
        if kept is None or kept[0] != epoch:
            rng = np.random.default_rng([self.seed, language, max_length, epoch])
            kept = epoch, rng.permutation(len(self._pieces(language, max_length)))
            self._order_cache[language, max_length] = kept
        return kept[1]

    @cached_property
    def _order_cache(self) -> dict[tuple[int, int], tuple[int, np.ndarray]]:
        return {}

    @cached_property
    def _index(self) -> dict[str, int]:
        return {code: index for index, code in enumerate(self.languages)}

    def _pieces(self, language: int, max_length: int) -> list[tuple[int, int, int]]:
        key = (language, max_length)
        if key not in self._piece_cache:
            self._piece_cache[key] = [
                (number, start, stop)
                for number, document in enumerate(self.documents[self.languages[language]])
                for start, stop in cut(len(document), max_length - NUM_SPECIAL_TOKENS)
            ]
        return self._piece_cache[key]

    @cached_property
    def _piece_cache(self) -> dict[tuple[int, int], list[tuple[int, int, int]]]:
        return {}


def _tokenise(language: str, documents: Sequence[Any], tokenizer: Any) -> list[np.ndarray]:
    """Return the documents as int32 token ids without special tokens; an empty one is an error."""
    get_language(language)
    if isinstance(documents, str) or not hasattr(documents, "__len__"):
        raise TypeError(
            f"the documents of {language!r} must be a sequence of texts, got {type(documents).__name__}; "
            "write ['one text'] for a single one, and list(...) around an iterator"
        )
    if len(documents) == 0:
        raise ValueError(f"language {language!r} has no documents; leave it out or give it some text")
    texts = [document for document in documents if isinstance(document, str)]
    if texts and len(texts) != len(documents):
        raise TypeError(f"language {language!r} mixes texts and token ids; give one or the other")
    ids = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"] if texts else documents
    arrays = [np.asarray(document, dtype=np.int32) for document in ids]
    for number, array in enumerate(arrays):
        if array.ndim != 1 or array.size == 0:
            raise ValueError(
                f"document {number} of language {language!r} is empty or not one-dimensional (shape {array.shape}); "
                "drop empty documents before building the mixture"
            )
    return arrays


def _complete_counts(documents: Mapping[str, list[np.ndarray]], counts: Mapping[str, float] | None) -> dict[str, float]:
    if counts is None:
        return {code: float(sum(map(len, arrays))) for code, arrays in documents.items()}
    missing = [code for code in documents if code not in counts]
    if missing:
        raise ValueError(f"counts has no entry for {', '.join(missing[:5])}; every language of documents needs one")
    return {code: float(counts[code]) for code in documents}
