"""The sandbox: what keeps a module that takes over its compiler from doing harm.

A worker puts it up once its engine is imported, and its jobs inherit it. Each layer is put up as
far as the kernel allows, and reported as enforced, partial or missing; the others do not depend on
it. In this order:

| layer | what a job lacks |
|---|---|
| namespaces | the network, other processes, IPC |
| root | files: its root is an empty folder, read-only |
| landlock | opening files, TCP, signals out of the worker |
| privileges | capabilities, set-user-id programs, core dumps, the user root |
| limits | more than 32 descriptors, threads, files, locked memory |
| seccomp | system calls that compiling does not need (``seccomp``) |

A job adds what must be its own: no descriptors but its socket and streams, limits on memory and CPU
time from its order, and, before it reads a byte of a module, the job's filter of system calls.
After that, a call that no compiler makes kills the job.

Before its first job, a worker has test jobs try to break out. What succeeds is a hole. The daemon
decides whether all that is enough (``engines.process``).

No path is allowed and so none is configured: what an engine needs of its environment it has read
before. The daemon imports this module for the limits and NOBODY only.
"""

from __future__ import annotations

import ctypes
import errno
import math
import os
import re
import resource
import signal
import socket
import struct
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from . import seccomp

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 1, 4, 38
_NEW_USER = 0x10000000
_NEW_REST = 0x00020000 | 0x40000000 | 0x08000000 | 0x20000000  # mounts, network, IPC, processes
_PRIVATE, _READ_ONLY = 0x4000 | 0x40000, 1 | 2 | 4 | 8  # no set-user-id, devices or programs either
_DETACH = 2
# The same numbers on every machine.
_LANDLOCK_CREATE_RULESET, _LANDLOCK_RESTRICT_SELF, _IO_URING_SETUP = 444, 446, 425
# How many rights on files each version of Landlock knows, from linux/landlock.h.
_FILE_RIGHTS = (13, 14, 15, 15, 16)
_CAPABILITY_HEAD = struct.pack("=Ii", 0x20080522, 0)
_PTRACE_SEIZE, _IPC_CREAT = 0x4206, 0o1000

# The user that owns nothing, by the kernel's own convention; services share it.
NOBODY = 65534
_NULL = 0  # the worker's standard input, which is /dev/null
_ATTEMPT_SECONDS = 10
_PIPE_BYTES = 64 * 1024
_MOST_DESCRIPTORS = 32
_JOB_SOCKET = 3
_THREADS, _THREADS_PER_CPU = 256, 4  # Engines start a thread for each CPU.
# Since Linux 5.14 each user namespace counts its own processes. Before, the limit covered all
# processes of a user, and would have stopped jobs for the sake of others.
_PROCESSES_COUNTED_APART = [5, 14]
# A job beside the daemon, or another process, gets a tenth of a CPU of which both want all. Its
# time slice is the longest that there is: since Linux 6.12, what wakes up and has a shorter one
# takes the CPU from it at once, so that a hit does not wait for the slice of a job to end.
NICENESS = 10
_SLICE_NS = 100_000_000


class Sandbox:
    """The sandbox of this worker, and what its jobs add."""

    # Why there is no empty root, and no user namespace; empty if there is.
    _no_root = _no_user = "there are no namespaces"
    _has_namespaces = False
    _still_root = ""  # why this is still the user root
    _sealed = False

    def __init__(self, user: int) -> None:
        """Put up every layer that the kernel has. For a process with one thread.

        Root becomes ``user``.
        """
        with open("/proc/self/statm", encoding="ascii") as statm:
            # What a job has mapped when it starts.
            self.mapped_bytes = int(statm.read().split()[0]) * resource.getpagesize()
        is_root = os.geteuid() == 0
        # In a user namespace without a mapping every user looks like ``nobody``.
        self._user = f"user {user}" if is_root else f"user {os.geteuid()}, which is the daemon's"
        self._not_killed_first = _why_not(_be_killed_first)
        _prctl(_PR_SET_NO_NEW_PRIVS, 1)
        self.layers = [
            _layer("namespaces", partial(self._namespaces, user)),
            _layer("root", self._root),
            _layer("landlock", self._landlock),
            _layer("privileges", partial(self._privileges, is_root and user == NOBODY)),
            _layer("limits", self._limits),
            _layer("seccomp", self._seccomp),
        ]
        if self._has_namespaces:
            _hold_processes()

    def _namespaces(self, user: int) -> tuple[str, str]:
        """Leave the machine's network, files and processes; become ``user`` if this is root.

        Root makes the namespaces before it stops being root, because some systems forbid that to
        ordinary users. Any other user makes a user namespace first, in which it may make the
        others. Only children of this process are in the new process namespace.
        """
        by_root = os.geteuid() == 0 and not _why_not(_call, "unshare", _NEW_REST)
        self._has_namespaces = by_root
        if by_root:
            self._no_root = _why_not(_empty_root)
        self._still_root = _why_not(_become, user)
        if by_root:
            self._no_user = _why_not(_call, "unshare", _NEW_USER)
        else:
            own = os.geteuid(), os.getegid()
            _call("unshare", _NEW_USER | _NEW_REST)
            self._has_namespaces, self._no_user = True, ""
            self._no_root = _why_not(_map_user, *own) or _why_not(_empty_root)
        lacking = f"no user namespace: {self._no_user}" if self._no_user else ""
        return "user, mount, network, IPC, PID", lacking

    def _root(self) -> tuple[str, str]:
        if self._no_root:
            raise OSError(errno.EPERM, self._no_root)
        return "an empty folder, read-only", ""

    def _landlock(self) -> tuple[str, str]:
        """Allow nothing: no file, no TCP and, on new kernels, no signal out of the worker."""
        abi = _call("syscall", _LANDLOCK_CREATE_RULESET, None, 0, 1)
        file_rights = (1 << _FILE_RIGHTS[min(abi, len(_FILE_RIGHTS)) - 1]) - 1
        # Files; to bind and connect TCP; abstract sockets and signals.
        fields = [file_rights, 0b11, 0b11][: 1 + (abi >= 4) + (abi >= 6)]
        rules = struct.pack(f"={len(fields)}Q", *fields)
        ruleset = _call("syscall", _LANDLOCK_CREATE_RULESET, rules, len(rules), 0)
        _call("syscall", _LANDLOCK_RESTRICT_SELF, ruleset, 0)
        os.close(ruleset)
        gaps = {4: "TCP (ABI 4, Linux 6.7)", 6: "signals and abstract sockets (ABI 6, Linux 6.12)"}
        gap = " and ".join(what for since, what in gaps.items() if abi < since)
        return f"ABI {abi}", f"ABI {abi} does not cover {gap}" if gap else ""

    def _privileges(self, is_shared: bool) -> tuple[str, str]:
        _drop_capabilities()
        # RLIMIT_CORE has no effect where /proc/sys/kernel/core_pattern names a program. Nor may
        # processes of the same user read the memory of one that leaves no dumps.
        _prctl(_PR_SET_DUMPABLE, 0)
        is_nobody = f"{self._user} is also that of other processes: no user is free here"
        lacking = is_nobody if is_shared else ""
        if self._still_root:
            lacking = f"kept: the user root ({self._still_root})"
        return f"{self._user}, no capabilities, no core dumps", lacking

    def _limits(self) -> tuple[str, str]:
        for name in ("CORE", "FSIZE", "MEMLOCK", "MSGQUEUE"):
            _lower(name, 0)
        _lower("NOFILE", _MOST_DESCRIPTORS)
        threads = max(_THREADS, _THREADS_PER_CPU * (os.cpu_count() or 1))
        what = f"{threads} threads, {_MOST_DESCRIPTORS} descriptors"
        if self._not_killed_first:
            return what, f"out of memory, the daemon may go first: {self._not_killed_first}"
        release = [int(part) for part in re.findall(r"\d+", os.uname().release)[:2]]
        if self._no_user or self._still_root or release < _PROCESSES_COUNTED_APART:
            needed = "a user namespace, a user other than root, and Linux 5.14"
            return what, f"threads are not limited: that takes {needed}"
        _lower("NPROC", threads)
        return what, ""

    def _seccomp(self) -> tuple[str, str]:
        machine = seccomp.machine()
        if not machine:
            raise OSError(errno.ENOSYS, f"no list of system calls for {os.uname().machine}")
        install_filter(seccomp.worker_program(machine))
        self._sealed = True
        return "what is not listed is refused", ""

    def enter_job(self, job_socket: int, words: int) -> int:
        """Confine this process, a job that was just forked; return its socket's descriptor.

        It keeps its socket and standard streams, and may still fork: see :meth:`seal`.
        Raises OSError.
        """
        os.dup2(words, 1)
        os.dup2(words, 2)
        os.dup2(job_socket, _JOB_SOCKET)
        os.closerange(_JOB_SOCKET + 1, _MOST_DESCRIPTORS)
        return _JOB_SOCKET

    def seal(self) -> None:
        """Forbid this job all system calls that compiling does not need. Raises OSError."""
        if self._sealed:
            install_filter(seccomp.job_program(seccomp.machine(), os.getpid()))

    def attempt(self, step: Callable[[], Iterable[bytes]]) -> tuple[bytes, int]:
        """Return what ``step`` yields in a process confined as a job, and how that process ended.

        Without any error the second is 0, as of ``os.waitpid``.
        """
        readable, writable = os.pipe()
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            try:
                die_with_parent(parent)
                signal.alarm(_ATTEMPT_SECONDS)
                out = self.enter_job(writable, _NULL)  # What it says of an error is discarded.
                self.seal()
                for output in step():
                    while output:
                        output = output[os.write(out, output) :]
                os._exit(0)
            finally:  # A panic derives from BaseException.
                os._exit(1)
        os.close(writable)
        output = b""
        while piece := os.read(readable, _PIPE_BYTES):
            output += piece
        os.close(readable)
        return output, os.waitpid(pid, 0)[1]

    def try_to_break_out(self) -> dict[str, bool]:
        """Return each attempt to break out of a job, and whether it was refused."""
        return {name: self._refuses(those) for name, those in _ATTEMPTS.items()}

    def _refuses(self, attempts: Sequence[Callable[[], Any]]) -> bool:
        """Return whether the kernel refuses attempts to a job, or kills it."""
        said, status = self.attempt(lambda: [b"\0" if all(map(_is_refused, attempts)) else b"\1"])
        return said == b"\0" or (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGSYS)


def _layer(name: str, put_up: Callable[[], tuple[str, str]]) -> dict[str, str]:
    """Put up a layer: ``put_up`` returns what it consists of and what it lacks, or raises OSError.

    A layer that the kernel refuses is missing.
    """
    try:
        what, lacking = put_up()
    except OSError as failure:
        why = failure.strerror or str(failure)
        return {"name": name, "state": "missing", "detail": f"it cannot be put up: {why}"}
    state = "partial" if lacking else "enforced"
    return {"name": name, "state": state, "detail": lacking or what}


def _call(function: str, *arguments: Any) -> int:
    """Call a function of the C library, with integers of 64 bits. Raises OSError."""
    wide = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    result = int(getattr(_libc, function)(*wide))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def _prctl(option: int, argument: int) -> None:
    _call("prctl", option, argument, 0, 0, 0)


def _why_not(step: Callable[..., Any], *arguments: Any) -> str:
    """Take a step; return why it failed with an OSError, empty if it did not fail."""
    try:
        step(*arguments)
    except OSError as failure:
        return failure.strerror or type(failure).__name__
    return ""


def _become(user: int) -> None:
    """Become ``user``, and the group of the same number, if this is root. Raises OSError."""
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)


def _map_user(user: int, group: int) -> None:
    """Map this user and group to the same ones in the new namespace."""
    # Once the user has changed, the files under /proc/self belong to root unless dumpable.
    _prctl(_PR_SET_DUMPABLE, 1)
    maps = {"setgroups": "deny", "uid_map": f"{user} {user} 1", "gid_map": f"{group} {group} 1"}
    for name, text in maps.items():
        with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
            file.write(text)


def _empty_root() -> None:
    """Mount an empty root over a folder that exists on every Linux, and unmount the old one."""
    _call("mount", b"none", b"/", None, _PRIVATE, None)
    _call("mount", b"none", b"/proc", b"tmpfs", _READ_ONLY, b"size=4k,nr_inodes=2,mode=555")
    os.chdir("/proc")
    _call("pivot_root", b".", b".")
    _call("umount2", b".", _DETACH)
    os.chdir("/")


def _drop_capabilities() -> None:
    _call("capset", ctypes.create_string_buffer(_CAPABILITY_HEAD), bytes(24))


def install_filter(program: bytes) -> None:
    """Make the kernel run ``program`` for each system call, for good. Raises OSError."""
    code = ctypes.create_string_buffer(program, len(program))
    head = struct.pack("=HxxxxxxQ", len(program) // 8, ctypes.addressof(code))
    number = seccomp.number("seccomp", seccomp.machine())
    _call("syscall", number, 1, 0, ctypes.c_char_p(head))  # SECCOMP_SET_MODE_FILTER


def _hold_processes() -> None:
    """Start the first process of the new namespace, which does nothing but exist.

    Without it the first job would be the first process, and signals that the first process of a
    namespace sends to itself have no effect. When it ends, the kernel kills all others. It ends
    with the worker, which then lets go of the other end of the pipe. Raises OSError.
    """
    holder_reads, _ = os.pipe()
    if os.fork() == 0:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # Orphans leave no zombies.
        os.closerange(0, holder_reads)
        os.closerange(holder_reads + 1, _MOST_DESCRIPTORS)
        os.read(holder_reads, 1)
        os._exit(0)
    os.close(holder_reads)


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent's main thread ends. Linux only.

    Call it again whenever the user changes: the kernel forgets the request then.
    """
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() not in (parent, 0):  # 0: it is outside of the process namespace.
        os._exit(1)  # The parent ended before this request.


def _be_killed_first() -> None:
    """Have a kernel that runs out of memory kill this process, and what it starts, before others.

    A compile can be repeated, while a daemon that is killed fails all of its calls.
    """
    with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
        file.write("1000")


def _hard(name: str) -> float:
    """Return a hard limit of this process; infinity where there is none."""
    hard = resource.getrlimit(getattr(resource, f"RLIMIT_{name}"))[1]
    return math.inf if hard < 0 else hard


def _lower(name: str, value: int) -> None:
    lower = int(min(value, _hard(name)))
    resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (lower, lower))


def limit(wanted: dict[str, Any], mapped_bytes: int, threads: int) -> None:
    """Set the limits of a job whose engine starts ``threads`` threads.

    ``memory_bytes`` counts what the job maps beyond ``mapped_bytes``, what it has when it
    starts; ``cpu_s`` counts the time of all its threads. Raises OSError where the worker itself
    may not have as much.
    """
    memory, cpu = int(wanted["memory_bytes"]) + mapped_bytes, int(wanted["cpu_s"])
    if why := too_low(memory, cpu, threads):
        raise OSError(why)
    for name, (amount, _, _) in _needs(memory, cpu, threads).items():
        what = getattr(resource, f"RLIMIT_{name}")
        soft, hard = resource.getrlimit(what)
        if 0 <= soft < amount:
            resource.setrlimit(what, (amount, hard))
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    # The hard limit a second later kills a process that does not die of SIGXCPU.
    resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu + 1))


def too_low(memory_bytes: int, cpu_s: int, threads: int) -> str:
    """Return which hard limits of this process leave its jobs too little, and what to do.

    Empty if none does. Processes that this one starts inherit the limits.
    """
    return "; ".join(
        f"RLIMIT_{name} is {hard:,} and a job needs {amount:,}: raise the hard limit"
        f" (ulimit -H{flag}, or Limit{name}= of a systemd unit)"
        + (f", or lower WASMKILN_{setting}" if setting else "")
        for name, (amount, flag, setting) in _needs(memory_bytes, cpu_s, threads).items()
        if (hard := _hard(name)) < amount
    )


def _needs(memory_bytes: int, cpu_s: int, threads: int) -> dict[str, tuple[int, str, str]]:
    """Return how high a limit has to be for a job, its flag of ``ulimit``, and the setting."""
    setting = "COMPILE_MEMORY_BYTES and WASMKILN_COMPILE_MEMORY_RETRY_BYTES"
    return {
        "AS": (memory_bytes, "v", setting),
        "DATA": (memory_bytes, "d", setting),
        "CPU": (cpu_s + 1, "t", "COMPILE_CPU_S"),
        # The kernel's default, which compilers need because they recurse.
        "STACK": (8 * 1024**2, "s", ""),
        # The worker, the holder of the process namespace and the job itself count too.
        "NPROC": (threads + 3, "u", ""),
        # A worker's own, and the job's while it is set up.
        "NOFILE": (16, "n", ""),
    }


def reachable(memory_bytes: int, cpu_s: float) -> tuple[int, float]:
    """Return both, lowered to what the hard limits of this process leave to a job."""
    hard = min(_hard("AS"), _hard("DATA"))
    # Less what a worker has mapped before it does anything, with room to spare.
    memory_bytes = int(min(memory_bytes, max(hard - 1024**3, hard / 2)))
    return memory_bytes, min(cpu_s, max(1, _hard("CPU") - 1))


def lower_priority() -> None:
    """Let other processes go first, before this job is sealed and cannot change it any more.

    A container that refuses leaves the job where it is: that is better than none.
    """
    _why_not(os.setpriority, os.PRIO_PROCESS, 0, NICENESS)
    if machine := seccomp.machine():
        # A struct sched_attr: its size, the policy, flags, niceness, priority, and three times.
        wanted = struct.pack("=IIQiIQQQ", 48, os.SCHED_BATCH, 0, NICENESS, 0, _SLICE_NS, 0, 0)
        _why_not(_call, "syscall", seccomp.number("sched_setattr", machine), 0, wanted, 0)


def used_by(pid: int) -> dict[str, int]:
    """Return what a child that has ended and is not reaped used.

    ``cpu_ms`` is the time of all its threads, ``peak_memory_bytes`` its resident memory. Zeros
    where the kernel does not tell.
    """
    # A struct rusage is all longs: seconds and microseconds as a user and in the kernel, the most
    # kibibytes resident, and more.
    usage = (ctypes.c_long * 18)()
    if machine := seccomp.machine():
        # The standard library's waitid leaves the usage out, and its wait4 reaps.
        number, how = seccomp.number("waitid", machine), os.WEXITED | os.WNOWAIT
        _why_not(_call, "syscall", number, os.P_PID, pid, None, how, usage)
    user_s, user_us, kernel_s, kernel_us, peak_kib = usage[:5]
    cpu_ms = (user_s + kernel_s) * 1000 + (user_us + kernel_us) // 1000
    return {"cpu_ms": cpu_ms, "peak_memory_bytes": peak_kib * 1024}


# Attempts to break out, each made in a process of its own that is confined as a job is. One counts
# as refused if the kernel returns such an error or kills the process; anything else is a hole.
_REFUSALS = {
    *(errno.EPERM, errno.EACCES, errno.EROFS, errno.ENOSYS, errno.ENOENT, errno.ESRCH),
    *(errno.ENETUNREACH, errno.EADDRNOTAVAIL, errno.EAGAIN, errno.EBADF),
}


def _is_refused(attempt: Callable[[], Any]) -> bool:
    try:
        attempt()
    except OSError as failure:
        return failure.errno in _REFUSALS
    except ValueError:  # setrlimit raises it for EPERM.
        return True
    return False


_ATTEMPTS: dict[str, Sequence[Callable[[], Any]]] = {
    # Nothing listens there, but only a network can report that.
    "connect": [lambda: socket.socket().connect(("127.0.0.1", 9))],
    # A file that every interpreter has.
    "read": [partial(os.open, os.__file__, os.O_RDONLY)],
    # Files without a name, which are gone when the attempt ends.
    "write": [
        partial(os.open, folder, os.O_TMPFILE | os.O_WRONLY)
        for folder in ("/dev/shm", "/tmp", "/var/tmp", "/")  # noqa: S108 - they are to be refused
    ],
    # Later attempts must not find the process.
    "fork": [lambda: os.waitpid(os.fork() or os._exit(0), 0)],
    "execute": [
        lambda: os.execv(sys.executable, [sys.executable, "-ISc", "raise SystemExit(1)"])  # noqa: S606
    ],
    # The parent, or all processes where it is out of sight. Signal 0 only checks permission.
    "signal": [lambda: os.kill(os.getppid() or -1, 0)],
    # Where the parent is out of sight, trace the first process of the namespace.
    "trace": [lambda: _call("ptrace", _PTRACE_SEIZE, os.getppid() or 1, 0, 0)],
    "new_privileges": [partial(_call, "unshare", _NEW_USER)],
    "raise_limits": [
        partial(resource.setrlimit, resource.RLIMIT_NOFILE, (4096, 4096)),
        partial(resource.setrlimit, resource.RLIMIT_CORE, (resource.RLIM_INFINITY,) * 2),
    ],
    "share_memory": [lambda: _call("shmget", os.getpid(), 4096, _IPC_CREAT | 0o600)],
    "io_uring": [lambda: _call("syscall", _IO_URING_SETUP, 1, ctypes.create_string_buffer(256))],
    # What others opened.
    "descriptors": [partial(os.write, number, b"") for number in range(_JOB_SOCKET + 1, 1024)],
}
