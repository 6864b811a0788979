"""The workers of one engine version: started ahead, replaced when they die."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import structlog

from wasmkilnd import errors
from wasmkilnd.engines.scheduling.dispatch import Dispatch
from wasmkilnd.engines.scheduling.ticket import Ticket, Unless
from wasmkilnd.engines.workers.job_pipes import OutOfDescriptors
from wasmkilnd.engines.workers.job_protocol import JobOrder, JobReport
from wasmkilnd.engines.workers.kernel_log import refused_call
from wasmkilnd.engines.workers.lent_worker import LentWorker
from wasmkilnd.engines.workers.neighbours import Neighbours
from wasmkilnd.engines.workers.process import JobNotSetUp, Worker, WorkerDied
from wasmkilnd.model import Limits
from wasmkilnd.ports import Recorder
from wasmkilnd.reloadable import Reloadable
from wasmkilnd.waiters import Waiter, Waiters

log = structlog.get_logger("wasmkilnd.engines")

_FIRST_RESTART_DELAY_S = 0.1
_MAX_RESTART_DELAY_S = 30.0
_HEALTHY_LIFE_S = 5.0
# For a worker that is longer in coming nobody is kept waiting.
_SHORT_DELAY_S = 1.0


class WorkerPool:
    """Runs jobs on a fixed number of workers, in the order that their waiters decide.

    For one event loop. What waits is bounded: one more is refused at once rather
    than made to wait.
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
        self._start_worker = start_worker
        self._recorder = recorder
        self._neighbours = neighbours or Neighbours()
        self._dispatch = Dispatch[Worker](
            engine_id, limits, recorder, _lives, second_limit=max(1, size // 2)
        )
        self._keepers: list[asyncio.Task[None]] = []
        self._closed = False
        self._broken = ""
        self._unfit = ""

    @property
    def busy(self) -> int:
        """How many workers have a job."""
        return self._dispatch.busy

    @property
    def alive(self) -> int:
        """How many workers are there, idle or busy."""
        return self._dispatch.idle + self._dispatch.busy

    @property
    def waiting(self) -> int:
        """How many jobs wait for a worker."""
        return len(self._dispatch.queue)

    @property
    def waiting_in_background(self) -> int:
        """How many of them nobody waits for."""
        return self._dispatch.queue.background

    @property
    def waiting_callers(self) -> int:
        """How many callers take turns."""
        return self._dispatch.queue.callers

    @property
    def waiting_bytes(self) -> int:
        """The size of the modules that wait."""
        return self._dispatch.queue.size_bytes

    def expected_wait_s(
        self, waiter: Waiter, others: Waiters | None = None, *, second: bool = False
    ) -> float:
        """Return how long a caller would wait for a worker; see Dispatch."""
        return self._dispatch.expected_wait_s(waiter, others, second=second)

    @property
    def down(self) -> str:
        """Why no worker is there and none starts; empty while there is one, or soon will be."""
        return "" if self.alive else self._broken

    @property
    def ailing(self) -> str:
        """Why no job can run now, though that may be over in a moment; empty while one can."""
        return "" if self.alive else self._broken or self._unfit

    async def start(self) -> None:
        """Start all workers. Raises WorkerDied when the first does not come up."""
        first = await self._start_worker()
        self._keepers = [asyncio.create_task(self._keep(first))]
        self._keepers += [asyncio.create_task(self._keep(None)) for _ in range(self.size - 1)]

    async def run(
        self, job: JobOrder, waiters: Waiters | None = None, *, second: bool = False
    ) -> tuple[JobReport, float]:
        """Run ``job``; return its report and how long it waited for a worker, in seconds.

        Without ``waiters`` it is the daemon's own, and waits like a caller's. Those that are
        ``second`` opinions get half of the workers at most. Raises what ``worker`` and its
        ``run`` raise.
        """
        self._refuse_if_useless()
        waiters = waiters or Waiters.of(Waiter())
        ticket = await self._dispatch.take(waiters, job.op, job.size_bytes, second=second)
        return await self._run(ticket, job), ticket.queued_s

    @asynccontextmanager
    async def worker(
        self, job: JobOrder, waiters: Waiters, *, unless: Unless
    ) -> AsyncIterator[LentWorker[Worker] | None]:
        """Wait for a worker that is to run ``job``, and lend it for as long as the context lasts.

        It is None when ``unless`` returns before a worker is there. Who leaves the queue
        when cancelled waits no more. Raises COMPILE_QUEUE_FULL, WORKER_UNAVAILABLE when no
        worker starts, or SERVER_DRAINING.
        """
        self._refuse_if_useless()
        ticket = await self._dispatch.take_unless(waiters, job.op, job.size_bytes, unless)
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

        A job that loses its worker through no fault of its own is run once more; one that
        could not be set up, on as many others as there are, and one that is started since.
        Cancelled, it ends at once. Raises COMPILE_QUEUE_FULL where the daemon has no file
        descriptors left; WORKER_UNAVAILABLE when no worker could set the job up;
        COMPILER_CRASHED when two died under it; SERVER_DRAINING.
        """
        # What spoiled one worker may have spoiled all, but none that starts from now on.
        tries_at_set_up, tries = self.size + 1, 2
        while True:
            try:
                return await self._run_on(ticket, job)
            except JobNotSetUp as failure:
                log.warning("worker cannot set up a job", engine=self.engine_id, cause=str(failure))
                tries_at_set_up -= 1
                if not tries_at_set_up:
                    raise errors.worker_unavailable(self.engine_id, str(failure)) from None
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
        # A task of its own: when the job is given up, its worker is not.
        work = asyncio.create_task(self._run_beside(worker, job))
        work.add_done_callback(lambda done: self._back(ticket, worker, done))
        try:
            report = await asyncio.shield(work)
        except asyncio.CancelledError:
            if not work.done():
                ticket.given_up = True
                worker.end_job()
            self._recorder.abandoned(self.engine_id, "running")
            raise
        except OutOfDescriptors as shortage:
            log.warning("no job", engine=self.engine_id, cause=str(shortage))
            raise errors.out_of_descriptors() from None
        finally:
            del work  # A task that failed holds its traceback, and that this frame.
        if report.signal == signal.SIGSYS:
            log.error(
                "a job was killed for a system call that no compiler makes",
                engine=self.engine_id,
                module=job.module_sha256,
                pid=report.pid,
                call=await asyncio.to_thread(refused_call, report.pid) or "unknown",
            )
        return report

    async def _run_beside(self, worker: Worker, job: JobOrder) -> JobReport:
        with self._neighbours.stay() as stay:
            report = await worker.run(job)
        report.alone = stay.alone
        return report

    def _back(self, ticket: Ticket[Worker], worker: Worker, work: asyncio.Task[JobReport]) -> None:
        """See what became of a worker: a lost one's keeper starts another."""
        failure = asyncio.CancelledError() if work.cancelled() else work.exception()
        self._unfit = str(failure) if isinstance(failure, JobNotSetUp) else ""
        if failure and not isinstance(failure, OutOfDescriptors):
            self._dispatch.lost(ticket)
        else:
            ticket.given_up |= failure is not None
            self._dispatch.done(ticket)
            self._offer(worker)

    def _offer(self, worker: Worker) -> None:
        if not self._closed and _lives(worker):
            self._dispatch.offer(worker)

    async def _keep(self, worker: Worker | None) -> None:
        """Keep one place filled: wait for its worker's end, and start the next."""
        delay_s = _FIRST_RESTART_DELAY_S
        while not self._closed:
            if worker is None:
                try:
                    worker = await self._start_worker()
                except (WorkerDied, OSError) as failure:
                    self._give_up_waiting(str(failure))
                    log.error(
                        "worker does not start",
                        engine=self.engine_id,
                        cause=str(failure),
                        retry_in_s=delay_s,
                    )
                    await asyncio.sleep(delay_s)
                    delay_s = min(delay_s * 2, _MAX_RESTART_DELAY_S)
                    continue
            self._broken = ""
            began = time.monotonic()
            self._offer(worker)
            try:
                await worker.wait()
            finally:
                self._dispatch.withdraw(worker)
                await worker.kill()
            if self._closed:
                return
            self.replaced += 1
            self._recorder.worker_replaced(self.engine_id)
            log.warning("worker replaced", engine=self.engine_id, pid=worker.pid)
            worker = None
            if time.monotonic() - began > _HEALTHY_LIFE_S:
                delay_s = _FIRST_RESTART_DELAY_S
            else:  # Workers that die young must not keep the machine busy with starting them.
                if delay_s > _SHORT_DELAY_S:
                    self._give_up_waiting(self._unfit or "its workers end soon after they start")
                await asyncio.sleep(delay_s)
                delay_s = min(delay_s * 2, _MAX_RESTART_DELAY_S)

    def _give_up_waiting(self, why: str) -> None:
        """Refuse whoever waits when no worker is left that could take a turn."""
        self._broken = why
        if self.down:
            self._dispatch.refuse_waiting(self._no_worker())

    def _refuse_if_useless(self) -> None:
        if self._closed:
            raise errors.server_draining()
        if self.down:
            raise self._no_worker()

    def _no_worker(self) -> errors.WasmkilnError:
        return errors.worker_unavailable(self.engine_id, self._broken)

    async def close(self) -> None:
        """End every worker, and refuse whoever waits."""
        self._closed = True
        self._dispatch.refuse_waiting(errors.server_draining())
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)


def _lives(worker: Worker) -> bool:
    return worker.process.returncode is None
