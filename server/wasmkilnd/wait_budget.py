"""How long one call waits for the tiers below memory: one time-out for all requests together.

A call looks for an artifact, perhaps for the module and for strikes against it, and then for a
lease. Each of these requests has a time-out, but a server that answers each just in time would
cost the call their sum, and no circuit breaker would ever open. So each call has one budget, and
passes it on with every request.
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
    """When a look-up began, and how much longer it may take than its callers' budgets allow.

    A tier adds the time for which it is not to blame: to move a large value over a slow line, or
    to wait for this daemon's own work.
    """

    def __init__(self) -> None:
        self.began_s = time.monotonic()
        self._seconds = 0.0
        self._free_since_s = math.inf

    @property
    def seconds(self) -> float:
        """How much longer it may take, as of now."""
        return self._seconds + max(0.0, time.monotonic() - self._free_since_s)

    def add(self, seconds: float) -> None:
        """Let every call that waits for the look-up wait ``seconds`` more."""
        self._seconds += seconds

    @contextlib.contextmanager
    def free(self) -> Iterator[None]:
        """Add the time that this context takes."""
        self._free_since_s = time.monotonic()
        try:
            yield
        finally:
            self._seconds, self._free_since_s = self.seconds, math.inf


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

    async def spend_on(
        self,
        work: Coroutine[Any, Any, V],
        allowance: Allowance | None = None,
        *,
        charged: bool = True,
    ) -> V:
        """Return what ``work`` returns, and charge the time that it took.

        Without ``charged``, charge for failures only. If the budget ends first, cancel
        ``work`` and raise TierUnavailable.

        ``allowance`` is that of a look-up which calls share. Every call pays from the moment at
        which the look-up began: otherwise a call that came late to one that hangs would have time
        left for its next request, and would hold up the calls that waited longer and then share
        that request.
        """
        began_s = allowance.began_s if allowance else self._clock()

        def more_s() -> float:
            return allowance.seconds if allowance else 0.0

        task = asyncio.create_task(work)
        try:
            while not task.done():
                left_s = self._left_s + more_s() - (self._clock() - began_s)
                if left_s <= 0:
                    raise TierUnavailable("Redis took longer than one call may wait for it")
                await asyncio.wait((task,), timeout=None if math.isinf(left_s) else left_s)
            return task.result()
        except TierUnavailable:
            # A call that waited in vain must not wait for a second time-out.
            charged = True
            raise
        finally:
            task.cancel()
            if charged:
                self._left_s -= max(0.0, self._clock() - began_s - more_s())
            del task  # A failed task holds its traceback, which holds this frame.
