"""A tiny causal language model over a few words, whose samples differ and end at different lengths."""

import pytest

WORDS = ["<pad>", "<end>", "<user>", "<bot>", *"0123456789", "+", "=", "Answer:"]


@pytest.fixture(scope="session")
def word_tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<end>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<user>", "<bot>"]})
    tokenizer.chat_template = (
        "{% for message in messages %}<{{ message.role }}> {{ message.content }} {% endfor %}"
        "{% if add_generation_prompt %}<bot>{% if loud %} !{% endif %}{% endif %}"
    )
    return tokenizer


@pytest.fixture
def policy(word_tokenizer):
    """Weights large enough (0.3) that tokens are far from equally probable."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=word_tokenizer.eos_token_id,
        pad_token_id=word_tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LlamaForCausalLM(config).eval()


@pytest.fixture
def problems():
    from mmbert_hf.evaluation.samples import Problem

    return [
        Problem("one", "1 + 1 =", "2"),
        Problem("long", "1 + 2 + 3 + 4 + 5 =", "15"),
        Problem("short", "7", "7"),
        Problem("chat", [{"role": "user", "content": "2 + 3 ="}], "5"),
    ]
