"""Labels for tokens, from labels for words, for character spans, or from answers to questions.

Design decisions:

- Character offsets decide, never `word_ids()`: on raw text this tokenizer has no words, so `word_ids()` says nothing there.
- A token is where its visible characters are. The token of " Paris" starts at the space, yet it belongs to "Paris"; a
  token that shows nothing (a lone space, a newline) gets the ignore index, for there is nothing to predict on it.
- Annotations are checked against the text before any token is looked at: a label is never moved or invented in silence.
- Text that was cut off by truncation takes its labels with it. When a long text is cut into overlapping windows, every
  window is labelled by itself.

Terms: an *offset* is a half-open pair (start, end) of character positions in a text. A *token span* is the offset of the
visible part of a token in the text that carries the labels, or None for special tokens, padding, blank tokens and tokens
of another text. For pre-split words the text is `" ".join(words)`.
"""

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mmbert_hf.token_labels import (
    IGNORE_INDEX,
    Label,
    LabelledSpan,
    Span,
    continuation_ids,
    is_blank,
    label_spans,
    label_words,
    locate_span,
    resolve_label,
    visible_span,
    words_of_tokens,
)

#: (first character, text), the SQuAD columns {"answer_start": [...], "text": [...]}, or None where there is no answer.
Answer = tuple[int, str] | Mapping[str, Sequence[Any]] | None


class Document(NamedTuple):
    """A text with the offsets of its words."""

    text: str
    words: list[Span]

    @classmethod
    def read(cls, text: str | Sequence[str]) -> "Document":
        """Find the words of a raw text (its runs without white space), or join words that were split before."""
        if isinstance(text, str):
            return cls(text, [match.span() for match in re.finditer(r"\S+", text)])
        ends = itertools.accumulate((len(word) + 1 for word in text), initial=0)
        return cls(" ".join(text), [(start, start + len(word)) for start, word in zip(ends, text, strict=False)])


def check_spans(
    text: str, spans: Sequence[tuple[int, int, Label]], label2id: Mapping[str, int] | None
) -> list[LabelledSpan]:
    """Check character spans against their text and resolve their labels.

    Args:
        text: The annotated text.
        spans: (start, end, label) with half-open character offsets. A label "LOC" stands for "B-LOC", "I-LOC" when
            `label2id` has these and no "LOC"; any other label is repeated on every token of the span.
        label2id: Ids of label names.

    Returns:
        The spans in the order of the text, cut to their visible characters.

    Raises:
        ValueError: For offsets outside the text, spans that are empty, blank or overlap, and unknown labels.
    """
    checked = []
    for start, end, label in spans:
        if not 0 <= start < end <= len(text):
            raise ValueError(
                f"span ({start}, {end}, {label!r}) is not inside the text: need 0 <= start < end <= {len(text)}"
            )
        visible = visible_span(text, start, end)
        if visible is None:
            raise ValueError(f"span ({start}, {end}, {label!r}) holds nothing but white space: {text[start:end]!r}")
        if label2id and label not in label2id and f"B-{label}" in label2id and f"I-{label}" in label2id:
            checked.append(LabelledSpan(*visible, label2id[f"B-{label}"], label2id[f"I-{label}"]))
        else:
            label_id = resolve_label(label, label2id)
            checked.append(LabelledSpan(*visible, label_id, label_id))
    checked.sort()
    for left, right in itertools.pairwise(checked):
        if right.start < left.end:
            raise ValueError(
                f"spans {tuple(left[:2])} {text[left.start : left.end]!r} and {tuple(right[:2])} "
                f"{text[right.start : right.end]!r} overlap: a token can carry one label only"
            )
    return checked


def check_answer(text: str, answer: Answer) -> Span | None:
    """Check an answer against its context.

    Args:
        text: The context.
        answer: (first character, answer text); or the SQuAD columns, of which the first answer counts; or None.

    Returns:
        Offset of the answer's visible characters; None when there is no answer.

    Raises:
        ValueError: When the context does not have the answer at that place.
    """
    if isinstance(answer, Mapping):
        starts, texts = answer["answer_start"], answer["text"]
        if len(starts) != len(texts):
            raise ValueError(f"an answer has {len(starts)} answer_start but {len(texts)} text")
        answer = (starts[0], texts[0]) if len(starts) else None
    if answer is None:
        return None
    start, wanted = answer
    found = text[start : start + len(wanted)] if start >= 0 else ""
    if found != wanted or not wanted:
        raise ValueError(f"the context has {found!r} at character {start}, not the answer {wanted!r}")
    visible = visible_span(text, start, start + len(wanted))
    if visible is None:
        raise ValueError(f"the answer at character {start} is nothing but white space: {wanted!r}")
    return visible


class Window(NamedTuple):
    """The tokens of one row of an encoding, seen from the text that carries the labels."""

    sample: int
    words: list[int | None]
    spans: list[Span | None]
    special_token: int | None  # position of the first special token that is not padding


def read_window(window: Any, sample: int, document: Document, sequence: int, offsets: Sequence[Span] | None) -> Window:
    """Place the tokens of one `tokenizers.Encoding` in their document.

    Args:
        window: The encoding.
        sample: Which text of the batch it comes from.
        document: That text.
        sequence: Which text of a pair the document is.
        offsets: None for raw text. For pre-split words, offsets inside the words, [tokens]; or nothing when these are
            not known, and then `spans` is empty.
    """
    own = [index == sequence for index in window.sequence_ids]
    spans: list[Span | None] = []
    if offsets is None:
        pairs = zip(window.offsets, own, strict=True)
        spans = [visible_span(document.text, *offset) if mine else None for offset, mine in pairs]
        words = words_of_tokens(spans, document.words)
    else:
        shown = [mine and not all(map(is_blank, token)) for token, mine in zip(window.tokens, own, strict=True)]
        words = [word if visible else None for word, visible in zip(window.word_ids, shown, strict=True)]
        for (start, end), word in zip(offsets, words, strict=bool(offsets)):
            base = None if word is None else document.words[word][0]
            spans.append(None if base is None else visible_span(document.text, base + start, base + end))
    real = zip(window.special_tokens_mask, window.attention_mask, strict=True)
    special = next((position for position, flags in enumerate(real) if all(flags)), None)
    return Window(sample, words, spans, special)


def align_labels(
    encoding: Any,
    texts: Any,
    *,
    word_labels: Sequence[Any] | None = None,
    spans: Sequence[Any] | None = None,
    answers: Any = None,
    label2id: Mapping[str, int] | None = None,
    outside: Label = "O",
    label_all_tokens: bool = False,
    ignore_index: int = IGNORE_INDEX,
    sequence: int = 0,
    is_split_into_words: bool = False,
) -> dict[str, Any]:
    """Label the tokens of an encoding; `MMBertTokenizer.align_labels` describes the arguments and encodes as well.

    Args:
        encoding: `transformers.BatchEncoding` of any fast tokenizer, before it is converted to tensors. Spans and answers
            on pre-split words need `return_offsets_mapping=True`.
        texts: The text, or the batch of texts, that carries the labels, as it was encoded.
        word_labels: As in the method; likewise the arguments after it.
        sequence: Which text of a pair the labels are for: 0 or 1.

    Returns:
        ``{"labels": ...}``, or for answers ``{"start_positions": ..., "end_positions": ...}``, nested like the ``input_ids``.

    Raises:
        ValueError: When the annotations do not fit the texts, or the encoding has not what is needed.
    """
    given = {"word_labels": word_labels, "spans": spans, "answers": answers}
    kinds = [name for name, value in given.items() if value is not None]
    if len(kinds) != 1:
        raise ValueError(f"pass exactly one of word_labels, spans and answers, got {kinds or 'none'}")
    kind = kinds[0]
    is_single = isinstance(texts, str) or (is_split_into_words and (not texts or isinstance(texts[0], str)))
    documents = [Document.read(text) for text in ([texts] if is_single else texts)]
    annotations = [given[kind]] if is_single else given[kind]
    if len(annotations) != len(documents):
        raise ValueError(f"{kind} has {len(annotations)} entries for {len(documents)} texts")
    checked = [
        _check(kind, number, *pair, label2id) for number, pair in enumerate(zip(documents, annotations, strict=True))
    ]
    windows = _read_windows(encoding, documents, sequence, is_split_into_words, needs_spans=kind != "word_labels")

    if kind == "answers":
        positions = [_answer_tokens(window, checked[window.sample]) for window in windows]
        return _pack(encoding, start_positions=[p[0] for p in positions], end_positions=[p[1] for p in positions])
    if kind == "spans":
        outside_id = resolve_label(outside, label2id)
        labels = [label_spans(window.spans, checked[window.sample], outside_id, ignore_index) for window in windows]
        return _pack(encoding, labels=labels)
    options: dict[str, Any] = {
        "label_all_tokens": label_all_tokens,
        "continuation": continuation_ids(label2id),
        "ignore_index": ignore_index,
    }
    return _pack(encoding, labels=[label_words(window.words, checked[window.sample], **options) for window in windows])


def _read_windows(
    encoding: Any, documents: Sequence[Document], sequence: int, is_split_into_words: bool, needs_spans: bool
) -> list[Window]:
    """Place every row of an encoding in its document, see `read_window`."""
    rows = getattr(encoding, "encodings", None)
    if not rows:
        raise ValueError("the encoding knows no offsets: pass the BatchEncoding of a fast tokenizer as it was returned")
    samples = encoding.get("overflow_to_sample_mapping", range(len(rows)))
    if max(samples) >= len(documents):
        raise ValueError(f"the encoding has {max(samples) + 1} texts, but {len(documents)} were passed")
    offsets: Sequence[Any] = [None] * len(rows)
    if is_split_into_words:
        offsets = encoding.get("offset_mapping", [[]] * len(rows))
        if needs_spans and "offset_mapping" not in encoding:
            raise ValueError("character offsets in pre-split words need an encoding with return_offsets_mapping=True")
        if _is_flat(encoding) and "offset_mapping" in encoding:
            offsets = [offsets]
    return [
        read_window(row, sample, documents[sample], sequence, offset)
        for row, sample, offset in zip(rows, samples, offsets, strict=True)
    ]


def _check(kind: str, number: int, document: Document, annotation: Any, label2id: Mapping[str, int] | None) -> Any:
    """Check the annotation of one text; errors name the text."""
    try:
        if kind == "spans":
            return check_spans(document.text, annotation, label2id)
        if kind == "answers":
            return check_answer(document.text, annotation)
        if len(annotation) != len(document.words):
            raise ValueError(f"{len(annotation)} labels for {len(document.words)} words: one label per word is needed")
        return [resolve_label(label, label2id) for label in annotation]
    except ValueError as error:
        raise ValueError(f"text {number} ({document.text[:40]!r}): {error}") from error


def _answer_tokens(window: Window, answer: Span | None) -> tuple[int, int]:
    """First and last token of an answer, or the first special token twice when the window does not have all of it."""
    located = locate_span(window.spans, answer) if answer else None
    if located is None and window.special_token is None:
        raise ValueError("a missing answer is marked on the first special token: encode with add_special_tokens=True")
    return located or (window.special_token, window.special_token)  # type: ignore[return-value]


def _pack(encoding: Any, **columns: list[Any]) -> dict[str, Any]:
    """Drop the batch axis where the encoding has none."""
    return {name: column[0] for name, column in columns.items()} if _is_flat(encoding) else columns


def _is_flat(encoding: Any) -> bool:
    """Whether the encoding is that of a single text, without a batch axis."""
    input_ids = encoding["input_ids"]
    return len(input_ids) == 0 or isinstance(input_ids[0], int)
