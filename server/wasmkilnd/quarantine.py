"""Refuses modules that broke a compiler, for a while and in the whole fleet.

A compile that crashed, or exceeded its time or memory, would do so again at the same cost. So
the daemon records a strike against the module and the fingerprint; another engine, version or
setting starts without strikes. A strike starts a quarantine, and each further strike doubles its
length. Where the machine may be to blame, there is no strike. A strike for a limit names it, and
counts only at daemons whose own limit is no higher: others may compile the module.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace

import structlog

from wasmkilnd import errors
from wasmkilnd.model import CacheKey, CompileSpec, Limits, Strike
from wasmkilnd.redis.records import Strikes
from wasmkilnd.telemetry.metrics import Metrics
from wasmkilnd.waits.budgets import WaitBudget

log = structlog.get_logger("wasmkilnd")

# How long a strike counts after its quarantine has ended.
MEMORY_S = 24 * 3600
_LONGEST_S = 24 * 3600
_MAX_KNOWN = 10_000
# What a compile that failed for this reason had too little of.
_REACHED: dict[errors.AnyReason, tuple[str, ...]] = {
    errors.Reason.COMPILE_MEMORY_LIMIT: ("memory_bytes",),
    errors.Reason.COMPILE_TIMEOUT: ("timeout_s", "cpu_s"),
}


@dataclass(eq=False, repr=False)
class Quarantine:
    """Decides which modules are refused. For one event loop.

    The ``strikes`` that daemons share decide. While Redis does not answer, this daemon's own memory
    does: a strike that could not be written counts until Redis answers again.

    - ``first_s``: returns how long a module's first quarantine lasts; 0 for none at all.
    - ``limits``: returns what this daemon gives to a compile.
    """

    strikes: Strikes
    metrics: Metrics
    first_s: Callable[[], float]
    limits: Callable[[], Limits]
    clock: Callable[[], float] = time.monotonic
    # By the end of the quarantine. The newest strike comes last.
    _known: dict[CacheKey, tuple[Strike, float]] = field(default_factory=dict)

    def known(self) -> Sequence[Strike]:
        """Return the modules in quarantine that this daemon knows of, without asking Redis."""
        return [one for key in list(self._known) if self._refuses(one := self._now(key))]

    @asynccontextmanager
    async def watch(
        self, key: CacheKey, spec: CompileSpec, budget: WaitBudget
    ) -> AsyncIterator[None]:
        """Surround a compile of ``key``: check the quarantine first, and report a failure.

        ``budget`` is how long the call may wait for Redis. Raises MODULE_QUARANTINED.
        """
        await self.check(key, budget)
        try:
            yield
        except errors.WasmkilnError as failure:
            await self.report(key, spec, failure, budget)
            raise

    async def check(self, key: CacheKey, budget: WaitBudget) -> None:
        """Raise MODULE_QUARANTINED if ``key`` is in quarantine."""
        strike = await self._find(key, budget) if self.first_s() else None
        if strike and self._refuses(strike):
            self.metrics.count("quarantine_refused")
            first = strike.engine_id, strike.reason, strike.message
            raise errors.module_quarantined(*first, round(strike.left_s, 1))

    async def report(
        self, key: CacheKey, spec: CompileSpec, failure: errors.WasmkilnError, budget: WaitBudget
    ) -> None:
        """Record a strike if ``failure`` is one that a compile of ``key`` is to blame for."""
        first_s, engine_id = self.first_s(), spec.engine.id
        if not first_s or failure.fault is not errors.Fault.MODULE:
            return
        before, own = await self._find(key, budget), self._own_limits()
        limits = {name: own[name] for name in _REACHED.get(failure.reason, ())}
        if before:
            # Each may have more of another: what counts is the most that did not help.
            names = {*limits, *before.limits} if limits and before.limits else ()
            limits = {name: max(own[name], before.limits.get(name, 0.0)) for name in names}
        # The first failure tells most: later ones come from callers that tried again.
        strike = Strike(key, engine_id, failure.reason.value, failure.message, 0, 0.0)
        if before and self._counts(before):
            strike = before
        strikes = strike.count + 1
        left_s = float(min(first_s * 2 ** min(strike.count, 32), max(_LONGEST_S, first_s)))
        about = {"module": key.module_sha256, "engine": engine_id, "reason": strike.reason}
        log.warning("module quarantined", **about, strikes=strikes, seconds=left_s)
        strike = replace(strike, engine_id=engine_id, count=strikes, left_s=left_s, limits=limits)
        self._keep(strike)
        with suppress(errors.TierUnavailable):
            await self.strikes.put(strike, left_s + MEMORY_S, budget)

    async def listed(self) -> Sequence[Strike]:
        """Return all modules in quarantine now, in this daemon or anywhere in the fleet."""
        found = self.known()
        with suppress(errors.TierUnavailable):
            found = [strike for strike in await self.strikes.all() if strike.left_s > 0]
        return sorted(found, key=lambda one: (one.key.module_sha256, one.key.fingerprint))

    async def release(self, module_sha256: str) -> tuple[int, bool]:
        """Forget the strikes against a module, or against all modules for an empty digest.

        Return how many strikes that were, and whether other daemons were told.
        """
        mine = {key for key in self._known if module_sha256 in ("", key.module_sha256)}
        for key in mine:
            del self._known[key]
        try:
            return len(mine | set(await self.strikes.remove(module_sha256))), True
        except errors.TierUnavailable:
            return len(mine), False

    async def _find(self, key: CacheKey, budget: WaitBudget) -> Strike | None:
        with suppress(errors.TierUnavailable):
            if strike := await self.strikes.get(key, budget):
                self._keep(strike)
            else:
                self._known.pop(key, None)  # It was released, or has expired.
            return strike
        if key in self._known and self._known[key][1] + MEMORY_S <= self.clock():
            del self._known[key]
        return self._now(key) if key in self._known else None

    def _own_limits(self) -> dict[str, float]:
        own = self.limits()
        memory_bytes = max(own.compile_memory_bytes, own.compile_memory_retry_bytes)
        times = {"timeout_s": own.compile_timeout_s, "cpu_s": own.compile_cpu_s}
        return {"memory_bytes": memory_bytes, **times}

    def _counts(self, strike: Strike) -> bool:
        own = self._own_limits() if strike.limits else {}
        return all(own[name] <= limit for name, limit in strike.limits.items())

    def _refuses(self, strike: Strike) -> bool:
        return strike.left_s > 0 and self._counts(strike)

    def _now(self, key: CacheKey) -> Strike:
        strike, until_s = self._known[key]
        return replace(strike, left_s=max(0.0, until_s - self.clock()))

    def _keep(self, strike: Strike) -> None:
        self._known.pop(strike.key, None)
        self._known[strike.key] = strike, self.clock() + strike.left_s
        if len(self._known) > _MAX_KNOWN:
            del self._known[next(iter(self._known))]
