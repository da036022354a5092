"""A small Hugging Face Hub on 127.0.0.1, for tests and for trying things out without a network.

    with LoopbackHub() as hub:
        subprocess.run([sys.executable, "publish.py"], env={**os.environ, **hub.environment()}, check=True)
        api = HfApi(endpoint=hub.endpoint, token=hub.token)
        print(api.list_repo_files("loopback/my-model"))

or `python -m mmbert_hf.testing.loopback_hub --dir FOLDER`, until Ctrl-C.

THE ENDPOINT IS FROZEN WHEN `huggingface_hub` IS IMPORTED. Setting `HF_ENDPOINT` afterwards does nothing, and the
request goes to the real Hub. So a client of this hub is either a process started with `hub.environment()`, or an
`HfApi(endpoint=hub.endpoint, token=hub.token)`. Functions without an endpoint argument (`ModelCard.validate`, all of
transformers, sentence-transformers and datasets) need the process.

Large files go by git-lfs, not by Xet, which this hub does not speak: `environment()` says so to other processes, and
in the hub's own process Xet is off while the hub runs, if huggingface_hub was imported before.

What it is for: the real clients (huggingface_hub, transformers, sentence-transformers, datasets) run against it
unchanged, so what they send and what they can read back is tested. What it cannot show: that the real Hub agrees. It
proves a contract with the clients, not with the Hub, which checks more (licenses, languages and the rest of a card's
metadata, quotas, rate limits) and does more.

What it does: models and datasets with history, branches, tags and pull requests; private and gated repositories;
large files by git-lfs; cards. What it does not: Spaces, organizations, discussions and merging, searching and listing
repositories, copying large files between repositories, Xet, `.gitignore` rules on uploads, renaming.

- 127.0.0.1 only: there is no setting for another address.
- Repositories are kept in a folder (see `hub_storage`), the clients' caches in another that is deleted at the end.
- `fail_next` makes the hub fail on demand; `requests` tells what it was asked.
- The modules beside this one: `hub_http` (the server), `hub_routes` (the table), `hub_reads` and `hub_writes` (the
  routes), `hub_access` (tokens), `hub_storage` and `hub_objects` (repositories), `hub_cards`, `hub_errors`.
"""

import argparse
import os
import secrets
import shlex
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from mmbert_hf.testing.hub_access import HubAccess
from mmbert_hf.testing.hub_errors import HubError
from mmbert_hf.testing.hub_http import HOST, Fault, HubServer, RequestRecord
from mmbert_hf.testing.hub_objects import check_name
from mmbert_hf.testing.hub_routes import answer
from mmbert_hf.testing.hub_storage import HubStorage

DEFAULT_USER = "loopback"


class LoopbackHub:
    """A hub that serves while its `with` block runs.

    Args:
        folder: Where repositories are kept, and found again by the next hub; None for a temporary folder.
        port: Port on 127.0.0.1; 0 for any free one.
        tokens: User name by token, for more users than `loopback`.

    Raises:
        ValueError: If the port is none, or a token or user name cannot be one.
    """

    def __init__(
        self, folder: str | os.PathLike[str] | None = None, *, port: int = 0, tokens: Mapping[str, str] | None = None
    ):
        if not 0 <= port <= 65535:
            raise ValueError(f"port must be from 0 (any free one) to 65535, got {port}")
        self.token = f"loopback_{secrets.token_hex(16)}"
        self._tokens = {**_checked_tokens(tokens or {}), self.token: DEFAULT_USER}
        self._folder = None if folder is None else Path(folder)
        self._port = port
        self._server: HubServer | None = None
        self._scratch = Path()
        self._resources = ExitStack()

    def __enter__(self) -> "LoopbackHub":
        if self._server is not None:
            raise RuntimeError("this hub is serving already; make another LoopbackHub")
        with ExitStack() as resources:
            self._scratch = Path(resources.enter_context(tempfile.TemporaryDirectory(prefix="loopback-hub-")))
            storage = HubStorage(self._folder or self._scratch / "repositories")
            resources.enter_context(_xet_turned_off())
            self._server = _listen(self._port)
            resources.callback(self._server.stop)
            self._resources = resources.pop_all()
        self._server.start(partial(answer, HubAccess(storage, self._tokens, self.endpoint)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server = None
        self._resources.close()

    def _running(self) -> HubServer:
        if self._server is None:
            raise RuntimeError("the hub is not serving; use it inside `with LoopbackHub() as hub:`")
        return self._server

    @property
    def endpoint(self) -> str:
        """The URL of the hub, ``http://127.0.0.1:PORT``."""
        return f"http://{HOST}:{self._running().server_port}"

    @property
    def requests(self) -> list[RequestRecord]:
        """Every request so far as `(method, path, status)`, oldest first; clear it to start anew."""
        return self._running().records

    def environment(self) -> dict[str, str]:
        """Return what to add to a process's environment to make it a client of this hub.

        Each call makes a new, empty `HF_HOME`, so two processes with two environments are like two computers. It is
        deleted with the hub. The settings that would keep a client off this hub, or lead it out of its home, are set
        too; a client with another user's token needs its own `HF_TOKEN`.

        Returns:
            Values by name, to be merged into `os.environ` for a new process.
        """
        endpoint = self.endpoint
        home = tempfile.mkdtemp(prefix="client-", dir=self._scratch)
        direct = ",".join(filter(None, [os.environ.get("NO_PROXY") or os.environ.get("no_proxy"), HOST, "localhost"]))
        return {
            "HF_ENDPOINT": endpoint,
            "HF_TOKEN": self.token,
            "HF_HOME": home,
            "HF_HUB_CACHE": f"{home}/hub",
            "HF_DATASETS_CACHE": f"{home}/datasets",
            "HF_TOKEN_PATH": f"{home}/token",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",
            "HF_HUB_OFFLINE": "0",
            "HF_DATASETS_OFFLINE": "0",
            "TRANSFORMERS_OFFLINE": "0",
            "NO_PROXY": direct,
            "no_proxy": direct,
        }

    def fail_next(
        self,
        status: int | Literal["cut", "lost"],
        *,
        method: str | None = None,
        path_contains: str | None = None,
        times: int = 1,
        retry_after: float | None = None,
        skip: int = 0,
    ) -> None:
        """Fail requests to come, without doing what they ask for.

        Args:
            status: HTTP status from 400 to 599; `cut` to close the connection without an answer; or `lost` to do what is
                asked for, and close the connection without an answer then.
            method: Fail only requests of this method (`GET`, `HEAD`, `POST`, `PUT`, `DELETE`).
            path_contains: Fail only requests whose percent-decoded path, without the query, contains this.
            times: How many requests to fail.
            retry_after: Seconds for the `Retry-After` header; not with `cut` and `lost`.
            skip: How many such requests are answered first.

        Raises:
            ValueError: If an argument is none of that.
        """
        has_answer = isinstance(status, int)
        if status not in ("cut", "lost") and not (isinstance(status, int) and 400 <= status <= 599):
            raise ValueError(f"status must be 400 to 599, 'cut' or 'lost', got {status!r}")
        if times < 1 or skip < 0:
            raise ValueError(f"times must be at least 1 and skip at least 0, got {times} and {skip}")
        if retry_after is not None and (not has_answer or retry_after < 0):
            raise ValueError(f"retry_after needs a status and cannot be negative, got {retry_after} with {status!r}")
        fault = Fault(status, None if method is None else method.upper(), path_contains, times, retry_after, skip)
        self._running().faults.append(fault)


def _checked_tokens(tokens: Mapping[str, str]) -> dict[str, str]:
    for token, user in tokens.items():
        if not token or not token.isascii() or any(character.isspace() for character in token):
            raise ValueError(f"the token of {user!r} must be ASCII without spaces and not empty")
        try:
            check_name(user, "a user name")
        except HubError as error:
            raise ValueError(error.message) from error
    return dict(tokens)


@contextmanager
def _xet_turned_off() -> Iterator[None]:
    """Turn Xet off for the `HfApi` objects of this process.

    Their switch is read at each upload, so it can be set after the import. Where nothing is imported yet, nothing is
    done: the import is left to the client, whose environment then counts.
    """
    constants: Any = sys.modules.get("huggingface_hub.constants")
    if constants is None:
        yield
        return
    before = constants.HF_HUB_DISABLE_XET
    constants.HF_HUB_DISABLE_XET = True
    try:
        yield
    finally:
        constants.HF_HUB_DISABLE_XET = before


def _listen(port: int) -> HubServer:
    try:
        return HubServer(port)
    except OSError as error:
        message = f"cannot listen on {HOST}:{port}: {error.strerror}; take another port, or 0 for any free one"
        raise OSError(error.errno, message) from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until Ctrl-C or SIGTERM.

    Args:
        arguments: Command line without the program; None for `sys.argv`.

    Returns:
        Exit status.
    """
    parser = argparse.ArgumentParser(description="A small Hugging Face Hub on 127.0.0.1. Stop it with Ctrl-C.")
    parser.add_argument("--dir", metavar="FOLDER", help="where repositories are kept; default: a temporary folder")
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1; default: any free one")
    options = parser.parse_args(arguments)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    try:
        hub = LoopbackHub(options.dir, port=options.port)
    except ValueError as error:
        parser.error(str(error))
    with hub:
        lines = [f"export {name}={shlex.quote(value)}" for name, value in hub.environment().items()]
        names = f"endpoint: {hub.endpoint}\ntoken: {hub.token}\nuser: loopback, so a model is loopback/NAME"
        print(names, *lines, sep="\n", flush=True)  # noqa: T201
        stop.wait()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
