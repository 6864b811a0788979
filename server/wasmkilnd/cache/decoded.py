"""Decode artifacts that memory holds encoded, once for all callers that cannot read them so."""

from __future__ import annotations

import asyncio

import structlog

from wasmkilnd.cache.memory import MemoryTier
from wasmkilnd.cache.value.pieces import decoded
from wasmkilnd.cache.value.rejected import ValueRejected
from wasmkilnd.model import Artifact

_log = structlog.get_logger("wasmkilnd.cache")


class DecodedInMemory:
    """Replaces encoded artifacts in ``memory`` by decoded ones. For one event loop."""

    def __init__(self, memory: MemoryTier) -> None:
        self._memory = memory
        self._under_way: dict[Artifact, asyncio.Task[Artifact | None]] = {}

    async def get(self, artifact: Artifact) -> Artifact | None:
        """Return ``artifact`` decoded; None if its bytes cannot be, and then drop it."""
        task = self._under_way.get(artifact)
        if task is None:
            task = self._under_way[artifact] = asyncio.create_task(self._decode(artifact))
        try:
            return await asyncio.shield(task)  # Others wait for it too.
        finally:
            del task

    async def _decode(self, artifact: Artifact) -> Artifact | None:
        try:
            found = await asyncio.to_thread(decoded, artifact)
        except ValueRejected as rejected:
            # A trusted key signed these bytes, so whoever stored them was broken. The next look
            # in the shared tier rejects them, and deletes them there.
            _log.warning("cannot decode an artifact", why=rejected.why)
            self._memory.drop([artifact])
            return None
        finally:
            del self._under_way[artifact]
        if self._memory.holds(artifact):
            await self._memory.put(found)
        return found
