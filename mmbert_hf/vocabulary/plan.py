"""Which tokens stay: counted on real text, closed under what the algorithm needs, and no more than asked for.

Design decisions:

- Tokens are counted by encoding the texts with the tokenizer itself, normalizer, prefix spaces and special tokens
  included, and without truncation. Texts are read once, in batches: memory does not grow with their number.
- A plan is a value. It says which ids stay, in ascending order: the new id of a token is the rank of its old one. So
  special tokens at the front keep their ids, and embeddings are sliced without being shuffled.
- With `max_vocabulary` the most frequent tokens come first, each with the parts it needs; one that no longer fits with
  its parts is passed over for the next. Ties go to the lower id.

Shape legend: O old vocabulary, K kept tokens.
"""

import json
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from mmbert_hf.vocabulary.rules import Rules, rules_of

BATCH_TEXTS = 1024
BATCH_CHARACTERS = 1 << 20


@dataclass(frozen=True, eq=False)
class VocabularyPlan:
    """Which tokens of a vocabulary stay.

    Attributes:
        kept_ids: Old ids that stay, int64 [K], ascending. The new id of `kept_ids[i]` is `i`.
        counts: How often each old id came in the texts, special tokens included, int64 [O].
        num_texts: Number of texts counted.

    Raises:
        ValueError: `kept_ids` is empty, not ascending, or has ids outside the vocabulary.

    Example:
        >>> plan = VocabularyPlan(np.array([0, 2]), counts=np.array([3, 1, 6]), num_texts=2)
        >>> plan.new_ids.tolist(), plan.coverage
        ([0, -1, 1], 0.9)
    """

    kept_ids: np.ndarray
    counts: np.ndarray
    num_texts: int

    def __post_init__(self) -> None:
        ids = self.kept_ids
        if ids.ndim != 1 or not len(ids) or (np.diff(ids) <= 0).any() or ids[0] < 0 or ids[-1] >= len(self.counts):
            raise ValueError(f"kept_ids must be ascending ids from 0 to {len(self.counts) - 1}, got {ids}")

    @property
    def old_size(self) -> int:
        """Number of ids before: the highest one and 1."""
        return len(self.counts)

    @property
    def new_size(self) -> int:
        """Number of tokens kept."""
        return len(self.kept_ids)

    @property
    def num_removed_rows(self) -> int:
        """Number of ids that go."""
        return self.old_size - self.new_size

    @property
    def new_ids(self) -> np.ndarray:
        """New id of each old one, int64 [O]; -1 for those that go."""
        new: np.ndarray = np.full(self.old_size, -1, dtype=np.int64)
        new[self.kept_ids] = np.arange(self.new_size)
        return new

    @property
    def coverage(self) -> float:
        """Share of the texts' token occurrences that are kept tokens; 1 where no used token goes."""
        return int(self.counts[self.kept_ids].sum()) / int(self.counts.sum())

    @property
    def coverage_of_types(self) -> float:
        """Share of the different tokens in the texts that are kept."""
        return np.count_nonzero(self.counts[self.kept_ids]) / np.count_nonzero(self.counts)

    def removed_bytes(self, hidden_size: int, bytes_per_value: int = 4) -> int:
        """Bytes that an embedding matrix loses.

        Args:
            hidden_size: Its width.
            bytes_per_value: 4 for float32, 2 for bfloat16.

        Returns:
            The number of bytes. An untied output matrix loses the same again.
        """
        return self.num_removed_rows * hidden_size * bytes_per_value

    def __str__(self) -> str:
        return (
            f"{self.new_size:,} of {self.old_size:,} tokens stay ({self.new_size / self.old_size:.1%}), with "
            f"{self.coverage:.2%} of the tokens in {self.num_texts:,} texts"
        )


def plan_trim(
    tokenizer: Any,
    texts: Iterable[str],
    *,
    min_count: int = 1,
    keep_tokens: Collection[str] = (),
    max_vocabulary: int | None = None,
    progress: bool = False,
) -> VocabularyPlan:
    """Find which tokens a trimmed vocabulary keeps.

    Kept are special and added tokens, the unknown token, bytes or single characters, what the template uses, the tokens
    in the texts, and what is needed to build all of these (`mmbert_hf.vocabulary.rules`).

    Args:
        tokenizer: A fast tokenizer of transformers: BPE, WordPiece or Unigram. It is not changed.
        texts: Texts; read once, in batches.
        min_count: How often a token must come in them to stay. Above 1, texts with rare tokens are split otherwise.
        keep_tokens: Tokens, as the vocabulary spells them, that stay in any case.
        max_vocabulary: Size not to exceed: the most frequent tokens stay. None for no limit.
        progress: Show a progress bar.

    Returns:
        The plan.

    Raises:
        TypeError: The tokenizer is not a fast one, or the texts are not strings.
        ValueError: There is no text, a number is below 1, a token to keep is unknown, or `max_vocabulary` has no room for
            what must stay.

    Example:
        >>> from mmbert_hf import MMBertTokenizer
        >>> tokenizer = MMBertTokenizer.train(["the cat sat", "ein hund"] * 4, vocab_size=320)
        >>> plan = plan_trim(tokenizer, ["the cat sat"])
        >>> plan.coverage, plan.new_size < plan.old_size
        (1.0, True)
    """
    backend = backend_of(tokenizer)
    if min_count < 1:
        raise ValueError(f"min_count must be at least 1, got {min_count}")
    spec = json.loads(backend.to_str())
    rules = rules_of(spec["model"])
    vocabulary = backend.get_vocab(with_added_tokens=True)
    if unknown := [token for token in keep_tokens if token not in vocabulary]:
        raise ValueError(f"keep_tokens has {unknown[:5]}, which the vocabulary has not: spell tokens as it does")
    required = required_ids(spec, rules) | {vocabulary[token] for token in keep_tokens}
    counts, num_texts, hidden = _count(reading_copy(tokenizer), rules, texts, max(vocabulary.values()) + 1, progress)
    tokens = {id_: token for token, id_ in rules.ids.items()}
    named = {entry["id"] for entry in spec["added_tokens"] if entry["special"]}

    def with_parts(id_: int) -> set[int]:
        return {id_} | (rules.parts(tokens[id_]) if id_ in tokens and id_ not in named else set())

    kept = set().union(*map(with_parts, required | hidden))
    if max_vocabulary is not None and len(kept) > max_vocabulary:
        raise ValueError(
            f"max_vocabulary is {max_vocabulary}, but {len(kept)} tokens must stay (special and added tokens, bytes or "
            f"characters, keep_tokens and their parts): set it to {len(kept)} or more"
        )
    used = np.flatnonzero(counts >= min_count)
    for id_ in used[np.argsort(-counts[used], kind="stable")].tolist():
        added = with_parts(id_) - kept
        if max_vocabulary is None or len(kept) + len(added) <= max_vocabulary:
            kept |= added
    return VocabularyPlan(np.array(sorted(kept), dtype=np.int64), counts, num_texts)


def backend_of(tokenizer: Any) -> Tokenizer:
    """The `tokenizers.Tokenizer` of a fast tokenizer.

    Args:
        tokenizer: A fast tokenizer of transformers.

    Returns:
        Its backend itself.

    Raises:
        TypeError: It is not a fast tokenizer.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        raise TypeError(
            f"{type(tokenizer).__name__} is not a fast tokenizer, which trimming needs: load one that has a tokenizer.json "
            "with AutoTokenizer.from_pretrained"
        )
    return backend


def reading_copy(tokenizer: Any) -> Tokenizer:
    """A copy of a tokenizer's backend that neither pads nor truncates.

    Args:
        tokenizer: A fast tokenizer of transformers.

    Returns:
        The copy.

    Raises:
        TypeError: It is not a fast tokenizer.
    """
    backend = backend_of(tokenizer)
    reader = Tokenizer.from_str(backend.to_str())
    reader.no_padding()
    reader.no_truncation()
    reader.encode_special_tokens = backend.encode_special_tokens  # tokenizer.json does not have it
    return reader


def required_ids(spec: dict[str, Any], rules: Rules) -> set[int]:
    """Ids that no plan may drop: added and special tokens, the template's, the padding's, and the algorithm's own.

    Args:
        spec: A parsed `tokenizer.json`.
        rules: Those of its model.

    Returns:
        The ids.
    """
    ids = {entry["id"] for entry in spec["added_tokens"]} | rules.always() | set(_template_ids(spec["post_processor"]))
    if spec.get("padding"):
        ids.add(spec["padding"]["pad_id"])
    return ids


def _template_ids(processor: dict[str, Any] | None) -> Iterator[int]:
    """Ids of the tokens that a post-processor puts around texts."""
    if processor is None:
        return
    for part in processor.get("processors", ()):
        yield from _template_ids(part)
    if processor["type"] in ("BertProcessing", "RobertaProcessing"):
        yield from (processor["sep"][1], processor["cls"][1])
    if processor["type"] == "TemplateProcessing":
        for token in processor["special_tokens"].values():
            yield from token["ids"]


def text_batches(texts: Iterable[str]) -> Iterator[list[str]]:
    """Texts in batches of bounded size.

    Args:
        texts: The texts.

    Yields:
        Lists of texts, at most 1024 of them, which end with the text that brings them to a million characters.

    Raises:
        TypeError: A text is not a string, or `texts` is one.
    """
    if isinstance(texts, str):
        raise TypeError("texts is a string, expected an iterable of strings: write [text]")
    batch: list[str] = []
    num_characters = 0
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"text {index} is {text!r}, expected a string")
        batch.append(text)
        num_characters += len(text)
        if len(batch) >= BATCH_TEXTS or num_characters >= BATCH_CHARACTERS:
            yield batch
            batch, num_characters = [], 0
    if batch:
        yield batch


def _count(
    reader: Tokenizer, rules: Rules, texts: Iterable[str], size: int, progress: bool
) -> tuple[np.ndarray, int, set[int]]:
    """How often each id comes [O], the number of texts, and the ids behind words that came out as unknown."""
    from mmbert_hf.progress import progress_bar

    unknown = getattr(reader.model, "unk_token", None)
    unknown_id = None if unknown is None else reader.token_to_id(unknown)
    counts: np.ndarray = np.zeros(size, dtype=np.int64)
    hidden: set[int] = set()
    num_texts, has_text = 0, False
    with progress_bar(progress, desc="counting tokens", unit=" texts") as bar:
        for batch in text_batches(texts):
            num_texts += len(batch)
            has_text = has_text or any(text.strip() for text in batch)
            encodings = [encoding.ids for encoding in reader.encode_batch_fast(batch)]
            counts += np.bincount(np.array([*chain.from_iterable(encodings)], dtype=np.int64), minlength=size)
            for text, ids in zip(batch, encodings, strict=True):
                if unknown_id is not None and unknown_id in ids:
                    hidden |= rules.behind_unknown(_words(reader, text))
            bar.update(len(batch))
    if not has_text:
        raise ValueError(f"texts has nothing to count: got {num_texts} texts, expected at least one that is not blank")
    return counts, num_texts, hidden


def _words(reader: Tokenizer, text: str) -> list[str]:
    """The words that the model gets."""
    text = reader.normalizer.normalize_str(text) if reader.normalizer else text
    return [word for word, _ in reader.pre_tokenizer.pre_tokenize_str(text)] if reader.pre_tokenizer else [text]
