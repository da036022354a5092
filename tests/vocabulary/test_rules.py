"""What each algorithm needs: parts of BPE tokens, pieces behind unknown words, the lowest Unigram score."""

import doctest
from importlib import import_module

import pytest
from tokenizers import Tokenizer, models

from mmbert_hf.vocabulary.rules import BYTE_TOKENS, rules_of


def bpe(merges, **options):
    characters = sorted({char for pair in merges for char in "".join(pair)})
    tokens = [*characters, *dict.fromkeys("".join(pair) for pair in merges)]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    return {"type": "BPE", "vocab": vocabulary, "merges": merges, **options}


def names(model, ids):
    return {token for token, id_ in model["vocab"].items() if id_ in ids}


def test_parts_are_those_of_the_one_derivation_that_bpe_takes():
    """abc can be a+bc or ab+c; the lower rank decides, and the other way is not kept."""
    model = bpe([("b", "c"), ("a", "b"), ("a", "bc"), ("ab", "c")])
    assert names(model, rules_of(model).parts("abc")) == {"a", "b", "c", "bc", "abc"}


def test_parts_of_a_repetition_go_from_left_to_right():
    model = bpe([("a", "a"), ("aa", "a"), ("a", "aa")])
    assert names(model, rules_of(model).parts("aaa")) == {"a", "aa", "aaa"}
    # The real implementation agrees on the way: without a+aa the result is the same.
    short = Tokenizer(models.BPE(vocab=model["vocab"], merges=[("a", "a"), ("aa", "a")]))
    assert short.encode("aaa").tokens == ["aaa"]


def test_a_token_that_merges_do_not_reach_has_no_parts():
    model = bpe([("a", "b")])
    model["vocab"]["ba"] = 9
    assert rules_of(model).parts("ba") == set()


def test_prefix_and_suffix_mark_characters_as_the_model_does():
    vocabulary = {"l": 0, "##o": 1, "##w</w>": 2, "##ow</w>": 3, "low</w>": 4, "</w>": 5}
    merges = [["##o", "##w</w>"], ["l", "##ow</w>"]]
    options = {"continuing_subword_prefix": "##", "end_of_word_suffix": "</w>"}
    model = {"type": "BPE", "vocab": vocabulary, "merges": merges, **options}
    assert Tokenizer(models.BPE(vocab=vocabulary, merges=[*map(tuple, merges)], **options)).encode("low").tokens == [
        "low</w>"
    ]
    assert names(model, rules_of(model).parts("low</w>")) == {"l", "##o", "##w</w>", "##ow</w>", "low</w>"}
    assert {0, 1, 2} <= rules_of(model).always()


def test_both_spellings_of_merges_are_read():
    model = bpe([("a", "b"), ("ab", "b")])
    old = {**model, "merges": ["a b", "ab b"]}
    assert rules_of(old).parts("abb") == rules_of(model).parts("abb")


def test_with_byte_fallback_only_characters_that_bytes_cannot_spell_stay():
    """Gemma 2 has no <0x09>: the tab itself must stay."""
    tokens = ["<unk>", *(token for token in BYTE_TOKENS if token != "<0x09>"), "\t", "a", "я"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    model = {"type": "BPE", "vocab": vocabulary, "merges": [], "byte_fallback": True, "unk_token": "<unk>"}
    assert names(model, set(vocabulary.values()) - rules_of(model).always()) == {"a", "я"}
    without = {**model, "byte_fallback": False}
    assert {"a", "я", "\t"} <= names(without, rules_of(without).always())


def test_word_piece_keeps_characters_and_what_they_cannot_spell():
    tokens = ["[UNK]", "a", "b", "##a", "##b", "ab", "##ba", "ac"]
    model = {"type": "WordPiece", "vocab": dict(zip(tokens, range(8), strict=True)), "unk_token": "[UNK]"}
    model["continuing_subword_prefix"] = "##"
    assert names(model, rules_of(model).always()) == {"[UNK]", "a", "b", "##a", "##b", "ac"}


def test_pieces_before_the_failure_of_an_unknown_word_are_found():
    tokens = ["[UNK]", "a", "ab", "##bcd"]
    vocabulary = dict(zip(tokens, range(4), strict=True))
    model = {"type": "WordPiece", "vocab": vocabulary, "unk_token": "[UNK]", "continuing_subword_prefix": "##"}
    real = Tokenizer(models.WordPiece(vocab=vocabulary, unk_token="[UNK]"))
    assert real.encode("abcd").tokens == ["[UNK]"]  # "ab", and then no "##cd"
    del vocabulary["ab"]
    assert Tokenizer(models.WordPiece(vocab=vocabulary, unk_token="[UNK]")).encode("abcd").tokens == ["a", "##bcd"]
    vocabulary["ab"] = 2
    assert rules_of(model).behind_unknown(["abcd", "a"]) == {2}
    assert rules_of({**model, "max_input_chars_per_word": 3}).behind_unknown(["abcd"]) == set()


def test_unigram_keeps_the_lowest_score_which_sets_that_of_unknown_characters():
    pieces = [("<", 0.0), ("a", -2.0), ("ab", -9.0), ("ba", -3.0), ("b", -4.0)]
    model = {"type": "Unigram", "vocab": [list(piece) for piece in pieces], "unk_id": 0, "byte_fallback": False}
    assert rules_of(model).always() == {0, 1, 2, 4}


def test_unigram_keeps_what_characters_cannot_spell():
    pieces = [("<", 0.0), ("a", -9.0), ("ab", -2.0), ("aa", -3.0)]
    model = {"type": "Unigram", "vocab": [list(piece) for piece in pieces], "unk_id": 0, "byte_fallback": False}
    assert rules_of(model).always() == {0, 1, 2}


@pytest.mark.parametrize("model", [{"type": "WordLevel"}, bpe([("a", "b")], dropout=0.1)])
def test_other_models_are_refused(model):
    with pytest.raises(ValueError, match=r"WordLevel|at random"):
        rules_of(model)


@pytest.mark.parametrize("module", ["embeddings", "plan", "rules", "tokenizer_json", "trimming"])
def test_docstring_examples(module):
    results = doctest.testmod(import_module(f"mmbert_hf.vocabulary.{module}"))
    assert results.failed == 0
    assert results.attempted > 0
