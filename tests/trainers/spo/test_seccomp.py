"""The filter, run by an interpreter of its own instructions; that a kernel obeys it is seen in test_sandbox.py."""

import doctest
import errno
import re
import struct
from pathlib import Path

import pytest
from mmbert_hf.trainers.spo import seccomp
from mmbert_hf.trainers.spo.seccomp import MACHINES, build_filter

HEADERS = {
    "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    "aarch64": Path("/usr/include/asm-generic/unistd.h"),
}
ALLOWED = {
    "x86_64": {"read": 0, "execve": 59, "fork": 57, "mmap": 9},
    "aarch64": {"read": 63, "execve": 221, "mmap": 222},
}
NEW_USER, THREAD = 0x10000000, 0x3D0F00  # a name space of users; what threads and forks are made with
UNIX, INTERNET, NETLINK, VSOCK = 1, 2, 16, 40


def verdict(machine: str, number: int, argument: int = 0, architecture: int | None = None) -> int:
    """0 if the call is allowed, else the number of the error."""
    architecture = seccomp.ARCHITECTURES[machine] if architecture is None else architecture
    data = struct.pack("=iIQ6Q", number, architecture, 0, argument, 0, 0, 0, 0, 0)
    code = list(struct.iter_unpack("=HBBI", build_filter(machine)))
    accumulator, place = 0, 0
    while True:
        kind, if_true, if_false, constant = code[place]
        place += 1
        match kind:
            case 0x20:
                accumulator = struct.unpack_from("=I", data, constant)[0]
            case 0x06:
                return 0 if constant == 0x7FFF0000 else constant & 0xFFFF
            case _:
                tests = {0x15: accumulator == constant, 0x35: accumulator >= constant, 0x45: accumulator & constant}
                place += if_true if tests[kind] else if_false


def test_docstring_examples():
    assert doctest.testmod(seccomp) == (0, 1)


@pytest.mark.parametrize("machine", MACHINES)
def test_what_is_denied_and_what_is_not(machine):
    for name, number in seccomp.DENIED[machine].items():
        assert verdict(machine, number) == errno.EPERM, name
    for name, number in ALLOWED[machine].items():
        assert verdict(machine, number) == 0, name
    assert verdict(machine, seccomp.CLONE3) == errno.ENOSYS


@pytest.mark.parametrize("machine", MACHINES)
def test_flags_and_families(machine):
    clone, socket = seccomp.CLONE[machine], seccomp.SOCKET[machine]
    assert verdict(machine, clone, THREAD) == 0
    assert verdict(machine, clone, THREAD | NEW_USER) == errno.EPERM
    assert {verdict(machine, socket, family) for family in (UNIX, INTERNET, 10)} == {0}
    assert {verdict(machine, socket, family) for family in (0, NETLINK, VSOCK, 38)} == {errno.EAFNOSUPPORT}
    assert verdict(machine, socket, UNIX | VSOCK << 32) == 0  # the kernel takes an int


def test_calls_of_another_architecture():
    assert verdict("x86_64", 0, architecture=0x40000003) == errno.ENOSYS  # i386
    assert verdict("x86_64", 0x40000000) == errno.ENOSYS  # x32
    assert verdict("aarch64", 63, architecture=0x40000028) == errno.ENOSYS  # arm


@pytest.mark.parametrize("machine", MACHINES)
def test_numbers_are_those_of_the_kernel(machine):
    if not HEADERS[machine].is_file():
        pytest.skip(f"no {HEADERS[machine]}")
    found = {name: int(value) for name, value in re.findall(r"__NR_(\w+)\s+(\d+)", HEADERS[machine].read_text())}
    ours = seccomp.DENIED[machine] | {"clone": seccomp.CLONE[machine], "socket": seccomp.SOCKET[machine]}
    ours |= {"clone3": seccomp.CLONE3}
    known = ours.keys() & found.keys()  # headers may be older than the newest call
    assert len(known) >= len(ours) - 1
    assert {name: ours[name] for name in known} == {name: found[name] for name in known}


def test_unknown_machine():
    with pytest.raises(ValueError, match="'riscv64'; known are x86_64, aarch64"):
        build_filter("riscv64")
