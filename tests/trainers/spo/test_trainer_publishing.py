"""A policy and its tracker on the Hub, by the trainer's own push."""

import pytest
from huggingface_hub import HfApi

from mmbert_hf.testing import LoopbackHub

pytestmark = pytest.mark.filterwarnings(
    "ignore:`(is_)?gradient_checkpointing\\w*` is deprecated:FutureWarning"  # TRL 1.16 with transformers 5.23: TRL's own
)


@pytest.fixture
def hub(monkeypatch):
    with LoopbackHub() as hub:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.endpoint)
        monkeypatch.setattr("transformers.utils.hub._hf_api", None)  # a client that another test may have made
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", hub.token)
        yield hub


def test_policy_and_tracker(spo, hub):
    api = HfApi(endpoint=hub.endpoint, token=hub.token)
    trainer = spo(
        max_steps=2, save_strategy="steps", save_steps=1, push_to_hub=True, hub_model_id="loopback/policy",
        hub_private_repo=True, hub_strategy="every_save", hub_always_push=True,
    )  # fmt: skip
    trainer.train()
    info = trainer.push_to_hub(commit_message="Done")
    titles = [commit.title for commit in api.list_repo_commits("loopback/policy")]
    assert titles[0] == "Training in progress, step 2", "which is the model at the end: nothing was left to push"
    assert "Training in progress, step 1" in titles
    assert info.oid == api.model_info("loopback/policy").sha
    files = api.list_repo_files("loopback/policy")
    assert {"config.json", "model.safetensors", "README.md"} <= set(files)
    assert not [name for name in files if name.endswith((".pt", ".bin")) or name.startswith(("spo_", "checkpoint"))]
    card = api.model_info("loopback/policy").card_data
    assert {"trl", "spo", "mmbert-hf"} <= set(card.tags)
    assert card.library_name == "transformers"
    address = trainer.push_tracker_to_hub("loopback/values", private=True)
    assert address.startswith(f"{hub.endpoint}/datasets/loopback/values/commit/")
    assert {"README.md", "tracker.json"} <= set(api.list_repo_files("loopback/values", repo_type="dataset"))
