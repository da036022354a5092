"""What is saved loads where this package is absent, and gives the same embeddings."""

import json
import os
import stat
import subprocess
import sys

import pytest
import torch
from torch import nn

from mmbert_hf.pruning import saving
from mmbert_hf.pruning.saving import save_embedder
from mmbert_hf.pruning.targets import encoder_of

TEXTS = ["free equal dignity", "the law of a country and its people", "music", "school work " * 12]
# Runs where neither this package nor anything that imports it is loaded.
FOREIGN = """
import json, sys
import numpy as np
from sentence_transformers import SentenceTransformer
texts = json.loads(sys.argv[1])
for folder in sys.argv[2:]:
    model = SentenceTransformer(folder, device="cpu")
    encoder = model[0].auto_model
    assert type(encoder).__module__.startswith("transformers.models."), type(encoder)
    np.save(f"{folder}/embeddings.npy", model.encode(texts))
assert not [name for name in sys.modules if name.split(".")[0] == "mmbert_hf"]
"""


def test_saved_embedders_load_without_this_package(request, tmp_path):
    import numpy as np

    families = ("bert", "mpnet", "modernbert", "qwen3", "mmbert")
    expected = {}
    for family in families:
        model = request.getfixturevalue(f"{family}_embedder")
        assert save_embedder(model, tmp_path / family) == tmp_path / family
        expected[family] = model.encode(TEXTS)
    folders = [str(tmp_path / family) for family in families]
    done = subprocess.run(
        [sys.executable, "-c", FOREIGN, json.dumps(TEXTS), *folders], capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    for family in families:
        difference = np.abs(np.load(tmp_path / family / "embeddings.npy") - expected[family]).max()
        assert difference <= (1e-5 if family == "mmbert" else 0.0), family


def test_mmbert_is_written_as_modernbert_in_both_spellings(mmbert_embedder, tmp_path):
    save_embedder(mmbert_embedder, tmp_path / "out")
    values = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (values["model_type"], values["architectures"]) == ("modernbert", ["ModernBertModel"])
    assert values["global_attn_every_n_layers"] == 3
    assert values["layer_types"] == encoder_of(mmbert_embedder).config.layer_types
    tokenizer = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_files_and_folders_have_the_modes_of_new_ones(bert_embedder, tmp_path):
    previous = os.umask(0o027)
    try:
        save_embedder(bert_embedder, tmp_path / "out")
    finally:
        os.umask(previous)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "out").rglob("*")}
    assert modes["1_Pooling"] == 0o750
    assert modes["model.safetensors"] == modes["modules.json"] == 0o640


class Doubled(nn.Module):
    def forward(self, features):
        return features


def test_foreign_modules_are_refused_before_anything_is_written(bert_embedder, tmp_path):
    bert_embedder.append(Doubled())
    with pytest.raises(ValueError, match=r"Doubled.*not of the sentence_transformers package"):
        save_embedder(bert_embedder, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_foreign_encoders_are_refused(bert_embedder, tmp_path):
    encoder = encoder_of(bert_embedder)
    encoder.__class__ = type("RemoteModel", (type(encoder),), {"__module__": "transformers_modules.somebody"})
    with pytest.raises(ValueError, match=r"transformers_modules.somebody.RemoteModel.*no class of transformers"):
        save_embedder(bert_embedder, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_folder(bert_embedder, tmp_path, monkeypatch):
    target = save_embedder(bert_embedder, tmp_path / "out")
    before = {path: path.read_bytes() for path in target.rglob("*") if path.is_file()}
    with torch.no_grad():
        encoder_of(bert_embedder).embeddings.word_embeddings.weight.zero_()

    def full(*_, **__):
        raise OSError("No space left on device")

    monkeypatch.setattr(type(bert_embedder[1]), "save", full)
    with pytest.raises(OSError, match="No space left"):
        save_embedder(bert_embedder, target, overwrite=True)
    assert {path: path.read_bytes() for path in target.rglob("*") if path.is_file()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_folder_that_is_not_empty_is_replaced_only_on_request(bert_embedder, tmp_path):
    (tmp_path / "README.md").write_text("A card.")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        save_embedder(bert_embedder, tmp_path)
    save_embedder(bert_embedder, tmp_path, overwrite=True)
    assert (tmp_path / "README.md").read_text() == "A card."
    assert (tmp_path / "modules.json").is_file()


def test_docstring_examples():
    import doctest

    assert doctest.testmod(saving).failed == 0
