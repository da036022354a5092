"""The name of a model on the command line: a folder or ``owner/name``, and what happens where the Hub cannot be reached."""

import logging
import os
from pathlib import Path

__all__ = ["cache_alone_without_hub", "check_model_name"]

logger = logging.getLogger(__name__)

SECONDS = 5.0


def check_model_name(name: str) -> None:
    """Refuse what is neither a folder nor a name on the Hub, and look for the Hub where it is a name.

    Raises:
        FileNotFoundError: There is no such folder, and it is no name of a repository either.
    """
    from mmbert_hf.hub import check_folder_or_hub_name

    check_folder_or_hub_name(name)
    if not Path(name).is_dir():
        cache_alone_without_hub()


def cache_alone_without_hub() -> None:
    """Look for the Hub once. If it cannot be reached, this process uses the cache alone, as with ``HF_HUB_OFFLINE=1``.

    Otherwise every file of a model would be asked for six times in half a minute, also those that are in the cache.
    """
    from huggingface_hub import constants, get_session

    from mmbert_hf._compat import transport_error

    if constants.HF_HUB_OFFLINE:
        return
    try:
        get_session().head(constants.ENDPOINT, timeout=SECONDS)
    except transport_error() as error:
        reason = str(error) or type(error).__name__
        logger.warning(
            "the Hub at %s cannot be reached (%s): only what is in the cache is used", constants.ENDPOINT, reason
        )
        constants.HF_HUB_OFFLINE = True
        os.environ["HF_HUB_OFFLINE"] = "1"  # of libraries that are imported later, and of processes that are started
