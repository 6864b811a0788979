"""The host store: artifacts as files that any process of this host maps, a tier of its own.

Clients find an entry by fingerprint and module digest alone (``wasmkiln.host_layout``), with the
daemon up or down. ``HostDirectory`` is the folder with all its namespaces: threads, order of use,
room. ``HostStore`` is what one namespace does in it.

- An entry appears whole, by a rename, and its files never change; Evict unlinks, so whoever has a
  file mapped keeps it. Nothing is synced: each entry is checked before this process first uses it,
  by its attestation and one SHA-256, so one that a power cut tore is a miss.
- Only the daemon's user may own and write what is used. What is wrong is removed, counted, logged,
  and a miss. A disk that hangs, is full, read-only or gone fails the tier, never a call.
- ``limit_bytes`` bounds the files of all namespaces and daemons, each rounded up to 4 KiB. The
  least recently used entries go first, those of namespaces that are not served before all others.
  Uses are noted as the mtime of the entry's folder; what clients read shows in the file's atime.
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
import secrets
import shutil
import stat
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Coroutine, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, TypeVar

import structlog
from google.protobuf import json_format
from wasmkiln import host_layout
from wasmkiln.artifact import header_text
from wasmkiln.attestation import peek
from wasmkiln.host_layout import ARTIFACT, ATTESTATION, ENGINES, HEADER
from wasmkiln.v1 import types_pb2
from wasmkiln.v1.types_pb2 import ArtifactHeader

from wasmkilnd import model
from wasmkilnd.cache.value import ValueRejected, unpacked
from wasmkilnd.errors import DoesNotFit, TierUnavailable
from wasmkilnd.model import Artifact, CacheKey, Evicted, EvictScope, HostFile, Kind, TierUsage
from wasmkilnd.model import RejectionCause as Cause
from wasmkilnd.ownership import NotOurs, check_path, make_folder, take_back
from wasmkilnd.ports import Recorder
from wasmkilnd.signing.sealer import Sealer
from wasmkilnd.wait_budget import Allowance
from wasmkilnd.wire import CHUNK_BYTES, frame, payload_views

T = TypeVar("T")
HeaderOf: TypeAlias = Callable[[Artifact], ArtifactHeader]
"""Translates an artifact into the header that the daemon sends, without what depends on a call."""
FileId: TypeAlias = tuple[int, int, int, int]
EntryId: TypeAlias = tuple[FileId, ...]
"""Device, inode, size and ctime of each file, zeros for none: while they stay, so do its bytes."""

FILES = (ARTIFACT, HEADER, ATTESTATION)
BLOCK_BYTES = 4096
"""What the store counts for a folder, and the unit to which it rounds up the size of a file."""

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW
_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_MAX_TEXT_BYTES = 8 * 1024 * 1024
_ASIDE = "aside"  # What is on its way in or out. 0.6.0 deletes what it does not know in tmp/.
_LOCK = "writing.lock"

_READERS = 4
_TRIES = 3
_NO_WRITES_S = 10.0
_PATIENCE_S = 2.0  # How long a disk may delay the start, a reload or the end of the daemon.
_LEAST_BYTES_PER_S = 32 * 1024 * 1024  # A slow disk: reading much may take longer than wait_s.
_REMEMBERED_BYTES = 16 * 1024 * 1024
_MAX_REFUSED = 1000
_TIDY_EVERY_S = 5.0
_CLEAN_EVERY = 60  # Rounds of tidying.
_NOTE_USE_EVERY_S = 300.0
_SCAN_REST = 20  # A scan is not repeated for so many times as long as it took.
_LOCK_WAIT_S = 5.0

_KINDS = {types_pb2.KIND_CORE_MODULE: Kind.CORE_MODULE, types_pb2.KIND_COMPONENT: Kind.COMPONENT}
_EXTERNS = {n: name[len("EXTERN_KIND_") :].lower() for name, n in types_pb2.ExternKind.items()}

log = structlog.get_logger("wasmkilnd.cache")


@dataclass(frozen=True, slots=True)
class HostOptions:
    """Where a namespace's entries are, how much they may take, and who may read them."""

    directory: Path
    limit_bytes: int
    file_mode: int = 0o640
    """The mode of files. Only the owner may have the right to write."""
    group: int | None = None
    """The number of the group of files and folders; None for the daemon's own."""
    root: Path = Path()
    """The directory of all namespaces; by default it is ``directory``."""

    def __post_init__(self) -> None:
        # Callers get paths, and have another working directory.
        object.__setattr__(self, "directory", self.directory.absolute())
        if self.root == Path():
            object.__setattr__(self, "root", self.directory)

    def of_namespace(self, namespace: str, limit_bytes: int) -> HostOptions:
        """Return the options of a namespace, whose entries are in a folder of this one."""
        directory = host_layout.namespace_path(self.directory, namespace)
        return replace(self, directory=directory, limit_bytes=limit_bytes)

    @property
    def folder_mode(self) -> int:
        """The mode of folders: whoever may read files may search folders, and the owner writes."""
        return self.file_mode | (self.file_mode & 0o444) >> 2 | stat.S_IRWXU


class _Known(NamedTuple):
    """What is known of an entry."""

    size_bytes: int
    used_s: float


@dataclass(eq=False)
class _Shelf:
    """The entries of one namespace, the least recently used first."""

    options: HostOptions
    store: HostStore | None = None
    """Whose entries they are; None while the namespace is not served."""
    entries: OrderedDict[CacheKey, _Known] = field(default_factory=OrderedDict)
    fingerprints: set[str] = field(default_factory=set)
    bytes: int = 0
    evictions: int = 0
    too_many: set[CacheKey] = field(default_factory=set)
    """Entries of pinned modules that are not kept, as all take more than half of the limit."""
    kept: model.Held = field(default_factory=model.Held)
    let_go: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def put(self, key: CacheKey, size_bytes: int, used_s: float) -> None:
        self.drop(key)
        with self.lock:
            self.entries[key] = _Known(size_bytes, used_s)
            self.fingerprints.add(key.fingerprint)
            self.bytes += size_bytes

    def drop(self, key: CacheKey) -> None:
        with self.lock:
            if known := self.entries.pop(key, None):
                self.bytes -= known.size_bytes

    def replace(self, found: dict[CacheKey, _Known], since_s: float) -> None:
        """Hold what a scan found that began at ``since_s``, and what came meanwhile."""
        with self.lock:
            for key, old in self.entries.items():
                if old.used_s >= since_s or (key in found and old.used_s > found[key].used_s):
                    found[key] = old
            self.entries = OrderedDict(sorted(found.items(), key=lambda each: each[1].used_s))
            self.fingerprints = {key.fingerprint for key in found}
            self.bytes = sum(known.size_bytes for known in found.values())


def _usage(shelves: Collection[_Shelf], limit_bytes: int) -> TierUsage:
    kept = sum((each.kept for each in shelves), model.Held())
    return TierUsage(
        *(sum(len(each.entries) for each in shelves), sum(each.bytes for each in shelves)),
        *(limit_bytes, sum(each.evictions for each in shelves)),
        *(kept.artifacts, kept.bytes, sum(each.let_go for each in shelves)),
    )


class HostDirectory:
    """The folder of all namespaces: its threads, the order of use, and who makes room.

    For one event loop, which nothing here blocks. Methods with one underscore run in threads; those
    that write run in one thread alone, one after the other.
    """

    def __init__(self, options: HostOptions) -> None:
        self.options = options
        self.limit_bytes = options.limit_bytes
        self.troubles: dict[str, str] = {}
        """By what the store cannot do: why not."""
        self.no_writes_until_s = 0.0
        self.hanging: set[asyncio.Future[Any]] = set()
        """Look-ups that hang: while there are any, nothing else begins."""
        self.shelves: dict[str, _Shelf] = {}
        self.checked: dict[Path, tuple[Artifact, EntryId]] = {}
        """The entries that this process has checked. Another dict once they count no more."""
        self.rounds = 0
        self._checked_bytes = 0
        self._readers = ThreadPoolExecutor(_READERS, "wasmkiln-host-read")
        self._writer = ThreadPoolExecutor(1, "wasmkiln-host-write")
        self._keeper: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._closed = False
        self._written = -1  # How much all daemons had ever written, as of the last scan.
        self._rest_s = 0.0

    def start(self) -> None:
        """Keep house from now on."""
        self._keeper = self._keeper or asyncio.create_task(self._keep_house())

    def shelf(self, namespace: str) -> _Shelf:
        """Return what is known of a namespace's entries."""
        options = self.options.of_namespace(namespace, 0)
        return self.shelves.setdefault(namespace, _Shelf(options))

    def resize(self, limit_bytes: int) -> None:
        """Hold at most ``limit_bytes`` in all namespaces; what is too much goes soon."""
        self.limit_bytes = limit_bytes
        self._wake.set()

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
            await _briefly(asyncio.to_thread(pool.shutdown, cancel_futures=True))

    async def run(
        self,
        doing: str,
        work: Callable[[], T],
        *,
        writes: bool = False,
        wait_s: float = math.inf,
        more: Allowance | None = None,
    ) -> T:
        """Run ``work`` in a thread; log why it fails, once per cause. Raises TierUnavailable.

        If it takes longer than ``wait_s`` and ``more``, leave it behind: a thread that waits for a
        disk cannot be cancelled. What writes or removes comes after all of that which came before.
        """
        if self._closed or self.hanging:
            why = "is closed" if self._closed else "has a disk that does not answer"
            raise TierUnavailable(f"the host store {why}")
        pool = self._writer if writes else self._readers
        job = asyncio.get_running_loop().run_in_executor(pool, work)
        job.add_done_callback(self._ended)
        until_s = time.monotonic() + wait_s
        while not job.done():
            left_s = until_s + (more.seconds if more else 0.0) - time.monotonic()
            if left_s <= 0:
                if not self.hanging:
                    log.warning("host store skipped: a look-up takes too long")
                self.hanging.add(job)
                raise TierUnavailable(f"the disk of the host store does not answer in {wait_s:g} s")
            await asyncio.wait((job,), timeout=left_s)
        try:
            done = job.result()
        except DoesNotFit:
            raise
        except (OSError, NotOurs, TierUnavailable, ValueRejected) as failure:
            why = str(cannot(doing, failure) if isinstance(failure, OSError) else failure)
            if why not in self.troubles.values():
                event, where = f"cannot {doing} the host store", os.fspath(self.options.directory)
                log.warning(event, tier=HostStore.name, directory=where, cause=why)
            self.troubles[doing] = why
            raise TierUnavailable(why) from None
        except Exception as defect:
            log.exception(f"a defect: cannot {doing} the host store")
            raise TierUnavailable(f"cannot {doing} the host store: a defect") from defect
        finally:
            del job  # A failed job holds its traceback, which holds this frame.
        if self.troubles.pop(doing, ""):
            log.info(f"can {doing} the host store again", tier=HostStore.name)
        return done

    def _ended(self, job: asyncio.Future[Any]) -> None:
        if not job.cancelled():
            job.exception()  # Nobody else reads it, if its caller is gone.
        if job in self.hanging:
            self.hanging.discard(job)
            if not self.hanging:
                log.info("host store in use again")

    def remember(
        self,
        checked: dict[Path, tuple[Artifact, EntryId]],
        path: Path,
        artifact: Artifact,
        identity: EntryId,
    ) -> None:
        """Check these very files no more, unless ``checked`` counts no more."""
        self._checked_bytes += 2048 + 2 * identity[FILES.index(HEADER)][2]
        if self._checked_bytes > _REMEMBERED_BYTES:
            self.recheck()
        checked[path] = artifact, identity

    def discard(self, shelf: _Shelf, key: CacheKey) -> bool:
        """Remove an entry; return whether there was one. Raises OSError."""
        was_there = _unlink(shelf.options, key)
        shelf.drop(key)
        return was_there

    @contextlib.contextmanager
    def room(self, shelf: _Shelf, needed: int) -> Iterator[None]:
        """Make room for ``needed`` bytes, and hold off the other daemons until they are written.

        The lock's file says how many bytes all have ever written. What others wrote since the last
        scan, this one does not know: it makes room for that too, and scans when that is too much.
        """
        with _locked(self.options) as lock:
            written = _ever_written(lock)
            is_known = 0 <= self._written <= written
            others_bytes = written - self._written if is_known else self.limit_bytes
            if others_bytes + needed > self.limit_bytes:
                self._scan()
                self._written, others_bytes = written, 0
            # First, so that a process that is killed now counts too much, not too little.
            os.pwrite(lock, b"%-32d" % (written + needed), 0)
            self._written += needed
            self._make_room(shelf, needed + others_bytes)
            yield

    def _make_room(self, shelf: _Shelf, needed: int = 0) -> None:
        """Evict until ``needed`` bytes fit, into the share of ``shelf`` and into the limit."""
        every = list(self.shelves.values())
        if shelf.store:
            self._shrink(shelf, shelf.store.limit_bytes - needed)
        for each in every:
            if not each.store:
                too_much = sum(one.bytes for one in every) + needed - self.limit_bytes
                self._shrink(each, each.bytes - too_much)

    def _shrink(self, shelf: _Shelf, to_bytes: int) -> None:
        """Evict the least recently used entries until there are ``to_bytes`` at most.

        Those that others used since come last, and then those that are pinned. Raises OSError.
        """
        for is_last_round in (False, False, True):
            with shelf.lock:
                keys = list(shelf.entries) if shelf.bytes > to_bytes else ()
            for key in keys:
                if shelf.bytes <= to_bytes:
                    break
                is_kept = shelf.store is not None and shelf.store.keeps(key)
                if not is_last_round and (is_kept or _was_used(shelf, key)):
                    continue
                was_there = self.discard(shelf, key)
                shelf.let_go += was_there and is_kept
                shelf.evictions += was_there
                if not shelf.store and not any(entries_in(shelf.options.directory)):
                    remove(shelf.options.directory, self.options)  # Of a namespace that is gone.

    def _scan(self) -> None:
        """Find all entries of all namespaces. Raises OSError and TierUnavailable."""
        began_s, since_s = time.monotonic(), time.time()
        check_root(self.options.directory)
        namespaces = self.options.directory / host_layout.NAMESPACES
        names = _names_in(namespaces, model.NAMESPACE_NAME.fullmatch)
        for namespace in {"", *names, *self.shelves}:
            shelf, found = self.shelf(namespace), dict[CacheKey, _Known]()
            for path, key in entries_in(shelf.options.directory):
                if self._closed:
                    raise TierUnavailable("the host store is closed")
                known = _Known(*measure(path))
                if known.size_bytes:
                    found[key] = known
                if len(found) % 100 == 0:
                    time.sleep(0.002)  # So that calls go on meanwhile.
            shelf.replace(found, since_s)
        self._rest_s = _SCAN_REST * (time.monotonic() - began_s)

    async def _keep_house(self) -> None:
        while True:
            with contextlib.suppress(TierUnavailable):
                await self.run("use", self._tidy, writes=True)
            self._wake.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(_TIDY_EVERY_S, self._rest_s)):
                    await self._wake.wait()

    def _tidy(self) -> None:
        """Learn what others did, and stay within the limit. Raises TierUnavailable, OSError."""
        prepare(self.options)
        is_time, written = self.rounds % _CLEAN_EVERY == 0, self._written
        with contextlib.suppress(OSError, TierUnavailable), _locked(self.options) as lock:
            written = _ever_written(lock)
            if is_time:
                for path in (self.options.directory / _ASIDE).iterdir():
                    _delete(path)  # What processes left that were killed.
        if is_time or written != self._written:
            self._scan()
            self._written = written
        self.rounds += 1
        for shelf in list(self.shelves.values()):
            self._make_room(shelf)
            if shelf.store:
                shelf.store.mend_engines()


class HostStore:
    """Keeps one namespace's artifacts as files that processes of this host map; no modules.

    A store that may hold no bytes is switched off: it finds nothing and takes nothing.
    """

    name = "host_store"

    def __init__(
        self,
        directory: HostDirectory,
        verifier: Sealer,
        recorder: Recorder,
        *,
        header_of: HeaderOf,
        engines: Callable[[], Mapping[str, Any]],
        namespace: str = "",
        limit_bytes: int | None = None,
        wait_s: float = math.inf,
        artifact_bytes: Callable[[], int] = lambda: sys.maxsize,
        is_pinned: model.IsPinned = model.nothing_pinned,
    ) -> None:
        """Hold at most ``limit_bytes``, the namespace's share of the directory's limit.

        ``wait_s`` bounds each look-up, apart from reading large artifacts. ``get`` reads no
        artifact that is larger than ``artifact_bytes``. What is of a module that ``is_pinned``
        returns True for makes no room for others. ``engines`` returns what the daemon serves, for
        clients that compute fingerprints themselves.
        """
        self.limit_bytes = directory.limit_bytes if limit_bytes is None else limit_bytes
        self.is_on = self.limit_bytes > 0
        self.shelf = directory.shelf(namespace)
        self.shelf.store = self
        self.skipped = 0
        """How many writes were not tried."""
        self._options = self.shelf.options
        self._directory = directory
        self._verifier = verifier
        self._recorder = recorder
        self._header_of = header_of
        self._engines = engines
        self._written_engines: Mapping[str, Any] = {}
        self._wait_s = wait_s
        self._artifact_bytes = artifact_bytes
        self._is_pinned = is_pinned
        self._refused: set[CacheKey] = set()  # Each counts once, however often it is asked for.

    async def start(self) -> None:
        """Make the store ready, in the background if its disk takes long; never raise."""
        if self.is_on:
            self._directory.start()
            await self.write_engines()

    async def write_engines(self) -> None:
        """Write what the daemon serves where clients look for it; wait 2 s at most, never raise.

        Write it again later if somebody removes or damages it.
        """
        if self.is_on:
            self._written_engines = self._engines()
            await _briefly(self._directory.run("use", self._write_engines))

    def mend_engines(self) -> None:
        """Write ``engines.json`` again if clients cannot use what is there.

        What another daemon wrote stays, or two daemons would replace each other's by turns.
        Raises OSError and TierUnavailable.
        """
        if self._written_engines and (why := _why_no_engines(self._options.directory)):
            self._write_engines()
            log.warning(f"{ENGINES} of the host store was written again", cause=why)

    @property
    def trouble(self) -> str:
        """Why the directory cannot be used, as of a few seconds ago; empty if it can."""
        return self._directory.troubles.get("use", "").removeprefix("the host store ")

    @property
    def is_well(self) -> bool:
        """Whether its directory can be used, no look-up hangs and no write failed just now."""
        directory, is_late = self._directory, time.monotonic() >= self._directory.no_writes_until_s
        return self.is_on and is_late and not directory.hanging and not self.trouble

    def takes(self, artifact: Artifact) -> bool:
        """Return whether to write it now: it fits, no look-up hangs, no write failed just now."""
        key, fits = artifact.key, _least_on_disk(artifact) <= self.limit_bytes
        if self.is_well and fits:
            self._refused.discard(key)
            return True
        if self.is_on and key not in self._refused:
            self.skipped += 1
            self._refused = {key, *(self._refused if len(self._refused) < _MAX_REFUSED else ())}
            if not fits:
                sizes = {"bytes": artifact.size_bytes, "limit_bytes": self.limit_bytes}
                event = "an artifact is larger than the host store: raise host_store_bytes"
                log.warning(event, tier=self.name, module=key.module_sha256, **sizes)
        return False

    async def get(
        self,
        key: CacheKey,
        allowance: Allowance | None = None,
        accept: frozenset[str] = frozenset(),
    ) -> Artifact | None:
        """Return the artifact under ``key``, every byte checked. Raises TierUnavailable."""
        more = allowance or Allowance()
        work = partial(self._with_entry, key, partial(self._read, more))
        return await self._look(work, None, more, counts=True)

    async def file_of(
        self, key: CacheKey, allowance: Allowance | None = None
    ) -> tuple[Artifact, HostFile] | None:
        """Return the artifact without frames, and the file that holds it, checked.

        Raises TierUnavailable. The file may be evicted by the time a caller opens it.
        """
        more = allowance or Allowance()
        work = partial(self._with_entry, key, partial(self._file_of, more, self._directory.checked))
        return await self._look(work, None, more, counts=True)

    async def put(self, artifact: Artifact) -> None:
        """Store ``artifact``, unless it is there. Raises TierUnavailable, DoesNotFit."""
        if not self.is_on:
            return
        began_s, outcome = time.perf_counter(), "ok"
        try:
            await self._directory.run("write", partial(self._write, artifact), writes=True)
        except DoesNotFit:
            outcome = ""  # It says nothing about the tier.
            raise
        except TierUnavailable:
            outcome = "error"
            self._directory.no_writes_until_s = time.monotonic() + _NO_WRITES_S
            self._refused.clear()
            raise
        finally:
            if outcome:
                self._recorder.tier_store(self.name, outcome, time.perf_counter() - began_s)

    async def held(self, keys: Sequence[CacheKey]) -> frozenset[CacheKey]:
        """Return which of ``keys`` are stored, without checking them. Raises TierUnavailable."""

        def look() -> frozenset[CacheKey]:
            there = (key for key in keys if _is_possible(key))
            return frozenset(key for key in there if (self._path(key) / ARTIFACT).is_file())

        return await self._look(look, frozenset()) if keys else frozenset()

    async def kinds_of(self, keys: Sequence[CacheKey]) -> Mapping[CacheKey, Kind]:
        """Return the kinds of the modules behind artifacts, from the entries' headers alone."""

        def look() -> Mapping[CacheKey, Kind]:
            described = ((key, self._described(key)) for key in keys)
            return {key: artifact.kind for key, artifact in described if artifact}

        return await self._look(look, {}) if keys else {}

    async def evict(self, scope: EvictScope) -> Evicted:
        """Remove all in ``scope``, for all daemons of the host. Raises TierUnavailable.

        There may be room after it, so a write that failed keeps no other from being tried.
        """
        if not self.is_on:
            return Evicted()
        removed = await self._directory.run("evict from", partial(self._evict, scope), writes=True)
        self._directory.no_writes_until_s = 0.0
        return removed

    def usage(self) -> TierUsage:
        """Return what all daemons of the host stored, as of a few seconds ago."""
        return _usage([self.shelf], self.limit_bytes)

    def entries_of(self, modules: Collection[str]) -> Mapping[str, Mapping[CacheKey, int]]:
        """Return the entries of ``modules`` with their sizes, as of the last scan."""
        found: dict[str, dict[CacheKey, int]] = {}
        for module in modules:
            keys = [CacheKey(module, each) for each in list(self.shelf.fingerprints)]
            known = ((key, self.shelf.entries.get(key)) for key in keys)
            found[module] = {key: one.size_bytes for key, one in known if one}
        return found

    def keeps(self, key: CacheKey) -> bool:
        """Return whether an entry makes no room for others."""
        return self._is_pinned(key.module_sha256) and key not in self.shelf.too_many

    def count_pinned(self, modules: Collection[str]) -> None:
        """Count what is kept of ``modules``, all that are pinned; let go what is above half."""
        kept, too_many, entries = model.Held(), set[CacheKey](), self.shelf.entries
        pinned = [item for each in self.entries_of(modules).values() for item in each.items()]
        last_use_s = {key: known.used_s for key, _ in pinned if (known := entries.get(key))}
        for key, size_bytes in sorted(pinned, key=lambda item: -last_use_s.get(item[0], 0)):
            if 2 * (kept.bytes + size_bytes) > self.limit_bytes:
                too_many.add(key)
            else:
                kept += model.Held(1, 0, size_bytes)
        self.shelf.let_go += len(too_many - self.shelf.too_many)
        self.shelf.kept, self.shelf.too_many = kept, too_many

    def has_room_for_pinned(self, artifact: Artifact) -> bool:
        """Return whether ``artifact`` would be kept if it were written now."""
        return 2 * (self.shelf.kept.bytes + _least_on_disk(artifact)) <= self.limit_bytes

    def recheck(self) -> None:
        """Check each entry again at its next use: a key is no longer trusted."""
        self._directory.recheck()

    def resize(self, limit_bytes: int) -> None:
        """Change the share. Entries that are too many go soon after."""
        self.limit_bytes = limit_bytes
        self._directory.resize(self._directory.limit_bytes)

    async def close(self) -> None:
        """Serve the namespace no more: its entries go when others need the room."""
        if self.shelf.store is self:
            self.shelf.store, self.shelf.kept = None, model.Held()
            self._directory.resize(self._directory.limit_bytes)

    async def _look(
        self, work: Callable[[], T], off: T, more: Allowance | None = None, *, counts: bool = False
    ) -> T:
        """Run a look-up; return ``off`` if the store is off. Raises TierUnavailable."""
        if not self.is_on:
            return off
        began_s, outcome = time.perf_counter(), "error"
        try:
            found = await self._directory.run("read", work, wait_s=self._wait_s, more=more)
            outcome = "" if not counts else "hit" if found else "miss"
            return found
        finally:
            if outcome:
                took_s = time.perf_counter() - began_s
                self._recorder.tier_lookup(self.name, "artifact", outcome, took_s)

    # What follows runs in threads, and raises OSError, TierUnavailable and, where it says so,
    # ValueRejected.

    def _with_entry(self, key: CacheKey, work: Callable[[OpenEntry], T]) -> T | None:
        """Return what ``work`` returns for an entry; None if there is none.

        One that is rejected is removed and counted, and None too.
        """
        if not _is_possible(key):
            return None
        try:
            for _ in range(_TRIES):
                with open_entry(self._options, key) as entry:
                    try:
                        return work(entry) if entry else None
                    except ValueRejected:
                        if entry is None or entry.is_at(self._path(key)):
                            raise
                        # Another process evicted or replaced the entry meanwhile.
        except ValueRejected as rejected:
            self._reject(key, rejected)
        return None

    def _reject(self, key: CacheKey, rejected: ValueRejected) -> None:
        """Remove an entry that does not verify; count it, and log it."""
        removed, cause = remove_entry(self._options, key), rejected.cause.value
        self.shelf.drop(key)
        self._recorder.value_rejected(self.name, cause)
        # What cannot be removed is rejected again and again.
        tell, module = log.warning if removed else log.debug, key.module_sha256
        about = {"module": module, "fingerprint": key.fingerprint, "removed": removed}
        tell("stored value rejected", tier=self.name, cause=cause, why=rejected.why, **about)

    def _read(self, more: Allowance, entry: OpenEntry) -> Artifact | None:
        artifact, frames = entry.verified(self._verifier), list[bytes]()
        if artifact.size_bytes > self._artifact_bytes():
            return None  # Not removed: daemons with a higher limit use it.
        more.add(artifact.size_bytes / _LEAST_BYTES_PER_S)
        entry.check(artifact, frames)
        entry.count_use(self.shelf)
        return replace(artifact, frames=tuple(frames))

    def _file_of(
        self,
        more: Allowance,
        checked: dict[Path, tuple[Artifact, EntryId]],
        entry: OpenEntry,
    ) -> tuple[Artifact, HostFile]:
        path = self._path(entry.key)
        artifact, identity = checked.get(path, (None, ()))
        if artifact and identity == entry.identity:
            if refusal := self._verifier.outdated(artifact):
                raise ValueRejected(Cause(refusal.cause), refusal.why)
        else:
            artifact = entry.verified(self._verifier)
            more.add(artifact.size_bytes / _LEAST_BYTES_PER_S)
            entry.check(artifact)
            self._directory.remember(checked, path, artifact, entry.identity)
        entry.count_use(self.shelf)
        device, inode, _, _ = entry.identity[0]
        return artifact, HostFile(os.fspath(path / ARTIFACT), device, inode)

    def _is_same(self, artifact: Artifact, entry: OpenEntry) -> bool:
        there, (_, _, size_bytes, _) = entry.verified(self._verifier), entry.identity[0]
        is_same = (there.sha256, there.attestation) == (artifact.sha256, artifact.attestation)
        if is_same and size_bytes == artifact.size_bytes:
            entry.count_use(self.shelf)
            return True
        return False

    def _write(self, artifact: Artifact) -> None:
        """Write an entry. Raises ValueRejected, DoesNotFit.

        The caller trusts the artifact's digest: nothing is hashed, and it counts as checked.
        """
        options, checked, key = self._options, self._directory.checked, artifact.key
        if self._verifier.outdated(artifact):
            return
        prepare(options)
        if self._with_entry(key, partial(self._is_same, artifact)):
            return
        plain = replace(artifact, frames=(), encoding="")
        text = header_text(self._header_of(plain))
        sizes = (artifact.size_bytes, len(text), len(artifact.attestation))
        needed = BLOCK_BYTES + sum(map(_on_disk, sizes))
        if needed > self.limit_bytes:
            why = f"it takes {needed} bytes, and the host store may hold {self.limit_bytes}"
            raise DoesNotFit(f"{why}: raise host_store_bytes")
        with self._directory.room(self.shelf, needed):
            aside = _fresh(options)
            try:
                identity = _write_entry(aside, artifact, text, options)
                _rename_in(options, key, aside)
            finally:
                _delete(aside)
        self.shelf.put(key, needed, time.time())
        self._directory.remember(checked, self._path(key), plain, identity)

    def _described(self, key: CacheKey) -> Artifact | None:
        return self._with_entry(key, lambda entry: entry.verified(self._verifier))

    def _evict(self, scope: EvictScope) -> Evicted:
        """Take time linear in what is removed."""
        directory, removed = self._options.directory, Evicted()
        for fingerprint in list(_names_in(directory, model.SHA256_HEX.fullmatch)):
            keys = [key for _, key in entries_in(directory, fingerprint)]
            if scope.module_sha256:
                keys = [CacheKey(scope.module_sha256, fingerprint)]
            elif scope.engine_id:
                described = filter(None, map(self._described, keys))  # By its first good entry.
                if next((each.spec.engine.id for each in described), "") != scope.engine_id:
                    continue
            for key in filter(_is_possible, keys):
                if scope.leaves(key.module_sha256):
                    removed += Evicted(pinned=1)
                    continue
                size_bytes, _ = measure(self._path(key))
                if self._directory.discard(self.shelf, key):
                    removed += Evicted(int(size_bytes > 0), 0, size_bytes)
        return removed

    def _write_engines(self) -> None:
        """Write ``engines.json`` aside and rename it into place."""
        prepare(self._options)
        text = json.dumps(self._written_engines, indent=2, allow_nan=False).encode() + b"\n"
        place = self._options.directory / ENGINES
        with _locked(self._options):
            aside = _fresh(self._options)
            _write_file(aside, [text], self._options)
            if place.is_dir() and not place.is_symlink():
                _delete(place)
            aside.replace(place)

    def _path(self, key: CacheKey) -> Path:
        return _path(self._options.directory, key)


class OpenEntry:
    """An entry whose folder is open. Its methods raise ValueRejected and OSError.

    Each file is opened relative to the folder's descriptor, without following a link, and checked
    on its own descriptor: nothing can be exchanged between the check and the reading.
    """

    def __init__(self, folder: int, key: CacheKey) -> None:
        self.key = key
        self._folder = folder
        self.identity: EntryId = tuple(map(self._id_of, FILES))
        """As of now: what changes later has another one."""

    def described(self) -> Artifact:
        """Return what the header says, which nobody has vouched for yet, without frames."""
        text, header = self._content(HEADER), ArtifactHeader()
        try:
            json_format.Parse(text, header, ignore_unknown_fields=True)
        except (json_format.ParseError, UnicodeDecodeError, RecursionError):
            raise ValueRejected(Cause.FORMAT, f"{HEADER} is not an artifact's header") from None
        if not text.endswith(b"}\n") or header.kind not in _KINDS:
            raise ValueRejected(Cause.FORMAT, f"{HEADER} has another end or kind than it should")
        return _artifact_of(header)

    def verified(self, verifier: Sealer) -> Artifact:
        """Return what the header says, if its attestation vouches for it."""
        artifact = self.described()
        is_signed = artifact.attestation or any(self.identity[FILES.index(ATTESTATION)])
        if is_signed and self._content(ATTESTATION) != artifact.attestation:
            raise ValueRejected(Cause.DIGEST, f"{ATTESTATION} is another than {HEADER} says")
        if refusal := verifier.verify(artifact, self.key) or verifier.outdated(artifact):
            raise ValueRejected(Cause(refusal.cause), refusal.why)
        return artifact

    def check(self, artifact: Artifact, frames: list[bytes] | None = None) -> None:
        """Compare the bytes with what ``verified`` returned, and add them to ``frames``."""
        digest, left = hashlib.sha256(), artifact.size_bytes
        with _opened(ARTIFACT, self._folder) as (descriptor, size_bytes):
            if size_bytes != left:
                cause = Cause.TRUNCATED if size_bytes < left else Cause.FORMAT
                raise ValueRejected(cause, f"{ARTIFACT} has {size_bytes} bytes")
            while left and (chunk := _read(descriptor, min(left, CHUNK_BYTES))):
                left -= len(chunk)
                digest.update(chunk)
                if frames is not None:
                    frames.append(frame(chunk))
        if digest.hexdigest() != artifact.sha256:
            raise ValueRejected(Cause.DIGEST, f"{ARTIFACT} is damaged")

    def count_use(self, shelf: _Shelf) -> None:
        """Count a use; note it on the disk, unless one was noted just now."""
        now_s, known = time.time(), shelf.entries.get(self.key)
        size_bytes = BLOCK_BYTES + sum(_on_disk(each[2]) for each in self.identity)
        shelf.put(self.key, known.size_bytes if known else size_bytes, now_s)
        if now_s - os.fstat(self._folder).st_mtime >= _NOTE_USE_EVERY_S:
            with contextlib.suppress(OSError):
                os.utime(self._folder, (now_s, now_s))

    def is_at(self, path: Path) -> bool:
        """Return whether ``path`` still leads to this entry."""
        try:
            return os.path.samestat(os.fstat(self._folder), path.lstat())
        except OSError:
            return False

    def _id_of(self, name: str) -> FileId:
        try:
            return _id_of(os.stat(name, dir_fd=self._folder, follow_symlinks=False))
        except FileNotFoundError:
            return (0, 0, 0, 0)

    def _content(self, name: str) -> bytes:
        with _opened(name, self._folder) as (descriptor, _):
            return _read(descriptor, _MAX_TEXT_BYTES)


def prepare(options: HostOptions) -> None:
    """Make the directory if it is missing, with its mode and group.

    Raises NotOurs, OSError and TierUnavailable.
    """
    above = [path for path in options.directory.parents if path.is_relative_to(options.root)]
    for directory in (*reversed(above), options.directory):
        take_back(directory)
        try:
            make_folder(directory)
            check_root(directory)
            _admit(directory, options.folder_mode, options.group)
        except OSError as failure:
            raise _unusable(directory, failure) from None


def check_root(directory: Path) -> None:
    """Raise TierUnavailable if the directory is gone, or another user can change it."""
    try:
        found = directory.stat()
        if not stat.S_ISDIR(found.st_mode):
            raise NotADirectoryError(errno.ENOTDIR, "")
        _check_ours(found, str(directory))
    except OSError as failure:
        raise _unusable(directory, failure) from None
    except ValueRejected as rejected:
        why = f"the host store refuses its directory: {rejected.why}"
        try:
            check_path(directory)  # It says what to do.
        except NotOurs as failure:
            raise TierUnavailable(str(failure)) from None
        why += f"; use a folder in it, which the daemon makes: {directory / 'artifacts'}"
        raise TierUnavailable(why) from None


@contextlib.contextmanager
def open_entry(options: HostOptions, key: CacheKey) -> Iterator[OpenEntry | None]:
    """Open the folder of an entry; None if there is none.

    Raises ValueRejected if a folder on the way is a link or not ours, OSError, TierUnavailable.
    """
    check_root(options.directory)
    folder = -1
    with contextlib.suppress(FileNotFoundError):
        for path in _steps(options.directory, key):
            _check_folder(path)
        folder = os.open(path, _FOLDER)
    if folder < 0:
        yield None
        return
    try:
        yield OpenEntry(folder, key)
    finally:
        os.close(folder)


def entries_in(directory: Path, fingerprint: str = "") -> Iterator[tuple[Path, CacheKey]]:
    """Return the entries of a fingerprint, or of all, unchecked. Raises OSError."""
    is_digest = model.SHA256_HEX.fullmatch
    for each in (fingerprint,) if fingerprint else _names_in(directory, is_digest):
        for start in _names_in(directory / each, lambda name: len(name) == 2):
            for module in _names_in(directory / each / start, is_digest):
                yield directory / each / start / module, CacheKey(module, sys.intern(each))


def measure(path: Path) -> tuple[int, float]:
    """Return what the store counts for the entry at ``path``, and when anybody used it.

    Nothing is counted where there is no artifact.
    """
    try:
        with os.scandir(path) as files:
            found = {file.name: file.stat(follow_symlinks=False) for file in files}
        if ARTIFACT not in found:
            return 0, 0.0
        times = path.stat(follow_symlinks=False).st_mtime, found[ARTIFACT].st_atime
    except OSError:
        return 0, 0.0
    size_bytes = BLOCK_BYTES + sum(_on_disk(each.st_size) for each in found.values())
    return size_bytes, max((each for each in times if each <= time.time()), default=0.0)


def remove_entry(options: HostOptions, key: CacheKey) -> bool:
    """Remove an entry that does not verify; return whether it is gone. Never raises."""
    try:
        _unlink(options, key)
    except OSError:
        return False
    return True


def remove(path: Path, options: HostOptions) -> bool:
    """Remove what is at ``path`` at one moment, by a rename; return whether there was anything.

    Where that is not possible, as on a full disk, delete it in its place. Raises OSError.
    """
    if not os.path.lexists(path):
        return False
    away = path
    try:
        away = path.rename(_fresh(options))
    except OSError:
        _delete(path)
        if os.path.lexists(path):
            raise
    _delete(away)
    return True


def cannot(do: str, failure: OSError) -> TierUnavailable:
    """Return what a tier raises because of ``failure``."""
    return TierUnavailable(f"the host store cannot {do}: {failure.strerror or failure}")


def _unlink(options: HostOptions, key: CacheKey) -> bool:
    """Remove an entry; return whether there was one. Raises OSError.

    If a folder on the way to it is no folder of ours, that goes, and nothing behind a link.
    """
    steps = _steps(options.directory, key)
    for path in steps:
        try:
            _check_folder(path)
        except (OSError, ValueRejected):
            break
    was_there = remove(path, options)
    with contextlib.suppress(OSError):
        for path in reversed(steps[:-1]):
            path.rmdir()  # Where it is empty.
    return was_there


def _rename_in(options: HostOptions, key: CacheKey, aside: Path) -> None:
    """Rename an entry into place, over what is there. Raises OSError and ValueRejected."""
    *above, target = _steps(options.directory, key)
    for is_last in (False, False, True):
        try:
            for path in above:
                with contextlib.suppress(FileExistsError):
                    path.mkdir(mode=0o700)
                    _admit(path, options.folder_mode, options.group)
                _check_folder(path)
            aside.rename(target)
            return
        except (OSError, ValueRejected):
            if is_last:
                raise
            # Either an entry is there, or another process removed an empty folder.
            _unlink(options, key)


def _write_entry(path: Path, artifact: Artifact, header: bytes, options: HostOptions) -> EntryId:
    """Write an entry as the new folder ``path``. Raises OSError and ValueRejected."""
    path.mkdir(mode=0o700)
    signed = [artifact.attestation] if artifact.attestation else None
    identity = tuple(
        _write_file(path / name, content, options) if content else (0, 0, 0, 0)
        for name, content in zip(FILES, (_unpacked(artifact), [header], signed), strict=True)
    )
    _admit(path, options.folder_mode, options.group)
    if identity[0][2] != artifact.size_bytes:
        raise ValueRejected(Cause.FORMAT, "the artifact has another size than it should")
    return identity


def _write_file(path: Path, chunks: Iterable[Any], options: HostOptions) -> FileId:
    with path.open("xb") as file:  # In a folder that no other user gets into.
        file.writelines(chunks)
    _admit(path, options.file_mode, options.group)
    return _id_of(path.stat())


def _unpacked(artifact: Artifact) -> Iterator[Any]:
    """Return the artifact's bytes, one frame after the other. Raises ValueRejected."""
    left_bytes = artifact.size_bytes
    for view in payload_views(artifact.frames):
        chunk = unpacked(view, min(CHUNK_BYTES, left_bytes)) if artifact.encoding else view
        left_bytes -= len(chunk)
        yield chunk


def _artifact_of(header: ArtifactHeader) -> Artifact:
    """Translate a header back into what it was made of."""
    engine, attested = header.engine, peek(header.attestation)
    identity = engine.name, engine.version, engine.core_version, engine.compiler
    settings = dict(header.settings), dict(header.changed_settings)
    every = (
        [("", each) for each in header.exports],
        [(each.module, each) for each in header.imports],
    )
    exports, imports = (
        tuple(
            model.ExternType(module, each.name, _EXTERNS.get(each.kind, ""), each.type)
            for module, each in some
        )
        for some in every
    )
    return Artifact(
        header.module_sha256,
        _KINDS[header.kind],
        model.CompileSpec(
            model.EngineIdentity(*identity),
            *(header.target, header.cpu, *settings, header.fingerprint),
        ),
        header.artifact_sha256,
        header.size_bytes,
        frames=(),
        # A Duration has fewer digits than the attestation, which is verified later.
        compile_time_s=attested[0].compile_time_s if attested else 0.0,
        imports=imports,
        exports=exports,
        types_truncated=header.types_truncated,
        attestation=header.attestation,
    )


def _why_no_engines(directory: Path) -> str:
    """Return why no client can use ``engines.json``; empty if a daemon of this user wrote it."""
    try:
        with _opened(os.fspath(directory / ENGINES)) as (descriptor, _):
            document = json.loads(_read(descriptor, _MAX_TEXT_BYTES))
        is_good = isinstance(document, dict) and {"version", "engines"} <= document.keys()
    except ValueRejected as rejected:
        return rejected.why
    except (ValueError, RecursionError):
        is_good = False
    return "" if is_good else "it is damaged"


@contextlib.contextmanager
def _opened(path: str, folder: int | None = None) -> Iterator[tuple[int, int]]:
    """Open a file, and return its descriptor and size. Raises OSError.

    Raises ValueRejected unless it is a regular file with one name, which only this user may write.
    """
    name = os.path.basename(path)  # noqa: PTH119
    try:
        descriptor = os.open(path, _READ, dir_fd=folder)
    except FileNotFoundError:
        raise ValueRejected(Cause.INCOMPLETE, f"{name} is gone") from None
    except OSError as failure:
        if failure.errno not in (errno.ELOOP, errno.EACCES):
            raise
        why = f"the daemon may not read {name}, or it is a link"
        raise ValueRejected(Cause.FOREIGN, why) from None
    try:
        found = os.fstat(descriptor)
        _check_ours(found, name)
        if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
            raise ValueRejected(Cause.FOREIGN, f"{name} is no regular file with one name")
        yield descriptor, found.st_size
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _locked(options: HostOptions) -> Iterator[int]:
    """Open the file that daemons lock while they write. Raises OSError, TierUnavailable."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    lock, until_s = os.open(options.root / _LOCK, flags, 0o600), time.monotonic() + _LOCK_WAIT_S
    try:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until_s:
                    raise TierUnavailable("another daemon writes to the host store") from None
                time.sleep(0.01)
        yield lock
    finally:
        os.close(lock)


def _ever_written(lock: int) -> int:
    text = os.pread(lock, 32, 0).strip()
    return int(text) if text.isdigit() else 0


def _fresh(options: HostOptions) -> Path:
    """Return a path that does not exist, in a folder that does. Raises OSError."""
    aside = options.root / _ASIDE
    aside.mkdir(mode=0o700, exist_ok=True)
    return aside / secrets.token_hex(8)


def _check_folder(path: Path) -> None:
    """Raise ValueRejected unless ``path`` is a folder that only this user can change, OSError."""
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise ValueRejected(Cause.FOREIGN, f"{path.name} is not a folder")
    _check_ours(found, path.name)


def _check_ours(found: os.stat_result, name: str) -> None:
    """Raise ValueRejected unless only this process's user owns and may write ``name``."""
    if found.st_uid != os.geteuid():
        raise ValueRejected(Cause.FOREIGN, f"{name} belongs to user {found.st_uid}")
    if found.st_mode & _OTHERS_WRITE:
        mode = stat.S_IMODE(found.st_mode)
        raise ValueRejected(Cause.FOREIGN, f"other users may write to {name} (mode {mode:04o})")


def _admit(path: Path, mode: int, group: int | None) -> None:
    """Give a file or folder of this user its mode and group. Raises OSError, TierUnavailable."""
    found = path.stat()
    if group is not None and found.st_gid != group:
        try:
            os.chown(path, -1, group)
        except PermissionError as failure:
            do = f"give {path} to the group {group} of host_store_group, which the daemon's user"
            raise cannot(f"{do} must be in", failure) from None
    if stat.S_IMODE(found.st_mode) != mode:
        path.chmod(mode)


def _unusable(directory: Path, failure: OSError) -> TierUnavailable:
    """Return what to raise because of ``failure``; it names the folder that is in the way."""
    code = errno.ENOTDIR if failure.errno == errno.EEXIST else failure.errno
    why = os.strerror(code) if code else str(failure)
    if code != errno.ENOENT:
        why += f": {next(filter(os.path.lexists, (directory, *directory.parents)), directory)}"
    return TierUnavailable(f"the host store cannot use its directory {directory}: {why}")


def _names_in(folder: Path, wanted: Callable[[str], object]) -> Iterator[str]:
    """Return the names of the folders in ``folder`` that are ``wanted``. Raises OSError."""
    with (
        contextlib.suppress(FileNotFoundError, NotADirectoryError),
        os.scandir(folder) as entries,
    ):
        for entry in entries:
            if wanted(entry.name) and entry.is_dir(follow_symlinks=False):
                yield entry.name


def _delete(path: Path) -> None:
    """Remove a folder with all in it, or what else is there; never raise."""
    with contextlib.suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()


def _was_used(shelf: _Shelf, key: CacheKey) -> bool:
    """Return whether another daemon or a client used an entry since; take note of that."""
    (size_bytes, used_s), known = (
        measure(_path(shelf.options.directory, key)),
        shelf.entries.get(key),
    )
    if known is None or not size_bytes or used_s <= known.used_s:
        return False
    shelf.put(key, size_bytes, used_s)
    return True


def _read(descriptor: int, size_bytes: int) -> bytes:
    """Read ``size_bytes``; fewer at the end of the file."""
    found = os.read(descriptor, size_bytes)
    while len(found) < size_bytes and (more := os.read(descriptor, size_bytes - len(found))):
        found += more
    return found


def _id_of(found: os.stat_result) -> FileId:
    return found.st_dev, found.st_ino, found.st_size, found.st_ctime_ns


def _on_disk(size_bytes: int) -> int:
    """Return what the store counts for a file of ``size_bytes``."""
    return -(-size_bytes // BLOCK_BYTES) * BLOCK_BYTES


def _least_on_disk(artifact: Artifact) -> int:
    """Return what an entry takes at least: a folder, an artifact, a header and an attestation."""
    return 3 * BLOCK_BYTES + _on_disk(artifact.size_bytes)


def _path(directory: Path, key: CacheKey) -> Path:
    return host_layout.entry_path(directory, key.fingerprint, key.module_sha256)


def _steps(directory: Path, key: CacheKey) -> tuple[Path, Path, Path]:
    """Return the folders that lead from the directory to an entry."""
    path = _path(directory, key)
    return path.parents[1], path.parent, path


def _is_possible(key: CacheKey) -> bool:
    """Return whether folders can have these names: a key must not lead to another place."""
    return all(map(model.SHA256_HEX.fullmatch, (key.fingerprint, key.module_sha256)))


async def _briefly(work: Coroutine[Any, Any, object]) -> None:
    """Wait some seconds for ``work``. It goes on if it did not end; that it failed is logged."""
    await asyncio.wait((asyncio.create_task(work),), timeout=_PATIENCE_S)
