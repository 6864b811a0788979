"""One flight per key: many callers share one piece of work.

A flight is a task of its own that belongs to Flights, not to a caller: a caller that is
cancelled or times out does not stop the other callers. When the last caller leaves, the flight is
cancelled, unless its waiters are ``kept``: its job has begun, or its artifact is being stored.

The task never fails: a failure is a value that it returns, and each caller raises its own copy.
A failed task refers to its traceback, which refers to the task: a cycle that only the garbage
collector frees.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from wasmkilnd.account import FREE, Bill
from wasmkilnd.errors import WasmkilnError, forget_frames
from wasmkilnd.waiters import Waiter, Waiters

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Failed:
    """The result of a flight whose work failed."""

    failure: Exception


@dataclass(frozen=True, slots=True)
class FlightTicket(Generic[V]):
    """A caller's place in a flight.

    Call ``wait`` exactly once, without awaiting anything before.
    """

    joined: bool
    """Whether another caller started the flight."""
    _flight: asyncio.Task[V | Failed]
    _waiters: Waiters
    _waiter: Waiter

    async def wait(self) -> V:
        """Return what the flight's work returns, or raise what it raises.

        A caller that is cancelled stops only its own wait. When the last caller leaves, the
        flight is dropped unless its waiters are ``kept``.
        """
        try:
            result = await asyncio.shield(self._flight)
        finally:
            self._waiters.leave(self._waiter)
        if not isinstance(result, Failed):
            return result
        if isinstance(result.failure, WasmkilnError):
            raise result.failure.again()
        raise result.failure

    def on_end(self, call: Callable[[bool], None]) -> None:
        """Tell ``call`` whether the work was done, when the flight ends, whoever still waits."""
        self._flight.add_done_callback(
            lambda ended: call(not (ended.cancelled() or isinstance(ended.result(), Failed)))
        )


class Flights(Generic[K, V]):
    """Runs at most one piece of work per key at a time. For one event loop."""

    def __init__(self) -> None:
        self._flights: dict[K, tuple[asyncio.Task[V | Failed], Waiters]] = {}
        self._tasks: set[asyncio.Task[V | Failed]] = set()

    def __len__(self) -> int:
        """Return how many flights are under way."""
        return len(self._flights)

    def __contains__(self, key: K) -> bool:
        """Return whether the flight of ``key`` is under way."""
        return key in self._flights

    def join(
        self,
        key: K,
        waiter: Waiter,
        work: Callable[[Waiters], Coroutine[Any, Any, V]],
        bill: Bill = FREE,
    ) -> FlightTicket[V]:
        """Join the flight of ``key``; start it with ``work`` if there is none.

        ``waiter`` waits for it until the ticket's ``wait`` ends. ``bill`` pays for a flight that
        this starts.
        """
        joined = key in self._flights
        task, waiters = self._flights[key] if joined else self._start(key, work, bill)
        waiters.waiting[waiter] += 1
        return FlightTicket(joined, task, waiters, waiter)

    def release(self, key: K) -> None:
        """End the flight of ``key`` if no caller waits for it, even if its job has begun."""
        if key in self._flights:
            self._flights[key][1].release()

    def _start(
        self, key: K, work: Callable[[Waiters], Coroutine[Any, Any, V]], bill: Bill
    ) -> tuple[asyncio.Task[V | Failed], Waiters]:
        waiters = Waiters(bill, lambda: self._drop(key, task))
        task = asyncio.create_task(_outcome(work(waiters)))
        self._flights[key] = task, waiters
        self._tasks.add(task)
        # A callback frees the key whatever happens, and only after the work's last step (its
        # write to the cache): a later caller finds either the flight or what it stored.
        task.add_done_callback(lambda done: self._free(key, done))
        task.add_done_callback(self._tasks.discard)
        return task, waiters

    def _free(self, key: K, flight: asyncio.Task[V | Failed]) -> bool:
        """Free the key; return False if it was free, or if another flight has it by now."""
        if key not in self._flights or self._flights[key][0] is not flight:
            return False
        del self._flights[key]
        return True

    def _drop(self, key: K, flight: asyncio.Task[V | Failed]) -> None:
        # At once: a caller that comes now must not join a flight that is ending.
        if self._free(key, flight):
            flight.cancel()

    async def settle(self, timeout_s: float | None) -> int:
        """Wait for all flights, then cancel those that are left; return how many were cancelled.

        Without ``timeout_s``, wait as long as it takes.
        """
        if not self._tasks:
            return 0
        _, late = await asyncio.wait(self._tasks, timeout=timeout_s)
        for flight in late:
            flight.cancel()
        await asyncio.gather(*late, return_exceptions=True)
        return len(late)


async def _outcome(work: Coroutine[Any, Any, V]) -> V | Failed:
    """Return what ``work`` returns, or how it failed. Raises CancelledError only."""
    try:
        return await work
    except asyncio.CancelledError:
        pass  # Raise a fresh CancelledError below, without this one's traceback.
    except WasmkilnError as failure:
        forget_frames(failure)
        return Failed(failure)
    except Exception as defect:
        return Failed(defect)  # Keep its traceback for the log.
    raise asyncio.CancelledError
