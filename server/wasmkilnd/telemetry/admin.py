"""The admin server: /metrics, /healthz, /readyz and the status page, at ``admin_listen``.

/healthz says that the process runs; /readyz whether it serves calls, and why not; /metrics is
Prometheus text, or OpenMetrics if asked for. The status page is four files in ``status/``, which a
browser draws from what /status.json says every 2 s; its maker is handed in. A person gives a
browser a token as password. Nothing can be changed here: calls that change the daemon are in
rpc/admin_service. Who may read a page is a row of ``access.guard.PATHS``, as for RPCs.

With ``tls_cert_file``, TCP connections speak TLS. The certificates in force are asked for as each
connection comes, so that those that change harm no other. A client may show a certificate, and
need not: a token will do.

aiohttp speaks HTTP; this file accepts connections, a bounded number in all and in a second, and
renders for a fifth of the daemon's time at most. Of the host with most connections, the one makes
way for a new one that has sent no request, or none for longest. So strangers at this port take
nothing from calls, jobs, scrapes and probes, and no line of the log is written for each of them.
aiohttp's own listener cannot do that: it takes all who wait at once, and knows a connection only
after its TLS handshake, so that 500 silent ones hold 500 descriptors.
tests/e2e/test_admin_port.py attacks a running daemon to show it.
"""

from __future__ import annotations

import asyncio
import base64
import ipaddress
import logging
import os
import re
import socket
import ssl
from collections import Counter
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeAlias

import structlog
from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from wasmkilnd.errors import Reason, WasmkilnError, forget_frames
from wasmkilnd.model import Credentials, Entrance, Identity, Transport
from wasmkilnd.network import address_of, host_of, is_listening
from wasmkilnd.telemetry import status
from wasmkilnd.telemetry.audit import Audit

log = structlog.get_logger("wasmkilnd.telemetry")

# Returns who calls, or raises CREDENTIALS_MISSING, CREDENTIALS_INVALID or ROLE_MISSING.
#
# Takes the path, the way in, and what reads the caller's credentials if they are needed.
Admit: TypeAlias = Callable[[str, Entrance, Callable[[], Credentials]], Identity]

# Connections that are open at once.
LIMIT: Final = 512
# The same with TLS: asyncio keeps a quarter of a MiB for each.
TLS_LIMIT: Final = 128
# After each connection the rest of the daemon gets its turn. A handshake takes a millisecond.
_PAUSE_S, _TLS_PAUSE_S = 0.001, 0.004
# Idle for longer than between two scrapes of Prometheus, so that they share a connection.
_TIMES: Final[Any] = {"keepalive_timeout": 75.0, "shutdown_timeout": 1.0}
# Scrapers and probes send far less.
_SIZES: Final[Any] = {"max_line_size": 4096, "max_field_size": 4096, "max_headers": 64}
# No page uses a body, so the server reads no more of one than came with the request, and unpacks
# none.
_BODIES: Final[Any] = {"lingering_time": 0.0, "auto_decompress": False}
# A browser cannot send a token of its own accord: it asks a person for a name and a password.
_BROWSER_CHALLENGE = 'Basic realm="wasmkiln: any name, and a token as password", charset="UTF-8"'
_STRANGE_NAME = "ask for localhost or an IP address: websites could take any other name\n"
# aiohttp logs a traceback for every byte that is not HTTP, and any scanner sends some.
logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)


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

    async def get(self, kind: str, render: Callable[[], bytes]) -> bytes:
        """Return what ``render`` returns; calls with the same ``kind`` share it."""
        if kind not in self._next:
            self._next[kind] = asyncio.create_task(self._render(kind, render))
        return await asyncio.shield(self._next[kind])

    async def _render(self, kind: str, render: Callable[[], bytes]) -> bytes:
        # One kind after the other, so that many kinds take no more time than one.
        await self._turn.acquire()
        del self._next[kind]  # a request that comes from here on gets the next page
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        try:
            return render()
        finally:
            loop.call_later(4.0 * (loop.time() - began_s), self._turn.release)


@dataclass(eq=False)
class AdminServer:
    """Serves metrics, health and the status page, for GET and HEAD alone."""

    # Where: host:port, [v6]:port or unix:/path.
    address: str
    registry: CollectorRegistry
    # Makes /status.json.
    status_json: Callable[[], bytes]
    # Returns whether the daemon serves calls, and a sentence that says why or why not.
    ready: Callable[[], tuple[bool, str]]
    admit: Admit
    auditor: Audit
    # Returns what new TCP connections are made with; None for plaintext.
    tls: Callable[[], ssl.SSLContext] | None = None
    # Whether a request has to name this machine by an IP address or as localhost.
    checks_host: bool = False

    def __post_init__(self) -> None:
        unix = self.address.startswith("unix:")
        self._path = Path(self.address.removeprefix("unix:")) if unix else None
        self._tls = None if unix else self.tls
        transport = Transport.TLS if self._tls else Transport.PLAINTEXT
        self._entrance = Entrance(Transport.UNIX, self.address) if unix else Entrance(transport)
        self._shared = SharedPage()
        self._sockets: list[socket.socket] = []
        # By aiohttp's protocol, whose host is at the other end, and whether it has asked for a
        # page. The one that asked last is the last; some are closed.
        self._open: dict[Any, tuple[socket.socket, str, bool]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        app = web.Application(client_max_size=1024, middlewares=[self._check])
        # aiohttp answers 405 to methods other than GET and HEAD, and 404 for other paths.
        for path in status.PATHS:
            app.router.add_get(path, self._status)
        for name in ("metrics", "healthz", "readyz"):
            app.router.add_get(f"/{name}", getattr(self, f"_{name}"))
        app.on_response_prepare.append(_remove_banner)
        self._runner = web.AppRunner(app, access_log=None, **_TIMES, **_SIZES, **_BODIES)

    async def start(self) -> str:
        """Serve; return the address with its real port. Raise AddressInUse."""
        await self._runner.setup()
        try:
            await self._listen()
        except OSError as failure:
            await self.stop()
            raise AddressInUse(
                f"cannot serve metrics on {self.address}: {failure.strerror}; set admin_listen"
                " (WASMKILN_ADMIN_LISTEN) to another address, or to none"
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
        if self._path:
            with suppress(OSError):
                _remove_dead(self._path)

    async def _listen(self) -> None:
        if self._path:
            _remove_dead(self._path)
            before = os.umask(0o177)  # nobody else can connect before the file has its mode
            try:
                sock = socket.create_server(str(self._path), family=socket.AF_UNIX, backlog=LIMIT)
            finally:
                os.umask(before)
            self._sockets.append(sock)
            return
        host, _, port = self.address.rpartition(":")
        found = await asyncio.get_running_loop().getaddrinfo(
            host.strip("[]"), int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        for family, _, _, _, where in dict.fromkeys(found):
            self._sockets.append(socket.create_server(where, family=family, backlog=LIMIT))

    async def _accept(self, listening: socket.socket) -> None:
        while True:
            await asyncio.sleep(_TLS_PAUSE_S if self._tls else _PAUSE_S)
            try:
                sock, address = await asyncio.get_running_loop().sock_accept(listening)
            except OSError as failure:
                log.warning("cannot accept connections to the admin server", cause=str(failure))
                await asyncio.sleep(1.0)
                continue
            self._make_room()
            handler: Any = self._runner.server()  # type: ignore[misc]
            host = "unix" if self._path else host_of(address_of(address[0]))
            self._open[handler] = sock, host, False
            self._in_background(self._serve(sock, handler))

    def _make_room(self) -> None:
        self._open = {at: each for at, each in self._open.items() if each[0].fileno() >= 0}
        if len(self._open) < (TLS_LIMIT if self._tls else LIMIT):
            return
        held = Counter(host for _, host, _ in self._open.values())
        # Of those that are equal, the first.
        last = min(self._open, key=lambda at: (-held[self._open[at][1]], self._open[at][2]))
        with suppress(OSError):  # the client has left
            self._open.pop(last)[0].shutdown(socket.SHUT_RDWR)  # then asyncio closes it

    async def _serve(self, sock: socket.socket, handler: Any) -> None:
        tls, loop = self._tls and self._tls(), asyncio.get_running_loop()
        try:
            await loop.connect_accepted_socket(lambda: handler, sock, ssl=tls)
        except OSError:  # of which those of TLS are some
            sock.close()

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    @web.middleware
    async def _check(self, request: web.Request, handler: Any) -> web.StreamResponse:
        if known := self._open.pop(request.protocol, None):
            self._open[request.protocol] = *known[:2], True
        # Requests that came together on one connection must not hold up the others.
        await asyncio.sleep(0)
        # A website that a person visits may have its name resolve to 127.0.0.1. The browser then
        # takes this port for a part of that website, whose scripts read what it answers. Browsers
        # always send ``Host``: a request without it comes from none.
        if self.checks_host and not all(map(_is_ours, request.headers.getall("Host", ()))):
            return web.Response(text=_STRANGE_NAME, status=421)
        # Of no page, the path that was sent: whom the guard refuses learns nothing from that.
        resource = request.match_info.route.resource
        page = resource.canonical if resource else request.path
        try:
            self.admit(page, self._entrance, partial(_credentials, request, page))
            answer: web.StreamResponse = await handler(request)
        except WasmkilnError as refusal:
            forget_frames(refusal)
            return self._refused(request, page, refusal)
        except web.HTTPException:
            raise
        except Exception as failure:
            log.error("cannot answer at the admin port", page=page, error=repr(failure))
            return web.Response(text="the daemon failed: see its log\n", status=503)
        return answer

    def _refused(self, request: web.Request, page: str, refusal: WasmkilnError) -> web.Response:
        invalid = refusal.reason is Reason.CREDENTIALS_INVALID
        code = 401 if invalid or refusal.reason is Reason.CREDENTIALS_MISSING else 403
        about = {"peer": _peer(request), "method": page, "reason": refusal.reason.value}
        self.auditor.write("refusal", refusal.identity, str(code), **about)
        answer = web.Response(text=f"{refusal.message}\n", status=code)
        if code == 401:
            error = ', error="invalid_token"' if invalid else ""
            browser = [_BROWSER_CHALLENGE] if page in status.PATHS else []
            for challenge in (f'Bearer realm="wasmkiln"{error}', *browser):
                answer.headers.add("WWW-Authenticate", challenge)
        return answer

    async def _metrics(self, request: web.Request) -> web.Response:
        encode, kind = choose_encoder(request.headers.get("Accept", ""))
        page = await self._shared.get(kind, partial(encode, self.registry))
        return web.Response(body=page, headers={"Content-Type": kind})

    async def _healthz(self, _request: web.Request) -> web.Response:
        return web.Response(text="alive\n")

    async def _readyz(self, _request: web.Request) -> web.Response:
        ready, why = self.ready()
        return web.Response(text=f"{why}\n", status=200 if ready else 503)

    async def _status(self, request: web.Request) -> web.Response:
        body, kind = status.FILES.get(request.path, (b"", "application/json"))
        if not body:
            body = await self._shared.get(kind, self.status_json)
        return web.Response(body=body, headers={"Content-Type": kind, **status.HEADERS})


def _remove_dead(path: Path) -> None:
    # The file may belong to another daemon that runs, which must not lose it.
    if path.is_socket() and not is_listening(path):
        path.unlink()


async def _remove_banner(_request: web.Request, response: web.StreamResponse) -> None:
    # aiohttp has set it by now, and would add one if there were none before.
    response.headers.pop("Server", None)


def _is_ours(host: str) -> bool:
    name = re.sub(r":[0-9]*$", "", host).lower().rstrip(".")
    with suppress(ValueError):
        return bool(ipaddress.ip_address(name.strip("[]")))
    return name == "localhost" or name.endswith(".localhost")


def _credentials(request: web.Request, page: str) -> Credentials:
    # Of two, a proxy may have checked the other one. Together they are no token.
    authorization = ", ".join(request.headers.getall("Authorization", ()))
    if page in status.PATHS and authorization.lower().startswith("basic "):
        # What a browser sends for a person counts as a token.
        with suppress(ValueError):
            pair = base64.b64decode(authorization[6:].strip(), validate=True).decode()
            authorization = f"Bearer {pair.partition(':')[2]}"
    return Credentials(authorization, _certificate(request))


def _certificate(request: web.Request) -> bytes:
    """Return the client's certificate as PEM, and what it sent beside it; empty for none."""
    tls = request.get_extra_info("ssl_object")
    if not (tls and (shown := tls.getpeercert(binary_form=True))):
        return b""
    # Public from Python 3.13 on. There is none for a session that goes on.
    chain = tls._sslobj.get_unverified_chain() or ()
    pem = "".join(each.public_bytes() for each in chain) or ssl.DER_cert_to_PEM_cert(shown)
    return pem.encode()


def _peer(request: web.Request) -> str:
    name = request.get_extra_info("peername")
    if not isinstance(name, tuple):
        return "unix"
    return f"[{name[0]}]:{name[1]}" if ":" in name[0] else f"{name[0]}:{name[1]}"
