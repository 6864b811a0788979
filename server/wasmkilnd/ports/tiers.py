"""Where modules and artifacts are kept: one tier, and all tiers as one cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from wasmkilnd.model import (
    Artifact,
    CacheKey,
    Evicted,
    EvictScope,
    HostFile,
    Kind,
    Module,
    Origin,
    TierUsage,
)
from wasmkilnd.wait_budget import Allowance, WaitBudget


class Tier(Protocol):
    """One level of cache.

    Safe for concurrent use from one event loop. A look-up that finds nothing returns None; a
    look-up that could not be made raises TierUnavailable, so a failure is never taken for a
    miss. What a look-up returns was verified against the key that was asked for. After a put
    returns, the entry may be gone again (evicted, expired, too large to keep), but a reader
    never sees a part of it.
    """

    name: str

    async def get(
        self,
        key: CacheKey,
        allowance: Allowance | None = None,
        accept: frozenset[str] = frozenset(),
    ) -> Artifact | None:
        """Return the artifact under ``key``. Raises TierUnavailable.

        The tier adds to ``allowance`` what the look-up may take on top of the callers' budgets.
        A tier that stores encoded artifacts decodes what it returns, unless ``accept`` names
        their encoding. A tier that keeps what it was given returns that.
        """
        ...

    async def put(self, artifact: Artifact) -> None:
        """Store ``artifact`` under its key, over what is there. Raises TierUnavailable."""
        ...

    async def get_module(self, sha256: str, allowance: Allowance | None = None) -> Module | None:
        """Return the module with this digest; as ``get``. Raises TierUnavailable."""
        ...

    async def put_module(self, module: Module) -> None:
        """Store ``module`` under its digest. Raises TierUnavailable."""
        ...

    async def has_module(self, sha256: str) -> bool:
        """Return whether the module is stored, without counting as use. Raises TierUnavailable."""
        ...

    async def held(self, keys: Sequence[CacheKey]) -> frozenset[CacheKey]:
        """Return which of ``keys`` are stored, without counting as use. Raises TierUnavailable."""
        ...

    async def kinds_of(self, keys: Sequence[CacheKey]) -> Mapping[CacheKey, Kind]:
        """Return the kind of module behind each of ``keys`` that is stored.

        Reads no more than it must, and does not count as use. Raises TierUnavailable.
        """
        ...

    async def evict(self, scope: EvictScope) -> Evicted:
        """Remove all in ``scope`` that was stored before the call. Raises TierUnavailable."""
        ...

    def usage(self) -> TierUsage:
        """Return what the tier holds, without waiting; never raises."""
        ...

    async def close(self) -> None:
        """Free connections and memory; never raises."""
        ...


class HostStore(Tier, Protocol):
    """A tier of files that processes on this host map. It holds artifacts, no modules."""

    def takes(self, artifact: Artifact) -> bool:
        """Return whether to write ``artifact`` now; count it as dropped if not.

        Not if it is larger than the store, nor for a while after a write failed.
        """
        ...

    async def file_of(
        self, key: CacheKey, allowance: Allowance | None = None
    ) -> tuple[Artifact, HostFile] | None:
        """Return the artifact under ``key`` without its bytes, and the verified file of these.

        Raises TierUnavailable.
        """
        ...

    def recheck(self) -> None:
        """Verify each entry again at its next use: a key is no longer trusted."""
        ...


class Cache(Protocol):
    """All tiers as one.

    Safe for concurrent use from one event loop. No call fails because a tier fails: a tier that
    does not answer, or would take longer than ``budget`` has left, counts as one that holds
    nothing. What a put stores is in memory when the put returns; the other tiers are written
    afterwards, and a write that fails is counted and logged, never raised.
    """

    def wait_budget(self) -> WaitBudget:
        """Return how long one call may wait for the tiers below memory in all, from now on."""
        ...

    async def get_local(
        self, key: CacheKey, accept: frozenset[str] = frozenset()
    ) -> Artifact | None:
        """Return the artifact if this daemon has it, and keep it in memory.

        Its encoding is empty or one of ``accept``.
        """
        ...

    async def has_local(self, key: CacheKey) -> bool:
        """Return whether this daemon has the artifact, without counting as use."""
        ...

    async def get(
        self, key: CacheKey, budget: WaitBudget, accept: frozenset[str] = frozenset()
    ) -> tuple[Artifact, Origin] | None:
        """Return the artifact from the nearest tier that has it, and keep it in memory.

        Its encoding is empty or one of ``accept``.
        """
        ...

    async def host_file(
        self, key: CacheKey, budget: WaitBudget, at_hand: Artifact | None = None
    ) -> tuple[Artifact, HostFile] | None:
        """Return the artifact without its bytes, and the file that a process here can map.

        None if the host store does not have it. A write of it that waits comes first; so does
        one of the artifact ``at_hand``, if the store lacks it.
        """
        ...

    async def put(self, artifact: Artifact) -> None:
        """Store ``artifact`` in memory now, and in the other tiers after the call."""
        ...

    async def get_module(self, sha256: str, budget: WaitBudget) -> Module | None:
        """Return the module from the nearest tier that has it, and keep it in memory."""
        ...

    async def put_module(self, module: Module) -> None:
        """Store ``module`` in memory now, and in the shared tier after the call."""
        ...

    def restore_module(self, module: Module) -> None:
        """Store ``module`` in the shared tier, after the call, if it is missing there."""
        ...

    async def missing(self, keys: Sequence[CacheKey], budget: WaitBudget) -> frozenset[CacheKey]:
        """Return which of ``keys`` no tier holds."""
        ...

    async def kinds_of(
        self, keys: Sequence[CacheKey], budget: WaitBudget
    ) -> Mapping[CacheKey, Kind]:
        """Return the kind of module behind each of ``keys`` that a tier holds."""
        ...

    def held_in_memory(self, module_sha256: str) -> Sequence[Artifact]:
        """Return the artifacts of a module that this daemon's memory holds."""
        ...

    async def evict(self, scope: EvictScope, tier: str) -> tuple[Evicted, Sequence[str]]:
        """Evict ``scope`` from ``tier``, or from all tiers for an empty name.

        Return what was removed, and the names of the tiers that did not answer.
        """
        ...
