"""The language table: what a file may say, and which languages are active when."""

import doctest
import logging

import pytest

from mmbert_hf.data import table as table_module
from mmbert_hf.data.sources import Source
from mmbert_hf.data.table import LanguageEntry, LanguageTable, load_table

PHASES = ["pretrain", "extend", "decay"]
GOOD = """
# languages by the phase that they enter in
languages:
  eng: {source: data/eng/*.txt, share: 0.25, enters: pretrain}
  deu: {source: HuggingFaceFW/fineweb-2, config: deu_Latn, max_tokens: 2B, revision: main}
  dan: {source: dan.txt, enters: extend, text_column: body, max_tokens: 10}
  fao:
    source: [fao.txt, more.txt]
    enters: decay
    count: 5000000
"""


def write(folder, text):
    path = folder / "table.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_docstring_examples():
    assert doctest.testmod(table_module).failed == 0


def test_every_field_is_read(tmp_path):
    entries = load_table(write(tmp_path, GOOD)).entries
    assert list(entries) == ["eng", "deu", "dan", "fao"]
    assert entries["eng"] == LanguageEntry(Source("eng", f"{tmp_path}/data/eng/*.txt"), 0.25, "pretrain")
    deu = Source("deu", "hf://HuggingFaceFW/fineweb-2", "deu_Latn", revision="main", max_tokens=2_000_000_000)
    assert entries["deu"] == LanguageEntry(deu)
    assert entries["dan"].source == Source("dan", f"{tmp_path}/dan.txt", text_column="body", max_tokens=10)
    assert entries["fao"].source.locations == (f"{tmp_path}/fao.txt", f"{tmp_path}/more.txt")
    assert entries["fao"].count == 5_000_000


def test_languages_only_grow(tmp_path):
    table = load_table(write(tmp_path, GOOD))
    assert table.languages_in(PHASES) == [["eng", "deu"], ["eng", "deu", "dan"], ["eng", "deu", "dan", "fao"]]
    with pytest.raises(
        ValueError, match=r"'dan' enters in 'extend', but the phases are \['pretrain', 'extended'.*did you"
    ):
        table.languages_in(["pretrain", "extended", "decay"])
    late = LanguageTable({"fao": LanguageEntry(Source("fao", "fao.txt"), enters="decay")})
    with pytest.raises(ValueError, match="no language is active in the first phase, 'pretrain'"):
        late.languages_in(PHASES)


def test_paths_follow_the_table_and_not_the_working_folder(tmp_path, monkeypatch):
    """A folder owner/name beside the table is a path; the same name in the working folder is not looked at."""
    (tmp_path / "a" / "data" / "eng").mkdir(parents=True)
    (tmp_path / "b" / "owner" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "b")
    path = write(tmp_path / "a", "languages: {eng: {source: data/eng}, deu: {source: owner/name}}")
    entries = load_table("../a/table.yaml").entries
    assert entries["eng"].source.location.endswith("a/data/eng")
    assert entries["deu"].source.location == "hf://owner/name"
    monkeypatch.chdir(tmp_path)
    assert load_table(path).entries["eng"].source.files is not None
    assert load_table(path).entries["deu"] == entries["deu"]


def test_tokenise_gives_documents_and_counts(tmp_path, tokenizer, caplog):
    for code, text in {
        "eng": "all human beings\n" * 9,
        "fao": "øll menniskju\n",
        "dan": "alle mennesker\n" * 2,
    }.items():
        (tmp_path / f"{code}.txt").write_text(text, encoding="utf-8")
    path = write(
        tmp_path, "languages: {eng: {source: eng.txt, count: 1B}, fao: {source: [fao.txt, dan.txt], enters: decay}}"
    )
    table = load_table(path).with_language("dan", str(tmp_path / "dan.txt"), enters="decay", share=0.1)
    with caplog.at_level(logging.INFO):
        documents = table.tokenise(tokenizer, tmp_path / "cache")
    assert {code: len(found) for code, found in documents.items()} == {"eng": 9, "fao": 3, "dan": 2}
    assert table.counts(documents) == {
        "eng": 1e9,
        "fao": float(documents["fao"].num_tokens),
        "dan": float(documents["dan"].num_tokens),
    }
    assert table.shares == {"dan": 0.1}
    lines = [record.message for record in caplog.records if "languages:" in record.message]
    assert lines[1] == f"2 of 3 languages: fao, 3 documents, {documents['fao'].num_tokens} tokens"


def test_a_missing_file_is_found_before_anything_is_tokenised(tmp_path, tokenizer):
    (tmp_path / "eng.txt").write_text("all human beings\n")
    table = load_table(write(tmp_path, "languages: {eng: {source: eng.txt}, fao: {source: fao.txt}}"))
    with pytest.raises(FileNotFoundError, match=r"no file matches '.*fao.txt'"):
        table.tokenise(tokenizer, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_with_language_leaves_the_table_as_it_was():
    table = LanguageTable({"dan": LanguageEntry(Source("dan", "dan.txt"))})
    more = table.with_language("fao", ["a.txt", "b.txt"], enters="decay", max_tokens=7)
    assert list(table.entries) == ["dan"]
    assert more.entries["fao"] == LanguageEntry(Source("fao", ("a.txt", "b.txt"), max_tokens=7), enters="decay")
    for code, message in (("dan", "has 'dan' already"), ("dan_Latn", "'dan' and 'dan_Latn' name the same language")):
        with pytest.raises(ValueError, match=message):
            table.with_language(code, "x.txt")


@pytest.mark.parametrize(
    ("languages", "message"),
    [
        ("{fao: {source: a.txt}, dan: {source: b.txt}, fao: {source: c.txt}}", "'fao' comes twice, in lines 1 and 1"),
        ("\n  fao: {source: a.txt}\n  dan: {source: a.txt}\n  fao: {source: b.txt}", "in lines 2 and 4: drop one"),
        ("{fao: {source: a.txt, source: b.txt}}", "'source' comes twice"),
        ("{fao: {source: a.txt}, fao_Latn: {source: b.txt}}", "'fao' and 'fao_Latn' name the same language"),
        ("{fo: {source: a.txt}}", "language 'fo': unknown language code 'fo'.*did you mean 'fao'"),
        ("{no: {source: a.txt}}", "language False: a code must be a text, got False.*quotes"),
        ("{fao: {source: a.txt, shares: 0.1}}", "unknown field 'shares', expected one of .*did you mean 'share'"),
        ("{fao: {sorce: a.txt}}", "unknown field 'sorce'.*did you mean 'source'"),
        ("{fao: {source: a.txt, enter: decay}}", "unknown field 'enter'.*did you mean 'enters'"),
        ("{fao: {share: 0.1}}", "expected {source: ...} and perhaps more, got"),
        ("{fao: a.txt}", "expected {source: ...} and perhaps more, got 'a.txt'"),
        ("{fao: {source: []}}", r"source must be a path, a data set, or a list of them, got \[\]"),
        ("{fao: {source: 5}}", "source must be a path"),
        ("{fao: {source: a.txt, share: 1.5}}", "share of 'fao' must be above 0 and at most 1, got 1.5"),
        ("{fao: {source: a.txt, share: 0}}", "share of 'fao' must be above 0"),
        ("{fao: {source: a.txt, share: much}}", "share of 'fao' must be a number, got 'much'"),
        ("{fao: {source: a.txt, share: .7}, dan: {source: b.txt, share: .4}}", "shares sum to 1.1, expected at most 1"),
        ("{fao: {source: a.txt, max_tokens: many}}", "expected a number of tokens such as .* got 'many'"),
        ("{fao: {source: a.txt, count: 0}}", "expected a number of tokens such as .* got 0"),
        ("{fao: {source: a.txt, config: fao_Latn}}", "config of 'fao' .* is read from files"),
        ("{}", "the table has no languages"),
        ("", "expected one key `languages:`"),
        ("{fao: {source: a.txt}}\nphases: 3", r"expected one key `languages:` .* got \['languages', 'phases'\]"),
        ("{fao: {source: [a.txt}", "cannot be read"),
    ],
)
def test_bad_tables_are_refused_with_the_file(tmp_path, languages, message):
    path = write(tmp_path, f"languages: {languages}\n")
    with pytest.raises(ValueError, match=message) as caught:
        load_table(path)
    assert str(path) in str(caught.value)


def test_a_missing_table_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none.yaml does not exist: expected a YAML file"):
        load_table(tmp_path / "none.yaml")
