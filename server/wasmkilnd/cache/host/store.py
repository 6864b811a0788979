"""The host store as it works on files: blocking, for threads; ``tier`` runs it behind the loop."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from wasmkiln.host_layout import ARTIFACT, entry_path

from wasmkilnd.cache.host.disk import Disk
from wasmkilnd.cache.host.entry import (
    Content,
    EntryId,
    HeaderOf,
    OpenEntry,
    chunks_of,
    content_of,
    write_aside,
)
from wasmkilnd.cache.host.folders import cannot, is_at, open_entry, prepare
from wasmkilnd.cache.host.options import HostOptions
from wasmkilnd.cache.host.reports import Reports
from wasmkilnd.cache.host.verified import Verified
from wasmkilnd.cache.value.marks import Marks
from wasmkilnd.cache.value.rejected import ValueRejected
from wasmkilnd.cache.value.verify import check_time
from wasmkilnd.errors import DoesNotFit
from wasmkilnd.model import SHA256_HEX, Artifact, CacheKey, HostFile, Kind
from wasmkilnd.signing.sealer import Sealer
from wasmkilnd.wait_budget import Allowance

T = TypeVar("T")

_TRIES = 3
# A slow disk; a look-up may take longer for a large artifact, but no longer than at this rate.
_LEAST_BYTES_PER_S = 32 * 1024 * 1024
_REMEMBERED_BYTES = 16 * 1024 * 1024
# A file that changed this recently may change again with the same ctime.
_SETTLED_NS = 1_000_000_000


class EntryStore:
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

    def read(self, key: CacheKey, allowance: Allowance) -> Artifact | None:
        """Return the artifact with its frames, every byte of it checked now.

        Add to ``allowance`` the time that reading so much may take.
        """

        def read(entry: OpenEntry) -> Artifact | None:
            epoch, opened = self.verified.epoch, entry.open_head()
            self._marks.check(opened.what)
            if opened.body.size_bytes > self._artifact_bytes():
                return None  # Not removed: daemons with a higher limit use it.
            allowance.add(opened.body.size_bytes / _LEAST_BYTES_PER_S)
            artifact, identity = entry.verify(opened, keep=True)
            self._remember(artifact, identity, epoch)
            return artifact

        return self._with_entry(key, read)

    def file_of(self, key: CacheKey, allowance: Allowance) -> tuple[Artifact, HostFile] | None:
        """Return the artifact without frames, and its file, which this process has checked.

        Add to ``allowance`` the time that a check of so much may take.
        """

        def find(entry: OpenEntry) -> tuple[Artifact, HostFile]:
            epoch, known = self.verified.epoch, self.verified.get(key)
            if known and known.identity == entry.identity():
                artifact, identity = known.artifact, known.identity
                self._marks.check(artifact)
                check_time(artifact, self._sealer)
            else:
                opened = entry.open_head()
                self._marks.check(opened.what)
                allowance.add(opened.body.size_bytes / _LEAST_BYTES_PER_S)
                artifact, identity = entry.verify(opened, keep=False)
                self._remember(artifact, identity, epoch)
            return artifact, _host_file(self._path(key), identity)

        return self._with_entry(key, find)

    def write(self, artifact: Artifact) -> None:
        """Store ``artifact``, unless it was evicted or is there already. Raises DoesNotFit too."""
        with contextlib.suppress(ValueRejected):
            self._marks.check(artifact)
            check_time(artifact, self._sealer)
            prepare(self._options)
            if self._holds(artifact):
                return
            chunks = chunks_of(artifact)
            plain = dataclasses.replace(artifact, frames=(), encoding="")
            content = content_of(plain, chunks, self._header_of, self._sealer.stamp)
            self._write(plain, content)

    def held(self, keys: Iterable[CacheKey]) -> frozenset[CacheKey]:
        """Return which of ``keys`` are stored, without checking them."""
        return frozenset(
            key for key in keys if _is_possible(key) and (self._path(key) / ARTIFACT).is_file()
        )

    def kinds_of(self, keys: Iterable[CacheKey]) -> dict[CacheKey, Kind]:
        """Return the kinds of the modules behind those of ``keys`` that are stored."""
        heads = ((key, self._with_entry(key, OpenEntry.open_head)) for key in keys)
        return {key: opened.what.kind for key, opened in heads if opened}

    def engine_of(self, key: CacheKey) -> str:
        """Return the engine's id of an entry by its head; empty if it does not verify."""
        opened = self._with_entry(key, OpenEntry.open_head)
        return opened.what.spec.engine.id if opened else ""

    def _write(self, artifact: Artifact, content: Content) -> None:
        key, epoch = artifact.key, self.verified.epoch
        if not self._disk.reserve(key, artifact.spec.engine.id, content.disk_bytes):
            raise DoesNotFit(
                f"it takes {content.disk_bytes} bytes, and the host store may hold"
                f" {self._disk.limit_bytes}: raise host_store_bytes"
            )
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

        def same(entry: OpenEntry) -> bool:
            stored, file = entry.open_head().what, entry.identity()[0]
            return (
                (stored.sha256, stored.attestation) == (artifact.sha256, artifact.attestation)
                and file is not None
                and file[2] == artifact.size_bytes
            )

        return bool(self._with_entry(artifact.key, same))

    def _with_entry(self, key: CacheKey, work: Callable[[OpenEntry], T]) -> T | None:
        """Return what ``work`` returns for an entry; None if there is none.

        One that is rejected is removed and counted, and None too.
        """
        if not _is_possible(key):
            return None
        try:
            for _ in range(_TRIES):
                folder = open_entry(self._options.directory, key)
                if folder is None:
                    return None
                try:
                    return work(OpenEntry(folder, key, self._sealer))
                except ValueRejected:
                    if is_at(self._path(key), folder):
                        raise
                    # Another process evicted or replaced the entry meanwhile: nothing is wrong.
                finally:
                    os.close(folder)
        except ValueRejected as rejected:
            self.verified.forget(key)
            removed = self._disk.remove(key)
            self._reports.rejected(key, rejected, removed=removed)
        except OSError as failure:
            raise cannot("read an entry", failure) from None
        return None

    def _remember(self, artifact: Artifact, identity: EntryId, epoch: int) -> None:
        changed_ns = max(each[3] for each in identity if each)
        if time.time_ns() - changed_ns > _SETTLED_NS:
            self.verified.add(dataclasses.replace(artifact, frames=()), identity, epoch)

    def _path(self, key: CacheKey) -> Path:
        return entry_path(self._options.directory, key.fingerprint, key.module_sha256)


def _is_possible(key: CacheKey) -> bool:
    """Whether the names of folders can come of ``key``: it must not lead to another place."""
    return bool(SHA256_HEX.fullmatch(key.fingerprint) and SHA256_HEX.fullmatch(key.module_sha256))


def _host_file(path: Path, identity: EntryId) -> HostFile:
    found = identity[0]
    device, inode = found[:2] if found else (0, 0)
    return HostFile(os.fspath(path / ARTIFACT), device, inode)
