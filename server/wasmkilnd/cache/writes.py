"""Writes to one tier below memory, after the calls that cause them: no reply waits for one.

The queue is bounded. When it is full it drops artifacts before modules, the oldest first: a
missing artifact costs other daemons a compile, a missing module costs callers MODULE_NOT_LOADED.
It always takes the newest item, and never drops a module for its own artifact or the other way
round, so that both are written whatever their sizes. Each write that is dropped is counted and
logged.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TypeAlias, overload

import structlog

from wasmkilnd.errors import TierUnavailable
from wasmkilnd.model import Artifact, CacheKey, EvictScope, Module

log = structlog.get_logger("wasmkilnd.cache")

Item: TypeAlias = "Artifact | Module"
ItemKey: TypeAlias = "CacheKey | str"

_MAX_ITEMS = 10_000
# How long a tier that is down may delay the end of the daemon.
_OUTAGE_S = 0.5
# A value that finds the tier down this often may be what brings it down.
_MAX_TRIES = 3
# The reply that caused a write is still being sent: sending megabytes to the tier at the same
# time would slow it down.
_HEAD_START_S = 0.05


@dataclass(slots=True)
class _Waiting:
    item: Item
    context: AbstractContextManager[None]
    tries: int = 0


class Writes:
    """A queue of items for ``tier``, written one at a time. For one event loop.

    A newer write of a key replaces the one that waits. A write that finds the tier down waits for
    it, up to ``_MAX_TRIES`` times; one that fails otherwise is dropped, so the next reader misses.
    """

    def __init__(
        self,
        tier: str,
        write: Callable[[Item], Awaitable[None]],
        limit_bytes: Callable[[], int],
        *,
        ready: Callable[[], Awaitable[None]] | None = None,
        is_down: Callable[[], bool] = lambda: False,
        carry: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        """Write once ``ready`` returns; ``is_down`` tells an outage from a refusal.

        What ``carry`` returns when an item is added surrounds the first try to write it.
        """
        self._tier = tier
        self._write = write
        self._limit_bytes = limit_bytes
        self._ready = ready
        self._is_down = is_down
        self._carry = carry
        self._queue: dict[ItemKey, _Waiting] = {}
        self._bytes = 0
        self._under_way: _Waiting | None = None
        self._one_write = asyncio.Lock()
        self._change = asyncio.Event()
        self._work = asyncio.Event()
        self._pressing = asyncio.Event()
        self._writer: asyncio.Task[None] | None = None
        self.dropped = 0
        """How many writes were dropped since the start."""

    @property
    def pending(self) -> int:
        """How many writes wait or are under way."""
        return len(self._queue) + (self._under_way is not None)

    def add(self, item: Item) -> None:
        """Queue ``item`` to be written. Return at once; never raise."""
        self._take(key_of(item))
        self._put(_Waiting(item, self._carry()))
        if 2 * self._bytes > self._limit_bytes():
            self._pressing.set()
        self._work.set()
        if self._writer is None:
            self._writer = asyncio.create_task(self._run())

    @overload
    def waiting(self, key: CacheKey) -> Artifact | None: ...
    @overload
    def waiting(self, key: str) -> Module | None: ...
    def waiting(self, key: ItemKey) -> Item | None:
        """Return the item that waits or is being written under ``key``: it is served like a hit."""
        if waiting := self._queue.get(key):
            return waiting.item
        under_way = self._under_way
        return under_way.item if under_way and key_of(under_way.item) == key else None

    def artifacts(self) -> list[Artifact]:
        """Return the artifacts that wait or are being written."""
        each = [*self._queue.values(), *([self._under_way] if self._under_way else [])]
        return [one.item for one in each if isinstance(one.item, Artifact)]

    def give_up(self, refused: Sequence[Artifact]) -> None:
        """Neither write nor serve ``refused`` from now on; a write under way runs to its end."""
        for artifact in refused:
            waiting = self._queue.get(artifact.key)
            if waiting and waiting.item is artifact:
                self._take(artifact.key)
            if self._under_way and self._under_way.item is artifact:
                self._under_way = None
        self._tell()

    async def settled(self, key: ItemKey, *, at_once: bool = False) -> None:
        """Return once nothing waits under ``key``: it was written, or dropped.

        With ``at_once``, give up the head start: a caller waits for the write.
        """
        while self.waiting(key):
            if at_once:
                self._pressing.set()
            await self._change.wait()

    async def forget(self, scope: EvictScope) -> None:
        """Drop the writes in ``scope`` that wait, and wait for one that is under way.

        An eviction that follows is then not undone by an earlier write.
        """
        for key in [key for key, one in self._queue.items() if _in_scope(one.item, scope)]:
            self._take(key)
        self._tell()
        if self._under_way and _in_scope(self._under_way.item, scope):
            async with self._one_write:
                pass

    async def flush(self, timeout_s: float) -> None:
        """Write what waits, for at most ``timeout_s``; stop soon if the tier takes no writes."""
        self._pressing.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self.pending:
                    if self._ready:
                        async with asyncio.timeout(_OUTAGE_S):
                            await self._ready()
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(_OUTAGE_S):
                            await self._change.wait()

    async def close(self) -> None:
        """Drop the writes that are left, and stop; see ``flush``."""
        if self._writer is None:
            return
        if self.pending:
            log.warning("cache writes given up", tier=self._tier, writes=self.pending)
        for waiting in [*([self._under_way] if self._under_way else []), *self._queue.values()]:
            self._drop(waiting.item, "the daemon ends before the write")
        self._queue.clear()
        self._bytes = 0
        self._writer.cancel()
        await asyncio.gather(self._writer, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            await self._work.wait()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_HEAD_START_S):
                    await self._pressing.wait()
            while self._queue:
                # Do not use up tries during an outage: the writes wait until it is over.
                if self._ready:
                    await self._ready()
                if self._queue:
                    await self._write_one()
            self._work.clear()
            self._pressing.clear()

    async def _write_one(self) -> None:
        waiting = self._take(next(iter(self._queue)))
        if waiting is None:
            return
        self._under_way = waiting
        context, waiting.context = waiting.context, nullcontext()
        try:
            async with self._one_write:
                with context:
                    await self._write(waiting.item)
        except TierUnavailable as failure:
            waiting.tries += 1
            # An item that was given up meanwhile, or replaced, must not be tried again.
            again = self._under_way is waiting and key_of(waiting.item) not in self._queue
            if again and self._is_down() and waiting.tries < _MAX_TRIES:
                self._queue = {key_of(waiting.item): waiting, **self._queue}
                self._bytes += size_of(waiting.item)
            else:
                self._drop(waiting.item, str(failure))
        except Exception:
            self._drop(waiting.item, "the daemon failed to write it")
            log.exception("cache write failed", tier=self._tier)
        finally:
            self._under_way = None
            del waiting  # Free it now: the next item may come much later.
            self._tell()

    def _put(self, new: _Waiting) -> None:
        size_bytes = size_of(new.item)
        while self._bytes + size_bytes > self._limit_bytes() or len(self._queue) >= _MAX_ITEMS:
            first = self._first_to_go(new.item)
            if first is None:
                break
            if dropped := self._take(first):
                self._drop(dropped.item, "newer writes need the room: raise write_queue_bytes")
        self._queue[key_of(new.item)] = new
        self._bytes += size_bytes

    def _first_to_go(self, newest: Item) -> ItemKey | None:
        """Return the next key to drop for ``newest``; None if none may be dropped."""
        for kind in (Artifact, Module):
            for key, one in self._queue.items():
                same = type(one.item) is type(newest) or module_of(one.item) != module_of(newest)
                if isinstance(one.item, kind) and same:
                    return key
        return None

    def _take(self, key: ItemKey) -> _Waiting | None:
        waiting = self._queue.pop(key, None)
        if waiting:
            self._bytes -= size_of(waiting.item)
        return waiting

    def _drop(self, item: Item, why: str) -> None:
        self.dropped += 1
        about = {"module": module_of(item), "bytes": size_of(item), "why": why}
        if isinstance(item, Artifact):
            about |= {"engine": item.spec.engine.id, "fingerprint": item.spec.fingerprint}
        kind = "artifact" if isinstance(item, Artifact) else "module"
        log.warning("a cache write was dropped", tier=self._tier, kind=kind, **about)
        self._tell()

    def _tell(self) -> None:
        self._change.set()
        self._change = asyncio.Event()


def key_of(item: Item) -> ItemKey:
    """Return the key under which ``item`` is stored."""
    return item.key if isinstance(item, Artifact) else item.sha256


def size_of(item: Item) -> int:
    """Return how many bytes of ``item`` count."""
    return item.size_bytes if isinstance(item, Artifact) else len(item.wasm)


def module_of(item: Item) -> str:
    """Return the digest of the module that ``item`` is or was compiled from."""
    return item.module_sha256 if isinstance(item, Artifact) else item.sha256


def _in_scope(item: Item, scope: EvictScope) -> bool:
    if scope.leaves(module_of(item)):
        return False
    if scope.engine_id:
        return isinstance(item, Artifact) and item.spec.engine.id == scope.engine_id
    return scope.everything or module_of(item) == scope.module_sha256
