"""The refusals of a Hub, in the words its clients look for.

`huggingface_hub` picks an exception class by the status and by the `X-Error-Code` header (`RepoNotFound`,
`RevisionNotFound`, `EntryNotFound`, `GatedRepo`), and shows `X-Error-Message`. Everything below the HTTP layer raises
`HubError`; only the HTTP layer turns it into a response.
"""

from collections.abc import Mapping
from typing import Any

# The client treats a 401 with exactly this message as a bad token, and any other 401 as a missing repository.
INVALID_TOKEN_MESSAGE = "Invalid credentials in Authorization header"


class HubError(Exception):
    """A request that the hub refuses.

    Args:
        status: HTTP status, 400 to 599.
        message: What was wrong; sent as `X-Error-Message` and as `error` in the JSON body.
        code: The `X-Error-Code`, where the clients know one for the case.
        headers: More response headers.
        details: More entries of the JSON body.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
        details: Mapping[str, Any] | None = None,
    ):
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.headers = dict(headers or {})
        self.details = dict(details or {})


def bad_request(message: str) -> HubError:
    """Return the refusal of a malformed request."""
    return HubError(400, message)


def repository_not_found(repo_id: str, *, anonymous: bool = False) -> HubError:
    """Return the refusal for a repository that does not exist, or that the asker may not know of.

    Args:
        repo_id: The repository as asked for.
        anonymous: Whether the request carried no token: the Hub then answers 401 instead of 404.
    """
    message = f"Repository {repo_id} not found" + ("; if it is private, send a token" if anonymous else "")
    return HubError(401 if anonymous else 404, message, code="RepoNotFound")


def revision_not_found(revision: str) -> HubError:
    """Return the refusal for a branch, tag or commit that the repository does not have."""
    return HubError(404, f"Invalid rev id: {revision}", code="RevisionNotFound")


def entry_not_found(path: str, commit_oid: str) -> HubError:
    """Return the refusal for a path that a commit does not hold; names the commit, so that clients can remember it."""
    message = f"Entry not found: {path}"
    return HubError(404, message, code="EntryNotFound", headers={"X-Repo-Commit": commit_oid})


def gated_repository(repo_id: str, *, anonymous: bool) -> HubError:
    """Return the refusal to serve the files of a gated repository to anybody but its owner."""
    message = f"Access to {repo_id} is restricted: it is gated, and only its owner is let in here"
    return HubError(401 if anonymous else 403, message, code="GatedRepo")
