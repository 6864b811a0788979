"""What the store does behind the calls: notes uses, mends the index, stays within the limit."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import time
from collections import OrderedDict, deque
from pathlib import Path

import structlog

from wasmkilnd.cache.host.disk import Disk
from wasmkilnd.cache.host.folders import prepare
from wasmkilnd.cache.host.index import IndexLost
from wasmkilnd.cache.host.rows import Rows
from wasmkilnd.cache.host.sweep import Sweep
from wasmkilnd.model import CacheKey

_USE_EVERY_S = 300.0
_MAX_USES = 20_000
# Calls of tidy, which come every few seconds.
_CLEAN_EVERY = 60

# A note in the index: since which start of the machine it has a row for each entry. The last rows
# may be lost when a machine loses power, so a new start counts as an index that lacks some.
_COMPLETE, _MENDING = "complete", "mending"
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

_log = structlog.get_logger("wasmkilnd.cache")


class Housekeeping:
    """Work of one thread at a time; only ``used`` is called on the event loop."""

    def __init__(self, disk: Disk, sweep: Sweep) -> None:
        self._disk = disk
        self._sweep = sweep
        # When an entry's use was noted last, the oldest first; and the uses to note.
        self._noted: OrderedDict[CacheKey, float] = OrderedDict()
        self._uses: deque[CacheKey] = deque(maxlen=_MAX_USES)
        self._ticks = 0
        self._boot_id = _boot_id()
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
        self._uses.append(key)

    def open(self) -> None:
        """Make the directory, and open the index. Raises TierUnavailable."""
        prepare(self._disk.options)
        with contextlib.suppress(OSError):
            self._disk.scratch.fresh()  # While there is room: a full disk must not stop an Evict.
        self._disk.refresh()

    def tidy(self) -> None:
        """Do all that waits to be done. Raises TierUnavailable."""
        self._disk.refresh()
        self._write_uses()
        if self._ticks % _CLEAN_EVERY == 0:
            self._disk.release()
            self._disk.scratch.clean()
        if not self._ticks:
            try:
                self._disk.index.check()
            except IndexLost as failure:
                _log.warning("the host store's index is damaged", cause=str(failure))
        self._ticks += 1
        self._disk.make_room()
        if self._disk.change(lambda rows: rows.note(_COMPLETE)) != self._boot_id:
            self._mend()

    def close(self) -> None:
        """Note the last uses, and close. Raises TierUnavailable."""
        try:
            self._write_uses()
        finally:
            self._disk.close()

    def _write_uses(self) -> None:
        uses, now_s = list[CacheKey](), int(time.time())
        with contextlib.suppress(IndexError):
            while True:
                uses.append(self._uses.popleft())
        if not uses:
            return
        for key in uses:
            with contextlib.suppress(OSError):
                os.utime(self._disk.path(key), (now_s, now_s), follow_symlinks=False)

        def note(rows: Rows) -> None:
            for key in uses:
                rows.used(key, now_s)

        self._disk.change(note)

    def _mend(self) -> None:
        """Fill an index that is new, or that was not closed before the machine stopped."""
        token = secrets.token_hex(8)
        self._disk.change(lambda rows: rows.set_note(_MENDING, token))
        entries = self._sweep.reconcile(lambda: not self.closing)
        self._sweep.forget_lost(lambda: not self.closing)
        if self.closing:
            return

        def complete(rows: Rows) -> None:
            # Unless it is another index by now, or another daemon started over.
            rows.forget_unused()
            if rows.note(_MENDING) == token:
                rows.set_note(_COMPLETE, self._boot_id)

        self._disk.change(complete)
        if entries:
            _log.info("the host store's index is complete", entries=entries)
        self._disk.make_room()


def _boot_id() -> str:
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return "unknown"
