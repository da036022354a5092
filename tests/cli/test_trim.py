"""``mmbert trim``: text that stays inside has the same tokens and the same logits."""

import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer

from mmbert_hf.cli import main


def test_trimmed_to_texts(folder, logits, tmp_path, sentences, capsys):
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(sentences["fao"]))
    assert main(["trim", str(folder), "--texts", str(texts), "--output-dir", str(tmp_path / "small"), "--quiet"]) == 0
    said = capsys.readouterr().out
    before, after = len(AutoTokenizer.from_pretrained(folder)), len(AutoTokenizer.from_pretrained(tmp_path / "small"))
    assert after < before
    assert f"{before:,} tokens -> {after:,}; written to" in said
    model = AutoModelForMaskedLM.from_pretrained(tmp_path / "small")
    assert model.get_input_embeddings().weight.shape[0] == after
    text = sentences["fao"][1]
    old, new = (AutoTokenizer.from_pretrained(each) for each in (folder, tmp_path / "small"))
    assert new.tokenize(text) == old.tokenize(text)
    kept = old.convert_tokens_to_ids(new.tokenize(text)), new.convert_tokens_to_ids(new.tokenize(text))
    ours, theirs = logits(folder, text)[..., kept[0]], logits(tmp_path / "small", text)[..., kept[1]]
    torch.testing.assert_close(theirs, ours)


def test_a_tokenizer_alone(tokenizer, tmp_path, capsys):
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    arguments = ["trim", str(tmp_path / "tokenizer"), "--languages", "fao", "--output-dir", str(tmp_path / "small")]
    assert main([*arguments, "--quiet"]) == 0
    assert (tmp_path / "small" / "tokenizer.json").is_file()
    assert main([*arguments, "--quiet"]) == 2
    assert "is not empty" in capsys.readouterr().err
    with pytest.raises(SystemExit) as caught:
        main(["trim", str(tmp_path / "tokenizer"), "--output-dir", str(tmp_path / "other")])
    assert caught.value.code == 2
