"""Connections to the admin server whose first request is not whole, or waits to be answered.

Here one costs a descriptor and some bytes, so that requests that never become whole cost the
HTTP server nothing.
"""

from __future__ import annotations

import asyncio
import re
import socket
import time
from collections import OrderedDict, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

LIMIT = 256
"""How many may be sending their request; with fewer, a flood would push honest ones out."""
LIMIT_HEARD = 128
"""How many may wait for an answer beside them."""
_PATIENCE_S = 10.0
_REQUEST_BYTES = 8 * 1024
# A line of HTTP/1, then others until an empty one. Whatever else there is, is waited for in vain.
_REQUEST = re.compile(rb"[A-Z]{3,16} /[^ \n]* HTTP/1\.[01]\r?\n(?s:.*?)(?<=\n)\r?\n")


@dataclass(eq=False, slots=True)
class Newcomer:
    """A connection, whose it is, and what came on it."""

    sock: socket.socket
    host: str
    came_s: float = field(default_factory=time.monotonic)
    sent: bytearray = field(default_factory=bytearray)


class Newcomers:
    """Holds a bounded number of them: the oldest, of the host with most, makes way for the next.

    For one event loop.
    """

    def __init__(self) -> None:
        self._unheard = _Line(LIMIT)
        self._heard = _Line(LIMIT_HEARD)
        self._any_heard = asyncio.Event()

    def add(self, sock: socket.socket, host: str) -> None:
        """Take in a connection that was just accepted."""
        sock.setblocking(False)
        newcomer = Newcomer(sock, host)
        if going := self._unheard.add(newcomer):
            self._close(going)
        asyncio.get_running_loop().add_reader(sock, self._read, newcomer)
        self._read(newcomer)  # Who is honest has mostly sent its request by now.

    async def take(self) -> Newcomer:
        """Wait for one whose request is whole; return the one that has waited longest."""
        while True:
            await self._any_heard.wait()
            if first := self._heard.oldest():
                self._heard.remove(first)
                return first
            self._any_heard.clear()

    def drop_late(self) -> None:
        """End the connections of those that have had their time."""
        latest_s = time.monotonic() - _PATIENCE_S
        for newcomer in [each for each in self._unheard if each.came_s < latest_s]:
            self._unheard.remove(newcomer)
            self._close(newcomer)

    def close(self) -> None:
        """End all."""
        for line in (self._unheard, self._heard):
            for newcomer in list(line):
                line.remove(newcomer)
                self._close(newcomer)

    def _read(self, newcomer: Newcomer) -> None:
        try:
            sent = newcomer.sock.recv(_REQUEST_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            sent = b""
        newcomer.sent += sent
        if b"\n" in sent and _REQUEST.match(newcomer.sent):
            self._unheard.remove(newcomer)
            asyncio.get_running_loop().remove_reader(newcomer.sock)
            if going := self._heard.add(newcomer):
                self._close(going)
            self._any_heard.set()
        elif not sent or len(newcomer.sent) >= _REQUEST_BYTES:
            self._unheard.remove(newcomer)
            self._close(newcomer)

    def _close(self, newcomer: Newcomer) -> None:
        asyncio.get_running_loop().remove_reader(newcomer.sock)
        newcomer.sock.close()


class _Line:
    """Newcomers in the order in which they came, at most ``limit``."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._count = 0
        self._of_host: dict[str, OrderedDict[Newcomer, None]] = defaultdict(OrderedDict)

    def __iter__(self) -> Iterator[Newcomer]:
        for waiting in self._of_host.values():
            yield from waiting

    def add(self, newcomer: Newcomer) -> Newcomer | None:
        """Put one at the end; return the one that had to leave for it, if any."""
        going = None
        if self._count >= self._limit:
            most = max(self._of_host, key=lambda host: len(self._of_host[host]))
            going = next(iter(self._of_host[most]))
            self.remove(going)
        self._of_host[newcomer.host][newcomer] = None
        self._count += 1
        return going

    def remove(self, newcomer: Newcomer) -> None:
        """Take one out."""
        del self._of_host[newcomer.host][newcomer]
        if not self._of_host[newcomer.host]:
            del self._of_host[newcomer.host]
        self._count -= 1

    def oldest(self) -> Newcomer | None:
        """Return the one that came first, None where nobody is."""
        firsts = [next(iter(waiting)) for waiting in self._of_host.values()]
        return min(firsts, key=lambda each: each.came_s, default=None)
