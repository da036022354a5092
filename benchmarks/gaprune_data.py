"""Headword -> definition retrieval from two dictionaries that Debian packages: FOLDOC (computing) and WordNet (general).

Design decisions:

- One headword is one query, its definition the one relevant document; the documents of a split are its own definitions.
  A definition that names its headword would be found by string matching, so the headword is cut out of it.
- A split is decided by a hash of the headword, so that adding entries moves none: 50 % train (triplets, retraining),
  20 % selection (every choice is made here), 30 % test (looked at once, at the end).
- WordNet's lexicographer files are subject fields of a kind: animals and plants (05, 20) make a second domain.

Get the packages with ``apt-get download dict-foldoc wordnet-base`` and unpack them with ``dpkg-deb -x FILE FOLDER``.
"""

import gzip
import hashlib
import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

FOLDOC = Path("usr/share/dictd/foldoc.dict.dz")
WORDNET = Path("usr/share/wordnet")
SPLITS = (("train", 50), ("selection", 70), ("test", 100))
LIVING_THINGS = {"05", "20"}
MAX_WORDS = 20


@dataclass(frozen=True)
class Entry:
    """A headword and its definition, without the headword in it."""

    headword: str
    definition: str

    @property
    def split(self) -> str:
        """train, selection or test, by a hash of the headword."""
        bucket = int(hashlib.sha256(self.headword.lower().encode()).hexdigest()[:8], 16) % 100
        return next(name for name, end in SPLITS if bucket < end)


def read_foldoc(folder: Path) -> list[Entry]:
    """The entries of the Free On-line Dictionary of Computing: headword, first paragraph of the definition.

    Args:
        folder: Where ``dict-foldoc`` was unpacked.

    Returns:
        Entries in the order of the dictionary; entries that only point elsewhere are left out.
    """
    text = gzip.decompress((folder / FOLDOC).read_bytes()).decode("utf-8", errors="replace")
    entries: list[Entry | None] = []
    for block in re.split(r"\n(?=\S)", text):
        headword, _, body = block.partition("\n")
        paragraph = next((part for part in re.split(r"\n\s*\n", body) if part.strip()), "")
        entries.append(_entry(headword, re.sub(r"<[^>]*>", " ", paragraph, count=1)))
    return _unique(entry for entry in entries if entry is not None)


def read_foldoc_texts(folder: Path) -> list[str]:
    """The text of every entry in full, without the headwords: the corpus that somebody in the domain would search."""
    text = gzip.decompress((folder / FOLDOC).read_bytes()).decode("utf-8", errors="replace")
    bodies = (block.partition("\n")[2] for block in re.split(r"\n(?=\S)", text))
    return [words for body in bodies if (words := " ".join(re.sub(r"[{}]", "", body).split()))]


def read_wordnet(folder: Path) -> dict[str, list[Entry]]:
    """The noun glosses of WordNet: the two lexicographer files on living things, and all others.

    Args:
        folder: Where ``wordnet-base`` was unpacked.

    Returns:
        ``living`` and ``general``, in the order of the database. Examples in quotation marks are cut off.
    """
    living: list[Entry] = []
    general: list[Entry] = []
    for line in (folder / WORDNET / "data.noun").read_text(encoding="latin-1").splitlines():
        if line.startswith("  "):
            continue
        fields, _, gloss = line.partition(" | ")
        _, lexicographer_file, _, _, word = fields.split(" ")[:5]
        entry = _entry(word.replace("_", " "), gloss.split('; "')[0])
        if entry:
            (living if lexicographer_file in LIVING_THINGS else general).append(entry)
    return {"living": _unique(living), "general": _unique(general)}


def _entry(headword: str, definition: str) -> Entry | None:
    headword = headword.strip()
    definition = re.sub(r"[{}]", "", definition)
    definition = re.sub(re.escape(headword), "", definition, flags=re.IGNORECASE) if len(headword) > 1 else definition
    words = definition.split()[:MAX_WORDS]
    return Entry(headword, " ".join(words)) if headword and len(words) >= 5 else None


def _unique(entries: Iterable[Entry]) -> list[Entry]:
    """The first entry of every headword and of every definition."""
    seen: set[str] = set()
    kept = []
    for entry in entries:
        names = {entry.headword.lower(), entry.definition.lower()}
        if not names & seen:
            kept.append(entry)
            seen |= names
    return kept


def read_domains(folder: Path) -> dict[str, tuple[list[Entry], list[Entry]]]:
    """Both domains, each with the general entries.

    Args:
        folder: Where ``dict-foldoc`` and ``wordnet-base`` were unpacked.

    Returns:
        ``computing`` and ``living``: entries of the domain, and of WordNet's other nouns.
    """
    wordnet = read_wordnet(folder)
    return {
        "computing": (read_foldoc(folder), wordnet["general"]),
        "living": (wordnet["living"], wordnet["general"]),
    }


def in_split(entries: Sequence[Entry], split: str, number: int | None = None, seed: int = 0) -> list[Entry]:
    """The entries of a split, or some of them by seed."""
    chosen = [entry for entry in entries if entry.split == split]
    return chosen if number is None else random.Random(f"{seed} {split}").sample(chosen, number)


def triplets(entries: Sequence[Entry], seed: int) -> dict[str, list[str]]:
    """Columns anchor, positive, negative: the negative is the definition of another entry, by seed."""
    shift = random.Random(seed).randrange(1, len(entries))
    return {
        "anchor": [entry.headword for entry in entries],
        "positive": [entry.definition for entry in entries],
        "negative": [entries[(place + shift) % len(entries)].definition for place in range(len(entries))],
    }
