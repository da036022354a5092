"""Which tokens an algorithm needs besides those that come out of it, so that nothing else changes.

Design decisions, one proof per algorithm. A text is "inside" when all of its tokens are kept; its tokens must stay the same.

- BPE applies the merge of lowest rank again and again. All merges inside the span of a final token happen as if the token
  stood alone, since none crosses the span's ends. So each kept token is spelled once by itself, and every symbol on that
  way is kept. The merges of an inside text are then all there in the old order, and the lowest of them all is also the
  lowest of those kept. All other derivations of a token are not needed: Gemma lists each split of each token as a merge.
- WordPiece takes the longest match. The longest of all pieces, if kept, is the longest of those kept. But a word that
  ends in [UNK] drops the pieces matched before the failure; without them the matching could go another way and succeed.
  These pieces, which are no token of any text, are kept, too.
- Unigram takes the path of the highest sum of scores. Taking other paths away does not change the best one. The score of
  an unknown character is the lowest score of the vocabulary less 10: the piece that has it is kept.
- What is outside must stay readable: with byte fallback by the bytes, else by all single characters. WordPiece needs each as
  "c" and "##c"; there and in Unigram a piece with a character that the vocabulary does not have so is kept.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any, Protocol

BYTE_TOKENS = tuple(f"<0x{byte:02X}>" for byte in range(256))


class Rules(Protocol):
    """What one algorithm needs."""

    #: Token -> id, without added tokens that the model does not have.
    ids: dict[str, int]

    def always(self) -> set[int]:
        """Ids that every vocabulary keeps."""

    def parts(self, token: str) -> set[int]:
        """Ids without which `token` could not be built, its own included; none if it is not built."""

    def behind_unknown(self, words: Iterable[str]) -> set[int]:
        """Ids that a word uses before it ends in the unknown token."""


def rules_of(model: dict[str, Any]) -> Rules:
    """The rules for the `model` of a `tokenizer.json`.

    Args:
        model: The parsed `model` object.

    Returns:
        The rules.

    Raises:
        ValueError: The model is not BPE, WordPiece or Unigram, or splits at random (BPE dropout).

    Example:
        >>> vocabulary = {"a": 0, "b": 1, "ab": 2, "aba": 3}
        >>> rules = rules_of({"type": "BPE", "vocab": vocabulary, "merges": [["a", "b"], ["ab", "a"]]})
        >>> sorted(rules.parts("aba"))
        [0, 1, 2, 3]
    """
    kind = model.get("type")
    if kind == "BPE":
        if model.get("dropout"):
            raise ValueError(f"this BPE drops merges at random (dropout={model['dropout']}): set the dropout to None")
        return BPERules(model)
    if kind == "WordPiece":
        return WordPieceRules(model)
    if kind == "Unigram":
        return UnigramRules(model)
    raise ValueError(f"the tokenizer's model is {kind}, expected BPE, WordPiece or Unigram")


def _spelling(model: dict[str, Any], ids: dict[str, int], characters: dict[str, str]) -> set[int]:
    """Ids that spell any text that could be spelled before.

    With byte fallback the bytes, and characters that bytes do not spell: Gemma 2 has no <0x09>, but a tab. Without it all
    characters, given as token -> character.
    """
    if not model.get("byte_fallback"):
        return {ids[token] for token in characters}
    bytes_ = {token for token in BYTE_TOKENS if token in ids}
    spelled_alone = {
        token
        for token, character in characters.items()
        if not all(BYTE_TOKENS[byte] in bytes_ for byte in character.encode())
    }
    return {ids[token] for token in bytes_ | spelled_alone}


def _unknown_id(model: dict[str, Any], ids: dict[str, int]) -> set[int]:
    return {ids[model["unk_token"]]} if model.get("unk_token") in ids else set()


@dataclass
class BPERules:
    """Byte-level BPE, and BPE on characters, with or without byte fallback."""

    model: dict[str, Any]
    ids: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        self.ids = self.model["vocab"]
        self.prefix = self.model.get("continuing_subword_prefix") or ""
        self.suffix = self.model.get("end_of_word_suffix") or ""

    @cached_property
    def ranks(self) -> dict[tuple[str, str], int]:
        """Pair -> rank. Of a merge that is listed twice the last counts, in `tokenizers` as here."""
        return {pair: rank for rank, pair in enumerate(map(merge_pair, self.model["merges"]))}

    def always(self) -> set[int]:
        """The unknown token, and either all bytes or all characters."""
        longest = len(self.prefix) + 1 + len(self.suffix)
        characters = {
            token: token.removeprefix(self.prefix)[:1]
            for token in self.ids
            if len(token) <= longest and len(self._symbols(token)) == 1
        }
        return _spelling(self.model, self.ids, characters) | _unknown_id(self.model, self.ids)

    def parts(self, token: str) -> set[int]:
        """Every symbol on the way from the characters to the token; none if merges do not lead there."""
        symbols = self._symbols(token)
        passed = set(symbols)
        while len(symbols) > 1:
            pairs = list(pairwise(symbols))
            place = min(range(len(pairs)), key=lambda place: self.ranks.get(pairs[place], len(self.ranks)))
            if pairs[place] not in self.ranks:
                return set()
            symbols[place : place + 2] = [self.product(pairs[place])]
            passed.add(symbols[place])
        return {self.ids[symbol] for symbol in passed}

    def behind_unknown(self, words: Iterable[str]) -> set[int]:
        """None: an unknown character takes no other with it."""
        return set()

    def product(self, pair: tuple[str, str]) -> str:
        """The token that a merge makes."""
        return pair[0] + pair[1].removeprefix(self.prefix)

    def _symbols(self, token: str) -> list[str]:
        """The characters of a token, marked as the model marks them at the start and at the end of a word."""
        begins_word = not self.prefix or not token.startswith(self.prefix)
        body = token if begins_word else token.removeprefix(self.prefix)
        ends_word = bool(self.suffix) and body.endswith(self.suffix) and body != self.suffix
        body = body.removesuffix(self.suffix) if ends_word else body
        symbols = [(self.prefix if index or not begins_word else "") + char for index, char in enumerate(body)]
        if ends_word:
            symbols[-1] += self.suffix
        return symbols


@dataclass
class WordPieceRules:
    """WordPiece: the longest match, again and again; a word that cannot be matched to its end is unknown."""

    model: dict[str, Any]
    ids: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        self.ids = self.model["vocab"]
        self.prefix = self.model.get("continuing_subword_prefix") or ""
        self.max_characters = self.model.get("max_input_chars_per_word", 100)
        self.longest = max(map(len, self.ids))

    def always(self) -> set[int]:
        """The unknown token, all characters, and pieces with a character that is not a piece by itself."""
        forms = {token: self._characters(token) for token in self.ids}
        readable = {token for token, spelling in forms.items() if token not in spelling and spelling <= self.ids.keys()}
        return {id_ for token, id_ in self.ids.items() if token not in readable} | _unknown_id(self.model, self.ids)

    def parts(self, token: str) -> set[int]:
        """None: a piece is matched as a whole."""
        return set()

    def behind_unknown(self, words: Iterable[str]) -> set[int]:
        """Pieces matched before the first place without a match."""
        found: set[int] = set()
        for word in words:
            pieces: list[int] = []
            start = 0
            while start < len(word) <= self.max_characters:
                prefix = self.prefix if start else ""
                ends = range(min(len(word), start + self.longest), start, -1)
                end = next((end for end in ends if prefix + word[start:end] in self.ids), None)
                if end is None:
                    found.update(pieces)
                    break
                pieces.append(self.ids[prefix + word[start:end]])
                start = end
        return found

    def _characters(self, token: str) -> set[str]:
        """The pieces of one character that would spell a piece."""
        is_first = not self.prefix or not token.startswith(self.prefix)
        body = token if is_first else token.removeprefix(self.prefix)
        return {(self.prefix if index or not is_first else "") + char for index, char in enumerate(body)}


@dataclass
class UnigramRules:
    """Unigram: the path of the highest score."""

    model: dict[str, Any]
    ids: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        self.ids = {piece: index for index, (piece, _) in enumerate(self.model["vocab"])}

    def always(self) -> set[int]:
        """The unknown token, the piece of the lowest score, and either all bytes or all characters."""
        scores = [score for _, score in self.model["vocab"]]
        kept = {min(range(len(scores)), key=scores.__getitem__)}
        if self.model.get("unk_id") is not None:
            kept.add(self.model["unk_id"])
        if not self.model.get("byte_fallback"):
            kept |= {id_ for piece, id_ in self.ids.items() if not all(char in self.ids for char in piece)}
        return kept | _spelling(self.model, self.ids, {piece: piece for piece in self.ids if len(piece) == 1})

    def parts(self, token: str) -> set[int]:
        """None: a piece is taken as a whole."""
        return set()

    def behind_unknown(self, words: Iterable[str]) -> set[int]:
        """None: an unknown character takes no other with it."""
        return set()


def merge_pair(merge: str | list[str]) -> tuple[str, str]:
    """A merge, which older files spell as one string, as a pair."""
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right
