"""The shared tier: any server that speaks the Redis protocol.

Only commands that managed services allow are used: GET, SET, EXISTS, GETRANGE,
STRLEN, UNLINK, SCAN, PING, DBSIZE and INFO, and the daemon lives without the
last two.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any, TypeVar

import structlog
from redis import exceptions
from redis.asyncio import Redis

from wasmkilnd.cache import codec
from wasmkilnd.cache.breaker import Breaker
from wasmkilnd.cache.rejected import Cause, ValueRejected
from wasmkilnd.errors import TierUnavailable
from wasmkilnd.model import Artifact, CacheKey, Evicted, EvictScope, Kind, Module, TierUsage
from wasmkilnd.ports import Recorder, Sealer

log = structlog.get_logger("wasmkilnd.cache")

V = TypeVar("V")

# Decoding hashes and copies: more than this is done in a thread, beside other calls.
_INLINE_BYTES = 64 * 1024
_SCAN_COUNT = 1000
_BATCH = 200
_USAGE_INTERVAL_S = 5.0
_ONCE = frozenset({Cause.UNSIGNED, Cause.STRANGER})
_MAX_TOLD = 64
_WRONG_CREDENTIALS = (
    exceptions.AuthenticationError,
    exceptions.AuthenticationWrongNumberOfArgsError,
)


class RedisTier:
    """Artifacts and modules under keys that others can read in docs/operations.md.

    Every value is verified against its key before anything else touches it; one
    that does not verify is deleted, counted, logged, and a miss.
    """

    name = "redis"

    def __init__(
        self, client: Redis, sealer: Sealer, recorder: Recorder, *, prefix: str, ttl_s: int
    ) -> None:
        self._client = client
        self._sealer = sealer
        self._recorder = recorder
        self._artifact_prefix = f"{prefix}compiled:"
        self._module_prefix = f"{prefix}module:"
        self._ttl_s = ttl_s
        self._usage = TierUsage()
        self.breaker = Breaker(self.name, self._ping, _is_outage, explain)
        self.write_refusal = ""
        """Why the server, which answers, takes no writes; empty while it does."""
        self._told: set[str] = set()
        self._watcher: asyncio.Task[None] | None = None

    async def start(self) -> bool:
        """Ask whether the server answers, and go on watching it; answer whether it did."""
        self._watcher = asyncio.create_task(self._watch())
        try:
            await self.breaker.call(self._ping)
        except TierUnavailable:
            return False
        await self._refresh_usage()
        return True

    async def get(self, key: CacheKey) -> Artifact | None:
        """Answer the artifact under ``key``, verified. Raises TierUnavailable."""
        name = self._artifact_key(key)
        value: Any = await self.breaker.call(lambda: self._client.get(name))
        if value is None:
            return None

        def decode() -> Artifact:
            artifact = codec.decode_artifact(value, key)
            if refusal := self._sealer.verify(artifact, key):
                raise ValueRejected(Cause(refusal.cause), refusal.why)
            return artifact

        return await self._verified(name, decode, len(value))

    async def put(self, artifact: Artifact) -> None:
        """Store ``artifact``. Raises TierUnavailable."""
        await self._set(self._artifact_key(artifact.key), codec.encode_artifact(artifact))

    async def get_module(self, sha256: str) -> Module | None:
        """Answer the module, verified. Raises TierUnavailable."""
        name = self._module_key(sha256)
        value: Any = await self.breaker.call(lambda: self._client.get(name))
        if value is None:
            return None
        return await self._verified(name, lambda: codec.decode_module(value, sha256), len(value))

    async def put_module(self, module: Module) -> None:
        """Store ``module``. Raises TierUnavailable."""
        await self._set(self._module_key(module.sha256), codec.encode_module(module))

    async def held(self, keys: Sequence[CacheKey]) -> frozenset[CacheKey]:
        """Answer which of ``keys`` are stored. Raises TierUnavailable."""
        held: set[CacheKey] = set()
        for start in range(0, len(keys), _SCAN_COUNT):
            batch = keys[start : start + _SCAN_COUNT]
            there = await self._pipelined("exists", [self._artifact_key(key) for key in batch])
            held.update(key for key, exists in zip(batch, there, strict=True) if exists)
        return frozenset(held)

    async def kind_of(self, key: CacheKey) -> Kind | None:
        """Answer the kind of module behind an artifact: its header is read, and no more."""
        name = self._artifact_key(key)
        with contextlib.suppress(ValueRejected):
            [head] = await self._pipelined("getrange", [name], 0, codec.HEADER_OFFSET - 1)
            if head:
                return codec.kind_of(await self._head(name, codec.header_end(head)))
        return None

    async def evict(self, scope: EvictScope) -> Evicted:
        """Remove all in ``scope``, looking through the key space. Raises TierUnavailable."""
        gone = Evicted()
        if not scope.engine_id:
            pattern = f"{_escaped(self._module_prefix)}{{{scope.module_sha256 or '*'}}}"
            async for names in self._scan(pattern):
                count, size_bytes = await self._unlink(names)
                gone += Evicted(modules=count, bytes=size_bytes)
        pattern = f"{_escaped(self._artifact_prefix)}{{{scope.module_sha256 or '*'}}}:*"
        async for names in self._scan(pattern):
            if scope.engine_id:
                names = await self._of_engine(names, scope.engine_id)
            count, size_bytes = await self._unlink(names)
            gone += Evicted(artifacts=count, bytes=size_bytes)
        return gone

    def usage(self) -> TierUsage:
        """Answer the whole server's figures, up to 5 s old."""
        return self._usage

    async def close(self) -> None:
        """Close every connection."""
        if self._watcher:
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)
        await self.breaker.close()
        with contextlib.suppress(exceptions.RedisError, OSError):
            await self._client.aclose()

    def _artifact_key(self, key: CacheKey) -> str:
        return f"{self._artifact_prefix}{{{key.module_sha256}}}:{key.fingerprint}"

    def _module_key(self, sha256: str) -> str:
        return f"{self._module_prefix}{{{sha256}}}"

    async def _ping(self) -> None:
        # A user that may not ask so was answered all the same.
        with contextlib.suppress(exceptions.NoPermissionError):
            await self._client.ping()

    async def _set(self, name: str, pieces: Sequence[codec.Piece]) -> None:
        value = b"".join(pieces)
        try:
            await self.breaker.call(lambda: self._client.set(name, value, ex=self._ttl_s))
        except TierUnavailable as refusal:
            if not self.breaker.open and not self.write_refusal:
                # Full, or read-only after a failover: told once, not for each write.
                log.warning("tier takes no writes", tier=self.name, detail=str(refusal))
                self.write_refusal = str(refusal)
            raise
        if self.write_refusal:
            log.info("tier takes writes again", tier=self.name)
            self.write_refusal = ""

    async def _verified(self, name: str, decode: Callable[[], V], size_bytes: int) -> V | None:
        try:
            if size_bytes <= _INLINE_BYTES:
                return decode()
            return await asyncio.to_thread(decode)
        except ValueRejected as rejected:
            self._recorder.value_rejected(self.name, rejected.cause.value)
            tell = log.debug if self._was_told(rejected) else log.warning
            tell("stored value rejected", key=name, cause=rejected.cause.value, why=rejected.why)
        with contextlib.suppress(TierUnavailable):  # Else whoever reads it next rejects it again.
            await self.breaker.call(lambda: self._client.unlink(name))
        return None

    def _was_told(self, rejected: ValueRejected) -> bool:
        """Whether the same was logged before: a fleet with two keys has it at every value."""
        if rejected.cause not in _ONCE or rejected.why in self._told:
            return rejected.cause in _ONCE
        if len(self._told) < _MAX_TOLD:  # Whoever writes to Redis makes up as many as they like.
            self._told.add(rejected.why)
            return False
        return True

    async def _pipelined(self, command: str, names: Sequence[str | bytes], *args: Any) -> list[Any]:
        if not names:
            return []

        async def ask() -> list[Any]:
            async with self._client.pipeline(transaction=False) as pipeline:
                for name in names:
                    getattr(pipeline, command)(name, *args)
                answers: list[Any] = await pipeline.execute()
                return answers

        return await self.breaker.call(ask)

    async def _scan(self, pattern: str) -> AsyncIterator[list[bytes]]:
        cursor = 0
        while True:
            at = cursor
            answer: Any = await self.breaker.call(
                lambda at=at: self._client.scan(at, match=pattern, count=_SCAN_COUNT)  # type: ignore[misc]
            )
            cursor, names = answer
            for start in range(0, len(names), _BATCH):
                yield names[start : start + _BATCH]
            if cursor == 0:
                return

    async def _unlink(self, names: Sequence[bytes]) -> tuple[int, int]:
        if not names:
            return 0, 0
        sizes = await self._pipelined("strlen", names)
        removed = await self._pipelined("unlink", names)
        return sum(removed), sum(size for size, gone in zip(sizes, removed, strict=True) if gone)

    async def _of_engine(self, names: Sequence[bytes], engine_id: str) -> list[bytes]:
        """Answer those whose header says the engine: headers are read, never whole values."""
        heads = await self._pipelined("getrange", names, 0, codec.HEADER_OFFSET - 1)
        wanted = []
        for name, head in zip(names, heads, strict=True):
            try:
                start = await self._head(name, codec.header_end(head))
                if codec.engine_of(start) == engine_id:
                    wanted.append(name)
            except ValueRejected:
                continue
        return wanted

    async def _head(self, name: str | bytes, end: int) -> bytes:
        [start] = await self._pipelined("getrange", [name], 0, end - 1)
        return bytes(start)

    async def _watch(self) -> None:
        """Keep the figures fresh, and notice an outage that no call meets."""
        while True:
            await asyncio.sleep(_USAGE_INTERVAL_S)
            if not self.breaker.open:
                await self._refresh_usage()

    async def _refresh_usage(self) -> None:
        try:
            entries = await self.breaker.call(self._client.dbsize)
            memory = await self.breaker.call(lambda: self._client.info("memory"))
            stats = await self.breaker.call(lambda: self._client.info("stats"))
        except TierUnavailable:
            return  # Down, which the breaker knows, or a service that refuses these.
        self._usage = TierUsage(
            entries=_whole(entries),
            bytes=_whole(memory.get("used_memory")),
            limit_bytes=_whole(memory.get("maxmemory")),
            evictions=_whole(stats.get("evicted_keys")),
        )


def explain(error: Exception) -> str:
    """Word an error of the Redis client for logs and Stats, without any secret."""
    if any(isinstance(one, _WRONG_CREDENTIALS) for one in _chain(error)):
        return "Redis refuses the user or password"
    if isinstance(error, exceptions.TimeoutError | TimeoutError):
        return "Redis does not answer in time"
    if isinstance(error, exceptions.BusyLoadingError):
        return "Redis is loading its data"
    if isinstance(error, exceptions.InvalidResponse):
        return "what answers does not speak the Redis protocol"
    if isinstance(error, exceptions.ResponseError):
        # The server's own word, which may quote arguments: only its beginning is told.
        return f"Redis says no: {str(error)[:120]}"
    if isinstance(error, exceptions.ConnectionError | OSError):
        cause = error.__cause__ or error.__context__ or error
        if isinstance(cause, OSError) and cause.strerror:
            return f"Redis cannot be reached: {cause.strerror}"
        return f"Redis cannot be reached ({type(cause).__name__})"
    return f"Redis failed ({type(error).__name__})"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error:
        yield error
        error = error.__cause__ or error.__context__


def _is_outage(error: Exception) -> bool:
    """Tell a server that nobody can use now from one that answers, even if it says no."""
    if isinstance(error, exceptions.ResponseError):
        return isinstance(error, (*_WRONG_CREDENTIALS, exceptions.ClusterDownError))
    return isinstance(error, exceptions.RedisError | OSError | TimeoutError)


def _escaped(prefix: str) -> str:
    return re.sub(r"([*?\[\]\\^])", r"\\\1", prefix)


def _whole(value: object) -> int:
    return value if isinstance(value, int) else 0
