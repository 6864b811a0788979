"""Opens the parts of a daemon that outlive a call, each with what closes it in the right order."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

from wasmkilnd.access.tls.files import TlsFiles
from wasmkilnd.cache.open_host import OpenHost, open_host
from wasmkilnd.cache.open_shared import CannotOpenShared, SharedTier, open_shared
from wasmkilnd.cache.value.marks import Marks
from wasmkilnd.config.schema import Settings
from wasmkilnd.config.values.types import NO_ADMIN
from wasmkilnd.engines.registry import EngineRegistry
from wasmkilnd.lifecycle.auditing import CannotAudit, end_audit, open_target
from wasmkilnd.lifecycle.listening import (
    Bound,
    bound_addresses,
    listen_groups,
    open_tls,
    socket_access,
    tls_status,
)
from wasmkilnd.lifecycle.preflight import CannotStart
from wasmkilnd.lifecycle.readiness import Readiness
from wasmkilnd.lifecycle.served_engines import served_engines
from wasmkilnd.lifecycle.shutdown import Shutdown, until
from wasmkilnd.model import Limits
from wasmkilnd.options import host_options, remote_options
from wasmkilnd.reloadable import Reloadable
from wasmkilnd.rpc.listener import CannotListen
from wasmkilnd.rpc.server import RpcServer
from wasmkilnd.rpc.wire.headers import header_of
from wasmkilnd.signing.ring import CurrentSealer, Signing, log_keys, open_signing
from wasmkilnd.signing.store import KeysUnusable
from wasmkilnd.telemetry.admin.server import AddressInUse, AdminServer
from wasmkilnd.telemetry.audit.audit import Audit
from wasmkilnd.telemetry.metrics.recorder import Metrics

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
        try:
            target = await asyncio.to_thread(open_target, self._settings.current)
        except CannotAudit as failure:
            raise CannotStart(str(failure)) from None
        audit = Audit(target, self._metrics.audit_lost)
        self._on_stop.callback(end_audit, audit)
        return audit

    async def tls(self) -> TlsFiles | None:
        """Read the files of TLS, and again when they change; None for none. Raises CannotStart."""
        files = await asyncio.to_thread(open_tls, self._settings.current)
        if files:
            self._metrics.gauges.tls = tls_status(files)
            following = asyncio.create_task(files.follow())
            self._on_stop.push_async_callback(_ended, following)
        return files

    async def listen(self, rpc: RpcServer, tls: TlsFiles | None) -> Bound:
        """Serve gRPC; return the addresses. Raises CannotStart."""
        settings = self._settings.current
        self._on_stop.push_async_callback(rpc.stop)
        groups = listen_groups(settings, tls)
        try:
            bound = await rpc.start(groups, socket_access(settings))
        except CannotListen as failure:
            raise CannotStart(str(failure)) from None
        return bound_addresses(settings, groups, bound)

    async def signing(self) -> Reloadable[Signing]:
        """Open the keys. Raises CannotStart."""
        try:
            signing = await asyncio.to_thread(self.read_signing)
        except KeysUnusable as failure:
            raise CannotStart(str(failure)) from None
        log_keys(signing)
        return Reloadable(signing)

    def read_signing(self) -> Signing:
        """Read the keys that the current settings name. May block. Raises KeysUnusable."""
        return open_signing(self._settings.current, self._metrics.version)

    async def host(self, sealer: CurrentSealer, marks: Marks, engines: EngineRegistry) -> OpenHost:
        """Open the host store; never raise."""
        settings = self._settings.current
        host = open_host(
            host_options(settings),
            sealer,
            self._metrics,
            marks,
            header_of=header_of,
            # So that a disk that hangs leaves a call time to ask Redis.
            wait_s=settings.redis_timeout_s / 2,
            artifact_bytes=lambda: self._limits.current.artifact_bytes,
            write_queue_bytes=lambda: self._settings.current.effective_write_queue_bytes,
        )
        host.engines = served_engines(engines)
        self._on_stop.push_async_callback(host.close)
        self._on_stop.push_async_callback(self._unless_hurried, host.flush, _FLUSH_S)
        self._metrics.gauges.tiers["host_store"] = host.store.usage
        self._metrics.gauges.host = host.status
        await host.start()
        return host

    async def remote(self, sealer: CurrentSealer, marks: Marks) -> SharedTier:
        """Open the shared tier. Raises CannotStart."""
        options = remote_options(self._settings)
        try:
            remote = await open_shared(options, sealer, self._metrics, marks)
        except CannotOpenShared as failure:
            raise CannotStart(str(failure)) from None
        self._on_stop.push_async_callback(self._unless_hurried, remote.leave)
        self._on_stop.push_async_callback(remote.close)
        self._on_stop.push_async_callback(self._unless_hurried, remote.flush, _FLUSH_S)
        self._metrics.gauges.tiers["redis"] = remote.tier.usage
        self._metrics.gauges.remote = remote.status
        return remote

    async def admin(self, readiness: Readiness) -> str:
        """Serve metrics and health; return the address, empty for none. Raises CannotStart."""
        address = self._settings.current.admin_listen
        if address == NO_ADMIN:
            return ""
        admin = AdminServer(address, self._metrics.registry, readiness.now)
        try:
            address = await admin.start()
        except AddressInUse as failure:
            raise CannotStart(str(failure)) from None
        self._on_stop.push_async_callback(admin.stop)
        return address

    async def _unless_hurried(self, work: Callable[..., Any], *arguments: Any) -> None:
        await until(self._shutdown.hurried, work(*arguments))


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
