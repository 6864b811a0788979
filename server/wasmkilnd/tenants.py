"""Namespaces: what serves the callers of each, so that none reaches what another has.

Isolation is by construction. Each namespace has an object graph of its own (``OpenTenant``), and no
object of one graph holds a reference to one of another. Whoever knows a digest or a fingerprint of
another tenant gets nothing by it. The graphs share what holds no tenant's data (``Tenants``): the
engines' workers and their queue, the admission of bytes under way, the connection to Redis, and the
memory and disk, of which each has an equal part.

**Where things are.** The default namespace ("") has the names and paths of a daemon without
namespaces. The keys of another begin with ``<redis_prefix>ns:<namespace>:``; its host store is
``<host_store_dir>/ns/<namespace>/``, a store with a limit of its own. Both names are
part of the format of stored values.

**Promises.** A call gets what its own namespace has uploaded or compiled, and its own namespace's
evictions, quarantine and counters. Flights are not joined across namespaces: two tenants that
compile one module at a time pay for it twice. Whatever one tenant stores, nothing of another is
evicted for it. What remains is what sharing workers means: a busy queue is busy for all, and the
quotas bound how busy one tenant can make it.

Opening a namespace waits for nothing, so that a policy is in force from one step of the event loop
to the next. A namespace that is named no more is closed when its calls have ended; its values stay
in Redis and on the disk until they expire or make room.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import InitVar, dataclass, field, replace
from typing import Any

import structlog

from wasmkilnd import errors, model, quarantine, usage
from wasmkilnd.cache import host_store, memory, object_store, redis_store
from wasmkilnd.cache.cache import Cache
from wasmkilnd.compile import Compiler, Tenant
from wasmkilnd.engines.pool import Job
from wasmkilnd.engines.registry import EngineRegistry
from wasmkilnd.pins import PinFile, Pins
from wasmkilnd.redis import embedded, fleet, records
from wasmkilnd.rpc.messages import header_of
from wasmkilnd.settings import NONE, Settings
from wasmkilnd.signing.sealer import Sealer
from wasmkilnd.telemetry.metrics import Gauges, Metrics
from wasmkilnd.waits.flights import Background, FairShare

# How many may be open at once: each has tasks and tables of its own.
MAX_NAMESPACES = 256
# How long it takes at most until a daemon knows what another one pins and uses.
LOOK_EVERY_S = 30.0
# A daemon that dies while it compiles keeps others of the fleet waiting for so long.
_LEASE_S = 5.0
# How long a namespace that is named no more may take to write what waits.
_FLUSH_S = 5.0

log = structlog.get_logger("wasmkilnd.tenants")


def why_not(namespaces: Collection[str]) -> str:
    """Return why a daemon cannot serve ``namespaces``, of policy and tokens; empty if it can."""
    if (count := len(namespaces)) <= MAX_NAMESPACES:
        return ""
    why = f"there are {count} namespaces, and one daemon serves {MAX_NAMESPACES}"
    return f"cannot serve the namespaces of policy and tokens: {why}"


class OpenTenant:
    """What serves one namespace, and what comes and goes with it."""

    def __init__(
        self, namespace: str, memory_bytes: int, host_store_bytes: int, common: Tenants
    ) -> None:
        """Build it of what is ``common`` to all namespaces; see ``start``."""
        now, whole, self.namespace = common.settings, common.metrics, namespace
        self._sealer = sealer = common.sealer
        settings, link, self.redis_kind = now.current, common.server.link, common.server.mode
        # What daemons tell each other, they read and write.
        redis_mode, bucket = settings.redis_mode, common.bucket
        told = link if redis_mode == "read-write" else None
        # Of the namespace alone; of the default one, those of the whole daemon.
        self.metrics = metrics = Metrics(whole.version, whole=whole) if namespace else whole
        prefix = settings.redis_prefix + (f"ns:{namespace}:" if namespace else "")

        def artifact_bytes() -> int:
            return now.current.max_artifact_bytes

        def is_pinned(module_sha256: str) -> bool:
            return pins.is_pinned(module_sha256)

        self.memory = memory.MemoryTier(memory_bytes, is_pinned)
        wait_s = settings.redis_timeout_s / 2  # A disk that hangs leaves a call time to ask Redis.
        self.host = host_store.HostStore(
            *(common.host, sealer, metrics, header_of, common.served_engines),
            *(host_store_bytes, namespace, wait_s, artifact_bytes, is_pinned),
        )
        host = self.host if self.host.is_on else None
        # None where the settings switch Redis off.
        self.redis: redis_store.RedisStore | None = None
        if link:
            self.redis = redis_store.RedisStore(
                *(link, prefix, sealer, metrics),
                ttl_s=settings.cache_ttl_s,
                artifact_bytes=artifact_bytes,
                module_bytes=common.module_bytes,
                is_pinned=is_pinned,
                reads=redis_mode != "write-only",
                writes=redis_mode != "read-only",
                reports_usage=not namespace,
            )
        objects, self.object_mode = None, settings.object_store_mode if bucket else NONE
        if bucket:
            objects = object_store.ObjectStore(
                *(bucket, object_store.prefix_of(prefix), sealer, metrics),
                artifact_bytes=artifact_bytes,
                module_bytes=common.module_bytes,
                is_pinned=is_pinned,
                reads=self.object_mode != "write-only",
                writes=self.object_mode != "read-only",
            )
        self.cache = Cache(
            *(self.memory, host, self.redis, metrics),
            # A Redis that hangs leaves a call time to ask the object store.
            call_wait_s=settings.redis_timeout_s + (bucket.timeout_s if bucket else 0.0),
            write_queue_bytes=common.write_queue_bytes,
            objects=objects,
        )
        pins = Pins(
            PinFile(settings.state_dir, namespace),
            *(sealer, self.cache, self.memory, host, self.redis if told else None),
            namespaces=lambda: len(common.opened),
        )
        self.fleet = fleet.Fleet(
            *(told, prefix, metrics, self.cache.redis_writes.settled),
            lease_s=_LEASE_S,
            # The daemon that compiles has succeeded or failed by then.
            max_wait_s=lambda: now.current.compile_timeout_s + _LEASE_S,
        )
        strikes = records.Strikes(told, prefix, sealer)
        refused = quarantine.Quarantine(
            *(strikes, metrics),
            *(lambda: now.current.quarantine_s, lambda: now.current.limits),
        )
        compiler = Compiler(
            *(self.cache, self.fleet, common.engines, sealer, refused, metrics),
            *(lambda: now.current.max_module_bytes, common.in_progress, common.slots),
        )
        self.usage = usage.Usage(sealer, self.redis if told else None)
        self.tenant = Tenant(compiler, refused, pins, self.usage.tally)
        if namespace:
            for engine in common.engines.served:
                self.metrics.add_engine(engine.id)
            _show(self.metrics.gauges, lambda: [self])
            # The detail may name the server, which is the operators' alone.
            self.metrics.gauges.remote = lambda: replace(self.shared()[0], detail="")
            self.metrics.gauges.objects = lambda: replace(self.shared()[1], detail="")

    async def start(self) -> None:
        """Make the host store ready, and begin to watch Redis; never raise."""
        await self.tenant.pins.read()  # First: a tier that opens makes room.
        await asyncio.gather(self.host.start(), *([self.redis.start()] if self.redis else []))

    def resize(self, memory_bytes: int, host_store_bytes: int) -> None:
        """Hold no more than that from now on."""
        self.memory.resize(memory_bytes)
        if host_store_bytes:
            self.host.limit_bytes = host_store_bytes

    def shared(self) -> tuple[model.RemoteStatus, model.RemoteStatus]:
        """Return whether Redis and the object store answer, and how many writes to each wait."""
        status = self.cache.remote_status
        return status(self.redis_kind), status(self.object_mode, "object_store")

    async def look(self) -> None:
        """Look after pins, uses, and what memory has that grows too old; never raise."""
        for look in (self._drop_outdated, self.tenant.pins.look, self.usage.save):
            try:
                await look()
            except Exception:
                log.exception("a defect keeps pins or uses from being looked after")

    async def _drop_outdated(self) -> None:
        if self._sealer.max_age_s:
            await self.cache.drop(self._sealer.outdated)

    async def flush(self, timeout_s: float) -> None:
        """Write what waits, for at most ``timeout_s``."""
        saving = asyncio.wait_for(self.usage.save(), timeout_s)
        saved = asyncio.gather(saving, return_exceptions=True)
        await asyncio.gather(self.cache.flush(timeout_s), saved)

    async def close(self) -> None:
        """Drop the writes that wait, and close, without waiting; see flush."""
        for part in (self.fleet, self.cache, self.host):
            await part.close()


@dataclass(eq=False, repr=False)
class Tenants:
    """Serves each namespace by a graph of its own, and the default one. For one event loop.

    What all namespaces share holds nothing that a tenant stored:

    - ``metrics``: of the whole daemon.
    - ``server``: the connection to the shared tier.
    - ``bucket``: the way to the object store, if there is one.
    - ``served_engines``: returns what each host store keeps as ``engines.json``.
    - ``in_progress``: the bytes of all modules that are being worked on.
    - ``slots``: for compiles that no caller waits for.
    - ``module_bytes``: returns how large the module of any caller may be.

    ``opened`` has every namespace that is served now, by name. See ``start``.
    """

    settings: model.Reloadable[Settings]
    metrics: Metrics
    server: embedded.SharedServer
    bucket: object_store.Bucket | None
    host: host_store.HostDirectory
    engines: EngineRegistry
    namespaces: InitVar[Collection[str]]
    served_engines: Callable[[], Mapping[str, Any]]
    in_progress: FairShare
    slots: asyncio.Semaphore
    sealer: Sealer
    module_bytes: Callable[[], int]
    opened: dict[str, OpenTenant] = field(default_factory=dict)
    _wake: asyncio.Event = field(default_factory=asyncio.Event)
    _background: Background = field(default_factory=Background)
    # Those that are served no more, and whose calls have not ended.
    _closing: set[OpenTenant] = field(default_factory=set)

    def __post_init__(self, namespaces: Collection[str]) -> None:
        """Open the namespaces."""
        self.serve(namespaces, self.settings.current)
        gauges = self.metrics.gauges
        _show(gauges, self._all)
        gauges.remote, gauges.objects = lambda: self.shared()[0], lambda: self.shared()[1]
        # Those of namespaces that are served, and of others.
        gauges.tiers["host_store"] = self.host.usage
        # The server's own figures, which are those of all its keys, and what of them is pinned.
        pinned, redis = gauges.tiers["redis"], self.default.redis
        gauges.tiers["redis"] = lambda: (redis.usage() if redis else model.TierUsage()) + pinned()

    async def start(self) -> None:
        """Wait until the host stores are ready and the server has answered, or takes too long."""
        await asyncio.gather(*self._background.tasks)
        self._background.begin(self._look_for_ever())

    @property
    def default(self) -> OpenTenant:
        """The default namespace."""
        return self.opened[model.DEFAULT_NAMESPACE]

    @property
    def flights(self) -> int:
        """How many compilations are under way or waiting for a worker."""
        return sum(len(each.tenant.compiler.flights) for each in self._all())

    def of(self, namespace: str) -> Tenant:
        """Return what serves the callers of ``namespace``.

        Raises CREDENTIALS_INVALID for one that the policy names no more.
        """
        if namespace not in self.opened:
            gone = "cannot serve this call: its caller's namespace was just removed; call again"
            raise errors.credentials_invalid("unknown", gone)
        return self.opened[namespace].tenant

    def jobs(self, namespace: str) -> Iterator[tuple[str, str, Job]]:
        """Yield the jobs of a namespace, each with that and with its engine's id.

        Of the default one, whose operators are the daemon's, yield those of all.
        """
        shown = [each for each in self._all() if namespace in ("", each.namespace)]
        flights = {each: one for one in shown for each in one.tenant.compiler.flights.waiters}
        for engine_id, job in self.engines.jobs():
            if found := flights.get(job.waiters):
                yield found.namespace, engine_id, job

    def serve(self, namespaces: Collection[str], settings: Settings) -> None:
        """Serve ``namespaces`` and the default one from now on, and no others.

        Each has an equal part of the memory and the host store that ``settings`` give.
        """
        for namespace in self.opened.keys() - {model.DEFAULT_NAMESPACE, *namespaces}:
            self._background.begin(self._retire(self.opened.pop(namespace)))
            log.info("namespace closed", namespace=namespace)
        if host_bytes := settings.effective_host_store_bytes:
            self.host.limit_bytes = host_bytes
        count = 1 + len(namespaces)
        share = settings.memory_bytes // count, host_bytes // count
        for namespace in (model.DEFAULT_NAMESPACE, *sorted(namespaces)):
            if opened := self.opened.get(namespace):
                opened.resize(*share)
                continue
            opened = self.opened[namespace] = OpenTenant(namespace, *share, self)
            self._background.begin(self._start(opened))
            if namespace:
                log.info("namespace opened", namespace=namespace)

    def add_engines(self, ids: Sequence[str]) -> None:
        """Let the metrics of every namespace count these engines."""
        for opened in self._all():
            for engine_id in ids:
                opened.metrics.add_engine(engine_id)

    async def save_uses(self) -> None:
        """Save how often each artifact was served so far, where the fleet finds it."""
        await asyncio.gather(*(each.usage.save() for each in self._all()))

    async def write_engines(self) -> None:
        """Write what the daemon serves where clients look for it; never raise."""
        await asyncio.gather(*(each.host.write_engines() for each in self._all()))

    async def recheck(self, sealer: Sealer) -> int:
        """Drop artifacts that ``sealer`` does not vouch for; return how many memory held."""
        return sum([await each.cache.recheck(sealer) for each in self._all()])

    async def end_behind(self) -> None:
        """End the compiles that no caller waits for, and start no more."""
        await asyncio.gather(*(each.tenant.compiler.end_behind() for each in self._all()))

    async def settle(self, timeout_s: float | None = None) -> None:
        """Let compilations finish, then cancel those that are left: see Flights."""
        flights = [each.tenant.compiler.flights for each in self._all()]
        await asyncio.gather(*(each.settle(timeout_s) for each in flights))

    async def flush(self, timeout_s: float) -> None:
        """Write what waits, for at most ``timeout_s``."""
        await asyncio.gather(*(each.flush(timeout_s) for each in self._all()))

    async def close(self) -> None:
        """Drop the writes that wait, and close all, without waiting; see flush."""
        await self._background.stop()
        await asyncio.gather(*(each.close() for each in self._all()))
        await self.host.close()

    def look_at_pins(self) -> None:
        """Exchange pins with other daemons soon."""
        self._wake.set()

    def known_in_quarantine(self) -> Sequence[model.Strike]:
        """Return the modules in quarantine that this daemon knows of, those of all namespaces."""
        return [strike for each in self._all() for strike in each.tenant.quarantine.known()]

    def shared(self) -> Sequence[model.RemoteStatus]:
        """Return the same of all namespaces together."""
        return [*map(_sum, zip(*(each.shared() for each in self._all()), strict=True))]

    def _all(self) -> list[OpenTenant]:
        return [*self.opened.values(), *self._closing]

    def write_queue_bytes(self) -> int:
        """Return how many bytes of a namespace may wait to be written to each tier.

        The newest module and artifact are queued even where they are larger than that.
        """
        now = self.settings.current
        return (now.max_module_bytes + now.max_artifact_bytes) // len(self.opened)

    async def _start(self, opened: OpenTenant) -> None:
        await opened.start()
        self._wake.set()

    async def _retire(self, opened: OpenTenant) -> None:
        """Close what served a namespace, after the calls that still use it."""
        self._closing.add(opened)
        try:
            await opened.tenant.compiler.end_behind()
            await opened.tenant.compiler.flights.settle()
            await opened.flush(_FLUSH_S)
        finally:
            self._closing.discard(opened)
            await opened.close()

    async def _look_for_ever(self) -> None:
        """Look after all namespaces again and again, and when woken."""
        while True:
            self._wake.clear()
            await asyncio.gather(*(each.look() for each in self._all()))
            part_of_age_s = self.sealer.max_age_s / 4 or LOOK_EVERY_S
            with suppress(TimeoutError):
                pause_s = max(1.0, min(LOOK_EVERY_S, part_of_age_s))
                await asyncio.wait_for(self._wake.wait(), pause_s)


def _sum(each: Sequence[model.RemoteStatus]) -> model.RemoteStatus:
    return replace(
        each[0],
        detail=next((one.detail for one in each if one.detail), ""),
        pending_writes=sum(one.pending_writes for one in each),
        dropped_writes=sum(one.dropped_writes for one in each),
        strangers=sum(one.strangers for one in each),
    )


def _show(gauges: Gauges, opened: Callable[[], Collection[OpenTenant]]) -> None:
    """Let ``gauges`` read the sums over namespaces."""

    def usage(of: Callable[[OpenTenant], model.TierUsage]) -> Callable[[], model.TierUsage]:
        return lambda: sum(map(of, opened()), model.TierUsage())

    def host_status() -> model.RemoteStatus:
        on = [each for each in opened() if each.host.is_on]
        if not on:
            return model.RemoteStatus("none", up=False, detail=model.SWITCHED_OFF)
        return model.RemoteStatus(
            mode="",
            up=all(each.host.is_well for each in on),
            pending_writes=sum(len(each.cache.host_writes.items()) for each in on),
            dropped_writes=sum(each.cache.host_writes.dropped + each.host.skipped for each in on),
        )

    gauges.tiers["memory"] = usage(lambda each: each.memory.usage())
    gauges.tiers["host_store"] = usage(lambda each: each.host.usage())
    # Redis does not count by namespace, except what is pinned.
    gauges.tiers["redis"] = usage(lambda each: replace(each.tenant.pins.redis_usage, limit_bytes=0))
    gauges.pins = lambda: sum(len(each.tenant.pins) for each in opened())
    gauges.flights = lambda: sum(len(each.tenant.compiler.flights) for each in opened())
    gauges.quarantined = lambda: sum(len(each.tenant.quarantine.known()) for each in opened())
    gauges.host = host_status
