"""Files to a repository in one commit, whatever fails on the way.

Design decisions:

- What is there is looked at first: nothing is sent that is there already, and where nothing has changed there is no commit.
- The commit names its parent. If somebody else was faster, the repository is looked at again and the commit made anew.
- An answer that got lost says nothing about the commit: before it is repeated, the repository is looked at. If the files
  are there, the commit was made. A pull request is looked for in the same way among the last ones, so that there are never
  two, also when the whole call is repeated.
- In the end the files of the commit are listed and their hashes compared with those on this machine.
- Files of an earlier model that the new one does not have (`REPLACED`) go in the same commit; all others stay, and so do
  whole checkpoints that a trainer has published beside the model.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

from mmbert_hf.hub.local_files import LocalFile
from mmbert_hf.hub.retries import Retries, request_error
from mmbert_hf.output_folders import TOKENIZER_FILES, WEIGHT_FILES

__all__ = ["Destination", "Uploaded", "upload"]

logger = logging.getLogger(__name__)

REPLACED = (*WEIGHT_FILES, *TOKENIZER_FILES, "vocab*", "merges.txt", "onnx/*")
CHECKPOINTS = ("checkpoint-*", "last-checkpoint")  # folders that Trainer publishes by itself, with weights of their own
CONFLICTS = 5  # commits of others that are waited for
PULL_REQUESTS = 10  # the newest, which are looked through


@dataclass(frozen=True)
class Destination:
    """Where files go, and how.

    Attributes:
        repo_id: ``owner/name``.
        repo_type: "model" or "dataset".
        revision: Branch, made if it is not there; None for the main one.
        create_pr: Open a pull request in place of a commit.
        private: Of a new repository; None is the default of the account.
        commit_message: Its first line.
        exist_ok: Whether the repository may exist.
    """

    repo_id: str
    repo_type: str = "model"
    revision: str | None = None
    create_pr: bool = False
    private: bool | None = None
    commit_message: str = "Upload model"
    exist_ok: bool = True


@dataclass(frozen=True)
class Uploaded:
    """What became of an upload.

    Attributes:
        url: Of the pull request, else of the commit that holds the files.
        commit: Its id.
        changed: Whether there was anything to send.
    """

    url: str
    commit: str
    changed: bool


def upload(api: HfApi, files: Mapping[str, LocalFile], destination: Destination, retries: Retries) -> Uploaded:
    """Make a repository hold some files.

    Args:
        api: Client, with a token that works.
        files: By path in the repository.
        destination: Where they go.
        retries: How long is waited in all.

    Raises:
        ValueError: The repository is public and is asked to be private.
        FileExistsError: The repository exists and may not.
        OSError: What the Hub lists after the commit is not what was sent.
        HfHubHTTPError: A request failed, and failed again as often as it could be repeated.
    """
    repository = _Repository(api, destination, retries)
    repository.prepare()
    conflicts = attempts = 0
    while True:
        head = repository.head()
        there = repository.tree(head)
        if _holds(there, files) and not _stale(there, files):
            return Uploaded(repository.commit_url(head), head, changed=attempts > 0)
        if destination.create_pr and (found := repository.pull_request_with(files)) is not None:
            return found
        attempts += 1
        try:
            uploaded = repository.commit(_operations(there, files), head)
        except Exception as error:
            reason = request_error(error)
            is_conflict = isinstance(reason, HfHubHTTPError) and reason.response.status_code in (409, 412)
            if is_conflict and conflicts < CONFLICTS:
                conflicts += 1
            else:
                retries.wait(error, attempts - 1)
        else:
            repository.verify(uploaded, files)
            return uploaded


class _Repository:
    """The repository that files go to."""

    def __init__(self, api: HfApi, destination: Destination, retries: Retries) -> None:
        self.api, self.destination, self.retries = api, destination, retries
        self.where: dict[str, Any] = {"repo_id": destination.repo_id, "repo_type": destination.repo_type}

    def prepare(self) -> None:
        """See that repository and branch are there, and private if that is asked for."""
        wanted = self.destination
        info = self._call(self._info)
        if info is not None and not wanted.exist_ok:
            raise FileExistsError(
                f"{wanted.repo_id} exists already; give another name, or exist_ok=True to add a commit to it"
            )
        if info is None:
            try:
                self._call(lambda: self.api.create_repo(**self.where, private=wanted.private))
            except HfHubHTTPError as error:
                if error.response.status_code != 409:  # made by an attempt whose answer was lost, or by somebody else
                    raise
            info = self._call(lambda: self.api.repo_info(**self.where))
        if wanted.private and not info.private:
            raise ValueError(
                f"{wanted.repo_id} exists and is public, and you asked for private: change it in its settings, or give "
                "another name; nothing was sent"
            )
        if wanted.revision is None or wanted.create_pr:
            return
        branches = self._call(lambda: self.api.list_repo_refs(**self.where)).branches
        if wanted.revision not in [branch.name for branch in branches]:
            self._call(lambda: self.api.create_branch(**self.where, branch=wanted.revision, exist_ok=True))

    def _info(self) -> Any:
        try:
            return self.api.repo_info(**self.where)
        except RepositoryNotFoundError as error:
            if error.response.status_code != 404:
                raise
            return None

    def head(self) -> str:
        """The commit that ours follows."""
        return str(self._call(lambda: self.api.repo_info(**self.where, revision=self.destination.revision)).sha)

    def tree(self, revision: str) -> dict[str, Any]:
        """Files of a commit by path."""
        entries = self._call(
            lambda: list(self.api.list_repo_tree(**self.where, revision=revision, recursive=True, expand=False))
        )
        return {entry.path: entry for entry in entries if hasattr(entry, "blob_id")}

    def commit(self, operations: list[Any], parent: str) -> Uploaded:
        """Make the commit, or the pull request. Not repeated here: what became of it is looked up first."""
        wanted = self.destination
        made = self.api.create_commit(
            **self.where,
            operations=operations,
            commit_message=wanted.commit_message,
            revision=wanted.revision,
            create_pr=wanted.create_pr,
            parent_commit=parent,
        )
        return Uploaded(str(made.pr_url or made.commit_url), made.oid, changed=True)

    def pull_request_with(self, files: Mapping[str, LocalFile]) -> Uploaded | None:
        """The newest pull request that holds the files, if one of the last ones does."""
        refs = self._call(lambda: self.api.list_repo_refs(**self.where, include_pull_requests=True)).pull_requests or []
        newest = sorted(refs, key=lambda ref: int(ref.name.rpartition("/")[2]), reverse=True)
        for ref in newest[:PULL_REQUESTS]:
            there = self.tree(ref.target_commit)
            if _holds(there, files) and not _stale(there, files):
                number = ref.name.rpartition("/")[2]
                return Uploaded(f"{self._address()}/discussions/{number}", ref.target_commit, changed=True)
        return None

    def verify(self, uploaded: Uploaded, files: Mapping[str, LocalFile]) -> None:
        """Compare what the Hub lists with what was sent."""
        there = self.tree(uploaded.commit)
        wrong = [path for path, file in files.items() if not _is_same(there.get(path), file)]
        if wrong:
            raise OSError(
                f"{uploaded.url}: what the Hub lists is not what was sent ({', '.join(wrong)}); publish again, and do not "
                "use that commit"
            )

    def commit_url(self, oid: str) -> str:
        """The address of a commit."""
        return f"{self._address()}/commit/{oid}"

    def _address(self) -> str:
        prefix = "datasets/" if self.destination.repo_type == "dataset" else ""
        return f"{self.api.endpoint}/{prefix}{self.destination.repo_id}"

    def _call(self, function: Callable[[], Any]) -> Any:
        return self.retries.call(function)


def _is_same(remote: Any, local: LocalFile) -> bool:
    if remote is None:
        return False
    if remote.lfs is not None:
        return bool(remote.lfs.sha256 == local.sha256)
    return bool(remote.blob_id == local.git_sha1)


def _holds(there: Mapping[str, Any], files: Mapping[str, LocalFile]) -> bool:
    return all(_is_same(there.get(path), file) for path, file in files.items())


def _stale(there: Mapping[str, Any], files: Mapping[str, LocalFile]) -> list[str]:
    """Files of an earlier model, which would be loaded beside, or in place of, the new one."""
    return sorted(
        path
        for path in there
        if path not in files
        and any(fnmatch(path, pattern) for pattern in REPLACED)
        and not any(fnmatch(path.partition("/")[0], pattern) for pattern in CHECKPOINTS)
    )


def _operations(there: Mapping[str, Any], files: Mapping[str, LocalFile]) -> list[Any]:
    added = [
        CommitOperationAdd(path_in_repo=path, path_or_fileobj=str(file.path))
        for path, file in files.items()
        if not _is_same(there.get(path), file)
    ]
    return added + [CommitOperationDelete(path_in_repo=path) for path in _stale(there, files)]
