"""All tiers as one: memory, then the host store, then the shared tier.

A tier that fails fails no call. Modules are not in the host store.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TypeVar

from wasmkilnd.cache.decoded import DecodedInMemory
from wasmkilnd.cache.memory import MemoryTier
from wasmkilnd.cache.value.pieces import ENCODINGS
from wasmkilnd.cache.write_behind import WriteBehind
from wasmkilnd.errors import TierUnavailable
from wasmkilnd.model import Artifact, CacheKey, Evicted, EvictScope, HostFile, Kind, Module, Origin
from wasmkilnd.ports import HostStore, Tier
from wasmkilnd.signing.sealer import Sealer
from wasmkilnd.wait_budget import Allowance, SharedLookups, WaitBudget

V = TypeVar("V")


class TieredCache:
    """Implements the Cache port. For one event loop."""

    def __init__(
        self,
        memory: MemoryTier,
        near: Tier,
        host: HostStore,
        host_writes: WriteBehind,
        shared: Tier,
        shared_writes: WriteBehind,
        used: Callable[[CacheKey | str], None] | None = None,
        *,
        call_wait_s: float = math.inf,
    ) -> None:
        """``near`` is ``memory`` wrapped in ObservedTier. ``memory`` has methods that Tier lacks.

        ``used`` is called with the key of each artifact that is found, and with each module's
        digest. One call waits for ``host`` and ``shared`` no longer than ``call_wait_s`` in all;
        the time for moving a large value is added (Allowance).
        """
        self._used = used
        self._call_wait_s = call_wait_s
        self._memory = memory
        self._near = near
        self._host = host
        self._host_writes = host_writes
        self._shared = shared
        self._shared_writes = shared_writes
        # Keyed by what the caller accepts too: the others need the artifact unpacked.
        self._artifact_lookups: SharedLookups[
            tuple[CacheKey, frozenset[str]], tuple[Artifact, Origin]
        ] = SharedLookups()
        self._decoded = DecodedInMemory(memory)
        self._file_lookups: SharedLookups[CacheKey, tuple[Artifact, HostFile]] = SharedLookups()
        self._module_lookups: SharedLookups[str, Module] = SharedLookups()
        self._held_lookups: SharedLookups[tuple[CacheKey, ...], Mapping[CacheKey, bool]] = (
            SharedLookups()
        )
        self._kind_lookups: SharedLookups[tuple[CacheKey, ...], Mapping[CacheKey, Kind]] = (
            SharedLookups()
        )
        self._restoring: dict[str, asyncio.Task[None]] = {}
        self._evictions = 0

    def wait_budget(self) -> WaitBudget:
        """Return how long one call may wait for the tiers below memory in all, from now on."""
        return WaitBudget(self._call_wait_s)

    async def get(
        self, key: CacheKey, budget: WaitBudget, accept: frozenset[str] = frozenset()
    ) -> tuple[Artifact, Origin] | None:
        """Return the artifact from the nearest tier that has it, and keep it in memory."""
        accept &= ENCODINGS
        if artifact := await self.get_local(key, accept):
            found: tuple[Artifact, Origin] | None = (artifact, Origin.MEMORY)
        else:
            found = await self._artifact_lookups.get(
                (key, accept), lambda allowance: self._fetch(key, allowance, accept), budget
            )
        if found and self._used:
            self._used(key)
        return found

    async def get_local(
        self, key: CacheKey, accept: frozenset[str] = frozenset()
    ) -> Artifact | None:
        """Return the artifact if this daemon's memory has it, and keep it there."""
        artifact = await self._near.get(key)
        if artifact is None and (artifact := self._waiting(key)):
            # Memory evicted the artifact before it was written, and the write may take long.
            await self._near.put(artifact)
        if artifact is not None and artifact.encoding and artifact.encoding not in accept:
            artifact = await self._decoded.get(artifact)
        return artifact

    async def has_local(self, key: CacheKey) -> bool:
        """Return whether this daemon's memory has the artifact, without counting as use."""
        return bool(await self._memory.held([key]) or self._waiting(key))

    async def host_file(
        self, key: CacheKey, budget: WaitBudget, at_hand: Artifact | None = None
    ) -> tuple[Artifact, HostFile] | None:
        """Return the artifact without its bytes, and the file that a process here can map."""
        found = await self._file_of(key, budget)
        if at_hand and not found and self._write_to_host(at_hand):
            found = await self._file_of(key, budget)
        if found and self._used:
            self._used(key)
        return found

    async def put(self, artifact: Artifact) -> None:
        """Store in memory now, and in the other tiers after the call."""
        await self._near.put(artifact)
        self._write_to_host(artifact)
        self._shared_writes.add(artifact)

    async def get_module(self, sha256: str, budget: WaitBudget) -> Module | None:
        """Return the module from the nearest tier that has it, and keep it in memory."""
        module = await self._near.get_module(sha256) or self._shared_writes.waiting(sha256)
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
        self._shared_writes.add(module)

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
        missing -= {key for key in missing if self._waiting(key)}
        if missing:
            asked = tuple(sorted(missing, key=_in_order))
            held = await self._held_lookups.get(asked, lambda _: self._below(_held, asked), budget)
            # If a tier does not answer, report the keys that the others lack missing.
            missing -= frozenset(held or ())
        return missing

    async def kinds_of(
        self, keys: Sequence[CacheKey], budget: WaitBudget
    ) -> Mapping[CacheKey, Kind]:
        """Return the kind of module behind each of ``keys`` that a tier holds."""
        kinds = dict(await self._near.kinds_of(keys))
        for key in keys:
            if key not in kinds and (artifact := self._waiting(key)):
                kinds[key] = artifact.kind
        asked = tuple(sorted({*keys} - kinds.keys(), key=_in_order))
        if asked:
            found = await self._kind_lookups.get(
                asked, lambda _: self._below(lambda tier, some: tier.kinds_of(some), asked), budget
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
        for candidate in (self._shared, self._host, self._near):
            if tier not in ("", candidate.name):
                continue
            if candidate is self._shared:
                # A module that is about to be restored must not be written after the eviction.
                await asyncio.gather(*self._restoring.values())
                await self._shared_writes.forget(scope)
            else:
                # Look-ups that began before must not fill memory or the host store again.
                self._evictions += 1
            if candidate is self._host:
                await self._host_writes.forget(scope)
            try:
                removed += await candidate.evict(scope)
            except TierUnavailable:
                unreachable.append(candidate.name)
        return removed, unreachable

    async def recheck(self, sealer: Sealer) -> int:
        """Drop artifacts that ``sealer`` does not vouch for; return how many memory held.

        Call it when a key is no longer trusted: memory, and the writes that wait (which are
        served too), were verified with the old keys and are not verified again. The host store
        verifies each entry again at its next use.
        """
        self._evictions += 1  # Look-ups under way may have verified with the old keys.
        self._host.recheck()
        queues = (self._host_writes, self._shared_writes)
        held = [
            *self._memory.artifacts(),
            *(each for queue in queues for each in queue.artifacts()),
        ]
        refused = await asyncio.to_thread(
            lambda: [artifact for artifact in held if sealer.verify(artifact, artifact.key)]
        )
        for queue in queues:
            queue.give_up(refused)
        return self._memory.drop(refused)

    async def drop_outdated(self, sealer: Sealer) -> int:
        """Drop from memory what has grown too old since it came; return how much."""
        held = self._memory.artifacts()
        return self._memory.drop(
            await asyncio.to_thread(lambda: [each for each in held if sealer.outdated(each)])
        )

    def _write_to_host(self, artifact: Artifact) -> bool:
        """Write to the host store after the call; return False if it does not take it now."""
        if takes := self._host.takes(artifact):
            self._host_writes.add(artifact)
        return takes

    def _waiting(self, key: CacheKey) -> Artifact | None:
        return self._shared_writes.waiting(key) or self._host_writes.waiting(key)

    async def _restore(self, module: Module) -> None:
        # If the tier does not answer, the next Load of the module tries again.
        with contextlib.suppress(TierUnavailable):
            if not await self._shared.has_module(module.sha256):
                self._shared_writes.add(module)

    async def _fetch(
        self, key: CacheKey, allowance: Allowance, accept: frozenset[str]
    ) -> tuple[Artifact, Origin] | None:
        evictions = self._evictions
        for tier, origin in ((self._host, Origin.HOST_STORE), (self._shared, Origin.REDIS)):
            with contextlib.suppress(TierUnavailable):
                if artifact := await tier.get(key, allowance, accept):
                    if evictions == self._evictions:
                        await self._near.put(artifact)
                        if tier is self._shared:
                            self._write_to_host(artifact)
                    return artifact, origin
        return None

    async def _file_of(self, key: CacheKey, budget: WaitBudget) -> tuple[Artifact, HostFile] | None:
        if self._host_writes.waiting(key):
            try:
                await budget.spend_on(self._host_writes.settled(key, at_once=True))
            except TierUnavailable:
                return None
        return await self._file_lookups.get(
            key, lambda allowance: self._host.file_of(key, allowance), budget
        )

    async def _fetch_module(self, sha256: str, allowance: Allowance) -> Module | None:
        evictions = self._evictions
        module = await self._shared.get_module(sha256, allowance)
        if module and evictions == self._evictions:
            await self._near.put_module(module)
        return module

    async def _below(
        self,
        ask: Callable[[Tier, Sequence[CacheKey]], Awaitable[Mapping[CacheKey, V]]],
        keys: Sequence[CacheKey],
    ) -> Mapping[CacheKey, V]:
        """Ask the host store, then the shared tier for the rest; pass over one that fails."""
        found: dict[CacheKey, V] = {}
        for tier in (self._host, self._shared):
            if rest := [key for key in keys if key not in found]:
                with contextlib.suppress(TierUnavailable):
                    found |= await ask(tier, rest)
        return found


async def _held(tier: Tier, keys: Sequence[CacheKey]) -> Mapping[CacheKey, bool]:
    return dict.fromkeys(await tier.held(keys), True)


def _in_order(key: CacheKey) -> tuple[str, str]:
    return key.module_sha256, key.fingerprint
