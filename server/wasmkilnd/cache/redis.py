"""The shared tier: a server that speaks Redis's protocol."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import TypeVar

import structlog
from redis.asyncio import Redis

from wasmkilnd.cache import codec
from wasmkilnd.cache.breaker import Breaker
from wasmkilnd.cache.keys import KeyNames
from wasmkilnd.cache.link import RedisLink
from wasmkilnd.cache.rejected import Cause, ValueRejected
from wasmkilnd.cache.sweep import kind_at, sweep
from wasmkilnd.errors import TierUnavailable
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

V = TypeVar("V", Artifact, Module)

DEFAULT_PREFIX = "wasm:"
DEFAULT_TTL_S = 7 * 24 * 3600

# Below this, handing a value to a thread costs more than checking it.
_INLINE_BYTES = 64 * 1024
_LOOK_EVERY_S = 5.0
_HELD_BATCH = 1000
_ONCE = frozenset({Cause.UNSIGNED, Cause.STRANGER})
_MAX_TOLD = 64

_log = structlog.get_logger("wasmkilnd.cache")


class RedisTier:
    """Keeps artifacts and modules on a server that other daemons share.

    Nothing that the server answers is believed: a value that does not verify is
    deleted, counted, logged, and a miss.
    """

    name = "redis"

    def __init__(
        self,
        client: Redis,
        sealer: Sealer,
        recorder: Recorder,
        *,
        prefix: str = DEFAULT_PREFIX,
        ttl_s: int = DEFAULT_TTL_S,
        timeout_s: float = 2.0,
        first_wait_s: float = 0.25,
        longest_wait_s: float = 10.0,
    ) -> None:
        """Store through ``client``, which this tier owns from now on.

        ``timeout_s`` bounds each look-up as a whole; the waits are the breaker's,
        from one question whether a silent server is back to the next.
        """
        self._link = RedisLink(
            client,
            timeout_s=timeout_s,
            first_wait_s=first_wait_s,
            longest_wait_s=longest_wait_s,
        )
        self._sealer = sealer
        self._recorder = recorder
        self._names = KeyNames(prefix)
        self._ttl_s = ttl_s
        self._usage = TierUsage()
        self._watcher: asyncio.Task[None] | None = None
        self._told: set[str] = set()
        self.write_refusal = ""
        """Why the server, which answers, takes no writes; empty while it does."""

    @property
    def breaker(self) -> Breaker:
        """What knows whether the server answers."""
        return self._link.breaker

    async def start(self) -> bool:
        """Ask whether the server answers, and go on looking at it; answer whether it did."""
        await self._look()
        if self._watcher is None:
            self._watcher = asyncio.create_task(self._watch())
        return self.breaker.up

    async def get(self, key: CacheKey) -> Artifact | None:
        """Answer the artifact under ``key``, verified. Raises TierUnavailable."""
        return await self._read(self._names.artifact(key), lambda value: self._open(value, key))

    async def put(self, artifact: Artifact) -> None:
        """Store ``artifact`` for the time to live. Raises TierUnavailable."""
        await self._write(self._names.artifact(artifact.key), codec.encode_artifact(artifact))

    async def get_module(self, sha256: str) -> Module | None:
        """Answer the module with this digest, verified. Raises TierUnavailable."""
        name = self._names.module(sha256)
        return await self._read(name, lambda value: codec.decode_module(value, sha256))

    async def put_module(self, module: Module) -> None:
        """Store ``module`` for the time to live. Raises TierUnavailable."""
        await self._write(self._names.module(module.sha256), codec.encode_module(module))

    async def held(self, keys: Sequence[CacheKey]) -> frozenset[CacheKey]:
        """Answer which of ``keys`` are stored; whether they verify shows when they are read."""
        found: set[CacheKey] = set()
        for start in range(0, len(keys), _HELD_BATCH):
            batch = keys[start : start + _HELD_BATCH]
            stored = await self._link.exists([self._names.artifact(key) for key in batch])
            found.update(key for key, held in zip(batch, stored, strict=True) if held)
        return frozenset(found)

    async def kind_of(self, key: CacheKey) -> Kind | None:
        """Answer the kind of module behind an artifact: its header is read, and no more."""
        return await kind_at(self._link, self._names.artifact(key))

    async def evict(self, scope: EvictScope) -> Evicted:
        """Delete all in ``scope`` under the prefix. Takes time linear in the server's keys."""
        return await sweep(self._link, self._names, scope)

    def usage(self) -> TierUsage:
        """Answer what the server said of itself last, other people's keys included."""
        return self._usage

    async def close(self) -> None:
        """Stop looking and close the connections."""
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)
        await self._link.close()

    def _open(self, value: bytes, key: CacheKey) -> Artifact:
        artifact = codec.decode_artifact(value, key)
        try:
            refusal = self._sealer.verify(artifact, key)
        except Exception as error:
            # An envelope that its reader trips over is vouched for by nobody.
            why = f"the attestation cannot be read ({type(error).__name__})"
            raise ValueRejected(Cause.MISMATCH, why) from None
        if refusal:
            raise ValueRejected(Cause(refusal.cause), refusal.why)
        return artifact

    async def _read(self, name: bytes, decode: Callable[[bytes], V]) -> V | None:
        value = await self._link.get(name)
        if value is None:
            return None
        try:
            if len(value) < _INLINE_BYTES:
                return decode(value)
            return await asyncio.to_thread(decode, value)
        except ValueRejected as rejected:
            await self._discard(name, rejected)
            return None

    async def _discard(self, name: bytes, rejected: ValueRejected) -> None:
        cause = rejected.cause.value
        self._recorder.value_rejected(self.name, cause)
        tell = _log.debug if self._was_told(rejected) else _log.warning
        tell("stored value rejected", key=name.decode(), cause=cause, why=rejected.why)
        with contextlib.suppress(TierUnavailable):  # Else whoever reads it next rejects it again.
            await self._link.delete([name])

    def _was_told(self, rejected: ValueRejected) -> bool:
        """Whether the same was logged before: a fleet with two keys has it at every value."""
        if rejected.cause not in _ONCE or rejected.why in self._told:
            return rejected.cause in _ONCE
        if len(self._told) < _MAX_TOLD:  # Whoever writes to Redis makes up as many as they like.
            self._told.add(rejected.why)
            return False
        return True

    async def _write(self, name: bytes, pieces: Sequence[codec.Piece]) -> None:
        try:
            await self._link.set(name, pieces, self._ttl_s)
        except TierUnavailable as refusal:
            if not self.breaker.open and not self.write_refusal:
                # Full, or read-only after a failover: told once, not for each write.
                _log.warning("tier takes no writes", tier=self.name, detail=str(refusal))
                self.write_refusal = str(refusal)
            raise
        if self.write_refusal:
            _log.info("tier takes writes again", tier=self.name)
            self.write_refusal = ""

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            await self._look()

    async def _look(self) -> None:
        # If the server is down, the breaker said so, and goes on asking by itself.
        with contextlib.suppress(TierUnavailable):
            self._usage = await self._link.usage()
