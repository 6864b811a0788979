"""The workers of one engine version: started ahead, replaced when they die."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Awaitable, Callable

import structlog

from wasmkilnd import errors
from wasmkilnd.engines.process import JobOrder, JobReport, Worker, WorkerDied
from wasmkilnd.in_force import InForce
from wasmkilnd.model import Limits

log = structlog.get_logger("wasmkilnd.engines")

_FIRST_RESTART_DELAY_S = 0.1
_MAX_RESTART_DELAY_S = 30.0
_HEALTHY_LIFE_S = 5.0
_TYPICAL_JOB_S = 0.5  # before anything is known


class WorkerPool:
    """Runs jobs on a fixed number of workers, first come, first served.

    For one event loop. At most ``limits.now.queue_length`` callers wait; one more is
    refused at once rather than made to wait.
    """

    def __init__(
        self,
        engine_id: str,
        start_worker: Callable[[], Awaitable[Worker]],
        *,
        size: int,
        limits: InForce[Limits],
        on_replaced: Callable[[str], None],
    ) -> None:
        self.engine_id = engine_id
        self.size = size
        self.replaced = 0
        self.busy = 0
        self._limits = limits
        self._start_worker = start_worker
        self._on_replaced = on_replaced
        self._idle: deque[Worker] = deque()
        self._waiting: deque[asyncio.Future[Worker]] = deque()
        self._keepers: list[asyncio.Task[None]] = []
        self._closed = False
        self._recent_job_s = _TYPICAL_JOB_S
        self._broken = ""

    @property
    def waiting(self) -> int:
        """How many callers wait for a worker."""
        return len(self._waiting)

    @property
    def alive(self) -> int:
        """How many workers are there, idle or busy."""
        return len(self._idle) + self.busy

    @property
    def down(self) -> str:
        """Why no worker is there and none starts; empty while there is one, or soon will be."""
        return "" if self.alive else self._broken

    async def start(self) -> None:
        """Start all workers. Raises WorkerDied when the first does not come up."""
        first = await self._start_worker()
        self._keepers = [asyncio.create_task(self._keep(first))]
        self._keepers += [asyncio.create_task(self._keep(None)) for _ in range(self.size - 1)]

    async def run(self, job: JobOrder) -> tuple[JobReport, float]:
        """Run ``job``; answer its report and how long it waited for a worker, in seconds.

        A job that loses its worker through no fault of its own is run once more.
        Raises COMPILE_QUEUE_FULL, COMPILER_CRASHED when two workers died under
        the job, or SERVER_DRAINING.
        """
        asked = time.monotonic()
        worker = await self._take()
        queued_s = time.monotonic() - asked
        try:
            return await self._run_on(worker, job), queued_s
        except WorkerDied as death:
            log.warning("worker died under a job", engine=self.engine_id, cause=str(death))
        worker = await self._take(again=True)
        queued_s = time.monotonic() - asked
        try:
            return await self._run_on(worker, job), queued_s
        except WorkerDied as death:
            raise errors.compiler_crashed(
                self.engine_id, "lost its worker process twice", str(death)
            ) from None

    async def _run_on(self, worker: Worker, job: JobOrder) -> JobReport:
        started = time.monotonic()
        try:
            report = await worker.run(job)
        except BaseException:
            self.busy -= 1  # Its keeper sees it end, and starts another.
            raise
        self.busy -= 1
        self._recent_job_s += (time.monotonic() - started - self._recent_job_s) / 8
        self._offer(worker)
        return report

    async def _take(self, *, again: bool = False) -> Worker:
        if self._closed:
            raise errors.server_draining()
        if self.down:
            raise self._no_worker()
        while self._idle:
            worker = self._idle.popleft()
            if worker.process.returncode is None:
                self.busy += 1
                return worker
        if len(self._waiting) >= self._limits.now.queue_length and not again:
            raise errors.compile_queue_full(self.engine_id, self.waiting, self._expected_wait_s())
        turn: asyncio.Future[Worker] = asyncio.get_running_loop().create_future()
        if again:
            self._waiting.appendleft(turn)
        else:
            self._waiting.append(turn)
        try:
            return await turn
        except asyncio.CancelledError:
            with contextlib.suppress(ValueError):
                self._waiting.remove(turn)
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self.busy -= 1
                self._offer(turn.result())
            raise

    def _offer(self, worker: Worker) -> None:
        if self._closed or worker.process.returncode is not None:
            return
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                self.busy += 1
                turn.set_result(worker)
                return
        self._idle.append(worker)

    def _expected_wait_s(self) -> float:
        """When the caller at the end of the queue would have had its turn."""
        return max(0.1, self._recent_job_s * (len(self._waiting) + 1) / self.size)

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
                with contextlib.suppress(ValueError):
                    self._idle.remove(worker)
                await worker.kill()
            if self._closed:
                return
            self.replaced += 1
            self._on_replaced(self.engine_id)
            log.warning("worker replaced", engine=self.engine_id, pid=worker.pid)
            worker = None
            if time.monotonic() - began > _HEALTHY_LIFE_S:
                delay_s = _FIRST_RESTART_DELAY_S
            else:  # Workers that die young must not keep the machine busy with starting them.
                await asyncio.sleep(delay_s)
                delay_s = min(delay_s * 2, _MAX_RESTART_DELAY_S)

    def _give_up_waiting(self, why: str) -> None:
        """Refuse whoever waits when no worker is left that could take a turn."""
        self._broken = why
        if not self.alive:
            self._refuse_waiting(self._no_worker())

    def _no_worker(self) -> errors.WasmkilnError:
        return errors.no_worker(self.engine_id, self._broken)

    def _refuse_waiting(self, refusal: errors.WasmkilnError) -> None:
        for turn in self._waiting:
            if not turn.done():
                turn.set_exception(refusal)
        self._waiting.clear()

    async def close(self) -> None:
        """End every worker, and refuse whoever waits."""
        self._closed = True
        self._refuse_waiting(errors.server_draining())
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        self._idle.clear()
