"""One worker process, seen from the daemon: give it a job, wait for the job's end, kill it.

The worker forks the job, waits for its end and reports it over the control socket. The daemon
talks to the job itself over a socket of the job's own (see ``job_protocol``), and kills it at its
time limit.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import Any

from wasmkilnd.engines.child import frames
from wasmkilnd.engines.child.frames import Type
from wasmkilnd.engines.workers.job_protocol import (
    MAX_NUMBER,
    JobOrder,
    JobReport,
    exchange,
    receive,
)
from wasmkilnd.model import Isolation

# The longest that a healthy worker takes for its own part of a job: a fork before it, a frame
# after it. A worker that takes longer is sick, and is replaced.
_WORKER_GRACE_S = 10.0
# Reads all that a full pipe can hold.
_WHOLE_PIPE_BYTES = 2 * 1024 * 1024
_LAST_WORDS_BYTES = 4096
_GONE = "the worker ended, or was killed"


class WorkerDied(Exception):  # noqa: N818
    """The worker itself ended or stopped responding; its job is lost with it."""


class JobNotSetUp(WorkerDied):
    """A job ended before it was confined and saw its module, so the module is not to blame.

    The worker has ended too, since each of its jobs would end the same way.
    """


class OutOfDescriptors(Exception):  # noqa: N818
    """The daemon has no file descriptor left for a job; nothing of it has begun."""


@dataclass(frozen=True, slots=True)
class JobPipes:
    """A socket and a pipe for standard error between the daemon and one job: both ends of each."""

    sock: socket.socket
    jobs_sock: socket.socket
    stderr: FileIO
    jobs_stderr: FileIO

    @classmethod
    def open(cls, opened: ExitStack) -> JobPipes:
        """Open the pipes; ``opened`` closes all of them. Raises OutOfDescriptors."""
        try:
            sock, jobs_sock = map(opened.enter_context, socket.socketpair())
            readable, writable = os.pipe()
        except OSError as failure:
            raise OutOfDescriptors(str(failure)) from None
        stderr = opened.enter_context(FileIO(readable, "r"))
        jobs_stderr = opened.enter_context(FileIO(writable, "w"))
        for end in (readable, writable):
            # If the job writes too much to standard error, the rest is lost and nobody blocks.
            os.set_blocking(end, False)
        sock.setblocking(False)
        return cls(sock, jobs_sock, stderr, jobs_stderr)

    def last_words(self) -> str:
        """Return the end of what the job has written."""
        # One read only, since the job may keep writing.
        words: bytes = self.stderr.read(_WHOLE_PIPE_BYTES) or b""
        return words[-_LAST_WORDS_BYTES:].decode(errors="replace").strip()


@dataclass(slots=True)
class Worker:
    """A long-lived child with one engine imported. One job at a time."""

    process: asyncio.subprocess.Process
    control: socket.socket
    pid: int
    isolation: Isolation = field(default_factory=Isolation)
    """What it found when it tried to break out, before its first job."""
    _closing: bool = field(default=False)
    _job_pid: int = 0

    async def run(self, job: JobOrder) -> JobReport:
        """Have the worker do one job, and wait for its end.

        A job past its time is killed with its process group. Raises OutOfDescriptors before
        anything has begun: the worker stays usable. Raises JobNotSetUp or WorkerDied when the
        worker itself fails: it is killed.
        """
        report = JobReport(module_bytes=job.size_bytes)
        with ExitStack() as opened:
            pipes = JobPipes.open(opened)
            try:
                await self._run(job, pipes, report)
                if not (report.set_up or report.timed_out):
                    raise WorkerDied(describe_end(report.signal, report.exit_code))
            except BaseException as failure:
                # After any exception the worker's state is unknown.
                await self.kill()
                if isinstance(failure, WorkerDied) and not report.set_up:
                    why = report.last_words or pipes.last_words() or str(failure)
                    raise JobNotSetUp(f"a job cannot be set up: {last_line(why)}") from None
                raise
        return report

    async def _run(self, job: JobOrder, pipes: JobPipes, report: JobReport) -> None:
        began = time.monotonic()
        try:
            self._send_run(job, pipes)
            pipes.jobs_sock.close()
            pipes.jobs_stderr.close()
            pid = _number(await self.frame(Type.STARTED, _WORKER_GRACE_S), "pid")
            if pid <= 1:  # To kill group 0 would be to kill our own.
                raise WorkerDied(f"expected a job's pid, got {pid}")
            self._job_pid = report.pid = pid
            try:
                async with asyncio.timeout(job.timeout_s):
                    await exchange(pipes.sock, job, report)
                    if report.protocol_error:
                        _kill_group(pid)
                    ended = await self.frame(Type.ENDED)
            except TimeoutError:
                report.timed_out, report.waited_s = True, cpu_wait_s(pid)
                _kill_group(pid)
                ended = await self.frame(Type.ENDED, _WORKER_GRACE_S)
            # Kill threads and children that the job left behind, before its pid is free again.
            _kill_group(pid)
            report.elapsed_s = time.monotonic() - began
            if ended.get("signal") is None:
                report.exit_code = _number(ended, "exit_code")
            else:
                report.signal = _number(ended, "signal")
            report.cpu_s = _number(ended, "cpu_ms") / 1000
            report.peak_memory_bytes = _number(ended, "peak_memory_bytes")
            report.last_words = pipes.last_words()
        finally:
            self._job_pid = 0
        try:
            await asyncio.get_running_loop().sock_sendall(
                self.control, frames.HEADER.pack(Type.REAP, 0)
            )
        except OSError:
            raise WorkerDied(_GONE) from None

    def _send_run(self, job: JobOrder, pipes: JobPipes) -> None:
        cpu_s = max(1, round(job.cpu_s))
        wanted = {"memory_bytes": job.memory_bytes, "cpu_s": cpu_s}
        order = json.dumps(wanted).encode()
        message = frames.HEADER.pack(Type.RUN, len(order)) + order
        try:
            # The message is small and the socket empty, so it is sent whole and at once.
            descriptors = [pipes.jobs_sock.fileno(), pipes.jobs_stderr.fileno()]
            sent = socket.send_fds(self.control, [message], descriptors)
        except OSError:  # about a pipe or a descriptor, which tells an operator nothing
            raise WorkerDied(_GONE) from None
        if sent != len(message):
            raise WorkerDied("the worker's control socket is full")

    async def frame(self, expected: Type, within_s: float | None = None) -> dict[str, Any]:
        """Wait for a frame on the control socket; return its JSON. Raises WorkerDied."""
        try:
            async with asyncio.timeout(within_s) as limit:
                kind, payload = await receive(self.control)
            content = json.loads(payload)
        except (EOFError, OSError) as failure:  # TimeoutError is an OSError.
            late = isinstance(failure, TimeoutError) and limit.expired()
            why = f"no {expected.name} frame within {within_s:g} s" if late else _GONE
            raise WorkerDied(why) from None
        except (frames.FrameError, ValueError, RecursionError) as malformed:
            raise WorkerDied(f"its {expected.name} frame is malformed: {malformed}") from None
        if kind is not expected or not isinstance(content, dict):
            raise WorkerDied(f"expected a {expected.name} frame of JSON, got {kind.name}")
        return content

    async def wait(self) -> None:
        """Wait until the process has ended."""
        await self.process.wait()

    async def kill(self) -> None:
        """End the worker now; its job dies with it. A second call does nothing."""
        if not self._closing:
            self._closing = True
            self.control.close()
            with contextlib.suppress(ProcessLookupError):
                self.process.kill()
        await self.process.wait()


def last_line(words: str) -> str:
    """Return the last line of what a process wrote."""
    return (words.strip().splitlines() or [""])[-1]


def describe_end(by_signal: int | None, exit_code: int | None) -> str:
    """Describe how a process ended."""
    if by_signal is None:
        return f"it ended with exit code {exit_code}"
    return f"it was ended by signal {by_signal} ({signal.strsignal(by_signal)})"


def _number(content: Mapping[str, Any], name: str) -> int:
    value = content.get(name)
    if type(value) is not int or not 0 <= value <= MAX_NUMBER:
        raise WorkerDied(f"expected a non-negative number as {name}")
    return value


def cpu_wait_s(pid: int) -> float | None:
    """Return how long the threads of a living process were ready and had no CPU, added up.

    Threads that have ended do not count. None where the kernel does not tell.
    """
    waited_ns = 0
    try:
        for thread in Path(f"/proc/{pid}/task").iterdir():
            # Time on a CPU, time in a run queue, and the number of turns.
            waited_ns += int((thread / "schedstat").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return waited_ns / 1e9


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
