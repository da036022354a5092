"""Everything that can be published, published; its card's code run, and the same numbers, where this package is not there."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import HfApi, ModelCard

from mmbert_hf import MMBertConfig, MMBertForMaskedLM, MMBertModel, ValueTracker
from mmbert_hf.hub import publish
from mmbert_hf.testing import LoopbackHub

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "local_attention": 8,
    "initializer_range": 0.2,
}
# PEFT looks for the base model's vocabulary on the Hub of this process, which is none.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Unable to fetch remote file:UserWarning", "ignore:Could not find a config"
)

TEXTS = ["All human beings are born free", "slavery", "Øll menniskju"]
KINDS = ("encoder", "embedder", "policy", "adapter", "tracker")


@pytest.fixture(scope="module")
def hub():
    with LoopbackHub() as hub:
        yield hub


@pytest.fixture(scope="module")
def there(hub):
    """Where things are published in this module."""
    return {"endpoint": hub.endpoint, "token": hub.token}


@pytest.fixture(scope="module")
def sources(tokenizer, tmp_path_factory):
    """One of each kind, as people have them: objects and folders."""
    from peft import LoraConfig, get_peft_model
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("sources")
    torch.manual_seed(0)
    config = MMBertConfig(vocab_size=len(tokenizer), **SIZES)
    MMBertModel(config).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    modules = [Transformer(str(folder / "base")), Pooling(32, pooling_mode="mean"), Normalize()]
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": 1, "bos_token_id": 2}
    policy = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), hidden_size=32, intermediate_size=40,
                                          num_hidden_layers=2, num_attention_heads=2, **ids)).eval()  # fmt: skip
    policy.save_pretrained(folder / "policy")
    tokenizer.save_pretrained(folder / "policy")
    (folder / "policy" / "optimizer.pt").write_bytes(b"")
    policy.config._name_or_path = policy.name_or_path = "loopback/policy"
    adapter = get_peft_model(policy, LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False)).eval()
    tracker = ValueTracker(4)
    tracker.update([0, 2], [1.0, 0.0])
    encoder = MMBertForMaskedLM(config).eval()
    embedder = SentenceTransformer(modules=modules, device="cpu").eval()
    return {
        "encoder": encoder,
        "embedder": embedder,
        "policy": folder / "policy",
        "adapter": adapter,
        "tracker": tracker,
    }


@pytest.fixture(scope="module")
def published(hub, there, sources, tokenizer):
    """What `publish` returned, by kind."""
    extra = {"encoder": {"processing_class": tokenizer}, "adapter": {"processing_class": tokenizer}}
    return {
        kind: publish(sources[kind], kind, license="mit", tags=["tiny"], **extra.get(kind, {}), **there)
        for kind in KINDS
    }


CLIENT = """
import json, sys, torch
sys.modules["mmbert_hf"] = None  # an import of it fails
from pathlib import Path
folder, blocks = Path(sys.argv[1]), json.loads(Path(sys.argv[1], "blocks.json").read_text())
texts, classes = json.loads(sys.argv[2]), {}
for kind, block in blocks.items():
    names = {}
    exec(block, names)
    if kind == "tracker":
        torch.save(torch.tensor(names["values"]["values"][:], dtype=torch.float64), folder / kind)
        continue
    model = names["model"]
    classes[kind] = type(model).__name__
    if kind == "embedder":
        torch.save(model.encode(texts, convert_to_tensor=True, show_progress_bar=False), folder / kind)
    else:
        with torch.no_grad():
            torch.save(model.eval()(**names["tokenizer"](texts[0], return_tensors="pt")).logits, folder / kind)
print(json.dumps(classes))
"""


def test_the_code_of_every_card_runs_without_this_package(hub, published, sources, tokenizer, tmp_path):
    import os
    import subprocess
    import sys

    blocks = {kind: re.search(r"```python\n(.*?)```", done.card, re.DOTALL)[1] for kind, done in published.items()}
    (tmp_path / "blocks.json").write_text(json.dumps(blocks))
    environment = {**os.environ, **hub.environment(), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", CLIENT, str(tmp_path), json.dumps(TEXTS)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "encoder": "ModernBertForMaskedLM",
        "embedder": "SentenceTransformer",
        "policy": "LlamaForCausalLM",
        "adapter": "PeftModelForCausalLM",
    }
    batch = tokenizer(TEXTS[0], return_tensors="pt")
    with torch.no_grad():
        expected = {"encoder": sources["encoder"](**batch).logits, "adapter": sources["adapter"](**batch).logits}
        with sources["adapter"].disable_adapter():
            expected["policy"] = sources["adapter"](**batch).logits
    expected["embedder"] = sources["embedder"].encode(TEXTS, convert_to_tensor=True, show_progress_bar=False)
    for kind, ours in expected.items():
        torch.testing.assert_close(torch.load(tmp_path / kind), ours, rtol=1e-4, atol=1e-5, msg=kind)
    assert (torch.load(tmp_path / "tracker").numpy() == sources["tracker"].values).all()


def test_kinds_and_what_stays_at_home(hub, published):
    api = HfApi(endpoint=hub.endpoint, token=hub.token)
    for kind, done in published.items():
        assert (done.kind, done.changed) == (kind, True)
        assert set(done.files) | {".gitattributes"} == set(api.list_repo_files(done.repo_id, repo_type=done.repo_type))
        info = api.repo_info(done.repo_id, repo_type=done.repo_type)
        assert info.card_data.license == "mit"
        assert {"tiny", "mmbert-hf"} <= set(info.card_data.tags)
        assert not [name for name in done.files if name.endswith((".pt", ".bin", ".pkl"))]
    assert published["policy"].left_out == ("optimizer.pt",)
    assert published["tracker"].repo_type == "dataset"
    assert "  in all " in str(published["policy"])


def test_twice_is_once(there, published, sources):
    again = publish(sources["policy"], "loopback/policy", license="mit", tags=["tiny"], **there)
    assert not again.changed
    assert again.url == published["policy"].url
    assert "nothing has changed" in str(again)


def test_a_dry_run_asks_nobody(hub, published, sources):
    before = len(hub.requests)
    done = publish(sources["policy"], "me/policy", dry_run=True, endpoint=hub.endpoint)
    assert (done.url, done.commit, done.changed) == (None, None, False)
    assert done.files["model.safetensors"] == published["policy"].files["model.safetensors"]
    assert 'from_pretrained("me/policy")' in done.card
    assert len(hub.requests) == before


def test_pulled_changed_and_published_again(hub, there, sources, tmp_path):
    api = HfApi(endpoint=hub.endpoint, token=hub.token)
    publish(sources["policy"], "history", license="mit", commit_message="first", **there)
    pulled = tmp_path / "pulled"
    api.snapshot_download("loopback/history", local_dir=pulled)
    (pulled / "README.md").write_text((pulled / "README.md").read_text() + "\nMore words.\n")
    (pulled / "tokenizer.model").write_bytes(b"another tokenizer")
    done = publish(pulled, "history", commit_message="second", **there)
    assert done.changed
    assert [commit.title for commit in api.list_repo_commits("loopback/history")][:2] == ["second", "first"]
    assert "More words." in done.card, "the card of the folder is kept"
    assert "license: mit" in done.card
    (pulled / "tokenizer.model").unlink()
    publish(pulled, "history", commit_message="third", **there)
    assert "tokenizer.model" not in api.list_repo_files("loopback/history"), "what the model lost is gone"


def test_options(hub, there, sources):
    api = HfApi(endpoint=hub.endpoint, token=hub.token)
    publish(sources["tracker"], "options", private=True, commit_message="Values", **there)
    assert api.dataset_info("loopback/options").private
    assert api.list_repo_commits("loopback/options", repo_type="dataset")[0].title == "Values"
    publish(sources["tracker"], "options", revision="next", tags=["new"], **there)
    assert "new" in api.dataset_info("loopback/options", revision="next").card_data.tags
    assert "new" not in api.dataset_info("loopback/options").card_data.tags
    done = publish(sources["tracker"], "options", create_pr=True, tags=["proposed"], **there)
    assert done.url.endswith("/datasets/loopback/options/discussions/1")
    with pytest.raises(FileExistsError, match="loopback/options exists already"):
        publish(sources["tracker"], "options", exist_ok=False, **there)
    publish(sources["tracker"], "open", **there)
    with pytest.raises(ValueError, match="exists and is public"):
        publish(sources["tracker"], "open", private=True, **there)


def test_the_licence_is_the_parents(hub, there, sources, published):
    done = publish(sources["policy"], "child", base_model="loopback/policy", **there)
    assert ModelCard(done.card).data.license == "mit"
    assert ModelCard(done.card).data.base_model == "loopback/policy"
    orphan = publish(sources["policy"], "orphan", base_model="nobody/nothing", **there)
    assert ModelCard(orphan.card).data.license is None
    assert "licence is not known" in orphan.card


def model_type(api, name, folder):
    return json.loads(Path(api.hf_hub_download(name, "config.json", local_dir=folder)).read_text())["model_type"]


def test_mmbert_on_request(hub, there, sources, tokenizer, tmp_path):
    done = publish(sources["encoder"], "ours", processing_class=tokenizer, architecture="mmbert", dry_run=True)
    assert done.kind == "encoder"
    api = HfApi(endpoint=hub.endpoint, token=hub.token)
    publish(sources["encoder"], "ours", processing_class=tokenizer, architecture="mmbert", **there)
    assert model_type(api, "loopback/ours", tmp_path) == "mmbert"


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_an_mmbert_folder_is_converted_and_not_touched(hub, there, sources, tokenizer, tmp_path):
    sources["encoder"].save_pretrained(tmp_path / "mine")
    tokenizer.save_pretrained(tmp_path / "mine")
    (tmp_path / "mine" / "README.md").write_text("# My words\n")
    (tmp_path / "mine" / "run.json").write_text('{"data": "/home/somebody/table.yaml"}')
    (tmp_path / "mine" / "plots").mkdir()
    (tmp_path / "mine" / "plots" / "run.png").write_bytes(b"picture")
    before = contents(tmp_path / "mine")
    done = publish(tmp_path / "mine", "converted", **there)
    assert "My words" in done.card
    api = HfApi(endpoint=hub.endpoint, token=hub.token)
    assert model_type(api, "loopback/converted", tmp_path / "pulled") == "modernbert"
    assert contents(tmp_path / "mine") == before
    assert "plots/run.png" in done.files
    assert done.left_out == ("run.json",)


def test_a_checkpoint_without_a_model_is_its_tracker(there, sources, tmp_path):
    from mmbert_hf.trainers.spo.tracker_files import write_tracker

    write_tracker(tmp_path / "spo_tracker.safetensors", sources["tracker"], fingerprint="f00")
    done = publish(tmp_path, "me/values", dry_run=True)
    assert done.kind == "tracker"
    assert "4 rows" in done.card


def test_a_checkpoint_of_transformers_without_weights_in_safetensors(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ValueError, match=r"weights as pickles \(pytorch_model.bin\)"):
        publish(tmp_path, "me/x", dry_run=True)


BAD = {
    "a name": ("me/small model", {}, ValueError, "cannot be the name of a repository"),
    "a licence": ("me/x", {"license": "apache2"}, ValueError, "no identifier of the Hub; near it: apache-2.0"),
    "several in one": ("me/x", {"languages": ["fo,da"]}, ValueError, "'fo,da' is not one language: give a list"),
    "a licence without a name": ("me/x", {"license": "other"}, ValueError, "needs license_name"),
    "no language": ("me/x", {"languages": ["xx"]}, ValueError, "unknown language code 'xx'"),
    "a parent": ("me/x", {"base_model": "no name/"}, ValueError, "cannot be the name"),
    "an architecture": ("me/x", {"architecture": "bert"}, ValueError, "must be 'modernbert' or 'mmbert', got 'bert'"),
}


@pytest.mark.parametrize(("name", "options", "error", "message"), BAD.values(), ids=BAD)
def test_mistakes_are_told_before_anything_is_sent(sources, name, options, error, message):
    with pytest.raises(error, match=re.escape(message)):
        publish(sources["policy"], name, dry_run=True, **options)


def test_codes_of_either_kind_become_the_hubs(sources):
    for languages in ("fao", ["fo", "fao"], ["fao_Latn"]):
        done = publish(sources["policy"], "me/x", languages=languages, dry_run=True)
        assert ModelCard(done.card).data.language == ["fo"]


@pytest.mark.parametrize("kind", ["encoder", "policy", "tracker"])
def test_metadata_and_text_agree_on_the_licence(sources, tokenizer, kind):
    given = {"processing_class": tokenizer} if kind == "encoder" else {}
    known = publish(sources[kind], "me/x", license="mit", dry_run=True, **given)
    assert ModelCard(known.card).data.license == "mit"
    assert "not known" not in known.card
    named = publish(
        sources[kind], "me/x", license="other", license_name="house-1", license_link="LICENSE", dry_run=True, **given
    )
    data = ModelCard(named.card).data
    assert (data.license, data.license_name, data.license_link) == ("other", "house-1", "LICENSE")
    open_one = publish(sources[kind], "me/x", dry_run=True, **given)
    assert ModelCard(open_one.card).data.license is None
    assert "not known" in open_one.card or "No licence was given" in open_one.card


def test_a_bad_card_is_refused_too(tmp_path):
    (tmp_path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    (tmp_path / "README.md").write_text("---\nlanguage: no\nlicense: mit\n---\n")
    with pytest.raises(ValueError, match="write it in quotes"):
        publish(tmp_path, "me/x", dry_run=True)


def test_what_cannot_be_published(sources, tmp_path):
    for source, error, message in (
        (np.zeros(3), TypeError, "a ndarray cannot be published"),
        (tmp_path / "none", FileNotFoundError, "there is no folder"),
        (Path(__file__), NotADirectoryError, "is a file; give the folder"),
        (tmp_path, ValueError, "holds nothing that can be published"),
        (sources["encoder"], ValueError, "give processing_class"),
    ):
        with pytest.raises(error, match=message):
            publish(source, "me/x", dry_run=True)


def test_pictures_are_shown_in_the_card(sources, tmp_path):
    (tmp_path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    (tmp_path / "plots").mkdir()
    for path in (tmp_path / "plots" / "run.png", tmp_path / "more_of_it.svg"):
        path.write_bytes(b"picture")
    done = publish(tmp_path, "me/x", plots=[tmp_path / "more_of_it.svg"], dry_run=True)
    assert {"plots/run.png", "plots/more_of_it.svg"} <= set(done.files)
    assert done.card.count("## Pictures") == 1
    assert "![more of it](plots/more_of_it.svg)\n\n![run](plots/run.png)" in done.card
    (tmp_path / "README.md").write_text(done.card)
    assert publish(tmp_path, "me/x", dry_run=True).card.count("plots/run.png") == 1, "it is shown already"
    with pytest.raises(ValueError, match="no picture that a card can show"):
        publish(tmp_path, "me/x", plots=[tmp_path / "config.json"], dry_run=True)
    with pytest.raises(FileNotFoundError, match="there is no picture"):
        publish(tmp_path, "me/x", plots=["none.png"], dry_run=True)


def test_a_token_that_is_refused(hub, sources):
    with pytest.raises(PermissionError, match="refuses the token") as caught:
        publish(sources["policy"], "me/x", endpoint=hub.endpoint, token="hf_wrong_and_secret")
    assert "secret" not in str(caught.value)


def test_the_card_of_a_pruned_embedder_gets_the_name_and_the_licence(tmp_path):
    """It was written for a folder. What somebody else wrote is left alone."""
    (tmp_path / "modules.json").write_text('[{"idx": 0, "name": "0", "path": "", "type": "Transformer"}]')
    (tmp_path / "model.safetensors").write_bytes(b"")
    text = (
        "---\ntags:\n- {tag}\nlicense: apache-2.0\n---\n# small\n\n"
        "Its licence is that of the model it was made from: apache-2.0.\n\n"
        '```python\nmodel = SentenceTransformer("small")\n```\n'
    )
    (tmp_path / "README.md").write_text(text.format(tag="mmbert-hf"))
    card = publish(tmp_path, "you/tiny", license="mit", dry_run=True).card
    assert 'SentenceTransformer("you/tiny")' in card
    assert "license: mit" in card
    assert "apache" not in card
    (tmp_path / "README.md").write_text(text.format(tag="other"))
    assert 'SentenceTransformer("small")' in publish(tmp_path, "you/tiny", dry_run=True).card


def test_a_folder_that_is_not_there_is_told_before_the_token(tmp_path, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        publish(tmp_path / "nope", "you/tiny")
