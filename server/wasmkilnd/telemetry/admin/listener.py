"""How connections come in: the admin server accepts them by itself.

asyncio's own servers accept without limit, and log a hundred tracebacks each second when no
descriptor is left.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import stat
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, cast

import structlog

from wasmkilnd.network import address_of, host_of, is_listening
from wasmkilnd.telemetry.admin import connections, pending
from wasmkilnd.telemetry.admin.connections import HttpConnections
from wasmkilnd.telemetry.admin.pending import Context, PendingConnections
from wasmkilnd.telemetry.admin.pending_queue import Pending
from wasmkilnd.telemetry.admin.tls import TlsTransport

log = structlog.get_logger("wasmkilnd.telemetry")

_BACKLOG = 512
# Accepted in one go, before the rest of the daemon gets its turn.
_AT_ONCE = 16
# Read in one go. Parsing a KiB that comes in many small pieces takes a millisecond.
_READ_BYTES = 8 * 1024
_RETRY_S = 1.0
_CHECK_S = 1.0
DESCRIPTORS = pending.INCOMPLETE_LIMIT + pending.COMPLETE_LIMIT + connections.LIMIT + _AT_ONCE
"""The descriptors that the admin server has open at most, under a flood."""
TLS_DESCRIPTORS = DESCRIPTORS + pending.HANDSHAKE_LIMIT + pending.SECURE_LIMIT
"""The same where it speaks TLS."""


class Listener:
    """Accepts connections on one address; passes on those that have sent a whole request."""

    def __init__(
        self,
        make_protocol: Callable[[], asyncio.Protocol],
        connections: HttpConnections,
        context: Context | None = None,
    ) -> None:
        """``make_protocol`` returns a protocol that speaks HTTP on one connection.

        With a ``context``, connections speak TLS below that.
        """
        self._make_protocol = make_protocol
        self._connections = connections
        self._pending = PendingConnections(context)
        self._sockets: list[socket.socket] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._socket_file: tuple[Path, int] | None = None

    async def start_tcp(self, host: str, port: int) -> int:
        """Listen on each address of ``host``; return the port. Raise OSError."""
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        try:
            for family, _, _, _, address in dict.fromkeys(found):
                self._sockets.append(_listening(family, address))
        except OSError:
            self._close_sockets()
            raise
        self._start()
        return int(self._sockets[0].getsockname()[1])

    async def start_unix(self, path: Path) -> None:
        """Listen on a socket that only its owner can reach. Raise OSError."""
        # The file may belong to a running daemon, which must not lose it.
        if is_listening(path):
            raise OSError(errno.EADDRINUSE, "")
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISSOCK(path.stat().st_mode):  # noqa: ASYNC240 - a local file
                path.unlink()  # noqa: ASYNC240
        # Nobody else can connect before the file has its mode.
        before = os.umask(0o177)
        try:
            self._sockets.append(_listening(socket.AF_UNIX, str(path)))
        finally:
            os.umask(before)
        path.chmod(0o600)  # noqa: ASYNC240
        self._socket_file = (path, path.stat().st_ino)  # noqa: ASYNC240
        self._start()

    async def stop(self) -> None:
        """Accept no more, and remove the socket's file if it is still this daemon's."""
        self._close_sockets()
        self._pending.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._socket_file:
            path, inode = self._socket_file
            # Another daemon may have taken the path over meanwhile.
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_ino == inode:
                    path.unlink()
            self._socket_file = None

    def _start(self) -> None:
        for sock in self._sockets:
            asyncio.get_running_loop().add_reader(sock, self._accept, sock)
        self._in_the_background(self._serve_all())
        self._in_the_background(self._pending.shake_hands())
        self._in_the_background(self._end_late_ones())

    def _close_sockets(self) -> None:
        for sock in self._sockets:
            asyncio.get_running_loop().remove_reader(sock)
            sock.close()
        self._sockets.clear()

    def _accept(self, listening: socket.socket) -> None:
        for _ in range(_AT_ONCE):
            try:
                sock, _ = listening.accept()
            except BlockingIOError:
                return
            except ConnectionError:
                continue  # the client left before it was accepted
            except OSError as failure:
                log.warning("cannot accept connections to the admin server", cause=str(failure))
                self._in_the_background(self._pause(listening))
                return
            try:
                self._pending.add(sock, _host(sock))
            except OSError:
                sock.close()

    async def _pause(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(listening)
        await asyncio.sleep(_RETRY_S)
        if listening in self._sockets:
            loop.add_reader(listening, self._accept, listening)

    async def _serve_all(self) -> None:
        while True:
            first = await self._pending.take()
            try:
                await self._connections.make_room()
                await self._serve(first)
            except OSError:
                first.sock.close()  # the client has left, or the server has stopped
            except Exception:
                # A defect that one client meets must not end the server for all others.
                log.exception("a connection to the admin server failed")
                first.sock.close()
            except BaseException:
                first.sock.close()
                raise

    async def _serve(self, first: Pending) -> None:
        """Pass a connection with a whole request to the HTTP server. Raise OSError."""
        loop = asyncio.get_running_loop()
        below, _ = await loop.connect_accepted_socket(_Paused, first.sock)
        if below.is_closing():
            return
        below.max_size = _READ_BYTES  # type: ignore[attr-defined]  # of asyncio's own
        try:
            self._hand_over(first, below)
        except Exception:
            below.abort()
            raise

    def _hand_over(self, first: Pending, below: asyncio.Transport) -> None:
        protocol = self._make_protocol()
        transport: asyncio.Transport = below
        if first.tls:
            transport = TlsTransport(below, first.tls, protocol)
        else:
            below.set_protocol(protocol)
        self._connections.add(transport, first.host)
        protocol.connection_made(transport)
        protocol.data_received(bytes(first.received))
        transport.resume_reading()

    async def _end_late_ones(self) -> None:
        while True:
            await asyncio.sleep(_CHECK_S)
            self._pending.drop_late()
            self._connections.end_overdue()

    def _in_the_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class _Paused(asyncio.Protocol):
    """Reads nothing until the HTTP protocol takes over."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast("asyncio.Transport", transport).pause_reading()


def _host(sock: socket.socket) -> str:
    if sock.family == socket.AF_UNIX:
        return "unix"
    return host_of(address_of(sock.getpeername()[0]))


def _listening(family: int, address: object) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        if family != socket.AF_UNIX:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(address)  # type: ignore[arg-type]
        sock.listen(_BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock
