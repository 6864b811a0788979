"""The tiers that keep what is pinned, for tests that are about something else: memory alone."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from wasmkilnd.cache.memory import MemoryTier
from wasmkilnd.ports import Measured, Room


class PinnedInMemory:
    """Implements PinnedTiers over a memory tier; ``answers`` says whether a Redis does."""

    def __init__(self, memory: MemoryTier) -> None:
        self._memory = memory
        self.answers = True
        self.exchanges = 0

    async def exchange(self) -> bool:
        """Count, and learn nothing."""
        self.exchanges += 1
        return self.answers

    async def measure(self, modules: Collection[str]) -> Measured:
        """Return what memory has."""
        return Measured({"memory": self._memory.pinned(modules)})

    async def settle(self, module_sha256: str) -> None:
        """Do nothing: no write is on its way."""

    async def rooms(self) -> Mapping[str, Room]:
        """Return the room in memory."""
        usage = self._memory.usage()
        return {"memory": Room(usage.pinned_bytes, usage.limit_bytes)}

    async def apply(self, modules: Collection[str]) -> bool:
        """Hold, or let go."""
        self._memory.keep_pinned(modules)
        return self.answers
