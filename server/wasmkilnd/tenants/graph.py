"""Builds what serves one namespace: caches, quarantine, verdicts and services."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

from wasmkilnd.admission import Admission
from wasmkilnd.cache.host_store import HostDirectory, HostStore
from wasmkilnd.cache.memory import MemoryTier
from wasmkilnd.cache.observed import ObservedTier
from wasmkilnd.cache.open_shared import SharedTier, open_shared
from wasmkilnd.cache.pin_file import PinFile
from wasmkilnd.cache.pinned_tiers import TiersWithPins
from wasmkilnd.cache.shared_server import RemoteOptions, SharedServer
from wasmkilnd.cache.tiered import TieredCache
from wasmkilnd.cache.value.marks import Marks
from wasmkilnd.compile_service import CompileService
from wasmkilnd.compiles_behind import BehindSlots
from wasmkilnd.config.schema import Settings
from wasmkilnd.engines.registry import EngineRegistry
from wasmkilnd.model import DEFAULT_NAMESPACE, Limits, RemoteStatus
from wasmkilnd.module_service import ModuleService
from wasmkilnd.pin_service import PinService
from wasmkilnd.pins import Pins
from wasmkilnd.ports import Engines, Fleet, Recorder, Tracing
from wasmkilnd.quarantine import Quarantine
from wasmkilnd.reloadable import Reloadable
from wasmkilnd.rpc.wire.headers import header_of
from wasmkilnd.signing.sealer import Sealer
from wasmkilnd.telemetry.metrics.recorder import Metrics
from wasmkilnd.tenant import Tenant
from wasmkilnd.tenants.recorders import BothRecorders
from wasmkilnd.tenants.shares import Share
from wasmkilnd.usage.file import UseFile
from wasmkilnd.usage.keeper import UsageKeeper


@dataclass(frozen=True, slots=True)
class Common:
    """What all namespaces share: nothing of it holds what a tenant stored."""

    settings: Reloadable[Settings]
    limits: Reloadable[Limits]
    metrics: Metrics
    """Of the whole daemon."""
    server: SharedServer
    remote_options: RemoteOptions
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
    shared: SharedTier
    cache: TieredCache
    pinned: TiersWithPins
    usage: UsageKeeper
    metrics: Metrics
    """Of the namespace alone; of the default one, those of the whole daemon."""

    async def start(self) -> None:
        """Make the host store ready, and begin to watch the shared tier; never raise."""
        await self.pinned.read()  # First: a tier that opens makes room.
        await asyncio.gather(self.host.start(), self.shared.start())
        self.pinned.start()
        self.usage.start()

    def resize(self, share: Share) -> None:
        """Hold no more than ``share`` from now on."""
        self.memory.resize(share.memory_bytes)
        self.pinned.namespaces = share.namespaces
        if share.host_store_bytes:
            self.host.resize(share.host_store_bytes)

    async def flush(self, timeout_s: float) -> None:
        """Write what waits, for at most ``timeout_s``."""
        saving = asyncio.wait_for(self.usage.save(last=True), timeout_s)
        await asyncio.gather(
            self.shared.flush(timeout_s),
            self.host.flush(timeout_s),
            asyncio.gather(saving, return_exceptions=True),
        )

    async def close(self) -> None:
        """Drop the writes that wait, and close, without waiting; see flush."""
        await self.usage.close()
        await self.tenant.quarantine.close()
        await self.pinned.close()
        await self.shared.close()
        await self.host.close()
        await self.memory.close()


def open_tenant(
    namespace: str, share: Share, write_queue_bytes: Callable[[], int], common: Common
) -> OpenTenant:
    """Build what serves ``namespace``; see ``OpenTenant.start``.

    ``write_queue_bytes`` returns how much may wait to be written to each tier.
    """
    settings, whole = common.settings.current, common.metrics
    metrics = whole if namespace == DEFAULT_NAMESPACE else Metrics(whole.version)
    recorder: Recorder = whole if metrics is whole else BothRecorders(whole, metrics)
    tracing, carry = common.tracing, _carry(common.tracing)
    if tracing:
        recorder = BothRecorders(recorder, tracing.recorder())
    pins = Pins()
    marks = Marks(is_pinned=pins.is_pinned)
    memory = MemoryTier(share.memory_bytes, pins.is_pinned)
    host = HostStore(
        common.host,
        sealer,
        recorder,
        namespace=namespace,
        limit_bytes=share.host_store_bytes,
        header_of=lambda artifact: header_of(artifact, sealer.certificate_of(artifact)),
        # So that a disk that hangs leaves a call time to ask Redis.
        wait_s=settings.redis_timeout_s / 2,
        artifact_bytes=lambda: common.limits.current.artifact_bytes,
        write_queue_bytes=write_queue_bytes,
        engines=common.served_engines,
        is_pinned=pins.is_pinned,
        carry=carry,
    )
    shared = open_shared(
        common.server,
        replace(common.remote_options, write_queue_bytes=write_queue_bytes),
        common.sealer,
        recorder,
        marks,
        namespace,
        pins.is_pinned,
        carry,
    )
    file = PinFile(settings.state_dir, namespace)
    pinned = TiersWithPins(pins, memory, host, shared, file)
    pinned.namespaces = share.namespaces
    pin_service = PinService(pins, pinned)
    cache = TieredCache(
        memory,
        ObservedTier(memory, recorder),
        host,
        host.write_behind,
        shared.tier,
        shared.write_behind,
        shared.used,
        call_wait_s=settings.redis_timeout_s,
    )
    quarantine = Quarantine(shared.strikes, recorder, lambda: common.settings.current.quarantine_s)
    served = common.engines.view(recorder)
    engines: Engines = tracing.engines(served) if tracing else served
    fleet: Fleet = tracing.fleet(shared.fleet) if tracing and shared.redis else shared.fleet
    admission = common.admission.view(engines)
    service = CompileService(
        cache,
        fleet,
        engines,
        common.sealer,
        quarantine,
        recorder,
        admission,
        behind=common.behind,
    )
    modules = ModuleService(cache, engines, quarantine, admission, pin_service)
    tenant = Tenant(namespace, service, modules, quarantine, pin_service)
    opened = OpenTenant(
        tenant=tenant,
        memory=memory,
        host=host,
        shared=shared,
        cache=cache,
        pinned=pinned,
        usage=UsageKeeper(tenant.tally, shared.uses, UseFile(settings.state_dir, namespace)),
        metrics=metrics,
    )
    if metrics is not whole:
        for engine in served.served:
            metrics.catalogue.add_engine(engine.id)
        _show(opened)
    return opened


def _carry(tracing: Tracing | None) -> Callable[[], AbstractContextManager[None]]:
    return tracing.carry if tracing else nullcontext


def _show(opened: OpenTenant) -> None:
    """Let the metrics of the namespace read its own parts, and nothing of the whole daemon."""
    gauges, tenant = opened.metrics.gauges, opened.tenant
    gauges.tiers["memory"] = opened.memory.usage
    gauges.tiers["host_store"] = opened.host.usage
    # Redis does not count by namespace, except what is pinned.
    gauges.tiers["redis"] = opened.pinned.redis_usage
    gauges.pins = lambda: len(tenant.pins)
    gauges.flights = lambda: tenant.service.flights
    gauges.quarantined = lambda: tenant.quarantine.size
    gauges.remote = lambda: _without_detail(opened.shared.status())
    gauges.host = opened.host.status


def _without_detail(status: RemoteStatus) -> RemoteStatus:
    # It may name the server, which is the operators' alone.
    return replace(status, detail="")
