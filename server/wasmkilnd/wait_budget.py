"""How long one call waits for the tiers below memory: one time-out for all requests together.

A call looks for an artifact, perhaps for the module and for strikes against it, and then for a
lease. Each of these requests has a time-out, but a server that answers each just in time would
cost the call their sum, and no circuit breaker would ever open. So each call has one budget, and
passes it on with every request. Calls that look for the same entry share one request, and each
waits for it as long as its own budget lasts.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Awaitable, Callable, Coroutine, Hashable, Iterator
from typing import Any, Generic, TypeVar

from wasmkilnd.errors import TierUnavailable

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Allowance:
    """When a look-up began, and how much longer it may take than its callers' budgets allow.

    A tier adds the time for which it is not to blame: to move a large value over a slow line, or
    to wait for this daemon's own work.
    """

    def __init__(self) -> None:
        self.began_s = time.monotonic()
        self._seconds = 0.0
        self._since_s = 0.0
        self._is_free: Callable[[], bool] = lambda: False

    @property
    def seconds(self) -> float:
        """How much longer it may take, as of now."""
        if self._is_free():
            return self._seconds + time.monotonic() - self._since_s
        return self._seconds

    def add(self, seconds: float) -> None:
        """Let every call that waits for the look-up wait ``seconds`` more."""
        self._seconds += seconds

    @contextlib.contextmanager
    def while_free(self, is_free: Callable[[], bool]) -> Iterator[None]:
        """Add the time that this context takes, unless ``is_free`` returns False by its end."""
        self._since_s, self._is_free = time.monotonic(), is_free
        try:
            yield
        finally:
            self._seconds, self._is_free = self.seconds, lambda: False


class WaitBudget:
    """What is left of a call's time-out. For the tasks of one call."""

    def __init__(
        self, seconds: float = math.inf, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._left_s = seconds
        self._clock = clock

    @property
    def spent(self) -> bool:
        """Whether nothing is left."""
        return self._left_s <= 0

    def charge(self, seconds: float) -> None:
        """Subtract ``seconds`` from what is left."""
        self._left_s -= seconds

    async def spend_on(self, work: Coroutine[Any, Any, V], *, charged: bool = True) -> V:
        """Return what ``work`` returns, and charge the time that it took.

        Without ``charged``, charge for failures only. If the budget ends first, cancel
        ``work`` and raise TierUnavailable.
        """
        task = asyncio.create_task(work)
        try:
            return await self._wait(task, self._clock(), charged=charged)
        finally:
            task.cancel()
            del task  # A failed task holds its traceback, which holds this frame.

    async def share(self, task: asyncio.Task[V], allowance: Allowance) -> V:
        """Do what spend_on does for a task that other calls share; never cancel it.

        Every call pays from the moment at which the task began. Otherwise a call that came late
        to a task that hangs would have time left for its next request, and would hold up the
        calls that waited longer and then share that request. The time that ``allowance`` adds,
        now or later, is not charged.
        """
        return await self._wait(task, allowance.began_s, lambda: allowance.seconds)

    async def _wait(
        self,
        task: asyncio.Task[V],
        began_s: float,
        more_s: Callable[[], float] = lambda: 0.0,
        *,
        charged: bool = True,
    ) -> V:
        try:
            while not task.done():
                left_s = self._left_s + more_s() - (self._clock() - began_s)
                if left_s <= 0:
                    raise TierUnavailable("Redis took longer than one call may wait for it")
                await asyncio.wait((task,), timeout=left_s)
            return task.result()
        except TierUnavailable:
            # A call that waited in vain must not wait for a second time-out.
            charged = True
            raise
        finally:
            if charged:
                self._left_s -= max(0.0, self._clock() - began_s - more_s())
            del task  # As above.


class SharedLookups(Generic[K, V]):
    """Makes one look-up for all calls that want the same entry at the same time.

    A hundred callers of one artifact fetch its 40 MB once, not a hundred times. A call whose
    budget ends stops waiting; the look-up goes on for the others. For one event loop.
    """

    def __init__(self) -> None:
        self._under_way: dict[K, tuple[asyncio.Task[V | None], Allowance]] = {}

    async def get(
        self, key: K, look_up: Callable[[Allowance], Awaitable[V | None]], budget: WaitBudget
    ) -> V | None:
        """Return what ``look_up`` returns; None if it fails or ``budget`` ends first.

        ``look_up`` gets the allowance to which it adds time that no call is charged for.
        """
        if budget.spent:
            return None
        if key not in self._under_way:
            allowance = Allowance()
            task = asyncio.create_task(self._run(key, look_up, allowance))
            self._under_way[key] = task, allowance
        task, allowance = self._under_way[key]
        try:
            return await budget.share(task, allowance)
        except TierUnavailable:
            return None

    async def _run(
        self, key: K, look_up: Callable[[Allowance], Awaitable[V | None]], allowance: Allowance
    ) -> V | None:
        try:
            return await look_up(allowance)
        except TierUnavailable:
            return None
        finally:
            del self._under_way[key]
