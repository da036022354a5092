"""Small tokenizers of each algorithm, trained on real text in six languages and four scripts."""

import json

import pytest

LANGUAGES = ["eng", "dan", "fao", "rus", "hin", "jpn"]
INSIDE = ["dan", "rus"]
ALGORITHMS = ("word_piece", "unigram", "byte_level", "byte_fallback")


def paragraphs(languages):
    from mmbert_hf.data import load_udhr

    return [text for item in load_udhr(languages).values() for text in item.paragraphs(range(8))]


@pytest.fixture(scope="session")
def corpus():
    return paragraphs(LANGUAGES)


@pytest.fixture(scope="session")
def inside():
    """What the vocabularies are trimmed to."""
    return paragraphs(INSIDE)


@pytest.fixture(scope="session")
def word_piece(corpus, tmp_path_factory):
    """As BERT has it, but not all characters are in the alphabet, so some words are unknown."""
    from tokenizers import BertWordPieceTokenizer
    from transformers import BertTokenizerFast

    trained = BertWordPieceTokenizer()
    trained.train_from_iterator(corpus, vocab_size=900, limit_alphabet=150, show_progress=False)
    path = str(tmp_path_factory.mktemp("word_piece") / "tokenizer.json")
    trained.save(path)
    return BertTokenizerFast(tokenizer_file=path, model_max_length=48)


@pytest.fixture(scope="session")
def unigram(corpus):
    """As XLM-R has it: special tokens in front, one behind, spaces as U+2581."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import XLMRobertaTokenizer

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer = trainers.UnigramTrainer(vocab_size=1200, special_tokens=special, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(corpus, trainer)
    vocabulary = [tuple(entry) for entry in json.loads(tokenizer.to_str())["model"]["vocab"]]
    return XLMRobertaTokenizer(vocab=vocabulary, model_max_length=48)


@pytest.fixture(scope="session")
def byte_level(corpus):
    """As Qwen has it: an added token behind the vocabulary ends every text."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=1000, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.add_special_tokens([AddedToken("<|endoftext|>", special=True, normalized=False)])
    end = ("<|endoftext|>", tokenizer.token_to_id("<|endoftext|>"))
    tokenizer.post_processor = processors.TemplateProcessing(single="$A <|endoftext|>", special_tokens=[end])
    options = {"pad_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "padding_side": "left"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=48, **options)


@pytest.fixture(scope="session")
def byte_fallback(corpus):
    from mmbert_hf import MMBertTokenizer

    return MMBertTokenizer.train(corpus, vocab_size=1200, model_max_length=48)


@pytest.fixture(params=ALGORITHMS)
def any_tokenizer(request):
    """Each of the four in turn."""
    return request.getfixturevalue(request.param)


SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
SIZES |= {"initializer_range": 0.2, "max_position_embeddings": 64}


@pytest.fixture(scope="session")
def make_model():
    """A function from the name of a model's class, its rows and options to the model, with weights of size 0.2."""

    def make(name: str, vocab_size: int, **options):
        import torch
        import transformers

        import mmbert_hf

        torch.manual_seed(0)
        home = mmbert_hf if name.startswith("MMBert") else transformers
        model_class = getattr(home, name)
        return model_class(model_class.config_class(**{**SIZES, **options}, vocab_size=vocab_size)).eval()

    return make


@pytest.fixture(scope="session")
def build_embedder(tmp_path_factory):
    """A function from a transformers model and a tokenizer to a SentenceTransformer on the CPU."""

    def build(encoder, tokenizer, **options):
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

        folder = tmp_path_factory.mktemp("embedder")
        encoder.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        modules = [Transformer(str(folder)), Pooling(encoder.config.hidden_size)]
        return SentenceTransformer(modules=modules, device="cpu", **options).eval()

    return build
