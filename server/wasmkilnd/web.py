"""The door of an HTTP server: who gets in at its address, and who a request says that it is from.

aiohttp speaks HTTP; ``Door`` accepts connections for it, a bounded number in all and in a second.
When there is no room, the host with most connections loses one: one that has sent no request, else
one that is idle, the oldest first. So strangers at a port take nothing from calls, jobs, scrapes
and probes, and no line of the log is written for each of them. aiohttp's own listener cannot do
that: it takes all who wait at once, and knows a connection only after its TLS handshake, so that
500 silent ones hold 500 descriptors. tests/e2e/test_admin_port.py attacks a running daemon to show
it.

With ``tls``, TCP connections speak TLS. The certificates in force are asked for as each connection
comes, so that those that change harm no other. A client may show a certificate, and need not: a
token will do.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
import re
import socket
import ssl
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any, Final

import structlog
from aiohttp import web, web_protocol

from wasmkilnd.model import Credentials, Entrance, Transport
from wasmkilnd.network import address_of, cannot_listen, host_of, is_listening, open_socket
from wasmkilnd.redis_address import is_local
from wasmkilnd.waits.flights import Background

log = structlog.get_logger("wasmkilnd")

# After each connection the rest of the daemon gets its turn. A handshake takes a millisecond.
_PAUSE_S, _TLS_PAUSE_S = 0.001, 0.004
_BACKLOG: Final = 512
# What aiohttp's servers have in common. No request has a body that anybody uses, so they read no
# more of one than came with the request, and unpack none.
COMMON: Final[Any] = {"access_log": None, "lingering_time": 0.0, "auto_decompress": False}
STRANGE_NAME: Final = "ask for localhost or an IP address: websites could take any other name"
# While a client leaves an answer unread, aiohttp reads on until this many requests wait behind it,
# or pieces of what is no HTTP: 32 by default.
web_protocol.MAX_MSG_QUEUE_SIZE = 1
# How large such a piece is, about: what a socket holds that nobody reads.
_RECEIVE_BYTES: Final = 16 * 1024
# aiohttp logs a traceback for every byte that is not HTTP, and any scanner sends some.
logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)


class _State(IntEnum):
    """What a connection does, those first that make way first."""

    SILENT = 0  # It has sent no request yet.
    IDLE = 1
    AT_WORK = 2


@dataclass(eq=False)
class Door:
    """Accepts the connections to one address."""

    # Where: host:port, [v6]:port or unix:/path.
    address: str
    # How many connections may be open at once. With TLS a quarter of them: asyncio keeps a quarter
    # of a MiB for each.
    limit: int
    # The setting that names the address.
    setting: str
    # Returns what new TCP connections are made with; None for plaintext.
    tls: Callable[[], ssl.SSLContext] | None = None
    # Who may connect to a Unix socket beside its owner.
    group: int | None = None
    _sockets: list[socket.socket] = field(default_factory=list)
    # By aiohttp's protocol, whose host is at the other end, and its state. The one that asked last
    # is the last; some are closed.
    _open: dict[Any, tuple[socket.socket, str, _State]] = field(default_factory=dict)
    _background: Background = field(default_factory=Background)

    def __post_init__(self) -> None:
        unix, host = self.address.startswith("unix:"), self.address.rpartition(":")[0].strip("[]")
        self._path = Path(self.address.removeprefix("unix:")) if unix else None
        self.tls = None if unix else self.tls
        # TLS names the server, and a port that others reach can be asked without a browser.
        self._checks_host = not (unix or self.tls) and is_local(host)
        transport = Transport.TLS if self.tls else Transport.PLAINTEXT
        self.entrance = Entrance(Transport.UNIX, self.address) if unix else Entrance(transport)

    async def open(self, runner: web.BaseRunner) -> str:
        """Let ``runner`` serve all who come; return the address with its real port.

        Raises CannotListen; see ``close``.
        """
        await runner.setup()
        try:
            await self._listen()
        except OSError as failure:
            raise cannot_listen(self.address, self.setting, failure) from None
        if self._path:
            open_socket(self.address, self._path, self.group)
        for sock in self._sockets:
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BYTES)
            self._background.begin(self._accept(sock, runner))
        if self._path:
            return self.address
        return f"{self.address.rpartition(':')[0]}:{self._sockets[0].getsockname()[1]}"

    async def close(self) -> None:
        """Accept no more, and remove the socket's file. Connections are the runner's to close."""
        await self._background.stop()
        for sock in self._sockets:
            sock.close()
        if self._path and self._sockets:
            with suppress(OSError):
                _remove_dead(self._path)

    def asked(self, request: web.BaseRequest, *, at_work: bool = False) -> bool:
        """Note that a connection has sent a request, and whether its answer is under way.

        Return whether it ends with that answer: what may follow on a connection after a body or an
        upgrade is not clear to everybody between, so nothing of it is read.
        """
        if ends := request.body_exists or "Upgrade" in request.headers:
            request.protocol.close()
        if known := self._open.pop(request.protocol, None):
            state = _State.AT_WORK if at_work else _State.IDLE
            self._open[request.protocol] = *known[:2], state
        return ends

    def is_strange(self, request: web.BaseRequest) -> bool:
        """Return whether a request calls this machine by a name that a website may have taken.

        A website that a person visits may have its name resolve to 127.0.0.1. The browser then
        takes this port for a part of that website, whose scripts read what it answers. Browsers
        always send ``Host``: a request without it comes from none.
        """
        return self._checks_host and not all(map(_is_ours, request.headers.getall("Host", ())))

    async def _listen(self) -> None:
        if self._path:
            _remove_dead(self._path)
            before = os.umask(0o177)  # nobody else can connect before the file has its mode
            try:
                path, family = str(self._path), socket.AF_UNIX
                self._sockets.append(socket.create_server(path, family=family, backlog=_BACKLOG))
            finally:
                os.umask(before)
            return
        host, _, port = self.address.rpartition(":")
        found = await asyncio.get_running_loop().getaddrinfo(
            host.strip("[]"), int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        for family, _, _, _, where in dict.fromkeys(found):
            self._sockets.append(socket.create_server(where, family=family, backlog=_BACKLOG))

    async def _accept(self, listening: socket.socket, runner: web.BaseRunner) -> None:
        while True:
            await asyncio.sleep(_TLS_PAUSE_S if self.tls else _PAUSE_S)
            try:
                sock, address = await asyncio.get_running_loop().sock_accept(listening)
            except OSError as failure:
                log.warning("cannot accept connections", address=self.address, cause=str(failure))
                await asyncio.sleep(1.0)
                continue
            self._make_room()
            handler: Any = runner.server()  # type: ignore[misc]
            host = "unix" if self._path else host_of(address_of(address[0]))
            self._open[handler] = sock, host, _State.SILENT
            self._background.begin(self._serve(sock, handler))

    def _make_room(self) -> None:
        self._open = {at: each for at, each in self._open.items() if each[0].fileno() >= 0}
        if len(self._open) < (self.limit // 4 if self.tls else self.limit):
            return
        by_host = Counter(host for _, host, _ in self._open.values())
        # Of those that are equal, the first.
        last = min(self._open, key=lambda at: (-by_host[self._open[at][1]], self._open[at][2]))
        with suppress(OSError):  # the client has left
            self._open.pop(last)[0].shutdown(socket.SHUT_RDWR)  # then asyncio closes it

    async def _serve(self, sock: socket.socket, handler: Any) -> None:
        tls, loop = self.tls and self.tls(), asyncio.get_running_loop()
        try:
            await loop.connect_accepted_socket(lambda: handler, sock, ssl=tls)
        except OSError:  # of which those of TLS are some
            sock.close()


def credentials_of(request: web.BaseRequest) -> Credentials:
    """Return what a request brings along to say who sends it."""
    # Of two, a proxy may have checked the other one. Together they are no token.
    authorization = ", ".join(request.headers.getall("Authorization", ()))
    return Credentials(authorization, _certificate(request))


def challenge(invalid: bool) -> str:
    """Return what a client is told that is to send a token, or another one."""
    return 'Bearer realm="wasmkiln"' + (', error="invalid_token"' if invalid else "")


def peer_of(request: web.BaseRequest) -> str:
    """Return the address and port at the other end, or ``unix``."""
    name = request.get_extra_info("peername")
    if not isinstance(name, tuple):
        return "unix"
    return f"[{name[0]}]:{name[1]}" if ":" in name[0] else f"{name[0]}:{name[1]}"


def _remove_dead(path: Path) -> None:
    # The file may belong to another daemon that runs, which must not lose it.
    if path.is_socket() and not is_listening(path):
        path.unlink()


def _is_ours(host: str) -> bool:
    name = re.sub(r":[0-9]*$", "", host).lower().rstrip(".")
    with suppress(ValueError):
        return bool(ipaddress.ip_address(name.strip("[]")))
    return name == "localhost" or name.endswith(".localhost")


def _certificate(request: web.BaseRequest) -> bytes:
    """Return the client's certificate as PEM, and what it sent beside it; empty for none."""
    tls = request.get_extra_info("ssl_object")
    if not (tls and (shown := tls.getpeercert(binary_form=True))):
        return b""
    # Public from Python 3.13 on. There is none for a session that goes on.
    chain = tls._sslobj.get_unverified_chain() or ()
    pem = "".join(each.public_bytes() for each in chain) or ssl.DER_cert_to_PEM_cert(shown)
    return pem.encode()
