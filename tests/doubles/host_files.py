"""A host store in memory, for tests of what is around it: it opens no file."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from wasmkilnd.cache.memory import MemoryTier
from wasmkilnd.errors import TierUnavailable
from wasmkilnd.model import Artifact, CacheKey, HostFile
from wasmkilnd.wait_budget import Allowance


class HostFiles(MemoryTier):
    """A HostStore that answers once its gate opens, or fails."""

    name = "host_store"

    def __init__(self) -> None:
        super().__init__(10_000_000)
        self.gate = asyncio.Event()
        self.gate.set()
        self.down = False
        self.refuse_writes = False
        self.largest_bytes = 10_000_000
        self.gets = 0
        self.rechecks = 0

    def takes(self, artifact: Artifact) -> bool:
        return True

    def fits(self, artifact: Artifact) -> bool:
        return artifact.size_bytes <= self.largest_bytes

    async def get(
        self,
        key: CacheKey,
        allowance: Allowance | None = None,
        accept: frozenset[str] = frozenset(),
    ) -> Artifact | None:
        self.gets += 1
        await self._answer()
        return await super().get(key)

    async def put(self, artifact: Artifact) -> None:
        await self._answer()
        if self.refuse_writes:
            raise TierUnavailable("full")
        await super().put(artifact)

    async def file_of(
        self, key: CacheKey, allowance: Allowance | None = None
    ) -> tuple[Artifact, HostFile] | None:
        found = await self.get(key)
        if found is None:
            return None
        return replace(found, frames=()), HostFile(f"/{key.module_sha256}", 1, 2)

    def recheck(self) -> None:
        self.rechecks += 1

    async def _answer(self) -> None:
        await self.gate.wait()
        if self.down:
            raise TierUnavailable("down")
