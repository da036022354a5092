import doctest
import os
import subprocess
import sys

import pytest
from mmbert_hf.trainers.spo import bubblewrap
from mmbert_hf.trainers.spo.bubblewrap import Interpreter, build_command, find_interpreter

PLAIN = Interpreter("/opt/python/bin/python3", ("/opt/python/lib",), (), ("/opt/python/lib/site-packages",))


def places(command: list[str], option: str) -> list[str]:
    """What follows an option, wherever it stands."""
    return [command[place + 1] for place, part in enumerate(command) if part == option]


def test_docstring_examples():
    result = doctest.testmod(bubblewrap)
    assert result.attempted >= 4
    assert result.failed == 0


def test_only_what_is_needed_is_bound():
    command = build_command("bwrap", PLAIN, 8192, own_user=False)
    bound = places(command, "--ro-bind")
    assert {"/opt/python/lib", "/opt/python/bin/python3"} <= set(bound)
    rest = set(bound) - {"/opt/python/lib", "/opt/python/bin/python3"}
    assert rest <= set(bubblewrap.SYSTEM)
    assert not {part for part in command if part.startswith(("--bind", "--dev-bind"))}
    # in the end nothing is writable but the two limited folders
    assert places(command, "--remount-ro") == ["/opt/python/lib/site-packages", "/dev", "/"]
    assert places(command, "--tmpfs") == ["/dev/shm", "/tmp", "/opt/python/lib/site-packages"]
    assert places(command, "--size") == ["8192", "8192", "4096"]
    assert "--share-net" not in command


def test_folders_on_the_way_can_be_passed_by_anybody():
    command = build_command("bwrap", PLAIN, 4096, own_user=False)
    made = places(command, "--dir")
    assert {"/opt", "/opt/python", "/opt/python/bin"} <= set(made)
    assert made == sorted(made)
    for place, part in enumerate(command):
        if part == "--dir":
            assert command[place - 2 : place] == ["--perms", "0755"]


def test_own_user_keeps_the_rights_to_become_it_and_no_others():
    command = build_command("bwrap", PLAIN, 4096, own_user=True)
    assert places(command, "--cap-add") == ["CAP_SETUID", "CAP_SETGID"]
    assert places(command, "--cap-drop") == ["ALL"]
    assert command.index("--cap-drop") < command.index("--cap-add")
    assert "--unshare-user" not in command
    other = build_command("bwrap", PLAIN, 4096, own_user=False)
    assert "--unshare-user" in other
    assert not places(other, "--cap-add")


def test_folders_inside_others_are_not_bound_again(tmp_path):
    inner = tmp_path / "inner"
    inner.mkdir()
    command = build_command("bwrap", PLAIN, 4096, False, [str(inner), f"{tmp_path}/"])
    assert str(tmp_path) in places(command, "--ro-bind")
    assert str(inner) not in places(command, "--ro-bind")


def test_readable_folders_must_be_there(tmp_path):
    for folder in (str(tmp_path / "none"), "relative"):
        with pytest.raises(ValueError, match="no absolute path of a folder"):
            build_command("bwrap", PLAIN, 4096, False, [folder])
    for folder in ("/", "/tmp", "/tmp/", "/dev"):
        with pytest.raises(ValueError, match="has one of its own"):
            build_command("bwrap", PLAIN, 4096, False, [folder])


def test_an_environment_stands_for_its_packages(tmp_path):
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    found = find_interpreter(str(environment / "bin" / "python"), site_packages=True)
    packages = os.path.realpath(environment / "lib" / f"python3.{sys.version_info.minor}" / "site-packages")
    assert found.site_packages == (packages,)
    assert packages in found.folders
    assert found.executable == os.path.realpath(sys.executable)
    without = find_interpreter(str(environment / "bin" / "python"), site_packages=False)
    assert without.site_packages == ()
    assert packages not in without.folders
    assert all(any(path.startswith(f"{folder}/") for folder in without.folders) for path in without.hidden)


def test_no_interpreter(tmp_path):
    with pytest.raises(ValueError, match="is no program"):
        find_interpreter(str(tmp_path / "python"), site_packages=True)
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho out of order >&2\nexit 3\n")
    broken.chmod(0o755)
    with pytest.raises(ValueError, match="no Python 3 that works; it said: out of order"):
        find_interpreter(str(broken), site_packages=True)
