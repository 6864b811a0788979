"""The admin server: /metrics, /healthz, /readyz and pages for browsers, at ``admin_listen``.

/healthz says that the process runs; /readyz whether it serves calls, and why not; /metrics is
Prometheus text, or OpenMetrics if asked for. The status page (``telemetry.status_page``) is handed
in. Where a page is for browsers, a person can give a token as password. Nothing can be changed
here: calls that change the daemon are in rpc/admin_service. Who may read a page is a row of
``access.guard.PATHS``, as for RPCs.

With ``tls_cert_file``, TCP connections speak TLS. The certificates in force are asked for as each
connection comes, so that those that change harm no other. A client may show a certificate, and
need not: a token will do.

aiohttp speaks HTTP; this file accepts connections, a bounded number in all and in a second, and
renders for a fifth of the daemon's time at most. Of the host with most connections, the one makes
way for a new one that has sent no request, or none for longest. So strangers at this port take
nothing from calls, jobs, scrapes and probes, and no line of the log is written for each of them.
tests/e2e/test_admin_port.py attacks a running daemon to show it.
"""

from __future__ import annotations

import asyncio
import base64
import errno
import ipaddress
import logging
import os
import socket
import ssl
import stat
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

import structlog
from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from wasmkilnd.errors import Reason, WasmkilnError, forget_frames
from wasmkilnd.model import Credentials, Entrance, Identity, Transport
from wasmkilnd.network import address_of, host_of, is_listening
from wasmkilnd.telemetry.audit import Audit, AuditEvent, AuditLine

log = structlog.get_logger("wasmkilnd.telemetry")

LIMIT: Final = 512
"""Connections that are open at once."""
TLS_LIMIT: Final = 128
"""The same with TLS: asyncio keeps a quarter of a MiB for each."""
# After each connection the rest of the daemon gets its turn. A handshake takes a millisecond.
_PAUSE_S, _TLS_PAUSE_S = 0.001, 0.004
_HTTP_LIMITS: Final[dict[str, Any]] = {
    # Scrapers and probes send far less.
    "max_line_size": 4096,
    "max_field_size": 4096,
    "max_headers": 64,
    # No page uses a body, so the server reads no more of one than came with the request, and
    # unpacks none.
    "lingering_time": 0.0,
    "auto_decompress": False,
}
_STATUS = {
    Reason.CREDENTIALS_MISSING: 401,
    Reason.CREDENTIALS_INVALID: 401,
}
# A browser cannot send a token of its own accord: it asks a person for a name and a password.
_BROWSER_CHALLENGE = 'Basic realm="wasmkiln: any name, and a token as password", charset="UTF-8"'
_STRANGE_NAME = (
    "cannot answer under this name, since websites could take it: ask for localhost or an IP"
    " address, and have a proxy ask so\n"
)
_PAGE_HEADERS: Final = {
    # Nothing comes from elsewhere, nothing goes elsewhere, and no other site shows a page in its
    # own. No style and no script is written into a page, so that nothing injected could run.
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self';"
    " img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none';"
    " frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
# aiohttp logs a traceback for every byte that is not HTTP, and any scanner sends some.
logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)


@dataclass(frozen=True, slots=True)
class Page:
    """A page for browsers."""

    kind: str
    """Its Content-Type."""
    content: bytes | Callable[[], bytes]
    """What it is, or what makes it anew for those who ask."""


Pages = Mapping[str, Page]
"""By path. Each path needs a row of ``access.guard.PATHS``."""


class AddressInUse(Exception):  # noqa: N818 - the name says what is wrong
    """The server cannot listen on its address; the message says which, why, and what to do."""


class SharedPage:
    """Renders a page once for all requests that wait for it; a request never gets an older page.

    It then pauses for four times as long as the rendering took, so that a flood of requests
    takes a fifth of the daemon's time at most. For one event loop.
    """

    def __init__(self) -> None:
        self._next: dict[str, asyncio.Task[bytes]] = {}
        self._turn = asyncio.Lock()
        self._not_before_s = 0.0

    async def get(self, kind: str, render: Callable[[], bytes]) -> bytes:
        """Return what ``render`` returns; calls with the same ``kind`` share it."""
        if kind not in self._next:
            self._next[kind] = asyncio.create_task(self._render(kind, render))
        return await asyncio.shield(self._next[kind])

    async def _render(self, kind: str, render: Callable[[], bytes]) -> bytes:
        # One kind after the other, so that many kinds take no more time than one.
        async with self._turn:
            await asyncio.sleep(max(0.0, self._not_before_s - time.monotonic()))
            del self._next[kind]  # a request that comes from here on gets the next page
            began_s = time.monotonic()
            try:
                return render()
            finally:
                ended_s = time.monotonic()
                self._not_before_s = ended_s + 4.0 * (ended_s - began_s)


class Guard(Protocol):
    """Says who calls, and refuses what they may not do; ``access`` has it."""

    def admit(
        self, what: str, entrance: Entrance, credentials: Callable[[], Credentials]
    ) -> Identity:
        """Return who calls.

        ``what`` is the path of an RPC, ``/wasmkiln.v1.ModuleService/Load``, or of a page,
        ``/metrics``. ``credentials`` reads what the call brings along; a daemon that asks for no
        identity does not call it. Raises CREDENTIALS_MISSING, CREDENTIALS_INVALID or ROLE_MISSING.
        """


@dataclass(eq=False)
class AdminServer:
    """Serves ``/metrics``, ``/healthz``, ``/readyz`` and ``pages``, for GET and HEAD alone."""

    address: str
    """Where: host:port, [v6]:port or unix:/path."""
    registry: CollectorRegistry
    ready: Callable[[], tuple[bool, str]]
    """Returns whether the daemon serves calls, and a sentence that says why or why not."""
    guard: Guard
    auditor: Audit
    tls: Callable[[], ssl.SSLContext] | None = None
    """Returns what new TCP connections are made with; None for plaintext."""
    pages: Pages = field(default_factory=dict)
    """For browsers."""
    checks_host: bool = False
    """Whether a request has to name this machine by an IP address or as localhost."""

    def __post_init__(self) -> None:
        unix = self.address.startswith("unix:")
        self._path = Path(self.address.removeprefix("unix:")) if unix else None
        self._tls = None if unix else self.tls
        transport = Transport.TLS if self._tls else Transport.PLAINTEXT
        self._entrance = Entrance(Transport.UNIX, self.address) if unix else Entrance(transport)
        self._inode = 0
        self._shared = SharedPage()
        self._sockets: list[socket.socket] = []
        self._open: dict[socket.socket, str] = {}
        """Whose host is at the other end."""
        self._asked_s: dict[int, float] = {}
        """By descriptor, when the last request came; nothing before the first."""
        self._tasks: set[asyncio.Task[None]] = set()
        app = web.Application(client_max_size=1024, middlewares=[self._admit])
        # aiohttp answers 405 to methods other than GET and HEAD, and 404 for other paths.
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        for path in self.pages:
            app.router.add_get(path, self._page)
        app.on_response_prepare.append(_remove_banner)
        # Idle for longer than between two scrapes of Prometheus, so that they share a connection.
        times: dict[str, Any] = {"keepalive_timeout": 75.0, "shutdown_timeout": 1.0}
        self._runner = web.AppRunner(app, access_log=None, **times, **_HTTP_LIMITS)

    async def start(self) -> str:
        """Serve; return the address with its real port. Raise AddressInUse."""
        await self._runner.setup()
        try:
            await self._listen()
        except OSError as failure:
            await self.stop()
            raise AddressInUse(
                f"cannot serve metrics on {self.address}: {failure.strerror}; choose another"
                " address with admin_listen (--admin-listen, WASMKILN_ADMIN_LISTEN), or switch it"
                " off with none"
            ) from None
        for sock in self._sockets:
            sock.setblocking(False)
            self._in_background(self._accept(sock))
        if self._path:
            return self.address
        return f"{self.address.rpartition(':')[0]}:{self._sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        """Accept no more, close every connection, and remove the socket's file."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for sock in self._sockets:
            sock.close()
        await self._runner.cleanup()
        # Another daemon may have taken the path over meanwhile.
        with suppress(FileNotFoundError):
            if self._path and self._path.stat().st_ino == self._inode:
                self._path.unlink()

    async def _listen(self) -> None:
        if self._path is None:
            host, _, port = self.address.rpartition(":")
            loop = asyncio.get_running_loop()
            flags: dict[str, Any] = {"type": socket.SOCK_STREAM, "flags": socket.AI_PASSIVE}
            found: Any = await loop.getaddrinfo(host.strip("[]"), int(port), **flags)
            for family, _, _, _, where in dict.fromkeys(found):
                sock = socket.create_server(where, family=family, backlog=LIMIT)
                self._sockets.append(sock)
            return
        # The file may belong to a running daemon, which must not lose it.
        if is_listening(self._path):
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
        with suppress(FileNotFoundError):
            if stat.S_ISSOCK(self._path.stat().st_mode):
                self._path.unlink()
        # Nobody else can connect before the file has its mode.
        before = os.umask(0o177)
        try:
            path = str(self._path)
            sock = socket.create_server(path, family=socket.AF_UNIX, backlog=LIMIT)
            self._sockets.append(sock)
        finally:
            os.umask(before)
        self._inode = self._path.stat().st_ino

    async def _accept(self, listening: socket.socket) -> None:
        while True:
            await asyncio.sleep(_TLS_PAUSE_S if self._tls else _PAUSE_S)
            try:
                sock, address = await asyncio.get_running_loop().sock_accept(listening)
            except ConnectionError:
                continue  # the client left before it was accepted
            except OSError as failure:
                log.warning("cannot accept connections to the admin server", cause=str(failure))
                await asyncio.sleep(1.0)
                continue
            self._make_room()
            self._open[sock] = "unix" if self._path else host_of(address_of(address[0]))
            self._asked_s.pop(sock.fileno(), None)
            self._in_background(self._serve(sock))

    def _make_room(self) -> None:
        self._open = {sock: host for sock, host in self._open.items() if sock.fileno() >= 0}
        if len(self._open) < (TLS_LIMIT if self._tls else LIMIT):
            return
        held, asked_s = Counter(self._open.values()), self._asked_s
        last = min(self._open, key=lambda it: (-held[self._open[it]], asked_s.get(it.fileno(), 0)))
        del self._open[last]
        with suppress(OSError):  # the client has left
            last.shutdown(socket.SHUT_RDWR)  # then asyncio closes it

    async def _serve(self, sock: socket.socket) -> None:
        server: Any = self._runner.server
        tls = self._tls() if self._tls else None
        try:
            await asyncio.get_running_loop().connect_accepted_socket(server, sock, ssl=tls)
        except OSError:  # of which those of TLS are some
            sock.close()

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    @web.middleware
    async def _admit(
        self,
        request: web.Request,
        handler: Callable[[web.Request], Awaitable[web.StreamResponse]],
    ) -> web.StreamResponse:
        if request.transport:
            descriptor = request.transport.get_extra_info("socket").fileno()
            self._asked_s[descriptor] = time.monotonic()
        # Requests that came together on one connection must not hold up the others.
        await asyncio.sleep(0)
        # A website that a person visits may have its name resolve to 127.0.0.1. The browser then
        # takes this port for a part of that website, whose scripts read what it answers. Browsers
        # always send ``Host``: a request without it comes from none.
        if not all(self._is_ours(host) for host in request.headers.getall("Host", ())):
            return web.Response(text=_STRANGE_NAME, status=421)
        # Of no page, the path that was sent: whom the guard refuses learns nothing from that.
        resource = request.match_info.route.resource
        page = resource.canonical if resource else request.path
        try:
            self.guard.admit(
                page, self._entrance, lambda: _credentials(request, basic=page in self.pages)
            )
        except WasmkilnError as refusal:
            forget_frames(refusal)
            return self._refused(request, page, refusal)
        return await handler(request)

    def _is_ours(self, host: str) -> bool:
        name, _, port = host.rpartition(":")
        name = _name(name if port.isdecimal() and not name.endswith(":") else host)
        if not self.checks_host or name == "localhost":
            return True
        with suppress(ValueError):
            return bool(ipaddress.ip_address(name.strip("[]")))
        return name.endswith(".localhost")

    def _refused(self, request: web.Request, page: str, refusal: WasmkilnError) -> web.Response:
        status = _STATUS.get(refusal.reason, 403)
        told = _peer(request), page, str(status), refusal.reason.value
        self.auditor.write(AuditLine(AuditEvent.REFUSAL, refusal.identity, "", *told))
        answer = web.Response(text=f"{refusal.message}\n", status=status)
        if status == 401:
            invalid = refusal.reason is Reason.CREDENTIALS_INVALID
            error = ', error="invalid_token"' if invalid else ""
            answer.headers.add("WWW-Authenticate", f'Bearer realm="wasmkiln"{error}')
            if page in self.pages:
                answer.headers.add("WWW-Authenticate", _BROWSER_CHALLENGE)
        if refusal.retry_after_s is not None:
            answer.headers["Retry-After"] = str(max(1, round(refusal.retry_after_s)))
        return answer

    async def _metrics(self, request: web.Request) -> web.Response:
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        page = await self._shared.get(content_type, lambda: encode(self.registry))
        return web.Response(body=page, headers={"Content-Type": content_type})

    async def _healthz(self, _request: web.Request) -> web.Response:
        return web.Response(text="alive\n")

    async def _readyz(self, _request: web.Request) -> web.Response:
        try:
            ready, why = self.ready()
        except Exception as failure:
            log.error("readiness check failed", error=repr(failure))
            ready, why = False, "the readiness check failed"
        return web.Response(text=f"{why}\n", status=200 if ready else 503)

    async def _page(self, request: web.Request) -> web.Response:
        page = self.pages[request.path]
        body = page.content
        if not isinstance(body, bytes):
            body = await self._shared.get(request.path, body)
        return web.Response(body=body, headers={"Content-Type": page.kind, **_PAGE_HEADERS})


async def _remove_banner(_request: web.Request, response: web.StreamResponse) -> None:
    # aiohttp has set it by now, and would add one if there were none before.
    response.headers.pop("Server", None)


def _name(host: str) -> str:
    return host.lower().rstrip(".")


def _credentials(request: web.Request, *, basic: bool) -> Credentials:
    # Of two, a proxy may have checked the other one. Together they are no token.
    authorization = ", ".join(request.headers.getall("Authorization", ()))
    if basic and authorization.lower().startswith("basic "):
        # What a browser sends for a person counts as a token.
        with suppress(ValueError):
            pair = base64.b64decode(authorization[6:].strip(), validate=True).decode()
            authorization = f"Bearer {pair.partition(':')[2]}"
    return Credentials(authorization, _certificate(request))


def _certificate(request: web.Request) -> bytes:
    """Return the client's certificate as PEM, and what it sent beside it; empty for none."""
    tls: Any = request.transport.get_extra_info("ssl_object") if request.transport else None
    if not (tls and (shown := tls.getpeercert(binary_form=True))):
        return b""
    # Public from Python 3.13 on. There is none for a session that goes on.
    chain = tls._sslobj.get_unverified_chain()
    if not chain:
        return ssl.DER_cert_to_PEM_cert(shown).encode()
    return "".join(each.public_bytes() for each in chain).encode()


def _peer(request: web.Request) -> str:
    name = request.transport.get_extra_info("peername") if request.transport else None
    if not isinstance(name, tuple):
        return "unix"
    host = f"[{name[0]}]" if ":" in name[0] else name[0]
    return f"{host}:{name[1]}"
