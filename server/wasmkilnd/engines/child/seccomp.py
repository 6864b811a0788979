"""The system calls that a worker and a job may make, as programs that the kernel runs for each.

``system_calls.txt`` has the calls; all that are not listed are refused with EPERM. The allowed ones
were observed with ``strace``: every engine, compiling, validating, refusing, panicking and running
out of memory. To allow another one, add it to the section ``job``, and say in the commit which
engine needs it, observed how. The numbers are from the kernel's
``arch/x86/entry/syscalls/syscall_64.tbl`` and ``include/uapi/asm-generic/unistd.h``. The programs
are classic BPF: a comparison for each call, followed by the action for it.
"""

from __future__ import annotations

import errno
import os
import struct
import sys
from collections.abc import Iterable, Sequence

from . import rows

# With the numbers of the kernel's AUDIT_ARCH.
MACHINES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}


_ROWS = list(rows("system_calls.txt"))
NUMBERS = {name: (int(x86_64), int(aarch64)) for _, name, x86_64, aarch64 in _ROWS}


def _in(*sections: str) -> Sequence[str]:
    return [name for section, name, *_ in _ROWS if section in sections]


JOB_MAY, WORKER_MAY, JOB_DIES_OF = _in("job"), _in("job", "worker"), _in("dies")

# Instructions, from linux/bpf_common.h, and where they find what they compare, in a struct
# seccomp_data.
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16
# Actions, from linux/seccomp.h.
_KILL, _ALLOW = (_RETURN, 0, 0, 0x80000000), (_RETURN, 0, 0, 0x7FFF0000)
_EPERM, _ENOSYS = ((_RETURN, 0, 0, 0x00050000 | number) for number in (errno.EPERM, errno.ENOSYS))
_X32_CALL = 0x40000000  # another set of numbers behind the same architecture

_CLONE_THREAD = 0x00010000
# What pthread_create asks for, in glibc and in musl; anything else makes another process.
_CLONE_OF_THREADS = 0x007D0F00
_CLONE_NEW_NAMESPACES = 0x7E020000
_PR_SET_NAME, _PR_SET_VMA = 15, 0x53564D41  # naming threads and memory

Instruction = tuple[int, int, int, int]


def machine() -> str:
    """Return ``x86_64`` or ``aarch64``, whose call numbers are known; empty for others."""
    name = os.uname().machine
    is_64_bit = sys.maxsize > 2**32  # a 32-bit interpreter uses other numbers
    return name if name in MACHINES and is_64_bit else ""


def number(name: str, machine: str) -> int:
    """Return the number of a call; -1 where there is none."""
    return NUMBERS[name][list(MACHINES).index(machine)]


def job_program(machine: str, pid: int) -> bytes:
    """Return the program for a job, which is the process ``pid``."""
    thread = ((_ANY_BIT, 0, 2, _CLONE_THREAD), (_ANY_BIT, 1, 0, 0xFFFFFFFF & ~_CLONE_OF_THREADS))
    naming = ((_EQUAL, 2, 0, _PR_SET_NAME), (_EQUAL, 1, 0, _PR_SET_VMA))
    special: dict[str, Sequence[Instruction]] = {
        "clone": (_load(0), *thread, _ALLOW, _KILL),
        "prctl": (_load(0), *naming, _EPERM, _ALLOW),
        # its own limits; reading only
        "prlimit64": (*_unless(0), *_unless(2), *_unless(2, offset=4), _ALLOW),
        # abort() signals the process itself
        "tgkill": (*_unless(0, pid, otherwise=_KILL), _ALLOW),
    }
    return _program(machine, JOB_MAY, {**dict.fromkeys(JOB_DIES_OF, (_KILL,)), **special})


def worker_program(machine: str) -> bytes:
    """Return the program for a worker, under which its jobs start."""
    special: dict[str, Sequence[Instruction]] = {
        "clone": (_load(0), (_ANY_BIT, 0, 1, _CLONE_NEW_NAMESPACES), _EPERM, _ALLOW),
        "prlimit64": (*_unless(0), _ALLOW),
        # A job lowers its own priority before it is sealed.
        "sched_setattr": (*_unless(0), _ALLOW),
        "setpriority": (*_unless(0), *_unless(1), _ALLOW),
    }
    return _program(machine, WORKER_MAY, special)


def _program(
    machine: str, allowed: Iterable[str], special: dict[str, Sequence[Instruction]]
) -> bytes:
    """Assemble a program; what is ``special`` ends in an action on every path."""
    code = [(_LOAD, 0, 0, _ARCHITECTURE), (_EQUAL, 1, 0, MACHINES[machine]), _KILL]
    code += [(_LOAD, 0, 0, _NUMBER)]
    if machine == "x86_64":
        code += [(_AT_LEAST, 0, 1, _X32_CALL), _KILL]
    calls: dict[str, Sequence[Instruction]] = {
        **dict.fromkeys(allowed, (_ALLOW,)),
        # No filter sees the flags of clone3, which lie in memory. Without clone3 the C library
        # makes threads with clone.
        "clone3": (_ENOSYS,),
        # Sockets are connected, and no call names an address.
        "sendto": (*_unless(4), *_unless(4, offset=4), _ALLOW),
        **special,
    }
    for name, body in calls.items():
        if (its_number := number(name, machine)) >= 0:
            code += [(_EQUAL, 0, len(body), its_number), *body]
    return b"".join(struct.pack("=HBBI", *each) for each in (*code, _EPERM))


def _load(argument: int, offset: int = 0) -> Instruction:
    """Load the low word of an argument; the high one is at 4: both machines are little endian."""
    return (_LOAD, 0, 0, _ARGUMENTS + 8 * argument + offset)


def _unless(
    argument: int, value: int = 0, offset: int = 0, otherwise: Instruction = _EPERM
) -> Sequence[Instruction]:
    """Refuse a call unless 32 bits of an argument are ``value``."""
    return [_load(argument, offset), (_EQUAL, 1, 0, value), otherwise]
