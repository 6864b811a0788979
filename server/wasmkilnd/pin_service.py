"""Pin, Unpin and ListPins: modules that no tier evicts to make room for others."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace

from wasmkilnd import errors
from wasmkilnd.admission import check_sha256
from wasmkilnd.model import MAX_PINS, EvictScope, Held, Pin
from wasmkilnd.pins import Pins
from wasmkilnd.ports import Measured, PinnedTiers

_SHARED = "redis"


@dataclass(frozen=True, slots=True)
class Pinned:
    """A pin, and whether the shared tier answered: if not, other daemons learn of it later."""

    pin: Pin
    reached_redis: bool


@dataclass(frozen=True, slots=True)
class Unpinned:
    """Whether there was a pin, and whether the shared tier answered, as of ``Pinned``."""

    removed: bool
    reached_redis: bool


class PinService:
    """The pins of one namespace. For one event loop."""

    def __init__(self, pins: Pins, tiers: PinnedTiers) -> None:
        self._pins = pins
        self._tiers = tiers
        # Two calls at a time could together take more than half of a tier.
        self._one_change = asyncio.Lock()

    def __len__(self) -> int:
        return len(self._pins)

    async def pin(self, module_sha256: str) -> Pinned:
        """Pin a module and all of its artifacts, now and later.

        Raises INVALID_REQUEST, MODULE_NOT_LOADED and PINS_FULL.
        """
        check_sha256(module_sha256, "module_sha256")
        async with self._one_change:
            reached = await self._tiers.exchange()
            if not self._pins.is_pinned(module_sha256):
                await self._refuse_if_there_is_no_room(module_sha256)
                self._pins.pin(module_sha256)
                reached &= await self._tiers.exchange()
            reached &= await self._tiers.apply([module_sha256])
        measured = await self._tiers.measure([module_sha256])
        reached &= _SHARED not in measured.unreachable
        return Pinned(self._shown(module_sha256, measured), reached)

    async def unpin(self, module_sha256: str) -> Unpinned:
        """Unpin a module. Raises INVALID_REQUEST."""
        check_sha256(module_sha256, "module_sha256")
        async with self._one_change:
            reached = await self._tiers.exchange()
            removed = self._pins.unpin(module_sha256)
            if removed:
                reached &= await self._tiers.exchange()
                reached &= await self._tiers.apply([module_sha256])
            return Unpinned(removed, reached)

    async def listed(self) -> list[Pin]:
        """Return all pins, by digest, and what the tiers have of each."""
        await self._tiers.exchange()
        modules = sorted(self._pins.pinned)[:MAX_PINS]
        measured = await self._tiers.measure(modules)
        return [self._shown(module, measured) for module in modules if self._pins.is_pinned(module)]

    async def sparing(self, scope: EvictScope) -> EvictScope:
        """Return ``scope`` without what is pinned. Raises MODULE_PINNED for a pinned module."""
        await self._tiers.exchange()
        if self._pins.is_pinned(scope.module_sha256):
            raise errors.module_pinned(scope.module_sha256)
        return replace(scope, spares=self._pins.is_pinned) if self._pins else scope

    async def _refuse_if_there_is_no_room(self, module_sha256: str) -> None:
        if len(self._pins) >= MAX_PINS:
            raise errors.too_many_pins(MAX_PINS)
        await self._tiers.settle(module_sha256)
        measured = await self._tiers.measure([module_sha256])
        parts: Mapping[str, Held] = {
            tier: each.get(module_sha256, Held()) for tier, each in measured.tiers.items()
        }
        if not any(part.artifacts or part.modules for part in parts.values()):
            raise errors.nothing_to_pin(module_sha256)
        rooms = await self._tiers.rooms()
        for tier, part in parts.items():
            room = rooms.get(tier)
            if room and room.limit_bytes:
                size_bytes = room.pinned_bytes + part.bytes
                if 2 * size_bytes > room.limit_bytes:
                    raise errors.pins_full(tier, size_bytes, room.limit_bytes)

    def _shown(self, module_sha256: str, measured: Measured) -> Pin:
        return Pin(
            module_sha256,
            self._pins.pinned.get(module_sha256, 0),
            {
                tier: each[module_sha256]
                for tier, each in measured.tiers.items()
                if module_sha256 in each
            },
        )
