"""The tiers as one: memory first, then the shared tier, never failing for a tier's sake."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager

from wasmkilnd.cache.fleet.claim import FleetClaims, NullClaim
from wasmkilnd.cache.memory import MemoryTier
from wasmkilnd.cache.write_behind import WriteBehind
from wasmkilnd.errors import TierUnavailable
from wasmkilnd.model import Artifact, CacheKey, Evicted, EvictScope, Kind, Module, Origin
from wasmkilnd.ports import Claim, Sealer, Tier
from wasmkilnd.wait_budget import Allowance, SharedLookups, WaitBudget


class TieredCache:
    """The cache port. For one event loop.

    ``memory`` and ``near`` are the same tier, plain and observed: the plain one
    is asked what the port of a tier does not offer.
    """

    def __init__(
        self,
        memory: MemoryTier,
        near: Tier,
        far: Tier,
        writes: WriteBehind,
        claims: FleetClaims | None,
        used: Callable[[CacheKey | str], None] | None = None,
        *,
        call_wait_s: float = math.inf,
    ) -> None:
        """``claims`` are None for a daemon that agrees with no others about who compiles.

        ``used`` is told of every artifact that was found, and of every module's digest.

        One call waits for ``far`` no longer than ``call_wait_s`` in all, beside what moving
        the bytes takes.
        """
        self._used = used
        self._call_wait_s = call_wait_s
        self._claims = claims
        self._memory = memory
        self._near = near
        self._far = far
        self._writes = writes
        self._artifact_lookups: SharedLookups[CacheKey, Artifact] = SharedLookups()
        self._module_lookups: SharedLookups[str, Module] = SharedLookups()
        self._held_lookups: SharedLookups[tuple[CacheKey, ...], frozenset[CacheKey]] = (
            SharedLookups()
        )
        self._kind_lookups: SharedLookups[tuple[CacheKey, ...], Mapping[CacheKey, Kind]] = (
            SharedLookups()
        )
        self._restoring: dict[str, asyncio.Task[None]] = {}
        self._evictions = 0

    def wait_budget(self) -> WaitBudget:
        """Return how long one call may wait for the shared tier in all, from now on."""
        return WaitBudget(self._call_wait_s)

    async def get(self, key: CacheKey, budget: WaitBudget) -> tuple[Artifact, Origin] | None:
        """Return the artifact from the nearest tier that has it, and keep it nearer."""
        origin = Origin.MEMORY
        artifact = await self.get_local(key)
        if artifact is None:
            origin = Origin.REDIS
            artifact = await self._artifact_lookups.get(
                key, lambda allowance: self._fetch(key, allowance), budget
            )
        if artifact is None:
            return None
        if self._used:
            self._used(key)
        return artifact, origin

    def claim(
        self, key: CacheKey, budget: WaitBudget, *, contested: bool
    ) -> AbstractAsyncContextManager[Claim]:
        """Return this daemon's claim to compile ``key``; how the context ends, others hear."""
        if contested and self._claims:
            return self._claims.claim(key, budget)
        return contextlib.nullcontext(NullClaim())

    async def get_local(self, key: CacheKey) -> Artifact | None:
        """Return the artifact if this daemon has it, and keep it in memory."""
        artifact = await self._near.get(key)
        if artifact is None and (artifact := self._writes.waiting(key)):
            # It had to make room before it was written, and may have to be written for long.
            await self._near.put(artifact)
        return artifact

    async def has_local(self, key: CacheKey) -> bool:
        """Return whether this daemon has the artifact, touching nothing."""
        return bool(await self._memory.held([key]) or self._writes.waiting(key))

    async def put(self, artifact: Artifact) -> None:
        """Store in memory now and in the shared tier behind the caller's back."""
        await self._near.put(artifact)
        self._writes.add(artifact)

    async def get_module(self, sha256: str, budget: WaitBudget) -> Module | None:
        """Return the module from the nearest tier that has it, and keep it nearer."""
        module = await self._near.get_module(sha256) or self._writes.waiting(sha256)
        if module is None:
            module = await self._module_lookups.get(
                sha256, lambda allowance: self._fetch_module(sha256, allowance), budget
            )
        if module and self._used:
            self._used(sha256)
        return module

    async def put_module(self, module: Module) -> None:
        """Store in memory now and in the shared tier behind the caller's back."""
        await self._near.put_module(module)
        self._writes.add(module)

    def restore_module(self, module: Module) -> None:
        """Have a module stored in the shared tier again if it is gone from there."""
        if module.sha256 in self._restoring:
            return
        restoring = asyncio.create_task(self._restore(module))
        self._restoring[module.sha256] = restoring
        restoring.add_done_callback(lambda _: self._restoring.pop(module.sha256))

    async def missing(self, keys: Sequence[CacheKey], budget: WaitBudget) -> frozenset[CacheKey]:
        """Return which of ``keys`` no tier holds."""
        missing = frozenset(keys) - await self._near.held(keys)
        missing -= {key for key in missing if self._writes.waiting(key)}
        if missing:
            asked = tuple(sorted(missing, key=_in_order))
            held = await self._held_lookups.get(asked, lambda _: self._far.held(asked), budget)
            # A tier that does not answer is not known to hold them: they may have to be compiled.
            missing -= held or frozenset()
        return missing

    async def kinds_of(
        self, keys: Sequence[CacheKey], budget: WaitBudget
    ) -> Mapping[CacheKey, Kind]:
        """Return the kinds of modules that those of the artifacts were made from that are held."""
        kinds = dict(await self._near.kinds_of(keys))
        for key in keys:
            if key not in kinds and (artifact := self._writes.waiting(key)):
                kinds[key] = artifact.kind
        asked = tuple(sorted({*keys} - kinds.keys(), key=_in_order))
        if asked:
            found = await self._kind_lookups.get(asked, lambda _: self._far.kinds_of(asked), budget)
            kinds |= found or {}
        return kinds

    def held_in_memory(self, module_sha256: str) -> Sequence[Artifact]:
        """Return the artifacts of a module that this daemon's memory holds."""
        return self._memory.artifacts_of(module_sha256)

    async def evict(self, scope: EvictScope, tier: str) -> tuple[Evicted, Sequence[str]]:
        """Evict from ``tier`` ("" for all); answer what went and which tiers did not answer."""
        gone = Evicted()
        unreachable = []
        for candidate in (self._far, self._near):
            if tier not in ("", candidate.name):
                continue
            if candidate is self._far:
                # What was asked about before is not to be written after.
                await asyncio.gather(*self._restoring.values())
                await self._writes.forget(scope)
            else:
                self._evictions += 1  # A fetch from before is not kept nearer any more.
            try:
                gone += await candidate.evict(scope)
            except TierUnavailable:
                unreachable.append(candidate.name)
        return gone, unreachable

    async def recheck(self, sealer: Sealer) -> int:
        """Drop what ``sealer`` does not vouch for from memory, where the answer says how much
        that was, and from what waits to be written, which is served too.

        For the day on which a key is trusted no more: what it signed was verified when
        it came from the shared tier, and never again.
        """
        self._evictions += 1  # What is being fetched was perhaps verified by the old keys.
        held = [*self._memory.artifacts(), *self._writes.artifacts()]
        refused = await asyncio.to_thread(
            lambda: [artifact for artifact in held if sealer.verify(artifact, artifact.key)]
        )
        self._writes.give_up(refused)
        return self._memory.drop(refused)

    async def _restore(self, module: Module) -> None:
        # While it does not answer there is no telling; whoever loads it next asks again.
        with contextlib.suppress(TierUnavailable):
            if not await self._far.has_module(module.sha256):
                self._writes.add(module)

    async def _fetch(self, key: CacheKey, allowance: Allowance) -> Artifact | None:
        evictions = self._evictions
        artifact = await self._far.get(key, allowance)
        if artifact and evictions == self._evictions:
            await self._near.put(artifact)
        return artifact

    async def _fetch_module(self, sha256: str, allowance: Allowance) -> Module | None:
        evictions = self._evictions
        module = await self._far.get_module(sha256, allowance)
        if module and evictions == self._evictions:
            await self._near.put_module(module)
        return module


def _in_order(key: CacheKey) -> tuple[str, str]:
    return key.module_sha256, key.fingerprint
