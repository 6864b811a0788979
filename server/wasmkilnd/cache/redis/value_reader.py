"""Read stored values: the one place where the tier and the offline tools do so.

A value's own key comes first (its head and first piece), then the further pieces, eight at a time.
Each piece is verified before it is used, while the next ones are being read.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import (
    Awaitable,
    Callable,
    Iterable,
    Mapping,
    Sequence,
)
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

from wasmkilnd.cache.redis.guarded import GuardedRedis, read_strings
from wasmkilnd.cache.value import format as value_format
from wasmkilnd.cache.value.format import MAX_VALUE_BYTES, Opened
from wasmkilnd.cache.value.names import KeyNames, ValueKey
from wasmkilnd.cache.value.pieces import Body, Piece
from wasmkilnd.cache.value.rejected import Cause, ValueRejected
from wasmkilnd.cache.value.verify import WholeCheck, open_value
from wasmkilnd.errors import WrongType
from wasmkilnd.model import Artifact, Module
from wasmkilnd.signing.sealer import Sealer

T = TypeVar("T")

StoredPiece: TypeAlias = "bytes | memoryview | None"
"""A piece as it was read; None if the server has none under its name."""

# 2 MiB of an artifact that compresses as most do: other clients of the server wait for
# one batch at most (docs/explanation/performance.md).
_PIECES_AT_ONCE = 8
# Below this, handing a value to a thread costs more than checking it.
_INLINE_BYTES = 64 * 1024


async def in_thread_if_large(size_bytes: int, work: Callable[..., T], *args: Any) -> T:
    """Run ``work`` on ``size_bytes`` of input: in a thread if that could block the event loop."""
    if size_bytes < _INLINE_BYTES:
        return work(*args)
    return await asyncio.to_thread(work, *args)


class RateLimiter:
    """Limits all tasks that share it to ``bytes_per_s`` in total; 0 is no limit."""

    def __init__(
        self,
        bytes_per_s: int = 0,
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._bytes_per_s = bytes_per_s
        self._sleep = sleep
        self._clock = clock
        self._due = clock()

    async def spent(self, size_bytes: int) -> None:
        """Wait for as long as moving ``size_bytes``, which were just moved, should have taken."""
        if not self._bytes_per_s:
            return
        now = self._clock()
        self._due = max(self._due, now) + size_bytes / self._bytes_per_s
        await self._sleep(self._due - now)


@dataclass(frozen=True, slots=True)
class Whole:
    """A value as it is stored, all of it verified."""

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
        """Return the size of the value and its pieces."""
        return len(self.value) + sum(map(len, self.parts))

    @property
    def signer(self) -> str:
        """Return the id of the key that signed the value."""
        return value_format.stamped_by(self.value)


class ValueReader:
    """Reads values, and never more bytes of one than a value may have.

    Each method raises ValueRejected for a value that does not verify, and TierUnavailable.
    """

    def __init__(
        self,
        link: GuardedRedis,
        names: KeyNames,
        verifier: Sealer,
        limiter: RateLimiter | None = None,
    ) -> None:
        self._link = link
        self._names = names
        self._verifier = verifier
        self._limiter = limiter or RateLimiter()
        self.bytes_read = 0

    async def raw(self, key: ValueKey) -> bytes | None:
        """Return what is stored under ``key``, unverified; None if nothing is."""
        name = self._names.value(key)
        value = stored_value(name, *await self.strings({name: MAX_VALUE_BYTES}))
        if not value and not (await self._link.exists([name]))[0]:
            return None
        return value

    async def open(self, key: ValueKey) -> Opened[Artifact | Module] | None:
        """Return the value under ``key``, verified except its pieces; None if there is none."""
        value = await self.raw(key)
        return None if value is None else await self.open_value(key, value)

    async def open_value(self, key: ValueKey, value: bytes) -> Opened[Artifact | Module]:
        """Verify the head of ``value``, which was read from under ``key``."""
        # What takes time is the head alone, and few heads have more than a few KiB.
        size_bytes = head_size(value)
        return await in_thread_if_large(size_bytes, open_value, value, key, self._verifier)

    async def check(self, key: ValueKey) -> Opened[Artifact | Module] | None:
        """Verify all of the value under ``key``; return None if there is none."""
        opened = await self.open(key)
        if opened is not None:
            await self._verified_pieces(key, opened, keep=False)
        return opened

    async def whole(self, key: ValueKey, limit_bytes: int) -> Whole | None:
        """Return all of the value under ``key``, verified; None if there is none.

        Also raises ValueRejected if it is larger than ``limit_bytes`` when unpacked.
        """
        value = await self.raw(key)
        if value is None:
            return None
        opened = await self.open_value(key, value)
        check_size(opened.body, limit_bytes)
        pieces = await self._verified_pieces(key, opened, keep=True)
        return Whole(key, opened, value, pieces[1:])

    async def strings(
        self, wanted: Mapping[bytes, int]
    ) -> tuple[dict[bytes, bytes], frozenset[bytes]]:
        """Return the strings under the names in ``wanted``, and the names of other types' keys.

        ``wanted`` holds the most bytes that each may have. One byte more is read: it shows that
        a string is too long, however long it is.
        """

        async def read(names: Sequence[bytes]) -> list[bytes]:
            return await self._link.beginnings(names, [wanted[name] + 1 for name in names])

        found, others = await read_strings(list(wanted), read)
        await self._count(found.values())
        return found, others

    async def pieces(
        self,
        key: ValueKey,
        opened: Opened[Artifact | Module],
        take: Callable[[int, Sequence[StoredPiece]], list[T]],
    ) -> list[T]:
        """Read all pieces of a value in batches; return what ``take`` makes of them.

        ``take`` is called with the number of a batch's first piece and the batch, in order, in a
        thread if it is large, while the next batch is being read.
        """
        body = opened.body
        batch: Sequence[StoredPiece] = [opened.first] if body.pieces else []
        first, taken = 0, list[T]()
        for start in range(1, len(body.pieces), _PIECES_AT_ONCE):
            more, found = await asyncio.gather(
                in_thread_if_large(_size(batch), take, first, batch),
                self._read_pieces(key, body.pieces[start : start + _PIECES_AT_ONCE]),
            )
            taken += more
            first, batch = start, found
        return taken + await in_thread_if_large(_size(batch), take, first, batch)

    async def _read_pieces(self, key: ValueKey, pieces: Sequence[Piece]) -> list[StoredPiece]:
        names = [self._names.part(key, piece.sha256) for piece in pieces]
        try:
            found = await self._link.beginnings(names, [piece.size_bytes + 1 for piece in pieces])
        except WrongType:
            raise no_string() from None
        await self._count(found)
        # What is not there reads as empty, which no piece is.
        return [piece or None for piece in found]

    async def _verified_pieces(
        self, key: ValueKey, opened: Opened[Artifact | Module], *, keep: bool
    ) -> list[bytes]:
        """Verify the pieces and the payload that they make up; return them if ``keep``."""
        check = WholeCheck(opened)

        def take(first: int, stored: Sequence[StoredPiece]) -> list[bytes]:
            check.take(stored)
            return [bytes(piece) for piece in stored if piece is not None] if keep else []

        pieces = await self.pieces(key, opened, take)
        check.finish()
        return pieces

    async def _count(self, found: Iterable[bytes]) -> None:
        size_bytes = sum(map(len, found))
        self.bytes_read += size_bytes
        await self._limiter.spent(size_bytes)


def stored_value(name: bytes, found: Mapping[bytes, bytes], others: frozenset[bytes]) -> bytes:
    """Return the value under ``name`` of what ``ValueReader.strings`` returned; empty if none.

    Raises ValueRejected for what no daemon stores: another type, or more bytes than any value has.
    """
    if name in others:
        raise no_string()
    if len(found[name]) > MAX_VALUE_BYTES:
        raise ValueRejected(Cause.FORMAT, "the value is longer than any value can be")
    return found[name]


def check_size(body: Body, limit_bytes: int) -> None:
    """Raise ValueRejected for a payload of more than ``limit_bytes``."""
    if body.size_bytes > limit_bytes:
        raise ValueRejected(
            Cause.FORMAT,
            f"it is larger than this configuration accepts ({limit_bytes} bytes)",
        )


def no_string() -> ValueRejected:
    """Return the rejection of a key that holds a list, a hash or the like."""
    return ValueRejected(Cause.FORMAT, "the key holds a list, a hash or the like, not a string")


def head_size(value: bytes) -> int:
    """Return the length of a value's head, for a decision only: the value may be anything."""
    try:
        return min(len(value), value_format.head_end(value))
    except ValueRejected:
        return len(value)


def _size(batch: Sequence[StoredPiece]) -> int:
    return sum(len(piece) for piece in batch if piece is not None)
