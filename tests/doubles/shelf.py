"""A server in this process, for tests that need thousands of values but no real server."""

from __future__ import annotations

import asyncio
import fnmatch
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from wasmkilnd.cache.redis.server import Command
from wasmkilnd.cache.redis.tier import RedisTier
from wasmkilnd.model import Artifact, CacheKey, Module, TierUsage
from wasmkilnd.signing.sealer import Sealer

from tests.doubles.notes import Notes

TTL_S = 1000
"""The remaining time to live of every value."""


class Shelf:
    """A RedisServer that keeps values in a dictionary, and ignores times to live."""

    def __init__(self, values: Mapping[bytes, bytes] | None = None) -> None:
        self.values = dict(values or {})

    is_one_place = True

    async def run(self, commands: Sequence[Command]) -> list[Any]:
        return [self._one(*command) for command in commands]

    def _one(self, name: Any, key: Any, *rest: Any) -> Any:
        value = self.values.get(key)
        match name:
            case "GET":
                return value
            case "SET":
                if "NX" in rest and value is not None:
                    return None
                self.values[key] = bytes(rest[0])
                return True
            case "GETRANGE":
                return (value or b"")[rest[0] : rest[1] + 1]
            case "STRLEN":
                return len(value or b"")
            case "UNLINK":
                return int(self.values.pop(key, None) is not None)
            case "EXISTS" | "EXPIRE":
                return int(value is not None)
            case "TTL":
                return -2 if value is None else TTL_S
        raise AssertionError(name)

    async def scan(self, pattern: bytes) -> AsyncIterator[list[bytes]]:
        yield [name for name in self.values if fnmatch.fnmatchcase(name, pattern)]

    async def usage(self) -> TierUsage:
        return TierUsage(entries=len(self.values))

    async def probe(self) -> None:
        return None

    async def close(self) -> None:
        return None


def stored(what: Artifact | Module, sealer: Sealer) -> dict[bytes, bytes]:
    """Return what a daemon with ``sealer`` stores, by name; the value itself comes last."""
    shelf = Shelf()

    async def put() -> None:
        tier = RedisTier(shelf, sealer, Notes())
        await (tier.put(what) if isinstance(what, Artifact) else tier.put_module(what))

    asyncio.run(put())
    return shelf.values


def read(
    values: Mapping[bytes, bytes],
    key: CacheKey | str,
    sealer: Sealer,
    accept: frozenset[str] = frozenset(),
) -> tuple[Artifact | Module | None, list[str]]:
    """Return what a daemon with ``sealer`` finds in ``values``, and the causes of rejections."""
    notes = Notes()

    async def get() -> Artifact | Module | None:
        tier = RedisTier(Shelf(values), sealer, notes)
        if isinstance(key, CacheKey):
            return await tier.get(key, accept=accept)
        return await tier.get_module(key)

    return asyncio.run(get()), notes.rejected
