"""One compile in the whole fleet: daemons on one shared tier agree whose turn it is.

Who compiles holds a lease in the shared tier: a token that expires unless it is renewed. The
others look again and again until the artifact is there, and take it. It is an agreement to
save work, no lock that anything's truth depends on: when in doubt a daemon compiles by
itself, and at worst the same artifact is made twice.

Times are durations, measured by the server or by this daemon's monotonic clock; no two
clocks are compared.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from enum import Enum
from typing import Protocol

from wasmkilnd.cache.keys import KeyNames
from wasmkilnd.cache.link import RedisLink
from wasmkilnd.errors import TierUnavailable
from wasmkilnd.model import CacheKey
from wasmkilnd.ports import Recorder

_FIRST_PAUSE_S = 0.01
_LONGEST_PAUSE_S = 0.25
_RENEWALS_PER_LEASE = 3
_LAST_WORDS_S = 1.0

# Left by a holder whose compile failed: each of the others finds out for itself, now,
# rather than one after the other.
_FAILED = b"failed"
_FAILED_MS = 2000


class Turn(Enum):
    """How the wait for a turn ended."""

    TAKEN = "taken"
    """It is ours: compile."""
    MADE = "made"
    """Another daemon stored the artifact meanwhile."""
    FAILED = "failed"
    """Another daemon tried and failed: compile, and see."""
    LATE = "late"
    """Another daemon takes too long: compile."""
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
        recorder: Recorder,
        stored: Callable[[CacheKey], Awaitable[None]],
        *,
        lease_s: float,
        patience_s: float,
    ) -> None:
        """Keep a lease until ``stored`` returns, so that the artifact is there before it ends.

        A holder that dies is replaced after ``lease_s``; one that lives is waited for no
        longer than ``patience_s``.
        """
        self._link = link
        self._names = names
        self._recorder = recorder
        self._stored = stored
        self._lease_s = lease_s
        self._patience_s = patience_s
        self._holding: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def take(self, key: CacheKey) -> AsyncIterator[bool]:
        """As Turns."""
        token = secrets.token_hex(16).encode()
        turn = await self._wait(key, token)
        self._recorder.fleet_turn(turn.value)
        if turn is not Turn.TAKEN:
            yield turn is not Turn.MADE
            return
        ended: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        holding = asyncio.create_task(self._hold(key, token, ended))
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

    async def _wait(self, key: CacheKey, token: bytes) -> Turn:
        lease, artifact = self._names.lease(key), self._names.artifact(key)
        give_up = time.monotonic() + self._patience_s
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                taken, holder, made = await self._link.take(lease, token, self._lease_ms, artifact)
                if made and taken:
                    await self._link.let_go(lease, token)
            except TierUnavailable:
                return Turn.ALONE
            if made:
                return Turn.MADE
            if taken:
                return Turn.TAKEN
            if holder == _FAILED:
                return Turn.FAILED
            if time.monotonic() > give_up:
                return Turn.LATE
            # Waiters that came together are not to ask together for ever.
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))  # noqa: S311
            pause_s = min(pause_s * 1.5, _LONGEST_PAUSE_S)

    async def _hold(self, key: CacheKey, token: bytes, ended: asyncio.Future[bool]) -> None:
        """Renew the lease until the compile has ended and what it made is stored."""
        lease = self._names.lease(key)
        settled = asyncio.create_task(self._settled(key, ended))
        try:
            while not settled.done():
                await asyncio.wait((settled,), timeout=self._lease_s / _RENEWALS_PER_LEASE)
                if not settled.done():
                    # A server that is away for a moment: the lease may outlast that.
                    with contextlib.suppress(TierUnavailable):
                        if not await self._link.renew(lease, token, self._lease_ms):
                            return  # It expired, and may be another's by now.
            note = b"" if settled.result() else _FAILED
            with contextlib.suppress(TierUnavailable):
                await self._link.let_go(lease, token, note, _FAILED_MS)
        finally:
            settled.cancel()

    async def _settled(self, key: CacheKey, ended: asyncio.Future[bool]) -> bool:
        well = await asyncio.shield(ended)
        if well:
            await self._stored(key)
        return well

    @property
    def _lease_ms(self) -> int:
        return round(self._lease_s * 1000)
