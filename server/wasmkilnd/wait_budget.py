"""How long one call waits for the shared tier: one time-out, for all that it asks together.

A call looks for an artifact, perhaps for the module, for strikes against it, and then for a
lease. Each of these has a time-out of its own, but a server that answers each just in time would
cost the call their sum, and no breaker would ever open. So each call has one budget, and passes
it to whatever it asks.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, TypeVar

from wasmkilnd.errors import TierUnavailable

V = TypeVar("V")


class Allowance:
    """When a look-up began, and what it may take on top of its callers' budgets.

    For what is no illness of the tier: the bytes of a value on a slow line, and waiting for
    what is this daemon's own.
    """

    def __init__(self) -> None:
        self.began_s = time.monotonic()
        self._seconds = 0.0
        self._since_s = 0.0
        self._is_free: Callable[[], bool] = lambda: False

    @property
    def seconds(self) -> float:
        """How long it may take on top, by now."""
        if self._is_free():
            return self._seconds + time.monotonic() - self._since_s
        return self._seconds

    def add(self, seconds: float) -> None:
        """Let whoever waits for the look-up wait ``seconds`` more."""
        self._seconds += seconds

    @contextlib.contextmanager
    def while_free(self, is_free: Callable[[], bool]) -> Iterator[None]:
        """Let them wait as long as this context lasts, unless ``is_free`` says no by its end."""
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
        """Take ``seconds`` off what is left."""
        self._left_s -= seconds

    async def spend_on(self, work: Coroutine[Any, Any, V], *, charged: bool = True) -> V:
        """Return what ``work`` answers, and take the time that it took off what is left.

        Without ``charged`` nothing is taken off for an answer. Raises TierUnavailable when
        the budget ends first; ``work`` is cancelled then.
        """
        task = asyncio.create_task(work)
        try:
            return await self._wait(task, self._clock(), charged=charged)
        finally:
            task.cancel()
            del task  # One that failed holds its traceback, and that this frame.

    async def share(self, task: asyncio.Task[V], allowance: Allowance) -> V:
        """As spend_on, for a task that others wait for too: it goes on.

        All pay for it from when it began: who comes late to one that hangs would else have a
        time-out left for what comes next, and hold up those who waited all along and then
        share that too. What ``allowance`` gives on top is free of charge; it may grow meanwhile.
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
                    raise TierUnavailable("Redis took longer than one call waits for it")
                await asyncio.wait((task,), timeout=left_s)
            return task.result()
        except TierUnavailable:
            # Who waited in vain does not wait again: it would be for a second time-out.
            charged = True
            raise
        finally:
            if charged:
                self._left_s -= max(0.0, self._clock() - began_s - more_s())
            del task  # As above.
