"""Which connections the HTTP server keeps: few, and none that only takes up a place."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

LIMIT = 128
"""Connections that the HTTP server holds at once."""
IDLE_S = 75.0
"""Longer than Prometheus' usual interval of 15 to 60 s, so that scrapes share a connection."""
_ANSWER_S = 10.0
# A client may take its response for this long before its place goes to another. So at most
# LIMIT requests are answered in this time, where each comes on a connection of its own.
_TAKE_S = 0.25
# A client that asks again sooner than this sends requests without waiting for responses.
_PAUSE_S = 0.005
_RETRY_S = 0.01


@dataclass(eq=False, slots=True)
class _Connection:
    transport: asyncio.Transport
    host: str
    asked_s: float = field(default_factory=time.monotonic)
    """When its last request came."""
    answered_s: float = 0.0
    """When that request was answered."""
    answering: bool = False
    flooding: bool = False
    """Whether its requests come without a pause."""

    def idle_since_s(self) -> float:
        """Return since when the client has nothing to wait for; infinity while it waits."""
        if self.flooding:
            return 0.0
        return math.inf if self.answering else max(self.asked_s, self.answered_s)

    @property
    def closed(self) -> bool:
        """Whether its descriptor is free. A transport that is closing may still hold it."""
        return bool(self.transport.get_extra_info("socket").fileno() < 0)

    @property
    def overdue(self) -> bool:
        """Whether the client reads its response too slowly, or has sent nothing for long."""
        unread = self.transport.get_write_buffer_size() or self.transport.is_closing()
        return time.monotonic() - self.asked_s > (_ANSWER_S if unread else IDLE_S)


class HttpConnections:
    """Holds at most ``limit`` connections; the one idle for longest makes way for another.

    Of several hosts, the one with most connections loses one. A client that sends its next
    request in parts, or does not read responses, counts as idle. For one event loop.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._open: dict[asyncio.BaseTransport, _Connection] = {}

    async def make_room(self) -> None:
        """Wait until there is room for one more; end an idle connection if need be."""
        while True:
            self._forget_closed()
            if len(self._open) < self._limit:
                return
            held = Counter(connection.host for connection in self._open.values())
            idle_before_s = time.monotonic() - _TAKE_S
            idle = [each for each in self._open.values() if each.idle_since_s() <= idle_before_s]
            if idle:
                longest = min(idle, key=lambda each: (-held[each.host], each.idle_since_s()))
                longest.transport.abort()  # the loop closes its descriptor in its next round
                del self._open[longest.transport]
            else:
                await asyncio.sleep(_RETRY_S)

    def add(self, transport: asyncio.Transport, host: str) -> None:
        """Take in a connection on which a request came."""
        self._open[transport] = _Connection(transport, host)

    @contextmanager
    def answering(self, transport: asyncio.BaseTransport | None) -> Iterator[None]:
        """Note that a whole request came on a connection, and is answered inside."""
        connection = self._open.get(transport) if transport else None
        if connection is None:
            yield
            return
        connection.asked_s = time.monotonic()
        connection.flooding = connection.asked_s - connection.answered_s < _PAUSE_S
        connection.answering = True
        try:
            yield
        finally:
            connection.answering, connection.answered_s = False, time.monotonic()

    def end_overdue(self) -> None:
        """End each connection whose client reads too slowly, or is idle for too long."""
        self._forget_closed()
        for connection in self._open.values():
            if connection.overdue:
                connection.transport.abort()

    def _forget_closed(self) -> None:
        for transport, connection in list(self._open.items()):
            if connection.closed:
                del self._open[transport]
