"""Writes to the tiers below memory, after the calls that cause them: no reply waits for one.

The queue is bounded (:mod:`wasmkilnd.cache.write_queue`). Each write that is dropped is counted
and logged.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import overload

import structlog

from wasmkilnd.cache.write_queue import Item, ItemKey, WriteQueue, key_of, module_of, size_of
from wasmkilnd.errors import TierUnavailable
from wasmkilnd.model import Artifact, CacheKey, EvictScope, Module
from wasmkilnd.ports import Tier

log = structlog.get_logger("wasmkilnd.cache")

# How long a tier that is down may delay the end of the daemon.
_OUTAGE_S = 0.5
# A value that finds the tier down this often may be what brings it down.
_MAX_TRIES = 3


class WriteBehind:
    """Writes a bounded queue of items to ``tier``, one at a time. For one event loop.

    A newer write of a key replaces the one that waits. A write that finds the tier down is
    tried up to ``_MAX_TRIES`` times; a write that fails otherwise is dropped, so the next
    reader misses and the module is compiled or loaded again.
    """

    def __init__(
        self,
        tier: Tier,
        limit_bytes: Callable[[], int],
        ready: Callable[[], Awaitable[None]],
        head_start_s: float = 0.0,
        is_down: Callable[[], bool] = lambda: False,
        carry: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        """Write to ``tier`` once ``ready`` returns; until then writes wait.

        The first of several writes waits ``head_start_s`` more: the reply that caused it is
        still being sent, and sending megabytes to Redis at the same time would slow it down.
        ``is_down`` tells a tier that does not answer from one that refused a write. What ``carry``
        returns when an item is added surrounds the first try to write it.
        """
        self._head_start_s = head_start_s
        self._tier = tier
        self._ready = ready
        self._is_down = is_down
        self._waiting = WriteQueue(limit_bytes)
        self._under_way: dict[ItemKey, Item] = {}  # One at most.
        self._tries: dict[ItemKey, int] = {}
        self._carry = carry
        self._carried: dict[ItemKey, AbstractContextManager[None]] = {}
        self._one_done = asyncio.Event()
        self._one_write = asyncio.Lock()
        self._dropped = 0
        self._work = asyncio.Event()
        self._pressing = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._writer: asyncio.Task[None] | None = None

    @property
    def pending(self) -> int:
        """How many writes wait or are under way."""
        return len(self._waiting) + len(self._under_way)

    @property
    def dropped(self) -> int:
        """How many writes were dropped since the start."""
        return self._dropped

    def add(self, item: Artifact | Module) -> None:
        """Queue ``item`` to be written. Return at once; never raise."""
        for other in self._waiting.add(item):
            self._drop(other, "newer writes need the room: raise write_queue_bytes")
        self._tries.pop(key_of(item), None)
        self._carried[key_of(item)] = self._carry()
        if self._waiting.is_half_full:
            self._pressing.set()
        self._idle.clear()
        self._work.set()
        if self._writer is None:
            self._writer = asyncio.create_task(self._write())

    @overload
    def waiting(self, key: CacheKey) -> Artifact | None: ...
    @overload
    def waiting(self, key: str) -> Module | None: ...
    def waiting(self, key: CacheKey | str) -> Artifact | Module | None:
        """Return the item that waits or is being written under ``key``: it is served like a hit."""
        return self._waiting.get(key) or self._under_way.get(key)

    def artifacts(self) -> list[Artifact]:
        """Return the artifacts that wait or are being written."""
        items = (*self._waiting, *self._under_way.values())
        return [item for item in items if isinstance(item, Artifact)]

    def give_up(self, refused: Sequence[Artifact]) -> None:
        """Neither write nor serve ``refused`` from now on; a write under way runs to its end."""
        for artifact in refused:
            key = artifact.key
            if self._waiting.get(key) is artifact:
                self._waiting.remove(key)
                self._forget(key)
            if self._under_way.get(key) is artifact:
                del self._under_way[key]
        self._tell_one_done()

    async def settled(self, key: CacheKey | str, *, at_once: bool = False) -> None:
        """Return once nothing waits under ``key``: it was written, or dropped.

        With ``at_once``, give up the head start: a caller waits for the write.
        """
        while self.waiting(key):
            if at_once:
                self._pressing.set()
            await self._one_done.wait()

    async def forget(self, scope: EvictScope) -> None:
        """Drop the writes in ``scope`` that wait, and wait for one that is under way.

        An eviction that follows is then not undone by an earlier write.
        """
        for item in list(self._waiting):
            if _in_scope(item, scope):
                self._waiting.remove(key_of(item))
                self._forget(key_of(item))
        self._tell_one_done()
        if any(_in_scope(item, scope) for item in self._under_way.values()):
            async with self._one_write:
                pass

    async def flush(self, timeout_s: float) -> None:
        """Write what waits, for at most ``timeout_s``; stop soon if the tier takes no writes."""
        idle = asyncio.create_task(self._idle.wait())
        try:
            async with asyncio.timeout(timeout_s):
                while not idle.done():
                    async with asyncio.timeout(_OUTAGE_S):
                        await self._ready()
                    await asyncio.wait((idle,), timeout=_OUTAGE_S)
        except TimeoutError:
            pass  # The other writes stay in the queue.
        finally:
            idle.cancel()

    async def close(self, timeout_s: float) -> None:
        """Flush, drop the writes that are left, and stop."""
        if self._writer is None:
            return
        if timeout_s:
            await self.flush(timeout_s)
        if self.pending:
            log.warning("cache writes given up", tier=self._tier.name, writes=self.pending)
        for item in (*self._under_way.values(), *self._waiting.clear()):
            self._drop(item, "the daemon ends before the write")
        self._writer.cancel()
        await asyncio.gather(self._writer, return_exceptions=True)

    async def _write(self) -> None:
        while True:
            await self._work.wait()
            if self._head_start_s:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._head_start_s):
                        await self._pressing.wait()
            while self._waiting:
                # Do not use up tries during an outage: the writes wait until it is over.
                await self._ready()
                if not self._waiting:
                    break
                item = self._waiting.take()
                key = key_of(item)
                self._under_way[key] = item
                try:
                    async with self._one_write:
                        with self._carried.pop(key, nullcontext()):
                            await self._store(item)
                except TierUnavailable as failure:
                    # An item that was given up meanwhile must not be tried again.
                    wanted = self._under_way.pop(key, None) is item
                    if not (wanted and self._is_down() and self._try_again(item)):
                        self._drop(item, str(failure))
                except Exception:
                    self._drop(item, "the daemon failed to write it")
                    log.exception("cache write failed", tier=self._tier.name)
                finally:
                    self._under_way.clear()
                    self._forget(key)
                    del item  # Free it now: the next item may come much later.
                    self._tell_one_done()
            self._work.clear()
            self._pressing.clear()
            self._idle.set()

    async def _store(self, item: Item) -> None:
        if isinstance(item, Artifact):
            await self._tier.put(item)
        else:
            await self._tier.put_module(item)

    def _try_again(self, item: Item) -> bool:
        """Put ``item`` back until the tier is up again; return False if its tries are used up."""
        key = key_of(item)
        tries = self._tries.get(key, 0) + 1
        if tries >= _MAX_TRIES or not self._waiting.put_back(item):
            return False
        self._tries[key] = tries
        return True

    def _forget(self, key: ItemKey) -> None:
        """Forget what was kept for an item, unless one waits under its key."""
        if not self._waiting.get(key):
            self._tries.pop(key, None)
            self._carried.pop(key, None)

    def _drop(self, item: Item, why: str) -> None:
        self._dropped += 1
        self._forget(key_of(item))
        if isinstance(item, Artifact):
            log.warning(
                "a cache write was dropped",
                tier=self._tier.name,
                kind="artifact",
                module=item.module_sha256,
                engine=item.spec.engine.id,
                fingerprint=item.spec.fingerprint,
                bytes=size_of(item),
                why=why,
            )
        else:
            log.warning(
                "a cache write was dropped",
                tier=self._tier.name,
                kind="module",
                module=item.sha256,
                bytes=size_of(item),
                why=why,
            )
        self._tell_one_done()

    def _tell_one_done(self) -> None:
        self._one_done.set()
        self._one_done = asyncio.Event()


def _in_scope(item: Item, scope: EvictScope) -> bool:
    if scope.leaves(module_of(item)):
        return False
    if scope.engine_id:
        return isinstance(item, Artifact) and item.spec.engine.id == scope.engine_id
    return scope.everything or module_of(item) == scope.module_sha256
