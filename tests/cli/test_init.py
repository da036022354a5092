import argparse

import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer

from mmbert_hf import MMBertModel, export_modernbert
from mmbert_hf.cli import init


def run(*argv):
    parser = argparse.ArgumentParser()
    init.add_parser(parser.add_subparsers())
    args = parser.parse_args(["init", *map(str, argv)])
    return args.run(args)


@pytest.fixture
def narrow(tmp_path, tiny_model, tokenizer):
    folder = tmp_path / "narrow"
    tiny_model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_duplicate_from_a_folder(tmp_path, narrow, tiny_model, capsys):
    out = tmp_path / "wide"
    sizes = ("--hidden-size", 64, "--num-hidden-layers", 5)
    assert run("--tile-from", narrow, *sizes, "--method", "duplicate", "--noise", 0.1, "--output-dir", out) == 0
    model, tokenizer = AutoModelForMaskedLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    inputs = tokenizer("Alle mennesker er <mask> frie.", return_tensors="pt")
    with torch.no_grad():
        expected = tiny_model.eval()(**inputs).logits
        torch.testing.assert_close(model.eval()(**inputs).logits, expected, rtol=0, atol=1e-4)
    assert capsys.readouterr().out.splitlines() == [
        f"from {narrow}: {tiny_model.num_parameters():,} parameters, 3 layers of 32",
        "method duplicate, noise 0.1 (seed 0), 2 layers added: the function is that of the narrow model",
        f"{model.num_parameters():,} parameters: 5 layers of 64 (4 heads), intermediate 48",
        f"written to {out}",
    ]


def test_centre_tiling_from_a_published_folder(tmp_path, narrow, tiny_model, tokenizer, capsys):
    published = export_modernbert(tiny_model, tmp_path / "published", tokenizer=tokenizer)
    assert run("--tile-from", published, "--hidden-size", 48, "--output-dir", tmp_path / "wide") == 0
    assert "method center, noise 0 (seed 0), 0 layers added: the function is not preserved" in capsys.readouterr().out
    wide = AutoModelForMaskedLM.from_pretrained(tmp_path / "wide")
    assert wide.config.num_attention_heads == 3
    embeddings = wide.model.embeddings.tok_embeddings.weight
    assert torch.equal(embeddings[:, 8:40], tiny_model.model.embeddings.tok_embeddings.weight)


def test_a_fresh_model_is_seeded_and_fits_its_tokenizer(tmp_path, narrow, tokenizer, capsys):
    sizes = ("--size", "small", "--hidden-size", 64, "--intermediate-size", 32, "--num-hidden-layers", 2)
    models = []
    for name, seed in (("one", 1), ("again", 1), ("other", 2)):
        assert run(*sizes, "--tokenizer", narrow, "--seed", seed, "--output-dir", tmp_path / name) == 0
        models.append(AutoModelForMaskedLM.from_pretrained(tmp_path / name))
    assert "fresh weights, seed 2" in capsys.readouterr().out
    assert models[0].config.vocab_size == len(tokenizer)
    assert models[0].config.num_attention_heads == 1
    weights = [model.model.layers[1].mlp.Wi.weight for model in models]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size", "small"], "a fresh model needs --size and --tokenizer"),
        (["--tokenizer", "NARROW"], "a fresh model needs --size and --tokenizer"),
        (["--size", "small", "--tokenizer", "NARROW", "--method", "tile"], "--method belongs to --tile-from"),
        (["--tile-from", "NARROW"], "say what to make of the narrow model"),
        (["--tile-from", "NARROW", "--hidden-size", "40"], "hidden_size 40 is not a multiple of 16"),
        (["--tile-from", "NARROW", "--hidden-size", "48", "--method", "duplicate"], "48 is not a multiple of 32"),
        (["--tile-from", "NARROW", "--num-hidden-layers", "2"], "do not fit in order"),
        (["--tile-from", "NARROW", "--hidden-size", "64", "--noise", "-1"], "noise must be a number from 0 up"),
    ],
)
def test_bad_input_is_a_plain_error_and_leaves_nothing(tmp_path, narrow, arguments, message):
    arguments = [str(narrow) if argument == "NARROW" else argument for argument in arguments]
    with pytest.raises(ValueError, match=message):
        run(*arguments, "--output-dir", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["narrow"]


def test_other_folders_are_refused(tmp_path, narrow, tiny_model):
    sizes = ("--hidden-size", 64, "--output-dir", tmp_path / "out", "--tokenizer", narrow)
    MMBertModel(tiny_model.config).save_pretrained(tmp_path / "encoder")
    with pytest.raises(ValueError, match="holds a MMBertModel; it must be a masked language model"):
        run("--tile-from", tmp_path / "encoder", *sizes)
    with pytest.raises(OSError, match="nowhere"):
        run("--tile-from", tmp_path / "nowhere", *sizes)
    weights = tmp_path / "encoder" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(OSError, match=r"encoder are damaged .* copy the folder anew"):
        run("--tile-from", tmp_path / "encoder", *sizes)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="not empty"):
        run("--tile-from", narrow, *sizes)
    assert run("--tile-from", narrow, *sizes, "--overwrite") == 0
    assert (tmp_path / "out" / "thesis.txt").read_text() == "mine"
