"""Writes to the shared tier, behind the caller's back.

No reply waits for one. What waits is bounded: when it is full the oldest write
is dropped, since the newest is the likeliest to be asked for, and counted.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from typing import overload

import structlog

from wasmkilnd.errors import TierUnavailable
from wasmkilnd.model import Artifact, CacheKey, EvictScope, Module
from wasmkilnd.ports import Tier

log = structlog.get_logger("wasmkilnd.cache")

_MAX_WAITING = 10_000
# How long a tier that is down may keep the daemon from ending.
_OUTAGE_S = 0.5


class WriteBehind:
    """A bounded queue of stores to ``tier``. For one event loop.

    One item is taken whatever its size, if need be alone. A newer write of a key
    takes the place of the one that waits. A write that
    fails is given up and counted: the tier's next reader misses, and somebody
    compiles or loads again.
    """

    def __init__(
        self,
        tier: Tier,
        limit_bytes: int,
        ready: Callable[[], Awaitable[None]],
        head_start_s: float = 0.0,
    ) -> None:
        """Write to ``tier`` whenever ``ready`` returns; until then writes wait their turn.

        The first of several waits ``head_start_s`` more: what made it is a reply that is
        still being sent, and megabytes to Redis at the same time would take its CPU.
        """
        self._head_start_s = head_start_s
        self._tier = tier
        self._ready = ready
        self._limit_bytes = limit_bytes
        self._waiting: OrderedDict[CacheKey | str, Artifact | Module] = OrderedDict()
        self._waiting_bytes = 0
        self._under_way: dict[CacheKey | str, Artifact | Module] = {}  # One at most.
        self._one_done = asyncio.Event()
        self._one_write = asyncio.Lock()
        self._dropped = 0
        self._work = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._writer: asyncio.Task[None] | None = None

    @property
    def pending(self) -> int:
        """Writes that wait or are under way."""
        return len(self._waiting) + len(self._under_way)

    @property
    def dropped(self) -> int:
        """Writes that were given up since the start."""
        return self._dropped

    def add(self, item: Artifact | Module) -> None:
        """Have ``item`` stored soon. Returns at once and never raises."""
        size_bytes = _size(item)
        key = item.key if isinstance(item, Artifact) else item.sha256
        if key in self._waiting:
            self._waiting_bytes -= _size(self._waiting.pop(key))
        while self._waiting and (
            self._waiting_bytes + size_bytes > self._limit_bytes
            or len(self._waiting) >= _MAX_WAITING
        ):
            _, oldest = self._waiting.popitem(last=False)
            self._waiting_bytes -= _size(oldest)
            self._drop(1)
        self._waiting[key] = item
        self._waiting_bytes += size_bytes
        self._idle.clear()
        self._work.set()
        if self._writer is None:
            self._writer = asyncio.create_task(self._write())

    @overload
    def waiting(self, key: CacheKey) -> Artifact | None: ...
    @overload
    def waiting(self, key: str) -> Module | None: ...
    def waiting(self, key: CacheKey | str) -> Artifact | Module | None:
        """Answer what waits, or is under way, under ``key``: it is as good as stored."""
        return self._waiting.get(key) or self._under_way.get(key)

    def artifacts(self) -> list[Artifact]:
        """Answer the artifacts that wait or are under way."""
        items = (*self._waiting.values(), *self._under_way.values())
        return [item for item in items if isinstance(item, Artifact)]

    def give_up(self, refused: Sequence[Artifact]) -> None:
        """Neither write nor serve ``refused`` any more; what is under way is seen to its end."""
        for artifact in refused:
            key = artifact.key
            if self._waiting.get(key) is artifact:
                self._waiting_bytes -= _size(self._waiting.pop(key))
            if self._under_way.get(key) is artifact:
                del self._under_way[key]
        self._tell_one_done()

    async def settled(self, key: CacheKey | str) -> None:
        """Return when nothing is to be written under ``key`` any more: it was, or was given up."""
        while key in self._waiting or key in self._under_way:
            await self._one_done.wait()

    async def forget(self, scope: EvictScope) -> None:
        """Give up what waits in ``scope``, and see what is being written to its end.

        So an eviction that comes after is not undone by a write from before.
        """
        for key in [key for key, item in self._waiting.items() if _in_scope(item, scope)]:
            self._waiting_bytes -= _size(self._waiting.pop(key))
        self._tell_one_done()
        if any(_in_scope(item, scope) for item in self._under_way.values()):
            async with self._one_write:
                pass

    async def flush(self, timeout_s: float) -> None:
        """Write what waits, for at most ``timeout_s``, and only as long as the tier takes writes.

        An outage is given a moment to pass.
        """
        idle = asyncio.create_task(self._idle.wait())
        try:
            async with asyncio.timeout(timeout_s):
                while not idle.done():
                    async with asyncio.timeout(_OUTAGE_S):
                        await self._ready()
                    await asyncio.wait((idle,), timeout=_OUTAGE_S)
        except TimeoutError:
            pass  # What is left waits on.
        finally:
            idle.cancel()

    async def close(self, timeout_s: float) -> None:
        """Write what waits as flush does, give up the rest, and stop."""
        if self._writer is None:
            return
        if timeout_s:
            await self.flush(timeout_s)
        if self.pending:
            log.warning("cache writes given up", writes=self.pending)
            given_up = self.pending
            self._waiting.clear()
            self._waiting_bytes = 0
            self._drop(given_up)
        self._writer.cancel()
        await asyncio.gather(self._writer, return_exceptions=True)

    async def _write(self) -> None:
        while True:
            await self._work.wait()
            if self._head_start_s:
                await asyncio.sleep(self._head_start_s)
            while self._waiting:
                # An outage must not burn what waits: some of it is still there afterwards.
                await self._ready()
                if not self._waiting:
                    break
                key, item = self._waiting.popitem(last=False)
                self._under_way[key] = item
                self._waiting_bytes -= _size(item)
                try:
                    async with self._one_write:
                        if isinstance(item, Artifact):
                            await self._tier.put(item)
                        else:
                            await self._tier.put_module(item)
                except TierUnavailable:
                    self._drop(1)  # The tier says why, once; its metrics count each.
                except Exception:
                    self._drop(1)
                    log.exception("cache write failed")
                finally:
                    self._under_way.clear()
                    self._tell_one_done()
            self._work.clear()
            self._idle.set()

    def _drop(self, count: int) -> None:
        self._dropped += count
        self._tell_one_done()

    def _tell_one_done(self) -> None:
        self._one_done.set()
        self._one_done = asyncio.Event()


def _in_scope(item: Artifact | Module, scope: EvictScope) -> bool:
    if scope.engine_id:
        return isinstance(item, Artifact) and item.spec.engine.id == scope.engine_id
    sha256 = item.module_sha256 if isinstance(item, Artifact) else item.sha256
    return scope.everything or sha256 == scope.module_sha256


def _size(item: Artifact | Module) -> int:
    return item.size_bytes if isinstance(item, Artifact) else len(item.wasm)
