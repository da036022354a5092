"""The Hub, before anything is sent: is there a token, and does the Hub take it?"""

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError


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
