"""One flight per key: many callers, one piece of work.

The flight is a task of its own and belongs to this object, never to a caller:
whoever waits may be cancelled or time out, and the others, and the work, go on.

A flight's task never fails: how the work failed is a value, and each caller raises its own copy.
A failed task would keep the frames that it went through, and these the task.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from wasmkilnd.errors import WasmkilnError, forget_frames
from wasmkilnd.waiters import Waiters

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Failed:
    """How a flight's work failed."""

    failure: Exception


@dataclass(frozen=True, slots=True)
class FlightTicket(Generic[V]):
    """A caller's place in a flight. Whoever has one waits for the flight, at once."""

    joined: bool
    """Whether another caller started the flight."""
    _flight: asyncio.Task[V | Failed]
    _leave: Callable[[], None]

    async def wait(self) -> V:
        """Return what the flight's work answers, or raise what it raises.

        Cancelling a caller ends only its own wait; the last one's leaving drops
        the flight, unless its waiters says that it is to be kept.
        """
        try:
            landed = await asyncio.shield(self._flight)
        finally:
            self._leave()
        if not isinstance(landed, Failed):
            return landed
        if isinstance(landed.failure, WasmkilnError):
            raise landed.failure.again()
        raise landed.failure

    def on_end(self, call: Callable[[], None]) -> None:
        """Call ``call`` when the flight has ended, whoever waits for it."""
        self._flight.add_done_callback(lambda _: call())


class SingleFlight(Generic[K, V]):
    """Runs at most one piece of work per key at a time. For one event loop."""

    def __init__(self) -> None:
        self._flights: dict[K, tuple[asyncio.Task[V | Failed], Waiters]] = {}
        self._dropped: set[asyncio.Task[V | Failed]] = set()

    def __len__(self) -> int:
        """How many flights are under way."""
        return len(self._flights)

    def waiters(self, key: K) -> Waiters | None:
        """Return who waits for the flight of ``key``, None if there is no flight."""
        flight = self._flights.get(key)
        return flight[1] if flight else None

    def join(
        self, key: K, waiters: Waiters, work: Callable[[Waiters], Coroutine[Any, Any, V]]
    ) -> FlightTicket[V]:
        """Return a seat in the flight of ``key``, which ``work`` starts if there is none.

        The flight is wanted by those who want what ``waiters`` is about, as long as the
        seat is taken.
        """
        joined = key in self._flights
        task, of_flight = self._flights[key] if joined else self._start(key, work)
        return FlightTicket(joined, task, of_flight.follow(waiters))

    def _start(
        self, key: K, work: Callable[[Waiters], Coroutine[Any, Any, V]]
    ) -> tuple[asyncio.Task[V | Failed], Waiters]:
        waiters = Waiters(lambda: self._drop(key, task))
        task = asyncio.create_task(_outcome(work(waiters)))
        self._flights[key] = task, waiters
        # In a callback, so that the key is free again whatever happened, and only after
        # the work's own last step (its cache write): whoever comes later finds either
        # the flight or what it stored.
        task.add_done_callback(lambda done: self._ended(key, done))
        return task, waiters

    def _drop(self, key: K, flight: asyncio.Task[V | Failed]) -> None:
        if flight.done() or flight in self._dropped:
            return
        # The key is free at once: whoever comes now must not board what is ending.
        del self._flights[key]
        self._dropped.add(flight)
        flight.cancel()

    def _ended(self, key: K, flight: asyncio.Task[V | Failed]) -> None:
        if flight in self._dropped:
            self._dropped.remove(flight)
        else:
            del self._flights[key]

    async def settle(self, timeout_s: float | None) -> int:
        """Wait for the flights under way, then cancel the rest; return how many were cancelled.

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


async def _outcome(work: Coroutine[Any, Any, V]) -> V | Failed:
    """Return what ``work`` returns, or how it failed. Raises CancelledError only."""
    try:
        return await work
    except asyncio.CancelledError:
        pass  # What is raised below holds none of the frames that this one went through.
    except WasmkilnError as failure:
        forget_frames(failure)
        return Failed(failure)
    except Exception as defect:
        return Failed(defect)  # With its frames, which the log is to show.
    raise asyncio.CancelledError
