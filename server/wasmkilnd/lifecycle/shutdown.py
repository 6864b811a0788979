"""When the daemon ends, and how long calls in progress may still take."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Coroutine
from typing import Any


class Shutdown:
    """The end of a daemon, asked for by a signal or by Drain; its deadline only comes nearer.

    For one event loop, which has to run already.
    """

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.overdue = asyncio.Event()
        """Set when the grace for calls in progress is over."""
        self.hurried = asyncio.Event()
        """Set when the daemon shall wait for nothing any more."""
        self._loop = asyncio.get_running_loop()
        self._deadline = math.inf

    @property
    def left_s(self) -> float:
        """Seconds until the daemon gives up calls in progress; infinite before ``ask``."""
        return max(0.0, self._deadline - self._loop.time())

    def ask(self, grace_s: float) -> None:
        """End the daemon, and give calls in progress ``grace_s`` at most.

        Of several deadlines the earliest counts.
        """
        self.asked.set()
        deadline = self._loop.time() + grace_s
        if deadline < self._deadline:
            self._deadline = deadline
            self._loop.call_at(deadline, self.overdue.set)

    def hurry(self) -> None:
        """End the daemon without waiting for anything."""
        self.ask(0.0)
        self.overdue.set()
        self.hurried.set()


async def until(event: asyncio.Event, work: Coroutine[Any, Any, Any]) -> bool:
    """Do ``work`` until ``event`` happens; return whether the work was finished by then.

    Raises what ``work`` raises.
    """
    working = asyncio.create_task(work)
    waiting = asyncio.create_task(event.wait())
    try:
        await asyncio.wait((working, waiting), return_when=asyncio.FIRST_COMPLETED)
        done = working.done()
    finally:
        for task in (working, waiting):
            task.cancel()
        await asyncio.gather(working, waiting, return_exceptions=True)
    if done:
        await working
    return done
