"""Connections to the admin server before it reads them: their first request is not whole yet.

Such a connection costs a descriptor and a few KiB, and the HTTP server behind it nothing. Where
TLS is spoken, its handshake is a part of this time. It begins once the client's first record is
whole. Handshakes take a fifth of the daemon's time at most, and hosts take turns.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import ssl
import struct
import time
from collections import OrderedDict, deque
from collections.abc import Callable

from wasmkilnd.telemetry.admin.pending_queue import Pending, PendingQueue
from wasmkilnd.telemetry.admin.tls import HANDSHAKE, TlsSession

INCOMPLETE_LIMIT = 256
"""Connections that are sending their request, or the first record of a handshake. With fewer, a
flood would push honest ones out."""
HANDSHAKE_LIMIT = 64
"""Connections beside them that are in their handshake."""
SECURE_LIMIT = 64
"""Connections beside them that have had it, and are sending their request."""
COMPLETE_LIMIT = 128
"""Connections beside them that have sent one, and wait for room in the HTTP server."""
_REQUEST_S = 10.0
_REQUEST_BYTES = 8 * 1024
# A hello, and a certificate with its chain.
_HANDSHAKE_BYTES = 64 * 1024
# In front of each record of TLS: its kind, the version, the length of what follows.
_RECORD = struct.Struct(">BHH")
_RECORD_BYTES = 16 * 1024
_VERSION = 3
# How long the daemon does other work after a part of a handshake, in multiples of its time.
_PAUSE = 4.0
_NO_TLS = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\n"
    b"Connection: close\r\n\r\nthis port speaks TLS: use https://\n"
)
# A line of HTTP/1, then others until an empty one. Anything else never becomes a request.
_REQUEST = re.compile(rb"[A-Z]{3,16} /[^ \n]* HTTP/1\.[01]\r?\n(?s:.*?)(?<=\n)\r?\n")


Context = Callable[[], ssl.SSLContext]
"""Returns what TLS connections are made with at the moment."""


class PendingConnections:
    """Holds a bounded number of connections, and reads each until its first request is whole.

    When there are too many, the host with most of them loses its oldest. For one event loop.
    """

    def __init__(self, context: Context | None = None) -> None:
        """Speak TLS where there is a ``context``."""
        self._context = context
        self._incomplete = PendingQueue(INCOMPLETE_LIMIT)
        self._shaking = PendingQueue(HANDSHAKE_LIMIT)
        self._secure = PendingQueue(SECURE_LIMIT)
        self._complete = PendingQueue(COMPLETE_LIMIT)
        self._any_complete = asyncio.Event()
        self._turns: OrderedDict[str, deque[Pending]] = OrderedDict()
        self._any_turn = asyncio.Event()

    def add(self, sock: socket.socket, host: str) -> None:
        """Take in a connection that was just accepted."""
        sock.setblocking(False)
        pending = Pending(sock, host)
        self._move(pending, self._incomplete)
        asyncio.get_running_loop().add_reader(sock, self._read, pending)
        self._read(pending)  # most honest clients have sent their request by now

    async def shake_hands(self) -> None:
        """Shake hands with one client after the other, until cancelled."""
        while True:
            await self._any_turn.wait()
            while self._turns:
                host, turns = self._turns.popitem(last=False)
                pending = turns.popleft()
                if turns:
                    self._turns[host] = turns  # behind all other hosts
                pending.waits = False
                if pending.queue is not self._shaking:
                    continue  # it made room for another one
                began_s = time.thread_time()
                self._shake_hands(pending)
                await asyncio.sleep(_PAUSE * (time.thread_time() - began_s))
            self._any_turn.clear()

    async def take(self) -> Pending:
        """Wait for a connection whose request is whole; return the one that came first."""
        while True:
            await self._any_complete.wait()
            if first := self._complete.oldest():
                self._take_out(first)
                return first
            self._any_complete.clear()

    def drop_late(self) -> None:
        """Close each connection that has had 10 s and sent no whole request."""
        latest_s = time.monotonic() - _REQUEST_S
        for queue in (self._incomplete, self._shaking, self._secure):
            for pending in [each for each in queue if each.accepted_s < latest_s]:
                self._drop(pending)

    def close(self) -> None:
        """Close every connection."""
        for queue in (self._incomplete, self._shaking, self._secure, self._complete):
            for pending in list(queue):
                self._drop(pending)

    def _read(self, pending: Pending) -> None:
        try:
            received = pending.sock.recv(_REQUEST_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            received = b""
        if pending.tls:
            self._take_in_encrypted(pending, pending.tls, received)
        elif self._context:
            self._take_in_hello(pending, received, self._context)
        elif pending.received or received[:1] != bytes((HANDSHAKE,)):
            self._take_in(pending, received)
        else:
            self._drop(pending)  # it speaks TLS, and would wait for an answer

    def _take_in(self, pending: Pending, received: bytes) -> None:
        pending.received += received
        if b"\n" in received and _REQUEST.match(pending.received):
            asyncio.get_running_loop().remove_reader(pending.sock)
            self._move(pending, self._complete)
            self._any_complete.set()
        elif not received or len(pending.received) >= _REQUEST_BYTES:
            self._drop(pending)

    def _take_in_hello(self, pending: Pending, received: bytes, context: Context) -> None:
        """Take in what comes before the first record of a handshake is whole."""
        pending.received += received
        if received and pending.received[0] != HANDSHAKE:
            with contextlib.suppress(OSError):
                pending.sock.send(_NO_TLS)
            received = b""
        if not received:
            self._drop(pending)
            return
        if len(pending.received) < _RECORD.size:
            return
        _, version, length = _RECORD.unpack_from(pending.received)
        if version >> 8 != _VERSION or length > _RECORD_BYTES:
            self._drop(pending)
        elif len(pending.received) >= _RECORD.size + length:
            pending.tls = TlsSession(context())
            first = bytes(pending.received)
            pending.received.clear()
            self._move(pending, self._shaking)
            self._take_in_encrypted(pending, pending.tls, first)

    def _take_in_encrypted(self, pending: Pending, session: TlsSession, received: bytes) -> None:
        session.feed(received)
        if session.open:
            self._decrypt(pending, session, ended=not received)
            return
        pending.encrypted_bytes += len(received)
        if not received or pending.encrypted_bytes > _HANDSHAKE_BYTES:
            self._drop(pending)
        elif not pending.waits:
            pending.waits = True
            self._turns.setdefault(pending.host, deque()).append(pending)
            self._any_turn.set()

    def _shake_hands(self, pending: Pending) -> None:
        session = pending.tls
        if session is None:
            return
        try:
            session.shake_hands()
        except ssl.SSLError:
            self._send(pending, session)  # the alert that says why
            self._drop(pending)
            return
        if not self._send(pending, session):
            self._drop(pending)
        elif session.open:
            self._move(pending, self._secure)
            self._decrypt(pending, session)

    def _decrypt(self, pending: Pending, session: TlsSession, *, ended: bool = False) -> None:
        """Take in what came over TLS."""
        try:
            received = session.read()
        except ssl.SSLError:
            ended, received = True, b""
        if ended or session.ended or not self._send(pending, session):
            self._drop(pending)
        elif received:
            self._take_in(pending, received)

    def _send(self, pending: Pending, session: TlsSession) -> bool:
        """Send what TLS has to say; return whether the client takes all of it at once."""
        message = session.to_send()
        try:
            return not message or pending.sock.send(message) == len(message)
        except OSError:
            return False

    def _move(self, pending: Pending, queue: PendingQueue) -> None:
        """Put a connection into another queue; one that has to make way is closed."""
        if pending.queue:
            self._take_out(pending)
        if dropped := queue.longest_of_the_host_with_most():
            self._drop(dropped)
        queue.add(pending)
        pending.queue = queue

    def _take_out(self, pending: Pending) -> None:
        if pending.queue:
            pending.queue.remove(pending)
            pending.queue = None

    def _drop(self, pending: Pending) -> None:
        self._take_out(pending)
        asyncio.get_running_loop().remove_reader(pending.sock)
        pending.sock.close()
