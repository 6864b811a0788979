"""All tiers as one: memory, then the files of the host store, then Redis, then the object store.

No call fails because a tier fails: a tier that does not answer, or would take longer than the
call's budget has left, counts as one that holds nothing. What a put stores is in memory when the
put returns. The tiers below are written after the call, and are looked into once for all calls
that want the same entry at the same time. Modules are not in the host store.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import Callable, Coroutine, Hashable, Sequence
from functools import partial
from typing import Any, TypeVar, cast
from weakref import WeakValueDictionary

import structlog

from wasmkilnd import model
from wasmkilnd.cache.host_store import HostStore
from wasmkilnd.cache.memory import Decoder, MemoryTier
from wasmkilnd.cache.object_store import ObjectStore
from wasmkilnd.cache.redis_store import RedisStore
from wasmkilnd.cache.value import ZSTD
from wasmkilnd.cache.writes import Below, Writes
from wasmkilnd.errors import TierUnavailable
from wasmkilnd.model import Artifact, CacheKey, Evicted, Item, Module, Origin
from wasmkilnd.signing.sealer import Sealer
from wasmkilnd.telemetry.metrics import Metrics
from wasmkilnd.waits.budgets import Allowance, WaitBudget
from wasmkilnd.waits.flights import Background, Flights, Waiter, Waiters

V = TypeVar("V")


# To a bucket, which takes tens of milliseconds for each.
_WRITES_AT_ONCE = 4
# How long an eviction keeps its caller waiting for one tier, and hits from being kept.
_EVICT_WAIT_S = 10.0
_AS_STORED = frozenset({ZSTD})

log = structlog.get_logger("wasmkilnd.cache")


class Cache:
    """The tiers of one namespace. For one event loop."""

    def __init__(
        self,
        memory: MemoryTier,
        host: HostStore | None,
        redis: RedisStore | None,
        metrics: Metrics,
        *,
        call_wait_s: float,
        write_queue_bytes: Callable[[], int],
        objects: ObjectStore | None = None,
    ) -> None:
        """One call waits for the tiers below memory no longer than ``call_wait_s`` in all.

        The time for moving a large value is added (Allowance). ``write_queue_bytes`` may wait to
        be written to each.
        """
        self.memory, self._host, self._redis = memory, host, redis
        self._objects, self._metrics, self._call_wait_s = objects, metrics, call_wait_s
        # Those that daemons share, the nearest first; those that are read; who hears of uses.
        self._shared_tiers = [tier for tier in (redis, objects) if tier]
        self._read = [tier for tier in self._shared_tiers if tier.reads]
        self._renews = redis if redis and redis.writes else None
        # By name, the farthest first: what is evicted there must not come back from nearer ones.
        self._below: dict[str, Below] = {tier.name: tier for tier in (objects, redis, host) if tier}
        made = partial(Writes, limit_bytes=write_queue_bytes)
        self.redis_writes = made(redis if redis and redis.writes else None)
        self.object_writes = made(
            objects if objects and objects.writes else None, at_once=_WRITES_AT_ONCE
        )
        self.host_writes = made(host)
        queues = self.redis_writes, self.object_writes, self.host_writes
        self._queues = dict(zip(("redis", "object_store", "host_store"), queues, strict=True))
        self._lookups = Flights()
        # By look-up, for as long as it runs or a call waits for it.
        self._allowances: WeakValueDictionary[Hashable, Allowance] = WeakValueDictionary()
        self._decoder = Decoder(memory, self._keep, self._forget)
        # How many began or ended, and how many are under way.
        self._evictions = self._evicting = 0
        self._background = Background()

    def wait_budget(self) -> WaitBudget:
        """Return how long one call may wait for the tiers below memory in all, from now on."""
        return WaitBudget(self._call_wait_s)

    def hit(self, key: CacheKey, accept: frozenset[str]) -> Artifact | None:
        """Return an artifact that memory has as the caller takes it, without waiting.

        None notes nothing: ``get`` does.
        """
        began = time.perf_counter()
        artifact: Artifact | None = self.memory.get(key)
        if artifact is None or (artifact.encoding and artifact.encoding not in accept):
            return None
        self._metrics.tier_lookup("memory", "artifact", "hit", time.perf_counter() - began)
        if self._renews:
            self._renews.used(key)
        return artifact

    async def get(
        self,
        key: CacheKey,
        budget: WaitBudget,
        accept: frozenset[str] = frozenset(),
        *,
        whole: bool = True,
        engines: Sequence[str] = (),
    ) -> tuple[Artifact, Origin] | None:
        """Return the artifact from the nearest tier that has it, and keep it in memory.

        Its encoding is empty or one of ``accept``. Its frames may be ``coming``. Unless it is
        wanted ``whole``, what the host store has is not read now: see ``Artifact.pieces``.
        Of a ``key`` without its engine, shared tiers look under the names of ``engines``.
        """
        artifact, origin = cast("Artifact | None", self._in_memory(key)), Origin.MEMORY
        if artifact:
            artifact = await self._decoder.as_accepted(artifact, accept)
        if artifact is None and (
            found := await self._look_up(key, budget, accept, whole=whole, engines=engines)
        ):
            artifact, origin = await self._decoder.as_accepted(found[0], accept), found[1]
        if artifact and self._renews:
            self._renews.used(artifact.key)
        return (artifact, origin) if artifact else None

    def peek(self, key: CacheKey | str) -> Item | None:
        """Return what this daemon's memory has, encoded or not, without counting as use.

        What waits to be written is in memory, too, though the tier had no room for it.
        """
        queues = self._queues.values()
        waiting = (item for queue in queues if (item := queue.waiting(key)))
        return self.memory.peek(key) or next(waiting, None)

    async def host_file(
        self, key: CacheKey, budget: WaitBudget
    ) -> tuple[Artifact, model.HostFile, Origin] | None:
        """Return the artifact without its bytes, and the file that a process here can map.

        If the host store lacks it and another tier has it, write it there at once: its bytes are
        unpacked on their way into the file, and not before.
        """
        if (host := self._host) is None:
            return None

        async def look_up(allowance: Allowance) -> tuple[Artifact, model.HostFile] | None:
            await self.host_writes.settled(key, at_once=True)
            return await host.file_of(key, allowance)

        evictions = self._evictions
        found, origin = await self._shared(("file", key), look_up, budget), Origin.HOST_STORE
        if found is None:
            artifact, origin = self._in_memory(key), Origin.MEMORY
            if artifact is None:
                below = await self._look_up(key, budget, _AS_STORED)
                artifact, origin = below or (None, origin)
            if artifact and not artifact.pieces and self._may_fill(evictions):
                self.write_to_host(artifact)
                found = await self._shared(("file", key), look_up, budget)
            # If these bytes could not be written, a file of others may be there from before.
            if artifact is None or found is None or found[0].sha256 != artifact.sha256:
                return None
        if self._renews:
            self._renews.used(key)
        return *found, origin

    def put(self, item: Item) -> None:
        """Store in memory now, and in the other tiers after the call."""
        self._keep(item)
        if isinstance(item, Artifact):
            self.write_to_host(item)
        self.redis_writes.add(item)
        self.object_writes.add(item)

    async def get_module(self, sha256: str, budget: WaitBudget) -> tuple[Module, Origin] | None:
        """Return the module from the nearest tier that has it, and keep it in memory."""
        module, origin = cast("Module | None", self._in_memory(sha256)), Origin.MEMORY
        if module is None and self._read:
            look_up = partial(self._fetch_shared, [sha256])
            if found := await self._shared(("module", sha256), look_up, budget):
                module, origin = cast("Module", found[0]), found[1]
        if module and self._renews:
            self._renews.used(sha256)
        return (module, origin) if module else None

    async def has_module(self, sha256: str, budget: WaitBudget) -> bool:
        """Return whether a tier has the module; fetch and verify nothing."""

        async def look_up(_: Allowance) -> bool:
            for tier in self._read:
                with contextlib.suppress(TierUnavailable):
                    if await tier.size(sha256) is not None:
                        return True
            return False

        if self.peek(sha256):
            return True
        return bool(await self._shared(("has", sha256), look_up, budget))

    async def held(self, keys: Sequence[CacheKey], budget: WaitBudget) -> frozenset[CacheKey]:
        """Return those of ``keys`` that a tier holds.

        Ask memory, and one tier after the other for the rest; pass over one that fails.
        """
        found = frozenset(filter(self.peek, keys))
        rest = frozenset(keys) - found

        async def look_up(_: Allowance) -> frozenset[CacheKey]:
            below = frozenset[CacheKey]()
            for tier in (self._host, *self._read):
                if tier and (left := rest - below):
                    with contextlib.suppress(TierUnavailable):
                        below |= await tier.held([*left])
            return below

        if rest:
            found |= await self._shared(("held", rest), look_up, budget) or frozenset()
        return found

    async def evict(self, scope: model.EvictScope, tier: str) -> tuple[Evicted, Sequence[str]]:
        """Evict ``scope`` from ``tier`` ("" for all).

        Return what was removed, and the names of the tiers that did not answer, or where the
        eviction goes on.
        """
        removed, unreachable = Evicted(), list[str]()
        self._evictions, self._evicting = self._evictions + 1, self._evicting + 1
        try:
            names = [tier] if tier else [*self._below, self.memory.name]
            for place, name in enumerate(names):
                work = self._background.begin(self._evict_from(name, scope))
                await asyncio.wait((work,), timeout=_EVICT_WAIT_S)
                if work.done() and (gone := work.result()):
                    removed += gone
                else:
                    unreachable.append(name)
                if not work.done():
                    self._background.begin(self._evict_again(scope, work, names[place:]))
        finally:
            self._evictions, self._evicting = self._evictions + 1, self._evicting - 1
        return removed, unreachable

    async def _evict_from(self, name: str, scope: model.EvictScope) -> Evicted | None:
        """Return what was removed from a tier; None if it does not answer.

        A write that is under way there ends first, or it would undo the eviction. It may hang.
        """
        if writes := self._queues.get(name):
            await writes.forget(scope)
        tiers = {**self._below, self.memory.name: self.memory}
        with contextlib.suppress(TierUnavailable):
            return await tiers[name].evict(scope) if name in tiers else Evicted()
        return None

    async def _evict_again(
        self, scope: model.EvictScope, work: asyncio.Task[Evicted | None], tiers: list[str]
    ) -> None:
        """Once the first of ``tiers`` has evicted all, evict from the others again.

        Until then daemons read what it still has, and put it back into those.
        """
        about = {"tier": tiers[0], "module": scope.module_sha256, "engine": scope.engine_id}
        log.info("an eviction goes on in the background", **about)
        await asyncio.wait((work,))
        if work.cancelled() or (gone := work.result()) is None:
            log.warning("an eviction is not complete: evict again", **about)
            return
        log.info("an eviction has ended", **about, artifacts=gone.artifacts, modules=gone.modules)
        for nearer in tiers[1:]:
            await self.evict(scope, nearer)

    async def recheck(self, sealer: Sealer) -> int:
        """Drop artifacts that ``sealer`` does not vouch for; return how many memory held.

        Call it when a key is no longer trusted: memory, and the writes that wait (which are
        served too), were verified with the old keys and are not verified again. The host store
        verifies each entry again at its next use.
        """
        self._evictions += 1  # Look-ups under way may have verified with the old keys.
        if self._host:
            self._host.directory.recheck()
        dropped = await self.drop(lambda artifact: sealer.verify(artifact, artifact.key))
        if self._host:
            self._host.directory.recheck()  # A write that began meanwhile counts as checked there.
        return dropped

    async def drop(self, refuses: Callable[[Artifact], object]) -> int:
        """Drop what ``refuses``, called in a thread, is true of; return how much memory held."""

        def held() -> list[Artifact]:
            queued = (item for queue in self._queues.values() for item in queue.items())
            return [*self.memory.artifacts(), *(x for x in queued if isinstance(x, Artifact))]

        def refused(some: Sequence[Artifact]) -> set[bytes]:
            return {each.attestation for each in some if refuses(each)}

        # Not the objects: one may be replaced meanwhile by what was decoded of it.
        attestations = await asyncio.to_thread(refused, held())
        gone = [each for each in held() if each.attestation in attestations]
        for queue in self._queues.values():
            queue.give_up(gone)
        return self.memory.drop(gone)

    def write_to_host(self, artifact: Artifact) -> None:
        """Write to the host store after the call, if it takes the artifact now."""
        if self._host and self._host.takes(artifact):
            self.host_writes.add(artifact)

    async def flush(self, timeout_s: float) -> None:
        """Write what waits, for at most ``timeout_s``."""
        await asyncio.gather(*(queue.flush(timeout_s) for queue in self._queues.values()))

    async def close(self) -> None:
        """Drop the writes that wait, and close all tiers, without waiting; see ``flush``."""
        await self._background.stop()
        for queue in self._queues.values():
            await queue.close()
        await self._lookups.settle(0)
        if self._redis:
            await self._redis.close()
        self.memory.close()

    def remote_status(self, mode: str, name: str = "redis") -> model.RemoteStatus:
        """Return whether a shared tier answers, and how many writes wait, for one of this mode."""
        tier, queue = self._below.get(name), self._queues[name]
        if tier is None or isinstance(tier, HostStore):
            return model.RemoteStatus(mode=mode, up=False, detail=model.SWITCHED_OFF)
        detail, pending = tier.link.why_down or tier.refusal, len(queue.items())
        kept = tier.strangers if isinstance(tier, ObjectStore) else 0
        return model.RemoteStatus(mode, tier.link.up, detail, pending, queue.dropped, kept)

    def _may_fill(self, evictions: int) -> bool:
        """Return whether what was found since there were ``evictions`` may be kept elsewhere.

        What was evicted from one tier must not come back from another, where its turn is later.
        """
        return not self._evicting and evictions == self._evictions

    def _in_memory(self, key: CacheKey | str) -> Any:
        """Return an item from memory as it is there, encoded or not; None if there is none."""
        began = time.perf_counter()
        item = self.memory.get(key)
        what, outcome = "module" if isinstance(key, str) else "artifact", "hit" if item else "miss"
        self._metrics.tier_lookup("memory", what, outcome, time.perf_counter() - began)
        if item is None and (item := self.peek(key)):
            # Memory evicted the item before it was written, and the write may take long.
            self._keep(item)
        return item

    async def _forget(self, artifact: Artifact) -> None:
        """Remove an artifact that cannot be decoded from the tiers that daemons share."""
        for tier in self._shared_tiers:
            with contextlib.suppress(TierUnavailable):
                if tier.writes:
                    await tier.remove(artifact.key)

    def _keep(self, value: Item) -> None:
        began = time.perf_counter()
        outcome = "ok" if self.memory.put(value) else "too_large"
        self._metrics.tier_store("memory", outcome, time.perf_counter() - began)

    async def _look_up(
        self,
        key: CacheKey,
        budget: WaitBudget,
        accept: frozenset[str],
        *,
        whole: bool = True,
        engines: Sequence[str] = (),
    ) -> tuple[Artifact, Origin] | None:
        """Return the artifact from the nearest tier below memory, in one look-up for all callers.

        It may be encoded, though the caller does not ``accept`` that. A key without its engine may
        miss what another finds.
        """
        if len(self._shared_tiers) > 1:  # What one of them has is written to the other as it is.
            accept = _AS_STORED
        names = tuple(engines) or (key.engine_id,)
        keys = [CacheKey(key.module_sha256, key.fingerprint, name) for name in names]
        return await self._shared(
            ("artifact", key, names, whole), partial(self._fetch, keys, whole), budget, accept
        )

    async def _shared(
        self,
        what: Hashable,
        look_up: Callable[[Allowance], Coroutine[Any, Any, V | None]],
        budget: WaitBudget,
        accept: frozenset[str] = frozenset(),
    ) -> V | None:
        """Return what ``look_up`` returns; None if it fails or ``budget`` ends first.

        A hundred callers of one artifact fetch its 40 MB once. A call whose budget ends stops
        waiting; the look-up goes on, so that the tier's own time-out says what is wrong.
        """
        # No call joins a look-up from before an eviction, or from before the keys changed.
        what = what, self._evictions
        allowance = self._allowances.setdefault(what, Allowance(accept=accept))

        async def run(waiters: Waiters) -> V | None:
            waiters.kept = True
            with contextlib.suppress(TierUnavailable):
                return await look_up(allowance)
            return None

        with contextlib.suppress(TierUnavailable):
            if budget.left_s + allowance.seconds > 0:
                look = self._lookups.join(what, Waiter(), run)
                return await look.wait(partial(budget.wait_for, more=allowance))
        return None

    async def _fetch(
        self, keys: Sequence[CacheKey], whole: bool, allowance: Allowance
    ) -> tuple[Artifact, Origin] | None:
        evictions = self._evictions
        fits = self.memory.fits if whole else lambda size_bytes: False
        if self._host:
            with contextlib.suppress(TierUnavailable):
                if artifact := await self._host.get(keys[0], allowance, fits):
                    if not artifact.pieces and self._may_fill(evictions):
                        self._keep(artifact)
                    return artifact, Origin.HOST_STORE
        found = await self._fetch_shared(keys, allowance)
        return cast("tuple[Artifact, Origin] | None", found)

    async def _fetch_shared(
        self, keys: Sequence[CacheKey | str], allowance: Allowance
    ) -> tuple[Item, Origin] | None:
        """Return what the nearest tier has that daemons share, and keep it in all others.

        ``keys`` are names of one item.
        """
        evictions = self._evictions
        for tier, key in itertools.product(self._read, keys):
            with contextlib.suppress(TierUnavailable):
                if found := await tier.get(key, allowance):
                    if self._may_fill(evictions):
                        self._keep(found)
                        if isinstance(found, Artifact):
                            self.write_to_host(found)
                        # The other one lacks it, or its write was dropped.
                        if isinstance(tier, ObjectStore):
                            self.redis_writes.add(found)
                        elif self._objects and not self._objects.is_going(key):
                            self.object_writes.add(found)
                    return found, Origin(tier.name)
        return None
