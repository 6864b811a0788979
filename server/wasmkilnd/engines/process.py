"""One worker process, seen from the daemon: start it, give it a job, wait for its end, kill it.

A worker is a long-lived process with one engine imported (its own code is ``engines.child``). For
each order it forks a job, which is confined, reads the module from a socket of its own, sends the
result, and ends. No worker ever holds a module, so nothing of one caller's module is left when
the next one comes.

- ``start_worker`` starts a process with an environment that has nothing of the daemon's, and with
  a user that no other process has, if the daemon is root. The worker confines itself and tries to
  break out before its first job; ``IsolationGuard`` admits it only if that went as the setting
  ``isolation`` demands.
- ``Worker.run`` gives it a job and enforces the wall clock: past the time limit it kills the job's
  process group, and the worker goes on. Two sockets carry the frames of ``child.frames``: the
  worker reports the job's begin and end over its control socket, and the job itself sends its
  result over its own. Nothing that a job sends is trusted: frames are bounded, and each type may
  come once and in order. A job that breaks the protocol is killed.

A worker is never used again after something unexpected: it is killed, and the pool replaces it.
"""

from __future__ import annotations

import asyncio
import contextlib
import grp
import hashlib
import itertools
import json
import math
import os
import pwd
import re
import secrets
import signal
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import structlog
from pydantic import BaseModel, Field
from pydantic_core import from_json

from wasmkilnd import errors
from wasmkilnd.engines import child
from wasmkilnd.engines.child.frames import HEADER, FrameError, Type, parse_header
from wasmkilnd.model import (
    CHUNK_BYTES,
    Isolation,
    IsolationLayer,
    LayerState,
    Limits,
    Module,
    Packed,
    Wasm,
    frame,
    pieces,
)

log = structlog.get_logger("wasmkilnd.engines")

# The frames that a job may send: each at most once and in this order, so a job cannot send without
# end.
_FRAMES_OF_JOBS = (Type.SET_UP, Type.CONFIGURED, Type.COMPILED, Type.ARTIFACT, Type.RESULT)
# The largest number that a worker or a job may send.
MAX_NUMBER = 2**63 - 1
_ONE_READ_BYTES = 256 * 1024
_START_TIMEOUT_S, _LAST_MOMENTS_S = 30.0, 1.0
# The longest that a healthy worker takes for its own part of a job: a fork before it, a frame
# after it. A worker that takes longer is sick, and is replaced.
_WORKER_GRACE_S = 10.0
# Reads all that a full pipe can hold.
_WHOLE_PIPE_BYTES = 2 * 1024 * 1024
_LAST_WORDS_BYTES = 4096
# How many heaps the threads of a job share, where it has more threads.
ARENAS = 8
_GONE = "the worker ended, or was killed"
_BOOT = (
    "import sys; sys.path.append(sys.argv[3]);"
    " from child.job import main; main(sys.argv[1], int(sys.argv[2]))"
)


class WorkerDied(Exception):  # noqa: N818
    """The worker itself ended or stopped responding; its job is lost with it."""


class JobNotSetUp(WorkerDied):
    """A job ended before it was confined and saw its module, so the module is not to blame.

    The worker has ended too, since each of its jobs would end the same way.
    """


# --- What a job is told, and what it tells --------------------------------------------------


@dataclass(frozen=True, slots=True)
class JobOrder:
    """What a job has to do, and within which limits: see :mod:`wasmkilnd.engines.child.job`."""

    order: Mapping[str, Any]
    limits: Limits
    # The module; None where there is none.
    wasm: Wasm | None = None
    # The module's name in the log; empty where there is no module.
    module_sha256: str = ""

    @property
    def size_bytes(self) -> int:
        """The size of its module; 0 where there is none."""
        return len(self.wasm or b"")


def order_on(module: Module, limits: Limits, **order: Any) -> JobOrder:
    """Return an ``order`` about a module: ``op``, ``target``, ``cpu`` and ``settings``."""
    return JobOrder({"kind": module.kind.value, **order}, limits, module.wasm, module.sha256)


@dataclass(slots=True)
class JobReport:
    """How a job ended."""

    # Whether it did not run, since it was to be done no more.
    needless: bool = False
    # Its RESULT frame, if it sent one.
    result: dict[str, Any] | None = None
    # The artifact as it is stored and sent to callers.
    packed: Packed | None = None
    # Whether the job was confined and had its limits before it ended.
    set_up: bool = False
    # Whether the engine took the settings before the job ended.
    configured: bool = False
    # Whether the engine had made the code before the job ended.
    compiled: bool = False
    timed_out: bool = False
    signal: int | None = None
    exit_code: int | None = None
    # The end of what it wrote to standard error, such as a panic's message.
    last_words: str = ""
    # How it broke the protocol, for which it was killed; empty if it did not.
    protocol_error: str = ""
    pid: int = 0
    # The size of its module.
    module_bytes: int = MAX_NUMBER
    # How long it ran, by the daemon's clock.
    elapsed_s: float = MAX_NUMBER
    # CPU time that all its threads used; 0 where the kernel does not tell.
    cpu_s: float = 0.0
    # How long its threads were ready and had no CPU, if it ran past its time; infinite where the
    # kernel does not tell.
    waited_s: float = math.inf
    # Whether it ran beside no other job, and beside no busy daemon.
    alone: bool = False
    # How much memory it might use; 0 for as much as its order says.
    memory_bytes: int = 0
    # Its peak resident memory; 0 where the kernel does not tell.
    peak_memory_bytes: int = 0


async def exchange(sock: socket.socket, job: JobOrder, report: JobReport) -> None:
    """Send the order; fill the report until the job closes its end, or breaks the protocol."""
    sizes = {"module_bytes": job.size_bytes, "artifact_limit_bytes": job.limits.artifact_bytes}
    order = json.dumps({**job.order, **sizes}).encode()
    loop = asyncio.get_running_loop()
    # Of a job that has ended already, what it sent and how it ended tell why. But a module that
    # cannot be read from its file is no failure of the job.
    with contextlib.suppress(ConnectionError):
        await loop.sock_sendall(sock, HEADER.pack(Type.ORDER, len(order)) + order)
        if job.wasm is not None:
            await loop.sock_sendall(sock, HEADER.pack(Type.MODULE, job.size_bytes))
            for piece in pieces(job.wasm):
                await loop.sock_sendall(sock, piece)
    expected = iter(_FRAMES_OF_JOBS)
    try:
        while True:
            kind, size = await _receive_header(sock, job.limits.artifact_bytes)
            if kind not in expected:  # This also drops the frames before it from ``expected``.
                raise FrameError(f"unexpected {kind.name} frame")
            if kind is Type.ARTIFACT:
                report.packed = await receive_packed(sock, size)
                continue
            payload = await _receive_exactly(sock, size)
            report.set_up |= kind is Type.SET_UP
            report.configured |= kind is Type.CONFIGURED
            report.compiled |= kind is Type.COMPILED
            if kind is Type.RESULT:
                # What it means depends on the order: ``engines.verdict`` reads it.
                report.result = from_json(payload)
    except (EOFError, ConnectionError):
        return
    except (FrameError, ValueError) as broken:
        report.protocol_error = str(broken)


async def receive_packed(sock: socket.socket, size: int) -> Packed:
    """Wait for an artifact of ``size`` bytes; return it as it is stored and sent to callers.

    It is hashed as it arrives: one chunk takes about a quarter of a millisecond. Raises EOFError
    if fewer bytes come.
    """
    digest, made = hashlib.sha256(), []
    for start in range(0, size, CHUNK_BYTES):
        chunk = await _receive_exactly(sock, min(size - start, CHUNK_BYTES))
        digest.update(chunk)
        made.append(frame(memoryview(chunk)))
    return Packed(digest.hexdigest(), size, tuple(made))


async def _receive_header(sock: socket.socket, code_bytes: int = 0) -> tuple[Type, int]:
    """Wait for the header of a frame, which may hold so much code; return its type and size."""
    return parse_header(await _receive_exactly(sock, HEADER.size), code_bytes)


async def _receive_exactly(sock: socket.socket, size: int) -> bytearray:
    """Wait for ``size`` bytes. Raises EOFError if fewer come."""
    loop = asyncio.get_running_loop()
    # Grow with what arrives: to allocate and clear all that a header announces takes time.
    received = bytearray()
    while len(received) < size:
        if received:
            # sock_recv does not wait for what is there already. A job that sends as fast as the
            # daemon reads would keep all other tasks, and its own time limit, from running.
            await asyncio.sleep(0)
        piece = await loop.sock_recv(sock, min(size - len(received), _ONE_READ_BYTES))
        if not piece:
            raise EOFError
        received += piece
    return received


# --- A worker -------------------------------------------------------------------------------

_Number = Annotated[int, Field(ge=0, le=MAX_NUMBER, strict=True)]


class Ready(BaseModel):
    """A worker's first frame: how it is confined, and which attempts to break out failed."""

    layers: tuple[IsolationLayer, ...]
    attempts: dict[str, bool]


class Started(BaseModel):
    """A job has been forked."""

    pid: Annotated[_Number, Field(gt=1)]  # To kill group 0 would be to kill our own.


class Ended(BaseModel):
    """A job has ended, by itself or by a signal; what it used."""

    exit_code: _Number | None = None
    signal: _Number | None = None
    cpu_ms: _Number
    peak_memory_bytes: _Number


_Content = TypeVar("_Content", bound=BaseModel)


@dataclass(slots=True)
class Worker:
    """A long-lived child with one engine imported. One job at a time."""

    process: asyncio.subprocess.Process
    control: socket.socket
    pid: int
    # What it found when it tried to break out, before its first job.
    isolation: Isolation = field(default_factory=Isolation)

    async def run(self, job: JobOrder) -> JobReport:
        """Have the worker do one job, and wait for its end.

        A job past its time is killed with its process group. Raises COMPILE_QUEUE_FULL before
        anything has begun if the daemon has no file descriptors left: the worker stays usable.
        Raises JobNotSetUp or WorkerDied when the worker itself fails: it is killed, as it is when
        the caller is cancelled.
        """
        report = JobReport(module_bytes=job.size_bytes)
        with ExitStack() as opened:
            try:
                sock, jobs_sock = map(opened.enter_context, socket.socketpair())
                # If the job writes too much to standard error, the rest is lost and nobody blocks.
                readable, writable = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
            except OSError as shortage:
                log.warning("no job", cause=str(shortage))
                raise errors.out_of_descriptors() from None
            stderr = opened.enter_context(FileIO(readable, "r"))
            jobs_stderr = opened.enter_context(FileIO(writable, "w"))
            sock.setblocking(False)
            try:
                cpu_s = max(1, round(job.limits.compile_cpu_s))
                limits = {"memory_bytes": job.limits.compile_memory_bytes, "cpu_s": cpu_s}
                self._send(Type.RUN, json.dumps(limits).encode(), (jobs_sock.fileno(), writable))
                jobs_sock.close()
                jobs_stderr.close()
                await self._follow(job, sock, report)
                if not (report.set_up or report.timed_out):
                    by_signal = report.signal and signal.strsignal(report.signal)
                    raise WorkerDied(f"it ended: {by_signal or report.exit_code}")
            except BaseException as failure:
                # After any exception the worker's state is unknown.
                await self.kill()
                if isinstance(failure, WorkerDied) and not report.set_up:
                    why = last_line(_words(stderr)) or failure
                    raise JobNotSetUp(f"a job cannot be set up: {why}") from None
                raise
            report.last_words = _words(stderr)
        return report

    async def _follow(self, job: JobOrder, sock: socket.socket, report: JobReport) -> None:
        """Wait for the begin and the end of a job; fill its report."""
        began_s = time.monotonic()
        report.pid = pid = (await self.frame(Type.STARTED, Started, _WORKER_GRACE_S)).pid
        try:
            async with asyncio.timeout(job.limits.compile_timeout_s):
                await exchange(sock, job, report)
                if report.protocol_error:
                    _kill_group(pid)
                ended = await self.frame(Type.ENDED, Ended)
        except TimeoutError:
            report.timed_out, report.waited_s = True, cpu_wait_s(pid)
            _kill_group(pid)
            ended = await self.frame(Type.ENDED, Ended, _WORKER_GRACE_S)
        # Kill threads and children that the job left behind, before its pid is free again.
        _kill_group(pid)
        report.elapsed_s = time.monotonic() - began_s
        report.signal, report.exit_code = ended.signal, ended.exit_code
        report.cpu_s, report.peak_memory_bytes = ended.cpu_ms / 1000, ended.peak_memory_bytes
        self._send(Type.REAP)

    def _send(self, kind: Type, payload: bytes = b"", descriptors: Sequence[int] = ()) -> None:
        """Send a frame, which is small, and the socket empty: it is sent whole and at once."""
        try:
            message = HEADER.pack(kind, len(payload)) + payload
            socket.send_fds(self.control, [message], descriptors)
        except OSError:  # about a pipe or a descriptor, which tells an operator nothing
            raise WorkerDied(_GONE) from None

    async def frame(
        self, kind: Type, content: type[_Content], within_s: float | None = None
    ) -> _Content:
        """Wait for a frame on the control socket; return its content. Raises WorkerDied."""
        try:
            async with asyncio.timeout(within_s):
                found, size = await _receive_header(self.control)
                payload = await _receive_exactly(self.control, size)
            if found is not kind:
                raise FrameError(f"it is a {found.name} frame")
            return content.model_validate_json(payload)
        except TimeoutError:
            raise WorkerDied(f"no {kind.name} frame within {within_s:g} s") from None
        except (EOFError, OSError):
            raise WorkerDied(_GONE) from None
        except (FrameError, ValueError) as malformed:
            raise WorkerDied(f"its {kind.name} frame is malformed: {malformed}") from None

    async def kill(self) -> None:
        """End the worker now; its job dies with it. A second call does nothing."""
        self.control.close()
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        await self.process.wait()


async def start_worker(interpreter: Path, engine: str, threads: int) -> Worker:
    """Start a worker and wait until it is ready for its first job. Raises WorkerDied.

    Its engine compiles with at most ``threads`` threads, if it uses threads. If the daemon is
    root, the worker becomes a user of its own.
    """
    uid, shared_with = await asyncio.to_thread(pick_user)
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    words = (engine, str(theirs.fileno()), str(Path(child.__path__[0]).parent))
    with theirs:
        process = await asyncio.create_subprocess_exec(
            str(interpreter),
            # -I: import nothing from the caller's environment or folder.
            *("-I", "-B", "-c", _BOOT, *words),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            pass_fds=(theirs.fileno(),),
            # All of it: nothing of the daemon's environment, which may hold secrets.
            env={
                "WASMKILN_DAEMON_PID": str(os.getpid()),
                "WASMKILN_JOB_UID": str(uid),
                "WASMKILN_JOB_UID_SHARED_WITH": shared_with,
                "LC_ALL": "C.UTF-8",
                # To count CPUs, wasmtime looks at files that a confined job does not have.
                "RAYON_NUM_THREADS": str(threads),
                # Each thread's heap takes 64 MiB of the address space that a job has.
                "MALLOC_ARENA_MAX": str(ARENAS),
                "RUST_BACKTRACE": "0",  # Resolving a backtrace takes longer than many a compile.
                "PYTHONDONTWRITEBYTECODE": "1",
            },
            cwd="/",
        )
    worker = Worker(process, ours, process.pid)
    try:
        try:
            ready = await worker.frame(Type.READY, Ready, _START_TIMEOUT_S)
        except WorkerDied as failure:
            why, said = str(failure), b""
            with contextlib.suppress(TimeoutError):  # It is about to end, and to tell why.
                _, said = await asyncio.wait_for(process.communicate(), _LAST_MOMENTS_S)
                why = f"it ended with status {process.returncode}"
            why = last_line(said.decode(errors="replace")) or why
            raise WorkerDied(f"a {engine} worker did not start: {why}") from None
    except BaseException:
        await worker.kill()
        raise
    worker.isolation = Isolation(ready.layers, ready.attempts)
    return worker


def last_line(words: str) -> str:
    """Return the last line of what a process wrote."""
    return (words.strip().splitlines() or [""])[-1]


def cpu_wait_s(pid: int) -> float:
    """Return how long the threads of a living process were ready and had no CPU, added up.

    Threads that have ended do not count. Infinite where the kernel does not tell.
    """
    try:
        # Of each thread, its time on a CPU, its time in a run queue, and the number of turns.
        threads = Path(f"/proc/{pid}/task").glob("*/schedstat")
        waits_ns = [int(each.read_text().split()[1]) for each in threads]
        return sum(waits_ns) / 1e9 if waits_ns else math.inf
    except (OSError, ValueError, IndexError):
        return math.inf


def _words(stderr: FileIO) -> str:
    """Return the end of what a job has written, which nobody writes to any more."""
    words: bytes = stderr.read(_WHOLE_PIPE_BYTES) or b""
    return words[-_LAST_WORDS_BYTES:].decode(errors="replace").strip()


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


# --- A user for each worker -----------------------------------------------------------------
#
# Processes of one user may signal each other and lower each other's limits, however they are
# confined. So a daemon that is root gives each worker a user, and the group of the same number,
# that no other process has. A daemon that is not root cannot.

NOBODY = 65534  # the user that owns nothing, by the kernel's own convention; services share it
# Ranges that no convention assigns, by systemd's table (UIDS-GIDS.md), shadow's (/etc/subuid) and
# SSSD's defaults. The first is so large that two daemons that cannot see each other hardly choose
# the same user. The second is for containers that have 65,536 users.
_RANGES = (range(2_000_400_000, 2_147_000_000), range(60_578, 61_184))
_USER_ATTEMPTS = 100
# Each attempt takes the next one, so that workers that start at once do not choose the same.
_next_user = itertools.count(secrets.randbelow(2**31))


def pick_user() -> tuple[int, str]:
    """Return the user for a worker that starts now, and what else has it, in words. May block.

    Each has its own, if there is a free one. The words are empty if nothing else has it.
    """
    if os.geteuid() != 0:
        return NOBODY, ""  # A worker keeps the daemon's user.
    for candidates in _RANGES:
        if all(_all_exist(candidates, file) for file in ("uid_map", "gid_map")):
            for number in itertools.islice(_next_user, _USER_ATTEMPTS):
                if not _owner_of(uid := candidates[number % len(candidates)]):
                    return uid, ""
    return NOBODY, "other processes of nobody: there is no free user in this container"


def _owner_of(uid: int) -> str:
    """Return what has a user or the group of its number, in words; empty for a free one."""
    with contextlib.suppress(KeyError):
        return f"the user {pwd.getpwuid(uid).pw_name}"
    with contextlib.suppress(KeyError):
        return f"the group {grp.getgrgid(uid).gr_name}"
    return _process_of(uid)


def _process_of(uid: int) -> str:
    """Return a process that has a user or group, in words; empty if there is none.

    Zombies count as having no user: they run no code, and stay where init reaps no processes.
    """
    for file in Path("/proc").glob("[0-9]*/status"):
        with contextlib.suppress(OSError):  # The process has ended.
            fields = re.findall(r"^(\w+):\t(.*)$", file.read_text(errors="replace"), re.MULTILINE)
            status = dict(fields)
            ids = f"{status['Uid']} {status['Gid']} {status['Groups']}".split()
            if str(uid) in ids and status["State"][0] not in "ZX":
                return f"process {file.parent.name} ({status['Name']})"
    return ""


def _all_exist(ids: range, file: str) -> bool:
    """Return whether users or groups exist for this process, which may run in a container."""
    rows = (map(int, line.split()) for line in Path("/proc/self", file).read_text().splitlines())
    return any(first <= ids.start and ids.stop <= first + count for first, _, count in rows)


# --- How well a worker has to be confined ---------------------------------------------------

# The layers that strict isolation needs, and the one gap in them that it accepts: Landlock's first
# version covers files; what later ones add, TCP and signals, namespaces and seccomp refuse as well.
_STRICT = ("seccomp", "root", "landlock")
_OLD_LANDLOCK = ("landlock", LayerState.PARTIAL)


class NotConfined(Exception):  # noqa: N818 - a state of the worker
    """Jobs of a worker are not confined enough; the message says why, and what to do."""


class IsolationGuard:
    """Judges each worker before its first job, and logs once what is missing."""

    def __init__(self, level: Literal["strict", "required", "best-effort"]) -> None:
        """Admit workers that meet ``level``, which is the setting ``isolation``."""
        self.level = level
        # Whether an engine is served only if its jobs are confined.
        self.required = level != "best-effort"
        # By engine, why its last refused worker was refused.
        self.refused: dict[str, str] = {}
        self._weakest: dict[str, Isolation] = {}
        self._logged: set[object] = set()

    def admit(self, engine_id: str, isolation: Isolation) -> None:
        """Admit a worker. Raises NotConfined where it is not confined enough."""
        for gap in {*isolation.gaps} - self._logged:
            about = {"layer": gap.name, "state": gap.state.value, "cause": gap.detail}
            log.warning("a layer of isolation is not in force", **about)
        hole = engine_id, _holes(isolation)
        if not isolation.holds and hole not in self._logged:
            log.error(
                "jobs are not confined", engine=engine_id, could=list(isolation.holes) or "anything"
            )
        self._logged |= {*isolation.gaps, hole}
        if why := self._why_not(isolation):
            self.refused[engine_id] = why
            raise NotConfined(why)
        weakest = self._weakest.get(engine_id, isolation)
        self._weakest[engine_id] = max(weakest, isolation, key=_weakness)

    def of(self, engine_id: str) -> Isolation:
        """Return the isolation of an engine's least confined worker since the daemon started."""
        return self._weakest.get(engine_id, Isolation())

    @property
    def summary(self) -> str:
        """How the jobs of all engines are confined, in one line."""
        weakest = max(self._weakest.values(), key=_weakness, default=Isolation())
        if self._weakest and not weakest.holds:
            return f"not confined: they could {_holes(weakest)}"
        gaps = {gap.name: f"{gap.name} ({gap.state.value})" for gap in weakest.gaps}
        return "confined by " + ", ".join(gaps.get(one.name, one.name) for one in weakest.layers)

    def _why_not(self, isolation: Isolation) -> str:
        if not isolation.holds and self.required:
            gaps = "; ".join(f"{gap.name}: {gap.detail}" for gap in isolation.gaps)
            return (
                f"its jobs are not confined, and could {_holes(isolation)}"
                f" ({gaps or 'no layer is missing'});"
                " set WASMKILN_ISOLATION=best-effort to serve it anyway"
            )
        lacking = "; ".join(
            f"{gap.name} is {gap.state.value}: {gap.detail}"
            for gap in isolation.gaps
            if gap.name in _STRICT and (gap.name, gap.state) != _OLD_LANDLOCK
        )
        if lacking and self.level == "strict":
            return (
                f"strict isolation needs seccomp, Landlock and a changed root, but {lacking}; let"
                " the machine or its container allow it, or set WASMKILN_ISOLATION=required"
            )
        return ""


def _weakness(isolation: Isolation) -> tuple[bool, int, int]:
    return not isolation.holds, len(isolation.holes), len(isolation.gaps)


def _holes(isolation: Isolation) -> str:
    return ", ".join(isolation.holes) or "do anything"
