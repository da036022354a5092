"""`Sandbox`: runs one Python program after another, each in processes that cannot touch anything.

Design decisions:

- Walls are bubblewrap's (`mmbert_hf.trainers.spo.bubblewrap`) and a filter of system calls (`...seccomp`). Limits are the
  kernel's, set inside before the program begins (`...python_runner`), and those that are watched (`...supervision`).
- Whether it holds is tried, not assumed: a sandbox that cannot be started, or in which the number of processes is not
  limited, is refused when it is made. With `allow_unsafe` there are plain limits then, and a warning.
- Processes are counted per user, and root is never refused one. So root gives every run a user number of its own; for
  anybody else the name space of users counts (Linux 5.14 and newer; older kernels count all processes of the user).
- If the machine runs out of memory, the kernel ends these processes before any other.
- No state is kept between runs, so any number of threads may run at once.

Linux only.
"""

from __future__ import annotations

import itertools
import os
import platform
import shutil
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from mmbert_hf.trainers.spo.bubblewrap import build_command, find_interpreter
from mmbert_hf.trainers.spo.seccomp import MACHINES, build_filter
from mmbert_hf.trainers.spo.supervision import MARKER, Excerpt, Process, Reason

__all__ = ["Finished", "Limits", "Sandbox", "SandboxUnavailable"]

Isolation = Literal["own user", "user namespace", "none"]

RUNNER = Path(__file__).with_name("python_runner.py")
OPEN_FILES = 256
# Numbers that systemd gives to services which need a user for a while.
USERS = range(61184, 65520)
RUNS = itertools.count(os.getpid() * 61)

PROBE = """
import os, resource, sys
for path in sys.path:
    os.path.isdir(path) and os.listdir(path)
resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
try:
    child = os.fork()
except BlockingIOError:
    print("limited")
else:
    child or os._exit(0)
"""
MEND = (
    "Install bubblewrap 0.8 or newer (apt-get install bubblewrap, dnf install bubblewrap) and let it make name spaces: a "
    "container must be started so that it may mount (docker run --privileged); the machine must not forbid it (sysctl "
    "user.max_user_namespaces, kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns). To run "
    "programs without isolation, with access to the network and to your files, pass allow_unsafe=True."
)


class SandboxUnavailable(RuntimeError):
    """Programs cannot be isolated on this machine; the message says why, and how to mend it."""


@dataclass(frozen=True)
class Limits:
    """What one run may use.

    Attributes:
        timeout_seconds: From the program's first line to its end, by the clock.
        cpu_seconds: Processor time of each process.
        memory_bytes: Address space of each process, and resident memory of all together.
        max_output_characters: What is kept of the output.
        max_processes: Processes and threads at one time.
        disk_bytes: Size of the working folder; as much again is there of shared memory. Both are in memory.

    Raises:
        ValueError: A limit is not above 0, or one that counts is not a whole number.

    Example:
        >>> Limits(timeout_seconds=2.5).cpu_seconds
        10
    """

    timeout_seconds: float = 10.0
    cpu_seconds: int = 10
    memory_bytes: int = 2**30
    max_output_characters: int = 4096
    max_processes: int = 32
    disk_bytes: int = 2**26

    def __post_init__(self) -> None:
        for field in fields(self):
            value, whole = getattr(self, field.name), field.name != "timeout_seconds"
            if type(value) not in ((int,) if whole else (int, float)) or not 0 < value < float("inf"):
                raise ValueError(f"{field.name} must be a {'whole ' if whole else ''}number above 0, got {value!r}")


@dataclass(frozen=True)
class Finished:
    r"""How a run ended.

    Attributes:
        output: What was printed on stdout and stderr, in order, shortened in the middle.
        exit_status: 0, or 1 for an exception, or what the program chose; 128 plus the number of a signal that ended it.
        stopped: Which limit ended it: "time", "memory" or "output"; None if it ended by itself.

    Example:
        >>> Finished("2\n", 0).stopped is None
        True
    """

    output: str
    exit_status: int
    stopped: Reason | None = None


class Sandbox:
    r"""Runs Python programs in isolation.

    Args:
        limits: What one run may use.
        python: The interpreter: a path, or a name on PATH.
        site_packages: Whether its installed packages can be imported.
        readable_folders: More folders that programs may read.
        allow_unsafe: Whether to go on where isolation is not possible.

    Attributes:
        isolation: "own user" (bubblewrap, started by root), "user namespace" (bubblewrap, started by anybody else), or
            "none".

    Raises:
        SandboxUnavailable: Isolation is not possible here, and `allow_unsafe` is not set; or this is not Linux.
        ValueError: `python` or `readable_folders` are not there.

    Warns:
        UserWarning: Isolation is not possible here, and `allow_unsafe` is set.

    Example:
        >>> Sandbox(Limits(timeout_seconds=5.0)).run("6 * 7")
        Finished(output='42\n', exit_status=0, stopped=None)
    """

    isolation: Isolation

    def __init__(
        self,
        limits: Limits,
        python: str = sys.executable,
        site_packages: bool = True,
        readable_folders: Sequence[str] = (),
        allow_unsafe: bool = False,
    ) -> None:
        if not hasattr(os, "pidfd_open"):
            raise SandboxUnavailable(f"programs are held by means of Linux, and this is {platform.system()}")
        self.limits = limits
        self._interpreter = find_interpreter(python, site_packages)
        self._runner = RUNNER.read_text(encoding="utf-8")
        self._filter = build_filter(platform.machine()) if platform.machine() in MACHINES else b""
        reasons = self._isolate(readable_folders)
        if self.isolation != "none":
            return
        if not allow_unsafe:
            raise SandboxUnavailable(f"programs cannot be isolated here: {'; '.join(reasons)}. {MEND}")
        warnings.warn(
            f"programs are NOT isolated here ({'; '.join(reasons)}). With allow_unsafe=True they run with plain limits: they "
            "can use the network, read and write your files, and leave processes behind.",
            stacklevel=2,
        )

    def run(self, code: str) -> Finished:
        """Run a program until it ends or exceeds a limit.

        Args:
            code: Python.

        Returns:
            What it printed, and how it ended. No process and no file of it is left.

        Raises:
            RuntimeError: The sandbox itself did not start.
        """
        source = code.encode("utf-8", "surrogatepass")
        excerpt = Excerpt(self.limits.max_output_characters)
        command = [*self._walls, *self._interpreter.command, "-c", self._runner + self._call()]
        with Process(command, self.isolation != "none", self._filter) as process:
            stopped = process.talk(
                len(source).to_bytes(8, "big") + source, excerpt, self.limits.timeout_seconds, self.limits.memory_bytes
            )
        return Finished(excerpt.text(), process.exit_status, stopped)

    def _isolate(self, readable_folders: Sequence[str]) -> list[str]:
        """Take the first kind of isolation that works, or none; return what was wrong with those before."""
        reasons = []
        bwrap = shutil.which("bwrap")
        kinds: tuple[Isolation, ...] = ("own user", "user namespace") if os.geteuid() == 0 else ("user namespace",)
        for kind in kinds if bwrap else ():
            own_user = kind == "own user"
            walls = build_command(str(bwrap), self._interpreter, self.limits.disk_bytes, own_user, readable_folders)
            self.isolation, self._walls = kind, [*walls, "--"]
            try:
                output = self.run(PROBE).output
            except RuntimeError as error:
                reasons.append(f"with {kind!r}, {error}")
            else:
                if output == "limited\n":
                    return []
                reasons.append(f"with {kind!r}, the number of processes could not be limited {output}".strip())
        self.isolation, self._walls = "none", []
        return reasons or ["there is no bwrap on PATH"]

    def _call(self) -> str:
        """What makes the text of the runner run: the call of its main function."""
        limits = self.limits
        resources = {"CPU": limits.cpu_seconds, "AS": limits.memory_bytes, "FSIZE": limits.disk_bytes}
        resources |= {"CORE": 0, "NOFILE": OPEN_FILES, "MSGQUEUE": 0}
        if self.isolation != "none":  # else all processes of the user would count
            resources["NPROC"] = limits.max_processes
        user = USERS[next(RUNS) % len(USERS)] if self.isolation == "own user" else None
        return f"\nmain({MARKER!r}, {resources!r}, {user!r}, {list(self._interpreter.site_packages)!r})\n"
