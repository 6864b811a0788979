"""Reading stored values as a whole, for tools that look at all of them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field

from wasmkilnd.cache.redis.guarded import GuardedRedis
from wasmkilnd.cache.redis.in_thread import off_loop
from wasmkilnd.cache.redis.rate_limiter import RateLimiter
from wasmkilnd.cache.redis.strings import read_strings
from wasmkilnd.cache.value import codec
from wasmkilnd.cache.value.codec import MAX_VALUE_BYTES, Opened
from wasmkilnd.cache.value.names import KeyNames, ValueKey
from wasmkilnd.cache.value.pieces import Body
from wasmkilnd.cache.value.rejected import Cause, ValueRejected
from wasmkilnd.cache.value.verify import WholeCheck, open_value
from wasmkilnd.model import Artifact, Module
from wasmkilnd.ports import Verifier

_PIECES_AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class Whole:
    """A value that was verified as a whole, as it is stored."""

    key: ValueKey
    opened: Opened[Artifact | Module]
    value: bytes = field(repr=False)
    """The head and the first piece."""
    parts: Sequence[bytes] = field(repr=False)
    """The further pieces."""

    @property
    def pieces(self) -> list[bytes | memoryview]:
        """All pieces."""
        return [self.opened.first, *self.parts] if self.opened.body.pieces else []

    @property
    def stored_bytes(self) -> int:
        """Bytes of all of it."""
        return len(self.value) + sum(map(len, self.parts))

    @property
    def signer(self) -> str:
        """The id of the key that stored it."""
        return codec.stamped_by(self.value)


class ValueReader:
    """Reads values, never more bytes of one than it may have.

    Each method raises ValueRejected for a value that does not verify, and
    TierUnavailable.
    """

    def __init__(
        self,
        link: GuardedRedis,
        names: KeyNames,
        verifier: Verifier,
        pace: RateLimiter | None = None,
    ) -> None:
        self._link = link
        self._names = names
        self._verifier = verifier
        self._pace = pace or RateLimiter()
        self.bytes_read = 0

    async def raw(self, key: ValueKey) -> bytes | None:
        """Return what is under ``key``, unverified, None if nothing is there."""
        return await self._value(key)

    async def open(self, key: ValueKey) -> Opened[Artifact | Module] | None:
        """Return the value under ``key``, verified up to its first piece, None if none is there."""
        value = await self._value(key)
        return None if value is None else self._open(value, key)

    async def check(self, key: ValueKey) -> Opened[Artifact | Module] | None:
        """Verify all of the value under ``key``; answer None if none is there."""
        value = await self._value(key)
        if value is None:
            return None
        opened = self._open(value, key)
        async for _ in self._checked(key, opened):
            pass
        return opened

    async def whole(self, key: ValueKey, limit_bytes: int) -> Whole | None:
        """Return all of the value under ``key``, verified, None if none is there.

        ValueRejected is also raised for one of more than ``limit_bytes`` when unpacked.
        """
        value = await self._value(key)
        if value is None:
            return None
        opened = self._open(value, key)
        check_size(opened.body, limit_bytes)
        parts: list[bytes] = []
        async for stored in self._checked(key, opened):
            parts += stored
        return Whole(key, opened, value, parts)

    def _open(self, value: bytes, key: ValueKey) -> Opened[Artifact | Module]:
        return open_value(value, key, self._verifier)

    async def _value(self, key: ValueKey) -> bytes | None:
        name = self._names.value(key)
        [value] = await self._strings({name: MAX_VALUE_BYTES + 1})
        if len(value) > MAX_VALUE_BYTES:
            raise ValueRejected(Cause.FORMAT, "the value is longer than any is")
        if not value and not (await self._link.exists([name]))[0]:
            return None
        return value

    async def _checked(
        self, key: ValueKey, opened: Opened[Artifact | Module]
    ) -> AsyncIterator[list[bytes]]:
        """Return the further pieces, some at a time, each verified, and at last all of them."""
        body, check = opened.body, WholeCheck(opened)
        if body.pieces:
            await off_loop(len(opened.first), check.take, [opened.first])
        for start in range(1, len(body.pieces), _PIECES_AT_ONCE):
            pieces = body.pieces[start : start + _PIECES_AT_ONCE]
            wanted = {self._names.part(key, p.sha256): p.size_bytes + 1 for p in pieces}
            by_name = dict(zip(wanted, await self._strings(wanted), strict=True))
            # Equal pieces have one name.
            stored = [by_name[self._names.part(key, piece.sha256)] for piece in pieces]
            # What is not there reads as empty, which no piece is.
            found = [piece or None for piece in stored]
            await off_loop(sum(map(len, stored)), check.take, found)
            yield stored
        check.finish()

    async def _strings(self, wanted: Mapping[bytes, int]) -> list[bytes]:
        """Return the beginnings of values, as long as ``wanted`` says."""

        async def read(names: Sequence[bytes]) -> list[bytes]:
            return await self._link.beginnings(names, [wanted[name] for name in names])

        found, others = await read_strings(list(wanted), read)
        if others:
            raise no_string()
        size_bytes = sum(map(len, found.values()))
        self.bytes_read += size_bytes
        await self._pace.spent(size_bytes)
        return [found[name] for name in wanted]


def check_size(body: Body, limit_bytes: int) -> None:
    """Raise ValueRejected for a payload of more than ``limit_bytes``."""
    if body.size_bytes > limit_bytes:
        raise ValueRejected(
            Cause.FORMAT,
            f"it is larger than this configuration accepts ({limit_bytes} bytes)",
        )


def no_string() -> ValueRejected:
    """Return why what is of another of the server's types is no value."""
    return ValueRejected(Cause.FORMAT, "it is a list, a hash or the like, and no string")
