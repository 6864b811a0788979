"""Metrics and health over HTTP, for Prometheus and for probes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder


class AddressInUse(Exception):  # noqa: N818 - says what is the matter
    """The address cannot be listened on; the message says which and what to do."""


class AdminServer:
    """Serves ``/metrics``, ``/healthz`` and ``/readyz``; nothing else, and only to read."""

    def __init__(
        self, address: str, registry: CollectorRegistry, ready: Callable[[], tuple[bool, str]]
    ) -> None:
        """Be about to serve on ``address``: host:port, [v6]:port or unix:/path.

        ``ready`` answers whether calls are served, and why not.
        """
        self._address = address
        self._registry = registry
        self._ready = ready
        app = web.Application(client_max_size=1024)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        self._runner = web.AppRunner(app, access_log=None, keepalive_timeout=15)

    async def start(self) -> str:
        """Serve; answer the address with its real port. Raises AddressInUse."""
        await self._runner.setup()
        try:
            if self._address.startswith("unix:"):
                path = self._address.removeprefix("unix:").removeprefix("//")
                site: web.BaseSite = web.UnixSite(self._runner, path)
                await site.start()
                Path(path).chmod(0o600)  # noqa: ASYNC240 - one call, on a local file
                return self._address
            host, _, port = self._address.rpartition(":")
            site = web.TCPSite(self._runner, host.strip("[]"), int(port))
            await site.start()
        except OSError as failure:
            await self._runner.cleanup()
            raise AddressInUse(
                f"cannot serve metrics on {self._address}: {failure.strerror or failure};"
                " choose another address with --admin-listen or WASMKILN_ADMIN_LISTEN,"
                " or switch it off with none"
            ) from None
        return f"{host}:{self._runner.addresses[0][1]}"

    async def stop(self) -> None:
        """Close every connection."""
        await self._runner.cleanup()

    async def _metrics(self, request: web.Request) -> web.Response:
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        return web.Response(
            body=encode(self._registry), headers={"Content-Type": content_type, "Server": "-"}
        )

    async def _healthz(self, _request: web.Request) -> web.Response:
        return web.Response(text="alive\n", headers={"Server": "-"})

    async def _readyz(self, _request: web.Request) -> web.Response:
        ready, why = self._ready()
        status = 200 if ready else 503
        return web.Response(text=f"{why}\n", status=status, headers={"Server": "-"})
