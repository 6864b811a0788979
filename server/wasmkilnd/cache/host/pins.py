"""Pinned entries of the host store: which make no room for others, and how much they take."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TypeAlias

from wasmkilnd.cache.host.rows import PinnedRow, Row, Rows
from wasmkilnd.model import CacheKey, Held, IsPinned

Change: TypeAlias = Callable[[Callable[[Rows], None]], None]
"""Runs a function on the rows, in a transaction."""
Entries: TypeAlias = Mapping[str, Sequence[PinnedRow]]
"""By module."""

# An entry that is passed over comes last in the order of use for so long.
_AHEAD_S = 3600
_BATCH = 200


class PinnedEntries:
    """Decides which entries are kept, as their module is pinned. Safe for use from any thread.

    What is kept takes half of the store at most. Above that, those that were not used for longest
    are let go. Other daemons of the host keep them too, if they know the same pins; those that
    do not know them see entries that were used just now.
    """

    def __init__(self, is_pinned: IsPinned, limit_bytes: Callable[[], int]) -> None:
        """``is_pinned`` returns whether a module is pinned."""
        self._is_pinned = is_pinned
        self._limit_bytes = limit_bytes
        self._lock = threading.Lock()
        self._too_many: frozenset[CacheKey] = frozenset()
        self.kept = Held()
        """What is kept, as of the last count."""
        self.let_go = 0
        """How often an entry was let go, as there were too many."""

    def keeps(self, key: CacheKey) -> bool:
        """Return whether an entry is kept."""
        return self._is_pinned(key.module_sha256) and key not in self._too_many

    def pass_over(self, rows: Rows, row: Row, passed: set[CacheKey]) -> bool:
        """Return whether ``row`` is to stay; put it last in the order of use then.

        ``passed`` are those that were passed over before, since something had to make room: an
        entry that comes again shows that there is nothing else left.
        """
        if not self.keeps(row.key):
            return False
        if row.key in passed:
            self.let_go += 1
            return False
        passed.add(row.key)
        rows.used(row.key, int(time.time()) + _AHEAD_S)
        return True

    def has_room_for(self, size_bytes: int) -> bool:
        """Return whether an entry of this size would be kept."""
        return 2 * (self.kept.bytes + size_bytes) <= self._limit_bytes()

    def entries_of(self, change: Change, modules: Collection[str]) -> Entries:
        """Return the entries of ``modules``."""
        found: dict[str, Sequence[PinnedRow]] = {}
        every = list(modules)
        for start in range(0, len(every), _BATCH):

            def read(rows: Rows, some: Sequence[str] = every[start : start + _BATCH]) -> None:
                found.update({module: rows.of_module(module) for module in some})

            change(read)
        return found

    def count(self, change: Change, modules: Collection[str]) -> None:
        """Count the entries of ``modules``, all that are pinned; let go what is too much."""
        found = self.entries_of(change, modules)
        latest = sorted(
            (row for rows in found.values() for row in rows), key=lambda row: -row.used_s
        )
        kept, too_many = Held(), set[CacheKey]()
        for row in latest:
            if 2 * (kept.bytes + row.size_bytes) > self._limit_bytes():
                too_many.add(row.key)
            else:
                kept += Held(1, 0, row.size_bytes)
        with self._lock:
            self.let_go += len(too_many - self._too_many)
            self._too_many = frozenset(too_many)
            self.kept = kept
