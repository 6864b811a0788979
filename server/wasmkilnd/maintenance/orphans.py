"""Find the keys of a shared tier that are not values: pieces, orphans among them, and others."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from wasmkilnd.cache.redis.guarded import GuardedRedis, read_strings
from wasmkilnd.cache.redis.scan import look_at_heads
from wasmkilnd.cache.value import format as value_format
from wasmkilnd.cache.value.names import KeyNames, ValueKey
from wasmkilnd.cache.value.pieces import Body
from wasmkilnd.cache.value.rejected import Cause, ValueRejected

# A longer head may be any client's, and takes time and memory to parse.
_LONG_HEAD_BYTES = 64 * 1024
_GONE = -2

FOR_EVER = -1
"""The TTL of a key that never expires."""


@dataclass(slots=True)
class OtherKeys:
    """Numbers and sizes of the keys that are not values."""

    parts: int = 0
    part_bytes: int = 0
    orphans: int = 0
    """The pieces that no value mentions."""
    orphan_bytes: int = 0
    leases: int = 0
    strikes: int = 0
    marks: int = 0
    """The marks that evictions and releases left."""
    other_format: int = 0
    """Modules and pieces of modules in another format."""
    unknown: int = 0
    """Keys under the prefix that no daemon of this version makes."""


@dataclass(frozen=True, slots=True)
class Orphan:
    """A piece that no value mentions."""

    name: bytes
    size_bytes: int
    ttl_s: int
    """Its TTL; -1 for none."""


class Mentions:
    """The pieces that the heads seen so far mention."""

    def __init__(self, names: KeyNames) -> None:
        self._names = names
        # Only hashes of the names: a value can have a hundred pieces.
        self._hashes: set[int] = set()

    def add(self, key: ValueKey, body: Body) -> None:
        """Add the pieces of one value."""
        self._hashes.update(hash(self._names.part(key, p.sha256)) for p in body.pieces[1:])

    def __contains__(self, name: bytes) -> bool:
        return hash(name) in self._hashes


class OrphanFinder:
    """Looks through the keys under the prefix that are not values. Raises TierUnavailable.

    ``mentions`` saves reading heads again: for a piece that is not in it, the head of its value
    is read before the piece counts as an orphan.
    """

    def __init__(self, link: GuardedRedis, names: KeyNames, mentions: Mentions) -> None:
        self._link = link
        self._names = names
        self._mentions = mentions

    async def count(self) -> OtherKeys:
        """Count the keys that are not values."""
        rest, seen = OtherKeys(), set[int]()
        async for page in self._link.scan(self._names.all_pattern()):
            page = [name for name in page if not self._names.is_of_namespace(name)]
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
            about_keys = sum(map(self._names.is_about_keys, new))
            marks = sum(map(self._names.is_mark, new))
            rest.marks += marks
            pins = sum(map(self._names.is_pins, new))
            uses = sum(map(self._names.is_uses, new))
            known = leases + strikes + marks + others + values + about_keys + pins + uses
            rest.unknown += len(new) - len(parts) - known
            sizes = await self._sizes(parts)
            rest.parts += len(parts)
            rest.part_bytes += sum(sizes.values())
            orphans = await self._orphans_of(parts)
            rest.orphans += len(orphans)
            rest.orphan_bytes += sum(sizes.get(name, 0) for name in orphans)
        return rest

    async def orphans(self) -> AsyncIterator[list[Orphan]]:
        """Return the pieces that no value mentions, in batches; some may come twice."""
        async for page in self._link.scan(self._names.parts_pattern()):
            found = await self._orphans_of([name for name in page if self._names.part_at(name)])
            sizes, ages = await self._sizes(found), await self._link.ages(found)
            yield [
                Orphan(name, sizes.get(name, 0), ttl_s)
                for name, ttl_s in zip(found, ages, strict=True)
                if ttl_s != _GONE
            ]

    def parts_of(self, key: ValueKey, value: bytes) -> list[bytes]:
        """Return the names of the pieces that ``value`` mentions, which is under ``key``."""
        try:
            opened = value_format.open_any(value, _accept_any_stamp)
        except ValueRejected:
            return []
        return [self._names.part(key, piece.sha256) for piece in opened.body.pieces[1:]]

    async def _orphans_of(self, parts: Sequence[bytes]) -> list[bytes]:
        """Return those of ``parts`` that no value mentions now."""
        suspects = {
            name: key
            for name in parts
            if name not in self._mentions and (key := self._names.part_at(name))
        }
        # A value may have been stored since its head was read. Of values in another format, and
        # of those with a long head, this cannot know the pieces: their pieces are no orphans.
        unknown = await self._read_heads_again(list(dict.fromkeys(suspects.values())))
        return [
            name
            for name, key in suspects.items()
            if name not in self._mentions and key not in unknown
        ]

    async def _read_heads_again(self, keys: Sequence[ValueKey]) -> set[ValueKey]:
        """Add what the values under ``keys`` mention; return those for which it is unknown."""
        names = {self._names.value(key): key for key in keys}

        def is_unknown(name: bytes, head: bytes) -> bool:
            if len(head) > _LONG_HEAD_BYTES:
                return True
            try:
                self._mentions.add(names[name], value_format.open_any(head, _accept_any_stamp).body)
            except ValueRejected as rejected:
                return rejected.cause is Cause.VERSION
            return False

        found, _ = await look_at_heads(self._link, list(names), is_unknown)
        return {names[name] for name, unknown in found.items() if unknown}

    async def _sizes(self, names: Sequence[bytes]) -> dict[bytes, int]:
        """Return the length of each string among ``names``."""
        found, _ = await read_strings(names, self._link.lengths)
        return found


def _accept_any_stamp(message: bytes, stamp: bytes) -> None:
    return None
