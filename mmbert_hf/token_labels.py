"""From character positions to token labels: functions of lists, without texts or tokenizers.

An *offset* is a half-open pair (start, end) of character positions in a text. A *token span* is the offset of the visible part
of a token in the text that carries the labels, or None for special tokens, padding, blank tokens and tokens of another
text.
"""

import bisect
import operator
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from mmbert_hf.special_tokens import SPACE_SYMBOL

IGNORE_INDEX = -100

Span = tuple[int, int]
Label = int | str


class LabelledSpan(NamedTuple):
    """Characters [start, end) with the label id of their first token and that of the tokens that follow it."""

    start: int
    end: int
    begin_id: int
    inside_id: int


def is_blank(character: str) -> bool:
    """Whether a character is white space, or U+2581, which is how the vocabulary writes a space."""
    return character.isspace() or character == SPACE_SYMBOL


def visible_span(text: str, start: int, end: int) -> Span | None:
    """Cut white space and U+2581 off both ends of `text[start:end]`; None when nothing else is there."""
    while start < end and is_blank(text[start]):
        start += 1
    while start < end and is_blank(text[end - 1]):
        end -= 1
    return (start, end) if start < end else None


def words_of_tokens(token_spans: Sequence[Span | None], word_spans: Sequence[Span]) -> list[int | None]:
    """For every token, the index of the word that holds its first visible character.

    Args:
        token_spans: Visible offsets of the tokens, [tokens].
        word_spans: Offsets of the words, in the order of the text, without overlap.

    Returns:
        Word indices, [tokens]; None for tokens without a span and for characters between words.
    """
    starts = [start for start, _ in word_spans]
    words: list[int | None] = []
    for span in token_spans:
        index = -1 if span is None else bisect.bisect_right(starts, span[0]) - 1
        words.append(index if span is not None and index >= 0 and span[0] < word_spans[index][1] else None)
    return words


def resolve_label(label: Label, label2id: Mapping[str, int] | None) -> int:
    """Return the id of a label that is an id already or a name in `label2id`.

    Raises:
        ValueError: For a name that `label2id` does not have, or without a `label2id`.
        TypeError: For a label that is neither a name nor an integer.
    """
    if not isinstance(label, str):
        return operator.index(label)
    if label2id is None:
        raise ValueError(f"the label {label!r} is a name: pass label2id, which gives its id")
    if label not in label2id:
        raise ValueError(f"the label {label!r} is not in label2id, which has {sorted(label2id)}")
    return label2id[label]


def continuation_ids(label2id: Mapping[str, int] | None) -> dict[int, int]:
    """Map the id of every "B-x" to the id of "I-x": what the second token of a word that begins an entity is labelled."""
    names = label2id or {}
    return {
        index: names["I-" + name[2:]]
        for name, index in names.items()
        if name.startswith("B-") and "I-" + name[2:] in names
    }


def label_words(
    words: Sequence[int | None],
    labels: Sequence[int],
    *,
    label_all_tokens: bool = False,
    continuation: Mapping[int, int] | None = None,
    ignore_index: int = IGNORE_INDEX,
) -> list[int]:
    """Give tokens the labels of their words.

    Args:
        words: Word index of every token, None where there is none, [tokens].
        labels: Label ids, [words].
        label_all_tokens: Label every token of a word, rather than its first one.
        continuation: Label id of a word to label id of its second and later tokens, where they differ.
        ignore_index: What the other tokens get.

    Returns:
        Label ids, [tokens].
    """
    continuation = continuation or {}
    token_labels = []
    previous = None
    for word in words:
        if word is None:
            token_labels.append(ignore_index)
            continue
        if word != previous:
            token_labels.append(labels[word])
        else:
            token_labels.append(continuation.get(labels[word], labels[word]) if label_all_tokens else ignore_index)
        previous = word
    return token_labels


def label_spans(
    token_spans: Sequence[Span | None],
    spans: Sequence[LabelledSpan],
    outside_id: int,
    ignore_index: int = IGNORE_INDEX,
) -> list[int]:
    """Give every token the label of the first span that it shares a character with.

    Args:
        token_spans: Visible offsets of the tokens, [tokens].
        spans: What `check_spans` returns: in the order of the text, without overlap.
        outside_id: Label id of tokens that touch no span.
        ignore_index: Label of tokens without visible characters.

    Returns:
        Label ids, [tokens]. A span's `begin_id` goes to the token with the span's first character, so a window that
        opens in the middle of a span has the `inside_id` only.
    """
    ends = [span.end for span in spans]
    begun: set[int] = set()
    token_labels = []
    for token in token_spans:
        if token is None:
            token_labels.append(ignore_index)
            continue
        index = bisect.bisect_right(ends, token[0])
        if index == len(spans) or spans[index].start >= token[1]:
            token_labels.append(outside_id)
            continue
        span = spans[index]
        # A character may be spread over several byte tokens: only the first of them begins the span.
        begins = index not in begun and token[0] <= span.start
        begun.add(index)
        token_labels.append(span.begin_id if begins else span.inside_id)
    return token_labels


def locate_span(token_spans: Sequence[Span | None], span: Span) -> tuple[int, int] | None:
    """Find the first and the last token of a character span.

    Args:
        token_spans: Visible offsets of the tokens, [tokens].
        span: Offset of the wanted characters, without blanks at its ends.

    Returns:
        Token indices, both inclusive; None when some of the characters are not in these tokens.
    """
    touching = [i for i, token in enumerate(token_spans) if token and token[0] < span[1] and span[0] < token[1]]
    if not touching:
        return None
    first, last = touching[0], touching[-1]
    whole = token_spans[first][0] <= span[0] and span[1] <= token_spans[last][1]  # type: ignore[index]
    return (first, last) if whole else None
