"""Hands workers to jobs: who gets the next free one, who waits, and who is sent away."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import Generic, TypeVar

from wasmkilnd import errors
from wasmkilnd.engines.scheduling.estimate import Estimate
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

    A job waits as its waiters decide: in turn with those of other callers, behind all of
    them while it is background work, and in the turn of whoever begins to want it.
    Second opinions wait like any job, but only some of them run at once: or one caller's
    refused modules would keep all workers.
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
        """``usable`` tells whether an idle worker still lives; ``clock`` answers seconds.

        Up to ``second_limit`` second opinions run at once.
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
        """How many workers have none."""
        return len(self._idle)

    async def take(
        self, waiters: Waiters, kind: str, size_bytes: int, *, second: bool = False
    ) -> Ticket[W]:
        """Wait for a worker, and return the ticket, to be given to ``done`` in the end.

        Raises COMPILE_QUEUE_FULL: at once, or later in favour of a caller that holds
        less of the queue.
        """
        ticket, starts = self._ask(waiters, kind, size_bytes, second)
        if not starts:
            await self._wait(ticket)
        return ticket

    async def take_unless(
        self, waiters: Waiters, kind: str, size_bytes: int, unless: Unless
    ) -> Ticket[W] | None:
        """As take, but return None when ``unless`` returns before a worker is there.

        Where one is there at once, ``unless`` is not called.
        """
        ticket, starts = self._ask(waiters, kind, size_bytes, second=False)
        if starts:
            return ticket
        watching = asyncio.create_task(unless())
        watching.add_done_callback(ticket.withdraw)
        try:
            return ticket if await self._wait(ticket) else None
        finally:
            # Not waited for: whoever is cancelled while it has a ticket would keep its worker.
            watching.cancel()

    async def take_again(self, ticket: Ticket[W]) -> None:
        """Wait for another worker for a ticket whose worker was lost, before everybody else."""
        ticket.granted = asyncio.Future()
        ticket.waiters.watch(ticket, self._waiters_changed)
        if not self._start_on_idle(ticket):
            self.queue.add_again(ticket.entry)
            await self._wait(ticket)

    def _ask(
        self, waiters: Waiters, kind: str, size_bytes: int, second: bool
    ) -> tuple[Ticket[W], bool]:
        """Return a ticket that is queued, or starts at once. Raises COMPILE_QUEUE_FULL."""
        cost_s = self._estimate.expected_s(kind, size_bytes)
        entry = Entry(waiters.effective(), size_bytes, cost_s, second)
        ticket = Ticket[W](waiters, kind, entry, self._clock())
        waiters.watch(ticket, self._waiters_changed)
        if self._may_start(entry) and self._start_on_idle(ticket):
            return ticket, True
        limits = self._limits.current
        for gone in self.queue.add(ticket.entry, limits.queue_length, limits.queue_bytes):
            if gone is ticket.entry:
                waiters.unwatch(ticket)
                raise self._full(gone)
            self._refuse(gone, self._full(gone))
        return ticket, False

    def offer(self, worker: W) -> None:
        """Give a free worker to whoever is next."""
        self._idle.append(worker)
        self._fill()

    def withdraw(self, worker: W) -> None:
        """Forget an idle worker that died."""
        if worker in self._idle:
            self._idle.remove(worker)

    def lost(self, ticket: Ticket[W]) -> None:
        """Note that a ticket's worker died under its job."""
        self._running.pop(ticket, None)
        ticket.waiters.unwatch(ticket)
        self._fill()

    def done(self, ticket: Ticket[W]) -> None:
        """Note that a ticket is over, and learn how long its job took. Offers no worker."""
        del self._running[ticket]
        ticket.waiters.unwatch(ticket)
        if not ticket.given_up:
            took_s = self._clock() - ticket.started_s
            self._estimate.took(ticket.kind, ticket.entry.size_bytes, took_s)
        self._fill()

    def decline(self, ticket: Ticket[W]) -> None:
        """Note that a ticket needs no worker after all, and nobody waits any more for those who
        left while it had one. Offers no worker.
        """
        del self._running[ticket]
        ticket.waiters.unwatch(ticket)
        ticket.waiters.release()
        self._fill()

    def refuse_waiting(self, refusal: errors.WasmkilnError) -> None:
        """Send everybody away who waits."""
        for entry in self.queue.drain():
            self._refuse(entry, refusal)

    def expected_wait_s(
        self, waiter: Waiter, others: Waiters | None, *, second: bool = False
    ) -> float:
        """Return how long a caller would wait for a worker: for one of its own, or, when it
        joins the job of ``others``, for theirs. 0 when their job runs.
        """
        if others is None:
            entry = Entry({waiter}, second=second)
            return 0.0 if self._idle and self._may_start(entry) else self._wait_s(entry)
        for ticket in self._waiting.values():
            if ticket.waiters is others:
                return self._wait_s(ticket.entry, {waiter, *ticket.entry.waiters})
        return 0.0

    def _wait_s(self, entry: Entry, waiters: set[Waiter] | None = None) -> float:
        """Return when a worker is free for ``entry``, and all that goes before has begun."""
        second = entry.second or self._second_may_start
        ahead_s = self.queue.ahead_s(waiters or entry.waiters, entry, second=second)
        now = self._clock()
        # What may not start now waits for the end of one of its kind.
        running = [t for t in self._running if t.entry.second or self._may_start(entry)]
        # A job that is late by some time is expected to need as much time once more.
        free_s = sorted(abs(t.entry.cost_s - (now - t.started_s)) for t in running)
        # The first ``count`` workers share what is ahead, unless one more is free before.
        shared_s = (
            ((ahead_s + sum(free_s[:count])) / count, next_free_s)
            for count, next_free_s in enumerate([*free_s[1:], math.inf], 1)
        )
        return next(wait_s for wait_s, next_free_s in shared_s if wait_s <= next_free_s)

    async def _wait(self, ticket: Ticket[W]) -> bool:
        """Wait for a ticket's worker; return whether it got one, rather than be withdrawn."""
        self._waiting[ticket.entry] = ticket
        self._reclaim()
        try:
            got = await ticket.granted is not None
        except BaseException as failure:
            if ticket in self._running:  # Given up in the moment in which it got a worker.
                del self._running[ticket]
                self.offer(ticket.worker)
            self._wait_no_more(ticket)
            if isinstance(failure, asyncio.CancelledError) and not ticket.waiters.wanted:
                self._recorder.abandoned(self._engine_id, "queued")
            raise
        if not got:
            self._wait_no_more(ticket)
        return got

    def _wait_no_more(self, ticket: Ticket[W]) -> None:
        ticket.waiters.unwatch(ticket)
        self.queue.discard(ticket.entry)
        self._waiting.pop(ticket.entry, None)

    @property
    def _second_room(self) -> int:
        """How many second opinions more may run."""
        return max(0, self._second_limit - sum(ticket.entry.second for ticket in self._running))

    @property
    def _second_may_start(self) -> bool:
        return self._second_room > 0

    def _may_start(self, entry: Entry) -> bool:
        return not entry.second or self._second_may_start

    def _fill(self) -> None:
        """Give idle workers to whoever is next."""
        while (worker := self._idle_worker()) is not None:
            ticket = self._next()
            if ticket is None:
                self._idle.appendleft(worker)
                return
            self._start(ticket, worker)

    def _next(self) -> Ticket[W] | None:
        while (entry := self.queue.pop(second=self._second_may_start)) is not None:
            ticket = self._waiting.pop(entry)
            if not ticket.granted.done():  # It is, in the moment in which its job is given up.
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
        """End jobs that nobody waits for, one for each that waits for a worker."""
        if self._limits.current.abandoned is not Abandoned.YIELD:
            return
        # Until its worker is back, a job that was ended is among those that run.
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
        wait_s = max(_LEAST_RETRY_S, self._wait_s(entry))
        return errors.compile_queue_full(self._engine_id, len(self.queue), wait_s)
