"""One compile in the whole fleet: daemons on one shared tier agree whose turn it is.

Who compiles holds a lease in the shared tier (:mod:`wasmkilnd.cache.lease`) that expires
unless it is renewed. The others look again and again until the artifact is there, and take
it. It is an agreement to save work, no lock that anything's truth depends on: when in doubt a
daemon compiles by itself, and at worst the same artifact is made twice.

Times are durations, measured by the server or by this daemon's monotonic clock; no two
clocks are compared.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from enum import Enum
from typing import Protocol

import structlog

from wasmkilnd.cache.keys import KeyNames
from wasmkilnd.cache.lease import Lease, Pulse, State, read_lease
from wasmkilnd.cache.link import RedisLink
from wasmkilnd.cache.patience import Patience
from wasmkilnd.errors import TierUnavailable, WrongType
from wasmkilnd.model import CacheKey
from wasmkilnd.ports import Recorder, Sealer

_FIRST_PAUSE_S = 0.01
_LONGEST_PAUSE_S = 0.25
_RENEWALS_PER_LEASE = 3
_LAST_WORDS_S = 1.0
# What is stored sooner than this needs no word about it.
_STORED_SOON_S = 0.2

# A note left by a holder whose compile failed, for long enough that all see it: each of the
# others finds out for itself, now, rather than one after the other.
_FAILED_MS = 2000

_log = structlog.get_logger("wasmkilnd.cache")


class Turn(Enum):
    """How the wait for a turn ended."""

    TAKEN = "taken"
    """It is ours: compile."""
    SEIZED = "seized"
    """The lease was held by nobody of the fleet. It is ours now: compile."""
    MADE = "made"
    """Another daemon stored the artifact meanwhile."""
    FAILED = "failed"
    """Another daemon tried and failed: compile, and see."""
    LATE = "late"
    """Another daemon takes too long to compile, or to store what it made: compile."""
    ALONE = "alone"
    """The shared tier does not answer: compile."""


class Turns(Protocol):
    """Tells daemons apart that would compile the same thing at the same time."""

    def take(self, key: CacheKey) -> AbstractAsyncContextManager[bool]:
        """Wait for this daemon's turn to compile ``key``, and hold it within the context.

        Answers False instead when another daemon has stored the artifact. Never raises.
        """
        ...

    async def close(self) -> None:
        """Let go of every turn; never raises."""
        ...


class EveryTurn:
    """For a daemon without a shared tier: it is always its turn."""

    @contextlib.asynccontextmanager
    async def take(self, key: CacheKey) -> AsyncIterator[bool]:
        """As Turns."""
        yield True

    async def close(self) -> None:
        """As Turns."""


class FleetTurns:
    """Turns by leases. For one event loop."""

    def __init__(
        self,
        link: RedisLink,
        names: KeyNames,
        sealer: Sealer,
        recorder: Recorder,
        stored: Callable[[CacheKey], Awaitable[None]],
        *,
        lease_s: float,
        patience_s: Callable[[], float],
    ) -> None:
        """Keep a lease until ``stored`` returns, so that the artifact is there before it ends.

        A holder that dies is replaced after ``lease_s``; one that lives is waited for no
        longer than ``patience_s`` says by then. Who is no daemon of the fleet is not waited for.
        """
        self._link = link
        self._names = names
        self._sealer = sealer
        self._recorder = recorder
        self._stored = stored
        self._lease_s = lease_s
        self._patience_s = patience_s
        self._holding: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def take(self, key: CacheKey) -> AsyncIterator[bool]:
        """As Turns."""
        lease = Lease.new(round(self._lease_s * 1000))
        turn = await self._wait(key, lease)
        self._recorder.fleet_turn(turn.value)
        if turn not in (Turn.TAKEN, Turn.SEIZED):
            yield turn is not Turn.MADE
            return
        ended: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        holding = asyncio.create_task(self._hold(key, lease, ended))
        self._holding.add(holding)
        holding.add_done_callback(self._holding.discard)
        try:
            yield True
        except BaseException:
            ended.set_result(False)
            raise
        ended.set_result(True)

    async def close(self) -> None:
        """As Turns."""
        if self._holding:
            _, late = await asyncio.wait(self._holding, timeout=_LAST_WORDS_S)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def _wait(self, key: CacheKey, ours: Lease) -> Turn:
        patience = Patience.of_this_call(self._link.timeout_s)
        value = ours.written(self._names.lease(key), self._sealer.stamp)
        pulse = Pulse()
        began = time.monotonic()
        pause_s = _FIRST_PAUSE_S
        first = True
        while True:
            # While another compiles, waiting is work, which this call would do itself. What it
            # takes to store what was made is Redis's time, like that of the first look.
            storing = pulse.state is State.STORING
            looking = self._look(key, ours, value, pulse)
            try:
                turn = await patience.spend_on(looking, charged=first or storing)
            except TierUnavailable:
                return Turn.LATE if storing else Turn.ALONE
            if turn:
                return turn
            if time.monotonic() - began > self._patience_s():
                return Turn.LATE
            first = False
            # Waiters that came together are not to ask together for ever.
            paused_s = pause_s * random.uniform(0.5, 1.0)  # noqa: S311
            await asyncio.sleep(paused_s)
            if storing:
                patience.charge(paused_s)
            pause_s = min(pause_s * 1.5, _LONGEST_PAUSE_S)

    async def _look(self, key: CacheKey, ours: Lease, value: bytes, pulse: Pulse) -> Turn | None:
        """Look once; answer None if there is somebody to wait for. Raises TierUnavailable."""
        name = self._names.lease(key)
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
                await self._link.let_go(name, ours.token)
            return Turn.MADE
        if taken:
            return Turn.TAKEN
        if held is None:
            return None  # It was let go this moment.
        theirs = read_lease(held, name, self._sealer.check_stamp)
        if theirs and theirs.state is State.FAILED:
            return Turn.FAILED
        if theirs and pulse.lives(theirs, time.monotonic()):
            return None
        seized = await self._link.keep(name, held, value, ours.lasts_ms)
        if seized:
            _log.warning("a lease of nobody in the fleet was taken over", key=name.decode())
        return Turn.SEIZED if seized else None

    async def _hold(self, key: CacheKey, lease: Lease, ended: asyncio.Future[bool]) -> None:
        """Renew the lease until the compile has ended and what it made is stored."""
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
                if settled.result():
                    await self._link.let_go(self._names.lease(key), lease.token)
                else:
                    await self._keep(key, lease.next(State.FAILED), _FAILED_MS)
        finally:
            settled.cancel()

    async def _keep(self, key: CacheKey, lease: Lease, ttl_ms: int) -> bool:
        name = self._names.lease(key)
        value = lease.written(name, self._sealer.stamp)
        return await self._link.keep(name, lease.token, value, ttl_ms)

    async def _settled(self, key: CacheKey, ended: asyncio.Future[bool]) -> bool:
        well = await asyncio.shield(ended)
        if well:
            await self._stored(key)
        return well
