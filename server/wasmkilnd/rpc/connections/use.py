"""What the daemon does for each connection: nothing, nothing yet, or work."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from types import TracebackType

from wasmkilnd import errors
from wasmkilnd.rpc.connections import sockets
from wasmkilnd.rpc.connections.sockets import Address


class Use(IntEnum):
    """How much a connection would lose if it were closed."""

    IDLE = 0
    """It has no call."""
    WAITING = 1
    """Its calls wait for something to happen, as a watch does, or have not arrived whole."""
    WORKING = 2
    """The daemon works for one of its calls, or answers it."""


@dataclass(frozen=True, slots=True)
class Used:
    """How a connection is used, and since when: of idle ones 0 where that is not known."""

    use: Use
    since_s: float


class Call:
    """A call under way, as a context. It ends in COMPILE_QUEUE_FULL if it has to make way."""

    __slots__ = ("_calls", "_ended", "_task", "_told", "peer", "since_s", "use")

    def __init__(
        self, peer: str, calls: dict[Call, None], ended: ConnectionUse, task: asyncio.Task[None]
    ) -> None:
        self.peer = peer
        self.use = Use.WAITING
        self.since_s = time.monotonic()
        self._calls = calls
        self._ended = ended
        self._task: asyncio.Task[None] | None = task
        self._told = False

    def works(self) -> None:
        """Note that the request is there, and that the daemon works for it."""
        self.use = Use.WORKING
        self.since_s = time.monotonic()

    def make_way(self) -> None:
        """End it, and tell its caller why."""
        if self._task and not self._told:
            self._told = True
            self._task.cancel()

    def __enter__(self) -> Call:
        self._calls[self] = None
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        del self._calls[self]
        self._ended.note_end(self.peer)
        task, self._task = self._task, None
        if task and self._told and kind is not None and issubclass(kind, asyncio.CancelledError):
            task.uncancel()
            raise errors.too_many_connections() from None


class ConnectionUse:
    """Knows the calls of each connection. For one event loop."""

    def __init__(self, remembered: int) -> None:
        """Remember of so many connections since when they are idle."""
        self._remembered = remembered
        self._calls: dict[Call, None] = {}
        # Of the oldest, nothing is known any more: so they count as idle for longest, which
        # of those that are still there is true.
        self._ended: OrderedDict[str, float] = OrderedDict()

    def call(self, peer: str) -> Call:
        """Return a call of ``peer``, which the current task answers."""
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("calls are answered in tasks")
        return Call(peer, self._calls, self, task)

    def note_end(self, peer: str) -> None:
        """Note that a call of ``peer`` ended just now."""
        self._ended[peer] = time.monotonic()
        self._ended.move_to_end(peer)
        if len(self._ended) > self._remembered:
            self._ended.popitem(last=False)

    async def of(self, peers: Iterable[Address]) -> dict[Address, Used]:
        """Return how ``peers`` are used now."""
        calls = [(call.peer, call.use, call.since_s) for call in self._calls]
        return await asyncio.to_thread(_used, peers, calls, dict(self._ended))

    def make_way(self, peers: frozenset[Address]) -> None:
        """End the calls of ``peers``, and tell their callers why."""
        for call in list(self._calls):
            if sockets.parse(call.peer) in peers:
                call.make_way()


def _used(
    peers: Iterable[Address],
    calls: Iterable[tuple[str, Use, float]],
    ended: Mapping[str, float],
) -> dict[Address, Used]:
    idle = {sockets.parse(peer): since_s for peer, since_s in ended.items()}
    used = {peer: Used(Use.IDLE, idle.get(peer, 0.0)) for peer in peers}
    for name, use, since_s in calls:
        peer = sockets.parse(name)
        if peer is None or (before := used.get(peer)) is None:
            continue
        # Of several calls the one that would be missed most, and of equals the last.
        if (use, since_s) > (before.use, before.since_s if before.use else 0.0):
            used[peer] = Used(use, since_s)
    return used
