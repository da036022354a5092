"""Repositories on disk.

    FOLDER/models/NAMESPACE/NAME/repo.json             settings, refs, pull requests
    FOLDER/models/NAMESPACE/NAME/commits/COMMIT.json   one commit with the files it holds; never changed
    FOLDER/models/NAMESPACE/NAME/blobs/SHA256          file contents; never changed
    FOLDER/datasets/...                                the same

- Nothing is kept in memory: a request reads what it needs, so a hub started on the same folder has everything.
- Files are written beside their place and moved into it, and the move of `repo.json` is what makes a commit happen. A
  killed process leaves a whole repository behind, before or after. One hub at a time may write to a folder.
- A commit that changes nothing is not made: its parent is the answer. A commit whose response was lost can be sent
  again.
- Blobs are kept per repository, so that knowing the hash of a private file gives nobody the file.
"""

import hashlib
import json
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from mmbert_hf.testing.hub_errors import HubError, bad_request, repository_not_found, revision_not_found
from mmbert_hf.testing.hub_objects import (
    INITIAL_GITATTRIBUTES,
    Commit,
    Operation,
    PutFile,
    StoredFile,
    apply_operations,
    check_name,
    check_ref_name,
)

DEFAULT_BRANCH = "main"
RefKind = Literal["heads", "tags"]


def utc_now() -> str:
    """Return the time as the Hub writes it: UTC, milliseconds, `Z`."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


@contextmanager
def atomic_file(path: Path) -> Iterator[Any]:
    """Yield a binary file that becomes `path` when the block ends, and nothing if it raises."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".writing-")
    try:
        with open(descriptor, "wb") as file:
            yield file
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_json(path: Path, values: Any) -> None:
    """Write JSON so that a reader finds the old file or the new one, never a part."""
    with atomic_file(path) as file:
        file.write(json.dumps(values, indent=1).encode())


class Repository:
    """One repository, read from disk when asked.

    Args:
        kind: `models` or `datasets`.
        repo_id: `namespace/name`.
        folder: Where it is kept.
        lock: Held while refs or settings change.
    """

    def __init__(self, kind: str, repo_id: str, folder: Path, lock: threading.Lock):
        self.kind = kind
        self.repo_id = repo_id
        self.folder = folder
        self._lock = lock

    @property
    def owner(self) -> str:
        """The user whose namespace it is in."""
        return self.repo_id.partition("/")[0]

    def state(self) -> dict[str, Any]:
        """Return `private`, `gated`, `created_at`, `refs` (ref to commit id) and `pull_requests` (number to author)."""
        return json.loads((self.folder / "repo.json").read_text())

    @contextmanager
    def _changed_state(self) -> Iterator[dict[str, Any]]:
        with self._lock:
            if not (self.folder / "repo.json").exists():  # deleted while this request was on its way
                raise repository_not_found(self.repo_id)
            state = self.state()
            yield state
            write_json(self.folder / "repo.json", state)

    def change_settings(self, **settings: bool | str) -> None:
        """Set `private` or `gated`."""
        with self._changed_state() as state:
            state.update(settings)

    # Contents

    def blob_path(self, sha256: str) -> Path:
        """Return where content of this hash is kept, or would be."""
        return self.folder / "blobs" / sha256

    def add_blob(self, chunks: Iterable[bytes], *, sha256: str, size: int) -> None:
        """Keep content, if it is what it is said to be.

        Args:
            chunks: The content.
            sha256: Its hash.
            size: Its bytes.

        Raises:
            HubError: With status 400, if hash or size differ; nothing is kept then.
        """
        digest, received_bytes = hashlib.sha256(), 0
        with atomic_file(self.blob_path(sha256)) as file:
            for chunk in chunks:
                digest.update(chunk)
                received_bytes += len(chunk)
                file.write(chunk)
            if (digest.hexdigest(), received_bytes) != (sha256, size):
                raise bad_request(
                    f"upload does not match: expected {size} bytes with sha256 {sha256}, "
                    f"got {received_bytes} bytes with sha256 {digest.hexdigest()}"
                )

    def put_regular(self, path: str, content: bytes) -> PutFile:
        """Keep content and return the operation that gives it a path."""
        file = StoredFile.regular(content)
        if not self.blob_path(file.sha256).exists():
            self.add_blob([content], sha256=file.sha256, size=file.size)
        return PutFile(path, file)

    def put_large(self, path: str, sha256: str, size: int | None) -> PutFile:
        """Return the operation that gives uploaded content a path.

        Raises:
            HubError: With status 400, if the content was not uploaded or has another size in bytes.
        """
        blob = self.blob_path(sha256)
        if not blob.exists() or size not in (None, blob.stat().st_size):
            raise bad_request(f"{path} points to sha256 {sha256} of {size} bytes, which was not uploaded")
        return PutFile(path, StoredFile.large(sha256, blob.stat().st_size))

    # Commits

    def load_commit(self, oid: str) -> Commit:
        """Return the commit of this full id."""
        return Commit.from_json(json.loads((self.folder / "commits" / f"{oid}.json").read_text()))

    def find_commit(self, revision: str) -> Commit:
        """Return what a revision names.

        Args:
            revision: Branch, tag, full ref (`refs/pr/1`), commit id, or the start of one (5 digits or more).

        Raises:
            HubError: With code RevisionNotFound.
        """
        refs = self.state()["refs"]
        for ref in (revision, f"refs/heads/{revision}", f"refs/tags/{revision}"):
            if ref in refs:
                return self.load_commit(refs[ref])
        if re.fullmatch(r"[0-9a-f]{5,40}", revision.lower()):
            found = list((self.folder / "commits").glob(f"{revision.lower()}*.json"))
            if len(found) == 1:
                return self.load_commit(found[0].stem)
        raise revision_not_found(revision)

    def history(self, commit: Commit) -> Iterator[Commit]:
        """Yield a commit and those before it, newest first."""
        yield commit
        while commit.parent is not None:
            commit = self.load_commit(commit.parent)
            yield commit

    def commit(
        self,
        branch: str,
        operations: Sequence[Operation],
        *,
        author: str,
        title: str,
        message: str = "",
        parent_commit: str | None = None,
        as_pull_request: bool = False,
    ) -> tuple[Commit, int | None]:
        """Make a commit on a branch, or a pull request with one.

        Args:
            branch: Branch name or full ref; for a pull request, what it is made against.
            operations: What to change.
            author: User name.
            title: First line of the message.
            message: The rest of it.
            parent_commit: Id, or its start, that the branch must be at; a pull request starts from it.
            as_pull_request: Leave the branch alone and open a pull request.

        Returns:
            The commit (the parent, where nothing changes) and the number of the pull request, if one was opened.

        Raises:
            HubError: 404 if the branch does not exist, 412 if it has moved on from `parent_commit`, or as
                `apply_operations` does.
        """
        with self._changed_state() as state:
            refs = state["refs"]
            ref = next((ref for ref in (f"refs/heads/{branch}", branch) if ref in refs), None)
            if ref is None or ref.startswith("refs/tags/"):
                raise revision_not_found(branch)
            base = self.load_commit(refs[ref])
            if parent_commit is not None and as_pull_request:
                base = self.find_commit(parent_commit)
            elif parent_commit is not None and not base.oid.startswith(parent_commit.lower()):
                raise HubError(412, "A commit has happened since. Please refresh and try again.")
            commit = self._write_commit(base, apply_operations(base.files, operations), author, title, message)
            if not as_pull_request:
                refs[ref] = commit.oid
                return commit, None
            number = len(state["pull_requests"]) + 1
            state["pull_requests"][str(number)] = {"author": author, "title": title}
            refs[f"refs/pr/{number}"] = commit.oid
            return commit, number

    def _write_commit(
        self, parent: Commit | None, files: dict[str, StoredFile], author: str, title: str, message: str
    ) -> Commit:
        if parent is not None and files == parent.files:
            return parent
        commit = Commit.create(
            parent=None if parent is None else parent.oid,
            author=author,
            date=utc_now(),
            title=title,
            message=message,
            files=files,
        )
        write_json(self.folder / "commits" / f"{commit.oid}.json", commit.to_json())
        return commit

    def initialize(self, *, author: str, private: bool) -> None:
        """Write the first commit, which holds `.gitattributes` as on the Hub, and the settings."""
        gitattributes = self.put_regular(".gitattributes", INITIAL_GITATTRIBUTES.encode())
        commit = self._write_commit(None, apply_operations({}, [gitattributes]), author, "initial commit", "")
        state = {
            "private": private,
            "gated": False,
            "created_at": commit.date,
            "refs": {f"refs/heads/{DEFAULT_BRANCH}": commit.oid},
            "pull_requests": {},
        }
        write_json(self.folder / "repo.json", state)

    # Refs

    def create_ref(self, kind: RefKind, name: str, revision: str) -> None:
        """Create a branch (`heads`) or tag (`tags`) at a revision.

        Raises:
            HubError: 400 for a bad name, 404 for an unknown revision, 409 if it exists.
        """
        ref = f"refs/{kind}/{check_ref_name(name)}"
        with self._changed_state() as state:
            if ref in state["refs"]:
                raise HubError(409, f"Reference {ref} already exists")
            state["refs"][ref] = self.find_commit(revision).oid

    def delete_ref(self, kind: RefKind, name: str) -> None:
        """Delete a branch (`heads`) or tag (`tags`); its commits stay.

        Raises:
            HubError: 403 for the default branch, 404 if there is none of that name.
        """
        if (kind, name) == ("heads", DEFAULT_BRANCH):
            raise HubError(403, f"The branch {DEFAULT_BRANCH} cannot be deleted")
        with self._changed_state() as state:
            if state["refs"].pop(f"refs/{kind}/{name}", None) is None:
                raise revision_not_found(name)


class HubStorage:
    """All repositories below a folder.

    Args:
        folder: Where they are kept; created where missing.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._lock = threading.Lock()
        self._repository_locks: dict[tuple[str, str], threading.Lock] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def _repository(self, kind: str, repo_id: str) -> Repository:
        namespace, _, name = repo_id.partition("/")
        check_name(namespace, "a namespace")
        check_name(name, "the name of a repository")
        with self._lock:
            lock = self._repository_locks.setdefault((kind, repo_id), threading.Lock())
        return Repository(kind, repo_id, self.folder / kind / namespace / name, lock)

    def find(self, kind: str, repo_id: str) -> Repository | None:
        """Return a repository, or None if there is none of that name.

        Args:
            kind: `models` or `datasets`.
            repo_id: `namespace/name`; anything else names nothing.
        """
        try:
            repository = self._repository(kind, repo_id)
        except HubError:
            return None
        return repository if (repository.folder / "repo.json").exists() else None

    def create(self, kind: str, repo_id: str, *, author: str, private: bool) -> Repository:
        """Create a repository with its first commit.

        Raises:
            HubError: 400 for a bad name; 409 if it exists.
        """
        repository = self._repository(kind, repo_id)
        with repository._lock:
            if (repository.folder / "repo.json").exists():
                raise HubError(409, f"You already created this {kind.rstrip('s')} repo: {repo_id}")
            repository.initialize(author=author, private=private)
        return repository

    def delete(self, repository: Repository) -> None:
        """Delete a repository with its history."""
        # Moved away in one step first: a request that still writes into it must not find half a repository.
        trash = Path(tempfile.mkdtemp(dir=self.folder, prefix=".deleted-"))
        with repository._lock:
            os.replace(repository.folder, trash / "repository")
        shutil.rmtree(trash)
