"""Who is asking, and what they may do.

Rules, as on the Hub: a user writes to their own namespace; a private repository does not exist for others; the files
of a gated one are for its owner (nobody can ask for access here); anybody signed in may open a pull request on what
they can read.
"""

import hashlib
import hmac
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field

from mmbert_hf.testing.hub_errors import INVALID_TOKEN_MESSAGE, HubError, gated_repository, repository_not_found
from mmbert_hf.testing.hub_http import Request
from mmbert_hf.testing.hub_storage import HubStorage, Repository


@dataclass
class HubAccess:
    """What every route is given: the repositories, and who may do what with them.

    Attributes:
        storage: The repositories.
        tokens: User name by token.
        endpoint: URL of the hub, without a slash at the end.
    """

    storage: HubStorage
    tokens: Mapping[str, str] = field(repr=False)
    endpoint: str
    _upload_key: bytes = field(default_factory=lambda: secrets.token_bytes(32), repr=False)

    def user(self, request: Request) -> str | None:
        """Return who sent a request; None for nobody in particular.

        Raises:
            HubError: 401, if the token is unknown: also for what needs none, as on the Hub.
        """
        authorization = request.headers.get("Authorization")
        if authorization is None:
            return None
        scheme, _, token = authorization.partition(" ")
        user = self.tokens.get(token.strip())
        if scheme.lower() != "bearer" or user is None:
            raise HubError(401, INVALID_TOKEN_MESSAGE)
        return user

    def signed_in_user(self, request: Request) -> str:
        """Return who sent a request.

        Raises:
            HubError: 401 without a valid token.
        """
        user = self.user(request)
        if user is None:
            raise HubError(401, "Invalid username or password.")
        return user

    def readable(self, request: Request, kind: str, repo_id: str) -> Repository:
        """Return a repository that the sender may know of.

        Raises:
            HubError: 404, or 401 without a token, if there is none, or none for them.
        """
        user = self.user(request)
        repository = self.storage.find(kind, repo_id)
        if repository is None or (repository.state()["private"] and user != repository.owner):
            raise repository_not_found(repo_id, anonymous=user is None)
        return repository

    def downloadable(self, request: Request, kind: str, repo_id: str) -> Repository:
        """Return a repository whose files the sender may have.

        Raises:
            HubError: As `readable` does; 403 (401 without a token) if it is gated and not theirs.
        """
        repository = self.readable(request, kind, repo_id)
        user = self.user(request)
        if repository.state()["gated"] and user != repository.owner:
            raise gated_repository(repo_id, anonymous=user is None)
        return repository

    def writable(self, request: Request, kind: str, repo_id: str, *, pull_request: str | None = None) -> Repository:
        """Return a repository that the sender may change.

        Args:
            request: The request.
            kind: `models` or `datasets`.
            repo_id: `namespace/name`.
            pull_request: The number of the one pull request that is to change; its author may do that.

        Raises:
            HubError: As `readable` does; 401 without a token; 403 if it is not theirs.
        """
        user = self.signed_in_user(request)
        repository = self.readable(request, kind, repo_id)
        author = repository.state()["pull_requests"].get(pull_request, {}).get("author")
        if user not in (repository.owner, author):
            raise HubError(403, f"{user} has no right to write to {repo_id}")
        return repository

    def upload_signature(self, kind: str, repo_id: str, sha256: str, size: int) -> str:
        """Return what lets the bearer of a URL upload one object: clients send no token to upload URLs."""
        message = f"{kind} {repo_id} {sha256} {size}".encode()
        return hmac.new(self._upload_key, message, hashlib.sha256).hexdigest()

    def check_upload_signature(self, signature: str, kind: str, repo_id: str, sha256: str, size: int) -> None:
        """Raise HubError (403) unless this hub gave out the signature for this object."""
        if not hmac.compare_digest(signature, self.upload_signature(kind, repo_id, sha256, size)):
            raise HubError(403, "the upload URL was not signed by this hub")
