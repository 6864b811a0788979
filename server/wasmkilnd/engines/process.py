"""One worker process, seen from the daemon: start it, give it a job, wait for its end, kill it.

A worker is a long-lived process with one engine imported (its own code is ``engines.child``). For
each order it forks a job, which is confined, reads the module from a socket of its own, sends the
result, and ends. No worker ever holds a module, so nothing of one caller's module is left when
the next one comes.

- ``start_worker`` starts a process with an environment that has nothing of the daemon's, and with
  a user that no other process has (``users``), if the daemon is root. The worker confines itself
  and tries to break out before its first job; ``isolation`` admits it only if that went as the
  setting demands.
- ``Worker.run`` gives it a job and enforces the wall clock: past the time limit it kills the job's
  process group, and the worker goes on. ``job`` has what the two say to each other; a job that
  breaks the protocol is killed.

A worker is never used again after something unexpected: it is killed, and the pool replaces it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import Annotated, TypeVar

import structlog
from pydantic import BaseModel, Field, TypeAdapter

from wasmkilnd import errors
from wasmkilnd.engines import child
from wasmkilnd.engines.child.frames import HEADER, FrameError, Type
from wasmkilnd.engines.job import (
    MAX_NUMBER,
    JobOrder,
    JobReport,
    exchange,
    receive_exactly,
    receive_header,
)
from wasmkilnd.engines.users import pick_user
from wasmkilnd.engines.verdict import cause_line
from wasmkilnd.files.threads import on_disk
from wasmkilnd.model import Isolation

log = structlog.get_logger("wasmkilnd.engines")

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


_Number = Annotated[int, Field(ge=0, le=MAX_NUMBER, strict=True)]


class Started(BaseModel):
    """A job has been forked."""

    pid: Annotated[_Number, Field(gt=1)]  # To kill group 0 would be to kill our own.


class Ended(BaseModel):
    """A job has ended, by itself or by a signal; what it used."""

    exit_code: _Number | None = None
    signal: _Number | None = None
    cpu_ms: _Number
    peak_memory_bytes: _Number


# A worker's first frame: how it is confined, and which attempts to break out failed.
_READY = TypeAdapter(Isolation)
_Content = TypeVar("_Content")


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
                if not (Type.SET_UP in report.sent or report.timed_out):
                    by_signal = report.signal and signal.strsignal(report.signal)
                    raise WorkerDied(f"it ended: {by_signal or report.exit_code}")
            except BaseException as failure:
                # After any exception the worker's state is unknown.
                await self.kill()
                if isinstance(failure, WorkerDied) and Type.SET_UP not in report.sent:
                    why = cause_line(_words(stderr)) or failure
                    raise JobNotSetUp(f"a job cannot be set up: {why}") from None
                raise
            report.last_words = _words(stderr)
        return report

    async def _follow(self, job: JobOrder, sock: socket.socket, report: JobReport) -> None:
        """Wait for the begin and the end of a job; fill its report."""
        began_s = time.monotonic()
        report.pid = pid = (
            await self.frame(Type.STARTED, Started.model_validate_json, _WORKER_GRACE_S)
        ).pid
        try:
            async with asyncio.timeout(job.limits.compile_timeout_s):
                await exchange(sock, job, report)
                if report.protocol_error:
                    _kill_group(pid)
                ended = await self.frame(Type.ENDED, Ended.model_validate_json)
        except TimeoutError:
            report.timed_out = True
            _kill_group(pid)
            ended = await self.frame(Type.ENDED, Ended.model_validate_json, _WORKER_GRACE_S)
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
        self, kind: Type, parse: Callable[[bytearray], _Content], within_s: float | None = None
    ) -> _Content:
        """Wait for a frame on the control socket; return its content. Raises WorkerDied."""
        try:
            async with asyncio.timeout(within_s):
                found, size = await receive_header(self.control)
                payload = await receive_exactly(self.control, size)
            if found is not kind:
                raise FrameError(f"it is a {found.name} frame")
            return parse(payload)
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
    uid = await asyncio.to_thread(pick_user)
    try:
        # To start a program from a disk that hangs would hang the event loop.
        await asyncio.wait_for(on_disk(_read_first, interpreter), _START_TIMEOUT_S)
    except TimeoutError:
        raise WorkerDied(f"a {engine} worker did not start: its disk does not answer") from None
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
            worker.isolation = await worker.frame(
                Type.READY, _READY.validate_json, _START_TIMEOUT_S
            )
        except WorkerDied as failure:
            why, said = str(failure), b""
            with contextlib.suppress(TimeoutError):  # It is about to end, and to tell why.
                _, said = await asyncio.wait_for(process.communicate(), _LAST_MOMENTS_S)
                why = f"it ended with status {process.returncode}"
            why = cause_line(said.decode(errors="replace")) or why
            raise WorkerDied(f"a {engine} worker did not start: {why}") from None
    except BaseException:
        await worker.kill()
        raise
    return worker


def _read_first(file: Path) -> bytes:
    with file.open("rb") as opened:
        return opened.read(1)


def _words(stderr: FileIO) -> str:
    """Return the end of what a job has written, which nobody writes to any more."""
    words: bytes = stderr.read(_WHOLE_PIPE_BYTES) or b""
    return words[-_LAST_WORDS_BYTES:].decode(errors="replace").strip()


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
