"""Pre-split words with the spaces between them: the tokens of `" ".join(words)`, and still one word index per token.

A vocabulary without a token that has a space after its first visible character may cut a text before any run of spaces and
get the same tokens. So each word is handed to the backend with the spaces before it, as one piece.

One case differs: in a text a mask takes all white space before it, as one word it takes the spaces only. A tab or an
ideographic space at the end of the word before a mask is therefore kept.
"""

from collections.abc import Sequence
from typing import Any

from tokenizers import Encoding

from mmbert_hf.special_tokens import SPACE_SYMBOL

BLANKS = " " + SPACE_SYMBOL


def attach_spaces(words: Sequence[str]) -> tuple[list[str], list[int]]:
    """Give every word the spaces before it, so that the pieces make up `" ".join(words)`.

    Args:
        words: The words of one text. A word may be empty, or have spaces in it or at its ends.

    Returns:
        The pieces, [words]; and the number of characters before the word in each piece, [words]. Spaces at the end of a
        word go to the next piece: a piece ends with a space only at the end of the text.

    Raises:
        TypeError: When a word is not a string.
    """
    if not all(isinstance(word, str) for word in words):
        raise TypeError(f"words must be strings, got {[word for word in words if not isinstance(word, str)][:3]}")
    pieces, leads = [], []
    lead = ""
    for index, word in enumerate(words):
        leads.append(len(lead))
        piece = lead + word
        if index + 1 < len(words):
            kept = piece.rstrip(BLANKS)
            lead = piece[len(kept) :] + " "
            piece = kept
        pieces.append(piece)
    return pieces, leads


def offsets_in_words(encoding: Encoding, leads: Sequence[Sequence[int]]) -> list[tuple[int, int]]:
    """Turn offsets in pieces into offsets in words; spaces before a word count as nothing.

    Args:
        encoding: Encoding of the pieces.
        leads: Per text of the pair, what `attach_spaces` says.

    Returns:
        Offsets, [tokens].
    """
    offsets = []
    for (start, end), word, text in zip(encoding.offsets, encoding.word_ids, encoding.sequence_ids, strict=True):
        lead = 0 if word is None or text is None else leads[text][word]
        offsets.append((max(start - lead, 0), max(end - lead, 0)))
    return offsets


def word_samples(text: Any, text_pair: Any) -> list[tuple[Sequence[str], ...]]:
    """Bring the ways to pass pre-split words into one: a list of (words,) or (words, words of the second text)."""
    for words in (text, text_pair):
        if isinstance(words, str):
            raise TypeError(f"is_split_into_words=True needs lists of words, got the string {words[:40]!r}")
    if not text or isinstance(text[0], str):
        return [(text, text_pair)] if text_pair else [(text,)]
    if text_pair is None:
        return [tuple(words) if words and isinstance(words[0], (list, tuple)) else (words,) for words in text]
    if len(text) != len(text_pair):
        raise ValueError(
            f"a batch of pairs needs as many second texts as first ones, got {len(text_pair)} for {len(text)}"
        )
    return list(zip(text, text_pair, strict=True))


def crosses_words(token: str) -> bool:
    """Whether a token has a space after its first visible character."""
    return any(character in BLANKS for character in token.lstrip(BLANKS))
