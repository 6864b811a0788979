"""The admin server: metrics and health over HTTP or HTTPS, for Prometheus and for probes."""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import structlog
from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from wasmkilnd.model import Entrance, Transport
from wasmkilnd.ports import Auditor, Guard
from wasmkilnd.telemetry.admin.access import Doorkeeper
from wasmkilnd.telemetry.admin.connections import IDLE_S, LIMIT, HttpConnections
from wasmkilnd.telemetry.admin.listener import Listener
from wasmkilnd.telemetry.admin.names import Names
from wasmkilnd.telemetry.admin.pages import Pages, add_pages
from wasmkilnd.telemetry.admin.pending import Context
from wasmkilnd.telemetry.admin.shared_page import SharedPage

_STOP_S = 1.0
_PROTOCOL_LIMITS: Final[dict[str, Any]] = {
    # Scrapers and probes send far less.
    "max_line_size": 4096,
    "max_field_size": 4096,
    "max_headers": 64,
    # No page uses a body, so the server reads no more of one than came with the request, and
    # unpacks none.
    "lingering_time": 0.0,
    "auto_decompress": False,
}

# aiohttp logs a traceback for every byte that is not HTTP, and any scanner sends some.
logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)


class AddressInUse(Exception):  # noqa: N818 - the name says what is wrong
    """The server cannot listen on its address; the message says which, why, and what to do."""


class AdminServer:
    """Serves ``/metrics``, ``/healthz``, ``/readyz`` and ``pages``, for GET and HEAD alone."""

    def __init__(
        self,
        address: str,
        registry: CollectorRegistry,
        ready: Callable[[], tuple[bool, str]],
        guard: Guard,
        auditor: Auditor,
        tls: Context | None = None,
        pages: Pages = MappingProxyType({}),
        names: Names | None = None,
    ) -> None:
        """Prepare to serve on ``address``: host:port, [v6]:port or unix:/path.

        ``ready`` returns whether the daemon serves calls, and a sentence that says why or why not.
        With ``tls``, TCP connections speak TLS; it returns what new ones are made with. ``pages``
        are for browsers. Requests need one of ``names``, where there are any.
        """
        self._address = address
        self._names = names
        self._registry = registry
        self._ready = ready
        unix = address.startswith("unix:")
        self._tls = None if unix else tls
        transport = Transport.TLS if self._tls else Transport.PLAINTEXT
        entrance = Entrance(Transport.UNIX, address) if unix else Entrance(transport)
        self._doorkeeper = Doorkeeper(guard, auditor, entrance, pages)
        self._connections = HttpConnections(LIMIT)
        self._page = SharedPage()
        self._listener: Listener | None = None
        app = web.Application(client_max_size=1024, middlewares=[self._note_request])
        # aiohttp answers 405 to methods other than GET and HEAD, and 404 for other paths.
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        add_pages(app, pages, self._page)
        app.on_response_prepare.append(_remove_banner)
        self._runner = web.AppRunner(
            app,
            access_log=None,
            keepalive_timeout=IDLE_S,
            shutdown_timeout=_STOP_S,
            **_PROTOCOL_LIMITS,
        )

    async def start(self) -> str:
        """Serve; return the address with its real port. Raise AddressInUse."""
        await self._runner.setup()
        self._listener = Listener(self._protocol, self._connections, self._tls)
        try:
            if self._address.startswith("unix:"):
                path = self._address.removeprefix("unix:")
                await self._listener.start_unix(Path(path))
                return self._address
            host, _, port = self._address.rpartition(":")
            return f"{host}:{await self._listener.start_tcp(host.strip('[]'), int(port))}"
        except OSError as failure:
            await self._runner.cleanup()
            raise AddressInUse(
                f"cannot serve metrics on {self._address}: {_reason(failure)};"
                " choose another address with admin_listen (--admin-listen,"
                " WASMKILN_ADMIN_LISTEN), or switch it off with none"
            ) from None

    async def stop(self) -> None:
        """Accept no more, and close every connection."""
        if self._listener:
            await self._listener.stop()
        await self._runner.cleanup()

    def _protocol(self) -> asyncio.Protocol:
        server = self._runner.server
        if server is None:
            raise ConnectionAbortedError("the admin server has stopped")
        return server()

    @web.middleware
    async def _note_request(
        self,
        request: web.Request,
        handler: Callable[[web.Request], Awaitable[web.StreamResponse]],
    ) -> web.StreamResponse:
        with self._connections.answering(request.transport):
            # Requests that came together on one connection must not hold up the others.
            await asyncio.sleep(0)
            refusal = self._names.refuse(request) if self._names else None
            return refusal or self._doorkeeper.refuse(request) or await handler(request)

    async def _metrics(self, request: web.Request) -> web.Response:
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        page = await self._page.get(content_type, lambda: encode(self._registry))
        return web.Response(body=page, headers={"Content-Type": content_type})

    async def _healthz(self, _request: web.Request) -> web.Response:
        return web.Response(text="alive\n")

    async def _readyz(self, _request: web.Request) -> web.Response:
        try:
            ready, why = self._ready()
        except Exception as failure:
            structlog.get_logger().error("readiness check failed", error=repr(failure))
            ready, why = False, "the readiness check failed"
        return web.Response(text=f"{why}\n", status=200 if ready else 503)


async def _remove_banner(_request: web.Request, response: web.StreamResponse) -> None:
    # aiohttp has set it by now, and would add one if there were none before.
    response.headers.pop("Server", None)


def _reason(failure: OSError) -> str:
    match failure.errno:
        case errno.EADDRINUSE:
            return "it is in use already"
        case errno.EADDRNOTAVAIL | None:  # Without a number from Python 3.13 on.
            return "this machine has no such address"
        case errno.EACCES:
            return "permission denied"
    return failure.strerror or str(failure)
