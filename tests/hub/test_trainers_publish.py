"""The push options of transformers' Trainer, on trainers of this package, against a Hub: what is there, and what is not."""

import pytest

SCRIPT = """
import json, logging, os, sys, tempfile, threading, torch
from datasets import Dataset
from transformers import PreTrainedModel, Trainer, TrainingArguments
from mmbert_hf import MMBertConfig, MMBertForMaskedLM, MMBertTokenizer
from mmbert_hf.trainers.publishing import PublishingMixin

class Published(PublishingMixin, Trainer):
    pass

notices = []
class Keep(logging.Handler):
    def emit(self, record):
        notices.append(record.getMessage())
logging.getLogger("mmbert_hf.trainers.publishing").addHandler(Keep())
loads, load = [], PreTrainedModel.from_pretrained.__func__
def from_pretrained(cls, *args, **kwargs):
    loads.append(threading.current_thread() is threading.main_thread())
    return load(cls, *args, **kwargs)
PreTrainedModel.from_pretrained = classmethod(from_pretrained)
tokenizer = MMBertTokenizer.train({texts!r}, vocab_size=300)
config = MMBertConfig(vocab_size=len(tokenizer), hidden_size=32, intermediate_size=40, num_hidden_layers=2,
                      num_attention_heads=2)
torch.manual_seed(0)
ids = tokenizer({texts!r}[0])["input_ids"]
data = Dataset.from_list([dict(input_ids=ids, labels=ids)] * 8)
folder = tempfile.mkdtemp()
args = TrainingArguments(folder, max_steps=4, save_steps=2, report_to="none", use_cpu=True, push_to_hub=True,
                         per_device_train_batch_size=2, disable_tqdm=True, **json.loads(os.environ["OPTIONS"]))
trainer = Published(MMBertForMaskedLM(config), args, train_dataset=data, processing_class=tokenizer)
trainer.train()
future = trainer.push_to_hub(commit_message="Done", blocking=False, **json.loads(os.environ["PUSH"]))
info = future.result()
from transformers import AutoModelForMaskedLM
print(json.dumps([str(info), info.oid, notices, os.listdir(folder), loads]))
"""


@pytest.fixture
def train(hub, run_client, sentences):
    import json

    def run(push=None, **options):
        script = SCRIPT.replace("{texts!r}", repr(sentences["eng"] * 4))
        options = {"hub_model_id": "loopback/trained", **options}
        return run_client(hub, script, OPTIONS=json.dumps(options), PUSH=json.dumps(push or {}))

    return run


def model_type(api, revision=None):
    import json
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        path = api.hf_hub_download("loopback/trained", "config.json", revision=revision, local_dir=folder)
        return json.loads(Path(path).read_text())["model_type"]


def test_every_save(api, train):
    url, oid, notices, _, loads = train(hub_strategy="every_save", hub_private_repo=True, hub_always_push=True)
    assert url.endswith(f"/loopback/trained/commit/{oid}")
    titles = [commit.title for commit in api.list_repo_commits("loopback/trained")]
    assert titles[0] == "Done"
    assert {"Training in progress, step 2", "Training in progress, step 4"} & {*titles}
    files = api.list_repo_files("loopback/trained")
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= set(files)
    assert not [name for name in files if name.endswith((".bin", ".pt", ".pth")) or "checkpoint" in name]
    assert model_type(api) == "modernbert"
    assert api.model_info("loopback/trained").private
    assert notices == []
    # transformers takes `tie_weights` from every model of the process while it loads one
    assert loads == [True] * 3, "models were loaded in other threads than the training's"


@pytest.mark.parametrize(
    ("strategy", "folder"), [("checkpoint", "last-checkpoint"), ("all_checkpoints", "checkpoint-4")]
)
def test_checkpoints_are_published_where_they_are_asked_for(api, train, strategy, folder):
    *_, notices, left, _ = train(hub_strategy=strategy, hub_always_push=True, save_total_limit=1)
    files = api.list_repo_files("loopback/trained")
    assert {f"{folder}/optimizer.pt", f"{folder}/model.safetensors"} <= set(files), "the last push leaves it whole"
    assert "pickles" in notices[0]
    assert "checkpoint-4" in left
    assert not [name for name in files if name.endswith((".bin", ".pt")) and "checkpoint" not in name]


def test_at_the_end_and_to_a_branch(api, train):
    train(hub_strategy="end", push={"revision": "tries"})
    assert api.list_repo_files("loopback/trained") == [".gitattributes"]
    assert "model.safetensors" in api.list_repo_files("loopback/trained", revision="tries")
    assert api.list_repo_commits("loopback/trained", revision="tries")[0].title == "Done"
