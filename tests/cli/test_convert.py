"""``mmbert convert``: the same logits there and back, and how it ends."""

import json

import torch

from mmbert_hf.cli import main


def model_type(folder):
    return json.loads((folder / "config.json").read_text())["model_type"]


def test_there_and_back(folder, logits, tmp_path, sentences, capsys):
    there, back = tmp_path / "there", tmp_path / "back"
    assert main(["convert", str(folder), "--output-dir", str(there)]) == 0
    assert main(["convert", str(there), "--to", "mmbert", "--output-dir", str(back)]) == 0
    assert "as mmbert" in capsys.readouterr().out
    assert [model_type(each) for each in (folder, there, back)] == ["mmbert", "modernbert", "mmbert"]
    expected = logits(folder, sentences["fao"][0])
    torch.testing.assert_close(logits(there, sentences["fao"][0]), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits(back, sentences["fao"][0]), expected)


def test_what_cannot_be_converted(folder, tmp_path, capsys):
    assert main(["convert", str(tmp_path / "none"), "--output-dir", str(tmp_path / "out")]) == 2
    assert "there is no folder" in capsys.readouterr().err
    assert main(["convert", str(folder), "--output-dir", str(folder)]) == 2
    assert "is not empty" in capsys.readouterr().err


def test_a_model_of_another_kind_is_one_sentence(tmp_path, capsys):
    from transformers import BertConfig, BertModel

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=50, **sizes)).save_pretrained(tmp_path / "bert")
    assert main(["convert", str(tmp_path / "bert"), "--output-dir", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "is a model of type 'bert'; it must be mmbert or modernbert" in error.splitlines()[-1]
    assert not (tmp_path / "out").exists()
