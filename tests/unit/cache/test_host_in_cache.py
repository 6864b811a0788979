"""The host store among the tiers: asked between memory and Redis, filled by both others."""

from __future__ import annotations

import asyncio

import pytest
from wasmkilnd.cache.memory import MemoryTier
from wasmkilnd.cache.null_tier import NullTier
from wasmkilnd.cache.tiered import TieredCache
from wasmkilnd.cache.write_behind import WriteBehind
from wasmkilnd.model import EvictScope, Kind, Origin
from wasmkilnd.wait_budget import WaitBudget

from tests.contract.sealing import OURS, THEIRS, sealer
from tests.contract.values import artifact, module
from tests.doubles.host_files import HostFiles


class Far(HostFiles):
    name = "redis"


class Tiers:
    """A cache over three tiers that a test can inspect."""

    def __init__(self) -> None:
        ready = NullTier("").always_ready
        self.near, self.host, self.far = MemoryTier(10_000_000), HostFiles(), Far()
        self.host_writes = WriteBehind(self.host, lambda: 1_000_000, ready)
        self.far_writes = WriteBehind(self.far, lambda: 1_000_000, ready)
        self.cache = TieredCache(
            self.near, self.near, self.host, self.host_writes, self.far, self.far_writes
        )

    async def written(self) -> None:
        await self.host_writes.flush(5)
        await self.far_writes.flush(5)


@pytest.fixture
def tiers() -> Tiers:
    return Tiers()


async def test_the_host_store_is_asked_before_redis_and_memory_keeps_what_it_has(
    tiers: Tiers,
) -> None:
    one = artifact()
    await tiers.host.put(one)
    await tiers.far.put(one)
    assert await tiers.cache.get(one.key, WaitBudget()) == (one, Origin.HOST_STORE)
    assert await tiers.cache.get(one.key, WaitBudget()) == (one, Origin.MEMORY)
    assert tiers.far.gets == 0


async def test_redis_hits_and_compiles_fill_the_host_store(tiers: Tiers) -> None:
    from_redis, compiled = artifact(1), artifact(2)
    await tiers.far.put(from_redis)
    assert await tiers.cache.get(from_redis.key, WaitBudget()) == (from_redis, Origin.REDIS)
    await tiers.cache.put(compiled)
    await tiers.written()
    await tiers.near.evict(EvictScope())
    await tiers.far.evict(EvictScope())
    for one in (from_redis, compiled):
        assert await tiers.cache.get(one.key, WaitBudget()) == (one, Origin.HOST_STORE)


async def test_modules_do_not_go_to_the_host_store(tiers: Tiers) -> None:
    await tiers.cache.put_module(module())
    await tiers.written()
    assert not await tiers.host.has_module(module().sha256)
    assert await tiers.far.has_module(module().sha256)


async def test_a_store_that_fails_is_passed_over(tiers: Tiers) -> None:
    one = artifact()
    await tiers.far.put(one)
    tiers.host.down = True
    assert await tiers.cache.get(one.key, WaitBudget()) == (one, Origin.REDIS)
    assert await tiers.cache.host_file(one.key, WaitBudget()) is None
    await tiers.cache.put(artifact(2))
    await tiers.written()
    assert tiers.host_writes.dropped == 2


async def test_what_only_the_host_store_has_is_not_missing(tiers: Tiers) -> None:
    one, two, three = artifact(1), artifact(2), artifact(3)
    await tiers.host.put(one)
    await tiers.far.put(two)
    keys = [one.key, two.key, three.key]
    assert await tiers.cache.missing(keys, WaitBudget()) == {three.key}
    assert await tiers.cache.kinds_of(keys, WaitBudget()) == {
        one.key: Kind.CORE_MODULE,
        two.key: Kind.CORE_MODULE,
    }
    tiers.far.down = True
    assert await tiers.cache.missing(keys[:1], WaitBudget()) == frozenset()


async def test_a_file_comes_after_the_write_that_waits(tiers: Tiers) -> None:
    one = artifact()
    tiers.host.gate.clear()
    await tiers.cache.put(one)
    asking = asyncio.create_task(tiers.cache.host_file(one.key, WaitBudget()))
    await asyncio.sleep(0.01)
    assert not asking.done()
    tiers.host.gate.set()
    found = await asyncio.wait_for(asking, 5)
    assert found
    assert (found[0].frames, found[0].sha256) == ((), one.sha256)


async def test_no_call_waits_for_a_write_longer_than_its_budget(tiers: Tiers) -> None:
    tiers.host.gate.clear()
    await tiers.cache.put(artifact())
    asking = tiers.cache.host_file(artifact().key, WaitBudget(0.05))
    assert await asyncio.wait_for(asking, 5) is None
    tiers.host.gate.set()


async def test_a_write_that_waits_for_its_head_start_is_hurried() -> None:
    tiers = Tiers()
    ready = NullTier("").always_ready
    tiers.host_writes = WriteBehind(tiers.host, lambda: 1_000_000, ready, head_start_s=600)
    tiers.cache = TieredCache(
        tiers.near, tiers.near, tiers.host, tiers.host_writes, tiers.far, tiers.far_writes
    )
    await tiers.cache.put(artifact())
    assert await asyncio.wait_for(tiers.cache.host_file(artifact().key, WaitBudget()), 5)


async def test_evict_by_name_and_from_all(tiers: Tiers) -> None:
    one = artifact()
    for tier, left in (
        ("memory", Origin.HOST_STORE),
        ("host_store", Origin.MEMORY),
        ("redis", Origin.MEMORY),
    ):
        for each in (tiers.near, tiers.host, tiers.far):
            await each.put(one)
        gone, unreachable = await tiers.cache.evict(EvictScope(), tier)
        assert (gone.artifacts, list(unreachable)) == (1, [])
        assert await tiers.cache.get(one.key, WaitBudget()) == (one, left)
    for each in (tiers.near, tiers.host, tiers.far):
        await each.put(one)
    assert (await tiers.cache.evict(EvictScope(), ""))[0].artifacts == 3
    assert await tiers.cache.get(one.key, WaitBudget()) is None


async def test_an_eviction_drops_writes_that_wait_and_fetches_that_began_before(
    tiers: Tiers,
) -> None:
    waiting, fetched = artifact(1), artifact(2)
    await tiers.cache.put(waiting)
    await tiers.far.put(fetched)
    tiers.far.gate.clear()
    fetching = asyncio.create_task(tiers.cache.get(fetched.key, WaitBudget()))
    await asyncio.sleep(0.01)
    await tiers.cache.evict(EvictScope(), "host_store")
    tiers.far.gate.set()
    assert await fetching == (fetched, Origin.REDIS)
    await tiers.written()
    assert await tiers.host.held([waiting.key, fetched.key]) == frozenset()


async def test_a_key_that_lost_its_trust_has_the_store_verify_again(tiers: Tiers) -> None:
    ours, theirs = sealer(OURS), sealer(THEIRS)
    good, bad = ours.seal(artifact(1)), theirs.seal(artifact(2))
    tiers.host.gate.clear()  # Both wait to be written.
    await tiers.cache.put(good)
    await tiers.cache.put(bad)
    await tiers.cache.recheck(ours)
    tiers.host.gate.set()
    await tiers.written()
    assert tiers.host.rechecks == 1
    assert await tiers.host.held([good.key]) == {good.key}
    assert [each.key for each in tiers.host_writes.artifacts()] == []
