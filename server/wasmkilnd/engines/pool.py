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

A worker is not all that a job needs: it reserves memory too (``memory``). Where too little is free
for the job whose turn it is, it waits although a worker is idle, and others of its pool may pass.

A job that waits and that all callers have left is dropped, the second time too. One that has begun
is finished. A job that lost its worker runs again: once, or, where it could not be set up, until a
worker has tried it that is newer than all that there were. So does a job that broke and may need
more memory: no caller learns of its first end. It waits for its caller's turn, and is the first job
of that line.

An operator may end a job. One that runs takes its worker with it, so that whatever keeps the worker
busy ends too.

A worker that ends is replaced, with a delay that doubles while workers die young.
"""

from __future__ import annotations

import asyncio
import secrets
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeAlias

import structlog

from wasmkilnd import errors
from wasmkilnd.engines import process, verdict
from wasmkilnd.engines.job import JobOrder, JobReport
from wasmkilnd.engines.memory import Memory
from wasmkilnd.engines.process import Worker
from wasmkilnd.model import Limits, Reloadable, for_callers
from wasmkilnd.telemetry.metrics import EngineUsage, Metrics
from wasmkilnd.waits.flights import Waiter, Waiters

log = structlog.get_logger("wasmkilnd.engines")

# Returns when a job that waits for a worker needs none any more.
Unless: TypeAlias = "Callable[[], Coroutine[Any, Any, None]]"
# Returns whether a job that has a worker is still to be done; is told how long it waited.
Ready: TypeAlias = "Callable[[float], Coroutine[Any, Any, bool]]"

_LEAST_RETRY_S = 0.1
_FIRST_GUESS_S = 0.5
# How much the newest job counts in the mean time of jobs.
_WEIGHT = 1 / 8
_FIRST_RESTART_DELAY_S = 0.1
_MAX_RESTART_DELAY_S = 30.0
_HEALTHY_LIFE_S = 5.0
# Jobs do not wait for a worker whose start is further off than this.
_SHORT_DELAY_S = 1.0
# The kernel's log says which call it was.
_REFUSED_CALL = "a job was killed for a system call that no compiler makes"
_NOBODY = Waiter(background=True, last=True)


@dataclass(eq=False, slots=True)
class Job:
    """A job, from when it asks for a worker until the worker is free again.

    One without ``waiters`` is the daemon's own, and waits like a caller's.
    """

    order: JobOrder
    waiters: Waiters = field(default_factory=lambda: Waiters.of(Waiter()))
    # What operators call it. No caller learns from it how many others there are.
    id: str = field(default_factory=partial(secrets.token_hex, 6))
    asked_s: float = field(default_factory=time.monotonic)
    # How long it waited for the worker that it got last.
    queued_s: float | None = None
    worker: Worker | None = None
    # Whether it lost a worker, or broke and needs more memory.
    again: bool = False
    # How much memory it has at most; and how much it needs, once it broke with less.
    memory_bytes: int = 0
    needs_bytes: int = 0
    # None once there is a worker, or why it gets none.
    granted: asyncio.Future[errors.WasmkilnError | None] = field(default_factory=asyncio.Future)
    # What runs it in the pool, and whether an operator has ended it.
    task: asyncio.Task[Any] | None = None
    ended: bool = False

    @property
    def lines(self) -> list[Waiter]:
        """In whose lines it stands: its most urgent callers; nobody's if all have left.

        Who wants it less urgently too must not make it go sooner where the queue is full.
        """
        rank = min((each.rank for each in self.waiters.waiting), default=0)
        return [each for each in self.waiters.waiting if each.rank == rank] or [_NOBODY]

    def end(self) -> None:
        """End it: all who wait for it get JOB_ENDED. Its worker, if it has one, ends too."""
        if self.task and not self.ended:
            self.ended = True
            self.task.cancel()


@dataclass(eq=False)
class WorkerPool:
    """Runs jobs on a fixed number of workers. For one event loop."""

    engine_id: str
    start_worker: Callable[[], Awaitable[Worker]]
    size: int
    limits: Reloadable[Limits]
    metrics: Metrics
    # What the jobs of all engines share.
    memory: Memory

    def __post_init__(self) -> None:
        self._running: dict[Job, None] = {}
        # Why the last worker that was to start, or started, does not work.
        self._cause = ""
        self._idle: list[Worker] = []
        self._waiting: dict[Job, None] = {}  # in the order in which they came
        self._turns: dict[Waiter, int] = {}
        self._turn = 0
        self._mean_s = _FIRST_GUESS_S
        self._keepers: list[asyncio.Task[None]] = []
        self._closed = False

    @property
    def busy(self) -> int:
        """How many workers have a job."""
        return len(self._running)

    @property
    def jobs(self) -> list[Job]:
        """The jobs that run, and those that wait behind them."""
        return [job for job in (*self._running, *self._waiting) if not job.ended]

    @property
    def alive(self) -> int:
        """How many workers there are, idle or busy."""
        return len(self._idle) + self.busy

    @property
    def waiting(self) -> int:
        """How many jobs wait for a worker."""
        return len(self._waiting)

    def usage(self) -> EngineUsage:
        """Return what the pool is doing, for the metrics."""
        return EngineUsage(
            workers=self.alive,
            busy=self.busy,
            queued=self.waiting,
            queued_for_memory=min(self.waiting, len(self._idle)),
            queued_in_background=sum(job.lines[0].background for job in self._waiting),
            queued_callers=len({line.caller for job in self._waiting for line in job.lines}),
            queued_bytes=self._waiting_bytes(),
            expected_wait_s=self._expected_wait_s(),
        )

    def _waiting_bytes(self) -> int:
        """Return the size of the modules that wait."""
        return sum(job.order.held_bytes for job in self._waiting)

    def _expected_wait_s(self) -> float:
        """Return how long one more job would wait, by the mean of recent jobs: a rule of thumb."""
        idle = self._idle and not self._waiting
        return 0.0 if idle else (self.waiting + 1) * self._mean_s / self.size

    @property
    def why_no_worker(self) -> str:
        """Why the engine has no worker; empty if it has one or one is starting."""
        return "" if self.alive else self._cause

    @property
    def awaits_memory(self) -> bool:
        """Whether its jobs wait for memory that other jobs have."""
        return self.memory.is_awaited(self.fill)

    async def start(self) -> None:
        """Start all workers. Raises what keeps the first from coming up."""
        first = await self.start_worker()
        self._keepers = [asyncio.create_task(self._keep_filled(first))]
        self._keepers += [asyncio.create_task(self._keep_filled()) for _ in range(1, self.size)]

    async def close(self) -> None:
        """End every worker, and refuse the jobs that wait."""
        self._closed = True
        self._refuse_waiting(errors.server_draining())
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)

    async def run(
        self, job: Job, *, ready: Ready | None = None, unless: Unless | None = None
    ) -> JobReport:
        """Run a job; return its report.

        It is ``needless`` if ``unless`` returns while the job waits for a worker, or if ``ready``
        returns False once it has one. When cancelled, the job ends, and its worker with it.

        Raises COMPILE_QUEUE_FULL, at once, or later to make room for a caller that
        holds less of the queue, or when the daemon has no file descriptors left;
        WORKER_UNAVAILABLE when no worker starts, or could set the job up; COMPILER_CRASHED when
        two workers died under it; JOB_ENDED; SERVER_DRAINING; and what ``ready`` and ``unless``
        raise.
        """
        tries = self.size + 1  # All present workers may be damaged; a new one is not.
        job.task = asyncio.current_task()
        self._waiting[job] = None
        while True:
            try:
                worker = await self._wait(job, unless)
                if worker and ready and not await ready(job.queued_s or 0.0):
                    job.waiters.release()
                    worker = None
                if worker is None:
                    return JobReport(needless=True)
                ready = unless = None
                report = await self._work(job, worker)
                if not self._needs_more(job, report):
                    return report
                self._wait_again(job)  # Before its worker is given to another job.
                continue
            except process.JobNotSetUp as failure:
                cause, event = str(failure), "worker cannot set up a job and is replaced"
                tries -= 1
                refusal = errors.worker_unavailable(self.engine_id, for_callers(cause))
            except process.WorkerDied as death:
                cause, event = str(death), "worker died under a job"
                tries = min(tries, 2) - 1
                # The sandbox lets no job end its worker, so somebody else did.
                how, nobodys = "lost its worker process twice", errors.Fault.NONE
                refusal = errors.compiler_crashed(self.engine_id, how, cause, fault=nobodys)
            except asyncio.CancelledError:
                if not (job.ended and job.task):
                    raise
                job.task.uncancel()
                raise errors.job_ended(self.engine_id) from None
            finally:
                if job.worker:
                    self._give_back(job, job.worker)
            log.warning(event, engine=self.engine_id, cause=cause)
            if not tries:
                raise refusal
            self._wait_again(job)

    def _wait_again(self, job: Job) -> None:
        """Have a job wait once more; drop it if all callers have left."""
        job.waiters.release()
        if not job.waiters.waiting:
            raise errors.server_draining()
        job.granted, job.again = asyncio.Future(), True
        # The run that failed is no time in the queue.
        job.asked_s = time.monotonic() - (job.queued_s or 0.0)
        self._waiting[job] = None

    async def _wait(self, job: Job, unless: Unless | None) -> Worker | None:
        """Wait for a worker; return None if ``unless`` returns before there is one."""
        if self._closed or self.why_no_worker:
            self._waiting.pop(job, None)
            if self._closed:
                raise errors.server_draining()
            raise errors.worker_unavailable(self.engine_id, for_callers(self._cause))
        self.fill()
        if job.worker:
            return job.worker
        watching: list[asyncio.Future[Any]] = [asyncio.create_task(unless())] if unless else []
        try:
            if not job.again:
                self._make_room(job)
            await asyncio.wait((job.granted, *watching), return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            if not job.waiters.waiting:
                self.metrics.count("abandoned", self.engine_id, "queued")
            raise
        finally:
            self._waiting.pop(job, None)
            for each in watching:
                each.cancel()
            if not job.worker:  # Others may have waited behind it.
                self.memory.leave(self.fill, job)
                self.memory.settle(self.fill)
        if not job.granted.done():
            watching[0].result()  # It may have failed.
        elif refusal := job.granted.result():
            raise refusal
        return job.worker

    async def _work(self, job: Job, worker: Worker) -> JobReport:
        limits = replace(job.order.limits, compile_memory_bytes=job.memory_bytes)
        report = await worker.run(replace(job.order, limits=limits))
        report.memory_bytes = job.memory_bytes
        self._mean_s += (report.elapsed_s - self._mean_s) * _WEIGHT
        if report.signal == signal.SIGSYS:
            event, module = _REFUSED_CALL, job.order.module_sha256
            log.error(event, engine=self.engine_id, module=module, pid=report.pid)
        return report

    def _needs_more(self, job: Job, report: JobReport) -> bool:
        """Return whether a job that has ended is to run again with more memory.

        Learn from one that succeeded.
        """
        limits, before, more = job.order.limits, job.needs_bytes, 0
        found = verdict.ending(report, self.engine_id, limits)
        if isinstance(found, errors.WasmkilnError):
            job.needs_bytes = more = verdict.more_memory(report, found, limits)
        elif found.outcome is verdict.Outcome.VALID:
            self.memory.learn(self.engine_id, job.order, report.peak_memory_bytes)
        if before:
            memory = "retry" if before > limits.compile_memory_bytes else "limit"
            ok = isinstance(found, verdict.Verdict)
            self.metrics.count("jobs_run_again", memory, "ok" if ok else "failed")
        return more > 0

    def _make_room(self, newcomer: Job) -> None:
        """Refuse jobs that wait until there is room for the one that came last.

        There is room for ``queue_length`` jobs and ``queue_bytes``, or for one job of any size. A
        line is as long as it has jobs, or bytes where these are short. The last job of the longest
        line goes, but one that other callers wait for too only if there is no other; background
        work goes before any other, and the newcomer where lines are equally long. Of a line, a job
        that runs again goes last.
        """
        limits = self.limits.current
        while (many := (length := len(self._waiting)) > limits.queue_length) or (
            length > 1 and self._waiting_bytes() > limits.queue_bytes
        ):
            waiting, fills = list(self._waiting), Counter[Waiter]()
            for job in waiting:
                for line in job.lines:
                    fills[line] += 1 if many else job.order.held_bytes
            *_, place = max(
                (
                    *(line.rank, fills[line], line in newcomer.lines),
                    *(len(job.lines) == 1, not job.again, number),
                )
                for number, job in enumerate(waiting)
                for line in job.lines
            )
            gone = waiting[place]
            del self._waiting[gone]
            retry_s = max(_LEAST_RETRY_S, self._expected_wait_s())
            full = errors.compile_queue_full(self.engine_id, length - 1, retry_s)
            if gone is newcomer:
                raise full
            gone.granted.set_result(full)

    def _next(self) -> Job | None:
        """Take the job whose turn it is out of the queue: of the line served longest ago.

        What runs again goes before others of its line alone: a caller may send such jobs for ever.

        If there is too little memory for it, take the first one that may pass it.
        """
        standing = [(job, line) for job in self._waiting for line in job.lines]
        # A line that is new goes behind all that have waited for their turn.
        self._turns = {line: self._turns.get(line, self._turn) for _, line in standing}
        standing.sort(key=lambda at: (at[1].rank, self._turns[at[1]], not at[0].again))
        for job, line in standing:
            if self._reserve(job, line.rank, is_next=job is standing[0][0]):
                self._turn += 1
                self._turns[line] = self._turn
                del self._waiting[job]
                return job
        return None

    def _reserve(self, job: Job, rank: int, *, is_next: bool) -> bool:
        """Reserve memory for a job if its turn allows: all that there is, for one alone."""
        wanted = job.needs_bytes or self.memory.wanted(self.engine_id, job.order)
        job.memory_bytes = wanted
        if wanted > job.order.limits.compile_memory_bytes:
            wanted = max(wanted, self.memory.total)
        return self.memory.take(self.fill, job, rank, wanted, is_next=is_next)

    def fill(self) -> bool:
        """Start the jobs that there are workers and memory for; return whether any started."""
        started = False
        while self._idle and (job := self._next()):
            self._running[job] = None
            job.worker, job.queued_s = self._idle.pop(), time.monotonic() - job.asked_s
            job.waiters.kept = True
            job.granted.set_result(None)
            started = True
        if not (self._waiting and self.alive):
            self.memory.leave(self.fill)
        return started

    def _give_back(self, job: Job, worker: Worker) -> None:
        del self._running[job]
        job.worker = None
        self.memory.give(job)
        if worker.process.returncode is None:  # A keeper replaces one that has ended.
            self._idle.append(worker)
        self.memory.settle(self.fill)

    def offer(self, worker: Worker) -> None:
        """Give a worker that is free to the job whose turn it is."""
        self._idle.append(worker)
        self.fill()

    def _refuse_waiting(self, refusal: errors.WasmkilnError) -> None:
        for job in self._waiting:
            job.granted.set_result(refusal)
        self._waiting.clear()

    async def _keep_filled(self, worker: Worker | None = None) -> None:
        """Keep one place filled until cancelled, at first with ``worker`` if there is one.

        A worker that does not start, or ends soon, is replaced after a delay that doubles each
        time: starting workers must not keep the machine busy.
        """
        delay_s = _FIRST_RESTART_DELAY_S
        while True:
            cause = "its workers end soon after they start" if delay_s > _SHORT_DELAY_S else ""
            try:
                worker = worker or await self.start_worker()
            except Exception as failure:  # Whatever it is, the place is to be filled.
                cause, event = str(failure) or repr(failure), "worker does not start"
                log.error(event, engine=self.engine_id, cause=cause, retry_in_s=delay_s)
            else:
                began_s, self._cause = time.monotonic(), ""
                self.offer(worker)
                try:
                    await worker.process.wait()
                finally:
                    if worker in self._idle:
                        self._idle.remove(worker)
                    await worker.kill()
                self.metrics.count("workers_replaced", self.engine_id)
                log.warning("worker replaced", engine=self.engine_id, pid=worker.pid)
                worker = None
                if time.monotonic() - began_s > _HEALTHY_LIFE_S:
                    delay_s = _FIRST_RESTART_DELAY_S
                    continue
            self._cause = cause or self._cause
            if self.why_no_worker:
                self._refuse_waiting(
                    errors.worker_unavailable(self.engine_id, for_callers(self._cause))
                )
            await asyncio.sleep(delay_s)
            delay_s = min(delay_s * 2, _MAX_RESTART_DELAY_S)
