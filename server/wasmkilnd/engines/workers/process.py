"""One worker process, seen from the daemon: start it, give it a job, end it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wasmkilnd.engines import child
from wasmkilnd.engines.child import frames
from wasmkilnd.engines.child.frames import Type
from wasmkilnd.engines.workers.contention import cpu_wait_s
from wasmkilnd.engines.workers.job_pipes import JobPipes, job_ends
from wasmkilnd.engines.workers.job_protocol import JobOrder, JobReport, converse, receive
from wasmkilnd.engines.workers.job_result import MOST
from wasmkilnd.engines.workers.job_users import JobUser
from wasmkilnd.model import Isolation, IsolationLayer, LayerState

_START_TIMEOUT_S = 30.0
# How long a healthy worker takes for its own part of a job, at the very most: a
# fork before, a word after. Past it the worker itself is sick, and is replaced.
_WORKER_GRACE_S = 10.0
# For a worker that closed its socket, to write why and to be gone.
_LAST_MOMENTS_S = 1.0
_BOOT = (
    "import sys; sys.path.append(sys.argv[3]);"
    " from child.worker import main; main(sys.argv[1], int(sys.argv[2]))"
)
_GONE = "it ended, or was killed"


class WorkerDied(Exception):  # noqa: N818 - an event, not a mistake
    """The worker itself ended or stopped answering; its job is lost with it."""


class JobNotSetUp(WorkerDied):
    """A job ended before it was confined and saw its module: nothing of it is the module's doing.

    Its worker has ended too, since each job of it would fare the same.
    """


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
    _job_is_over: bool = False

    @classmethod
    async def start(cls, interpreter: Path, engine: str, threads: int, user: JobUser) -> Worker:
        """Start a worker and wait until its engine is imported and it is confined.

        Its engine compiles with at most ``threads`` threads, if it has any. It becomes ``user``
        if the daemon is root. Raises WorkerDied.
        """
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with theirs:
            process = await asyncio.create_subprocess_exec(
                str(interpreter),
                "-I",  # nothing of the caller's environment or folder is imported
                "-B",
                "-c",
                _BOOT,
                engine,
                str(theirs.fileno()),
                str(Path(child.__path__[0]).parent),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
                pass_fds=(theirs.fileno(),),
                env=_environment(threads, user),
                cwd="/",
            )
        worker = cls(process, ours, process.pid)
        try:
            async with asyncio.timeout(_START_TIMEOUT_S):
                ready = await worker._control_frame(Type.READY)
            worker.isolation = _isolation(ready)
        except (TimeoutError, WorkerDied, OSError, LookupError, TypeError, ValueError) as failure:
            words = await worker._words_at_death() or str(failure) or "it said nothing in time"
            raise WorkerDied(f"a {engine} worker did not start: {words}") from None
        except BaseException:
            await worker.kill()
            raise
        if ready.get("threads") != 1:
            await worker.kill()
            raise WorkerDied(
                f"a {engine} worker has {ready.get('threads')} threads: forking is unsafe"
            )
        return worker

    async def run(self, job: JobOrder) -> JobReport:
        """Have the worker do one job, wait for its end, and pack what it made.

        A job past its time is killed with its process group. Raises OutOfDescriptors
        before anything has begun, with the worker as good as before; JobNotSetUp or WorkerDied
        when the worker itself fails: it is of no use any more then.
        """
        report = JobReport(module_bytes=job.size_bytes)
        try:
            with job_ends() as ends:
                try:
                    await self._run(job, ends, report)
                    if not (report.set_up or report.timed_out or self._job_is_over):
                        raise WorkerDied(_how_it_ended(report))
                except BaseException as failure:
                    # Whatever interrupts a job leaves the worker in the middle of one.
                    await self.kill()
                    if isinstance(failure, WorkerDied) and not report.set_up:
                        why = report.last_words or ends.last_words() or str(failure)
                        raise JobNotSetUp(f"a job cannot be set up: {_last_line(why)}") from None
                    raise
            # Before the next job: so no more artifacts are held twice, as they came and as they
            # are kept, than there are workers.
            await report.pack()
            return report
        finally:
            self._job_is_over = False

    async def _run(self, job: JobOrder, ends: JobPipes, report: JobReport) -> None:
        began = time.monotonic()
        try:
            self._send_run(job, ends)
            ends.close_jobs()
            started = await self._soon(Type.STARTED)
            pid = _number(started, "pid")
            if pid <= 1:  # To kill group 0 would be to kill our own.
                raise WorkerDied(f"{pid} as a job's pid")
            self._job_pid = report.pid = pid
            if self._job_is_over:
                _kill_group(pid)
            try:
                async with asyncio.timeout(job.timeout_s):
                    await converse(ends.sock, job, report)
                    if report.protocol_error:
                        _kill_group(pid)
                    ended = await self._control_frame(Type.ENDED)
            except TimeoutError:
                report.timed_out = True
                report.waited_s = cpu_wait_s(pid)
                _kill_group(pid)
                ended = await self._soon(Type.ENDED)
            # Threads or children that it left behind go before its pid is given back.
            _kill_group(pid)
            report.elapsed_s = time.monotonic() - began
            if ended.get("signal") is None:
                report.exit_code = _number(ended, "exit_code")
            else:
                report.signal = _number(ended, "signal")
            report.cpu_s = _number(ended, "cpu_ms") / 1000
            report.peak_memory_bytes = _number(ended, "peak_memory_bytes")
            report.last_words = ends.last_words()
        finally:
            self._job_pid = 0
        await self._send_control(frames.HEADER.pack(Type.REAP, 0))

    def end_job(self) -> None:
        """Kill the job that ``run`` is about, be it not started yet; the worker goes on."""
        self._job_is_over = True
        if self._job_pid:
            _kill_group(self._job_pid)

    def _send_run(self, job: JobOrder, ends: JobPipes) -> None:
        limits = json.dumps({"memory_bytes": job.memory_bytes, "cpu_s": max(1, round(job.cpu_s))})
        message = frames.HEADER.pack(Type.RUN, len(limits)) + limits.encode()
        try:
            # Small, and to an empty socket: it is taken whole and at once.
            given = [ends.jobs_sock.fileno(), ends.jobs_words.fileno()]
            sent = socket.send_fds(self.control, [message], given)
        except OSError:  # Of a pipe or a descriptor: of no use to who reads the log.
            raise WorkerDied(_GONE) from None
        if sent != len(message):
            raise WorkerDied("the worker's control socket is full")

    async def _send_control(self, message: bytes) -> None:
        try:
            await asyncio.get_running_loop().sock_sendall(self.control, message)
        except OSError:
            raise WorkerDied(_GONE) from None

    async def _soon(self, kind: Type) -> dict[str, Any]:
        try:
            async with asyncio.timeout(_WORKER_GRACE_S):
                return await self._control_frame(kind)
        except TimeoutError:
            raise WorkerDied(f"no {kind.name} within {_WORKER_GRACE_S:g} s") from None

    async def _control_frame(self, expected: Type) -> dict[str, Any]:
        try:
            kind, payload = await receive(self.control)
        except (EOFError, OSError):
            raise WorkerDied(_GONE) from None
        except frames.FrameError as nonsense:
            raise WorkerDied(str(nonsense)) from None
        if kind is not expected:
            raise WorkerDied(f"{kind.name} instead of {expected.name}")
        try:
            answer = json.loads(payload)
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict):
            raise WorkerDied(f"its {kind.name} frame holds no JSON object")
        return answer

    async def wait(self) -> None:
        """Wait until the process has ended."""
        await self.process.wait()

    async def kill(self) -> None:
        """End the worker now; its job dies with it. Does nothing twice."""
        if not self._closing:
            self._closing = True
            self.control.close()
            with contextlib.suppress(ProcessLookupError):
                self.process.kill()
        await self.process.wait()

    async def _words_at_death(self) -> str:
        """End it, unless it is ending by itself; return the last line that it wrote, or its signal.

        Nothing where neither tells anything.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LAST_MOMENTS_S):
                await self.process.wait()
        code = self.process.returncode
        await self.kill()
        stderr = self.process.stderr
        words = await stderr.read() if stderr else b""
        if line := _last_line(words.decode(errors="replace")):
            return line
        if code is None or code >= 0:
            return ""
        return _how_it_ended(JobReport(signal=-code))


def _last_line(words: str) -> str:
    return (words.strip().splitlines() or [""])[-1]


def _how_it_ended(report: JobReport) -> str:
    if report.signal is None:
        return f"it ended with exit code {report.exit_code}"
    return f"it was ended by signal {report.signal} ({signal.strsignal(report.signal)})"


def _number(answer: Mapping[str, Any], name: str) -> int:
    value = answer.get(name)
    if type(value) is not int or not 0 <= value <= MOST:
        raise WorkerDied(f"{name} is no count")
    return value


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def _isolation(ready: Mapping[str, Any]) -> Isolation:
    return Isolation(
        layers=tuple(
            IsolationLayer(str(each["name"]), LayerState(each["state"]), str(each["detail"]))
            for each in ready["layers"]
        ),
        attempts={str(each["name"]): each["refused"] is True for each in ready["attempts"]},
    )


def _environment(threads: int, user: JobUser) -> dict[str, str]:
    """Return a worker's whole environment: nothing of the daemon's, which may hold secrets."""
    return {
        "WASMKILN_DAEMON_PID": str(os.getpid()),
        "WASMKILN_JOB_UID": str(user.uid),
        "WASMKILN_JOB_UID_SHARED_WITH": user.shared_with,
        "LC_ALL": "C.UTF-8",
        # wasmtime's own count looks at files that a confined job does not have.
        "RAYON_NUM_THREADS": str(threads),
        "RUST_BACKTRACE": "0",  # Resolving a backtrace takes longer than many a compile.
        "PYTHONDONTWRITEBYTECODE": "1",
    }
