"""Requests that fail for the moment are made again, for a bounded time; all others are explained.

Design decisions:

- One `Retries` serves a whole publication: the time that is waited in all has a limit, whatever fails how often.
- huggingface_hub repeats some requests by itself (uploads, "which files are new"). What it gives up on, and what it does not
  repeat (making the repository, the commit, listing), is repeated here. Who calls has to know whether a repetition is safe:
  for a commit the state of the repository is looked at first (upload.py).
- Before it repeats, huggingface_hub sleeps for as long as the Hub says, be it a day. `Retries.bounding` reads every answer
  first: one that asks for more time than is left is an error at once, and what huggingface_hub may sleep is counted.
- An explanation is one sentence with what to do. It holds no header and no token.
"""

import logging
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import get_session, hf_raise_for_status, parse_ratelimit_headers

from mmbert_hf._compat import transport_error

__all__ = ["Retries", "explain", "is_passing", "reason_of", "request_error"]

logger = logging.getLogger(__name__)

PASSING = (408, 425, 429, 500, 502, 503, 504)  # of HTTP: may be otherwise in a moment
AGAIN = "nothing is half published: the same call goes on where this one stopped"
FIRST_WAIT, LONGEST_WAIT = 1.0, 30.0  # seconds

T = TypeVar("T")


def request_error(error: Exception) -> Exception:
    """The failed request that an error is about: huggingface_hub says of an upload "Error while uploading", because of it."""
    cause = error.__cause__
    is_wrapped = type(error) is RuntimeError and isinstance(cause, (HfHubHTTPError, transport_error()))
    return cause if is_wrapped and isinstance(cause, Exception) else error


def reason_of(error: Exception) -> str:
    """What failed, in a few words."""
    error = request_error(error)
    if isinstance(error, HfHubHTTPError):
        return f"{error.response.status_code} of {error.response.request.method} {error.response.request.url.path}"
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def is_passing(error: Exception) -> bool:
    """Return whether a request that failed in this way may succeed in a moment."""
    error = request_error(error)
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in PASSING
    return isinstance(error, (transport_error(), ConnectionError, TimeoutError))


def explain(error: Exception, repo_id: str, endpoint: str) -> Exception:
    """An error of a request as one sentence that says what to do.

    Args:
        error: From huggingface_hub or its HTTP client.
        repo_id: What was being published.
        endpoint: Address of the Hub.

    Returns:
        PermissionError, FileNotFoundError, ValueError or ConnectionError; `error` itself if it is none of a request.
    """
    error = request_error(error)
    if not isinstance(error, HfHubHTTPError):
        if not is_passing(error):
            return error
        return ConnectionError(
            f"the Hub at {endpoint} cannot be reached, or gave no answer ({reason_of(error)}); {AGAIN}"
        )
    status = error.response.status_code
    if status == 401:
        return PermissionError(
            f"the Hub at {endpoint} refuses the token (401); run `hf auth login`, or set HF_TOKEN to one with write access"
        )
    if status == 403:
        return PermissionError(
            f"the token may not write to {repo_id} (403); take one with write access to it, or publish under your own name"
        )
    if status == 404:
        return FileNotFoundError(
            f"the Hub at {endpoint} does not know {repo_id}, or does not show it to this token (404); check the name and "
            "the revision"
        )
    if status == 409:
        return ValueError(f"{repo_id} was changed by somebody else at the same time (409); {AGAIN}")
    if status == 412:
        return ValueError(f"{repo_id} got commits of somebody else, again and again (412); {AGAIN}")
    if status == 413:
        return ValueError(
            f"the Hub takes nothing as large as this for {repo_id} (413): publish fewer or smaller files, for example "
            "weights in shards (max_shard_size)"
        )
    if is_passing(error):
        return ConnectionError(f"the Hub at {endpoint} did not do what was asked ({status}); {AGAIN}")
    return ValueError(
        f"the Hub at {endpoint} refuses this for {repo_id} ({status}): {error.server_message or 'no reason'}"
    )


class Retries:
    """Time that may be waited in one publication.

    Args:
        max_seconds: In all.
    """

    def __init__(self, max_seconds: float = 300.0) -> None:
        self.max_seconds, self.waited = max_seconds, 0.0
        self._counted: dict[int, float] = {}  # of answers that huggingface_hub may sleep for, by their identity

    @contextmanager
    def bounding(self) -> Iterator[None]:
        """Within this context, no request sleeps for more than the time that is left.

        A new connection after one that could not be made is outside of it; sleeps without an answer are short.
        """
        client: Any = get_session()
        client.event_hooks = {**client.event_hooks, "response": [*client.event_hooks.get("response", []), self._look]}
        try:
            yield
        finally:
            left = [hook for hook in client.event_hooks["response"] if hook != self._look]
            client.event_hooks = {**client.event_hooks, "response": left}

    def _look(self, response: Any) -> None:
        seconds = _asked_to_wait(response)
        if not seconds:
            return
        if self.waited + seconds > self.max_seconds:
            response.read()
            hf_raise_for_status(response)
        self.waited += seconds
        self._counted[id(response)] = seconds

    def wait(self, error: Exception, failures: int) -> None:
        """Wait before a request is made again: as long as the Hub says, else longer with every failure.

        Args:
            error: What the request failed with.
            failures: How often it failed before.

        Raises:
            Exception: `error`, if it will not pass or no time is left.
        """
        reason = request_error(error)
        if isinstance(reason, HfHubHTTPError):  # nobody has slept for this one
            self.waited -= self._counted.pop(id(reason.response), 0.0)
        if not is_passing(error):
            raise error
        seconds = min(LONGEST_WAIT, FIRST_WAIT * 2**failures) * random.uniform(0.8, 1.2)
        seconds = max(seconds, _retry_after(error))
        if self.waited + seconds > self.max_seconds:
            raise error
        logger.warning(
            "%s; trying again in %.0f s (of at most %.0f s that are waited in all)",
            reason_of(error),
            seconds,
            self.max_seconds,
        )
        time.sleep(seconds)
        self.waited += seconds

    def call(self, function: Callable[[], T]) -> T:
        """Make a request that may be repeated, until it succeeds.

        Raises:
            Exception: As `wait` does.
        """
        failures = 0
        while True:
            try:
                return function()
            except Exception as error:
                self.wait(error, failures)
                failures += 1


def _retry_after(error: Exception) -> float:
    """Seconds that the Hub asks to wait, 0 if it does not say."""
    error = request_error(error)
    return _asked_to_wait(error.response) if isinstance(error, HfHubHTTPError) else 0.0


def _asked_to_wait(response: Any) -> float:
    """Seconds that an answer asks to wait, by Retry-After or by the rate limit; 0 if it does not."""
    if response.status_code not in PASSING:
        return 0.0
    limit = parse_ratelimit_headers(response.headers)
    if limit is not None and limit.remaining == 0:
        return float(limit.reset_in_seconds)
    try:
        return max(0.0, float(response.headers.get("Retry-After", "")))
    except ValueError:  # none, or the other form, a date, which the Hub does not send
        return 0.0
