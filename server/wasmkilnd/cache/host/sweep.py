"""What goes through many entries: an Evict, and the rows of entries that the index lacks."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from wasmkilnd.cache.host.disk import Disk
from wasmkilnd.cache.host.entry import disk_bytes_at
from wasmkilnd.cache.host.folders import cannot, prune
from wasmkilnd.cache.host.rows import Rows
from wasmkilnd.cache.host.scratch import delete
from wasmkilnd.errors import TierUnavailable
from wasmkilnd.model import SHA256_HEX, CacheKey, Evicted, EvictScope

_ROWS_AT_ONCE = 200
_PAUSE_S = 0.01


class Sweep:
    """Goes through the folders of ``disk``; blocking. Each method raises TierUnavailable."""

    def __init__(self, disk: Disk, engine_of: Callable[[CacheKey], str]) -> None:
        """``engine_of`` returns the engine's id of an entry by its head, empty if it has none."""
        self._disk = disk
        self._directory = disk.options.directory
        self._engine_of = engine_of

    def evict(self, scope: EvictScope) -> Evicted:
        """Remove all in ``scope``; takes time linear in what it removes."""
        if scope.module_sha256:
            return self._evict_module(scope.module_sha256)
        fingerprints = list(_names(self._directory))
        if scope.engine_id:
            fingerprints = [
                each for each in fingerprints if self._engine_behind(each) == scope.engine_id
            ]
        if scope.spares:
            return self._evict_others(fingerprints, scope)
        gone = self._disk.take_away(
            lambda: [self._directory / each for each in fingerprints],
            lambda rows: rows.remove_fingerprints(fingerprints),
        )
        removed = Evicted()
        for folder in gone:
            for start in _names(folder, None):
                for module in _names(folder / start):
                    removed += Evicted(1, 0, disk_bytes_at(folder / start / module))
            delete(folder)
        return removed

    def reconcile(self, wanted: Callable[[], bool]) -> int:
        """Add a row for each entry that has none, while ``wanted``; return how many were seen.

        Works in small steps, so that writes and the event loop go on meanwhile.
        """
        seen = 0
        batch = list[tuple[CacheKey, str, int, int]]()
        for fingerprint in fingerprints_in(self._directory):
            engine_id = self._engine_behind(fingerprint)
            for path, key in entries_of(self._directory, fingerprint):
                if size_bytes := disk_bytes_at(path):
                    batch.append((key, engine_id, size_bytes, _mtime_s(path)))
                if len(batch) >= _ROWS_AT_ONCE:
                    if not wanted():
                        return seen
                    seen += self._add(batch)
                    time.sleep(_PAUSE_S)
        return seen + self._add(batch)

    def forget_lost(self, wanted: Callable[[], bool]) -> None:
        """Remove the rows of entries that are not on the disk, while ``wanted``."""
        last: CacheKey | None = None

        def forget(rows: Rows) -> CacheKey | None:
            keys = rows.after(last, _ROWS_AT_ONCE)
            self._disk.forget_lost(rows, keys)
            return keys[-1] if keys else None

        while wanted() and (last := self._disk.change(forget)):
            time.sleep(_PAUSE_S)

    def _evict_module(self, module_sha256: str) -> Evicted:
        if not SHA256_HEX.fullmatch(module_sha256):
            return Evicted()
        keys = list[CacheKey]()

        def find() -> list[Path]:
            keys[:] = [CacheKey(module_sha256, each) for each in _names(self._directory)]
            return [self._disk.path(key) for key in keys]

        gone = self._disk.take_away(find, lambda rows: rows.remove_module(module_sha256))
        return self._delete(gone, keys)

    def _evict_others(self, fingerprints: list[str], scope: EvictScope) -> Evicted:
        """Remove the entries of ``fingerprints`` one by one, as those that are pinned stay."""
        removed = Evicted()
        for fingerprint in fingerprints:
            keys = [key for _, key in entries_of(self._directory, fingerprint)]
            others = [key for key in keys if not scope.leaves(key.module_sha256)]
            removed += Evicted(pinned=len(keys) - len(others))
            for start in range(0, len(others), _ROWS_AT_ONCE):
                removed += self._evict_some(others[start : start + _ROWS_AT_ONCE])
        return removed

    def _evict_some(self, keys: list[CacheKey]) -> Evicted:
        def forget(rows: Rows) -> None:
            for key in keys:
                rows.remove(key)

        gone = self._disk.take_away(lambda: map(self._disk.path, keys), forget)
        return self._delete(gone, keys)

    def _delete(self, entries: Iterable[Path], keys: Iterable[CacheKey]) -> Evicted:
        """Delete entries that were taken away, and the folders that ``keys`` leave empty."""
        removed = Evicted()
        for path in entries:
            removed += Evicted(1, 0, disk_bytes_at(path))
            delete(path)
        for key in keys:
            prune(self._directory, key)
        return removed

    def _engine_behind(self, fingerprint: str) -> str:
        """Return the engine's id of a fingerprint, by the index or by the first good entry."""
        try:
            if known := self._disk.change(lambda rows: rows.engine_of(fingerprint)):
                return known
        except TierUnavailable:
            pass  # The entries say the same.
        for _, key in entries_of(self._directory, fingerprint):
            if engine_id := self._engine_of(key):
                return engine_id
        return ""

    def _add(self, batch: list[tuple[CacheKey, str, int, int]]) -> int:
        def add(rows: Rows) -> None:
            for row in batch:
                rows.add(*row)

        self._disk.change(add)
        added = len(batch)
        batch.clear()
        return added


def fingerprints_in(directory: Path) -> Iterator[str]:
    """Return the fingerprints for which there are folders. Raises TierUnavailable."""
    return _names(directory)


def entries_of(directory: Path, fingerprint: str) -> Iterator[tuple[Path, CacheKey]]:
    """Return the entries of a fingerprint, unchecked. Raises TierUnavailable."""
    folder = directory / fingerprint
    for start in _names(folder, None):
        for module in _names(folder / start):
            yield folder / start / module, CacheKey(module, fingerprint)


def _names(folder: Path, digests: bool | None = True) -> Iterator[str]:
    """Return the names of the folders in ``folder``: digests only, unless that is None."""
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if (not digests or SHA256_HEX.fullmatch(entry.name)) and entry.is_dir(
                    follow_symlinks=False
                ):
                    yield entry.name
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as failure:
        raise cannot("list its entries", failure) from None


def _mtime_s(path: Path) -> int:
    try:
        return int(path.stat(follow_symlinks=False).st_mtime)
    except OSError:
        return 0
