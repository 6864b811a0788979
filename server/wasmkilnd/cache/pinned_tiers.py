"""Keep what is pinned in every tier, and the pins themselves, in the whole fleet.

A pin is known in memory, in a file of the state directory and in the shared tier, and is written
again wherever it is missing. Every LOOK_EVERY_S, and when something asks for it, a daemon
exchanges pins with the others and puts back what a tier has lost and it still has.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection, Mapping

import structlog

from wasmkilnd.cache.host_store import HostStore
from wasmkilnd.cache.memory import MemoryTier
from wasmkilnd.cache.open_shared import SharedTier
from wasmkilnd.cache.pin_file import PinFile
from wasmkilnd.cache.pin_repair import repair
from wasmkilnd.cache.redis.pins import RedisPins
from wasmkilnd.errors import TierUnavailable
from wasmkilnd.model import Held, PinTimes, TierUsage
from wasmkilnd.pins import Pins
from wasmkilnd.ports import Measured, Room

LOOK_EVERY_S = 30.0
"""How long it takes at most until a daemon knows another one's pins."""

# Reading which values are there takes the server time in proportion to all of its keys.
_COUNT_EVERY = 20
_SETTLE_S = 1.0

log = structlog.get_logger("wasmkilnd.pins")


class TiersWithPins:
    """Implements PinnedTiers for one namespace. For one event loop."""

    def __init__(
        self, pins: Pins, memory: MemoryTier, host: HostStore, shared: SharedTier, file: PinFile
    ) -> None:
        """``memory``, ``host`` and ``shared`` ask ``pins`` what they keep."""
        self._pins = pins
        self._memory = memory
        self._host = host
        self._shared = shared
        self._file = file
        self.namespaces = 1
        """How many divide what all pins may take of the shared tier."""
        self._redis: dict[str, Held] = {}
        self._late = set[str]()  # What the shared tier has to keep, or to let go, when it answers.
        self._let_go = frozenset[str]()
        self._let_go_count = 0
        self._looks = 0
        self._logged = ""
        self._wake = asyncio.Event()
        self._looking: asyncio.Task[None] | None = None

    async def read(self) -> None:
        """Learn what the file says, before a tier makes room; never raise."""
        with contextlib.suppress(OSError):
            self._pins.learn(await asyncio.to_thread(self._file.read))
        # Of what was unpinned by a daemon that ended before the shared tier knew.
        self._late |= self._pins.times.keys()

    def start(self) -> None:
        """Look from now on."""
        self._looking = asyncio.create_task(self._look_for_ever())

    def look_soon(self) -> None:
        """Look as soon as possible."""
        self._wake.set()

    async def exchange(self) -> bool:
        """As PinnedTiers."""
        self._learn(await self._with_file())
        redis, answered = self._shared.pins, True
        if redis:
            try:
                found = await redis.exchange(self._pins.times)
            except TierUnavailable:
                answered = False
            else:
                if self._learn(found):
                    await self._with_file()
        return answered

    async def measure(self, modules: Collection[str]) -> Measured:
        """As PinnedTiers."""
        tiers: dict[str, Mapping[str, Held]] = {self._memory.name: self._memory.pinned(modules)}
        unreachable = set[str]()
        if self._host.is_on:
            tiers[self._host.name] = {
                module: Held(len(each), 0, sum(each.values()))
                for module, each in self._host.entries_of(modules).items()
            }
        if redis := self._shared.pins:
            try:
                tiers[redis.name] = await redis.measure(modules, keep=False)
            except TierUnavailable:
                unreachable.add(redis.name)
        return Measured(tiers, frozenset(unreachable))

    async def settle(self, module_sha256: str) -> None:
        """As PinnedTiers."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_SETTLE_S):
                await self._shared.write_behind.settled(module_sha256, at_once=True)

    async def rooms(self) -> dict[str, Room]:
        """As PinnedTiers."""
        found = {}
        for name, usage in (
            (self._memory.name, self._memory.usage()),
            (self._host.name, self._host.usage()),
        ):
            found[name] = Room(usage.pinned_bytes, usage.limit_bytes)
        if self._shared.pins:
            with contextlib.suppress(TierUnavailable):
                limit_bytes = await self._limit_bytes(self._shared.pins)
                found[self._shared.pins.name] = Room(self._redis_kept.bytes, limit_bytes)
        return found

    async def apply(self, modules: Collection[str]) -> bool:
        """As PinnedTiers."""
        self._memory.keep_pinned(modules)
        self._late |= {*modules}
        answered = await self._apply_late()
        await self._repair([each for each in modules if self._pins.is_pinned(each)])
        return answered

    def redis_usage(self) -> TierUsage:
        """Return what the shared tier keeps for pins in this namespace, and no more."""
        kept = self._redis_kept
        return TierUsage(
            pinned_entries=kept.artifacts + kept.modules,
            pinned_bytes=kept.bytes,
            let_go=self._let_go_count,
        )

    async def close(self) -> None:
        """Look no more; never raise."""
        if self._looking:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)

    @property
    def _redis_kept(self) -> Held:
        kept = (part for module, part in self._redis.items() if module not in self._let_go)
        return sum(kept, Held())

    async def _look_for_ever(self) -> None:
        while True:
            self._wake.clear()
            try:
                await self._look()
            except Exception:
                log.exception("a defect keeps pins from being looked after")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_EVERY_S):
                    await self._wake.wait()

    async def _look(self) -> None:
        answered = await self.exchange()
        pinned = [*self._pins.pinned]
        self._memory.keep_pinned(pinned)
        if answered and pinned and self._looks % _COUNT_EVERY == 0:
            self._late |= {*pinned}
        if answered:
            self._looks += 1
            await self._apply_late()
        await self._repair(pinned)

    async def _apply_late(self) -> bool:
        """Do in the shared tier what waits; return whether it answered."""
        redis, late = self._shared.pins, frozenset(self._late)
        if redis is None or not late:
            return True
        pinned = {module for module in late if self._pins.is_pinned(module)}
        try:
            if gone := late - pinned:
                await redis.release(gone)
            for module in gone:
                self._redis.pop(module, None)
            self._redis.update(await redis.measure(pinned - self._let_go, keep=True))
            self._redis.update(await redis.measure(pinned & self._let_go, keep=False))
            await self._stay_within_half(redis)
        except TierUnavailable:
            return False
        self._late -= late
        return True

    async def _stay_within_half(self, redis: RedisPins) -> None:
        """Let go what was pinned last, if all takes more than half of the shared tier."""
        limit_bytes = await self._limit_bytes(redis)
        room, too_many = limit_bytes // 2, set[str]()
        for module, _ in sorted(self._pins.pinned.items(), key=lambda each: each[1]):
            size_bytes = self._redis.get(module, Held()).bytes
            if limit_bytes and size_bytes > room:
                too_many.add(module)
            else:
                room -= size_bytes
        await redis.release(too_many)
        await redis.measure(self._let_go - too_many, keep=True)
        if new := too_many - self._let_go:
            self._let_go_count += len(new)
            log.warning(
                "pins take more than half of a tier: the latest may be evicted there",
                tier=self._shared.tier.name,
                modules=len(too_many),
                limit_bytes=limit_bytes,
            )
        self._let_go = frozenset(too_many)

    async def _limit_bytes(self, redis: RedisPins) -> int:
        """Return how much the shared tier may hold for this namespace; 0 for no limit."""
        return await redis.limit_bytes() // self.namespaces

    async def _repair(self, modules: Collection[str]) -> None:
        if self._host.is_on and (self._pins or self._host.usage().pinned_entries):
            self._host.count_pinned(self._pins.pinned)
        with contextlib.suppress(TierUnavailable):
            wanted = [each for each in modules if each not in self._let_go]
            self._late |= await repair(wanted, self._memory, self._host, self._shared)

    async def _with_file(self) -> Mapping[str, PinTimes]:
        try:
            found = await asyncio.to_thread(self._file.exchange, dict(self._pins.times))
        except OSError as failure:
            why = failure.strerror or str(failure)
            if why != self._logged:
                self._logged = why
                log.warning("cannot keep pins in the state directory", cause=why)
            return {}
        self._logged = ""
        return found

    def _learn(self, found: Mapping[str, PinTimes]) -> bool:
        """Learn pins; return whether any are new."""
        changes = self._pins.learn(found)
        changed = changes.pinned | changes.unpinned
        self._memory.keep_pinned(changed)
        self._late |= changed
        return bool(changed)
