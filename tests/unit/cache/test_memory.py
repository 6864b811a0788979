"""The memory tier counts its bytes exactly, whatever is done to it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st
from wasmkilnd.cache.memory import MemoryTier
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
TAGS = range(9)


def entry_bytes(size_bytes: int, tag: int = 0) -> int:
    """Return what an artifact of this size counts."""
    tier = MemoryTier(10**9)
    tier.put(artifact(tag, size_bytes))
    return tier.usage().bytes


def check(tier: MemoryTier, digests: Iterable[str] = ()) -> None:
    """Assert that the figures are the sums over what is here, of TAGS and ``digests``."""
    parts = tier.pinned({*(module(tag).sha256 for tag in TAGS), *digests}).values()
    usage = tier.usage()
    assert usage.entries == sum(part.artifacts + part.modules for part in parts)
    assert usage.bytes == sum(part.bytes for part in parts) <= usage.limit_bytes
    assert 2 * usage.pinned_bytes <= usage.limit_bytes
    assert (usage.pinned_bytes > 0) == (usage.pinned_entries > 0)
    assert len(tier.artifacts()) == sum(part.artifacts for part in parts)


@given(STEPS)
def test_the_sums_are_right_after_every_step(steps: list[tuple[str, int, int]]) -> None:
    async def run() -> None:
        pins = set[str]()
        tier = MemoryTier(20_000, pins.__contains__)
        for what, tag, size_bytes in steps:
            if what == "put":
                tier.put(artifact(tag, size_bytes))
            elif what == "module":
                tier.put(module(tag, max(100, size_bytes)))
            elif what == "get":
                tier.get(artifact(tag).key)
            elif what == "pin":
                pins ^= {module(tag).sha256}
                tier.keep_pinned([module(tag).sha256])
            elif what == "resize":
                tier.resize(4 * size_bytes)
            elif what == "drop":
                held = tier.artifacts()
                assert tier.drop(held[::2]) == len(held[::2])
            else:
                await tier.evict(EvictScope(module_sha256=module(tag).sha256))
            check(tier, digests)
        await tier.evict(EvictScope())
        assert (tier.usage().entries, tier.usage().bytes, tier.usage().pinned_bytes) == (0, 0, 0)

    # A module of another size is another one.
    digests = {module(tag, max(100, size_bytes)).sha256 for _, tag, size_bytes in steps}
    asyncio.run(run())


async def test_what_was_put_is_returned_as_it_is() -> None:
    tier = MemoryTier(10_000_000)
    one, wasm = artifact(1, 600_000), module(1)
    assert tier.get(one.key) is None
    assert tier.get(wasm.sha256) is None
    tier.put(one)
    tier.put(wasm)
    assert tier.get(one.key) is one
    assert tier.get(wasm.sha256) is tier.peek(wasm.sha256) is wasm
    assert tier.artifacts_of(wasm.sha256) == [one]
    assert tier.peek(one.key) is one
    assert tier.peek(artifact(2).key) is None
    newer = artifact(1, 1000)
    tier.put(newer)
    assert tier.get(one.key) is newer
    check(tier)
    tier.close()
    assert tier.get(one.key) is None
    check(tier)


async def test_the_least_recently_used_goes_first() -> None:
    tier = MemoryTier(3 * entry_bytes(1000) + 500)
    for tag in range(3):
        tier.put(artifact(tag, 1000))
    tier.get(artifact(0).key)
    tier.peek(artifact(1).key)  # These are no uses.
    tier.artifacts_of(artifact(1).module_sha256)
    tier.put(artifact(3, 1000))
    assert [tag for tag in range(4) if tier.peek(artifact(tag).key)] == [0, 2, 3]
    assert tier.usage().evictions == 1


async def test_what_can_never_fit_evicts_nothing() -> None:
    tier = MemoryTier(10_000)
    tier.put(artifact(1, 1000))
    tier.put(artifact(2, 20_000))
    assert tier.peek(artifact(1).key)
    assert not tier.peek(artifact(2).key)
    assert tier.usage().evictions == 0


async def test_an_overwrite_counts_the_difference() -> None:
    tier = MemoryTier(100_000)
    tier.put(artifact(1, 1000))
    before = tier.usage().bytes
    tier.put(artifact(1, 3000))
    assert tier.usage().entries == 1
    assert 2000 <= tier.usage().bytes - before < 2100
    check(tier)


async def test_drop_and_holds_tell_the_same_object_from_an_equal_one() -> None:
    tier = MemoryTier(100_000)
    old, new = artifact(1), artifact(1)
    tier.put(old)
    tier.put(new)
    assert (tier.holds(old), tier.holds(new)) == (False, True)
    assert tier.drop([old]) == 0
    assert tier.get(old.key) is new
    assert tier.drop([new]) == 1
    assert not tier.holds(new)


async def test_evicting_by_module_engine_and_all() -> None:
    tier = MemoryTier(10_000_000)
    for tag in (1, 2):
        tier.put(module(tag))
        for engine in ("wasmer", "wasmtime"):
            tier.put(artifact(tag, 1000, engine))
    before = tier.usage().bytes
    gone = await tier.evict(EvictScope(module_sha256=module(1).sha256))
    assert (gone.artifacts, gone.modules) == (2, 1)
    assert tier.usage().bytes == before - gone.bytes == before / 2
    gone = await tier.evict(EvictScope(engine_id="wasmer-1.0"))
    assert (gone.artifacts, gone.modules) == (1, 0)
    assert tier.get(artifact(2, engine="wasmtime").key)
    gone = await tier.evict(EvictScope())
    assert (gone.artifacts, gone.modules) == (1, 1)
    assert await tier.evict(EvictScope()) == type(gone)()


async def test_other_tasks_run_while_everything_is_evicted() -> None:
    tier = MemoryTier(10**9)
    for tag in range(20_000):
        tier.put(module(tag))
    evicting = asyncio.create_task(tier.evict(EvictScope()))
    turns = 0
    while not evicting.done():
        await asyncio.sleep(0)
        turns += 1
        if turns == 2:
            tier.put(artifact(1))
    assert turns > 3
    assert (await evicting).modules == 20_000
    # What was put meanwhile was not there when it began.
    assert tier.peek(artifact(1).key)


async def test_what_is_pinned_makes_no_room() -> None:
    pins = {module(0).sha256}
    tier = MemoryTier(20_000, pins.__contains__)
    tier.put(artifact(0, 1000))
    tier.put(module(0))
    for tag in range(1, 50):
        tier.put(artifact(tag, 2000))
        tier.put(artifact(tag, 9_000_000))
    assert tier.get(artifact(0).key)
    assert tier.get(module(0).sha256)
    usage = tier.usage()
    assert (usage.pinned_entries, usage.let_go) == (2, 0)
    assert usage.evictions > 20
    gone = await tier.evict(EvictScope(spares=pins.__contains__))
    assert (gone.pinned, tier.usage().entries) == (2, 2)
    pins.clear()
    tier.keep_pinned([module(0).sha256])
    assert tier.usage().pinned_entries == 0
    for tag in range(1, 50):
        tier.put(artifact(tag, 2000))
    assert not tier.get(artifact(0).key)


async def test_pins_take_half_of_it_and_the_least_recently_used_lose_their_hold() -> None:
    size_bytes = entry_bytes(3000)
    tier = MemoryTier(4 * size_bytes + 100, lambda _: True)
    for tag in range(3):
        tier.put(artifact(tag, 3000))
    assert (tier.usage().pinned_entries, tier.usage().let_go) == (2, 1)
    tier.put(artifact(3, 3 * size_bytes))  # It would take more than half: it is not held.
    assert [tag for tag in range(4) if tier.peek(artifact(tag).key)] == [0, 1, 2]
    check(tier)
    tier.resize(2 * size_bytes + 100)
    check(tier)
    assert tier.usage().pinned_entries == 1
    assert tier.pinned([artifact(2).module_sha256])[artifact(2).module_sha256].artifacts == 1
