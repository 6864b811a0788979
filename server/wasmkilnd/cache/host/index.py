"""The index of entries, in SQLite: their order of use and total size, without reading folders.

All daemons of the host share ``index.sqlite``. Folders are renamed in and away only inside
``write``, which holds SQLite's lock for writing: so whatever process is killed when, there is a
row for each entry that is on the disk. Look-ups never need the index. One that is damaged, lost or
not ours is replaced by an empty one, which ``reconcile`` fills from the folders.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from wasmkilnd.cache.host.folders import cannot
from wasmkilnd.cache.host.rows import SCHEMA, SCHEMA_ID, Rows
from wasmkilnd.errors import TierUnavailable

_NAME = "index.sqlite"
_LOCK = "index.lock"
_ASIDE = ("", "-wal", "-shm", "-journal")
_TIMEOUT_S = 5.0
_TRY_EVERY_S = 0.01
_WAL_PAGES = 256
_DAMAGE = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR}


class IndexLost(TierUnavailable):
    """The index was damaged, and an empty one is in its place: try again."""


class Index:
    """The rows of all entries. Safe for use from any thread and beside other processes."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / _NAME
        self._lock_path = directory / _LOCK
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._inode = 0
        self.closed = False
        """Set to open the file no more."""

    @contextlib.contextmanager
    def write(self) -> Iterator[Rows]:
        """Change rows in one transaction, which no other process interrupts.

        Raises TierUnavailable if there is no index that can be written; nothing has changed then.
        """
        with self._lock, self._guarded() as guard:
            if self.closed:
                raise TierUnavailable("the host store is closed")
            try:
                connection = self._opened(guard)
                connection.execute("BEGIN IMMEDIATE")
            except sqlite3.DatabaseError as failure:
                raise self._failed(failure, guard) from None
            try:
                yield Rows(connection)
                connection.execute("COMMIT")
            except BaseException as failure:
                with contextlib.suppress(sqlite3.Error):
                    connection.execute("ROLLBACK")
                if isinstance(failure, sqlite3.DatabaseError):
                    raise self._failed(failure, guard) from None
                raise

    def check(self) -> None:
        """Read all of the index; replace it if it is damaged. Raises TierUnavailable."""
        try:
            uri = f"{self._path.absolute().as_uri()}?mode=ro"
            with contextlib.closing(sqlite3.connect(uri, uri=True)) as connection:
                # One moment of it, whatever is written meanwhile.
                connection.execute("BEGIN")
                sound = connection.execute("PRAGMA quick_check(1)").fetchall() == [("ok",)]
                if sound and Rows(connection).adds_up():
                    return
            raise sqlite3.DatabaseError("the index does not add up")
        except sqlite3.DatabaseError as failure:
            with self._lock, self._guarded() as guard:
                raise self._failed(failure, guard) from None

    def close(self) -> None:
        """Close the file; never raises."""
        self.closed = True
        with self._lock:
            self._close()

    def _opened(self, guard: int) -> sqlite3.Connection:
        if self._connection is not None and self._inode_now() == self._inode:
            return self._connection
        self._close()
        if not self._is_ours():
            self._discard(guard, self._inode_now())
        with contextlib.suppress(FileExistsError):
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            os.close(os.open(self._path, flags, 0o600))
        connection = sqlite3.connect(
            self._path, timeout=_TIMEOUT_S, isolation_level=None, check_same_thread=False
        )
        self._inode = self._inode_now()
        try:
            _prepare(connection)
        except sqlite3.Error:
            connection.close()
            raise
        self._connection = connection
        return connection

    def _failed(self, failure: sqlite3.DatabaseError, guard: int) -> TierUnavailable:
        """Return what to raise; put an empty index in the place of one that is damaged."""
        code = getattr(failure, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF
        if code == sqlite3.SQLITE_BUSY:
            return TierUnavailable("the host store's index is in use by another process")
        inode = self._inode
        self._close()
        if code not in _DAMAGE:
            return TierUnavailable(f"the host store cannot use its index: {failure}")
        self._discard(guard, inode)
        return IndexLost(f"the host store replaces its index, which is damaged: {failure}")

    def _discard(self, guard: int, inode: int) -> None:
        """Remove the index with this inode, while no other process uses it."""
        _lock(guard, fcntl.LOCK_EX)
        try:
            if self._inode_now() == inode:
                for suffix in _ASIDE:
                    self._path.with_name(_NAME + suffix).unlink(missing_ok=True)
        except OSError as failure:
            raise cannot("replace its index", failure) from None
        finally:
            _lock(guard, fcntl.LOCK_SH)

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[int]:
        """Hold off other processes that would replace the index. Raises TierUnavailable."""
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            guard = os.open(self._lock_path, flags, 0o600)
        except OSError as failure:
            raise cannot("lock its index", failure) from None
        try:
            _lock(guard, fcntl.LOCK_SH)
            yield guard
        finally:
            os.close(guard)

    def _is_ours(self) -> bool:
        try:
            found = self._path.lstat()
        except FileNotFoundError:
            return True
        return (
            stat.S_ISREG(found.st_mode)
            and found.st_uid == os.geteuid()
            and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
            and found.st_nlink == 1
        )

    def _inode_now(self) -> int:
        try:
            return self._path.lstat().st_ino
        except OSError:
            return 0

    def _close(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None


def _prepare(connection: sqlite3.Connection) -> None:
    """Make the tables of an index that is new. Raises sqlite3.DatabaseError."""
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")
    connection.execute(f"PRAGMA wal_autocheckpoint={_WAL_PAGES}")
    connection.execute("BEGIN IMMEDIATE")
    [[schema_id]] = connection.execute("PRAGMA application_id")
    [[tables]] = connection.execute("SELECT count(*) FROM sqlite_schema")
    if tables and schema_id != SCHEMA_ID:
        raise sqlite3.DatabaseError("the file is not an index of this version")
    if not tables:
        for statement in SCHEMA:
            connection.execute(statement)
    connection.execute("COMMIT")


def _lock(guard: int, how: int) -> None:
    """Lock a file for as long as it is open. Raises TierUnavailable after a while."""
    until_s = time.monotonic() + _TIMEOUT_S
    while True:
        try:
            fcntl.flock(guard, how | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until_s:
                raise TierUnavailable("another process holds the host store's index") from None
            time.sleep(_TRY_EVERY_S)
        else:
            return
