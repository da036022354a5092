"""A pruned embedder goes to the Hub in one commit, and comes back where this package is not installed."""

import copy
import urllib.request

import datasets
import pytest
import torch
from huggingface_hub import HfApi

from mmbert_hf.pruning import GAPruneConfig, GAPruner
from mmbert_hf.pruning.result import MASK_FILE

REPO = "loopback/small"
TEXTS = ["All human beings are born free", "slavery", "Øll menniskju"]


@pytest.fixture(scope="module")
def dense(tokenizer, tmp_path_factory):
    """A tiny mmBERT embedder."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    from mmbert_hf import MMBertConfig, MMBertModel

    torch.manual_seed(0)
    config = MMBertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=40,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=64,
        local_attention=8,
        initializer_range=0.2,
    )
    folder = tmp_path_factory.mktemp("dense")
    MMBertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    transformer = Transformer(str(folder))
    return SentenceTransformer(
        modules=[transformer, Pooling(32, pooling_mode="mean"), Normalize()], device="cpu"
    ).eval()


@pytest.fixture
def prune(dense, sentences):
    def run(**options):
        texts = sentences["eng"] * 2
        sets = [
            datasets.Dataset.from_dict({"anchor": some, "positive": texts, "negative": texts[::-1]})
            for some in (["born", "free", "equal", "dignity"], ["held", "no one", "rights", "slavery"])
        ]
        args = GAPruneConfig(**{"method": "magnitude", "width_multiple": 4, **options})
        return GAPruner(copy.deepcopy(dense), *sets, args).prune(progress=False)

    return run


@pytest.fixture(autouse=True)
def endpoint(hub, monkeypatch):
    """`HfApi` reads the endpoint when it is made; the functions that read it earlier run in processes of their own."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.endpoint)
    monkeypatch.setattr("transformers.utils.hub._hf_api", None)  # a client that another test may have made
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


def files(api, **options):
    return set(api.list_repo_files(REPO, **options))


def commits(api, **options):
    return [commit.title for commit in api.list_repo_commits(REPO, **options)]


def test_published_in_one_commit_and_loaded_without_this_package(hub, api, prune, run_client):
    pruned = prune(granularity="vocabulary,weight")
    url = pruned.push_to_hub("small", token=hub.token, license="mit", tags=["law"])
    assert url.startswith(f"{hub.endpoint}/{REPO}/commit/")
    assert commits(api)[0] == "Add a pruned embedder"
    assert len(commits(api)) == 2  # the first is that of the empty repository
    assert {"model.safetensors", "config.json", "modules.json", MASK_FILE, "pruning.json", "README.md"} <= files(api)
    card_data = api.model_info(REPO).card_data
    assert card_data.library_name == "sentence-transformers"
    assert "law" in card_data.tags
    assert card_data.license == "mit"
    assert f'SentenceTransformer("{REPO}")' in published_card(hub)
    assert pruned.push_to_hub(REPO, token=hub.token, license="mit", tags=["law"]) == url, "nothing has changed"
    assert len(commits(api)) == 2
    given = run_client(
        hub,
        f"""
        import json, sys
        sys.modules["mmbert_hf"] = None  # an import of it fails
        from sentence_transformers import SentenceTransformer
        model = SentenceTransformer({REPO!r}, device="cpu")
        vectors = model.encode({TEXTS!r}, show_progress_bar=False)
        print(json.dumps([type(model[0].auto_model).__name__, vectors.tolist()]))
        """,
    )
    assert given[0] == "ModernBertModel"
    expected = pruned.model.encode(TEXTS, convert_to_tensor=True, show_progress_bar=False)
    torch.testing.assert_close(torch.tensor(given[1]), expected, rtol=1e-4, atol=1e-5)


def published_card(hub):
    request = urllib.request.Request(
        f"{hub.endpoint}/{REPO}/resolve/main/README.md", headers={"Authorization": f"Bearer {hub.token}"}
    )
    with urllib.request.urlopen(request) as answer:
        return answer.read().decode()


def test_loaded_from_the_hub_to_go_on(hub, prune, run_client):
    pruned = prune(sparsity=0.5)
    pruned.push_to_hub(REPO, token=hub.token, private=True)
    given = run_client(
        hub,
        f"""
        import json
        from mmbert_hf.pruning import PrunedEmbedder
        pruned = PrunedEmbedder.from_pretrained({REPO!r}, device="cpu")
        try:
            PrunedEmbedder.from_pretrained("loopback/nothing")
        except OSError as error:
            missing = type(error).__name__
        print(json.dumps([pruned.mask.fingerprint, pruned.report.args["method"], missing]))
        """,
    )
    assert given == [pruned.mask.fingerprint, "magnitude", "RepositoryNotFoundError"]


def test_an_interrupted_push_leaves_the_old_model_and_can_be_repeated(hub, api, prune):
    first = prune(sparsity=0.5)
    first.push_to_hub(REPO, token=hub.token)
    before, paths = api.model_info(REPO).sha, files(api)
    second = prune(granularity="ffn")
    hub.fail_next(400, method="POST", path_contains="/commit/")
    with pytest.raises(ValueError, match=r"refuses this for loopback/small \(400\)"):
        second.push_to_hub(REPO, token=hub.token)
    assert any(record.method == "PUT" and record.status == 200 for record in hub.requests), "files had been uploaded"
    assert (api.model_info(REPO).sha, files(api)) == (before, paths)
    second.push_to_hub(REPO, token=hub.token)
    assert files(api) == paths - {MASK_FILE}, "the mask of the old model went with it"
    assert len(commits(api)) == 3


def test_a_first_push_that_fails_leaves_no_file(hub, api, prune):
    pruned = prune(granularity="ffn")
    hub.fail_next(400, method="POST", path_contains="/commit/")
    with pytest.raises(ValueError, match=r"refuses this for loopback/small \(400\)"):
        pruned.push_to_hub(REPO, token=hub.token)
    assert files(api) <= {".gitattributes"}
    pruned.push_to_hub(REPO, token=hub.token)
    assert "model.safetensors" in files(api)


def test_flags(hub, api, prune):
    pruned = prune(granularity="ffn")
    pruned.push_to_hub(REPO, token=hub.token, private=True, commit_message="first")
    assert api.model_info(REPO).private
    assert commits(api)[0] == "first"
    pruned.push_to_hub(REPO, token=hub.token, revision="narrow", commit_message="narrow", tags=["new"])
    assert commits(api, revision="narrow")[0] == "narrow"
    assert commits(api)[0] == "first"
    url = pruned.push_to_hub(REPO, token=hub.token, create_pr=True, tags=["proposed"])
    assert "/discussions/" in url
    assert commits(api)[0] == "first"
    with pytest.raises(FileExistsError, match="loopback/small exists already"):
        pruned.push_to_hub(REPO, token=hub.token, exist_ok=False)


def test_private_is_not_pushed_into_the_open(hub, api, prune):
    api.create_repo(REPO)
    with pytest.raises(ValueError, match="exists and is public"):
        prune(granularity="ffn").push_to_hub(REPO, token=hub.token, private=True)
    assert files(api) <= {".gitattributes"}


def test_mistakes_are_told_before_anything_is_written(hub, prune, monkeypatch, tmp_path):
    from mmbert_hf.pruning import result

    pruned = prune(granularity="ffn")
    monkeypatch.setattr(result, "save_embedder", lambda *_, **__: pytest.fail("work was done"))
    with pytest.raises(PermissionError, match="refuses the token"):
        pruned.push_to_hub(REPO, token="hf_wrong")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(PermissionError, match="no token"):
        pruned.push_to_hub(REPO)
    with pytest.raises(ValueError, match="cannot be the name of a repository"):
        pruned.push_to_hub("not a name/", token=hub.token)
    assert HfApi(endpoint=hub.endpoint, token=hub.token).repo_exists(REPO) is False
