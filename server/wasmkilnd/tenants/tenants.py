"""All namespaces of a daemon."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import structlog

from wasmkilnd import errors
from wasmkilnd.cache.embedded import SharedServer
from wasmkilnd.config.schema import Settings
from wasmkilnd.model import (
    DEFAULT_NAMESPACE,
    NAMESPACE_NAME,
    Artifact,
    HostStatus,
    NamespaceLimits,
    RemoteStatus,
    Strike,
    TierUsage,
)
from wasmkilnd.signing.sealer import Sealer
from wasmkilnd.telemetry.metrics.recorder import Metrics
from wasmkilnd.tenant import Tenant
from wasmkilnd.tenants.graph import Common, OpenTenant, open_tenant
from wasmkilnd.tenants.shares import Share, shares

log = structlog.get_logger("wasmkilnd.tenants")

# How long a namespace that is named no more may take to write what waits.
_FLUSH_S = 5.0
_LOOK_EVERY_S = 30.0


class Tenants:
    """Serves each namespace by a graph of its own. For one event loop."""

    def __init__(self, common: Common, namespaces: Mapping[str, NamespaceLimits]) -> None:
        """Open the default namespace and ``namespaces``; see ``start``."""
        self._common = common
        self._open: dict[str, OpenTenant] = {}
        self._closing: set[OpenTenant] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._named: dict[str, NamespaceLimits] = {}
        self._shares: dict[str, Share] = {}
        self.serve(namespaces, common.settings.current)

    async def start(self) -> None:
        """Wait until the host stores are ready and the server has answered, or takes too long."""
        await asyncio.gather(*self._tasks)

    @property
    def server(self) -> SharedServer:
        """The connection to the shared tier, which all namespaces use."""
        return self._common.server

    @property
    def default(self) -> OpenTenant:
        """The default namespace."""
        return self._open[DEFAULT_NAMESPACE]

    @property
    def opened(self) -> Mapping[str, OpenTenant]:
        """Every namespace that is served now, by name."""
        return dict(self._open)

    @property
    def flights(self) -> int:
        """How many compilations are under way or waiting for a worker."""
        return sum(each.tenant.service.flights for each in self._all())

    def of(self, namespace: str) -> Tenant:
        """Return what serves the callers of ``namespace``.

        Raises CREDENTIALS_INVALID for one that the policy names no more.
        """
        return self._opened(namespace).tenant

    def metrics_of(self, namespace: str) -> Metrics:
        """Return what is counted in ``namespace``; for the default one, in the whole daemon.

        Raises as ``of``.
        """
        return self._opened(namespace).metrics

    def holds(self, artifact: Artifact) -> bool:
        """Return whether this very object is in the memory of a namespace."""
        return any(each.memory.holds(artifact) for each in self._open.values())

    def serve(self, namespaces: Mapping[str, NamespaceLimits], settings: Settings) -> None:
        """Serve ``namespaces`` and the default one from now on, and no others.

        They divide what ``settings`` give.
        """
        self._named = {DEFAULT_NAMESPACE: NamespaceLimits(), **namespaces}
        for namespace in [each for each in self._open if each not in self._named]:
            self._in_the_background(self._retire(self._open.pop(namespace)))
            log.info("namespace closed", namespace=namespace)
        self.resize(settings)
        for namespace in self._named:
            if namespace not in self._open:
                self._add(namespace)

    def resize(self, settings: Settings) -> None:
        """Divide the memory and the host store that ``settings`` give."""
        self._shares = shares(
            settings.memory_bytes, settings.effective_host_store_bytes, self._named
        )
        if settings.effective_host_store_bytes:
            self._common.host.limit_bytes = settings.effective_host_store_bytes
        for namespace, opened in self._open.items():
            opened.resize(self._shares[namespace])

    def add_engine(self, engine_id: str) -> None:
        """Let the metrics of every namespace count an engine."""
        for opened in self._open.values():
            opened.metrics.catalogue.add_engine(engine_id)

    async def save_uses(self) -> None:
        """Save how often each artifact was served so far, where the fleet finds it."""
        await asyncio.gather(*(each.usage.save() for each in self._open.values()))

    async def write_engines(self) -> None:
        """Write what the daemon serves where clients look for it; never raise."""
        await asyncio.gather(*(each.host.write_engines() for each in self._open.values()))

    async def recheck(self, sealer: Sealer) -> int:
        """Drop artifacts that ``sealer`` does not vouch for; return how many memory held."""
        return sum([await each.cache.recheck(sealer) for each in self._all()])

    async def drop_outdated(self, sealer: Sealer) -> None:
        """Drop from memory what grows older than ``value_max_age_s``, until cancelled."""
        while True:
            await asyncio.sleep(max(1.0, min(_LOOK_EVERY_S, sealer.max_age_s / 4 or _LOOK_EVERY_S)))
            if sealer.max_age_s:
                for each in self._all():
                    await each.cache.drop(sealer.outdated)

    async def end_behind(self) -> None:
        """End the compiles that no caller waits for, and start no more."""
        await asyncio.gather(*(each.tenant.service.end_behind() for each in self._all()))

    async def settle(self, timeout_s: float | None = None) -> None:
        """Let compilations finish, then cancel those that are left: see CompileService."""
        await asyncio.gather(*(each.tenant.service.settle(timeout_s) for each in self._all()))

    async def flush(self, timeout_s: float) -> None:
        """Write what waits, for at most ``timeout_s``."""
        await asyncio.gather(*(each.flush(timeout_s) for each in self._all()))

    async def close(self) -> None:
        """Drop the writes that wait, and close all, without waiting; see flush."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(each.close() for each in self._all()))
        await self._common.host.close()

    def memory_usage(self) -> TierUsage:
        """Return what the memory of all namespaces holds."""
        return _sum(each.memory.usage() for each in self._open.values())

    def redis_usage(self) -> TierUsage:
        """Return what the server says of all its keys, and what of it is pinned."""
        pinned = _sum(each.tenant.pins.redis_usage for each in self._open.values())
        return replace(
            self.default.redis.usage() if self.default.redis else TierUsage(),
            pinned_entries=pinned.pinned_entries,
            pinned_bytes=pinned.pinned_bytes,
            let_go=pinned.let_go,
        )

    def pins(self) -> int:
        """Return how many modules are pinned, those of each namespace by themselves."""
        return sum(len(each.tenant.pins) for each in self._open.values())

    def look_at_pins(self) -> None:
        """Exchange pins with other daemons soon."""
        for each in self._open.values():
            each.look_soon()

    def host_usage(self) -> TierUsage:
        """Return what the host store holds, of namespaces that are served and of others."""
        return self._common.host.usage()

    def quarantined(self) -> int:
        """Return how many modules are in quarantine, those of each namespace by themselves."""
        return sum(len(each.tenant.quarantine.known()) for each in self._open.values())

    def known_in_quarantine(self) -> Sequence[Strike]:
        """Return the modules in quarantine that this daemon knows of, those of all namespaces."""
        return [strike for each in self._open.values() for strike in each.tenant.quarantine.known()]

    def host_status(self) -> HostStatus:
        """Return whether all host stores can be used, and how many writes wait or were given up."""
        each = [opened.host_status() for opened in self._open.values()]
        return HostStatus(
            sum(one.pending_writes for one in each),
            sum(one.dropped_writes for one in each),
            is_on=any(one.is_on for one in each),
            up=all(one.up for one in each if one.is_on),
        )

    def remote_status(self) -> RemoteStatus:
        """Return whether the shared tier answers, and how many writes of all namespaces wait."""
        each = [opened.remote_status() for opened in self._open.values()]
        return RemoteStatus(
            each[0].mode,
            each[0].up,
            next((one.detail for one in each if one.detail), ""),
            sum(one.pending_writes for one in each),
            sum(one.dropped_writes for one in each),
        )

    def _all(self) -> list[OpenTenant]:
        return [*self._open.values(), *self._closing]

    def _opened(self, namespace: str) -> OpenTenant:
        opened = self._open.get(namespace)
        if opened is None:
            raise errors.namespace_closed()
        return opened

    def _add(self, namespace: str) -> None:
        if namespace and not NAMESPACE_NAME.fullmatch(namespace):
            raise ValueError(f"cannot serve a namespace with this name: {namespace!r:.80}")
        opened = open_tenant(
            namespace, self._shares[namespace], self._write_queue_bytes, self._common
        )
        self._open[namespace] = opened
        self._in_the_background(opened.start())
        if namespace:
            log.info("namespace opened", namespace=namespace)

    def _write_queue_bytes(self) -> int:
        # The newest module and artifact are queued even where they are larger than that.
        return self._common.settings.current.effective_write_queue_bytes // len(self._open)

    async def _retire(self, opened: OpenTenant) -> None:
        """Close what served a namespace, after the calls that still use it."""
        self._closing.add(opened)
        try:
            await opened.tenant.service.end_behind()
            await opened.tenant.service.settle()
            await opened.flush(_FLUSH_S)
        finally:
            self._closing.discard(opened)
            await opened.close()

    def _in_the_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _sum(usages: Iterable[TierUsage]) -> TierUsage:
    each = list(usages)
    return TierUsage(
        sum(one.entries for one in each),
        sum(one.bytes for one in each),
        sum(one.limit_bytes for one in each),
        sum(one.evictions for one in each),
        sum(one.pinned_entries for one in each),
        sum(one.pinned_bytes for one in each),
        sum(one.let_go for one in each),
    )
