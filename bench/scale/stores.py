"""What a probe fills and measures: each tier, as the daemon composes it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Protocol

import redis.asyncio
from wasmkilnd.cache.host_store import HostStore
from wasmkilnd.cache.memory import MemoryTier
from wasmkilnd.cache.observed import ObservedTier
from wasmkilnd.cache.redis.connect import connect
from wasmkilnd.cache.redis.tier import DEFAULT_PREFIX, DEFAULT_TTL_S, RedisTier
from wasmkilnd.cache.value.names import KeyNames
from wasmkilnd.model import Artifact
from wasmkilnd.ports import Tier
from wasmkilnd.telemetry.metrics.recorder import Metrics

from bench.scale import host_files
from bench.scale.entries import Entries

_TIMEOUT_S = 60.0
_BATCH = 1000
_REAL = 1000
"""As many of the entries can be read, except in memory, where all can."""
_REAL_FILES = 200  # Each waits for the disk.


class Store(Protocol):
    """A tier with a number of entries."""

    tier: Tier
    """The tier with the metrics of the daemon around it."""
    budget_bytes: int
    """What the settings let it hold in the daemon's memory."""

    @property
    def files(self) -> HostStore | None:
        """The tier itself, if processes map its files."""
        ...

    @property
    def live(self) -> Sequence[int]:
        """Return entries that are stored."""
        ...

    def make(self, number: int) -> Artifact:
        """Return an entry in the form that the tier stores."""
        ...

    def stored(self, numbers: Sequence[int]) -> None:
        """Take note that the tier holds these from now on."""
        ...


class _InMemory:
    """The memory tier, full: each further entry makes it drop the one that it used least."""

    files = None

    def __init__(self, entries: Entries, count: int) -> None:
        self.make = entries.unsigned
        self._count = self._end = count
        self._memory = MemoryTier(1 << 40)
        self.tier: Tier = ObservedTier(self._memory, Metrics("bench"))

    async def fill(self) -> None:
        """Store all, and leave no room for more."""
        for number in range(self._count):
            await self._memory.put(self.make(number))
        self.budget_bytes = self._memory.usage().bytes
        self._memory.resize(self.budget_bytes)

    @property
    def live(self) -> Sequence[int]:
        # Entries that were read are younger than others: the newest quarter is surely there.
        return range(self._end - self._count // 4, self._end)

    def stored(self, numbers: Sequence[int]) -> None:
        self._end = max(self._end, *(number + 1 for number in numbers))


class _InRedis:
    """The Redis tier. All entries are as large as real ones, those that are read are real."""

    budget_bytes = 0
    files = None

    def __init__(self, entries: Entries, url: str, tier: RedisTier) -> None:
        self.make = entries.sealed
        self.tier: Tier = ObservedTier(tier, Metrics("bench"))
        self._entries = entries
        self._url = url
        self.live: list[int] = []

    async def fill(self, count: int, real: int) -> None:
        """Store ``count`` entries, of which ``real`` can be read."""
        self.live = spread(count, real)
        await fill_redis(self._entries, self._url, self.live)
        names = KeyNames(DEFAULT_PREFIX)
        async with redis.asyncio.Redis.from_url(self._url) as client:
            value = await client.get(names.artifact(self._entries.key(self.live[0])))
            assert value
            for start in range(0, count, _BATCH):
                pipeline = client.pipeline(transaction=False)
                for number in range(start, min(start + _BATCH, count)):
                    name = names.artifact(self._entries.key(number))
                    pipeline.set(name, value, ex=DEFAULT_TTL_S, nx=True)
                await pipeline.execute()

    def stored(self, numbers: Sequence[int]) -> None:
        self.live += numbers


class _InFiles:
    """The host store. Those entries that are read are real."""

    budget_bytes = 0

    def __init__(self, entries: Entries, tier: HostStore, live: list[int]) -> None:
        self.make = entries.sealed
        self.files = tier
        self.tier: Tier = ObservedTier(tier, Metrics("bench"))
        self.live = live

    def stored(self, numbers: Sequence[int]) -> None:
        self.live += numbers


async def fill_redis(entries: Entries, url: str, numbers: Iterable[int]) -> None:
    """Store entries as a daemon does."""
    tier = _redis_tier(entries, url)
    for number in numbers:
        await tier.put(entries.sealed(number))
    await tier.close()


def _redis_tier(entries: Entries, url: str) -> RedisTier:
    connection = connect(url, timeout_s=_TIMEOUT_S)
    return RedisTier(connection, entries.sealer, Metrics("bench"), timeout_s=_TIMEOUT_S)


def spread(count: int, some: int) -> list[int]:
    """Return about ``some`` numbers below ``count``, evenly spread."""
    return list(range(0, count, max(1, count // some)))


@asynccontextmanager
async def _memory(entries: Entries, count: int, _: str) -> AsyncIterator[Store]:
    store = _InMemory(entries, count)
    await store.fill()
    yield store
    await store.tier.close()


@asynccontextmanager
async def _redis(entries: Entries, count: int, url: str) -> AsyncIterator[Store]:
    tier = _redis_tier(entries, url)
    store = _InRedis(entries, url, tier)
    await store.fill(count, _REAL)
    yield store
    await tier.close()


@asynccontextmanager
async def _host_store(entries: Entries, count: int, folder: str) -> AsyncIterator[Store]:
    live = spread(count, _REAL_FILES)
    await host_files.fill(Path(folder), entries, count, live, host_files.files_of(count))
    async with host_files.host_store(Path(folder), entries) as tier:
        yield _InFiles(entries, tier, live)


STORES = {"host_store": _host_store, "memory": _memory, "redis": _redis}
"""By name: what opens a store with so many entries, given where its server or folder is."""
