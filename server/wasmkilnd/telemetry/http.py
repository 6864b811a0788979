"""Metrics and health over HTTP, for Prometheus and for probes."""

from __future__ import annotations

import errno
import logging
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import structlog
from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

_KEEPALIVE_S = 75.0
"""Longer than Prometheus' usual interval of 15 to 60 s, so that scrapes share a connection."""
_STOP_S = 1.0


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
        self._socket_file: tuple[Path, int] | None = None
        app = web.Application(client_max_size=1024)
        # GET and HEAD; aiohttp answers 405 to the rest, and 404 elsewhere.
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        app.on_response_prepare.append(_take_banner_away)
        self._runner = web.AppRunner(
            app, access_log=None, keepalive_timeout=_KEEPALIVE_S, shutdown_timeout=_STOP_S
        )

    async def start(self) -> str:
        """Serve; answer the address with its real port. Raises AddressInUse."""
        await self._runner.setup()
        try:
            if self._address.startswith("unix:"):
                return await self._start_unix(Path(self._address.removeprefix("unix:")))
            host, _, port = self._address.rpartition(":")
            await web.TCPSite(self._runner, host.strip("[]"), int(port)).start()
        except OSError as failure:
            await self._runner.cleanup()
            raise AddressInUse(
                f"cannot serve metrics on {self._address}: {_reason(failure)};"
                " choose another address with admin_listen (--admin-listen,"
                " WASMKILN_ADMIN_LISTEN), or switch it off with none"
            ) from None
        return f"{host}:{self._runner.addresses[0][1]}"

    async def stop(self) -> None:
        """Close every connection, and remove the socket's file if it is still ours."""
        await self._runner.cleanup()
        if self._socket_file:
            path, inode = self._socket_file
            # Another daemon may have taken the path over meanwhile.
            if path.exists() and path.stat().st_ino == inode:
                path.unlink()
            self._socket_file = None

    async def _start_unix(self, path: Path) -> str:
        # asyncio removes a socket that is there, dead or alive: it would take a running
        # daemon's from it.
        if _somebody_listens(path):
            raise OSError(errno.EADDRINUSE, "")
        await web.UnixSite(self._runner, path).start()
        path.chmod(0o600)  # noqa: ASYNC240 - one call, on a local file
        self._socket_file = (path, path.stat().st_ino)  # noqa: ASYNC240
        return f"unix:{path}"

    async def _metrics(self, request: web.Request) -> web.Response:
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        return web.Response(body=encode(self._registry), headers={"Content-Type": content_type})

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


def _reason(failure: OSError) -> str:
    match failure.errno:
        case errno.EADDRINUSE:
            return "it is in use already"
        case errno.EADDRNOTAVAIL | None:  # Without a number from Python 3.13 on.
            return "this machine has no such address"
        case errno.EACCES:
            return "permission denied"
    return failure.strerror or str(failure)
