"""``mmbert publish``: what it prints, and how it ends."""

import json

import pytest

from mmbert_hf.cli import main
from mmbert_hf.testing import LoopbackHub


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}')
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "optimizer.pt").write_bytes(b"pickle")
    return folder


@pytest.fixture
def hub(monkeypatch):
    with LoopbackHub() as hub:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.endpoint)
        monkeypatch.setattr("transformers.utils.hub._hf_api", None)  # a client that another test may have made
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", hub.token)
        yield hub


def run(*arguments):
    return main(["publish", *map(str, arguments)])


def test_a_dry_run_shows_files_and_card(folder, capsys):
    assert run(folder, "me/it", "--dry-run", "--license", "mit") == 0
    out = capsys.readouterr().out
    assert out.startswith("policy, to me/it (model):")
    assert "not published: optimizer.pt" in out
    assert "license: mit" in out
    assert "published:" not in out.partition("\n")[2].replace("not published:", "")


def test_published_and_then_nothing_has_changed(hub, folder, capsys):
    assert run(folder, "it", "--license", "mit", "--tags", "a", "b", "--private") == 0
    assert f"published: {hub.endpoint}/loopback/it/commit/" in capsys.readouterr().out
    assert run(folder, "it", "--license", "mit", "--tags", "a", "b", "--json") == 0
    done = json.loads(capsys.readouterr().out)
    assert (done["kind"], done["changed"], done["left_out"]) == ("policy", False, ["optimizer.pt"])
    assert run(folder, "it", "--license", "mit", "--create-pr", "--quiet") == 0
    assert capsys.readouterr().out == f"{hub.endpoint}/loopback/it/discussions/1\n"


def test_mistakes(hub, folder, capsys, monkeypatch, tmp_path):
    assert run(tmp_path / "none", "me/it", "--dry-run") == 2
    assert "there is no folder" in capsys.readouterr().err
    assert run(folder, "me/it", "--license", "apache2") == 2
    assert capsys.readouterr().err.startswith(
        "mmbert publish: license 'apache2' is no identifier of the Hub; near it: apache-2.0"
    )
    monkeypatch.setenv("HF_TOKEN", "hf_wrong_and_secret")
    assert run(folder, "me/it", "--license", "mit") == 2
    error = capsys.readouterr().err
    assert "refuses the token" in error
    assert "secret" not in error
    with pytest.raises(ValueError, match="apache2"):
        run(folder, "me/it", "--license", "apache2", "--debug")
    with pytest.raises(SystemExit) as caught:
        run(folder, "me/it", "--architecture", "bert")
    assert caught.value.code == 2
