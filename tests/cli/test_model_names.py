"""A model by its name on the Hub: what is said, and how soon, where the Hub cannot be reached."""

import os
import subprocess
import sys

import pytest
from huggingface_hub import HfApi, constants

from mmbert_hf.cli import main
from mmbert_hf.cli.model_names import cache_alone_without_hub
from mmbert_hf.testing import LoopbackHub

NOWHERE = "http://127.0.0.1:9"  # the port of discard: nobody listens


def convert(environment, folder):
    """`mmbert convert` of a name, in a process of its own."""
    command = [sys.executable, "-m", "mmbert_hf.cli", "convert", "loopback/model", "--output-dir", str(folder)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})


def test_the_cache_serves_where_the_hub_cannot_be_reached(folder, tmp_path):
    with LoopbackHub() as hub:
        api = HfApi(endpoint=hub.endpoint, token=hub.token)
        api.create_repo("loopback/model")
        api.upload_folder(repo_id="loopback/model", folder_path=folder)
        environment = hub.environment()
        empty = {**hub.environment(), "HF_ENDPOINT": NOWHERE}
        done = convert(environment, tmp_path / "with")
        assert done.returncode == 0, done.stderr
        assert "cannot be reached" not in done.stderr

        done = convert({**environment, "HF_ENDPOINT": NOWHERE}, tmp_path / "without")
        assert done.returncode == 0, done.stderr
        assert done.stderr.count(f"the Hub at {NOWHERE} cannot be reached") == 1
        with_hub, without = (tmp_path / name / "model.safetensors" for name in ("with", "without"))
        assert with_hub.read_bytes() == without.read_bytes()

        done = convert(empty, tmp_path / "nothing")
        assert done.returncode == 2
        assert "cannot be reached" in done.stderr
        assert "Retrying" not in done.stderr
        assert not (tmp_path / "nothing").exists()


@pytest.fixture
def online(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")


def test_a_hub_that_answers_is_used(online, monkeypatch, caplog):
    with LoopbackHub() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        cache_alone_without_hub()
        assert [method for method, *_ in hub.requests] == ["HEAD"]
    assert not constants.HF_HUB_OFFLINE
    assert not caplog.records


def test_without_a_hub(online, monkeypatch, caplog):
    monkeypatch.setattr(constants, "ENDPOINT", NOWHERE)
    cache_alone_without_hub()
    assert constants.HF_HUB_OFFLINE
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    assert "only what is in the cache is used" in caplog.text
    cache_alone_without_hub()
    assert len(caplog.records) == 1, "who is offline is not told again"


def test_a_folder_asks_nobody(folder, tmp_path, online, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", NOWHERE)
    assert main(["convert", str(folder), "--output-dir", str(tmp_path / "out")]) == 0
    assert not constants.HF_HUB_OFFLINE
