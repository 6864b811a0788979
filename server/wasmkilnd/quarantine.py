"""Refuses modules that broke a compiler, for a while and in the whole fleet.

A compile that crashed, or exceeded its time or memory, would do so again at the same cost. So
the daemon records a strike against the module and the fingerprint; another engine, version or
setting starts without strikes. A strike starts a quarantine, and each further strike doubles its
length. Where the machine may be to blame, the first strike starts none.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

import structlog

from wasmkilnd import errors
from wasmkilnd.errors import Fault, TierUnavailable, WasmkilnError
from wasmkilnd.model import CacheKey, CompileSpec, Strike
from wasmkilnd.ports import Recorder, StrikeStore
from wasmkilnd.wait_budget import WaitBudget

log = structlog.get_logger("wasmkilnd")

# How long a strike counts after its quarantine has ended, or at all if it started none.
MEMORY_S = 24 * 3600
_LONGEST_S = 24 * 3600
_MAX_KNOWN = 10_000
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 30.0
# A strike that could not be shared at once has an age, however soon the store is back: the store
# then checks whether the strike was released meanwhile.
_LEAST_AGE_S = 0.001


class Quarantine:
    """Decides which modules are refused. For one event loop.

    The shared ``store`` decides. While it does not answer, this daemon's own memory does, and
    strikes that could not be stored are stored when it answers again.
    """

    def __init__(
        self,
        store: StrikeStore,
        recorder: Recorder,
        first_s: Callable[[], float],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``first_s`` returns how long a module's first quarantine lasts; 0 for none at all."""
        self._store = store
        self._recorder = recorder
        self._first_s = first_s
        self._clock = clock
        self._known: OrderedDict[CacheKey, _Known] = OrderedDict()
        self._sharing: asyncio.Task[None] | None = None

    @property
    def size(self) -> int:
        """How many modules are in quarantine now, as far as this daemon knows."""
        return sum(1 for known in self._known.values() if known.left_s(self._clock()) > 0)

    def known(self) -> Sequence[Strike]:
        """Return the modules in quarantine that this daemon knows of, without asking the store."""
        now = self._clock()
        strikes = (known.strike_at(now) for known in self._known.values())
        return [strike for strike in strikes if strike.left_s > 0]

    @asynccontextmanager
    async def watch(
        self, key: CacheKey, spec: CompileSpec, budget: WaitBudget
    ) -> AsyncIterator[None]:
        """Surround a compile of ``key``: check the quarantine first, and report a failure.

        ``budget`` is how long the call may wait for the shared store. Raises MODULE_QUARANTINED.
        """
        await self.check(key, budget)
        try:
            yield
        except WasmkilnError as failure:
            await self.report(key, spec, failure, budget)
            raise

    async def check(self, key: CacheKey, budget: WaitBudget) -> None:
        """Raise MODULE_QUARANTINED if ``key`` is in quarantine."""
        if not self._first_s():
            return
        strike = await self._find(key, budget)
        if strike and strike.left_s > 0:
            self._recorder.quarantine_refused()
            raise errors.module_quarantined(
                strike.engine_id, strike.reason, strike.message, strike.left_s
            )

    async def report(
        self, key: CacheKey, spec: CompileSpec, failure: WasmkilnError, budget: WaitBudget
    ) -> None:
        """Record a strike if ``failure`` is one that a compile of ``key`` is to blame for."""
        if not self._first_s() or failure.fault is Fault.NONE:
            return
        before = await self._find(key, budget)
        count = before.count + 1 if before else 1
        strike = Strike(
            key=key,
            engine_id=spec.engine.id,
            # The first failure tells most: later ones come from callers that tried again.
            reason=before.reason if before else failure.reason.value,
            message=before.message if before else failure.message,
            count=count,
            left_s=self._quarantine_s(count, failure.fault),
        )
        if strike.left_s:
            log.warning(
                "module quarantined",
                module=key.module_sha256,
                engine=strike.engine_id,
                reason=strike.reason,
                strikes=count,
                seconds=strike.left_s,
            )
        await self._remember(strike, budget)

    async def listed(self) -> Sequence[Strike]:
        """Return all modules in quarantine now, in this daemon or anywhere in the fleet."""
        now = self._clock()
        found = {key: known.strike_at(now) for key, known in self._known.items()}
        try:
            shared = {strike.key: strike for strike in await self._store.all()}
        except TierUnavailable:
            shared = {}
        else:
            found = {key: mine for key, mine in found.items() if not self._known[key].shared}
        active = [strike for strike in {**found, **shared}.values() if strike.left_s > 0]
        return sorted(active, key=lambda each: (each.key.module_sha256, each.key.fingerprint))

    async def release(self, module_sha256: str) -> tuple[int, bool]:
        """Forget the strikes against a module, or against all modules for an empty digest.

        Return how many strikes that were, and whether other daemons were told.
        """
        mine = {key for key in self._known if module_sha256 in ("", key.module_sha256)}
        for key in mine:
            del self._known[key]
        try:
            return len(mine | set(await self._store.remove(module_sha256))), True
        except TierUnavailable:
            return len(mine), False

    async def close(self) -> None:
        """Stop sharing strikes; never raises."""
        if self._sharing:
            self._sharing.cancel()
            await asyncio.gather(self._sharing, return_exceptions=True)

    async def _find(self, key: CacheKey, budget: WaitBudget) -> Strike | None:
        known = self._known.get(key)
        try:
            strike = await self._store.get(key, budget)
        except TierUnavailable:
            return known.strike_at(self._clock()) if known else None
        if strike is None:
            if known and known.shared:
                del self._known[key]  # It was released, or has expired.
                return None
            return known.strike_at(self._clock()) if known else None
        self._keep(strike, shared=True)
        return strike

    async def _remember(self, strike: Strike, budget: WaitBudget) -> None:
        self._keep(strike, shared=False)
        try:
            await self._store.put(strike, strike.left_s + MEMORY_S, budget)
        except TierUnavailable:
            if self._sharing is None or self._sharing.done():
                self._sharing = asyncio.create_task(self._share_late())
            return
        self._keep(strike, shared=True)

    async def _share_late(self) -> None:
        """Store the strikes that could not be stored, as soon as the store answers."""
        pause_s = _FIRST_PAUSE_S
        while late := [key for key, known in self._known.items() if not known.shared]:
            await self._store.ready()
            try:
                for key in late:
                    await self._share(key)
            except TierUnavailable:
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    async def _share(self, key: CacheKey) -> None:
        known = self._known.get(key)
        if known is None or known.shared:
            return  # It was released, or another daemon stored it.
        now = self._clock()
        age_s = max(known.age_s(now), _LEAST_AGE_S)
        ttl_s = known.lasts_s - age_s
        if ttl_s > 0:
            await self._store.put(known.strike_at(now), ttl_s, WaitBudget(), age_s)
            known.shared = True
        else:
            del self._known[key]

    def _keep(self, strike: Strike, *, shared: bool) -> None:
        self._known[strike.key] = _Known(strike, self._clock(), shared)
        self._known.move_to_end(strike.key)
        if len(self._known) > _MAX_KNOWN:
            self._known.popitem(last=False)

    def _quarantine_s(self, strikes: int, fault: Fault) -> float:
        if fault is Fault.UNSURE:
            strikes -= 1
        if strikes < 1:
            return 0.0
        first_s = self._first_s()
        return float(min(first_s * 2 ** min(strikes - 1, 32), max(_LONGEST_S, first_s)))


class _Known:
    """A strike, when this daemon learned of it, and whether the store has it."""

    def __init__(self, strike: Strike, since: float, shared: bool) -> None:
        self._strike = strike
        self._since = since
        self.shared = shared

    @property
    def lasts_s(self) -> float:
        """How long the strike counts, from the failure on."""
        return self._strike.left_s + MEMORY_S

    def age_s(self, now: float) -> float:
        return now - self._since

    def left_s(self, now: float) -> float:
        return max(0.0, self._strike.left_s - (now - self._since))

    def strike_at(self, now: float) -> Strike:
        return replace(self._strike, left_s=self.left_s(now))
