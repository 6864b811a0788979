"""The shared tier: a server that speaks Redis's protocol."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import structlog

from wasmkilnd.cache.redis.breaker import Breaker
from wasmkilnd.cache.redis.guarded import GuardedRedis
from wasmkilnd.cache.redis.in_thread import off_loop
from wasmkilnd.cache.redis.mark_store import MarkStore
from wasmkilnd.cache.redis.scan import look_at_heads
from wasmkilnd.cache.redis.server import RedisServer
from wasmkilnd.cache.redis.strings import read_strings
from wasmkilnd.cache.redis.sweep import kinds_at, sweep
from wasmkilnd.cache.redis.value_io import no_string
from wasmkilnd.cache.redis.write_health import WriteHealth
from wasmkilnd.cache.value import codec
from wasmkilnd.cache.value.codec import MAX_VALUE_BYTES, Opened
from wasmkilnd.cache.value.marks import MAX_MARK_BYTES, Marks
from wasmkilnd.cache.value.names import KeyNames
from wasmkilnd.cache.value.pieces import PARTS_OUTLIVE_S, Body, Piece, codec_for, cut, pack
from wasmkilnd.cache.value.rejected import Cause, ValueRejected
from wasmkilnd.cache.value.verify import open_artifact
from wasmkilnd.errors import PartUnavailable, TierUnavailable, WrongType
from wasmkilnd.model import (
    Artifact,
    CacheKey,
    Evicted,
    EvictScope,
    Kind,
    Module,
    TierUsage,
)
from wasmkilnd.ports import Recorder, Sealer
from wasmkilnd.wait_budget import Allowance
from wasmkilnd.wire import CHUNK_BYTES, frame, payload_views

V = TypeVar("V", Artifact, Module)

DEFAULT_PREFIX = "wasm:"
DEFAULT_TTL_S = 7 * 24 * 3600

# 2 MiB of an artifact that compresses as most do: other clients of the server wait for
# one batch at most (docs/performance.md).
_PIECES_AT_ONCE = 8
# What is slower makes a look-up slow, whatever its value's size.
_LEAST_BYTES_PER_S = 32 * 1024 * 1024
READS_AT_ONCE = 8
"""Look-ups that read at the same time; the others stand in line."""
_LOOK_EVERY_S = 5.0
_HELD_BATCH = 1000
_ONCE = frozenset({Cause.UNSIGNED, Cause.STRANGER})
_MAX_TOLD = 64
_NO_MARKS: Mapping[bytes, str] = {}

_log = structlog.get_logger("wasmkilnd.cache")


class RedisTier:
    """Keeps artifacts and modules on a server that other daemons share.

    Nothing that the server answers is believed: a value that does not verify is
    deleted, counted, logged, and a miss.
    """

    name = "redis"

    def __init__(
        self,
        server: RedisServer,
        sealer: Sealer,
        recorder: Recorder,
        *,
        prefix: str = DEFAULT_PREFIX,
        ttl_s: int = DEFAULT_TTL_S,
        timeout_s: float = 2.0,
        first_wait_s: float = 0.25,
        longest_wait_s: float = 10.0,
        reads_at_once: int = READS_AT_ONCE,
        artifact_bytes: Callable[[], int] = lambda: sys.maxsize,
        module_bytes: Callable[[], int] = lambda: sys.maxsize,
        marks: Marks | None = None,
    ) -> None:
        """Store on ``server``, which this tier owns from now on.

        ``marks`` is what this daemon knows of what was evicted.
        What is larger than ``artifact_bytes`` or ``module_bytes``, unpacked, is not read.

        ``timeout_s`` bounds each answer; the waits are the breaker's, from one question
        whether a silent server is back to the next.
        """
        self.link = GuardedRedis(
            server,
            timeout_s=timeout_s,
            first_wait_s=first_wait_s,
            longest_wait_s=longest_wait_s,
        )
        self._sealer = sealer
        self._recorder = recorder
        self.names = KeyNames(prefix)
        self._ttl_s = ttl_s
        self.marks = MarkStore(self.link, self.names, sealer, marks or Marks(), ttl_s)
        self._usage = TierUsage()
        self._watcher: asyncio.Task[None] | None = None
        self._told: set[str] = set()
        self._reading = asyncio.Semaphore(reads_at_once)
        self._artifact_bytes = artifact_bytes
        self._module_bytes = module_bytes
        self._writable = WriteHealth(self.name, self.link)

    @property
    def breaker(self) -> Breaker:
        """What knows whether the server answers."""
        return self.link.breaker

    @property
    def write_refusal(self) -> str:
        """Why the server, which answers, takes no writes; empty while it does."""
        return self._writable.refusal

    async def start(self) -> bool:
        """Ask whether the server answers, and go on looking at it; return whether it did."""
        await self._look()
        if self._watcher is None:
            self._watcher = asyncio.create_task(self._watch())
        return self.breaker.up

    async def get(self, key: CacheKey, allowance: Allowance | None = None) -> Artifact | None:
        """Return the artifact under ``key``, verified. Raises TierUnavailable."""

        def opened(value: bytes) -> Opened[Artifact]:
            found = open_artifact(value, key, self._sealer)
            self.marks.marks.check(found.what)
            return found

        return await self._read(
            self.names.artifact(key),
            opened,
            lambda digest: self.names.artifact_part(key, digest),
            _with_frames,
            self._artifact_bytes(),
            allowance or Allowance(),
            self.marks.names_for(key.module_sha256),
        )

    async def put(self, artifact: Artifact) -> None:
        """Store ``artifact`` for the time to live. Raises TierUnavailable."""
        await self._write(
            self.names.artifact(artifact.key),
            payload_views(artifact.frames),
            lambda digest: self.names.artifact_part(artifact.key, digest),
            lambda body: codec.write_artifact_head(artifact, body, self._sealer.stamp),
        )

    async def get_module(self, sha256: str, allowance: Allowance | None = None) -> Module | None:
        """Return the module with this digest, verified. Raises TierUnavailable."""
        return await self._read(
            self.names.module(sha256),
            lambda value: codec.open_module(value, sha256, self._sealer.check_stamp),
            lambda digest: self.names.module_part(sha256, digest),
            _with_bytes,
            self._module_bytes(),
            allowance or Allowance(),
        )

    async def put_module(self, module: Module) -> None:
        """Store ``module`` for the time to live. Raises TierUnavailable."""
        await self._write(
            self.names.module(module.sha256),
            cut(module.wasm),
            lambda digest: self.names.module_part(module.sha256, digest),
            lambda body: codec.write_module_head(module, body, self._sealer.stamp),
        )

    async def has_module(self, sha256: str) -> bool:
        """Return whether a module is stored; whether it verifies shows when it is read."""
        return (await self.link.exists([self.names.module(sha256)]))[0]

    async def held(self, keys: Sequence[CacheKey]) -> frozenset[CacheKey]:
        """Return which of ``keys`` are stored; whether they verify shows when they are read."""
        found: set[CacheKey] = set()
        for start in range(0, len(keys), _HELD_BATCH):
            batch = keys[start : start + _HELD_BATCH]
            stored = await self.link.exists([self.names.artifact(key) for key in batch])
            found.update(key for key, held in zip(batch, stored, strict=True) if held)
        return frozenset(found)

    async def kinds_of(self, keys: Sequence[CacheKey]) -> Mapping[CacheKey, Kind]:
        """Return the kinds of modules behind artifacts: their heads are read, and no more."""
        return await kinds_at(self.link, self.names, keys, self._sealer.check_stamp)

    async def renew(self, key: CacheKey | str) -> None:
        """Let an artifact and its module, or a module alone, live for the whole time to live
        from now on. Raises TierUnavailable.
        """
        sha256 = key if isinstance(key, str) else key.module_sha256
        names = [self.names.module(sha256)]
        if isinstance(key, CacheKey):
            names.append(self.names.artifact(key))
        check = self._sealer.check_stamp

        def parts_of(name: bytes, head: bytes) -> list[bytes]:
            with contextlib.suppress(ValueRejected):
                if isinstance(key, CacheKey) and name == names[-1]:
                    pieces = codec.open_artifact(head, key, check).body.pieces
                    return [self.names.artifact_part(key, one.sha256) for one in pieces[1:]]
                pieces = codec.open_module(head, sha256, check).body.pieces
                return [self.names.module_part(sha256, one.sha256) for one in pieces[1:]]
            return []

        found, _ = await look_at_heads(self.link, names, parts_of)
        parts = [part for parts in found.values() for part in parts]
        await self.link.prolong(parts, self._ttl_s + PARTS_OUTLIVE_S)
        await self.link.prolong(names, self._ttl_s)

    async def evict(self, scope: EvictScope) -> Evicted:
        """Delete all in ``scope`` under the prefix, and see that it is not put back.

        Takes time linear in the server's keys.
        """
        await self.marks.evict(scope)
        return await sweep(self.link, self.names, scope, self._sealer.check_stamp)

    def usage(self) -> TierUsage:
        """Return what the server said of itself last, other people's keys included."""
        return self._usage

    async def close(self) -> None:
        """Stop looking and close the connections."""
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)
        await self.marks.close()
        await self.link.close()

    async def _read(
        self,
        name: bytes,
        open_head: Callable[[bytes], Opened[V]],
        part_name: Callable[[str], bytes],
        complete: Callable[[V, list[bytes]], V],
        limit_bytes: int,
        allowance: Allowance,
        marks: Mapping[bytes, str] = _NO_MARKS,
    ) -> V | None:
        # What many ask for at once is read in turns: the server's answers would otherwise
        # seem late, while it is this daemon that has no more hands.
        with allowance.while_free(lambda: self.link.prompt):
            await self._reading.acquire()
        try:
            return await self._read_now(
                name, open_head, part_name, complete, limit_bytes, allowance, marks
            )
        finally:
            self._reading.release()

    async def _read_now(
        self,
        name: bytes,
        open_head: Callable[[bytes], Opened[V]],
        part_name: Callable[[str], bytes],
        complete: Callable[[V, list[bytes]], V],
        limit_bytes: int,
        allowance: Allowance,
        marks: Mapping[bytes, str],
    ) -> V | None:
        parts: list[bytes] = []
        value: bytes | None = None
        try:
            stored = await self._with_marks(name, marks)
            if not stored:
                return None
            if len(stored) > MAX_VALUE_BYTES:
                raise ValueRejected(Cause.FORMAT, "the value is longer than any is")
            value = stored
            opened = await off_loop(len(value), open_head, value)
            if opened.body.size_bytes > limit_bytes:
                # Not deleted: daemons with a higher limit use it.
                _log.info("stored value is larger than the limit", key=name.decode())
                return None
            parts = [part_name(piece.sha256) for piece in opened.body.pieces[1:]]
            moving_s = opened.body.stored_bytes / _LEAST_BYTES_PER_S
            allowance.add(moving_s)
            async with asyncio.timeout(self.link.timeout_s + moving_s):
                raw = await self._unpacked(opened, parts)
            return await off_loop(opened.body.size_bytes, complete, opened.what, raw)
        except TimeoutError:
            # Each answer came in time, so that the server is no outage.
            raise TierUnavailable("Redis takes too long for a value of this size") from None
        except WrongType as wrong:
            await self._discard(name, value, parts, ValueRejected(Cause.FORMAT, str(wrong)))
        except ValueRejected as rejected:
            await self._discard(name, value, parts, rejected)
        return None

    async def _with_marks(self, name: bytes, marks: Mapping[bytes, str]) -> bytes:
        """Return what is stored under ``name``, once ``marks`` were read in the same round trip."""

        async def read(names: Sequence[bytes]) -> list[bytes]:
            # One byte too many shows what is too long, however long it is.
            most = [(MAX_MARK_BYTES if each in marks else MAX_VALUE_BYTES) + 1 for each in names]
            return await self.link.beginnings(names, most)

        found, others = await read_strings([name, *marks], read)
        await self.marks.discard(others & marks.keys())
        for each, whose in marks.items():
            if each in found:
                self.marks.learn(whose, found[each])
        if name in others:
            raise no_string()
        return found[name]

    async def _unpacked(self, opened: Opened[V], parts: Sequence[bytes]) -> list[bytes]:
        """Return a value's pieces: some are checked and unpacked while the next are read."""
        body = opened.body
        at_hand: Sequence[bytes | memoryview | None] = [opened.first] if body.pieces else []
        unpacked: list[bytes] = []
        most = [piece.size_bytes + 1 for piece in body.pieces[1:]]
        for start in range(0, len(parts), _PIECES_AT_ONCE):
            these = slice(start, start + _PIECES_AT_ONCE)
            more, found = await asyncio.gather(
                self._unpack(body, len(unpacked), at_hand),
                self.link.beginnings(parts[these], most[these]),
            )
            unpacked += more
            # What is not there reads as empty, which no piece is.
            at_hand = [piece or None for piece in found]
        return unpacked + await self._unpack(body, len(unpacked), at_hand)

    async def _unpack(
        self, body: Body, first: int, stored: Sequence[bytes | memoryview | None]
    ) -> list[bytes]:
        size_bytes = sum(len(piece) for piece in stored if piece is not None)
        return await off_loop(size_bytes, body.unpack, first, stored)

    async def _discard(
        self,
        name: bytes,
        value: bytes | None,
        parts: Sequence[bytes],
        rejected: ValueRejected,
    ) -> None:
        cause = rejected.cause.value
        self._recorder.value_rejected(self.name, cause)
        tell = _log.warning
        if rejected.cause is Cause.INCOMPLETE:
            tell = _log.info  # The server makes room piece by piece: nothing is wrong.
        elif self._was_told(rejected):
            tell = _log.debug
        tell("stored value rejected", key=name.decode(), cause=cause, why=rejected.why)
        with contextlib.suppress(TierUnavailable):  # Else whoever reads it next rejects it again.
            if value is None:  # No string, or longer than any: nobody of us puts that there.
                await self.link.delete([name])
            else:
                await self.link.delete_if(name, value, parts)

    def _was_told(self, rejected: ValueRejected) -> bool:
        """Whether the same was logged before: a fleet with two keys has it at every value."""
        if rejected.cause not in _ONCE or rejected.why in self._told:
            return rejected.cause in _ONCE
        if len(self._told) < _MAX_TOLD:  # Whoever writes to Redis makes up as many as they like.
            self._told.add(rejected.why)
            return False
        return True

    async def _write(
        self,
        name: bytes,
        payload: Sequence[memoryview],
        part_name: Callable[[str], bytes],
        write_head: Callable[[Body], bytes],
    ) -> None:
        """Store all pieces but the first under names of their own, then the value itself.

        So a value is never there before its pieces; they outlive it a little.
        """
        chosen = await off_loop(len(payload) * CHUNK_BYTES, codec_for, payload)
        pieces: list[Piece] = []
        first = b""
        try:
            for raw in payload:
                stored, piece = await off_loop(len(raw), pack, chosen, raw)
                if pieces:
                    await self.link.set(
                        part_name(piece.sha256), stored, self._ttl_s + PARTS_OUTLIVE_S
                    )
                else:
                    first = stored
                pieces.append(piece)
            body = Body(chosen, sum(len(raw) for raw in payload), tuple(pieces))
            await self.link.set(name, write_head(body) + first, self._ttl_s)
        except PartUnavailable:
            raise  # The rest takes writes.
        except TierUnavailable as refusal:
            if not self.breaker.open:
                self._writable.refused(name, str(refusal))
            raise
        self._writable.taken()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            await self._look()

    async def _look(self) -> None:
        # If the server is down, the breaker said so, and goes on asking by itself.
        with contextlib.suppress(TierUnavailable):
            self._usage = await self.link.usage()
            if not self.link.is_one_place:
                await self.marks.refresh()
        await self._writable.try_again()


def _with_frames(artifact: Artifact, raw: list[bytes]) -> Artifact:
    return dataclasses.replace(artifact, frames=tuple(map(frame, raw)))


def _with_bytes(module: Module, raw: list[bytes]) -> Module:
    return codec.check_module(dataclasses.replace(module, wasm=b"".join(raw)))
