"""What is written to the tiers below memory, after the call that made it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, cast

import structlog

from wasmkilnd import model, wire
from wasmkilnd.cache.host_store import HostStore
from wasmkilnd.cache.object_store import ObjectStore
from wasmkilnd.cache.redis_store import RedisStore
from wasmkilnd.errors import TierUnavailable
from wasmkilnd.model import Artifact, CacheKey, Item, Module
from wasmkilnd.telemetry import tracing

Below: TypeAlias = "HostStore | RedisStore | ObjectStore"

_MAX_ITEMS = 10_000
# How long a tier that is down may delay the end of the daemon.
_OUTAGE_S = 0.5
# The reply that caused a write is still being sent: sending megabytes to the tier at the same
# time would slow it down.
_HEAD_START_S = 0.05


# An item, whether its first try is to come, and the call that it is written for.
_Waiting: TypeAlias = tuple[Item, bool, tracing.CallTrace | None]


class Writes:
    """Writes to one tier below memory, ``at_once`` at a time. For one event loop.

    The queue is bounded. When it is full it drops artifacts before modules, the oldest first: a
    missing artifact costs other daemons a compile, a missing module costs callers
    MODULE_NOT_LOADED. It always takes the newest item, and never drops a module for its own
    artifact or the other way round, so that both are written whatever their sizes. Each write
    that is dropped is counted and logged.

    A newer write of a key replaces the one that waits. A write that finds the tier down is tried
    once more when it is back; one that fails otherwise is dropped, so the next reader misses.
    """

    def __init__(
        self, tier: Below | None, limit_bytes: Callable[[], int], at_once: int = 1
    ) -> None:
        """For None, take nothing."""
        # How many writes were dropped since the start, and the bytes of those that wait.
        self.dropped = self._bytes = 0
        self._tier = tier
        # It tells an outage from a refusal, and when that is over.
        self._link = None if tier is None or isinstance(tier, HostStore) else tier.link
        self._log = structlog.get_logger("wasmkilnd.cache", tier=tier.name if tier else "")
        self._limit_bytes = limit_bytes
        self._queue: dict[CacheKey | str, _Waiting] = {}
        self._under_way = list[_Waiting]()  # They are in the queue too, unless they are given up.
        self._change, self._work = asyncio.Event(), asyncio.Event()
        self._writers, self._at_once = list[asyncio.Task[None]](), at_once

    def add(self, item: Item) -> None:
        """Queue ``item`` to be written. Return at once; never raise."""
        if self._tier is None:
            return
        self._take(item.key)
        under_way_bytes = sum(_held(each[0]) for each in self._under_way)
        limit_bytes = self._limit_bytes() + under_way_bytes - _held(item)
        while self._bytes > limit_bytes or len(self._queue) >= _MAX_ITEMS:
            # Not the other one of a module and its artifact: both are to be written.
            others = (
                each[0]
                for each in self._queue.values()
                if each not in self._under_way
                and (type(each[0]) is type(item) or each[0].module_sha256 != item.module_sha256)
            )
            # The oldest artifact, else the oldest module.
            first = min(others, key=lambda one: isinstance(one, Module), default=None)
            if first is None:
                break
            self._take(first.key)
            self._drop(first, "newer writes need the room")
        self._queue[item.key] = item, True, tracing.carried()
        self._bytes += _held(item)
        asyncio.get_running_loop().call_later(_HEAD_START_S, self._work.set)
        while len(self._writers) < self._at_once:
            self._writers.append(asyncio.create_task(self._run()))

    def items(self) -> list[Item]:
        """Return what is being written or waits: it is served like a hit."""
        return [waiting[0] for waiting in self._queue.values()]

    def waiting(self, key: CacheKey | str) -> Item | None:
        """Return the newest item under ``key`` that waits or is being written."""
        return self._queue[key][0] if key in self._queue else None

    def give_up(self, refused: Sequence[Artifact]) -> None:
        """Neither write nor serve ``refused`` from now on; a write under way runs to its end."""
        for artifact in refused:
            if self.waiting(artifact.key) is artifact:
                self._take(artifact.key)

    async def settled(self, key: CacheKey | str, *, at_once: bool = False) -> None:
        """Return once nothing waits under ``key``: it was written, or dropped.

        With ``at_once``, give up the head start: a caller waits for the write.
        """
        while self.waiting(key):
            if at_once:
                self._work.set()
            await self._change.wait()

    async def forget(self, scope: model.EvictScope) -> None:
        """Drop the writes in ``scope`` that wait, and wait for one that is under way.

        An eviction that follows is then not undone by an earlier write.
        """
        for item in filter(scope.removes, self.items()):
            self._take(item.key)
        while any(scope.removes(each[0]) for each in self._under_way):
            await self._change.wait()

    async def flush(self, timeout_s: float) -> None:
        """Write what waits, for at most ``timeout_s``; stop soon if the tier takes no writes."""
        self._work.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self._queue:
                    change = self._change  # One that comes while this waits for the link counts.
                    if self._link:
                        await asyncio.wait_for(self._link.ready(), _OUTAGE_S)
                    await change.wait()

    async def close(self) -> None:
        """Drop the writes that are left, and stop; see ``flush``."""
        if left := self.items():
            self._log.warning("cache writes given up", writes=len(left))
        for item in left:
            self._take(item.key)
            self._drop(item, "the daemon ends before the write")
        for writer in self._writers:
            writer.cancel()
        await asyncio.gather(*self._writers, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            await self._work.wait()
            # Do not try during an outage: the writes wait until it is over.
            if self._link:
                await self._link.ready()
            left = (each for each in self._queue.values() if each not in self._under_way)
            if first := next(left, None):
                await self._write(first)
            else:
                self._work.clear()

    async def _write(self, waiting: _Waiting) -> None:
        (item, is_first, call), why = waiting, ""
        self._under_way.append(waiting)
        tracing.CALL.set(call)
        try:
            await cast("Any", self._tier).put(item)
        except Exception as failure:
            why = str(failure) or "the daemon failed to write it"
            if not isinstance(failure, TierUnavailable):
                self._log.exception("cache write failed")
        finally:  # Also at the end of the daemon: an eviction may wait for this write.
            self._under_way.remove(waiting)
            self._tell()
        # If not, it was given up meanwhile, or replaced.
        stays = self._queue.get(item.key) is waiting
        if why and stays and is_first and self._link and self._link.is_down:
            # What finds the tier down a second time may be what brings it down.
            self._queue[item.key] = item, False, None
            self._work.set()
        else:
            if stays:
                self._take(item.key)
            if why:
                self._drop(item, why)

    def _take(self, key: CacheKey | str) -> None:
        if key in self._queue:
            self._bytes -= _held(self._queue.pop(key)[0])
            self._tell()

    def _drop(self, item: Item, why: str) -> None:
        self.dropped += 1
        about: dict[str, object] = {"module": item.module_sha256, "bytes": item.size_bytes}
        if isinstance(item, Artifact):
            about |= {"engine": item.spec.engine.id, "fingerprint": item.spec.fingerprint}
        kind = type(item).__name__.lower()
        self._log.warning("a cache write was dropped", kind=kind, why=why, **about)

    def _tell(self) -> None:
        self._change.set()
        self._change = asyncio.Event()


def _held(item: Item) -> int:
    return wire.held_bytes(item.wasm) if isinstance(item, Module) else item.size_bytes
