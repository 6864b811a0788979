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
from collections.abc import Awaitable, Iterator
from typing import TypeVar

from wasmkilnd.errors import TierUnavailable

V = TypeVar("V")


class Allowance:
    """How much longer a look-up may take than the budgets of the calls that wait for it.

    A tier adds the time for which it is not to blame: to move a large value over a slow line, or
    to wait for this daemon's own work.
    """

    def __init__(self) -> None:
        self.seconds = 0.0

    def add(self, seconds: float) -> None:
        """Let every call that waits for the look-up wait ``seconds`` more."""
        self.seconds += seconds

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
        more, began_s = allowance or Allowance(), time.monotonic()
        task = asyncio.ensure_future(work)
        try:
            while not task.done():
                left_s = self.left_s + more.seconds - (time.monotonic() - began_s)
                if left_s <= 0:
                    raise TierUnavailable("Redis took longer than one call may wait for it")
                # Not for ever: the time that is free may end.
                await asyncio.wait((task,), timeout=min(left_s, 0.25))
            return task.result()
        finally:
            task.cancel()
            self.left_s -= max(0.0, time.monotonic() - began_s - more.seconds)
            del task  # A failed task holds its traceback, which holds this frame.
