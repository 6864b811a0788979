"""Pins in the shared tier: the lists that daemons share, and values that never expire."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from wasmkilnd.cache.redis.guarded import GuardedRedis, as_flag, read_strings
from wasmkilnd.cache.value.names import KeyNames
from wasmkilnd.cache.value.pieces import PARTS_OUTLIVE_S
from wasmkilnd.cache.value.pins import MAX_LIST_BYTES, merge_lists, read_record, write_record
from wasmkilnd.model import CacheKey, Held, PinTimes
from wasmkilnd.signing.sealer import Sealer

_TTL_S = 400 * 24 * 3600
_DIGITS = "0123456789abcdef"
_BATCH = 500
# For fewer modules, the server looks for each by itself.
_MANY = 4
_NO_TTL, _GONE = -1, -2


@dataclass(frozen=True, slots=True)
class Lacking:
    """What the shared tier lacks of pinned modules."""

    missing: list[CacheKey | str] = field(default_factory=list)
    """Artifacts, and digests of modules whose own bytes are missing, in the order of the look."""
    expiring: set[str] = field(default_factory=set)
    """Digests of modules of which a value expires: ``measure`` has to keep them."""


class RedisPins:
    """The pins of one namespace on a server that daemons share. Raises TierUnavailable.

    A list for each first digit of the digests: 10,000 pins take a megabyte in all, and two
    daemons that pin at the same moment seldom write the same list. Where they do, each finds out
    at its next look that its pin is missing, and writes it again.
    """

    name = "redis"

    def __init__(self, link: GuardedRedis, names: KeyNames, sealer: Sealer, ttl_s: int) -> None:
        """``ttl_s`` is the time to live of values that are not pinned."""
        self._link = link
        self._names = names
        self._sealer = sealer
        self._ttl_s = ttl_s

    async def exchange(self, known: Mapping[str, PinTimes]) -> dict[str, PinTimes]:
        """Return what the lists say, and add to them what is ``known`` and missing there.

        A list without a valid stamp, or that somebody deleted, is written again.
        """
        by_digit = {self._names.pins(digit): digit for digit in _DIGITS}
        records, others = await read_strings(list(by_digit), self._records)
        if others:
            await self._link.delete(sorted(others))
        found: dict[str, PinTimes] = {}
        for name, digit in by_digit.items():
            await asyncio.sleep(0)  # 10,000 pins at once would make every caller wait.
            mine = {module: times for module, times in known.items() if module[0] == digit}
            read = read_record(name, records.get(name, b""), self._sealer.check_stamp)
            theirs = read or {}
            merged = merge_lists(mine, theirs)
            if merged and merged != theirs:
                record = write_record(name, merged, self._sealer.stamp)
                if len(record) <= MAX_LIST_BYTES:
                    await self._link.set(name, record, _TTL_S)
            found |= theirs
        return found

    async def measure(self, modules: Collection[str], *, keep: bool) -> dict[str, Held]:
        """Return what is there of each of ``modules``; with ``keep``, let none of it expire."""
        found = dict.fromkeys(modules, Held())
        async for names in self._values_of(modules):
            if keep:
                ages = await self._link.ages(names)
                expiring = [name for name, age in zip(names, ages, strict=True) if age >= 0]
                await self._link.run([(as_flag, ("PERSIST", name)) for name in expiring])
            sizes, _ = await read_strings(names, self._link.lengths)
            for name in names:
                value = self._names.value_at(name)
                found[self._names.module_of(name)] += Held(
                    int(value is not None and value.artifact is not None),
                    int(value is not None and value.artifact is None),
                    sizes.get(name, 0),
                )
        return found

    async def limit_bytes(self) -> int:
        """Return how much the server may hold; 0 for no limit."""
        return (await self._link.usage()).limit_bytes

    async def release(self, modules: Collection[str]) -> None:
        """Let those values of ``modules`` that are kept expire, as if they were stored now."""
        async for names in self._values_of(modules):
            ages = await self._link.ages(names)
            kept = [name for name, age in zip(names, ages, strict=True) if age == _NO_TTL]
            values = [name for name in kept if self._names.value_at(name)]
            parts = [name for name in kept if not self._names.value_at(name)]
            await self._link.prolong(parts, self._ttl_s + PARTS_OUTLIVE_S)
            await self._link.prolong(values, self._ttl_s)

    async def look(self, wanted: Sequence[CacheKey | str]) -> Lacking:
        """Return what is missing of ``wanted``, artifacts and modules, and what of it expires."""
        found = Lacking()
        for start in range(0, len(wanted), _BATCH):
            some = wanted[start : start + _BATCH]
            ages = await self._link.ages([self._name_of(key) for key in some])
            for key, age in zip(some, ages, strict=True):
                if age == _GONE:
                    found.missing.append(key)
                elif age != _NO_TTL:
                    found.expiring.add(key if isinstance(key, str) else key.module_sha256)
        return found

    def _name_of(self, key: CacheKey | str) -> bytes:
        return self._names.module(key) if isinstance(key, str) else self._names.artifact(key)

    async def _values_of(self, modules: Collection[str]) -> AsyncIterator[list[bytes]]:
        """Return the names of the modules, their artifacts and all pieces, in batches."""
        if not modules:
            return
        patterns = [self._names.all_pattern()]
        if len(modules) < _MANY:
            patterns = [
                pattern
                for module in modules
                for pattern in (
                    self._names.modules_pattern(module),
                    self._names.artifacts_pattern(module),
                    self._names.parts_pattern(module),
                )
            ]
        seen = set[int]()  # A scan may return a key twice.
        for pattern in patterns:
            async for page in self._link.scan(pattern):
                chosen = [
                    name
                    for name in dict.fromkeys(page)
                    if self._names.module_of(name) in modules
                    and self._names.is_value(name)
                    and hash(name) not in seen
                ]
                seen.update(map(hash, chosen))
                for start in range(0, len(chosen), _BATCH):
                    yield chosen[start : start + _BATCH]

    async def _records(self, names: Sequence[bytes]) -> list[bytes]:
        return await self._link.beginnings(names, [MAX_LIST_BYTES + 1] * len(names))
