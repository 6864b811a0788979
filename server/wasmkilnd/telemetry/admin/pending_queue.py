"""Connections to the admin server whose first request is not whole yet, in queues with a limit.

When a queue is full, the host with most connections in it loses its oldest.
"""

from __future__ import annotations

import socket
import time
from collections import OrderedDict, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from wasmkilnd.telemetry.admin.tls import TlsSession


@dataclass(eq=False, slots=True)
class Pending:
    """A connection, the host at its other end, and what came on it so far."""

    sock: socket.socket
    host: str
    accepted_s: float = field(default_factory=time.monotonic)
    received: bytearray = field(default_factory=bytearray)
    queue: PendingQueue | None = None
    tls: TlsSession | None = None
    encrypted_bytes: int = 0
    """How much came before the handshake was over."""
    waits: bool = False
    """Whether it waits for its turn to shake hands."""


class PendingQueue:
    """Pending connections in the order in which they came, at most ``limit``."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._count = 0
        self._of_host: dict[str, OrderedDict[Pending, None]] = defaultdict(OrderedDict)

    def __iter__(self) -> Iterator[Pending]:
        for queue in self._of_host.values():
            yield from queue

    def longest_of_the_host_with_most(self) -> Pending | None:
        """Return the connection that makes way for another, None while there is room."""
        if self._count < self._limit:
            return None
        most = max(self._of_host, key=lambda host: len(self._of_host[host]))
        return next(iter(self._of_host[most]))

    def add(self, pending: Pending) -> None:
        """Put a connection at the end."""
        self._of_host[pending.host][pending] = None
        self._count += 1

    def remove(self, pending: Pending) -> None:
        """Take a connection out."""
        del self._of_host[pending.host][pending]
        if not self._of_host[pending.host]:
            del self._of_host[pending.host]
        self._count -= 1

    def oldest(self) -> Pending | None:
        """Return the connection that came first, None if there is none."""
        firsts = [next(iter(queue)) for queue in self._of_host.values()]
        return min(firsts, key=lambda each: each.accepted_s, default=None)
