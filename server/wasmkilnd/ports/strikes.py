"""Compile failures that daemons share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from wasmkilnd.model import CacheKey, Strike
from wasmkilnd.wait_budget import WaitBudget


class StrikeStore(Protocol):
    """Strikes against modules, shared with other daemons.

    Safe for concurrent use from one event loop. Every method raises TierUnavailable. What a
    daemon without a trusted key wrote is never returned. A removed strike that someone writes back
    counts until its own time ends.
    """

    async def get(self, key: CacheKey, budget: WaitBudget) -> Strike | None:
        """Return the strike against ``key``, with the time that its quarantine has left."""
        ...

    async def put(
        self, strike: Strike, ttl_s: float, budget: WaitBudget, age_s: float = 0.0
    ) -> None:
        """Store ``strike``, over what is there, for ``ttl_s`` seconds.

        A strike that is ``age_s`` old is not stored if the stored one counts as many failures.
        """
        ...

    async def ready(self) -> None:
        """Return once the store is believed to answer."""
        ...

    async def all(self) -> Sequence[Strike]:
        """Return all strikes, 10,000 at most."""
        ...

    async def remove(self, module_sha256: str) -> Sequence[CacheKey]:
        """Delete the strikes against a module, or against all modules for an empty digest."""
        ...
