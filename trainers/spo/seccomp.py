"""A filter of system calls for programs in the sandbox, as the kernel wants it: classic BPF, a few hundred bytes.

Namespaces and resource limits leave holes that only the calls themselves can close:

- A nested user namespace makes its owner root in it, who may mount a file system in memory of any size. So no namespaces.
- `memfd_create`, System V shared memory and message queues hold memory that counts for no process and no mount.
- Sockets of a family without a network namespace, above all AF_VSOCK, reach the host of a virtual machine. So only Unix
  and internet sockets, which end at the walls of the sandbox.
- Keyrings belong to the user, not to the namespace; BPF, perf, io_uring and userfaultfd are the parts of a kernel that
  are broken most often, and no mathematics needs them; nor does it read the memory of other processes.

Design decisions:

- What is denied fails with an error number, nothing is killed: a program sees "not permitted" and goes on.
- `clone3` hides its flags behind a pointer, where a filter cannot look. It is "not implemented", and libc takes `clone`.
- Calls of a foreign architecture (32-bit and x32 calls on x86-64) are "not implemented" as well.

Sources: seccomp(2); `struct sock_filter` and `struct seccomp_data` of Linux; numbers from the kernel's unistd tables.
"""

from __future__ import annotations

import errno
import socket
import struct

__all__ = ["MACHINES", "build_filter"]

# What a machine's kernel calls itself (AUDIT_ARCH_*), and the numbers of the calls below.
ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
MACHINES = tuple(ARCHITECTURES)
DENIED = {
    "x86_64": {
        "unshare": 272,
        "setns": 308,
        "ptrace": 101,
        "process_vm_readv": 310,
        "process_vm_writev": 311,
        "shmget": 29,
        "semget": 64,
        "msgget": 68,
        "memfd_create": 319,
        "memfd_secret": 447,
        "add_key": 248,
        "request_key": 249,
        "keyctl": 250,
        "bpf": 321,
        "perf_event_open": 298,
        "userfaultfd": 323,
        "io_uring_setup": 425,
    },
    "aarch64": {
        "unshare": 97,
        "setns": 268,
        "ptrace": 117,
        "process_vm_readv": 270,
        "process_vm_writev": 271,
        "shmget": 194,
        "semget": 190,
        "msgget": 186,
        "memfd_create": 279,
        "memfd_secret": 447,
        "add_key": 217,
        "request_key": 218,
        "keyctl": 219,
        "bpf": 280,
        "perf_event_open": 241,
        "userfaultfd": 282,
        "io_uring_setup": 425,
    },
}
CLONE = {"x86_64": 56, "aarch64": 220}
SOCKET = {"x86_64": 41, "aarch64": 198}
CLONE3 = 435
X32 = 0x40000000  # set in the number of a call of the x32 architecture
NEW_NAMESPACES = 0x7E020080  # CLONE_NEWUSER, NEWNS, NEWPID, NEWNET, NEWIPC, NEWUTS, NEWCGROUP, NEWTIME
FAMILIES = (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6)

LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
NUMBER, ARCHITECTURE, FIRST_ARGUMENT = (
    0,
    4,
    16,
)  # offsets in seccomp_data; the low half of the argument on these machines
ALLOW, ERROR = 0x7FFF0000, 0x00050000

Instruction = tuple[int, int, int, int]  # code, how many to skip if true, how many if false, constant


def build_filter(machine: str) -> bytes:
    """Build the filter for a machine.

    Args:
        machine: What `platform.machine()` says: one of `MACHINES`.

    Returns:
        Instructions of 8 bytes each, what `bwrap --seccomp` reads.

    Raises:
        ValueError: The numbers of the machine's system calls are not known here.

    Example:
        >>> len(build_filter("x86_64")) % 8
        0
    """
    if machine not in ARCHITECTURES:
        raise ValueError(f"no system call numbers for {machine!r}; known are {', '.join(MACHINES)}")
    filter_: list[Instruction] = [
        (LOAD, 0, 0, ARCHITECTURE),
        (EQUAL, 1, 0, ARCHITECTURES[machine]),
        _fail(errno.ENOSYS),
        (LOAD, 0, 0, NUMBER),
        *([(AT_LEAST, 0, 1, X32), _fail(errno.ENOSYS)] if machine == "x86_64" else []),
        *((EQUAL, 0, 1, CLONE3), _fail(errno.ENOSYS)),
    ]
    for number in DENIED[machine].values():
        filter_ += [(EQUAL, 0, 1, number), _fail(errno.EPERM)]
    filter_ += [
        *((EQUAL, 0, 4, CLONE[machine]), (LOAD, 0, 0, FIRST_ARGUMENT)),
        *((ANY_BIT, 0, 1, NEW_NAMESPACES), _fail(errno.EPERM), (RETURN, 0, 0, ALLOW)),
        *((EQUAL, 0, len(FAMILIES) + 2, SOCKET[machine]), (LOAD, 0, 0, FIRST_ARGUMENT)),
        *((EQUAL, len(FAMILIES) - place, 0, family) for place, family in enumerate(FAMILIES)),
        _fail(errno.EAFNOSUPPORT),
        (RETURN, 0, 0, ALLOW),
    ]
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in filter_)


def _fail(number: int) -> Instruction:
    """Let the call fail with an error number."""
    return (RETURN, 0, 0, ERROR | number)
