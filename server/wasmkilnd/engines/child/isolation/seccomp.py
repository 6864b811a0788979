"""Seccomp: a program that the kernel runs for each system call.

All calls that are not listed are refused. The program is classic BPF, assembled here: a comparison
for each call, followed by the action for that call.
"""

from __future__ import annotations

import ctypes
import errno
import struct
from collections.abc import Iterator, Sequence

from . import syscalls

_SET_MODE_FILTER = 1

# Actions, from linux/seccomp.h.
_KILL_PROCESS = 0x80000000
_ERRNO = 0x00050000
_ALLOW = 0x7FFF0000
_EPERM = _ERRNO | errno.EPERM

# Instructions, from linux/bpf_common.h.
_LOAD = 0x20  # the 32 bits of seccomp_data at an offset
_JUMP_EQUAL = 0x15
_JUMP_GREATER_EQUAL = 0x35
_JUMP_ANY_BIT = 0x45
_RETURN = 0x06
_INSTRUCTION = struct.Struct("=HBBI")

# struct seccomp_data
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16
_AUDIT_ARCHITECTURE = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32_CALL = 0x40000000  # another set of numbers behind the same architecture

_CLONE_THREAD = 0x00010000
# What pthread_create asks for, in glibc and in musl; anything else makes another process.
_CLONE_OF_THREADS = 0x007D0F00
_CLONE_NEW_NAMESPACES = 0x7E020000
_NAMESPACES_OF_JOBS = 0x4E020000

_SCHED_IDLE = 5

_PR_SET_NAME = 15
_PR_SET_VMA = 0x53564D41  # naming memory

_OWN_PID = 0x3A9D77E1  # placeholder for the pid of the job, which is not known yet

Instruction = tuple[int, int, int, int]


def job_program(machine: str) -> bytes:
    """Return the program for jobs, which :func:`for_process` completes."""
    return _program(
        machine,
        syscalls.JOB_MAY,
        {
            "clone": _clone_a_thread(),
            # No filter sees the flags of clone3, which lie in memory. Without clone3 the C library
            # makes threads with clone.
            "clone3": [_action(_ERRNO | errno.ENOSYS)],
            "prctl": _if_argument(0, (_PR_SET_NAME, _PR_SET_VMA)),
            "prlimit64": _if_zero_words(_low(0), _low(2), _high(2)),  # its own limits; reading only
            "sendto": _if_zero_words(_low(4), _high(4)),  # only to the peer of its socket
            # abort() signals the process itself
            "tgkill": _if_argument(0, (_OWN_PID,), _KILL_PROCESS),
            **{name: [_action(_KILL_PROCESS)] for name in syscalls.JOB_DIES_OF},
        },
    )


def worker_program(machine: str) -> bytes:
    """Return the program for a worker, under which its jobs start."""
    return _program(
        machine,
        syscalls.WORKER_MAY,
        {
            "clone": [
                (_LOAD, 0, 0, _low(0)),
                (_JUMP_ANY_BIT, 1, 0, _CLONE_NEW_NAMESPACES),
                _action(_ALLOW),
                _action(_EPERM),
            ],
            "clone3": [_action(_ERRNO | errno.ENOSYS)],
            # Its jobs make namespaces of their own, but no user or process namespace.
            "unshare": [
                (_LOAD, 0, 0, _low(0)),
                (_JUMP_ANY_BIT, 1, 0, 0xFFFFFFFF & ~_NAMESPACES_OF_JOBS),
                _action(_ALLOW),
                _action(_EPERM),
            ],
            "prlimit64": _if_zero_words(_low(0)),
            # A job lowers its own priority before it is sealed.
            "sched_setscheduler": _if_argument(1, (_SCHED_IDLE,)),
            "setpriority": _if_zero_words(_low(0), _low(1)),
            "sendto": _if_zero_words(_low(4), _high(4)),
        },
    )


def for_process(program: bytes, pid: int) -> bytes:
    """Complete a program for the process that will install it."""
    return program.replace(struct.pack("=I", _OWN_PID), struct.pack("=I", pid))


def install(program: bytes, machine: str) -> None:
    """Make the kernel run ``program`` from now on, for good. Raises OSError."""
    code = ctypes.create_string_buffer(program, len(program))
    head = struct.pack("=HxxxxxxQ", len(program) // _INSTRUCTION.size, ctypes.addressof(code))
    syscalls.make("seccomp", machine, _SET_MODE_FILTER, 0, ctypes.c_char_p(head))


def _program(
    machine: str, allowed: Sequence[str], special: dict[str, Sequence[Instruction]]
) -> bytes:
    return b"".join(_INSTRUCTION.pack(*each) for each in _assemble(machine, allowed, special))


def _assemble(
    machine: str, allowed: Sequence[str], special: dict[str, Sequence[Instruction]]
) -> Iterator[Instruction]:
    yield (_LOAD, 0, 0, _ARCHITECTURE)
    yield (_JUMP_EQUAL, 1, 0, _AUDIT_ARCHITECTURE[machine])
    yield _action(_KILL_PROCESS)
    yield (_LOAD, 0, 0, _NUMBER)
    if machine == "x86_64":
        yield (_JUMP_GREATER_EQUAL, 0, 1, _X32_CALL)
        yield _action(_KILL_PROCESS)
    for name in allowed:
        if name not in special:
            yield from _when(syscalls.number(name, machine), [_action(_ALLOW)])
    for name, body in special.items():
        yield from _when(syscalls.number(name, machine), body)
    yield _action(_EPERM)


def _when(number: int | None, body: Sequence[Instruction]) -> Iterator[Instruction]:
    """Run ``body``, which ends in an action on every path, for the call ``number``."""
    if number is not None:
        yield (_JUMP_EQUAL, 0, len(body), number)
        yield from body


def _action(action: int) -> Instruction:
    return (_RETURN, 0, 0, action)


def _clone_a_thread() -> list[Instruction]:
    return [
        (_LOAD, 0, 0, _low(0)),
        (_JUMP_ANY_BIT, 0, 2, _CLONE_THREAD),
        (_JUMP_ANY_BIT, 1, 0, 0xFFFFFFFF & ~_CLONE_OF_THREADS),
        _action(_ALLOW),
        _action(_KILL_PROCESS),
    ]


def _if_argument(index: int, values: Sequence[int], otherwise: int = _EPERM) -> list[Instruction]:
    """Allow a call whose 32-bit argument is one of ``values``."""
    tests = [(_JUMP_EQUAL, len(values) - place, 0, value) for place, value in enumerate(values)]
    return [(_LOAD, 0, 0, _low(index)), *tests, _action(otherwise), _action(_ALLOW)]


def _if_zero_words(*offsets: int) -> list[Instruction]:
    """Allow a call where the 32 bits at each offset are zero."""
    tests: list[Instruction] = []
    for place, offset in enumerate(offsets):
        left = 2 * (len(offsets) - 1 - place)
        tests += [(_LOAD, 0, 0, offset), (_JUMP_EQUAL, 0, left + 1, 0)]
    return [*tests, _action(_ALLOW), _action(_EPERM)]


def _low(argument: int) -> int:
    return _ARGUMENTS + 8 * argument  # Both machines are little endian.


def _high(argument: int) -> int:
    return _low(argument) + 4
