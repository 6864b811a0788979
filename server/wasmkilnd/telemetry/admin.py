"""The admin server: /metrics, /healthz, /readyz and the status page, at ``admin_listen``.

/healthz says that the process runs; /readyz whether it serves calls, and why not; /metrics is
Prometheus text, or OpenMetrics if asked for. The status page is four files in ``status/``, which a
browser draws from what /status.json says every 2 s; its maker is handed in. A person gives a
browser a token as password. Nothing can be changed here: calls that change the daemon are in
rpc/admin_service. Who may read a page is a row of ``access.guard.PATHS``, as for RPCs.

``web.Door`` accepts the connections, over TLS with ``tls_cert_file``; this file renders for a fifth
of the daemon's time at most.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, TypeAlias

import structlog
from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from wasmkilnd.errors import Reason, WasmkilnError, forget_frames
from wasmkilnd.model import Credentials, Entrance, Identity
from wasmkilnd.telemetry import status
from wasmkilnd.telemetry.audit import Audit
from wasmkilnd.web import COMMON, STRANGE_NAME, Door, challenge, credentials_of, peer_of

log = structlog.get_logger("wasmkilnd.telemetry")

# Returns who calls, or raises CREDENTIALS_MISSING, CREDENTIALS_INVALID or ROLE_MISSING.
#
# Takes the path, the way in, and what reads the caller's credentials if they are needed.
Admit: TypeAlias = Callable[[str, Entrance, Callable[[], Credentials]], Identity]

# Connections that are open at once, and a quarter of them with TLS.
LIMIT: Final = 512
# Idle for longer than between two scrapes of Prometheus, so that they share a connection.
_TIMES: Final[Any] = {"keepalive_timeout": 75.0, "shutdown_timeout": 1.0}
# Scrapers and probes send far less.
_SIZES: Final[Any] = {"max_line_size": 4096, "max_field_size": 4096, "max_headers": 32}
# A browser cannot send a token of its own accord: it asks a person for a name and a password.
_BROWSER_CHALLENGE = 'Basic realm="wasmkiln: any name, and a token as password", charset="UTF-8"'


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

    door: Door
    registry: CollectorRegistry
    # Makes /status.json.
    status_json: Callable[[], bytes]
    # Returns whether the daemon serves calls, and a sentence that says why or why not.
    ready: Callable[[], tuple[bool, str]]
    admit: Admit
    auditor: Audit

    def __post_init__(self) -> None:
        self._shared = SharedPage()
        app = web.Application(client_max_size=1024, middlewares=[self._check])
        # aiohttp answers 405 to methods other than GET and HEAD, and 404 for other paths.
        for path in status.PATHS:
            app.router.add_get(path, self._status)
        for name in ("metrics", "healthz", "readyz"):
            app.router.add_get(f"/{name}", getattr(self, f"_{name}"))
        app.on_response_prepare.append(_remove_banner)
        self._runner = web.AppRunner(app, **COMMON, **_TIMES, **_SIZES)

    async def start(self) -> str:
        """Serve; return the address with its real port. Raise CannotListen."""
        return await self.door.open(self._runner)

    async def stop(self) -> None:
        """Accept no more, close every connection, and remove the socket's file."""
        await self.door.close()
        await self._runner.cleanup()

    @web.middleware
    async def _check(self, request: web.Request, handler: Any) -> web.StreamResponse:
        self.door.asked(request)
        # Requests that came together on one connection must not hold up the others.
        await asyncio.sleep(0)
        if self.door.is_strange(request):
            return web.Response(text=f"{STRANGE_NAME}\n", status=421)
        # Of no page, the path that was sent: whom the guard refuses learns nothing from that.
        resource = request.match_info.route.resource
        page = resource.canonical if resource else request.path
        try:
            self.admit(page, self.door.entrance, partial(_credentials, request, page))
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
        about = {"peer": peer_of(request), "method": page, "reason": refusal.reason.value}
        self.auditor.write("refusal", refusal.identity, str(code), **about)
        answer = web.Response(text=f"{refusal.message}\n", status=code)
        if code == 401:
            browser = [_BROWSER_CHALLENGE] if page in status.PATHS else []
            for told in (challenge(invalid), *browser):
                answer.headers.add("WWW-Authenticate", told)
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


async def _remove_banner(_request: web.Request, response: web.StreamResponse) -> None:
    # aiohttp has set it by now, and would add one if there were none before.
    response.headers.pop("Server", None)


def _credentials(request: web.Request, page: str) -> Credentials:
    found = credentials_of(request)
    if page in status.PATHS and found.authorization.lower().startswith("basic "):
        # What a browser sends for a person counts as a token.
        with suppress(ValueError):
            pair = base64.b64decode(found.authorization[6:].strip(), validate=True).decode()
            return replace(found, authorization=f"Bearer {pair.partition(':')[2]}")
    return found
