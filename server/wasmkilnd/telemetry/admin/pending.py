"""Connections to the admin server before it reads them: their first request is not whole yet.

Such a connection costs a descriptor and a few KiB, and the HTTP server behind it nothing.
"""

from __future__ import annotations

import asyncio
import re
import socket
import time
from collections import OrderedDict, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

INCOMPLETE_LIMIT = 256
"""Connections that are sending their request. With fewer, a flood would push honest ones out."""
COMPLETE_LIMIT = 128
"""Connections beside them that have sent one, and wait for room in the HTTP server."""
_REQUEST_S = 10.0
_REQUEST_BYTES = 8 * 1024
# A line of HTTP/1, then others until an empty one. Anything else never becomes a request.
_REQUEST = re.compile(rb"[A-Z]{3,16} /[^ \n]* HTTP/1\.[01]\r?\n(?s:.*?)(?<=\n)\r?\n")


@dataclass(eq=False, slots=True)
class Pending:
    """A connection, the host at its other end, and what came on it so far."""

    sock: socket.socket
    host: str
    accepted_s: float = field(default_factory=time.monotonic)
    received: bytearray = field(default_factory=bytearray)


class PendingConnections:
    """Holds a bounded number of connections, and reads each until its first request is whole.

    When there are too many, the host with most of them loses its oldest. For one event loop.
    """

    def __init__(self) -> None:
        self._incomplete = _Queue(INCOMPLETE_LIMIT)
        self._complete = _Queue(COMPLETE_LIMIT)
        self._any_complete = asyncio.Event()

    def add(self, sock: socket.socket, host: str) -> None:
        """Take in a connection that was just accepted."""
        sock.setblocking(False)
        pending = Pending(sock, host)
        if dropped := self._incomplete.add(pending):
            self._close(dropped)
        asyncio.get_running_loop().add_reader(sock, self._read, pending)
        self._read(pending)  # most honest clients have sent their request by now

    async def take(self) -> Pending:
        """Wait for a connection whose request is whole; return the one that came first."""
        while True:
            await self._any_complete.wait()
            if first := self._complete.oldest():
                self._complete.remove(first)
                return first
            self._any_complete.clear()

    def drop_late(self) -> None:
        """Close each connection that has had 10 s and sent no whole request."""
        latest_s = time.monotonic() - _REQUEST_S
        for pending in [each for each in self._incomplete if each.accepted_s < latest_s]:
            self._incomplete.remove(pending)
            self._close(pending)

    def close(self) -> None:
        """Close every connection."""
        for queue in (self._incomplete, self._complete):
            for pending in list(queue):
                queue.remove(pending)
                self._close(pending)

    def _read(self, pending: Pending) -> None:
        try:
            received = pending.sock.recv(_REQUEST_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            received = b""
        pending.received += received
        if b"\n" in received and _REQUEST.match(pending.received):
            self._incomplete.remove(pending)
            asyncio.get_running_loop().remove_reader(pending.sock)
            if dropped := self._complete.add(pending):
                self._close(dropped)
            self._any_complete.set()
        elif not received or len(pending.received) >= _REQUEST_BYTES:
            self._incomplete.remove(pending)
            self._close(pending)

    def _close(self, pending: Pending) -> None:
        asyncio.get_running_loop().remove_reader(pending.sock)
        pending.sock.close()


class _Queue:
    """Pending connections in the order in which they came, at most ``limit``."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._count = 0
        self._of_host: dict[str, OrderedDict[Pending, None]] = defaultdict(OrderedDict)

    def __iter__(self) -> Iterator[Pending]:
        for queue in self._of_host.values():
            yield from queue

    def add(self, pending: Pending) -> Pending | None:
        """Put a connection at the end; return the one dropped for it, if any."""
        dropped = None
        if self._count >= self._limit:
            most = max(self._of_host, key=lambda host: len(self._of_host[host]))
            dropped = next(iter(self._of_host[most]))
            self.remove(dropped)
        self._of_host[pending.host][pending] = None
        self._count += 1
        return dropped

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
