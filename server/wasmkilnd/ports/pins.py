"""What the tiers do about pins."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from wasmkilnd.model import Held


@dataclass(frozen=True, slots=True)
class Measured:
    """What the tiers have of some modules, and which tiers did not answer."""

    tiers: Mapping[str, Mapping[str, Held]]
    """By tier, then by module; of each module that was asked for."""
    unreachable: frozenset[str] = field(default_factory=frozenset)


@dataclass(frozen=True, slots=True)
class Room:
    """How much a tier holds that is pinned, and how much it may hold in all; 0 for no limit."""

    pinned_bytes: int
    limit_bytes: int


class PinnedTiers(Protocol):
    """Keeps what is pinned in all tiers, and the pins themselves. Never raises."""

    async def exchange(self) -> bool:
        """Learn other daemons' pins, and tell them this one's; return whether Redis answered.

        Without a Redis, return True: there is nobody to tell.
        """
        ...

    async def measure(self, modules: Collection[str]) -> Measured:
        """Return what the tiers have of ``modules``."""
        ...

    async def settle(self, module_sha256: str) -> None:
        """Wait a moment for a write of the module that is on its way to Redis."""
        ...

    async def rooms(self) -> Mapping[str, Room]:
        """Return what each tier that answers has room for."""
        ...

    async def apply(self, modules: Collection[str]) -> bool:
        """Keep what is there of ``modules``, or let it go, as they are pinned or not by now.

        Return whether Redis did it too; if not, it does so at a later look.
        """
        ...
