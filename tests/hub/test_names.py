import doctest

import pytest
from huggingface_hub import HfApi

from mmbert_hf.hub import names as module
from mmbert_hf.hub import require_token


def test_examples_in_the_docstrings():
    result = doctest.testmod(module)
    assert result.attempted >= 5
    assert result.failed == 0


def test_the_user_is_known(hub):
    assert require_token(HfApi(endpoint=hub.endpoint, token=hub.token)) == "loopback"


def test_a_refused_token_is_one_error_without_the_token(hub):
    with pytest.raises(
        PermissionError, match=r"http://127.0.0.1:\d+ refuses the token \(401\).*hf auth login"
    ) as caught:
        require_token(HfApi(endpoint=hub.endpoint, token="hf_wrong_and_secret"))
    assert "secret" not in str(caught.value)


def test_no_token_is_one_error(hub, monkeypatch, tmp_path):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(PermissionError, match=r"no token for the Hub at .*HF_TOKEN"):
        require_token(HfApi(endpoint=hub.endpoint))


def test_other_errors_stay_what_they_are(hub):
    from huggingface_hub.errors import HfHubHTTPError

    hub.fail_next(500, path_contains="whoami", times=10)
    with pytest.raises(HfHubHTTPError):
        require_token(HfApi(endpoint=hub.endpoint, token=hub.token))
