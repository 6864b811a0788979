"""All tiers as one: nearest first, one look-up for many callers, no failure of a tier."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from collections.abc import Iterator
from typing import Any, cast

import pytest
from structlog.testing import capture_logs
from wasmkilnd.cache import memory as memory_tier
from wasmkilnd.cache.cache import Cache
from wasmkilnd.cache.memory import MemoryTier
from wasmkilnd.cache.value import ZSTD, ValueRejected, unpacked_frames
from wasmkilnd.model import Artifact, CacheKey, Evicted, EvictScope, Origin
from wasmkilnd.waits.budgets import Allowance, WaitBudget
from wasmkilnd.wire import frame

from tests.contract.sealing import OURS, THEIRS, sealer
from tests.contract.values import arrived, artifact, module, same, shrinking
from tests.doubles.notes import Notes
from tests.doubles.shelf import opened, stored
from tests.doubles.tiers import HostFiles, SharedTier

ACCEPTS = frozenset({ZSTD})


class Tiers:
    """A cache over tiers that a test can inspect."""

    def __init__(self, far: SharedTier | None = None, *, with_host: bool = True) -> None:
        self.near, self.host, self.far = MemoryTier(10_000_000), HostFiles(), far or SharedTier()
        self.notes = Notes()
        self.with_host = with_host
        self.cache = self.made()

    def made(self, call_wait_s: float = 60.0) -> Cache:
        self.cache = Cache(
            self.near,
            cast("Any", self.host) if self.with_host else None,
            cast("Any", self.far),
            self.notes,
            call_wait_s=call_wait_s,
            write_queue_bytes=lambda: 1_000_000,
        )
        return self.cache

    async def get(
        self, key: CacheKey, accept: frozenset[str] = frozenset()
    ) -> tuple[Artifact, Origin] | None:
        return await self.cache.get(key, WaitBudget(), accept)

    @property
    def pending(self) -> int:
        return len(self.cache.host_writes.items()) + len(self.cache.redis_writes.items())

    async def missing(self, *keys: CacheKey) -> set[CacheKey]:
        return {*keys} - await self.cache.held(keys, WaitBudget())


@pytest.fixture
def tiers() -> Tiers:
    return Tiers()


async def begun(tier: SharedTier | HostFiles) -> None:
    await asyncio.wait_for(tier.asked.wait(), 5)


async def test_the_nearest_tier_is_asked_first_and_memory_keeps_what_is_found(
    tiers: Tiers,
) -> None:
    one, two = artifact(1), artifact(2)
    assert await tiers.get(one.key) is None
    assert (tiers.host.gets, tiers.far.gets) == (1, 1)
    tiers.host.kept.put(one)
    for each in (one, two):
        tiers.far.kept.put(each)
    assert await tiers.get(one.key) == (one, Origin.HOST_STORE)
    assert await tiers.get(two.key) == (two, Origin.REDIS)
    asked = tiers.host.gets, tiers.far.gets
    for each in (one, two):
        assert await tiers.get(each.key) == (each, Origin.MEMORY)
        assert tiers.cache.peek(each.key)
        assert tiers.cache.hit(each.key, frozenset()) is each
    assert await tiers.missing(one.key, two.key) == set()
    assert (tiers.host.gets, tiers.far.gets) == asked
    assert tiers.near.artifacts_of(one.module_sha256) == [one]


async def test_a_put_is_in_memory_at_once_and_in_the_others_later(tiers: Tiers) -> None:
    one, wasm = artifact(1), module(1)
    assert await tiers.cache.get_module(wasm.sha256, WaitBudget()) is None
    tiers.far.gate.clear()
    tiers.host.gate.clear()
    tiers.cache.put(one)
    tiers.cache.put(wasm)
    assert tiers.near.get(one.key) is one
    assert tiers.cache.remote_status("redis").pending_writes == 2
    waiting = asyncio.create_task(tiers.cache.redis_writes.settled(one.key))
    await asyncio.sleep(0.01)
    assert not waiting.done()
    tiers.far.gate.set()
    tiers.host.gate.set()
    await tiers.cache.flush(5)
    await asyncio.wait_for(waiting, 5)
    assert tiers.far.kept.get(one.key) is tiers.host.kept.get(one.key) is one
    assert tiers.far.kept.get(wasm.sha256) is wasm
    assert tiers.host.gets == 1  # It has no modules.
    # What Redis has fills the host store, and is not written there again.
    await tiers.near.evict(EvictScope())
    await tiers.host.kept.evict(EvictScope())
    asked = tiers.far.gets
    assert await tiers.get(one.key) == (one, Origin.REDIS)
    for origin in (Origin.REDIS, Origin.MEMORY):
        assert await tiers.cache.get_module(wasm.sha256, WaitBudget()) == (wasm, origin)
    await tiers.cache.flush(5)
    assert tiers.host.kept.get(one.key) is one
    assert tiers.far.gets == asked + 2


@pytest.mark.parametrize("leave", [1, 20], ids=["its first caller leaves", "all leave"])
async def test_many_callers_look_once_and_the_look_up_goes_on(tiers: Tiers, leave: int) -> None:
    one = artifact()
    tiers.far.kept.put(one)
    tiers.far.gate.clear()
    callers = [asyncio.create_task(tiers.get(one.key)) for _ in range(20)]
    await begun(tiers.far)
    for each in callers[:leave]:
        each.cancel()
    await asyncio.gather(*callers[:leave], return_exceptions=True)
    tiers.far.gate.set()
    assert await asyncio.gather(*callers[leave:]) == [(one, Origin.REDIS)] * (20 - leave)
    assert (await tiers.get(one.key) or [None])[0] is one
    assert tiers.far.gets == 1


async def test_a_tier_that_fails_is_passed_over(tiers: Tiers) -> None:
    one, two = artifact(1), artifact(2)
    tiers.far.kept.put(one)
    tiers.host.down = True
    assert await tiers.get(one.key) == (one, Origin.REDIS)
    assert await tiers.cache.host_file(one.key, WaitBudget()) is None
    tiers.far.down = True
    tiers.near.close()
    assert await tiers.get(one.key) is None
    assert await tiers.cache.get_module(module().sha256, WaitBudget()) is None
    assert await tiers.missing(one.key) == {one.key}
    tiers.cache.put(two)
    await tiers.cache.flush(5)
    assert await tiers.get(two.key) == (two, Origin.MEMORY)
    gone, unreachable = await tiers.cache.evict(EvictScope(), "")
    assert (gone.artifacts, unreachable) == (1, ["redis", "host_store"])
    status = tiers.cache.remote_status("redis")
    assert (status.up, status.detail, status.dropped_writes) == (False, "down", 1)


async def test_one_tier_s_answer_counts_though_the_other_fails(tiers: Tiers) -> None:
    one, two, three = artifact(1), artifact(2), artifact(3)
    tiers.host.kept.put(one)
    tiers.far.kept.put(two)
    keys = [one.key, two.key, three.key]
    assert await tiers.missing(*keys) == {three.key}
    tiers.far.down = True
    assert await tiers.missing(*keys) == {two.key, three.key}
    tiers.far.down, tiers.host.down = False, True
    assert await tiers.missing(*keys) == {one.key, three.key}


@pytest.mark.parametrize("what", ["evict", "recheck"])
async def test_a_look_up_under_way_undoes_no_eviction_and_no_change_of_keys(
    tiers: Tiers, what: str
) -> None:
    one, wasm, file = artifact(1), module(2), artifact(3)
    for each in (one, wasm, file):
        tiers.far.kept.put(each)
    tiers.far.gate.clear()
    look = asyncio.create_task(tiers.get(one.key))
    others = [
        asyncio.create_task(tiers.cache.get_module(wasm.sha256, WaitBudget())),
        asyncio.create_task(tiers.cache.host_file(file.key, WaitBudget())),
    ]
    await asyncio.sleep(0.05)
    assert tiers.far.gets == 3
    tiers.far.kept.drop([one])
    if what == "evict":
        await tiers.cache.evict(EvictScope(), "host_store")
        await tiers.cache.evict(EvictScope(), "memory")
    else:
        await tiers.cache.recheck(sealer(OURS))
    after = asyncio.create_task(tiers.get(one.key))  # Nobody joins a look-up from before.
    await asyncio.sleep(0.01)
    tiers.far.gate.set()
    assert await look == (one, Origin.REDIS)
    assert await asyncio.gather(*others) == [(wasm, Origin.REDIS), None]
    assert await after is None
    await tiers.cache.flush(5)
    assert tiers.host.usage().entries == tiers.near.usage().entries == 0


async def test_a_tier_whose_turn_is_later_does_not_undo_an_eviction(tiers: Tiers) -> None:
    one, evict, found = artifact(1), tiers.host.evict, list[Any]()
    for tier in (tiers.near, tiers.host.kept, tiers.far.kept):
        tier.put(one)

    async def evicted(scope: EvictScope) -> Evicted:
        gone = await evict(scope)
        found.append(await tiers.cache.host_file(one.key, WaitBudget()))
        return gone

    tiers.host.evict = evicted  # type: ignore[method-assign]
    await tiers.cache.evict(EvictScope(), "")
    assert found == [None]
    await tiers.cache.flush(5)
    for tier in (tiers.near, tiers.host.kept, tiers.far.kept):
        assert tier.usage().entries == 0


async def test_a_write_under_way_does_not_undo_an_eviction(tiers: Tiers) -> None:
    tiers.far.gate.clear()
    tiers.host.gate.clear()
    for tag in range(3):
        tiers.cache.put(artifact(tag))
    await begun(tiers.far)
    evicting = asyncio.create_task(tiers.cache.evict(EvictScope(), ""))
    await asyncio.sleep(0.01)
    tiers.far.gate.set()
    tiers.host.gate.set()
    await evicting
    await tiers.cache.flush(5)
    assert tiers.pending == 0
    for tier in (tiers.near, tiers.host, tiers.far):
        assert tier.usage().entries == 0


async def test_a_key_that_lost_its_trust_counts_in_memory_and_in_writes_that_wait(
    tiers: Tiers,
) -> None:
    ours, theirs = sealer(OURS), sealer(THEIRS)
    kept, gone = ours.seal(artifact(1)), theirs.seal(artifact(2))
    under_way, good, bad = (
        theirs.seal(artifact(3)),
        ours.seal(artifact(4)),
        theirs.seal(artifact(5)),
    )
    for one in (kept, gone):
        tiers.near.put(one)
    tiers.near.put(module(2))
    for tier in (tiers.far, tiers.host):
        tier.gate.clear()  # As if Redis were down.
    tiers.cache.put(under_way)
    await begun(tiers.far)
    for one in (good, bad):
        tiers.cache.put(one)
    assert await tiers.cache.recheck(sealer(OURS, THEIRS)) == 0
    assert await tiers.cache.recheck(ours) == 3
    assert tiers.host.rechecks == 4  # Before and after, each time.
    assert await tiers.get(kept.key) == (kept, Origin.MEMORY)
    assert tiers.near.get(module(2).sha256) == module(2)
    for one in (gone, under_way, bad):
        assert not tiers.cache.peek(one.key)
    for tier in (tiers.far, tiers.host):
        tier.gate.set()
    await tiers.cache.flush(5)
    for kept_by in (tiers.far.kept, tiers.host.kept):
        assert kept_by.peek(good.key)
        assert not kept_by.peek(bad.key)


async def test_a_write_that_waits_is_served_though_memory_had_no_room_for_it(
    tiers: Tiers,
) -> None:
    one, wasm = artifact(1), module(1)
    tiers.far.gate.clear()
    tiers.cache.put(one)
    tiers.cache.put(wasm)
    await begun(tiers.far)  # One of them is under way now.
    await tiers.near.evict(EvictScope())
    assert await tiers.get(one.key) == (one, Origin.MEMORY)
    assert await tiers.cache.get_module(wasm.sha256, WaitBudget()) == (wasm, Origin.MEMORY)
    await tiers.near.evict(EvictScope())
    assert tiers.cache.peek(one.key)
    assert tiers.near.usage().entries == 0
    assert await tiers.missing(one.key) == set()
    assert await tiers.get(one.key) == (one, Origin.MEMORY)
    assert tiers.far.gets == 1  # The write.
    tiers.far.gate.set()
    await tiers.cache.flush(5)


async def test_a_slow_tier_costs_a_call_one_time_out_in_all(tiers: Tiers) -> None:
    cache = tiers.made(call_wait_s=0.2)
    one = artifact(1)
    tiers.far.kept.put(one)
    tiers.far.gate.clear()
    began = asyncio.get_running_loop().time()

    async def call() -> None:
        budget = cache.wait_budget()
        assert await cache.get(one.key, budget) is None
        assert await cache.get(artifact(2).key, budget) is None
        assert await cache.get_module(one.module_sha256, budget) is None
        assert await cache.held([one.key, artifact(3).key], budget) == frozenset()

    await asyncio.gather(*(asyncio.create_task(call()) for _ in range(20)))
    assert asyncio.get_running_loop().time() - began < 10
    assert tiers.far.gets == 1  # One look-up for all.
    # It goes on without them, and whoever comes later finds it.
    tiers.far.gate.set()
    assert await tiers.get(one.key) == (one, Origin.REDIS)
    assert tiers.near.get(one.key) is one
    assert tiers.far.gets == 1


async def test_the_time_for_moving_a_large_value_is_granted_to_all_who_wait(tiers: Tiers) -> None:
    tiers.far.moving_s = 60.0
    cache = tiers.made(call_wait_s=0.1)
    one = artifact(1)
    tiers.far.kept.put(one)
    tiers.far.gate.clear()
    callers = [asyncio.create_task(cache.get(one.key, cache.wait_budget())) for _ in range(3)]
    await asyncio.sleep(0.4)
    callers.append(asyncio.create_task(cache.get(one.key, cache.wait_budget())))
    await asyncio.sleep(0)
    tiers.far.gate.set()
    assert await asyncio.gather(*callers) == [(one, Origin.REDIS)] * 4


# Files


async def test_a_file_of_other_bytes_is_not_told(tiers: Tiers) -> None:
    old, new = artifact(1, 1000), artifact(1, 2000)
    tiers.near.put(new)
    tiers.host.refuse_writes = True
    assert await tiers.cache.host_file(new.key, WaitBudget()) is None
    # Another daemon writes an artifact of its own, and ours then finds no room.
    tiers.host.gate.clear()
    asking = asyncio.create_task(tiers.cache.host_file(new.key, WaitBudget()))
    await asyncio.sleep(0.01)
    tiers.host.kept.put(old)
    tiers.host.gate.set()
    assert await asyncio.wait_for(asking, 5) is None
    found = await tiers.cache.host_file(new.key, WaitBudget())
    assert found
    assert (found[0].sha256, found[2]) == (old.sha256, Origin.HOST_STORE)


# Encodings


SHRUNK = sealer(OURS).seal(shrinking(1, 1_200_000))


def packed(one: Artifact = SHRUNK) -> Artifact:
    [value] = stored(one, sealer(OURS)).values()
    found = opened(value, one.key, sealer(OURS), ACCEPTS)
    assert isinstance(found, Artifact)
    return found


class Packing(SharedTier):
    """A tier that has SHRUNK, and returns it as it is stored."""

    def __init__(self) -> None:
        super().__init__()
        self.removed: list[CacheKey] = []
        self.stored = packed()

    async def get(
        self, key: CacheKey, allowance: Allowance | None = None, fits: Any = None
    ) -> Artifact | None:
        await self._answer()
        return None if self.removed else self.stored

    async def remove(self, key: CacheKey) -> None:
        self.removed.append(key)


class PackingTiers(Tiers):
    far: Packing

    def __init__(self) -> None:
        super().__init__(Packing(), with_host=False)

    async def found(self, accept: frozenset[str] = frozenset()) -> tuple[Artifact, Origin]:
        found = await self.get(SHRUNK.key, accept)
        assert found
        return found

    async def whole(self) -> Artifact:
        """Return the artifact once memory has all of its bytes."""
        async with asyncio.timeout(10):
            while True:
                await asyncio.sleep(0)
                found, _ = await self.found()
                if not found.coming:
                    return found


@pytest.fixture
def packing() -> PackingTiers:
    return PackingTiers()


async def test_a_packed_and_a_raw_reader_share_a_look_up(packing: PackingTiers) -> None:
    packing.far.gate.clear()
    accepted = (ACCEPTS, frozenset[str](), ACCEPTS | {"br"})
    waiting = [asyncio.create_task(packing.found(accept)) for accept in accepted]
    await begun(packing.far)
    await asyncio.sleep(0.01)
    packing.far.gate.set()
    kept, raw, other = await asyncio.gather(*waiting)
    assert same(await arrived(raw[0]), SHRUNK)
    assert kept[0] is other[0] is packing.far.stored
    assert packing.far.gets == 1


async def test_a_small_artifact_is_decoded_at_once(packing: PackingTiers) -> None:
    small = sealer(OURS).seal(shrinking(2, 60_000))
    packing.near.put(packed(small))
    assert packing.cache.hit(small.key, frozenset()) is None
    found = await packing.cache.get(small.key, WaitBudget())
    assert found
    assert same(found[0], small)
    hit = packing.cache.hit(small.key, frozenset())
    assert hit is found[0]


class Slow:
    """Unpacks once its gate opens, and counts."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.gate, self.began, self.calls = threading.Event(), threading.Event(), 0
        monkeypatch.setattr(memory_tier, "unpacked_frames", self)

    def __call__(self, one: Artifact) -> Iterator[bytes]:
        self.calls += 1
        for number, each in enumerate(unpacked_frames(one)):
            if number:  # The first is there at once.
                self.began.set()
                self.gate.wait(10)
            yield each


async def test_many_callers_share_one_unpacking_and_one_that_leaves_ends_it_for_nobody(
    packing: PackingTiers, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Slow(monkeypatch)
    packing.near.put(packed())
    found = [(await packing.found())[0] for _ in range(5)]
    assert await asyncio.to_thread(slow.began.wait, 10)
    assert found[0].coming[0].done()  # An answer begins before all is unpacked.
    assert not found[0].coming[1].done()
    waiting = [asyncio.create_task(arrived(each)) for each in found]
    await asyncio.sleep(0)
    waiting[0].cancel()
    await asyncio.sleep(0)
    slow.gate.set()
    for each in await asyncio.gather(*waiting[1:]):
        assert same(each, SHRUNK)
    assert slow.calls == 1
    assert same(await packing.whole(), SHRUNK)


@pytest.mark.parametrize("broken", [0, 1])
async def test_what_cannot_be_unpacked_is_dropped_everywhere(
    packing: PackingTiers, broken: int
) -> None:
    frames = list(packed().frames)
    frames[broken] = frame(b"no zstd at all")
    packing.far.stored = dataclasses.replace(packed(), frames=tuple(frames))
    with capture_logs() as logs:
        found = await packing.get(SHRUNK.key)
        if broken:  # The answer has begun: it ends with an error.
            assert found
            with pytest.raises(ValueRejected):
                await arrived(found[0])
        else:
            assert found is None
        await asyncio.sleep(0.01)
    assert [log["event"] for log in logs] == ["cannot decode an artifact"]
    assert packing.near.get(SHRUNK.key) is None
    assert packing.far.removed == [SHRUNK.key]
    assert await packing.get(SHRUNK.key) is None  # Now it is compiled again.


async def test_no_caller_waits_for_ever_for_a_frame_that_the_daemon_failed_to_unpack(
    packing: PackingTiers, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(one: Artifact) -> Iterator[bytes]:
        yield next(unpacked_frames(one))
        raise MemoryError

    monkeypatch.setattr(memory_tier, "unpacked_frames", fails)
    found, _ = await packing.found()
    with pytest.raises(ValueRejected):
        await asyncio.wait_for(arrived(found), 5)
    await asyncio.sleep(0.01)
    assert packing.near.get(SHRUNK.key) is None
    assert packing.far.removed == []  # The value is as good as it was.
    monkeypatch.undo()
    assert same(await arrived((await packing.found())[0]), SHRUNK)


async def test_what_is_unpacked_while_it_is_evicted_or_its_key_loses_its_trust_is_dropped(
    packing: PackingTiers, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow, checking, checked = Slow(monkeypatch), threading.Event(), threading.Event()
    kept = packed()
    packing.near.put(kept)
    found, _ = await packing.found()
    packing.near.drop([kept])
    slow.gate.set()
    assert same(await arrived(found), SHRUNK)
    await asyncio.sleep(0.01)
    assert packing.near.get(SHRUNK.key) is None
    slow.gate.clear()
    packing.near.put(packed())
    found, _ = await packing.found()

    def refuses(_: Artifact) -> bool:
        checking.set()
        return checked.wait(10)

    dropping = asyncio.create_task(packing.cache.drop(refuses))
    assert await asyncio.to_thread(checking.wait, 10)
    slow.gate.set()
    await arrived(found)
    await asyncio.sleep(0.05)
    checked.set()
    assert await dropping == 1
    assert packing.near.get(SHRUNK.key) is None
