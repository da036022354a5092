"""Trimmed tokenizers: same tokens inside, readable outside, ids in order, files that load without this package."""

import itertools
import json

import numpy as np
import pytest
from transformers import AutoTokenizer

from mmbert_hf.vocabulary import VocabularyPlan, apply_to_tokenizer, plan_trim, trim
from mmbert_hf.vocabulary.tokenizer_json import trimmed_model

OUTSIDE = ["All human beings", "すべての人間は", "Øll menniskju", "👋🏽 ꦄꦆ\t\n x", "सभी मनुष्यों"]


@pytest.fixture
def trimmed(any_tokenizer, inside):
    plan = plan_trim(any_tokenizer, inside)
    return any_tokenizer, apply_to_tokenizer(any_tokenizer, plan), plan


def test_inside_texts_have_the_same_tokens(trimmed, inside):
    old, new, plan = trimmed
    assert len(new) == plan.new_size < len(old) / 1.2
    pairs = [f"{one} {two}" for one, two in itertools.pairwise(inside)]
    for texts in (inside, [text[: len(text) // 2] for text in inside], [text.split(" ")[-1] for text in inside], pairs):
        for text, before, after in zip(texts, old(texts)["input_ids"], new(texts)["input_ids"], strict=True):
            expected = plan.new_ids[before]
            if text in inside or (expected >= 0).all():
                assert after == expected.tolist()
                assert new.convert_ids_to_tokens(after) == old.convert_ids_to_tokens(before)


def test_outside_texts_are_as_readable_as_before(trimmed, corpus):
    old, new, _ = trimmed
    for text in [*OUTSIDE, *corpus]:
        before, after = (tokenizer(text)["input_ids"] for tokenizer in (old, new))
        unknown = [
            (tokenizer.unk_token_id is not None, ids.count(tokenizer.unk_token_id))
            for tokenizer, ids in ((old, before), (new, after))
        ]
        assert unknown[1][1] <= unknown[0][1] or not unknown[0][0]
        if not unknown[0][1]:
            assert new.decode(after, skip_special_tokens=True) == old.decode(before, skip_special_tokens=True)


def test_an_unseen_script_goes_through_bytes(byte_fallback, inside):
    new = trim(byte_fallback, texts=inside)
    tokens = new.tokenize("ꦄ👋🏽")
    assert tokens == [f"<0x{byte:02X}>" for byte in "ꦄ👋🏽".encode()]
    dropped = "人"
    assert byte_fallback.tokenize(dropped) == [dropped]
    assert new.tokenize(dropped) == [f"<0x{byte:02X}>" for byte in dropped.encode()]


def test_a_word_that_was_never_seen_stays_decomposable(word_piece, inside):
    new = trim(word_piece, texts=inside)
    assert word_piece.tokenize("humanity")[0] not in new.get_vocab()
    assert "".join(piece.removeprefix("##") for piece in new.tokenize("humanity")) == "humanity"


def test_unknown_words_stay_unknown():
    """Of "abx" the longest start is "ab", and there is no "##x"; without "ab" it would be "a" and "##bx"."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: index for index, token in enumerate(["[UNK]", "a", "##b", "ab", "##bx", "##bb"])}
    backend = Tokenizer(models.WordPiece(vocab=vocabulary, unk_token="[UNK]"))
    old = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")
    new = trim(old, texts=["abx"])
    assert new.tokenize("abx") == old.tokenize("abx") == ["[UNK]"]
    assert set(vocabulary) - set(new.get_vocab()) == {"##bb"}
    assert trim(old, texts=["a"]).tokenize("abx") == ["a", "##bx"]


def test_ids_are_ranks_and_the_template_follows(trimmed):
    old, new, plan = trimmed
    assert new.convert_ids_to_tokens(range(len(new))) == old.convert_ids_to_tokens(plan.kept_ids.tolist())
    spec = new.backend_tokenizer.to_str()
    template = json.loads(spec)["post_processor"]
    for token in template["special_tokens"].values() if "special_tokens" in template else ():
        assert token["ids"] == [new.convert_tokens_to_ids(name) for name in token["tokens"]]
    assert new.pad_token_id == plan.new_ids[old.pad_token_id]
    assert new(["a", "a a a a"], padding=True)["input_ids"][0].count(new.pad_token_id) >= 1
    assert {entry["content"]: entry["id"] for entry in json.loads(spec)["added_tokens"]} == {
        token: new.convert_tokens_to_ids(token) for token in new.get_added_vocab()
    }


def test_saved_and_loaded_it_is_the_same(trimmed, inside, tmp_path):
    old, new, plan = trimmed
    new.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"tokenizer.json", "tokenizer_config.json"}
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert type(loaded) is type(old)
    assert len(loaded) == plan.new_size
    assert loaded.get_vocab() == new.get_vocab()
    assert loaded([*inside, *OUTSIDE])["input_ids"] == new([*inside, *OUTSIDE])["input_ids"]
    assert loaded.model_max_length == 48


def test_an_mmbert_tokenizer_stays_one_and_exports(byte_fallback, inside, tmp_path):
    new = trim(byte_fallback, texts=inside)
    new.save_portable(tmp_path)
    plain = AutoTokenizer.from_pretrained(tmp_path)
    assert type(plain) is not type(new) is type(byte_fallback)
    assert plain([*inside, *OUTSIDE])["input_ids"] == new([*inside, *OUTSIDE])["input_ids"]
    words = ["Alle", "mennesker"]
    assert new(words, is_split_into_words=True)["input_ids"] == new(" ".join(words))["input_ids"]


def test_the_given_tokenizer_is_not_changed(any_tokenizer, inside):
    before = any_tokenizer.backend_tokenizer.to_str(), any_tokenizer.get_vocab(), dict(any_tokenizer.init_kwargs)
    trim(any_tokenizer, texts=inside)
    after = any_tokenizer.backend_tokenizer.to_str(), any_tokenizer.get_vocab(), dict(any_tokenizer.init_kwargs)
    assert after == before


@pytest.mark.parametrize("kind", ["BertProcessing", "RobertaProcessing"])
def test_pair_processors_and_padding_get_new_ids(word_piece, kind):
    from tokenizers import Tokenizer, processors
    from transformers import PreTrainedTokenizerFast

    tokens = ["x", "[UNK]", "zz", "[CLS]", "z", "[SEP]", "y", "##x", "##y", "##z"]
    spec = json.loads(word_piece.backend_tokenizer.to_str())
    spec["model"]["vocab"] = {token: index for index, token in enumerate(tokens)}
    spec |= {"added_tokens": [], "post_processor": None}
    backend = Tokenizer.from_str(json.dumps(spec))
    backend.post_processor = processors.Sequence([getattr(processors, kind)(("[SEP]", 5), ("[CLS]", 3))])
    backend.enable_padding(pad_id=5, pad_token="[SEP]")
    old = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", pad_token="[SEP]")
    plan = plan_trim(old, ["x"])
    assert [tokens[id_] for id_ in plan.kept_ids] == [token for token in tokens if token != "zz"]
    new = apply_to_tokenizer(old, plan)
    assert new.backend_tokenizer.padding["pad_id"] == new.convert_tokens_to_ids("[SEP]") == 4
    assert new.convert_ids_to_tokens(new("x")["input_ids"]) == ["[CLS]", "x", "[SEP]"]


def test_merges_stay_with_their_parts_and_product():
    vocabulary = {token: index for index, token in enumerate(["a", "b", "c", "ab", "bc", "abc"])}
    model = {"type": "BPE", "vocab": vocabulary, "merges": ["a b", ["b", "c"], ["a", "bc"], ["ab", "c"]]}
    new = trimmed_model(model, np.array([0, 1, 2, 3, -1, 4]))
    assert new["merges"] == [("a", "b"), ("ab", "c")]
    assert new["vocab"] == {"a": 0, "b": 1, "c": 2, "ab": 3, "abc": 4}


def test_a_plan_that_drops_special_tokens_is_refused(any_tokenizer, inside):
    plan = plan_trim(any_tokenizer, inside)
    without = plan.kept_ids[plan.kept_ids != any_tokenizer.pad_token_id]
    with pytest.raises(ValueError, match="drops 1 special tokens"):
        apply_to_tokenizer(any_tokenizer, VocabularyPlan(without, plan.counts, plan.num_texts))


def test_a_plan_for_another_tokenizer_is_refused(word_piece, unigram, inside):
    with pytest.raises(ValueError, match=f"the tokenizer has {len(word_piece)}"):
        apply_to_tokenizer(word_piece, plan_trim(unigram, inside))


def test_the_unknown_piece_of_a_unigram_follows():
    pieces = [["a", -1.0], ["ab", -2.0], ["<unk>", 0.0]]
    new = trimmed_model({"type": "Unigram", "vocab": pieces, "unk_id": 2}, np.array([0, -1, 1]))
    assert new["vocab"][new["unk_id"]] == ["<unk>", 0.0]
