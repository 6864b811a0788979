"""All tiers as one: nearest first, one fetch for many callers, no failure of a tier."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

import pytest
from wasmkilnd.cache.memory import MemoryTier
from wasmkilnd.cache.null_tier import NullTier
from wasmkilnd.cache.tiered import TieredCache
from wasmkilnd.cache.write_behind import WriteBehind
from wasmkilnd.errors import TierUnavailable
from wasmkilnd.model import (
    Artifact,
    CacheKey,
    Evicted,
    EvictScope,
    Kind,
    Module,
    Origin,
)
from wasmkilnd.wait_budget import Allowance, WaitBudget

from tests.contract.sealing import OURS, THEIRS, sealer
from tests.contract.values import artifact, module
from tests.doubles.null_host import null_host


class Far(MemoryTier):
    """A shared tier that answers once its gate opens, or fails."""

    name = "redis"

    def __init__(self) -> None:
        super().__init__(10_000_000)
        self.gate = asyncio.Event()
        self.gate.set()
        self.down = False
        self.gets = 0
        self.asked = asyncio.Event()

    async def _answer(self) -> None:
        self.gets += 1
        self.asked.set()
        await self.gate.wait()
        if self.down:
            raise TierUnavailable("down")

    async def get(
        self,
        key: CacheKey,
        allowance: Allowance | None = None,
        accept: frozenset[str] = frozenset(),
    ) -> Artifact | None:
        found = await super().get(key)
        await self._answer()
        return found

    async def get_module(self, sha256: str, allowance: Allowance | None = None) -> Module | None:
        found = await super().get_module(sha256)
        await self._answer()
        return found

    async def put(self, artifact: Artifact) -> None:
        await self._answer()
        await super().put(artifact)

    async def kinds_of(self, keys: Sequence[CacheKey]) -> Mapping[CacheKey, Kind]:
        await self._answer()
        return await super().kinds_of(keys)

    async def has_module(self, sha256: str) -> bool:
        found = await super().has_module(sha256)
        await self._answer()
        return found

    async def held(self, keys: object) -> frozenset[CacheKey]:
        await self._answer()
        return await super().held(list(keys))  # type: ignore[call-overload]

    async def evict(self, scope: EvictScope) -> Evicted:
        await self._answer()
        return await super().evict(scope)


class Tiers:
    """A cache over two tiers that a test can inspect."""

    def __init__(self) -> None:
        self.near = MemoryTier(10_000_000)
        self.far = Far()
        self.writes = WriteBehind(self.far, lambda: 1_000_000, NullTier("").always_ready)
        self.cache = TieredCache(self.near, self.near, *null_host(), self.far, self.writes)


@pytest.fixture
def tiers() -> Tiers:
    return Tiers()


async def test_the_nearest_tier_is_asked_first_and_memory_keeps_what_is_found(tiers: Tiers) -> None:
    one = artifact()
    assert await tiers.cache.get(one.key, WaitBudget()) is None
    await tiers.far.put(one)
    assert await tiers.cache.get(one.key, WaitBudget()) == (one, Origin.REDIS)
    assert await tiers.cache.get(one.key, WaitBudget()) == (one, Origin.MEMORY)
    assert await tiers.cache.kinds_of([one.key], WaitBudget()) == {one.key: Kind.CORE_MODULE}
    await tiers.far.put_module(module())
    assert await tiers.cache.get_module(module().sha256, WaitBudget()) == module()
    assert await tiers.near.get_module(module().sha256) == module()


async def test_a_put_is_in_memory_at_once_and_in_the_shared_tier_later(tiers: Tiers) -> None:
    tiers.far.gate.clear()
    await tiers.cache.put(artifact())
    assert await tiers.near.get(artifact().key) is not None
    tiers.far.gate.set()
    await tiers.writes.close(5)
    assert await MemoryTier.get(tiers.far, artifact().key) is not None


async def test_a_hundred_callers_fetch_once(tiers: Tiers) -> None:
    one = artifact()
    await MemoryTier.put(tiers.far, one)
    tiers.far.gate.clear()
    callers = [asyncio.create_task(tiers.cache.get(one.key, WaitBudget())) for _ in range(100)]
    await asyncio.sleep(0)
    callers[0].cancel()  # Whose fetch it is makes no difference.
    await asyncio.sleep(0)
    tiers.far.gate.set()
    assert await asyncio.gather(*callers[1:]) == [(one, Origin.REDIS)] * 99
    assert tiers.far.gets == 1


async def test_a_tier_that_fails_is_passed_over(tiers: Tiers) -> None:
    tiers.far.down = True
    one = artifact()
    assert await tiers.cache.get(one.key, WaitBudget()) is None
    assert await tiers.cache.get_module(module().sha256, WaitBudget()) is None
    assert await tiers.cache.missing([one.key], WaitBudget()) == {one.key}
    assert await tiers.cache.kinds_of([one.key], WaitBudget()) == {}
    await tiers.cache.put(one)
    await tiers.writes.close(5)
    assert await tiers.cache.get(one.key, WaitBudget()) == (one, Origin.MEMORY)
    gone, unreachable = await tiers.cache.evict(EvictScope(), "")
    assert (gone.artifacts, unreachable) == (1, ["redis"])


async def test_evicting_one_tier_leaves_the_other(tiers: Tiers) -> None:
    one = artifact()
    for tier, left in (("memory", Origin.REDIS), ("redis", Origin.MEMORY)):
        await tiers.near.put(one)
        await tiers.far.put(one)
        gone, unreachable = await tiers.cache.evict(EvictScope(), tier)
        assert (gone.artifacts, list(unreachable)) == (1, [])
        assert await tiers.cache.get(one.key, WaitBudget()) == (one, left)


async def test_a_fetch_under_way_does_not_undo_an_eviction(tiers: Tiers) -> None:
    one, wasm = artifact(1), module(2)
    await MemoryTier.put(tiers.far, one)
    await tiers.far.put_module(wasm)
    tiers.far.gate.clear()
    fetches = [
        asyncio.create_task(tiers.cache.get(one.key, WaitBudget())),
        asyncio.create_task(tiers.cache.get_module(wasm.sha256, WaitBudget())),
    ]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert tiers.far.gets == 2
    await tiers.cache.evict(EvictScope(), "memory")
    tiers.far.gate.set()
    await asyncio.gather(*fetches)
    assert tiers.near.usage().entries == 0


async def test_a_write_under_way_does_not_undo_an_eviction(tiers: Tiers) -> None:
    tiers.far.gate.clear()
    for tag in range(3):
        await tiers.cache.put(artifact(tag))
    await asyncio.sleep(0)
    evicting = asyncio.create_task(tiers.cache.evict(EvictScope(), ""))
    await asyncio.sleep(0)
    tiers.far.gate.set()
    await evicting
    await tiers.writes.close(5)
    assert tiers.far.usage().entries == 0
    assert tiers.near.usage().entries == 0


async def test_a_module_is_restored_where_it_is_gone_and_not_after_an_eviction(
    tiers: Tiers,
) -> None:
    lost, there = module(1), module(2)
    await tiers.far.put_module(there)
    asked = tiers.far.gets
    for one in (lost, there, lost):
        tiers.cache.restore_module(one)
    await tiers.far.asked.wait()
    await asyncio.sleep(0.01)
    await tiers.writes.flush(5)
    assert await tiers.far.has_module(lost.sha256)
    assert tiers.far.gets == asked + 3  # Once for each, and the question above.
    tiers.far.gate.clear()
    await MemoryTier.evict(tiers.far, EvictScope())
    tiers.cache.restore_module(lost)
    await asyncio.sleep(0)
    evicting = asyncio.create_task(tiers.cache.evict(EvictScope(), ""))
    await asyncio.sleep(0)
    tiers.far.gate.set()
    await evicting
    await tiers.writes.close(5)
    assert tiers.far.usage().entries == 0
    tiers.far.down = True  # No failure of anybody's.
    tiers.cache.restore_module(lost)
    await asyncio.sleep(0.01)
    assert tiers.writes.pending == 0


async def test_artifacts_that_no_trusted_key_vouches_for_are_dropped_from_memory(
    tiers: Tiers,
) -> None:
    good, bad = sealer(OURS).seal(artifact(1)), sealer(THEIRS).seal(artifact(2))
    await tiers.near.put(good)
    await tiers.near.put(bad)
    await tiers.near.put_module(module(2))
    assert await tiers.cache.recheck(sealer(OURS, THEIRS)) == 0
    assert await tiers.cache.recheck(sealer(OURS)) == 1
    assert await tiers.near.get(good.key) is good
    assert await tiers.near.get(bad.key) is None
    assert await tiers.near.get_module(module(2).sha256) == module(2)


async def test_artifacts_that_no_trusted_key_vouches_for_are_not_served_from_the_queue(
    tiers: Tiers,
) -> None:
    good, bad = sealer(OURS).seal(artifact(1)), sealer(THEIRS).seal(artifact(2))
    under_way = sealer(THEIRS).seal(artifact(3))
    tiers.far.gate.clear()  # As if Redis were down.
    await tiers.cache.put(under_way)
    await tiers.far.asked.wait()
    for one in (good, bad):
        await tiers.cache.put(one)
    assert await tiers.cache.recheck(sealer(OURS)) == 2
    assert await tiers.cache.get(good.key, WaitBudget()) == (good, Origin.MEMORY)
    assert tiers.writes.waiting(bad.key) is tiers.writes.waiting(under_way.key) is None
    tiers.far.gate.set()
    await tiers.writes.close(5)
    assert await tiers.far.held([good.key, bad.key]) == {good.key}


async def test_a_fetch_from_before_the_keys_changed_is_not_kept(tiers: Tiers) -> None:
    one = artifact(1)
    await MemoryTier.put(tiers.far, one)
    tiers.far.gate.clear()
    fetch = asyncio.create_task(tiers.cache.get(one.key, WaitBudget()))
    await tiers.far.asked.wait()
    await tiers.cache.recheck(sealer(OURS))
    tiers.far.gate.set()
    assert await fetch == (one, Origin.REDIS)
    assert await tiers.near.get(one.key) is None


async def test_a_queued_write_is_served_though_memory_had_no_room_for_it(
    tiers: Tiers,
) -> None:
    one, wasm = artifact(1), module(1)
    tiers.far.gate.clear()
    await tiers.cache.put(one)
    await tiers.cache.put_module(wasm)
    await asyncio.sleep(0)  # One of them is under way now.
    await tiers.near.evict(EvictScope())
    assert await tiers.cache.get(one.key, WaitBudget()) == (one, Origin.MEMORY)
    assert await tiers.cache.get_module(wasm.sha256, WaitBudget()) == wasm
    await tiers.near.evict(EvictScope())
    assert await tiers.cache.has_local(one.key)
    assert tiers.near.usage().entries == 0
    assert await tiers.cache.get_local(one.key) == one
    assert tiers.far.gets == 1  # The write.
    assert await tiers.cache.missing([one.key], WaitBudget()) == frozenset()
    tiers.far.gate.set()
    await tiers.writes.close(5)


async def test_a_slow_tier_costs_a_call_one_time_out_in_all(tiers: Tiers) -> None:
    tiers.cache = TieredCache(
        tiers.near, tiers.near, *null_host(), tiers.far, tiers.writes, call_wait_s=0.2
    )
    one = artifact(1)
    await tiers.far.put(one)
    tiers.far.gate.clear()
    began = asyncio.get_running_loop().time()

    async def call() -> None:
        budget = tiers.cache.wait_budget()
        assert await tiers.cache.get(one.key, budget) is None
        assert await tiers.cache.get(artifact(2).key, budget) is None
        assert await tiers.cache.get_module(one.module_sha256, budget) is None

    await asyncio.gather(*(asyncio.create_task(call()) for _ in range(20)))
    assert asyncio.get_running_loop().time() - began < 10
    assert tiers.far.gets == 2  # The first put, and one look-up for all.
    # It goes on without them, and whoever comes later finds it.
    tiers.far.gate.set()
    found = await asyncio.create_task(tiers.cache.get(one.key, WaitBudget()))
    assert found
    assert found[0] is one
    assert await tiers.near.get(one.key) is one


async def test_a_question_about_many_keys_costs_one_time_out(tiers: Tiers) -> None:
    tiers.cache = TieredCache(
        tiers.near, tiers.near, *null_host(), tiers.far, tiers.writes, call_wait_s=0.2
    )
    keys = [artifact(tag).key for tag in range(100)]
    await tiers.far.put(artifact(1))
    tiers.far.gate.clear()

    async def call() -> None:
        budget = tiers.cache.wait_budget()
        assert await tiers.cache.missing(keys, budget) == frozenset(keys)
        assert await tiers.cache.kinds_of(keys, budget) == {}

    await asyncio.wait_for(asyncio.create_task(call()), 10)
    assert tiers.far.gets == 2  # The put, and what was held.
    # It goes on: so the metrics and the breaker learn how it ends.
    tiers.far.gate.set()
    kinds = await asyncio.create_task(tiers.cache.kinds_of(keys, WaitBudget()))
    assert kinds == {artifact(1).key: Kind.CORE_MODULE}
    assert tiers.far.gets == 3  # All of them at once.


async def test_kinds_of_knows_artifacts_that_wait_to_be_written(tiers: Tiers) -> None:
    tiers.far.gate.clear()
    await tiers.cache.put(artifact(1))
    await tiers.near.evict(EvictScope())
    kinds = await tiers.cache.kinds_of([artifact(1).key], WaitBudget())
    assert kinds == {artifact(1).key: Kind.CORE_MODULE}
    tiers.far.gate.set()
    await tiers.writes.close(5)
