"""The pins of one namespace: modules that no tier evicts to make room for others.

A daemon knows its pins in memory, keeps them in a file of the state directory and shares them in
Redis, and writes them again wherever they are missing. They are kept as lists that say of each
module when it was pinned and unpinned last. Whoever merges two lists takes the later of each time,
so nothing is lost however often a list is written, deleted or replaced by an older one.

At each look, every 30 s, a daemon exchanges pins with the others, puts back what a tier has lost of
pinned modules and another tier still has, and keeps what is pinned within half of Redis; memory and
the host store keep within their halves themselves. No step looks at what is not pinned.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import structlog
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from wasmkilnd import errors, model
from wasmkilnd.cache.cache import Cache
from wasmkilnd.cache.host_store import HostStore
from wasmkilnd.cache.memory import MemoryTier
from wasmkilnd.cache.redis_store import RedisStore
from wasmkilnd.files.threads import on_disk
from wasmkilnd.files.whole_files import locked, write_whole
from wasmkilnd.model import MAX_PINS, Held, PinTimes
from wasmkilnd.redis import records
from wasmkilnd.signing.sealer import Sealer

_PURPOSE = b"wasmkiln pins"
_LIST_TTL_S = 400 * 24 * 3600
# In one look. The rest follows at the next one.
_MAX_REPAIR_BYTES = 64 * 1024**2

log = structlog.get_logger("wasmkilnd.pins")

# The year 10000 is where protobuf's times end.
_Ms = Annotated[int, Field(ge=0, lt=253_402_300_800_000)]
_Sha256 = Annotated[str, StringConstraints(pattern=f"^{model.SHA256_HEX.pattern}$")]


class _PinList(BaseModel):
    """A list as it is kept. What a later version adds to it does not count."""

    model_config = ConfigDict(strict=True, extra="ignore")

    pins: dict[_Sha256, Annotated[list[_Ms], Field(min_length=2)]]


class PinFile:
    """The file that keeps the pins of a namespace, to which daemons add in turns. It blocks."""

    def __init__(self, state_dir: Path, namespace: str) -> None:
        # A namespace may have the name "default", and is another one.
        self._path = state_dir / "pins" / (f"ns-{namespace}.json" if namespace else "default.json")
        self._trouble = ""

    def read(self) -> bytes:
        """Return what is in the file; nothing if there is none. Raises OSError."""
        with contextlib.suppress(FileNotFoundError):
            return self._path.read_bytes()
        return b""

    def add(self, added: Callable[[bytes], bytes]) -> bytes:
        """Return what is in the file, and write what ``added`` makes of it, if that differs.

        If that fails, return nothing, and log each cause once.
        """
        found, trouble = b"", ""
        try:
            found = self.read()
            if added(found) != found:
                self._path.parent.mkdir(mode=0o700, exist_ok=True)
                with locked(self._path.parent):
                    write_whole(self._path, added(self.read()))
        except OSError as failure:
            trouble = failure.strerror or str(failure)
            if trouble != self._trouble:
                log.warning("cannot keep pins in the state directory", cause=trouble)
        self._trouble = trouble
        return found


@dataclass(eq=False, repr=False)
class Pins:
    """What is pinned in the tiers of ``cache``, and all that a daemon does for it.

    For one event loop; but ``is_pinned``, by which the tiers know what to keep, may be called from
    any thread. An unpinned module is remembered, or a daemon that has not heard of it would pin it
    again; of those, the latest MAX_PINS.

    - ``namespaces``: returns how many divide what all pins may take of Redis.
    - ``redis_usage``: what Redis keeps for pins in this namespace, and its limit; no more.
    """

    file: PinFile
    sealer: Sealer
    cache: Cache
    memory: MemoryTier
    host: HostStore | None
    redis: RedisStore | None
    namespaces: Callable[[], int] = lambda: 1
    redis_usage: model.TierUsage = field(default_factory=model.TierUsage)
    _times: dict[str, PinTimes] = field(default_factory=dict)
    _pinned: dict[str, int] = field(default_factory=dict)  # Since when, in milliseconds.
    _in_redis: dict[str, Held] = field(default_factory=dict)  # What was there of each pinned one.
    _let_go: set[str] = field(default_factory=set)  # Pinned modules that Redis does not keep.
    _unpinned: set[str] = field(default_factory=set)  # What Redis may still keep.
    # Two calls at a time could together take more than half of a tier, and a look that keeps a
    # module must not overtake a call that unpins it.
    _one_at_a_time: asyncio.Lock = field(default_factory=asyncio.Lock)

    def __len__(self) -> int:
        return len(self._pinned)

    def is_pinned(self, module_sha256: str) -> bool:
        """Return whether a module is pinned."""
        return module_sha256 in self._pinned

    async def read(self) -> None:
        """Learn what the file says, before a tier makes room; never raise."""
        await self._exchange_with_file()
        # A daemon may have ended before Redis knew that it unpinned a module.
        self._unpinned |= self._times.keys() - self._pinned.keys()

    async def look(self) -> None:
        """Exchange pins with other daemons, and put back what a tier has lost; never raise."""
        async with self._one_at_a_time:
            await self._exchange(is_look=True)
        await self._repair()

    async def pin(self, module_sha256: str) -> tuple[model.Pin, bool]:
        """Pin a module and all of its artifacts, now and later.

        Return also whether Redis answered: if not, other daemons learn of it later. Raises
        MODULE_NOT_LOADED and PINS_FULL.
        """
        async with self._one_at_a_time:
            await self._exchange()
            if not self.is_pinned(module_sha256):
                await self._refuse_if_there_is_no_room(module_sha256)
            # Another daemon may have unpinned it, and not told this one yet: this call is later.
            self._learn({module_sha256: PinTimes(pinned_ms=self._now_ms(module_sha256))})
            reached_redis = await self._exchange()
            return (await self._shown([module_sha256]))[0], reached_redis

    async def unpin(self, module_sha256: str) -> tuple[bool, bool]:
        """Unpin a module; return whether it was pinned, and whether Redis answered, as ``pin``."""
        async with self._one_at_a_time:
            await self._exchange()
            removed = self.is_pinned(module_sha256)
            # Another daemon may have pinned it, and not told this one yet: this call is later.
            self._learn({module_sha256: PinTimes(unpinned_ms=self._now_ms(module_sha256))})
            return removed, await self._exchange()

    async def listed(self) -> list[model.Pin]:
        """Return all pins, by digest, and what the tiers have of each."""
        async with self._one_at_a_time:
            await self._exchange()
            return await self._shown(sorted(self._pinned)[:MAX_PINS])

    async def sparing(self, scope: model.EvictScope) -> model.EvictScope:
        """Return ``scope`` without what is pinned. Raises MODULE_PINNED for a pinned module."""
        async with self._one_at_a_time:
            await self._exchange()
        if self.is_pinned(scope.module_sha256):
            raise errors.module_pinned(scope.module_sha256)
        return replace(scope, spares=self.is_pinned) if self._pinned else scope

    def _now_ms(self, module_sha256: str) -> int:
        """Return the time, or a later one: the change that is made now must count."""
        return max(int(time.time() * 1000), 1 + max(self._times.get(module_sha256, PinTimes())))

    async def _refuse_if_there_is_no_room(self, module_sha256: str) -> None:
        if len(self) >= MAX_PINS:
            raise errors.too_many_pins(MAX_PINS)
        [pin] = await self._shown([module_sha256])
        if all(held == Held() for held in pin.tiers.values()):
            # Nobody lists the object store: what only it has, memory has from here on.
            if not await self.cache.get_module(module_sha256, self.cache.wait_budget()):
                raise errors.nothing_to_pin(module_sha256)
            [pin] = await self._shown([module_sha256])
        usages = {tier.name: tier.usage() for tier in (self.memory, self.host) if tier}
        for name, held in pin.tiers.items():
            usage = usages.get(name, self.redis_usage)
            size_bytes = usage.pinned_bytes + held.bytes
            if 0 < usage.limit_bytes < 2 * size_bytes:
                raise errors.pins_full(name, size_bytes, usage.limit_bytes)

    async def _shown(self, modules: Sequence[str]) -> list[model.Pin]:
        """Return what each tier that answers has of each module."""
        tiers: dict[str, Mapping[str, Held]] = {self.memory.name: self.memory.pinned(modules)}
        if self.host:
            tiers[self.host.name] = found = dict.fromkeys(modules, Held())
            entries = await asyncio.to_thread(self.host.entries_of, modules)
            for key, size_bytes in entries.items():
                found[key.module_sha256] += Held(1, 0, size_bytes)
        if self.redis:
            with contextlib.suppress(errors.TierUnavailable):
                tiers[self.redis.name] = await self.redis.measure(modules, keep=False)
        held = {module: {name: tier[module] for name, tier in tiers.items()} for module in modules}
        return [model.Pin(each, self._pinned.get(each, 0), held[each]) for each in modules]

    async def _exchange(self, *, is_look: bool = False) -> bool:
        """Learn other daemons' pins, tell them this one's, and keep what is pinned in Redis.

        Return whether Redis answered; if not, a later look does it. Without a Redis, return True:
        there is nobody to tell.
        """
        try:
            if self.redis:
                await self._exchange_with_redis(self.redis)
                await self._keep_in_redis(self.redis, is_look=is_look)
        except errors.TierUnavailable:
            return False
        finally:
            await self._exchange_with_file()
            if self.host:
                await self.host.count_pinned(self._pinned)
        return True

    async def _exchange_with_redis(self, redis: RedisStore) -> None:
        """Exchange a list for each first digit of the digests.

        So two daemons that pin at the same moment seldom write the same list. Where they do, each
        finds at its next look that its pin is missing. Write a list again that has no valid stamp.
        """
        names = {f"{digit:x}": f"{redis.prefix}pins:{digit:x}".encode() for digit in range(16)}
        found = await records.fetch(redis.link, [*names.values()])
        for (digit, name), record in zip(names.items(), found, strict=True):
            await asyncio.sleep(0)  # 10,000 pins at once would make every caller wait.
            theirs = _parse(records.text_of(_PURPOSE, name, record, self.sealer))
            self._learn(theirs)
            known = {each: at for each, at in self._times.items() if each[0] == digit}
            if known != theirs:
                record = records.written(_PURPOSE, name, _text(known), self.sealer)
                await records.store(redis.link, name, record, _LIST_TTL_S)

    async def _exchange_with_file(self) -> None:
        text = await on_disk(self.file.add, self._added)
        if (said := _parse(text)) or not text:
            self._learn(said)
        else:
            log.error("the list of pins is damaged: nothing in it is pinned")

    def _added(self, text: bytes) -> bytes:
        """Return a list with what this daemon knows added to it."""
        said, known = _parse(text), self._times
        return text if known.items() <= said.items() else _text(_merge(said, known))

    def _learn(self, said: Mapping[str, PinTimes]) -> None:
        """Add what others know to what this daemon knows."""
        if said.items() <= self._times.items():
            return
        before, self._times = self._pinned, _merge(self._times, said)
        self._pinned = {each: at.pinned_ms for each, at in self._times.items() if at.is_pinned}
        changed = before.keys() ^ self._pinned.keys()
        self._unpinned |= changed - self._pinned.keys()
        self.memory.keep_pinned(changed)

    async def _keep_in_redis(self, redis: RedisStore, *, is_look: bool) -> None:
        """Keep what is there of new pins, at a look of all, and let go what was unpinned.

        Keep no more than half of the server: first what was pinned first.
        """
        modules = {*self._pinned} - (set() if is_look else self._in_redis.keys())
        limit_bytes = (await redis.link.usage()).limit_bytes // self.namespaces()
        sizes = self._in_redis | await redis.measure(modules, keep=False)
        in_order = sorted(self._pinned, key=self._pinned.__getitem__)
        self._in_redis = {module: sizes.get(module, Held()) for module in in_order}
        kept, too_many = Held(), set[str]()
        for module, held in self._in_redis.items():
            if 0 < limit_bytes < 2 * (kept.bytes + held.bytes):
                too_many.add(module)
            else:
                kept += held
        changed = {*modules, *self._unpinned, *(too_many ^ self._let_go)}
        gone = changed - (self._in_redis.keys() - too_many)
        await redis.release(gone)
        await redis.measure(changed - gone, keep=True)
        self.redis_usage = model.TierUsage(
            limit_bytes=limit_bytes,
            pinned_entries=kept.artifacts + kept.modules,
            pinned_bytes=kept.bytes,
            let_go=self.redis_usage.let_go + len(too_many - self._let_go),
        )
        self._let_go, self._unpinned = too_many, self._unpinned - gone

    async def _repair(self) -> None:
        """Write to the host store and to Redis what they lack of pinned modules."""
        self.memory.keep_pinned(self._pinned)
        artifacts = [each for module in self._pinned for each in self.memory.artifacts_of(module)]
        at_hand, on_disk = {each.key: each for each in artifacts}, set[model.CacheKey]()
        if self.host:
            on_disk = set(await asyncio.to_thread(self.host.entries_of, self._pinned))
            for artifact in artifacts:
                if artifact.key not in on_disk and self.host.has_room_for_pinned(artifact):
                    self.cache.write_to_host(artifact)
        if self.redis is None:
            return
        kept, left_bytes = self._in_redis.keys() - self._let_go, _MAX_REPAIR_BYTES
        # First modules, from which what has to be left out can be compiled, and what is at hand.
        keys = [*at_hand, *(on_disk - at_hand.keys())]
        lost: list[model.CacheKey | str] = [m for m in kept if not self._in_redis[m].modules]
        with contextlib.suppress(errors.TierUnavailable):
            held = await self.redis.held(keys)
            lost += [each for each in keys if each not in held and each.module_sha256 in kept]
            for key in lost:
                if left_bytes <= 0:
                    break
                found = self.memory.peek(key)
                if found is None and self.host and not isinstance(key, str):
                    found = await self.host.get(key)
                if found:
                    left_bytes -= found.size_bytes
                    self.cache.redis_writes.add(found)


def pinned_in(state_dir: Path, namespace: str) -> set[str]:
    """Return what is pinned by the file in the state directory. Raise OSError."""
    found = _parse(PinFile(state_dir, namespace).read())
    return {module for module, times in found.items() if times.is_pinned}


def _merge(one: Mapping[str, PinTimes], other: Mapping[str, PinTimes]) -> dict[str, PinTimes]:
    """Return what both know; of what is unpinned, MAX_PINS: what was pinned, and the latest."""
    never = PinTimes()
    pairs = {each: (one.get(each, never), other.get(each, never)) for each in {**one, **other}}
    both = {each: PinTimes(*map(max, *pair)) for each, pair in pairs.items()}
    # Whoever unpins what was never pinned pushes out nothing that was.
    unpinned = [
        (at.pinned_ms > 0, at.unpinned_ms, module)
        for module, at in both.items()
        if not at.is_pinned
    ]
    for *_, module in sorted(unpinned)[:-MAX_PINS]:
        del both[module]
    return both


def _text(times: Mapping[str, PinTimes]) -> bytes:
    return json.dumps({"pins": dict(sorted(times.items()))}, separators=(",", ":")).encode()


def _parse(text: bytes) -> dict[str, PinTimes]:
    """Return what a list says; nothing if it is malformed, or empty."""
    try:
        said = _PinList.model_validate_json(text)
    except ValidationError:
        return {}
    return {module: PinTimes(*each[:2]) for module, each in said.pins.items()}
