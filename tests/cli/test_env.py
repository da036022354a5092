"""``mmbert env``: versions and processors, and no names of people."""

import doctest
import json

import torch

from mmbert_hf.cli import env, main


def test_environment(capsys, monkeypatch):
    monkeypatch.setenv("HF_HOME", "/home/somebody/secret")
    assert main(["env"]) == 0
    said = capsys.readouterr().out
    assert "transformers" in said
    assert "somebody" not in said
    assert main(["env", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["torch"] == torch.__version__
    assert "HF_HOME" in facts["set"]
    assert doctest.testmod(env).failed == 0
