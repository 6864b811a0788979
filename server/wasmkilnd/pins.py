"""The pins of one namespace: modules that no tier evicts to make room for others.

A daemon knows its pins in memory, keeps them in a file of the state directory and shares them in
Redis, and writes them again wherever they are missing. They are kept as lists that say of each
module when it was pinned and unpinned last. Whoever merges two lists takes the later of each time,
so nothing is lost however often a list is written, deleted or replaced by an older one.

Every LOOK_EVERY_S a daemon exchanges pins with the others, puts back what a tier has lost of pinned
modules and another tier still has, and keeps what is pinned within half of Redis; memory and the
host store keep within their halves themselves. No step looks at what is not pinned.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import structlog
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from wasmkilnd import errors
from wasmkilnd.admission import check_sha256
from wasmkilnd.cache import stamped
from wasmkilnd.cache.host_store import HostStore
from wasmkilnd.cache.memory import MemoryTier
from wasmkilnd.cache.redis_store import RedisStore
from wasmkilnd.errors import TierUnavailable
from wasmkilnd.model import (
    MAX_PINS,
    SHA256_HEX,
    Artifact,
    CacheKey,
    EvictScope,
    Held,
    Module,
    Pin,
    PinTimes,
    TierUsage,
)
from wasmkilnd.signing.sealer import Sealer
from wasmkilnd.whole_files import locked, namespace_file, write_whole

LOOK_EVERY_S = 30.0
"""How long it takes at most until a daemon knows another one's pins."""

# A list for each first digit of the digests: two daemons that pin at the same moment seldom write
# the same list. Where they do, each finds at its next look that its pin is missing.
_DIGITS = "0123456789abcdef"
_PURPOSE = b"wasmkiln pins"
_LIST_TTL_S = 400 * 24 * 3600
# More than 20,000 modules take: as many as there may be, and as many that were unpinned.
_MAX_FILE_BYTES = 4 * 1024**2
# Another daemon may have stored more of a pinned module: so often, all are counted again.
_COUNT_EVERY = 20
_SETTLE_S = 1.0
# In one look. The rest follows at the next one.
_MAX_REPAIR_BYTES = 64 * 1024**2

log = structlog.get_logger("wasmkilnd.pins")

# The year 10000 is where protobuf's times end.
_Ms = Annotated[int, Field(ge=0, lt=253_402_300_800_000)]
_Sha256 = Annotated[str, StringConstraints(pattern=f"^{SHA256_HEX.pattern}$")]


class _PinList(BaseModel):
    """A list as it is kept. What a later version adds to it does not count."""

    model_config = ConfigDict(strict=True, extra="ignore")

    pins: dict[_Sha256, Annotated[list[_Ms], Field(min_length=2)]]


@dataclass(frozen=True, slots=True)
class Pinned:
    """A pin, and whether Redis answered: if not, other daemons learn of it later."""

    pin: Pin
    reached_redis: bool


@dataclass(frozen=True, slots=True)
class Unpinned:
    """Whether there was a pin, and whether Redis answered, as of ``Pinned``."""

    removed: bool
    reached_redis: bool


class Pins:
    """What is pinned, and all that a daemon does for it. For one event loop.

    ``is_pinned`` may be called from any thread. An unpinned module is remembered, or a daemon that
    has not heard of it would pin it again; of those, the latest MAX_PINS.
    """

    def __init__(
        self,
        state_dir: Path,
        namespace: str,
        sealer: Sealer,
        *,
        memory: MemoryTier,
        host: HostStore | None,
        store: RedisStore | None,
        write_to_host: Callable[[Artifact], object],
        write_to_redis: Callable[[Artifact | Module], object],
        written_to_redis: Callable[[str], Awaitable[object]],
    ) -> None:
        """Pin in ``memory``, ``host`` and ``store``, which ask ``is_pinned`` what they keep.

        ``write_to_host`` and ``write_to_redis`` queue a write and return at once.
        ``written_to_redis`` returns once no write of the module with that digest waits.
        """
        self._file = namespace_file(state_dir / "pins", namespace)
        self._sealer = sealer
        self._memory = memory
        self._host = host
        self._store = store
        self._write_to_host = write_to_host
        self._write_to_redis = write_to_redis
        self._written_to_redis = written_to_redis
        self.namespaces = 1
        """How many divide what all pins may take of Redis."""
        self._times: dict[str, PinTimes] = {}
        self._pinned: dict[str, int] = {}  # Since when, in milliseconds.
        self._in_redis: dict[str, Held] = {}
        self._late = set[str]()  # What Redis has to keep, or to let expire, when it answers.
        self._let_go = frozenset[str]()
        self._let_go_count = 0
        self._file_trouble = ""
        # Two calls at a time could together take more than half of a tier.
        self._one_change = asyncio.Lock()
        # A look that keeps a module must not overtake a call that unpins it.
        self._one_apply = asyncio.Lock()
        self._wake = asyncio.Event()
        self._looking: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return len(self._pinned)

    def is_pinned(self, module_sha256: str) -> bool:
        """Return whether a module is pinned."""
        return module_sha256 in self._pinned

    async def read(self) -> None:
        """Learn what the file says, before a tier makes room; never raise."""
        await self._exchange_with_file()
        # Of what was unpinned by a daemon that ended before Redis knew.
        self._late |= self._times.keys()

    def start(self) -> None:
        """Look from now on."""
        self._looking = asyncio.create_task(self._look_for_ever())

    def look_soon(self) -> None:
        """Look as soon as possible."""
        self._wake.set()

    async def close(self) -> None:
        """Look no more; never raise."""
        if self._looking:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)

    async def pin(self, module_sha256: str) -> Pinned:
        """Pin a module and all of its artifacts, now and later.

        Raises INVALID_REQUEST, MODULE_NOT_LOADED and PINS_FULL.
        """
        check_sha256(module_sha256, "module_sha256")
        async with self._one_change:
            reached = await self._exchange()
            if not self.is_pinned(module_sha256):
                await self._refuse_if_there_is_no_room(module_sha256)
                known = self._times.get(module_sha256, PinTimes())
                now_ms = max(int(time.time() * 1000), known.unpinned_ms + 1)
                self._learn({module_sha256: known._replace(pinned_ms=now_ms)})
                reached &= await self._exchange(module_sha256[0])
            reached &= await self._apply([module_sha256])
        tiers = await self._measure([module_sha256])
        return Pinned(self._shown(module_sha256, tiers), reached)

    async def unpin(self, module_sha256: str) -> Unpinned:
        """Unpin a module. Raises INVALID_REQUEST."""
        check_sha256(module_sha256, "module_sha256")
        async with self._one_change:
            reached = await self._exchange()
            removed = self.is_pinned(module_sha256)
            if removed:
                known = self._times[module_sha256]
                now_ms = max(int(time.time() * 1000), known.pinned_ms)
                self._learn({module_sha256: known._replace(unpinned_ms=now_ms)})
                reached &= await self._exchange(module_sha256[0])
                reached &= await self._apply([module_sha256])
            return Unpinned(removed, reached)

    async def listed(self) -> list[Pin]:
        """Return all pins, by digest, and what the tiers have of each."""
        await self._exchange()
        modules = sorted(self._pinned)[:MAX_PINS]
        tiers = await self._measure(modules)
        return [self._shown(module, tiers) for module in modules if self.is_pinned(module)]

    async def sparing(self, scope: EvictScope) -> EvictScope:
        """Return ``scope`` without what is pinned. Raises MODULE_PINNED for a pinned module."""
        await self._exchange()
        if self.is_pinned(scope.module_sha256):
            raise errors.module_pinned(scope.module_sha256)
        return replace(scope, spares=self.is_pinned) if self._pinned else scope

    def redis_usage(self) -> TierUsage:
        """Return what Redis keeps for pins in this namespace, and no more."""
        sizes = (held for module, held in self._in_redis.items() if module not in self._let_go)
        kept = sum(sizes, Held())
        return TierUsage(
            pinned_entries=kept.artifacts + kept.modules,
            pinned_bytes=kept.bytes,
            let_go=self._let_go_count,
        )

    async def _refuse_if_there_is_no_room(self, module_sha256: str) -> None:
        if len(self) >= MAX_PINS:
            raise errors.too_many_pins(MAX_PINS)
        with contextlib.suppress(TimeoutError):  # What is on its way to Redis counts there.
            async with asyncio.timeout(_SETTLE_S):
                await self._written_to_redis(module_sha256)
        tiers = await self._measure([module_sha256])
        held = [tier.get(module_sha256, Held()) for tier in tiers.values()]
        if not any(each.artifacts or each.modules for each in held):
            raise errors.nothing_to_pin(module_sha256)
        rooms = {self._memory.name: self._memory.usage()}
        if self._host:
            rooms[self._host.name] = self._host.usage()
        if self._store:
            with contextlib.suppress(TierUnavailable):
                limit_bytes = await self._redis_limit_bytes(self._store)
                rooms["redis"] = replace(self.redis_usage(), limit_bytes=limit_bytes)
        for tier, room in rooms.items():
            size_bytes = room.pinned_bytes + tiers.get(tier, {}).get(module_sha256, Held()).bytes
            if room.limit_bytes and 2 * size_bytes > room.limit_bytes:
                raise errors.pins_full(tier, size_bytes, room.limit_bytes)

    def _shown(self, module_sha256: str, tiers: Mapping[str, Mapping[str, Held]]) -> Pin:
        held = {name: tier[module_sha256] for name, tier in tiers.items() if module_sha256 in tier}
        return Pin(module_sha256, self._pinned.get(module_sha256, 0), held)

    async def _measure(self, modules: Collection[str]) -> dict[str, Mapping[str, Held]]:
        """Return what each tier that answers has of each module."""
        tiers: dict[str, Mapping[str, Held]] = {self._memory.name: self._memory.pinned(modules)}
        if self._host:
            tiers[self._host.name] = {
                module: Held(len(entries), 0, sum(entries.values()))
                for module, entries in self._host.entries_of(modules).items()
            }
        if self._store:
            with contextlib.suppress(TierUnavailable):
                tiers["redis"] = await self._store.measure(modules, keep=False)
        return tiers

    # Each look, and what it does in all tiers.

    async def _look_for_ever(self) -> None:
        looks = 0
        while True:
            self._wake.clear()
            try:
                await self._exchange()
                if await self._apply(list(self._pinned), count=looks % _COUNT_EVERY == 0):
                    looks += 1
            except Exception:
                log.exception("a defect keeps pins from being looked after")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_EVERY_S):
                    await self._wake.wait()

    async def _apply(self, modules: Collection[str], *, count: bool = True) -> bool:
        """Keep what is there of ``modules``, or let it go, as they are pinned or not by now.

        Return whether Redis did it too; if not, a later look does it. Without ``count``, Redis
        looks only at what it lacks of them.
        """
        self._memory.keep_pinned(modules)
        self._late |= {*modules} if count else set()
        answered = await self._apply_in_redis()
        await self._repair([each for each in modules if self.is_pinned(each)])
        return answered

    async def _apply_in_redis(self) -> bool:
        """Do in Redis what is late; return whether it answered."""
        async with self._one_apply:
            late, self._late = self._late, set[str]()
            if self._store is None or not late:
                return True
            try:
                await self._keep_or_release(self._store, late)
            except BaseException as failure:
                self._late |= late
                if isinstance(failure, TierUnavailable):
                    return False
                raise
            return True

    async def _keep_or_release(self, redis: RedisStore, modules: Collection[str]) -> None:
        pinned = {module for module in modules if self.is_pinned(module)}
        if gone := {*modules} - pinned:
            await redis.release(gone)
            for module in gone:
                self._in_redis.pop(module, None)
        for some, keep in ((pinned - self._let_go, True), (pinned & self._let_go, False)):
            if some:
                self._in_redis |= await redis.measure(some, keep=keep)
        # Let go what was pinned last, if all takes more than half of the server.
        limit_bytes = await self._redis_limit_bytes(redis)
        room, too_many = limit_bytes // 2, set[str]()
        for module in sorted(self._pinned, key=self._pinned.__getitem__):
            size_bytes = self._in_redis.get(module, Held()).bytes
            if limit_bytes and size_bytes > room:
                too_many.add(module)
            else:
                room -= size_bytes
        if too_many:
            await redis.release(too_many)
        if back := (self._let_go & self._pinned.keys()) - too_many:
            await redis.measure(back, keep=True)
        if new := too_many - self._let_go:
            self._let_go_count += len(new)
            log.warning(
                "pins take more than half of a tier: the latest may be evicted there",
                tier="redis",
                modules=len(too_many),
                limit_bytes=limit_bytes,
            )
        self._let_go = frozenset(too_many)

    async def _redis_limit_bytes(self, redis: RedisStore) -> int:
        """Return how much Redis may hold for this namespace; 0 for no limit."""
        return (await redis.link.usage()).limit_bytes // self.namespaces

    async def _repair(self, modules: Collection[str]) -> None:
        """Write to the host store and to Redis what they lack of ``modules``; never raise."""
        at_hand = {
            each.key: each for module in modules for each in self._memory.artifacts_of(module)
        }
        on_disk = self._repair_host(modules, at_hand.values())
        wanted = [module for module in modules if module not in self._let_go]
        keys = [key for key in {*at_hand, *on_disk} if key.module_sha256 not in self._let_go]
        if self._store is None or not wanted:
            return
        with contextlib.suppress(TierUnavailable):
            # Modules first: what has to be left out can be compiled from them.
            lacking = await self._store.lacking([*wanted, *keys])
            self._late |= lacking.expiring
            left_bytes = _MAX_REPAIR_BYTES
            for key in lacking.missing:
                if left_bytes <= 0:
                    break
                if isinstance(key, str):
                    if module := self._memory.module_of(key):
                        left_bytes -= len(module.wasm)
                        self._write_to_redis(module)
                elif artifact := at_hand.get(key) or await self._from_disk(key):
                    left_bytes -= artifact.size_bytes
                    self._write_to_redis(artifact)

    def _repair_host(self, modules: Collection[str], at_hand: Iterable[Artifact]) -> set[CacheKey]:
        """Write what the host store lacks; return what it has."""
        if self._host is None:
            return set()
        if self._pinned or self._host.usage().pinned_entries:
            self._host.count_pinned(self._pinned)
        on_disk = {key for entries in self._host.entries_of(modules).values() for key in entries}
        for artifact in at_hand:
            if artifact.key not in on_disk and self._host.has_room_for_pinned(artifact):
                self._write_to_host(artifact)
        return on_disk

    async def _from_disk(self, key: CacheKey) -> Artifact | None:
        with contextlib.suppress(TierUnavailable):
            return await self._host.get(key) if self._host else None
        return None

    # The lists: what this daemon knows, the file, and Redis.

    async def _exchange(self, digits: str = _DIGITS) -> bool:
        """Learn other daemons' pins, and tell them this one's; return whether Redis answered.

        A list without a valid stamp, or that somebody deleted, is written again. Without a Redis,
        return True: there is nobody to tell.
        """
        await self._exchange_with_file()
        if self._store is None:
            return True
        link, changed = self._store.link, False
        names = [f"{self._store.prefix}pins:{digit}".encode() for digit in digits]
        try:
            records = await stamped.fetch(link, names)
            for digit, name, record in zip(digits, names, records, strict=True):
                await asyncio.sleep(0)  # 10,000 pins at once would make every caller wait.
                theirs = _parse(stamped.text_of(_PURPOSE, name, record, self._sealer)) or {}
                changed |= self._learn(theirs)
                all_known = {each: at for each, at in self._times.items() if each[0] == digit}
                if all_known != theirs:
                    record = stamped.written(_PURPOSE, name, _text(all_known), self._sealer)
                    await stamped.store(link, name, record, _LIST_TTL_S)
        except TierUnavailable:
            return False
        if changed:
            await self._exchange_with_file()
        return True

    async def _exchange_with_file(self) -> None:
        try:
            self._learn(await asyncio.to_thread(_exchange_file, self._file, self._times))
            self._file_trouble = ""
        except OSError as failure:
            why = failure.strerror or str(failure)
            if why != self._file_trouble:
                log.warning("cannot keep pins in the state directory", cause=why)
            self._file_trouble = why

    def _learn(self, said: Mapping[str, PinTimes]) -> bool:
        """Add what others know; return whether that pins or unpins anything here."""
        news = {module: at for module, at in said.items() if self._times.get(module) != at}
        if not news:
            return False
        before, self._times = self._pinned, _merge(self._times, news)
        self._pinned = {each: at.pinned_ms for each, at in self._times.items() if at.is_pinned}
        changed = before.keys() ^ self._pinned.keys()
        self._memory.keep_pinned(changed)
        self._late |= changed
        return bool(changed)


def pinned_in(state_dir: Path, namespace: str) -> set[str]:
    """Return what is pinned by the file in the state directory. Raise OSError."""
    found = _read_file(namespace_file(state_dir / "pins", namespace))
    return {module for module, times in found.items() if times.is_pinned}


def _merge(one: Mapping[str, PinTimes], other: Mapping[str, PinTimes]) -> dict[str, PinTimes]:
    """Return what both know; of what is unpinned, the latest MAX_PINS."""
    both = {
        module: one.get(module, PinTimes()).merged(other.get(module, PinTimes()))
        for module in {**one, **other}
    }
    unpinned = [module for module, at in both.items() if not at.is_pinned]
    for module in sorted(unpinned, key=lambda each: both[each].unpinned_ms)[:-MAX_PINS]:
        del both[module]
    return both


def _text(times: Mapping[str, PinTimes]) -> bytes:
    pins = {module: [*each] for module, each in sorted(times.items())}
    return json.dumps({"pins": pins}, separators=(",", ":")).encode()


def _parse(text: bytes) -> dict[str, PinTimes] | None:
    """Return what a list says; None if it is malformed."""
    try:
        said = _PinList.model_validate_json(text)
    except ValidationError:
        return None
    return {module: PinTimes(each[0], each[1]) for module, each in said.pins.items()}


def _read_file(path: Path) -> dict[str, PinTimes]:
    """Return what the file says; nothing if there is none, or if it is damaged. Raises OSError."""
    try:
        with path.open("rb") as file:
            found = _parse(file.read(_MAX_FILE_BYTES))
    except FileNotFoundError:
        return {}
    if found is None:
        log.error("the list of pins is damaged: nothing in it is pinned", file=str(path))
    return found or {}


def _exchange_file(path: Path, known: Mapping[str, PinTimes]) -> dict[str, PinTimes]:
    """Return what the file says, and add to it what is ``known`` and missing there.

    Raises OSError. Daemons with the same state directory share the file.
    """
    found = _read_file(path)
    if any(found.get(module) != at for module, at in known.items()):
        path.parent.mkdir(mode=0o700, exist_ok=True)
        with locked(path.parent):
            found = _read_file(path)
            write_whole(path, _text(_merge(found, known)))
    return found
