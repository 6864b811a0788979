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
