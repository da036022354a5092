"""`PythonTool`: Python as a tool for a language model, for training with tool calls.

    tool = PythonTool(timeout_seconds=5.0)
    trainer = GRPOTrainer(..., tools=[tool.run_python])

Design decisions:

- What the model wrote is run in isolation (`mmbert_hf.trainers.spo.sandbox`): no network, no files, no environment, and
  limits that hold. Where this is not possible the tool is refused when it is made, not when it is called.
- A program that fails is a result: the model reads the traceback. Exceptions are for what the program is not to blame for.
- The answer is what a person would see: all that was printed, the value of an expression at the end, the traceback,
  and in brackets what no program prints: that it was stopped, and why, that it printed nothing.
- Every call starts afresh, so that a trajectory does not depend on what was sampled before it.
- `run_python` is what is given to a trainer: its name, signature and docstring are read by chat templates.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence

from mmbert_hf.trainers.spo.sandbox import Finished, Limits, Sandbox

__all__ = ["PythonTool", "describe"]


def describe(finished: Finished, limits: Limits) -> str:
    r"""Say in words how a program ended.

    Args:
        finished: What it printed, and how it ended.
        limits: What it was allowed.

    Returns:
        The output, and in brackets what it does not say.

    Example:
        >>> describe(Finished("1\n", 0), Limits())
        '1\n'
        >>> describe(Finished("1", 0, "time"), Limits(timeout_seconds=2.0))
        '1\n[stopped: still running after 2 seconds]\n'
        >>> describe(Finished("", 0), Limits())
        '[no output]\n'
    """
    output, status = finished.output, finished.exit_status
    note = ""
    if finished.stopped == "time":
        note = f"stopped: still running after {limits.timeout_seconds:g} seconds"
    elif finished.stopped == "memory":
        note = f"stopped: used more than {limits.memory_bytes} bytes of memory"
    elif finished.stopped == "output":
        note = "stopped: printed too much"
    elif status == 128 + signal.SIGXCPU:
        note = f"stopped: used more than {limits.cpu_seconds} seconds of processor time"
    elif status - 128 in set(signal.Signals):
        note = f"ended by {signal.Signals(status - 128).name}"
    elif status > 1:
        note = f"exit status {status}"
    elif not output:
        note = "no output"
    if not note:
        return output
    separator = "" if not output or output.endswith("\n") else "\n"
    return f"{output}{separator}[{note}]\n"


class PythonTool:
    """Runs Python programs that a language model wrote, in isolation.

    Give `tool.run_python` to a trainer. The tool may be called from several threads.

    Args:
        timeout_seconds: How long a program may run, by the clock.
        cpu_seconds: Processor time of each of its processes.
        memory_bytes: Address space of each of its processes, and resident memory of all together.
        max_output_characters: How much of the output is kept, half of it from the beginning and half from the end.
        max_processes: Processes and threads at one time.
        disk_bytes: Size of the working folder; as much again is there of shared memory. Both are in memory.
        site_packages: Whether the packages installed for `python` can be imported.
        readable_folders: More folders that programs may read; absolute paths.
        allow_unsafe: Whether to go on with plain limits where isolation is not possible. Programs then can use the
            network, read and write the caller's files, start any number of processes and leave them behind.
        python: The interpreter: a path, or a name on PATH.

    Attributes:
        limits: What a program may use.
        isolation: "own user" or "user namespace" (both bubblewrap), or "none".

    Raises:
        SandboxUnavailable: Isolation is not possible here and `allow_unsafe` is not set. The message says what is missing.
        ValueError: An argument is out of its range.

    Warns:
        UserWarning: Isolation is not possible here and `allow_unsafe` is set.

    Example:
        >>> tool = PythonTool(timeout_seconds=5.0)
        >>> tool.run_python("x = 6\\nx * 7")
        '42\\n'
        >>> tool.run_python("print(open('/etc/passwd').read())").splitlines()[-1]
        "FileNotFoundError: [Errno 2] No such file or directory: '/etc/passwd'"
    """

    def __init__(
        self,
        *,
        timeout_seconds: float = Limits.timeout_seconds,
        cpu_seconds: int = Limits.cpu_seconds,
        memory_bytes: int = Limits.memory_bytes,
        max_output_characters: int = Limits.max_output_characters,
        max_processes: int = Limits.max_processes,
        disk_bytes: int = Limits.disk_bytes,
        site_packages: bool = True,
        readable_folders: Sequence[str] = (),
        allow_unsafe: bool = False,
        python: str = sys.executable,
    ) -> None:
        self.limits = Limits(
            timeout_seconds, cpu_seconds, memory_bytes, max_output_characters, max_processes, disk_bytes
        )
        self._sandbox = Sandbox(self.limits, python, site_packages, readable_folders, allow_unsafe)
        self.isolation = self._sandbox.isolation

    def run_python(self, code: str) -> str:
        """Run a Python program and get what it prints, as well as the value of an expression in its last line.

        Every program starts afresh: variables of earlier programs are gone. There is no network and no input.

        Args:
            code: The program.

        Returns:
            The output, or the traceback if the program fails.
        """
        if not isinstance(code, str):
            raise TypeError(f"code must be a string with a Python program, got {type(code).__name__}")
        return describe(self._sandbox.run(code), self.limits)

    def __call__(self, code: str) -> str:
        """Do what `run_python` does."""
        return self.run_python(code)
