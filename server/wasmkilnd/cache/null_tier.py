"""The shared tier of a daemon that has none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from wasmkilnd.model import (
    Artifact,
    CacheKey,
    Evicted,
    EvictScope,
    Kind,
    Module,
    TierUsage,
)
from wasmkilnd.wait_budget import Allowance


class NullTier:
    """Holds nothing and does nothing, so that no caller asks whether there is such a tier."""

    def __init__(self, name: str) -> None:
        self.name = name

    async def get(
        self,
        key: CacheKey,
        allowance: Allowance | None = None,
        accept: frozenset[str] = frozenset(),
    ) -> Artifact | None:
        """Return None."""
        return None

    async def put(self, artifact: Artifact) -> None:
        """Do nothing."""

    async def get_module(self, sha256: str, allowance: Allowance | None = None) -> Module | None:
        """Return None."""
        return None

    async def put_module(self, module: Module) -> None:
        """Do nothing."""

    async def has_module(self, sha256: str) -> bool:
        """Return False."""
        return False

    async def held(self, keys: Sequence[CacheKey]) -> frozenset[CacheKey]:
        """Return an empty set."""
        return frozenset()

    async def kinds_of(self, keys: Sequence[CacheKey]) -> Mapping[CacheKey, Kind]:
        """Return an empty mapping."""
        return {}

    async def evict(self, scope: EvictScope) -> Evicted:
        """Return that nothing was removed."""
        return Evicted()

    def usage(self) -> TierUsage:
        """Return zeros."""
        return TierUsage()

    async def always_ready(self) -> None:
        """Return at once: there is nothing to wait for."""

    async def close(self) -> None:
        """Do nothing."""
