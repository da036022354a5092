"""Programs that try to break out. They are bounded in themselves: where a wall is missing, they do no harm.

Processes that must not survive carry a mark in their arguments, which shows in /proc of the machine.
"""

import doctest
import itertools
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from mmbert_hf.trainers.spo import sandbox as module
from mmbert_hf.trainers.spo.sandbox import Limits, Sandbox, SandboxUnavailable

MEBIBYTE = 2**20
SHORT = Limits(timeout_seconds=1.0)  # for those that never end
LONG = Limits(timeout_seconds=30.0)  # for those that do, on a busy machine as well
SOURCES = Path(module.__file__).parent
PATIENCE_SECONDS = 30.0
# A process that sleeps, with a mark that can be seen from outside; it ends by itself, but later than anybody waits for it.
SLEEPER = 'os.execv(sys.executable, [sys.executable, "-S", "-c", "import time; time.sleep(90)", {mark!r}])'

OUTSIDE = ("/", "/dev", "/dev/pts", "/etc", "/home", "/proc", "/root", "/sys", "/usr", "/usr/lib", "/var")
WRITER = f"""
import os
written, changed = [], []
for folder in [*{OUTSIDE}, *more, "/tmp", "/dev/shm"]:
    try:
        open(os.path.join(folder, "written"), "w").close()
        written.append(folder)
    except OSError:
        pass
    try:
        os.chmod(folder, 0o777)
        changed.append(folder)
    except OSError:
        pass
print(written, changed, open("/dev/null", "w").write("gone"))
"""
MANY = """
import os, time
for _ in range(5):
    if os.fork() == 0:
        mine = bytearray(os.urandom(2**20)) * 100
        time.sleep(10)
        os._exit(0)
time.sleep(10)
"""


@pytest.fixture(scope="module")
def isolated():
    """A function that makes isolated sandboxes; without bubblewrap the tests are skipped, unless they are required."""
    try:
        Sandbox(LONG)
    except SandboxUnavailable as error:
        if "MMBERT_REQUIRE_SANDBOX" in os.environ:
            raise
        pytest.skip(f"{error} With MMBERT_REQUIRE_SANDBOX set this fails instead.")
    return Sandbox


@pytest.fixture(scope="module")
def sandbox(isolated):
    return isolated(Limits(timeout_seconds=20.0, memory_bytes=256 * MEBIBYTE, disk_bytes=16 * MEBIBYTE))


@pytest.fixture
def mark() -> str:
    return uuid.uuid4().hex


def marked(mark: str) -> list[int]:
    """Processes of the whole machine that have the mark among their arguments."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and mark.encode() in (folder / "cmdline").read_bytes().split(b"\0"):
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def wait_until(condition) -> bool:
    """Wait for something that takes as long as it takes."""
    end = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.01)
    return False


def last_line(finished) -> str:
    return finished.output.splitlines()[-1]


def test_docstring_examples(isolated):
    result = doctest.testmod(module)
    assert result.attempted >= 3
    assert result.failed == 0


def test_how_a_program_ends(sandbox):
    assert sandbox.run("print(1); 2").output == "1\n2\n"
    assert sandbox.run("") == module.Finished("", 0)
    assert sandbox.run("exit(3)") == module.Finished("", 3)
    assert sandbox.run("import sys; sys.exit('so long')") == module.Finished("so long\n", 1)
    assert sandbox.run("import os; os.abort()").exit_status == 128 + signal.SIGABRT
    assert sandbox.run("1 / 0").exit_status == 1


def test_a_program_that_is_not_utf_8(sandbox):
    assert last_line(sandbox.run("print('\ud800')")).startswith("UnicodeEncodeError")
    assert "null bytes" in sandbox.run("print(1)\0").output


def test_nothing_is_on_stdin(sandbox):
    assert last_line(sandbox.run("input()")) == "EOFError: EOF when reading a line"


def test_every_program_starts_afresh_and_runs_the_same(sandbox):
    code = "import os; left = os.path.exists('left'); open('left', 'w').close(); print(left, hash('a'), 'x' in globals()); x = 1"
    first = sandbox.run(code).output
    assert first.startswith("False ")
    assert first.endswith(" False\n")
    assert sandbox.run(code).output == first


def test_functions_reach_other_processes(sandbox):
    for method in ("fork", "spawn"):
        code = f"""
import multiprocessing
def double(x):
    return 2 * x
if __name__ == "__main__":
    with multiprocessing.get_context({method!r}).Pool(2) as pool:
        print(pool.map(double, [1, 2, 3]))
"""
        assert sandbox.run(code).output == "[2, 4, 6]\n"


def test_packages_are_visible_or_not(isolated, sandbox):
    assert sandbox.run("import numpy; int(numpy.arange(4).sum())").output == "6\n"
    without = isolated(LONG, site_packages=False)
    assert last_line(without.run("import numpy")) == "ModuleNotFoundError: No module named 'numpy'"
    hidden = without._interpreter.hidden
    assert without.run(f"import os; [os.listdir(path) for path in {hidden}]").output == f"{[[] for _ in hidden]}\n"


def test_files_and_environment_of_the_caller_are_out_of_sight(sandbox, tmp_path, monkeypatch):
    secret = uuid.uuid4().hex
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("A_SECRET", secret)
    (tmp_path / "secret.txt").write_text(secret)
    here = Path(__file__)
    home = Path.home()
    code = f"""
import glob, os
print(os.getcwd(), dict(os.environ))
for path in ("secret.txt", {str(tmp_path / "secret.txt")!r}, {str(here)!r}, "/etc/passwd", "/etc/shadow", "/etc/hosts"):
    try:
        print("CONTENTS", open(path).read())
    except FileNotFoundError:
        pass
for pattern in ("environ", "cmdline", "cwd/secret.txt", "root{tmp_path}/secret.txt"):
    for path in glob.glob(f"/proc/[0-9]*/{{pattern}}"):
        try:
            print(open(path, errors="replace").read())
        except PermissionError:
            pass
print("FOUND", [path for path in {sorted(map(str, home.iterdir()))!r} if os.path.exists(path)])
print("PROCESSES", len(glob.glob("/proc/[0-9]*")))
"""
    output = sandbox.run(code).output
    assert secret not in output
    assert "CONTENTS" not in output
    bound = sandbox._interpreter.folders
    allowed = [
        str(path) for path in sorted(home.iterdir()) if any(f"{folder}/".startswith(f"{path}/") for folder in bound)
    ]
    assert f"FOUND {allowed}" in output
    assert "PROCESSES 2" in output  # the first one of the name space, and the program


def test_the_first_process_of_the_sandbox_has_no_environment(sandbox, monkeypatch, mark):
    # what the program may not read there in one kind of isolation it could in another: look from outside
    monkeypatch.setenv("A_SECRET", mark)
    code = f"import os, sys\n{SLEEPER.format(mark=mark)}"
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(module.Sandbox.run, sandbox, code)
        assert wait_until(lambda: marked(mark))
        (sleeper,) = marked(mark)
        parent = int(Path(f"/proc/{sleeper}/stat").read_text().rsplit(") ", 1)[1].split()[1])
        assert Path(f"/proc/{parent}/comm").read_text() == "bwrap\n"
        assert Path(f"/proc/{parent}/environ").read_bytes() == b""
        os.kill(sleeper, signal.SIGTERM)
        assert running.result().exit_status == 128 + signal.SIGTERM


def test_no_network(sandbox):
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as hidden:
        name = f"\0{uuid.uuid4().hex}"
        hidden.bind(name)
        hidden.listen()
        with socket.create_connection(server.getsockname()):  # so that nobody but the sandbox is to blame
            server.accept()[0].close()
        code = f"""
import socket
for family, address in ((socket.AF_INET, {server.getsockname()!r}), (socket.AF_UNIX, {name!r})):
    with socket.socket(family) as client:
        try:
            client.connect(address)
            print("CONNECTED", address)
        except OSError as error:
            print(type(error).__name__)
for family in (socket.AF_VSOCK, socket.AF_NETLINK):
    try:
        socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        print(error)
print(sorted(line.split(":")[0].strip() for line in list(open("/proc/net/dev"))[2:]))
"""
        finished = sandbox.run(code)
        assert not select.select([server, hidden], [], [], 0.1)[0]
    denied = "[Errno 97] Address family not supported by protocol\n"
    assert finished.output == f"ConnectionRefusedError\nConnectionRefusedError\n{denied}{denied}['lo']\n"


def test_nothing_is_written_outside(sandbox):
    folders = [*sandbox._interpreter.folders, *sandbox._interpreter.hidden, *sandbox._interpreter.site_packages]
    assert sandbox.run(f"more = {folders!r}{WRITER}").output == "['/tmp', '/dev/shm'] [] 4\n"
    assert not [folder for folder in [*folders, *OUTSIDE] if os.path.exists(os.path.join(folder, "written"))]


def test_the_disk_is_bounded(sandbox):
    code = """
import os
for folder in ("/tmp", "/dev/shm"):
    written, error = 0, None
    for number in range(100):  # 200 MB
        try:
            with open(f"{folder}/{number}", "wb", buffering=0) as file:
                for _ in range(2):
                    written += file.write(bytes(2**20))
        except OSError as caught:
            error = caught
    print(written, error)
"""
    for line in sandbox.run(code).output.splitlines():
        written, _, error = line.partition(" ")
        assert 8 * MEBIBYTE < int(written) <= 16 * MEBIBYTE
        assert error.startswith("[Errno 28] No space left on device")


def test_a_file_is_bounded(isolated):
    # the file system is too, so what is seen here is the limit on one file: it also holds without bubblewrap
    code = "import resource; resource.getrlimit(resource.RLIMIT_FSIZE), resource.getrlimit(resource.RLIMIT_CORE)"
    limits = Limits(disk_bytes=4 * MEBIBYTE)
    assert isolated(limits).run(code).output == f"{((4 * MEBIBYTE,) * 2, (0, 0))}\n"


@pytest.mark.parametrize("size", [2**20, 2**6])
def test_memory_of_one_process(isolated, size):
    # many small pieces leave no room for a traceback: what was put aside for it must be enough to say why
    limited = isolated(Limits(memory_bytes=64 * MEBIBYTE, timeout_seconds=20.0))
    finished = limited.run(f"x = []\nfor _ in range({2**27 // size}):\n    x.append(bytearray({size}))")
    assert last_line(finished) == "MemoryError"
    assert finished.exit_status == 1
    if size == 2**20:
        assert '  File "program.py", line 3, in <module>' in finished.output.splitlines()


def test_memory_of_many_processes(sandbox):
    assert sandbox.run(MANY).stopped == "memory"


def test_memory_that_processes_share_counts_once(sandbox):
    code = """
import os, time
shared = bytearray(os.urandom(2**20)) * 100
children = []
for _ in range(4):
    child = os.fork()
    if not child:
        time.sleep(0.5)
        os._exit(0)
    children.append(child)
len([os.waitpid(child, 0) for child in children])
"""
    assert sandbox.run(code) == module.Finished("4\n", 0)


def test_memory_that_counts_for_nobody(sandbox):
    code = """
import ctypes, os
library = ctypes.CDLL(None, use_errno=True)
for call in (lambda: library.memfd_create(b"x", 0), lambda: library.shmget(0, 2**20, 0o1600),
             lambda: library.unshare(0x10000000), lambda: library.msgget(0, 0o1600)):
    print(call(), os.strerror(ctypes.get_errno()))
"""
    assert sandbox.run(code).output == "-1 Operation not permitted\n" * 4


def test_a_fork_bomb(isolated, mark):
    code = f"""
import os, sys, time
print(os.getuid())
forks = 0
for _ in range(200):
    try:
        if os.fork() == 0:
            {SLEEPER.format(mark=mark)}
        forks += 1
    except BlockingIOError:
        pass
print(forks)
time.sleep(5)
"""
    limited = isolated(Limits(timeout_seconds=3.0, max_processes=20))
    counts = []
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(limited.run, code)
        while not running.done():
            counts.append(len(marked(mark)))
            time.sleep(0.05)
        finished = running.result()
    user, forks = map(int, finished.output.split())
    assert user != 0
    assert 10 <= forks < 20
    assert 0 < max(counts) <= forks  # they were there, and seen
    assert finished.stopped == "time"
    assert not marked(mark)


def test_threads_count_as_processes(isolated):
    code = """
import threading, time
try:
    for number in range(100):
        threading.Thread(target=time.sleep, args=(1,), daemon=True).start()
except RuntimeError:
    print(number)
"""
    assert 10 <= int(isolated(Limits(max_processes=20)).run(code).output) < 20


def test_the_counts_of_two_runs_are_apart(isolated):
    code = """
import os, time
children = []
for _ in range(12):
    child = os.fork()
    if not child:
        time.sleep(2)
        os._exit(0)
    children.append(child)
print(len([os.waitpid(child, 0) for child in children]))
"""
    limited = isolated(Limits(timeout_seconds=20.0, max_processes=16))
    with ThreadPoolExecutor(3) as pool:
        assert [finished.output for finished in pool.map(limited.run, [code] * 3)] == ["12\n"] * 3


@pytest.mark.parametrize("ends", ["at once", "never"])
def test_a_daemon_does_not_outlive_its_program(isolated, mark, ends):
    code = f"""
import os, signal, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork():
        os._exit(0)
    for number in range(1, 65):
        try:
            signal.signal(number, signal.SIG_IGN)
        except (OSError, ValueError):
            pass
    os.closerange(0, 3)
    {SLEEPER.format(mark=mark)}
os.wait()
print("started", flush=True)
{"time.sleep(20)" if ends == "never" else "time.sleep(0.5)"}
"""
    seen = []
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(isolated(SHORT if ends == "never" else LONG).run, code)
        while not running.done():
            seen += marked(mark)
            time.sleep(0.01)
    assert seen
    assert not marked(mark)
    assert running.result().output == "started\n"
    assert running.result().stopped == ("time" if ends == "never" else None)


def test_processor_time(isolated):
    finished = isolated(Limits(timeout_seconds=60.0, cpu_seconds=1)).run("print('begun')\nwhile True: pass")
    assert finished.stopped is None
    assert finished.exit_status == 128 + signal.SIGXCPU
    assert finished.output == "begun\n"


def test_printing_for_ever(sandbox):
    finished = sandbox.run("while True: print('x' * 1000)")
    assert finished.stopped == "output"
    assert len(finished.output) < 5000
    assert "characters left out" in finished.output


def test_stdout_can_be_closed(sandbox):
    finished = sandbox.run(
        "import os, time; print('last', flush=True); os.closerange(0, 3); time.sleep(0.3); os._exit(7)"
    )
    assert finished == module.Finished("last\n", 7)


def test_an_interrupted_caller_leaves_nothing(isolated, mark):
    code = f"import os, sys\n{SLEEPER.format(mark=mark)}"
    patient = isolated(LONG)
    before = sorted(os.listdir("/proc/self/fd"))

    def interrupt():
        wait_until(lambda: marked(mark))
        os.kill(os.getpid(), signal.SIGINT)

    interrupter = threading.Thread(target=interrupt)
    interrupter.start()
    with pytest.raises(KeyboardInterrupt):
        patient.run(code)
    interrupter.join()
    assert not marked(mark)
    assert sorted(os.listdir("/proc/self/fd")) == before


STANDALONE = """
import sys, types
for name in ("mmbert_hf", "mmbert_hf.trainers", "mmbert_hf.trainers.spo"):  # without what these import
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [sys.argv[1]]
from mmbert_hf.trainers.spo.sandbox import Limits, Sandbox
"""


def test_a_killed_caller_leaves_nothing(isolated, mark):
    program = f"import os, sys\n{SLEEPER.format(mark=mark)}"
    code = f"{STANDALONE}Sandbox(Limits(timeout_seconds=30.0)).run({program!r})"
    with subprocess.Popen([sys.executable, "-c", code, SOURCES]) as caller:
        assert wait_until(lambda: marked(mark))
        caller.kill()
    assert wait_until(lambda: not marked(mark))


def test_many_threads(sandbox):
    before = sorted(os.listdir("/proc/self/fd"))
    with ThreadPoolExecutor(6) as pool:
        results = pool.map(lambda number: sandbox.run(f"import time; time.sleep(0.1); {number}").output, range(18))
        assert list(results) == [f"{number}\n" for number in range(18)]
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_the_kernel_ends_the_program_before_the_caller(sandbox):
    assert sandbox.run("open('/proc/self/oom_score_adj').read()").output == "'1000\\n'\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_as_an_unprivileged_user(isolated, mark):
    """The other kind of isolation: a name space of users. The system's Python, since nobody may read root's."""
    python = next((path for path in ("/usr/bin/python3", "/usr/local/bin/python3") if _runs_for_nobody(path)), None)
    if python is None:
        pytest.skip("there is no Python 3.11 that everybody may run")
    program = f"""
import os
print(os.getuid(), os.environ.get("A_SECRET"), len(os.listdir("/proc/1/task")))
print("ROOT", open("/proc/1/environ").read())
forks = 0
for _ in range(100):
    try:
        if os.fork() == 0:
            import sys
            {SLEEPER.format(mark=mark)}
        forks += 1
    except BlockingIOError:
        pass
print(forks)
"""
    code = f"""{STANDALONE}
sandbox = Sandbox(Limits(max_processes=20, memory_bytes=2**28))
print(sandbox.isolation)
print(sandbox.run({program!r}).output)
print(sandbox.run({MANY!r}))
print(sandbox.run("more = []" + {WRITER!r}).output, end="")
"""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        for path in SOURCES.glob("*.py"):
            shutil.copy(path, folder)
        environment = {"PATH": os.environ["PATH"], "A_SECRET": mark}
        options = {"user": 65534, "group": 65534, "extra_groups": [], "env": environment, "cwd": "/"}
        done = subprocess.run([python, "-c", code, folder], capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stderr
    kind, first, root, forks, _, stopped, written = done.stdout.splitlines()
    assert kind == "user namespace"
    assert first == "65534 None 1"
    assert root == "ROOT "
    assert 10 <= int(forks) < 20
    assert stopped == "Finished(output='', exit_status=137, stopped='memory')"
    # its own are the three mounts that are made for it; there are no files in /dev/pts
    assert written == "['/tmp', '/dev/shm'] ['/dev/pts', '/tmp', '/dev/shm'] 4"
    assert not marked(mark)


def _runs_for_nobody(python: str) -> bool:
    check = "import sys; sys.exit(sys.version_info < (3, 11))"
    if not os.path.exists(python):
        return False
    return subprocess.run([python, "-c", check], user=65534, group=65534, extra_groups=[], cwd="/").returncode == 0


def test_another_interpreter(isolated):
    python = next((path for path in ("/usr/bin/python3",) if os.path.exists(path)), None)
    if python is None:
        pytest.skip("there is no other Python")
    version = subprocess.run([python, "-c", "import sys; print(sys.version)"], capture_output=True, text=True).stdout
    assert isolated(LONG, python=python).run("import sys, decimal; print(sys.version)").output == version


def test_readable_folders(isolated, tmp_path):
    """Also below a folder that only its owner may enter, and below /tmp, which is another one inside."""
    (tmp_path / "shown").mkdir()
    (tmp_path / "shown" / "table.txt").write_text("figures")
    (tmp_path / "beside.txt").write_text("secret")
    tmp_path.chmod(0o700)
    code = f"""
import os
print(open({str(tmp_path / "shown" / "table.txt")!r}).read(), os.listdir({str(tmp_path)!r}))
print(os.access({str(tmp_path / "shown")!r}, os.W_OK), open("mine", "w").write("writable"))
"""
    output = isolated(LONG, readable_folders=[str(tmp_path / "shown")]).run(code).output
    assert output == "figures ['shown']\nFalse 8\n"


def test_an_environment_anywhere(isolated, tmp_path):
    """A virtual environment with a package, whose other files stay out of sight."""
    tmp_path.chmod(0o700)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "here"], check=True)
    python = tmp_path / "here" / "bin" / "python"
    packages = tmp_path / "here" / "lib" / f"python3.{sys.version_info.minor}" / "site-packages"
    (packages / "answer.py").write_text("value = 42")
    (packages / "start.pth").write_text("import sys; sys.stdout.write('a .pth file ran')")
    (tmp_path / "here" / "secret.txt").write_text("secret")
    code = f"import answer, os, sys; print(answer.value, os.listdir({str(tmp_path / 'here')!r}), 'site' in sys.modules)"
    assert isolated(LONG, python=str(python)).run(code).output == "42 ['lib'] False\n"
    assert "No module named 'answer'" in isolated(LONG, python=str(python), site_packages=False).run(code).output


# Without walls


def test_without_bubblewrap_it_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        SandboxUnavailable, match=r"there is no bwrap on PATH.*apt-get install bubblewrap.*allow_unsafe"
    ):
        Sandbox(LONG)


def _fake(folder: Path, script: str) -> None:
    (folder / "bwrap").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "bwrap").chmod(0o755)


def test_a_bubblewrap_that_does_not_work_is_refused(monkeypatch, tmp_path):
    _fake(tmp_path, "echo 'bwrap: No permissions to create new namespace' >&2; exit 1")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SandboxUnavailable, match="No permissions to create new namespace"):
        Sandbox(LONG)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root is never refused a process")
def test_a_sandbox_without_a_limit_on_processes_is_refused(isolated, monkeypatch):
    monkeypatch.setattr(module, "USERS", range(1))  # root again
    with pytest.raises(SandboxUnavailable, match="with 'user namespace', the number of processes could not be limited"):
        isolated(LONG)


@pytest.fixture
def unsafe(monkeypatch, tmp_path_factory):
    """A sandbox without walls."""
    folders = [tmp_path_factory.mktemp(name) for name in ("empty", "temporary")]
    monkeypatch.setattr(tempfile, "tempdir", str(folders[1]))
    monkeypatch.setenv("PATH", str(folders[0]))
    with pytest.warns(UserWarning, match=r"NOT isolated here \(there is no bwrap on PATH\).*network.*your files"):
        return Sandbox(Limits(timeout_seconds=20.0, memory_bytes=256 * MEBIBYTE), allow_unsafe=True)


def test_allowed_to_be_unsafe(unsafe, monkeypatch, tmp_path):
    """It says what it does not do, and this is so: the tests above would see a hole."""
    monkeypatch.setenv("A_SECRET", "x")
    (tmp_path / "file").write_text("contents")
    assert unsafe.isolation == "none"
    with socket.create_server(("127.0.0.1", 0)) as server:
        code = f"""
import os, socket
socket.create_connection({server.getsockname()!r}).close()
print(open({str(tmp_path / "file")!r}).read(), os.environ.get("A_SECRET"), os.listdir(), os.getcwd() == os.environ["HOME"])
"""
        assert unsafe.run(code).output == "contents None ['program.py'] True\n"
        assert select.select([server], [], [], 5)[0]
    assert os.listdir(tempfile.gettempdir()) == []


def test_limits_without_walls(unsafe, mark):
    assert last_line(unsafe.run("x = bytearray(2**29)")) == "MemoryError"
    assert unsafe.run("while True: print('x' * 1000)").stopped == "output"
    assert last_line(unsafe.run("open('x', 'wb').write(bytes(65 * 2**20))")) == "OSError: [Errno 27] File too large"
    children = f"import os, sys, time\nif os.fork() == 0:\n    {SLEEPER.format(mark=mark)}\ntime.sleep(0.5)"
    assert unsafe.run(children) == module.Finished("", 0)
    assert wait_until(lambda: not marked(mark))  # of the same group
    assert os.listdir(tempfile.gettempdir()) == []


def test_limits_are_checked():
    for name, value in itertools.chain(
        itertools.product(["timeout_seconds"], [0, -1.0, float("inf"), float("nan"), "5", True, None]),
        itertools.product(["cpu_seconds", "memory_bytes", "max_processes", "disk_bytes"], [0, -1, 1.5, True, None]),
    ):
        with pytest.raises(ValueError, match=f"{name} must be a .*number above 0, got"):
            Limits(**{name: value})
    assert Limits(timeout_seconds=5).timeout_seconds == 5


def test_not_linux(monkeypatch):
    monkeypatch.delattr(os, "pidfd_open")
    with pytest.raises(SandboxUnavailable, match="by means of Linux"):
        Sandbox(LONG, allow_unsafe=True)
