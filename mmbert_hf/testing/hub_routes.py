"""Which route answers which request: the part of the Hub's interface that the clients here use.

In a template, `{kind}` is `models` or `datasets`, `{prefix}` is nothing or `datasets/`, `{repo_id}` is a repository,
`{revision}`, `{name}` and `{sha256}` are one part of a path each, `{path}` is the rest. Parts are percent-decoded
after matching: an encoded slash belongs to its part.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import unquote

from mmbert_hf.testing import hub_reads as reads
from mmbert_hf.testing import hub_writes as writes
from mmbert_hf.testing.hub_access import HubAccess
from mmbert_hf.testing.hub_errors import HubError
from mmbert_hf.testing.hub_http import Request, Response

_PLACEHOLDERS = {
    "kind": "(?P<kind>models|datasets)",
    "prefix": "(?P<prefix>datasets/)?",
    # One part too: old models have no namespace. There are none here, and the answer must be that there are none.
    "repo_id": "(?P<repo_id>[^/]+(?:/[^/]+)?)",
    "revision": "(?P<revision>[^/]+)",
    "name": "(?P<name>[^/]+)",
    "sha256": "(?P<sha256>[^/]+)",
    "path": "(?P<path>.+)",
}

_TABLE: tuple[tuple[str, str, Callable[..., Response]], ...] = (
    ("GET", "/api/whoami-v2", reads.whoami),
    ("POST", "/api/validate-yaml", writes.validate_yaml),
    ("POST", "/api/repos/create", writes.create_repository),
    ("DELETE", "/api/repos/delete", writes.delete_repository),
    ("GET", "/api/{kind}/{repo_id}/revision/{revision}", reads.repository_info),
    ("GET", "/api/{kind}/{repo_id}/tree/{revision}", reads.tree),
    ("GET", "/api/{kind}/{repo_id}/tree/{revision}/{path}", reads.tree),
    ("POST", "/api/{kind}/{repo_id}/paths-info/{revision}", reads.paths_info),
    ("GET", "/api/{kind}/{repo_id}/commits/{revision}", reads.commits),
    ("GET", "/api/{kind}/{repo_id}/refs", reads.refs),
    ("PUT", "/api/{kind}/{repo_id}/settings", writes.change_settings),
    ("POST", "/api/{kind}/{repo_id}/branch/{name}", writes.create_branch),
    ("DELETE", "/api/{kind}/{repo_id}/branch/{name}", writes.delete_branch),
    ("POST", "/api/{kind}/{repo_id}/tag/{revision}", writes.create_tag),
    ("DELETE", "/api/{kind}/{repo_id}/tag/{name}", writes.delete_tag),
    ("POST", "/api/{kind}/{repo_id}/preupload/{revision}", writes.preupload),
    ("POST", "/api/{kind}/{repo_id}/commit/{revision}", writes.commit),
    ("GET", "/api/{kind}/{repo_id}/xet-write-token/{revision}", writes.refuse_xet),
    ("GET", "/api/{kind}/{repo_id}", reads.repository_info),
    ("POST", "/{prefix}{repo_id}.git/info/lfs/objects/batch", writes.lfs_batch),
    ("PUT", "/{prefix}{repo_id}.git/info/lfs/objects/{sha256}", writes.lfs_upload),
    ("POST", "/{prefix}{repo_id}.git/info/lfs/verify", writes.lfs_verify),
    ("GET", "/{prefix}{repo_id}/resolve/{revision}/{path}", reads.resolve),
)


@dataclass(frozen=True)
class Route:
    """One line of the table.

    Attributes:
        method: `GET` answers `HEAD` too.
        pattern: What the whole, still encoded path must match.
        handler: Called with the hub, the request, and the decoded parts by name.
    """

    method: str
    pattern: re.Pattern[str]
    handler: Callable[..., Response]

    @classmethod
    def from_template(cls, method: str, template: str, handler: Callable[..., Response]) -> "Route":
        """Return the route of a template such as `/api/{kind}/{repo_id}/refs`."""
        escaped = template.replace(".", r"\.")
        return cls(method, re.compile(escaped.format(**_PLACEHOLDERS)), handler)

    def match(self, request: Request) -> dict[str, str] | None:
        """Return the decoded parts of a request's path, or None if the route is not for it."""
        method = "GET" if request.method == "HEAD" else request.method
        match = self.pattern.fullmatch(request.path) if method == self.method else None
        if match is None:
            return None
        parts = {name: unquote(part) for name, part in match.groupdict(default="").items()}
        if "prefix" in parts:
            parts["kind"] = "datasets" if parts.pop("prefix") else "models"
        return parts


ROUTES = tuple(Route.from_template(*line) for line in _TABLE)


def answer(hub: HubAccess, request: Request) -> Response:
    """Return the response to a request.

    Args:
        hub: The repositories, and who may do what with them.
        request: The request.

    Raises:
        HubError: The refusal, where there is one; 501 for what the hub does not do.
    """
    for route in ROUTES:
        parts = route.match(request)
        if parts is not None:
            return route.handler(hub, request, **parts)
    raise HubError(501, f"LoopbackHub does not serve {request.method} {unquote(request.path)}")
