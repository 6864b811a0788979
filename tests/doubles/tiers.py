"""Tiers below memory that keep things in memory, answer once their gate opens, or fail."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from wasmkilnd.cache.memory import MemoryTier
from wasmkilnd.errors import TierUnavailable
from wasmkilnd.model import (
    Artifact,
    CacheKey,
    Evicted,
    EvictScope,
    HostFile,
    Module,
    TierUsage,
)
from wasmkilnd.waits.budgets import Allowance


class _Gated:
    """What both tiers do; a look-up sees what was there when it began."""

    def __init__(self) -> None:
        self.kept = MemoryTier(100_000_000)
        self.gate = asyncio.Event()
        self.gate.set()
        self.asked = asyncio.Event()
        self.down = False
        self.moving_s = 0.0
        """How long it says that moving an artifact may take."""
        self.gets = 0
        """How often anything was asked of it."""

    async def get(self, key: Any, allowance: Allowance | None = None, fits: Any = None) -> Any:
        found = self.kept.get(key)
        if allowance:
            allowance.seconds += self.moving_s
        await self._answer()
        return found

    async def held(self, keys: Sequence[CacheKey]) -> frozenset[CacheKey]:
        await self._answer()
        return frozenset(filter(self.kept.peek, keys))

    async def evict(self, scope: EvictScope) -> Evicted:
        await self._answer()
        return await self.kept.evict(scope)

    def usage(self) -> TierUsage:
        return self.kept.usage()

    async def close(self) -> None:
        return None

    async def _answer(self) -> None:
        self.gets += 1
        self.asked.set()
        await self.gate.wait()
        if self.down:
            raise TierUnavailable("down")


class HostFiles(_Gated):
    """A HostStore that opens no file."""

    name = "host_store"
    link = None

    def __init__(self) -> None:
        super().__init__()
        self.refuse_writes = False
        self.rechecks = 0
        self.directory = self  # Which is what checks again.

    def takes(self, artifact: Artifact) -> bool:
        return True

    async def put(self, artifact: Artifact) -> None:
        await self._answer()
        if self.refuse_writes:
            raise TierUnavailable("full")
        self.kept.put(artifact)

    async def file_of(
        self, key: CacheKey, allowance: Allowance | None = None
    ) -> tuple[Artifact, HostFile] | None:
        found = await self.get(key)
        if found is None:
            return None
        return replace(found, frames=()), HostFile(f"/{key.module_sha256}", 1, 2)

    def recheck(self) -> None:
        self.rechecks += 1


class SharedTier(_Gated):
    """A RedisStore without a Redis."""

    name = "redis"
    reads = writes = True

    def __init__(self) -> None:
        super().__init__()
        self.link = _Link(self)
        self.refusal = ""
        self.uses: list[CacheKey | str] = []

    async def put(self, what: Artifact | Module) -> None:
        await self._answer()
        self.kept.put(what)

    def used(self, key: CacheKey | str) -> None:
        self.uses.append(key)


class _Link:
    """The way to it, which is open."""

    def __init__(self, tier: SharedTier) -> None:
        self._tier = tier
        self.is_down = False
        self.open = asyncio.Event()
        self.open.set()

    @property
    def up(self) -> bool:
        return not self._tier.down

    @property
    def why_down(self) -> str:
        return "down" if self._tier.down else ""

    async def ready(self) -> None:
        await self.open.wait()
