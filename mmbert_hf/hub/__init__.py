"""The Hub: publishing in one commit that is checked, and what is asked before anything is sent."""

from typing import TYPE_CHECKING

from mmbert_hf._lazy import attach

if TYPE_CHECKING:
    from mmbert_hf.hub.names import check_folder_or_hub_name, check_repo_id, require_token
    from mmbert_hf.hub.publication import Publication, publish

_HOME = {
    "Publication": "mmbert_hf.hub.publication",
    "check_folder_or_hub_name": "mmbert_hf.hub.names",
    "check_repo_id": "mmbert_hf.hub.names",
    "publish": "mmbert_hf.hub.publication",
    "require_token": "mmbert_hf.hub.names",
}

__all__ = ["Publication", "check_folder_or_hub_name", "check_repo_id", "publish", "require_token"]

__getattr__, __dir__ = attach(globals(), _HOME)
