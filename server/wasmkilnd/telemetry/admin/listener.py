"""Listens for the admin server, and lets connections in.

asyncio's own servers accept whatever comes, and write a hundred tracebacks each second when
no descriptor is left.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import stat
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, cast

import structlog

from wasmkilnd.network import address_of, host_of
from wasmkilnd.telemetry.admin import connections, newcomers
from wasmkilnd.telemetry.admin.connections import HttpConnections
from wasmkilnd.telemetry.admin.newcomers import Newcomer, Newcomers

log = structlog.get_logger("wasmkilnd.telemetry")

_BACKLOG = 512
# Accepted in one go, before everything else in the daemon has its turn.
_AT_ONCE = 16
# Read in one go. Parsing what comes in many small pieces takes a millisecond for each KiB.
_READ_BYTES = 8 * 1024
_RETRY_S = 1.0
_LOOK_S = 1.0
DESCRIPTORS = newcomers.LIMIT + newcomers.LIMIT_HEARD + connections.LIMIT + _AT_ONCE
"""What the admin server has open at most, when somebody floods it."""


class Listener:
    """Accepts connections on one address, and hands those over that have sent a request."""

    def __init__(
        self, make_protocol: Callable[[], asyncio.Protocol], connections: HttpConnections
    ) -> None:
        """``make_protocol`` makes what speaks HTTP on a connection."""
        self._make_protocol = make_protocol
        self._connections = connections
        self._newcomers = Newcomers()
        self._sockets: list[socket.socket] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._socket_file: tuple[Path, int] | None = None

    async def start_tcp(self, host: str, port: int) -> int:
        """Listen on each address of ``host``; return the port. Raises OSError."""
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
        """Listen on a socket that only its owner can reach. Raises OSError."""
        # A socket file may be a running daemon's, which must not lose it.
        if _somebody_listens(path):
            raise OSError(errno.EADDRINUSE, "")
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISSOCK(path.stat().st_mode):  # noqa: ASYNC240 - a local file
                path.unlink()  # noqa: ASYNC240
        self._sockets.append(_listening(socket.AF_UNIX, str(path)))
        path.chmod(0o600)  # noqa: ASYNC240
        self._socket_file = (path, path.stat().st_ino)  # noqa: ASYNC240
        self._start()

    async def stop(self) -> None:
        """Accept no more, and remove the socket's file if it is still ours."""
        self._close_sockets()
        self._newcomers.close()
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
        self._in_the_background(self._look_for_late_ones())

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
                continue  # It was gone before it was accepted.
            except OSError as failure:
                log.warning("cannot accept connections to the admin page", cause=str(failure))
                self._in_the_background(self._pause(listening))
                return
            try:
                self._newcomers.add(sock, _host(sock))
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
            newcomer = await self._newcomers.take()
            try:
                await self._connections.make_room()
                await self._serve(newcomer)
            except OSError:
                newcomer.sock.close()  # It has gone, or the server has.
            except BaseException:
                newcomer.sock.close()
                raise

    async def _serve(self, newcomer: Newcomer) -> None:
        """Have a connection served on which a request came. Raises OSError."""
        loop = asyncio.get_running_loop()
        transport, _ = await loop.connect_accepted_socket(_Paused, newcomer.sock)
        if transport.is_closing():
            return
        self._connections.add(transport, newcomer.host)
        protocol = self._make_protocol()
        transport.max_size = _READ_BYTES  # type: ignore[attr-defined]  # of asyncio's own
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        protocol.data_received(bytes(newcomer.sent))
        transport.resume_reading()

    async def _look_for_late_ones(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_S)
            self._newcomers.drop_late()
            self._connections.end_overdue()

    def _in_the_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class _Paused(asyncio.Protocol):
    """Reads nothing until the protocol proper takes over."""

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


def _somebody_listens(path: Path) -> bool:
    try:
        if not stat.S_ISSOCK(path.stat().st_mode):
            return False  # a file of another kind: bind will refuse it
    except FileNotFoundError:
        return False
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return False  # left behind by a process that was killed
        except OSError:
            return True  # not ours to connect to, or too busy to answer: alive
    return True
