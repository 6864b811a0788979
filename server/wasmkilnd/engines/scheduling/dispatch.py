"""Give workers to jobs: which job gets the next free one, which wait, and which are refused."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from itertools import islice
from typing import Generic, TypeVar

from wasmkilnd import errors
from wasmkilnd.engines.scheduling.estimate import Estimate, wait_s
from wasmkilnd.engines.scheduling.fair_queue import Entry, FairQueue
from wasmkilnd.engines.scheduling.ticket import Ticket, Unless
from wasmkilnd.model import Abandoned, Limits
from wasmkilnd.ports import Recorder
from wasmkilnd.reloadable import Reloadable
from wasmkilnd.waiters import Waiter, Waiters

W = TypeVar("W")

_LEAST_RETRY_S = 0.1


class Dispatch(Generic[W]):
    """Workers that are idle, jobs that wait, and jobs that run. For one event loop.

    A job waits in the turn of each caller that waits for it, and behind all others while it is
    background work. Second opinions wait like any job, but only some of them run at once:
    otherwise one caller's refused modules could occupy all workers.
    """

    def __init__(
        self,
        engine_id: str,
        limits: Reloadable[Limits],
        recorder: Recorder,
        usable: Callable[[W], bool] = lambda _: True,
        clock: Callable[[], float] = time.monotonic,
        second_limit: int = 1,
    ) -> None:
        """Run up to ``second_limit`` second opinions at once.

        ``usable`` returns whether an idle worker is still alive, ``clock`` the time in seconds.
        """
        self.queue = FairQueue()
        self._engine_id = engine_id
        self._limits = limits
        self._recorder = recorder
        self._usable = usable
        self._clock = clock
        self._second_limit = second_limit
        self._estimate = Estimate()
        self._idle: deque[W] = deque()
        self._waiting: dict[Entry, Ticket[W]] = {}
        self._running: dict[Ticket[W], None] = {}

    @property
    def busy(self) -> int:
        """How many workers have a job."""
        return len(self._running)

    @property
    def idle(self) -> int:
        """How many workers have no job."""
        return len(self._idle)

    async def take(
        self, waiters: Waiters, kind: str, size_bytes: int, *, second: bool = False
    ) -> Ticket[W]:
        """Wait for a worker; return a ticket, which the caller gives to ``done`` at the end.

        Raises QUOTA_EXCEEDED, or COMPILE_QUEUE_FULL: at once, or later to make room for a caller
        that holds less of the queue.
        """
        ticket, starts = self._ask(waiters, kind, size_bytes, second)
        if not starts:
            await self._wait(ticket)
        return ticket

    async def take_unless(
        self, waiters: Waiters, kind: str, size_bytes: int, unless: Unless
    ) -> Ticket[W] | None:
        """Do as take, but return None if ``unless`` returns before a worker is free.

        If a worker is free at once, ``unless`` is not called.
        """
        ticket, starts = self._ask(waiters, kind, size_bytes, second=False)
        if starts:
            return ticket
        watching = asyncio.create_task(unless())
        watching.add_done_callback(ticket.withdraw)
        try:
            return ticket if await self._wait(ticket) else None
        finally:
            # Do not wait for its end: a caller cancelled here would keep the ticket's worker.
            watching.cancel()

    async def take_again(self, ticket: Ticket[W]) -> None:
        """Wait for another worker for a ticket whose worker was lost, ahead of all other jobs."""
        ticket.granted = asyncio.Future()
        ticket.waiters.watch(ticket, self._waiters_changed)
        if not self._start_on_idle(ticket):
            self.queue.add_again(ticket.entry)
            await self._wait(ticket)

    def _ask(
        self, waiters: Waiters, kind: str, size_bytes: int, second: bool
    ) -> tuple[Ticket[W], bool]:
        """Return a ticket, and whether it starts at once or waits. Raises as ``take``."""
        cost_s = self._estimate.expected_s(kind, size_bytes)
        entry = Entry(waiters.effective(), size_bytes, cost_s, second)
        ticket = Ticket[W](waiters, kind, entry, self._clock())
        waiters.watch(ticket, self._waiters_changed)
        if self._may_start(entry) and self._start_on_idle(ticket):
            return ticket, True
        wait_s = partial(self._retry_s, entry)
        if refusal := waiters.bill.no_place_in_queue(self._engine_id, size_bytes, wait_s):
            waiters.unwatch(ticket)
            raise refusal
        limits = self._limits.current
        for gone in self.queue.add(ticket.entry, limits.queue_length, limits.queue_bytes):
            if gone is ticket.entry:
                waiters.unwatch(ticket)
                raise self._full(gone)
            self._refuse(gone, self._full(gone))
        return ticket, False

    def offer(self, worker: W) -> None:
        """Give a free worker to the next job."""
        self._idle.append(worker)
        self._fill()

    def withdraw(self, worker: W) -> None:
        """Forget a worker that died, if it is idle."""
        if worker in self._idle:
            self._idle.remove(worker)

    def lost(self, ticket: Ticket[W]) -> None:
        """Note that a ticket's worker died while it ran the job."""
        self._running.pop(ticket, None)
        ticket.waiters.unwatch(ticket)
        self._fill()

    def done(self, ticket: Ticket[W]) -> None:
        """Note that a ticket's job has ended, and learn how long it took. Offers no worker."""
        del self._running[ticket]
        ticket.waiters.unwatch(ticket)
        if not ticket.given_up:
            took_s = self._clock() - ticket.started_s
            self._estimate.learn(ticket.kind, ticket.entry.size_bytes, took_s)
        self._fill()

    def decline(self, ticket: Ticket[W]) -> None:
        """Note that a ticket needs no worker after all. Offers no worker.

        If its callers left while it had a worker, their work is dropped now.
        """
        del self._running[ticket]
        ticket.waiters.unwatch(ticket)
        ticket.waiters.release()
        self._fill()

    def refuse_waiting(self, refusal: errors.WasmkilnError) -> None:
        """Refuse all jobs that wait."""
        for entry in self.queue.drain():
            self._refuse(entry, refusal)

    def expected_wait_s(
        self, waiter: Waiter, others: Waiters | None, *, second: bool = False
    ) -> float:
        """Return how long a caller would wait for a worker, 0 if it would not wait.

        ``others`` wait for the job that the caller would join; None for a job of its own.
        """
        if others is None:
            entry = Entry({waiter}, second=second)
            return 0.0 if self._idle and self._may_start(entry) else self._wait_s(entry)
        for ticket in self._waiting.values():
            if ticket.waiters is others:
                return self._wait_s(ticket.entry, {waiter, *ticket.entry.waiters})
        return 0.0

    def _wait_s(self, entry: Entry, waiters: set[Waiter] | None = None) -> float:
        """Return in how many seconds a worker is free for ``entry``."""
        second = entry.second or self._second_may_start
        ahead_s = self.queue.ahead_s(waiters or entry.waiters, entry, second=second)
        now = self._clock()
        # A second opinion that may not start now waits for another to end.
        running = [t for t in self._running if t.entry.second or self._may_start(entry)]
        return wait_s(ahead_s, [(t.entry.cost_s, now - t.started_s) for t in running])

    async def _wait(self, ticket: Ticket[W]) -> bool:
        """Wait for a ticket's worker; return False if the ticket is withdrawn instead."""
        self._waiting[ticket.entry] = ticket
        self._reclaim()
        try:
            with ticket.waiters.bill.waiting(self._engine_id, ticket.entry.size_bytes):
                got = await ticket.granted is not None
        except BaseException as failure:
            if ticket in self._running:  # cancelled at the moment when it got a worker
                del self._running[ticket]
                self.offer(ticket.worker)
            self._leave(ticket)
            if isinstance(failure, asyncio.CancelledError) and not ticket.waiters.wanted:
                self._recorder.abandoned(self._engine_id, "queued")
            raise
        if not got:
            self._leave(ticket)
        return got

    def _leave(self, ticket: Ticket[W]) -> None:
        ticket.waiters.unwatch(ticket)
        self.queue.discard(ticket.entry)
        self._waiting.pop(ticket.entry, None)

    @property
    def _second_room(self) -> int:
        """How many more second opinions may run."""
        return max(0, self._second_limit - sum(ticket.entry.second for ticket in self._running))

    @property
    def _second_may_start(self) -> bool:
        return self._second_room > 0

    def _may_start(self, entry: Entry) -> bool:
        return not entry.second or self._second_may_start

    def _fill(self) -> None:
        """Give idle workers to the next jobs."""
        while (worker := self._idle_worker()) is not None:
            ticket = self._next()
            if ticket is None:
                self._idle.appendleft(worker)
                return
            self._start(ticket, worker)

    def _next(self) -> Ticket[W] | None:
        while (entry := self.queue.pop(second=self._second_may_start)) is not None:
            ticket = self._waiting.pop(entry)
            if not ticket.granted.done():  # It is done if its job is cancelled at this moment.
                return ticket
        return None

    def _start_on_idle(self, ticket: Ticket[W]) -> bool:
        worker = self._idle_worker()
        if worker is not None:
            self._start(ticket, worker)
        return worker is not None

    def _idle_worker(self) -> W | None:
        while self._idle:
            worker = self._idle.popleft()
            if self._usable(worker):
                return worker
        return None

    def _start(self, ticket: Ticket[W], worker: W) -> None:
        ticket.started_s = self._clock()
        ticket.waiters.kept = self._limits.current.abandoned is not Abandoned.KILL
        self._running[ticket] = None
        ticket.granted.set_result(worker)

    def _waiters_changed(self, ticket: Ticket[W]) -> None:
        if ticket in self._running:
            if not ticket.waiters.wanted:
                self._reclaim()
        else:
            self.queue.move(ticket.entry, ticket.waiters.effective())

    def _reclaim(self) -> None:
        """End jobs without callers, one for each job that waits for a worker."""
        if self._limits.current.abandoned is not Abandoned.YIELD:
            return
        # A job that was ended counts as running until its worker is back.
        coming = sum(ticket.reclaimed for ticket in self._running)
        held_back = sum(entry.second for entry in self._waiting) - self._second_room
        missing = len(self._waiting) - max(0, held_back) - coming
        unwanted = (t for t in self._running if not (t.waiters.wanted or t.reclaimed))
        for ticket in islice(unwanted, max(0, missing)):
            ticket.reclaimed = True
            ticket.waiters.drop()

    def _refuse(self, entry: Entry, refusal: errors.WasmkilnError) -> None:
        ticket = self._waiting.pop(entry)
        if not ticket.granted.done():
            ticket.granted.set_exception(refusal)

    def _full(self, entry: Entry) -> errors.WasmkilnError:
        return errors.compile_queue_full(self._engine_id, len(self.queue), self._retry_s(entry))

    def _retry_s(self, entry: Entry) -> float:
        return max(_LEAST_RETRY_S, self._wait_s(entry))
