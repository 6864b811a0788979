"""The host store as it works on files: blocking, for threads; ``tier`` runs it behind the loop."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from wasmkiln.host_layout import ARTIFACT, entry_path

from wasmkilnd.cache.host.disk import Disk
from wasmkilnd.cache.host.entry import (
    Content,
    EntryId,
    HeaderOf,
    OpenEntry,
    chunks_of,
    content_of,
    entry_id,
    write_aside,
)
from wasmkilnd.cache.host.folders import cannot, open_entry, prepare
from wasmkilnd.cache.host.options import HostOptions
from wasmkilnd.cache.host.reports import Reports
from wasmkilnd.cache.host.verified import Verified
from wasmkilnd.cache.value.marks import Marks
from wasmkilnd.cache.value.rejected import ValueRejected
from wasmkilnd.model import Artifact, CacheKey, HostFile, Kind
from wasmkilnd.ports import Sealer

_REMEMBERED_BYTES = 16 * 1024 * 1024
# A file that changed this recently may change again with the same ctime.
_SETTLED_NS = 1_000_000_000


class HostStore:
    """Writes and reads entries. Safe for use from any thread.

    Each method raises TierUnavailable for what the disk refuses, and nothing else.
    """

    def __init__(
        self,
        options: HostOptions,
        disk: Disk,
        sealer: Sealer,
        header_of: HeaderOf,
        marks: Marks,
        reports: Reports,
        artifact_bytes: Callable[[], int] = lambda: sys.maxsize,
    ) -> None:
        self._options = options
        self._disk = disk
        self._sealer = sealer
        self._header_of = header_of
        self._marks = marks
        self._reports = reports
        self._artifact_bytes = artifact_bytes
        self.verified = Verified(_REMEMBERED_BYTES)

    def read(self, key: CacheKey) -> Artifact | None:
        """Return the artifact with its frames, every byte of it checked now."""
        with self._reading(key) as entry:
            if entry is None:
                return None
            opened = entry.open_head()
            self._marks.check(opened.what)
            if opened.body.size_bytes > self._artifact_bytes():
                return None  # Not removed: daemons with a higher limit use it.
            epoch = self.verified.epoch
            artifact, identity = entry.verify(opened, keep=True)
            self._remember(artifact, identity, epoch)
            return artifact
        return None

    def file_of(self, key: CacheKey) -> tuple[Artifact, HostFile] | None:
        """Return the artifact without frames, and its file, which this process has checked."""
        path = self._path(key)
        known = self.verified.get(key)
        if known and known.identity == entry_id(path):
            with self._rejecting(key):
                self._marks.check(known.artifact)
                return known.artifact, _host_file(path, known.identity)
            return None
        with self._reading(key) as entry:
            if entry is None:
                return None
            epoch = self.verified.epoch
            opened = entry.open_head()
            self._marks.check(opened.what)
            artifact, identity = entry.verify(opened, keep=False)
            self._remember(artifact, identity, epoch)
            return artifact, _host_file(path, identity)
        return None

    def write(self, artifact: Artifact) -> None:
        """Store ``artifact``, unless it was evicted, is too large, or is there already."""
        with contextlib.suppress(ValueRejected):
            self._marks.check(artifact)
            if self._holds(artifact):
                return
            chunks = chunks_of(artifact)
            plain = dataclasses.replace(artifact, frames=(), encoding="")
            content = content_of(plain, chunks, self._header_of, self._sealer.stamp)
            self._write(plain, content)

    def held(self, keys: Iterable[CacheKey]) -> frozenset[CacheKey]:
        """Return which of ``keys`` are stored, without checking them."""
        return frozenset(key for key in keys if (self._path(key) / ARTIFACT).is_file())

    def kinds_of(self, keys: Iterable[CacheKey]) -> dict[CacheKey, Kind]:
        """Return the kinds of the modules behind those of ``keys`` that are stored."""
        kinds = {}
        for key in keys:
            with self._reading(key) as entry:
                if entry is not None:
                    kinds[key] = entry.open_head().what.kind
        return kinds

    def engine_of(self, key: CacheKey) -> str:
        """Return the engine's id of an entry by its head; empty if it does not verify."""
        with self._reading(key) as entry:
            if entry is not None:
                return entry.open_head().what.spec.engine.id
        return ""

    def _write(self, artifact: Artifact, content: Content) -> None:
        prepare(self._options)
        key, epoch = artifact.key, self.verified.epoch
        if not self._disk.reserve(key, artifact.spec.engine.id, content.disk_bytes):
            return
        aside: Path | None = None
        try:
            aside = self._disk.scratch.fresh()
            identity = write_aside(aside, content, self._options)
        except OSError as failure:
            self._disk.give_up(key, aside)
            raise cannot("write an entry", failure) from None
        if self._disk.place(key, aside, content.disk_bytes):
            self.verified.add(artifact, identity, epoch)

    def _holds(self, artifact: Artifact) -> bool:
        """Return whether the entry is this artifact by its head, made at the same time."""
        with self._reading(artifact.key) as entry:
            if entry is not None:
                stored = entry.open_head().what
                sizes = [each[2] if each else -1 for each in entry.identity()]
                return (stored.sha256, stored.attestation) == (
                    artifact.sha256,
                    artifact.attestation,
                ) and sizes[0] == artifact.size_bytes
        return False

    @contextlib.contextmanager
    def _reading(self, key: CacheKey) -> Iterator[OpenEntry | None]:
        """Open an entry; None if there is none. One that is rejected is removed and counted."""
        with self._rejecting(key):
            folder = open_entry(self._options.directory, key)
            if folder is None:
                yield None
                return
            entry = OpenEntry(folder, key, self._sealer, self._header_of)
            try:
                yield entry
            except OSError as failure:
                raise cannot("read an entry", failure) from None
            finally:
                entry.close()

    @contextlib.contextmanager
    def _rejecting(self, key: CacheKey) -> Iterator[None]:
        try:
            yield
        except ValueRejected as rejected:
            self.verified.forget(key)
            removed = self._disk.remove(key)
            self._reports.rejected(key, rejected, removed=removed)

    def _remember(self, artifact: Artifact, identity: EntryId, epoch: int) -> None:
        changed_ns = max(each[3] for each in identity if each)
        if time.time_ns() - changed_ns > _SETTLED_NS:
            self.verified.add(dataclasses.replace(artifact, frames=()), identity, epoch)

    def _path(self, key: CacheKey) -> Path:
        return entry_path(self._options.directory, key.fingerprint, key.module_sha256)


def _host_file(path: Path, identity: EntryId) -> HostFile:
    found = identity[0]
    device, inode = found[:2] if found else (0, 0)
    return HostFile(os.fspath(path / ARTIFACT), device, inode)
