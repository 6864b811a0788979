"""How long a call waits for tiers: a budget for each call, and a breaker for each tier.

**A budget.** A call looks for an artifact, perhaps for the module and for strikes against it, and
then for a lease. Each of these requests to the tiers below memory has a time-out. But a server that
answers each just in time would cost the call their sum, and no breaker would ever open. So each
call has one ``WaitBudget``, and passes it on with every request.

**A breaker** keeps callers from waiting for a tier that does not answer.
While it is closed, calls go through. The first outage opens it: then calls fail at once without
touching the network, and a background task, never a caller, asks again, waiting longer each time,
until it is answered. So an outage costs the callers of that moment one time-out at most, and later
callers nothing. A refusal (full, read-only, no permission) is an answer and opens nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import structlog

from wasmkilnd.errors import TierUnavailable
from wasmkilnd.files.threads import wait_at_most
from wasmkilnd.waits.flights import Background

V = TypeVar("V")

_log = structlog.get_logger("wasmkilnd.cache")

_FIRST_WAIT_S = 0.25


class Breaker(Background, ABC):
    """Fails the calls to a ``tier`` while it does not answer. For one event loop."""

    tier: str
    # The longest wait before the tier is asked again.
    retry_max_s = 2.0

    def __init__(self, *, timeout_s: float) -> None:
        super().__init__()
        self.timeout_s = timeout_s
        # What is wrong, without secrets; empty while the tier is up.
        self.why_down = "not asked yet"
        self._closed = asyncio.Event()
        self._closed.set()
        self._closed_at_s, self._wait_s = -self.retry_max_s, _FIRST_WAIT_S
        self._answered_at_s = -timeout_s

    @property
    def is_down(self) -> bool:
        """Whether calls fail at once now."""
        return not self._closed.is_set()

    @property
    def up(self) -> bool:
        """Whether the tier answered the last time it was asked."""
        return not self.why_down

    async def ready(self) -> None:
        """Return when calls go through."""
        await self._closed.wait()

    def check(self) -> None:
        """Raise TierUnavailable if calls fail at once now."""
        if not self._closed.is_set():
            raise TierUnavailable(self.why_down)

    @abstractmethod
    async def probe(self) -> None:
        """Ask the tier anything. Raise TierUnavailable if it does not answer."""

    def answered(self, *, done: bool = True) -> None:
        """Note an answer; without ``done``, one that refuses."""
        if self._closed.is_set():  # Else the call began before.
            self.why_down = ""
        if done:
            self._answered_at_s = time.monotonic()

    def failed(self, why: str, *, late: bool) -> None:
        """Note an outage. A ``late`` answer is none while others come.

        Then this daemon is slow, or this one answer.
        """
        if late and time.monotonic() - self._answered_at_s < self.timeout_s / 2:
            return
        if not self._closed.is_set():
            return  # A call that began before; the first one has logged it.
        if time.monotonic() - self._closed_at_s > self.retry_max_s:
            self._wait_s = _FIRST_WAIT_S
        # Else it flaps: it answers when it is asked, and nothing more. Keep the waits growing.
        self.why_down = why
        self._closed.clear()
        _log.warning("tier is down", tier=self.tier, detail=why)
        self.begin(self._ask_until_it_answers())

    async def _ask_until_it_answers(self) -> None:
        while True:
            await asyncio.sleep(self._wait_s)
            self._wait_s = min(2 * self._wait_s, self.retry_max_s)
            try:
                await self.probe()
                break
            except TierUnavailable as failure:
                self.why_down = str(failure)
        self._closed_at_s = time.monotonic()
        self._closed.set()
        self.why_down = ""
        _log.info("tier is up again", tier=self.tier)


@dataclass(eq=False)
class Allowance:
    """How much longer a look-up may take than the budgets of the calls that wait for it.

    A tier adds the time for which it is not to blame: to move a large value over a slow line, or
    to wait for this daemon's own work. An artifact may have one of the encodings to ``accept``.
    """

    seconds: float = 0.0
    accept: frozenset[str] = frozenset()

    @contextlib.contextmanager
    def free(self) -> Iterator[None]:
        """Add the time that this context takes."""
        before_s, began_s = self.seconds, time.monotonic()
        self.seconds = math.inf
        try:
            yield
        finally:
            self.seconds = before_s + time.monotonic() - began_s


class WaitBudget:
    """What is left of a call's time-out. For the tasks of one call."""

    def __init__(self, seconds: float = math.inf) -> None:
        self.left_s = seconds

    async def spend_on(self, work: Awaitable[V], allowance: Allowance | None = None) -> V:
        """Return what ``work`` returns, and charge the time that it took.

        ``allowance`` is free. If the budget ends first, cancel ``work`` and raise TierUnavailable.
        """
        task = asyncio.ensure_future(work)
        try:
            await self.wait_for(task, allowance or Allowance())
            return task.result()
        finally:
            task.cancel()
            del task  # A failed task holds its traceback, which holds this frame.

    async def wait_for(self, task: asyncio.Future[Any], more: Allowance) -> None:
        """Do the same for a task of others, which goes on."""
        began_s = time.monotonic()
        try:
            while not task.done():
                left_s = self.left_s + more.seconds - (time.monotonic() - began_s)
                if left_s <= 0:
                    raise TierUnavailable("the tiers took longer than one call may wait for them")
                # Not for ever: the time that is free may end.
                await wait_at_most(task, min(left_s, 0.25))
        finally:
            self.left_s -= max(0.0, time.monotonic() - began_s - more.seconds)
