"""Pass over the host store while its disk hangs, and write nothing for a while after a failure.

A thread that waits for a hung disk cannot be cancelled. So a look-up that takes too long is left
behind, and until it ends no other begins: calls then pass the host store over at once. After a
write that failed, nothing is written for some seconds.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import structlog

from wasmkilnd.errors import DoesNotFit, TierUnavailable
from wasmkilnd.model import (
    Artifact,
    CacheKey,
    Evicted,
    EvictScope,
    HostFile,
    Kind,
    Module,
    TierUsage,
)
from wasmkilnd.ports import Tier
from wasmkilnd.wait_budget import Allowance

log = structlog.get_logger("wasmkilnd.cache")

V = TypeVar("V")

_HANGS = "the disk of the host store does not answer"
_NO_WRITES_S = 10.0
_MAX_PASSED_OVER = 1000


class Files(Tier, Protocol):
    """What is guarded: a HostStore that may take its time."""

    async def file_of(
        self, key: CacheKey, allowance: Allowance | None = None
    ) -> tuple[Artifact, HostFile] | None:
        """Return the artifact without its bytes, and its file. Raises TierUnavailable."""
        ...

    def fits(self, artifact: Artifact) -> bool:
        """Return whether ``artifact`` is not too large for the store."""
        ...

    def recheck(self) -> None:
        """Verify each entry again at its next use."""
        ...


class GuardedHost:
    """Does what ``store`` does; a look-up that takes longer than ``wait_s`` fails."""

    def __init__(self, store: Files, wait_s: float = math.inf) -> None:
        self.name = store.name
        self._store = store
        self._wait_s = wait_s
        self._left_behind: set[asyncio.Task[Any]] = set()
        self._no_writes_until_s = -math.inf
        # So that an artifact that is asked for again and again counts once.
        self._passed_over: OrderedDict[CacheKey, None] = OrderedDict()
        self.skipped = 0
        """How many writes were not tried."""

    @property
    def is_well(self) -> bool:
        """Whether no look-up hangs, and no write failed just now."""
        return not self._left_behind and time.monotonic() >= self._no_writes_until_s

    def takes(self, artifact: Artifact) -> bool:
        """Return whether it fits, no look-up hangs, and no write failed just now; else count it."""
        if self.is_well and self._store.fits(artifact):
            self._passed_over.pop(artifact.key, None)
            return True
        self.skipped += artifact.key not in self._passed_over
        self._passed_over[artifact.key] = None
        if len(self._passed_over) > _MAX_PASSED_OVER:
            self._passed_over.popitem(last=False)
        return False

    async def get(
        self,
        key: CacheKey,
        allowance: Allowance | None = None,
        accept: frozenset[str] = frozenset(),
    ) -> Artifact | None:
        """Delegate, in time."""
        allowance = allowance or Allowance()
        return await self._in_time(lambda: self._store.get(key, allowance, accept), allowance)

    async def file_of(
        self, key: CacheKey, allowance: Allowance | None = None
    ) -> tuple[Artifact, HostFile] | None:
        """Delegate, in time."""
        allowance = allowance or Allowance()
        return await self._in_time(lambda: self._store.file_of(key, allowance), allowance)

    async def put(self, artifact: Artifact) -> None:
        """Delegate: no call waits for a write. Raises TierUnavailable while the disk hangs."""
        self._refuse_if_it_hangs()
        try:
            await self._store.put(artifact)
        except DoesNotFit:
            raise
        except TierUnavailable:
            self._no_writes_until_s = time.monotonic() + _NO_WRITES_S
            self._passed_over.clear()
            raise

    async def get_module(self, sha256: str, allowance: Allowance | None = None) -> Module | None:
        """Delegate, in time."""
        return await self._in_time(lambda: self._store.get_module(sha256))

    async def put_module(self, module: Module) -> None:
        """Delegate."""
        await self._store.put_module(module)

    async def has_module(self, sha256: str) -> bool:
        """Delegate, in time."""
        return await self._in_time(lambda: self._store.has_module(sha256))

    async def held(self, keys: Sequence[CacheKey]) -> frozenset[CacheKey]:
        """Delegate, in time."""
        return await self._in_time(lambda: self._store.held(keys))

    async def kinds_of(self, keys: Sequence[CacheKey]) -> Mapping[CacheKey, Kind]:
        """Delegate, in time."""
        return await self._in_time(lambda: self._store.kinds_of(keys))

    async def evict(self, scope: EvictScope) -> Evicted:
        """Delegate: an eviction takes as long as there are files to remove.

        There may be room after it, so a write that failed keeps no other from being tried.
        """
        self._refuse_if_it_hangs()
        evicted = await self._store.evict(scope)
        self._no_writes_until_s = -math.inf
        return evicted

    def recheck(self) -> None:
        """Delegate."""
        self._store.recheck()

    def usage(self) -> TierUsage:
        """Delegate."""
        return self._store.usage()

    async def close(self) -> None:
        """Delegate."""
        await self._store.close()

    async def _in_time(
        self, look_up: Callable[[], Coroutine[Any, Any, V]], allowance: Allowance | None = None
    ) -> V:
        self._refuse_if_it_hangs()
        loop = asyncio.get_running_loop()
        task, began_s = loop.create_task(look_up()), loop.time()
        try:
            while not task.done():
                more_s = allowance.seconds if allowance else 0.0
                left_s = self._wait_s + more_s - (loop.time() - began_s)
                if left_s <= 0:
                    self._leave_behind(task)
                    raise TierUnavailable(f"{_HANGS}: it took longer than {self._wait_s:g} s")
                await asyncio.wait((task,), timeout=None if math.isinf(left_s) else left_s)
            return task.result()
        except asyncio.CancelledError:
            task.cancel()
            raise
        except TierUnavailable:
            raise
        except Exception as defect:
            log.exception("a look-up in the host store failed")
            raise TierUnavailable("a look-up in the host store failed by a defect") from defect
        finally:
            del task  # A failed task holds its traceback, which holds this frame.

    def _leave_behind(self, task: asyncio.Task[Any]) -> None:
        if not self._left_behind:
            log.warning("host store skipped: a look-up takes too long")
        self._left_behind.add(task)
        task.add_done_callback(self._came_back)

    def _came_back(self, task: asyncio.Task[Any]) -> None:
        if not task.cancelled():
            task.exception()  # Nobody else reads it.
        self._left_behind.discard(task)
        if not self._left_behind:
            log.info("host store in use again")

    def _refuse_if_it_hangs(self) -> None:
        if self._left_behind:
            raise TierUnavailable(_HANGS)
