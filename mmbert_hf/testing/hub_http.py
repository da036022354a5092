"""HTTP for the hub: requests in, responses out, faults in between. Knows nothing of repositories.

- One thread per connection, connections kept alive, 127.0.0.1 only.
- A body is read as it comes, with a length or in chunks (clients stream large files in chunks), and read to its end
  before the answer, so that a refused upload ends in the refusal and not in a broken pipe.
- A record of a request is there before its response is sent: a client that has its answer can be asserted on.
- Neither headers nor query strings are logged or recorded: they carry tokens and signatures.
"""

import json
import logging
import re
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import TCPServer
from typing import Any, Literal, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

from mmbert_hf.testing.hub_errors import HubError, bad_request

logger = logging.getLogger(__name__)

HOST = "127.0.0.1"
_CHUNK_BYTES = 1 << 20


class RequestRecord(NamedTuple):
    """One request as the hub answered it.

    Attributes:
        method: `GET`, `POST`, ...
        path: Percent-decoded, without the query.
        status: HTTP status, or `cut` where the connection was closed instead.
    """

    method: str
    path: str
    status: int | Literal["cut"]


@dataclass
class Request:
    """One request.

    Attributes:
        method: `GET`, `POST`, ...
        path: Still percent-encoded, so that an encoded slash is no separator.
        query: Values by name.
        headers: By name, in any case.
        body: Yields the body's bytes, once.
    """

    method: str
    path: str
    query: dict[str, list[str]]
    headers: Any
    body: Iterator[bytes]

    @cached_property
    def content(self) -> bytes:
        """The whole body."""
        return b"".join(self.body)

    def json(self) -> dict[str, Any]:
        """Return the body as a JSON object.

        Raises:
            HubError: With status 400, if it is none.
        """
        try:
            values = json.loads(self.content or b"{}")
        except ValueError as error:
            raise bad_request(f"the request body must be JSON: {error}") from error
        if not isinstance(values, dict):
            raise bad_request(f"the request body must be a JSON object, got {type(values).__name__}")
        return values

    def form(self) -> dict[str, list[str]]:
        """Return the body as the fields of a form, values by name."""
        return parse_qs(self.content.decode(), keep_blank_values=True)

    def has_flag(self, name: str) -> bool:
        """Return whether the query sets a flag to `1` or `true`."""
        return self.query.get(name, [""])[-1].lower() in ("1", "true")


@dataclass
class Response:
    """One response: JSON values, or a file or a part of one.

    Attributes:
        status: HTTP status.
        headers: By name; the length is added.
        values: What to send as JSON; not sent if `file` is set.
        file: What to send as bytes, by the request's `Range`.
        part: First byte and number of bytes of the file to send.
    """

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    values: Any = None
    file: Path | None = None
    part: tuple[int, int] = (0, 0)

    @classmethod
    def from_error(cls, error: HubError) -> "Response":
        """Return the response to a refused request."""
        # Messages quote the request: what is no plain text must not end up in a header.
        message = error.message.encode("unicode_escape").decode("ascii")
        headers = {"X-Error-Message": message, **error.headers}
        if error.code is not None:
            headers["X-Error-Code"] = error.code
        return cls(error.status, headers, {"error": error.message, **error.details})


@dataclass
class Fault:
    """A failure to hand out instead of an answer; see `LoopbackHub.fail_next`."""

    status: int | Literal["cut", "lost"]
    method: str | None
    path_contains: str | None
    times: int
    retry_after: float | None
    skip: int = 0

    def matches(self, method: str, path: str) -> bool:
        """Return whether a request is one to fail."""
        return self.method in (None, method) and (self.path_contains or "") in path


def read_range(header: str | None, size: int) -> tuple[int, int] | None:
    """Return which part of a file a `Range` header asks for.

    Args:
        header: Such as `bytes=10-19`, `bytes=10-` or `bytes=-10`; several ranges at once are not served.
        size: Bytes of the file.

    Returns:
        First byte and number of bytes; None for the whole file.

    Raises:
        HubError: With status 416, if the file has no such part.
    """
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", header or "")
    if match is None or match.groups() == ("", ""):
        return None
    first, last = match.groups()
    start = int(first) if first else max(size - int(last), 0)
    stop = min(int(last) + 1, size) if first and last else size
    if start >= stop:
        raise HubError(416, f"{header} is not within {size} bytes", headers={"Content-Range": f"bytes */{size}"})
    return start, stop - start


def read_body(stream: Any, headers: Any) -> Iterator[bytes]:
    """Yield a request's body.

    Args:
        stream: The connection, at the end of the request's headers.
        headers: The request's headers.

    Raises:
        ConnectionError: If the connection ends before the body, or if lengths cannot be read.
    """
    try:
        if headers.get("Transfer-Encoding", "").lower() != "chunked":
            yield from _read_exactly(stream, int(headers.get("Content-Length", 0)))
            return
        while size := int(stream.readline(1024).partition(b";")[0], 16):
            yield from _read_exactly(stream, size)
            stream.readline(1024)
    except ValueError as error:
        raise ConnectionError(f"the client sent a body of unreadable length: {error}") from error
    while stream.readline(65536).strip():  # trailers
        pass


def _read_exactly(stream: Any, size: int) -> Iterator[bytes]:
    while size > 0:
        chunk = stream.read1(min(size, _CHUNK_BYTES))
        if not chunk:
            raise ConnectionError(f"{size} bytes are missing: the connection or the file ended early")
        size -= len(chunk)
        yield chunk


class HubServer(ThreadingHTTPServer):
    """Listens on 127.0.0.1, and serves once started.

    Args:
        port: 0 for any free one.

    Attributes:
        records: Every request so far.
        faults: What to fail next.
    """

    daemon_threads = True
    request_queue_size = 128

    application: Callable[[Request], Response]

    def __init__(self, port: int):
        self.records: list[RequestRecord] = []
        self.faults: list[Fault] = []
        self._lock = threading.Lock()
        self._connections: set[socket.socket] = set()
        self._all_closed = threading.Condition(self._lock)
        super().__init__((HOST, port), _Handler)

    def take_fault(self, method: str, path: str) -> Fault | None:
        """Return the first fault that a request meets, and count it down."""
        with self._lock:
            for fault in self.faults:
                if not fault.matches(method, path):
                    continue
                if fault.skip > 0:
                    fault.skip -= 1
                    continue
                fault.times -= 1
                if fault.times == 0:
                    self.faults.remove(fault)
                return fault
            return None

    def server_bind(self) -> None:
        """Bind without the name look-up that `HTTPServer` makes."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = HOST, int(self.server_address[1])

    def process_request(self, request: Any, client_address: Any) -> None:
        """Give a new connection its thread."""
        with self._lock:
            self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Close a connection, at the end of its thread."""
        with self._lock:
            self._connections.discard(request)
            self._all_closed.notify_all()
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log what the connection's thread died of."""
        logger.exception("connection from %s failed", client_address)

    def start(self, application: Callable[[Request], Response]) -> None:
        """Serve in a thread of its own.

        Args:
            application: Answers a request, or raises `HubError`.
        """
        self.application = application
        serve = partial(self.serve_forever, poll_interval=0.02)
        threading.Thread(target=serve, name="loopback-hub", daemon=True).start()

    def stop(self, timeout_seconds: float = 5.0) -> None:
        """Stop serving: let requests in progress finish, and end the connections that wait for another."""
        self.shutdown()
        self.server_close()
        with self._lock:
            for connection in self._connections:
                _shut_down(connection, socket.SHUT_RD)
            self._all_closed.wait_for(lambda: not self._connections, timeout_seconds)
            for connection in self._connections:
                _shut_down(connection, socket.SHUT_RDWR)


def _shut_down(connection: socket.socket, how: int) -> None:
    try:
        connection.shutdown(how)
    except OSError as error:  # the client was faster
        logger.debug("connection was already closed: %s", error)


class _Handler(BaseHTTPRequestHandler):
    """Turns bytes into a `Request` and a `Response` into bytes."""

    server: HubServer
    protocol_version = "HTTP/1.1"
    server_version = "LoopbackHub"
    # Headers and body leave in one write, and small ones at once: no waiting for the client's acknowledgement.
    wbufsize = -1
    disable_nagle_algorithm = True

    def _serve(self) -> None:
        url = urlsplit(self.path)
        path = unquote(url.path)
        body = read_body(self.rfile, self.headers)
        try:
            fault = self.server.take_fault(self.command, path)
            response: Response | None = None
            if fault is None or fault.status == "lost":
                request = Request(self.command, url.path, parse_qs(url.query), self.headers, body)
                response = self._answer(request)
            if fault is None:
                pass
            elif not isinstance(fault.status, int):
                response = None
            else:
                response = Response.from_error(HubError(fault.status, "this failure was asked for by fail_next"))
                if fault.retry_after is not None:
                    response.headers["Retry-After"] = f"{fault.retry_after:g}"
            for _ in body:  # what the answer did not need
                pass
            self.server.records.append(RequestRecord(self.command, path, response.status if response else "cut"))
            logger.debug("%s %s %s", *self.server.records[-1])
            if response is None:
                self.close_connection = True
            else:
                self._send(response)
        except ConnectionError as error:  # the client went away: there is nobody to answer
            logger.debug("%s %s ended early: %r", self.command, path, error)
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve

    def _answer(self, request: Request) -> Response:
        try:
            response = self.server.application(request)
            if response.file is not None:
                self._apply_range(response)
            return response
        except HubError as error:
            return Response.from_error(error)
        except ConnectionError:
            raise
        except Exception as error:
            logger.exception("%s %s failed", request.method, request.path)
            return Response.from_error(HubError(500, f"LoopbackHub failed: {type(error).__name__}: {error}"))

    def _apply_range(self, response: Response) -> None:
        assert response.file is not None
        size = response.file.stat().st_size
        part = read_range(self.headers.get("Range"), size)
        start, length = response.part = part or (0, size)
        response.headers |= {"Accept-Ranges": "bytes", "Content-Length": str(length)}
        if part is not None:
            response.status = 206
            response.headers["Content-Range"] = f"bytes {start}-{start + length - 1}/{size}"

    def _send(self, response: Response) -> None:
        is_file = response.file is not None
        body = b"" if is_file or response.values is None else json.dumps(response.values, default=str).encode()
        headers = {
            "Content-Type": "application/octet-stream" if is_file else "application/json",
            "Content-Length": str(len(body)),
            **response.headers,
        }
        self.send_response(response.status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
            if response.file is not None:
                self._send_file(response.file, *response.part)
        self.wfile.flush()

    def _send_file(self, path: Path, start: int, length: int) -> None:
        with open(path, "rb") as file:
            file.seek(start)
            for chunk in _read_exactly(file, length):
                self.wfile.write(chunk)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Leave the log to `_serve`: the server's own lines hold query strings."""
