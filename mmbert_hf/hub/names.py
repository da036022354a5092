"""The Hub, before anything is sent: is there a token, does the Hub take it, can this be the name of something there?"""

import re
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError
from huggingface_hub.utils import validate_repo_id

__all__ = ["check_folder_or_hub_name", "check_repo_id", "is_hub_name", "public_name", "require_token"]


def require_token(api: HfApi) -> str:
    """Return the user that the Hub knows the client's token as.

    Args:
        api: Client; its token, else the one stored on this machine or in ``HF_TOKEN``, is asked about.

    Raises:
        PermissionError: There is no token, or the Hub refuses it. The token itself is not in the message.

    Example:
        >>> from huggingface_hub import HfApi
        >>> from mmbert_hf.testing import LoopbackHub
        >>> with LoopbackHub() as hub:
        ...     require_token(HfApi(endpoint=hub.endpoint, token=hub.token))
        'loopback'
    """
    try:
        return str(api.whoami()["name"])
    except LocalTokenNotFoundError as error:
        raise PermissionError(
            f"no token for the Hub at {api.endpoint}; run `hf auth login`, or set HF_TOKEN to one with write access"
        ) from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status not in (401, 403):
            raise
        raise PermissionError(
            f"the Hub at {api.endpoint} refuses the token ({status}); make a new one with write access in your "
            "account's settings, then run `hf auth login` or set HF_TOKEN"
        ) from error


def check_folder_or_hub_name(name: str) -> None:
    """Refuse a mistyped folder at once: without a connection, asking the Hub for it takes minutes.

    Args:
        name: A folder, or the name of a repository on the Hub, which is ``owner/name``.

    Raises:
        FileNotFoundError: There is no such folder, and it is no name of a repository either.

    Example:
        >>> check_folder_or_hub_name("jhu-clsp/mmBERT-base")
        >>> check_folder_or_hub_name("./no-such-folder")
        Traceback (most recent call last):
            ...
        FileNotFoundError: there is no folder './no-such-folder', and a name on the Hub is owner/name
    """
    if not Path(name).is_dir() and not is_hub_name(name):
        raise FileNotFoundError(f"there is no folder {name!r}, and a name on the Hub is owner/name")


def is_hub_name(name: str) -> bool:
    """Return whether this has the form of a repository's full name, ``owner/name``.

    Example:
        >>> is_hub_name("jhu-clsp/mmBERT-base"), is_hub_name("./models")
        (True, False)
    """
    return re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name, re.ASCII) is not None


def public_name(name: object) -> str | None:
    """The name of a model if it can be one on the Hub, and is no folder of this machine; else None.

    Example:
        >>> public_name("jhu-clsp/mmBERT-base"), public_name("/home/me/model"), public_name(None)
        ('jhu-clsp/mmBERT-base', None, None)
    """
    return name if isinstance(name, str) and is_hub_name(name) and not Path(name).exists() else None


def check_repo_id(repo_id: str) -> None:
    """Refuse what cannot be the name of a repository: ``owner/name``, or a name of your own.

    Raises:
        ValueError: It cannot be one; the message says why.

    Example:
        >>> check_repo_id("me/small-model")
        >>> check_repo_id("me/small model")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        ValueError: 'me/small model' cannot be the name of a repository on the Hub: give owner/name, ...
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(
            f"{repo_id!r} cannot be the name of a repository on the Hub: give owner/name, each of at most 96 letters, "
            "digits, -, _ and ., not ending in - or ."
        ) from error
