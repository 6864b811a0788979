"""The tier on a server that speaks the Redis protocol."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Callable, Mapping, Sequence

import structlog

from wasmkilnd.cache.redis.breaker import Breaker
from wasmkilnd.cache.redis.guarded import FOR_EVER, GuardedRedis
from wasmkilnd.cache.redis.lookups import READS_AT_ONCE, Lookups
from wasmkilnd.cache.redis.mark_store import MarkStore
from wasmkilnd.cache.redis.rejections import Rejections
from wasmkilnd.cache.redis.scan import look_at_heads
from wasmkilnd.cache.redis.server import RedisServer
from wasmkilnd.cache.redis.sweep import kinds_at, sweep
from wasmkilnd.cache.redis.value_reader import ValueReader
from wasmkilnd.cache.redis.value_writer import ValueWriter, WriteHealth
from wasmkilnd.cache.value import format as value_format
from wasmkilnd.cache.value.format import open_head
from wasmkilnd.cache.value.marks import Marks
from wasmkilnd.cache.value.names import KeyNames, ValueKey
from wasmkilnd.cache.value.pieces import PARTS_OUTLIVE_S, Body, cut, decoded
from wasmkilnd.cache.value.rejected import ValueRejected
from wasmkilnd.errors import PartUnavailable, TierUnavailable
from wasmkilnd.model import (
    Artifact,
    CacheKey,
    Evicted,
    EvictScope,
    IsPinned,
    Kind,
    Module,
    TierUsage,
    nothing_pinned,
)
from wasmkilnd.ports import Recorder
from wasmkilnd.signing.sealer import Sealer
from wasmkilnd.wait_budget import Allowance
from wasmkilnd.wire import payload_views

DEFAULT_PREFIX = "wasm:"
DEFAULT_TTL_S = 7 * 24 * 3600

_LOOK_EVERY_S = 5.0
_HELD_BATCH = 1000

_log = structlog.get_logger("wasmkilnd.cache")


class RedisTier:
    """Keeps artifacts and modules on a server that other daemons share.

    Trusts nothing that the server returns: a value that does not verify is deleted,
    counted, logged, and a miss.
    """

    name = "redis"

    def __init__(
        self,
        server: RedisServer | GuardedRedis,
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
        reports_usage: bool = True,
        is_pinned: IsPinned = nothing_pinned,
    ) -> None:
        """Store on ``server``, and close it at the end, unless it is a link that others use too.

        Without ``reports_usage``, ``usage`` returns zeros. ``marks`` are the evictions that this
        daemon knows of. Payloads larger than ``artifact_bytes`` or ``module_bytes`` are not read.
        Values of modules that ``is_pinned`` returns True for get no time to live.
        ``timeout_s`` bounds each reply; the two waits are the breaker's: how long it waits before
        it asks a silent server again. A link has its own.
        """
        self._is_shared = isinstance(server, GuardedRedis)
        self._reports_usage = reports_usage
        self.link = (
            server
            if isinstance(server, GuardedRedis)
            else GuardedRedis(
                server,
                timeout_s=timeout_s,
                first_wait_s=first_wait_s,
                longest_wait_s=longest_wait_s,
            )
        )
        self._sealer = sealer
        self.names = KeyNames(prefix)
        self._ttl_s = ttl_s
        self._is_pinned = is_pinned
        self.marks = MarkStore(self.link, self.names, sealer, marks or Marks(), ttl_s)
        self._writer = ValueWriter(self.link, self.names)
        self._lookups = Lookups(
            self.link,
            self.names,
            ValueReader(self.link, self.names, sealer),
            self.marks,
            Rejections(self.name, self.link, recorder),
            sealer,
            reads_at_once,
        )
        self._usage = TierUsage()
        self._watcher: asyncio.Task[None] | None = None
        self._artifact_bytes = artifact_bytes
        self._module_bytes = module_bytes
        self._write_health = WriteHealth(self.name, self.link)

    @property
    def breaker(self) -> Breaker:
        """The breaker, which knows whether the server answers."""
        return self.link.breaker

    @property
    def write_refusal(self) -> str:
        """Why the server, which answers, refuses writes; empty while it takes them."""
        return self._write_health.refusal

    async def start(self) -> bool:
        """Start to watch the server; return whether it answers now."""
        await self._look()
        if self._watcher is None:
            self._watcher = asyncio.create_task(self._watch())
        return self.breaker.up

    async def get(
        self,
        key: CacheKey,
        allowance: Allowance | None = None,
        accept: frozenset[str] = frozenset(),
    ) -> Artifact | None:
        """Return the artifact under ``key``, verified. Raises TierUnavailable."""
        value_key = ValueKey(key.module_sha256, key.fingerprint)
        limit_bytes = self._artifact_bytes()
        found = await self._lookups.get(value_key, limit_bytes, allowance or Allowance(), accept)
        return found if isinstance(found, Artifact) else None

    async def put(self, artifact: Artifact) -> None:
        """Store ``artifact`` for the time to live. Raises TierUnavailable."""
        if artifact.encoding:
            artifact = await asyncio.to_thread(decoded, artifact)
        await self._write(
            ValueKey(artifact.module_sha256, artifact.spec.fingerprint),
            payload_views(artifact.frames),
            lambda body: value_format.write_artifact_head(artifact, body, self._sealer.stamp),
        )

    async def get_module(self, sha256: str, allowance: Allowance | None = None) -> Module | None:
        """Return the module with this digest, verified. Raises TierUnavailable."""
        found = await self._lookups.get(
            ValueKey(sha256), self._module_bytes(), allowance or Allowance()
        )
        return found if isinstance(found, Module) else None

    async def put_module(self, module: Module) -> None:
        """Store ``module`` for the time to live. Raises TierUnavailable."""
        await self._write(
            ValueKey(module.sha256),
            cut(module.wasm),
            lambda body: value_format.write_module_head(module, body, self._sealer.stamp),
        )

    async def has_module(self, sha256: str) -> bool:
        """Return whether a module is stored, without verifying it."""
        return (await self.link.exists([self.names.module(sha256)]))[0]

    async def held(self, keys: Sequence[CacheKey]) -> frozenset[CacheKey]:
        """Return which of ``keys`` are stored, without verifying them."""
        found: set[CacheKey] = set()
        for start in range(0, len(keys), _HELD_BATCH):
            batch = keys[start : start + _HELD_BATCH]
            stored = await self.link.exists([self.names.artifact(key) for key in batch])
            found.update(key for key, held in zip(batch, stored, strict=True) if held)
        return frozenset(found)

    async def kinds_of(self, keys: Sequence[CacheKey]) -> Mapping[CacheKey, Kind]:
        """Return the kinds of the modules behind artifacts, from the artifacts' heads alone."""
        return await kinds_at(self.link, self.names, keys, self._sealer.check_stamp)

    async def renew(self, key: CacheKey | str) -> None:
        """Restart the time to live of an artifact and its module, or of a module alone.

        Raises TierUnavailable.
        """
        keys = [ValueKey(key if isinstance(key, str) else key.module_sha256)]
        if self._is_pinned(keys[0].module_sha256):
            return  # It has none.
        if isinstance(key, CacheKey):
            keys.append(ValueKey(key.module_sha256, key.fingerprint))
        by_name = {self.names.value(each): each for each in keys}

        def parts_of(name: bytes, head: bytes) -> list[bytes]:
            try:
                opened = open_head(head, by_name[name], self._sealer.check_stamp)
            except ValueRejected:
                return []
            return [self.names.part(by_name[name], p.sha256) for p in opened.body.pieces[1:]]

        found, _ = await look_at_heads(self.link, list(by_name), parts_of)
        parts = [part for parts in found.values() for part in parts]
        await self.link.prolong(parts, self._ttl_s + PARTS_OUTLIVE_S)
        await self.link.prolong(list(by_name), self._ttl_s)

    async def evict(self, scope: EvictScope) -> Evicted:
        """Delete all in ``scope`` under the prefix, and mark it, so that no copy is used again.

        Takes time linear in the number of the server's keys.
        """
        await self.marks.evict(scope)
        return await sweep(self.link, self.names, scope, self._sealer.check_stamp)

    def usage(self) -> TierUsage:
        """Return what the server reported last, the keys of other clients included."""
        return self._usage

    async def close(self) -> None:
        """Stop watching, and close the connections that are this tier's own."""
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)
        await self.marks.close()
        if not self._is_shared:
            await self.link.close()

    async def _write(
        self, key: ValueKey, payload: Sequence[memoryview], write_head: Callable[[Body], bytes]
    ) -> None:
        try:
            ttl_s = FOR_EVER if self._is_pinned(key.module_sha256) else self._ttl_s
            await self._writer.pack(key, payload, write_head, ttl_s)
        except PartUnavailable:
            raise  # The other nodes of the cluster take writes.
        except TierUnavailable as refusal:
            if not self.breaker.open:
                self._write_health.refused(self.names.value(key), str(refusal))
            raise
        self._write_health.taken()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            await self._look()

    async def _look(self) -> None:
        # If the server is down, the breaker has logged it and asks again by itself.
        with contextlib.suppress(TierUnavailable):
            if self._reports_usage:
                self._usage = await self.link.usage()
            if not self.link.is_one_place:
                await self.marks.refresh()
        await self._write_health.try_again()
