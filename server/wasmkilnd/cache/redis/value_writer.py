"""Write stored values: the one place where the tier and the offline tools do so.

The further pieces come first, then the value itself (its head and first piece): no reader ever
finds a value whose pieces are not there yet. Also remembers whether the server takes writes at all.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterable, AsyncIterator, Callable, Sequence

import structlog

from wasmkilnd.cache.redis.guarded import FOR_EVER, GuardedRedis
from wasmkilnd.cache.redis.value_reader import RateLimiter, in_thread_if_large
from wasmkilnd.cache.value.names import KeyNames, ValueKey
from wasmkilnd.cache.value.pieces import PARTS_OUTLIVE_S, Body, Piece, codec_for, pack
from wasmkilnd.errors import TierUnavailable
from wasmkilnd.wire import CHUNK_BYTES

# Added to the name of what was refused: in a cluster, it is tried at the same node.
_TRIAL = b":trial"
_TRIAL_S = 1

_log = structlog.get_logger("wasmkilnd.cache")


class ValueWriter:
    """Stores values. Each method raises TierUnavailable.

    Pieces live an hour longer than their value, so that none of them expires before it. With
    FOR_EVER as time to live, none of them expires.
    """

    def __init__(
        self, link: GuardedRedis, names: KeyNames, limiter: RateLimiter | None = None
    ) -> None:
        self._link = link
        self._names = names
        self._limiter = limiter or RateLimiter()

    async def pack(
        self,
        key: ValueKey,
        payload: Sequence[memoryview],
        write_head: Callable[[Body], bytes],
        ttl_s: int,
    ) -> None:
        """Pack ``payload``, store it, and store the head that ``write_head`` writes for it."""
        chosen = await in_thread_if_large(len(payload) * CHUNK_BYTES, codec_for, payload)

        async def packed() -> AsyncIterator[tuple[bytes, Piece]]:
            for raw in payload:
                yield await in_thread_if_large(len(raw), pack, chosen, raw)

        def head(pieces: tuple[Piece, ...]) -> bytes:
            return write_head(Body(chosen, sum(map(len, payload)), pieces))

        await self._write(key, packed(), head, ttl_s, replace=True)

    async def copy(
        self,
        key: ValueKey,
        head: bytes,
        pieces: Sequence[tuple[bytes, Piece]],
        ttl_s: int,
        *,
        replace: bool,
    ) -> bool:
        """Store a value as it was stored elsewhere.

        Return False, and leave the value that is there, if there is one by then and ``replace``
        is not set.
        """

        async def given() -> AsyncIterator[tuple[bytes, Piece]]:
            for piece in pieces:
                yield piece

        return await self._write(key, given(), lambda _: head, ttl_s, replace=replace)

    async def _write(
        self,
        key: ValueKey,
        pieces: AsyncIterable[tuple[bytes, Piece]],
        write_head: Callable[[tuple[Piece, ...]], bytes],
        ttl_s: int,
        *,
        replace: bool,
    ) -> bool:
        first, described = b"", list[Piece]()
        async for stored, piece in pieces:
            if described:
                name = self._names.part(key, piece.sha256)
                await self._link.set(name, stored, _of_part(ttl_s))
                await self._limiter.spent(len(stored))
            else:
                first = stored
            described.append(piece)
        name, value = self._names.value(key), write_head(tuple(described)) + first
        stored_now = True
        if replace:
            await self._link.set(name, value, ttl_s)
        else:
            stored_now = await self._link.add(name, value, ttl_s)
        await self._limiter.spent(len(value))
        return stored_now


def _of_part(ttl_s: int) -> int:
    return FOR_EVER if ttl_s == FOR_EVER else ttl_s + PARTS_OUTLIVE_S


class WriteHealth:
    """Remembers that the server of ``tier`` takes no writes, until one succeeds; logs both once.

    A server that answers can still refuse writes: if it is full, or read-only.
    """

    def __init__(self, tier: str, link: GuardedRedis) -> None:
        self._tier = tier
        self._link = link
        self._refused = b""
        self.refusal = ""
        """Why the server takes no writes; empty while it does."""

    def refused(self, name: bytes, why: str) -> None:
        """Note that the server refused to store ``name``."""
        if not self.refusal:
            _log.warning("tier takes no writes", tier=self._tier, detail=why)
            self._refused, self.refusal = name, why

    def taken(self) -> None:
        """Note that a write succeeded."""
        if self.refusal:
            _log.info("tier takes writes again", tier=self._tier)
            self.refusal = ""

    async def try_again(self) -> None:
        """Try a write if the last one was refused, as the next may be far off; never raises."""
        if self.refusal:
            with contextlib.suppress(TierUnavailable):
                await self._link.set(self._refused + _TRIAL, b"", _TRIAL_S)
                self.taken()
