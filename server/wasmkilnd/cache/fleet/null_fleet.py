"""What a daemon has instead of a fleet: claims that are granted, and strikes of its own only."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence

from wasmkilnd.errors import TierUnavailable
from wasmkilnd.model import CacheKey, Strike
from wasmkilnd.ports import Claim
from wasmkilnd.wait_budget import WaitBudget


class NullClaim:
    """A claim of a daemon that compiles whatever other daemons do: it is always granted."""

    async def stored(self) -> None:
        """Never return."""
        await asyncio.get_running_loop().create_future()

    async def take(self) -> bool:
        """Return True."""
        return True

    async def wait_for_others(self) -> bool:
        """Return False."""
        return False

    def ignore_others(self) -> None:
        """Do nothing."""

    def failed(self) -> None:
        """Do nothing."""


class NullFleet:
    """Implements Fleet without other daemons, so that no caller asks whether there is a fleet."""

    def claim(
        self, key: CacheKey, budget: WaitBudget, *, alone: bool = False
    ) -> contextlib.AbstractAsyncContextManager[Claim]:
        """Return a claim that is always granted."""
        return contextlib.nullcontext(NullClaim())

    async def close(self) -> None:
        """Do nothing."""


class NullStrikes:
    """The strikes of a daemon without a shared tier, which shares none."""

    async def get(self, key: CacheKey, budget: WaitBudget) -> Strike | None:
        """Raise TierUnavailable."""
        raise TierUnavailable("there is no shared tier")

    async def put(
        self, strike: Strike, ttl_s: float, budget: WaitBudget | None, age_s: float = 0.0
    ) -> None:
        """Raise TierUnavailable."""
        raise TierUnavailable("there is no shared tier")

    async def ready(self) -> None:
        """Never return."""
        await asyncio.Event().wait()

    async def all(self) -> Sequence[Strike]:
        """Return an empty list."""
        return []

    async def remove(self, module_sha256: str) -> Sequence[CacheKey]:
        """Return an empty list."""
        return []
