"""Leases where all daemons see them: looked at, taken, renewed while work goes on, let go."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections.abc import Awaitable, Callable
from enum import Enum, auto

import structlog

from wasmkilnd.cache.fleet.holders import LeaseHolders, Pulse
from wasmkilnd.cache.fleet.lease import Lease, State, read_lease
from wasmkilnd.cache.redis.guarded import GuardedRedis
from wasmkilnd.cache.value.names import KeyNames
from wasmkilnd.errors import TierUnavailable, WrongType
from wasmkilnd.model import CacheKey
from wasmkilnd.ports import Sealer

_RENEWALS_PER_LEASE = 3
# What is stored sooner than this needs no word about it.
_STORED_SOON_S = 0.2

# A note left by a holder whose compile failed, for long enough that all see it: each of the
# others finds out for itself, now, rather than one after the other.
_FAILED_MS = 2000

_log = structlog.get_logger("wasmkilnd.cache")


class Standing(Enum):
    """How it stands with an artifact in the fleet."""

    FREE = auto()
    """Nobody makes it."""
    TAKEN = auto()
    """The lease is ours since this moment."""
    SEIZED = auto()
    """As TAKEN; it was held by nobody of the fleet."""
    HELD = auto()
    """Another daemon compiles it, or stores what it compiled."""
    FAILED = auto()
    """Another daemon tried, and the module did not compile."""
    MADE = auto()
    """It is stored."""


class End(Enum):
    """How a holder's work ended."""

    MADE = auto()
    FAILED = auto()
    """The module does not compile: the others had better see for themselves."""
    GIVEN_UP = auto()
    """Nothing was found out: another had better take over."""


class LeaseStore:
    """The leases of a fleet. For one event loop. Every method but ``hold`` raises TierUnavailable.

    A lease is kept until ``stored`` returns, so that the artifact is there before it ends.
    """

    def __init__(
        self,
        link: GuardedRedis,
        names: KeyNames,
        sealer: Sealer,
        stored: Callable[[CacheKey], Awaitable[None]],
        lease_s: float,
    ) -> None:
        self._link = link
        self._names = names
        self._sealer = sealer
        self._stored = stored
        self._lease_s = lease_s
        self._holders = LeaseHolders()

    def new(self) -> Lease:
        """Return a lease to be taken."""
        return Lease.new(round(self._lease_s * 1000))

    async def is_made(self, key: CacheKey) -> bool:
        """Return whether the artifact is stored."""
        return (await self._link.exists([self._names.artifact(key)]))[0]

    async def look(self, key: CacheKey, pulse: Pulse) -> Standing:
        """Return how it stands, changing nothing; ``pulse`` is of who looks at this lease."""
        name = self._names.lease(key)
        try:
            held, made = await self._link.peek(name, self._names.artifact(key))
        except WrongType:
            return Standing.FREE  # Whoever takes it puts that away.
        if made:
            self._holders.over(pulse.holder)
            return Standing.MADE
        return self._judged(name, held, pulse)

    def give_up(self, pulse: Pulse) -> None:
        """Wait no more for who was seen to hold the lease last, in this call or a later one."""
        self._holders.over(pulse.holder)

    async def take(self, key: CacheKey, ours: Lease, pulse: Pulse) -> Standing:
        """Take the lease if nobody of the fleet has it; return how it stands then."""
        name = self._names.lease(key)
        value = ours.written(name, self._sealer.stamp)
        take = functools.partial(
            self._link.take, name, value, ours.lasts_ms, self._names.artifact(key)
        )
        try:
            taken, held, made = await take()
        except WrongType:
            await self._link.delete([name])
            taken, held, made = await take()
        if made:
            if taken:
                await self._link.release(name, ours.token)
            return Standing.MADE
        if taken:
            return Standing.TAKEN
        standing = self._judged(name, held, pulse)
        if standing is not Standing.FREE:
            return standing
        if not await self._link.keep(name, held, value, ours.lasts_ms):
            return Standing.HELD  # Or it was let go this moment: a second look tells.
        _log.warning("a lease of nobody in the fleet was taken over", key=name.decode())
        return Standing.SEIZED

    async def release(self, key: CacheKey, ours: Lease) -> None:
        """Let the lease go if it is ours."""
        self._holders.over(ours.holder)
        await self._link.release(self._names.lease(key), ours.token)

    async def hold(self, key: CacheKey, lease: Lease, ended: asyncio.Future[End]) -> None:
        """Renew the lease until work has ended and what it made is stored; never raises."""
        settled = asyncio.create_task(self._settled(key, ended))
        beat_s = self._lease_s / _RENEWALS_PER_LEASE
        try:
            while not settled.done():
                was_made = ended.done()
                tell_soon = was_made and lease.state is not State.STORING
                await asyncio.wait(
                    (settled,) if was_made else (settled, ended),
                    timeout=min(beat_s, _STORED_SOON_S) if tell_soon else beat_s,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                if settled.done() or ended.done() is not was_made:
                    continue
                lease = lease.next(State.STORING if was_made else State.COMPILING)
                # A server that is away for a moment: the lease may outlast that.
                with contextlib.suppress(TierUnavailable):
                    if not await self._keep(key, lease, lease.lasts_ms):
                        return  # It expired, and may be another's by now.
            with contextlib.suppress(TierUnavailable):
                if settled.result() is End.FAILED:
                    await self._keep(key, lease.next(State.FAILED), _FAILED_MS)
                else:
                    await self.release(key, lease)
        finally:
            # What is seen of it from now on is what the server kept, or somebody put back.
            self._holders.over(lease.holder)
            settled.cancel()

    def _judged(self, name: bytes, held: bytes, pulse: Pulse) -> Standing:
        theirs = read_lease(held, name, self._sealer.check_stamp)
        if theirs and theirs.state is State.FAILED:
            return Standing.FAILED
        if theirs and self._holders.lives(theirs, pulse, time.monotonic()):
            return Standing.HELD
        self._holders.over(pulse.holder)
        return Standing.FREE

    async def _keep(self, key: CacheKey, lease: Lease, ttl_ms: int) -> bool:
        name = self._names.lease(key)
        value = lease.written(name, self._sealer.stamp)
        return await self._link.keep(name, lease.token, value, ttl_ms)

    async def _settled(self, key: CacheKey, ended: asyncio.Future[End]) -> End:
        end = await asyncio.shield(ended)
        if end is End.MADE:
            await self._stored(key)
        return end
