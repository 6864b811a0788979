"""One flight per key: many callers, one piece of work.

The flight is a task of its own and belongs to this object, never to a caller:
whoever waits may be cancelled or time out, and the others, and the work, go on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class SingleFlight(Generic[K, V]):
    """Runs at most one piece of work per key at a time. For one event loop."""

    def __init__(self) -> None:
        self._flights: dict[K, asyncio.Task[V]] = {}

    def __len__(self) -> int:
        """How many flights are under way."""
        return len(self._flights)

    async def run(self, key: K, work: Callable[[], Coroutine[Any, Any, V]]) -> tuple[V, bool]:
        """Answer what ``work`` answers, and whether another caller's flight was joined.

        Raises what ``work`` raises, to every caller. Cancelling a caller
        cancels nothing but that caller.
        """
        flight = self._flights.get(key)
        joined = flight is not None
        if flight is None:
            flight = asyncio.create_task(work())
            self._flights[key] = flight
            # In a callback, so that the key is free again whatever happened, and
            # only after the work's own last step (its cache write): whoever comes
            # later finds either the flight or what it stored.
            flight.add_done_callback(lambda done: self._land(key, done))
        return await asyncio.shield(flight), joined

    def _land(self, key: K, flight: asyncio.Task[V]) -> None:
        del self._flights[key]
        if not flight.cancelled():
            flight.exception()  # Every caller may be gone: then nobody else looks at it.

    async def settle(self, timeout_s: float | None) -> int:
        """Wait for the flights under way, then cancel the rest; answer how many were cancelled.

        Without ``timeout_s``, wait as long as it takes.
        """
        if not self._flights:
            return 0
        _, late = await asyncio.wait(list(self._flights.values()), timeout=timeout_s)
        for flight in late:
            flight.cancel()
        await asyncio.gather(*late, return_exceptions=True)
        return len(late)
