"""One compile in the whole fleet: daemons on one shared tier agree who compiles.

Who compiles holds a lease in the shared tier (see lease_store) that expires unless it is
renewed. It is taken when a worker is there, and not before: what stands in one
daemon's queue keeps none from compiling. The others look again and again until the artifact
is there, and take it. It is an agreement to save work, no lock that anything's truth depends
on: when in doubt a daemon compiles by itself, and at worst the same artifact is made twice.

Waits are measured by the server or by this daemon's monotonic clock. The time of day only tells
copies of old leases (:mod:`wasmkilnd.cache.fleet.holders`).
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from enum import Enum
from typing import Any

from wasmkilnd.cache.fleet.holders import Pulse
from wasmkilnd.cache.fleet.lease import State
from wasmkilnd.cache.fleet.lease_store import End, LeaseStore, Standing
from wasmkilnd.errors import Reason, TierUnavailable, WasmkilnError
from wasmkilnd.model import CacheKey
from wasmkilnd.ports import Claim, Recorder
from wasmkilnd.wait_budget import WaitBudget

_FIRST_PAUSE_S = 0.01
_LONGEST_PAUSE_S = 0.25
# Who stands in a queue looks less often, and all of a daemon no more often than this.
_QUEUED_PAUSE_S = 1.0
_QUEUED_LOOKS_PER_S = 50
# Who can write to the server can have leases and artifacts come and go for ever. An honest
# fleet has a holder that dies or gives up now and then.
_MAX_HOLDERS = 4
_MAX_TIMES_ELSEWHERE = 4
_LAST_WORDS_S = 1.0

# These say nothing about the module.
_NOT_TRIED = frozenset(
    {Reason.COMPILE_QUEUE_FULL, Reason.WORKER_UNAVAILABLE, Reason.SERVER_DRAINING}
)


class Outcome(Enum):
    """How a claim ended."""

    TAKEN = "taken"
    """It was ours: we compiled."""
    SEIZED = "seized"
    """As TAKEN; the lease was held by nobody of the fleet."""
    MADE = "made"
    """Another daemon stored the artifact."""
    FAILED = "failed"
    """Another daemon tried and failed: we tried, and saw."""
    LATE = "late"
    """Another daemon took too long to compile, or to store what it made: we compiled."""
    ALONE = "alone"
    """The shared tier did not answer: we compiled."""


class NullClaim:
    """A claim that nobody contests."""

    async def stored(self) -> None:
        """Never return."""
        await asyncio.get_running_loop().create_future()

    async def take(self) -> bool:
        """Return True."""
        return True

    async def wait_for_others(self) -> bool:
        """Return False."""
        return False

    def ignore_others(self) -> None:
        """Do nothing."""

    def failed(self) -> None:
        """Do nothing."""


class FleetClaims:
    """Claims by leases. For one event loop."""

    def __init__(
        self, leases: LeaseStore, recorder: Recorder, *, patience_s: Callable[[], float]
    ) -> None:
        """A holder that lives is waited for no longer than ``patience_s`` says by then; one that
        dies is replaced when its lease is over. Who is no daemon of the fleet is not waited for.
        """
        self._leases = leases
        self._recorder = recorder
        self._patience_s = patience_s
        self._under_way: set[asyncio.Task[None]] = set()
        self._watching: set[FleetClaim] = set()

    @contextlib.asynccontextmanager
    async def claim(self, key: CacheKey, budget: WaitBudget) -> AsyncIterator[Claim]:
        """Return the claim to compile ``key``, which ends as the context does.

        What it asks of the shared tier takes no longer than what ``budget`` has left.
        """
        claim = FleetClaim(
            key,
            budget,
            self._leases,
            self._recorder,
            self._patience_s,
            self._watching,
            self._behind,
        )
        end = End.GIVEN_UP
        try:
            yield claim
            end = End.MADE
        except WasmkilnError as failure:
            if failure.reason not in _NOT_TRIED:
                end = End.FAILED
            raise
        finally:
            claim.end(end)

    async def close(self) -> None:
        """Let go of every lease; never raises."""
        if self._under_way:
            _, late = await asyncio.wait(self._under_way, timeout=_LAST_WORDS_S)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    def _behind(self, work: Coroutine[Any, Any, None]) -> None:
        """Do ``work`` behind the caller's back."""

        async def unless_down() -> None:
            with contextlib.suppress(TierUnavailable):
                await work

        task = asyncio.create_task(unless_down())
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)


class FleetClaim:
    """As Claim, by a lease that is taken when work begins. For the tasks of one flight."""

    def __init__(
        self,
        key: CacheKey,
        budget: WaitBudget,
        leases: LeaseStore,
        recorder: Recorder,
        patience_s: Callable[[], float],
        watching: set[FleetClaim],
        behind: Callable[[Coroutine[Any, Any, None]], None],
    ) -> None:
        """``watching`` are the claims of this daemon whose work waits for a worker; ``behind``
        does work behind the caller's back.
        """
        self._key = key
        self._leases = leases
        self._recorder = recorder
        self._patience_s = patience_s
        self._watching = watching
        self._behind = behind
        self._budget = budget
        self._pulse = Pulse(patience_s)
        self._times_elsewhere = 0
        self._waited_s = 0.0
        self._by_ourselves: Outcome | None = None
        """Why others are waited for no more."""
        self._insists = False
        self._ended: asyncio.Future[End] | None = None

    async def stored(self) -> None:
        """As Claim. All of a daemon look no more often than a few times a second."""
        self._watching.add(self)
        pause_s = _LONGEST_PAUSE_S
        try:
            while True:
                await asyncio.sleep(_jittered(pause_s))
                longest_s = max(_QUEUED_PAUSE_S, len(self._watching) / _QUEUED_LOOKS_PER_S)
                pause_s = min(pause_s * 1.5, longest_s)
                # A server that does not answer costs no call anything: it is waiting anyway.
                with contextlib.suppress(TierUnavailable):
                    if self._leaves_it and await self._leases.is_made(self._key):
                        return
        finally:
            self._watching.discard(self)

    async def take(self) -> bool:
        """As Claim."""
        if self._insists:
            return True
        outcome = await self._take()
        if outcome is None:
            return False
        self._recorder.fleet_turn(outcome.value)
        if outcome is Outcome.LATE:
            self._leases.give_up(self._pulse)
        return True

    async def wait_for_others(self) -> bool:
        """As Claim."""
        self._times_elsewhere += 1
        pause_s = _FIRST_PAUSE_S
        while True:
            # While another compiles, waiting is work, which this call would do itself. What
            # it takes to store what was made is Redis's time, like that of the first look.
            storing = self._pulse.state is State.STORING
            began_s = time.monotonic()
            looking = self._leases.look(self._key, self._pulse)
            try:
                standing = await self._budget.spend_on(looking, charged=storing)
            except TierUnavailable:
                if storing:
                    self._by_ourselves = Outcome.LATE
                return False
            if standing is Standing.MADE:
                self._recorder.fleet_turn(Outcome.MADE.value)
                return True
            if standing is Standing.FAILED:
                self._by_ourselves = Outcome.FAILED
            if standing is not Standing.HELD:
                return False
            if self._waited_s > self._patience_s() or self._pulse.holders > _MAX_HOLDERS:
                self._by_ourselves = Outcome.LATE
                return False
            # Waiters that came together are not to ask together for ever.
            paused_s = _jittered(pause_s)
            await asyncio.sleep(paused_s)
            if storing:
                self._budget.charge(paused_s)
            self._waited_s += time.monotonic() - began_s
            pause_s = min(pause_s * 1.5, _LONGEST_PAUSE_S)

    def ignore_others(self) -> None:
        """As Claim."""
        self._insists = True

    def failed(self) -> None:
        """As Claim."""
        self.end(End.FAILED)

    def end(self, end: End) -> None:
        """Let go of the lease, if it is held, as ``end`` says. Only the first call counts."""
        if self._ended and not self._ended.done():
            self._ended.set_result(end)

    async def _take(self) -> Outcome | None:
        """Take the lease; return None if it is left to another daemon."""
        ours = self._leases.new()
        try:
            standing = await self._budget.spend_on(self._leases.take(self._key, ours, self._pulse))
        except (TierUnavailable, asyncio.CancelledError) as failure:
            # It may have been taken all the same, and then everybody would wait for nobody.
            self._behind(self._leases.release(self._key, ours))
            if isinstance(failure, TierUnavailable):
                return self._by_ourselves or Outcome.ALONE
            raise
        if standing in (Standing.TAKEN, Standing.SEIZED):
            self._ended = asyncio.get_running_loop().create_future()
            self._behind(self._leases.hold(self._key, ours, self._ended))
            return Outcome.TAKEN if standing is Standing.TAKEN else Outcome.SEIZED
        if standing is Standing.FAILED:
            self._by_ourselves = Outcome.FAILED
        if self._leaves_it and (standing is Standing.MADE or self._by_ourselves is None):
            return None
        return self._by_ourselves or Outcome.LATE

    @property
    def _leaves_it(self) -> bool:
        """Whether what others are seen to do is still believed."""
        return not self._insists and self._times_elsewhere < _MAX_TIMES_ELSEWHERE


def _jittered(pause_s: float) -> float:
    return pause_s * random.uniform(0.5, 1.0)  # noqa: S311
