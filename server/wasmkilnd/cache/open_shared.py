"""Opens what one namespace has in the shared tier: its values, leases, strikes and marks."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from wasmkilnd.cache.fleet.claim import LeaseFleet
from wasmkilnd.cache.fleet.lease_store import LeaseStore
from wasmkilnd.cache.fleet.null_fleet import NullFleet, NullStrikes
from wasmkilnd.cache.fleet.strike_store import RedisStrikes
from wasmkilnd.cache.null_tier import NullTier
from wasmkilnd.cache.observed import ObservedTier
from wasmkilnd.cache.redis.guarded import GuardedRedis
from wasmkilnd.cache.redis.pins import RedisPins
from wasmkilnd.cache.redis.tier import RedisTier
from wasmkilnd.cache.redis.ttl_refresh import TtlRefresher
from wasmkilnd.cache.redis.use_store import UseStore
from wasmkilnd.cache.shared_server import RemoteOptions, SharedServer
from wasmkilnd.cache.value.marks import Marks
from wasmkilnd.cache.value.names import namespace_prefix
from wasmkilnd.cache.write_behind import WriteBehind
from wasmkilnd.model import CacheKey, IsPinned, RemoteStatus
from wasmkilnd.ports import Recorder, StrikeStore, Tier
from wasmkilnd.signing.sealer import Sealer

_NAME = "redis"
_WRITE_HEAD_START_S = 0.05


@dataclass(kw_only=True, eq=False, repr=False)
class SharedTier:
    """What one namespace has in the shared tier, and what comes and goes with it."""

    server: SharedServer
    tier: Tier
    write_behind: WriteBehind
    fleet: LeaseFleet | NullFleet
    strikes: StrikeStore
    redis: RedisTier | None = None
    pins: RedisPins | None = None
    refresher: TtlRefresher | None = None
    uses: UseStore | None = None

    @property
    def used(self) -> Callable[[CacheKey | str], None] | None:
        """What to call with the key of each value that is used; None if use changes nothing."""
        return self.refresher.used if self.refresher else None

    async def start(self) -> None:
        """Begin to watch the server; wait until it is known whether it answers."""
        if self.redis:
            await self.redis.start()

    def status(self) -> RemoteStatus:
        """Return whether the tier answers, and how many writes wait."""
        refusal = self.redis.write_refusal if self.redis and self.server.up else ""
        return RemoteStatus(
            mode=self.server.mode,
            up=self.server.up,
            detail=f"takes no writes: {refusal}" if refusal else self.server.why_down,
            pending_writes=self.write_behind.pending,
            dropped_writes=self.write_behind.dropped,
        )

    async def flush(self, timeout_s: float) -> None:
        """Write what waits, for at most ``timeout_s``."""
        await self.write_behind.flush(timeout_s)

    async def close(self) -> None:
        """Drop the writes that wait, and close, without waiting; the connection stays open."""
        await self.write_behind.close(0)
        await self.fleet.close()
        if self.refresher:
            await self.refresher.close()
        await self.tier.close()


def open_shared(
    server: SharedServer,
    options: RemoteOptions,
    sealer: Sealer,
    recorder: Recorder,
    marks: Marks,
    namespace: str,
    is_pinned: IsPinned,
    carry: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> SharedTier:
    """Open what ``namespace`` has on ``server``.

    ``marks`` are the evictions and releases in the namespace that this daemon knows of, and
    ``is_pinned`` returns whether a module is pinned. For ``carry`` see WriteBehind.
    """
    if server.link is None:
        return _without(server, options)
    return _with(server, server.link, options, sealer, recorder, marks, namespace, is_pinned, carry)


def _with(
    server: SharedServer,
    link: GuardedRedis,
    options: RemoteOptions,
    sealer: Sealer,
    recorder: Recorder,
    marks: Marks,
    namespace: str,
    is_pinned: IsPinned,
    carry: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> SharedTier:
    redis = RedisTier(
        link,
        sealer,
        recorder,
        prefix=namespace_prefix(options.prefix, namespace),
        ttl_s=options.ttl_s,
        artifact_bytes=options.artifact_bytes,
        module_bytes=options.module_bytes,
        marks=marks,
        # The server's own figures are sums over all of its keys.
        reports_usage=not namespace,
        is_pinned=is_pinned,
    )
    tier = ObservedTier(redis, recorder)
    writes = WriteBehind(
        tier,
        options.write_queue_bytes,
        redis.breaker.wait_closed,
        _WRITE_HEAD_START_S,
        is_down=lambda: redis.breaker.open,
        carry=carry,
    )
    fleet: LeaseFleet | NullFleet = NullFleet()
    if options.lease_s:
        leases = LeaseStore(link, redis.names, sealer, writes.settled, options.lease_s)
        fleet = LeaseFleet(leases, recorder, max_wait_s=options.fleet_wait_s)
    return SharedTier(
        server=server,
        tier=tier,
        write_behind=writes,
        fleet=fleet,
        strikes=RedisStrikes(link, redis.names, sealer, redis.marks),
        redis=redis,
        pins=RedisPins(link, redis.names, sealer, options.ttl_s),
        refresher=TtlRefresher(redis.renew, options.ttl_s) if options.ttl_refresh else None,
        uses=UseStore(link, redis.names, sealer),
    )


def _without(server: SharedServer, options: RemoteOptions) -> SharedTier:
    tier = NullTier(_NAME)
    return SharedTier(
        server=server,
        tier=tier,
        write_behind=WriteBehind(tier, options.write_queue_bytes, tier.always_ready),
        fleet=NullFleet(),
        strikes=NullStrikes(),
    )
