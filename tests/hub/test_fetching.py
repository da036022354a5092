"""Files of a model, and its tokenizer if there is one."""

import pytest
from transformers import BertConfig, BertModel

from mmbert_hf.hub.fetching import fetch_file, load_tokenizer


def test_a_file_of_a_folder(tmp_path):
    assert fetch_file(str(tmp_path), "config.json") is None
    (tmp_path / "config.json").write_text("{}")
    assert fetch_file(str(tmp_path), "config.json") == tmp_path / "config.json"


def test_a_tokenizer_is_never_made_up(tmp_path, tokenizer):
    """AutoTokenizer gives a BERT without one five special tokens."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=50, **sizes)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has no tokenizer, so nothing says what its tokens mean"):
        load_tokenizer(str(tmp_path))
    tokenizer.save_pretrained(tmp_path)
    assert load_tokenizer(str(tmp_path)).get_vocab() == tokenizer.get_vocab()
