"""What there is in a shared tier beside values: their pieces, orphans among them, and the rest."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from wasmkilnd.cache.redis.guarded import GuardedRedis, read_strings
from wasmkilnd.cache.redis.scan import look_at_heads
from wasmkilnd.cache.value import format as value_format
from wasmkilnd.cache.value.names import KeyNames, ValueKey
from wasmkilnd.cache.value.pieces import Body
from wasmkilnd.cache.value.rejected import Cause, ValueRejected

# A longer head may be anybody's, and takes its time and memory to parse.
_LONG_HEAD_BYTES = 64 * 1024
_GONE = -2

FOR_EVER = -1
"""What is left of the life of what has no end."""


@dataclass(slots=True)
class Rest:
    """What there is beside values."""

    parts: int = 0
    part_bytes: int = 0
    orphans: int = 0
    """Those of the pieces that no value mentions."""
    orphan_bytes: int = 0
    leases: int = 0
    strikes: int = 0
    marks: int = 0
    """What Evicts and releases left."""
    other_format: int = 0
    """Modules and pieces of modules that daemons of another version made."""
    unknown: int = 0
    """Keys under the prefix that no daemon of this version makes."""


@dataclass(frozen=True, slots=True)
class Orphan:
    """A piece that no value mentions."""

    name: bytes
    size_bytes: int
    ttl_s: int
    """How long it has left; -1 for ever."""


class Mentions:
    """Remembers which pieces the heads that were seen mention."""

    def __init__(self, names: KeyNames) -> None:
        self._names = names
        # Of names only their hashes: there can be a hundred pieces for each value.
        self._hashes: set[int] = set()

    def add(self, key: ValueKey, body: Body) -> None:
        """Take note of the pieces of one value."""
        self._hashes.update(hash(self._names.part(key, p.sha256)) for p in body.pieces[1:])

    def __contains__(self, name: bytes) -> bool:
        return hash(name) in self._hashes


class Leftovers:
    """Looks through all keys under the prefix but values. Raises TierUnavailable.

    ``mentions`` saves looking at heads again: a piece that is not in it is looked for in
    the head of its value before it is called an orphan.
    """

    def __init__(self, link: GuardedRedis, names: KeyNames, mentions: Mentions) -> None:
        self._link = link
        self._names = names
        self._mentions = mentions

    async def count(self) -> Rest:
        """Count all there is beside values."""
        rest, seen = Rest(), set[int]()
        async for page in self._link.scan(self._names.all_pattern()):
            new = [name for name in dict.fromkeys(page) if hash(name) not in seen]
            seen.update(map(hash, new))
            parts = [name for name in new if self._names.part_at(name)]
            leases = sum(self._names.lease_key(name) is not None for name in new)
            strikes = sum(self._names.strike_key(name) is not None for name in new)
            values = sum(self._names.value_at(name) is not None for name in new)
            rest.leases += leases
            rest.strikes += strikes
            others = sum(map(self._names.is_of_other_format, new))
            rest.other_format += others
            marks = sum(map(self._names.is_mark, new))
            rest.marks += marks
            rest.unknown += len(new) - len(parts) - leases - strikes - marks - others - values
            sizes = await self._sizes(parts)
            rest.parts += len(parts)
            rest.part_bytes += sum(sizes.values())
            orphans = await self._orphans_of(parts)
            rest.orphans += len(orphans)
            rest.orphan_bytes += sum(sizes.get(name, 0) for name in orphans)
        return rest

    async def orphans(self) -> AsyncIterator[list[Orphan]]:
        """Return the pieces that no value mentions, batch by batch, some perhaps twice."""
        async for page in self._link.scan(self._names.parts_pattern()):
            found = await self._orphans_of([name for name in page if self._names.part_at(name)])
            sizes, ages = await self._sizes(found), await self._link.ages(found)
            yield [
                Orphan(name, sizes.get(name, 0), ttl_s)
                for name, ttl_s in zip(found, ages, strict=True)
                if ttl_s != _GONE
            ]

    def parts_of(self, key: ValueKey, value: bytes) -> list[bytes]:
        """Return the names of the pieces that ``value``, under ``key``, mentions, if any."""
        try:
            opened = value_format.open_any(value, _anyone)
        except ValueRejected:
            return []
        return [self._names.part(key, piece.sha256) for piece in opened.body.pieces[1:]]

    async def _orphans_of(self, parts: Sequence[bytes]) -> list[bytes]:
        """Return which of ``parts`` no value mentions now."""
        suspects = {
            name: key
            for name in parts
            if name not in self._mentions and (key := self._names.part_at(name))
        }
        # A value may have come since its head was looked for. What one in another format
        # mentions cannot be told here, and what one with a long head does is not.
        untold = await self._look_again(list(dict.fromkeys(suspects.values())))
        return [
            name
            for name, key in suspects.items()
            if name not in self._mentions and key not in untold
        ]

    async def _look_again(self, keys: Sequence[ValueKey]) -> set[ValueKey]:
        """Take note of what the values under ``keys`` mention; answer for which that is untold."""
        names = {self._names.value(key): key for key in keys}

        def is_untold(name: bytes, head: bytes) -> bool:
            if len(head) > _LONG_HEAD_BYTES:
                return True
            try:
                self._mentions.add(names[name], value_format.open_any(head, _anyone).body)
            except ValueRejected as rejected:
                return rejected.cause is Cause.VERSION
            return False

        found, _ = await look_at_heads(self._link, list(names), is_untold)
        return {names[name] for name, untold in found.items() if untold}

    async def _sizes(self, names: Sequence[bytes]) -> dict[bytes, int]:
        """Return the bytes of each; nothing for what is no string."""
        found, _ = await read_strings(names, self._link.lengths)
        return found


def _anyone(message: bytes, stamp: bytes) -> None:
    return None
