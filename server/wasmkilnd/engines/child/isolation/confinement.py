"""Put up the layers around a worker, once its engine is imported, and those of each job.

Each layer is tested as soon as it is up, by something that it should stop: that was possible a
moment before, so only this layer can have refused it. A layer that the kernel lacks is reported,
and the others are put up nevertheless.
"""

from __future__ import annotations

import errno
import os
import resource
import socket
from collections.abc import Callable
from dataclasses import asdict, dataclass

from . import kernel, landlock, limits, namespaces, privileges, seccomp

ENFORCED, PARTIAL, MISSING = "enforced", "partial", "missing"

_MOST_DESCRIPTORS = 32
_JOB_SOCKET = 3
_FIRST_CLOSED = 4
_LIMITED_TO_NOTHING = (
    resource.RLIMIT_CORE,
    resource.RLIMIT_FSIZE,
    resource.RLIMIT_MEMLOCK,
    resource.RLIMIT_MSGQUEUE,
)
# Engines start a thread for each CPU.
_MOST_THREADS = 256
_THREADS_PER_CPU = 4
# Since Linux 5.14 each user namespace counts its own processes. Before, the limit covered all
# processes of a user, and would have stopped jobs for the sake of others.
_PROCESSES_COUNTED_APART = (5, 14)


@dataclass(frozen=True)
class Layer:
    """One layer, and whether it is in force."""

    name: str
    state: str
    detail: str = ""
    """What is missing and why; for an enforced layer, what it consists of."""


class Confinement:
    """The layers of this worker, and what its jobs add."""

    def __init__(self, user: int, shared_with: str) -> None:
        """Put up every layer that the kernel has. For a process with one thread.

        Root becomes ``user``. ``shared_with`` tells what else has that user, if that is known.
        """
        self._was_root = os.geteuid() == 0
        # In a user namespace without a mapping every user looks like ``nobody``.
        self._user = user if self._was_root else os.geteuid()
        self._machine = kernel.machine()
        self._job_program = seccomp.job_program(self._machine) if self._machine else b""
        self._ruleset = -1
        self.mapped_bytes = _mapped_bytes()
        """What a job has mapped when it starts."""
        too_many = _open_descriptors_from(_MOST_DESCRIPTORS)
        spared = kernel.why_not(limits.be_killed_first)
        self._entered = entered = namespaces.enter(self._machine, user)
        self.layers = [
            self._namespaces(entered),
            self._root(entered),
            self._landlock(),
            self._privileges(entered, shared_with),
            self._limits(entered, too_many, spared),
            self._seccomp(),
        ]
        if not entered.namespaces:
            namespaces.hold_processes()
        if entered.job_flags:
            self.layers[0] = self._of_each_job(self.layers[0])

    def report(self) -> list[dict[str, str]]:
        """Return every layer as JSON-ready data."""
        return [asdict(layer) for layer in self.layers]

    def enter_job(self, job_socket: int, words: int) -> int:
        """Confine this process, a job that was just forked; return its socket's descriptor.

        It keeps its socket and standard streams, and may still fork: see :meth:`seal`.
        Raises OSError.
        """
        os.dup2(words, 1)
        os.dup2(words, 2)
        namespaces.leave_workers(self._entered, self._machine)
        if self._ruleset >= 0:
            landlock.restrict(self._ruleset)  # below the worker, not beside it
        os.dup2(job_socket, _JOB_SOCKET)
        os.closerange(_FIRST_CLOSED, _MOST_DESCRIPTORS)
        return _JOB_SOCKET

    def seal(self) -> None:
        """Forbid this job all system calls that compiling does not need. Raises OSError."""
        if self._job_program:
            seccomp.install(seccomp.for_process(self._job_program, os.getpid()), self._machine)

    def _namespaces(self, entered: namespaces.Entered) -> Layer:
        if entered.namespaces:
            return Layer("namespaces", MISSING, f"the kernel refuses them: {entered.namespaces}")
        if _refusal_of(namespaces.use_loopback) != errno.ENETUNREACH:
            return Layer("namespaces", PARTIAL, "there is still a network")
        if entered.user:
            return Layer("namespaces", PARTIAL, f"no user namespace: {entered.user}")
        of_worker = "user, mount, network, IPC, PID"
        if entered.names:
            return Layer("namespaces", PARTIAL, f"{of_worker}; no UTS and cgroup: {entered.names}")
        return Layer("namespaces", ENFORCED, f"{of_worker}, UTS, cgroup")

    def _of_each_job(self, of_worker: Layer) -> Layer:
        """Try whether each job can have namespaces of its own; return the layer of namespaces.

        If not, give up the capability that it takes.
        """
        why = kernel.why_not(lambda: namespaces.try_as_job(self._entered, self._machine))
        if why:
            self._entered.job_flags = 0
            kernel.why_not(lambda: privileges.drop_capabilities(self._machine))
        if of_worker.state != ENFORCED:
            return of_worker
        if why:
            return Layer(of_worker.name, PARTIAL, f"{of_worker.detail}; none for each job: {why}")
        of_job = "for each job all but user and PID"
        return Layer(of_worker.name, ENFORCED, f"{of_worker.detail}; {of_job}")

    def _root(self, entered: namespaces.Entered) -> Layer:
        if entered.root:
            return Layer("root", MISSING, f"it cannot be changed: {entered.root}")
        seen = os.listdir("/")
        if seen or not os.statvfs("/").f_flag & os.ST_RDONLY:
            return Layer("root", MISSING, "the new root is not empty, or can be written to")
        return Layer("root", ENFORCED, "an empty folder, read-only")

    def _landlock(self) -> Layer:
        try:
            abi = landlock.abi()
            privileges.forbid_new_ones()
            ruleset = landlock.closed_ruleset(abi)
            landlock.restrict(ruleset)
        except OSError as failure:
            return Layer("landlock", MISSING, landlock.why_none(failure))
        self._ruleset = ruleset  # Only one that works: jobs would fail with any other.
        if _refusal_of(lambda: os.close(os.open("/", os.O_RDONLY))) != errno.EACCES:
            return Layer("landlock", MISSING, "a folder could still be opened")
        gaps = landlock.missing(abi)
        if gaps:
            return Layer("landlock", PARTIAL, f"ABI {abi} does not cover {gaps}")
        return Layer("landlock", ENFORCED, f"ABI {abi}")

    def _privileges(self, entered: namespaces.Entered, shared_with: str) -> Layer:
        try:
            privileges.forbid_new_ones()
            # In the worker's own user namespace, and in a job until it has made its namespaces.
            needed = privileges.MAKE_NAMESPACES if entered.job_flags else 0
            privileges.drop_capabilities(self._machine, needed)
            privileges.leave_no_traces()
            kept = privileges.left_over(self._machine, needed)
            if entered.ordinary:
                # In a user namespace without a mapping root looks like another user.
                kept.append(f"the user root ({entered.ordinary})")
        except OSError as failure:
            return Layer("privileges", MISSING, str(failure))
        if kept:
            return Layer("privileges", PARTIAL, f"kept: {', '.join(kept)}")
        if shared_with:
            return Layer("privileges", PARTIAL, f"user {self._user} is also that of {shared_with}")
        whose = "" if self._was_root else ", which is the daemon's"
        user = f"user {self._user}{whose}"
        return Layer("privileges", ENFORCED, f"{user}, no capabilities, no core dumps")

    def _limits(self, entered: namespaces.Entered, too_many: list[int], spared: str) -> Layer:
        for what in _LIMITED_TO_NOTHING:
            _lower(what, 0)
        _lower(resource.RLIMIT_NOFILE, _MOST_DESCRIPTORS)
        if too_many:
            return Layer("limits", PARTIAL, f"descriptors that stay open in jobs: {too_many}")
        if spared:
            return Layer("limits", PARTIAL, f"out of memory, the daemon may go first: {spared}")
        counted_apart = kernel.release() >= _PROCESSES_COUNTED_APART
        if entered.user or entered.ordinary or not counted_apart:
            needed = "a user namespace, a user other than root, and Linux 5.14"
            return Layer("limits", PARTIAL, f"threads are not limited: that takes {needed}")
        threads = max(_MOST_THREADS, _THREADS_PER_CPU * (os.cpu_count() or 1))
        _lower(resource.RLIMIT_NPROC, threads)
        return Layer("limits", ENFORCED, f"{threads} threads, {_MOST_DESCRIPTORS} descriptors")

    def _seccomp(self) -> Layer:
        if not self._machine:
            return Layer("seccomp", MISSING, f"no list of system calls for {os.uname().machine}")
        try:
            seccomp.install(seccomp.worker_program(self._machine), self._machine)
        except OSError as failure:
            self._job_program = b""
            return Layer("seccomp", MISSING, str(failure))
        if _refusal_of(lambda: socket.socket().close()) != errno.EPERM:
            return Layer("seccomp", MISSING, "a socket could still be made")
        return Layer("seccomp", ENFORCED, "what is not listed is refused")


def _lower(what: int, value: int) -> None:
    _, hard = resource.getrlimit(what)
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(what, (value, value))


def _refusal_of(attempt: Callable[[], None]) -> int:
    """Return the number of the error that ``attempt`` raises; 0 if it succeeds."""
    try:
        attempt()
    except OSError as failure:
        return failure.errno or 0
    return 0


def _mapped_bytes() -> int:
    with open("/proc/self/statm", encoding="ascii") as statm:
        return int(statm.read().split()[0]) * resource.getpagesize()


def _open_descriptors_from(first: int) -> list[int]:
    return [int(name) for name in os.listdir("/proc/self/fd") if int(name) >= first]
