"""One flight per key: many callers, one piece of work.

The flight is a task of its own and belongs to this object, never to a caller:
whoever waits may be cancelled or time out, and the others, and the work, go on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from wasmkilnd.demand import Demand, Wish

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Seat(Generic[V]):
    """A caller's place in a flight. Whoever has one waits for the flight, at once."""

    joined: bool
    """Whether another caller started the flight."""
    _flight: asyncio.Task[V]
    _leave: Callable[[], None]

    async def wait(self) -> V:
        """Answer what the flight's work answers, or raise what it raises.

        Cancelling a caller ends only its own wait; the last one's leaving drops
        the flight, unless its demand says that it is to be kept.
        """
        try:
            return await asyncio.shield(self._flight)
        finally:
            self._leave()

    def when_over(self, call: Callable[[], None]) -> None:
        """Call ``call`` when the flight has ended, whoever waits for it."""
        self._flight.add_done_callback(lambda _: call())


class SingleFlight(Generic[K, V]):
    """Runs at most one piece of work per key at a time. For one event loop."""

    def __init__(self) -> None:
        self._flights: dict[K, tuple[asyncio.Task[V], Demand]] = {}
        self._dropped: set[asyncio.Task[V]] = set()

    def __len__(self) -> int:
        """How many flights are under way."""
        return len(self._flights)

    def demand(self, key: K) -> Demand | None:
        """Answer who waits for the flight of ``key``, None if there is no flight."""
        flight = self._flights.get(key)
        return flight[1] if flight else None

    def board(
        self, key: K, demand: Demand, work: Callable[[Demand], Coroutine[Any, Any, V]]
    ) -> Seat[V]:
        """Answer a seat in the flight of ``key``, which ``work`` starts if there is none.

        The flight is wanted by those who want what ``demand`` is about, as long as the
        seat is taken.
        """
        joined = key in self._flights
        task, of_flight = self._flights[key] if joined else self._take_off(key, work)
        return Seat(joined, task, of_flight.follow(demand))

    async def run(self, key: K, work: Callable[[], Coroutine[Any, Any, V]]) -> tuple[V, bool]:
        """Answer what ``work`` answers, and whether another caller's flight was joined.

        Such a flight ends only by itself. Raises what ``work`` raises, to every caller.
        """

        async def kept(demand: Demand) -> V:
            return await work()

        seat = self.board(key, Demand.of(Wish()), kept)
        self._flights[key][1].kept = True
        return await seat.wait(), seat.joined

    def _take_off(
        self, key: K, work: Callable[[Demand], Coroutine[Any, Any, V]]
    ) -> tuple[asyncio.Task[V], Demand]:
        demand = Demand(lambda: self._drop(key, task))
        task = asyncio.create_task(work(demand))
        self._flights[key] = task, demand
        # In a callback, so that the key is free again whatever happened, and only after
        # the work's own last step (its cache write): whoever comes later finds either
        # the flight or what it stored.
        task.add_done_callback(lambda done: self._land(key, done))
        return task, demand

    def _drop(self, key: K, flight: asyncio.Task[V]) -> None:
        if flight.done() or flight in self._dropped:
            return
        # The key is free at once: whoever comes now must not board what is ending.
        del self._flights[key]
        self._dropped.add(flight)
        flight.cancel()

    def _land(self, key: K, flight: asyncio.Task[V]) -> None:
        if flight in self._dropped:
            self._dropped.remove(flight)
        else:
            del self._flights[key]
        if not flight.cancelled():
            flight.exception()  # Every caller may be gone: then nobody else looks at it.

    async def settle(self, timeout_s: float | None) -> int:
        """Wait for the flights under way, then cancel the rest; answer how many were cancelled.

        Without ``timeout_s``, wait as long as it takes.
        """
        flights = [task for task, _ in self._flights.values()] + list(self._dropped)
        if not flights:
            return 0
        _, late = await asyncio.wait(flights, timeout=timeout_s)
        for flight in late:
            flight.cancel()
        await asyncio.gather(*late, return_exceptions=True)
        return len(late)
