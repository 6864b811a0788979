"""The rows of the index: one per entry, and the total of their bytes in the same transaction."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from wasmkilnd.model import CacheKey

SCHEMA_ID = 0x776B6802
"""SQLite's ``application_id``: "wkh" and the version of the schema."""

SCHEMA = (
    f"PRAGMA application_id={SCHEMA_ID}",
    "CREATE TABLE notes (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
    # A fingerprint stands for one engine: 32 bytes and an engine's name for thousands of entries.
    "CREATE TABLE specs (id INTEGER PRIMARY KEY, fingerprint BLOB NOT NULL UNIQUE,"
    " engine TEXT NOT NULL)",
    "CREATE TABLE entries (spec INTEGER NOT NULL, module BLOB NOT NULL, bytes INTEGER NOT NULL,"
    " used INTEGER NOT NULL, pending TEXT NOT NULL, PRIMARY KEY (spec, module)) WITHOUT ROWID",
    "CREATE INDEX by_writer ON entries (pending) WHERE pending != ''",
    "CREATE INDEX by_use ON entries (used)",
    "CREATE TABLE total (entries INTEGER NOT NULL, bytes INTEGER NOT NULL)",
    "INSERT INTO total VALUES (0, 0)",
    "CREATE TRIGGER added AFTER INSERT ON entries BEGIN"
    " UPDATE total SET entries = entries + 1, bytes = bytes + NEW.bytes; END",
    "CREATE TRIGGER removed AFTER DELETE ON entries BEGIN"
    " UPDATE total SET entries = entries - 1, bytes = bytes - OLD.bytes; END",
    "CREATE TRIGGER resized AFTER UPDATE OF bytes ON entries BEGIN"
    " UPDATE total SET bytes = bytes + NEW.bytes - OLD.bytes; END",
)


@dataclass(frozen=True, slots=True)
class Total:
    """What the rows add up to."""

    entries: int = 0
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class Row:
    """An entry's row."""

    key: CacheKey
    used_s: int


@dataclass(frozen=True, slots=True)
class PinnedRow(Row):
    """The row of an entry whose module is pinned."""

    size_bytes: int


class Rows:
    """Reads and changes rows, inside the transaction of ``Index.write``."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def total(self) -> Total:
        """Return what all rows add up to."""
        [row] = self._connection.execute("SELECT entries, bytes FROM total")
        return Total(*row)

    def adds_up(self) -> bool:
        """Return whether the total is that of the rows; reads all of them."""
        [row] = self._connection.execute("SELECT count(*), coalesce(sum(bytes), 0) FROM entries")
        return self.total() == Total(*row)

    def reserve(self, key: CacheKey, engine_id: str, size_bytes: int, writer: str) -> None:
        """Add the row of an entry that ``writer`` is about to write, or its bytes to the old one.

        It is pending, and not evicted, until it is settled.
        """
        self._connection.execute(
            "INSERT INTO entries VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET"
            " bytes = bytes + excluded.bytes, used = excluded.used, pending = excluded.pending",
            (
                self._spec(key, engine_id),
                _blob(key.module_sha256),
                size_bytes,
                int(time.time()),
                writer,
            ),
        )

    def settle(self, key: CacheKey, size_bytes: int) -> bool:
        """Note that an entry is written; return False if its row is gone: it was evicted."""
        changed = self._connection.execute(
            "UPDATE entries SET bytes = ?, used = ?, pending = ''"
            " WHERE module = ? AND spec = (SELECT id FROM specs WHERE fingerprint = ?)",
            (size_bytes, int(time.time()), *_of(key)),
        )
        return changed.rowcount == 1

    def is_pending(self, key: CacheKey) -> bool:
        """Return whether an entry is being written now."""
        found = self._connection.execute(
            "SELECT pending FROM entries"
            " WHERE module = ? AND spec = (SELECT id FROM specs WHERE fingerprint = ?)",
            _of(key),
        )
        return found.fetchone() not in (None, ("",))

    def writers(self) -> Sequence[str]:
        """Return who has entries that are pending."""
        found = self._connection.execute("SELECT DISTINCT pending FROM entries WHERE pending != ''")
        return [writer for (writer,) in found]

    def pending_of(self, writer: str) -> Sequence[CacheKey]:
        """Return the entries that ``writer`` is writing."""
        found = self._connection.execute(
            "SELECT lower(hex(module)), lower(hex(fingerprint)) FROM entries"
            " JOIN specs ON specs.id = spec WHERE pending = ?",
            (writer,),
        )
        return [CacheKey(*row) for row in found]

    def add(self, key: CacheKey, engine_id: str, size_bytes: int, used_s: int) -> None:
        """Add the row of an entry that was found on the disk, if it has none."""
        self._connection.execute(
            "INSERT OR IGNORE INTO entries VALUES (?, ?, ?, ?, '')",
            (self._spec(key, engine_id), _blob(key.module_sha256), size_bytes, used_s),
        )

    def oldest(self, limit: int) -> Sequence[Row]:
        """Return the entries that were not used for longest, without those that are pending."""
        found = self._connection.execute(
            "SELECT lower(hex(module)), lower(hex(fingerprint)), used FROM entries"
            " JOIN specs ON specs.id = spec WHERE pending = '' ORDER BY used LIMIT ?",
            (limit,),
        )
        return [Row(CacheKey(module, print_), used) for module, print_, used in found]

    def of_module(self, module_sha256: str) -> Sequence[PinnedRow]:
        """Return the entries of a module, without those that are pending."""
        found = self._connection.execute(
            "SELECT lower(hex(fingerprint)), used, bytes FROM entries JOIN specs ON specs.id = spec"
            " WHERE spec IN (SELECT id FROM specs) AND module = ? AND pending = ''",
            (_blob(module_sha256),),
        )
        return [
            PinnedRow(CacheKey(module_sha256, print_), used, size_bytes)
            for print_, used, size_bytes in found
        ]

    def used(self, key: CacheKey, used_s: int) -> None:
        """Note when an entry was used."""
        self._connection.execute(
            "UPDATE entries SET used = max(used, ?)"
            " WHERE module = ? AND spec = (SELECT id FROM specs WHERE fingerprint = ?)",
            (used_s, *_of(key)),
        )

    def remove(self, key: CacheKey) -> None:
        """Remove the row of an entry that is gone."""
        self._connection.execute(
            "DELETE FROM entries"
            " WHERE module = ? AND spec = (SELECT id FROM specs WHERE fingerprint = ?)",
            _of(key),
        )

    def remove_module(self, module_sha256: str) -> None:
        """Remove the rows of a module."""
        # The first condition lets SQLite search the primary key (spec, module), not all rows.
        self._connection.execute(
            "DELETE FROM entries WHERE spec IN (SELECT id FROM specs) AND module = ?",
            (_blob(module_sha256),),
        )

    def remove_fingerprints(self, fingerprints: Iterable[str]) -> None:
        """Remove the entries of fingerprints, and the fingerprints."""
        for fingerprint in map(_blob, fingerprints):
            self._connection.execute(
                "DELETE FROM entries WHERE spec = (SELECT id FROM specs WHERE fingerprint = ?)",
                (fingerprint,),
            )
            self._connection.execute("DELETE FROM specs WHERE fingerprint = ?", (fingerprint,))

    def forget_unused(self) -> None:
        """Forget the fingerprints that have no entries."""
        self._connection.execute(
            "DELETE FROM specs WHERE NOT EXISTS (SELECT 1 FROM entries WHERE spec = specs.id)"
        )

    def engine_of(self, fingerprint: str) -> str:
        """Return the engine's id of a fingerprint; empty if it is not known."""
        found = self._connection.execute(
            "SELECT engine FROM specs WHERE fingerprint = ?", (_blob(fingerprint),)
        )
        row = found.fetchone()
        return str(row[0]) if row else ""

    def after(self, key: CacheKey | None, limit: int) -> Sequence[CacheKey]:
        """Return the next keys after ``key``, in the order of the rows; None for the first."""
        spec = 0
        if key:
            [[spec]] = self._connection.execute(
                "SELECT coalesce(max(id), 0) FROM specs WHERE fingerprint = ?",
                (_blob(key.fingerprint),),
            )
        found = self._connection.execute(
            "SELECT lower(hex(module)), lower(hex(fingerprint)) FROM entries"
            " JOIN specs ON specs.id = spec WHERE (spec, module) > (?, ?)"
            " ORDER BY spec, module LIMIT ?",
            (spec, _blob(key.module_sha256) if key else b"", limit),
        )
        return [CacheKey(*row) for row in found]

    def note(self, name: str) -> str:
        """Return a note, empty if there is none."""
        found = self._connection.execute("SELECT value FROM notes WHERE name = ?", (name,))
        row = found.fetchone()
        return str(row[0]) if row else ""

    def set_note(self, name: str, value: str) -> None:
        """Write a note down."""
        self._connection.execute("INSERT OR REPLACE INTO notes VALUES (?, ?)", (name, value))

    def _spec(self, key: CacheKey, engine_id: str) -> int:
        fingerprint = _blob(key.fingerprint)
        self._connection.execute(
            "INSERT OR IGNORE INTO specs (fingerprint, engine) VALUES (?, ?)",
            (fingerprint, engine_id),
        )
        [[spec]] = self._connection.execute(
            "SELECT id FROM specs WHERE fingerprint = ?", (fingerprint,)
        )
        return int(spec)


def _of(key: CacheKey) -> tuple[bytes, bytes]:
    return _blob(key.module_sha256), _blob(key.fingerprint)


def _blob(digest: str) -> bytes:
    return bytes.fromhex(digest)
