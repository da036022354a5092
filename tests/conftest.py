"""Shared by all tests: a small tokenizer over several scripts, tiny models, and tiny embedders of several families.

Weights of the embedders are large enough (0.2) that every term of a score shows. They are made anew for every test, since
pruning changes them in place.
"""

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest

SENTENCES = {
    "eng": ["All human beings are born free and equal in dignity and rights.", "No one shall be held in slavery."],
    "dan": ["Alle mennesker er født frie og lige i værdighed og rettigheder.", "Ingen må holdes i slaveri."],
    "fao": ["Øll menniskju eru fødd fræls og jøvn til virðingar.", "Eingin skal liva í trældómi."],
    "rus": ["Все люди рождаются свободными и равными.", "Никто не должен содержаться в рабстве."],
    "tir": ["ብመንፅር ክብርን መሰልን ኩሎም ሰባት እንትውለዱ ነፃን ማዕርን እዮም።"],
    "jpn": ["すべての人間は、生れながらにして自由である。"],
}


GEMMA = Path(
    os.environ.get("MMBERT_GEMMA2_TOKENIZER", Path(__file__).parents[1] / ".." / "shared" / "data" / "gemma2-tokenizer")
)


@pytest.fixture(scope="session")
def gemma_folder() -> Path:
    """The folder with the tokenizer of Gemma 2, which the published checkpoints have."""
    if not (GEMMA / "tokenizer.json").is_file():
        pytest.skip("set MMBERT_GEMMA2_TOKENIZER to a folder with Gemma 2's tokenizer.json")
    return GEMMA


@pytest.fixture(scope="session")
def sentences() -> dict[str, list[str]]:
    return SENTENCES


@pytest.fixture(scope="session")
def tokenizer():
    from mmbert_hf import MMBertTokenizer

    return MMBertTokenizer.train([text for texts in SENTENCES.values() for text in texts] * 3, vocab_size=420)


@pytest.fixture
def tiny_config(tokenizer):
    """Small enough for milliseconds, with weights large enough (0.08) that a wrong mask shows."""
    from mmbert_hf import MMBertConfig

    return MMBertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=128,
        local_attention=16,
        initializer_range=0.08,
    )


@pytest.fixture
def tiny_model(tiny_config):
    import torch

    from mmbert_hf import MMBertForMaskedLM

    torch.manual_seed(0)
    return MMBertForMaskedLM(tiny_config)


WORDS = (
    "free equal dignity rights slavery law person country work school freedom family property opinion peace music food "
    "health house child mother religion art science author language border court judge trial crime"
).split()


def sentence(seed: int, length: int) -> str:
    """Words in an order that depends on the seed alone."""
    return " ".join(WORDS[(seed * 7 + place * (seed % 5 + 2)) % len(WORDS)] for place in range(length))


@pytest.fixture(scope="session")
def make_triplets():
    """A function from a number, and a seed, to a dataset of triplets of different lengths."""

    def make(num_rows: int = 6, seed: int = 0):
        import datasets

        numbers = range(seed * 1000, seed * 1000 + num_rows)
        return datasets.Dataset.from_dict(
            {
                "anchor": [sentence(number, 2 + number % 3) for number in numbers],
                "positive": [sentence(number + 1, 5 + number % 4) for number in numbers],
                "negative": [sentence(number + 2, 4 + number % 7) for number in numbers],
            }
        )

    return make


@pytest.fixture(scope="session")
def word_piece(tmp_path_factory):
    """A WordPiece tokenizer as BERT has it, trained on the words above."""
    from tokenizers import BertWordPieceTokenizer
    from transformers import BertTokenizerFast

    trained = BertWordPieceTokenizer()
    trained.train_from_iterator([sentence(seed, 20) for seed in range(30)], vocab_size=200, show_progress=False)
    folder = tmp_path_factory.mktemp("word_piece")
    trained.save(str(folder / "tokenizer.json"))
    return BertTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), model_max_length=64)


@pytest.fixture(scope="session")
def byte_level():
    """A byte-level BPE tokenizer as Qwen has it: no special token in front, one at the end, padding on the left."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([sentence(seed, 20) for seed in range(30)], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <|endoftext|>", special_tokens=[("<|endoftext|>", tokenizer.token_to_id("<|endoftext|>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|endoftext|>",
        eos_token="<|endoftext|>",
        padding_side="left",
        model_max_length=64,
    )


@pytest.fixture(scope="session")
def build_embedder(tmp_path_factory):
    """A function from a transformers model and a tokenizer to a SentenceTransformer on the CPU."""

    def build(encoder, tokenizer, pooling: str = "mean", **options):
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

        folder = tmp_path_factory.mktemp("embedder")
        encoder.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        transformer = Transformer(str(folder))
        size = transformer.auto_model.config.hidden_size
        modules = [transformer, Pooling(size, pooling_mode=pooling), Normalize()]
        return SentenceTransformer(modules=modules, device="cpu", **options).eval()

    return build


SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "initializer_range": 0.2}


@pytest.fixture
def bert_embedder(build_embedder, word_piece):
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(**SIZES, vocab_size=len(word_piece), intermediate_size=48, max_position_embeddings=64)
    return build_embedder(BertModel(config), word_piece)


@pytest.fixture
def mpnet_embedder(build_embedder, word_piece):
    import torch
    from transformers import MPNetConfig, MPNetModel

    torch.manual_seed(0)
    config = MPNetConfig(
        **SIZES, vocab_size=len(word_piece), intermediate_size=48, max_position_embeddings=80, pad_token_id=0
    )
    return build_embedder(MPNetModel(config), word_piece)


@pytest.fixture
def xlm_roberta_embedder(build_embedder, word_piece):
    import torch
    from transformers import XLMRobertaConfig, XLMRobertaModel

    torch.manual_seed(0)
    config = XLMRobertaConfig(
        **SIZES, vocab_size=len(word_piece), intermediate_size=48, max_position_embeddings=80, pad_token_id=0
    )
    return build_embedder(XLMRobertaModel(config), word_piece)


@pytest.fixture
def modernbert_embedder(build_embedder, word_piece):
    import torch
    from transformers import ModernBertConfig, ModernBertModel

    torch.manual_seed(0)
    config = ModernBertConfig(
        **{**SIZES, "num_hidden_layers": 4},
        vocab_size=len(word_piece),
        intermediate_size=40,
        max_position_embeddings=64,
        local_attention=8,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=None,
        cls_token_id=None,
        sep_token_id=None,
    )
    return build_embedder(ModernBertModel(config), word_piece)


@pytest.fixture
def mmbert_embedder(build_embedder, tokenizer):
    import torch

    from mmbert_hf import MMBertConfig, MMBertModel

    torch.manual_seed(0)
    config = MMBertConfig(
        **{**SIZES, "num_hidden_layers": 4},
        vocab_size=len(tokenizer),
        intermediate_size=40,
        max_position_embeddings=64,
        local_attention=8,
    )
    return build_embedder(MMBertModel(config), tokenizer)


@pytest.fixture
def qwen3_embedder(build_embedder, byte_level):
    """A decoder with grouped heads whose projections are as wide as its feed-forward, last-token pooling, prompts."""
    import torch
    from transformers import Qwen3Config, Qwen3Model

    torch.manual_seed(0)
    config = Qwen3Config(
        **SIZES,
        vocab_size=len(byte_level),
        intermediate_size=48,
        head_dim=12,
        num_key_value_heads=2,
        max_position_embeddings=64,
        pad_token_id=byte_level.pad_token_id,
        bos_token_id=None,
        eos_token_id=byte_level.eos_token_id,
    )
    prompts = {"query": "find the law: ", "document": ""}
    return build_embedder(Qwen3Model(config), byte_level, "lasttoken", prompts=prompts)


EMBEDDERS = ("bert", "mpnet", "xlm_roberta", "modernbert", "mmbert", "qwen3")


@pytest.fixture(params=EMBEDDERS)
def embedder(request):
    """Each of the families in turn."""
    return request.getfixturevalue(f"{request.param}_embedder")


ENCODER_WORDS = ("free", "born", "equal", "dignity", "rights", "slavery")  # pieces of their own in the XLM-R below


@pytest.fixture(scope="session")
def encoders(tmp_path_factory, tokenizer):
    """A tiny XLM-R with a tokenizer of its own, and a tiny mmBERT, in folders."""
    import torch
    from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
    from tokenizers.models import Unigram
    from transformers import PreTrainedTokenizerFast, XLMRobertaConfig, XLMRobertaModel

    from mmbert_hf import MMBertConfig, MMBertModel

    folder = tmp_path_factory.mktemp("models")
    pieces = [
        "<s>",
        "<pad>",
        "</s>",
        "<unk>",
        *(f"\u2581{word}" for word in ENCODER_WORDS),
        *"abcdefghijklmnopqrstuvwxyz\u2581",
        "<mask>",
    ]
    backend = Tokenizer(Unigram([(piece, -float(place) / 10) for place, piece in enumerate(pieces)], unk_id=3))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    names = {"bos_token": "<s>", "eos_token": "</s>", "cls_token": "<s>", "sep_token": "</s>", "pad_token": "<pad>",
             "unk_token": "<unk>", "mask_token": "<mask>"}  # fmt: skip
    PreTrainedTokenizerFast(tokenizer_object=backend, **names).save_pretrained(folder / "xlm-r")
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    XLMRobertaModel(
        XLMRobertaConfig(vocab_size=len(pieces), **sizes, max_position_embeddings=70, type_vocab_size=1, pad_token_id=1)
    ).save_pretrained(folder / "xlm-r")
    MMBertModel(MMBertConfig(vocab_size=len(tokenizer), **sizes, initializer_range=0.05)).save_pretrained(
        folder / "mmbert"
    )
    tokenizer.save_pretrained(folder / "mmbert")
    return folder


@pytest.fixture
def process_as_it_was():
    """Verbs set up logging and progress bars for their process; called in a test's, they must not leave that behind."""
    import logging

    import datasets
    from transformers.utils import logging as transformers_logging

    loggers = [logging.getLogger(), logging.getLogger("mmbert_hf")]
    before = [(logger, logger.level, logger.handlers[:]) for logger in loggers]
    had_bars = datasets.are_progress_bars_disabled(), transformers_logging.is_progress_bar_enabled()
    yield
    for logger, level, handlers in before:
        logger.setLevel(level)
        logger.handlers[:] = handlers
    if not had_bars[0]:
        datasets.enable_progress_bars()
    if had_bars[1]:
        transformers_logging.enable_progress_bar()
