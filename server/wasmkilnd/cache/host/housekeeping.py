"""What the store does behind the calls: notes uses, mends the index, stays within the limit."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections import OrderedDict

import structlog

from wasmkilnd.cache.host.disk import Disk
from wasmkilnd.cache.host.folders import prepare
from wasmkilnd.cache.host.reports import Reports
from wasmkilnd.cache.host.rows import Rows
from wasmkilnd.cache.host.sweep import Sweep
from wasmkilnd.errors import TierUnavailable
from wasmkilnd.model import CacheKey

_USE_EVERY_S = 300.0
_MAX_USES = 20_000

_log = structlog.get_logger("wasmkilnd.cache")


class Housekeeping:
    """Work of one thread at a time; only ``used`` is called on the event loop."""

    def __init__(self, disk: Disk, sweep: Sweep, reports: Reports) -> None:
        self._disk = disk
        self._sweep = sweep
        self._reports = reports
        # When an entry's use was noted last, the oldest first; and the uses to note.
        self._noted: OrderedDict[CacheKey, float] = OrderedDict()
        self._uses: dict[CacheKey, None] = {}
        self._checked_index = False
        self.wake = asyncio.Event()
        """Set when there is something to do now."""
        self.closing = False

    def used(self, key: CacheKey) -> None:
        """Note the use of an entry soon, unless one was noted a few minutes ago."""
        now_s = time.monotonic()
        if now_s - self._noted.get(key, -_USE_EVERY_S) < _USE_EVERY_S:
            return
        self._noted[key] = now_s
        self._noted.move_to_end(key)
        if len(self._noted) > _MAX_USES:
            self._noted.popitem(last=False)
        self._uses[key] = None

    def open(self) -> None:
        """Make the directory, and open the index. Raises TierUnavailable."""
        prepare(self._disk.options)
        with contextlib.suppress(OSError):
            self._disk.scratch.fresh()  # While there is room: a full disk must not stop an Evict.
        if not self._disk.index.same_boot():
            self._disk.index.incomplete = True
        self._disk.change(lambda rows: None)

    def tidy(self) -> None:
        """Do all that waits to be done. Raises TierUnavailable."""
        self._write_uses()
        self._disk.change(lambda rows: None)  # Read the total, which other daemons change.
        self._disk.make_room()
        if not self._checked_index:
            self._checked_index = True
            self._disk.scratch.clean()
            self._disk.index.check()
        if self._disk.index.incomplete:
            self._mend()

    def close(self) -> None:
        """Note the last uses, and close. Raises TierUnavailable."""
        try:
            self._write_uses()
        finally:
            self._disk.close()

    def _write_uses(self) -> None:
        if not self._uses:
            return
        uses, self._uses = self._uses, {}
        now_s = int(time.time())
        for key in uses:
            with contextlib.suppress(OSError):
                os.utime(self._disk.path(key), (now_s, now_s), follow_symlinks=False)

        def note(rows: Rows) -> None:
            for key in uses:
                rows.used(key, now_s)

        self._disk.change(note)

    def _mend(self) -> None:
        self._disk.index.incomplete = False
        try:
            entries = self._sweep.reconcile(lambda: not self.closing)
        except TierUnavailable:
            self._disk.index.incomplete = True
            raise
        if entries:
            _log.info("the host store's index is complete", entries=entries)
        self._disk.make_room()
