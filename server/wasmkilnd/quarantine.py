"""Modules that broke a compiler are refused for a while, in the whole fleet.

A compile that crashed, ran past its time or past its memory would do so again, at the
same price. So what it was about is remembered: the module, and the fingerprint, so that
another engine, setting or version starts clean. Each strike more doubles the time. Where
it may have been the machine's doing, the first strike brings no quarantine.
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

# How long a strike counts after its quarantine, or after one that brought none.
MEMORY_S = 24 * 3600
_LONGEST_S = 24 * 3600
_MAX_KNOWN = 10_000
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 30.0
# What is told late is so however soon the store is back.
_LEAST_AGE_S = 0.001


class Quarantine:
    """Decides who is refused. For one event loop.

    What the shared ``store`` says goes; this daemon's own memory stands in for it while it
    does not answer. What could not be told to it is told when it answers again.
    """

    def __init__(
        self,
        store: StrikeStore,
        recorder: Recorder,
        first_s: Callable[[], float],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Refuse for ``first_s`` at first, as it is then; 0 refuses nobody."""
        self._store = store
        self._recorder = recorder
        self._first_s = first_s
        self._clock = clock
        self._known: OrderedDict[CacheKey, _Known] = OrderedDict()
        self._telling: asyncio.Task[None] | None = None

    @property
    def size(self) -> int:
        """How many modules this daemon knows to be in quarantine now."""
        return sum(1 for known in self._known.values() if known.left_s(self._clock()) > 0)

    @asynccontextmanager
    async def watch(
        self, key: CacheKey, spec: CompileSpec, budget: WaitBudget
    ) -> AsyncIterator[None]:
        """Surround a compile of ``key``: raise MODULE_QUARANTINED instead, or note its failure.

        ``budget`` is how long the call may wait for the shared store.
        """
        await self.check(key, budget)
        try:
            yield
        except WasmkilnError as failure:
            await self.report(key, spec, failure, budget)
            raise

    async def check(self, key: CacheKey, budget: WaitBudget) -> None:
        """Raise MODULE_QUARANTINED if ``key`` is to be refused."""
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
        """Take note of a compile of ``key`` that failed."""
        if not self._first_s() or failure.fault is Fault.NONE:
            return
        before = await self._find(key, budget)
        count = before.count + 1 if before else 1
        strike = Strike(
            key=key,
            engine_id=spec.engine.id,
            # What was seen first tells most: later ones come from those who tried again.
            reason=before.reason if before else failure.reason.value,
            message=before.message if before else failure.message,
            count=count,
            left_s=self._sentence_s(count, failure.fault),
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
        """Return all that are refused now, here or anywhere in the fleet."""
        now = self._clock()
        found = {key: known.strike_at(now) for key, known in self._known.items()}
        try:
            shared = {strike.key: strike for strike in await self._store.all()}
        except TierUnavailable:
            shared = {}
        else:
            found = {key: one for key, one in found.items() if not self._known[key].shared}
        active = [one for one in {**found, **shared}.values() if one.left_s > 0]
        return sorted(active, key=lambda one: (one.key.module_sha256, one.key.fingerprint))

    async def release(self, module_sha256: str) -> tuple[int, bool]:
        """Forget a module's strikes, all modules' for an empty digest.

        Answers how many it was, and whether the rest of the fleet was told.
        """
        mine = {key for key in self._known if module_sha256 in ("", key.module_sha256)}
        for key in mine:
            del self._known[key]
        try:
            return len(mine | set(await self._store.remove(module_sha256))), True
        except TierUnavailable:
            return len(mine), False

    async def close(self) -> None:
        """Give up what could not be told yet; never raises."""
        if self._telling:
            self._telling.cancel()
            await asyncio.gather(self._telling, return_exceptions=True)

    async def _find(self, key: CacheKey, budget: WaitBudget) -> Strike | None:
        known = self._known.get(key)
        try:
            strike = await self._store.get(key, budget)
        except TierUnavailable:
            return known.strike_at(self._clock()) if known else None
        if strike is None:
            if known and known.shared:
                del self._known[key]  # Released, or it expired.
                return None
            return known.strike_at(self._clock()) if known else None
        self._keep(strike, shared=True)
        return strike

    async def _remember(self, strike: Strike, budget: WaitBudget) -> None:
        self._keep(strike, shared=False)
        try:
            await self._store.put(strike, strike.left_s + MEMORY_S, budget)
        except TierUnavailable:
            if self._telling is None or self._telling.done():
                self._telling = asyncio.create_task(self._tell_late())
            return
        self._keep(strike, shared=True)

    async def _tell_late(self) -> None:
        """Tell the store what it has not heard, as soon as it answers."""
        pause_s = _FIRST_PAUSE_S
        while late := [key for key, known in self._known.items() if not known.shared]:
            await self._store.ready()
            try:
                for key in late:
                    await self._tell(key)
            except TierUnavailable:
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    async def _tell(self, key: CacheKey) -> None:
        known = self._known.get(key)
        if known is None or known.shared:
            return  # It was released, or heard of from others.
        now = self._clock()
        age_s = max(known.age_s(now), _LEAST_AGE_S)
        ttl_s = known.lasts_s - age_s
        if ttl_s > 0:
            await self._store.put(known.strike_at(now), ttl_s, None, age_s)
            known.shared = True
        else:
            del self._known[key]

    def _keep(self, strike: Strike, *, shared: bool) -> None:
        self._known[strike.key] = _Known(strike, self._clock(), shared)
        self._known.move_to_end(strike.key)
        if len(self._known) > _MAX_KNOWN:
            self._known.popitem(last=False)

    def _sentence_s(self, strikes: int, fault: Fault) -> float:
        if fault is Fault.UNSURE:
            strikes -= 1
        if strikes < 1:
            return 0.0
        first_s = self._first_s()
        return float(min(first_s * 2 ** min(strikes - 1, 32), max(_LONGEST_S, first_s)))


class _Known:
    """What this daemon knows of a strike, from when on, and whether others were told."""

    def __init__(self, strike: Strike, since: float, shared: bool) -> None:
        self._strike = strike
        self._since = since
        self.shared = shared

    @property
    def lasts_s(self) -> float:
        """For how long it counts, from when it was struck."""
        return self._strike.left_s + MEMORY_S

    def age_s(self, now: float) -> float:
        return now - self._since

    def left_s(self, now: float) -> float:
        return max(0.0, self._strike.left_s - (now - self._since))

    def strike_at(self, now: float) -> Strike:
        return replace(self._strike, left_s=self.left_s(now))
