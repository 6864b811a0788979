"""All tiers as one: memory first, then the shared tier. A tier that fails fails no call."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable, Mapping, Sequence

from wasmkilnd.cache.decoded import DecodedInMemory
from wasmkilnd.cache.memory import MemoryTier
from wasmkilnd.cache.value.pieces import ENCODINGS
from wasmkilnd.cache.write_behind import WriteBehind
from wasmkilnd.errors import TierUnavailable
from wasmkilnd.model import Artifact, CacheKey, Evicted, EvictScope, Kind, Module, Origin
from wasmkilnd.ports import Sealer, Tier
from wasmkilnd.wait_budget import Allowance, SharedLookups, WaitBudget


class TieredCache:
    """Implements the Cache port. For one event loop."""

    def __init__(
        self,
        memory: MemoryTier,
        near: Tier,
        shared: Tier,
        writes: WriteBehind,
        used: Callable[[CacheKey | str], None] | None = None,
        *,
        call_wait_s: float = math.inf,
    ) -> None:
        """``near`` is ``memory`` wrapped in ObservedTier. ``memory`` has methods that Tier lacks.

        ``used`` is called with the key of each artifact that is found, and with each module's
        digest. One call waits for ``shared`` no longer than ``call_wait_s`` in all; the time for
        moving a large value is added (Allowance).
        """
        self._used = used
        self._call_wait_s = call_wait_s
        self._memory = memory
        self._near = near
        self._shared = shared
        self._writes = writes
        # Keyed by what the caller accepts too: the others need the artifact unpacked.
        self._artifact_lookups: SharedLookups[tuple[CacheKey, frozenset[str]], Artifact] = (
            SharedLookups()
        )
        self._decoded = DecodedInMemory(memory)
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

    async def get(
        self, key: CacheKey, budget: WaitBudget, accept: frozenset[str] = frozenset()
    ) -> tuple[Artifact, Origin] | None:
        """Return the artifact from the nearest tier that has it, and keep it in memory."""
        accept &= ENCODINGS
        origin = Origin.MEMORY
        artifact = await self.get_local(key, accept)
        if artifact is None:
            origin = Origin.REDIS
            artifact = await self._artifact_lookups.get(
                (key, accept), lambda allowance: self._fetch(key, allowance, accept), budget
            )
        if artifact is None:
            return None
        if self._used:
            self._used(key)
        return artifact, origin

    async def get_local(
        self, key: CacheKey, accept: frozenset[str] = frozenset()
    ) -> Artifact | None:
        """Return the artifact if this daemon has it, and keep it in memory."""
        artifact = await self._near.get(key)
        if artifact is None and (artifact := self._writes.waiting(key)):
            # Memory evicted the artifact before it was written, and the write may take long.
            await self._near.put(artifact)
        if artifact is not None and artifact.encoding and artifact.encoding not in accept:
            artifact = await self._decoded.get(artifact)
        return artifact

    async def has_local(self, key: CacheKey) -> bool:
        """Return whether this daemon has the artifact, without counting as use."""
        return bool(await self._memory.held([key]) or self._writes.waiting(key))

    async def put(self, artifact: Artifact) -> None:
        """Store in memory now, and in the shared tier after the call."""
        await self._near.put(artifact)
        self._writes.add(artifact)

    async def get_module(self, sha256: str, budget: WaitBudget) -> Module | None:
        """Return the module from the nearest tier that has it, and keep it in memory."""
        module = await self._near.get_module(sha256) or self._writes.waiting(sha256)
        if module is None:
            module = await self._module_lookups.get(
                sha256, lambda allowance: self._fetch_module(sha256, allowance), budget
            )
        if module and self._used:
            self._used(sha256)
        return module

    async def put_module(self, module: Module) -> None:
        """Store in memory now, and in the shared tier after the call."""
        await self._near.put_module(module)
        self._writes.add(module)

    def restore_module(self, module: Module) -> None:
        """Store ``module`` in the shared tier, after the call, if it is missing there."""
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
            held = await self._held_lookups.get(asked, lambda _: self._shared.held(asked), budget)
            # If the tier does not answer, report all these keys missing.
            missing -= held or frozenset()
        return missing

    async def kinds_of(
        self, keys: Sequence[CacheKey], budget: WaitBudget
    ) -> Mapping[CacheKey, Kind]:
        """Return the kind of module behind each of ``keys`` that a tier holds."""
        kinds = dict(await self._near.kinds_of(keys))
        for key in keys:
            if key not in kinds and (artifact := self._writes.waiting(key)):
                kinds[key] = artifact.kind
        asked = tuple(sorted({*keys} - kinds.keys(), key=_in_order))
        if asked:
            found = await self._kind_lookups.get(
                asked, lambda _: self._shared.kinds_of(asked), budget
            )
            kinds |= found or {}
        return kinds

    def held_in_memory(self, module_sha256: str) -> Sequence[Artifact]:
        """Return the artifacts of a module that this daemon's memory holds."""
        return self._memory.artifacts_of(module_sha256)

    async def evict(self, scope: EvictScope, tier: str) -> tuple[Evicted, Sequence[str]]:
        """Evict ``scope`` from ``tier`` ("" for all); return what went, and which tiers failed."""
        removed = Evicted()
        unreachable = []
        for candidate in (self._shared, self._near):
            if tier not in ("", candidate.name):
                continue
            if candidate is self._shared:
                # A module that is about to be restored must not be written after the eviction.
                await asyncio.gather(*self._restoring.values())
                await self._writes.forget(scope)
            else:
                self._evictions += 1  # Look-ups that began before must not fill memory again.
            try:
                removed += await candidate.evict(scope)
            except TierUnavailable:
                unreachable.append(candidate.name)
        return removed, unreachable

    async def recheck(self, sealer: Sealer) -> int:
        """Drop artifacts that ``sealer`` does not vouch for; return how many memory held.

        Call it when a key is no longer trusted: memory, and the writes that wait (which are
        served too), were verified with the old keys and are not verified again.
        """
        self._evictions += 1  # Look-ups under way may have verified with the old keys.
        held = [*self._memory.artifacts(), *self._writes.artifacts()]
        refused = await asyncio.to_thread(
            lambda: [artifact for artifact in held if sealer.verify(artifact, artifact.key)]
        )
        self._writes.give_up(refused)
        return self._memory.drop(refused)

    async def _restore(self, module: Module) -> None:
        # If the tier does not answer, the next Load of the module tries again.
        with contextlib.suppress(TierUnavailable):
            if not await self._shared.has_module(module.sha256):
                self._writes.add(module)

    async def _fetch(
        self, key: CacheKey, allowance: Allowance, accept: frozenset[str]
    ) -> Artifact | None:
        evictions = self._evictions
        artifact = await self._shared.get(key, allowance, accept)
        if artifact and evictions == self._evictions:
            await self._near.put(artifact)
        return artifact

    async def _fetch_module(self, sha256: str, allowance: Allowance) -> Module | None:
        evictions = self._evictions
        module = await self._shared.get_module(sha256, allowance)
        if module and evictions == self._evictions:
            await self._near.put_module(module)
        return module


def _in_order(key: CacheKey) -> tuple[str, str]:
    return key.module_sha256, key.fingerprint
