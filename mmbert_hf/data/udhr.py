"""Corpora: the Universal Declaration of Human Rights in 430 languages, and files of one's own.

Design decisions:

- The embedded corpus (`udhr.jsonl.xz`, 1.5 MB, made by `tools/pack_udhr.py`) is parallel: every text has the same
  thirty articles, and nearly every one a preamble. It is large enough to show that the pipeline works and small enough
  to run anywhere; it is no training set for a useful model.
- Articles 26 to 30 are held out for evaluation, in all languages at once: a text held out in one language and seen in
  another would leak through the parallel corpus. No held-out paragraph occurs among the training paragraphs.
- For retrieval between languages the unit is the paragraph. Articles divide into the same paragraphs in nearly every
  translation (`PARAGRAPHS_PER_ARTICLE`); where a translation divides one otherwise, that article is not used for that
  language, because its paragraphs cannot be told apart without reading it.
- All languages have about the same amount of text. Whoever wants unequal sizes has to impose them.

Known defects, left as they are: articles 12 and 13 of Waama (`wwa`) are the same text, article 23 of Mon (`mnw`) ends
with a copy of article 24, Pintupi-Luritja (`piu`) is a free retelling (its refrain is left out), and a few texts have
stray characters from scanning.
"""

from __future__ import annotations

import difflib
import json
import lzma
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

from mmbert_hf.languages import get_language, hub_code

NUM_ARTICLES = 30
# 0 is the preamble.
TRAINING_ARTICLES = tuple(range(26))
HELD_OUT_ARTICLES = (26, 27, 28, 29, 30)
# Usual number of paragraphs in articles 1 to 30: what most texts of the corpus have.
PARAGRAPHS_PER_ARTICLE = (
    *(1, 2, 1, 1, 1, 1, 1, 1, 1, 1),
    *(2, 1, 2, 2, 2, 3, 2, 1, 1, 2),
    *(3, 1, 4, 1, 2, 3, 2, 1, 3, 1),
)


@dataclass(frozen=True)
class Declaration:
    """The Declaration in one language.

    Attributes:
        language: Key in the corpus: ISO 639-3 code, with the script (`srp_Cyrl`) where the corpus has several.
        name: Name of the language, with the variety where the source gives it.
        script: ISO 15924 code.
        direction: "ltr" or "rtl".
        articles: 31 tuples of paragraphs: the preamble, which may be empty, and articles 1 to 30, which are not.

    Example:
        >>> from mmbert_hf.data import load_udhr
        >>> faroese = load_udhr(["fao"])["fao"]
        >>> faroese.name, faroese.script, faroese.direction
        ('Faroese', 'Latn', 'ltr')
        >>> faroese.text([3])
        'Ein og hvør hevur rætt til lív, frælsi og persónliga trygd.'
    """

    language: str
    name: str
    script: str
    direction: str
    articles: tuple[tuple[str, ...], ...]

    def paragraphs(self, articles: Iterable[int]) -> list[str]:
        """Paragraphs of some articles.

        Args:
            articles: Article numbers, 0 for the preamble, in the order wanted.

        Returns:
            The paragraphs, one string each.

        Raises:
            ValueError: There is no such article.

        Example:
            >>> from mmbert_hf.data import HELD_OUT_ARTICLES, load_udhr
            >>> english = load_udhr(["eng"])["eng"]
            >>> len(english.paragraphs(HELD_OUT_ARTICLES))
            10
            >>> english.paragraphs([4, 3])[1]
            'Everyone has the right to life, liberty and the security of person.'
        """
        numbers = _check_articles(articles, first=0)
        return [paragraph for number in numbers for paragraph in self.articles[number]]

    def text(self, articles: Iterable[int]) -> str:
        """Paragraphs of some articles as one string, one paragraph a line.

        Args:
            articles: Article numbers, 0 for the preamble, in the order wanted.

        Returns:
            The text.

        Raises:
            ValueError: There is no such article.

        Example:
            >>> from mmbert_hf.data import load_udhr
            >>> load_udhr(["eng"])["eng"].text([3, 4]).count("\\n")
            1
        """
        return "\n".join(self.paragraphs(articles))


def load_udhr(languages: Sequence[str] | None = None) -> dict[str, Declaration]:
    """Loads the embedded corpus, or some languages of it. The file is parsed once per process.

    Args:
        languages: Codes such as `fao` or `srp_Cyrl`. The script may be given where it is not needed (`fao_Latn`), and
            must be given where the corpus has several texts of a language. None for the whole corpus.

    Returns:
        Code, as it was asked for -> text, in the order asked for (by code for the whole corpus).

    Raises:
        TypeError: `languages` is one string, not a list.
        ValueError: The corpus has no such text, or several, or the same one is asked for twice.

    Example:
        >>> from mmbert_hf.data import load_udhr
        >>> list(load_udhr(["fao", "srp_Cyrl"]))
        ['fao', 'srp_Cyrl']
        >>> load_udhr(["srp"])
        Traceback (most recent call last):
            ...
        ValueError: the corpus has Serbian in several scripts: replace 'srp' by 'srp_Cyrl' or 'srp_Latn'
    """
    corpus = _corpus()
    if languages is None:
        return dict(corpus)
    if isinstance(languages, str):
        raise TypeError(f"languages must be a list of codes, got the string {languages!r}: write [{languages!r}]")
    asked: dict[str, str] = {}
    for code in languages:
        key = _resolve(code)
        if key in asked:
            raise ValueError(f"{asked[key]!r} and {code!r} name the same text: drop one of them")
        asked[key] = code
    return {code: corpus[key] for key, code in asked.items()}


def aligned_paragraphs(declarations: Mapping[str, Declaration], articles: Iterable[int]) -> list[dict[str, str]]:
    """Paragraphs that are translations of each other, for bitext retrieval.

    An item is one paragraph of one article. A language takes part in the items of an article if its translation has
    the usual number of paragraphs there (module docstring), whatever languages are compared.

    Args:
        declarations: Language -> text, as `load_udhr` returns them.
        articles: Article numbers, 1 to 30.

    Returns:
        One dictionary per item, language -> paragraph, in the order of the articles. All items of the article list are
        there; one that no language has is empty.

    Raises:
        ValueError: There is no such article, or 0: preambles are not aligned.

    Example:
        >>> from mmbert_hf.data import HELD_OUT_ARTICLES, aligned_paragraphs, load_udhr
        >>> items = aligned_paragraphs(load_udhr(["eng", "fao"]), HELD_OUT_ARTICLES)
        >>> len(items), sorted(items[0])
        (10, ['eng', 'fao'])
        >>> items[2]["eng"]
        'Parents have a prior right to choose the kind of education that shall be given to their children.'
    """
    items: list[dict[str, str]] = []
    for number in _check_articles(articles, first=1):
        usual = PARAGRAPHS_PER_ARTICLE[number - 1]
        fitting = {
            language: declaration.articles[number]
            for language, declaration in declarations.items()
            if len(declaration.articles[number]) == usual
        }
        items += [{language: article[place] for language, article in fitting.items()} for place in range(usual)]
    return items


def read_corpus(path: str | os.PathLike[str]) -> list[str]:
    """Reads documents from a file of one's own.

    Args:
        path: A `.jsonl` file (one JSON object a line, the document in its field `text`), or a plain text file with one
            document a line. UTF-8; blank lines are skipped.

    Returns:
        The documents, stripped of surrounding white space.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is a `.json` file, is empty, is not UTF-8 or has a malformed line.

    Example:
        >>> import pathlib, tempfile
        >>> from mmbert_hf.data import read_corpus
        >>> path = pathlib.Path(tempfile.mkdtemp(), "own.jsonl")
        >>> _ = path.write_text('{"text": "Góðan dag"}', encoding="utf-8")
        >>> read_corpus(path)
        ['Góðan dag']
    """
    path = Path(path)
    if not path.is_file():
        state = "is a folder" if path.is_dir() else "does not exist"
        raise FileNotFoundError(f"{path} {state}: expected a text file with one document a line, or a .jsonl file")
    if path.suffix.lower() == ".json":
        raise ValueError(f"{path} is a .json file: write one object a line and name it .jsonl")
    lines = _decode(path).replace("\r\n", "\n").replace("\r", "\n").split("\n")
    numbered = [(number, line.strip()) for number, line in enumerate(lines, start=1) if line.strip()]
    if not numbered:
        raise ValueError(f"{path} has no text: expected one document a line")
    if path.suffix.lower() == ".jsonl":
        return [_json_document(path, number, line) for number, line in numbered]
    return [line for _, line in numbered]


def _decode(path: Path) -> str:
    """The file's text; a byte order mark is dropped."""
    data = path.read_bytes()
    try:
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        guess = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "cp1252"
        raise ValueError(
            f"{path} is not UTF-8: byte {data[error.start]:#04x} at offset {error.start}; convert it, for example with "
            f"`iconv -f {guess} -t utf-8` (name the encoding that it was written in)"
        ) from error


def _json_document(path: Path, number: int, line: str) -> str:
    """The document of one JSONL line."""
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {number}: not JSON ({error}); expected one object a line") from error
    text = record.get("text") if isinstance(record, dict) else None
    if not isinstance(text, str) or not text.strip():
        found = f"fields {sorted(record)}" if isinstance(record, dict) else f"{type(record).__name__}"
        raise ValueError(
            f"{path}, line {number}: expected an object with a non-empty string in the field 'text', got {found}"
        )
    return text.strip()


def _check_articles(articles: Iterable[int], first: int) -> list[int]:
    """The article numbers as a list, all of them from `first` to 30."""
    numbers = list(articles)
    wrong = [number for number in numbers if number not in range(first, NUM_ARTICLES + 1)]
    if wrong:
        raise ValueError(f"articles must be numbers from {first} to {NUM_ARTICLES}, got {wrong}")
    return numbers


@cache
def _corpus() -> dict[str, Declaration]:
    """The whole corpus by key. The first line of the file is its provenance."""
    packed = files("mmbert_hf").joinpath("data", "udhr.jsonl.xz").read_bytes()
    records = [json.loads(line) for line in lzma.decompress(packed).decode("utf-8").split("\n")[1:] if line]
    return {
        record["language"]: Declaration(
            language=record["language"],
            name=record["name"],
            script=record["script"],
            direction=record["direction"],
            articles=tuple(tuple(article) for article in record["articles"]),
        )
        for record in records
    }


def _resolve(code: str) -> str:
    """The key of the text that `code` names."""
    corpus = _corpus()
    if code in corpus:
        return code
    listing = "sorted(load_udhr()) lists what the corpus has"
    try:
        language = get_language(code)
    except ValueError as error:
        raise ValueError(f"{error}; {listing}") from error
    texts = {key: text for key, text in corpus.items() if key.split("_")[0] == language.code}
    for key, text in texts.items():
        if text.script == language.script:
            return key
    keys = " or ".join(repr(key) for key in texts)
    if language.script is None and texts:
        raise ValueError(f"the corpus has {language.name} in several scripts: replace {code!r} by {keys}")
    if texts:
        scripts = " and ".join(text.script for text in texts.values())
        raise ValueError(f"the corpus has {language.name} in {scripts} only: replace {code!r} by {keys}")
    related = [key for key in corpus if hub_code(key) == language.hub_code]
    if not related:
        by_name = {get_language(key).name: key for key in corpus}
        close = difflib.get_close_matches(language.name, by_name, cutoff=0.85)
        related = [by_name[name] for name in by_name if name.startswith(f"{language.name} ") or name in close]
    hint = f"; close to it: {', '.join(repr(key) for key in related)}" if related else ""
    raise ValueError(f"the corpus has no text in {language.name} ({code!r}){hint}; {listing}")
