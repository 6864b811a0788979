"""What a probe fills and measures: each tier, as the daemon composes it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Protocol

import redis.asyncio
from wasmkilnd.cache.host_store import HostStore
from wasmkilnd.cache.memory import MemoryTier
from wasmkilnd.cache.redis_link import RedisLink
from wasmkilnd.cache.redis_servers import connect
from wasmkilnd.cache.redis_store import RedisStore
from wasmkilnd.flights import Allowance
from wasmkilnd.model import Artifact, CacheKey, Evicted, EvictScope, nothing_pinned
from wasmkilnd.signing.sealer import Sealer
from wasmkilnd.telemetry.metrics import Metrics

from bench.scale import host_files
from bench.scale.entries import Entries

_TTL_S = 24 * 3600
_PREFIX = "wasm:"
_TIMEOUT_S = 60.0
_BATCH = 1000
_REAL = 1000
"""As many of the entries can be read, except in memory, where all can."""
_REAL_FILES = 200  # Each waits for the disk.


class Store(Protocol):
    """A tier with a number of entries."""

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

    async def get(self, key: CacheKey) -> Artifact | None:
        """Read an entry."""
        ...

    async def put(self, artifact: Artifact) -> None:
        """Store an entry."""
        ...

    async def evict(self, scope: EvictScope) -> Evicted:
        """Delete entries."""
        ...

    def stored(self, numbers: Sequence[int]) -> None:
        """Take note that the tier holds these from now on."""
        ...


class _InMemory:
    """The memory tier, full: each further entry makes it drop the one that it used least."""

    files = None

    def __init__(self, entries: Entries, count: int) -> None:
        self.make = entries.unsigned
        self._end = self._count = count
        self._memory = MemoryTier(1 << 40)
        self.evict = self._memory.evict
        for number in range(count):
            self._memory.put(self.make(number))
        self.budget_bytes = self._memory.usage().bytes
        # It has no room for more.
        self._memory.resize(self.budget_bytes)

    @property
    def live(self) -> Sequence[int]:
        # Entries that were read are younger than others: the newest quarter is surely there.
        return range(self._end - self._count // 4, self._end)

    async def get(self, key: CacheKey) -> Artifact | None:
        found: Artifact | None = self._memory.get(key)
        return found

    async def put(self, artifact: Artifact) -> None:
        self._memory.put(artifact)

    def stored(self, numbers: Sequence[int]) -> None:
        self._end = max(self._end, *(number + 1 for number in numbers))


class _InRedis:
    """The Redis tier. All entries are as large as real ones, those that are read are real."""

    budget_bytes = 0
    files = None

    def __init__(self, entries: Entries, url: str, store: RedisStore) -> None:
        self.make = entries.sealed
        self.put, self.evict = store.put, store.evict
        self._entries = entries
        self._url = url
        self._store = store
        self.live: list[int] = []

    async def fill(self, count: int, real: int) -> None:
        """Store ``count`` entries, of which ``real`` can be read."""
        self.live = spread(count, real)
        await fill_redis(self._entries, self._url, self.live)
        async with redis.asyncio.Redis.from_url(self._url) as client:
            value = await client.get(self._store.name_of(self._entries.key(self.live[0])))
            assert value
            for start in range(0, count, _BATCH):
                pipeline = client.pipeline(transaction=False)
                for number in range(start, min(start + _BATCH, count)):
                    key = self._entries.key(number)
                    pipeline.set(self._store.name_of(key), value, ex=_TTL_S, nx=True)
                    of = f"{_PREFIX}3:of:{{{key.module_sha256}}}"
                    pipeline.sadd(of, f"{key.engine_id}:{key.fingerprint}")
                    pipeline.expire(of, _TTL_S)
                await pipeline.execute()

    async def get(self, key: CacheKey) -> Artifact | None:
        found: Artifact | None = await self._store.get(key, Allowance())
        return found

    def stored(self, numbers: Sequence[int]) -> None:
        self.live += numbers


class _InFiles:
    """The host store. Those entries that are read are real."""

    budget_bytes = 0

    def __init__(self, entries: Entries, store: HostStore, live: list[int]) -> None:
        self.make = entries.sealed
        self.files = store
        self.get, self.put, self.evict = store.get, store.put, store.evict
        self.live = live

    def stored(self, numbers: Sequence[int]) -> None:
        self.live += numbers


async def fill_redis(entries: Entries, url: str, numbers: Iterable[int]) -> None:
    """Store entries as a daemon does."""
    store = redis_store(url, entries.sealer)
    for number in numbers:
        await store.put(entries.sealed(number))
    await _close(store)


def redis_store(url: str, sealer: Sealer) -> RedisStore:
    """Return the store of the default namespace, as a daemon builds it, with a long time-out."""
    return RedisStore(
        RedisLink(connect(url, timeout_s=_TIMEOUT_S), timeout_s=_TIMEOUT_S),
        _PREFIX,
        sealer,
        Metrics("bench"),
        ttl_s=_TTL_S,
        artifact_bytes=lambda: 1 << 40,
        module_bytes=lambda: 1 << 40,
        is_pinned=nothing_pinned,
        reports_usage=True,
    )


async def _close(store: RedisStore) -> None:
    await store.close()
    await store.link.close()


def spread(count: int, some: int) -> list[int]:
    """Return about ``some`` numbers below ``count``, evenly spread."""
    return list(range(0, count, max(1, count // some)))


@asynccontextmanager
async def _memory(entries: Entries, count: int, _: str) -> AsyncIterator[Store]:
    yield _InMemory(entries, count)


@asynccontextmanager
async def _redis(entries: Entries, count: int, url: str) -> AsyncIterator[Store]:
    store = redis_store(url, entries.sealer)
    filled = _InRedis(entries, url, store)
    await filled.fill(count, _REAL)
    yield filled
    await _close(store)


@asynccontextmanager
async def _host_store(entries: Entries, count: int, folder: str) -> AsyncIterator[Store]:
    live = spread(count, _REAL_FILES)
    await host_files.fill(Path(folder), entries, count, live, host_files.files_of(count))
    async with host_files.host_store(Path(folder), entries) as tier:
        yield _InFiles(entries, tier, live)


STORES = {"host_store": _host_store, "memory": _memory, "redis": _redis}
"""By name: what opens a store with so many entries, given where its server or folder is."""
