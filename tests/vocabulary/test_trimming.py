"""`trim` on whole models: equal embeddings, prompts, languages, one-time iterators, and the check at the end."""

import json

import numpy as np
import pytest
import torch

from mmbert_hf.vocabulary import apply_to_tokenizer, plan_trim, trim
from mmbert_hf.vocabulary.trimming import check_same_tokens

MODELS = {
    "MMBertModel": "byte_fallback",
    "BertModel": "word_piece",
    "XLMRobertaModel": "unigram",
    "Qwen2Model": "byte_level",
}
PROMPTS = {"query": "Søg: ", "document": ""}


@pytest.fixture(params=MODELS)
def embedder(request, make_model, build_embedder):
    tokenizer = request.getfixturevalue(MODELS[request.param])
    options = {"pad_token_id": tokenizer.pad_token_id}
    if request.param == "Qwen2Model":
        options |= {"num_key_value_heads": 1, "bos_token_id": None, "eos_token_id": tokenizer.eos_token_id}
    encoder = make_model(request.param, len(tokenizer), **options)
    return build_embedder(encoder, tokenizer, prompts=PROMPTS)


def test_embeddings_are_equal_to_the_bit(embedder, inside):
    small = trim(embedder, texts=inside)
    assert len(small.tokenizer) < len(embedder.tokenizer) / 1.2
    assert np.array_equal(small.encode(inside), embedder.encode(inside))
    assert np.array_equal(small.encode(inside, prompt_name="query"), embedder.encode(inside, prompt_name="query"))
    small_bytes, old_bytes = (sum(tensor.nbytes for tensor in model.parameters()) for model in (small, embedder))
    assert old_bytes - small_bytes == 4 * 32 * (len(embedder.tokenizer) - len(small.tokenizer))


def test_saved_and_loaded_it_is_the_same(embedder, inside, tmp_path):
    from sentence_transformers import SentenceTransformer

    small = trim(embedder, texts=inside)
    small.save_pretrained(str(tmp_path))
    loaded = SentenceTransformer(str(tmp_path), device="cpu")
    assert np.array_equal(loaded.encode(inside), small.encode(inside))
    assert not list(tmp_path.glob("vocab*")) + list(tmp_path.glob("merges*"))


def test_a_sentence_transformer_keeps_its_settings_and_the_given_one(embedder, inside):
    before = embedder.encode(inside)
    size, max_length = len(embedder.tokenizer), embedder.max_seq_length
    small = trim(embedder, texts=inside)
    assert type(small) is type(embedder)
    assert small.prompts == embedder.prompts
    assert small.max_seq_length == max_length
    assert [type(module) for module in small] == [type(module) for module in embedder]
    assert small[0].auto_model.config.vocab_size == len(small[0].tokenizer) == len(small.tokenizer)
    assert small[0].auto_model is not embedder[0].auto_model
    assert len(embedder.tokenizer) == embedder[0].auto_model.config.vocab_size == size
    assert np.array_equal(embedder.encode(inside), before)


def test_languages_are_their_declarations(byte_fallback):
    from mmbert_hf.data import load_udhr

    new = trim(byte_fallback, languages=["dan", "rus"])
    texts = [text for item in load_udhr(["dan", "rus"]).values() for text in item.paragraphs(range(31))]
    assert new.get_vocab() == trim(byte_fallback, texts=texts).get_vocab()


def test_an_iterator_is_checked_as_well_as_a_list(unigram, inside, monkeypatch):
    seen = []
    real = check_same_tokens

    def watched(old, new, plan, texts, **options):
        seen.extend(texts)
        real(old, new, plan, texts, **options)

    monkeypatch.setattr("mmbert_hf.vocabulary.trimming.check_same_tokens", watched)
    texts = [*inside, "line\nbreak\u2028 and \r\n", ""]
    new = trim(unigram, texts=(text for text in texts))
    assert seen == texts
    assert new.get_vocab() == trim(unigram, texts=texts).get_vocab()


def test_the_check_finds_a_tokenizer_that_splits_otherwise(byte_fallback, inside):
    plan = plan_trim(byte_fallback, inside)
    new = apply_to_tokenizer(byte_fallback, plan)
    check_same_tokens(byte_fallback, new, plan, inside)
    from tokenizers import Tokenizer

    spec = json.loads(new.backend_tokenizer.to_str())
    spec["model"]["merges"].reverse()
    new._tokenizer = Tokenizer.from_str(json.dumps(spec))
    with pytest.raises(RuntimeError, match="splits"):
        check_same_tokens(byte_fallback, new, plan, inside)


def test_with_rare_tokens_dropped_other_texts_are_equal(embedder, inside):
    """Frequent tokens only: texts made of them have equal embeddings, and the others are still read."""
    small = trim(embedder, texts=inside, min_count=3)
    plan = plan_trim(embedder.tokenizer, [*inside, *(PROMPTS["query"] + text for text in inside)], min_count=3)
    new_ids = plan.new_ids
    words = sorted({word for text in inside for word in text.split(" ")})[::4]
    whole = [word for word in words if (new_ids[embedder.tokenizer(word)["input_ids"]] >= 0).all()]
    assert 10 < len(whole) < len(words)
    assert np.array_equal(small.encode(whole), embedder.encode(whole))
    assert np.isfinite(small.encode(words)).all()


@pytest.mark.parametrize("given", [{}, {"texts": ["a"], "languages": ["eng"]}])
def test_one_source_of_text(word_piece, given):
    with pytest.raises(ValueError, match="either texts or languages"):
        trim(word_piece, **given)


def test_bad_languages(word_piece):
    with pytest.raises(ValueError, match="languages is empty"):
        trim(word_piece, languages=[])
    with pytest.raises(TypeError, match="must be a list of codes"):
        trim(word_piece, languages="eng")
    with pytest.raises(ValueError, match="lists what the corpus has"):
        trim(word_piece, languages=["qqq"])


def test_bad_texts(word_piece):
    with pytest.raises(TypeError, match="is a string"):
        trim(word_piece, texts="a text")
    with pytest.raises(TypeError, match="text 1 is 3"):
        trim(word_piece, texts=iter(["a", 3]))


def test_what_cannot_be_trimmed(word_piece, make_model):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from transformers.tokenization_python import PythonBackend

    static = SentenceTransformer(modules=[StaticEmbedding(word_piece, embedding_dim=8)], device="cpu")
    with pytest.raises(TypeError, match="first module of this SentenceTransformer is a StaticEmbedding"):
        trim(static, texts=["a"])
    with pytest.raises(TypeError, match="got a str, expected"):
        trim("some/model", texts=["a"])
    with pytest.raises(TypeError, match="got a Linear"):
        trim(torch.nn.Linear(2, 2), texts=["a"])
    model = make_model("BertModel", len(word_piece), pad_token_id=0)
    with pytest.raises(ValueError, match="no tokenizer of its own"):
        trim(model, texts=["a"])
    with pytest.raises(ValueError, match="goes with a transformers model"):
        trim(word_piece, tokenizer=word_piece, texts=["a"])

    class Slow(PythonBackend):
        vocab_size = 1

        def get_vocab(self):
            return {"a": 0}

    with pytest.raises(TypeError, match="Slow is not a fast tokenizer"):
        trim(Slow(), texts=["a"])
