"""What changes on the disk and in the index together: entries come, go, and make room.

Each rename in or away is made while the index is locked for writing, so a row is never missing:
it is committed before its entry appears, and is removed with its entry. The room that an entry
needs is made before it is written, so that all entries together never exceed the limit.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TypeVar

from wasmkiln.host_layout import ARTIFACT, entry_path

from wasmkilnd.cache.host.entry import disk_bytes_at
from wasmkilnd.cache.host.folders import cannot, first_wrong_step, make_way, open_root, prune
from wasmkilnd.cache.host.index import Index, IndexLost
from wasmkilnd.cache.host.options import HostOptions
from wasmkilnd.cache.host.pins import PinnedEntries
from wasmkilnd.cache.host.rows import Row, Rows, Total
from wasmkilnd.cache.host.scratch import Scratch, delete
from wasmkilnd.cache.value.rejected import ValueRejected
from wasmkilnd.errors import TierUnavailable
from wasmkilnd.model import CacheKey, IsPinned, nothing_pinned

T = TypeVar("T")

_VICTIMS_AT_ONCE = 64
_MAX_GONE = 10_000
_IN_THE_WAY = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR, errno.ENOENT)


class Disk:
    """The entries' folders and their rows. Safe for use from any thread."""

    def __init__(self, options: HostOptions, is_pinned: IsPinned = nothing_pinned) -> None:
        """``is_pinned`` returns whether a module is pinned."""
        self.options = options
        self.pins = PinnedEntries(is_pinned, lambda: self.limit_bytes)
        self.limit_bytes = options.limit_bytes
        self.index = Index(options.directory)
        self.scratch = Scratch(options.directory)
        self.total = Total()
        """What the index said last."""
        self.evictions = 0
        """How many entries this process removed to make room."""
        self._gone: deque[CacheKey] = deque(maxlen=_MAX_GONE)

    def change(self, work: Callable[[Rows], T]) -> T:
        """Run ``work`` in a transaction; once more if the index had to be replaced."""
        try:
            return self._change(work)
        except IndexLost:
            return self._change(work)

    def reserve(self, key: CacheKey, engine_id: str, size_bytes: int) -> bool:
        """Make room for an entry, and add its row; return False if it can never fit."""
        if size_bytes > self.limit_bytes:
            return False
        try:
            writer = self.scratch.name()
        except OSError as failure:
            raise cannot("write an entry", failure) from None
        self.change(lambda rows: rows.reserve(key, engine_id, size_bytes, writer))
        try:
            self.make_room()
        except TierUnavailable:
            self.give_up(key, None)
            raise
        return True

    def make_room(self) -> None:
        """Evict the entries that were not used for longest, until the rest is in the limit."""
        passed = set[CacheKey]()
        while self.total.bytes > self.limit_bytes:
            gone = list[Path]()
            try:
                found = self.change(partial(self._evict_some, gone, passed))
            except OSError as failure:
                raise cannot("evict an entry", failure) from None
            for path in gone:
                delete(path)
            if not found and not self.release():
                raise TierUnavailable("the host store is full of entries that are being written")

    def release(self) -> int:
        """Free the room of what killed processes were about to write; return for how many rows."""
        try:
            dead = [
                writer for writer in self.change(Rows.writers) if not self.scratch.is_alive(writer)
            ]
        except OSError as failure:
            raise cannot("look into tmp/", failure) from None

        def settle(rows: Rows) -> int:
            keys = [key for writer in dead for key in rows.pending_of(writer)]
            for key in keys:
                self._settle(rows, key)
            return len(keys)

        return self.change(settle) if dead else 0

    def place(self, key: CacheKey, aside: Path, size_bytes: int) -> bool:
        """Rename an entry into place; return False if it was evicted since ``reserve``."""
        away: Path | None = None
        placed = False

        def rename(rows: Rows) -> None:
            nonlocal away, placed
            if rows.settle(key, size_bytes):
                away = self._rename_in(key, aside)
                placed = True

        try:
            self.change(rename)
        except (OSError, ValueRejected) as failure:
            self.give_up(key, aside)
            if isinstance(failure, OSError):
                raise cannot("write an entry", failure) from None
            raise TierUnavailable(f"the host store cannot write an entry: {failure}") from None
        finally:
            if away:
                delete(away)
            if not placed:
                delete(aside)
        return placed

    def give_up(self, key: CacheKey, aside: Path | None) -> None:
        """Undo ``reserve`` after a write that failed; never raises."""
        if aside:
            delete(aside)
        with contextlib.suppress(TierUnavailable, OSError):
            self.change(lambda rows: self._settle(rows, key))

    def remove(self, key: CacheKey) -> bool:
        """Remove an entry that does not verify; return whether it is gone. Never raises."""
        path = first_wrong_step(self.options.directory, key)
        try:
            away = self._move_away(path)
        except OSError:
            return False
        self._gone.append(key)
        if away:
            delete(away)
        prune(self.options.directory, key)
        return True

    def refresh(self) -> None:
        """Remove the rows of entries that are gone, and read the total, which others change."""
        gone = list[CacheKey]()
        with contextlib.suppress(IndexError):
            while True:
                gone.append(self._gone.popleft())

        self.change(lambda rows: self.forget_lost(rows, gone))

    def forget_lost(self, rows: Rows, keys: Iterable[CacheKey]) -> None:
        """Remove the rows of those of ``keys`` that are not on the disk, nor being written."""
        for key in keys:
            if not os.path.lexists(self.path(key)) and not rows.is_pending(key):
                rows.remove(key)

    def take_away(
        self, find: Callable[[], Iterable[Path]], work: Callable[[Rows], None]
    ) -> list[Path]:
        """Rename folders away, and change their rows; return where they are now.

        No entry comes between ``find`` and ``work``, or its row would go without it. The folders
        go even if the index cannot be written: it may have rows too many. Raises TierUnavailable
        if a folder cannot be moved.
        """
        gone = list[Path]()

        def move() -> None:
            gone.extend(filter(None, map(self._move_away, list(find()))))

        def change(rows: Rows) -> None:
            move()
            work(rows)

        try:
            try:
                self.change(change)
            except TierUnavailable:
                move()
        except OSError as failure:
            raise cannot("remove an entry", failure) from None
        return gone

    def path(self, key: CacheKey) -> Path:
        """Return the folder of an entry."""
        return entry_path(self.options.directory, key.fingerprint, key.module_sha256)

    def close(self) -> None:
        """Close the index, and remove what is on its way; never raises."""
        self.index.close()
        self.scratch.close()

    def _change(self, work: Callable[[Rows], T]) -> T:
        os.close(open_root(self.options.directory))  # Not where another user can change it.
        with self.index.write() as rows:
            done = work(rows)
            self.total = rows.total()  # In here, so that no older one replaces it.
        return done

    def _settle(self, rows: Rows, key: CacheKey) -> None:
        """Make a row that of what is on the disk."""
        if size_bytes := disk_bytes_at(self.path(key)):
            rows.settle(key, size_bytes)
        else:
            rows.remove(key)

    def _evict_some(self, gone: list[Path], passed: set[CacheKey], rows: Rows) -> bool:
        """Evict entries until the rest is in the limit, or some; return whether there were any."""
        oldest = rows.oldest(_VICTIMS_AT_ONCE)
        for row in oldest:
            if rows.total().bytes <= self.limit_bytes:
                break
            path = self.path(row.key)
            if self.pins.pass_over(rows, row, passed) or self._was_mapped(rows, row, path):
                continue
            if away := self._move_away(path):
                gone.append(away)
            rows.remove(row.key)
            self.evictions += 1
        return bool(oldest)

    def _was_mapped(self, rows: Rows, row: Row, path: Path) -> bool:
        """Return whether a client read the file since the daemon noted a use; note that."""
        try:
            read_s = int((path / ARTIFACT).stat(follow_symlinks=False).st_atime)
        except OSError:
            return False
        if read_s <= row.used_s or read_s > time.time():
            return False
        rows.used(row.key, read_s)
        return True

    def _move_away(self, path: Path) -> Path | None:
        """Rename what is at ``path`` into the scratch folder; None if nothing is there now.

        Where that is not possible, as on a full disk, delete it in its place. Raises OSError.
        """
        try:
            away = self.scratch.fresh()
            path.rename(away)
        except FileNotFoundError:
            if not os.path.lexists(path):
                return None
            delete(path)
        except OSError:
            delete(path)
            if os.path.lexists(path):
                raise
        else:
            return away
        return None

    def _rename_in(self, key: CacheKey, aside: Path) -> Path | None:
        """Rename an entry into place; return where the one is that was there before."""
        away: Path | None = None
        for last in (False, False, True):
            target = self._make_way(key)
            try:
                aside.rename(target)
                break
            except OSError as failure:
                if last or failure.errno not in _IN_THE_WAY:
                    raise
                # Either an entry is there, or another process removed an empty folder.
                away = self._move_away(target) or away
        return away

    def _make_way(self, key: CacheKey) -> Path:
        try:
            return make_way(self.options, key)
        except ValueRejected:
            if away := self._move_away(first_wrong_step(self.options.directory, key)):
                delete(away)
            return make_way(self.options, key)
