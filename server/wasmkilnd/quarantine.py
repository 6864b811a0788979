"""Refuses modules that broke a compiler, for a while and in the whole fleet.

A compile that crashed, or exceeded its time or memory, would do so again at the same cost. So
the daemon records a strike against the module and the fingerprint; another engine, version or
setting starts without strikes. A strike starts a quarantine, and each further strike doubles its
length. Where the machine may be to blame, the first strike starts none.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace

import structlog

from wasmkilnd import errors
from wasmkilnd.cache.fleet import Strikes
from wasmkilnd.errors import Fault, TierUnavailable, WasmkilnError
from wasmkilnd.flights import WaitBudget
from wasmkilnd.model import CacheKey, CompileSpec, Strike
from wasmkilnd.ports import Recorder

log = structlog.get_logger("wasmkilnd")

# How long a strike counts after its quarantine has ended, or at all if it started none.
MEMORY_S = 24 * 3600
_LONGEST_S = 24 * 3600
_MAX_KNOWN = 10_000


@dataclass(slots=True)
class _Known:
    """A strike, when this daemon learned of it, and whether the store has it."""

    strike: Strike
    since_s: float
    shared: bool = False

    def at(self, now_s: float) -> Strike:
        left_s = self.strike.left_s - (now_s - self.since_s)
        return replace(self.strike, left_s=max(0.0, left_s))

    def lasts_s(self, now_s: float) -> float:
        """For how long the strike counts from now on."""
        return self.since_s + self.strike.left_s + MEMORY_S - now_s


class Quarantine:
    """Decides which modules are refused. For one event loop.

    The shared ``store`` decides. While it does not answer, this daemon's own memory does. A strike
    that could not be stored is stored when the module comes again, and the store answers.
    """

    def __init__(
        self,
        store: Strikes,
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

    def known(self) -> Sequence[Strike]:
        """Return the modules in quarantine that this daemon knows of, without asking the store."""
        strikes = [known.at(self._clock()) for known in self._known.values()]
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
        strike = await self._find(key, budget) if self._first_s() else None
        if strike and strike.left_s > 0:
            self._recorder.quarantine_refused()
            raise errors.module_quarantined(
                strike.engine_id, strike.reason, strike.message, round(strike.left_s, 1)
            )

    async def report(
        self, key: CacheKey, spec: CompileSpec, failure: WasmkilnError, budget: WaitBudget
    ) -> None:
        """Record a strike if ``failure`` is one that a compile of ``key`` is to blame for."""
        first_s = self._first_s()
        if not first_s or failure.fault is Fault.NONE:
            return
        # The first failure tells most: later ones come from callers that tried again.
        strike = await self._find(key, budget) or Strike(
            key, spec.engine.id, failure.reason.value, failure.message, count=0, left_s=0.0
        )
        strike = replace(strike, engine_id=spec.engine.id, count=strike.count + 1)
        times = strike.count - (failure.fault is Fault.UNSURE)
        left_s = min(first_s * 2 ** min(times - 1, 32), max(_LONGEST_S, first_s)) if times else 0.0
        strike = replace(strike, left_s=float(left_s))
        if strike.left_s:
            log.warning(
                "module quarantined",
                module=key.module_sha256,
                engine=strike.engine_id,
                reason=strike.reason,
                strikes=strike.count,
                seconds=strike.left_s,
            )
        known = self._keep(strike)
        with suppress(TierUnavailable):
            await self._share(known, budget)

    async def listed(self) -> Sequence[Strike]:
        """Return all modules in quarantine now, in this daemon or anywhere in the fleet."""
        active = {strike.key: strike for strike in self.known()}
        with suppress(TierUnavailable):
            shared = await self._store.all()
            unshared = {key for key, known in self._known.items() if not known.shared}
            active = {key: strike for key, strike in active.items() if key in unshared}
            active |= {strike.key: strike for strike in shared if strike.left_s > 0}
        return sorted(active.values(), key=lambda one: (one.key.module_sha256, one.key.fingerprint))

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

    async def _find(self, key: CacheKey, budget: WaitBudget) -> Strike | None:
        known = self._known.get(key)
        if known and known.lasts_s(self._clock()) <= 0:
            del self._known[key]
            known = None
        mine = known.at(self._clock()) if known else None
        with suppress(TierUnavailable):
            if strike := await self._store.get(key, budget):
                self._keep(strike).shared = True
                return strike
            if known and known.shared:
                self._known.pop(key, None)  # It was released, or has expired.
                return None
            if known:
                await self._share(known, budget)
        return mine

    async def _share(self, known: _Known, budget: WaitBudget) -> None:
        """Store a strike that the fleet does not know. Raises TierUnavailable."""
        now_s = self._clock()
        await self._store.put(known.at(now_s), known.lasts_s(now_s), budget)
        known.shared = True

    def _keep(self, strike: Strike) -> _Known:
        known = self._known[strike.key] = _Known(strike, self._clock())
        self._known.move_to_end(strike.key)
        if len(self._known) > _MAX_KNOWN:
            self._known.popitem(last=False)
        return known
