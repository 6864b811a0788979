"""The host store: artifacts as files that any process of this host maps, a tier of its own.

Clients find an entry by fingerprint and module digest alone (``wasmkiln.host_layout``), with the
daemon up or down. ``HostDirectory`` is the folder with all its namespaces: threads and room.
``HostStore`` is what one namespace does in it.

- An entry appears whole, by a rename, and its files never change; Evict unlinks, so whoever has a
  file mapped keeps it. Nothing is synced: each entry is checked before this process first uses it,
  by its attestation and one SHA-256, so one that a power cut tore is a miss.
- Only the daemon's user may own and write what is used. What is wrong is removed, counted, logged,
  and a miss. A disk that hangs, is full, read-only or gone fails the tier, never a call.
- ``limit_bytes`` bounds the files of all namespaces and daemons, each rounded up to 4 KiB. The
  least recently used entries go first, those of namespaces that are not served before all others.
  Daemons note a use as the mtime of the entry's folder; what clients read shows in the file's
  atime. There is no index: a store that is full is scanned, and a part of it makes room.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import hashlib
import json
import math
import os
import shutil
import stat
import time
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import partial
from io import FileIO
from pathlib import Path
from typing import Any, TypeAlias, TypeVar
from weakref import WeakValueDictionary

import structlog
from google.protobuf import json_format
from wasmkiln import shared
from wasmkiln.artifact import header_text
from wasmkiln.attestation import KINDS, peek
from wasmkiln.shared import ARTIFACT, ATTESTATION, ENGINES, HEADER
from wasmkiln.v1 import types_pb2

from wasmkilnd import errors, model, wire
from wasmkilnd.cache.value import ValueRejected, unpacked_frames
from wasmkilnd.errors import TierUnavailable
from wasmkilnd.files import ownership
from wasmkilnd.files.threads import DISK, Jobs, Threads, finished
from wasmkilnd.model import Artifact, CacheKey, Evicted, EvictScope, HostFile, Kind, TierUsage
from wasmkilnd.model import RejectionCause as Cause
from wasmkilnd.signing.sealer import Sealer
from wasmkilnd.telemetry.metrics import Metrics
from wasmkilnd.waits.budgets import Allowance

T = TypeVar("T")
# Translates an artifact into the header that the daemon sends, without what depends on a call.
HeaderOf: TypeAlias = Callable[[Artifact], types_pb2.ArtifactHeader]
# Device, inode, size and ctime of each file: while they are the same, so are its bytes.
EntryId: TypeAlias = Mapping[str, tuple[int, int, int, int]]
Found: TypeAlias = tuple[Artifact, HostFile]
# By the path of an entry that was checked: what it is, without frames, and which files.
Checked: TypeAlias = dict[str, tuple[Artifact, EntryId]]

# What the store counts for a folder, and the unit to which it rounds up the size of a file.
_BLOCK_BYTES = 4096
_MAX_TEXT_BYTES = 8 * 1024 * 1024
_FILES = ARTIFACT, HEADER, ATTESTATION
_ASIDE = "aside"  # What is on its way in or out. 0.6.0 deletes what it does not know in tmp/.
_NO_WRITES_S, _TIDY_EVERY_S = 10.0, 5.0
_PATIENCE_S = 2.0  # How long a disk may delay the start or a reload.
_LEAST_BYTES_PER_S = 32 * 1024 * 1024  # A slow disk: reading much may take longer than wait_s.
_PIECE_S = 10.0  # How long a caller who has a part of an artifact waits for the next frame.
_REMEMBERED_BYTES = 16 * 1024 * 1024
_SCAN_EVERY_S = 4.0  # And less often where that takes long.
_SPARE = 32  # A store that is full evicts one of so many entries more than it must.

_EXTERNS = {n: name[len("EXTERN_KIND_") :].lower() for name, n in types_pb2.ExternKind.items()}

log = structlog.get_logger("wasmkilnd.cache")


@dataclass(frozen=True, slots=True)
class HostOptions:
    """Where a namespace's entries are, how much they may take, and who may read them.

    ``root`` is absolute: callers get paths, and have another working directory. Of the mode of
    files, only the owner may have the right to write. ``group`` is the number of the group of
    files and folders; None for the daemon's own.
    """

    root: Path
    limit_bytes: int
    file_mode: int = 0o640
    group: int | None = None
    namespace: str = ""

    @property
    def directory(self) -> Path:
        """The namespace's folder in ``root``, which is that of the default one."""
        return shared.namespace_path(self.root, self.namespace)

    @property
    def folder_mode(self) -> int:
        """The mode of folders: whoever may read files may search folders, and the owner writes."""
        return self.file_mode | (self.file_mode & 0o444) >> 2 | stat.S_IRWXU


@dataclass(eq=False)
class _Shelf:
    """The entries of one namespace. One thread changes them."""

    options: HostOptions
    # Whose entries they are; None while the namespace is not served.
    store: HostStore | None = None
    # Their sizes as of the last scan, the least recently used first.
    entries: dict[CacheKey, int] = field(default_factory=dict)
    evictions: int = 0
    kept: model.Held = field(default_factory=model.Held)
    let_go: int = 0

    @property
    def bytes(self) -> int:
        return sum(list(self.entries.values()))

    def over(self, needed: int) -> int:
        """Return by how much its share is exceeded with ``needed`` bytes more."""
        store = self.store  # The event loop may change it.
        return self.bytes + needed - store.limit_bytes if store else 0


def _usage(shelves: Collection[_Shelf], limit_bytes: int) -> TierUsage:
    kept = sum((each.kept for each in shelves), model.Held())
    return TierUsage(
        *(sum(len(each.entries) for each in shelves), sum(each.bytes for each in shelves)),
        *(limit_bytes, sum(each.evictions for each in shelves)),
        *(kept.artifacts, kept.bytes, sum(each.let_go for each in shelves)),
    )


class HostDirectory:
    """The folder of all namespaces: its threads, and who makes room.

    For one event loop, which nothing here blocks. Methods with one underscore run in threads; those
    that write run in one thread alone, one after the other.
    """

    def __init__(self, options: HostOptions) -> None:
        self.options = options
        # Of all namespaces. It may be set: a lower one evicts within seconds.
        self.limit_bytes = options.limit_bytes
        # By what the store cannot do: why not.
        self.troubles: dict[str, str] = {}
        self.no_writes_until_s = 0.0
        # Look-ups that hang: while there are any, nothing else begins.
        self.hanging = set[Future[Any]]()
        self.shelves: dict[str, _Shelf] = {}
        # What this process has checked. Another dict once that counts no more.
        self.checked: Checked = {}
        self.rounds = 0
        self._checked_bytes = 0
        self._readers = Threads(4, "wasmkiln-host-read")
        # As many: whoever waits for a thread does not wait for the disk.
        self.reading = asyncio.Semaphore(4)
        self._writer = Threads(1, "wasmkiln-host-write")
        self._keeper: asyncio.Task[None] | None = None
        self._jobs = Jobs()
        self._closed = False
        self._scan_at_s = 0.0

    def start(self) -> None:
        """Keep house from now on."""
        self._keeper = self._keeper or asyncio.create_task(self._keep_house())

    def shelf(self, namespace: str) -> _Shelf:
        """Return what is known of a namespace's entries."""
        shelf = _Shelf(replace(self.options, namespace=namespace))
        return self.shelves.setdefault(namespace, shelf)

    def usage(self) -> TierUsage:
        """Return what the folder holds, of all namespaces, as of a few seconds ago."""
        return _usage(list(self.shelves.values()), self.limit_bytes)

    def recheck(self) -> None:
        """Check each entry again at its next use: a key is no longer trusted."""
        self.checked, self._checked_bytes = {}, 0

    async def close(self) -> None:
        """End the threads, unless the disk hangs; never raise."""
        self._closed = True
        if self._keeper:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        for pool in (self._readers, self._writer):
            pool.shutdown(cancel_futures=True)
        await self._jobs.end()

    def check_open(self) -> None:
        """Raise TierUnavailable if the daemon ends."""
        if self._closed:
            raise TierUnavailable("the host store is closed")

    async def run(
        self, doing: str, work: Callable[[], T], until_s: Callable[[], float] | None = None
    ) -> T:
        """Run ``work`` in a thread; log why it fails, once per cause. Raises TierUnavailable.

        A look-up ends at ``until_s()``, which may grow, or is left behind: a thread that waits for
        a disk cannot be cancelled. All else writes, and comes after what came before.
        """
        self.check_open()
        if self.hanging:
            raise TierUnavailable("the host store has a disk that does not answer")
        pool = self._readers if until_s else self._writer
        job = self._jobs.add(pool.submit(work))
        if not await finished(job, until_s or (lambda: math.inf)):
            if not self.hanging:
                log.warning("host store skipped: a look-up takes too long")
            self.hanging.add(job)
            job.add_done_callback(self._answered)
            raise TierUnavailable("the disk of the host store does not answer in time")
        try:
            if job.cancelled():  # With the thread that it waited for.
                self.check_open()
            done = job.result()
        except (OSError, ownership.NotOurs, TierUnavailable, ValueRejected) as failure:
            why = str(cannot(doing, failure) if isinstance(failure, OSError) else failure)
            if why not in self.troubles.values():
                event, directory = f"cannot {doing} the host store", str(self.options.root)
                log.warning(event, directory=directory, cause=why)
            self.troubles[doing] = why
            raise TierUnavailable(why) from None
        except Exception as defect:
            log.exception(f"a defect: cannot {doing} the host store")
            raise TierUnavailable(f"cannot {doing} the host store: a defect") from defect
        finally:
            del job  # A failed job holds its traceback, which holds this frame.
        self.troubles.pop(doing, None)
        return done

    def _answered(self, job: Future[Any]) -> None:
        self.hanging.discard(job)
        if not self.hanging:
            log.info("host store in use again")

    def remember(self, checked: Checked, path: str, artifact: Artifact, files: EntryId) -> None:
        """Check these very files no more, unless ``checked`` counts no more."""
        self._checked_bytes += 0 if path in checked else 2048 + 3 * files[HEADER][2]
        if self._checked_bytes > _REMEMBERED_BYTES:
            self.recheck()
        checked[path] = artifact, files

    @contextlib.contextmanager
    def room(self, shelf: _Shelf | None = None, needed: int = 0) -> Iterator[None]:
        """Make room for ``needed`` bytes, and hold off the other daemons until they are written.

        The lock's file says how many bytes all daemons have taken. What was removed since the last
        scan is in it, so it may be too much, and is never too little. Raises OSError and
        TierUnavailable.
        """
        with _locked(self) as lock:
            text = os.pread(lock, 32, 0).strip()
            taken = max(int(text) if text.isdigit() else 0, self.usage().bytes)
            over = [each.over(needed if each is shelf else 0) for each in [*self.shelves.values()]]
            is_full = max([taken + needed - self.limit_bytes, *over]) > 0
            if is_full or time.monotonic() >= self._scan_at_s:
                self._scan()
                taken = self._make_room(shelf, needed)
            # First, so that a process that is killed now counts too much, not too little.
            os.pwrite(lock, b"%-32d" % (taken + needed), 0)
            yield

    def _make_room(self, shelf: _Shelf | None, needed: int) -> int:
        """Evict until ``needed`` bytes fit, and a few entries more; return what is left.

        The least recently used go first, and what is pinned last. Raises TierUnavailable.
        """
        for each in sorted([*self.shelves.values()], key=lambda each: each.store is not None):
            store, over = each.store, each.over(needed if each is shelf else 0)
            if not store:
                over = self.usage().bytes + needed - self.limit_bytes
            kept = store.kept(store.is_pinned) if store and over > 0 else {}
            order = sorted(each.entries, key=kept.__contains__) if over > 0 else []
            for place, key in enumerate(order):
                if over <= 0 and (key in kept or place >= len(order) // _SPARE):
                    break
                if not remove_entry(each.options, key):
                    continue
                over -= each.entries.pop(key)
                each.evictions += 1
                each.let_go += bool(store and store.is_pinned(key.module_sha256))
            # Of a namespace that is gone; the default one's is that of all.
            if each.options.namespace and order and not store and not each.entries:
                remove(each.options.directory, self.options)
        left = self.usage().bytes
        if left + needed > self.limit_bytes or (shelf and shelf.over(needed) > 0):
            raise TierUnavailable("the host store cannot make room: entries cannot be removed")
        return left

    def _scan(self) -> None:
        """Find all entries of all namespaces. Raises TierUnavailable."""
        began_s, namespaces = time.monotonic(), self.options.directory / shared.NAMESPACES
        check_root(self.options.directory)
        names = filter(model.NAMESPACE_NAME.fullmatch, _names_in(namespaces))
        for namespace in {"", *names, *self.shelves}:
            shelf, found = self.shelf(namespace), list[tuple[float, int, CacheKey]]()
            for path, key in entries_in(shelf.options.directory):
                self.check_open()
                size_bytes, used_s = measure(path)
                found += [(used_s, size_bytes, key)] if size_bytes else []
                if size_bytes and len(found) % 100 == 0:
                    time.sleep(0.002)  # So that calls go on meanwhile.
            shelf.entries = {key: size for _, size, key in sorted(found, key=lambda it: it[0])}
        now_s = time.monotonic()
        self._scan_at_s = now_s + max(_SCAN_EVERY_S, 100 * (now_s - began_s))

    async def _keep_house(self) -> None:
        while True:
            with contextlib.suppress(TierUnavailable):
                await self.run("use", self._tidy)
            await asyncio.sleep(_TIDY_EVERY_S)

    def _tidy(self) -> None:
        """Learn what others did, and stay within the limit. Raises as ``prepare``."""
        prepare(self.options)
        with self.room():
            for name in _names_in(self.options.directory / _ASIDE):
                _delete(self.options.directory / _ASIDE / name)  # Of processes that were killed.
        self.rounds += 1
        for store in filter(None, [shelf.store for shelf in [*self.shelves.values()]]):
            store.mend_engines()


@dataclass(eq=False, repr=False)
class HostStore:
    """Keeps one namespace's artifacts as files that processes of this host map; no modules.

    ``engines`` returns what the daemon serves, for clients that compute fingerprints themselves.
    ``limit_bytes`` is the namespace's share of the directory's limit: a store that may hold no
    bytes is switched off, and nobody asks it for anything. ``wait_s`` bounds each look-up, apart
    from reading large artifacts. ``get`` reads none that is larger than ``artifact_bytes()``.
    The artifacts of a module of which ``is_pinned`` is true make no room for others. ``skipped``
    says how many writes were not tried.
    """

    name = "host_store"

    directory: HostDirectory
    verifier: Sealer
    metrics: Metrics
    header_of: HeaderOf
    engines: Callable[[], Mapping[str, Any]]
    # Its share of the store. It may be set: a lower one evicts within seconds.
    limit_bytes: int
    namespace: str = ""
    wait_s: float = 60.0
    artifact_bytes: Callable[[], int] = lambda: 1 << 62
    is_pinned: model.IsPinned = model.nothing_pinned
    skipped: int = 0

    def __post_init__(self) -> None:
        self.is_on = self.limit_bytes > 0
        self.shelf = self.directory.shelf(self.namespace)
        self.shelf.store, self._options = self, self.shelf.options
        self._served = self._written = dict[str, Any]()
        self._too_large = deque[CacheKey](maxlen=100)
        self._sent = WeakValueDictionary[tuple[int, ...], _File]()

    async def start(self) -> None:
        """Make the store ready, in the background if its disk takes long; never raise."""
        if self.is_on:
            await self.write_engines()
            self.directory.start()

    async def write_engines(self) -> None:
        """Write what the daemon serves where clients look for it; wait 2 s at most, never raise.

        Write it again later if that fails, or if somebody removes it.
        """
        if self.is_on:
            self._served = dict(self.engines())
            writing = asyncio.create_task(self.directory.run("use", self.mend_engines))
            # It goes on if it takes longer; that it failed is logged.
            writing.add_done_callback(lambda done: done.cancelled() or done.exception())
            await asyncio.wait((writing,), timeout=_PATIENCE_S)

    @property
    def trouble(self) -> str:
        """Why the directory cannot be used, as of a few seconds ago; empty if it can."""
        return self.directory.troubles.get("use", "").removeprefix("the host store ")

    @property
    def is_well(self) -> bool:
        """Whether its directory can be used, no look-up hangs and no write failed just now."""
        may_write = time.monotonic() >= self.directory.no_writes_until_s
        return may_write and not self.directory.hanging and not self.trouble

    def takes(self, artifact: Artifact) -> bool:
        """Return whether to write it now: it fits, no look-up hangs, no write failed just now."""
        fits = _least_on_disk(artifact) <= self.limit_bytes
        if fits and self.is_well:
            return True
        self.skipped += 1
        if not fits:
            self.metrics.tier_store(self.name, "too_large", 0.0)
            if artifact.key not in self._too_large:  # Each call that wants its file comes here.
                self._too_large.append(artifact.key)
                why = f"there may be {self.limit_bytes:,} bytes of this namespace"
                about = {"module": artifact.module_sha256, "bytes": artifact.size_bytes, "why": why}
                log.warning("artifact not written: the host store takes none of its size", **about)
        return False

    async def get(
        self,
        key: CacheKey,
        allowance: Allowance | None = None,
        fits: Callable[[int], bool] = lambda size_bytes: True,
    ) -> Artifact | None:
        """Return the artifact under ``key``, checked. Raises TierUnavailable.

        It has its frames, or ``pieces`` if it is larger than a frame and so many bytes do not fit.
        """
        more = allowance or Allowance()
        return await self._look(partial(self._find, key, partial(self._get, more, fits)), more)

    async def file_of(self, key: CacheKey, allowance: Allowance | None = None) -> Found | None:
        """Return the artifact without frames, and the file that holds it, checked.

        Raises TierUnavailable. The file may be evicted by the time a caller opens it.
        """
        more = allowance or Allowance()
        return await self._look(partial(self._find, key, partial(self._use, more, None)), more)

    async def put(self, artifact: Artifact) -> None:
        """Store ``artifact``, unless it is there or too large. Raises TierUnavailable."""
        began_s = time.perf_counter()
        try:
            await self.directory.run("write", partial(self._write, artifact))
        except TierUnavailable:
            self.directory.no_writes_until_s = time.monotonic() + _NO_WRITES_S
            self.metrics.tier_store(self.name, "error", time.perf_counter() - began_s)
            raise
        self.metrics.tier_store(self.name, "ok", time.perf_counter() - began_s)

    async def held(self, keys: Collection[CacheKey]) -> frozenset[CacheKey]:
        """Return which of ``keys`` are stored, without checking them. Raises TierUnavailable."""
        paths = {key: _steps(self._options, key)[-1] / ARTIFACT for key in keys if _is_digest(key)}
        return await self._look(lambda: frozenset(each for each in paths if paths[each].is_file()))

    async def evict(self, scope: EvictScope) -> Evicted:
        """Remove all in ``scope``, for all daemons of the host. Raises TierUnavailable.

        There may be room after it, so a write that failed keeps no other from being tried.
        """
        removed = await self.directory.run("evict from", partial(self._evict, scope))
        self.directory.no_writes_until_s = 0.0
        return removed

    def usage(self) -> TierUsage:
        """Return what all daemons of the host stored, as of a few seconds ago."""
        return _usage([self.shelf], self.limit_bytes)

    def entries_of(self, modules: Collection[str]) -> Mapping[CacheKey, int]:
        """Return the entries of ``modules`` with their sizes, as of the last scan.

        Look at all entries, of which there may be many: call it in a thread.
        """
        entries, chosen = [*self.shelf.entries.items()] if modules else [], frozenset(modules)
        return {key: size_bytes for key, size_bytes in entries if key.module_sha256 in chosen}

    def kept(self, is_pinned: model.IsPinned) -> Mapping[CacheKey, int]:
        """Return the most recently used entries of pinned modules, up to half of the share.

        They make no room for others; those above half do.
        """
        kept, left_bytes = dict[CacheKey, int](), self.limit_bytes / 2
        for key, size_bytes in reversed([*self.shelf.entries.items()]):
            if size_bytes <= left_bytes and is_pinned(key.module_sha256):
                kept[key] = size_bytes
                left_bytes -= size_bytes
        return kept

    async def count_pinned(self, modules: Collection[str]) -> None:
        """Count what is kept of ``modules``, all that are pinned."""
        is_pinned = frozenset(modules).__contains__
        kept = await asyncio.to_thread(self.kept, is_pinned) if modules else {}
        self.shelf.kept = model.Held(len(kept), 0, sum(kept.values()))

    def has_room_for_pinned(self, artifact: Artifact) -> bool:
        """Return whether ``artifact`` would be kept if it were written now."""
        return 2 * (self.shelf.kept.bytes + _least_on_disk(artifact)) <= self.limit_bytes

    async def close(self) -> None:
        """Serve the namespace no more: its entries go when others need the room."""
        if self.shelf.store is self:
            self.shelf.store, self.shelf.kept = None, model.Held()

    async def _look(self, work: Callable[[], T], allowance: Allowance | None = None) -> T:
        """Run a look-up; count one with an allowance as hit or miss. Raises TierUnavailable."""
        began_s, outcome, more = time.monotonic(), "error", allowance or Allowance()
        until_s = began_s + self.wait_s
        with more.free():
            await self.directory.reading.acquire()
        try:
            found = await self.directory.run("read", work, lambda: until_s + more.seconds)
            outcome = "hit" if found else "miss"
            return found
        finally:
            self.directory.reading.release()
            if allowance or outcome == "error":
                took_s = time.monotonic() - began_s
                self.metrics.tier_lookup(self.name, "artifact", outcome, took_s)

    async def _piece(self, read: Callable[[], bytes]) -> bytes:
        """Return a frame of an artifact that is being sent. Raises COMPILE_QUEUE_FULL."""
        try:
            async with self.directory.reading:
                until_s = time.monotonic() + _PIECE_S
                return await self.directory.run("read", read, lambda: until_s)
        except TierUnavailable as failure:
            raise errors.cannot_read_on(str(failure)) from None

    # What follows runs in threads, and raises OSError, TierUnavailable and, where it says so,
    # ValueRejected.

    def _find(self, key: CacheKey, work: Callable[[Entry], T]) -> T | None:
        """Return what ``work`` returns for an entry; None if there is none.

        One that is rejected is removed and counted, and None too.
        """
        entry = None
        try:
            entry = open_entry(self._options, key)
            return work(entry) if entry else None
        except ValueRejected as rejected:
            # If it changed or is gone, another process evicted or replaced it meanwhile.
            if not entry or (entry.files == _ids_of(entry.path) and os.path.lexists(entry.path)):
                removed, cause = remove_entry(self._options, key), rejected.cause.value
                self.metrics.value_rejected(self.name, cause)
                of = {"module": key.module_sha256, "fingerprint": key.fingerprint}
                of |= {"tier": self.name, "cause": cause, "why": rejected.why}
                # What cannot be removed is rejected again and again.
                (log.warning if removed else log.debug)("stored value rejected", **of)
            return None

    def _get(self, more: Allowance, fits: Callable[[int], bool], entry: Entry) -> Artifact | None:
        size_bytes = entry.files[ARTIFACT][2] if entry.files else 0
        if size_bytes > self.artifact_bytes():
            return None  # Not removed: daemons with a higher limit use it.
        if size_bytes <= wire.CHUNK_BYTES or fits(size_bytes):
            artifact, _ = self._use(more, frames := list[bytes](), entry)
            return replace(artifact, frames=tuple(frames), described=artifact)
        artifact, _ = self._use(more, None, entry)
        which = entry.files[ARTIFACT]
        if (file := self._sent.get(which)) is None:
            with _opened(f"{entry.path}/{ARTIFACT}") as opened:
                if _id_of(os.fstat(opened.fileno())) != which:
                    raise ValueRejected(Cause.INCOMPLETE, f"{ARTIFACT} was replaced")
                self._sent[which] = file = _File(os.dup(opened.fileno()))

        def pieces(offset_bytes: int) -> Iterator[Awaitable[bytes]]:
            for at in range(offset_bytes, size_bytes, wire.CHUNK_BYTES):
                read = partial(file.frame, at, min(wire.CHUNK_BYTES, size_bytes - at))
                yield _Later(partial(self._piece, read))

        return replace(artifact, pieces=pieces, described=artifact)

    def _use(self, more: Allowance, frames: list[bytes] | None, entry: Entry) -> Found:
        """Check an entry, unless it was; add its bytes to ``frames``."""
        checked = self.directory.checked
        artifact, files = checked.get(entry.path, (None, None))
        if artifact is None or files != entry.files or self.verifier.outdated(artifact):
            artifact, files = entry.verified(self.verifier), None
        if files is None or frames is not None:
            more.seconds += artifact.size_bytes / _LEAST_BYTES_PER_S
            entry.check(artifact, frames)
            self.directory.remember(checked, entry.path, artifact, entry.files)
        _note_use(entry.path)
        return artifact, HostFile(f"{entry.path}/{ARTIFACT}", *entry.files[ARTIFACT][:2])

    def _write(self, artifact: Artifact) -> None:
        """Write an entry, if it fits. Raises ValueRejected.

        The caller trusts the artifact's digest: nothing is hashed, and it counts as checked.
        """
        options, checked, key = self._options, self.directory.checked, artifact.key
        prepare(options)
        stored = self._described(key)  # Bytes that are torn, the next look-up finds.
        is_there = stored and stored.attestation == artifact.attestation
        if is_there or self.verifier.outdated(artifact):
            return
        plain = replace(artifact, frames=(), encoding="", described=None)
        texts = {HEADER: header_text(self.header_of(plain)), ATTESTATION: artifact.attestation}
        needed = _BLOCK_BYTES + sum(map(_on_disk, (artifact.size_bytes, *map(len, texts.values()))))
        if needed > self.limit_bytes:  # ``takes`` says so, unless the header is large.
            raise TierUnavailable("the host store takes no artifact with so large a header")
        *above, path = _steps(options, key)
        with self.directory.room(self.shelf, needed):
            aside = _fresh(options)
            try:
                aside.mkdir(mode=0o700)
                frames = unpacked_frames(artifact) if artifact.encoding else artifact.frames
                chunks = (view for each in frames for view in wire.payload_views((each,)))
                _write_file(aside / ARTIFACT, chunks, options)
                for name, text in texts.items():
                    _write_file(aside / name, [text], options)
                files = _ids_of(os.fspath(aside))
                _admit(aside, options)
                placed = None
                while not placed:
                    aside.lstat()  # Somebody may remove the whole store meanwhile: then it fails.
                    # Who removes another entry now may prune these folders: then make them again.
                    with contextlib.suppress(FileNotFoundError):
                        prepare(options)
                        for folder in above:
                            folder.mkdir(mode=0o700, exist_ok=True)
                            _admit(folder, options)
                        remove(path, options)
                        placed = aside.rename(path)
            finally:
                _delete(aside)
        _note_use(entry := os.fspath(path))
        self.shelf.entries[key] = needed
        self.directory.remember(checked, entry, plain, files)

    def _described(self, key: CacheKey) -> Artifact | None:
        return self._find(key, lambda entry: entry.verified(self.verifier))

    def _evict(self, scope: EvictScope) -> Evicted:
        """Take time linear in the entries' names, or for a module in what is removed."""
        removed, engines = Evicted(), dict[str, str]()
        for path, key in list(entries_in(self._options.directory, scope.module_sha256)):
            # An engine has a fingerprint if the first good entry there is of it.
            is_new = scope.engine_id and key.fingerprint not in engines
            if is_new and (found := self._described(key)):
                engines[key.fingerprint] = found.spec.engine.id
            if scope.engine_id not in ("", engines.get(key.fingerprint)):
                continue
            if scope.leaves(key.module_sha256):
                removed += Evicted(pinned=1)
                continue
            size_bytes, _ = measure(path)
            if not remove_entry(self._options, key):
                raise TierUnavailable("the host store cannot remove an entry")
            self.shelf.entries.pop(key, None)
            removed += Evicted(int(size_bytes > 0), 0, size_bytes)
        return removed

    def mend_engines(self) -> None:
        """Write ``engines.json`` if it is due or gone. What another daemon wrote stays."""
        document, place = self._served, self._options.directory / ENGINES
        if not document or (document is self._written and place.exists()):
            return
        prepare(self._options)
        text = json.dumps(document, indent=2, allow_nan=False).encode() + b"\n"
        with _locked(self.directory):
            aside = _fresh(self._options)
            _write_file(aside, [text], self._options)
            aside.replace(place)
        self._written = document


class _File:
    """The file of an artifact, for all calls that it is sent to; closed after the last.

    What it reads is what was checked, whatever becomes of the entry.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def __del__(self) -> None:
        DISK.submit(os.close, self._descriptor)

    def frame(self, at: int, size_bytes: int) -> bytes:
        """Read a frame, in a thread. Raises OSError, TierUnavailable if somebody cut the file."""
        chunk = os.pread(self._descriptor, size_bytes, at)
        if len(chunk) != size_bytes:
            raise TierUnavailable("the host store has an artifact that was cut")
        return wire.frame(chunk)


@dataclass(frozen=True)
class _Later:
    """What begins only when it is awaited: a caller may go before."""

    begin: Callable[[], Awaitable[bytes]]

    def __await__(self) -> Any:
        return self.begin().__await__()


class Entry:
    """An entry as it is at one moment. Its methods raise ValueRejected and OSError.

    Nobody but this user can change its folder and those above it: see ``open_entry``.
    """

    def __init__(self, path: str, key: CacheKey) -> None:
        self.path, self.key, self.files = path, key, _ids_of(path)

    def described(self) -> Artifact:
        """Return what the header says, which nobody has vouched for yet, without frames."""
        text, header = self._content(HEADER), types_pb2.ArtifactHeader()
        try:
            json_format.Parse(text, header, ignore_unknown_fields=True)
            if text.endswith(b"}\n"):
                return _artifact_of(header)
        except (json_format.ParseError, UnicodeDecodeError, RecursionError, KeyError):
            pass
        raise ValueRejected(Cause.FORMAT, f"{HEADER} is not an artifact's header")

    def verified(self, verifier: Sealer) -> Artifact:
        """Return what the header says, if its attestation vouches for it."""
        if not self.files:
            raise ValueRejected(Cause.INCOMPLETE, f"one of {', '.join(_FILES)} is gone")
        artifact = self.described()
        if artifact.attestation and self._content(ATTESTATION) != artifact.attestation:
            raise ValueRejected(Cause.DIGEST, f"{ATTESTATION} is another than {HEADER} says")
        if refusal := verifier.verify(artifact, self.key) or verifier.outdated(artifact):
            raise ValueRejected(Cause(refusal.cause), refusal.why)
        return artifact

    def check(self, artifact: Artifact, frames: list[bytes] | None = None) -> None:
        """Compare the bytes with what ``verified`` returned, and add them to ``frames``."""
        # One more byte than there are.
        digest, left_bytes = hashlib.sha256(), artifact.size_bytes + 1
        room = memoryview(bytearray(min(left_bytes, wire.CHUNK_BYTES)))
        with _opened(f"{self.path}/{ARTIFACT}") as file:
            while got_bytes := file.readinto(room[:left_bytes]):
                left_bytes -= got_bytes
                digest.update(room[:got_bytes])
                if frames is not None:
                    frames.append(wire.frame(room[:got_bytes]))
        if digest.hexdigest() != artifact.sha256:
            raise ValueRejected(Cause.DIGEST, f"{ARTIFACT} is damaged")

    def _content(self, name: str) -> bytes:
        with _opened(f"{self.path}/{name}") as file:
            return file.read(_MAX_TEXT_BYTES)


def prepare(options: HostOptions) -> None:
    """Make the directory if it is missing, with its mode and group.

    Raises NotOurs, OSError and TierUnavailable.
    """
    above = [path for path in options.directory.parents if path.is_relative_to(options.root)]
    for directory in (*reversed(above), options.directory):
        ownership.take_back(directory)
        try:
            ownership.make_folder(directory)
            check_root(directory)
            _admit(directory, options)
        except OSError as failure:
            raise _unusable(directory, failure, options.group) from None


def check_root(directory: Path) -> None:
    """Raise NotOurs or TierUnavailable if the directory is gone, or others can change it."""
    try:
        found = directory.stat()
        if not stat.S_ISDIR(found.st_mode):
            raise NotADirectoryError(errno.ENOTDIR, "")
        _check(found, str(directory), stat.S_ISDIR)
    except OSError as failure:
        raise _unusable(directory, failure) from None
    except ValueRejected as rejected:
        ownership.check_path(directory)  # It says what to do.
        why = f"the host store refuses its directory: {rejected.why}; use a folder in it, which the"
        raise TierUnavailable(f"{why} daemon makes: {directory / 'artifacts'}") from None


def open_entry(options: HostOptions, key: CacheKey) -> Entry | None:
    """Return an entry; None if there is none, or can be none.

    Raises ValueRejected if a folder on the way is a link or not ours, OSError, TierUnavailable.
    """
    check_root(options.directory)
    if _is_digest(key):
        path = os.fspath(options.directory)
        with contextlib.suppress(FileNotFoundError):
            for name in (key.fingerprint, key.module_sha256[:2], key.module_sha256):
                path = f"{path}/{name}"
                _check(os.lstat(path), name, stat.S_ISDIR)
            return Entry(path, key)
    return None


def entries_in(directory: Path, module: str = "") -> Iterator[tuple[Path, CacheKey]]:
    """Return the entries of a module, or of all, unchecked. Raises OSError."""
    for fingerprint in filter(model.SHA256_HEX.fullmatch, _names_in(directory)):
        for start in [module[:2]] if module else _names_in(directory / fingerprint):
            folder = directory / fingerprint / start
            for name in [module] if module else _names_in(folder):
                path, key = folder / name, CacheKey(name, fingerprint)
                if start == name[:2] and _is_digest(key) and (not module or os.path.lexists(path)):
                    yield path, key


def _names_in(folder: Path) -> list[str]:
    """Return what is in a folder, if there is one. Raises OSError: it is not empty for that."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        return [path.name for path in folder.iterdir()]
    return []


def measure(path: Path) -> tuple[int, float]:
    """Return what the store counts for the entry at ``path``, and when anybody used it.

    Nothing is counted where there is no artifact.
    """
    with contextlib.suppress(OSError, KeyError), os.scandir(path) as files:
        found = {file.name: file.stat(follow_symlinks=False) for file in files}
        used_s = max(path.stat(follow_symlinks=False).st_mtime, found[ARTIFACT].st_atime)
        used_s = min(used_s, time.time())  # Else one from the future would be the newest for ever.
        return _BLOCK_BYTES + sum(_on_disk(each.st_size) for each in found.values()), used_s
    return 0, 0.0


def remove_entry(options: HostOptions, key: CacheKey) -> bool:
    """Remove an entry; return whether it is gone, or was not there. Never raises.

    If a folder on the way to it is no folder of ours, that goes, and nothing behind a link.
    """
    steps = _steps(options, key)
    for path in steps:
        try:
            _check(path.lstat(), path.name, stat.S_ISDIR)
        except (OSError, ValueRejected):
            break
    is_gone = remove(path, options)
    with contextlib.suppress(OSError):
        for path in reversed(steps[:-1]):
            path.rmdir()  # Where it is empty.
    return is_gone


def remove(path: Path, options: HostOptions) -> bool:
    """Remove what is at ``path`` at one moment, by a rename; return whether it is gone.

    Where that is not possible, as on a full disk, delete it in its place. Never raises.
    """
    try:
        away = path.rename(_fresh(options))
    except OSError:
        _delete(path)
        return not os.path.lexists(path)
    _delete(away)
    return True  # What is there now, another daemon has stored since.


def cannot(do: str, failure: OSError) -> TierUnavailable:
    """Return what a tier raises because of ``failure``."""
    return TierUnavailable(f"the host store cannot {do}: {failure.strerror or failure}")


def _write_file(path: Path, chunks: Iterable[Any], options: HostOptions) -> None:
    with path.open("xb") as file:  # In a folder that no other user gets into.
        file.writelines(chunks)
    _admit(path, options)


def _artifact_of(header: types_pb2.ArtifactHeader) -> Artifact:
    """Translate a header back into what it was made of. Raises KeyError for an unknown kind."""
    of, attested = header.engine, peek(header.attestation)
    settings = dict(header.settings), dict(header.changed_settings)
    identity = model.EngineIdentity(of.name, of.version, of.core_version, of.compiler)
    spec = model.CompileSpec(identity, header.target, header.cpu, *settings, header.fingerprint)
    return Artifact(
        *(header.module_sha256, Kind(KINDS[header.kind]), spec),
        *(header.artifact_sha256, header.size_bytes),
        frames=(),
        # A Duration has fewer digits than the attestation, which is verified later.
        compile_time_s=attested[0].compile_time_s if attested else 0.0,
        imports=tuple(_extern(each, each.module) for each in header.imports),
        exports=tuple(_extern(each) for each in header.exports),
        types_truncated=header.types_truncated,
        attestation=header.attestation,
    )


def _extern(of: types_pb2.ImportType | types_pb2.ExportType, module: str = "") -> model.ExternType:
    return model.ExternType(module, of.name, _EXTERNS.get(of.kind, ""), of.type)


def _opened(path: str) -> FileIO:
    """Open a file. Raises OSError, and ValueRejected unless it counts: see ``_check``."""
    try:
        _check(os.lstat(path), path, stat.S_ISREG)
        return FileIO(path)
    except FileNotFoundError:
        raise ValueRejected(Cause.INCOMPLETE, f"{path} is gone") from None
    except PermissionError:
        raise ValueRejected(Cause.FOREIGN, f"the daemon may not read {path}") from None


@contextlib.contextmanager
def _locked(directory: HostDirectory) -> Iterator[int]:
    """Open the file that daemons lock while they write. Raises OSError, TierUnavailable."""
    file = directory.options.root / "writing.lock"
    lock = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        for _ in range(1500):  # 15 s: a scan of a large store takes seconds.
            directory.check_open()
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            time.sleep(0.01)
        else:
            raise TierUnavailable("another daemon writes to the host store")
        yield lock
    finally:
        os.close(lock)


def _fresh(options: HostOptions) -> Path:
    """Return a path that does not exist, in a folder that does. Raises OSError."""
    aside = options.root / _ASIDE
    aside.mkdir(mode=0o700, exist_ok=True)
    return aside / os.urandom(8).hex()


def _ids_of(path: str) -> EntryId:
    """Return the identities of the files of an entry as of now: what changes has another one.

    Where one is missing there is none.
    """
    with contextlib.suppress(OSError):
        return {name: _id_of(os.lstat(f"{path}/{name}")) for name in _FILES}
    return {}


def _id_of(of: os.stat_result) -> tuple[int, int, int, int]:
    return of.st_dev, of.st_ino, of.st_size, of.st_ctime_ns


def _note_use(path: str) -> None:
    """Tell all daemons that an entry is used now."""
    with contextlib.suppress(OSError):
        os.utime(path, ns=(time.time_ns(),) * 2)  # The clock of the file system is coarse.


def _check(found: os.stat_result, name: str, is_right: Callable[[int], bool]) -> None:
    """Raise ValueRejected unless it is what it should be, and only this process's user's."""
    if not is_right(found.st_mode) or (stat.S_ISREG(found.st_mode) and found.st_nlink != 1):
        raise ValueRejected(Cause.FOREIGN, f"{name} is no folder, or no file with one name")
    if found.st_uid != os.geteuid():
        raise ValueRejected(Cause.FOREIGN, f"{name} belongs to user {found.st_uid}")
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        mode = stat.S_IMODE(found.st_mode)
        raise ValueRejected(Cause.FOREIGN, f"other users may write to {name} (mode {mode:04o})")


def _admit(path: Path, options: HostOptions) -> None:
    """Give a file or folder of this user its mode and group. Raises OSError."""
    found = path.stat()
    mode = options.folder_mode if stat.S_ISDIR(found.st_mode) else options.file_mode
    if options.group is not None and found.st_gid != options.group:
        os.chown(path, -1, options.group)
    if stat.S_IMODE(found.st_mode) != mode:
        path.chmod(mode)


def _unusable(directory: Path, failure: OSError, group: int | None = None) -> TierUnavailable:
    """Return what to raise because of ``failure``; it names the folder that is in the way."""
    code = errno.ENOTDIR if failure.errno == errno.EEXIST else failure.errno or 0
    there = next(filter(os.path.lexists, (directory, *directory.parents)), directory)
    why = "" if group is None else f" with the group {group} of host_store_group"
    do, in_the_way = f"use its directory {directory}{why}", f"{os.strerror(code)}: {there}"
    return cannot(do, OSError(code, in_the_way))


def _delete(path: Path) -> None:
    """Remove a folder with all in it, or what else is there; never raise."""
    shutil.rmtree(path, ignore_errors=True)
    with contextlib.suppress(OSError):
        path.unlink()


def _on_disk(size_bytes: int) -> int:
    """Return what the store counts for a file of ``size_bytes``."""
    return -(-size_bytes // _BLOCK_BYTES) * _BLOCK_BYTES


def _least_on_disk(artifact: Artifact) -> int:
    """Return what an entry takes at least: a folder, an artifact, a header and an attestation."""
    return 3 * _BLOCK_BYTES + _on_disk(artifact.size_bytes)


def _steps(options: HostOptions, key: CacheKey) -> tuple[Path, Path, Path]:
    """Return the folders that lead from the directory to an entry."""
    path = shared.entry_path(options.directory, key.fingerprint, key.module_sha256)
    return path.parents[1], path.parent, path


def _is_digest(key: CacheKey) -> bool:
    """Return whether folders can have these names: a key must not lead to another place."""
    return all(map(model.SHA256_HEX.fullmatch, (key.fingerprint, key.module_sha256)))
