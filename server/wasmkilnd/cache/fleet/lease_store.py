"""The leases in Redis: look at them, take one, renew it while work goes on, release it."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections.abc import Awaitable, Callable
from enum import Enum, auto

import structlog

from wasmkilnd.cache.fleet.holders import LeaseHolders, Sightings
from wasmkilnd.cache.fleet.lease import Lease, State, read_lease
from wasmkilnd.cache.fleet.lease_commands import LeaseCommands
from wasmkilnd.cache.redis.guarded import GuardedRedis
from wasmkilnd.cache.value.names import KeyNames
from wasmkilnd.errors import TierUnavailable, WrongType
from wasmkilnd.model import CacheKey
from wasmkilnd.signing.sealer import Sealer

_RENEWALS_PER_LEASE = 3
# An artifact that is stored sooner than this needs no lease that says "storing".
_STORED_SOON_S = 0.2

# How long a holder whose compile failed leaves a note. All other daemons see it, and each
# compiles now and finds out for itself, rather than one after the other.
_FAILED_MS = 2000

_log = structlog.get_logger("wasmkilnd.cache")


class LeaseStatus(Enum):
    """What a look at an artifact and its lease found."""

    FREE = auto()
    """No daemon compiles it."""
    TAKEN = auto()
    """This daemon has just taken the lease."""
    SEIZED = auto()
    """As TAKEN; it replaced a lease with no valid signature or heartbeat."""
    HELD = auto()
    """Another daemon compiles it, or stores what it compiled."""
    FAILED = auto()
    """Another daemon compiled it, and failed."""
    STORED = auto()
    """The artifact is stored."""


class End(Enum):
    """How a holder's work ended, and so what becomes of its lease."""

    COMPILED = auto()
    """Keep the lease until the artifact is stored."""
    FAILED = auto()
    """Leave a note: each other daemon compiles the module and sees for itself."""
    GIVEN_UP = auto()
    """Release the lease: the compile told nothing about the module, so another may take over."""


class LeaseStore:
    """The leases of a fleet. For one event loop. Every method but ``hold`` raises TierUnavailable.

    A lease is held until ``stored`` returns, so it ends only after the artifact is stored.
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
        self._commands = LeaseCommands(link)
        self._names = names
        self._sealer = sealer
        self._stored = stored
        self._lease_s = lease_s
        self._holders = LeaseHolders()

    def new(self) -> Lease:
        """Return a new lease for this daemon to take."""
        return Lease.new(round(self._lease_s * 1000))

    async def is_stored(self, key: CacheKey) -> bool:
        """Return whether the artifact is stored."""
        return (await self._link.exists([self._names.artifact(key)]))[0]

    async def look(self, key: CacheKey, sightings: Sightings) -> LeaseStatus:
        """Return what happens to the artifact, changing nothing; add to ``sightings``."""
        name = self._names.lease(key)
        try:
            held, stored = await self._commands.look(name, self._names.artifact(key))
        except WrongType:
            return LeaseStatus.FREE  # The daemon that takes the lease deletes that value.
        if stored:
            self._holders.mark_ended(sightings.holder)
            return LeaseStatus.STORED
        return self._status_of(name, held, sightings)

    def give_up(self, sightings: Sightings) -> None:
        """Never wait again for the holder that was seen last, in this call or a later one."""
        self._holders.mark_ended(sightings.holder)

    async def take(self, key: CacheKey, ours: Lease, sightings: Sightings) -> LeaseStatus:
        """Take the lease if no live daemon of the fleet holds it; return what came of that."""
        name = self._names.lease(key)
        value = ours.written(name, self._sealer.stamp)
        take = functools.partial(
            self._commands.take, name, value, ours.lasts_ms, self._names.artifact(key)
        )
        try:
            taken, held, stored = await take()
        except WrongType:
            await self._link.delete([name])
            taken, held, stored = await take()
        if stored:
            if taken:
                await self._commands.release(name, ours.token)
            return LeaseStatus.STORED
        if taken:
            return LeaseStatus.TAKEN
        status = self._status_of(name, held, sightings)
        if status is not LeaseStatus.FREE:
            return status
        if not await self._commands.replace(name, held, value, ours.lasts_ms):
            return LeaseStatus.HELD  # Or it was released just now, as the next look will tell.
        _log.warning("replaced a lease with no valid signature or heartbeat", key=name.decode())
        return LeaseStatus.SEIZED

    async def release(self, key: CacheKey, ours: Lease) -> None:
        """Release the lease if this daemon holds it."""
        self._holders.mark_ended(ours.holder)
        await self._commands.release(self._names.lease(key), ours.token)

    async def hold(self, key: CacheKey, lease: Lease, ended: asyncio.Future[End]) -> None:
        """Renew the lease until the work has ended and the artifact is stored; never raise."""
        settled = asyncio.create_task(self._settled(key, ended))
        beat_s = self._lease_s / _RENEWALS_PER_LEASE
        try:
            while not settled.done():
                was_compiled = ended.done()
                tell_soon = was_compiled and lease.state is not State.STORING
                await asyncio.wait(
                    (settled,) if was_compiled else (settled, ended),
                    timeout=min(beat_s, _STORED_SOON_S) if tell_soon else beat_s,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                if settled.done() or ended.done() is not was_compiled:
                    continue
                lease = lease.next(State.STORING if was_compiled else State.COMPILING)
                # A short outage: the lease may outlast it.
                with contextlib.suppress(TierUnavailable):
                    if not await self._renew(key, lease, lease.lasts_ms):
                        return  # It expired, and another daemon may hold one by now.
            with contextlib.suppress(TierUnavailable):
                if settled.result() is End.FAILED:
                    await self._renew(key, lease.next(State.FAILED), _FAILED_MS)
                else:
                    await self.release(key, lease)
        finally:
            # A later sighting of this holder is a copy that someone wrote back.
            self._holders.mark_ended(lease.holder)
            settled.cancel()

    def _status_of(self, name: bytes, held: bytes, sightings: Sightings) -> LeaseStatus:
        theirs = read_lease(held, name, self._sealer.check_stamp)
        if theirs and theirs.state is State.FAILED:
            return LeaseStatus.FAILED
        if theirs and self._holders.is_alive(theirs, sightings, time.monotonic()):
            return LeaseStatus.HELD
        self._holders.mark_ended(sightings.holder)
        return LeaseStatus.FREE

    async def _renew(self, key: CacheKey, lease: Lease, ttl_ms: int) -> bool:
        name = self._names.lease(key)
        value = lease.written(name, self._sealer.stamp)
        return await self._commands.replace(name, lease.token, value, ttl_ms)

    async def _settled(self, key: CacheKey, ended: asyncio.Future[End]) -> End:
        end = await asyncio.shield(ended)
        if end is End.COMPILED:
            await self._stored(key)
        return end
