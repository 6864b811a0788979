"""Opens the shared tier: an external Redis, the embedded Valkey, or none."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from wasmkilnd.cache.embedded.server import EmbeddedServer, EmbeddedUnavailable
from wasmkilnd.cache.fleet.claim import LeaseFleet
from wasmkilnd.cache.fleet.lease_store import LeaseStore
from wasmkilnd.cache.fleet.null_fleet import NullFleet, NullStrikes
from wasmkilnd.cache.fleet.strike_store import RedisStrikes
from wasmkilnd.cache.null_tier import NullTier
from wasmkilnd.cache.observed import ObservedTier
from wasmkilnd.cache.redis.connect import NO_ACCESS, AccessUnusable, RedisAccess, connect
from wasmkilnd.cache.redis.revocation_store import RevocationStore
from wasmkilnd.cache.redis.server import RedisServer, UnavailableServer
from wasmkilnd.cache.redis.tier import RedisTier
from wasmkilnd.cache.redis.ttl_refresh import TtlRefresher
from wasmkilnd.cache.value.marks import Marks
from wasmkilnd.cache.write_behind import WriteBehind
from wasmkilnd.model import SWITCHED_OFF, CacheKey, RemoteStatus
from wasmkilnd.ports import Recorder, Sealer, StrikeStore, Tier
from wasmkilnd.redis_address import BadRedisUrl, RedisAddress

log = structlog.get_logger("wasmkilnd.cache")

_NAME = "redis"
_WRITE_HEAD_START_S = 0.05
_REVIVE_INTERVAL_S = 1.0
_MAX_REVIVE_INTERVAL_S = 60.0


class CannotOpenShared(Exception):  # noqa: N818 - says what cannot be done
    """The shared tier cannot be used as it is configured; the message says why."""


@dataclass(frozen=True, slots=True)
class RemoteOptions:
    """The settings of the shared tier. ``url`` is empty for the embedded server, or ``none``."""

    url: str = field(repr=False)
    access: RedisAccess
    state_dir: Path
    embedded_limit_bytes: int
    prefix: str
    ttl_s: int
    ttl_refresh: bool
    timeout_s: float
    retry_max_s: float
    write_queue_bytes: Callable[[], int]
    lease_s: float
    """0 to compile without asking other daemons."""
    fleet_wait_s: Callable[[], float]
    artifact_bytes: Callable[[], int]
    """The largest artifact that the daemon takes from the tier."""
    module_bytes: Callable[[], int]


@dataclass(kw_only=True, eq=False, repr=False)
class SharedTier:
    """The shared tier, and what comes and goes with it."""

    tier: Tier
    write_behind: WriteBehind
    fleet: LeaseFleet | NullFleet
    strikes: StrikeStore
    description: str
    mode: str
    """As in RemoteStatus: ``embedded``, ``external`` or ``none``."""
    redis: RedisTier | None = None
    revocations: RevocationStore | None = None
    embedded: EmbeddedServer | None = None
    refresher: TtlRefresher | None = None
    reconnect: Callable[[RedisAccess], RedisServer] | None = None
    """Connects to an external server, with other means of access."""
    open_late: Callable[[str], RedisServer] | None = None
    """Connects to the embedded server by its URL, if it could not start yet."""

    def __post_init__(self) -> None:
        self._reviver = asyncio.create_task(self._revive()) if self.embedded else None

    @property
    def used(self) -> Callable[[CacheKey | str], None] | None:
        """What to call with the key of each value that is used; None if use changes nothing."""
        return self.refresher.used if self.refresher else None

    def status(self) -> RemoteStatus:
        """Return whether the tier answers, and how many writes wait."""
        breaker = self.redis.breaker if self.redis else None
        return RemoteStatus(
            mode=self.mode,
            up=breaker.up if breaker else False,
            detail=self._why_down(),
            pending_writes=self.write_behind.pending,
            dropped_writes=self.write_behind.dropped,
        )

    def _why_down(self) -> str:
        if self.redis is None:
            return SWITCHED_OFF
        if self.redis.breaker.up and self.redis.write_refusal:
            return f"takes no writes: {self.redis.write_refusal}"
        return self.redis.breaker.detail

    def prepare_reconnect(self, access: RedisAccess) -> Callable[[], None]:
        """Read ``access`` and the files that it names; return what starts using them.

        A connection keeps the certificates that were read when it was made. So every connection
        is made again, even if only the content of a file changed. Raises CannotOpenShared.
        """
        if self.redis is None or self.reconnect is None:
            return lambda: None
        server, link = self.reconnect(access), self.redis.link
        return lambda: link.replace(server)

    async def close(self) -> None:
        """Drop the writes that wait, and close, without waiting; see flush and leave."""
        await self.write_behind.close(0)
        await self.fleet.close()
        if self.refresher:
            await self.refresher.close()
        if self._reviver:
            self._reviver.cancel()
            await asyncio.gather(self._reviver, return_exceptions=True)
        await self.tier.close()

    async def flush(self, timeout_s: float) -> None:
        """Write what waits, for at most ``timeout_s``."""
        await self.write_behind.flush(timeout_s)

    async def leave(self) -> None:
        """Stop using the embedded server; wait for its end if no other daemon uses it.

        If the wait is cancelled, the server ends by itself.
        """
        if self.embedded:
            await self.embedded.stop()

    async def _revive(self) -> None:
        """Restart the embedded server when it is gone; start it if it did not start at first."""
        wait_s, logged = _REVIVE_INTERVAL_S, ""
        while True:
            await asyncio.sleep(wait_s)
            if not (self.redis and self.redis.breaker.open and self.embedded):
                wait_s, logged = _REVIVE_INTERVAL_S, ""
                continue
            try:
                if self.open_late:
                    self.redis.link.replace(self.open_late(await self.embedded.start()))
                    self.open_late = None
                else:
                    await self.embedded.ensure()
            except EmbeddedUnavailable as failure:
                wait_s = min(2 * wait_s, _MAX_REVIVE_INTERVAL_S)
                if str(failure) != logged:  # Log each cause once.
                    logged = str(failure)
                    log.warning("cannot restart the embedded server", cause=logged)


async def open_shared(
    options: RemoteOptions, sealer: Sealer, recorder: Recorder, marks: Marks
) -> SharedTier:
    """Open the shared tier. A server that does not answer yet is no failure.

    ``marks`` are the evictions and releases that this daemon knows of. Raises CannotOpenShared
    for a URL that cannot be used.
    """
    if options.url == "none":
        return _without(options)
    if options.url:
        return await _external(options, sealer, recorder, marks)
    return await _embedded(options, sealer, recorder, marks)


async def _embedded(
    options: RemoteOptions, sealer: Sealer, recorder: Recorder, marks: Marks
) -> SharedTier:
    def opened(url: str) -> RedisServer:
        return connected(options, url, NO_ACCESS, options.timeout_s)

    embedded = EmbeddedServer(options.state_dir, options.embedded_limit_bytes)
    try:
        server = opened(await embedded.start())
    except EmbeddedUnavailable as failure:
        log.error("the embedded server does not start", cause=str(failure))
        server = UnavailableServer(f"the embedded server does not start: {failure}")
        return await _with(options, server, sealer, recorder, marks, embedded, open_late=opened)
    return await _with(options, server, sealer, recorder, marks, embedded)


async def _external(
    options: RemoteOptions, sealer: Sealer, recorder: Recorder, marks: Marks
) -> SharedTier:
    def reconnect(access: RedisAccess) -> RedisServer:
        return connected(options, options.url, access, options.timeout_s)

    return await _with(
        options, reconnect(options.access), sealer, recorder, marks, reconnect=reconnect
    )


async def _with(
    options: RemoteOptions,
    server: RedisServer,
    sealer: Sealer,
    recorder: Recorder,
    marks: Marks,
    embedded: EmbeddedServer | None = None,
    reconnect: Callable[[RedisAccess], RedisServer] | None = None,
    open_late: Callable[[str], RedisServer] | None = None,
) -> SharedTier:
    redis = RedisTier(
        server,
        sealer,
        recorder,
        prefix=options.prefix,
        ttl_s=options.ttl_s,
        timeout_s=options.timeout_s,
        longest_wait_s=options.retry_max_s,
        artifact_bytes=options.artifact_bytes,
        module_bytes=options.module_bytes,
        marks=marks,
    )
    answers = await redis.start()
    tier = ObservedTier(redis, recorder)
    writes = WriteBehind(
        tier,
        options.write_queue_bytes,
        redis.breaker.wait_closed,
        _WRITE_HEAD_START_S,
        is_down=lambda: redis.breaker.open,
    )
    fleet: LeaseFleet | NullFleet = NullFleet()
    if options.lease_s:
        leases = LeaseStore(redis.link, redis.names, sealer, writes.settled, options.lease_s)
        fleet = LeaseFleet(leases, recorder, max_wait_s=options.fleet_wait_s)
    return SharedTier(
        tier=tier,
        write_behind=writes,
        fleet=fleet,
        strikes=RedisStrikes(redis.link, redis.names, sealer, redis.marks),
        description=where(options) if answers else f"{where(options)}, which does not answer yet",
        mode="embedded" if embedded else "external",
        redis=redis,
        revocations=RevocationStore(redis.link, redis.names, sealer),
        embedded=embedded,
        refresher=TtlRefresher(redis.renew, options.ttl_s) if options.ttl_refresh else None,
        reconnect=reconnect,
        open_late=open_late,
    )


def connected(
    options: RemoteOptions, url: str, access: RedisAccess, timeout_s: float
) -> RedisServer:
    """Return the server at ``url``. It connects when it is first used.

    ``timeout_s`` bounds each read and each write. Raises CannotOpenShared.
    """
    try:
        return connect(url, access, connect_timeout_s=options.timeout_s, timeout_s=timeout_s)
    except (BadRedisUrl, AccessUnusable) as failure:
        raise CannotOpenShared(str(failure)) from None


def where(options: RemoteOptions) -> str:
    """Return which server ``options`` name, in words without secrets."""
    return f"Redis at {RedisAddress.parse(options.url)}" if options.url else "embedded Valkey"


def _without(options: RemoteOptions) -> SharedTier:
    tier = NullTier(_NAME)
    return SharedTier(
        tier=tier,
        write_behind=WriteBehind(tier, options.write_queue_bytes, tier.always_ready),
        fleet=NullFleet(),
        strikes=NullStrikes(),
        description="no Redis tier (WASMKILN_REDIS_URL=none)",
        mode="none",
    )
