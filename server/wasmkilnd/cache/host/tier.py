"""The host store as a tier: runs ``EntryStore`` in threads, and keeps house behind the calls."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import structlog

from wasmkilnd.cache.host.disk import Disk
from wasmkilnd.cache.host.engines_file import mend_engines, write_engines
from wasmkilnd.cache.host.entry import HeaderOf
from wasmkilnd.cache.host.housekeeping import Housekeeping
from wasmkilnd.cache.host.options import HostOptions, least_on_disk
from wasmkilnd.cache.host.reports import Reports
from wasmkilnd.cache.host.rows import PinnedRow
from wasmkilnd.cache.host.store import EntryStore
from wasmkilnd.cache.host.sweep import Sweep
from wasmkilnd.cache.value.marks import Marks
from wasmkilnd.errors import DoesNotFit, TierUnavailable
from wasmkilnd.model import (
    Artifact,
    CacheKey,
    Evicted,
    EvictScope,
    HostFile,
    IsPinned,
    Kind,
    Module,
    TierUsage,
    nothing_pinned,
)
from wasmkilnd.ports import Recorder
from wasmkilnd.signing.sealer import Sealer
from wasmkilnd.wait_budget import Allowance

T = TypeVar("T")

_log = structlog.get_logger("wasmkilnd.cache")

_THREADS = 4
_HANGS_S = 5.0
_EVERY_S = 5.0


class HostTier:
    """Keeps artifacts as files that processes of this host map. It keeps no modules.

    Implements ``ports.Tier``, and more. For one event loop, which nothing here blocks.
    """

    name = "host_store"

    def __init__(
        self,
        options: HostOptions,
        sealer: Sealer,
        recorder: Recorder,
        *,
        header_of: HeaderOf,
        marks: Marks,
        artifact_bytes: Callable[[], int] = lambda: sys.maxsize,
        is_pinned: IsPinned = nothing_pinned,
    ) -> None:
        """Keep entries in ``options.directory``, which is made when it is first needed.

        ``header_of`` translates an artifact into the header that the daemon sends, without origin
        and what else depends on a call. ``marks`` are the evictions that this daemon knows of.
        ``get`` reads no artifact that is larger than ``artifact_bytes``. What is of a module that
        ``is_pinned`` returns True for makes no room for others.
        """
        self._reports = Reports(self.name, options.directory, recorder)
        self._disk = Disk(options, is_pinned)
        self._store = EntryStore(
            options, self._disk, sealer, header_of, marks, self._reports, artifact_bytes
        )
        self._sweep = Sweep(self._disk, self._store.engine_of)
        self._keeping = Housekeeping(self._disk, self._sweep)
        self._threads = ThreadPoolExecutor(_THREADS, "wasmkiln-host-store")
        self._checks: dict[CacheKey, asyncio.Task[tuple[Artifact, HostFile] | None]] = {}
        self._keeper: asyncio.Task[None] | None = None
        self._engines: Mapping[str, object] | None = None

    async def start(self) -> None:
        """Open the directory, and keep house from now on; never raises.

        Reads no entry: a store with 100,000 of them starts as fast as an empty one. Waits some
        seconds at most for a disk that hangs.
        """
        if self._keeper is None:
            opened = asyncio.Event()
            self._keeper = asyncio.create_task(self._keep_house(opened))
            await _for_a_while(opened.wait())

    async def get(
        self,
        key: CacheKey,
        allowance: Allowance | None = None,
        accept: frozenset[str] = frozenset(),
    ) -> Artifact | None:
        """Return the artifact under ``key``, verified. Raises TierUnavailable."""
        artifact = await self._do("read", self._store.read, key, allowance or Allowance())
        if artifact:
            self._keeping.used(key)
        return artifact

    async def file_of(
        self, key: CacheKey, allowance: Allowance | None = None
    ) -> tuple[Artifact, HostFile] | None:
        """Return the artifact without frames, and the file that holds it, verified.

        Raises TierUnavailable. The file may be evicted by the time a caller opens it.
        """
        # Callers of one entry share its check. A caller that leaves does not end it.
        check = self._checks.get(key)
        if check is None:
            work = self._do("read", self._store.file_of, key, allowance or Allowance())
            check = asyncio.create_task(work)
            self._checks[key] = check
            check.add_done_callback(partial(self._checked, key))
        found = await asyncio.shield(check)
        if found:
            self._keeping.used(key)
        return found

    async def put(self, artifact: Artifact) -> None:
        """Store ``artifact``, unless it was evicted. Raises TierUnavailable, DoesNotFit."""
        await self._do("write", self._store.write, artifact)

    def fits(self, artifact: Artifact) -> bool:
        """Return whether ``artifact`` may fit; log it if the store is too small for it."""
        needed = least_on_disk(artifact.size_bytes)
        if needed > self._disk.limit_bytes:
            self._reports.too_large(artifact, self._disk.limit_bytes)
        return needed <= self._disk.limit_bytes

    async def get_module(self, sha256: str, allowance: Allowance | None = None) -> Module | None:
        """Return None: there are no modules here."""
        return None

    async def put_module(self, module: Module) -> None:
        """Do nothing."""

    async def has_module(self, sha256: str) -> bool:
        """Return False."""
        return False

    async def held(self, keys: Sequence[CacheKey]) -> frozenset[CacheKey]:
        """Return which of ``keys`` are stored, without verifying them. Raises TierUnavailable."""
        return await self._do("read", self._store.held, keys) if keys else frozenset()

    async def kinds_of(self, keys: Sequence[CacheKey]) -> Mapping[CacheKey, Kind]:
        """Return the kinds of the modules behind artifacts, from the entries' heads alone."""
        return await self._do("read", self._store.kinds_of, keys) if keys else {}

    async def evict(self, scope: EvictScope) -> Evicted:
        """Remove all in ``scope``, for all daemons of the host. Raises TierUnavailable.

        Leaves no mark: other tiers keep what they have.
        """
        self._store.verified.forget_all()
        return await self._do("evict from", self._sweep.evict, scope)

    def usage(self) -> TierUsage:
        """Return what all daemons of the host stored, as of a few seconds ago."""
        disk = self._disk
        return TierUsage(
            disk.total.entries,
            disk.total.bytes,
            disk.limit_bytes,
            disk.evictions,
            disk.pins.kept.artifacts,
            disk.pins.kept.bytes,
            disk.pins.let_go,
        )

    async def entries_of(self, modules: Collection[str]) -> Mapping[str, Sequence[PinnedRow]]:
        """Return the entries of ``modules``, by the index. Raises TierUnavailable."""
        pins, change = self._disk.pins, self._disk.change
        return await self._do("read", pins.entries_of, change, modules)

    async def count_pinned(self, modules: Collection[str]) -> None:
        """Count what is kept of ``modules``, all that are pinned. Raises TierUnavailable."""
        await self._do("read", self._disk.pins.count, self._disk.change, modules)

    def has_room_for_pinned(self, artifact: Artifact) -> bool:
        """Return whether ``artifact`` would be kept if it were written now."""
        return self._disk.pins.has_room_for(least_on_disk(artifact.size_bytes))

    async def write_engines(self, document: Mapping[str, object]) -> None:
        """Replace ``engines.json``, from which clients compute fingerprints; never raises.

        Write it again later if somebody removes or damages it.
        """
        self._engines = document
        await self._quietly("write engines.json to", write_engines, self._disk, document)

    @property
    def trouble(self) -> str:
        """Why the directory could not be used at the start, nor since; empty if it could."""
        return self._reports.why_not("use").removeprefix("the host store ")

    def recheck(self) -> None:
        """Verify each entry again at its next use: a key is no longer trusted."""
        self._store.verified.forget_all()

    def resize(self, limit_bytes: int) -> None:
        """Change the limit. Entries that are too many go soon after."""
        self._disk.limit_bytes = limit_bytes
        self._keeping.wake.set()

    async def close(self) -> None:
        """Note the last uses, and close the index; never raises."""
        self._keeping.closing = True
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        # After the work that is under way, unless the disk hangs: that work finds a closed index.
        if await _for_a_while(asyncio.to_thread(self._threads.shutdown, cancel_futures=True)):
            with contextlib.suppress(TierUnavailable):
                await asyncio.to_thread(self._keeping.close)
        self._disk.index.closed = True

    def _checked(self, key: CacheKey, check: asyncio.Task[object]) -> None:
        del self._checks[key]
        if not check.cancelled():
            check.exception()  # All callers may have left: nobody else looks at it.

    async def _keep_house(self, opened: asyncio.Event) -> None:
        is_open = False
        while True:
            try:
                if not is_open:
                    is_open = await self._quietly("use", self._keeping.open)
                    opened.set()
                if is_open and self._engines is not None:
                    doing = "write engines.json to"
                    await self._quietly(doing, mend_engines, self._disk, self._engines)
                if is_open:
                    await self._quietly("tidy", self._keeping.tidy)
            except Exception:
                _log.exception("a defect keeps the host store from being tidied")
            self._keeping.wake.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_EVERY_S):
                    await self._keeping.wake.wait()

    async def _do(self, doing: str, work: Callable[..., T], *args: Any) -> T:
        """Run ``work`` in a thread; log why it fails, once per cause."""
        if self._keeping.closing:
            raise TierUnavailable("the host store is closed")
        loop = asyncio.get_running_loop()
        try:
            done = await loop.run_in_executor(self._threads, work, *args)
        except DoesNotFit:
            raise
        except (TierUnavailable, OSError) as failure:
            self._reports.trouble(doing, str(failure))
            raise TierUnavailable(str(failure)) from None
        self._reports.works(doing)
        return done

    async def _quietly(self, doing: str, work: Callable[..., object], *args: Any) -> bool:
        try:
            await self._do(doing, work, *args)
        except TierUnavailable:
            return False
        return True


async def _for_a_while(work: Coroutine[Any, Any, object]) -> bool:
    """Wait some seconds for ``work``; return whether it ended. It goes on if it did not."""
    task = asyncio.create_task(work)
    await asyncio.wait((task,), timeout=_HANGS_S)
    return task.done()
