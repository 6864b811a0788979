"""The memory tier counts its bytes exactly, whatever is done to it."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st
from wasmkilnd.cache.memory import MemoryTier
from wasmkilnd.cache.memory_sizes import ENTRY_OVERHEAD_BYTES
from wasmkilnd.model import EvictScope

from tests.contract.values import artifact, module

STEPS = st.lists(
    st.tuples(
        st.sampled_from(["put", "module", "get", "evict", "resize", "drop", "pin"]),
        st.integers(0, 8),
        st.integers(0, 9000),
    ),
    max_size=60,
)


@given(STEPS)
def test_the_sums_are_right_after_every_step(steps: list[tuple[str, int, int]]) -> None:
    async def run() -> None:
        limit_bytes = 20_000
        pins = set[str]()
        tier = MemoryTier(limit_bytes, pins.__contains__)
        for what, tag, size_bytes in steps:
            if what == "put":
                await tier.put(artifact(tag, size_bytes))
            elif what == "module":
                await tier.put_module(module(tag, size_bytes))
            elif what == "get":
                await tier.get(artifact(tag).key)
            elif what == "pin":
                pins ^= {module(tag).sha256}
                tier.keep_pinned([module(tag).sha256])
            elif what == "resize":
                limit_bytes = 4 * size_bytes
                tier.resize(limit_bytes)
            elif what == "drop":
                held = tier.artifacts()
                assert tier.drop(held[::2]) == len(held[::2])
            else:
                await tier.evict(EvictScope(module_sha256=module(tag).sha256))
            tier.check()
            assert tier.usage().bytes <= limit_bytes

    asyncio.run(run())


async def test_the_least_recently_used_goes_first() -> None:
    tier = MemoryTier(3 * (1000 + ENTRY_OVERHEAD_BYTES + 500))
    for tag in range(3):
        await tier.put(artifact(tag, 1000))
    await tier.get(artifact(0).key)
    await tier.put(artifact(3, 1000))
    held = await tier.held([artifact(tag).key for tag in range(4)])
    assert held == {artifact(tag).key for tag in (0, 2, 3)}
    assert tier.usage().evictions == 1


async def test_what_can_never_fit_evicts_nothing() -> None:
    tier = MemoryTier(10_000)
    await tier.put(artifact(1, 1000))
    await tier.put(artifact(2, 20_000))
    assert await tier.held([artifact(1).key, artifact(2).key]) == {artifact(1).key}
    assert tier.usage().evictions == 0


async def test_an_overwrite_counts_the_difference() -> None:
    tier = MemoryTier(100_000)
    await tier.put(artifact(1, 1000))
    before = tier.usage().bytes
    await tier.put(artifact(1, 3000))
    assert tier.usage().entries == 1
    assert 2000 <= tier.usage().bytes - before < 2100
    tier.check()


async def test_holds_tells_the_same_object_from_an_equal_one() -> None:
    tier = MemoryTier(10_000)
    one, equal = artifact(1), artifact(1)
    assert not tier.holds(one)
    await tier.put(one)
    assert tier.holds(one)
    assert not tier.holds(equal)
    await tier.evict(EvictScope())
    assert not tier.holds(one)


async def test_drop_removes_the_same_object_only() -> None:
    tier = MemoryTier(100_000)
    old, new = artifact(1), artifact(1)
    await tier.put(old)
    await tier.put(new)
    assert tier.drop([old]) == 0
    assert await tier.get(old.key) is new


async def test_other_tasks_run_while_everything_is_evicted() -> None:
    tier = MemoryTier(10**9)
    for tag in range(20_000):
        await tier.put_module(module(tag))
    evicting = asyncio.create_task(tier.evict(EvictScope()))
    turns = 0
    while not evicting.done():
        await asyncio.sleep(0)
        turns += 1
        tier.check()
        if turns == 2:
            await tier.put(artifact(1))
    assert turns > 3
    assert (await evicting).modules == 20_000
    # What was put meanwhile was not there when it began.
    assert await tier.held([artifact(1).key])


async def test_what_is_pinned_makes_no_room() -> None:
    pins = {module(0).sha256}
    tier = MemoryTier(20_000, pins.__contains__)
    await tier.put(artifact(0, 1000))
    await tier.put_module(module(0))
    for tag in range(1, 50):
        await tier.put(artifact(tag, 2000))
        await tier.put(artifact(tag, 9_000_000))
    assert await tier.get(artifact(0).key)
    assert await tier.has_module(module(0).sha256)
    usage = tier.usage()
    assert (usage.pinned_entries, usage.let_go) == (2, 0)
    assert usage.evictions > 20
    spared = EvictScope(spares=pins.__contains__)
    gone = await tier.evict(spared)
    assert (gone.pinned, tier.usage().entries) == (2, 2)
    pins.clear()
    tier.keep_pinned([module(0).sha256])
    assert tier.usage().pinned_entries == 0
    for tag in range(1, 50):
        await tier.put(artifact(tag, 2000))
    assert not await tier.get(artifact(0).key)
    tier.check()


async def test_pins_take_half_of_it_and_the_least_recently_used_lose_their_hold() -> None:
    tier = MemoryTier(20_000, lambda _: True)
    for tag in range(3):
        await tier.put(artifact(tag, 3000))
    assert (tier.usage().pinned_entries, tier.usage().let_go) == (2, 1)
    await tier.put(artifact(3, 15_000))  # It would take more than half: it is not held.
    tier.check()
    held = await tier.held([artifact(tag).key for tag in range(4)])
    assert held == {artifact(tag).key for tag in (0, 1, 2)}
    tier.resize(9000)
    tier.check()
    assert tier.usage().pinned_entries == 1
    assert tier.pinned([artifact(2).module_sha256])[artifact(2).module_sha256].artifacts == 1
