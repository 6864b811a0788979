"""Work that many calls wait for: one flight for each key, and who waits for it.

And ``FairShare``: how much of what is short, such as memory, one who waits may hold.

A flight is a task of its own that belongs to Flights, not to a caller: a caller that is
cancelled or times out does not stop the other callers. When the last caller leaves, the flight is
cancelled, unless its waiters are ``kept``: its job has begun, or its artifact is being stored.

The task never fails: a failure is a value that it returns, and each caller raises its own copy.
A failed task refers to its traceback, which refers to the task: a cycle that only the garbage
collector frees.

Long work on the event loop is cut into slices (``in_slices``), between which other tasks run.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Coroutine, Hashable, Iterable
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Generic, TypeAlias, TypeVar
from weakref import WeakKeyDictionary

from wasmkilnd.errors import WasmkilnError, forget_frames, server_draining
from wasmkilnd.quota import UNLIMITED, Quota

V = TypeVar("V")
# The work of a flight, which is told who waits for it.
Run: TypeAlias = "Callable[[Waiters], Coroutine[Any, Any, V]]"


class Background:
    """Work that goes on beside calls. For one event loop."""

    def __init__(self) -> None:
        self.tasks: set[asyncio.Task[Any]] = set()

    def begin(self, work: Coroutine[Any, Any, V]) -> asyncio.Task[V]:
        """Do ``work`` in the background, until ``stop``."""
        task = asyncio.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    async def stop(self) -> None:
        """Cancel what is under way; never raise."""
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


@dataclass(frozen=True, slots=True)
class Waiter:
    """One caller's interest in a piece of work.

    - ``caller``: the name under which the caller takes turns; calls with the same name share one
      turn.
    - ``background``: whether the caller only warms the cache: work that a caller waits for goes
      first.
    - ``last``: whether it goes behind all background work too: the daemon's own compiles.
    """

    caller: str = ""
    background: bool = False
    last: bool = False

    @property
    def rank(self) -> int:
        """Return its place: work of a lower rank goes first."""
        return 2 if self.last else int(self.background)


@dataclass(eq=False, slots=True)
class Waiters:
    """All who wait for one piece of work. For one event loop.

    Many callers may wait for the same work. When the last of them leaves, the work is dropped,
    unless it is ``kept``: a job that has begun is finished, and its artifact stored.

    - ``quota``: where the work counts: that of the caller who started it.
    - ``drop``: ends the work.
    - ``waiting``: how many calls of each caller wait.
    """

    quota: Quota = UNLIMITED
    drop: Callable[[], object] = lambda: None
    kept: bool = False
    waiting: Counter[Waiter] = field(default_factory=Counter)

    @classmethod
    def of(cls, waiter: Waiter) -> Waiters:
        """Return the waiters of work that only ``waiter`` waits for, and that ends with it."""
        return cls(waiting=Counter((waiter,)))

    def leave(self, waiter: Waiter) -> None:
        """Remove a call; drop the work if it was the last and the work is not kept."""
        self.waiting -= Counter((waiter,))
        if not self.kept:
            self.release()

    def release(self) -> None:
        """Stop keeping the work: drop it now if no caller waits for it."""
        self.kept = False
        if not self.waiting:
            self.drop()


async def _done(flight: asyncio.Future[Any]) -> None:
    await asyncio.wait((flight,))


@dataclass(frozen=True, slots=True)
class Ticket(Generic[V]):
    """A caller's place in a flight.

    Call ``wait`` once at most, without awaiting anything before. A caller that never does keeps
    its place until the flight ends.

    - ``joined``: whether another caller started the flight.
    """

    joined: bool
    _flight: asyncio.Task[V | Exception]
    _waiters: Waiters
    _waiter: Waiter

    async def wait(self, until: Callable[[asyncio.Future[Any]], Awaitable[object]] = _done) -> V:
        """Return what the flight's work returns, or raise what it raises.

        ``until`` waits for the flight, or gives up by raising. A caller that is cancelled stops
        only its own wait. When the last caller leaves, the flight is dropped unless its waiters
        are ``kept``. Raises SERVER_DRAINING for a flight that was cancelled while this caller
        waited: the daemon ends.
        """
        try:
            await until(self._flight)
        finally:
            self._waiters.leave(self._waiter)
        result = _result(self._flight)
        if isinstance(result, Exception):
            raise result.again() if isinstance(result, WasmkilnError) else result
        return result

    def on_end(self, call: Callable[[V | Exception], object]) -> None:
        """Hand ``call`` the result or the failure when the flight ends, whoever still waits."""
        self._flight.add_done_callback(lambda flight: call(_result(flight)))


class FairShare:
    """Shares a limit among callers: each may hold as much as is left free.

    One caller alone gets half of the limit, two get a third each, and there is always room
    for a new caller: dynamic queue length thresholds, as in switches with a shared memory
    (Choudhury and Hahne, 1998). A caller that holds nothing is forgotten.
    """

    def __init__(self, limit: Callable[[], int]) -> None:
        """``limit`` is read at each use; while more than it is held, no caller has room."""
        self._limit = limit
        self.total = 0
        self.held = defaultdict[str, int](int)

    @property
    def free(self) -> int:
        """How much is left; negative after the limit was lowered below the total."""
        return self._limit() - self.total

    def room(self, caller: str) -> int:
        """Return how much more ``caller`` may hold; negative if it holds too much."""
        return self._limit() - self.total - self.held.get(caller, 0)

    def fits(self, caller: str, amount: int) -> bool:
        """Return whether ``caller`` with ``amount`` more would hold no more than is left free."""
        return 2 * amount <= self.room(caller)

    def add(self, caller: str, amount: int) -> None:
        """Add ``amount`` to what ``caller`` holds; a negative amount gives back."""
        self.total += amount
        self.held[caller] += amount
        if not self.held[caller]:
            del self.held[caller]


class Flights:
    """Runs at most one piece of work per key at a time. For one event loop."""

    def __init__(self) -> None:
        self._flights: dict[Hashable, tuple[asyncio.Task[Any], Waiters]] = {}
        self._background = Background()

    def __len__(self) -> int:
        """Return how many flights are under way."""
        return len(self._flights)

    def __contains__(self, key: Hashable) -> bool:
        """Return whether the flight of ``key`` is under way."""
        return key in self._flights

    def join(
        self, key: Hashable, waiter: Waiter, work: Run[V], quota: Quota = UNLIMITED
    ) -> Ticket[V]:
        """Join the flight of ``key``; start it with ``work`` if there is none.

        ``waiter`` waits for it until the ticket's ``wait`` ends. A flight that this
        starts counts in ``quota``.
        """
        if not (joined := key in self._flights):
            # At once: a caller that comes now must not join a flight that is ending.
            waiters = Waiters(quota, lambda: self._free(key, task) and task.cancel())
            task = self._background.begin(_outcome(work(waiters)))
            self._flights[key] = task, waiters
            # A callback frees the key whatever happens, and only after the work's last step (its
            # write to the cache): a later caller finds either the flight or what it stored.
            task.add_done_callback(lambda done: self._free(key, done))
        task, waiters = self._flights[key]
        waiters.waiting[waiter] += 1
        return Ticket(joined, task, waiters, waiter)

    @property
    def waiters(self) -> list[Waiters]:
        """Who waits for each flight."""
        return [waiters for _, waiters in self._flights.values()]

    def release(self, key: Hashable) -> None:
        """End the flight of ``key`` if no caller waits for it, even if its job has begun."""
        if key in self._flights:
            self._flights[key][1].release()

    async def settle(self, timeout_s: float | None = None) -> int:
        """Wait for all flights, then cancel those that are left; return how many were cancelled.

        Without ``timeout_s``, wait as long as it takes.
        """
        if not self._background.tasks:
            return 0
        _, late = await asyncio.wait(self._background.tasks, timeout=timeout_s)
        for flight in late:
            flight.cancel()
        await asyncio.gather(*late, return_exceptions=True)
        return len(late)

    def _free(self, key: Hashable, flight: asyncio.Task[Any]) -> bool:
        """Free the key; return False if it was free, or if another flight has it by now."""
        if key not in self._flights or self._flights[key][0] is not flight:
            return False
        del self._flights[key]
        return True


async def _outcome(work: Coroutine[Any, Any, V]) -> V | Exception:
    """Return what ``work`` returns, or how it failed. Raises CancelledError only."""
    try:
        return await work
    except asyncio.CancelledError:
        pass  # Raise a fresh CancelledError below, without this one's traceback.
    except Exception as failure:
        if isinstance(failure, WasmkilnError):  # Of a defect, keep the traceback for the log.
            forget_frames(failure)
        return failure
    raise asyncio.CancelledError


def _result(flight: asyncio.Task[V | Exception]) -> V | Exception:
    return server_draining() if flight.cancelled() else flight.result()


# How long one slice holds the loop: a caller with little work waits for a few slices.
SLICE_S = 0.002

_turns: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = WeakKeyDictionary()


async def in_slices(steps: Iterable[V]) -> list[V]:
    """Return a list of ``steps``, each of which is work.

    The first step runs at once, since most work has no second. After that the loop runs one
    slice per round, for one piece of work after the other: however many pieces are under way,
    no other task waits for more than one slice.
    """
    rest = iter(steps)
    made = list(islice(rest, 1))
    turns = _turns.setdefault(asyncio.get_running_loop(), asyncio.Lock())
    while made:
        async with turns:
            until = time.perf_counter() + SLICE_S
            for step in rest:
                made.append(step)
                if time.perf_counter() >= until:
                    break
            else:
                break
            await asyncio.sleep(0)
    return made
