import doctest
import json

import numpy as np
import pytest

from mmbert_hf.evaluation import model_kinds, read_model_kind
from mmbert_hf.evaluation.model_kinds import load_embedder, require_embedder, require_encoder, require_masked_lm


def test_docstring_examples():
    result = doctest.testmod(model_kinds)
    assert result.attempted >= 1
    assert result.failed == 0


def kind_of(folder, config=None, modules=None):
    folder.mkdir(exist_ok=True)
    for name, content in (("config.json", config), ("modules.json", modules)):
        if content is not None:
            (folder / name).write_text(json.dumps(content))
    return read_model_kind(str(folder))


def test_kinds_are_read_and_not_guessed(tmp_path):
    encoder = kind_of(tmp_path / "a", {"model_type": "modernbert", "architectures": ["ModernBertForMaskedLM"]})
    assert (encoder.is_embedder, encoder.architecture, encoder.model_type) == (
        False,
        "ModernBertForMaskedLM",
        "modernbert",
    )
    require_masked_lm(encoder)
    require_encoder(encoder)
    require_embedder(encoder, "mean")
    embedder = kind_of(tmp_path / "b", {"model_type": "bert", "architectures": ["BertModel"]}, [])
    require_embedder(embedder)
    require_encoder(embedder)  # its transformer can be fine-tuned
    for require, kind, message in (
        (require_masked_lm, embedder, "measure it with retrieval, bitext or mteb"),
        (require_masked_lm, kind_of(tmp_path / "c", {"model_type": "bert", "architectures": ["BertModel"]}), "no head"),
        (require_embedder, encoder, "give --pooling mean"),
        (require_encoder, kind_of(tmp_path / "d", None, []), "give the folder of its transformer"),
        (require_encoder, kind_of(tmp_path / "e", {"architectures": ["LlamaForCausalLM"]}), "generates text"),
        (require_encoder, kind_of(tmp_path / "f", {"architectures": ["T5ForConditionalGeneration"]}), "generates text"),
    ):
        with pytest.raises(ValueError, match=message):
            require(kind)


def test_what_is_no_model_is_told_in_one_line(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"has neither config.json nor modules.json: it is no model"):
        kind_of(tmp_path / "empty")
    (tmp_path / "empty" / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config.json of .* is no JSON"):
        read_model_kind(str(tmp_path / "empty"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match="owner/no-such-model") as caught:
        read_model_kind("owner/no-such-model")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_an_encoder_with_a_pooling_embeds_its_hidden_states(encoders, pooling):
    import torch
    from transformers import AutoModel, AutoTokenizer

    folder = str(encoders / "mmbert")
    model = load_embedder(read_model_kind(folder), pooling=pooling, max_length=16)
    assert model.max_seq_length == 16
    encoder = AutoModel.from_pretrained(folder).eval().to(model.device)
    with torch.no_grad():
        batch = AutoTokenizer.from_pretrained(folder)("Ein og hvør", return_tensors="pt").to(model.device)
        hidden = encoder(**batch)[0][0].cpu().numpy()
    expected = hidden.mean(0) if pooling == "mean" else hidden[0]
    np.testing.assert_allclose(model.encode("Ein og hvør"), expected, atol=1e-5)
