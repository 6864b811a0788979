"""Look values up for callers who wait: within limits, by the marks of evictions, piece by piece."""

from __future__ import annotations

import asyncio
import dataclasses

import structlog

from wasmkilnd.cache.redis.guarded import GuardedRedis
from wasmkilnd.cache.redis.mark_store import MarkStore
from wasmkilnd.cache.redis.rejections import Rejections
from wasmkilnd.cache.redis.value_reader import (
    ValueReader,
    head_size,
    in_thread_if_large,
    stored_value,
)
from wasmkilnd.cache.value import format as value_format
from wasmkilnd.cache.value.format import MAX_VALUE_BYTES, Opened
from wasmkilnd.cache.value.marks import MAX_MARK_BYTES
from wasmkilnd.cache.value.names import KeyNames, ValueKey
from wasmkilnd.cache.value.pieces import ZSTD
from wasmkilnd.cache.value.rejected import ValueRejected
from wasmkilnd.errors import TierUnavailable
from wasmkilnd.model import Artifact, Module
from wasmkilnd.signing.sealer import Sealer
from wasmkilnd.wait_budget import Allowance

READS_AT_ONCE = 8
"""The most look-ups that read at the same time; the others wait."""

# A look-up may take longer for a large value, but no longer than this rate allows.
_LEAST_BYTES_PER_S = 32 * 1024 * 1024

_log = structlog.get_logger("wasmkilnd.cache")


class Lookups:
    """Look-ups in the tier. A value that does not verify is discarded, and a miss."""

    def __init__(
        self,
        link: GuardedRedis,
        names: KeyNames,
        reader: ValueReader,
        marks: MarkStore,
        rejections: Rejections,
        sealer: Sealer,
        reads_at_once: int,
    ) -> None:
        self._link = link
        self._names = names
        self._reader = reader
        self._marks = marks
        self._rejections = rejections
        self._sealer = sealer
        self._reading = asyncio.Semaphore(reads_at_once)

    async def get(
        self,
        key: ValueKey,
        limit_bytes: int,
        allowance: Allowance,
        accept: frozenset[str] = frozenset(),
    ) -> Artifact | Module | None:
        """Return what is stored under ``key``; None if nothing is, or nothing usable."""
        # At most READS_AT_ONCE look-ups read at a time: with more, answers would seem late
        # because this daemon is busy, and not because the server is slow.
        with allowance.while_free(lambda: self._link.prompt):
            await self._reading.acquire()
        try:
            return await self._get(key, limit_bytes, allowance, accept)
        finally:
            self._reading.release()

    async def _get(
        self, key: ValueKey, limit_bytes: int, allowance: Allowance, accept: frozenset[str]
    ) -> Artifact | Module | None:
        name, value, parts = self._names.value(key), None, list[bytes]()
        try:
            stored = await self._with_marks(key)
            if not stored:
                return None
            value = stored
            if len(value) >= value_format.HEADER_OFFSET:
                await self._sealer.meet(value_format.stamped_by(value))
            opened = await self._reader.open_value(key, value)
            if isinstance(opened.what, Artifact):
                size_bytes = head_size(value)
                await in_thread_if_large(size_bytes, self._marks.marks.check, opened.what)
            body = opened.body
            if body.size_bytes > limit_bytes:
                # Not deleted: daemons with a higher limit use it.
                _log.info("stored value is larger than the limit", key=name.decode())
                return None
            parts = [self._names.part(key, piece.sha256) for piece in body.pieces[1:]]
            moving_s = body.stored_bytes / _LEAST_BYTES_PER_S
            allowance.add(moving_s)
            async with asyncio.timeout(self._link.timeout_s + moving_s):
                if isinstance(opened.what, Artifact):
                    return await self._with_frames(key, opened, opened.what, accept)
                payload = await self._reader.pieces(key, opened, body.unpack)
            return await in_thread_if_large(body.size_bytes, _with_bytes, opened.what, payload)
        except TimeoutError:
            # Not an outage: the server answered each command in time.
            raise TierUnavailable("Redis takes too long for a value of this size") from None
        except ValueRejected as rejected:
            await self._rejections.discard(name, value, parts, rejected)
        return None

    async def _with_frames(
        self,
        key: ValueKey,
        opened: Opened[Artifact | Module],
        artifact: Artifact,
        accept: frozenset[str],
    ) -> Artifact:
        """Read the pieces of ``artifact``; keep them packed if ``accept`` allows it."""
        body = opened.body
        packed = body.codec == ZSTD and ZSTD in accept
        take = body.stored_frames if packed else body.frames
        frames = tuple(await self._reader.pieces(key, opened, take))
        return dataclasses.replace(artifact, frames=frames, encoding=ZSTD if packed else "")

    async def _with_marks(self, key: ValueKey) -> bytes:
        """Return what is stored under ``key``, empty if nothing is.

        For an artifact, read the marks that concern it in the same round trip, and learn them.
        """
        name = self._names.value(key)
        marks = self._marks.names_for(key.module_sha256) if key.artifact else {}
        wanted = {name: MAX_VALUE_BYTES, **dict.fromkeys(marks, MAX_MARK_BYTES)}
        found, others = await self._reader.strings(wanted)
        await self._marks.discard(others & marks.keys())
        for mark, module_sha256 in marks.items():
            if mark in found:
                self._marks.learn(module_sha256, found[mark])
        return stored_value(name, found, others)


def _with_bytes(module: Module, payload: list[bytes]) -> Module:
    """Return ``module`` with its payload. Raises ValueRejected if it has another digest."""
    return value_format.check_module(dataclasses.replace(module, wasm=b"".join(payload)))
