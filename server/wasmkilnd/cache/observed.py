"""Metrics as a decorator: any tier can be wrapped, and no tier knows the metrics."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Mapping, Sequence
from typing import TypeVar

from wasmkilnd.errors import DoesNotFit
from wasmkilnd.model import (
    Artifact,
    CacheKey,
    Evicted,
    EvictScope,
    Kind,
    Module,
    TierUsage,
)
from wasmkilnd.ports import Recorder, Tier
from wasmkilnd.wait_budget import Allowance

V = TypeVar("V")


class ObservedTier:
    """Does what ``tier`` does, and records how each look-up and each write went."""

    def __init__(self, tier: Tier, recorder: Recorder) -> None:
        self.name = tier.name
        self._tier = tier
        self._recorder = recorder

    async def get(
        self,
        key: CacheKey,
        allowance: Allowance | None = None,
        accept: frozenset[str] = frozenset(),
    ) -> Artifact | None:
        """Delegate; record a look-up of an artifact."""
        return await self._look_up("artifact", self._tier.get(key, allowance, accept))

    async def put(self, artifact: Artifact) -> None:
        """Delegate; record a write."""
        await self._store(self._tier.put(artifact))

    async def get_module(self, sha256: str, allowance: Allowance | None = None) -> Module | None:
        """Delegate; record a look-up of a module."""
        return await self._look_up("module", self._tier.get_module(sha256, allowance))

    async def put_module(self, module: Module) -> None:
        """Delegate; record a write."""
        await self._store(self._tier.put_module(module))

    async def has_module(self, sha256: str) -> bool:
        """Delegate; if it fails, record a look-up of a module."""
        return await self._ask(self._tier.has_module(sha256), "module")

    async def held(self, keys: Sequence[CacheKey]) -> frozenset[CacheKey]:
        """Delegate; if it fails, record a look-up of an artifact."""
        return await self._ask(self._tier.held(keys))

    async def kinds_of(self, keys: Sequence[CacheKey]) -> Mapping[CacheKey, Kind]:
        """Delegate; if it fails, record a look-up of an artifact."""
        return await self._ask(self._tier.kinds_of(keys))

    async def evict(self, scope: EvictScope) -> Evicted:
        """Delegate."""
        return await self._tier.evict(scope)

    def usage(self) -> TierUsage:
        """Delegate."""
        return self._tier.usage()

    async def close(self) -> None:
        """Delegate."""
        await self._tier.close()

    async def _look_up(self, what: str, looking: Awaitable[V | None]) -> V | None:
        began = time.perf_counter()
        found = await self._ask(looking, what)
        outcome = "miss" if found is None else "hit"
        self._recorder.tier_lookup(self.name, what, outcome, time.perf_counter() - began)
        return found

    async def _ask(self, asking: Awaitable[V], what: str = "artifact") -> V:
        began = time.perf_counter()
        try:
            return await asking
        except Exception:
            # Not in a `finally`: a cancelled call says nothing about the tier.
            self._recorder.tier_lookup(self.name, what, "error", time.perf_counter() - began)
            raise

    async def _store(self, storing: Awaitable[None]) -> None:
        began = time.perf_counter()
        try:
            await storing
        except DoesNotFit:
            raise  # It says nothing about the tier.
        except Exception:
            self._recorder.tier_store(self.name, "error", time.perf_counter() - began)
            raise
        self._recorder.tier_store(self.name, "ok", time.perf_counter() - began)
