"""A process with a program in it: started, listened to, held to limits that the kernel does not know, and ended.

Design decisions:

- A process is held by a descriptor, not by a number. Behind bubblewrap it is the first one of a name space: when that is
  gone, the kernel has ended all others, however they were started, and only then `Process` is left. If the caller dies,
  bubblewrap ends the name space.
- The program goes through a pipe behind the start: an interrupted caller leaves an interpreter with nothing to run.
- The clock runs from the marker on, which says that the limits hold; so a busy machine takes no time from the program.
- Watched from here are the time, what is printed, and the memory of all processes together.
- Output is kept from both ends, so that the memory used here does not depend on what is printed.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import tempfile
import time
from codecs import getincrementaldecoder
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Literal

from mmbert_hf.trainers.spo.bubblewrap import environment

__all__ = ["MARKER", "Excerpt", "Process", "Reason", "resident_bytes"]

MARKER = b"\x00in the sandbox\x00"
FLOOD_BYTES = 2**24  # who prints more is stopped
CHUNK_BYTES = 2**16
START_SECONDS = 60.0  # until the marker; it takes 0.03 on a machine that is not overloaded
WATCH_SECONDS = 0.1
GONE_SECONDS = 30.0  # from SIGKILL to the end of the last process

Reason = Literal["time", "memory", "output"]


class Excerpt:
    r"""The first and the last characters of a stream of bytes.

    Args:
        max_characters: How many are kept.

    Example:
        >>> excerpt = Excerpt(4)
        >>> excerpt.add(b"abcdefgh")
        >>> excerpt.text()
        'ab\n[... 4 characters left out ...]\ngh'
    """

    def __init__(self, max_characters: int) -> None:
        self.num_bytes = 0
        self._total = 0
        self._head, self._tail = "", ""
        self._head_size, self._tail_size = max_characters - max_characters // 2, max_characters // 2
        self._decoder = getincrementaldecoder("utf-8")("replace")

    def add(self, data: bytes) -> None:
        """Take more bytes: UTF-8, anything else is replaced."""
        self.num_bytes += len(data)
        self._take(self._decoder.decode(data))

    def text(self) -> str:
        """Return what was kept, with a note in the middle if that is not all. Nothing may be added after it."""
        self._take(self._decoder.decode(b"", final=True))
        left_out = self._total - len(self._head) - len(self._tail)
        note = f"\n[... {left_out} characters left out ...]\n" if left_out else ""
        return self._head + note + self._tail

    def _take(self, text: str) -> None:
        self._total += len(text)
        room = self._head_size - len(self._head)
        self._head += text[:room]
        rest = self._tail + text[room:]
        self._tail = rest[max(0, len(rest) - self._tail_size) :]


def resident_bytes(process: int, shared_once: bool = True) -> int:
    """Memory of a process and all its descendants.

    Args:
        process: Its number.
        shared_once: Whether what several share is counted once, which takes the kernel 0.05 seconds a gibibyte and more.

    Returns:
        Proportional or plain resident set size, and what is in swap, of those that could be read.

    Example:
        >>> 2**20 < resident_bytes(os.getpid()) <= resident_bytes(os.getpid(), shared_once=False)
        True
    """
    file, names = ("smaps_rollup", (b"Pss:", b"SwapPss:")) if shared_once else ("status", (b"VmRSS:", b"VmSwap:"))
    total, pending = 0, [process]
    while pending:
        folder = Path("/proc", str(pending.pop()))
        with suppress(OSError):  # it has ended meanwhile
            lines = (folder / file).read_bytes().splitlines()
            total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(names))
        with suppress(OSError):
            for thread in (folder / "task").iterdir():
                pending += map(int, (thread / "children").read_bytes().split())
    return total


class Process:
    """A started process that waits for its program. Leaving the context ends it, and all its processes.

    Args:
        command: An interpreter that runs `mmbert_hf.trainers.spo.python_runner`, behind bubblewrap or not.
        bubblewrap: Whether it is.
        filter_: For bubblewrap: which system calls are denied (`mmbert_hf.trainers.spo.seccomp`), may be empty.

    Attributes:
        exit_status: Behind the context: as the shell counts, 128 and more for signals.

    Example:
        >>> import sys
        >>> answer = f"import sys; sys.stdout.buffer.write({MARKER!r} + sys.stdin.buffer.read())"
        >>> excerpt = Excerpt(100)
        >>> with Process([sys.executable, "-c", answer], bubblewrap=False) as process:
        ...     process.talk(b"hello", excerpt, timeout_seconds=10.0, memory_bytes=2**30)
        >>> excerpt.text(), process.exit_status
        ('hello', 0)
    """

    def __init__(self, command: list[str], bubblewrap: bool, filter_: bytes = b"") -> None:
        self.command, self.bubblewrap, self.filter = command, bubblewrap, filter_
        self.exit_status = 0
        self._first: int | None = None  # descriptor of the process with whose end all is over
        self._number = 0  # and its number, as long as it is held
        self._opening = b""  # what came until the marker was complete
        self._started = False

    def __enter__(self) -> Process:
        with ExitStack() as stack:
            if self.bubblewrap:
                self._start_bubblewrap(stack)
            else:  # what a stray process still writes there must not hinder
                folder = stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
                self._number = self._start(stack, self.command, cwd=folder, env=environment(folder))
            with suppress(ProcessLookupError):  # bubblewrap has failed, and its output will say why
                if self._number:
                    self._first = os.pidfd_open(self._number)
                    stack.callback(os.close, self._first)
                    stack.callback(self._kill)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def talk(self, program: bytes, excerpt: Excerpt, timeout_seconds: float, memory_bytes: int) -> Reason | None:
        """Send the program and read its output, until it ends or exceeds a limit.

        Args:
            program: What the process expects on stdin.
            excerpt: Takes what is printed.
            timeout_seconds: From the marker on.
            memory_bytes: Resident, of all processes together.

        Returns:
            The limit that was exceeded, or None.

        Raises:
            RuntimeError: There was no marker: the sandbox is broken, not the program.
        """
        assert self._pipes.stdin is not None
        assert self._pipes.stdout is not None
        to, from_ = self._pipes.stdin.fileno(), self._pipes.stdout.fileno()
        deadline, look = time.monotonic() + START_SECONDS, 0.0
        with selectors.DefaultSelector() as selector:
            selector.register(to, selectors.EVENT_WRITE)
            for descriptor in (from_, self._first):
                if descriptor is not None:
                    selector.register(descriptor, selectors.EVENT_READ)
            while (now := time.monotonic()) < deadline:
                ready = {key.fd for key, _ in selector.select(min(WATCH_SECONDS, deadline - now))}
                if to in ready:
                    program = _send(to, program)
                    if not program:
                        selector.unregister(to)
                        self._pipes.stdin.close()
                if self._first in ready:  # nobody is left who could write, and what was written is in the pipe
                    while excerpt.num_bytes <= FLOOD_BYTES and (data := _receive(from_)):
                        self._take(data, excerpt)
                    break
                if from_ in ready:
                    data = _receive(from_)
                    if self._take(data or b"", excerpt):
                        deadline, look = (now := time.monotonic()) + timeout_seconds, now + WATCH_SECONDS
                    if data == b"":
                        selector.unregister(from_)
                        if not self._started:
                            break
                if excerpt.num_bytes > FLOOD_BYTES:
                    return "output"
                if self._started and now > look:
                    look = now + WATCH_SECONDS
                    if all(resident_bytes(self._number, exactly) > memory_bytes for exactly in (False, True)):
                        return "memory"
            else:
                if self._started:
                    return "time"
        if not self._started:
            raise RuntimeError(f"the sandbox did not start: {self._opening.decode(errors='replace').strip()[-1000:]}")
        return None

    def _take(self, data: bytes, excerpt: Excerpt) -> bool:
        """Take what was read; return whether it ends the marker."""
        if self._started:
            excerpt.add(data)
            return False
        self._opening += data
        self._started = self._opening.startswith(MARKER)
        if self._started:
            excerpt.add(self._opening[len(MARKER) :])
        return self._started

    def _start_bubblewrap(self, stack: ExitStack) -> None:
        """Start it, and learn the number of the first process in its name space.

        Its own environment is empty, since that first process is a copy of it, and can be looked at from inside.
        """
        with ExitStack() as for_child:
            information, information_end = os.pipe()
            stack.callback(os.close, information)
            for_child.callback(os.close, information_end)
            options, passed = ["--info-fd", str(information_end)], [information_end]
            if self.filter:
                passed.append(_pipe_with(self.filter))
                for_child.callback(os.close, passed[-1])
                options += ["--seccomp", str(passed[-1])]
            self._start(stack, [self.command[0], *options, *self.command[1:]], cwd="/", env={}, pass_fds=passed)
        answer = b""
        while not answer.rstrip().endswith(b"}"):
            if not (data := os.read(information, CHUNK_BYTES)):
                return  # bubblewrap has failed
            answer += data
        self._number = json.loads(answer)["child-pid"]

    def _start(self, stack: ExitStack, command: list[str], **options: Any) -> int:
        """Start the process in a session of its own, so that Ctrl-C in a terminal reaches the caller alone."""
        options |= {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        self._pipes = subprocess.Popen(command, bufsize=0, start_new_session=True, **options)
        stack.callback(self._end)
        for pipe in (self._pipes.stdin, self._pipes.stdout):
            os.set_blocking(pipe.fileno(), False)  # type: ignore[union-attr]
        return self._pipes.pid

    def _kill(self) -> None:
        """End the first process, and wait for it: behind bubblewrap the kernel lets it go as the last one."""
        assert self._first is not None
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._first, signal.SIGKILL)
        with selectors.DefaultSelector() as selector:
            selector.register(self._first, selectors.EVENT_READ)
            if not selector.select(GONE_SECONDS):
                raise RuntimeError(f"process {self._number} did not end within {GONE_SECONDS} seconds of SIGKILL")

    def _end(self) -> None:
        """Collect the exit status. Without bubblewrap the group is ended first, while its number cannot be another's."""
        if self._first is None or not self.bubblewrap:
            with suppress(ProcessLookupError):
                os.killpg(self._pipes.pid, signal.SIGKILL)
        for pipe in (self._pipes.stdin, self._pipes.stdout):
            pipe.close()  # type: ignore[union-attr]
        status = self._pipes.wait(GONE_SECONDS)
        self.exit_status = 128 - status if status < 0 else status


def _send(descriptor: int, data: bytes) -> bytes:
    """Write what the pipe takes; return what is left, nothing if nobody reads any more."""
    try:
        return data[os.write(descriptor, data) :]
    except BlockingIOError:
        return data
    except BrokenPipeError:
        return b""


def _receive(descriptor: int) -> bytes | None:
    """Read what is there: None if nothing is, an empty string if nothing will be."""
    try:
        return os.read(descriptor, CHUNK_BYTES)
    except BlockingIOError:
        return None


def _pipe_with(data: bytes) -> int:
    """Return the reading end of a pipe with a few bytes in it."""
    reader, writer = os.pipe()
    os.write(writer, data)
    os.close(writer)
    return reader
