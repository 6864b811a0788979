"""Claims to compile: one compile of an artifact in the whole fleet.

The daemon that compiles holds a lease in Redis (:mod:`wasmkilnd.cache.fleet.lease_store`), which
expires unless the daemon renews it. It takes the lease when a worker is free, not before: a job
that waits in one daemon's queue keeps no other daemon from compiling. The other daemons look
until the artifact is stored, and fetch it. A lease saves work, and nothing depends on it: when in
doubt a daemon compiles, and at worst the same artifact is made twice.

Waits are measured by the server's clock or this daemon's monotonic clock. The time of day only
tells copies of old leases (:mod:`wasmkilnd.cache.fleet.holders`).
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from enum import Enum
from typing import Any

from wasmkilnd.cache.fleet.holders import Sightings
from wasmkilnd.cache.fleet.lease import State
from wasmkilnd.cache.fleet.lease_store import End, LeaseStatus, LeaseStore
from wasmkilnd.cache.fleet.null_fleet import NullClaim
from wasmkilnd.errors import Reason, TierUnavailable, WasmkilnError
from wasmkilnd.model import CacheKey
from wasmkilnd.ports import Claim, Recorder
from wasmkilnd.wait_budget import WaitBudget

_FIRST_PAUSE_S = 0.01
_LONGEST_PAUSE_S = 0.25
# A job that waits for a worker looks less often, and all such jobs of a daemon together look no
# more often than this.
_QUEUED_PAUSE_S = 1.0
_QUEUED_LOOKS_PER_S = 50
# Anyone who can write to the server can make leases and artifacts come and go for ever. In an
# honest fleet a holder dies or gives up now and then.
_MAX_HOLDERS = 4
_MAX_TIMES_WAITED = 4
_CLOSE_TIMEOUT_S = 1.0

# Failures that tell nothing about the module.
_NOT_TRIED = frozenset(
    {Reason.COMPILE_QUEUE_FULL, Reason.WORKER_UNAVAILABLE, Reason.SERVER_DRAINING}
)


class Outcome(Enum):
    """How a claim ended; the values are labels of the metric ``fleet_turns``."""

    TAKEN = "taken"
    """This daemon took the lease, and compiled."""
    SEIZED = "seized"
    """As TAKEN; it replaced a lease with no valid signature or heartbeat."""
    MADE = "made"
    """Another daemon stored the artifact."""
    FAILED = "failed"
    """Another daemon compiled and failed: this daemon compiled too, to see for itself."""
    LATE = "late"
    """Another daemon took too long to compile or to store: this daemon compiled."""
    ALONE = "alone"
    """The shared tier did not answer: this daemon compiled."""


class LeaseFleet:
    """Implements Fleet by leases. For one event loop."""

    def __init__(
        self, leases: LeaseStore, recorder: Recorder, *, max_wait_s: Callable[[], float]
    ) -> None:
        """``max_wait_s`` returns how long one call waits for live holders.

        A holder that died is replaced when its lease expires. No call waits for a lease that no
        daemon of the fleet wrote.
        """
        self._leases = leases
        self._recorder = recorder
        self._max_wait_s = max_wait_s
        self._background: set[asyncio.Task[None]] = set()
        self._watching: set[LeaseClaim] = set()

    @contextlib.asynccontextmanager
    async def claim(
        self, key: CacheKey, budget: WaitBudget, *, alone: bool = False
    ) -> AsyncIterator[Claim]:
        """See Fleet."""
        if alone:
            yield NullClaim()
            return
        claim = LeaseClaim(
            key,
            budget,
            self._leases,
            self._recorder,
            self._max_wait_s,
            self._watching,
            self._in_background,
        )
        end = End.GIVEN_UP
        try:
            yield claim
            end = End.COMPILED
        except WasmkilnError as failure:
            if failure.reason not in _NOT_TRIED:
                end = End.FAILED
            raise
        finally:
            claim.end(end)

    async def close(self) -> None:
        """Release every lease; never raises."""
        if self._background:
            _, late = await asyncio.wait(self._background, timeout=_CLOSE_TIMEOUT_S)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        """Run ``work`` without letting the call wait for it."""

        async def unless_down() -> None:
            with contextlib.suppress(TierUnavailable):
                await work

        task = asyncio.create_task(unless_down())
        self._background.add(task)
        task.add_done_callback(self._background.discard)


class LeaseClaim:
    """Implements Claim by a lease. For the tasks of one flight."""

    def __init__(
        self,
        key: CacheKey,
        budget: WaitBudget,
        leases: LeaseStore,
        recorder: Recorder,
        max_wait_s: Callable[[], float],
        watching: set[LeaseClaim],
        in_background: Callable[[Coroutine[Any, Any, None]], None],
    ) -> None:
        """``watching`` are this daemon's claims whose jobs wait for a worker."""
        self._key = key
        self._leases = leases
        self._recorder = recorder
        self._max_wait_s = max_wait_s
        self._watching = watching
        self._in_background = in_background
        self._budget = budget
        self._sightings = Sightings(max_wait_s)
        self._times_waited = 0
        self._waited_s = 0.0
        self._why_compile: Outcome | None = None
        """Why this daemon compiles, though it does not hold the lease."""
        self._ignores_others = False
        self._ended: asyncio.Future[End] | None = None

    async def stored(self) -> None:
        """See Claim. All claims of a daemon share a limit of looks per second."""
        self._watching.add(self)
        pause_s = _LONGEST_PAUSE_S
        try:
            while True:
                await asyncio.sleep(_jittered(pause_s))
                longest_s = max(_QUEUED_PAUSE_S, len(self._watching) / _QUEUED_LOOKS_PER_S)
                pause_s = min(pause_s * 1.5, longest_s)
                # A server that does not answer costs nothing: the job waits for a worker anyway.
                with contextlib.suppress(TierUnavailable):
                    if self._believes_others and await self._leases.is_stored(self._key):
                        return
        finally:
            self._watching.discard(self)

    async def take(self) -> bool:
        """See Claim."""
        if self._ignores_others:
            return True
        outcome = await self._take()
        if outcome is None:
            return False
        self._recorder.fleet_turn(outcome.value)
        if outcome is Outcome.LATE:
            self._leases.give_up(self._sightings)
        return True

    async def wait_for_others(self) -> bool:
        """See Claim."""
        self._times_waited += 1
        pause_s = _FIRST_PAUSE_S
        while True:
            # While another daemon compiles, the wait replaces work that this call would do, and
            # costs no budget. While that daemon stores, the wait is for Redis, and is charged.
            storing = self._sightings.state is State.STORING
            began_s = time.monotonic()
            looking = self._leases.look(self._key, self._sightings)
            try:
                status = await self._budget.spend_on(looking, charged=storing)
            except TierUnavailable:
                if storing:
                    self._why_compile = Outcome.LATE
                return False
            if status is LeaseStatus.STORED:
                self._recorder.fleet_turn(Outcome.MADE.value)
                return True
            if status is LeaseStatus.FAILED:
                self._why_compile = Outcome.FAILED
            if status is not LeaseStatus.HELD:
                return False
            if self._waited_s > self._max_wait_s() or self._sightings.holders > _MAX_HOLDERS:
                self._why_compile = Outcome.LATE
                return False
            # Jitter, so that daemons that began to wait together do not look together for ever.
            paused_s = _jittered(pause_s)
            await asyncio.sleep(paused_s)
            if storing:
                self._budget.charge(paused_s)
            self._waited_s += time.monotonic() - began_s
            pause_s = min(pause_s * 1.5, _LONGEST_PAUSE_S)

    def ignore_others(self) -> None:
        """See Claim."""
        self._ignores_others = True

    def failed(self) -> None:
        """See Claim."""
        self.end(End.FAILED)

    def end(self, end: End) -> None:
        """End the lease as ``end`` says, if it is held. Only the first call counts."""
        if self._ended and not self._ended.done():
            self._ended.set_result(end)

    async def _take(self) -> Outcome | None:
        """Take the lease; return None to leave the compile to another daemon."""
        ours = self._leases.new()
        try:
            status = await self._budget.spend_on(
                self._leases.take(self._key, ours, self._sightings)
            )
        except (TierUnavailable, asyncio.CancelledError) as failure:
            # The server may have taken it all the same, and then all would wait for nothing.
            self._in_background(self._leases.release(self._key, ours))
            if isinstance(failure, TierUnavailable):
                return self._why_compile or Outcome.ALONE
            raise
        if status in (LeaseStatus.TAKEN, LeaseStatus.SEIZED):
            self._ended = asyncio.get_running_loop().create_future()
            self._in_background(self._leases.hold(self._key, ours, self._ended))
            return Outcome.TAKEN if status is LeaseStatus.TAKEN else Outcome.SEIZED
        if status is LeaseStatus.FAILED:
            self._why_compile = Outcome.FAILED
        if self._believes_others and (status is LeaseStatus.STORED or self._why_compile is None):
            return None
        return self._why_compile or Outcome.LATE

    @property
    def _believes_others(self) -> bool:
        """Whether the claim still believes what other daemons say."""
        return not self._ignores_others and self._times_waited < _MAX_TIMES_WAITED


def _jittered(pause_s: float) -> float:
    return pause_s * random.uniform(0.5, 1.0)  # noqa: S311
