"""Pinned entries of the host store: they stay through floods, up to half of the store."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from wasmkilnd.cache.host_store import HostStore
from wasmkilnd.model import Artifact

from tests.contract.host_store import host_store
from tests.contract.sealing import sealer
from tests.contract.values import artifact as unsigned

SEALER = sealer()
ENTRY_BYTES = 20 * 1024
LIMIT_BYTES = 8 * ENTRY_BYTES


def artifact(tag: int) -> Artifact:
    return SEALER.seal(unsigned(tag, 3000))


@asynccontextmanager
async def store(folder: Path, pins: set[str]) -> AsyncIterator[HostStore]:
    tier = host_store(folder, SEALER, limit_bytes=LIMIT_BYTES, is_pinned=pins.__contains__)
    await tier.start()
    try:
        yield tier
    finally:
        await tier.close()


async def test_what_is_pinned_stays_through_a_flood_until_it_is_unpinned(tmp_path: Path) -> None:
    dear = artifact(0)
    pins = {dear.module_sha256}
    async with store(tmp_path, pins) as tier:
        await tier.put(dear)
        for tag in range(1, 40):
            await tier.put(artifact(tag))
        assert await tier.held([dear.key])
        assert tier.usage().evictions > 20
        assert tier.usage().bytes <= LIMIT_BYTES
        await tier.count_pinned(pins)
        assert tier.usage().pinned_entries == 1
        assert 0 < tier.usage().pinned_bytes <= ENTRY_BYTES
        [key] = tier.entries_of(pins)
        assert key == dear.key
    async with store(tmp_path, pins) as again:
        for tag in range(40, 80):
            await again.put(artifact(tag))
        assert await again.get(dear.key)


async def test_more_than_half_of_the_store_is_not_held(tmp_path: Path) -> None:
    many = [artifact(tag) for tag in range(20)]
    pins = {each.module_sha256 for each in many}
    async with store(tmp_path, pins) as tier:
        for each in many:
            await tier.put(each)  # It ends, though all that could make room is pinned.
        assert tier.usage().bytes <= LIMIT_BYTES
        assert tier.usage().let_go > 0
        await tier.count_pinned(pins)
        assert 2 * tier.usage().pinned_bytes <= LIMIT_BYTES
        held = tier.entries_of(pins)
        for tag in range(20, 40):
            await tier.put(artifact(tag))
        left = await tier.held([*held])
        assert tier.usage().pinned_entries <= len(left) < len(held)


async def test_an_entry_that_was_unpinned_ages_like_any_other(tmp_path: Path) -> None:
    once, used = artifact(0), artifact(1)
    pins = {once.module_sha256}
    async with store(tmp_path, pins) as tier:
        await tier.put(once)
        await tier.put(used)
        for tag in range(2, 20):  # What is pinned is passed over again and again.
            await tier.put(artifact(tag))
            assert await tier.get(used.key)
        pins.clear()
        for tag in range(20, 28):
            assert await tier.get(used.key)
            await tier.put(artifact(tag))
        assert await tier.held([once.key, used.key]) == {used.key}
