"""Routes that write: repositories, settings, refs, and the three steps of an upload.

An upload is: `preupload`, where the client learns which files are large and which are there already; then for the
large ones git-lfs (`lfs_batch`, `lfs_upload`, `lfs_verify`); then `commit`, which carries the small ones itself.
"""

import base64
import binascii
import json
import logging
from typing import Any

from mmbert_hf.testing.hub_access import HubAccess
from mmbert_hf.testing.hub_cards import parse_card
from mmbert_hf.testing.hub_errors import HubError, bad_request
from mmbert_hf.testing.hub_http import Request, Response
from mmbert_hf.testing.hub_objects import (
    DeleteFile,
    DeleteFolder,
    Operation,
    check_file_path,
    check_name,
    check_sha256,
    should_be_large,
)
from mmbert_hf.testing.hub_storage import DEFAULT_BRANCH, Repository

logger = logging.getLogger(__name__)

_KINDS = {"model": "models", "dataset": "datasets"}
_URL_PREFIXES = {"models": "", "datasets": "datasets/"}


# Repositories


def create_repository(hub: HubAccess, request: Request) -> Response:
    """Answer `create_repo`."""
    user = hub.signed_in_user(request)
    body = request.json()
    kind, repo_id = _named_repository(body, user)
    if repo_id.partition("/")[0] != user:
        raise HubError(403, f"{user} has no right to create a {body.get('type', 'model')} at {repo_id}")
    url = repository_url(hub, kind, repo_id)
    try:
        hub.storage.create(kind, repo_id, author=user, private=_is_private(body) or False)
    except HubError as error:
        if error.status == 409:  # with `exist_ok` the client goes on with the URL
            error.details["url"] = url
        raise
    return Response(values={"url": url, "name": repo_id})


def delete_repository(hub: HubAccess, request: Request) -> Response:
    """Answer `delete_repo`."""
    kind, repo_id = _named_repository(request.json(), hub.signed_in_user(request))
    hub.storage.delete(hub.writable(request, kind, repo_id))
    return Response(values={})


def change_settings(hub: HubAccess, request: Request, kind: str, repo_id: str) -> Response:
    """Answer `update_repo_settings`: visibility and gating."""
    repository = hub.writable(request, kind, repo_id)
    body = request.json()
    settings: dict[str, Any] = {}
    private = _is_private(body)
    if private is not None:
        settings["private"] = private
    if "gated" in body:
        if body["gated"] not in (False, "auto", "manual"):
            raise bad_request(f"gated must be false, 'auto' or 'manual', got {body['gated']!r}")
        settings["gated"] = body["gated"]
    repository.change_settings(**settings)
    return Response(values=settings)


def create_branch(hub: HubAccess, request: Request, kind: str, repo_id: str, name: str) -> Response:
    """Answer `create_branch`."""
    start = request.json().get("startingPoint", DEFAULT_BRANCH)
    hub.writable(request, kind, repo_id).create_ref("heads", name, start)
    return Response(values={})


def delete_branch(hub: HubAccess, request: Request, kind: str, repo_id: str, name: str) -> Response:
    """Answer `delete_branch`."""
    hub.writable(request, kind, repo_id).delete_ref("heads", name)
    return Response(values={})


def create_tag(hub: HubAccess, request: Request, kind: str, repo_id: str, revision: str) -> Response:
    """Answer `create_tag`. The tag's message is not kept: no client can ask for it."""
    hub.writable(request, kind, repo_id).create_ref("tags", request.json().get("tag", ""), revision)
    return Response(values={})


def delete_tag(hub: HubAccess, request: Request, kind: str, repo_id: str, name: str) -> Response:
    """Answer `delete_tag`."""
    hub.writable(request, kind, repo_id).delete_ref("tags", name)
    return Response(values={})


def validate_yaml(hub: HubAccess, request: Request) -> Response:
    """Answer `ModelCard.validate`, and the check before an upload: whether the card's header is a YAML mapping."""
    try:
        parse_card(request.json().get("content", ""))
    except ValueError as error:
        raise HubError(400, str(error), details={"errors": [{"message": str(error)}], "warnings": []}) from error
    return Response(values={"errors": [], "warnings": []})


# Uploads


def preupload(hub: HubAccess, request: Request, kind: str, repo_id: str, revision: str) -> Response:
    """Tell for each file whether it is a large one, and the id of the one that is there.

    Clients leave a file out of the commit when its id is the same, and the commit when nothing is left.
    """
    repository = _open_for_commit(hub, request, kind, repo_id, revision)
    stored = repository.find_commit(revision).files
    files = []
    for file in request.json().get("files", []):
        path = check_file_path(file.get("path"))
        mode = "lfs" if should_be_large(path, file.get("size", 0)) else "regular"
        oid = stored[path].etag if path in stored else None
        files.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
    return Response(values={"files": files})


def lfs_batch(hub: HubAccess, request: Request, kind: str, repo_id: str) -> Response:
    """Tell where to upload each large object; nothing to do for those that are there."""
    hub.signed_in_user(request)  # whether they may commit is asked at the commit, since it may be a pull request
    repository = hub.readable(request, kind, repo_id)
    base = f"{repository_url(hub, kind, repo_id)}.git/info/lfs"
    objects = []
    for wanted in request.json().get("objects", []):
        sha256, size = check_sha256(wanted.get("oid")), int(wanted.get("size", 0))
        answer: dict[str, Any] = {"oid": sha256, "size": size}
        if not repository.blob_path(sha256).exists():
            signature = hub.upload_signature(kind, repo_id, sha256, size)
            href = f"{base}/objects/{sha256}?size={size}&signature={signature}"
            answer["actions"] = {"upload": {"href": href}, "verify": {"href": f"{base}/verify"}}
        objects.append(answer)
    return Response(values={"transfer": "basic", "objects": objects})


def lfs_upload(hub: HubAccess, request: Request, kind: str, repo_id: str, sha256: str) -> Response:
    """Take the content of a large object, if it has the hash and the size that it was announced with."""
    size = int(request.query.get("size", ["0"])[0])
    signature = request.query.get("signature", [""])[0]
    hub.check_upload_signature(signature, kind, repo_id, sha256, size)
    repository = hub.storage.find(kind, repo_id)
    if repository is None:
        raise HubError(404, f"{repo_id} was deleted", code="RepoNotFound")
    repository.add_blob(request.body, sha256=sha256, size=size)
    return Response(values={})


def lfs_verify(hub: HubAccess, request: Request, kind: str, repo_id: str) -> Response:
    """Tell the uploader whether an object arrived."""
    hub.signed_in_user(request)
    repository = hub.readable(request, kind, repo_id)
    body = request.json()
    blob = repository.blob_path(check_sha256(body.get("oid")))
    if not blob.exists() or blob.stat().st_size != body.get("size"):
        raise HubError(404, f"no object {body.get('oid')} of {body.get('size')} bytes")
    return Response(values={})


def commit(hub: HubAccess, request: Request, kind: str, repo_id: str, revision: str) -> Response:
    """Answer `create_commit`: one JSON object a line, first the message, then what to change."""
    repository = _open_for_commit(hub, request, kind, repo_id, revision)
    header, operations = _read_commit(repository, request.content)
    made, pull_request = repository.commit(
        revision,
        operations,
        author=hub.signed_in_user(request),
        title=header["summary"],
        message=header.get("description", ""),
        parent_commit=header.get("parentCommit"),
        as_pull_request=request.has_flag("create_pr"),
    )
    url = repository_url(hub, kind, repo_id)
    values: dict[str, Any] = {"success": True, "commitOid": made.oid, "commitUrl": f"{url}/commit/{made.oid}"}
    if pull_request is not None:
        values["pullRequestUrl"] = f"{url}/discussions/{pull_request}"
    return Response(values=values)


def refuse_xet(hub: HubAccess, request: Request, kind: str, repo_id: str, revision: str) -> Response:
    """Tell a client that wants to upload by Xet what to do instead."""
    message = "LoopbackHub has no Xet storage: set HF_HUB_DISABLE_XET=1 before huggingface_hub is imported"
    logger.warning(message)  # the client's own error shows the status only
    raise HubError(501, message)


def repository_url(hub: HubAccess, kind: str, repo_id: str) -> str:
    """Return the address of a repository."""
    return f"{hub.endpoint}/{_URL_PREFIXES[kind]}{repo_id}"


def _named_repository(body: dict[str, Any], user: str) -> tuple[str, str]:
    """Return kind and id of the repository that a request names in its body."""
    kind = _KINDS.get(body.get("type") or "model")
    if kind is None:
        raise bad_request(f"LoopbackHub keeps models and datasets, not {body.get('type')!r}")
    namespace = check_name(body.get("organization") or user, "a namespace")
    return kind, f"{namespace}/{check_name(body.get('name'), 'the name of a repository')}"


def _is_private(body: dict[str, Any]) -> bool | None:
    """Return the visibility that a request sets (as `visibility`; older clients: `private`), or None if it does not."""
    visibility = body.get("visibility")
    if visibility is None:
        return body.get("private")
    if visibility not in ("public", "private"):
        raise bad_request(f"visibility must be 'public' or 'private', got {visibility!r}")
    return visibility == "private"


def _open_for_commit(hub: HubAccess, request: Request, kind: str, repo_id: str, revision: str) -> Repository:
    if request.has_flag("create_pr"):
        hub.signed_in_user(request)
        return hub.readable(request, kind, repo_id)
    prefix, _, number = revision.rpartition("/")
    return hub.writable(request, kind, repo_id, pull_request=number if prefix == "refs/pr" else None)


def _read_commit(repository: Repository, content: bytes) -> tuple[dict[str, Any], list[Operation]]:
    """Return a commit's header and operations; small files are kept on the way."""
    header: Any = None
    operations: list[Operation] = []
    try:
        for line in content.splitlines():
            item = json.loads(line)
            key, value = item["key"], item["value"]
            if key == "header":
                header = value
            else:
                operations.append(_read_operation(repository, key, value))
    except (ValueError, KeyError, TypeError) as error:
        raise bad_request(f"a commit must be lines of JSON with a key and a value: {error!r}") from error
    if not isinstance(header, dict) or not header.get("summary"):
        raise bad_request("a commit needs a header with a summary")
    return header, operations


def _read_operation(repository: Repository, key: str, value: dict[str, Any]) -> Operation:
    # A folder may come with a slash at the end.
    path = check_file_path(value["path"].removesuffix("/") if key == "deletedFolder" else value["path"])
    match key:
        case "file":
            return repository.put_regular(path, _read_content(path, value))
        case "lfsFile":
            return repository.put_large(path, check_sha256(value["oid"]), value.get("size"))
        case "deletedFile":
            return DeleteFile(path)
        case "deletedFolder":
            return DeleteFolder(path)
    raise bad_request(f"unknown commit operation {key!r}")


def _read_content(path: str, value: dict[str, Any]) -> bytes:
    if value.get("encoding", "utf-8") == "base64":
        try:
            content = base64.b64decode(value["content"], validate=True)
        except binascii.Error as error:
            raise bad_request(f"{path} is no base64: {error}") from error
    else:
        content = value["content"].encode()
    if path == "README.md":
        try:
            parse_card(content.decode())
        except ValueError as error:  # also what is no UTF-8
            raise bad_request(str(error)) from error
    return content
