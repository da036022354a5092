"""The tokenizer: layout, template, mask, training, pre-split words, files."""

import copy
import json
import os
import pickle
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from mmbert_hf import special_tokens
from mmbert_hf.tokenization import MODEL_MAX_LENGTH, MMBertTokenizer
from mmbert_hf.tokenizer_backend import BYTE_TOKENS, TRAINING_WORD, frequent_characters, gemma_backend

SENTENCES = [
    "All human beings are born free and equal in dignity and rights.",
    "Tous les êtres humains naissent libres et égaux en dignité et en droits.",
    "Alle mennesker er født frie og lige i værdighed og rettigheder.",
    "Все люди рождаются свободными и равными в своём достоинстве и правах.",
    "सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता और समानता प्राप्त है।",
    "يولد جميع الناس أحرارًا متساوين في الكرامة والحقوق.",
    "すべての人間は、生れながらにして自由であり、かつ、尊厳と権利とについて平等である。",
    "มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกันในเกียรติศักดิ์และสิทธิ",
    "모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다.",
    "ብመንፅር ክብርን መሰልን ኩሎም ሰባት እንትውለዱ ነፃን ማዕርን እዮም።",
    "Vedtatt 10. desember 1948 (217 A): 30 artikler, in 1948.",
]
GEMMA = Path(
    os.environ.get("MMBERT_GEMMA2_TOKENIZER", Path(__file__).parents[1] / ".." / "shared" / "data" / "gemma2-tokenizer")
)
needs_gemma = pytest.mark.skipif(
    not (GEMMA / "tokenizer.json").is_file(),
    reason="set MMBERT_GEMMA2_TOKENIZER to a folder with Gemma 2's tokenizer.json",
)


def train(**kwargs) -> MMBertTokenizer:
    return MMBertTokenizer.train(SENTENCES * 3, **{"vocab_size": 700, "limit_alphabet": 200, **kwargs})


@pytest.fixture(scope="module")
def trained() -> MMBertTokenizer:
    return train()


@pytest.fixture
def tokenizer(trained) -> MMBertTokenizer:
    """A copy that a test may change."""
    return copy.deepcopy(trained)


@pytest.fixture(scope="module")
def gemma() -> MMBertTokenizer:
    return MMBertTokenizer.from_pretrained(GEMMA)


# Layout and template


def test_special_tokens_have_the_ids_of_the_layout(trained):
    assert special_tokens.SPECIAL_TOKEN_IDS == {"<pad>": 0, "<eos>": 1, "<bos>": 2, "<unk>": 3, "<mask>": 4}
    ids = [
        trained.pad_token_id,
        trained.eos_token_id,
        trained.bos_token_id,
        trained.unk_token_id,
        trained.mask_token_id,
    ]
    assert ids == [0, 1, 2, 3, 4]
    assert (trained.cls_token, trained.cls_token_id) == ("<bos>", 2)
    assert (trained.sep_token, trained.sep_token_id) == ("<eos>", 1)
    assert sorted(trained.all_special_ids) == [0, 1, 2, 3, 4]


def test_template_of_one_text_and_of_a_pair(trained):
    first = trained.encode("free", add_special_tokens=False)
    second = trained.encode("and equal", add_special_tokens=False)
    assert trained.encode("free") == [2, *first, 1]
    assert trained.encode("free", "and equal") == [2, *first, 1, *second, 1]
    assert trained.num_special_tokens_to_add() == 2
    assert trained.num_special_tokens_to_add(pair=True) == 3
    assert trained.max_len_single_sentence == MODEL_MAX_LENGTH - 2
    assert set(trained("free", "and")) == {"input_ids", "attention_mask"}
    assert set(trained("free", "and", return_token_type_ids=True)["token_type_ids"]) == {0}


def test_padding_is_on_the_right(trained):
    batch = trained(["born", SENTENCES[0]], padding=True)
    length = len(trained.encode("born"))
    assert batch["input_ids"][0][:length] == trained.encode("born")
    assert set(batch["input_ids"][0][length:]) == {0}
    assert batch["attention_mask"][0] == [1] * length + [0] * (len(batch["input_ids"][1]) - length)


def test_truncation_leaves_room_for_special_tokens(trained):
    content = trained.encode(SENTENCES[0], add_special_tokens=False)
    assert trained.encode(SENTENCES[0], truncation=True, max_length=8) == [2, *content[:6], 1]
    windows = trained(SENTENCES[0], truncation=True, max_length=8, stride=2, return_overflowing_tokens=True)
    for number, window in enumerate(windows["input_ids"]):
        assert window == [2, *content[4 * number : 4 * number + 6], 1]
    assert windows["overflow_to_sample_mapping"] == [0] * len(windows["input_ids"])


def test_offsets_point_into_the_text(trained):
    text = "All human 🦄 beings"
    encoded = trained(text, return_offsets_mapping=True)
    assert "".join(text[start:end] for start, end in dict.fromkeys(encoded["offset_mapping"])) == text
    assert len(encoded["offset_mapping"]) == len(encoded["input_ids"])


def test_template_can_be_changed_after_loading(tokenizer):
    tokenizer.add_eos_token = False
    assert tokenizer.encode("free")[0] == 2
    assert tokenizer.encode("free")[-1] != 1
    tokenizer.padding_side = "left"
    assert tokenizer(["a", SENTENCES[0]], padding=True)["input_ids"][0][0] == 0


# Mask


def test_mask_takes_the_space_before_it(trained):
    left, right = trained.encode("rights are", add_special_tokens=False), trained.encode(".", add_special_tokens=False)
    assert trained.encode("rights are <mask>.") == [2, *left, 4, *right, 1]
    assert trained.tokenize("are <mask>.")[-2:] == ["<mask>", "."]
    after = trained.encode(" and", add_special_tokens=False)
    assert trained.encode("<mask> and", add_special_tokens=False) == [4, *after]
    assert trained.decode([2, 4, 1], skip_special_tokens=True) == ""
    assert trained.get_special_tokens_mask([2, 4, 300, 1], already_has_special_tokens=True) == [1, 1, 0, 1]


def test_filling_the_mask_with_its_token_gives_the_text_back(trained):
    ids = trained.encode("free and equal in dignity")
    position = trained.convert_ids_to_tokens(ids).index("▁and")
    filled = trained.encode("free <mask> equal in dignity")
    assert filled[position] == 4
    filled[position] = ids[position]
    assert filled == ids


# Errors


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"<pad>": "<bos>", "<bos>": "<pad>"}, r"'<pad>': 2.*'<bos>': 0"),
        ({"<mask>": "<mass>"}, r"expected .*'<mask>': 4.*found .*'<mask>': None"),
    ],
)
def test_a_vocabulary_in_another_order_is_an_error(trained, tmp_path, change, message):
    trained.save_pretrained(tmp_path)
    content = (tmp_path / "tokenizer.json").read_text(encoding="utf-8")
    document = json.loads(content)
    document["model"]["vocab"] = {change.get(token, token): i for token, i in document["model"]["vocab"].items()}
    for token in document["added_tokens"]:
        token["content"] = change.get(token["content"], token["content"])
    document["post_processor"] = None
    (tmp_path / "tokenizer.json").write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        MMBertTokenizer.from_pretrained(tmp_path)


def test_another_pipeline_is_an_error(trained):
    backend = copy.deepcopy(trained.backend_tokenizer)
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    with pytest.raises(ValueError, match="normalizes 'a b' to '▁a▁b'"):
        MMBertTokenizer(tokenizer_object=backend)
    vocabulary = {token: index for index, token in enumerate([*special_tokens.SPECIAL_TOKEN_IDS, "a"])}
    with pytest.raises(ValueError, match="byte fallback"):
        MMBertTokenizer(tokenizer_object=Tokenizer(models.BPE(vocab=vocabulary, merges=[])))
    with pytest.raises(ValueError, match=re.escape("mask_token is '<mask>' in mmBERT's layout, got '[MASK]'")):
        MMBertTokenizer(tokenizer_object=trained.backend_tokenizer, mask_token="[MASK]")


def test_a_folder_without_tokenizer_is_an_error(tmp_path):
    (tmp_path / "tokenizer_config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"no tokenizer\.json"):
        MMBertTokenizer.from_pretrained(tmp_path)


# Round trips and copies


@pytest.mark.parametrize(
    "text",
    [
        *SENTENCES,
        "",
        " ",
        "  two  spaces ",
        "🦄 👩🏽‍💻 unseen ☃︎",
        "control \x00\x01\x7f\x85 characters\tand\r\nlines\n\n",
        "<0x41> is no byte",
        "אבג ᚠᚢᚦ 𒀀𒀁 zero\u200bwidth \u3000ideographic",
    ],
)
def test_decoding_gives_the_text_back(trained, text):
    ids = trained.encode(text, add_special_tokens=False)
    assert trained.decode(ids) == text
    assert special_tokens.UNK_TOKEN_ID not in ids
    assert trained.decode(trained.encode(text), skip_special_tokens=True) == text


def test_batch_is_single_by_single(trained):
    assert trained(SENTENCES)["input_ids"] == [trained(text)["input_ids"] for text in SENTENCES]


def test_copies_and_pickles_are_the_same_tokenizer(trained):
    for twin in (copy.deepcopy(trained), pickle.loads(pickle.dumps(trained))):
        assert type(twin) is MMBertTokenizer
        assert twin(SENTENCES)["input_ids"] == trained(SENTENCES)["input_ids"]
        assert twin.encode("are <mask>")[-2:] == [4, 1]


def test_encoding_words_leaves_the_pickle_as_it_was(tokenizer):
    tokenizer("a")
    before = pickle.dumps(tokenizer)
    tokenizer(["a", "b"], is_split_into_words=True)
    assert pickle.dumps(tokenizer) == before


def test_added_tokens_come_last(tokenizer):
    size = len(tokenizer)
    assert tokenizer.add_tokens(["<lang:tir>"]) == 1
    assert len(tokenizer) == size + 1
    assert tokenizer.encode("<lang:tir>", add_special_tokens=False) == [size]


# Training


def test_vocabulary_has_specials_bytes_characters_merges(trained):
    tokens = trained.convert_ids_to_tokens(list(range(len(trained))))
    assert len(trained) == trained.vocab_size == 700
    assert tokens[:5] == list(special_tokens.SPECIAL_TOKEN_IDS)
    assert tokens[5:261] == BYTE_TOKENS
    assert tokens[261:461] == frequent_characters(SENTENCES, 200)
    assert all(len(token) > 1 for token in tokens[461:])
    assert [token.content for token in trained.added_tokens_decoder.values()] == tokens[:5]


def test_no_token_crosses_words_or_digits(trained):
    learned = trained.convert_ids_to_tokens(list(range(261, 700)))
    assert not [token for token in learned if re.search("[^▁]▁|▁▁|[0-9].|[a-z][.,]", token)]
    assert "▁and" in learned


def test_whole_lines_give_the_tokens_of_single_words(trained):
    learner = copy.deepcopy(trained.backend_tokenizer)
    learner.pre_tokenizer = pre_tokenizers.Split(Regex(TRAINING_WORD), "isolated")
    for text in [*SENTENCES, "a  b\tc ▁▁ d'é 12345 (x)  "]:
        assert trained.encode(text) == learner.encode(text).ids


def test_rare_characters_are_spelled_in_bytes():
    tokenizer = train(limit_alphabet=40, vocab_size=400)
    assert tokenizer.tokenize("ま") == ["<0xE3>", "<0x81>", "<0xBE>"]
    assert tokenizer.tokenize("e") == ["e"]


def test_training_repeats_itself_in_another_process(tmp_path):
    code = (
        "import sys; from mmbert_hf.tokenization import MMBertTokenizer\n"
        "texts = sys.stdin.buffer.read().decode().splitlines()\n"
        "tokenizer = MMBertTokenizer.train(texts * 3, 700, limit_alphabet=200)\n"
        "sys.stdout.buffer.write(tokenizer.backend_tokenizer.to_str().encode())"
    )
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, input="\n".join(SENTENCES).encode(), capture_output=True, check=True, timeout=120)
    assert json.loads(run.stdout) == json.loads(train().backend_tokenizer.to_str())


def test_training_takes_batches_of_texts_and_extra_tokens(trained):
    batches = [SENTENCES[:5], SENTENCES[5:]] * 3
    assert MMBertTokenizer.train(batches, 700, limit_alphabet=200).get_vocab() == trained.get_vocab()
    tokenizer = train(extra_special_tokens=["<query>"], model_max_length=128)
    assert len(tokenizer) == 700
    assert tokenizer.encode("<query>", add_special_tokens=False) == [699]
    assert tokenizer.model_max_length == 128


def test_train_new_from_iterator_keeps_pipeline_and_settings():
    parent = train(extra_special_tokens=["<query>"], model_max_length=128)
    child = parent.train_new_from_iterator(iter(SENTENCES), 500, new_special_tokens=["<passage>"], min_frequency=1)
    assert type(child) is MMBertTokenizer
    assert len(child) == 500
    assert child.model_max_length == 128
    assert child.encode("<query><passage>") == [2, 498, 499, 1]
    assert not [token for token in child.get_vocab() if "▁" in token[1:]]
    with pytest.raises(ValueError, match="cannot be renamed"):
        parent.train_new_from_iterator(SENTENCES, 500, special_tokens_map={"<mask>": "[MASK]"})


def test_training_refuses_what_cannot_work(caplog):
    with pytest.raises(TypeError, match="is a string"):
        MMBertTokenizer.train("one text", 700)
    with pytest.raises(ValueError, match="vocabulary of 261 has room for 0"):
        train(vocab_size=261, limit_alphabet=None)
    with pytest.raises(ValueError, match="limit_alphabet is 200"):
        train(vocab_size=400, limit_alphabet=200)
    small = MMBertTokenizer.train(["ab ab"], 1000)
    assert len(small) < 300
    assert f"the texts gave {len(small)} tokens" in caplog.text


# Pre-split words


def random_words(generator: random.Random) -> list[str]:
    parts = ["a", "human", " ", "  ", "▁", "▁▁", "\n", "\t", "", "<mask>", "é", "2", "人間", ".", "🦄", "x ", " y"]
    return ["".join(generator.choices(parts, k=generator.randrange(4))) for _ in range(generator.randrange(7))]


def assert_words_are_the_joined_text(tokenizer: MMBertTokenizer, samples: list[list[str]]) -> None:
    joined = [" ".join(words) for words in samples]
    expected = tokenizer(joined)["input_ids"]
    assert tokenizer(samples, is_split_into_words=True)["input_ids"] == expected
    assert [tokenizer(words, is_split_into_words=True)["input_ids"] for words in samples] == expected
    pairs = tokenizer(samples, samples[::-1], is_split_into_words=True)["input_ids"]
    assert pairs == tokenizer(joined, joined[::-1])["input_ids"]
    tuples = tokenizer([(a, b) for a, b in zip(samples, samples[::-1], strict=True)], is_split_into_words=True)
    assert tuples["input_ids"] == pairs


def test_words_give_the_tokens_of_the_joined_text(trained):
    assert_words_are_the_joined_text(trained, [text.split(" ") for text in SENTENCES])


def test_odd_words_give_the_tokens_of_the_joined_text(trained):
    generator = random.Random(0)
    samples = [random_words(generator) for _ in range(500)]
    # As a word of its own, a mask takes spaces only: see mmbert_hf.presplit.
    samples = [words for words in samples if not re.search(r"[\n\t]\s*<mask>", " ".join(words))]
    assert len(samples) > 400
    assert_words_are_the_joined_text(trained, samples)


def test_the_plain_class_still_needs_the_fix(trained, tmp_path):
    trained.save_portable(tmp_path)
    plain = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    words = SENTENCES[0].split(" ")
    assert plain(words, is_split_into_words=True)["input_ids"] != trained(words, is_split_into_words=True)["input_ids"]


def test_word_ids_and_offsets_of_words(trained):
    words = ["All", "human", "🦄", "", "beings", "<mask>", "1948"]
    encoded = trained(words, is_split_into_words=True, return_offsets_mapping=True)
    found = {}
    for word, (start, end) in zip(encoded.word_ids(), encoded["offset_mapping"], strict=True):
        if word is not None:
            found.setdefault(word, set()).update(range(start, end))
    # Every character of every word is covered by a token with that word's index, and none beyond.
    assert found == {index: set(range(len(word))) for index, word in enumerate(words) if word}
    assert encoded.word_ids()[0] is None
    assert encoded.word_ids()[-1] is None


def test_offsets_of_words_in_pairs_windows_and_tensors(trained):
    words, other = SENTENCES[0].split(" "), SENTENCES[1].split(" ")
    options = {"is_split_into_words": True, "return_offsets_mapping": True, "truncation": "only_second"}
    limit = len(trained(words, is_split_into_words=True)["input_ids"]) + 8
    windows = trained([words, words], [other, other], max_length=limit, return_overflowing_tokens=True, **options)
    assert len(windows["input_ids"]) > 4
    for row in range(len(windows["input_ids"])):
        columns = (
            windows.sequence_ids(row),
            windows.word_ids(row),
            windows["offset_mapping"][row],
            windows["input_ids"][row],
        )
        for text, word, (start, end), token in zip(*columns, strict=True):
            if word is not None:
                piece = (words, other)[text][word][start:end]
                assert trained.convert_ids_to_tokens(token).lstrip("▁") in {piece, *BYTE_TOKENS}
    options["truncation"] = False
    tensors = trained(words, padding="max_length", max_length=limit, return_tensors="np", **options)
    assert tensors["offset_mapping"].shape == (1, limit, 2)
    assert tensors["input_ids"].shape == (1, limit)
    assert tensors["offset_mapping"][0, 1].tolist() == list(windows["offset_mapping"][0][1])


def test_words_that_tokens_could_cross_are_an_error(tokenizer):
    tokenizer.add_tokens(["New York"])
    with pytest.raises(ValueError, match=r"reach across words, such as \['New York'\]"):
        tokenizer(["New", "York"], is_split_into_words=True)
    vocabulary = {token: index for index, token in enumerate([*special_tokens.SPECIAL_TOKEN_IDS, "a", "▁", "a▁"])}
    crossing = MMBertTokenizer(tokenizer_object=gemma_backend(vocabulary, [("a", "▁")]))
    with pytest.raises(ValueError, match="a▁"):
        crossing(["a", "a"], is_split_into_words=True)


def test_wrong_words_are_an_error(trained):
    with pytest.raises(TypeError, match="lists of words, got the string 'All human'"):
        trained("All human", is_split_into_words=True)
    with pytest.raises(TypeError, match=r"words must be strings, got \[7\]"):
        trained([["All", 7]], is_split_into_words=True)
    with pytest.raises(ValueError, match="got 1 for 2"):
        trained([["a"], ["b"]], [["c"]], is_split_into_words=True)


# Files


def test_saved_and_loaded(trained, tmp_path):
    trained(SENTENCES, padding=True, truncation=True, max_length=16)
    trained.save_pretrained(tmp_path)
    document = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    assert document["padding"] is None
    assert document["truncation"] is None
    loaded = MMBertTokenizer.from_pretrained(tmp_path)
    assert loaded(SENTENCES, SENTENCES)["input_ids"] == trained(SENTENCES, SENTENCES)["input_ids"]
    assert loaded.model_max_length == MODEL_MAX_LENGTH
    assert loaded.backend_tokenizer.to_str() == trained.backend_tokenizer.to_str()
    plain = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert plain(SENTENCES, SENTENCES)["input_ids"] == trained(SENTENCES, SENTENCES)["input_ids"]


@pytest.mark.parametrize("model_type", [None, "modernbert"])
def test_portable_folder_needs_only_transformers(trained, tmp_path, model_type):
    extra = train(extra_special_tokens=["<query>"])
    files = extra.save_portable(tmp_path / "new")
    assert sorted(Path(file).name for file in files) == ["tokenizer.json", "tokenizer_config.json"]
    config = json.loads((tmp_path / "new" / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert "auto_map" not in config
    if model_type:
        (tmp_path / "new" / "config.json").write_text(json.dumps({"model_type": model_type}))
    plain = AutoTokenizer.from_pretrained(tmp_path / "new")
    assert not isinstance(plain, MMBertTokenizer)
    text = [*SENTENCES, "are <mask>.", "<query> a"]
    assert plain(text, text, padding=True).data == extra(text, text, padding=True).data
    for name in ("cls_token_id", "sep_token_id", "mask_token_id", "pad_token_id", "padding_side", "model_max_length"):
        assert getattr(plain, name) == getattr(extra, name)
    assert plain.model_input_names == ["input_ids", "attention_mask"]
    assert plain.all_special_ids == extra.all_special_ids
    again = MMBertTokenizer.from_pretrained(tmp_path / "new")
    assert again(text, padding=True).data == extra(text, padding=True).data


def google_style_folder(tokenizer: MMBertTokenizer, folder: Path, tokenizer_class: str) -> Path:
    """Save with everything that Google's file has otherwise: left padding, no <eos>, a mask that is not special."""
    backend = gemma_backend(
        json.loads(tokenizer.backend_tokenizer.to_str())["model"]["vocab"],
        [tuple(pair) for pair in json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]],
    )
    document = json.loads(backend.to_str())
    document["added_tokens"][4]["special"] = False
    document["padding"] = {
        "strategy": {"Fixed": 9},
        "direction": "Left",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "<pad>",
    }
    (folder / "tokenizer.json").write_text(json.dumps(document), encoding="utf-8")
    decoder = {str(token["id"]): {k: v for k, v in token.items() if k != "id"} for token in document["added_tokens"]}
    config = {
        "tokenizer_class": tokenizer_class,
        "add_bos_token": True,
        "add_eos_token": False,
        "padding_side": "left",
        "added_tokens_decoder": decoder,
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "model_max_length": 10**30,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.mark.parametrize("tokenizer_class", ["GemmaTokenizer", "PreTrainedTokenizerFast", "MMBertTokenizer"])
def test_the_file_does_not_decide_template_padding_and_mask(trained, tmp_path, tokenizer_class):
    loaded = MMBertTokenizer.from_pretrained(google_style_folder(trained, tmp_path, tokenizer_class))
    assert loaded.backend_tokenizer.encode("a").ids == trained.encode("a")  # the file would pad to 9 tokens
    text = [SENTENCES[0], "are <mask>."]
    assert loaded(text, text, padding=True).data == trained(text, text, padding=True).data
    assert loaded.model_max_length == MODEL_MAX_LENGTH
    assert loaded.decode([4], skip_special_tokens=True) == ""
    assert loaded.added_tokens_decoder[4] == AddedToken("<mask>", lstrip=True, normalized=False, special=True)
    assert loaded.added_tokens_decoder[4].lstrip
    assert len(loaded) == len(trained)


@needs_gemma
def test_gemma_file_keeps_the_ids_of_text(gemma):
    raw = Tokenizer.from_file(str(GEMMA / "tokenizer.json"))
    assert len(gemma) == 256000
    for text in [*SENTENCES, "  a\n\n b\t", "🦄"]:
        assert gemma.encode(text) == [2, *raw.encode(text, add_special_tokens=False).ids, 1]
        assert gemma.decode(gemma.encode(text), skip_special_tokens=True) == text
    assert gemma.tokenize("Paris is <mask>.") == ["Paris", "▁is", "<mask>", "."]
    assert gemma(["a", "a b c"], padding=True)["input_ids"][0][-2:] == [0, 0]
    assert gemma.model_max_length == MODEL_MAX_LENGTH


@needs_gemma
def test_gemma_words_give_the_tokens_of_the_joined_text(gemma):
    assert_words_are_the_joined_text(gemma, [text.split(" ") for text in SENTENCES])
    generator = random.Random(0)
    samples = [random_words(generator) for _ in range(200)]
    assert_words_are_the_joined_text(
        gemma, [words for words in samples if not re.search(r"[\n\t]\s*<mask>", " ".join(words))]
    )


def test_the_hub_is_not_asked_about_large_vocabularies(trained, monkeypatch):
    asked = []
    monkeypatch.setattr("transformers.utils.hub.hf_api", lambda: asked.append("hub"))
    monkeypatch.setattr("transformers.tokenization_utils_tokenizers.is_offline_mode", lambda: False)
    vocabulary = {**trained.get_vocab(), **{f"filler{i}": len(trained) + i for i in range(100_001 - len(trained))}}
    large = MMBertTokenizer(tokenizer_object=gemma_backend(vocabulary, []), name_or_path="someone/some-model")
    assert len(large) > 100_000
    assert not asked
