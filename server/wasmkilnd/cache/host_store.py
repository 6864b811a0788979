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
import grp
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
from wasmkiln.artifact import header_text
from wasmkiln.attestation import peek
from wasmkiln.host_layout import (
    ARTIFACT,
    ATTESTATION,
    ENGINES,
    HEADER,
    NAMESPACES,
    entry_path,
    namespace_path,
)
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
FileId: TypeAlias = tuple[int, int, int, int] | None
EntryId: TypeAlias = tuple[FileId, ...]
"""Device, inode, size and ctime of each file: while they are the same, so are its bytes."""

FILES = (ARTIFACT, HEADER, ATTESTATION)
BLOCK_BYTES = 4096
"""What the store counts for a folder, and the unit to which it rounds up the size of a file."""

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW
_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_WRITE = os.O_WRONLY | os.O_CLOEXEC | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_MAX_TEXT_BYTES = 8 * 1024 * 1024
_ASIDE = "aside"  # What is on its way in or out. 0.6.0 deletes what it does not know in tmp/.
_LOCK = "writing.lock"
_IN_THE_WAY = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR, errno.ENOENT)

_READERS = 4
_TRIES = 3
_NO_WRITES_S = 10.0
_PATIENCE_S = 2.0  # How long a disk may delay the start, a reload or the end of the daemon.
_LEAST_BYTES_PER_S = 32 * 1024 * 1024  # A slow disk: reading much may take longer than wait_s.
_SETTLED_NS = 1_000_000_000  # What changed this recently may change again with the same ctime.
_REMEMBERED_BYTES = 16 * 1024 * 1024
_MAX_REMEMBERED = 1000
_TIDY_EVERY_S = 5.0
_CLEAN_EVERY = 60  # Rounds of tidying.
_NOTE_USE_EVERY_S = 300.0
_SCAN_REST = 20  # A scan is not repeated for so many times as long as it took.
_SCAN_PAUSE_EVERY, _SCAN_PAUSE_S = 100, 0.002
_LOCK_WAIT_S, _LOCK_TRY_EVERY_S = 5.0, 0.01

_HANGS = "the disk of the host store does not answer"
_KINDS = {types_pb2.KIND_CORE_MODULE: Kind.CORE_MODULE, types_pb2.KIND_COMPONENT: Kind.COMPONENT}
_EXTERNS = {
    number: name.removeprefix("EXTERN_KIND_").lower()
    for name, number in types_pb2.ExternKind.items()
}

log = structlog.get_logger("wasmkilnd.cache")


@dataclass(frozen=True, slots=True)
class HostOptions:
    """Where the store is, how much it may hold, and who may read it."""

    directory: Path
    limit_bytes: int
    file_mode: int = 0o640
    """The mode of files. Only the owner may have the right to write."""
    group: int | None = None
    """The number of the group of files and folders; None for the daemon's own."""
    above: tuple[Path, ...] = ()
    """Folders on the way to the directory that get the mode and the group too, the first first."""

    def of_namespace(self, namespace: str, limit_bytes: int) -> HostOptions:
        """Return the options of a namespace, whose entries are in a folder of this one."""
        directory = namespace_path(self.directory, namespace)
        above = (self.directory, directory.parent) if namespace else ()
        return replace(self, directory=directory, limit_bytes=limit_bytes, above=above)

    def __post_init__(self) -> None:
        # Callers get paths, and have another working directory.
        object.__setattr__(self, "directory", self.directory.absolute())
        if self.file_mode & ~0o666 or self.file_mode & _OTHERS_WRITE or self.file_mode < 0o400:
            raise ValueError(f"cannot use mode {self.file_mode:04o} for files of the host store")

    @property
    def root(self) -> Path:
        """The directory of all namespaces."""
        return self.above[0] if self.above else self.directory

    @property
    def folder_mode(self) -> int:
        """The mode of folders: whoever may read files may search folders, and the owner writes."""
        return self.file_mode | (self.file_mode & 0o444) >> 2 | stat.S_IRWXU


class _Known:
    """What is known of an entry."""

    __slots__ = "noted_s", "size_bytes", "used_s"

    def __init__(self, size_bytes: int, used_s: float, noted_s: float) -> None:
        self.size_bytes = size_bytes
        self.used_s = used_s
        self.noted_s = noted_s  # The use that the mtime of its folder tells to other daemons.


@dataclass(eq=False)
class _Shelf:
    """The entries of one namespace, the least recently used first."""

    directory: Path
    store: HostStore | None = None
    """Whose entries they are; None while the namespace is not served."""
    entries: OrderedDict[CacheKey, _Known] = field(default_factory=OrderedDict)
    fingerprints: set[str] = field(default_factory=set)
    bytes: int = 0
    evictions: int = 0
    too_many: frozenset[CacheKey] = frozenset()
    """Entries of pinned modules that are not kept, as all take more than half of the limit."""
    kept: model.Held = field(default_factory=model.Held)
    let_go: int = 0

    def put(self, key: CacheKey, size_bytes: int, noted_s: float) -> None:
        self.drop(key)
        self.entries[key] = _Known(size_bytes, time.time(), noted_s)
        self.fingerprints.add(key.fingerprint)
        self.bytes += size_bytes

    def drop(self, key: CacheKey) -> None:
        if known := self.entries.pop(key, None):
            self.bytes -= known.size_bytes

    def keeps(self, key: CacheKey) -> bool:
        is_pinned = self.store is not None and self.store.is_pinned(key.module_sha256)
        return is_pinned and key not in self.too_many

    def oldest_s(self) -> float:
        return next(iter(self.entries.values())).used_s

    def usage(self, limit_bytes: int) -> TierUsage:
        kept, bytes_ = self.kept, self.bytes
        return TierUsage(
            *(len(self.entries), bytes_, limit_bytes, self.evictions),
            *(kept.artifacts, kept.bytes, self.let_go),
        )


class _Checked(NamedTuple):
    artifact: Artifact
    """Without frames."""
    identity: EntryId


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
        self.no_writes_until_s = -math.inf
        self.left_behind: set[asyncio.Task[Any]] = set()
        """Look-ups that hang: while there are any, no other begins."""
        self.shelves: dict[str, _Shelf] = {}
        self.checked: dict[Path, _Checked] = {}
        """The entries that this process has checked. Another dict once they count no more."""
        self.rounds = 0
        self._checked_bytes = 0
        self._lock = threading.Lock()  # Of the shelves.
        self._logged: set[str] = set()
        self._readers = ThreadPoolExecutor(_READERS, "wasmkiln-host-read")
        self._writer = ThreadPoolExecutor(1, "wasmkiln-host-write")
        self._keeper: asyncio.Task[None] | None = None
        self._opened = asyncio.Event()
        self._wake = asyncio.Event()
        self._closed = False
        self._written = -1  # How much all daemons had ever written, as of the last scan.
        self._scanned: object = None  # Which folder.
        self._scan_again_s = -math.inf

    async def start(self) -> None:
        """Open the directory, and keep house from now on; never raise. Wait 2 s at most."""
        self._keeper = self._keeper or asyncio.create_task(self._keep_house())
        await _briefly(self._opened.wait())

    def shelf(self, namespace: str) -> _Shelf:
        """Return what is known of a namespace's entries."""
        if shelf := self.shelves.get(namespace):
            return shelf
        path = namespace_path(self.options.directory, namespace)
        return self.shelves.setdefault(namespace, _Shelf(path))

    def resize(self, limit_bytes: int) -> None:
        """Hold at most ``limit_bytes`` in all namespaces; what is too much goes soon."""
        self.limit_bytes = limit_bytes
        self._wake.set()

    def usage(self) -> TierUsage:
        """Return what the folder holds, of all namespaces, as of a few seconds ago."""
        whole, every = _Shelf(self.options.directory), list(self.shelves.values())
        for each in every:
            whole.kept += each.kept
            whole.let_go += each.let_go
            whole.evictions += each.evictions
        found = whole.usage(self.limit_bytes)
        return replace(found, entries=sum(len(one.entries) for one in every), bytes=self._bytes)

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

    async def look(self, work: Callable[[], T], wait_s: float, allowance: Allowance) -> T:
        """Run a look-up. Raises TierUnavailable, after ``wait_s`` or while another one hangs."""
        if self.left_behind:
            raise TierUnavailable(_HANGS)
        task, began_s = asyncio.create_task(self.run("read", work)), time.monotonic()
        try:
            while not task.done():
                left_s = wait_s + allowance.seconds - (time.monotonic() - began_s)
                if left_s <= 0:
                    # A thread that waits for a disk cannot be cancelled.
                    if not self.left_behind:
                        log.warning("host store skipped: a look-up takes too long")
                    self.left_behind.add(task)
                    task.add_done_callback(self._came_back)
                    raise TierUnavailable(f"{_HANGS}: it took longer than {wait_s:g} s")
                await asyncio.wait((task,), timeout=None if math.isinf(left_s) else left_s)
            return task.result()
        except asyncio.CancelledError:
            task.cancel()
            raise
        finally:
            del task  # A failed task holds its traceback, which holds this frame.

    async def run(self, doing: str, work: Callable[[], T], *, writes: bool = False) -> T:
        """Run ``work`` in a thread; log why it fails, once per cause. Raises TierUnavailable.

        What writes or removes comes after all of that which came before.
        """
        if self._closed or (writes and self.left_behind):
            raise TierUnavailable("the host store is closed" if self._closed else _HANGS)
        pool = self._writer if writes else self._readers
        try:
            done = await asyncio.get_running_loop().run_in_executor(pool, work)
        except DoesNotFit:
            raise
        except (TierUnavailable, OSError) as failure:
            why, directory = str(failure), os.fspath(self.options.directory)
            if why not in self.troubles.values():
                log.warning(
                    f"cannot {doing} the host store",
                    tier=HostStore.name,
                    directory=directory,
                    cause=why,
                )
            self.troubles[doing] = why
            raise TierUnavailable(why) from None
        except Exception as defect:
            log.exception(f"a defect: cannot {doing} the host store")
            raise TierUnavailable(f"cannot {doing} the host store: a defect") from defect
        if self.troubles.pop(doing, ""):
            log.info(f"can {doing} the host store again", tier=HostStore.name)
        return done

    async def quietly(
        self, doing: str, work: Callable[[], object], *, writes: bool = False
    ) -> bool:
        """Do ``run``; return whether it worked."""
        with contextlib.suppress(TierUnavailable):
            await self.run(doing, work, writes=writes)
            return True
        return False

    def rejected(self, store: HostStore, key: CacheKey, rejected: ValueRejected) -> None:
        """Remove an entry that does not verify; count it, and log each untrusted key once."""
        removed = remove_entry(store.options, key)
        if removed:
            self.dropped(store.shelf, key)
        store.recorder.value_rejected(store.name, rejected.cause.value)
        is_known = rejected.why in self._logged
        if rejected.cause in (Cause.UNSIGNED, Cause.STRANGER) and (
            len(self._logged) < _MAX_REMEMBERED
        ):
            self._logged.add(rejected.why)
        (log.debug if is_known else log.warning)(
            "stored value rejected",
            tier=store.name,
            module=key.module_sha256,
            fingerprint=key.fingerprint,
            cause=rejected.cause.value,
            why=rejected.why,
            removed=removed,
        )

    def remember(self, where: dict[Path, _Checked], path: Path, one: _Checked, cost: int) -> None:
        """Check these very files no more, unless ``where`` counts no more."""
        if self._checked_bytes + cost > _REMEMBERED_BYTES:
            self.recheck()
        self._checked_bytes += cost
        where[path] = one

    def used(self, shelf: _Shelf, key: CacheKey, identity: EntryId) -> None:
        """Count a use of an entry; note it on the disk, unless one was noted just now."""
        now_s = time.time()
        with self._lock:
            if key not in shelf.entries:  # Another daemon wrote it, or no scan came by yet.
                size_bytes = BLOCK_BYTES + sum(_on_disk(each[2]) for each in identity if each)
                shelf.put(key, size_bytes, noted_s=0)
            known = shelf.entries[key]
            known.used_s = now_s
            shelf.entries.move_to_end(key)
        if now_s - known.noted_s >= _NOTE_USE_EVERY_S:
            known.noted_s = now_s
            with contextlib.suppress(OSError):
                os.utime(_path(shelf.directory, key), (now_s, now_s), follow_symlinks=False)

    def dropped(self, shelf: _Shelf, key: CacheKey) -> None:
        """Take note that an entry is gone."""
        with self._lock:
            shelf.drop(key)

    def put(self, store: HostStore, artifact: Artifact, chunks: Iterable[Any]) -> None:
        """Write an entry from ``chunks``, each as it comes. Raises DoesNotFit, OSError.

        The caller trusts the artifact's digest, so nothing is hashed, and the entry counts as
        checked.
        """
        text, key, checked = header_text(store.header_of(artifact)), artifact.key, self.checked
        sizes = (artifact.size_bytes, len(text), len(artifact.attestation))
        needed, limit_bytes = BLOCK_BYTES + sum(map(_on_disk, sizes)), store.options.limit_bytes
        if needed > limit_bytes:
            raise DoesNotFit(
                f"it takes {needed} bytes, and the host store may hold {limit_bytes}: raise"
                " host_store_bytes"
            )
        with self._turn(needed) as others_bytes:
            self._make_room(store.shelf, needed + others_bytes)
            aside = _fresh(self.options)
            try:
                identity = _write_entry(aside, artifact, text, chunks, store.options)
                _rename_in(store.options, key, aside)
            finally:
                _delete(aside)
        with self._lock:
            store.shelf.put(key, needed, noted_s=time.time())
        path = _path(store.options.directory, key)
        self.remember(checked, path, _Checked(artifact, identity), 2048 + 2 * len(text))

    @contextlib.contextmanager
    def _turn(self, size_bytes: int) -> Iterator[int]:
        """Hold off the other daemons while this one makes room and writes ``size_bytes``.

        Return how much they may have written that this one does not know of. The lock's file says
        how many bytes all have ever written. Raises OSError and TierUnavailable.
        """
        with _locked(self.options.directory / _LOCK) as lock:
            written = _number(os.pread(lock, 32, 0))
            others_bytes = written - self._written if 0 <= self._written <= written else sys.maxsize
            if others_bytes and self._bytes + others_bytes + size_bytes > self.limit_bytes:
                is_too_much = others_bytes + size_bytes > self.limit_bytes
                if is_too_much or time.monotonic() >= self._scan_again_s:
                    self._scan()
                    others_bytes, self._written = 0, written
            # First, so that a process that is killed now counts too much, not too little.
            os.pwrite(lock, b"%-32d" % (written + size_bytes), 0)
            self._written += size_bytes
            yield others_bytes

    @property
    def _bytes(self) -> int:
        return sum(shelf.bytes for shelf in list(self.shelves.values()))

    def _make_room(self, shelf: _Shelf, needed: int = 0) -> None:
        """Evict until ``needed`` bytes fit, into the share of ``shelf`` and into the limit."""
        if shelf.store:
            self._shrink(shelf, shelf.store.options.limit_bytes - needed)
        while self._bytes + needed > self.limit_bytes:
            every = list(self.shelves.values())
            not_served = [each for each in every if not each.store and each.entries]
            if not not_served:
                return
            oldest = min(not_served, key=_Shelf.oldest_s)
            self._shrink(oldest, oldest.bytes - 1)

    def _shrink(self, shelf: _Shelf, to_bytes: int) -> None:
        """Evict the least recently used entries until there are ``to_bytes`` at most.

        Those that others used since come last, and then those that are pinned. Raises OSError.
        """
        for is_last_round in (False, False, True):
            with self._lock:
                keys = list(shelf.entries) if shelf.bytes > to_bytes else ()
            for key in keys:
                if shelf.bytes <= to_bytes:
                    return
                is_kept = shelf.keeps(key)
                if not is_last_round and (is_kept or self._was_used(shelf, key)):
                    continue
                was_there = remove(_path(shelf.directory, key), self.options)
                self.dropped(shelf, key)
                shelf.let_go += was_there and is_kept
                shelf.evictions += was_there
                _prune(shelf.directory, key)
        if not shelf.store and not shelf.entries and not any(entries_in(shelf.directory)):
            remove(shelf.directory, self.options)  # Of a namespace that is gone.

    def _was_used(self, shelf: _Shelf, key: CacheKey) -> bool:
        """Return whether another daemon or a client used an entry since; take note of that."""
        path, now_s = _path(shelf.directory, key), time.time()
        try:
            found = (path.stat(), (path / ARTIFACT).stat())
        except OSError:
            return False
        with self._lock:
            known = shelf.entries.get(key)
            times = (found[0].st_mtime, found[1].st_atime)
            used_s = max((each for each in times if each <= now_s), default=0.0)
            if known is None or used_s <= known.used_s:
                return False
            known.used_s = used_s
            shelf.entries.move_to_end(key)
        return True

    def _scan(self) -> None:
        """Find all entries of all namespaces. Raises TierUnavailable."""
        began_s, since_s, seen = time.monotonic(), time.time(), 0
        check_root(self.options.directory)
        root = _inode_of(self.options.directory)
        names = _names_in(self.options.directory / NAMESPACES, model.NAMESPACE_NAME.fullmatch)
        for namespace in {"", *names, *self.shelves}:
            shelf, found = self.shelf(namespace), list[tuple[float, CacheKey, int]]()
            for path, key in entries_in(shelf.directory):
                if self._closed:
                    return
                size_bytes, used_s = measure(path)
                if size_bytes:
                    found.append((used_s, key, size_bytes))
                seen += 1
                if seen % _SCAN_PAUSE_EVERY == 0:
                    time.sleep(_SCAN_PAUSE_S)  # So that calls go on meanwhile.
            self._replace(shelf, found, since_s)
        self._scanned = root
        took_s = time.monotonic() - began_s
        self._scan_again_s = time.monotonic() + _SCAN_REST * took_s

    def _replace(
        self, shelf: _Shelf, found: list[tuple[float, CacheKey, int]], since_s: float
    ) -> None:
        """Hold what a scan found that began at ``since_s``, and what came meanwhile."""
        with self._lock:
            old, new = shelf.entries, dict[CacheKey, _Known]()
            for used_s, key, size_bytes in found:
                last_s = max(used_s, old[key].used_s) if key in old else used_s
                new[key] = _Known(size_bytes, last_s, used_s)
            for key, known in old.items():
                if known.used_s >= since_s:
                    new.setdefault(key, known)
            shelf.entries = OrderedDict(sorted(new.items(), key=lambda item: item[1].used_s))
            shelf.bytes = sum(known.size_bytes for known in new.values())
            shelf.fingerprints = {key.fingerprint for key in new}

    async def _keep_house(self) -> None:
        is_open = False
        while True:
            is_open = is_open or await self.quietly("use", partial(prepare, self.options))
            self._opened.set()
            if is_open:
                for store in [each.store for each in list(self.shelves.values()) if each.store]:
                    await self.quietly("write engines.json to", store.mend_engines)
                await self.quietly("tidy", self._tidy, writes=True)
            self._wake.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_TIDY_EVERY_S):
                    await self._wake.wait()

    def _tidy(self) -> None:
        """Learn what others did, and stay within the limit. Raises TierUnavailable, OSError."""
        is_time, written = self.rounds % _CLEAN_EVERY == 0, 0
        lock = self.options.directory / _LOCK
        with contextlib.suppress(OSError, TierUnavailable), _locked(lock) as file:
            written = _number(os.pread(file, 32, 0))  # While nobody writes.
            if is_time:
                for path in (self.options.directory / _ASIDE).iterdir():
                    _delete(path)  # What processes left that were killed.
        is_rested = time.monotonic() >= self._scan_again_s
        others_wrote = is_time or written != self._written
        root = _inode_of(self.options.directory)
        if root and (root != self._scanned or (others_wrote and is_rested)):
            self._scan()
            self._written = written
        self.rounds += 1
        for shelf in list(self.shelves.values()):
            self._make_room(shelf)

    def _came_back(self, task: asyncio.Task[Any]) -> None:
        if not task.cancelled():
            task.exception()  # Nobody else reads it.
        self.left_behind.discard(task)
        if not self.left_behind:
            log.info("host store in use again")


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
        limit_bytes = directory.limit_bytes if limit_bytes is None else limit_bytes
        self.options = directory.options.of_namespace(namespace, limit_bytes)
        self.is_on = limit_bytes > 0
        self.shelf = directory.shelf(namespace)
        self.shelf.store = self
        self.is_pinned = is_pinned
        self.header_of = header_of
        self.recorder = recorder
        self.skipped = 0
        """How many writes were not tried."""
        self._directory = directory
        self._verifier = verifier
        self._engines = engines
        self._written_engines: Mapping[str, Any] = {}
        self._wait_s = wait_s
        self._artifact_bytes = artifact_bytes
        self._refused: set[CacheKey] = set()  # Each counts once, however often it is asked for.

    async def start(self) -> None:
        """Make the store ready, in the background if its disk takes long; never raise."""
        if self.is_on:
            await self._directory.start()
            await self.write_engines()

    async def write_engines(self) -> None:
        """Write what the daemon serves where clients look for it; wait 2 s at most, never raise.

        Write it again later if somebody removes or damages it.
        """
        if self.is_on:
            document = self._written_engines = self._engines()
            work = partial(_write_engines, self.options, document)
            await _briefly(self._directory.quietly("write engines.json to", work))

    def mend_engines(self) -> None:
        """Write ``engines.json`` again if clients cannot use what is there.

        What another daemon wrote stays, or two daemons would replace each other's by turns.
        Raises TierUnavailable.
        """
        if self._written_engines and (why := _why_no_engines(self.options.directory)):
            _write_engines(self.options, self._written_engines)
            log.warning(f"{ENGINES} of the host store was written again", cause=why)

    @property
    def trouble(self) -> str:
        """Why the directory could not be used at the start, nor since; empty if it could."""
        return self._directory.troubles.get("use", "").removeprefix("the host store ")

    @property
    def is_well(self) -> bool:
        """Whether its directory can be used, no look-up hangs and no write failed just now."""
        is_late = time.monotonic() >= self._directory.no_writes_until_s
        return self.is_on and is_late and not self._directory.left_behind and not self.trouble

    def takes(self, artifact: Artifact) -> bool:
        """Return whether to write it now: it fits, no look-up hangs, no write failed just now."""
        key, limit_bytes = artifact.key, self.options.limit_bytes
        fits = _least_on_disk(artifact) <= limit_bytes
        if self.is_well and fits:
            self._refused.discard(key)
            return True
        if self.is_on and key not in self._refused:
            self.skipped += 1
            self._refused = {key, *(() if len(self._refused) >= _MAX_REMEMBERED else self._refused)}
            if not fits:
                log.warning(
                    "an artifact is larger than the host store: raise host_store_bytes",
                    tier=self.name,
                    module=key.module_sha256,
                    fingerprint=key.fingerprint,
                    bytes=artifact.size_bytes,
                    limit_bytes=limit_bytes,
                )
        return False

    async def get(
        self,
        key: CacheKey,
        allowance: Allowance | None = None,
        accept: frozenset[str] = frozenset(),
    ) -> Artifact | None:
        """Return the artifact under ``key``, every byte checked. Raises TierUnavailable."""
        allowance = allowance or Allowance()
        return await self._find(partial(self._read, key, allowance), allowance)

    async def file_of(
        self, key: CacheKey, allowance: Allowance | None = None
    ) -> tuple[Artifact, HostFile] | None:
        """Return the artifact without frames, and the file that holds it, checked.

        Raises TierUnavailable. The file may be evicted by the time a caller opens it.
        """
        allowance = allowance or Allowance()
        return await self._find(partial(self._file_of, key, allowance), allowance)

    async def put(self, artifact: Artifact) -> None:
        """Store ``artifact``, unless it is there. Raises TierUnavailable, DoesNotFit."""
        if not self.is_on:
            return
        began_s = time.perf_counter()
        try:
            await self._directory.run("write", partial(self._write, artifact), writes=True)
        except DoesNotFit:
            raise  # It says nothing about the tier.
        except TierUnavailable:
            self._directory.no_writes_until_s = time.monotonic() + _NO_WRITES_S
            self._refused.clear()
            self.recorder.tier_store(self.name, "error", time.perf_counter() - began_s)
            raise
        self.recorder.tier_store(self.name, "ok", time.perf_counter() - began_s)

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
        self._directory.no_writes_until_s = -math.inf
        return removed

    def usage(self) -> TierUsage:
        """Return what all daemons of the host stored, as of a few seconds ago."""
        return self.shelf.usage(self.options.limit_bytes)

    def entries_of(self, modules: Collection[str]) -> Mapping[str, Mapping[CacheKey, int]]:
        """Return the entries of ``modules`` with their sizes, as of the last scan."""
        found: dict[str, dict[CacheKey, int]] = {}
        for module in modules:
            keys = [CacheKey(module, each) for each in list(self.shelf.fingerprints)]
            known = ((key, self.shelf.entries.get(key)) for key in keys)
            found[module] = {key: one.size_bytes for key, one in known if one}
        return found

    def count_pinned(self, modules: Collection[str]) -> None:
        """Count what is kept of ``modules``, all that are pinned; let go what is above half."""
        kept, too_many, entries = model.Held(), set[CacheKey](), self.shelf.entries
        pinned = [item for each in self.entries_of(modules).values() for item in each.items()]
        last_use_s = {key: known.used_s for key, _ in pinned if (known := entries.get(key))}
        for key, size_bytes in sorted(pinned, key=lambda item: -last_use_s.get(item[0], 0)):
            if 2 * (kept.bytes + size_bytes) > self.options.limit_bytes:
                too_many.add(key)
            else:
                kept += model.Held(1, 0, size_bytes)
        self.shelf.let_go += len(too_many - self.shelf.too_many)
        self.shelf.kept, self.shelf.too_many = kept, frozenset(too_many)

    def has_room_for_pinned(self, artifact: Artifact) -> bool:
        """Return whether ``artifact`` would be kept if it were written now."""
        needed = self.shelf.kept.bytes + _least_on_disk(artifact)
        return 2 * needed <= self.options.limit_bytes

    def recheck(self) -> None:
        """Check each entry again at its next use: a key is no longer trusted."""
        self._directory.recheck()

    def resize(self, limit_bytes: int) -> None:
        """Change the share. Entries that are too many go soon after."""
        self.options = replace(self.options, limit_bytes=limit_bytes)
        self._directory.resize(self._directory.limit_bytes)

    async def close(self) -> None:
        """Serve the namespace no more: its entries go when others need the room."""
        if self.shelf.store is self:
            self.shelf.store, self.shelf.kept = None, model.Held()
            self._directory.resize(self._directory.limit_bytes)

    async def _find(self, work: Callable[[], T | None], more: Allowance) -> T | None:
        began_s = time.perf_counter()
        found = await self._look(work, None, more)
        if self.is_on:
            outcome, took_s = "hit" if found else "miss", time.perf_counter() - began_s
            self.recorder.tier_lookup(self.name, "artifact", outcome, took_s)
        return found

    async def _look(self, work: Callable[[], T], off: T, more: Allowance | None = None) -> T:
        """Run a look-up; return ``off`` if the store is off. Raises TierUnavailable."""
        if not self.is_on:
            return off
        began_s = time.perf_counter()
        try:
            return await self._directory.look(work, self._wait_s, more or Allowance())
        except TierUnavailable:
            took_s = time.perf_counter() - began_s
            self.recorder.tier_lookup(self.name, "artifact", "error", took_s)
            raise

    def _read(self, key: CacheKey, allowance: Allowance) -> Artifact | None:
        def read(entry: OpenEntry) -> Artifact | None:
            artifact = entry.verified(self._verifier)
            if artifact.size_bytes > self._artifact_bytes():
                return None  # Not removed: daemons with a higher limit use it.
            allowance.add(artifact.size_bytes / _LEAST_BYTES_PER_S)
            frames = list[bytes]()
            identity = entry.check(artifact, frames)
            self._directory.used(self.shelf, key, identity)
            return replace(artifact, frames=tuple(frames))

        return self._with_entry(key, read)

    def _file_of(self, key: CacheKey, allowance: Allowance) -> tuple[Artifact, HostFile] | None:
        path, checked = self._path(key), self._directory.checked

        def find(entry: OpenEntry) -> tuple[Artifact, HostFile]:
            known = checked.get(path)
            if known and known.identity == entry.identity():
                artifact, identity = known
                if refusal := self._verifier.outdated(artifact):
                    raise ValueRejected(Cause(refusal.cause), refusal.why)
            else:
                artifact = entry.verified(self._verifier)
                allowance.add(artifact.size_bytes / _LEAST_BYTES_PER_S)
                identity = entry.check(artifact)
                changed_ns = max(each[3] for each in identity if each)
                if time.time_ns() - changed_ns > _SETTLED_NS:
                    one = _Checked(artifact, identity)
                    self._directory.remember(checked, path, one, entry.cost_bytes)
            self._directory.used(self.shelf, key, identity)
            device, inode = identity[0][:2] if identity[0] else (0, 0)
            return artifact, HostFile(os.fspath(path / ARTIFACT), device, inode)

        return self._with_entry(key, find)

    def _write(self, artifact: Artifact) -> None:
        def is_same(entry: OpenEntry) -> bool:
            there, identity = entry.verified(self._verifier), entry.identity()
            if (there.sha256, there.attestation) != (artifact.sha256, artifact.attestation):
                return False
            if identity[0] is None or identity[0][2] != artifact.size_bytes:
                return False
            self._directory.used(self.shelf, artifact.key, identity)
            return True

        if self._verifier.outdated(artifact):
            return
        prepare(self.options)
        if self._with_entry(artifact.key, is_same):
            return
        plain = replace(artifact, frames=(), encoding="")
        try:
            self._directory.put(self, plain, _unpacked(artifact))
        except OSError as failure:
            raise cannot("write an entry", failure) from None
        except ValueRejected as rejected:
            raise TierUnavailable(f"the host store cannot write an entry: {rejected}") from None

    def _described(self, key: CacheKey) -> Artifact | None:
        return self._with_entry(key, lambda entry: entry.verified(self._verifier))

    def _with_entry(self, key: CacheKey, work: Callable[[OpenEntry], T]) -> T | None:
        """Return what ``work`` returns for an entry; None if there is none.

        One that is rejected is removed and counted, and None too. Raises TierUnavailable.
        """
        if not _is_possible(key):
            return None
        try:
            for _ in range(_TRIES):
                with open_entry(self.options, key) as entry:
                    if entry is None:
                        return None
                    try:
                        return work(entry)
                    except ValueRejected:
                        if entry.is_at(self._path(key)):
                            raise
                        # Another process evicted or replaced the entry meanwhile.
        except ValueRejected as rejected:
            self._directory.rejected(self, key, rejected)
        except OSError as failure:
            raise cannot("read an entry", failure) from None
        return None

    def _evict(self, scope: EvictScope) -> Evicted:
        """Take time linear in what is removed. Raises TierUnavailable."""
        directory, removed = self.options.directory, Evicted()
        self._directory.recheck()
        fingerprints = list(_names_in(directory, model.SHA256_HEX.fullmatch))
        if scope.engine_id:
            fingerprints = [one for one in fingerprints if self._engine_of(one) == scope.engine_id]
        if scope.module_sha256:
            keys = [CacheKey(scope.module_sha256, each) for each in fingerprints]
        else:
            keys = [key for each in fingerprints for _, key in entries_in(directory, each)]
        try:
            for key in filter(_is_possible, keys):
                if not scope.module_sha256 and scope.leaves(key.module_sha256):
                    removed += Evicted(pinned=1)
                    continue
                size_bytes, _ = measure(self._path(key))
                if remove(self._path(key), self.options):
                    removed += Evicted(int(size_bytes > 0), 0, size_bytes)
                    _prune(directory, key)
                self._directory.dropped(self.shelf, key)
        except OSError as failure:
            raise cannot("remove an entry", failure) from None
        return removed

    def _engine_of(self, fingerprint: str) -> str:
        """Return the engine's id of a fingerprint, by its first good entry; empty for none."""
        entries = entries_in(self.options.directory, fingerprint)
        described = (self._described(key) for _, key in entries)
        return next((each.spec.engine.id for each in described if each), "")

    def _path(self, key: CacheKey) -> Path:
        return _path(self.options.directory, key)


class OpenEntry:
    """An entry whose folder is open. Its methods raise ValueRejected and OSError.

    Each file is opened relative to the folder's descriptor, without following a link, and checked
    on its own descriptor: nothing can be exchanged between the check and the reading.
    """

    def __init__(self, folder: int, key: CacheKey) -> None:
        self._folder = folder
        self._key = key
        self._before: EntryId = ()
        self.cost_bytes = 0
        """What the artifact without frames takes in memory, about."""

    def described(self) -> Artifact:
        """Return what the header says, which nobody has vouched for yet, without frames."""
        self._before = self.identity()
        text, header = self._content(HEADER), ArtifactHeader()
        self.cost_bytes = 2048 + 2 * len(text)
        try:
            json_format.Parse(text, header, ignore_unknown_fields=True)
        except (json_format.ParseError, UnicodeDecodeError, RecursionError):
            raise ValueRejected(Cause.FORMAT, f"{HEADER} is not an artifact's header") from None
        if not text.endswith(b"}\n"):
            raise ValueRejected(Cause.FORMAT, f"{HEADER} does not end as it should")
        return _artifact_of(header)

    def verified(self, verifier: Sealer) -> Artifact:
        """Return what the header says, if its attestation vouches for it."""
        artifact = self.described()
        is_signed = artifact.attestation or self._before[FILES.index(ATTESTATION)]
        if is_signed and self._content(ATTESTATION) != artifact.attestation:
            raise ValueRejected(Cause.DIGEST, f"{ATTESTATION} is another than {HEADER} says")
        if refusal := verifier.verify(artifact, self._key) or verifier.outdated(artifact):
            raise ValueRejected(Cause(refusal.cause), refusal.why)
        return artifact

    def check(self, artifact: Artifact, frames: list[bytes] | None = None) -> EntryId:
        """Compare the bytes with what ``verified`` returned, and add them to ``frames``.

        Return the identity of what was checked.
        """
        digest, left = hashlib.sha256(), artifact.size_bytes
        with self._open(ARTIFACT) as (descriptor, found):
            if found.st_size != left:
                cause = Cause.TRUNCATED if found.st_size < left else Cause.FORMAT
                raise ValueRejected(cause, f"{ARTIFACT} has {found.st_size} bytes")
            while left and (chunk := _read(descriptor, min(left, CHUNK_BYTES))):
                left -= len(chunk)
                digest.update(chunk)
                if frames is not None:
                    frames.append(frame(chunk))
        if digest.hexdigest() != artifact.sha256:
            raise ValueRejected(Cause.DIGEST, f"{ARTIFACT} is damaged")
        if self.identity() != self._before:
            raise ValueRejected(Cause.DIGEST, "the files changed while they were being checked")
        return self._before

    def identity(self) -> EntryId:
        """Return the identities of the files."""
        found = list[FileId]()
        for name in FILES:
            try:
                found.append(_id_of(os.stat(name, dir_fd=self._folder, follow_symlinks=False)))
            except FileNotFoundError:
                found.append(None)
        return tuple(found)

    def is_at(self, path: Path) -> bool:
        """Return whether ``path`` still leads to this entry."""
        found = os.fstat(self._folder)
        return _inode_of(path) == (found.st_dev, found.st_ino)

    def _content(self, name: str) -> bytes:
        with self._open(name) as (descriptor, _):
            return _read(descriptor, _MAX_TEXT_BYTES)

    @contextlib.contextmanager
    def _open(self, name: str) -> Iterator[tuple[int, os.stat_result]]:
        try:
            found = os.stat(name, dir_fd=self._folder, follow_symlinks=False)
            if not stat.S_ISREG(found.st_mode):
                raise ValueRejected(Cause.FOREIGN, f"{name} is no regular file")
            descriptor = os.open(name, _READ, dir_fd=self._folder)
        except FileNotFoundError:
            raise ValueRejected(Cause.INCOMPLETE, f"{name} is gone") from None
        except PermissionError:
            raise ValueRejected(Cause.FOREIGN, f"the daemon may not read {name}") from None
        try:
            found = os.fstat(descriptor)
            _check_ours(found, name)
            if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
                raise ValueRejected(Cause.FOREIGN, f"{name} has {found.st_nlink} names")
            yield descriptor, found
        finally:
            os.close(descriptor)


def prepare(options: HostOptions) -> None:
    """Make the directory if it is missing, with its mode and group. Raises TierUnavailable."""
    for directory in (*options.above, options.directory):
        take_back(directory)
        try:
            make_folder(directory)
            check_root(directory)
            _admit(directory, options.folder_mode, options.group)
        except NotOurs as failure:
            raise TierUnavailable(str(failure)) from None
        except PermissionError as failure:
            if options.group is None or not directory.is_dir():
                raise _unusable(directory, failure) from None
            group = str(options.group)
            with contextlib.suppress(KeyError):
                group = grp.getgrgid(options.group).gr_name
            do = f"give {directory} to the group {group} of host_store_group, which the daemon's"
            raise cannot(f"{do} user must be in", failure) from None
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
        try:
            check_path(directory)  # It says what to do.
        except NotOurs as failure:
            raise TierUnavailable(str(failure)) from None
        why = f"the host store refuses its directory: {rejected.why}"
        if os.access(directory, os.W_OK):  # As a volume is whose group the daemon is in.
            why += f"; use a folder in it, which the daemon makes: {directory / 'artifacts'}"
        raise TierUnavailable(why) from None


@contextlib.contextmanager
def open_entry(options: HostOptions, key: CacheKey) -> Iterator[OpenEntry | None]:
    """Open the folder of an entry; None if there is none.

    Raises ValueRejected if a folder on the way is a link or not ours, OSError, TierUnavailable.
    """
    check_root(options.directory)
    try:
        for path in _steps(options.directory, key):
            _check_folder(path)
        folder = os.open(path, _FOLDER)
    except FileNotFoundError:
        folder = -1
    if folder < 0:
        yield None
        return
    try:
        yield OpenEntry(folder, key)
    finally:
        os.close(folder)


def entries_in(directory: Path, fingerprint: str = "") -> Iterator[tuple[Path, CacheKey]]:
    """Return the entries of a fingerprint, or of all, unchecked. Raises TierUnavailable."""
    is_digest = model.SHA256_HEX.fullmatch
    for each in (fingerprint,) if fingerprint else _names_in(directory, is_digest):
        for start in _names_in(directory / each, lambda name: len(name) == 2):
            for module in _names_in(directory / each / start, is_digest):
                yield directory / each / start / module, CacheKey(module, sys.intern(each))


def measure(path: Path) -> tuple[int, float]:
    """Return what the store counts for the entry at ``path``, and when it was used.

    Nothing is counted where there is no artifact.
    """
    try:
        with os.scandir(path) as files:
            found = {file.name: file.stat(follow_symlinks=False).st_size for file in files}
        used_s = path.stat(follow_symlinks=False).st_mtime
    except OSError:
        return 0, 0.0
    return BLOCK_BYTES + sum(map(_on_disk, found.values())) if ARTIFACT in found else 0, used_s


def remove_entry(options: HostOptions, key: CacheKey) -> bool:
    """Remove an entry that does not verify; return whether it is gone. Never raises.

    If a folder on the way to it is no folder of ours, that goes, and nothing behind a link.
    """
    try:
        for path in _steps(options.directory, key):
            try:
                _check_folder(path)
            except (OSError, ValueRejected):
                break
        remove(path, options)
    except OSError:
        return False
    _prune(options.directory, key)
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


def _rename_in(options: HostOptions, key: CacheKey, aside: Path) -> None:
    """Rename an entry into place, over what is there. Raises OSError."""
    target = _path(options.directory, key)
    for tries_left in (2, 1, 0):
        try:
            for path in _steps(options.directory, key)[:-1]:
                with contextlib.suppress(FileExistsError):
                    path.mkdir(mode=0o700)
                    _admit(path, options.folder_mode, options.group)
                _check_folder(path)
            aside.rename(target)
            return
        except ValueRejected:
            remove_entry(options, key)
        except OSError as failure:
            if not tries_left or failure.errno not in _IN_THE_WAY:
                raise
            # Either an entry is there, or another process removed an empty folder.
            remove(target, options)


def _write_entry(
    path: Path, artifact: Artifact, header: bytes, chunks: Iterable[Any], options: HostOptions
) -> EntryId:
    """Write an entry as the new folder ``path``. Raises OSError and ValueRejected."""
    path.mkdir(mode=0o700)
    signed = [artifact.attestation] if artifact.attestation else None
    identity = tuple(
        _write_file(path / name, content, options) if content is not None else None
        for name, content in zip(FILES, (chunks, [header], signed), strict=True)
    )
    _admit(path, options.folder_mode, options.group)
    if identity[0] is None or identity[0][2] != artifact.size_bytes:
        raise ValueRejected(Cause.FORMAT, "the artifact has another size than it should")
    return identity


def _write_file(path: Path, chunks: Iterable[Any], options: HostOptions) -> FileId:
    with os.fdopen(os.open(path, _WRITE, 0o600), "wb", buffering=0) as file:
        for chunk in chunks:
            left = memoryview(chunk)
            while left:
                left = left[file.write(left) :]
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
    """Translate a header back into what it was made of. Raises ValueRejected."""
    if header.kind not in _KINDS:
        raise ValueRejected(Cause.FORMAT, f"{HEADER} is of a kind that this version does not know")
    engine = header.engine
    # A Duration has fewer digits than the attestation, which is verified later.
    compile_time_s = header.compile_time.ToNanoseconds() / 1e9
    attested = peek(header.attestation)
    if attested and abs(attested[0].compile_time_s - compile_time_s) < 1e-6:
        compile_time_s = attested[0].compile_time_s
    return Artifact(
        module_sha256=header.module_sha256,
        kind=_KINDS[header.kind],
        spec=model.CompileSpec(
            engine=model.EngineIdentity(
                engine.name, engine.version, engine.core_version, engine.compiler
            ),
            target=header.target,
            cpu=header.cpu,
            settings=dict(header.settings),
            changed_settings=dict(header.changed_settings),
            fingerprint=header.fingerprint,
        ),
        sha256=header.artifact_sha256,
        size_bytes=header.size_bytes,
        frames=(),
        compile_time_s=compile_time_s,
        imports=tuple(
            model.ExternType(i.module, i.name, _EXTERNS.get(i.kind, ""), i.type)
            for i in header.imports
        ),
        exports=tuple(
            model.ExternType("", e.name, _EXTERNS.get(e.kind, ""), e.type) for e in header.exports
        ),
        types_truncated=header.types_truncated,
        attestation=header.attestation,
    )


def _write_engines(options: HostOptions, document: Mapping[str, object]) -> None:
    """Write ``engines.json`` aside and rename it into place. Raises TierUnavailable."""
    prepare(options)
    text = json.dumps(document, indent=2, allow_nan=False).encode() + b"\n"
    place = options.directory / ENGINES
    try:
        with _locked(options.root / _LOCK):
            aside = _fresh(options)
            try:
                _write_file(aside, [text], options)
                if place.is_dir() and not place.is_symlink():
                    _delete(place)
                aside.replace(place)
            finally:
                _delete(aside)
    except OSError as failure:
        raise cannot(f"write {ENGINES}", failure) from None


def _why_no_engines(directory: Path) -> str:
    """Return why no client can use ``engines.json``; empty if a daemon of this user wrote it."""
    path = directory / ENGINES
    try:
        found = path.lstat()
        _check_ours(found, ENGINES)
        if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
            return "it is no regular file with one name"
        if not found.st_mode & stat.S_IRUSR:
            return "its owner may not read it"
        document = json.loads(path.read_bytes())
    except ValueRejected as rejected:
        return rejected.why
    except (ValueError, RecursionError):
        return "it is damaged"
    except OSError as failure:
        return failure.strerror or str(failure)
    is_document = isinstance(document, dict) and {"version", "engines"} <= document.keys()
    return "" if is_document else "it is damaged"


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[int]:
    """Open and lock a file, which is made if it is missing. Raises OSError, TierUnavailable."""
    if path.is_symlink() or path.is_dir():  # Somebody else put it there.
        _delete(path)
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    until_s = time.monotonic() + _LOCK_WAIT_S
    try:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until_s:
                    raise TierUnavailable("another daemon writes to the host store") from None
                time.sleep(_LOCK_TRY_EVERY_S)
        yield lock
    finally:
        os.close(lock)


def _fresh(options: HostOptions) -> Path:
    """Return a path that does not exist, in a folder that does. Raises OSError."""
    aside = options.root / _ASIDE
    if aside.is_symlink():
        aside.unlink()
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
    """Give a file or folder of this user its mode and group. Raises OSError."""
    found = path.stat()
    if group is not None and found.st_gid != group:
        os.chown(path, -1, group)
    if stat.S_IMODE(found.st_mode) != mode:
        path.chmod(mode)


def _unusable(directory: Path, failure: OSError) -> TierUnavailable:
    """Return what to raise because of ``failure``; it names the folder that is in the way."""
    code = errno.ENOTDIR if failure.errno == errno.EEXIST else failure.errno
    why = os.strerror(code) if code else str(failure)
    if code != errno.ENOENT:
        why += f": {next(filter(_inode_of, (directory, *directory.parents)), directory)}"
    return TierUnavailable(f"the host store cannot use its directory {directory}: {why}")


def _names_in(folder: Path, wanted: Callable[[str], object]) -> Iterator[str]:
    """Return the names of the folders in ``folder`` that are ``wanted``. Raises TierUnavailable."""
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if wanted(entry.name) and entry.is_dir(follow_symlinks=False):
                    yield entry.name
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as failure:
        raise cannot("list its entries", failure) from None


def _delete(path: Path) -> None:
    """Remove a folder with all in it, or what else is there; never raise."""
    with contextlib.suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()


def _prune(directory: Path, key: CacheKey) -> None:
    """Remove the folders above an entry that are empty; never raise."""
    with contextlib.suppress(OSError):
        for path in reversed(_steps(directory, key)[:-1]):
            path.rmdir()


def _read(descriptor: int, size_bytes: int) -> bytes:
    """Read ``size_bytes``; fewer at the end of the file."""
    found = os.read(descriptor, size_bytes)
    while len(found) < size_bytes and (more := os.read(descriptor, size_bytes - len(found))):
        found += more
    return found


def _id_of(found: os.stat_result) -> FileId:
    return found.st_dev, found.st_ino, found.st_size, found.st_ctime_ns


def _inode_of(path: Path) -> tuple[int, int] | None:
    """Return device and inode of what is at ``path``; None if nothing is."""
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _number(text: bytes) -> int:
    return int(text) if text.strip().isdigit() else 0


def _on_disk(size_bytes: int) -> int:
    """Return what the store counts for a file of ``size_bytes``."""
    return -(-size_bytes // BLOCK_BYTES) * BLOCK_BYTES


def _least_on_disk(artifact: Artifact) -> int:
    """Return what an entry takes at least: a folder, an artifact, a header and an attestation."""
    return 3 * BLOCK_BYTES + _on_disk(artifact.size_bytes)


def _path(directory: Path, key: CacheKey) -> Path:
    return entry_path(directory, key.fingerprint, key.module_sha256)


def _steps(directory: Path, key: CacheKey) -> tuple[Path, Path, Path]:
    """Return the folders that lead from the directory to an entry."""
    path = _path(directory, key)
    return path.parents[1], path.parent, path


def _is_possible(key: CacheKey) -> bool:
    """Return whether folders can have these names: a key must not lead to another place."""
    return all(map(model.SHA256_HEX.fullmatch, (key.fingerprint, key.module_sha256)))


async def _briefly(work: Coroutine[Any, Any, object]) -> None:
    """Wait some seconds for ``work``, which never raises. It goes on if it did not end."""
    await asyncio.wait((asyncio.create_task(work),), timeout=_PATIENCE_S)
