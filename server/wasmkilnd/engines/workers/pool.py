"""The workers of one engine version, and the jobs that run on them or wait for one.

There are three cases for a job that asks for a worker:

1. A worker is idle: the job starts at once.
2. None is idle, and the queue has room: the job waits. Callers take turns; each has a line of its
   own, so a caller with a thousand modules does not hold up a caller with one. A job that several
   callers want stands in the line of each, and a line passes over jobs that have started.
   Background work moves only while no caller waits, and the daemon's own only while no other does.
3. The queue is full: the last job of the longest line is refused with COMPILE_QUEUE_FULL, which
   may be the new one. A caller that floods the queue fills what the others leave free, and keeps
   no other caller out.

A job that waits and that all callers have left is dropped. One that has begun is finished. A job
that lost its worker through no fault of its own goes before all others, once.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Awaitable, Callable, Collection, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import structlog

from wasmkilnd import errors
from wasmkilnd.engines.workers.isolation import log_refused_call
from wasmkilnd.engines.workers.job_protocol import JobOrder, JobReport
from wasmkilnd.engines.workers.keeper import keep_filled
from wasmkilnd.engines.workers.process import JobNotSetUp, OutOfDescriptors, Worker, WorkerDied
from wasmkilnd.flights import Waiter, Waiters
from wasmkilnd.model import Limits
from wasmkilnd.reloadable import Reloadable
from wasmkilnd.telemetry.metrics import EngineUsage, Metrics

log = structlog.get_logger("wasmkilnd.engines")

Unless: TypeAlias = "Callable[[], Coroutine[Any, Any, None]]"
"""Returns when a job that waits for a worker needs none any more."""

# A daemon that used more of a CPU than this has taken it from its jobs for other calls.
_BUSY = 0.1
_LEAST_RETRY_S = 0.1
_FIRST_GUESS_S = 0.5
# How much the newest job counts in the mean time of jobs.
_WEIGHT = 1 / 8
_NOBODY = (Waiter(background=True, last=True),)


@dataclass(slots=True)
class Neighbours:
    """The jobs of all engines: tells whether one ran beside others."""

    running: int = 0
    started: int = 0

    async def run(self, job: Coroutine[Any, Any, JobReport]) -> JobReport:
        """Run ``job``; note whether it ran beside no other one, and beside no busy daemon."""
        self.running += 1
        self.started += 1
        nth, alone = self.started, self.running == 1
        began_s, used_s = time.monotonic(), time.process_time()
        try:
            report = await job
        finally:
            self.running -= 1
        busy = time.process_time() - used_s > _BUSY * (time.monotonic() - began_s)
        report.alone = alone and nth == self.started and not busy
        return report


@dataclass(eq=False, slots=True)
class Job:
    """A job's claim to a worker, from when it asks until the worker is free again."""

    waiters: Waiters
    order: JobOrder
    asked_s: float = field(default_factory=time.monotonic)
    queued_s: float | None = None
    """How long it waited for the worker that it got last."""
    worker: Worker | None = None
    again: bool = False
    """Whether it lost a worker."""
    granted: asyncio.Future[bool] = field(default_factory=asyncio.Future)
    """True once there is a worker; False if the job needs none any more."""

    @property
    def callers(self) -> Collection[Waiter]:
        """In whose lines it stands; of one that goes on though all have left, nobody's."""
        return self.waiters.waiting or _NOBODY

    def withdraw(self, watching: asyncio.Task[None]) -> None:
        """Stop waiting because ``watching`` has ended; raise in the waiting job if that failed."""
        if watching.cancelled() or self.granted.done():
            return
        if failure := watching.exception():
            self.granted.set_exception(failure)
        else:
            self.granted.set_result(False)


class WorkerPool:
    """Runs jobs on a fixed number of workers. For one event loop."""

    def __init__(
        self,
        engine_id: str,
        start_worker: Callable[[], Awaitable[Worker]],
        *,
        size: int,
        limits: Reloadable[Limits],
        recorder: Metrics,
        neighbours: Neighbours | None = None,
    ) -> None:
        self.engine_id = engine_id
        self.size = size
        self.replaced = 0
        self.start_worker = start_worker
        self.busy = 0
        """How many workers have a job."""
        self._limits = limits
        self._recorder = recorder
        self._neighbours = neighbours or Neighbours()
        self._idle: list[Worker] = []
        self._waiting: dict[Job, None] = {}  # in the order in which they came
        self._turns: dict[Waiter, int] = {}
        self._turn = 0
        self._mean_s = _FIRST_GUESS_S
        self._keepers: list[asyncio.Task[None]] = []
        self._closed = False
        self._missing_cause = ""
        self._set_up_failure = ""

    @property
    def alive(self) -> int:
        """How many workers there are, idle or busy."""
        return len(self._idle) + self.busy

    @property
    def waiting(self) -> int:
        """How many jobs wait for a worker."""
        return len(self._waiting)

    @property
    def waiting_in_background(self) -> int:
        """How many waiting jobs only warm the cache."""
        return sum(all(each.background for each in job.callers) for job in self._waiting)

    @property
    def waiting_callers(self) -> int:
        """How many callers take turns."""
        return len({waiter.caller for job in self._waiting for waiter in job.callers})

    @property
    def waiting_bytes(self) -> int:
        """The size of the modules that wait."""
        return sum(job.order.size_bytes for job in self._waiting)

    @property
    def expected_wait_s(self) -> float:
        """About how long one more job would wait: a rule of thumb, by the mean of recent jobs."""
        return 0.0 if self._idle else (len(self._waiting) + 1) * self._mean_s / self.size

    def usage(self) -> EngineUsage:
        """Return what the pool is doing, for the metrics."""
        return EngineUsage(
            workers=self.alive,
            busy=self.busy,
            queued=self.waiting,
            queued_in_background=self.waiting_in_background,
            queued_callers=self.waiting_callers,
            queued_bytes=self.waiting_bytes,
            expected_wait_s=self.expected_wait_s,
        )

    @property
    def why_no_worker(self) -> str:
        """Why the engine has no worker; empty if it has one or one is starting."""
        return "" if self.alive else self._missing_cause

    @property
    def why_not_ready(self) -> str:
        """As ``why_no_worker``, also while workers that could not set up a job are replaced."""
        return "" if self.alive else self._missing_cause or self._set_up_failure

    async def start(self) -> None:
        """Start all workers. Raises WorkerDied when the first does not come up."""
        first = await self.start_worker()
        self._keepers = [asyncio.create_task(keep_filled(self, first))]
        self._keepers += [asyncio.create_task(keep_filled(self, None)) for _ in range(1, self.size)]

    async def close(self) -> None:
        """End every worker, and refuse the jobs that wait."""
        self._closed = True
        self._refuse_waiting(errors.server_draining())
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)

    async def run(self, order: JobOrder, waiters: Waiters | None = None) -> tuple[JobReport, float]:
        """Run a job; return its report and how long it waited for a worker, in seconds.

        Without ``waiters`` the job is the daemon's own, and waits like a caller's. Raises what
        ``take`` and ``work`` raise.
        """
        job = Job(waiters or Waiters.of(Waiter()), order)
        await self.take(job)
        return await self.work(job), job.queued_s or 0.0

    async def take(self, job: Job, unless: Unless | None = None) -> bool:
        """Wait for a worker; return False if ``unless`` returns before there is one.

        The caller gives the worker back: by ``work``, or by ``decline``. A job that is cancelled
        leaves the queue. Raises WORKER_UNAVAILABLE when no worker starts,
        SERVER_DRAINING, or COMPILE_QUEUE_FULL: at once, or later to make room for a caller that
        holds less of the queue.
        """
        self._refuse_if_useless()
        if self._start_on_idle(job):
            return True
        self._enqueue(job)
        watching = asyncio.create_task(unless()) if unless else None
        if watching:
            watching.add_done_callback(job.withdraw)
        try:
            return await self._wait(job)
        finally:
            # Do not wait for its end: a caller cancelled here would keep the job's worker.
            if watching:
                watching.cancel()

    def decline(self, job: Job) -> None:
        """Give back the worker of a job that needs none after all.

        If its callers left while it had the worker, their work is dropped now.
        """
        self._give_back(job, job.worker)
        job.waiters.release()

    async def work(self, job: Job) -> JobReport:
        """Run ``job`` on the worker that it took, which is free for others when the job ends.

        A job that loses its worker through no fault of its own runs once more. A job that cannot
        be set up is tried on ``size + 1`` workers. When cancelled, the job goes on alone.
        Raises COMPILE_QUEUE_FULL when the daemon has no file descriptors left,
        WORKER_UNAVAILABLE when no worker could set the job up, COMPILER_CRASHED when two workers
        died under it, or SERVER_DRAINING.
        """
        # All present workers may be damaged; a new one is not.
        tries_at_set_up, tries = self.size + 1, 2
        while True:
            try:
                report = await _uncancelled(self._work(job))
            except JobNotSetUp as failure:
                log.warning(
                    "worker cannot set up a job and is replaced",
                    engine=self.engine_id,
                    cause=str(failure),
                )
                tries_at_set_up -= 1
                if not tries_at_set_up:
                    raise errors.worker_unavailable(self.engine_id, str(failure)) from None
            except WorkerDied as death:
                log.warning("worker died under a job", engine=self.engine_id, cause=str(death))
                tries -= 1
                if not tries:
                    how, fault = "lost its worker process twice", errors.Fault.NONE
                    raise errors.compiler_crashed(
                        self.engine_id, how, str(death), fault=fault
                    ) from None
            else:
                if report.signal == signal.SIGSYS:
                    about = self.engine_id, job.order.module_sha256, report.pid
                    log_refused_call(*about)
                return report
            self._refuse_if_useless()
            job.granted, job.again = asyncio.Future(), True
            if not self._start_on_idle(job):
                self._waiting[job] = None
                await self._wait(job)

    async def _work(self, job: Job) -> JobReport:
        worker, lost = job.worker, True
        if worker is None:
            raise LookupError("the job has no worker")
        self._set_up_failure = ""
        try:
            report = await self._neighbours.run(worker.run(job.order))
            lost = False
            self._mean_s += (report.elapsed_s - self._mean_s) * _WEIGHT
        except OutOfDescriptors as shortage:
            lost = False
            log.warning(
                "cannot start a job: no file descriptors left",
                engine=self.engine_id,
                cause=str(shortage),
            )
            raise errors.out_of_descriptors() from None
        except JobNotSetUp as failure:
            self._set_up_failure = str(failure)
            raise
        finally:
            self._give_back(job, None if lost else worker)  # A keeper replaces a lost one.
        return report

    async def _wait(self, job: Job) -> bool:
        """Wait for a job's worker; return False if the job is withdrawn instead."""
        try:
            return await job.granted
        except asyncio.CancelledError:
            if job.worker:  # It got one at the same moment.
                self._give_back(job, job.worker)
            if not job.waiters.waiting:
                self._recorder.abandoned(self.engine_id, "queued")
            raise
        finally:
            self._waiting.pop(job, None)

    def _enqueue(self, job: Job) -> None:
        """Have ``job`` wait, and refuse jobs until there is room for it.

        There is room for ``queue_length`` jobs and ``queue_bytes``, or for one job of any size.
        """
        self._waiting[job] = None
        limits = self._limits.current
        while True:
            too_long = len(self._waiting) > limits.queue_length
            if not too_long and (
                self.waiting_bytes <= limits.queue_bytes or len(self._waiting) == 1
            ):
                return
            gone = self._last_of_longest_line(job, by_bytes=not too_long)
            del self._waiting[gone]
            full = errors.compile_queue_full(self.engine_id, len(self._waiting), self._retry_s())
            if gone is job:
                raise full
            _refuse(gone, full)

    def _last_of_longest_line(self, newcomer: Job, *, by_bytes: bool) -> Job:
        """Return ``newcomer`` if its own line is as long. Background work goes before any other.

        A job counts in the lines of its most urgent callers alone: who wants it less urgently
        too must not make it go sooner.
        """
        lines: dict[Waiter, list[Job]] = {}
        for job in self._waiting:
            rank = min(waiter.rank for waiter in job.callers)
            for waiter in job.callers if not job.again else ():
                if waiter.rank == rank:
                    lines.setdefault(waiter, []).append(job)

        def weight(waiter: Waiter) -> tuple[int, int]:
            line = lines[waiter]
            return waiter.rank, sum(each.order.size_bytes for each in line) if by_bytes else len(
                line
            )

        longest = max(lines, key=weight)
        if weight(longest) <= max(map(weight, lines.keys() & set(newcomer.callers))):
            return newcomer
        # A job that other callers wait for too goes only if there is no other.
        return max(reversed(lines[longest]), key=lambda job: len(job.callers) == 1)

    def _next(self) -> Job | None:
        """Take the job whose turn it is out of the queue: of the caller served longest ago."""
        # Those that are done were cancelled, or refused, at this very moment.
        waiting = [job for job in self._waiting if not job.granted.done()]
        callers = {waiter for job in waiting for waiter in job.callers}
        # A caller that is new goes behind all that have waited for their turn.
        self._turns = {each: self._turns.get(each, self._turn) for each in callers}
        places = [
            (not job.again, waiter.rank, self._turns[waiter], number, waiter)
            for number, job in enumerate(waiting)
            for waiter in job.callers
        ]
        if not places:
            return None
        *_, number, waiter = min(places, key=lambda place: place[:-1])
        self._turn += 1
        self._turns[waiter] = self._turn
        del self._waiting[waiting[number]]
        return waiting[number]

    def _start_on_idle(self, job: Job) -> bool:
        while self._idle:
            worker = self._idle.pop()
            if _is_alive(worker):
                self._start(job, worker)
                return True
        return False

    def _start(self, job: Job, worker: Worker) -> None:
        self.busy += 1
        job.queued_s = time.monotonic() - job.asked_s
        job.waiters.kept = True
        job.worker = worker
        job.granted.set_result(True)

    def _give_back(self, job: Job, worker: Worker | None) -> None:
        self.busy -= 1
        job.worker = None
        self._offer(worker)

    def _offer(self, worker: Worker | None) -> None:
        if self._closed or not worker or not _is_alive(worker):
            return
        if job := self._next():
            self._start(job, worker)
        else:
            self._idle.append(worker)

    def _refuse_waiting(self, refusal: errors.WasmkilnError) -> None:
        for job in self._waiting:
            _refuse(job, refusal)
        self._waiting.clear()

    def _retry_s(self) -> float:
        return max(_LEAST_RETRY_S, self.expected_wait_s)

    def worker_started(self, worker: Worker) -> None:
        """Give jobs to a new worker."""
        self._missing_cause = ""
        self._offer(worker)

    def worker_ended(self, worker: Worker) -> None:
        """Give no more jobs to a worker."""
        with contextlib.suppress(ValueError):
            self._idle.remove(worker)

    def worker_replaced(self) -> None:
        """Count a worker that ended by itself."""
        self.replaced += 1
        self._recorder.worker_replaced(self.engine_id)

    def workers_missing(self, why: str = "") -> None:
        """Remember why a worker is missing; if none is left, refuse the jobs that wait."""
        self._missing_cause = why or self._set_up_failure or "its workers end soon after they start"
        if self.why_no_worker:
            self._refuse_waiting(self._no_worker())

    def _refuse_if_useless(self) -> None:
        if self._closed:
            raise errors.server_draining()
        if self.why_no_worker:
            raise self._no_worker()

    def _no_worker(self) -> errors.WasmkilnError:
        return errors.worker_unavailable(self.engine_id, self._missing_cause)


async def _uncancelled(work: Coroutine[Any, Any, JobReport]) -> JobReport:
    """Wait for ``work``, which goes on alone if its caller is cancelled."""
    task = asyncio.create_task(work)
    # Of a job that goes on alone, nobody else hears how it failed.
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
    try:
        await asyncio.wait((task,))
        return task.result()
    finally:
        del task  # A failed task holds its traceback, and the traceback holds this frame.


def _refuse(job: Job, refusal: errors.WasmkilnError) -> None:
    if not job.granted.done():
        job.granted.set_exception(refusal)


def _is_alive(worker: Worker) -> bool:
    return worker.process.returncode is None
