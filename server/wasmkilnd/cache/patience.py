"""How long one call waits for the shared tier: one time-out, for all that it asks together.

A call looks for an artifact, perhaps for the module, and then for its turn. Each of these
has a time-out of its own, but a server that answers each just in time would cost the call
their sum, and no breaker would ever open.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from typing import Any, TypeVar

from wasmkilnd.errors import TierUnavailable

V = TypeVar("V")

_of_this_call: ContextVar[Patience | None] = ContextVar("patience", default=None)


class Patience:
    """What is left of a call's time-out. For the tasks of one call."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._left_s = seconds
        self._clock = clock

    @classmethod
    def of_this_call(cls, seconds: float) -> Patience:
        """Answer that of the call in whose context this runs; a call begins with ``seconds``.

        Each call runs in a context of its own, which the tasks that it starts inherit.
        """
        patience = _of_this_call.get()
        if patience is None:
            patience = cls(seconds)
            _of_this_call.set(patience)
        return patience

    @property
    def spent(self) -> bool:
        """Whether nothing is left."""
        return self._left_s <= 0

    def charge(self, seconds: float) -> None:
        """Take ``seconds`` off what is left."""
        self._left_s -= seconds

    async def spend_on(self, work: Coroutine[Any, Any, V], *, charged: bool = True) -> V:
        """Answer what ``work`` answers, and take the time that it took off what is left.

        Without ``charged`` nothing is taken off for an answer. Raises TierUnavailable when
        patience ends first; ``work`` is cancelled then.
        """
        task = asyncio.create_task(work)
        try:
            return await self._wait(task, self._clock(), charged=charged)
        finally:
            task.cancel()
            del task  # One that failed holds its traceback, and that this frame.

    async def share(self, task: asyncio.Task[V], began_s: float, more_s: Callable[[], float]) -> V:
        """As spend_on, for a task that others wait for too: it goes on.

        All pay for it from when it began: who comes late to one that hangs would else have a
        time-out left for what comes next, and hold up those who waited all along and then
        share that too. ``more_s`` answers how long it may take on top, free of charge; that
        may grow meanwhile.
        """
        return await self._wait(task, began_s, more_s)

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
