"""Builds what serves one namespace: caches, quarantine, verdicts and services."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import structlog

from wasmkilnd.admission import Admission
from wasmkilnd.cache.cache import Cache
from wasmkilnd.cache.embedded import SharedServer
from wasmkilnd.cache.fleet import Fleet, Strikes
from wasmkilnd.cache.host_store import HostDirectory, HostStore
from wasmkilnd.cache.memory import MemoryTier
from wasmkilnd.cache.redis_store import RedisStore
from wasmkilnd.compile_service import CompileService
from wasmkilnd.compiles_behind import BehindSlots
from wasmkilnd.config.schema import Settings
from wasmkilnd.engines.registry import EngineRegistry
from wasmkilnd.model import DEFAULT_NAMESPACE, HostStatus, Limits, RemoteStatus
from wasmkilnd.module_service import ModuleService
from wasmkilnd.pins import Pins, file_of
from wasmkilnd.ports import Engines, Recorder, Tracing
from wasmkilnd.quarantine import Quarantine
from wasmkilnd.reloadable import Reloadable
from wasmkilnd.rpc.wire.headers import header_of
from wasmkilnd.signing.sealer import Sealer
from wasmkilnd.telemetry.metrics.recorder import Metrics
from wasmkilnd.tenant import Tenant
from wasmkilnd.tenants.recorders import BothRecorders
from wasmkilnd.tenants.shares import Share
from wasmkilnd.usage import Usage
from wasmkilnd.whole_files import SharedFile

LOOK_EVERY_S = 30.0
"""How long it takes at most until a daemon knows what another one pins and uses."""

log = structlog.get_logger("wasmkilnd.tenants")


@dataclass(frozen=True, slots=True)
class Common:
    """What all namespaces share: nothing of it holds what a tenant stored."""

    settings: Reloadable[Settings]
    limits: Reloadable[Limits]
    metrics: Metrics
    """Of the whole daemon."""
    server: SharedServer
    host: HostDirectory
    engines: EngineRegistry
    served_engines: Callable[[], Mapping[str, Any]]
    """Returns what each host store keeps as ``engines.json``."""
    admission: Admission
    behind: BehindSlots
    sealer: Sealer
    tracing: Tracing | None = None


@dataclass(kw_only=True, eq=False, repr=False)
class OpenTenant:
    """What serves one namespace, and what comes and goes with it."""

    tenant: Tenant
    memory: MemoryTier
    host: HostStore
    redis: RedisStore | None
    """None where the settings switch Redis off."""
    cache: Cache
    fleet: Fleet
    usage: Usage
    mode: str
    """As in RemoteStatus."""
    metrics: Metrics
    """Of the namespace alone; of the default one, those of the whole daemon."""
    _wake: asyncio.Event = field(default_factory=asyncio.Event)
    _looking: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Make the host store ready, and begin to watch Redis; never raise."""
        await self.tenant.pins.read()  # First: a tier that opens makes room.
        await asyncio.gather(self.host.start(), *([self.redis.start()] if self.redis else []))
        self._looking = asyncio.create_task(self._look_for_ever())

    def look_soon(self) -> None:
        """Look after pins and uses as soon as possible."""
        self._wake.set()

    def resize(self, share: Share) -> None:
        """Hold no more than ``share`` from now on."""
        self.memory.resize(share.memory_bytes)
        self.tenant.pins.namespaces = share.namespaces
        if share.host_store_bytes:
            self.host.limit_bytes = share.host_store_bytes

    def host_status(self) -> HostStatus:
        """Return whether the host store can be used, and the writes that wait or were given up."""
        writes = self.cache.host_writes
        if not self.host.is_on:
            return HostStatus()
        dropped = writes.dropped + self.host.skipped
        return HostStatus(len(writes.items()), dropped, is_on=True, up=self.host.is_well)

    def remote_status(self) -> RemoteStatus:
        """Return whether Redis answers, and how many writes to it wait."""
        return self.cache.remote_status(self.mode)

    async def flush(self, timeout_s: float) -> None:
        """Write what waits, for at most ``timeout_s``; look after nothing any more."""
        if self._looking:
            self._looking.cancel()
        saving = asyncio.wait_for(self.usage.save(last=True), timeout_s)
        await asyncio.gather(
            self.cache.flush(timeout_s), asyncio.gather(saving, return_exceptions=True)
        )

    async def close(self) -> None:
        """Drop the writes that wait, and close, without waiting; see flush."""
        if self._looking:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)
        await self.fleet.close()
        await self.cache.close()
        await self.host.close()

    async def _look_for_ever(self) -> None:
        while True:
            self._wake.clear()
            for look in (self.tenant.pins.look, self.usage.save):
                try:
                    await look()
                except Exception:
                    log.exception("a defect keeps pins or uses from being looked after")
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), LOOK_EVERY_S)


def open_tenant(
    namespace: str, share: Share, write_queue_bytes: Callable[[], int], common: Common
) -> OpenTenant:
    """Build what serves ``namespace``; see ``OpenTenant.start``.

    ``write_queue_bytes`` returns how much may wait to be written to each tier.
    """
    settings, whole, sealer = common.settings.current, common.metrics, common.sealer
    metrics = whole if namespace == DEFAULT_NAMESPACE else Metrics(whole.version)
    recorder: Recorder = whole if metrics is whole else BothRecorders(whole, metrics)
    tracing = common.tracing
    if tracing:
        recorder = BothRecorders(recorder, tracing.recorder())
    link, prefix = common.server.link, settings.redis_prefix
    if namespace:
        prefix += f"ns:{namespace}:"

    def artifact_bytes() -> int:
        return common.settings.current.max_artifact_bytes

    def fleet_wait_s() -> float:
        # The daemon that compiles has succeeded or failed by then.
        return common.settings.current.compile_timeout_s + settings.compile_lease_s

    def is_pinned(module_sha256: str) -> bool:
        return pins.is_pinned(module_sha256)

    memory = MemoryTier(share.memory_bytes, is_pinned)
    host = HostStore(
        common.host,
        sealer,
        recorder,
        namespace=namespace,
        limit_bytes=share.host_store_bytes,
        header_of=header_of,
        # So that a disk that hangs leaves a call time to ask Redis.
        wait_s=settings.redis_timeout_s / 2,
        artifact_bytes=artifact_bytes,
        engines=common.served_engines,
        is_pinned=is_pinned,
    )
    redis = None
    if link:
        redis = RedisStore(
            link,
            prefix,
            sealer,
            recorder,
            ttl_s=settings.cache_ttl_s,
            renews=settings.cache_ttl_refresh,
            artifact_bytes=artifact_bytes,
            module_bytes=lambda: common.settings.current.max_module_bytes,
            is_pinned=is_pinned,
            reports_usage=not namespace,
        )
    cache = Cache(
        memory,
        host if host.is_on else None,
        redis,
        recorder,
        call_wait_s=settings.redis_timeout_s,
        write_queue_bytes=write_queue_bytes,
        carry=tracing.carry if tracing else nullcontext,
    )
    pins = Pins(
        file_of(settings.state_dir, namespace),
        *(sealer, cache, memory, host if host.is_on else None, redis),
        namespaces=share.namespaces,
    )
    fleet = Fleet(
        link,
        prefix,
        recorder,
        cache.redis_writes.settled,
        lease_s=settings.compile_lease_s,
        max_wait_s=fleet_wait_s,
    )
    quarantine = Quarantine(
        Strikes(link, prefix, sealer), recorder, lambda: common.settings.current.quarantine_s
    )
    served = common.engines.view(recorder)
    engines: Engines = tracing.engines(served) if tracing else served
    admission = common.admission
    service = CompileService(
        cache,
        tracing.fleet(fleet) if tracing and link else fleet,
        engines,
        common.sealer,
        quarantine,
        recorder,
        admission,
        behind=common.behind,
    )
    modules = ModuleService(cache, engines, quarantine, admission, pins)
    uses = SharedFile(settings.state_dir / "uses", namespace, "cannot save uses")
    usage = Usage(uses, sealer, redis)
    tenant = Tenant(namespace, service, modules, quarantine, pins, usage.tally)
    opened = OpenTenant(
        tenant=tenant,
        memory=memory,
        host=host,
        redis=redis,
        cache=cache,
        fleet=fleet,
        usage=usage,
        mode=common.server.mode,
        metrics=metrics,
    )
    if metrics is not whole:
        for engine in served.served:
            metrics.catalogue.add_engine(engine.id)
        _show(opened)
    return opened


def _show(opened: OpenTenant) -> None:
    """Let the metrics of the namespace read its own parts, and nothing of the whole daemon."""
    gauges, tenant = opened.metrics.gauges, opened.tenant
    gauges.tiers["memory"] = opened.memory.usage
    gauges.tiers["host_store"] = opened.host.usage
    # Redis does not count by namespace, except what is pinned.
    gauges.tiers["redis"] = lambda: replace(tenant.pins.redis_usage, limit_bytes=0)
    gauges.pins = lambda: len(tenant.pins)
    gauges.flights = lambda: tenant.service.flights
    gauges.quarantined = lambda: len(tenant.quarantine.known())
    # The detail may name the server, which is the operators' alone.
    gauges.remote = lambda: replace(opened.remote_status(), detail="")
    gauges.host = opened.host_status
