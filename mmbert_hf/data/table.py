"""The language table: which languages a run has, where their documents are, and in which phase each enters::

    # languages by the phase that they enter in
    languages:
      eng: {source: data/eng/*.parquet, share: 0.25}
      deu: {source: HuggingFaceFW/fineweb-2, config: deu_Latn, max_tokens: 2B}
      fao: {source: [fao.jsonl, more.jsonl], enters: decay, count: 5000000}

Design decisions:

- A table is a value. `with_language` makes another one; nothing is opened before `tokenise`.
- YAML lets a key come twice and keeps the last one without a word. Here that is an error, and so are two codes of one
  language in one script, such as `fao` beside `fao_Latn`.
- Languages only grow: one that has entered stays to the end, as in mmBERT's annealed language learning.
- Paths are relative to the folder of the table, so a table moves together with its data.
"""

from __future__ import annotations

import difflib
import logging
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from mmbert_hf.data.sources import Source, looks_like_hub
from mmbert_hf.data.token_counts import parse_tokens
from mmbert_hf.data.token_documents import TokenDocuments
from mmbert_hf.languages import split_code

logger = logging.getLogger(__name__)

SOURCE_FIELDS = ("config", "split", "revision", "text_column", "max_tokens")


@dataclass(frozen=True)
class LanguageEntry:
    """One language of the table.

    Attributes:
        source: Where its documents are.
        share: Probability set by hand, in (0, 1]; None to follow the language temperature.
        enters: Name of the phase from which on it is active; None for the first.
        count: Size for the language temperature; None for the tokens that there are.

    Raises:
        ValueError: A share or count is out of range.

    Example:
        >>> LanguageEntry(Source("fao", "own.jsonl"), enters="decay").enters
        'decay'
    """

    source: Source
    share: float | None = None
    enters: str | None = None
    count: float | None = None

    def __post_init__(self) -> None:
        language = self.source.language
        if self.share is not None and not 0 < _number(self.share, f"share of {language!r}") <= 1:
            raise ValueError(f"the share of {language!r} must be above 0 and at most 1, got {self.share}")
        if self.count is not None and not 0 < _number(self.count, f"count of {language!r}") < math.inf:
            raise ValueError(f"the count of {language!r} must be above 0 and finite, got {self.count}")


@dataclass(frozen=True)
class LanguageTable:
    """Languages by code, in the order of the table.

    Attributes:
        entries: Code -> entry.

    Raises:
        ValueError: There are no languages, two codes name the same one, or the shares sum to more than 1.

    Example:
        >>> table = LanguageTable({"dan": LanguageEntry(Source("dan", "dan.txt"))})
        >>> table.with_language("fao", "fao.txt", enters="decay").languages_in(["pretrain", "decay"])
        [['dan'], ['dan', 'fao']]
    """

    entries: Mapping[str, LanguageEntry] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.entries:
            raise ValueError("the table has no languages: add at least one below `languages:`")
        _check_codes(list(self.entries))
        total = math.fsum(self.shares.values())
        if total > 1 + 1e-9:
            raise ValueError(f"the shares sum to {total:g}, expected at most 1: lower some of {self.shares}")

    @property
    def shares(self) -> dict[str, float]:
        """Code -> share, for the languages that have one set by hand."""
        return {code: entry.share for code, entry in self.entries.items() if entry.share is not None}

    def counts(self, documents: Mapping[str, TokenDocuments]) -> dict[str, float]:
        """Sizes for the language temperature.

        Args:
            documents: Code -> documents, as `tokenise` returns them.

        Returns:
            Code -> the declared size, or the number of tokens.

        Example:
            >>> table = LanguageTable({"dan": LanguageEntry(Source("dan", "dan.txt"))})
            >>> table.counts({"dan": TokenDocuments.from_arrays([[5, 6]])})
            {'dan': 2.0}
        """
        return {
            code: float(documents[code].num_tokens if entry.count is None else entry.count)
            for code, entry in self.entries.items()
        }

    def languages_in(self, phases: Sequence[str]) -> list[list[str]]:
        """Active languages of each phase.

        Args:
            phases: Names of the phases, in order.

        Returns:
            Per phase the codes, in the order of the table.

        Raises:
            ValueError: A language enters in no phase of these, or the first phase has none.

        Example:
            >>> LanguageTable({"dan": LanguageEntry(Source("dan", "dan.txt"))}).languages_in(["one", "two"])
            [['dan'], ['dan']]
        """
        phases = list(phases)
        for code, entry in self.entries.items():
            if entry.enters is not None and entry.enters not in phases:
                raise ValueError(
                    f"{code!r} enters in {entry.enters!r}, but the phases are {phases}" + _nearest(entry.enters, phases)
                )
        first = {code: phases.index(entry.enters) if entry.enters else 0 for code, entry in self.entries.items()}
        active = [[code for code, enters in first.items() if enters <= number] for number in range(len(phases))]
        if active and not active[0]:
            raise ValueError(f"no language is active in the first phase, {phases[0]!r}: let at least one enter there")
        return active

    def with_language(
        self,
        code: str,
        location: str | Sequence[str],
        *,
        enters: str | None = None,
        share: float | None = None,
        count: float | None = None,
        **source_fields: Any,
    ) -> LanguageTable:
        """This table and one more language.

        Args:
            code: Its code.
            location: As for `Source`; paths are relative to the working folder.
            enters: Phase that it enters in; None for the first.
            share: Probability set by hand.
            count: Size for the language temperature.
            **source_fields: `config`, `split`, `revision`, `text_column`, `max_tokens`, as for `Source`.

        Returns:
            The new table.

        Raises:
            ValueError: The language is there already, or a value is out of range.

        Example:
            >>> table = LanguageTable({"dan": LanguageEntry(Source("dan", "dan.txt"))})
            >>> list(table.with_language("fao", "fao.txt").entries)
            ['dan', 'fao']
        """
        if code in self.entries:
            raise ValueError(f"the table has {code!r} already: take it out there, or add the documents to its source")
        place = location if isinstance(location, str) else tuple(location)
        entry = LanguageEntry(Source(code, place, **source_fields), share, enters, count)
        return replace(self, entries={**self.entries, code: entry})

    def tokenise(
        self, tokenizer: Any, cache_dir: str | os.PathLike[str] | None = None, *, num_proc: int = 1
    ) -> dict[str, TokenDocuments]:
        """Tokenises every language, or opens what was tokenised before.

        Args:
            tokenizer: Tokenizer of transformers.
            cache_dir: As for `tokenize_source`.
            num_proc: As for `tokenize_source`.

        Returns:
            Code -> documents.

        Raises:
            FileNotFoundError: A language has no files; raised before any is tokenised.
            SourceError: A source broke too often.
            ValueError: Data are damaged.
        """
        from mmbert_hf.data.tokenising import TextEncoder, tokenize_source

        for entry in self.entries.values():
            entry.source.files()
        encoder = tokenizer if isinstance(tokenizer, TextEncoder) else TextEncoder(tokenizer)
        documents = {}
        for number, (code, entry) in enumerate(self.entries.items(), start=1):
            documents[code] = found = tokenize_source(entry.source, encoder, cache_dir, num_proc=num_proc)
            logger.info(
                "%d of %d languages: %s, %d documents, %d tokens",
                *(number, len(self.entries), code, len(found), found.num_tokens),
            )
        return documents


def load_table(path: str | os.PathLike[str]) -> LanguageTable:
    """Reads a language table.

    Args:
        path: YAML file, as the module docstring shows.

    Returns:
        The table, with paths relative to its folder made whole.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not YAML, has a key twice, an unknown field or language, or a value out of range.

    Example:
        >>> import pathlib, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp(), "table.yaml")
        >>> _ = path.write_text("languages:\\n  dan: {source: dan.txt, max_tokens: 2M}\\n")
        >>> load_table(path).entries["dan"].source.max_tokens
        2000000
    """
    import yaml

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: expected a YAML file with `languages:`")
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_strict_loader())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("languages"), dict) or len(content) > 1:
        got = sorted(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"{path}: expected one key `languages:` with codes below it, got {got}")
    entries = {}
    for code, values in content["languages"].items():
        try:
            entries[code] = _entry(code, values, path.parent)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}, language {code!r}: {error}") from error
    try:
        return LanguageTable(entries)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _entry(code: Any, values: Any, folder: Path) -> LanguageEntry:
    """One language of the YAML file."""
    if not isinstance(code, str):
        raise ValueError(
            f"a code must be a text, got {code!r}: YAML reads it as {type(code).__name__}, put it in quotes"
        )
    if not isinstance(values, dict):
        raise ValueError(f"expected {{source: ...}} and perhaps more, got {values!r:.60}")
    known = ("source", *SOURCE_FIELDS, *(f.name for f in fields(LanguageEntry) if f.name != "source"))
    for name in values:
        if name not in known:
            raise ValueError(f"unknown field {name!r}, expected one of {', '.join(known)}{_nearest(str(name), known)}")
    if "source" not in values:
        raise ValueError(f"expected {{source: ...}} and perhaps more, got {values!r:.60}")
    given = {name: value for name, value in values.items() if value is not None}
    for name in ("max_tokens", "count"):
        if name in given:
            given[name] = parse_tokens(given[name])
    places = given.pop("source", None)
    listed = [places] if isinstance(places, str) else places
    if not isinstance(listed, list) or not all(isinstance(place, str) and place for place in listed) or not listed:
        raise ValueError(f"source must be a path, a data set, or a list of them, got {places!r}")
    absolute = tuple(_resolve(place, folder) for place in listed)
    options = {name: given.pop(name) for name in SOURCE_FIELDS if name in given}
    return LanguageEntry(Source(code, absolute[0] if len(absolute) == 1 else absolute, **options), **given)


def _resolve(place: str, folder: Path) -> str:
    """A location that does not depend on the working folder: an absolute path, or hf://owner/name."""
    local = folder.absolute() / Path(place).expanduser()
    if place.startswith("hf://"):
        return place
    return f"hf://{place}" if looks_like_hub(place) and not local.exists() else str(local)


def _check_codes(codes: list[str]) -> None:
    """Refuses a language beside itself: without a script, a code stands for all scripts of the language."""
    seen: dict[str, str] = {}
    for code in codes:
        base, script = split_code(code)
        others = [other for other in seen if split_code(other)[0] == base]
        clash = [other for other in others if script is None or split_code(other)[1] is None]
        if clash:
            raise ValueError(f"{clash[0]!r} and {code!r} name the same language: drop one, or give both their scripts")
        seen[code] = base


def _strict_loader() -> Any:
    """A safe YAML loader that refuses a key that comes twice."""
    import yaml

    class StrictLoader(yaml.SafeLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            seen: dict[Any, int] = {}
            for key_node, _ in node.value:
                key, line = self.construct_object(key_node, deep=True), key_node.start_mark.line + 1
                if key in seen:
                    raise yaml.YAMLError(f"{key!r} comes twice, in lines {seen[key]} and {line}: drop one")
                seen[key] = line
            return super().construct_mapping(node, deep)

    return StrictLoader


def _nearest(name: str, names: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _number(value: Any, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"the {what} must be a number, got {value!r}")
    return float(value)
