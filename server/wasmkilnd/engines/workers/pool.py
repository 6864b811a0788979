"""The workers of one engine version, and the jobs that run on them."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import structlog

from wasmkilnd import errors
from wasmkilnd.engines.scheduling.dispatch import Dispatch
from wasmkilnd.engines.scheduling.ticket import Ticket, Unless
from wasmkilnd.engines.workers.contention import Neighbours
from wasmkilnd.engines.workers.job_protocol import JobOrder, JobReport
from wasmkilnd.engines.workers.keeper import keep_filled
from wasmkilnd.engines.workers.kernel_log import log_refused_call
from wasmkilnd.engines.workers.process import (
    JobNotSetUp,
    JobStarved,
    OutOfDescriptors,
    Worker,
    WorkerDied,
)
from wasmkilnd.model import Limits
from wasmkilnd.ports import Recorder
from wasmkilnd.reloadable import Reloadable
from wasmkilnd.waiters import Waiter, Waiters

log = structlog.get_logger("wasmkilnd.engines")


@dataclass(slots=True)
class LentWorker:
    """A worker that is reserved for one job."""

    _ticket: Ticket[Any]
    _run: Callable[[], Coroutine[Any, Any, JobReport]]
    used: bool = False

    @property
    def queued_s(self) -> float:
        """How long the job waited for the worker that it has now."""
        return self._ticket.queued_s

    async def run(self) -> JobReport:
        """Run the job, once; see WorkerPool. The worker is free for others when it ends."""
        self.used = True
        return await self._run()


class WorkerPool:
    """Runs jobs on a fixed number of workers. Callers take turns (see ``scheduling``).

    For one event loop. The queue is bounded: a job for which there is no room is refused at
    once, rather than made to wait.
    """

    def __init__(
        self,
        engine_id: str,
        start_worker: Callable[[], Awaitable[Worker]],
        *,
        size: int,
        limits: Reloadable[Limits],
        recorder: Recorder,
        neighbours: Neighbours | None = None,
    ) -> None:
        self.engine_id = engine_id
        self.size = size
        self.replaced = 0
        self.start_worker = start_worker
        self._recorder = recorder
        self._neighbours = neighbours or Neighbours()
        self._dispatch = Dispatch[Worker](
            engine_id, limits, recorder, _is_alive, second_limit=max(1, size // 2)
        )
        self._keepers: list[asyncio.Task[None]] = []
        self._closed = False
        self._missing_cause = ""
        self._set_up_failure = ""

    @property
    def busy(self) -> int:
        """How many workers have a job."""
        return self._dispatch.busy

    @property
    def alive(self) -> int:
        """How many workers there are, idle or busy."""
        return self._dispatch.idle + self._dispatch.busy

    @property
    def waiting(self) -> int:
        """How many jobs wait for a worker."""
        return len(self._dispatch.queue)

    @property
    def waiting_in_background(self) -> int:
        """How many waiting jobs only warm the cache."""
        return self._dispatch.queue.background

    @property
    def waiting_callers(self) -> int:
        """How many callers take turns."""
        return self._dispatch.queue.callers

    @property
    def waiting_bytes(self) -> int:
        """The size of the modules that wait."""
        return self._dispatch.queue.size_bytes

    @property
    def why_no_worker(self) -> str:
        """Why the engine has no worker; empty if it has one or one is starting."""
        return "" if self.alive else self._missing_cause

    @property
    def why_not_ready(self) -> str:
        """As ``why_no_worker``, also while workers that could not set up a job are replaced."""
        return "" if self.alive else self._missing_cause or self._set_up_failure

    def expected_wait_s(
        self, waiter: Waiter, others: Waiters | None = None, *, second: bool = False
    ) -> float:
        """Return how long a caller would wait for a worker; see Dispatch."""
        return self._dispatch.expected_wait_s(waiter, others, second=second)

    async def start(self) -> None:
        """Start all workers. Raises WorkerDied when the first does not come up."""
        first = await self.start_worker()
        self._keepers = [asyncio.create_task(keep_filled(self, first))]
        self._keepers += [asyncio.create_task(keep_filled(self, None)) for _ in range(1, self.size)]

    async def close(self) -> None:
        """End every worker, and refuse the jobs that wait."""
        self._closed = True
        self._dispatch.refuse_waiting(errors.server_draining())
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)

    async def run(
        self, job: JobOrder, waiters: Waiters | None = None, *, second: bool = False
    ) -> tuple[JobReport, float]:
        """Run ``job``; return its report and how long it waited for a worker, in seconds.

        Without ``waiters`` the job is the daemon's own, and waits like a caller's. At most half
        of the workers run ``second`` opinions. Raises what ``worker`` and its ``run`` raise.
        """
        self._refuse_if_useless()
        waiters = waiters or Waiters.of(Waiter())
        ticket = await self._dispatch.take(waiters, job.like, job.size_bytes, second=second)
        return await self._run(ticket, job), ticket.queued_s

    @asynccontextmanager
    async def worker(
        self, job: JobOrder, waiters: Waiters, *, unless: Unless
    ) -> AsyncIterator[LentWorker | None]:
        """Wait for a worker that is to run ``job``, and lend it for as long as the context lasts.

        Yield None if ``unless`` returns before a worker is there. When cancelled, the job leaves
        the queue. Raises COMPILE_QUEUE_FULL, WORKER_UNAVAILABLE when no worker starts, or
        SERVER_DRAINING.
        """
        self._refuse_if_useless()
        ticket = await self._dispatch.take_unless(waiters, job.like, job.size_bytes, unless)
        if ticket is None:
            yield None
            return
        lent = LentWorker(ticket, lambda: self._run(ticket, job))
        try:
            yield lent
        finally:
            if not lent.used:
                self._dispatch.decline(ticket)
                self._offer(ticket.worker)

    async def _run(self, ticket: Ticket[Worker], job: JobOrder) -> JobReport:
        """Run ``job`` on the ticket's worker, which is free for others when the job ends.

        A job that loses its worker through no fault of its own runs once more. A job that cannot
        be set up is tried on ``size + 1`` workers. When cancelled, the job ends at once.
        Raises COMPILE_QUEUE_FULL when the daemon has no file descriptors left,
        WORKER_UNAVAILABLE when no worker could set the job up, COMPILER_CRASHED when two workers
        died under it, or SERVER_DRAINING.
        """
        # All present workers may be damaged; a new one is not.
        tries_at_set_up, tries = self.size + 1, 2
        while True:
            try:
                return await self._run_on(ticket, job)
            except JobNotSetUp as failure:
                log.warning(
                    "worker cannot set up a job and is replaced",
                    engine=self.engine_id,
                    cause=str(failure),
                )
                tries_at_set_up -= 1
                if not tries_at_set_up:
                    raise errors.worker_unavailable(self.engine_id, str(failure)) from None
            except JobStarved:  # The machine counts as busy now: the job runs at low priority.
                self._recorder.job_starved(self.engine_id)
            except WorkerDied as death:
                log.warning("worker died under a job", engine=self.engine_id, cause=str(death))
                tries -= 1
                if not tries:
                    raise errors.compiler_crashed(
                        self.engine_id, "lost its worker process twice", str(death)
                    ) from None
            self._refuse_if_useless()
            await self._dispatch.take_again(ticket)

    async def _run_on(self, ticket: Ticket[Worker], job: JobOrder) -> JobReport:
        worker = ticket.worker
        ticket.waiters.bill.job_began()
        # A task of its own: cancelling the job must not cancel the clean-up of its worker.
        work = asyncio.create_task(worker.run(job, self._neighbours))
        work.add_done_callback(lambda done: self._job_ended(ticket, worker, done))
        try:
            report = await asyncio.shield(work)
        except asyncio.CancelledError:
            if not work.done():
                ticket.given_up = True
                worker.end_job()
            self._recorder.abandoned(self.engine_id, "running")
            raise
        except OutOfDescriptors as shortage:
            log.warning(
                "cannot start a job: no file descriptors left",
                engine=self.engine_id,
                cause=str(shortage),
            )
            raise errors.out_of_descriptors() from None
        finally:
            del work  # A failed task holds its traceback, and the traceback holds this frame.
        if report.starved:
            self._recorder.job_starved(self.engine_id)
        if report.signal == signal.SIGSYS:
            await asyncio.to_thread(log_refused_call, self.engine_id, job.module_sha256, report.pid)
        return report

    def _job_ended(
        self, ticket: Ticket[Worker], worker: Worker, work: asyncio.Task[JobReport]
    ) -> None:
        """Offer the worker to the next job, unless it was lost: then its keeper replaces it."""
        failure = asyncio.CancelledError() if work.cancelled() else work.exception()
        self._set_up_failure = str(failure) if isinstance(failure, JobNotSetUp) else ""
        ticket.waiters.bill.job_ended(0.0 if failure else work.result().cpu_s)
        if failure and not isinstance(failure, OutOfDescriptors):
            self._dispatch.lost(ticket)
        else:
            ticket.given_up |= failure is not None
            self._dispatch.done(ticket)
            self._offer(worker)

    def _offer(self, worker: Worker) -> None:
        if not self._closed and _is_alive(worker):
            self._dispatch.offer(worker)

    def worker_started(self, worker: Worker) -> None:
        """Give jobs to a new worker."""
        self._missing_cause = ""
        self._offer(worker)

    def worker_ended(self, worker: Worker) -> None:
        """Give no more jobs to a worker."""
        self._dispatch.withdraw(worker)

    def worker_replaced(self) -> None:
        """Count a worker that ended by itself."""
        self.replaced += 1
        self._recorder.worker_replaced(self.engine_id)

    def workers_missing(self, why: str = "") -> None:
        """Remember why a worker is missing; if none is left, refuse the jobs that wait."""
        self._missing_cause = why or self._set_up_failure or "its workers end soon after they start"
        if self.why_no_worker:
            self._dispatch.refuse_waiting(self._no_worker())

    def _refuse_if_useless(self) -> None:
        if self._closed:
            raise errors.server_draining()
        if self.why_no_worker:
            raise self._no_worker()

    def _no_worker(self) -> errors.WasmkilnError:
        return errors.worker_unavailable(self.engine_id, self._missing_cause)


def _is_alive(worker: Worker) -> bool:
    return worker.process.returncode is None
