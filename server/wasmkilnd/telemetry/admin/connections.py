"""Which connections the admin server keeps: few, and none that only takes up a place."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

LIMIT = 128
"""Connections on which requests are answered, at once."""
IDLE_S = 75.0
"""Longer than Prometheus' usual interval of 15 to 60 s, so that scrapes share a connection."""
_ANSWER_S = 10.0
# What everybody has to take an answer before somebody else gets the place. So no more than
# LIMIT requests are answered in this time, where each comes on a connection of its own.
_TAKE_S = 0.25
# Who asks again sooner than this sends requests without waiting for answers.
_PAUSE_S = 0.005
_SOON_S = 0.01


@dataclass(eq=False, slots=True)
class _Connection:
    transport: asyncio.Transport
    host: str
    asked_s: float = field(default_factory=time.monotonic)
    """When its last request came."""
    answered_s: float = 0.0
    """When it was answered."""
    answering: bool = False
    hurried: bool = False
    """Whether requests come on it without a pause."""

    def idle_since_s(self) -> float:
        """Return since when it has nothing to wait for; infinity while it has."""
        if self.hurried:
            return 0.0
        return math.inf if self.answering else max(self.asked_s, self.answered_s)

    @property
    def closed(self) -> bool:
        """Whether its descriptor is free. A transport that is closing may still hold it."""
        return bool(self.transport.get_extra_info("socket").fileno() < 0)

    @property
    def overdue(self) -> bool:
        """Whether it takes its answer too slowly, or has had nothing to say for long."""
        unread = self.transport.get_write_buffer_size() or self.transport.is_closing()
        return time.monotonic() - self.asked_s > (_ANSWER_S if unread else IDLE_S)


class HttpConnections:
    """Holds at most ``limit``: the one that was answered the longest ago makes way for another.

    Only whole requests count: whoever sends the next by halves, or does not read answers, is
    idle. Of several hosts the one with most connections gives one up. For one event loop.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._open: dict[asyncio.BaseTransport, _Connection] = {}

    async def make_room(self) -> None:
        """Wait until there is room for one more, ending an idle connection if need be."""
        while True:
            self._forget_closed()
            if len(self._open) < self._limit:
                return
            held = Counter(connection.host for connection in self._open.values())
            idle_before_s = time.monotonic() - _TAKE_S
            idle = [one for one in self._open.values() if one.idle_since_s() <= idle_before_s]
            if idle:
                longest = min(idle, key=lambda one: (-held[one.host], one.idle_since_s()))
                longest.transport.abort()  # The loop closes its descriptor in its next round.
                del self._open[longest.transport]
            else:
                await asyncio.sleep(_SOON_S)

    def add(self, transport: asyncio.Transport, host: str) -> None:
        """Take in a connection on which a request came."""
        self._open[transport] = _Connection(transport, host)

    @contextmanager
    def answering(self, transport: asyncio.BaseTransport | None) -> Iterator[None]:
        """Note that a whole request came from a connection, and is answered here."""
        connection = self._open.get(transport) if transport else None
        if connection is None:
            yield
            return
        connection.asked_s = time.monotonic()
        connection.hurried = connection.asked_s - connection.answered_s < _PAUSE_S
        connection.answering = True
        try:
            yield
        finally:
            connection.answering, connection.answered_s = False, time.monotonic()

    def end_overdue(self) -> None:
        """End each connection that takes its answer too slowly, or idles for too long."""
        self._forget_closed()
        for connection in self._open.values():
            if connection.overdue:
                connection.transport.abort()

    def _forget_closed(self) -> None:
        for transport, connection in list(self._open.items()):
            if connection.closed:
                del self._open[transport]
