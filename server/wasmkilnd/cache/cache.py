"""All tiers as one: memory, then the files of the host store, then Redis.

No call fails because a tier fails: a tier that does not answer, or would take longer than the
call's budget has left, counts as one that holds nothing. What a put stores is in memory when the
put returns. The tiers below are written after the call, and are looked into once for all calls
that want the same entry at the same time. Modules are not in the host store.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, TypeVar, cast

import structlog

from wasmkilnd.cache.host_store import HostStore
from wasmkilnd.cache.memory import MemoryTier
from wasmkilnd.cache.redis_store import RedisStore
from wasmkilnd.cache.value import ZSTD, ValueRejected, decoded
from wasmkilnd.cache.writes import Item, Writes
from wasmkilnd.errors import TierUnavailable
from wasmkilnd.flights import Flights
from wasmkilnd.model import (
    SWITCHED_OFF,
    Artifact,
    CacheKey,
    Evicted,
    EvictScope,
    HostFile,
    Kind,
    Module,
    Origin,
    RemoteStatus,
)
from wasmkilnd.ports import Recorder
from wasmkilnd.signing.sealer import Sealer
from wasmkilnd.wait_budget import Allowance, WaitBudget
from wasmkilnd.waiters import Waiter, Waiters

V = TypeVar("V")

ENCODINGS = frozenset({ZSTD})
"""The encodings that an artifact's frames can have."""

log = structlog.get_logger("wasmkilnd.cache")


class Cache:
    """The tiers of one namespace. For one event loop."""

    def __init__(
        self,
        memory: MemoryTier,
        host: HostStore | None,
        redis: RedisStore | None,
        recorder: Recorder,
        *,
        call_wait_s: float,
        write_queue_bytes: Callable[[], int],
        carry: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        """One call waits for ``host`` and ``redis`` no longer than ``call_wait_s`` in all.

        The time for moving a large value is added (Allowance). ``write_queue_bytes`` may wait to
        be written to each. For ``carry`` see Writes.
        """
        self._memory = memory
        self._host = host
        self._redis = redis
        self._recorder = recorder
        self._call_wait_s = call_wait_s
        self.host_writes: Writes | None = None
        self.redis_writes: Writes | None = None
        if host:
            put = cast("Callable[[Item], Coroutine[Any, Any, None]]", host.put)
            self.host_writes = Writes(host.name, put, write_queue_bytes, carry=carry)
        if redis:
            link = redis.link
            self.redis_writes = Writes(
                redis.name,
                redis.put,
                write_queue_bytes,
                ready=link.ready,
                is_down=lambda: link.is_down,
                carry=carry,
            )
        self._lookups: Flights[Hashable, Any] = Flights()
        self._allowances: dict[Hashable, Allowance] = {}
        self._restoring: dict[str, asyncio.Task[None]] = {}
        self._evictions = 0

    def wait_budget(self) -> WaitBudget:
        """Return how long one call may wait for the tiers below memory in all, from now on."""
        return WaitBudget(self._call_wait_s)

    async def get(
        self, key: CacheKey, budget: WaitBudget, accept: frozenset[str] = frozenset()
    ) -> tuple[Artifact, Origin] | None:
        """Return the artifact from the nearest tier that has it, and keep it in memory.

        Its encoding is empty or one of ``accept``.
        """
        accept &= ENCODINGS
        found: tuple[Artifact, Origin] | None
        if artifact := await self.get_local(key, accept):
            found = artifact, Origin.MEMORY
        else:
            found = await self._look_up(key, budget, accept)
        if found:
            self._used(key)
        return found

    async def get_local(
        self, key: CacheKey, accept: frozenset[str] = frozenset()
    ) -> Artifact | None:
        """Return the artifact if this daemon's memory has it, and keep it there."""
        artifact = self._in_memory(key)
        if artifact is not None and artifact.encoding and artifact.encoding not in accept:
            return await self._decoded(artifact)
        return artifact

    def has_local(self, key: CacheKey) -> bool:
        """Return whether this daemon's memory has the artifact, without counting as use."""
        return bool(self._memory.held([key]) or self._waiting(key))

    async def host_file(
        self, key: CacheKey, budget: WaitBudget
    ) -> tuple[Artifact, HostFile, Origin] | None:
        """Return the artifact without its bytes, and the file that a process here can map.

        If the host store lacks it and another tier has it, write it there at once: its bytes are
        unpacked on their way into the file, and not before.
        """
        host, writes = self._host, self.host_writes
        if host is None or writes is None:
            return None
        found, origin = await self._file_of(key, budget), Origin.HOST_STORE
        if found is None:
            artifact = self._in_memory(key)
            origin = Origin.MEMORY
            if artifact is None:
                fetched = await self._look_up(key, budget, ENCODINGS)
                artifact, origin = fetched or (None, origin)
            if artifact is None:
                return None
            if not writes.waiting(key) and host.takes(artifact):
                writes.add(artifact)
            found = await self._file_of(key, budget)
            # If these bytes could not be written, a file of others may be there from before.
            if found is None or found[0].sha256 != artifact.sha256:
                return None
        self._used(key)
        return *found, origin

    def put(self, artifact: Artifact) -> None:
        """Store in memory now, and in the other tiers after the call."""
        self._keep(artifact)
        self.write_to_host(artifact)
        self.write_to_redis(artifact)

    async def get_module(self, sha256: str, budget: WaitBudget) -> Module | None:
        """Return the module from the nearest tier that has it, and keep it in memory."""
        began = time.perf_counter()
        module = self._memory.get_module(sha256)
        self._looked_in_memory("module", module is not None, began)
        if module is None and self.redis_writes:
            module = self.redis_writes.waiting(sha256)
        if module is None and self._redis:
            look_up = partial(self._fetch_module, self._redis, sha256)
            module = await self._shared(("module", sha256), look_up, budget)
        if module:
            self._used(sha256)
        return module

    def put_module(self, module: Module) -> None:
        """Store in memory now, and in Redis after the call."""
        self._keep(module)
        self.write_to_redis(module)

    def restore_module(self, module: Module) -> None:
        """Store ``module`` in Redis, after the call, if it is missing there."""
        redis, writes = self._redis, self.redis_writes
        if redis is None or writes is None or module.sha256 in self._restoring:
            return

        async def restore() -> None:
            # If Redis does not answer, the next Load of the module tries again.
            with contextlib.suppress(TierUnavailable):
                if not await redis.has_module(module.sha256):
                    writes.add(module)

        restoring = self._restoring[module.sha256] = asyncio.create_task(restore())
        restoring.add_done_callback(lambda _: self._restoring.pop(module.sha256))

    async def missing(self, keys: Sequence[CacheKey], budget: WaitBudget) -> frozenset[CacheKey]:
        """Return which of ``keys`` no tier holds."""
        missing = frozenset(keys) - self._memory.held(keys)
        missing -= {key for key in missing if self._waiting(key)}
        if missing:
            asked = tuple(sorted(missing, key=_in_order))

            async def held(tier: HostStore | RedisStore, some: Sequence[CacheKey]) -> Any:
                return dict.fromkeys(await tier.held(some), True)

            look_up = partial(self._below, held, asked)
            # If a tier does not answer, report the keys that the others lack missing.
            missing -= frozenset(await self._shared(("held", asked), look_up, budget) or ())
        return missing

    async def kinds_of(
        self, keys: Sequence[CacheKey], budget: WaitBudget
    ) -> Mapping[CacheKey, Kind]:
        """Return the kind of module behind each of ``keys`` that a tier holds."""
        kinds = dict(self._memory.kinds_of(keys))
        for key in keys:
            if key not in kinds and (artifact := self._waiting(key)):
                kinds[key] = artifact.kind
        asked = tuple(sorted({*keys} - kinds.keys(), key=_in_order))
        if asked:

            async def of(tier: HostStore | RedisStore, some: Sequence[CacheKey]) -> Any:
                return await tier.kinds_of(some)

            look_up = partial(self._below, of, asked)
            kinds |= await self._shared(("kinds", asked), look_up, budget) or {}
        return kinds

    def held_in_memory(self, module_sha256: str) -> Sequence[Artifact]:
        """Return the artifacts of a module that this daemon's memory holds."""
        return self._memory.artifacts_of(module_sha256)

    async def evict(self, scope: EvictScope, tier: str) -> tuple[Evicted, Sequence[str]]:
        """Evict ``scope`` from ``tier`` ("" for all).

        Return what was removed, and the names of the tiers that did not answer.
        """
        removed, unreachable = Evicted(), list[str]()
        for candidate in (self._redis, self._host, self._memory):
            if candidate is None or tier not in ("", candidate.name):
                continue
            if candidate is self._redis:
                # A module that is about to be restored must not be written after the eviction.
                await asyncio.gather(*self._restoring.values())
                if self.redis_writes:
                    await self.redis_writes.forget(scope)
            else:
                # Look-ups that began before must not fill memory or the host store again.
                self._evictions += 1
            if candidate is self._host and self.host_writes:
                await self.host_writes.forget(scope)
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
        if self._host:
            self._host.recheck()
        queues = [queue for queue in (self.host_writes, self.redis_writes) if queue]
        held = [*self._memory.artifacts(), *(one for each in queues for one in each.artifacts())]
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

    def write_to_host(self, artifact: Artifact) -> None:
        """Write to the host store after the call, if it takes the artifact now."""
        if self._host and self.host_writes and self._host.takes(artifact):
            self.host_writes.add(artifact)

    def write_to_redis(self, item: Artifact | Module) -> None:
        """Write to Redis after the call."""
        if self.redis_writes:
            self.redis_writes.add(item)

    async def stored(self, key: CacheKey | str) -> None:
        """Return once no write of an artifact or a module to Redis waits."""
        if self.redis_writes:
            await self.redis_writes.settled(key)

    async def flush(self, timeout_s: float) -> None:
        """Write what waits, for at most ``timeout_s``."""
        queues = [queue for queue in (self.host_writes, self.redis_writes) if queue]
        await asyncio.gather(*(queue.flush(timeout_s) for queue in queues))

    async def close(self) -> None:
        """Drop the writes that wait, and close all tiers, without waiting; see ``flush``."""
        for queue in (self.redis_writes, self.host_writes):
            if queue:
                await queue.close()
        await self._lookups.settle(0)
        if self._redis:
            await self._redis.close()
        self._memory.close()

    def remote_status(self, mode: str) -> RemoteStatus:
        """Return whether Redis answers, and how many writes wait; ``mode`` is as there."""
        redis, writes = self._redis, self.redis_writes
        if redis is None or writes is None:
            return RemoteStatus(mode=mode, up=False, detail=SWITCHED_OFF)
        refusal = redis.write_refusal if redis.link.up else ""
        return RemoteStatus(
            mode=mode,
            up=redis.link.up,
            detail=f"takes no writes: {refusal}" if refusal else redis.link.why_down,
            pending_writes=writes.pending,
            dropped_writes=writes.dropped,
        )

    def _used(self, key: CacheKey | str) -> None:
        if self._redis:
            self._redis.used(key)

    def _in_memory(self, key: CacheKey) -> Artifact | None:
        """Return the artifact from memory as it is there, encoded or not."""
        began = time.perf_counter()
        artifact = self._memory.get(key)
        self._looked_in_memory("artifact", artifact is not None, began)
        if artifact is None and (artifact := self._waiting(key)):
            # Memory evicted the artifact before it was written, and the write may take long.
            self._keep(artifact)
        return artifact

    def _keep(self, value: Artifact | Module) -> None:
        began = time.perf_counter()
        self._memory.put(value)
        self._recorder.tier_store("memory", "ok", time.perf_counter() - began)

    def _looked_in_memory(self, what: str, is_hit: bool, began: float) -> None:
        seconds = time.perf_counter() - began
        self._recorder.tier_lookup("memory", what, "hit" if is_hit else "miss", seconds)

    def _waiting(self, key: CacheKey) -> Artifact | None:
        for queue in (self.redis_writes, self.host_writes):
            if queue and (artifact := queue.waiting(key)):
                return artifact
        return None

    async def _decoded(self, artifact: Artifact) -> Artifact | None:
        """Unpack an artifact of memory, once for all callers; None, and drop it, if it cannot be.

        A trusted key signed these bytes, so whoever stored them was broken. The next look into
        Redis rejects them, and deletes them there.
        """

        async def decode(_: Waiters) -> Artifact | None:
            try:
                found = await asyncio.to_thread(decoded, artifact)
            except ValueRejected as rejected:
                log.warning("cannot decode an artifact", why=rejected.why)
                self._memory.drop([artifact])
                return None
            if self._memory.holds(artifact):
                self._keep(found)
            return found

        found: Artifact | None = await self._lookups.join(artifact, _anybody(), decode).wait()
        return found

    async def _look_up(
        self, key: CacheKey, budget: WaitBudget, accept: frozenset[str]
    ) -> tuple[Artifact, Origin] | None:
        """Return the artifact from the nearest tier below memory, in one look-up for all callers.

        Those that do not accept the same need it as they do: so that is part of the look-up's key.
        """
        look_up = partial(self._fetch, key, accept)
        return await self._shared(("artifact", key, accept), look_up, budget)

    async def _shared(
        self,
        what: Hashable,
        look_up: Callable[[Allowance], Coroutine[Any, Any, V | None]],
        budget: WaitBudget,
    ) -> V | None:
        """Return what ``look_up`` returns; None if it fails or ``budget`` ends first.

        A hundred callers of one artifact fetch its 40 MB once. A call whose budget ends stops
        waiting; the look-up goes on, so that the tier's own time-out says what is wrong.
        """
        if budget.spent:
            return None

        async def run(waiters: Waiters) -> V | None:
            waiters.kept = True
            try:
                return await look_up(allowance)
            except TierUnavailable:
                return None
            finally:
                if self._allowances.get(what) is allowance:
                    del self._allowances[what]

        if self._lookups.waiters(what) is None or what not in self._allowances:
            self._allowances[what] = Allowance()
        allowance = self._allowances[what]
        ticket = self._lookups.join(what, _anybody(), run)
        try:
            found: V | None = await budget.spend_on(ticket.wait(), allowance)
        except TierUnavailable:
            return None
        return found

    async def _fetch(
        self, key: CacheKey, accept: frozenset[str], allowance: Allowance
    ) -> tuple[Artifact, Origin] | None:
        evictions = self._evictions
        if self._host:
            with contextlib.suppress(TierUnavailable):
                if artifact := await self._host.get(key, allowance):
                    if evictions == self._evictions:
                        self._keep(artifact)
                    return artifact, Origin.HOST_STORE
        if self._redis and (artifact := await self._redis.get(key, allowance, accept)):
            if evictions == self._evictions:
                self._keep(artifact)
                self.write_to_host(artifact)
            return artifact, Origin.REDIS
        return None

    async def _file_of(self, key: CacheKey, budget: WaitBudget) -> tuple[Artifact, HostFile] | None:
        host, writes = self._host, self.host_writes
        if host is None or writes is None:
            return None
        if writes.waiting(key):
            try:
                await budget.spend_on(writes.settled(key, at_once=True))
            except TierUnavailable:
                return None
        return await self._shared(("file", key), partial(host.file_of, key), budget)

    async def _fetch_module(
        self, redis: RedisStore, sha256: str, allowance: Allowance
    ) -> Module | None:
        evictions = self._evictions
        module = await redis.get_module(sha256, allowance)
        if module and evictions == self._evictions:
            self._keep(module)
        return module

    async def _below(
        self,
        ask: Callable[..., Coroutine[Any, Any, Mapping[CacheKey, V]]],
        keys: Sequence[CacheKey],
        _: Allowance,
    ) -> Mapping[CacheKey, V]:
        """Ask the host store, then Redis for the rest; pass over one that fails."""
        found: dict[CacheKey, V] = {}
        for tier in (self._host, self._redis):
            if tier and (rest := [key for key in keys if key not in found]):
                with contextlib.suppress(TierUnavailable):
                    found |= await ask(tier, rest)
        return found


def _anybody() -> Waiters:
    return Waiters.of(Waiter())


def _in_order(key: CacheKey) -> tuple[str, str]:
    return key.module_sha256, key.fingerprint
