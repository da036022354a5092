"""Pack triplets of noun, definition and another noun's definition from WordNet into one compressed JSONL file.

    python tools/pack_wordnet.py --source DIR --out mmbert_hf/data/wordnet_triplets.jsonl.xz

The source is the unpacked Debian package `wordnet-base` (WordNet 3.0): ``apt-get download wordnet-base`` and
``dpkg-deb -x wordnet-base_*.deb DIR``; a folder with `data.noun` in it will do. The first line of the output is a header
record (source, version, counts, the licence whole); every other line is one triplet:

    {"domain": "living", "split": "train", "anchor": "ant", "positive": "social insect living in ...", "negative": ...}

Decisions, in the order they are applied:

1. One entry per synset: its first word with spaces for underscores, and its gloss without examples, at most `MAX_WORDS`
   words of it. The headword is cut out of the gloss where it is a word of it; a gloss that still holds the letters of
   the headword ("ant" in "plant"), or a quotation mark, or fewer than `MIN_WORDS` words, is left out. So are a headword
   of fewer than three letters, and the second entry of the same headword or gloss.
2. The lexicographer files of animals and plants (`LIVING_THINGS`) are the domain "living", all others "general".
3. A hash of the headword decides the split: 50 % train, 20 % selection, 30 % test.
4. Synsets of one first hypernym are a family. Families are taken whole, in the order of a hash, until a domain has
   `ROWS_PER_DOMAIN` rows: taken one by one, most synsets would have lost their siblings.
5. The negative is the gloss of a sibling in the same split, else of another synset of the same lexicographer file in the
   same split, chosen by a seeded draw among those without the headword in them.

The output depends on the source alone: a second run writes the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import lzma
import random
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

DATA_FILE = Path("usr/share/wordnet/data.noun")
LIVING_THINGS = {"05", "20"}
SPLITS = (("train", 50), ("selection", 70), ("test", 100))  # ends, in percent
ROWS_PER_DOMAIN = 6000
MIN_WORDS = 5
MAX_WORDS = 32
HYPERNYMS = ("@", "@i")  # of a class, of an instance


@dataclass(frozen=True)
class Entry:
    """A synset: its first word, its gloss without that word, its lexicographer file and its first hypernym."""

    headword: str
    gloss: str
    file: str
    hypernym: str

    @property
    def domain(self) -> str:
        """living or general."""
        return "living" if self.file in LIVING_THINGS else "general"

    @property
    def split(self) -> str:
        """train, selection or test."""
        bucket = digest(self.headword.lower()) % 100
        return next(name for name, end in SPLITS if bucket < end)

    @property
    def family(self) -> tuple[str, str]:
        """Lexicographer file and hypernym; a synset without hypernym is a family of its own."""
        return self.file, self.hypernym or self.headword


def digest(text: str) -> int:
    """A number that the text alone decides, on every machine."""
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16)


def parse_line(line: str) -> Entry | None:
    """The entry of one line of `data.noun` (wndb(5WN)); None if it is left out."""
    fields, _, gloss = line.partition(" | ")
    parts = fields.split()
    num_words = int(parts[3], 16)
    pointers = parts[4 + 2 * num_words + 1 :]
    hypernym = next(
        (target for symbol, target in zip(pointers[::4], pointers[1::4], strict=True) if symbol in HYPERNYMS), ""
    )
    headword = parts[4].replace("_", " ")
    gloss = cut_out(headword, gloss.split('; "')[0])
    is_usable = len(headword) >= 3 and '"' not in gloss and headword.lower() not in gloss.lower()
    return Entry(headword, gloss, parts[1], hypernym) if is_usable and len(gloss.split()) >= MIN_WORDS else None


def cut_out(headword: str, gloss: str) -> str:
    """The gloss without the headword and its plural, tidied and shortened."""
    gloss = re.sub(rf"(?<!\w){re.escape(headword)}(e?s)?(?!\w)", " ", gloss, flags=re.IGNORECASE)
    gloss = re.sub(r"\(\s*\)", " ", gloss)
    gloss = re.sub(r"\s+([;:,.)])", r"\1", " ".join(gloss.split()))
    return " ".join(gloss.split()[:MAX_WORDS]).strip(" ;:,.-")


def unique(entries: Iterable[Entry]) -> Iterator[Entry]:
    """The first entry of every headword and of every gloss."""
    seen: set[str] = set()
    for entry in entries:
        names = {entry.headword.lower(), entry.gloss.lower()}
        if not names & seen:
            seen |= names
            yield entry


def take_families(entries: Sequence[Entry], num_rows: int) -> list[Entry]:
    """Whole families until there are enough rows, in the order of the source."""
    sizes = Counter(entry.family for entry in entries)
    taken: set[tuple[str, str]] = set()
    total = 0
    for family in sorted(sizes, key=lambda family: (digest(" ".join(family)), family)):
        if total >= num_rows:
            break
        taken.add(family)
        total += sizes[family]
    return [entry for entry in entries if entry.family in taken]


def with_negatives(entries: Sequence[Entry]) -> Iterator[tuple[Entry, str, bool]]:
    """Each entry with the gloss of another one, and whether that is a sibling. An entry for which none fits is left out."""
    by_family: dict[tuple, list[Entry]] = defaultdict(list)
    by_file: dict[tuple, list[Entry]] = defaultdict(list)
    for entry in entries:
        by_family[entry.split, entry.family].append(entry)
        by_file[entry.split, entry.file].append(entry)
    for entry in entries:
        for group in (by_family[entry.split, entry.family], by_file[entry.split, entry.file]):
            glosses = [
                other.gloss
                for other in group
                if other is not entry and entry.headword.lower() not in other.gloss.lower()
            ]
            if glosses:
                yield (
                    entry,
                    random.Random(entry.headword).choice(glosses),
                    group is by_family[entry.split, entry.family],
                )
                break


def read_source(source: Path) -> tuple[list[Entry], str]:
    """All usable entries, and the licence text at the top of the file."""
    path = next((path for path in (source / DATA_FILE, source / DATA_FILE.name) if path.is_file()), None)
    if path is None:
        sys.exit(f"{source} holds no {DATA_FILE}: expected the unpacked Debian package wordnet-base")
    lines = path.read_text(encoding="latin-1").splitlines()
    # The licence stands in front, its lines numbered.
    notice = [re.sub(r"^\s+\d+ ?", "", line).rstrip() for line in lines if line.startswith("  ")]
    entries = (parse_line(line) for line in lines if line and not line.startswith("  "))
    return list(unique(entry for entry in entries if entry)), "\n".join(notice).strip()


def pack(source: Path, out: Path) -> None:
    """Writes the compressed triplets and prints what is in them."""
    entries, notice = read_source(source)
    version = re.search(r"WordNet (\d+\.\d+) Copyright", notice)
    if version is None:
        sys.exit(f"{source}: the licence at the top of data.noun names no version of WordNet")
    records = []
    num_siblings = 0
    for domain in ("living", "general"):
        chosen = take_families([entry for entry in entries if entry.domain == domain], ROWS_PER_DOMAIN)
        for entry, negative, is_sibling in with_negatives(chosen):
            texts = {"anchor": entry.headword, "positive": entry.gloss, "negative": negative}
            records.append({"domain": domain, "split": entry.split, **texts})
            num_siblings += is_sibling
    counts = Counter(f"{record['domain']} {record['split']}" for record in records)
    header = {"source": "WordNet", "version": version[1], "rows": dict(sorted(counts.items())), "license": notice}
    lines = [json.dumps(record, ensure_ascii=False, separators=(",", ":")) for record in [header, *records]]
    data = "".join(line + "\n" for line in lines).encode("utf-8")
    out.write_bytes(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME))
    print(f"{len(entries)} usable synsets, {len(records)} triplets: {dict(sorted(counts.items()))}")
    print(f"{num_siblings / max(len(records), 1):.1%} of the negatives are siblings")
    print(f"{out}: {out.stat().st_size} bytes ({len(data)} uncompressed)")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--source", type=Path, required=True, help="unpacked Debian package wordnet-base")
    parser.add_argument("--out", type=Path, required=True, help="file to write, *.jsonl.xz")
    arguments = parser.parse_args()
    pack(arguments.source, arguments.out)


if __name__ == "__main__":
    main()
