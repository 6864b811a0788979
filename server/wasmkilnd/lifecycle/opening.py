"""Opens the parts of a daemon that outlive a call, each with what closes it in the right order."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import structlog

from wasmkilnd.access.guard import AccessGuard
from wasmkilnd.access.tls import TlsFiles
from wasmkilnd.cache.embedded import EmbeddedServer, SharedServer
from wasmkilnd.cache.host_store import HostDirectory
from wasmkilnd.cache.redis_servers import AccessUnusable
from wasmkilnd.engines.registry import EngineRegistry
from wasmkilnd.lifecycle.engines import served_engines
from wasmkilnd.lifecycle.listening import (
    Bound,
    bound_addresses,
    checks_host,
    listeners,
    open_admin_socket,
    open_tls,
    socket_access,
    tls_status,
)
from wasmkilnd.lifecycle.preflight import CannotStart
from wasmkilnd.lifecycle.readiness import Readiness
from wasmkilnd.lifecycle.serve_namespaces import refusal
from wasmkilnd.lifecycle.shutdown import Shutdown, until
from wasmkilnd.model import Limits, NamespaceLimits, Reloadable
from wasmkilnd.options import host_options, redis_access
from wasmkilnd.quota import FairShare
from wasmkilnd.rpc.server import CannotListen, RpcServer
from wasmkilnd.setting_values import NONE
from wasmkilnd.settings import Settings
from wasmkilnd.signing.keys import KeysUnusable, open_keys
from wasmkilnd.signing.sealer import Sealer
from wasmkilnd.telemetry.admin import AddressInUse, AdminServer, Pages
from wasmkilnd.telemetry.audit import Audit, CannotAudit
from wasmkilnd.telemetry.metrics import Metrics
from wasmkilnd.telemetry.tracing import Tracing, open_tracing
from wasmkilnd.tenants import Common, Tenants

_FLUSH_S = 5.0


class Opening:
    """Opens each part once; ``on_stop`` closes them, the last opened first."""

    def __init__(
        self,
        settings: Reloadable[Settings],
        limits: Reloadable[Limits],
        metrics: Metrics,
        on_stop: AsyncExitStack,
        shutdown: Shutdown,
    ) -> None:
        """A ``shutdown`` that hurries skips what is not needed to end."""
        self._settings = settings
        self._limits = limits
        self._metrics = metrics
        self._on_stop = on_stop
        self._shutdown = shutdown

    async def audit(self) -> Audit:
        """Open the audit. Raises CannotStart."""
        audit = Audit(self._metrics.audit_lost)
        try:
            begin = await asyncio.to_thread(audit.prepare, self._settings.current.audit_file)
        except CannotAudit as failure:
            raise CannotStart(str(failure)) from None
        begin()
        self._on_stop.callback(audit.close)
        return audit

    async def tracing(self) -> Tracing | None:
        """Open the traces; None where they are off. Raises TracingUnusable."""
        traces = await asyncio.to_thread(open_tracing, self._settings, self._metrics.version)
        if traces:
            self._on_stop.push_async_callback(asyncio.to_thread, traces.close)
        return traces

    async def tls(self) -> TlsFiles | None:
        """Read the files of TLS; None where it is off. Raises CannotStart."""
        files = await asyncio.to_thread(open_tls, self._settings.current)
        if files:
            self._metrics.gauges.tls = tls_status(files)
        return files

    async def listen(self, rpc: RpcServer, tls: TlsFiles | None) -> Bound:
        """Serve gRPC; return the addresses. Raises CannotStart."""
        settings = self._settings.current
        self._on_stop.push_async_callback(rpc.stop)
        wanted, sockets = listeners(settings, tls), socket_access(settings)
        try:
            bound = await rpc.start(wanted, sockets)
            open_admin_socket(settings, sockets)
        except CannotListen as failure:
            raise CannotStart(str(failure)) from None
        return bound_addresses(settings, wanted, bound)

    async def sealer(self) -> Sealer:
        """Open the keys. Raises CannotStart."""
        settings = self._settings.current
        try:
            keys = await asyncio.to_thread(open_keys, settings)
        except KeysUnusable as failure:
            raise CannotStart(str(failure)) from None
        structlog.get_logger("wasmkilnd.keys").info(
            "signing artifacts", key_id=keys.own_id, trusted_keys=len(keys.trusted)
        )
        return Sealer(keys, self._metrics.version, max_age_s=settings.value_max_age_s)

    async def tenants(
        self,
        namespaces: Mapping[str, NamespaceLimits],
        engines: EngineRegistry,
        sealer: Sealer,
    ) -> Tenants:
        """Open the caches and services of each namespace. Raises CannotStart."""
        if why := refusal(self._settings.current, namespaces):
            raise CannotStart(why)
        settings = self._settings.current
        try:
            server = SharedServer(
                settings.redis_url.get_secret_value(),
                redis_access(settings),
                EmbeddedServer(settings.state_dir, settings.embedded_redis_bytes),
                timeout_s=settings.redis_timeout_s,
            )
        except AccessUnusable as failure:
            raise CannotStart(str(failure)) from None
        self._on_stop.push_async_callback(self._unless_hurried, server.embedded.stop)
        self._on_stop.push_async_callback(server.close)
        await server.start()
        common = Common(
            settings=self._settings,
            metrics=self._metrics,
            server=server,
            host=HostDirectory(host_options(self._settings.current)),
            engines=engines,
            served_engines=partial(served_engines, engines),
            held=FairShare(lambda: 2 * self._limits.current.queue_bytes),
            # So that most workers stay free for callers.
            slots=asyncio.Semaphore(max(1, self._settings.current.effective_workers // 2)),
            sealer=sealer,
        )
        tenants = Tenants(common, namespaces)
        self._on_stop.push_async_callback(tenants.close)
        self._on_stop.push_async_callback(self._unless_hurried, tenants.flush, _FLUSH_S)
        await tenants.start()
        return tenants

    async def admin(
        self,
        readiness: Readiness,
        guard: AccessGuard,
        auditor: Audit,
        tls: TlsFiles | None,
        pages: Pages,
    ) -> str:
        """Serve metrics, health and ``pages``; return the address, empty for none.

        Raises CannotStart.
        """
        address = self._settings.current.admin_listen
        if address == NONE:
            return ""
        admin = AdminServer(
            address,
            self._metrics.registry,
            readiness.now,
            guard,
            auditor,
            (lambda: tls.current.http_context) if tls else None,
            pages,
            checks_host=checks_host(self._settings.current),
        )
        try:
            address = await admin.start()
        except AddressInUse as failure:
            raise CannotStart(str(failure)) from None
        self._on_stop.push_async_callback(admin.stop)
        return address

    async def _unless_hurried(self, work: Callable[..., Any], *arguments: Any) -> None:
        await until(self._shutdown.hurried, work(*arguments))
