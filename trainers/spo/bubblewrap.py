"""The command that starts a Python interpreter behind bubblewrap: what it sees, and what it does not.

Design decisions:

- What is not bound is not there. Visible are the system's shared libraries, the interpreter's own files, its
  site-packages (or not), and folders that were asked for; all read-only. There is no shell, no home, no environment, no
  network, no other process. Only the working folder /tmp and the shared memory in /dev/shm can be written; both are in
  memory, and their size is limited.
- The interpreter is started by its real path, not by the link in a virtual environment, and without the module `site`
  (which costs more time than everything else): site-packages are put on the path by hand, `.pth` files do not run.
- A folder is bound without its parents: of /root/.pyenv/versions/3.12 the sandbox has empty folders on the way there.
- The name space of users hides root's number, but a program in it is still root for the kernel's count of processes,
  and root has no limit there. So for root there is `own_user`: no name space of users, but a number of its own
  (see `mmbert_hf.trainers.spo.python_runner`), which bubblewrap leaves the rights to take.

Source: bwrap(1), version 0.8; user_namespaces(7); setrlimit(2).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

__all__ = ["WORKING_FOLDER", "Interpreter", "build_command", "environment", "find_interpreter"]

WORKING_FOLDER = "/tmp"
SHARED_MEMORY = "/dev/shm"
SYSTEM = (
    *("/lib", "/lib32", "/lib64", "/usr/lib", "/usr/lib32", "/usr/lib64"),
    *("/usr/share/zoneinfo", "/etc/ld.so.cache", "/etc/alternatives"),  # the last: what /usr/lib/**/libblas.so.3 is
)
NAMESPACES = ("--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try")
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")
FLAGS = ("-S", "-s", "-B", "-u", "-X", "utf8")  # no site, no user's site, no .pyc files, no buffer
QUESTION = r"""
import json, os, site, sys, sysconfig
base = {"base": sys.base_prefix, "platbase": sys.base_exec_prefix}
print("\n" + json.dumps({
    "executable": getattr(sys, "_base_executable", None) or sys.executable,
    "prefixes": [sys.base_prefix, sys.base_exec_prefix],
    "site_packages": site.getsitepackages(),
    "base_site_packages": [sysconfig.get_path(name, vars=base) for name in ("purelib", "platlib")],
}))
"""


@dataclass(frozen=True)
class Interpreter:
    """An interpreter and the folders it needs.

    Attributes:
        executable: Real path.
        folders: Its standard library, and the site-packages if they are visible; real paths, none inside another.
        site_packages: What to add to `sys.path`.
        hidden: Folders inside `folders` that are to look empty.

    Example:
        >>> Interpreter("/usr/bin/python3.12", ("/usr/lib",), (), ("/usr/lib/python3/dist-packages",)).command[-1]
        'utf8'
    """

    executable: str
    folders: tuple[str, ...]
    site_packages: tuple[str, ...]
    hidden: tuple[str, ...]

    @property
    def command(self) -> list[str]:
        """The interpreter with the flags that make it start quickly."""
        return [self.executable, *FLAGS]


def find_interpreter(python: str, site_packages: bool) -> Interpreter:
    """Ask an interpreter for its folders, by starting it once.

    Args:
        python: Path of the interpreter, or its name on PATH; one of a virtual environment stands for its packages.
        site_packages: Whether installed packages are visible.

    Returns:
        Its real paths.

    Raises:
        ValueError: There is no such interpreter, or it does not answer.

    Example:
        >>> import sys
        >>> find_interpreter(sys.executable, site_packages=False).site_packages
        ()
    """
    found = shutil.which(python)
    if found is None:
        raise ValueError(f"python={python!r} is no program; give the path of a Python interpreter")
    asked = subprocess.run([found, "-I", "-c", QUESTION], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if asked.returncode:
        raise ValueError(f"python={python!r} is no Python 3 that works; it said: {asked.stderr.strip()[-500:]}")
    answer = json.loads(asked.stdout.splitlines()[-1])  # what `.pth` files print comes before
    visible = _folders(answer["site_packages"]) if site_packages else ()
    own = _folders(f"{prefix}/{name}" for prefix in answer["prefixes"] for name in ("lib", "lib64", "share/zoneinfo"))
    others = _folders([*answer["site_packages"], *answer["base_site_packages"]])
    return Interpreter(
        executable=os.path.realpath(answer["executable"]),
        folders=_outermost([*own, *visible]),
        site_packages=visible,
        hidden=tuple(path for path in others if path not in visible and _inside(path, own)),
    )


def environment(folder: str) -> dict[str, str]:
    """All that the program finds in its environment.

    Args:
        folder: Its working folder.

    Returns:
        Names and values: hashes and threads are such that a program prints the same every time.

    Example:
        >>> environment("/tmp")["HOME"]
        '/tmp'
    """
    fixed = {"HOME": folder, "TMPDIR": folder, "LANG": "C.UTF-8", "PYTHONHASHSEED": "0"}
    return fixed | dict.fromkeys(THREADS, "1")


def build_command(
    bwrap: str, interpreter: Interpreter, disk_bytes: int, own_user: bool, readable_folders: Sequence[str] = ()
) -> list[str]:
    """Build the command line up to the interpreter's own arguments.

    Args:
        bwrap: Path of bubblewrap.
        interpreter: What to run.
        disk_bytes: Size of the working folder, and of the shared memory.
        own_user: Whether the program will take a user number of its own, which only root can give. Else it is in a
            name space of users, where it is nobody.
        readable_folders: More that is visible; absolute paths.

    Returns:
        Arguments.

    Raises:
        ValueError: A readable folder does not exist, is not absolute, or contains one that the program has of its own.

    Example:
        >>> build_command("bwrap", Interpreter("/usr/bin/python3", ("/usr/lib",), (), ()), 4096, own_user=False)[:3]
        ['bwrap', '--unshare-user', '--uid']
    """
    for folder in readable_folders:
        if not (os.path.isabs(folder) and os.path.isdir(folder)):
            raise ValueError(f"readable_folders: {folder!r} is no absolute path of a folder")
        if any(_inside(own, [os.path.normpath(folder)]) for own in (WORKING_FOLDER, SHARED_MEMORY, "/proc")):
            raise ValueError(
                f"readable_folders: in place of {folder!r} the program has one of its own; name its folders"
            )
    user = ("--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID") if own_user else ()
    command = [bwrap, *(() if own_user else ("--unshare-user", "--uid", "65534", "--gid", "65534")), *NAMESPACES]
    command += ["--die-with-parent", "--new-session", "--hostname", "sandbox", "--cap-drop", "ALL", *user]
    command += ["--proc", "/proc", "--dev", "/dev"]
    for path in (SHARED_MEMORY, WORKING_FOLDER):
        command += ["--perms", "1777", "--size", str(disk_bytes), "--tmpfs", path]
    asked = map(os.path.normpath, readable_folders)
    visible = _outermost([*filter(os.path.exists, SYSTEM), *interpreter.folders, interpreter.executable, *asked])
    for path in _parents(visible):
        command += ["--perms", "0755", "--dir", path]
    for path in visible:
        command += ["--ro-bind", path, path]
    for path in interpreter.hidden:
        command += ["--perms", "0555", "--size", "4096", "--tmpfs", path, "--remount-ro", path]
    command += ["--remount-ro", "/dev", "--remount-ro", "/", "--chdir", WORKING_FOLDER, "--clearenv"]
    for item in environment(WORKING_FOLDER).items():
        command += ["--setenv", *item]
    return command


def _folders(paths: Iterable[str]) -> tuple[str, ...]:
    """Real paths of those that exist, each once."""
    return tuple(dict.fromkeys(os.path.realpath(path) for path in paths if os.path.isdir(path)))


def _inside(path: str, folders: Sequence[str]) -> bool:
    """Return whether a path lies in one of the folders, or is one."""
    return any(PurePosixPath(path).is_relative_to(folder) for folder in folders)


def _outermost(paths: Iterable[str]) -> tuple[str, ...]:
    """Those that lie in no other."""
    kept: list[str] = []
    for path in sorted(paths):
        if not _inside(path, kept):
            kept.append(path)
    return tuple(kept)


def _parents(paths: Sequence[str]) -> list[str]:
    """All folders on the way to the paths, from the root; bubblewrap would give them the rights of the originals."""
    parents = {str(parent) for path in paths for parent in Path(path).parents}
    return sorted(parents - {"/", WORKING_FOLDER, "/dev", SHARED_MEMORY})
