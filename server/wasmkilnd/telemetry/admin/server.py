"""Metrics and health over HTTP, for Prometheus and for probes."""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import structlog
from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from wasmkilnd.telemetry.admin.connections import IDLE_S, LIMIT, HttpConnections
from wasmkilnd.telemetry.admin.listener import Listener
from wasmkilnd.telemetry.admin.rendered import Rendered

_STOP_S = 1.0
_PROTOCOL_LIMITS: Final[dict[str, Any]] = {
    # What scrapers and probes send is far smaller.
    "max_line_size": 4096,
    "max_field_size": 4096,
    "max_headers": 64,
    # No page has a use for a body: one that is longer than what came with the request is not
    # read, and none is unpacked.
    "lingering_time": 0.0,
    "auto_decompress": False,
}

# Its handler writes a traceback for every byte that is no HTTP, which any scanner sends.
logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)


class AddressInUse(Exception):  # noqa: N818 - says what is the matter
    """The address cannot be listened on; the message says which, why, and what to do."""


class AdminServer:
    """Serves ``/metrics``, ``/healthz`` and ``/readyz``; nothing else, and only to read."""

    def __init__(
        self, address: str, registry: CollectorRegistry, ready: Callable[[], tuple[bool, str]]
    ) -> None:
        """Be about to serve on ``address``: host:port, [v6]:port or unix:/path.

        ``ready`` answers whether calls are served, and a sentence that says why or why not.
        """
        self._address = address
        self._registry = registry
        self._ready = ready
        self._connections = HttpConnections(LIMIT)
        self._rendered = Rendered()
        self._listener: Listener | None = None
        app = web.Application(client_max_size=1024, middlewares=[self._note_request])
        # GET and HEAD; aiohttp answers 405 to the rest, and 404 elsewhere.
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        app.on_response_prepare.append(_take_banner_away)
        self._runner = web.AppRunner(
            app,
            access_log=None,
            keepalive_timeout=IDLE_S,
            shutdown_timeout=_STOP_S,
            **_PROTOCOL_LIMITS,
        )

    async def start(self) -> str:
        """Serve; return the address with its real port. Raises AddressInUse."""
        await self._runner.setup()
        self._listener = Listener(self._protocol, self._connections)
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
            raise ConnectionAbortedError("the admin server has ended")
        return server()

    @web.middleware
    async def _note_request(
        self,
        request: web.Request,
        handler: Callable[[web.Request], Awaitable[web.StreamResponse]],
    ) -> web.StreamResponse:
        with self._connections.answering(request.transport):
            # Of requests that came together, each lets everybody else have a turn first.
            await asyncio.sleep(0)
            return await handler(request)

    async def _metrics(self, request: web.Request) -> web.Response:
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        page = await self._rendered.get(content_type, lambda: encode(self._registry))
        return web.Response(body=page, headers={"Content-Type": content_type})

    async def _healthz(self, _request: web.Request) -> web.Response:
        return web.Response(text="alive\n")

    async def _readyz(self, _request: web.Request) -> web.Response:
        try:
            ready, why = self._ready()
        except Exception as failure:  # who cannot tell is not ready
            structlog.get_logger().error("readiness check failed", error=repr(failure))
            ready, why = False, "the readiness check failed"
        return web.Response(text=f"{why}\n", status=200 if ready else 503)


async def _take_banner_away(_request: web.Request, response: web.StreamResponse) -> None:
    # After aiohttp has set it: setting another beforehand would only change the words.
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
