"""Try to break out, as a job could: a worker does this before it takes its first job.

Each attempt is made in a process of its own, confined as a job is. It counts as refused if the
kernel returns an error or kills the process; anything else counts as a hole.
"""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any

from . import kernel, syscalls
from .confinement import Confinement

_NULL = 0  # the worker's standard input, which is /dev/null
_ATTEMPT_SECONDS = 10
_REFUSED, _DONE = 0, 1

# Refused, not there, or out of reach.
_REFUSALS = frozenset(
    (
        *(errno.EPERM, errno.EACCES, errno.EROFS, errno.ENOSYS, errno.ENOENT, errno.ESRCH),
        *(errno.ENETUNREACH, errno.EADDRNOTAVAIL, errno.EAGAIN, errno.EBADF),
    )
)
_PTRACE_SEIZE = 0x4206
_NEW_USER = 0x10000000
_IPC_CREAT = 0o1000

# A file that every interpreter has.
_A_FILE = os.__file__


def try_all(confinement: Confinement) -> list[dict[str, Any]]:
    """Return each attempt and whether it was refused, as JSON-ready data."""
    return [
        {"name": name, "refused": _refused_to_a_job(confinement, attempt)}
        for name, attempt in _ATTEMPTS.items()
    ]


def _refused_to_a_job(confinement: Confinement, attempt: Callable[[], None]) -> bool:
    pid = os.fork()
    if pid == 0:
        try:
            signal.alarm(_ATTEMPT_SECONDS)
            confinement.enter_job(_NULL, _NULL)
            confinement.seal()
            attempt()
        except (OSError, ValueError) as failure:  # setrlimit raises ValueError for EPERM
            code = getattr(failure, "errno", errno.EPERM)
            os._exit(_REFUSED if code in _REFUSALS else _DONE)
        except BaseException:
            os._exit(_DONE)
        os._exit(_DONE)
    _, status = os.waitpid(pid, 0)
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGSYS
    return killed or status == _REFUSED


def _connect() -> None:
    with socket.socket() as tcp:
        # Nothing listens there, but only a network can report that.
        tcp.connect(("127.0.0.1", 9))


def _read() -> None:
    os.close(os.open(_A_FILE, os.O_RDONLY))


def _write() -> None:
    for folder in ("/dev/shm", "/tmp", "/var/tmp", ""):  # noqa: S108 - they are to be refused
        path = f"{folder}/.wasmkiln-{os.getpid()}"
        try:
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        except OSError as failure:
            if failure.errno not in _REFUSALS:
                return
        else:
            os.unlink(path)
            return
    raise OSError(errno.EACCES, "no folder takes a file")


def _fork() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)  # Later attempts must not find it.


def _execute() -> None:
    command = [sys.executable, "-I", "-S", "-c", f"raise SystemExit({_DONE})"]
    os.execv(sys.executable, command)  # noqa: S606 - it is to be refused


def _signal() -> None:
    # The parent, or all processes where it is out of sight. Signal 0 only checks permission.
    os.kill(os.getppid() or -1, 0)


def _trace() -> None:
    # Where the parent is out of sight, trace the first process of the namespace.
    syscalls.make("ptrace", kernel.machine(), _PTRACE_SEIZE, os.getppid() or 1, 0, 0)


def _new_privileges() -> None:
    kernel.unshare(_NEW_USER)


def _raise_limits() -> None:
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
    resource.setrlimit(resource.RLIMIT_CORE, unlimited)


def _share_memory() -> None:
    syscalls.make("shmget", kernel.machine(), os.getpid(), 4096, _IPC_CREAT | 0o600)


def _use_io_uring() -> None:
    syscalls.make("io_uring_setup", kernel.machine(), 1, ctypes.create_string_buffer(256))


def _use_what_others_opened() -> None:
    first_unknown = 4
    for descriptor in range(first_unknown, 4096):
        try:
            os.write(descriptor, b"")
        except OSError as failure:
            if failure.errno != errno.EBADF:
                return
        else:
            return
    raise OSError(errno.EBADF, "no other descriptor is open")


_ATTEMPTS: dict[str, Callable[[], None]] = {
    "connect": _connect,
    "read": _read,
    "write": _write,
    "fork": _fork,
    "execute": _execute,
    "signal": _signal,
    "trace": _trace,
    "new_privileges": _new_privileges,
    "raise_limits": _raise_limits,
    "share_memory": _share_memory,
    "io_uring": _use_io_uring,
    "descriptors": _use_what_others_opened,
}
